//! The system call filter of a step: the published container default as data, compiled to classic BPF.
//!
//! ```text
//! arch? ── native ── number ── binary search over ranges ── allow
//!   │        │                                           ├─ clone, personality, socket: look at an argument
//!   │        └─ x32 bit set: EPERM                       ├─ clone3, numbers newer than the tables: ENOSYS
//!   ├─ i386 (on x86_64) ── its own numbers, same shape   └─ everything else: EPERM
//!   └─ anything else: kill the process
//! ```
//!
//! ENOSYS where a C library has a fallback (it would take EPERM for the final word), EPERM elsewhere. Own assembly
//! rather than `seccompiler`: its filters have one mismatch action, and one architecture.

mod aarch64;
mod assemble;
mod i386;
mod profile;
mod x86_64;

use assemble::{Place, Program};
use std::collections::BTreeMap;

/// An instruction set whose system calls the filter knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arch {
    X86_64,
    Aarch64,
}

impl Arch {
    /// The one this program was built for; `None` when there is no table for it.
    pub(crate) fn native() -> Option<Arch> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Arch::X86_64),
            "aarch64" => Some(Arch::Aarch64),
            _ => None,
        }
    }
}

/// One instruction set as a kernel reports it in `seccomp_data.arch`.
struct Abi {
    audit_arch: u32,
    calls: &'static [(&'static str, u32)],
    last: u32,
    has_x32: bool,
}

// Numbers of <linux/audit.h>.
const X86_64: Abi =
    Abi { audit_arch: 0xC000_003E, calls: x86_64::CALLS, last: x86_64::CALLS_LAST, has_x32: true };
const I386: Abi = Abi { audit_arch: 0x4000_0003, calls: i386::CALLS, last: i386::CALLS_LAST, has_x32: false };
const AARCH64: Abi =
    Abi { audit_arch: 0xC000_00B7, calls: aarch64::CALLS, last: aarch64::CALLS_LAST, has_x32: false };

/// Set in the number of every x32 call.
const X32_BIT: u32 = 0x4000_0000;

/// `CLONE_NEW*` as far as `clone` takes them (time namespaces need `clone3` or `unshare`).
const NAMESPACE_FLAGS: u32 = 0x7E02_0000;
/// The personalities programs ask for: default, `UNAME26` and `ADDR_NO_RANDOMIZE`-free combinations, and the query.
const PERSONALITIES: [u32; 5] = [0, 0x0008, 0x0002_0000, 0x0002_0008, 0xFFFF_FFFF];
/// `AF_ALG` was the way of a 2026 privilege escalation usable from containers; `AF_VSOCK` reaches the hypervisor.
const FAMILIES_DENIED: [u32; 2] = [38, 40];

const RET_ALLOW: u32 = 0x7FFF_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_USER_NOTIF: u32 = 0x7FC0_0000;
const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_EPERM: u32 = RET_ERRNO | libc::EPERM.cast_unsigned();
const RET_ENOSYS: u32 = RET_ERRNO | libc::ENOSYS.cast_unsigned();

const LD_ABS: u16 = 0x20;
const JMP_ALWAYS: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGE: u16 = 0x35;
const JSET: u16 = 0x45;
const AND: u16 = 0x54;
const RET: u16 = 0x06;

/// Offsets in `struct seccomp_data`; both targets are little-endian, so the low half of an argument comes first.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARG0: u32 = 16;

/// What a step may do beyond or short of the common profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// The profile as it is.
    Namespaced,
    /// One id is mapped: calls that change ids succeed without effect, and owners are `owners`.
    SingleId(Owners),
    /// Nothing but this filter and Landlock keeps the step from the processes around it.
    Chroot,
}

/// What becomes of calls that change the owner of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owners {
    /// Init hears of them and writes them down.
    Notified,
    /// They succeed without effect.
    Ignored,
}

/// What to do with one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Allow,
    Eperm,
    Enosys,
    /// Allowed without namespace flags.
    Clone,
    /// Allowed for the known values.
    Personality,
    /// Allowed but for some families.
    Socket,
    /// Succeeds without effect.
    Nothing,
    /// Answered by who holds the filter's other end.
    Notify,
    /// Succeeds without effect for devices, whose mode is this argument.
    MakeNode {
        mode: u32,
    },
}

/// One classic BPF instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Insn {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

const fn stmt(code: u16, k: u32) -> Insn {
    Insn { code, jt: 0, jf: 0, k }
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Insn {
    Insn { code, jt, jf, k }
}

/// Calls that change ids of the process. `capset` with them: root that cannot be anybody else drops no rights either, and
/// its rights were limited before.
const ID_CALLS: &[&str] = &[
    "capset",
    "setfsgid",
    "setfsgid32",
    "setfsuid",
    "setfsuid32",
    "setgid",
    "setgid32",
    "setgroups",
    "setgroups32",
    "setregid",
    "setregid32",
    "setresgid",
    "setresgid32",
    "setresuid",
    "setresuid32",
    "setreuid",
    "setreuid32",
    "setuid",
    "setuid32",
];

/// Calls that change the owner of a file.
pub(crate) const OWNER_CALLS: &[&str] =
    &["chown", "chown32", "fchown", "fchown32", "fchownat", "lchown", "lchown32"];

/// Calls that leave a chroot, or reach into other processes of the container.
const CHROOT_DENIED: &[&str] =
    &["chroot", "process_mrelease", "process_vm_readv", "process_vm_writev", "ptrace"];

fn verdict(name: &str, policy: Policy) -> Option<Verdict> {
    match policy {
        Policy::SingleId(_) if ID_CALLS.binary_search(&name).is_ok() => return Some(Verdict::Nothing),
        Policy::SingleId(owners) if OWNER_CALLS.binary_search(&name).is_ok() => {
            return Some(match owners {
                Owners::Notified => Verdict::Notify,
                Owners::Ignored => Verdict::Nothing,
            });
        }
        Policy::SingleId(_) if name == "mknod" => return Some(Verdict::MakeNode { mode: 1 }),
        Policy::SingleId(_) if name == "mknodat" => return Some(Verdict::MakeNode { mode: 2 }),
        Policy::Chroot if CHROOT_DENIED.binary_search(&name).is_ok() => return None,
        _ => {}
    }
    match name {
        "clone" => Some(Verdict::Clone),
        "clone3" => Some(Verdict::Enosys),
        "personality" => Some(Verdict::Personality),
        "socket" => Some(Verdict::Socket),
        name => profile::ALLOWED.binary_search(&name).is_ok().then_some(Verdict::Allow),
    }
}

/// The verdicts of an ABI as ranges: each starts at its number and goes to the next start.
fn ranges(abi: &Abi, policy: Policy) -> Vec<(u32, Verdict)> {
    let mut starts = BTreeMap::from([(0, Verdict::Eperm)]);
    for (name, number) in abi.calls {
        if let Some(verdict) = verdict(name, policy) {
            starts.insert(*number, verdict);
            starts.entry(number + 1).or_insert(Verdict::Eperm);
        }
    }
    // A number a C library of next year tries must look unknown, not forbidden.
    starts.insert(abi.last + 1, Verdict::Enosys);
    let mut ranges: Vec<(u32, Verdict)> = starts.into_iter().collect();
    ranges.dedup_by_key(|(_, verdict)| *verdict);
    ranges
}

/// Where the verdict is carried out. The accumulator holds the number, which nobody looks at afterwards.
fn leaf(program: &mut Program, verdict: Verdict) -> Place {
    match verdict {
        Verdict::Allow => program.returning(RET_ALLOW),
        Verdict::Eperm => program.returning(RET_EPERM),
        Verdict::Enosys => program.returning(RET_ENOSYS),
        Verdict::Clone => {
            let (denied, allowed) = (program.returning(RET_EPERM), program.returning(RET_ALLOW));
            let looked = program.branch(JSET, NAMESPACE_FLAGS, denied, allowed);
            first_argument(program, looked)
        }
        Verdict::Personality => any_of(program, &PERSONALITIES, RET_ALLOW, RET_EPERM),
        Verdict::Socket => any_of(program, &FAMILIES_DENIED, RET_EPERM, RET_ALLOW),
        Verdict::Nothing => program.returning(RET_ERRNO),
        Verdict::Notify => program.returning(RET_USER_NOTIF),
        Verdict::MakeNode { mode } => {
            let (done, allowed) = (program.returning(RET_ERRNO), program.returning(RET_ALLOW));
            let block = program.branch(JEQ, libc::S_IFBLK, done, allowed);
            let looked = program.branch(JEQ, libc::S_IFCHR, done, block);
            program.follow(looked);
            program.put(stmt(AND, libc::S_IFMT));
            program.put(stmt(LD_ABS, OFFSET_ARG0 + 8 * mode))
        }
    }
}

/// Loads the first argument and goes on at `then`.
fn first_argument(program: &mut Program, then: Place) -> Place {
    program.follow(then);
    program.put(stmt(LD_ABS, OFFSET_ARG0))
}

/// Compares the first argument with each value. Only its low half: the kernel reads an `int` from it.
fn any_of(program: &mut Program, values: &[u32], hit: u32, miss: u32) -> Place {
    let (hit, miss) = (program.returning(hit), program.returning(miss));
    let compared = values.iter().rev().fold(miss, |next, value| program.branch(JEQ, *value, hit, next));
    first_argument(program, compared)
}

/// Where the verdict of the number in the accumulator is found, by binary search.
fn search(program: &mut Program, ranges: &[(u32, Verdict)]) -> Place {
    let [(_, only)] = ranges else {
        let (low, high) = ranges.split_at(ranges.len() / 2);
        let start = high[0].0;
        let (high, low) = (search(program, high), search(program, low));
        return program.branch(JGE, start, high, low);
    };
    leaf(program, *only)
}

fn abi_code(program: &mut Program, abi: &Abi, policy: Policy) -> Place {
    let mut found = search(program, &ranges(abi, policy));
    if abi.has_x32 {
        let denied = program.returning(RET_EPERM);
        found = program.branch(JGE, X32_BIT, denied, found);
    }
    program.follow(found);
    program.put(stmt(LD_ABS, OFFSET_NUMBER))
}

/// The whole program for an architecture, with the 32-bit ABI it can also run.
pub(crate) fn compile(arch: Arch, policy: Policy) -> Vec<Insn> {
    let abis: &[&Abi] = match arch {
        Arch::X86_64 => &[&X86_64, &I386],
        Arch::Aarch64 => &[&AARCH64],
    };
    let mut program = Program::default();
    let unknown = program.returning(RET_KILL_PROCESS);
    let chosen = abis.iter().rev().fold(unknown, |next, abi| {
        let code = abi_code(&mut program, abi, policy);
        program.branch(JEQ, abi.audit_arch, code, next)
    });
    program.follow(chosen);
    program.put(stmt(LD_ABS, OFFSET_ARCH));
    program.finish()
}

/// The name of a call that a filter of this program reported, by its number and architecture.
pub(crate) fn call_name(audit_arch: u32, number: u32) -> Option<&'static str> {
    let abi = [&X86_64, &I386, &AARCH64].into_iter().find(|abi| abi.audit_arch == audit_arch)?;
    abi.calls.iter().find(|(_, known)| *known == number).map(|(name, _)| *name)
}

/// The number of a call in an architecture's table.
#[cfg(test)]
pub(crate) fn call_number(audit_arch: u32, name: &str) -> Option<u32> {
    let abi = [&X86_64, &I386, &AARCH64].into_iter().find(|abi| abi.audit_arch == audit_arch)?;
    abi.calls.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// Whether calls of this architecture without a number in their name take ids of 16 bits.
pub(crate) fn has_short_ids(audit_arch: u32) -> bool {
    audit_arch == I386.audit_arch
}

/// The program as bytes of the kernel's `struct sock_filter`, native byte order.
pub(crate) fn to_bytes(program: &[Insn]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for insn in program {
        bytes.extend(insn.code.to_ne_bytes());
        bytes.extend([insn.jt, insn.jf]);
        bytes.extend(insn.k.to_ne_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests;
