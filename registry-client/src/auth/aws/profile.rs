//! AWS settings: the environment as handed over, and the profiles of `~/.aws/config` and `~/.aws/credentials`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use crate::auth::KeychainError;
use crate::config::read_file;

/// The `AWS_*` variables and the home directory.
#[derive(Clone, Default)]
pub struct AwsEnv {
    /// Variables by name. Empty ones count as not set.
    pub variables: BTreeMap<String, String>,
    /// The user's home directory.
    pub home: Option<PathBuf>,
}

impl fmt::Debug for AwsEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.variables.keys()).finish()
    }
}

impl AwsEnv {
    /// The variables that count.
    pub const VARIABLES: &[&str] = &[
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
        "AWS_DEFAULT_PROFILE",
        "AWS_CONFIG_FILE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ROLE_ARN",
        "AWS_ROLE_SESSION_NAME",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        "AWS_EC2_METADATA_DISABLED",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_ECR",
        "AWS_ENDPOINT_URL_ECR_PUBLIC",
        "AWS_ENDPOINT_URL_STS",
        "AWS_ENDPOINT_URL_SSO",
        "AWS_USE_FIPS_ENDPOINT",
        "AWS_ECR_CACHE_DIR",
        "AWS_ECR_DISABLE_CACHE",
    ];

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(super) fn is_set(&self, name: &str, value: &str) -> bool {
        self.get(name).is_some_and(|own| own.eq_ignore_ascii_case(value))
    }

    /// A path as AWS's tools read it: `~` is the home directory.
    pub(super) fn path(&self, text: &str) -> PathBuf {
        match (text.strip_prefix("~/"), &self.home) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => PathBuf::from(text),
        }
    }

    fn file(&self, variable: &str, name: &str) -> Option<PathBuf> {
        let own = self.get(variable).map(|path| self.path(path));
        own.or_else(|| Some(self.home.as_ref()?.join(".aws").join(name)))
    }
}

/// Profiles by name; keys in lower case. What `credentials` says wins over `config`.
#[derive(Default)]
pub(super) struct Profiles {
    profiles: Section,
    /// `[sso-session x]`.
    sessions: Section,
}

type Section = BTreeMap<String, BTreeMap<String, String>>;

impl Profiles {
    pub(super) fn load(env: &AwsEnv) -> Result<Self, KeychainError> {
        let mut profiles = Self::default();
        let files =
            [("AWS_CONFIG_FILE", "config", true), ("AWS_SHARED_CREDENTIALS_FILE", "credentials", false)];
        for (variable, name, has_prefix) in files {
            if let Some(path) = env.file(variable, name)
                && let Some(text) = read_file(&path)?
            {
                profiles.add(&text, has_prefix);
            }
        }
        Ok(profiles)
    }

    fn add(&mut self, text: &str, has_prefix: bool) {
        // The section a line belongs to; none for what is neither a profile nor a session.
        let mut current: Option<(bool, String)> = None;
        for line in text.lines() {
            let is_nested = line.starts_with([' ', '\t']);
            let line = line.trim();
            if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
                let header = header.trim();
                let after = |word: &str| header.strip_prefix(word).filter(|_| has_prefix).map(str::trim);
                current = match (after("profile "), after("sso-session ")) {
                    (Some(name), _) => Some((true, name.to_owned())),
                    (None, Some(name)) => Some((false, name.to_owned())),
                    (None, None) if !has_prefix || header == "default" => Some((true, header.to_owned())),
                    // `[services x]`.
                    (None, None) => None,
                };
            } else if let (Some((is_profile, name)), Some((key, value))) = (&current, line.split_once('='))
                && !line.starts_with(['#', ';'])
                && !is_nested
            {
                let value = value.split(" #").next().unwrap_or_default().trim().to_owned();
                let section = if *is_profile { &mut self.profiles } else { &mut self.sessions };
                let keys = section.entry(name.clone()).or_default();
                keys.insert(key.trim().to_ascii_lowercase(), value);
            }
        }
    }

    pub(super) fn get(&self, profile: &str, key: &str) -> Option<&str> {
        self.profiles.get(profile)?.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(super) fn session(&self, session: &str, key: &str) -> Option<&str> {
        self.sessions.get(session)?.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(super) fn has(&self, profile: &str) -> bool {
        self.profiles.contains_key(profile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_read_from_both_files() {
        let mut profiles = Profiles::default();
        profiles.add(
            "[default]\nregion = eu-west-1 # home\n[profile ci]\nrole_arn=arn:x\ns3 =\n  max_queue_size = 5\n\
             [sso-session s]\nregion=no\n; comment = 1\n",
            true,
        );
        profiles
            .add("[ci]\naws_access_key_id = AKIA\naws_secret_access_key=a=b\n[profile x]\nkey=1\n", false);
        assert_eq!(profiles.get("default", "region"), Some("eu-west-1"));
        assert_eq!(profiles.get("ci", "role_arn"), Some("arn:x"));
        assert_eq!(profiles.get("ci", "aws_secret_access_key"), Some("a=b"));
        assert_eq!(profiles.get("ci", "max_queue_size"), None);
        assert_eq!(profiles.session("s", "region"), Some("no"));
        assert!(!profiles.has("s") && !profiles.has("x") && profiles.has("profile x"));
    }
}
