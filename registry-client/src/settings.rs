//! What the caller decides: plain data, no environment, no files opened.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::auth::AwsEnv;
use crate::config::without_user;

/// How to reach registries. Paths that do not exist are fine; files that do not parse are errors that name the file.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Docker's `config.json` (the file, not its directory).
    pub docker_config: Option<PathBuf>,
    /// The JSON text of `DOCKER_AUTH_CONFIG`.
    pub docker_auth_config: Option<String>,
    /// `--authfile` or `$REGISTRY_AUTH_FILE`: like [`Self::containers_auth_files`], asked before Docker's file.
    pub registry_auth_file: Option<PathBuf>,
    /// `containers/auth.json` files, whose keys may be namespaces. Asked in order, after Docker's file.
    pub containers_auth_files: Vec<PathBuf>,
    /// Candidates for `registries.conf`: the first that exists counts, with its `registries.conf.d/*.conf`.
    pub registries_conf: Vec<PathBuf>,
    /// Buildx's configuration directory, for credentials of single repositories and actions below `config/`.
    pub buildx_config: Option<PathBuf>,
    /// AWS's variables, for ECR registries.
    pub aws: AwsEnv,
    /// Docker's `daemon.json`, for `registry-mirrors` and `insecure-registries`.
    pub daemon_json: Option<PathBuf>,
    /// Candidates for BuildKit's `buildkitd.toml`, for its `[registry]` tables: the first that exists counts.
    pub buildkitd_toml: Vec<PathBuf>,
    /// Registries (`host[:port]`) that may be spoken to without verified TLS, or in clear text.
    pub insecure: Vec<String>,
    /// `certs.d` directories: the first that has a folder for `host[:port]` gives its CA (`*.crt`) and client pair
    /// (`*.cert` and `*.key`); containerd's `hosts.toml` there gives mirrors, proxies and times as well.
    pub certs_dirs: Vec<PathBuf>,
    /// Hosts (`host[:port]`) at internal addresses a public registry may refer to (token server, storage).
    pub internal_hosts: Vec<String>,
    /// Proxies. Loopback addresses are never reached through one of these, nor is a host with its own in `hosts.toml`.
    pub proxies: ProxySettings,
    /// `PATH` in which credential helpers are looked up; `None` means the process's own.
    pub helper_path: Option<OsString>,
    /// Blob transfers at one host at a time, in each direction.
    pub transfers_per_host: usize,
    /// Time limits.
    pub deadlines: Deadlines,
    /// `User-Agent` sent.
    pub user_agent: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            docker_config: None,
            docker_auth_config: None,
            registry_auth_file: None,
            containers_auth_files: Vec::new(),
            registries_conf: Vec::new(),
            buildx_config: None,
            aws: AwsEnv::default(),
            daemon_json: None,
            buildkitd_toml: Vec::new(),
            insecure: Vec::new(),
            certs_dirs: Vec::new(),
            internal_hosts: Vec::new(),
            proxies: ProxySettings::default(),
            helper_path: None,
            transfers_per_host: 6,
            deadlines: Deadlines::default(),
            user_agent: concat!("rbuild/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// Proxies as the usual variables name them.
#[derive(Debug, Clone, Default)]
pub struct ProxySettings {
    /// Proxy for `http://` addresses.
    pub http: Option<ProxySetting>,
    /// Proxy for `https://` addresses.
    pub https: Option<ProxySetting>,
    /// Comma-separated exceptions: hosts, `.suffix`, addresses, CIDR ranges, `*`.
    pub no_proxy: Option<String>,
}

/// One proxy.
#[derive(Clone)]
pub struct ProxySetting {
    /// Its address, with the credentials for it; without a scheme it is `http`.
    pub address: String,
    /// For messages.
    pub set_by: SetBy,
}

/// Where a proxy is set, for people who want to change it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SetBy {
    /// A variable of the environment.
    Variable(String),
    /// A file.
    File {
        /// The file.
        path: PathBuf,
        /// The key in it.
        key: &'static str,
    },
}

impl ProxySettings {
    pub(crate) fn for_scheme(&self, scheme: &str) -> Option<&ProxySetting> {
        let proxy = if scheme == "https" { &self.https } else { &self.http };
        proxy.as_ref().filter(|proxy| !proxy.address.is_empty())
    }
}

impl fmt::Debug for ProxySetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = without_user(&self.address);
        f.debug_struct("ProxySetting").field("address", &address).field("set_by", &self.set_by).finish()
    }
}

impl fmt::Display for SetBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => f.write_str(name),
            Self::File { path, key } => write!(f, "`{key}` in {}", path.display()),
        }
    }
}

/// Time limits and the pace of retries.
#[derive(Debug, Clone)]
pub struct Deadlines {
    /// Opening a connection, TLS included.
    pub connect: Duration,
    /// From a request to the first byte of its answer.
    pub first_byte: Duration,
    /// Silence within a transfer.
    pub idle: Duration,
    /// Time over which a transfer's rate is judged.
    pub rate_window: Duration,
    /// From the last byte of an upload to the registry's answer: large blobs are verified on the other side first.
    pub commit: Duration,
    /// First wait before a retry; doubles each time, with jitter.
    pub backoff: Duration,
    /// No retry of a request starts later than this after its first try.
    pub retry_budget: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            first_byte: Duration::from_secs(60),
            idle: Duration::from_secs(30),
            rate_window: Duration::from_secs(60),
            commit: Duration::from_secs(300),
            backoff: Duration::from_millis(250),
            retry_budget: Duration::from_secs(600),
        }
    }
}
