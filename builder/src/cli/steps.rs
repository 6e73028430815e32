//! Flags about RUN steps: secrets, agents, hosts, entitlements, limits.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use rbuild_frontend::lower::Entitlements;
use rbuild_oci::parse_bytes;
use rbuild_sandbox::{RLIMITS, StepLimit};

use super::csv::parse_record;
use super::{Env, Problem};

/// What was typed.
#[derive(Debug, Args)]
pub(crate) struct StepArgs {
    /// Give steps that ask for it a secret: id=ID[,src=FILE|env=VARIABLE]
    #[arg(long = "secret", value_name = "SPEC", help_heading = "How to build")]
    secrets: Vec<String>,
    /// Give steps that ask for it your SSH agent, or keys in files
    #[arg(long, value_name = "default|ID[=SOCKET|KEY,..]", help_heading = "How to build")]
    ssh: Vec<String>,
    /// Allow the Dockerfile to ask for network.host, security.insecure or device[=NAME[,alias=ALIAS]]
    #[arg(long, value_name = "WHAT", help_heading = "How to build")]
    allow: Vec<String>,
    /// Where devices are described, instead of /etc/cdi and the like
    #[arg(long = "cdi-spec-dir", value_name = "DIR", help_heading = "How to build")]
    cdi_spec_dirs: Vec<PathBuf>,
    /// Name a host in steps' /etc/hosts
    #[arg(long = "add-host", value_name = "HOST:IP", help_heading = "How to build")]
    hosts: Vec<String>,
    /// Size of /dev/shm in steps (default: 64m)
    #[arg(long, value_name = "BYTES", help_heading = "How to build")]
    shm_size: Option<String>,
    /// Limit a resource of steps' processes: nofile=1024:2048
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]", help_heading = "How to build")]
    ulimits: Vec<String>,
    /// Limit what all processes of a step use together: memory=512m, pids=100, cpu-quota=50000
    #[arg(long = "resource", value_name = "KEY=VALUE", help_heading = "How to build")]
    resources: Vec<String>,
    /// Control group that steps' groups are made in
    #[arg(long, value_name = "PATH", help_heading = "How to build")]
    cgroup_parent: Option<String>,
}

/// What it means.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StepOptions {
    /// Secrets; the last of an id wins.
    pub secrets: Vec<SecretArg>,
    /// SSH agents; the last of an id wins.
    pub agents: Vec<AgentArg>,
    /// What the Dockerfile may ask for.
    pub entitlements: Entitlements,
    /// Which devices it may have.
    pub devices: DeviceGrants,
    /// Directories that describe devices; none for the usual ones.
    pub cdi_dirs: Vec<PathBuf>,
    /// Names for `/etc/hosts`, in order.
    pub hosts: Vec<(String, HostAddress)>,
    /// Size of `/dev/shm`.
    pub shm_size_bytes: Option<u64>,
    /// Limits of each process.
    pub limits: Vec<StepLimit>,
    /// Limits of each step.
    pub resources: Resources,
    /// Control group above those of steps.
    pub cgroup_parent: Option<String>,
    /// `BUILDKIT_CACHE_MOUNT_NS`: keeps caches of one id apart.
    pub cache_namespace: String,
}

/// `--allow device`: devices that steps may have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceGrants {
    /// All that there are.
    pub all: bool,
    /// Some by name.
    pub named: Vec<DeviceGrant>,
}

/// One `--allow device=NAME[,alias=ALIAS]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceGrant {
    /// What is allowed, as `RUN --device` names it.
    pub name: String,
    /// What the Dockerfile calls it.
    pub alias: Option<String>,
}

/// One `--secret`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretArg {
    /// Its name.
    pub id: String,
    /// Where it is.
    pub source: SecretSource,
}

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// In a variable; `None` when that is not set.
    Env(Option<SecretBytes>),
    /// In a file.
    File(PathBuf),
}

/// Bytes that no message, log or debug output shows.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// Takes them into custody.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// For whoever needs them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBytes")
    }
}

/// One `--ssh`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentArg {
    /// Its name.
    pub id: String,
    /// Sockets or keys as typed; `SSH_AUTH_SOCK` when nothing was.
    pub paths: Vec<PathBuf>,
}

/// Address of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostAddress {
    /// An address.
    Ip(IpAddr),
    /// `host-gateway`: this machine.
    Gateway,
}

/// Limits of all processes of a step together, as control groups have them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resources {
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Bytes of memory and swap together; `None` within says «no limit».
    pub memory_swap_bytes: Option<Option<u64>>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Relative weight, 1024 by default.
    pub cpu_shares: Option<u64>,
    /// Length of a period in microseconds.
    pub cpu_period_us: Option<u64>,
    /// Microseconds of each period.
    pub cpu_quota_us: Option<u64>,
    /// CPUs.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes.
    pub cpuset_mems: Option<String>,
}

impl Resources {
    /// True when nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl StepOptions {
    pub(super) fn from_args(args: &StepArgs, env: &Env, network_is_host: bool) -> Result<Self, Problem> {
        let mut options = Self::default();
        for text in &args.secrets {
            let secret = parse_secret(text, env)?;
            options.secrets.retain(|other| other.id != secret.id);
            options.secrets.push(secret);
        }
        for text in &args.ssh {
            let agent = parse_agent(text, env)?;
            options.agents.retain(|other| other.id != agent.id);
            options.agents.push(agent);
        }
        options.entitlements.ssh = !options.agents.is_empty();
        // As with buildx: who asks for it on the command line need not allow it as well.
        options.entitlements.host_network = network_is_host;
        for text in &args.allow {
            options.allow(text)?;
        }
        options.cdi_dirs.clone_from(&args.cdi_spec_dirs);
        for text in args.hosts.iter().flat_map(|text| text.split(',')) {
            options.hosts.push(parse_host(text)?);
        }
        if let Some(text) = &args.shm_size {
            let size = parse_bytes(text).filter(|size| *size > 0);
            options.shm_size_bytes =
                Some(size.ok_or_else(|| wrong("--shm-size", text, "expected a size such as 64m or 1g"))?);
        }
        for text in &args.ulimits {
            let limit = parse_ulimit(text)?;
            options.limits.retain(|other| other.index != limit.index);
            options.limits.push(limit);
        }
        for text in args.resources.iter().flat_map(|text| text.split(',')) {
            options.resources.set(text)?;
        }
        options.cgroup_parent = args.cgroup_parent.clone().filter(|path| !path.is_empty());
        if options.cgroup_parent.as_ref().is_some_and(|path| path.split('/').any(|part| part == "..")) {
            let path = options.cgroup_parent.unwrap_or_default();
            return Err(wrong("--cgroup-parent", &path, "expected a path without `..`"));
        }
        Ok(options)
    }
}

impl StepOptions {
    /// A list of what is allowed, or a device, which has commas of its own.
    fn allow(&mut self, text: &str) -> Result<(), Problem> {
        if let Some(device) = text.strip_prefix("device=") {
            self.devices.named.push(parse_device(device)?);
            return Ok(());
        }
        for text in text.split(',') {
            match text {
                "network.host" => self.entitlements.host_network = true,
                "security.insecure" => self.entitlements.insecure = true,
                "device" => self.devices.all = true,
                other => {
                    let expected = "expected network.host, security.insecure or device[=NAME]";
                    return Err(wrong("--allow", other, expected));
                }
            }
        }
        Ok(())
    }
}

/// `NAME[,alias=ALIAS]`.
fn parse_device(text: &str) -> Result<DeviceGrant, Problem> {
    const FLAG: &str = "--allow";
    let fields =
        parse_record(text).map_err(|cause| Problem::Csv { flag: FLAG, value: text.to_owned(), cause })?;
    let refused =
        || wrong(FLAG, &format!("device={text}"), "expected device=vendor.com/class=name[,alias=ALIAS]");
    let (name, options) = fields.split_first().filter(|(name, _)| !name.is_empty()).ok_or_else(refused)?;
    let mut grant = DeviceGrant { name: name.clone(), alias: None };
    for option in options {
        let alias = option.strip_prefix("alias=").filter(|alias| !alias.is_empty()).ok_or_else(refused)?;
        grant.alias = Some(alias.to_owned());
    }
    Ok(grant)
}

fn wrong(flag: &'static str, value: &str, expected: &str) -> Problem {
    Problem::Value { flag, value: value.to_owned(), expected: expected.to_owned() }
}

/// `id=ID[,type=file|env][,src=PATH|env=NAME]`.
fn parse_secret(text: &str, env: &Env) -> Result<SecretArg, Problem> {
    const FLAG: &str = "--secret";
    let fields =
        parse_record(text).map_err(|cause| Problem::Csv { flag: FLAG, value: text.to_owned(), cause })?;
    let (mut id, mut kind, mut path, mut variable) = (None, None, None, None);
    for field in &fields {
        let Some((key, value)) = field.split_once('=') else {
            let expected = format!("invalid field '{field}' must be a key=value pair");
            return Err(wrong(FLAG, text, &expected));
        };
        let place = match key.to_lowercase().as_str() {
            "id" => &mut id,
            "type" if !matches!(value, "file" | "env") => {
                return Err(wrong(FLAG, text, &format!("unsupported secret type {value:?}")));
            }
            "type" => &mut kind,
            "src" | "source" => &mut path,
            "env" => &mut variable,
            other => return Err(wrong(FLAG, text, &format!("unexpected key '{other}' in '{field}'"))),
        };
        *place = Some(value.to_owned());
    }
    let id = id.filter(|id| !id.is_empty()).ok_or_else(|| wrong(FLAG, text, "secret missing 'id'"))?;
    let from_env = match (kind.as_deref(), &variable, &path) {
        (Some("env"), ..) => Some(variable.or(path.clone()).unwrap_or_else(|| id.clone())),
        (Some(_), ..) => None,
        (None, Some(name), _) => Some(name.clone()),
        (None, None, None) if env.var_os(&id).is_some() => Some(id.clone()),
        (None, None, _) => None,
    };
    let source = match from_env {
        Some(name) => {
            let value = env.var_os(&name);
            SecretSource::Env(value.map(|value| SecretBytes(value.into_encoded_bytes())))
        }
        None => SecretSource::File(PathBuf::from(path.unwrap_or_else(|| id.clone()))),
    };
    Ok(SecretArg { id, source })
}

/// `default` or `ID[=PATH[,PATH…]]`.
fn parse_agent(text: &str, env: &Env) -> Result<AgentArg, Problem> {
    let (id, paths) = text.split_once('=').unwrap_or((text, ""));
    if id.is_empty() {
        return Err(wrong("--ssh", text, "expected default, ID=SOCKET or ID=KEY"));
    }
    let mut paths: Vec<PathBuf> =
        paths.split(',').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
    if paths.is_empty() {
        let Some(socket) = env.var_os("SSH_AUTH_SOCK").filter(|path| !path.is_empty()) else {
            let expected = "there is no SSH agent: SSH_AUTH_SOCK is not set; start one with `eval $(ssh-agent)` and add keys with ssh-add";
            return Err(wrong("--ssh", text, expected));
        };
        paths.push(PathBuf::from(socket));
    }
    Ok(AgentArg { id: id.to_owned(), paths })
}

/// `HOST:IP` or `HOST=IP`; an IPv6 address may be in brackets.
fn parse_host(text: &str) -> Result<(String, HostAddress), Problem> {
    let refused = || wrong("--add-host", text, "expected HOST:IP, HOST=IP or HOST:host-gateway");
    let at = text.find(['=', ':']).ok_or_else(refused)?;
    let (name, address) = (&text[..at], &text[at + 1..]);
    let is_name = |name: &str| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
    };
    if !is_name(name) {
        return Err(refused());
    }
    let address = match address {
        "host-gateway" => HostAddress::Gateway,
        text => {
            let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
            HostAddress::Ip(bare.parse().map_err(|_| refused())?)
        }
    };
    Ok((name.to_owned(), address))
}

/// `NAME=SOFT[:HARD]`; -1 is no limit.
fn parse_ulimit(text: &str) -> Result<StepLimit, Problem> {
    const FLAG: &str = "--ulimit";
    let refused = || wrong(FLAG, text, "expected NAME=SOFT[:HARD]");
    let (name, values) = text.split_once('=').ok_or_else(refused)?;
    let Some(index) = RLIMITS.iter().position(|(known, _)| *known == name) else {
        let names: Vec<&str> = RLIMITS.iter().map(|(name, _)| *name).collect();
        return Err(wrong(FLAG, text, &format!("expected one of {}", names.join(", "))));
    };
    let number = |text: &str| match text {
        "-1" | "unlimited" => Ok(None),
        text => text.parse::<u64>().map(Some).map_err(|_| refused()),
    };
    let (soft, hard) = match values.split_once(':') {
        Some((soft, hard)) => (number(soft)?, number(hard)?),
        None => (number(values)?, number(values)?),
    };
    if soft.unwrap_or(u64::MAX) > hard.unwrap_or(u64::MAX) {
        return Err(wrong(FLAG, text, "the soft limit is above the hard one"));
    }
    Ok(StepLimit { index, soft, hard })
}

impl Resources {
    fn set(&mut self, text: &str) -> Result<(), Problem> {
        const FLAG: &str = "--resource";
        let (key, value) = text.split_once('=').ok_or_else(|| wrong(FLAG, text, "expected KEY=VALUE"))?;
        let refused = |expected: &str| wrong(FLAG, text, expected);
        let size = |text: &str| {
            parse_bytes(text).filter(|size| *size > 0).ok_or_else(|| refused("expected a size such as 512m"))
        };
        let number = |text: &str| {
            let parsed = text.parse::<u64>().ok().filter(|number| *number > 0);
            parsed.ok_or_else(|| refused("expected a number from 1"))
        };
        let list = |text: &str| {
            let is_list =
                !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || matches!(c, ',' | '-'));
            is_list.then(|| text.to_owned()).ok_or_else(|| refused("expected a list such as 0-2"))
        };
        match key {
            "memory" => self.memory_bytes = Some(size(value)?),
            "memory-swap" if value == "-1" => self.memory_swap_bytes = Some(None),
            "memory-swap" => self.memory_swap_bytes = Some(Some(size(value)?)),
            "pids" => self.pids = Some(number(value)?),
            "cpu-shares" => self.cpu_shares = Some(number(value)?),
            "cpu-period" => self.cpu_period_us = Some(number(value)?),
            "cpu-quota" => self.cpu_quota_us = Some(number(value)?),
            "cpuset-cpus" => self.cpuset_cpus = Some(list(value)?),
            "cpuset-mems" => self.cpuset_mems = Some(list(value)?),
            _ => {
                return Err(refused(
                    "expected memory, memory-swap, pids, cpu-shares, cpu-period, cpu-quota, cpuset-cpus or cpuset-mems",
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env() -> Env {
        Env::fixed([("TOKEN", "t"), ("npm", "n"), ("SSH_AUTH_SOCK", "/run/agent")])
    }

    fn value(text: &str) -> SecretSource {
        SecretSource::Env(Some(SecretBytes::new(text.as_bytes().to_vec())))
    }

    #[test]
    fn secrets_are_found_as_buildx_finds_them() {
        let file = |path: &str| SecretSource::File(PathBuf::from(path));
        for (text, id, source) in [
            ("id=a,src=b", "a", file("b")),
            ("id=a,source=b", "a", file("b")),
            ("id=a", "a", file("a")),
            ("id=npm", "npm", value("n")),
            ("id=npm,src=x", "npm", file("x")),
            ("id=npm,type=file", "npm", file("npm")),
            ("id=a,env=TOKEN", "a", value("t")),
            ("id=a,type=env,src=TOKEN", "a", value("t")),
            ("id=TOKEN,type=env", "TOKEN", value("t")),
            ("id=a,env=ABSENT", "a", SecretSource::Env(None)),
            ("\"id=a,b\",src=c", "a,b", file("c")),
        ] {
            let secret = parse_secret(text, &env()).unwrap();
            assert_eq!((secret.id.as_str(), &secret.source), (id, &source), "{text}");
        }
        for (text, says) in [
            ("src=a", "secret missing 'id'"),
            ("id=a,nope=b", "unexpected key 'nope' in 'nope=b'"),
            ("id=a,b", "invalid field 'b' must be a key=value pair"),
            ("id=a,type=x", "unsupported secret type \"x\""),
        ] {
            let error = parse_secret(text, &env()).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn no_debug_output_shows_a_secret() {
        let secret = parse_secret("id=a,env=TOKEN", &Env::fixed([("TOKEN", "hunter2")])).unwrap();
        assert!(!format!("{secret:?}").contains("hunter2"));
    }

    #[test]
    fn agents_default_to_the_environment_s() {
        let agent = |text| parse_agent(text, &env()).unwrap();
        assert_eq!(agent("default").paths, [PathBuf::from("/run/agent")]);
        assert_eq!(agent("x=/a,/b").paths, [PathBuf::from("/a"), PathBuf::from("/b")]);
        let error = parse_agent("default", &Env::fixed([])).unwrap_err().to_string();
        assert!(error.contains("SSH_AUTH_SOCK"), "{error}");
    }

    #[test]
    fn devices_are_allowed_all_or_one_by_one() {
        let mut options = StepOptions::default();
        for text in ["network.host,device", "device=a.b/c=d", "device=a.b/c=d,alias=e"] {
            options.allow(text).unwrap();
        }
        assert!(options.devices.all && options.entitlements.host_network);
        let grant =
            |alias: Option<&str>| DeviceGrant { name: "a.b/c=d".into(), alias: alias.map(Into::into) };
        assert_eq!(options.devices.named, [grant(None), grant(Some("e"))]);
        for text in ["device=", "device=a,alia=b", "device=a,alias=", "devices"] {
            assert!(options.allow(text).is_err(), "{text}");
        }
    }

    #[test]
    fn hosts_take_both_separators_and_brackets() {
        let ip = |text: &str| HostAddress::Ip(text.parse().unwrap());
        for (text, address) in [
            ("a:1.2.3.4", ip("1.2.3.4")),
            ("a=1.2.3.4", ip("1.2.3.4")),
            ("a:::1", ip("::1")),
            ("a=[::1]", ip("::1")),
            ("a:host-gateway", HostAddress::Gateway),
        ] {
            assert_eq!(parse_host(text).unwrap(), ("a".to_owned(), address), "{text}");
        }
        for text in ["a", ":1.2.3.4", "a b:1.2.3.4", "a:x", "a\nb:1.2.3.4"] {
            assert!(parse_host(text).is_err(), "{text}");
        }
    }

    #[test]
    fn limits_are_checked() {
        let index = |name| RLIMITS.iter().position(|(known, _)| *known == name).unwrap();
        let limit = parse_ulimit("nofile=10:20").unwrap();
        assert_eq!(limit, StepLimit { index: index("nofile"), soft: Some(10), hard: Some(20) });
        assert_eq!(parse_ulimit("core=-1").unwrap().hard, None);
        for text in ["nofile", "nofile=x", "nofile=2:1", "files=1", "core=-1:5"] {
            assert!(parse_ulimit(text).is_err(), "{text}");
        }
        let mut resources = Resources::default();
        for text in ["memory=64m", "memory-swap=-1", "pids=10", "cpu-quota=5000", "cpuset-cpus=0-1"] {
            resources.set(text).unwrap();
        }
        assert_eq!(resources.memory_bytes, Some(64 << 20));
        assert_eq!(resources.memory_swap_bytes, Some(None));
        for text in ["memory", "memory=x", "pids=0", "cpuset-cpus=../x", "gpu=1"] {
            assert!(resources.set(text).is_err(), "{text}");
        }
    }
}
