//! Entering the one privileged context: a user and mount namespace in which an ordinary user is root.
//!
//! ```text
//! rbuild (uid 1000) ── spawns ──▶ helper (stays outside)
//!    │ unshare user+mount           │
//!    │ ── «go» ───────────────────▶ │ newuidmap, newgidmap on rbuild's pid (setuid, so they must run outside)
//!    │ ◀── result ───────────────── │
//!    │ setresgid 0, setresuid 0, private mounts, and one mount as proof
//! ```
//!
//! The process keeps its pid and terminal. Proof by doing, because some distributions let `unshare` succeed and then
//! withhold the capabilities.

use crate::idmap::{self, IdRange, SUB_IDS_MIN};
use crate::mount;
use crate::passwd;
use crate::self_copy::IDMAP_MARKER;
use crate::sys;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountPropagationFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::UnshareFlags;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

/// The helper answers in milliseconds, unless a name service behind `newuidmap` hangs.
const HELPER_SECONDS_MAX: i64 = 30;
const ANSWER_SIZE_BYTES_MAX: u64 = 4 << 10;

/// What this process may do, and under which map of ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// Root of the host: every id is itself.
    Root,
    /// Root of a user namespace.
    Rootless {
        /// Users, in ascending order of the inner id.
        uid_map: Vec<IdRange>,
        /// Groups, in ascending order of the inner id.
        gid_map: Vec<IdRange>,
    },
}

impl Privilege {
    /// A stable text that is equal exactly for equal privileges: `root`, or `rootless uids=0=1000:1,… gids=…`.
    ///
    /// Files written under one map have other owners under another, so a store records it.
    pub fn describe(&self) -> String {
        match self {
            Privilege::Root => "root".to_owned(),
            Privilege::Rootless { uid_map, gid_map } => {
                format!("rootless uids={} gids={}", idmap::describe(uid_map), idmap::describe(gid_map))
            }
        }
    }
}

/// Why the namespace could not be entered; [`remedy`](BootstrapError::remedy) says what to do.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// A file that says who may use which ids.
    #[error("read `{path}`")]
    Read {
        /// Which file.
        path: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The user has too few subordinate ids.
    #[error("user {user} has fewer than {SUB_IDS_MIN} subordinate ids in {file}")]
    NoSubIds {
        /// Name, or number where there is none.
        user: String,
        /// `/etc/subuid` or `/etc/subgid`.
        file: &'static str,
    },
    /// The helper could not be started or talked to.
    #[error("run the id mapping helper")]
    Helper {
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel gives this user no namespaces.
    #[error("create a user and a mount namespace")]
    Unshare {
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// `newuidmap` or `newgidmap` is not installed.
    #[error("`{tool}` is not installed")]
    ToolMissing {
        /// Which one.
        tool: &'static str,
    },
    /// `newuidmap` or `newgidmap` refused.
    #[error("`{tool}` could not map ids: {message}")]
    ToolRefused {
        /// Which one.
        tool: &'static str,
        /// What it said.
        message: String,
    },
    /// The namespace exists and the rights that come with it are withheld.
    #[error("{action} in the new user namespace")]
    Withheld {
        /// What was refused.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl BootstrapError {
    /// What the user or an administrator can do about it.
    pub fn remedy(&self) -> String {
        match self {
            BootstrapError::Read { path, .. } => format!("make `{path}` readable, or run as root"),
            BootstrapError::NoSubIds { user, file } => {
                format!("add the line `{user}:100000:65536` to {file} (a range no other user has)")
            }
            BootstrapError::Helper { .. } => "make sure /proc is mounted".to_owned(),
            BootstrapError::Unshare { source } => match source.raw_os_error() {
                Some(libc::ENOSPC) => "raise the sysctl user.max_user_namespaces".to_owned(),
                Some(libc::EINVAL) => "use a kernel with user namespaces (CONFIG_USER_NS)".to_owned(),
                _ => "allow user namespaces for this user: the sysctl kernel.unprivileged_userns_clone=1 where it exists; \
                      in a container, a seccomp profile that allows unshare; or run as root"
                    .to_owned(),
            },
            BootstrapError::ToolMissing { .. } => {
                "install the package `uidmap` (Debian, Ubuntu) or `shadow-utils` (Fedora and others)".to_owned()
            }
            BootstrapError::ToolRefused { tool, .. } => format!(
                "check that `{tool}` is setuid root or has the file capability, and that the ranges in /etc/subuid and \
                 /etc/subgid are granted to this user"
            ),
            BootstrapError::Withheld { .. } => apparmor_remedy(),
        }
    }
}

/// A profile for our own program rather than the advice to switch the restriction off for all.
fn apparmor_remedy() -> String {
    let program =
        std::env::current_exe().map_or_else(|_| "/usr/bin/rbuild".into(), |p| p.display().to_string());
    format!(
        "AppArmor probably restricts user namespaces: write `abi <abi/4.0>, include <tunables/global> profile rbuild \
         {program} flags=(unconfined) {{ userns, }}` to /etc/apparmor.d/rbuild and run `apparmor_parser -r` on it"
    )
}

/// Makes this process root: of the host if it is, else of a user namespace it enters for good.
///
/// Must be called before any thread exists and after [`dispatch`](crate::dispatch). On an error after `unshare` the
/// process is in a namespace without rights and should only report and exit.
pub fn bootstrap() -> Result<Privilege, BootstrapError> {
    if rustix::process::geteuid().is_root() {
        return current();
    }
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let (uid_map, gid_map) = wanted_maps(uid, gid)?;
    let mut helper = Helper::spawn(&uid_map, &gid_map)?;
    sys::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)
        .map_err(|e| BootstrapError::Unshare { source: e.into() })?;
    helper.map_ids()?;
    let withheld = |action| move |e: Errno| BootstrapError::Withheld { action, source: e.into() };
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
        .map_err(withheld("become group 0"))?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).map_err(withheld("become user 0"))?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(withheld("make mounts private"))?;
    mount::new_fs("tmpfs", &[], MountAttrFlags::empty()).map_err(withheld("mount a tmpfs"))?;
    Ok(Privilege::Rootless { uid_map, gid_map })
}

/// The privilege of a process that already is uid 0 of some namespace.
fn current() -> Result<Privilege, BootstrapError> {
    if !crate::in_user_namespace() {
        return Ok(Privilege::Root);
    }
    let map = |path| {
        let text = std::fs::read_to_string(path).map_err(|source| BootstrapError::Read { path, source })?;
        Ok(idmap::parse_proc_map(&text))
    };
    Ok(Privilege::Rootless { uid_map: map("/proc/self/uid_map")?, gid_map: map("/proc/self/gid_map")? })
}

/// The maps this user is entitled to.
fn wanted_maps(uid: u32, gid: u32) -> Result<(Vec<IdRange>, Vec<IdRange>), BootstrapError> {
    // Users of a directory service are not in the file; their ranges can be given by number.
    let accounts = std::fs::read("/etc/passwd").unwrap_or_default();
    let name =
        passwd::parse_passwd(&accounts).into_iter().find(|entry| entry.uid == uid).map(|entry| entry.name);
    let map = |file, own| {
        let text = match std::fs::read_to_string(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            other => other.map_err(|source| BootstrapError::Read { path: file, source })?,
        };
        let user = name.clone().unwrap_or_else(|| uid.to_string());
        // Both files grant to users, the one for groups too.
        let ranges = idmap::parse_sub_ids(&text, uid, name.as_deref());
        idmap::build_map(own, &ranges).ok_or(BootstrapError::NoSubIds { user, file })
    };
    Ok((map("/etc/subuid", uid)?, map("/etc/subgid", gid)?))
}

/// The process that stays outside and maps our ids. Reaped when dropped.
struct Helper {
    process: std::process::Child,
    socket: UnixStream,
}

impl Helper {
    fn spawn(uid_map: &[IdRange], gid_map: &[IdRange]) -> Result<Helper, BootstrapError> {
        let spawn = || {
            let (ours, theirs) =
                rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            let process = Command::new("/proc/self/exe")
                .arg0(IDMAP_MARKER)
                .arg(std::process::id().to_string())
                .arg(idmap::describe(uid_map))
                .arg(idmap::describe(gid_map))
                .stdin(Stdio::from(theirs))
                .stdout(Stdio::null())
                .spawn()?;
            Ok(Helper { process, socket: UnixStream::from(ours) })
        };
        spawn().map_err(|source| BootstrapError::Helper { source })
    }

    /// Tells the helper to go on and reads how it went.
    fn map_ids(&mut self) -> Result<(), BootstrapError> {
        let mut talk = || {
            self.socket.write_all(b"g")?;
            let timeout = Timespec { tv_sec: HELPER_SECONDS_MAX, tv_nsec: 0 };
            let mut answer = [PollFd::new(&self.socket, PollFlags::IN)];
            let ready = rustix::io::retry_on_intr(|| rustix::event::poll(&mut answer, Some(&timeout)))?;
            if ready == 0 {
                self.process.kill()?;
                return Err(io::Error::from(io::ErrorKind::TimedOut));
            }
            let mut answer = Vec::new();
            (&self.socket).take(ANSWER_SIZE_BYTES_MAX).read_to_end(&mut answer)?;
            Ok(answer)
        };
        let answer = talk().map_err(|source| BootstrapError::Helper { source })?;
        parse_answer(&String::from_utf8_lossy(&answer))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Without our «go» the helper ends by itself.
        let _closed = self.socket.shutdown(std::net::Shutdown::Both);
        let _reaped = self.process.wait();
    }
}

const TOOLS: [&str; 2] = ["newuidmap", "newgidmap"];

/// `ok`, `missing TOOL`, or `refused TOOL message`.
fn parse_answer(answer: &str) -> Result<(), BootstrapError> {
    if answer == "ok" {
        return Ok(());
    }
    let tool_of = |name: &str| TOOLS.into_iter().find(|tool| *tool == name);
    let mut words = answer.splitn(3, ' ');
    match (words.next(), words.next().and_then(tool_of), words.next()) {
        (Some("missing"), Some(tool), None) => Err(BootstrapError::ToolMissing { tool }),
        (Some("refused"), Some(tool), message) => {
            let message = message.unwrap_or("no reason given").trim().to_owned();
            Err(BootstrapError::ToolRefused { tool, message })
        }
        _ => Err(BootstrapError::Helper { source: io::Error::from(io::ErrorKind::UnexpectedEof) }),
    }
}

/// The body of the helper process; the socket is standard input.
pub(crate) fn helper_main() -> i32 {
    let mut go = [0];
    if !matches!(rustix::io::read(rustix::stdio::stdin(), &mut go), Ok(1)) {
        return 1;
    }
    let answer = run_tools();
    match rustix::io::write(rustix::stdio::stdin(), answer.as_bytes()) {
        Ok(_) => 0,
        Err(_) => 1,
    }
}

fn run_tools() -> String {
    let mut args = std::env::args().skip(1);
    let Some(pid) = args.next() else { return String::new() };
    for (tool, map) in TOOLS.into_iter().zip(args) {
        // `0=1000:1,1=100000:65536` to `0 1000 1 1 100000 65536`.
        let numbers = map.split([',', '=', ':']);
        let output = Command::new(tool).arg(&pid).args(numbers).stdin(Stdio::null()).output();
        match output {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                let message: String = String::from_utf8_lossy(&output.stderr).chars().take(1024).collect();
                return format!("refused {tool} {message}");
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return format!("missing {tool}"),
            Err(error) => return format!("refused {tool} {error}"),
        }
    }
    "ok".to_owned()
}

#[cfg(test)]
mod tests;
