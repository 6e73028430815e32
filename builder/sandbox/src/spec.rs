//! What a step is and how it ends: plain data, filled by the builder.

use rustix::process::Resource;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::emulation::Emulator;
use crate::network::UserNetwork;
use crate::owner_table::OwnerTable;

/// The network a step sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// The network namespace of the builder.
    Host,
    /// One that reaches the outside and not the host.
    User(Arc<UserNetwork>),
    /// A namespace of its own with nothing but a loopback device.
    None,
}

/// Something mounted for the step only: no trace of it is in the layer.
#[derive(Clone, Debug)]
pub struct StepMount {
    /// Absolute path in the root. Made for the step when it is missing; symlinks on the way are followed inside the root.
    pub target: String,
    /// What appears there.
    pub source: MountSource,
    /// The step may not write to it.
    pub read_only: bool,
}

/// What is mounted.
#[derive(Clone, Debug)]
pub enum MountSource {
    /// A directory or file, or something in a directory or detached mount.
    Tree {
        /// The directory, file or mount.
        root: Arc<OwnedFd>,
        /// Path in it, resolved as if it were the root directory; empty for all of it.
        path: String,
    },
    /// Memory, for everyone to write.
    Tmpfs {
        /// Most bytes in it; `None` for half of the machine's memory.
        size_bytes: Option<u64>,
    },
    /// A tree of the host, with what is mounted below it.
    Host {
        /// Its directory, file or socket.
        root: Arc<OwnedFd>,
        /// Programs in it may be executed.
        executable: bool,
    },
    /// A device of the host, as it is there: with its owner and mode.
    Device {
        /// Its node.
        node: Arc<OwnedFd>,
    },
    /// A device node of the step's own. Only root of the host can make one that opens.
    Node(DeviceNode),
    /// A file in memory.
    File {
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Bytes.
        content: Vec<u8>,
    },
}

/// A device and who may open it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceNode {
    /// A block device, not a character device.
    pub is_block: bool,
    /// Its driver.
    pub major: u32,
    /// Which of the driver's.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner; the step's user when `None`.
    pub uid: Option<u32>,
    /// Group; the step's user's when `None`.
    pub gid: Option<u32>,
}

/// Resource limits by the names that `docker --ulimit` gives them.
pub const RLIMITS: &[(&str, Resource)] = &[
    ("core", Resource::Core),
    ("cpu", Resource::Cpu),
    ("data", Resource::Data),
    ("fsize", Resource::Fsize),
    ("locks", Resource::Locks),
    ("memlock", Resource::Memlock),
    ("msgqueue", Resource::Msgqueue),
    ("nice", Resource::Nice),
    ("nofile", Resource::Nofile),
    ("nproc", Resource::Nproc),
    ("rss", Resource::Rss),
    ("rtprio", Resource::Rtprio),
    ("rttime", Resource::Rttime),
    ("sigpending", Resource::Sigpending),
    ("stack", Resource::Stack),
];

/// A resource limit of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepLimit {
    /// Index into [`RLIMITS`].
    pub index: usize,
    /// The limit in force; `None` for none.
    pub soft: Option<u64>,
    /// What the step may raise it to; `None` for anything.
    pub hard: Option<u64>,
}

/// One command to run in a root file system.
#[derive(Clone, Debug)]
pub struct StepSpec {
    /// Program and arguments; a program without a slash is searched in the `PATH` of `env`.
    pub argv: Vec<String>,
    /// The whole environment, in order. Nothing is inherited; only `HOME` (from the user's passwd entry) and `HOSTNAME`
    /// are added, when absent.
    pub env: Vec<(String, String)>,
    /// Absolute working directory inside the root; created (root-owned, 0755) when missing, and then part of the layer.
    pub cwd: String,
    /// `USER` as in an image config: empty, `name`, `uid`, `user:group`.
    pub user: String,
    /// More groups of the command.
    pub groups: Vec<u32>,
    /// The command keeps the groups that the builder has on the host, and gets none of the image's: devices there may be
    /// theirs to open.
    pub keeps_groups: bool,
    /// Host name inside the step.
    pub hostname: String,
    /// The network the step sees.
    pub network: Network,
    /// Content of `/etc/hosts` during the step; never part of the layer.
    pub hosts: Vec<u8>,
    /// Content of `/etc/resolv.conf` during the step; never part of the layer.
    pub resolv_conf: Vec<u8>,
    /// More files shown read-only (path, content) with mode 0644 during the step; never part of the layer.
    pub files: Vec<(String, Vec<u8>)>,
    /// A file shown read-only with mode 0755 at an absolute path during the step; never part of the layer.
    pub script: Option<(String, Vec<u8>)>,
    /// Size limit of `/dev/shm` in bytes.
    pub shm_size_bytes: u64,
    /// What else is mounted; no two at one target. Those below others may come in any order.
    pub mounts: Vec<StepMount>,
    /// Resource limits of the command.
    pub limits: Vec<StepLimit>,
    /// Open `cgroup.procs` files of the control groups that the command joins.
    pub cgroups: Vec<Arc<OwnedFd>>,
    /// Kept open until nothing of the step is alive: locks.
    pub held: Vec<Arc<OwnedFd>>,
    /// Where one id is mapped: what becomes of owners that files cannot carry. Without it they are forgotten.
    pub owners: Option<OwnerTable>,
    /// Nothing is masked or filtered, and root has every capability there is here.
    pub insecure: bool,
    /// Runs the programs of another processor.
    pub emulator: Option<Arc<Emulator>>,
    /// A terminal that is the step's standard input, output and error, and its controlling one. Without it input is empty
    /// and output goes to the caller.
    pub console: Option<Console>,
}

/// The step's end of a pseudo-terminal. The caller keeps the other end.
#[derive(Clone, Debug)]
pub struct Console(pub Arc<OwnedFd>);

/// Consoles are the same when they are one open file.
impl PartialEq for Console {
    fn eq(&self, other: &Console) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Console {}

impl StepSpec {
    /// Host name of a step unless the build asks for another, as with BuildKit.
    pub const DEFAULT_HOSTNAME: &'static str = "buildkitsandbox";
    /// Size of `/dev/shm` unless the build asks for another: 64 MiB, as with docker.
    pub const DEFAULT_SHM_SIZE_BYTES: u64 = 64 << 20;

    /// A step that runs `argv` as root in `/` with an empty environment, no network and the defaults above.
    pub fn new(argv: Vec<String>) -> StepSpec {
        StepSpec {
            argv,
            env: Vec::new(),
            cwd: "/".to_owned(),
            user: String::new(),
            groups: Vec::new(),
            keeps_groups: false,
            hostname: StepSpec::DEFAULT_HOSTNAME.to_owned(),
            network: Network::None,
            hosts: Vec::new(),
            resolv_conf: Vec::new(),
            files: Vec::new(),
            script: None,
            shm_size_bytes: StepSpec::DEFAULT_SHM_SIZE_BYTES,
            mounts: Vec::new(),
            limits: Vec::new(),
            cgroups: Vec::new(),
            held: Vec::new(),
            owners: None,
            insecure: false,
            emulator: None,
            console: None,
        }
    }
}

/// How the command of a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this status, 0 to 255.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// Where a chunk of output came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}
