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
use crate::ladder::Rung;
use crate::mount;
use crate::passwd;
use crate::sealed_self::IDMAP_MARKER;
use crate::sys;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountPropagationFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{CapabilitySet, UnshareFlags};
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
    /// Root of a user namespace in which there is nobody else.
    Single {
        /// Who root is outside.
        uid: u32,
        /// Root's group outside.
        gid: u32,
    },
    /// Root of a container, with every id of it and without namespaces; `runs` when the rung was named.
    Container {
        /// Whether steps are run, in a chroot.
        runs: bool,
    },
    /// An ordinary user, who owns every file and runs nothing.
    Ordinary {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
    },
}

impl Privilege {
    /// The rung this is the privilege of.
    pub fn rung(&self) -> Rung {
        match self {
            Privilege::Root => Rung::Root,
            Privilege::Rootless { .. } => Rung::Rootless,
            Privilege::Single { .. } => Rung::Single,
            Privilege::Container { runs: true } => Rung::Chroot,
            Privilege::Container { runs: false } | Privilege::Ordinary { .. } => Rung::NoRun,
        }
    }

    /// A stable text that is equal exactly for privileges that write files in the same way: a rung's name, with the ids
    /// where they matter, such as `rootless uids=0=1000:1,… gids=…`.
    ///
    /// Files written under one map have other owners under another, so a store records it.
    pub fn describe(&self) -> String {
        match self {
            Privilege::Root => "root".to_owned(),
            Privilege::Rootless { uid_map, gid_map } => {
                format!("rootless uids={} gids={}", idmap::describe(uid_map), idmap::describe(gid_map))
            }
            Privilege::Single { uid, gid } => format!("single uid={uid} gid={gid}"),
            // With and without steps alike: the files are the same.
            Privilege::Container { .. } => "chroot".to_owned(),
            Privilege::Ordinary { uid, gid } => format!("norun uid={uid} gid={gid}"),
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
    /// Rung `root` for somebody who is not.
    #[error("not running as root of the host")]
    NotRoot,
    /// Capabilities that the rung needs.
    #[error("uid 0 without {missing}")]
    Capability {
        /// The first that is missing.
        missing: &'static str,
    },
    /// Rung `chroot` where nothing would keep its steps inside.
    #[error("{why}")]
    Unconfined {
        /// What the kernel lacks.
        why: String,
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
            BootstrapError::NotRoot => "run as root".to_owned(),
            BootstrapError::Capability { missing: "CAP_SYS_ADMIN" } => {
                "in a container, start it with --privileged, or with --cap-add SYS_ADMIN and a seccomp and an AppArmor \
                 profile that allow mounts; or name --isolation chroot"
                    .to_owned()
            }
            BootstrapError::Capability { missing } => {
                format!("start the container with {missing}, which is in docker's default set")
            }
            BootstrapError::Unconfined { .. } => {
                "use a kernel from 6.12 on with landlock in its `lsm=` list; or, where everything in this container may \
                 be changed by the build, --isolation chroot,force"
                    .to_owned()
            }
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
            BootstrapError::Withheld { .. } => withheld_remedy(),
        }
    }
}

/// The profile this project ships, to be put where AppArmor reads it.
const APPARMOR_PROFILE: &str = "/etc/apparmor.d/rbuild";

/// What to do when the namespace exists and its rights do not, which is how AppArmor restricts namespaces.
///
/// A profile for our own program rather than the advice to switch the restriction off for all.
fn withheld_remedy() -> String {
    let is_enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|text| text.trim() == "Y");
    if !is_enabled {
        return "allow user namespaces for this user in the security module of this machine (SELinux, a container's \
                profile), or run as root"
            .to_owned();
    }
    let program =
        std::env::current_exe().map_or_else(|_| "/usr/bin/rbuild".into(), |p| p.display().to_string());
    let path = if ["/usr/bin/rbuild", "/usr/local/bin/rbuild"].contains(&program.as_str()) {
        String::new()
    } else {
        format!(" with the path in it changed to {program}")
    };
    format!(
        "AppArmor restricts user namespaces: install the profile builder/apparmor/rbuild of rbuild's source as \
         {APPARMOR_PROFILE}{path}, and load it: sudo apparmor_parser -r {APPARMOR_PROFILE}"
    )
}

/// Makes this process root: of the host if it is, else of a user namespace with a range of ids.
///
/// Must be called before any thread exists and after [`dispatch`](crate::dispatch). On an error after `unshare` the
/// process is in a namespace without rights and should only report and exit.
pub fn bootstrap() -> Result<Privilege, BootstrapError> {
    if rustix::process::geteuid().is_root() && !crate::in_user_namespace() { root() } else { rootless() }
}

/// Rung `root`: nothing to enter.
pub(crate) fn root() -> Result<Privilege, BootstrapError> {
    if !rustix::process::geteuid().is_root() || crate::in_user_namespace() {
        return Err(BootstrapError::NotRoot);
    }
    require_capabilities(&[("CAP_SYS_ADMIN", CapabilitySet::SYS_ADMIN)])?;
    Ok(Privilege::Root)
}

/// Fails on the first capability this process does not have.
pub(crate) fn require_capabilities(wanted: &[(&'static str, CapabilitySet)]) -> Result<(), BootstrapError> {
    let have = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    match wanted.iter().find(|(_, capability)| !have.contains(*capability)) {
        None => Ok(()),
        Some((missing, _)) => Err(BootstrapError::Capability { missing }),
    }
}

/// Rung `norun`: as we are.
pub(crate) fn norun() -> Privilege {
    let (uid, gid) = own_ids();
    if uid == 0 && require_capabilities(&FILE_CAPABILITIES).is_ok() {
        Privilege::Container { runs: false }
    } else {
        Privilege::Ordinary { uid, gid }
    }
}

/// What unpacking an image with its owners takes.
pub(crate) const FILE_CAPABILITIES: [(&str, CapabilitySet); 4] = [
    ("CAP_CHOWN", CapabilitySet::CHOWN),
    ("CAP_DAC_OVERRIDE", CapabilitySet::DAC_OVERRIDE),
    ("CAP_FOWNER", CapabilitySet::FOWNER),
    ("CAP_FSETID", CapabilitySet::FSETID),
];

fn own_ids() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// Rung `rootless`: a user namespace with a range of ids, entered unless this process is root of one.
pub(crate) fn rootless() -> Result<Privilege, BootstrapError> {
    let (uid, gid) = own_ids();
    if uid == 0 && crate::in_user_namespace() {
        let privilege = current()?;
        return match privilege {
            Privilege::Rootless { .. } => prove_mounts().map(|()| privilege),
            _ => Err(BootstrapError::NoSubIds { user: "root".to_owned(), file: "/proc/self/uid_map" }),
        };
    }
    // Whoever has every id of this namespace already gives them on as they are.
    let (uid_map, gid_map) = if uid == 0 { all_ids()? } else { wanted_maps(uid, gid)? };
    let mut helper = Helper::spawn(&uid_map, &gid_map, uid == 0)?;
    unshare()?;
    helper.map_ids()?;
    become_root()?;
    Ok(Privilege::Rootless { uid_map, gid_map })
}

/// Rung `single`: a user namespace in which this user is root and alone.
pub(crate) fn single() -> Result<Privilege, BootstrapError> {
    let (uid, gid) = own_ids();
    if uid == 0 && crate::in_user_namespace() {
        let privilege = current()?;
        if matches!(privilege, Privilege::Single { .. }) {
            return prove_mounts().map(|()| privilege);
        }
    }
    unshare()?;
    let write = |path: &str, text: &str| {
        std::fs::write(path, text)
            .map_err(|source| BootstrapError::Withheld { action: "map the own id", source })
    };
    // Without this a group could be dropped that denies access to something.
    write("/proc/self/setgroups", "deny")?;
    write("/proc/self/uid_map", &format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", &format!("0 {gid} 1"))?;
    become_root()?;
    Ok(Privilege::Single { uid, gid })
}

fn unshare() -> Result<(), BootstrapError> {
    sys::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)
        .map_err(|e| BootstrapError::Unshare { source: e.into() })
}

/// Root of the namespace just entered, with mounts of its own.
fn become_root() -> Result<(), BootstrapError> {
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
        .map_err(withheld("become group 0"))?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).map_err(withheld("become user 0"))?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(withheld("make mounts private"))?;
    prove_mounts()
}

fn prove_mounts() -> Result<(), BootstrapError> {
    mount::new_fs("tmpfs", &[], MountAttrFlags::empty()).map(drop).map_err(withheld("mount a tmpfs"))
}

fn withheld(action: &'static str) -> impl Fn(Errno) -> BootstrapError {
    move |errno| BootstrapError::Withheld { action, source: errno.into() }
}

/// The privilege of root of a user namespace somebody else made.
fn current() -> Result<Privilege, BootstrapError> {
    let (uid_map, gid_map) = (proc_map("/proc/self/uid_map")?, proc_map("/proc/self/gid_map")?);
    Ok(match (&uid_map[..], &gid_map[..]) {
        ([IdRange { outside: uid, count: 1, .. }], [IdRange { outside: gid, count: 1, .. }]) => {
            Privilege::Single { uid: *uid, gid: *gid }
        }
        _ => Privilege::Rootless { uid_map, gid_map },
    })
}

fn proc_map(path: &'static str) -> Result<Vec<IdRange>, BootstrapError> {
    let text = std::fs::read_to_string(path).map_err(|source| BootstrapError::Read { path, source })?;
    Ok(idmap::parse_proc_map(&text))
}

/// Every id of this namespace, as it is.
fn all_ids() -> Result<(Vec<IdRange>, Vec<IdRange>), BootstrapError> {
    let same = |path| {
        let ranges = proc_map(path)?.into_iter();
        Ok(ranges.map(|range| IdRange { outside: range.inside, ..range }).collect())
    };
    Ok((same("/proc/self/uid_map")?, same("/proc/self/gid_map")?))
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
    /// With `directly` it writes the maps itself, which takes CAP_SETUID and CAP_SETGID, and else runs the setuid tools.
    fn spawn(uid_map: &[IdRange], gid_map: &[IdRange], directly: bool) -> Result<Helper, BootstrapError> {
        let spawn = || {
            let (ours, theirs) =
                rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            let process = Command::new("/proc/self/exe")
                .arg0(IDMAP_MARKER)
                .arg(if directly { "directly" } else { "tools" })
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
    let mut args = std::env::args().skip(1);
    let answer = match args.next().as_deref() {
        Some("directly") => write_maps(args),
        _ => run_tools(args),
    };
    match rustix::io::write(rustix::stdio::stdin(), answer.as_bytes()) {
        Ok(_) => 0,
        Err(_) => 1,
    }
}

fn write_maps(mut args: impl Iterator<Item = String>) -> String {
    let Some(pid) = args.next() else { return String::new() };
    for ((tool, file), map) in TOOLS.into_iter().zip(["uid_map", "gid_map"]).zip(args) {
        let lines: Vec<String> = map.split(',').map(|range| range.replace(['=', ':'], " ")).collect();
        if let Err(error) = std::fs::write(format!("/proc/{pid}/{file}"), lines.join("\n")) {
            return format!("refused {tool} {error}");
        }
    }
    "ok".to_owned()
}

fn run_tools(mut args: impl Iterator<Item = String>) -> String {
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
