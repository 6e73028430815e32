//! What the environment and the user's files say, read once.
//!
//! The only place that reads the process environment. Everything is read before privileges change, because HOME may
//! mean something else afterwards.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use rbuild_sandbox::Isolation;

use crate::cli::{Env, Problem, UsageError};
use crate::export::engine::EngineAddress;
use crate::git::GitSettings;
use rbuild_oci::parse_bytes;

/// What the environment says.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Default store directory: `/var/lib/rbuild` for uid 0, else below the XDG data directory.
    pub default_root: PathBuf,
    /// How RUN steps are kept apart.
    pub isolation: Isolation,
    /// How much build cache stays after a build.
    pub cache_budget: CacheBudget,
    /// Where a local Docker engine is.
    pub engine: EngineAddress,
    /// Registry access.
    pub registry: rbuild_registry::Settings,
    /// How git is run.
    pub git: GitSettings,
}

/// How much of what no image needs stays in the store after a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheBudget {
    /// The smaller of a tenth of the disk and 20 GB.
    Default,
    /// This many bytes.
    Bytes(u64),
    /// Everything; only `prune` removes.
    Off,
}

impl Settings {
    /// Reads what is needed from `env`; `is_root` says whether the user is uid 0 outside of any namespace of ours.
    /// Fails on a variable of our own that makes no sense.
    pub fn new(env: &Env, is_root: bool) -> Result<Self, UsageError> {
        let var = |name: &str| env.non_empty(name);
        let either = |name: &str| var(name).or_else(|| var(&name.to_ascii_lowercase()));
        let proxy = |name: &str| {
            let names = [name.to_owned(), name.to_ascii_lowercase()];
            let (address, name) = names.into_iter().find_map(|name| Some((var(&name)?, name)))?;
            Some(rbuild_registry::ProxySetting { address, set_by: rbuild_registry::SetBy::Variable(name) })
        };
        let home = var("HOME").map(PathBuf::from);
        let config_home =
            var("XDG_CONFIG_HOME").map(PathBuf::from).or_else(|| Some(home.as_ref()?.join(".config")));
        let default_root = if is_root {
            PathBuf::from("/var/lib/rbuild")
        } else {
            var("XDG_DATA_HOME")
                .map(PathBuf::from)
                .or_else(|| Some(home.as_ref()?.join(".local/share")))
                .map_or_else(|| std::env::temp_dir().join("rbuild"), |data| data.join("rbuild"))
        };
        let docker_dir =
            var("DOCKER_CONFIG").map(PathBuf::from).or_else(|| Some(home.as_ref()?.join(".docker")));
        let in_config = |name: &str| config_home.as_ref().map(|dir| dir.join("containers").join(name));
        let auth_files = var("XDG_RUNTIME_DIR")
            .map(|dir| Path::new(&dir).join("containers/auth.json"))
            .into_iter()
            .chain(in_config("auth.json"));
        let registries = in_config("registries.conf")
            .into_iter()
            .chain([PathBuf::from("/etc/containers/registries.conf")]);
        let buildx_config =
            var("BUILDX_CONFIG").map(PathBuf::from).or_else(|| Some(docker_dir.as_ref()?.join("buildx")));
        let registry = rbuild_registry::Settings {
            docker_config: docker_dir.as_ref().map(|dir| dir.join("config.json")),
            docker_auth_config: var("DOCKER_AUTH_CONFIG"),
            buildx_config: buildx_config.clone(),
            aws: rbuild_registry::AwsEnv {
                variables: rbuild_registry::AwsEnv::VARIABLES
                    .iter()
                    .filter_map(|name| Some(((*name).to_owned(), var(name)?)))
                    .collect(),
                home: home.clone(),
            },
            registry_auth_file: var("REGISTRY_AUTH_FILE").map(PathBuf::from),
            containers_auth_files: auth_files.collect(),
            registries_conf: match var("CONTAINERS_REGISTRIES_CONF") {
                Some(file) => vec![PathBuf::from(file)],
                None => registries.collect(),
            },
            daemon_json: Some(PathBuf::from("/etc/docker/daemon.json")),
            certs_dirs: in_config("certs.d")
                .into_iter()
                .chain(["/etc/containers/certs.d", "/etc/docker/certs.d"].map(PathBuf::from))
                // Where rootless Docker has it, and containerd.
                .chain(config_home.as_ref().map(|dir| dir.join("docker/certs.d")))
                .chain(config_home.as_ref().map(|dir| dir.join("containerd/certs.d")))
                .chain([PathBuf::from("/etc/containerd/certs.d")])
                .collect(),
            // What buildx gives its builders, then BuildKit's own.
            buildkitd_toml: buildx_config
                .iter()
                .map(|dir| dir.join("buildkitd.default.toml"))
                .chain(config_home.as_ref().map(|dir| dir.join("buildkit/buildkitd.toml")))
                .chain([PathBuf::from("/etc/buildkit/buildkitd.toml")])
                .collect(),
            proxies: rbuild_registry::ProxySettings {
                http: proxy("HTTP_PROXY"),
                https: proxy("HTTPS_PROXY"),
                no_proxy: either("NO_PROXY"),
            },
            ..rbuild_registry::Settings::default()
        };
        let cache_budget = cache_budget(var("RBUILD_CACHE_BUDGET"))?;
        let runtime_dir = var("XDG_RUNTIME_DIR").map(PathBuf::from);
        let with_tls = var("DOCKER_TLS_VERIFY").is_some();
        let engine = EngineAddress::new(var("DOCKER_HOST").as_deref(), with_tls, runtime_dir.as_deref());
        const PASSED_ON: [&str; 8] = [
            "http_proxy",
            "https_proxy",
            "all_proxy",
            "HTTPS_PROXY",
            "ALL_PROXY",
            "SSL_CERT_FILE",
            "SSL_CERT_DIR",
            "GIT_SSL_CAINFO",
        ];
        let mut passed_on: Vec<(String, OsString)> =
            PASSED_ON.iter().filter_map(|name| Some(((*name).to_owned(), var(name)?.into()))).collect();
        // Git's own names for what the rest of rbuild trusts.
        if let (None, Some(file)) = (var("GIT_SSL_CAINFO"), var("SSL_CERT_FILE")) {
            passed_on.push(("GIT_SSL_CAINFO".to_owned(), file.into()));
        }
        // As with registries: this machine is never reached through a proxy.
        let no_proxy = either("NO_PROXY").map_or_else(String::new, |list| format!("{list},"));
        passed_on.push(("no_proxy".to_owned(), format!("{no_proxy}localhost,127.0.0.1,::1").into()));
        let git = GitSettings {
            path: var("PATH").map(OsString::from),
            home,
            ssh_agent: var("SSH_AUTH_SOCK").map(OsString::from),
            ssh_keys: Vec::new(),
            passed_on,
        };
        Ok(Self { default_root, isolation: Isolation::Auto, cache_budget, engine, registry, git })
    }
}

fn cache_budget(text: Option<String>) -> Result<CacheBudget, UsageError> {
    match text.as_deref() {
        None => Ok(CacheBudget::Default),
        Some("off") => Ok(CacheBudget::Off),
        Some(text) => parse_bytes(text).map(CacheBudget::Bytes).ok_or_else(|| UsageError {
            command: "rbuild".to_owned(),
            problem: Problem::Value {
                flag: "RBUILD_CACHE_BUDGET",
                value: text.to_owned(),
                expected: "expected a size such as 10GB, or off".to_owned(),
            },
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_budget_is_a_size_or_off() {
        let budget = |text| {
            let env = Env::fixed([("RBUILD_CACHE_BUDGET", text)]);
            Settings::new(&env, true).map(|settings| settings.cache_budget).map_err(|e| e.to_string())
        };
        assert_eq!(budget(""), Ok(CacheBudget::Default));
        assert_eq!(budget("2g"), Ok(CacheBudget::Bytes(2 << 30)));
        assert_eq!(budget("off"), Ok(CacheBudget::Off));
        assert!(budget("lots").unwrap_err().contains("RBUILD_CACHE_BUDGET"));
    }
}
