//! Real package managers inside RUN, on every rung where they can work: `fixtures/packages`.
//!
//! The packages are fetched once, by a build; what is compared is installed from files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rbuild_tests::{Registry, judge, need};

use crate::rungs::Place;

/// Where an image may differ from rung `root`'s, by rung, and why. A path stands for what is below it too.
const DIFFERENCES: &[(Place, &str, &str)] = &[];

/// Has a build download the packages; the directory they are in.
fn packages(registry: &Registry, into: &Path) -> Result<PathBuf> {
    let env = Place::Root.env()?.using(registry)?;
    let context = env.fixture("packages")?;
    let file = context.join("Dockerfile.debs");
    let out = env.work().join("debs");
    let args = ["-f", file.to_str().context("UTF-8")?, "-o", out.to_str().context("UTF-8")?];
    env.build(&context, &args)?.ok();
    fs::create_dir(into)?;
    for entry in fs::read_dir(&out)? {
        let path = entry?.path();
        fs::copy(&path, into.join(path.file_name().context("a name")?))?;
    }
    Ok(into.to_owned())
}

#[test]
fn packages_install_alike_on_every_rung() -> Result<()> {
    need!(Root, Registry, Bases, Judges, Subuid);
    let registry = Registry::shared()?;
    let dir = tempfile::tempdir()?;
    let debs = packages(&registry, &dir.path().join("debs"))?;
    let count = fs::read_dir(&debs)?.count();
    ensure!(count >= 20, "only {count} packages");
    let mut of_root: Option<(String, Vec<String>)> = None;
    for place in [Place::Root, Place::Rootless, Place::Single, Place::Chroot] {
        let env = place.env()?.using(&registry)?.with_variable("SOURCE_DATE_EPOCH", "1700000000");
        let context = env.fixture("packages")?;
        fs::create_dir(context.join("debs"))?;
        for entry in fs::read_dir(&debs)? {
            let path = entry?.path();
            fs::copy(&path, context.join("debs").join(path.file_name().context("a name")?))?;
        }
        let archive = env.work().join("packages.tar");
        let output = format!("type=oci,dest={},compression=uncompressed", archive.display());
        let (run, digest) = env.build_id(&context, &["-o", &output])?;
        run.says(&[&format!("isolation: {}", place.rung())]);
        let files = judge::unpack(&format!("oci-archive:{}", archive.display()))?.listing()?;
        env.assert_nothing_left();
        let Some((root_digest, root_files)) = &of_root else {
            of_root = Some((digest, files));
            continue;
        };
        let is_known = |line: &&String| {
            let known = DIFFERENCES.iter().filter(|(at, ..)| *at == place);
            known.map(|(_, path, _)| path).any(|path| line.starts_with(path))
        };
        let only = |these: &[String], others: &[String]| {
            let others: std::collections::HashSet<&String> = others.iter().collect();
            these.iter().filter(|line| !others.contains(line) && !is_known(line)).cloned().collect::<Vec<_>>()
        };
        let (more, less) = (only(&files, root_files), only(root_files, &files));
        ensure!(
            more.is_empty() && less.is_empty(),
            "{} has\n{}\nin place of\n{}",
            place.name(),
            more.join("\n"),
            less.join("\n")
        );
        if !DIFFERENCES.iter().any(|(at, ..)| *at == place) {
            assert_eq!(*root_digest, digest, "{} differs in more than files", place.name());
        }
    }
    Ok(())
}
