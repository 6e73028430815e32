//! Keys of a profile that is logged in through IAM Identity Center (`aws sso login`).
//!
//! The AWS command line keeps the session's token in `~/.aws/sso/cache`; it is exchanged here for keys of the role. The
//! token is never renewed from here: whoever renews it must write it back for everybody else, and that is the command
//! line's file.

use std::path::PathBuf;

use reqwest::{Method, Url};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use serde_json::Value;

use super::credentials::problem;
use super::profile::{AwsEnv, Profiles};
use super::sigv4::Keys;
use super::{Ask, now, refused, time};
use crate::auth::KeychainError;
use crate::config::read_file;
use crate::limits::AWS_TIMEOUT;
use crate::transport::Transport;

/// What a profile says of its login.
#[derive(Clone)]
pub(super) struct Login {
    profile: String,
    region: String,
    account: String,
    role: String,
    /// What the token's file is named after: the session, else the start address.
    key: String,
}

impl Login {
    /// `None` for a profile without such a login.
    pub(super) fn of(profiles: &Profiles, profile: &str) -> Result<Option<Self>, KeychainError> {
        let get = |key: &str| profiles.get(profile, key);
        let session = get("sso_session");
        let of_session = |key: &str| session.and_then(|session| profiles.session(session, key));
        let Some(key) = session.or_else(|| get("sso_start_url")) else { return Ok(None) };
        let lacks = |what: &str| problem(format!("the profile `{profile}` uses SSO and has no `{what}`"));
        Ok(Some(Self {
            profile: profile.to_owned(),
            region: of_session("sso_region")
                .or_else(|| get("sso_region"))
                .ok_or_else(|| lacks("sso_region"))?
                .to_owned(),
            account: get("sso_account_id").ok_or_else(|| lacks("sso_account_id"))?.to_owned(),
            role: get("sso_role_name").ok_or_else(|| lacks("sso_role_name"))?.to_owned(),
            key: key.to_owned(),
        }))
    }

    pub(super) fn identity(&self) -> String {
        format!("sso {} {} {}", self.key, self.account, self.role)
    }

    fn file(&self, env: &AwsEnv) -> Option<PathBuf> {
        let name = digest(&SHA1_FOR_LEGACY_USE_ONLY, self.key.as_bytes());
        let name: String = name.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Some(env.home.as_ref()?.join(".aws/sso/cache").join(format!("{name}.json")))
    }

    fn token(&self, env: &AwsEnv) -> Result<String, KeychainError> {
        let again = |why: &str| problem(format!("{why}: run `aws sso login --profile {}`", self.profile));
        let text = self.file(env).map(|file| read_file(&file)).transpose()?.flatten();
        let text = text.ok_or_else(|| again("nobody is logged in through SSO"))?;
        let json: Value = serde_json::from_str(&text).unwrap_or_default();
        let expires = json["expiresAt"].as_str().and_then(time::parse);
        match json["accessToken"].as_str() {
            Some(token) if expires.is_some_and(|expires| expires > now()) => Ok(token.to_owned()),
            _ => Err(again("the login through SSO has expired")),
        }
    }
}

impl Transport {
    /// Exchanges the session's token for keys of the role.
    pub(super) async fn sso_keys(&self, env: &AwsEnv, login: &Login) -> Result<Keys, KeychainError> {
        let what = "GetRoleCredentials";
        let own = env.get("AWS_ENDPOINT_URL_SSO").or_else(|| env.get("AWS_ENDPOINT_URL"));
        let suffix = if login.region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        let endpoint =
            own.map_or_else(|| format!("https://portal.sso.{}.{suffix}", login.region), str::to_owned);
        let mut url = Url::parse(&format!("{}/federation/credentials", endpoint.trim_end_matches('/')))
            .map_err(|_| problem(format!("`{endpoint}` is not an address")))?;
        url.query_pairs_mut().append_pair("account_id", &login.account).append_pair("role_name", &login.role);
        let headers = vec![("x-amz-sso_bearer_token".to_owned(), login.token(env)?)];
        let ask = Ask {
            method: Method::GET,
            url: url.to_string(),
            headers,
            body: Vec::new(),
            timeout: AWS_TIMEOUT,
        };
        let (status, body) = self.ask(what, ask).await?;
        if status != 200 {
            return Err(refused(what, status, &body));
        }
        let json: Value = serde_json::from_slice(&body).unwrap_or_default();
        let text = |key: &str| json["roleCredentials"][key].as_str().map(str::to_owned);
        match (text("accessKeyId"), text("secretAccessKey")) {
            (Some(id), Some(secret)) => Ok(Keys { id, secret, session: text("sessionToken") }),
            _ => Err(problem("SSO gave no credentials".to_owned())),
        }
    }
}
