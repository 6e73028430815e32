use super::*;

/// Runs a program as the kernel would; panics on what the kernel's verifier refuses.
fn run(program: &[Insn], arch: u32, number: u32, arg0: u64) -> u32 {
    run_args(program, arch, number, [arg0, 0, 0])
}

fn run_args(program: &[Insn], arch: u32, number: u32, args: [u64; 3]) -> u32 {
    let mut data = [0u8; 64];
    data[0..4].copy_from_slice(&number.to_le_bytes());
    data[4..8].copy_from_slice(&arch.to_le_bytes());
    for (at, arg) in args.iter().enumerate() {
        data[16 + 8 * at..24 + 8 * at].copy_from_slice(&arg.to_le_bytes());
    }
    let (mut pc, mut a) = (0usize, 0u32);
    loop {
        let Insn { code, jt, jf, k } = program[pc];
        pc += 1;
        let branch = |taken: bool| usize::from(if taken { jt } else { jf });
        match code {
            LD_ABS => {
                assert_eq!(k % 4, 0);
                let at = k as usize;
                a = u32::from_le_bytes(data[at..at + 4].try_into().unwrap());
            }
            JMP_ALWAYS => pc += k as usize,
            JEQ => pc += branch(a == k),
            JGE => pc += branch(a >= k),
            JSET => pc += branch(a & k != 0),
            AND => a &= k,
            RET => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn number(abi: &Abi, name: &str) -> Option<u32> {
    abi.calls.iter().find(|(n, _)| *n == name).map(|(_, number)| *number)
}

const ALL: [(Arch, Abi); 3] = [(Arch::X86_64, X86_64), (Arch::X86_64, I386), (Arch::Aarch64, AARCH64)];

/// Calls `name` on every ABI that has it and checks the result.
#[track_caller]
fn check(name: &str, arg0: u64, expected: u32) {
    let mut seen = 0;
    for (arch, abi) in ALL {
        if let Some(number) = number(&abi, name) {
            let got = run(&compile(arch, Policy::Namespaced), abi.audit_arch, number, arg0);
            assert_eq!(got, expected, "{name}({arg0:#x}) on {:#x}", abi.audit_arch);
            seen += 1;
        }
    }
    assert!(seen > 0, "no table knows {name}");
}

#[test]
fn the_profile_is_sorted_and_free_of_duplicates() {
    assert!(profile::ALLOWED.is_sorted_by(|a, b| a < b));
}

#[test]
fn ordinary_calls_are_allowed_on_every_abi() {
    for name in ["read", "write", "execve", "openat", "fchownat", "mknodat", "chroot", "wait4", "capset"] {
        check(name, 0, RET_ALLOW);
    }
}

#[test]
fn calls_that_reach_the_host_are_denied_on_every_abi() {
    for name in [
        "mount",
        "umount2",
        "fsopen",
        "open_tree",
        "move_mount",
        "mount_setattr",
        "pivot_root",
        "unshare",
        "setns",
        "bpf",
        "keyctl",
        "add_key",
        "request_key",
        "io_uring_setup",
        "userfaultfd",
        "perf_event_open",
        "open_by_handle_at",
        "kexec_load",
        "init_module",
        "lsm_set_self_attr",
        "swapon",
        "reboot",
        "acct",
        "settimeofday",
        "quotactl",
        "socketcall",
    ] {
        check(name, 0, RET_EPERM);
    }
}

#[test]
fn clone_is_allowed_only_without_namespace_flags() {
    check("clone", 0x0001_0011, RET_ALLOW);
    for bit in [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
        check("clone", bit, RET_EPERM);
    }
    check("clone3", 0, RET_ENOSYS);
}

#[test]
fn socket_families_with_a_way_out_are_denied() {
    for family in [1, 2, 10, 16, 17] {
        check("socket", family, RET_ALLOW);
    }
    check("socket", 38, RET_EPERM);
    check("socket", 40, RET_EPERM);
    // The kernel truncates the family to an int: high bits must not hide it.
    check("socket", 0xDEAD_0000_0000 | 38, RET_EPERM);
}

#[test]
fn only_known_personalities_are_allowed() {
    for known in PERSONALITIES {
        check("personality", known.into(), RET_ALLOW);
    }
    check("personality", 0x0040_0000, RET_EPERM);
}

#[test]
fn x32_and_foreign_abis_are_refused() {
    let program = compile(Arch::X86_64, Policy::Namespaced);
    assert_eq!(run(&program, X86_64.audit_arch, X32_BIT | 1, 0), RET_EPERM);
    assert_eq!(run(&program, X86_64.audit_arch, u32::MAX, 0), RET_EPERM);
    assert_eq!(run(&program, AARCH64.audit_arch, 64, 0), RET_KILL_PROCESS);
    assert_eq!(run(&compile(Arch::Aarch64, Policy::Namespaced), X86_64.audit_arch, 1, 0), RET_KILL_PROCESS);
}

#[test]
fn numbers_newer_than_the_tables_look_unknown() {
    for (arch, abi) in ALL {
        assert_eq!(run(&compile(arch, Policy::Namespaced), abi.audit_arch, abi.last + 1, 0), RET_ENOSYS);
        assert_eq!(run(&compile(arch, Policy::Namespaced), abi.audit_arch, 5_000, 0), RET_ENOSYS);
    }
}

#[test]
fn every_number_of_the_tables_gets_the_verdict_of_its_name() {
    for (arch, abi) in ALL {
        let program = compile(arch, Policy::Namespaced);
        for n in 0..=abi.last {
            let expected = abi
                .calls
                .iter()
                .find(|(_, number)| *number == n)
                .and_then(|(name, _)| verdict(name, Policy::Namespaced));
            let got = run(&program, abi.audit_arch, n, 0);
            match expected {
                None => assert_eq!(got, RET_EPERM, "{n}"),
                Some(Verdict::Enosys) => assert_eq!(got, RET_ENOSYS, "{n}"),
                Some(_) => assert_eq!(got, RET_ALLOW, "{n}"),
            }
        }
    }
}

#[test]
fn programs_are_short() {
    // The kernel takes 4,096 instructions, but compiles them for each step, and goes through them for each number.
    for (arch, most) in [(Arch::X86_64, 240), (Arch::Aarch64, 100)] {
        let length = compile(arch, Policy::Namespaced).len();
        assert!(length < most, "{length} on {arch:?}");
    }
}

fn run_with(program: &[Insn], arch: u32, name: &str, args: [u32; 3]) -> u32 {
    run_args(program, arch, call_number(arch, name).unwrap(), args.map(u64::from))
}

#[test]
fn where_one_id_is_mapped_owners_are_told_and_ids_stay() {
    let native = X86_64.audit_arch;
    let reporting = compile(Arch::X86_64, Policy::SingleId(Owners::Notified));
    let silent = compile(Arch::X86_64, Policy::SingleId(Owners::Ignored));
    for abi in [&X86_64, &I386] {
        for name in OWNER_CALLS.iter().filter(|name| call_number(abi.audit_arch, name).is_some()) {
            assert_eq!(run_with(&reporting, abi.audit_arch, name, [0; 3]), RET_USER_NOTIF, "{name}");
            assert_eq!(run_with(&silent, abi.audit_arch, name, [0; 3]), RET_ERRNO, "{name}");
        }
        for name in ID_CALLS.iter().filter(|name| call_number(abi.audit_arch, name).is_some()) {
            assert_eq!(run_with(&reporting, abi.audit_arch, name, [0; 3]), RET_ERRNO, "{name}");
        }
    }
    let device = libc::S_IFCHR | 0o666;
    assert_eq!(run_with(&reporting, native, "mknod", [0, device, 0]), RET_ERRNO);
    assert_eq!(run_with(&reporting, native, "mknodat", [0, 0, libc::S_IFBLK]), RET_ERRNO);
    assert_eq!(run_with(&reporting, native, "mknod", [0, libc::S_IFIFO, 0]), RET_ALLOW);
    assert_eq!(run_with(&reporting, native, "unshare", [0; 3]), RET_EPERM);
}

#[test]
fn a_chroot_is_not_left_by_calls() {
    let program = compile(Arch::X86_64, Policy::Chroot);
    for abi in [&X86_64, &I386] {
        for name in CHROOT_DENIED.iter().filter(|name| call_number(abi.audit_arch, name).is_some()) {
            assert_eq!(run_with(&program, abi.audit_arch, name, [0; 3]), RET_EPERM, "{name}");
        }
    }
    assert_eq!(run_with(&program, X86_64.audit_arch, "chown", [0; 3]), RET_ALLOW);
}

#[test]
fn names_of_policies_are_sorted_and_known() {
    for names in [ID_CALLS, OWNER_CALLS, CHROOT_DENIED] {
        assert!(names.is_sorted());
        let is_known =
            |name: &&&str| [&X86_64, &I386].iter().any(|abi| call_number(abi.audit_arch, name).is_some());
        assert_eq!(names.iter().find(|name| !is_known(name)), None);
    }
}
