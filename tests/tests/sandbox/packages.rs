//! Real package managers inside RUN, on every rung where they can work: `fixtures/packages`.
//!
//! The packages are fetched once, by a build; what is compared is installed from files. A short list of them, unless
//! `RBUILD_TEST_PACKAGES=all`.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rbuild_tests::{Registry, TestEnv, judge, need};

use crate::rungs::Place;

const SHORT: &str = "bc cron less libcap2-bin make openssh-client patch sudo tree";
const ALL: &str = "bc bzip2 cron file less libcap2-bin make netbase openssh-client patch python3-pip python3-setuptools \
    python3-wheel sudo tree";
/// With what they depend on.
const ALL_COUNT: usize = 20;

/// Where an image may differ from rung `root`'s: the table in the documentation.
const DIFFERENCES: &str = include_str!("../../../builder/sandbox/PACKAGES.md");

/// Paths that may differ on a rung.
fn known(rung: &str) -> HashSet<&'static str> {
    let row = |line: &'static str| {
        let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
        (cells.next()? == rung).then_some(())?;
        cells.next()
    };
    DIFFERENCES.lines().filter_map(row).collect()
}

/// Has a build download the packages; the directory they are in.
fn packages(registry: &Registry, into: &Path) -> Result<PathBuf> {
    let is_all = std::env::var("RBUILD_TEST_PACKAGES").is_ok_and(|wanted| wanted == "all");
    let env = Place::Root.env()?.using(registry)?;
    let context = env.fixture("packages")?;
    let file = context.join("Dockerfile.debs");
    let out = env.work().join("debs");
    let wanted = format!("PACKAGES={}", if is_all { ALL } else { SHORT });
    let args =
        ["-f", file.to_str().context("UTF-8")?, "-o", out.to_str().context("UTF-8")?, "--build-arg", &wanted];
    env.build(&context, &args)?.ok();
    copy(&out, into)?;
    let count = fs::read_dir(into)?.count();
    ensure!(count >= if is_all { ALL_COUNT } else { SHORT.split(' ').count() }, "only {count} packages");
    Ok(into.to_owned())
}

fn copy(from: &Path, into: &Path) -> Result<()> {
    fs::create_dir(into)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        fs::copy(&path, into.join(path.file_name().context("a name")?))?;
    }
    Ok(())
}

/// Builds the fixture; the image's digest and files.
fn build(env: &TestEnv, place: Place, debs: &Path) -> Result<(String, Vec<String>)> {
    let context = env.fixture("packages")?;
    copy(debs, &context.join("debs"))?;
    let archive = env.work().join("packages.tar");
    let output = format!("type=oci,dest={},compression=uncompressed", archive.display());
    let (run, digest) = env.build_id(&context, &["-o", &output])?;
    run.says(&[&format!("isolation: {}", place.rung())]);
    let files = judge::unpack(&format!("oci-archive:{}", archive.display()))?.listing()?;
    env.assert_nothing_left();
    Ok((digest, files))
}

#[test]
fn packages_install_alike_on_every_rung() -> Result<()> {
    need!(Root, Registry, Bases, Judges, Subuid);
    let registry = Registry::shared()?;
    let dir = tempfile::tempdir()?;
    let debs = packages(&registry, &dir.path().join("debs"))?;
    let mut of_root: Option<(String, Vec<String>)> = None;
    let mut unknown = Vec::new();
    for place in [Place::Root, Place::Rootless, Place::Single, Place::Chroot] {
        let env = place.env()?.using(&registry)?.with_variable("SOURCE_DATE_EPOCH", "1700000000");
        let (digest, files) = build(&env, place, &debs)?;
        let Some((root_digest, root_files)) = &of_root else {
            of_root = Some((digest, files));
            continue;
        };
        let known = known(place.rung());
        let only = |mark: &str, these: &[String], others: &[String]| {
            let others: HashSet<&String> = others.iter().collect();
            let is_news = |line: &&String| {
                !others.contains(line) && !known.contains(line.split(' ').next().unwrap_or_default())
            };
            these
                .iter()
                .filter(is_news)
                .map(|line| format!("{}: {mark}{line}\n", place.name()))
                .collect::<Vec<_>>()
        };
        unknown.extend(only("+", &files, root_files));
        unknown.extend(only("-", root_files, &files));
        if known.is_empty() {
            assert_eq!(*root_digest, digest, "{} differs", place.name());
        }
    }
    ensure!(
        unknown.is_empty(),
        "differences that builder/sandbox/PACKAGES.md does not have:\n{}",
        unknown.concat()
    );
    Ok(())
}
