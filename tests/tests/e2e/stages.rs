//! Stages: in parallel, chosen, skipped.

use std::time::Duration;

use anyhow::Result;
use rbuild_tests::{judge, need};

use crate::world;

#[test]
fn independent_stages_run_at_the_same_time() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let mut text = String::new();
    for stage in 0..4 {
        text += &format!("FROM busybox AS s{stage}\nRUN sleep 2; mkdir /out; echo {stage} > /out/{stage}\n");
    }
    text += "FROM busybox\n";
    for stage in 0..4 {
        text += &format!("COPY --from=s{stage} /out/ /out/\n");
    }
    let context = env.context("parallel", &text, &[])?;
    // The base is there first, so that the time is that of the steps.
    let warm = env.context("warm", "FROM busybox\nRUN true\n", &[])?;
    env.build(&warm, &[])?.ok();
    let run = env.build(&context, &["-t", "parallel"])?.ok();
    assert!(run.wall >= Duration::from_secs(2), "{run}");
    assert!(run.wall < Duration::from_secs(5), "one after the other takes 8 s\n{run}");
    assert_eq!(run.executed().len(), 8, "{run}");
    Ok(())
}

#[test]
fn only_what_the_target_needs_is_built() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (_registry, env) = world()?;
    let text = "FROM busybox AS base\nRUN echo base > /name\n\
                FROM base AS broken\nRUN exit 9\n\
                FROM base AS wanted\nRUN echo wanted >> /name\n\
                FROM broken\nRUN echo never\n";
    let context = env.context("target", text, &[])?;
    let file = env.work().join("target.tar");
    let output = format!("type=oci,dest={}", file.display());
    let run = env.build(&context, &["--target", "wanted", "-o", &output])?.ok();
    assert!(!run.stderr.contains("exit 9"), "an unneeded stage was run\n{run}");
    assert_eq!(judge::unpack(&format!("oci-archive:{}", file.display()))?.text("/name")?, "base\nwanted\n");
    Ok(())
}

#[test]
fn copy_takes_from_stages_by_name_by_number_and_from_images() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (_registry, env) = world()?;
    let text = "FROM busybox AS First\nRUN mkdir -p /d/sub && echo 1 > /d/sub/one && ln -s one /d/sub/link\n\
                FROM busybox\nRUN echo 2 > /two && chown 5:6 /two && chmod 4750 /two\n\
                FROM scratch\nCOPY --from=first /d /d\nCOPY --from=1 /two /\nCOPY --from=busybox /etc/passwd /etc/\n";
    let context = env.context("from", text, &[])?;
    let file = env.work().join("from.tar");
    env.build(&context, &["-o", &format!("type=oci,dest={}", file.display())])?.ok();
    let unpacked = judge::unpack(&format!("oci-archive:{}", file.display()))?;
    assert_eq!(unpacked.text("/d/sub/one")?, "1\n");
    assert_eq!(std::fs::read_link(unpacked.root().join("d/sub/link"))?.to_str(), Some("one"));
    assert!(unpacked.text("/etc/passwd")?.starts_with("root:"));
    let listing = unpacked.listing()?;
    // Between images numeric owners and modes stay.
    assert!(listing.iter().any(|line| line.starts_with("two 104750 5:6 ")), "{listing:#?}");
    Ok(())
}
