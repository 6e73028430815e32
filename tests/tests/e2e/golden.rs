//! The Dockerfile language where files and configuration matter: every folder of `fixtures/build` is a case whose
//! `expected.snap` says what its image is. `fixtures/GOLDEN.md` says which case of the reference is where.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use rbuild_tests::archive::{Entry, Image};
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
