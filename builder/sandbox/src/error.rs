//! Errors of running a step: one [`SetupStep`] per thing the child does, so that an errno is a diagnosis.

use crate::passwd::UserError;
use rustix::io::Errno;

macro_rules! setup_steps {
    ($($variant:ident = $text:literal,)*) => {
        /// What the sandbox child was doing.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum SetupStep {
            $(#[doc = $text] $variant,)*
        }

        impl SetupStep {
            const ALL: &[SetupStep] = &[$(SetupStep::$variant,)*];

            /// What was being done, as a phrase for a message.
            pub fn describe(self) -> &'static str {
                match self { $(SetupStep::$variant => $text,)* }
            }
        }
    };
}

setup_steps! {
    ReceiveSpec = "receive the step's description",
    ParentDeath = "ask to die with the builder",
    Unshare = "create the step's namespaces",
    Fork = "fork the step's init",
    Keyring = "join a new session keyring",
    Session = "start a new session",
    PrivateMounts = "make mounts private",
    Scratch = "mount the scratch tmpfs",
    AttachRoot = "attach the root file system",
    OpenTarget = "open a mount target in the root file system",
    Proc = "mount /proc",
    MaskProc = "mask or protect a path in /proc",
    Sys = "mount /sys",
    MaskSys = "mask a path in /sys",
    Dev = "mount /dev",
    DeviceNode = "create a device in /dev",
    Pts = "mount /dev/pts",
    Shm = "mount /dev/shm",
    Mqueue = "mount /dev/mqueue",
    BindFile = "mount a file over one of the image",
    StepMount = "mount what the step asks for",
    PivotRoot = "switch to the root file system",
    DetachOldRoot = "detach the host's root file system",
    Hostname = "set the host name",
    JoinEmulation = "join the namespace of the emulator",
    JoinNetwork = "join the network of the build's steps",
    Loopback = "bring up the loopback device",
    Stdio = "set up standard input and output",
    Signals = "reset signals",
    Seccomp = "load the system call filter",
    Cgroup = "join the step's control group",
    Rlimit = "set a resource limit",
    Ledger = "keep the ledger of owners",
    BoundingSet = "drop capabilities from the bounding set",
    Groups = "set supplementary groups",
    Gid = "set the group id",
    Uid = "set the user id",
    Capabilities = "set capabilities",
    NoNewPrivs = "give up new privileges",
    Subreaper = "become the reaper of the step",
    Chroot = "change the root directory",
    Landlock = "confine the step with Landlock",
    CloseFds = "close inherited descriptors",
    WorkingDirectory = "enter the working directory",
    Exec = "execute the command",
    Wait = "wait for the command",
}

impl SetupStep {
    pub(crate) fn to_wire(self) -> u8 {
        self as u8
    }

    pub(crate) fn from_wire(byte: u8) -> Option<SetupStep> {
        SetupStep::ALL.get(usize::from(byte)).copied()
    }
}

/// Why a step did not run to its end. A command that ran and failed is an [`Exit`](crate::Exit), not an error.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The spec cannot be run as it is.
    #[error("invalid step: {0}")]
    InvalidSpec(#[from] SpecError),
    /// The user of the step cannot be resolved.
    #[error(transparent)]
    User(#[from] UserError),
    /// There is no system call filter for this machine, and steps do not run without one.
    #[error("no system call filter for {arch}")]
    NoSeccompTable {
        /// Architecture this program was built for.
        arch: &'static str,
    },
    /// Something that takes a namespace or a mount, on the rung without.
    #[error("{what} is not possible with isolation `chroot`")]
    NotInChroot {
        /// What was asked for.
        what: &'static str,
    },
    /// A mount point could not be created in the root file system.
    #[error("create mount point `{path}` in the root file system")]
    MountPoint {
        /// Path in the root.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// What is to be mounted cannot be opened.
    #[error("open what is mounted at `{target}`")]
    MountSource {
        /// Where it would be mounted.
        target: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The image has a symlink (or a file) where a kernel file system goes.
    #[error("`/{path}` of the image is not a directory; the sandbox mounts a file system there")]
    NotADirectory {
        /// `proc`, `sys` or `dev`.
        path: &'static str,
    },
    /// The builder's side of the step failed.
    #[error("{action}")]
    Parent {
        /// What was being done.
        action: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The child failed to set the sandbox up.
    #[error("{}{}", step.describe(), detail_suffix(detail))]
    Setup {
        /// What it was doing.
        step: SetupStep,
        /// To which thing; may be empty.
        detail: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The program is nowhere in `PATH`; docker reports this with exit code 127.
    #[error("exec: {program:?}: executable file not found in $PATH")]
    CommandNotFound {
        /// Program as written in argv.
        program: String,
    },
    /// The program was found, and the kernel refuses to run it; docker reports this with exit code 126 or 127.
    #[error("exec: {program:?}")]
    CommandNotExecutable {
        /// Program as written in argv.
        program: String,
        /// The cause: permission, format, missing interpreter or file.
        #[source]
        source: std::io::Error,
    },
    /// The step was cancelled; nothing of it is alive.
    #[error("step cancelled")]
    Cancelled,
    /// The sandbox ended without reporting how: killed from outside, or out of memory.
    #[error("the sandbox died without reporting an exit status")]
    Died,
}

fn detail_suffix(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": `{detail}`") }
}

/// What is wrong with a spec.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// argv is empty.
    #[error("no command")]
    EmptyArgv,
    /// A string has a NUL byte, which no argument, variable or path can.
    #[error("{what} contains a NUL byte")]
    Nul {
        /// Which one.
        what: &'static str,
    },
    /// A variable name is empty or has an equals sign.
    #[error("invalid variable name {name:?}")]
    VariableName {
        /// The name.
        name: String,
    },
    /// More mounts, control groups and locks than one step takes.
    #[error("a step takes at most {max} mounts and control groups")]
    TooManyMounts {
        /// How many it takes.
        max: usize,
    },
    /// A path is not absolute, or has a `..`.
    #[error("{what} `{path}` is not an absolute path without `..`")]
    Path {
        /// Which one.
        what: &'static str,
        /// The path.
        path: String,
    },
    /// The whole spec is larger than a step may be.
    #[error("arguments, environment and files are larger than 16 MiB together")]
    TooLarge,
}

/// A failure in the child, before it is sent to the parent.
#[derive(Clone, Debug)]
pub(crate) struct SetupFailure {
    pub(crate) step: SetupStep,
    pub(crate) errno: Errno,
    pub(crate) detail: String,
}

/// Names the step a system call belongs to.
pub(crate) trait AtStep<T> {
    fn at(self, step: SetupStep) -> Result<T, SetupFailure>;
    fn at_path(self, step: SetupStep, path: &str) -> Result<T, SetupFailure>;
}

impl<T> AtStep<T> for Result<T, Errno> {
    fn at(self, step: SetupStep) -> Result<T, SetupFailure> {
        self.map_err(|errno| SetupFailure { step, errno, detail: String::new() })
    }

    fn at_path(self, step: SetupStep, path: &str) -> Result<T, SetupFailure> {
        self.map_err(|errno| SetupFailure { step, errno, detail: path.to_owned() })
    }
}
