//! Landlock: everything but the root out of reach, whatever else a program holds.

use crate::sys;
use rustix::io::Errno;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

/// The version that keeps signals and abstract sockets inside (Linux 6.12).
const SCOPES_ABI: u32 = 6;

/// Rights over files by the version that brought them; every right a kernel knows is handled, and given below the root.
const FILE_RIGHTS: [(u32, u64); 4] = [
    // execute … make_sym
    (1, (1 << 13) - 1),
    // refer
    (2, 1 << 13),
    // truncate
    (3, 1 << 14),
    // ioctl_dev
    (5, 1 << 15),
];

/// `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET` and `LANDLOCK_SCOPE_SIGNAL`.
const SCOPES: u64 = 0b11;

/// Why steps cannot be confined here; `None` when they can.
pub(super) fn missing() -> Option<String> {
    match sys::landlock_abi() {
        Ok(abi) if abi >= SCOPES_ABI => None,
        Ok(abi) => Some(format!(
            "Landlock of this kernel is version {abi}: from version {SCOPES_ABI} on it keeps a step from signalling the \
             processes around it"
        )),
        Err(Errno::NOSYS) => Some("this kernel has no Landlock, or a filter denies it".to_owned()),
        Err(Errno::OPNOTSUPP) => Some("Landlock is switched off in this kernel".to_owned()),
        Err(errno) => Some(format!("Landlock cannot be used: {errno}")),
    }
}

/// A ruleset that leaves the root alone.
pub(crate) struct Confinement(OwnedFd);

impl Confinement {
    /// As strict as the kernel can; `None` where it has no Landlock at all.
    pub(crate) fn to(root: BorrowedFd<'_>) -> Result<Option<Confinement>, Errno> {
        let abi = match sys::landlock_abi() {
            Err(Errno::NOSYS | Errno::OPNOTSUPP) => return Ok(None),
            other => other?,
        };
        let known = |(since, rights): &(u32, u64)| if *since <= abi { *rights } else { 0 };
        let rights = FILE_RIGHTS.iter().map(known).fold(0, |all, rights| all | rights);
        let scopes = if abi >= SCOPES_ABI { SCOPES } else { 0 };
        let ruleset = sys::landlock_ruleset(rights, scopes)?;
        sys::landlock_allow_below(ruleset.as_fd(), root, rights)?;
        Ok(Some(Confinement(ruleset)))
    }

    /// Puts this process under the rules, for good; it has given up new privileges.
    pub(crate) fn enforce(self) -> Result<(), Errno> {
        sys::landlock_restrict(self.0.as_fd())
    }
}
