//! Other machines for ordinary users: with a `/dev/net/tun` that they may open, as most hosts have it (networks of steps need
//! one), and with a `/proc` that is covered here and there, as in containers.

use std::path::PathBuf;
use std::process::Command;

use crate::need::program_path;

/// In a subshell, because the program is to get `PATH` as it is given. `/mnt` is covered in the command's own mount namespace
/// only, for as long as it takes: nothing is made on the machine's file system, whatever fails.
const WITH_TUN: &str = "(PATH=/usr/sbin:/usr/bin:/sbin:/bin; mount -t tmpfs tun /mnt && \
     mknod -m 0666 /mnt/tun c 10 200 && { [ ! -e /dev/net/tun ] || mount --bind /mnt/tun /dev/net/tun; } && \
     umount -l /mnt) && exec \"$@\"";

/// A cover that a user namespace sees as locked: `/proc/irq` has something to hide everywhere.
const WITH_MASKS: &str =
    "(PATH=/usr/sbin:/usr/bin:/sbin:/bin; mount -t tmpfs -o ro masked /proc/irq) && exec \"$@\"";

/// The command that runs `command` as this user and group, in a mount namespace of its own with that device. Only for root.
#[must_use]
pub fn with_tun(command: &Command, user: (u32, u32)) -> Command {
    with(WITH_TUN, command, user)
}

/// As [`with_tun`], where parts of `/proc` are covered.
#[must_use]
pub fn with_masked_proc(command: &Command, user: (u32, u32)) -> Command {
    with(WITH_MASKS, command, user)
}

fn with(prepare: &str, command: &Command, (uid, gid): (u32, u32)) -> Command {
    let mut wrapped = Command::new("/usr/bin/unshare");
    wrapped
        .args(["--mount", "/bin/sh", "-c", prepare, "sh", "/usr/bin/setpriv"])
        .args(["--reuid", &uid.to_string(), "--regid", &gid.to_string(), "--clear-groups", "--"])
        .arg(command.get_program())
        .args(command.get_args())
        .env_clear()
        .env("PATH", program_path())
        .current_dir(command.get_current_dir().map_or_else(|| PathBuf::from("/"), PathBuf::from));
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            wrapped.env(name, value);
        }
    }
    wrapped
}
