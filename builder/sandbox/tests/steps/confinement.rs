//! What a step cannot do: the S suite as far as a shell can ask.

use super::setup::{Host, require_or_skip, run_on, shell};
use crate::Case;
use rbuild_sandbox::{Exit, Network, StepSpec};

pub(crate) const CASES: &[Case] = &[
    ("capabilities_are_exact", capabilities_are_exact),
    ("no_host_file_system_is_left", no_host_file_system_is_left),
    ("proc_and_sys_are_masked", proc_and_sys_are_masked),
    ("mounts_and_namespaces_are_denied", mounts_and_namespaces_are_denied),
    ("only_standard_streams_are_open", only_standard_streams_are_open),
    ("devices_made_by_a_step_do_not_open", devices_made_by_a_step_do_not_open),
    ("only_own_processes_are_visible", only_own_processes_are_visible),
    ("no_network_is_only_loopback", no_network_is_only_loopback),
    ("kernel_directories_that_are_symlinks_are_refused", kernel_directories_that_are_symlinks_are_refused),
    ("setuid_programs_work", setuid_programs_work),
    ("denied_calls_are_denied_on_every_abi", denied_calls_are_denied_on_every_abi),
];

const DEFAULT_SET: &str = "00000000a80425fb";
const EMPTY_SET: &str = "0000000000000000";

#[track_caller]
fn check_capabilities(host: &Host, user: &str, permitted: &str) {
    // No shell in between: busybox's ignores SIGQUIT.
    let mut spec = StepSpec::new(["/bin/cat", "/proc/self/status"].map(String::from).to_vec());
    spec.user = user.to_owned();
    let status = host.run(&spec).unwrap().stdout;
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!(field("CapInh:"), EMPTY_SET, "inheritable of {user:?}");
    assert_eq!(field("CapPrm:"), permitted, "permitted of {user:?}");
    assert_eq!(field("CapEff:"), permitted, "effective of {user:?}");
    assert_eq!(field("CapBnd:"), DEFAULT_SET, "bounding of {user:?}");
    assert_eq!(field("CapAmb:"), EMPTY_SET, "ambient of {user:?}");
    assert_eq!(field("NoNewPrivs:"), "0");
    assert_eq!(field("Seccomp:"), "2");
    assert_eq!(field("SigIgn:"), EMPTY_SET);
    assert_eq!(field("SigBlk:"), EMPTY_SET);
}

fn capabilities_are_exact(host: &Host) {
    check_capabilities(host, "", DEFAULT_SET);
    check_capabilities(host, "app", EMPTY_SET);
    check_capabilities(host, "4242", EMPTY_SET);
}

fn no_host_file_system_is_left(host: &Host) {
    let mounts = host.sh("cut -d' ' -f2,3 /proc/mounts");
    for line in mounts.lines() {
        let (place, kind) = line.split_once(' ').unwrap();
        let is_ours = match place {
            "/" => kind == "overlay",
            "/etc/hosts" | "/etc/resolv.conf" => kind == "tmpfs",
            other => ["/proc", "/sys", "/dev"]
                .iter()
                .any(|top| other == *top || other.starts_with(&format!("{top}/"))),
        };
        assert!(is_ours, "{line}\nof\n{mounts}");
    }
    assert_eq!(mounts.lines().filter(|line| line.starts_with("/ ")).count(), 1);
    let inodes = host
        .sh("for d in / /.. /dev/.. /proc/.. /proc/1/cwd/.. ; do stat -c %i $d 2>&1; done | sort -u | wc -l");
    // /proc/1 belongs to a process that shows nothing, so its link is one more line: an error.
    assert!(matches!(inodes.trim(), "1" | "2"), "{inodes}");
}

fn proc_and_sys_are_masked(host: &Host) {
    // On the host's network a rootless step sees the host's own /sys: it must be covered as well.
    for (network, user) in
        [(Network::None, ""), (Network::None, "app"), (Network::Host, ""), (Network::Host, "app")]
    {
        let run = |script: &str| {
            let mut spec = shell(script);
            (spec.network, spec.user) = (network.clone(), user.to_owned());
            host.run(&spec).unwrap().stdout
        };
        let read = run(
            "for f in kcore keys timer_list interrupts sched_debug latency_stats; do cat /proc/$f; done 2>/dev/null; \
             for d in /proc/acpi /proc/scsi /proc/asound /sys/firmware /sys/devices/virtual/powercap /sys/fs/cgroup; \
             do ls -A $d; done 2>/dev/null; true",
        );
        assert_eq!(read, "", "{network:?} {user:?}");
        let written = run(
            "for f in /proc/sys/kernel/core_pattern /proc/sys/vm/swappiness /proc/sysrq-trigger /proc/irq/x /proc/bus/x \
             /proc/fs/x /sys/kernel/x /sys/x /sys/fs/cgroup/x /sys/kernel/mm/ksm/run; do (echo 1 > $f) 2>/dev/null && echo $f; done; true",
        );
        assert_eq!(written, "", "{network:?} {user:?}");
    }
}

#[track_caller]
fn check_denied(host: &Host, script: &str) {
    for user in ["", "app"] {
        let mut spec = shell(script);
        spec.user = user.into();
        let ran = host.run(&spec).unwrap();
        assert_ne!(ran.exit, Exit::Code(0), "{script} as {user:?}");
        let text = ran.stderr.to_lowercase();
        let is_refusal = ["not permitted", "permission denied", "must be root", "are you root", "no such"]
            .iter()
            .any(|words| text.contains(words));
        assert!(is_refusal, "{script} as {user:?}: {text}");
    }
}

fn mounts_and_namespaces_are_denied(host: &Host) {
    check_denied(host, "mount -t tmpfs none /mnt");
    check_denied(host, "mount -t proc none /mnt");
    check_denied(host, "mount --bind /etc /mnt");
    check_denied(host, "mount -o remount,rw /proc/sys");
    check_denied(host, "umount /proc/kcore");
    for flag in ["-m", "-u", "-i", "-n", "-p", "-U"] {
        check_denied(host, &format!("unshare {flag} true"));
    }
    check_denied(host, "nsenter -m -t 1 true");
    check_denied(host, "pivot_root / /mnt");
    check_denied(host, "hostname other");
}

fn only_standard_streams_are_open(host: &Host) {
    // `ls` itself has the directory open as 3.
    assert_eq!(
        host.sh("ls /proc/self/fd | tr '\\n' ' '; ls -l /proc/$$/fd | grep -c -v -E 'pipe:|/dev/null'"),
        "0 1 2 3 1\n"
    );
}

fn devices_made_by_a_step_do_not_open(host: &Host) {
    for dir in ["/", "/tmp", "/dev", "/dev/shm"] {
        for device in ["c 1 1", "c 1 11", "c 1 3", "b 7 0", "b 254 0", "b 8 0"] {
            let script = format!("mknod {dir}/x {device} && dd if={dir}/x of=/tmp/y bs=1 count=1");
            assert_ne!(host.run(&shell(&script)).unwrap().exit, Exit::Code(0), "{script}");
        }
    }
}

fn only_own_processes_are_visible(host: &Host) {
    let pids = host.sh("ls /proc | grep -E '^[0-9]+$' | sort -n | head -1; ls /proc | grep -cE '^[0-9]+$'");
    let mut lines = pids.lines();
    assert_eq!(lines.next(), Some("1"));
    assert!(lines.next().unwrap().parse::<u32>().unwrap() < 8, "{pids}");
    for user in ["", "app"] {
        let seen = host.sh_as(user, "cat /proc/1/environ 2>/dev/null; readlink /proc/1/exe; readlink /proc/1/root; for fd in 0 1 2 3 4 5; do readlink /proc/1/fd/$fd; done; true");
        assert_eq!(seen, "", "{user:?}");
    }
}

fn no_network_is_only_loopback(host: &Host) {
    assert_eq!(host.sh("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '"), "lo\n");
    assert_eq!(host.sh("ping -c1 -W1 127.0.0.1 > /dev/null && echo up"), "up\n");
    assert_eq!(host.sh("wc -l < /proc/net/route"), "1\n");
    let mut spec = shell("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '");
    spec.network = Network::Host;
    let ours = std::fs::read_to_string("/proc/net/dev").unwrap().lines().count() - 2;
    assert_eq!(host.run(&spec).unwrap().stdout.lines().count(), ours);
}

fn kernel_directories_that_are_symlinks_are_refused(host: &Host) {
    for name in ["proc", "sys", "dev"] {
        let (layer, _) = host.new_upper();
        std::os::unix::fs::symlink("/etc", layer.join(name)).unwrap();
        let error = run_on(&host.merged_over(&[&host.lower, &layer]), &shell("true")).unwrap_err();
        assert!(
            error.to_string().starts_with(&format!("`/{name}` of the image is not a directory")),
            "{error}"
        );
    }
}

fn setuid_programs_work(host: &Host) {
    let (layer, _) = host.new_upper();
    for dir in ["bin", "etc"] {
        std::fs::create_dir(layer.join(dir)).unwrap();
    }
    // No password, so that `su` asks for none.
    std::fs::write(layer.join("etc/passwd"), "root::0:0::/root:/bin/sh\napp:x:1000:1001::/:/bin/sh\n")
        .unwrap();
    let program = layer.join("bin/busybox-suid");
    std::fs::copy(host.lower.join("bin/busybox"), &program).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o4755)).unwrap();
    let mut spec = shell("");
    spec.user = "app".into();
    spec.argv = ["/bin/busybox-suid", "su", "-c", "id -u; grep CapEff /proc/self/status", "root"]
        .map(String::from)
        .to_vec();
    let ran = run_on(&host.merged_over(&[&host.lower, &layer]), &spec).unwrap();
    assert_eq!(ran.stdout, format!("0\nCapEff:\t{DEFAULT_SET}\n"), "{ran:?}");
}

fn denied_calls_are_denied_on_every_abi(host: &Host) {
    let (layer, _) = host.new_upper();
    let (source, program) = (layer.join("denied.c"), layer.join("denied"));
    std::fs::write(&source, include_str!("denied.c")).unwrap();
    let args = ["-static", "-o", program.to_str().unwrap(), source.to_str().unwrap()];
    if let Err(why) = crate::host_command("cc", &args) {
        return require_or_skip("cc", &why);
    }
    for user in ["", "app"] {
        let mut spec = shell("/denied");
        spec.user = user.to_owned();
        assert_eq!(
            run_on(&host.merged_over(&[&host.lower, &layer]), &spec).unwrap().stdout,
            "done\n",
            "{user:?}"
        );
    }
}
