//! Every miss says why, and says the truth: `fixtures/explain/<case>` is a context before and after one change, and
//! `expect` has what the build after it must say: each executed step and its sentence, nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rbuild_tests::binary::repository;
use rbuild_tests::{Run, TestEnv, need};

use crate::world;

/// Files get 0755 when git has them executable, 0644 otherwise, whatever the checkout's umask was.
fn install(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            install(&path, &target)?;
        } else if entry.file_type()?.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&path)?, &target)?;
        } else {
            fs::copy(&path, &target)?;
            let is_executable = fs::metadata(&path)?.permissions().mode() & 0o100 != 0;
            let mode = if is_executable { 0o755 } else { 0o644 };
            fs::set_permissions(&target, fs::Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}

/// `NAME\tSENTENCE` of every executed step.
pub(crate) fn misses(run: &Run) -> Vec<String> {
    let lines: Vec<(&str, &str)> =
        run.stderr.lines().filter_map(|line| line.strip_prefix('#')?.split_once(' ')).collect();
    let name = |number: &str| lines.iter().find(|(other, _)| *other == number).map_or("", |(_, name)| *name);
    let sentences =
        lines.iter().filter_map(|(number, text)| Some((*number, text.strip_prefix("not cached: ")?)));
    sentences.map(|(number, sentence)| format!("{}\t{}", name(number), without_digests(sentence))).collect()
}

/// Digests of images depend on the machine: `sha256:…` stands for each.
fn without_digests(text: &str) -> String {
    let mut parts = text.split("sha256:");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str("sha256:…");
        out.push_str(part.trim_start_matches(|c: char| c.is_ascii_hexdigit()));
    }
    out
}

/// Lines of an optional file of a case.
fn lines(case: &Path, file: &str) -> Vec<String> {
    let text = fs::read_to_string(case.join(file)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn build(env: &TestEnv, case: &Path, side: &str, context: &Path) -> Result<Run> {
    let base = case.join(format!("{side}.base"));
    if base.exists() {
        env.build(&base, &["-t", "base:10"])?.ok();
    }
    if context.exists() {
        fs::remove_dir_all(context)?;
    }
    install(&case.join(side), context)?;
    let args = lines(case, &format!("{side}.args"));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    env.build(context, &args)
}

fn cases() -> Result<Vec<PathBuf>> {
    let mut cases: Vec<PathBuf> = fs::read_dir(repository().join("fixtures/explain"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    cases.sort();
    Ok(cases)
}

#[test]
fn every_change_is_named_as_the_one_cause() -> Result<()> {
    need!(Root, Registry, Bases);
    let cases = cases()?;
    ensure!(cases.len() >= 15, "only {} cases", cases.len());
    let (_registry, env) = world()?;
    let mut wrong = Vec::new();
    for case in &cases {
        let name = case.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let context = env.work().join(&name);
        build(&env, case, "before", &context)?.ok();
        let run = build(&env, case, "after", &context)?.ok();
        let (said, expected) = (misses(&run), lines(case, "expect"));
        if said != expected {
            wrong.push(format!("{name}:\n  said     {said:#?}\n  expected {expected:#?}"));
        }
        let executed: BTreeSet<String> = run.executed().into_iter().collect();
        let explained: BTreeSet<String> =
            said.iter().filter_map(|line| Some(line.split_once('\t')?.0.to_owned())).collect();
        assert_eq!(executed, explained, "{name}: each executed step is explained, and no other\n{run}");
        for secret in lines(case, "secrets") {
            assert!(!run.stderr.contains(&secret), "{name}: `{secret}` is shown\n{run}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn a_first_build_says_so_and_an_evicted_step_says_when_it_went() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("evicted", "FROM busybox\nCOPY f /\nRUN cat /f\n", &[("f", "x")])?;
    let first = env.build(&context, &[])?.ok();
    let expected = ["[2/3] COPY f /\tfirst build of this step", "[3/3] RUN cat /f\tfirst build of this step"];
    assert_eq!(misses(&first), expected);
    env.run(["prune", "-f"])?.ok();
    let second = env.build(&context, &[])?.ok();
    let said = misses(&second);
    assert_eq!(said.len(), 2, "{second}");
    assert!(said.iter().all(|line| line.contains("\tevicted on 2")), "{said:?}");
    Ok(())
}

#[test]
fn a_step_that_failed_says_so_when_it_is_tried_again() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("failing", "FROM busybox\nRUN false\n", &[])?;
    let first = env.build(&context, &[])?.exits(1);
    assert_eq!(misses(&first), ["[2/2] RUN false\tfirst build of this step"]);
    let second = env.build(&context, &[])?.exits(1);
    assert_eq!(misses(&second), ["[2/2] RUN false\tit failed last time"]);
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn what_a_hit_went_back_to_is_the_last_build() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?;
    let context = env.context("back", "FROM scratch\nCOPY f1 f2 /\n", &[("f1", "1"), ("f2", "1")])?;
    let built = |file: &str, text: &str| {
        fs::write(context.join(file), text)?;
        anyhow::Ok(env.build(&context, &[])?.ok())
    };
    built("f1", "1")?;
    assert_eq!(misses(&built("f1", "2")?), ["[1/1] COPY f1 f2 /\t1 file changed: f1 (content)"]);
    built("f1", "1")?.assert_all_cached();
    assert_eq!(misses(&built("f2", "2")?), ["[1/1] COPY f1 f2 /\t1 file changed: f2 (content)"]);
    // The second's way back, with the first in between.
    built("f2", "1")?.assert_all_cached();
    built("f1", "2")?.assert_all_cached();
    assert_eq!(misses(&built("f2", "3")?), ["[1/1] COPY f1 f2 /\t1 file changed: f2 (content)"]);
    Ok(())
}

#[test]
fn a_dockerfile_is_the_same_whether_it_was_named_or_found() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?;
    let context = env.context("named", "FROM scratch\nCOPY f /\n", &[("f", "1")])?;
    let file = context.join("Dockerfile");
    let file = file.to_str().context("UTF-8")?;
    env.build(&context, &[])?.ok();
    for (text, args) in [("2", &["-f", file][..]), ("3", &[]), ("4", &["-f", "named/../named/Dockerfile"])] {
        fs::write(context.join("f"), text)?;
        let run = env.build(&context, args)?.ok();
        assert_eq!(misses(&run), ["[1/1] COPY f /\t1 file changed: f (content)"], "{args:?}");
    }
    Ok(())
}
