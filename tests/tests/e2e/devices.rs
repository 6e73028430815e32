//! `RUN --device`, with descriptions made for the test: `/dev/zero` under another name.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rbuild_tests::{Registry, TestEnv, judge, need};

use crate::world;

/// A directory that describes devices of kind `vendor.test/dev`.
fn described(env: &TestEnv) -> Result<PathBuf> {
    let lib = env.write("home/driver/lib.so", "library\n")?;
    let lib = lib.parent().expect("a directory").display();
    let text = format!(
        "cdiVersion: \"0.6.0\"\n\
         kind: vendor.test/dev\n\
         containerEdits:\n  env: [DRIVER=1]\n\
         devices:\n\
         - name: zero\n  \
           containerEdits:\n    \
             env: [FAKE=zero]\n    \
             deviceNodes:\n    - {{path: /dev/fake/0, hostPath: /dev/zero}}\n    \
             mounts:\n    - {{hostPath: {lib}, containerPath: /opt/driver, options: [ro, nosuid, nodev, rbind, rprivate]}}\n\
         - name: free\n  \
           annotations: {{org.mobyproject.buildkit.device.autoallow: \"true\"}}\n  \
           containerEdits: {{env: [FREE=1]}}\n\
         - name: made\n  \
           containerEdits:\n    \
             deviceNodes:\n    - {{path: /dev/made, type: c, major: 1, minor: 5, fileMode: 0640, uid: 7, gid: 8}}\n    \
             additionalGids: [8]\n\
         - name: other\n  \
           containerEdits:\n    \
             deviceNodes:\n    - {{path: /dev/other, hostPath: /dev/null, type: b}}\n\
         - name: hooked\n  \
           containerEdits:\n    \
             hooks: [{{hookName: createContainer, path: /bin/true}}]\n"
    );
    let file = env.write("home/cdi/vendor.yaml", &text)?;
    Ok(file.parent().expect("a directory").to_owned())
}

fn build(env: &TestEnv, context: &Path, args: &[&str]) -> Result<rbuild_tests::Run> {
    let dir = described(env)?.display().to_string();
    env.build(context, &[&["--cdi-spec-dir", &dir], args].concat())
}

const USED: &str = "FROM busybox\n\
    RUN --device=vendor.test/dev=zero,required --device=vendor.test/dev=absent <<EOF\n\
        set -e\n\
        [ \"$(head -c 3 /dev/fake/0 | od -An -tx1)\" = ' 00 00 00' ]\n\
        echo written > /dev/fake/0\n\
        [ \"$FAKE$DRIVER\" = zero1 ]\n\
        [ \"$(cat /opt/driver/lib.so)\" = library ]\n\
        ! touch /opt/driver/x 2> /dev/null\n\
        echo seen > /out\n\
    EOF\n\
    RUN [ ! -e /dev/fake ] && [ ! -e /opt/driver ] && [ -z \"$FAKE\" ]\n\
    USER 1000\n\
    RUN --device=vendor.test/dev=zero head -c 1 /dev/fake/0 | od -An -tx1 | grep 00\n";

#[test]
fn devices_reach_steps_and_leave_no_trace() -> Result<()> {
    need!(Root, Registry, Bases, Judges, Subuid);
    let registry = Registry::shared()?;
    // One after the other: a machine has one ordinary user for tests.
    for make in [TestEnv::new, TestEnv::rootless, TestEnv::without_sub_ids] {
        let env = make()?.using(&registry)?;
        let context = env.context("devices", USED, &[])?;
        let archive = env.work().join("devices.tar");
        let output = format!("type=oci,dest={}", archive.display());
        let allow = "device=vendor.test/dev=zero";
        build(&env, &context, &["-t", "devices", "--allow", allow, "-o", &output])?
            .ok()
            .says(&["there is no device vendor.test/dev=absent: the step runs without it"]);
        let image = judge::unpack(&format!("oci-archive:{}", archive.display()))?;
        assert_eq!(image.text("/out")?, "seen\n");
        for line in image.listing()? {
            let path = line.split(' ').next().unwrap_or_default();
            assert!(!["dev/fake", "opt/driver"].iter().any(|trace| path.starts_with(trace)), "{line}");
        }
        // What is described now is not looked at: the steps are known by what they ask for.
        let empty = env.write("home/none/x", "")?.with_file_name("");
        let args = ["-t", "devices", "--cdi-spec-dir", &empty.display().to_string()];
        env.build(&context, &args)?.ok().assert_all_cached();
        env.assert_nothing_left();
    }
    Ok(())
}

#[test]
fn root_makes_nodes_that_the_host_does_not_have() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let text = "FROM busybox\nRUN --device=vendor.test/dev=made <<EOF\n\
        set -e\n\
        [ \"$(stat -c '%F %t:%T %a %u:%g' /dev/made)\" = 'character special file 1:5 640 7:8' ]\n\
        [ \"$(head -c 1 /dev/made | od -An -tx1)\" = ' 00' ]\n\
        id -G | grep -qw 8\n\
        mknod /dev/own c 1 5\n\
        ! head -c 1 /dev/own 2> /dev/null\n\
        EOF\n\
        USER 1000\nRUN --device=mine head -c 1 /dev/made | od -An -tx1 | grep 00\n";
    let context = env.context("made", text, &[])?;
    let alias = "device=vendor.test/dev=made,alias=mine";
    build(&env, &context, &["--allow", alias, "--allow", "device=vendor.test/dev=*"])?.ok();
    // A user's namespace cannot, and says which file of the host is missing.
    let registry = Registry::shared()?;
    let env = TestEnv::rootless()?.using(&registry)?;
    let context = env.context("made", text, &[])?;
    let run = build(&env, &context, &["--allow", "device"])?.exits(1);
    run.says(&["device vendor.test/dev=made: cannot use /dev/made", "No such file or directory"]);
    Ok(())
}

#[test]
fn a_device_that_cannot_be_had_is_an_error_at_its_line() -> Result<()> {
    need!(Root, Registry, Bases);
    let (registry, env) = world()?;
    let refused = |device: &str, args: &[&str], says: &[&str]| -> Result<()> {
        let text = format!("FROM busybox\nRUN --device={device} touch /ran\n");
        let context = env.context("refused", &text, &[])?;
        let run = build(&env, &context, args)?.exits(1).says(says);
        assert!(run.stderr.contains(&format!("RUN --device={device}")), "no place: {run}");
        Ok(())
    };
    let all = ["--allow", "device"];
    refused(
        "vendor.test/dev=zero",
        &[],
        &[
            "device vendor.test/dev=zero is requested by the build but not allowed",
            "--allow device=vendor.test/dev=zero",
        ],
    )?;
    refused(
        "vendor.test/dev=none,required",
        &all,
        &[
            "required device \"vendor.test/dev=none\" is not registered",
            "devices here: vendor.test/dev=free, vendor.test/dev=hooked",
        ],
    )?;
    refused("gpu", &all, &["invalid device \"gpu\"", "vendor.com/class=name"])?;
    refused(
        "vendor.test/dev=hooked",
        &all,
        &["vendor.yaml has hooks", "hooks are programs run on the host"],
    )?;
    refused("vendor.test/dev=other", &all, &["/dev/null is not the device that"])?;
    env.write("home/cdi/bad.json", "{\"cdiVersion\": \"9.0.0\", \"kind\": \"a.b/c\", \"devices\": []}")?;
    refused("a.b/c=d,required", &all, &["bad.json is broken: CDI version `9.0.0` is not known here"])?;
    fs::remove_file(env.dir().join("home/cdi/bad.json")).ok();
    // Its description says that everybody may have it.
    let context =
        env.context("free", "FROM busybox\nRUN --device=vendor.test/dev=free [ $FREE = 1 ]\n", &[])?;
    build(&env, &context, &[])?.ok();
    let chroot = TestEnv::new()?.using(&registry)?.with_variable("RBUILD_ISOLATION", "chroot");
    let context = chroot.context("chroot", "FROM busybox\nRUN --device=vendor.test/dev=zero true\n", &[])?;
    let run = build(&chroot, &context, &["--allow", "device"])?.exits(1);
    run.says(&["RUN --device cannot be had with --isolation=chroot"]);
    Ok(())
}
