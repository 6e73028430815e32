//! The Dockerfile language where files and configuration matter: every folder of `fixtures/build` is a case whose
//! `expected.snap` says what its image is. `fixtures/GOLDEN.md` says which case of the reference is where.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use rbuild_tests::archive::{Entry, Image};
use rbuild_tests::binary::repository;
use rbuild_tests::{Registry, TestEnv, need};
use serde_json::Value;

use crate::cases::{self, CONTEXT_TIME, Case};

fn saved(env: &TestEnv, name: &str) -> Result<Image> {
    let file = env.work().join(format!("{name}.tar"));
    env.run(["save", "--output", file.to_str().context("UTF-8")?, name])?.ok();
    Image::read(&file)
}

fn layers(image: &Image) -> &[Value] {
    image.config["rootfs"]["diff_ids"].as_array().map_or(&[], Vec::as_slice)
}

fn history(image: &Image) -> &[Value] {
    image.config["history"].as_array().map_or(&[], Vec::as_slice)
}

/// What the Dockerfile says of the image: configuration, history and files, without those of its base.
fn describe(image: &Image, base: &Image) -> Result<String> {
    let empty = BTreeMap::new();
    let is_on_base = layers(image).starts_with(layers(base)) && !layers(base).is_empty();
    let (hidden, first) = if is_on_base { (&base.files, history(base).len()) } else { (&empty, 0) };
    let mut text = String::new();
    for (name, value) in image.config["config"].as_object().context("a configuration")? {
        writeln!(text, "{name} {value}")?;
    }
    for step in &history(image)[first..] {
        let layer = if step["empty_layer"] == true { ' ' } else { '+' };
        writeln!(text, "{layer} {}", step["created_by"].as_str().context("a history entry")?.trim_end())?;
    }
    let linked = image.linked();
    let same = |path: &str, entry: &Entry| {
        hidden
            .get(path)
            .is_some_and(|below| below.to_string() == entry.to_string() && below.mtime == entry.mtime)
    };
    for (path, entry) in image.files.iter().filter(|(path, entry)| !same(path, entry)) {
        let dated = if entry.mtime == CONTEXT_TIME { " (dated)" } else { "" };
        write!(text, "/{path} {}{dated}", entry.to_string().trim_end())?;
        if let Some(group) = linked.get(path.as_str()) {
            write!(text, " is {}", group.join(" "))?;
        }
        text.push('\n');
    }
    for path in hidden.keys().filter(|path| !image.files.contains_key(*path)) {
        writeln!(text, "/{path} is gone")?;
    }
    Ok(text)
}

#[test]
fn every_build_fixture_gives_its_image() -> Result<()> {
    need!(Root, Registry, Bases);
    let registry = Registry::shared()?;
    let env = TestEnv::new()?.using(&registry)?;
    env.run(["pull", "busybox"])?.ok();
    let base = saved(&env, "busybox")?;
    let check = |case: &Case| -> Result<(PathBuf, String)> {
        cases::build(case, &env, &["--tag", &case.name])?.ok();
        Ok((case.folder.clone(), describe(&saved(&env, &case.name)?, &base)?))
    };
    let found = cases::each("build", &env, 3, check)?;
    ensure!(found.len() >= 30, "{} cases: some are missing", found.len());
    for (folder, text) in found.values() {
        cases::snapshot(folder, text);
    }
    env.assert_nothing_left();
    Ok(())
}

/// Names of all functions in the repository's sources.
fn functions() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let crates = ["frontend", "cache", "builder", "registry-client", "tests"];
    let mut open: Vec<PathBuf> = crates.iter().map(|name| repository().join(name)).collect();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            for entry in fs::read_dir(&path)? {
                open.push(entry?.path());
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path)?;
            let heads = text.lines().filter_map(|line| line.trim_start().strip_prefix("fn "));
            found.extend(heads.filter_map(|head| Some(head.split_once('(')?.0.to_owned())));
        }
    }
    Ok(found)
}

#[test]
fn every_case_of_the_reference_has_a_test() -> Result<()> {
    let functions = functions()?;
    let table = fs::read_to_string(repository().join("fixtures/GOLDEN.md"))?;
    let mut seen = Vec::new();
    for row in table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| case")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [numbers, _, places] = cells.as_slice() else { bail!("a row of three cells: {row}") };
        let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
        seen.extend(first.parse::<u32>()?..=last.parse()?);
        ensure!(!places.is_empty(), "{row}");
        for place in places.split('`').skip(1).step_by(2) {
            let exists = match place.contains('/') {
                true => repository().join("fixtures").join(place).join("context/Dockerfile").is_file(),
                false => functions.contains(place),
            };
            ensure!(exists, "`{place}` is not there: {row}");
        }
    }
    ensure!(seen == (1..=158).collect::<Vec<_>>(), "numbers are missing or out of order: {seen:?}");
    Ok(())
}
