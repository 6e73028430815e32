//! Runs one command in a root file system, out of reach of everything else: the `RUN` of a build.
//!
//! ```text
//! main ── dispatch() ── bootstrap() ── … ── mount_overlay() ──▶ merged root (an fd) ──▶ run_step()
//!                                                                                         │
//!                                        spawner (one per process) ── init (one per step) ── command
//! ```
//!
//! [`dispatch`] must be the first thing a program does: children are the program itself, executed again under another
//! name in `argv[0]`. This crate is the only one with `unsafe`, all of it in `sys`; it knows nothing of images, layers or tokio.
//!
//! What a step gets: namespaces for mounts, pids, ipc, host name, cgroups and (unless it shares the host's) network; the
//! 14 default capabilities for root and none for others; a default-deny system call filter; masked `/proc` and `/sys`; a
//! minimal `/dev`; nothing inherited. `no_new_privs` stays off so that setuid programs of the image work, as with docker; it is
//! set where that cannot be: with one id, and in a chroot. What a host that gives less can do is in [`ladder`]; a step where
//! nothing can be mounted is [`run_step_in_copy`].

mod bootstrap;
mod idmap;
pub mod ladder;
mod probe;

mod error;
mod image_file;
mod overlay;
mod owner_table;
pub mod passwd;
mod spec;

mod chroot;
mod parent;
mod spawner;
mod watched;

pub mod emulation;
mod network;

mod channel;
mod child;
mod mount;
mod mount_points;
mod sealed_self;
mod seccomp;
mod sys;
mod wire;

pub use bootstrap::{BootstrapError, Privilege, bootstrap};
pub use chroot::run_step_in_copy;
pub use error::{SetupStep, SpecError, StepError};
pub use idmap::IdRange;
pub use ladder::{Isolation, Rung};
pub use network::{NetworkError, UserNetwork};
pub use overlay::{LOWERS_MAX, LayerDir, MountError, mount_overlay};
pub use owner_table::OwnerTable;
pub use parent::{Ended, Ownership, Teardown, prepare_step, prepare_steps, run_step, run_step_to_exit};
pub use probe::{ProbeResult, probe_rung};
pub use spec::{
    Console, DeviceNode, Exit, MountSource, Network, RLIMITS, StepLimit, StepMount, StepSpec, Stream,
};

/// Takes over if this process was started as a child of the sandbox, and then never returns.
///
/// The first line of `main`: before threads, argument parsing and output. Otherwise it looks at `argv[0]` and returns.
pub fn dispatch() {
    let Some(name) = std::env::args_os().next() else { return };
    if name == sealed_self::SPAWNER_MARKER {
        std::process::exit(child::spawner_main());
    }
    if name == sealed_self::CHROOT_MARKER {
        std::process::exit(child::keeper_main());
    }
    if name == sealed_self::IDMAP_MARKER {
        std::process::exit(bootstrap::helper_main());
    }
    if name == sealed_self::NETWORK_MARKER {
        std::process::exit(network::holder_main());
    }
    if name == sealed_self::EMULATION_MARKER {
        std::process::exit(emulation::registrar_main());
    }
    if name == sealed_self::PROBE_MARKER {
        std::process::exit(probe::probe_main());
    }
}

/// Keeps memory small in a process of many threads, most of which only wait. The second line of `main`.
pub fn keep_memory_small() {
    #[cfg(target_env = "gnu")]
    sys::keep_memory_small();
}

/// A file system in memory as a detached mount, for [`MountSource::Tree`]: what a step leaves in it stays as long as the descriptor.
pub fn tmpfs(size_bytes: Option<u64>) -> std::io::Result<std::os::fd::OwnedFd> {
    Ok(mount::new_tmpfs(size_bytes)?)
}

/// Whether this process lives in a user namespace other than the host's first one.
///
/// Decides between `trusted.*` and `user.*` overlay attributes and between making and binding devices.
pub fn in_user_namespace() -> bool {
    // The kernel gives the first one a fixed inode number. Its map would not tell: root may map every id to itself in another.
    // Unreadable means no /proc, and then nothing else works either. Asked anew each time: `enter` changes the answer.
    const FIRST_USER_NAMESPACE: u64 = 0xEFFF_FFFD;
    rustix::fs::stat("/proc/self/ns/user").is_ok_and(|stat| stat.st_ino != FIRST_USER_NAMESPACE)
}
