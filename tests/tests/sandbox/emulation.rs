//! Steps for another processor, with a real busybox for it.

use std::fs;

use anyhow::{Context, Result};
use rbuild_tests::{TestEnv, bases, judge, need};

use crate::rungs::Place;

/// Processes below processes, set-id bits, owners, another user, a script. No `--platform`: the programs tell.
const TEXT: &str = "FROM scratch\n\
    COPY --chmod=755 busybox /bin/busybox\n\
    RUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n\
    RUN mkdir -m 1777 /tmp && for i in 1 2 3; do (sh -c 'uname -m' | cat > /child-$i) & done; wait\n\
    RUN <<EOF\n\
    #!/bin/sh\n\
    set -e\n\
    mkdir /d && echo text > /d/f && chown 33:44 /d/f && chmod 4750 /d/f && ln /d/f /d/g && ln -s f /d/l\n\
    ! grep binfmt /proc/mounts\n\
    ! touch /proc/sys/fs/binfmt_misc/register\n\
    [ \"$(ls /proc/self/fd | wc -l)\" = 4 ]\n\
    EOF\n\
    USER 1000:1000\n\
    RUN id -u > /tmp/who && find / -xdev -name 'qemu*' > /tmp/traces\n";

fn context(env: &TestEnv, text: &str) -> Result<std::path::PathBuf> {
    let context = env.context("foreign", text, &[])?;
    fs::copy(bases::foreign_busybox()?, context.join("busybox")).context("copy busybox")?;
    Ok(context)
}

/// What this machine has registered for all.
fn registrations() -> Vec<String> {
    let entries = fs::read_dir("/proc/sys/fs/binfmt_misc").into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn steps_for_another_processor_are_emulated_down_to_their_last_process() -> Result<()> {
    need!(Root, Bases, Judges, Subuid, Emulator);
    let before = registrations();
    let mut of_root = None;
    for place in [Place::Root, Place::Rootless, Place::Single] {
        let env = place.env()?.with_variable("SOURCE_DATE_EPOCH", "1700000000");
        let context = context(&env, TEXT)?;
        let archive = env.work().join("foreign.tar");
        let output = format!("type=oci,dest={}", archive.display());
        let (run, digest) = env.build_id(&context, &["-o", &output, "--network=none"])?;
        run.says(&["programs for arm64 are emulated by QEMU"]);
        let unpacked = judge::unpack(&format!("oci-archive:{}", archive.display()))?;
        for child in 1..=3 {
            assert_eq!(unpacked.text(&format!("/child-{child}"))?, "aarch64\n", "{}", place.name());
        }
        assert_eq!(unpacked.text("/tmp/traces")?, "", "{}", place.name());
        env.assert_nothing_left();
        if place != Place::Single {
            // There `USER` keeps its number only in what it makes.
            assert_eq!(unpacked.text("/tmp/who")?, "1000\n");
            assert_eq!(*of_root.get_or_insert_with(|| digest.clone()), digest, "{}", place.name());
        }
        // No key knows who ran a step: without an emulator all of it is still there.
        if place != Place::Rootless {
            // That rung finds `newuidmap` by the same variable.
            let env = env.with_variable("PATH", "/nowhere");
            env.build(&context, &["--network=none"])?.ok().assert_all_cached();
        }
    }
    assert_eq!(before, registrations(), "the host has what it had");
    Ok(())
}

#[test]
fn what_is_missing_for_another_processor_is_said() -> Result<()> {
    need!(Root, Bases, Emulator);
    if registrations().iter().any(|name| name.contains("aarch64") || name.contains("arm64")) {
        eprintln!("skipped: this machine emulates arm64 for everybody");
        return Ok(());
    }
    for (place, path, says) in [
        (
            Place::Root,
            "/nowhere",
            &["`qemu-aarch64-static` is not installed", "apt-get install qemu-user-static"][..],
        ),
        (Place::Chroot, "/usr/bin", &["apt-get install qemu-user-static binfmt-support"][..]),
    ] {
        let env = place.env()?.with_variable("PATH", path);
        let context = context(&env, TEXT)?;
        let run = env.build(&context, &["--platform=linux/arm64", "--network=host"])?;
        run.exits(1)
            .says(&["this machine (linux/amd64) cannot run programs for linux/arm64", "Dockerfile:3"])
            .says(says);
        env.assert_nothing_left();
    }
    Ok(())
}
