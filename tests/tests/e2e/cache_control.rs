//! What enters a key and what does not, early cutoff, and the flags that say what may come from the cache.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use rbuild_tests::{Registry, TestEnv, need};
use serde_json::Value;

use crate::{cases, world};

const COMPILED: &str = "\
FROM busybox AS build
COPY src /src
RUN grep -v '^#' /src > /app && touch /log
FROM busybox
COPY --from=build /app /app
RUN cat /app > /ran
";

#[test]
fn a_comment_in_a_source_changes_nothing_after_the_compilation_and_uploads_nothing() -> Result<()> {
    need!(Root, Registry, Bases);
    let (registry, env) = world()?;
    let context = env.context("cutoff", COMPILED, &[("src", "# one\ncode\n")])?;
    let name = format!("{}/cutoff/app:1", registry.host());
    let (_, first) = env.build_digest(&context, &["-t", &name, "--push"])?;
    fs::write(context.join("src"), "# another comment\ncode\n")?;
    let (run, second) = env.build_digest(&context, &["-t", &name, "--push"])?;
    let compiled = ["[build 2/3] COPY src /src", "[build 3/3] RUN grep -v '^#' /src > /app && touch /log"];
    assert_eq!(run.executed(), compiled, "{run}");
    assert_eq!(first, second, "{run}");
    let uploads: Vec<&str> =
        run.stderr.lines().filter(|line| line.contains("sha256:") && line.contains(" / ")).collect();
    assert_eq!(uploads, [""; 0], "{run}");
    Ok(())
}

#[test]
fn copy_from_a_stage_depends_on_what_it_copies_only() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let text = |other: &str| {
        format!(
            "FROM busybox AS build\nRUN mkdir /out && echo same > /out/app && echo {other} > /other\n\
             FROM busybox\nCOPY --from=build /out/app /app\nRUN cat /app\n"
        )
    };
    let context = env.context("precise", &text("1"), &[])?;
    env.build(&context, &[])?.ok();
    fs::write(context.join("Dockerfile"), text("2"))?;
    let run = env.build(&context, &[])?.ok();
    assert_eq!(run.executed().len(), 1, "{run}");
    Ok(())
}

#[test]
fn a_linked_copy_survives_another_base() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let base = env.context("base", "FROM busybox\nRUN echo 1 > /base\n", &[])?;
    env.build(&base, &["-t", "me/base:1"])?.ok();
    let context = env.context("linked", "FROM me/base:1\nCOPY --link f /deep/f\n", &[("f", "f\n")])?;
    env.build(&context, &[])?.ok();
    fs::write(base.join("Dockerfile"), "FROM busybox\nRUN echo 2 > /base\n")?;
    env.build(&base, &["-t", "me/base:1"])?.ok();
    env.build(&context, &[])?.ok().assert_all_cached();
    Ok(())
}

/// Golden case 153: what counts in the key of a COPY.
#[test]
fn a_copy_s_key_has_names_modes_and_contents_and_nothing_else() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let files = [("one/f", "f\n"), ("one/sub/g", "g\n"), ("other/same", "x")];
    let dockerfile = |source: &str, label: &str| {
        format!("FROM busybox\nARG UNUSED\n# {label}\nLABEL a={label}\nCOPY {source} /x/\n")
    };
    let context = env.context("keys", &dockerfile("one", "1"), &files)?;
    let write = |source: &str, label: &str| fs::write(context.join("Dockerfile"), dockerfile(source, label));
    env.build(&context, &[])?.ok();

    // A label, a comment, an argument that nobody declares before it, and the host's owner.
    write("one", "2")?;
    chown(context.join("one/f"), Some(1234), Some(1234))?;
    env.build(&context, &["--build-arg", "UNDECLARED=2"])?.ok().assert_all_cached();
    // A directory under another name has the same contents.
    fs::rename(context.join("one"), context.join("two"))?;
    write("two", "2")?;
    env.build(&context, &[])?.ok().assert_all_cached();
    // A file keeps its name wherever it lies, and another name is another file.
    write("two/f", "2")?;
    assert_eq!(env.build(&context, &[])?.ok().executed().len(), 1);
    fs::create_dir(context.join("three"))?;
    fs::copy(context.join("two/f"), context.join("three/f"))?;
    write("three/f", "2")?;
    env.build(&context, &[])?.ok().assert_all_cached();
    fs::rename(context.join("three/f"), context.join("three/h"))?;
    write("three/h", "2")?;
    assert_eq!(env.build(&context, &[])?.ok().executed().len(), 1);
    // The mode counts.
    fs::set_permissions(context.join("three/h"), fs::Permissions::from_mode(0o600))?;
    assert_eq!(env.build(&context, &[])?.ok().executed().len(), 1);
    Ok(())
}

#[test]
fn chmod_frees_the_mode_of_what_is_copied() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let text = "FROM busybox\nCOPY --chmod=0750 f dir /x/\nCOPY --chmod=u+x f /y\n";
    let context = env.context("chmod", text, &[("f", "f\n"), ("dir/sub/g", "g\n")])?;
    let set = |path: &str, mode| fs::set_permissions(context.join(path), fs::Permissions::from_mode(mode));
    set("f", 0o644)?;
    set("dir/sub/g", 0o644)?;
    env.build(&context, &[])?.ok();
    set("dir/sub/g", 0o600)?;
    set("dir/sub", 0o700)?;
    env.build(&context, &[])?.ok().assert_all_cached();
    // A mode made from the mode that is there depends on it.
    set("f", 0o666)?;
    let run = env.build(&context, &[])?.ok();
    assert_eq!(run.executed(), ["[3/3] COPY --chmod=u+x f /y"], "{run}");
    Ok(())
}

/// Times are in no tree: a step that sets or brings them does what it is there for all the same, whatever else left the same tree.
#[test]
fn a_step_that_only_changes_times_keeps_its_layer() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("times", "", &[("f", "hi\n")])?;
    fs::File::options()
        .write(true)
        .open(context.join("f"))?
        .set_modified(UNIX_EPOCH + Duration::from_secs(900_000_000))?;
    let time_after = |steps: &str| -> Result<String> {
        let text = format!(
            "FROM busybox AS made\nRUN echo hi > /f\n{steps}FROM busybox\nRUN --mount=from=made,target=/made stat -c 'time %Y' /made/f\n"
        );
        fs::write(context.join("Dockerfile"), text)?;
        let run = env.build(&context, &["--no-cache-filter=stage-1"])?.ok();
        let line =
            run.stderr.lines().find_map(|line| line.split_once(" time ").map(|(_, time)| time.to_owned()));
        line.with_context(|| format!("no time\n{run}"))
    };
    for (steps, time) in [
        ("RUN true\nRUN touch -d @1000000000 /f\n", "1000000000"),
        ("RUN touch -d @1100000000 /f\n", "1100000000"),
        ("RUN touch -d @1000000000 /f\n", "1000000000"),
        ("RUN true\nCOPY f /f\n", "900000000"),
    ] {
        assert_eq!(time_after(steps)?, time, "{steps}");
    }
    // One that is executed again, and sets none, is as it was.
    let text =
        "FROM busybox\nRUN --mount=target=/c cat /c/f > /dev/null && echo x > /made && touch -d @7 /old\n";
    fs::write(context.join("Dockerfile"), text)?;
    let (_, first) = env.build_digest(&context, &[])?;
    fs::write(context.join("f"), "ho\n")?;
    let (run, second) = env.build_digest(&context, &[])?;
    assert_eq!(run.executed().len(), 1, "{run}");
    assert_eq!(first, second);
    Ok(())
}

#[test]
fn no_cache_filter_finds_a_stage_that_says_what_another_says() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let text = "FROM busybox AS a\nRUN head -c 8 /dev/urandom > /r\nFROM busybox AS b\nRUN head -c 8 /dev/urandom > /r\n\
                FROM busybox\nCOPY --from=a /r /a\nCOPY --from=b /r /b\n";
    let context = env.context("alike", text, &[])?;
    let (_, first) = env.build_digest(&context, &[])?;
    let (run, second) = env.build_digest(&context, &["--no-cache-filter=b"])?;
    assert_ne!(first, second, "{run}");
    assert!(!run.stderr.contains("nothing that is built has"), "{run}");
    run.says(&["not cached: --no-cache-filter=b"]);
    Ok(())
}

#[test]
fn no_cache_filter_executes_the_steps_of_its_stages_again() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let text = "FROM busybox AS deps\nRUN head -c 8 /dev/urandom > /r\nFROM busybox AS tools\nRUN echo t > /t\n\
                FROM busybox\nCOPY --from=deps /r /r\nCOPY --from=tools /t /t\n";
    let context = env.context("filter", text, &[])?;
    let (_, first) = env.build_digest(&context, &[])?;
    env.build(&context, &[])?.ok().assert_all_cached();
    let (run, second) = env.build_digest(&context, &["--no-cache-filter", "DEPS,none"])?;
    assert_eq!(run.executed().len(), 3, "deps again, and what copies from it\n{run}");
    run.says(&["not cached: --no-cache-filter=deps", "--no-cache-filter=none: nothing that is built has"]);
    assert_ne!(first, second);
    let (run, third) = env.build_digest(&context, &[])?;
    run.assert_all_cached();
    assert_eq!(second, third);
    Ok(())
}

/// A world in which the base was resolved and its registry is gone.
fn abandoned() -> Result<TestEnv> {
    let registry = Registry::with_bases()?;
    let env = TestEnv::new()?.using(&registry)?;
    let context = env.context("before", "FROM busybox\nRUN echo before\n", &[])?;
    env.build(&context, &[])?.ok();
    Ok(env)
}

#[test]
fn pull_says_when_the_registry_is_asked() -> Result<()> {
    need!(Root, Registry, Bases);
    let env = abandoned()?;
    let context = env.context("after", "FROM busybox\nRUN echo after\n", &[])?;
    env.build(&context, &[])?.ok();
    env.build(&context, &["--pull=missing"])?.ok();
    env.build(&context, &["--pull=never"])?.ok();
    env.build(&context, &["--pull=false"])?.ok();
    let newer = env.build(&context, &["--pull=newer"])?.ok();
    newer
        .says(&["[Warning] the registry cannot be reached: busybox:latest is taken as it was resolved on 2"]);
    env.build(&context, &["--pull"])?.exits(1);
    env.build(&context, &["--pull=always"])?.exits(1);
    let unknown = env.context("unknown", "FROM nobody/has:this\n", &[])?;
    let never = env.build(&unknown, &["--pull=never"])?.exits(1);
    never.says(&["nobody/has:this is not in the store", "rbuild pull"]);
    Ok(())
}

#[test]
fn verify_cache_finds_the_step_that_gives_something_else_each_time() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let text = "FROM busybox\nCOPY f /f\nRUN cat /f > /g\nWORKDIR /w\n";
    let context = env.context("verify", text, &[("f", "f\n")])?;
    let (_, first) = env.build_digest(&context, &[])?;
    let (run, second) = env.build_digest(&context, &["--verify-cache"])?;
    run.says(&["verified: the same as the cached result", "Verified 3 cached results"]);
    assert_eq!(first, second);
    fs::write(context.join("Dockerfile"), format!("{text}RUN head -c 8 /dev/urandom > /random\n"))?;
    env.build(&context, &[])?.ok();
    let run = env.build(&context, &["--verify-cache"])?.exits(1);
    let run = run.says(&[
        "NOT the same as the cached result: 1 file changed: random (content)",
        "1 of 4 cached results differ",
    ]);
    assert_eq!(run.stderr.matches("verified: the same").count(), 3, "{run}");
    env.build(&context, &[])?.ok().assert_all_cached();
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn a_cache_that_is_not_verified_names_writes_and_pushes_nothing() -> Result<()> {
    need!(Root, Registry, Bases);
    let (registry, env) = world()?;
    let text = "FROM busybox\nRUN head -c 8 /dev/urandom > /random\n";
    let context = env.context("differs", text, &[])?;
    env.build(&context, &[])?.ok();
    let name = format!("{}/differs/app:1", registry.host());
    let [iid, archive] = ["iid", "app.tar"].map(|name| env.work().join(name));
    let archive_output = format!("type=oci,dest={}", archive.display());
    let image_output = format!("type=image,name={name},push=true");
    let args = ["--verify-cache", "--iidfile", iid.to_str().context("UTF-8")?, "-o", &image_output];
    let args = [args.as_slice(), &["-o", &archive_output]].concat();
    let run = env.build(&context, &args)?.exits(1).says(&["1 of 1 cached results differ"]);
    assert!(!run.stderr.contains("naming to"), "{run}");
    assert!(!run.stderr.contains("Built "), "{run}");
    env.run(["inspect", &name])?.exits(1);
    let puts = registry.requests().into_iter().filter(|line| line.contains("PUT /v2/differs/app/manifests"));
    assert_eq!(puts.collect::<Vec<_>>(), [""; 0], "{run}");
    let left: Vec<_> = [iid, archive].into_iter().filter(|path| path.exists()).collect();
    assert!(left.is_empty(), "{left:?}");
    env.assert_nothing_left();
    Ok(())
}

/// The tool on ourselves: a key that leaves something out would show as a hit that gives something else.
#[test]
fn every_hit_in_the_corpus_is_what_its_step_gives_again() -> Result<()> {
    need!(Root, Registry, Bases);
    let registry = Registry::shared()?;
    let env = TestEnv::new()?.using(&registry)?;
    let found = cases::each("corpus", &env, 4, |case| {
        if cases::build(case, &env, &[])?.code != Some(0) {
            return Ok(0);
        }
        let again = cases::build(case, &env, &["--verify-cache"])?.ok();
        Ok(again.stderr.matches("verified: the same as the cached result").count())
    })?;
    let verified: usize = found.values().sum();
    ensure!(verified >= 200, "{verified} results were verified: {found:?}");
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn explanations_are_there_afterwards_and_for_machines() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let nothing = env.run(["explain"])?.ok();
    assert!(nothing.stdout.contains("no build that executed a step"), "{nothing}");
    let context = env.context("later", "FROM busybox\nCOPY f /f\nRUN cat /f\n", &[("f", "1\n")])?;
    env.build(&context, &[])?.ok();
    fs::write(context.join("f"), "2\n")?;
    let path = context.to_str().context("UTF-8")?;
    let run = env.run(["build", "--explain=json", "--progress=plain", path])?.ok();
    let document: Value = serde_json::from_str(&run.stdout)?;
    assert_eq!(document["steps"][0]["sentence"], "1 file changed: f (content)", "{run}");
    assert_eq!(document["steps"][0]["causes"][0]["files"][0]["path"], "f", "{run}");
    env.build(&context, &[])?.ok().assert_all_cached();

    let last = env.run(["explain"])?.ok();
    assert!(last.stdout.contains("[2/3] COPY f /f") && last.stdout.contains("1 file changed: f"), "{last}");
    assert!(!last.stdout.contains("first build"), "{last}");
    let id = last.stdout.lines().next().unwrap_or_default().replace(',', " ");
    let id = id.split(' ').nth(1).context("an id")?;
    // The first line says how long ago, which has moved.
    let steps = |text: &str| text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(steps(&env.run(["explain", &id[..8]])?.ok().stdout), steps(&last.stdout));
    let step = env.run(["explain", "2/3"])?.ok();
    assert!(step.stdout.contains("first build") && step.stdout.contains("1 file changed"), "{step}");
    let json = env.run(["explain", "RUN cat", "--format=json"])?.ok();
    let document: Value = serde_json::from_str(&json.stdout)?;
    assert_eq!(document["executions"].as_array().map(Vec::len), Some(2), "{json}");
    env.run(["explain", "RUN nothing"])?.exits(1).says(&["no build and no step `RUN nothing`"]);

    fs::write(context.join("f"), "3\n")?;
    let run = env.build(&context, &["--explain"])?.ok();
    run.says(&["not cached: 1 file changed: f (content)", "  f (content)"]);
    Ok(())
}

#[test]
fn who_waits_says_for_whom_and_goes_on_when_the_holder_dies() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    // The base is here already: nobody waits for its layers.
    env.build(&env.context("warm", "FROM busybox\nRUN true\n", &[])?, &[])?.ok();
    let context = env.context("wait", "FROM busybox\nRUN sleep 3 && echo done > /done\n", &[])?;
    let path = context.to_str().context("UTF-8")?;
    let begin = |tag: &str| env.start(env.command(["build", "--progress=plain", "-t", tag, path]));
    // One that ends: the second waits, then hits.
    let first = begin("me/first")?;
    env.await_step()?;
    let waits = format!("waiting for pid {}, which has been at this step for ", first.pid());
    let second = begin("me/second")?;
    first.finish()?.ok();
    let second = second.finish()?.ok().says(&[&waits, "s: build of me/first:latest"]);
    second.assert_all_cached();
    // One that is killed: the second executes the step itself.
    fs::write(context.join("Dockerfile"), "FROM busybox\nRUN sleep 3 && echo again > /done\n")?;
    let third = begin("me/third")?;
    env.await_step()?;
    let fourth = begin("me/fourth")?;
    let killed = Command::new("kill").args(["-9", &third.pid().to_string()]).status()?;
    assert!(killed.success());
    third.finish()?;
    let fourth = fourth.finish()?.ok();
    assert_eq!(fourth.executed().len(), 1, "{fourth}");
    // What the killed one had begun goes with the next process that starts.
    env.build(&context, &[])?.ok().assert_all_cached();
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn an_inline_cache_is_not_made_in_silence() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?;
    let context = env.context("inline", "FROM scratch\nLABEL a=b\n", &[])?;
    let says = "BUILDKIT_INLINE_CACHE: no cache is put into images yet";
    env.build(&context, &["--build-arg", "BUILDKIT_INLINE_CACHE=1"])?.ok().says(&[says]);
    assert!(!env.build(&context, &["--build-arg", "BUILDKIT_INLINE_CACHE=0"])?.ok().stderr.contains(says));
    Ok(())
}
