//! What a test needs of the machine.
//!
//! [`need!`](crate::need!) at the top of a test returns early, saying why, on a machine that cannot run it. With
//! `RBUILD_TEST_REQUIRE=all`, or a list such as `root,registry,subuid`, the same gap fails the test, so that a
//! continuous integration cannot rot silently.

use std::env;
use std::path::PathBuf;

/// One capability of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The test process is root: mounts, other users, runc.
    Root,
    /// `docker-registry` is installed.
    Registry,
    /// The base images can be made: root, mmdebstrap, busybox, and what the registry needs.
    Bases,
    /// skopeo and umoci are installed.
    Judges,
    /// runc, and the tools that give a container a loopback interface of its own.
    Runtime,
    /// `newuidmap` and `useradd`: an ordinary user with a sub-id range can be made.
    Subuid,
    /// `openssl`: keys and certificates.
    Openssl,
    /// `htpasswd`: a registry that asks for a password can be started.
    Password,
    /// pasta or slirp4netns with a usable `/dev/net/tun`: steps have a network of their own.
    Network,
    /// Docker's daemon and client can be started.
    Docker,
    /// `strace` is installed and may trace.
    Strace,
    /// A C compiler that links statically: programs of the test's own in steps.
    Compiler,
    /// OpenSSH's agent and what gives it keys.
    Ssh,
    /// QEMU's emulator of arm64, as one static program.
    Emulator,
    /// moto is where `tests/scripts/setup` puts it.
    Aws,
}

impl Need {
    /// Its name in `RBUILD_TEST_REQUIRE`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Registry => "registry",
            Self::Bases => "bases",
            Self::Judges => "judges",
            Self::Runtime => "runtime",
            Self::Subuid => "subuid",
            Self::Openssl => "openssl",
            Self::Password => "password",
            Self::Network => "network",
            Self::Docker => "docker",
            Self::Strace => "strace",
            Self::Compiler => "cc",
            Self::Ssh => "ssh",
            Self::Emulator => "emulator",
            Self::Aws => "aws",
        }
    }

    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Root | Self::Aws => &[],
            Self::Registry => &["docker-registry"],
            Self::Bases => &["mmdebstrap", "busybox", "python3", "skopeo", "docker-registry", "unshare"],
            Self::Judges => &["skopeo", "umoci"],
            Self::Runtime => &["runc", "umoci", "unshare", "busybox"],
            Self::Subuid => &["newuidmap", "newgidmap", "useradd", "userdel"],
            Self::Openssl => &["openssl"],
            Self::Password => &["htpasswd"],
            Self::Network => &["pasta", "slirp4netns"],
            Self::Strace => &["strace"],
            Self::Emulator => &["qemu-aarch64-static"],
            Self::Docker => &["dockerd", "docker", "containerd", "runc"],
            Self::Compiler => &["cc"],
            Self::Ssh => &["ssh-agent", "ssh-add", "ssh-keygen"],
        }
    }

    /// What is missing, or `None` when the machine has it.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        let wants_root =
            matches!(self, Self::Root | Self::Bases | Self::Runtime | Self::Subuid | Self::Docker);
        if wants_root && !rustix::process::geteuid().is_root() {
            return Some("not running as root".to_owned());
        }
        if self == Self::Aws && !crate::aws::program().is_file() {
            return Some(format!("no {} (run tests/scripts/setup)", crate::aws::program().display()));
        }
        let absent: Vec<_> = self.programs().iter().filter(|name| find_program(name).is_none()).collect();
        (!absent.is_empty()).then(|| format!("not installed: {absent:?} (run tests/scripts/setup)"))
    }

    fn is_required(self) -> bool {
        let list = env::var("RBUILD_TEST_REQUIRE").unwrap_or_default();
        list.split(',').map(str::trim).any(|name| name == "all" || name == "1" || name == self.name())
    }
}

/// True when every need is met; else says what is skipped, or panics when the need is required.
///
/// # Panics
///
/// When a missing need is listed in `RBUILD_TEST_REQUIRE`.
#[must_use]
pub fn met(needs: &[Need]) -> bool {
    for need in needs {
        let Some(why) = need.missing() else { continue };
        assert!(!need.is_required(), "RBUILD_TEST_REQUIRE asks for `{}`, but: {why}", need.name());
        eprintln!("skipped: needs `{}`: {why}", need.name());
        return false;
    }
    true
}

/// Where a program is, looking in the system directories too.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    env::split_paths(&program_path()).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// `PATH` with the system directories at its end: an ordinary shell has no `/usr/sbin`.
#[must_use]
pub fn program_path() -> String {
    let path = env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
}

/// Returns from the test, saying why, when the machine lacks something.
///
/// `need!(Root, Registry)` names variants of [`Need`].
#[macro_export]
macro_rules! need {
    ($($need:ident),+ $(,)?) => {
        if !$crate::need::met(&[$($crate::need::Need::$need),+]) {
            return Ok(());
        }
    };
}
