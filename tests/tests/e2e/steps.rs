//! RUN steps: what they leave, and how layers of equal steps stack.

use std::ffi::OsStr;
use std::fs;

use anyhow::Result;
use rbuild_tests::{judge, need};

use crate::world;

#[test]
fn steps_that_change_the_same_share_a_layer_and_others_run_on_top() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let text =
        "FROM busybox\nRUN true\nRUN : nothing either\nRUN echo a > /a\nRUN : and nothing\nRUN cat /a\n";
    let context = env.context("nothing", text, &[])?;
    let first = env.build_id(&context, &["-t", "nothing"])?;
    let again = env.build_id(&context, &["-t", "nothing"])?;
    assert_eq!(first.1, again.1);
    env.build(&context, &["--no-cache"])?.ok();
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn many_steps_on_the_same_directories_take_few_descriptors() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let mut text = "FROM busybox AS made\nRUN for d in $(seq 20); do mkdir -p /data/$d; done\n".to_owned();
    for step in 0..60 {
        text += &format!("RUN for d in $(seq 20); do echo {step} > /data/$d/{step}; done\n");
    }
    text += "FROM scratch\nCOPY --from=made /data /data\n";
    let context = env.context("layers", &text, &[])?;
    let out = env.work().join("out");
    let plain = OsStr::new("--progress=plain");
    let args = [OsStr::new("build"), OsStr::new("-o"), out.as_os_str(), plain, context.as_os_str()];
    env.run_with_descriptors(400, args)?.ok();
    assert_eq!(fs::read_to_string(out.join("data/20/59"))?, "59\n");
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn a_heredoc_with_an_interpreter_line_is_executed_and_leaves_nothing_but_its_work() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (_registry, env) = world()?;
    let text = "FROM busybox\nRUN <<EOF\n#!/bin/awk -f\nBEGIN{print \"w\" > \"/o\"}\nEOF\n";
    let context = env.context("script", text, &[])?;
    let archive = env.work().join("script.tar");
    let output = format!("type=oci,dest={}", archive.display());
    env.build(&context, &["-t", "script", "-o", &output])?.ok();
    let image = judge::unpack(&format!("oci-archive:{}", archive.display()))?;
    assert_eq!(image.text("/o")?, "w\n");
    assert!(!image.root().join("dev/pipes").exists());
    for stub in ["etc/hosts", "etc/resolv.conf"] {
        assert!(!image.root().join(stub).exists(), "{stub} came into the image");
    }
    Ok(())
}

#[test]
fn a_static_program_runs_on_scratch() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let text =
        "FROM scratch\nCOPY --from=busybox /bin/busybox /sh\nRUN [\"/sh\", \"-c\", \"echo from scratch\"]\n";
    let context = env.context("scratch", text, &[])?;
    env.build(&context, &["-t", "scratchy"])?.ok().says(&["from scratch"]);
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn a_step_reaches_the_outside_and_the_hosts_loopback_only_when_asked() -> Result<()> {
    need!(Root, Registry, Bases, Network);
    let (registry, env) = world()?;
    // The registry listens on the host's loopback.
    let address = registry.host();
    let text = |flag: &str| {
        format!(
            "FROM busybox\nRUN {flag} if wget -q -O /dev/null http://{address}/v2/; then echo open; else echo closed; fi\n"
        )
    };
    let own = env.context("own", &text(""), &[])?;
    let built = env.build(&own, &[])?.ok().says(&[" closed"]);
    assert!(!built.stderr.contains("share the host's network"), "{built}");
    let shared = env.context("shared", &text("--network=host"), &[])?;
    env.build(&shared, &["--allow", "network.host"])?.ok().says(&[" open", "share the host's network"]);
    let off = env.context("off", &text("--network=none"), &[])?;
    env.build(&off, &[])?.ok().says(&[" closed"]);
    env.assert_nothing_left();
    Ok(())
}
