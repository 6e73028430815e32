//! What Docker's BuildKit makes of a Dockerfile and what we make of it, side by side.
//!
//! Every folder of `fixtures/corpus` is a case. Both builders get the same copy. Configurations and merged files are
//! compared; what may differ stands with its reason in `fixtures/corpus/differences`, and a line there that no longer
//! applies is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use rbuild_tests::archive::{Entry, Image};
use rbuild_tests::docker::Docker;
use rbuild_tests::{Registry, TestEnv, differences, need};
use serde_json::Value;

use crate::cases::{self, CONTEXT_TIME, Case};

const BUILDS_AT_ONCE: usize = 4;

/// One line per difference: `where: docker has this | rbuild has that`.
fn compare(docker: &Image, ours: &Image) -> Vec<String> {
    let mut found = Vec::new();
    let (mut theirs, mut mine) = (BTreeMap::new(), BTreeMap::new());
    flatten("", &docker.config, &mut theirs);
    flatten("", &ours.config, &mut mine);
    differ("config", &theirs, &mine, &mut found);
    differ("file", &lines_of(docker), &lines_of(ours), &mut found);
    differ("mtime", &times_of(docker), &times_of(ours), &mut found);
    found
}

/// Leaves of a document by path; null, empty and false are as good as absent, times and digests are not compared.
fn flatten(path: &str, value: &Value, out: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                if !matches!(name.as_str(), "created" | "diff_ids") {
                    flatten(&format!("{path}/{name}"), value, out);
                }
            }
            // `{}` as the value of a port or a volume.
            if map.is_empty() && path.matches('/').count() > 2 {
                out.insert(path.to_owned(), "{}".to_owned());
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                flatten(&format!("{path}/{index}"), value, out);
            }
        }
        Value::Null | Value::Bool(false) => {}
        Value::String(text) if text.is_empty() && !path.contains("/Cmd/") => {}
        other => drop(out.insert(path.to_owned(), other.to_string())),
    }
}

fn lines_of(image: &Image) -> BTreeMap<String, String> {
    let linked = image.linked();
    let line = |(path, entry): (&String, &Entry)| {
        let mut text = entry.to_string();
        if let Some(group) = linked.get(path.as_str()) {
            write!(text, " one file: {}", group.join(" ")).expect("writes");
        }
        (path.clone(), text)
    };
    image.files.iter().map(line).collect()
}

/// The times that are not those of the build.
fn times_of(image: &Image) -> BTreeMap<String, String> {
    let defined = image.files.iter().filter(|(_, entry)| entry.mtime <= CONTEXT_TIME);
    let slash = |entry: &Entry| if entry.is_dir() { "/" } else { "" };
    defined.map(|(path, entry)| (format!("{path}{}", slash(entry)), entry.mtime.to_string())).collect()
}

fn differ(
    what: &str,
    theirs: &BTreeMap<String, String>,
    mine: &BTreeMap<String, String>,
    found: &mut Vec<String>,
) {
    for path in theirs.keys().chain(mine.keys()).collect::<BTreeSet<_>>() {
        let (their, my) = (theirs.get(path), mine.get(path));
        if their != my {
            let shown = |value: Option<&String>| value.map_or("(none)", |value| value).to_owned();
            found.push(format!("{what} {path}: {} | {}", shown(their), shown(my)));
        }
    }
}

/// Builds a case with both; a failure of either is a difference like any other.
fn check(case: &Case, env: &TestEnv, docker: &Docker) -> Result<Vec<String>> {
    let (theirs, mine) =
        (env.dir().join(format!("{}.docker", case.name)), env.dir().join(format!("{}.rbuild", case.name)));
    let built = cases::build(case, env, &["--network=host", "--tag", &case.name])?;
    let oracle = docker.build(&case.context, &case.name, &case.args, &theirs);
    match (built.code, oracle) {
        (Some(0), Ok(())) => {}
        (Some(0), Err(error)) => return Ok(vec![format!("build: {error:#} | it is built")]),
        (_, Ok(())) => return Ok(vec![format!("build: it is built | {built}")]),
        (_, Err(error)) => return Ok(vec![format!("build: {error:#} | {built}")]),
    }
    env.run(["save", "--output", mine.to_str().context("UTF-8")?, &case.name])?.ok();
    let found = compare(&Image::read(&theirs)?, &Image::read(&mine)?);
    fs::remove_file(theirs)?;
    fs::remove_file(mine)?;
    Ok(found)
}

#[test]
fn the_corpus_is_built_as_docker_builds_it() -> Result<()> {
    need!(Root, Registry, Bases, Docker);
    let registry = Registry::shared()?;
    let env = TestEnv::new()?.using(&registry)?;
    let docker = Docker::start(&registry)?;
    let found = cases::each("corpus", &env, BUILDS_AT_ONCE, |case| check(case, &env, &docker))?;
    ensure!(found.len() >= 60, "{} cases: some are missing", found.len());
    let each = found.iter().flat_map(|(case, list)| list.iter().map(|found| (case.as_str(), found.as_str())));
    differences::check("corpus/differences", each)?;
    env.assert_nothing_left();
    Ok(())
}
