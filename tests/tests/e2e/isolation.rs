//! The isolation ladder: the same builds on every rung, and what is said about it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rbuild_tests::{Registry, TestEnv, judge, need};
use serde_json::Value;

const EPOCH: &str = "1700000000";

/// A world that builds on this rung, and the arguments that make it.
fn world_on(rung: &str, registry: &Registry) -> Result<TestEnv> {
    let env = match rung {
        "rootless" => TestEnv::rootless()?,
        "single" | "norun" => TestEnv::without_sub_ids()?,
        _ => TestEnv::new()?,
    };
    Ok(env.using(registry)?.with_variable("SOURCE_DATE_EPOCH", EPOCH).with_variable("RBUILD_ISOLATION", rung))
}

/// Layer digests and files of an image that was written as an archive.
fn layers(archive: &Path) -> Result<Vec<String>> {
    judge::unpack(&format!("oci-archive:{}", archive.display()))?.listing()
}

#[test]
fn the_corpus_gives_one_image_on_every_rung() -> Result<()> {
    need!(Root, Registry, Bases, Judges, Subuid);
    let registry = Registry::shared()?;
    let mut of_root = None;
    for rung in ["root", "rootless", "single", "chroot"] {
        let env = world_on(rung, &registry)?;
        let context = env.fixture("isolation/corpus")?;
        let archive = env.work().join("corpus.tar");
        let output = format!("type=oci,dest={}", archive.display());
        let (run, digest) = env.build_id(&context, &["-o", &output])?;
        run.says(&[&format!("isolation: {rung}")]);
        let files = layers(&archive)?;
        env.assert_nothing_left();
        env.run(["cache", "fsck"])?.ok();
        let (first_digest, first_files) = of_root.get_or_insert_with(|| (digest.clone(), files.clone()));
        let differs = files.iter().filter(|line| !first_files.contains(line)).collect::<Vec<_>>();
        assert!(differs.is_empty(), "{rung} has other files than root: {differs:#?}");
        assert_eq!(first_files.len(), files.len(), "{rung} lacks files that root has");
        assert_eq!(*first_digest, digest, "{rung} and root differ in more than files");
    }
    Ok(())
}

#[test]
fn a_container_of_the_default_profile_builds_with_a_chroot_alone() -> Result<()> {
    need!(Root, Registry, Bases, Judges, Runtime);
    let registry = Registry::shared()?;
    let mut digests = Vec::new();
    for rung in ["root", "chroot"] {
        let env = world_on(rung, &registry)?;
        let context = env.fixture("isolation/corpus")?;
        let id = env.work().join("id");
        let id_text = id.to_str().context("UTF-8")?;
        let context = context.to_str().context("UTF-8")?;
        let args = ["build", "--progress", "plain", "--iidfile", id_text, context];
        let run = if rung == "root" { env.run(args)? } else { env.run_contained(args)? };
        run.ok().says(&[&format!("isolation: {rung}")]);
        digests.push(fs::read_to_string(&id)?);
        env.assert_nothing_left();
    }
    assert_eq!(digests[0], digests[1]);
    Ok(())
}

#[test]
fn a_container_of_the_default_profile_says_what_it_takes_to_run_steps() -> Result<()> {
    need!(Root, Registry, Bases, Runtime);
    let registry = Registry::shared()?;
    let env = TestEnv::new()?.using(&registry)?;
    let context = env.context("refused", "FROM busybox\nCOPY f /\nRUN true\n", &[("f", "f\n")])?;
    let context = context.to_str().context("UTF-8")?;
    let run = env.run_contained(["build", "--progress", "plain", context])?.exits(1);
    run.says(&["isolation: norun", "CAP_SYS_ADMIN", "RUN cannot be executed", "--isolation chroot"]);
    // What was built so far serves the build that names it.
    let run = env.run_contained(["build", "--progress", "plain", "--isolation", "chroot", context])?.ok();
    assert_eq!(run.executed().len(), 1, "{run}");
    let document: Value =
        serde_json::from_str(&env.run_contained(["doctor", "--format", "json"])?.ok().stdout)?;
    let works = |name: &str| {
        document["rungs"]
            .as_array()
            .is_some_and(|rungs| rungs.iter().any(|rung| rung["name"] == name && rung["works"] == true))
    };
    assert_eq!(
        ["root", "rootless", "single", "chroot"].map(works),
        [false, false, false, true],
        "{document:#}"
    );
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn a_chroot_keeps_its_step_from_the_container_around_it() -> Result<()> {
    need!(Root, Registry, Bases);
    let registry = Registry::shared()?;
    let env = world_on("chroot", &registry)?;
    // A process to be signalled, a file to be reached: both the test's own.
    let secret = env.write("work/secret", "secret\n")?;
    let mut victim = std::process::Command::new("sleep").arg("300").spawn()?;
    let text = format!(
        "FROM busybox\n\
         RUN ! kill -9 {pid} 2>/dev/null && ! mknod /dev/disk b 8 0 2>/dev/null && test ! -e {secret}\n\
         RUN mkdir /d && ! chroot /d true 2>/dev/null && ! mount -t tmpfs none /d 2>/dev/null\n\
         RUN grep -q 127.0.0.1 /etc/hosts && echo lost >> /etc/hosts && echo x > /dev/null && rm -f /etc/resolv.conf\n\
         RUN (sleep 301 &) ; (setsid sleep 302 </dev/null >/dev/null 2>&1 &) ; true\n\
         USER 1000:1000\nRUN test \"$(id -u)\" = 1000 && ! touch /root-only 2>/dev/null\n",
        pid = victim.id(),
        secret = secret.display()
    );
    let context = env.context("kept", &text, &[])?;
    let run = env.build(&context, &[]);
    let still_runs = victim.try_wait()?.is_none();
    victim.kill()?;
    victim.wait()?;
    run?.ok();
    assert!(still_runs, "a step killed a process outside");
    let context = env.context("network", "FROM busybox\nRUN --network=none true\n", &[])?;
    let says =
        ["RUN without network", "`chroot`", ">>> RUN --network=none", "hint: other isolations have it"];
    env.build(&context, &[])?.exits(1).says(&says);
    // Background processes are gone with their step, and nothing that was put into the copy is in the layers.
    env.assert_nothing_left();
    let history = env.run(["cache", "fsck"])?.ok();
    assert!(history.stdout.contains("sound"));
    Ok(())
}

#[test]
fn a_chroot_gives_secrets_as_variables_and_never_as_files() -> Result<()> {
    need!(Root, Registry, Bases);
    let registry = Registry::shared()?;
    let env = world_on("chroot", &registry)?.with_variable("TOKEN", "canary-chroot-1");
    let text = "FROM busybox\nENV NPM_TOKEN=public\n\
        RUN --mount=type=secret,id=token,env=NPM_TOKEN,required --mount=type=secret,id=absent --mount=type=ssh \\\n\
            [ ${#NPM_TOKEN} = 15 ] && echo \"it is $NPM_TOKEN\"\n\
        RUN [ \"$NPM_TOKEN\" = public ]\n";
    let context = env.context("variables", text, &[])?;
    let run = env.build(&context, &["--secret", "id=token,env=TOKEN"])?.ok();
    assert!(!run.stderr.contains("canary"), "the log has the secret: {run}");
    let found =
        std::process::Command::new("grep").args(["-rlaF", "canary-chroot-1"]).arg(env.store()).output()?;
    assert_eq!(String::from_utf8_lossy(&found.stdout), "", "the secret is in the store");
    env.build(&context, &["--no-cache"])?.exits(1).says(&["secret token: not found", "--secret id=token"]);
    for (mount, says) in [
        ("type=secret,id=token", "secret token cannot be a file with --isolation=chroot"),
        ("type=tmpfs,target=/t", "RUN --mount cannot be had with --isolation=chroot"),
    ] {
        let context = env.context("files", &format!("FROM busybox\nRUN --mount={mount} true\n"), &[])?;
        env.build(&context, &["--secret", "id=token,env=TOKEN"])?.exits(1).says(&[says]);
    }
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn a_user_without_sub_ids_gets_the_single_rung_by_itself() -> Result<()> {
    need!(Root, Registry, Bases, Subuid);
    let registry = Registry::shared()?;
    let env = TestEnv::without_sub_ids()?.using(&registry)?;
    let context = env.context("auto", "FROM busybox\nRUN id -u > /id && chown 7:7 /id\n", &[])?;
    let metadata = env.work().join("metadata.json");
    let metadata = metadata.to_str().context("UTF-8")?;
    let run = env.build(&context, &["--metadata-file", metadata])?.ok();
    run.says(&["isolation: single (", "not rootless: ", "subordinate ids"]);
    let document: Value = serde_json::from_slice(&fs::read(metadata)?)?;
    assert_eq!(document["rbuild.isolation"], "single");
    // Nothing is executed: nothing is said, and the store goes on as it was made.
    let again = env.build(&context, &[])?.ok();
    again.assert_all_cached();
    assert!(!again.stderr.contains("isolation:"), "{again}");
    env.run(["cache", "fsck"])?.ok();
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn apt_and_adduser_work_where_one_id_is_mapped() -> Result<()> {
    need!(Root, Registry, Bases, Judges, Runtime, Subuid);
    let registry = Registry::shared()?;
    let env = world_on("single", &registry)?;
    let text = "FROM debian\n\
        RUN adduser --disabled-password --gecos '' --uid 1234 app && install -d -o app -g app /srv/app\n\
        RUN useradd --system --no-create-home daemon2 && chown daemon2 /srv && su app -c true\n";
    let context = env.context("users", text, &[])?;
    let archive = env.work().join("users.tar");
    env.build(&context, &["-o", &format!("type=oci,dest={}", archive.display())])?.ok();
    let files = layers(&archive)?;
    assert!(files.iter().any(|line| line.starts_with("srv/app 040755 1234:1234")), "{files:#?}");
    assert!(files.iter().any(|line| line.starts_with("home/app/.profile 100644 1234:1234")));
    let context = env.fixture("tutorial/apache")?;
    env.build(&context, &["-t", "single/apache"])?.ok();
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn without_any_way_to_run_steps_everything_else_works() -> Result<()> {
    need!(Root, Registry, Bases, Judges, Subuid);
    let registry = Registry::shared()?;
    let text = "FROM busybox AS base\n\
        WORKDIR /srv/app\n\
        COPY --chown=33:44 --chmod=600 f d ./\n\
        FROM base\n\
        COPY --from=base /bin/sh /etc/shadow* /copied/\n\
        ENV A=1\nUSER 1000\n";
    let mut digests = Vec::new();
    for rung in ["root", "norun"] {
        let env = world_on(rung, &registry)?;
        let context = env.context("norun", text, &[("f", "f\n"), ("d/g", "g\n")])?;
        let archive = env.work().join("norun.tar");
        let output = format!("type=oci,dest={}", archive.display());
        let (_, digest) = env.build_id(&context, &["-o", &output])?;
        digests.push((digest, layers(&archive)?));
        env.run(["cache", "fsck"])?.ok();
        if rung == "norun" {
            let context = env.context("run", "FROM busybox\nCOPY f /\nRUN true\n", &[("f", "f\n")])?;
            let run = env.build(&context, &[])?.exits(1);
            run.says(&[
                "RUN cannot be executed",
                "isolation is `norun`",
                ">>> RUN true",
                "--isolation norun",
            ]);
        }
        env.assert_nothing_left();
    }
    assert_eq!(digests[0], digests[1]);
    Ok(())
}

#[test]
fn an_isolation_that_is_not_to_be_had_says_what_is_missing() -> Result<()> {
    need!(Root, Registry, Bases, Subuid);
    let registry = Registry::shared()?;
    let env = TestEnv::without_sub_ids()?.using(&registry)?;
    let context = env.context("named", "FROM busybox\nRUN true\n", &[])?;
    let run = env.build(&context, &["--isolation", "rootless"])?.exits(1);
    run.says(&["subordinate ids in /etc/subuid", "rbuild-test:100000:65536"]);
    env.build(&context, &["--isolation", "root"])?.exits(1).says(&["not running as root", "run as root"]);
    env.build(&context, &["--isolation", "hyperv"])?.exits(125).says(&["--isolation", "rootless"]);
    Ok(())
}

/// A container that allows namespaces and covers parts of `/proc`: a step is not given the container's, with its processes.
#[test]
fn where_proc_is_covered_run_is_refused_with_the_remedy() -> Result<()> {
    need!(Root, Subuid);
    let env = TestEnv::rootless()?;
    let context = env.context("covered", "FROM scratch\nCOPY Dockerfile /f\nRUN [\"/none\"]\n", &[])?;
    let context = context.to_str().unwrap_or_default();
    let run = env.run_with_masked_proc(["build", "--progress", "plain", context])?.exits(1);
    run.says(&["isolation: norun", "fresh /proc", "Dockerfile:3", "systempaths=unconfined"]);
    let named = [
        "build",
        "--progress",
        "plain",
        "--isolation",
        "rootless",
        "--no-cache",
        "--root",
        "covered",
        context,
    ];
    env.run_with_masked_proc(named)?.exits(1).says(&["mount /proc: Operation not permitted"]);
    // Files need no step.
    env.write("work/covered/Dockerfile", "FROM scratch\nCOPY Dockerfile /f\n")?;
    env.run_with_masked_proc(["build", "--progress", "plain", context])?.ok();
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn doctor_tries_every_rung_and_has_a_remedy_for_each_gap() -> Result<()> {
    need!(Root, Subuid);
    let env = TestEnv::without_sub_ids()?;
    let run = env.run(["doctor", "--format", "json"])?.ok();
    let document: Value = serde_json::from_str(&run.stdout)?;
    assert_eq!(document["isolation"], "single");
    let rungs = document["rungs"].as_array().context("a list of rungs")?;
    let names: Vec<_> = rungs.iter().filter_map(|rung| rung["name"].as_str()).collect();
    assert_eq!(names, ["root", "rootless", "single", "chroot", "norun"]);
    let works: Vec<_> = rungs.iter().filter_map(|rung| rung["works"].as_bool()).collect();
    assert_eq!(works, [false, false, true, false, true]);
    for rung in rungs.iter().filter(|rung| rung["works"] == false) {
        let parts = rung["parts"].as_array().context("parts")?;
        let gap = parts.iter().find(|part| part["ok"] == false).context("a gap")?;
        assert!(gap["remedy"].as_str().is_some_and(|text| !text.is_empty()), "{rung}");
    }
    let text = env.run(["doctor"])?.ok().stdout;
    assert!(text.contains("single  <- auto") && text.contains("remedy: "), "{text}");
    Ok(())
}
