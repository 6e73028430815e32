//! What a step sees and what it leaves.

use super::setup::{Host, Merged, run_on, shell};
use crate::Case;
use rbuild_sandbox::{Console, Exit, LOWERS_MAX, LayerDir, MountError, StepError, StepSpec, mount_overlay};
use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) const CASES: &[Case] = &[
    ("exit_codes_and_signals_are_reported_exactly", exit_codes_and_signals_are_reported_exactly),
    ("output_comes_by_stream_and_whole", output_comes_by_stream_and_whole),
    ("the_environment_is_exact", the_environment_is_exact),
    ("the_working_directory_is_entered_or_created", the_working_directory_is_entered_or_created),
    ("users_have_their_ids_and_groups", users_have_their_ids_and_groups),
    ("commands_are_looked_up_in_the_images_path", commands_are_looked_up_in_the_images_path),
    ("files_are_shown_and_leave_no_trace", files_are_shown_and_leave_no_trace),
    ("standard_streams_can_be_opened_by_name", standard_streams_can_be_opened_by_name),
    ("host_name_umask_and_stdin_are_fixed", host_name_umask_and_stdin_are_fixed),
    ("an_overlay_is_in_no_mount_table", an_overlay_is_in_no_mount_table),
    ("120_layers_merge", many_layers_merge),
    ("a_layer_can_come_twice", a_layer_can_come_twice),
    ("dev_is_usable_by_every_user", dev_is_usable_by_every_user),
    ("a_plain_directory_can_be_the_root", a_plain_directory_can_be_the_root),
    ("a_console_is_the_controlling_terminal", a_console_is_the_controlling_terminal),
];

/// G7: exactly.
fn exit_codes_and_signals_are_reported_exactly(host: &Host) {
    for code in [0, 1, 121, 137, 255] {
        assert_eq!(host.run(&shell(&format!("exit {code}"))).unwrap().exit, Exit::Code(code));
    }
    for signal in [9, 11, 15] {
        assert_eq!(host.run(&shell(&format!("kill -{signal} $$"))).unwrap().exit, Exit::Signal(signal));
    }
}

fn output_comes_by_stream_and_whole(host: &Host) {
    let ran = host.run(&shell("echo out; echo err >&2; head -c 3000000 /dev/zero | tr '\\0' x")).unwrap();
    assert_eq!(ran.stderr, "err\n");
    assert_eq!(ran.stdout.len(), 4 + 3_000_000);
}

fn the_environment_is_exact(host: &Host) {
    let mut spec = StepSpec::new(vec!["/bin/env".into()]);
    spec.env = vec![("B".into(), "2 x".into()), ("A".into(), String::new())];
    assert_eq!(host.run(&spec).unwrap().stdout, "B=2 x\nA=\nHOME=/root\nHOSTNAME=buildkitsandbox\n");
    spec.env = vec![("HOSTNAME".into(), "mine".into()), ("HOME".into(), "/h".into())];
    assert_eq!(host.run(&spec).unwrap().stdout, "HOSTNAME=mine\nHOME=/h\n");
}

fn the_working_directory_is_entered_or_created(host: &Host) {
    let mut spec = shell("pwd; stat -c '%u:%g %a' .");
    spec.cwd = "/srv/new/deep".into();
    let merged = host.merged();
    assert_eq!(run_on(&merged, &spec).unwrap().stdout, "/srv/new/deep\n0:0 755\n");
    assert!(merged.upper.join("srv/new/deep").is_dir());
    // Descriptors of the builder are no way out (CVE-2024-21626).
    for n in 0..32 {
        spec.cwd = format!("/proc/self/fd/{n}");
        assert!(host.run(&spec).is_err(), "{}", spec.cwd);
    }
}

#[track_caller]
fn check_user(host: &Host, user: &str, expected: &str) {
    let script = "echo $(id -u):$(id -g) $(grep ^Groups: /proc/self/status) $HOME";
    assert_eq!(host.sh_as(user, script).trim(), expected, "{user:?}");
}

fn users_have_their_ids_and_groups(host: &Host) {
    check_user(host, "", "0:0 Groups: 0 /root");
    check_user(host, "app", "1000:1001 Groups: 44 1001 /home/app");
    check_user(host, "1000", "1000:1001 Groups: 44 1001 /home/app");
    check_user(host, "app:media", "1000:44 Groups: 44 /home/app");
    check_user(host, "4242", "4242:0 Groups: 0 /");
    check_user(host, "4242:77", "4242:77 Groups: 77 /");
    let mut spec = shell("true");
    spec.user = "nobody-here".into();
    let error = host.run(&spec).unwrap_err();
    assert_eq!(error.to_string(), "unable to find user nobody-here: no matching entries in passwd file");
}

fn commands_are_looked_up_in_the_images_path(host: &Host) {
    let mut spec = StepSpec::new(vec!["echo".into(), "hi".into()]);
    assert_eq!(host.run(&spec).unwrap().stdout, "hi\n");
    spec.env = vec![("PATH".into(), "/nowhere".into())];
    let error = host.run(&spec).unwrap_err();
    assert_eq!(error.to_string(), "exec: \"echo\": executable file not found in $PATH");
    for (program, errno) in [("/no/such", libc::ENOENT), ("/etc/passwd", libc::EACCES)] {
        match host.run(&StepSpec::new(vec![program.into()])).unwrap_err() {
            StepError::CommandNotExecutable { source, .. } => assert_eq!(source.raw_os_error(), Some(errno)),
            other => panic!("{other:?}"),
        }
    }
}

/// Everything in an upper directory, sorted, with modification times of what was there before.
fn upper_files(upper: &Path) -> Vec<PathBuf> {
    fn visit(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                visit(&path, found);
            }
            found.push(path);
        }
    }
    let mut found = Vec::new();
    visit(upper, &mut found);
    let mut found: Vec<_> = found.iter().map(|path| path.strip_prefix(upper).unwrap().to_owned()).collect();
    found.sort();
    found
}

/// N9: nor is a time changed.
fn files_are_shown_and_leave_no_trace(host: &Host) {
    let mut spec = shell(
        "cat /etc/hosts /etc/resolv.conf; /run/script; stat -c %a /run/script; \
         echo x >> /etc/hosts || true; echo x > /run/script || true",
    );
    spec.hosts = b"127.0.0.1 localhost\n".to_vec();
    spec.resolv_conf = b"nameserver 192.0.2.1\n".to_vec();
    spec.script = Some(("/run/script".into(), b"#!/bin/sh\necho ran\n".to_vec()));
    let merged = host.merged();
    let etc_before = fs::metadata(host.lower.join("etc")).unwrap().modified().unwrap();
    let ran = run_on(&merged, &spec).unwrap();
    assert_eq!(ran.stdout, "127.0.0.1 localhost\nnameserver 192.0.2.1\nran\n755\n");
    assert_eq!(
        upper_files(&merged.upper),
        [PathBuf::from("etc")],
        "only the copied-up directory may be left"
    );
    assert_eq!(fs::metadata(merged.upper.join("etc")).unwrap().modified().unwrap(), etc_before);
    // The builder goes on reading the merged root by its descriptor.
    let passwd =
        rustix::fs::openat(&merged.fd, "etc/passwd", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
    assert!(passwd.is_ok());
}

fn standard_streams_can_be_opened_by_name(host: &Host) {
    for user in ["", "app"] {
        assert_eq!(host.sh_as(user, "echo a > /dev/stdout; echo b > /proc/self/fd/1"), "a\nb\n", "{user:?}");
    }
}

fn host_name_umask_and_stdin_are_fixed(host: &Host) {
    assert_eq!(
        host.sh("hostname; umask; cat; readlink /proc/self/fd/0"),
        "buildkitsandbox\n0022\n/dev/null\n"
    );
    let mut spec = shell("hostname");
    spec.hostname = "other".into();
    assert_eq!(host.run(&spec).unwrap().stdout, "other\n");
}

fn an_overlay_is_in_no_mount_table(host: &Host) {
    let read = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = read();
    let merged = host.merged();
    run_on(&merged, &shell("echo x > /new")).unwrap();
    assert_eq!(read(), before);
    assert_eq!(fs::read(merged.upper.join("new")).unwrap(), b"x\n");
}

/// Q5: up to what the kernel takes.
fn many_layers_merge(host: &Host) {
    let (base, _) = host.new_upper();
    let layers: Vec<PathBuf> = (0..120).map(|n| base.join(format!("layer-{n}"))).collect();
    for (n, layer) in layers.iter().enumerate() {
        fs::create_dir(layer).unwrap();
        fs::write(layer.join(format!("only-{n}")), "").unwrap();
        fs::write(layer.join("top"), n.to_string()).unwrap();
    }
    let mut lowers: Vec<&Path> = vec![&host.lower];
    lowers.extend(layers.iter().map(PathBuf::as_path));
    let ran = run_on(&host.merged_over(&lowers), &shell("ls / | grep -c only-; cat /top")).unwrap();
    // Base first: the last one given is on top.
    assert_eq!(ran.stdout, "120\n119");
    let too_many: Vec<PathBuf> = (0..=LOWERS_MAX).map(|n| n.to_string().into()).collect();
    let too_many: Vec<LayerDir<'_>> = too_many.iter().map(LayerDir::from).collect();
    let in_user_namespace = rbuild_sandbox::in_user_namespace();
    assert!(matches!(
        mount_overlay(&too_many, None, in_user_namespace),
        Err(MountError::TooManyLowers { .. })
    ));
    assert!(matches!(mount_overlay(&[], None, in_user_namespace), Err(MountError::NoLowers)));
}

fn a_layer_can_come_twice(host: &Host) {
    let [(one, _), (other, _)] = [host.new_upper(), host.new_upper()];
    fs::write(one.join("file"), "one").unwrap();
    fs::write(other.join("file"), "other").unwrap();
    fs::write(other.join("only"), "other").unwrap();
    // As when a step undoes what the one before it did: the topmost place counts.
    let merged = host.merged_over(&[&host.lower, &one, &other, &one]);
    assert_eq!(run_on(&merged, &shell("cat /file /only")).unwrap().stdout, "oneother");
    let merged = host.merged_over(&[&host.lower, &other, &one, &one, &other]);
    assert_eq!(run_on(&merged, &shell("cat /file /only")).unwrap().stdout, "otherother");
    // The same by descriptors.
    let open = |dir: &Path| fs::File::open(dir).unwrap();
    let (base, one, other) = (open(&host.lower), open(&one), open(&other));
    let lowers = [&base, &one, &other, &one].map(|dir| LayerDir::Open(dir.as_fd()));
    let (upper, work) = host.new_upper();
    let (upper_dir, work_dir) = (open(&upper), open(&work));
    let dirs = Some((LayerDir::Open(upper_dir.as_fd()), LayerDir::Open(work_dir.as_fd())));
    let fd = mount_overlay(&lowers, dirs, rbuild_sandbox::in_user_namespace()).unwrap();
    let merged = Merged { fd, upper };
    assert_eq!(run_on(&merged, &shell("cat /file /only")).unwrap().stdout, "oneother");
}

fn dev_is_usable_by_every_user(host: &Host) {
    for user in ["", "app"] {
        let script = "echo x > /dev/null; head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; \
                      echo s > /dev/shm/f; cat /dev/shm/f; ls /dev | sort | tr '\\n' ' '; df -k /dev/shm | awk 'END{print $2}'";
        assert_eq!(
            host.sh_as(user, script),
            "4\n4\ns\nfd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero 65536\n",
            "{user:?}"
        );
    }
}

fn a_plain_directory_can_be_the_root(host: &Host) {
    let root = fs::File::open(&host.lower).unwrap();
    let (cancel, _never) = rustix::pipe::pipe().unwrap();
    for _ in 0..2 {
        let exit =
            rbuild_sandbox::run_step(&shell("exit 3"), root.as_fd(), cancel.as_fd(), &mut |_, _| {}).unwrap();
        assert_eq!(exit, Exit::Code(3));
    }
    assert!(!host.lower.join("etc/hosts").exists());
}

fn a_console_is_the_controlling_terminal(host: &Host) {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    use std::io::{Read as _, Write as _};

    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let ours = ioctl_tiocgptpeer(&master, flags).unwrap();
    let mut terminal = fs::File::from(master);
    terminal
        .write_all(b"test -t 0 && test -t 1 && test -t 2 && echo all; echo to the tty >/dev/tty; exit 7\n")
        .unwrap();
    let mut spec = StepSpec::new(vec!["/bin/sh".into()]);
    spec.user = "app".into();
    spec.console = Some(Console(Arc::new(ours)));
    let ran = host.run(&spec).unwrap();
    drop(spec);
    assert_eq!((ran.exit, ran.stdout.as_str(), ran.stderr.as_str()), (Exit::Code(7), "", ""));
    // The end of a terminal whose other ends are closed is an I/O error.
    let mut seen = Vec::new();
    let _end = terminal.read_to_end(&mut seen);
    let seen = String::from_utf8_lossy(&seen);
    assert!(seen.contains("\nall\r\n") && seen.contains("\nto the tty\r\n"), "{seen:?}");
}
