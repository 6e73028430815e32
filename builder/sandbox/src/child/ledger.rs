//! Owners where one id is mapped: init answers the calls that would change them, and writes down what they asked for.
//!
//! ```text
//! command ── chown(path, 33, 33) ──▶ kernel ── notification ──▶ init: opens what is meant, changes it to 0:0 (so that
//!    ◀───────────────── 0 ─────────────────────────────────────  overlayfs copies it up and set-id bits go), notes 33:33
//! ```
//!
//! The note is the xattr `user.rbuild.owner` of the file or directory: it lives and dies with the inode, and goes along when
//! overlayfs copies it up. What cannot carry one (symbolic links, pipes) is in an [`OwnerTable`] by inode, in a file of the
//! builder's. Init has entered the step's root, so whatever path a step names, nothing outside of it can be reached; and all
//! it does there is what the step could do itself.

use crate::error::{AtStep as _, SetupFailure, SetupStep};
use crate::owner_table::{Inode, OwnerTable};
use crate::seccomp;
use crate::sys;
use crate::wire::ChildSpec;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, XattrFlags};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

/// As rbuild-cache reads it.
const OWNER_NAME: &str = "user.rbuild.owner";
const PATH_SIZE_BYTES_MAX: usize = 4096;

/// Who owns what, as the step sees to it.
pub(super) struct Ledger<'a> {
    listener: OwnedFd,
    /// Of what cannot carry a note.
    special: Option<OwnerTable>,
    spec: &'a ChildSpec,
}

/// What a call wants to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Descriptor(i32),
    Path { dir: i32, address: u64, flags: AtFlags },
}

/// A call: an absent id stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wish {
    target: Target,
    uid: Option<u32>,
    gid: Option<u32>,
}

impl<'a> Ledger<'a> {
    pub(super) fn new(listener: OwnedFd, special: Option<OwnerTable>, spec: &'a ChildSpec) -> Ledger<'a> {
        Ledger { listener, special, spec }
    }

    pub(super) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Takes one call and answers it.
    pub(super) fn answer_next(&self) -> Result<(), SetupFailure> {
        let call = match sys::receive_notification(self.listener.as_fd()) {
            // Its process was killed meanwhile.
            Err(Errno::NOENT | Errno::INTR) => return Ok(()),
            other => other.at(SetupStep::Ledger)?,
        };
        let answer = wish(&call.data).ok_or(Errno::NOSYS).and_then(|wish| self.grant(&call, wish));
        match sys::answer_notification(self.listener.as_fd(), call.id, answer) {
            Err(Errno::NOENT) => Ok(()),
            other => other.at(SetupStep::Ledger),
        }
    }

    fn grant(&self, call: &libc::seccomp_notif, wish: Wish) -> Result<(), Errno> {
        let target = open(call.pid, wish.target)?;
        if !sys::is_waiting(self.listener.as_fd(), call.id) {
            // What was opened may be another process's by now.
            return Err(Errno::SRCH);
        }
        let file_type = FileType::from_raw_mode(rustix::fs::fstat(&target)?.st_mode);
        let can_carry = matches!(file_type, FileType::RegularFile | FileType::Directory);
        let note = format!("/proc/self/fd/{}", target.as_raw_fd());
        let inode = || Inode::at(&target, c"", AtFlags::EMPTY_PATH);
        let before = match &self.special {
            _ if can_carry => noted(&note)?,
            Some(special) => special.get(inode()?)?,
            None => None,
        };
        let before = before.unwrap_or((self.spec.uid, self.spec.gid));
        let keeps = |id: &u32| self.spec.uid == 0 || *id != 0;
        // Everything looks like root's, so programs pass 0 for the id they do not mean; who is not root cannot mean it.
        let after = (wish.uid.filter(keeps).unwrap_or(before.0), wish.gid.filter(keeps).unwrap_or(before.1));
        self.permit(before, after)?;
        let root = (Some(Uid::ROOT), Some(Gid::ROOT));
        rustix::fs::chownat(&target, c"", root.0, root.1, AtFlags::EMPTY_PATH)?;
        if can_carry {
            return match write_note(&note, after) {
                // A file system without such xattrs, and so none that a layer is made of.
                Err(Errno::NOTSUP) => Ok(()),
                other => other,
            };
        }
        let Some(special) = &self.special else { return Ok(()) };
        // Copied up by now: born anew, under the same number.
        special.set(inode()?, after)
    }

    /// The kernel's rule: root may, others may give what is theirs to a group of theirs.
    fn permit(&self, before: (u32, u32), after: (u32, u32)) -> Result<(), Errno> {
        let spec = self.spec;
        let in_group = |gid: u32| gid == spec.gid || spec.groups.contains(&gid);
        let is_theirs = before.0 == spec.uid && after.0 == before.0;
        let may = spec.uid == 0 || (is_theirs && (after.1 == before.1 || in_group(after.1)));
        if may { Ok(()) } else { Err(Errno::PERM) }
    }
}

fn wish(data: &libc::seccomp_data) -> Option<Wish> {
    let name = seccomp::call_name(data.arch, data.nr.cast_unsigned())?;
    let [first, second, third, fourth, fifth, _] = data.args;
    // Descriptors and flags are C ints, ids 32 bits, or 16 in the oldest calls of the 32-bit ABI.
    let int = |arg: u64| arg as u32 as i32;
    let is_short = seccomp::has_short_ids(data.arch) && matches!(name, "chown" | "fchown" | "lchown");
    let none = if is_short { 0xFFFF } else { u32::MAX };
    let id = |arg: u64| Some(arg as u32 & none).filter(|id| *id != none);
    let path = |dir, address, flags| Target::Path { dir, address, flags };
    let at = AtFlags::from_bits_retain(fifth as u32);
    let (target, uid, gid) = match name {
        "fchown" | "fchown32" => (Target::Descriptor(int(first)), second, third),
        "chown" | "chown32" => (path(libc::AT_FDCWD, first, AtFlags::empty()), second, third),
        "lchown" | "lchown32" => (path(libc::AT_FDCWD, first, AtFlags::SYMLINK_NOFOLLOW), second, third),
        "fchownat" => (path(int(first), second, at), third, fourth),
        _ => return None,
    };
    Some(Wish { target, uid: id(uid), gid: id(gid) })
}

/// Opens what a process means, as it would; the result is good for looking at, not for reading.
fn open(pid: u32, target: Target) -> Result<OwnedFd, Errno> {
    let of_process = |what: &str| {
        let path = format!("/proc/{pid}/{what}");
        rustix::fs::open(path.as_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
    };
    let descriptor = |fd: i32| of_process(&format!("fd/{fd}")).map_err(|_| Errno::BADF);
    let (dir, address, flags) = match target {
        Target::Descriptor(fd) => return descriptor(fd),
        Target::Path { dir, address, flags } => (dir, address, flags),
    };
    let start = || if dir == libc::AT_FDCWD { of_process("cwd") } else { descriptor(dir) };
    let path = read_path(pid, address)?;
    if path.is_empty() {
        return if flags.contains(AtFlags::EMPTY_PATH) { start() } else { Err(Errno::NOENT) };
    }
    let mut how = OFlags::PATH | OFlags::CLOEXEC;
    if flags.contains(AtFlags::SYMLINK_NOFOLLOW) {
        how |= OFlags::NOFOLLOW;
    }
    if path.first() == Some(&b'/') {
        let root = of_process("root")?;
        let in_root = rustix::fs::openat2(&root, path.as_slice(), how, Mode::empty(), ResolveFlags::IN_ROOT);
        return match in_root {
            // Through a link of /proc, which leads to what is no file of the image: the builder's pipe, say.
            Err(Errno::XDEV) => rustix::fs::open("/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()),
            other => other,
        };
    }
    rustix::fs::openat(start()?, path.as_slice(), how, Mode::empty())
}

/// Reads a path from a process's memory.
fn read_path(pid: u32, address: u64) -> Result<Vec<u8>, Errno> {
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let memory = File::open(format!("/proc/{pid}/mem")).map_err(errno)?;
    let mut path = vec![0; PATH_SIZE_BYTES_MAX];
    // Short where the memory ends.
    let count = memory.read_at(&mut path, address).map_err(|_| Errno::FAULT)?;
    let end = path[..count].iter().position(|byte| *byte == 0);
    let short = if count == PATH_SIZE_BYTES_MAX { Errno::NAMETOOLONG } else { Errno::FAULT };
    path.truncate(end.ok_or(short)?);
    Ok(path)
}

fn noted(path: &str) -> Result<Option<(u32, u32)>, Errno> {
    let mut buffer = [0u8; 32];
    let value = match rustix::fs::getxattr(path, OWNER_NAME, &mut buffer[..]) {
        Ok(len) => &buffer[..len],
        Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let parse = |text: &str| {
        let (uid, gid) = text.split_once(':')?;
        Some((uid.parse().ok()?, gid.parse().ok()?))
    };
    Ok(std::str::from_utf8(value).ok().and_then(parse))
}

fn write_note(path: &str, (uid, gid): (u32, u32)) -> Result<(), Errno> {
    if (uid, gid) != (0, 0) {
        let owner = format!("{uid}:{gid}");
        return rustix::fs::setxattr(path, OWNER_NAME, owner.as_bytes(), XattrFlags::empty());
    }
    match rustix::fs::removexattr(path, OWNER_NAME) {
        Err(Errno::NODATA) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(arch: u32, name: &str, args: [u64; 6]) -> Option<Wish> {
        let number = seccomp::call_number(arch, name).unwrap();
        wish(&libc::seccomp_data { nr: number.cast_signed(), arch, instruction_pointer: 0, args })
    }

    #[test]
    fn calls_of_both_abis_are_understood() {
        let (x86_64, i386) = (0xC000_003E, 0x4000_0003);
        let minus_one = u64::from(u32::MAX);
        let fd = Target::Descriptor(3);
        assert_eq!(
            call(x86_64, "fchown", [3, 33, minus_one, 0, 0, 0]),
            Some(Wish { target: fd, uid: Some(33), gid: None })
        );
        assert_eq!(
            call(i386, "fchown", [3, 0xFFFF, 44, 0, 0, 0]),
            Some(Wish { target: fd, uid: None, gid: Some(44) }),
            "16-bit ids"
        );
        assert_eq!(
            call(i386, "fchown32", [3, 0xFFFF, 44, 0, 0, 0]),
            Some(Wish { target: fd, uid: Some(0xFFFF), gid: Some(44) })
        );
        let target = Target::Path { dir: libc::AT_FDCWD, address: 7, flags: AtFlags::SYMLINK_NOFOLLOW };
        let here = u64::from(libc::AT_FDCWD.cast_unsigned());
        let args = [here, 7, 1, 2, AtFlags::SYMLINK_NOFOLLOW.bits().into(), 0];
        let wanted = Some(Wish { target, uid: Some(1), gid: Some(2) });
        assert_eq!(call(x86_64, "fchownat", args), wanted);
        assert_eq!(call(x86_64, "lchown", [7, 1, 2, 0, 0, 0]), wanted);
        assert_eq!(call(x86_64, "getuid", [0; 6]), None);
    }

    #[test]
    fn an_ordinary_user_gives_nothing_away() {
        let listener = File::open("/dev/null").unwrap();
        let spec = ChildSpec { uid: 1000, gid: 1000, groups: vec![44], ..ChildSpec::default() };
        let ledger = Ledger::new(listener.into(), None, &spec);
        assert_eq!(ledger.permit((1000, 1000), (1000, 44)), Ok(()));
        assert_eq!(ledger.permit((1000, 1000), (0, 1000)), Err(Errno::PERM));
        assert_eq!(ledger.permit((1000, 1000), (1000, 45)), Err(Errno::PERM));
        assert_eq!(ledger.permit((0, 0), (0, 44)), Err(Errno::PERM));
    }
}
