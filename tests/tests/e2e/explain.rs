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

/// What a Dockerfile and its context are before and after a change, and each executed step of the build after it with its
/// sentence. Files that end with ` -> …` are links.
struct Edit {
    name: &'static str,
    before: (&'static str, &'static [(&'static str, &'static str)]),
    after: (&'static str, &'static [(&'static str, &'static str)]),
    says: &'static [&'static str],
}

const EDITS: &[Edit] = &[
    Edit {
        name: "swapped",
        before: ("FROM busybox\nRUN echo 1 >/1\nRUN echo 2 >/2\n", &[]),
        after: ("FROM busybox\nRUN echo 2 >/2\nRUN echo 1 >/1\n", &[]),
        says: &[
            "[2/3] RUN echo 2 >/2\tfollows `FROM busybox:latest` in place of `[2/3] RUN echo 1 >/1`",
            "[3/3] RUN echo 1 >/1\tfollows `[2/3] RUN echo 2 >/2` in place of `FROM busybox:latest`",
        ],
    },
    Edit {
        name: "left-out",
        before: ("FROM busybox\nRUN echo 1\nRUN echo 2 >/2\nRUN echo 3\nRUN echo 4\n", &[]),
        after: ("FROM busybox\nRUN echo 1\nRUN echo 3\nRUN echo 4\n", &[]),
        says: &[
            "[3/4] RUN echo 3\tfollows `[2/4] RUN echo 1` in place of `[3/5] RUN echo 2 >/2`",
            "[4/4] RUN echo 4\t`[3/4] RUN echo 3` above follows `[2/4] RUN echo 1` in place of `[3/5] RUN echo 2 >/2`",
        ],
    },
    Edit {
        name: "repeated",
        before: ("FROM busybox\nRUN echo >>/x\nRUN echo >>/x\n", &[]),
        after: ("FROM busybox\nRUN echo >>/x\nRUN echo >>/x\nRUN echo >>/x\n", &[]),
        says: &["[4/4] RUN echo >>/x\tfirst build of this step"],
    },
    Edit {
        name: "below-a-linked-copy",
        before: ("FROM busybox\nCOPY a /a\nCOPY --link b /b\nRUN echo\n", &[("a", "1"), ("b", "1")]),
        after: ("FROM busybox\nCOPY a /a\nCOPY --link b /b\nRUN echo\n", &[("a", "2")]),
        says: &[
            "[2/4] COPY a /a\t1 file changed: a (content)",
            "[4/4] RUN echo\t`[2/4] COPY a /a` above changed",
        ],
    },
    Edit {
        name: "link",
        before: ("FROM scratch\nCOPY l /o\n", &[("d1/f", "1"), ("d2/f", "2"), ("l -> d1", "")]),
        after: ("FROM scratch\nCOPY l /o\n", &[("l -> d2", "")]),
        says: &["[1/1] COPY l /o\tlink l \"d1\" -> \"d2\""],
    },
    Edit {
        name: "link-on-the-way",
        before: ("FROM scratch\nCOPY l/f /o\n", &[("d1/f", "1"), ("d2/f", "2"), ("l -> d1", "")]),
        after: ("FROM scratch\nCOPY l/f /o\n", &[("l -> d2", "")]),
        says: &["[1/1] COPY l/f /o\tlink l/f \"d1/f\" -> \"d2/f\""],
    },
    Edit {
        name: "link-in-a-stage",
        before: (
            "FROM scratch AS p\nCOPY . /\nFROM scratch\nCOPY --from=p l* /\n",
            &[("d1/f", "1"), ("d2/g", "2"), ("l -> d1", "")],
        ),
        after: ("FROM scratch AS p\nCOPY . /\nFROM scratch\nCOPY --from=p l* /\n", &[("l -> d2", "")]),
        says: &[
            "[p 1/1] COPY . /\t1 file changed: l (target d1 -> d2)",
            "[stage-1 1/1] COPY --from=p l* /\tlink l \"d1\" -> \"d2\"",
        ],
    },
    Edit {
        name: "unpack",
        before: ("FROM scratch\nADD a /o\n", &[("a", "1")]),
        after: ("FROM scratch\nADD --unpack=false a /o\n", &[]),
        says: &["[1/1] ADD --unpack=false a /o\tinstruction \"ADD\" -> \"ADD --unpack=false\""],
    },
    Edit {
        name: "parents",
        before: ("FROM scratch\nCOPY --parents d1/f /o/\n", &[("d1/f", "1"), ("d1/g", "1")]),
        after: ("FROM scratch\nCOPY --parents d1/g /o/\n", &[]),
        says: &["[1/1] COPY --parents d1/g /o/\tsources \"d1/f\" -> \"d1/g\""],
    },
    Edit {
        name: "other-stage",
        before: (
            "FROM scratch AS p\nCOPY a /1\nFROM scratch AS q\nCOPY b /1\nFROM scratch\nCOPY --from=p /1 /1\nCOPY --from=q /1 /2\n",
            &[("a", "1"), ("b", "2")],
        ),
        after: (
            "FROM scratch AS p\nCOPY a /1\nFROM scratch AS q\nCOPY b /1\nFROM scratch\nCOPY --from=q /1 /1\nCOPY --from=q /1 /2\n",
            &[],
        ),
        says: &[
            "[stage-2 1/2] COPY --from=q /1 /1\t--from \"stage p\" -> \"stage q\"",
            "[stage-2 2/2] COPY --from=q /1 /2\t`[stage-2 1/2] COPY --from=q /1 /1` above changed",
        ],
    },
    Edit {
        name: "stage-renamed",
        before: ("FROM scratch AS p\nCOPY a /o\n", &[("a", "1")]),
        after: ("FROM scratch AS tools\nCOPY a /o\nFROM scratch AS q\nCOPY a /o\n", &[("a", "2")]),
        says: &["[q 1/1] COPY a /o\t1 file changed: a (content)"],
    },
    Edit {
        name: "mounted",
        before: (
            "FROM busybox\nRUN --mount=target=/m,source=src cat /m/a\n",
            &[("src/a", "1"), ("src/b", "1")],
        ),
        after: ("FROM busybox\nRUN --mount=target=/m,source=src cat /m/a\n", &[("src/a", "2")]),
        says: &["[2/2] RUN --mount=target=/m,source=src cat /m/a\t1 file changed: src/a (content)"],
    },
    Edit {
        name: "mounted-stage",
        before: (
            "FROM scratch AS p\nCOPY a /d/a\nFROM busybox\nRUN --mount=from=p,target=/m ls /m\n",
            &[("a", "1")],
        ),
        after: (
            "FROM scratch AS p\nCOPY a /d/a\nFROM busybox\nRUN --mount=from=p,target=/m ls /m\n",
            &[("a", "2")],
        ),
        says: &[
            "[p 1/1] COPY a /d/a\t1 file changed: a (content)",
            "[stage-1 2/2] RUN --mount=from=p,target=/m ls /m\t1 file changed in stage p: d/a (content)",
        ],
    },
    Edit {
        name: "words",
        before: ("FROM busybox\nRUN [\"echo\", \"a b\"]\n", &[]),
        after: ("FROM busybox\nRUN [\"echo\", \"a\", \"b\"]\n", &[]),
        says: &["[2/2] RUN [\"echo\", \"a\", \"b\"]\tcommand changed"],
    },
    Edit {
        name: "order",
        before: ("FROM busybox\nENV A=1 B=2\nRUN echo\n", &[]),
        after: ("FROM busybox\nENV B=2 A=1\nRUN echo\n", &[]),
        says: &["[2/2] RUN echo\tENV and ARG are in another order"],
    },
    Edit {
        name: "credentials",
        before: (
            "FROM busybox\nARG DB=pg://me:hunter2@db/x\nARG HTTP_PROXY=http://me:hunter2@x\nRUN echo\n",
            &[],
        ),
        after: (
            "FROM busybox\nARG DB=pg://me:hunter3@db/x\nARG HTTP_PROXY=http://me:hunter2@x\nRUN echo\n",
            &[],
        ),
        says: &["[2/2] RUN echo\tARG DB changed"],
    },
];

#[test]
fn what_is_said_of_an_edit_is_true() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let mut wrong = Vec::new();
    for edit in EDITS {
        let context = env.context(edit.name, edit.before.0, &[])?;
        let write = |files: &[(&str, &str)]| {
            for (path, text) in files {
                if let Some((path, target)) = path.split_once(" -> ") {
                    let _ = fs::remove_file(context.join(path));
                    std::os::unix::fs::symlink(target, context.join(path))?;
                    continue;
                }
                fs::create_dir_all(context.join(path).parent().context("a directory")?)?;
                fs::write(context.join(path), text)?;
            }
            anyhow::Ok(())
        };
        write(edit.before.1)?;
        env.build(&context, &[])?.ok();
        fs::write(context.join("Dockerfile"), edit.after.0)?;
        write(edit.after.1)?;
        let run = env.build(&context, &["--explain"])?.ok();
        let said = misses(&run);
        if said != edit.says {
            wrong.push(format!("{}:\n  said     {said:#?}\n  expected {:#?}", edit.name, edit.says));
        }
        assert!(!run.stderr.contains("hunter"), "{run}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn a_step_that_was_never_reached_is_not_said_to_be_cached() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("unreached", "FROM busybox\nRUN echo 1\nRUN false\nRUN echo 2\n", &[])?;
    env.build(&context, &[])?.exits(1);
    let run = env.build(&context, &["--explain=json"])?.exits(1);
    let document: serde_json::Value = serde_json::from_str(&run.stdout)?;
    let steps = document["steps"].as_array().context("steps")?;
    let decisions: Vec<&str> = steps.iter().filter_map(|step| step["decision"].as_str()).collect();
    assert_eq!(decisions, ["cached", "executed", "not reached"], "{run}");
    Ok(())
}
