//! The same builds as an ordinary user with a sub-id range.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use anyhow::Result;
use rbuild_tests::{Registry, TestEnv, judge, need};

const OWNERS: &str = "FROM debian\n\
    RUN useradd --uid 1234 app && install -d -o app -g app /home/app && install -d -m 2750 -o 33 -g 44 /srv/d\n\
    COPY --chown=app:app f /home/app/\n\
    COPY d /srv/d/\n\
    COPY --from=debian /dev /nodes\n\
    USER app\n\
    RUN id -un > /home/app/who && ln /home/app/f /home/app/hard && rm -rf /home/app/.profile\n\
    USER root\n\
    RUN chown -R 77:88 /srv/d && rm -r /usr/share/base-files && ln -sf /srv/d /srv/link\n";

const FILES: &[(&str, &str)] = &[("f", "f\n"), ("d/one", "1\n"), ("d/deep/two", "2\n")];

#[test]
fn an_ordinary_user_gets_the_same_image_as_root() -> Result<()> {
    need!(Root, Registry, Bases, Judges, Subuid);
    let registry = Registry::shared()?;
    let mut results = Vec::new();
    for rootless in [false, true] {
        let env = if rootless { TestEnv::rootless()? } else { TestEnv::new()? };
        let env = env.using(&registry)?.with_variable("SOURCE_DATE_EPOCH", "1700000000");
        let context = env.context("owners", OWNERS, FILES)?;
        let file = env.work().join("owners.tar");
        let output = format!("type=oci,dest={}", file.display());
        let (run, digest) = env.build_id(&context, &["-t", "me/owners", "-o", &output])?;
        assert_eq!(run.executed().len(), 6, "{run}");
        let (again, second) = env.build_id(&context, &["-t", "me/owners"])?;
        again.assert_all_cached();
        assert_eq!(digest, second);
        let listing = judge::unpack(&format!("oci-archive:{}", file.display()))?.listing()?;
        env.assert_nothing_left();
        results.push((digest, listing));
    }
    let (rootless, root) = (results.pop().unwrap_or_default(), results.pop().unwrap_or_default());
    let only = |of: &[String], not: &[String]| {
        of.iter().filter(|line| !not.contains(line)).cloned().collect::<Vec<_>>()
    };
    assert_eq!(only(&root.1, &rootless.1), only(&rootless.1, &root.1), "other files");
    assert!(root.1.iter().any(|line| line.starts_with("srv/d/deep/two 100644 77:88 ")));
    assert_eq!(root.0, rootless.0, "with one SOURCE_DATE_EPOCH the digests are equal too");
    Ok(())
}

#[test]
fn apt_installs_packages_for_an_ordinary_user() -> Result<()> {
    need!(Root, Registry, Bases, Judges, Runtime, Subuid);
    let registry = Registry::shared()?;
    let env = TestEnv::rootless()?.using(&registry)?;
    let context = env.fixture("tutorial/apache")?;
    let name = format!("{}/rootless/apache", registry.host());
    env.build(&context, &["-t", &name, "--push"])?.ok();
    let unpacked = judge::unpack(&format!("docker://{name}"))?;
    assert!(unpacked.start(&[])?.get(80, "/")?.contains("It is built"));
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn the_step_is_root_inside_and_nobody_outside() -> Result<()> {
    need!(Root, Registry, Bases, Judges, Subuid);
    let registry = Registry::shared()?;
    let env = TestEnv::rootless()?.using(&registry)?;
    let text = "FROM busybox\nRUN id -u > /inside && cat /proc/self/uid_map > /map && ! touch /proc/sys/kernel/panic\n";
    let context = env.context("inside", text, &[])?;
    let file = env.work().join("inside.tar");
    env.build(&context, &["-o", &format!("type=oci,dest={}", file.display())])?.ok();
    let unpacked = judge::unpack(&format!("oci-archive:{}", file.display()))?;
    assert_eq!(unpacked.text("/inside")?, "0\n");
    assert!(!unpacked.text("/map")?.trim_start().starts_with("0          0 "), "not the host's ids");
    // Nothing on the host belongs to root: not the archive, not the store.
    assert_ne!(fs::metadata(&file)?.uid(), 0);
    assert_ne!(fs::metadata(env.store())?.uid(), 0);
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn a_failing_step_and_doctor_work_for_an_ordinary_user() -> Result<()> {
    need!(Root, Registry, Bases, Subuid);
    let registry = Registry::shared()?;
    let env = TestEnv::rootless()?.using(&registry)?;
    let context = env.context("fails", "FROM busybox\nRUN echo words; exit 7\n", &[])?;
    env.build(&context, &[])?.exits(1).says(&["exit code: 7", "words"]);
    env.assert_nothing_left();
    env.run(["doctor"])?.ok();
    Ok(())
}
