//! Who the command is: capabilities and ids, in the one order that works.

use crate::error::{AtStep as _, SetupFailure, SetupStep};
use crate::wire::ChildSpec;
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

/// The capabilities of root in a container, and of nobody else: the usual default set (0xa80425fb).
const DEFAULT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::AUDIT_WRITE)
    .union(CapabilitySet::SETFCAP);

/// Of those, what a step has that nothing but its root directory and Landlock keeps in: no way to make devices, change the
/// root or the bounding set, or open raw sockets on the builder's network. CAP_KILL stays: Landlock keeps signals inside.
const IN_CHROOT: CapabilitySet = DEFAULT.difference(
    CapabilitySet::SYS_CHROOT
        .union(CapabilitySet::MKNOD)
        .union(CapabilitySet::SETPCAP)
        .union(CapabilitySet::NET_RAW)
        .union(CapabilitySet::AUDIT_WRITE),
);

/// Takes every other capability out of the bounding set, for this process and all that come from it.
///
/// Takes nothing away from what they have: the set only says what an exec can give, and none of ours execs before the
/// command of a step does.
pub(super) fn limit_capabilities() -> Result<(), SetupFailure> {
    limit_to(DEFAULT)
}

fn limit_to(kept: CapabilitySet) -> Result<(), SetupFailure> {
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // Past the last capability of this kernel.
            Err(Errno::INVAL) => break,
            other => other.at(SetupStep::BoundingSet)?,
        }
    }
    Ok(())
}

/// Becomes the user of the step; the filter is loaded. Root of an insecure step keeps every capability.
pub(super) fn become_user(spec: &ChildSpec, insecure: bool) -> Result<(), SetupFailure> {
    clear_ambient()?;
    let all = rustix::thread::capabilities(None).at(SetupStep::Capabilities)?.permitted;
    set_ids(spec)?;
    keep_capabilities(spec, if insecure { all } else { DEFAULT })
}

fn set_ids(spec: &ChildSpec) -> Result<(), SetupFailure> {
    if !spec.keeps_groups {
        let groups: Vec<Gid> = spec.groups.iter().copied().map(Gid::from_raw).collect();
        rustix::thread::set_thread_groups(&groups).at(SetupStep::Groups)?;
    }
    let gid = Gid::from_raw(spec.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).at_path(SetupStep::Gid, &spec.gid.to_string())?;
    let uid = Uid::from_raw(spec.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).at_path(SetupStep::Uid, &spec.uid.to_string())
}

/// Stays the only user there is, with root's rights only if the step's user is root. The filter is not loaded yet.
///
/// `no_new_privs`: there is nobody else to become, and exec must not give root's rights back.
pub(super) fn stay_only_user(spec: &ChildSpec) -> Result<(), SetupFailure> {
    clear_ambient()?;
    keep_capabilities(spec, DEFAULT)?;
    rustix::thread::set_no_new_privs(true).at(SetupStep::NoNewPrivs)
}

/// Becomes the user of a step in a chroot, the filter not loaded yet.
pub(super) fn become_user_in_chroot(spec: &ChildSpec) -> Result<(), SetupFailure> {
    clear_ambient()?;
    match limit_to(IN_CHROOT) {
        // Not ours to take out: `no_new_privs` keeps exec from giving more than what is kept below.
        Ok(()) | Err(SetupFailure { errno: Errno::PERM, .. }) => {}
        Err(failure) => return Err(failure),
    }
    set_ids(spec)?;
    keep_capabilities(spec, IN_CHROOT)?;
    rustix::thread::set_no_new_privs(true).at(SetupStep::NoNewPrivs)
}

fn clear_ambient() -> Result<(), SetupFailure> {
    match rustix::thread::clear_ambient_capability_set() {
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(errno) => Err(errno).at(SetupStep::Capabilities),
    }
}

fn keep_capabilities(spec: &ChildSpec, of_root: CapabilitySet) -> Result<(), SetupFailure> {
    // Nothing is inheritable or ambient: exec gives root what is in the bounding set and other users nothing.
    let kept = if spec.uid == 0 { of_root } else { CapabilitySet::empty() };
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).at(SetupStep::Capabilities)
}
