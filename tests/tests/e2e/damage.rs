//! A store whose files changed: nothing wrong is built, written or said to be mended.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rbuild_tests::{Run, TestEnv, need};

use crate::world;

/// Directories of layers that have a file of this name.
fn layers_with(env: &TestEnv, name: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for layer in fs::read_dir(env.store().join("layers"))? {
        let layer = layer?.path();
        if layer.join("diff").join(name).symlink_metadata().is_ok() {
            found.push(layer);
        }
    }
    Ok(found)
}

/// The directory of the one layer that has a file of this name.
fn layer_with(env: &TestEnv, name: &str) -> Result<PathBuf> {
    let mut layers = layers_with(env, name)?;
    ensure!(layers.len() == 1, "{layers:?}");
    layers.pop().context("one")
}

/// Builds into a directory and gives what is in its files.
fn built(env: &TestEnv, context: &Path, out: &str, names: &[&str]) -> Result<Vec<String>> {
    let out = env.work().join(out);
    env.build(context, &["-o", out.to_str().context("UTF-8")?])?.ok();
    names.iter().map(|name| Ok(fs::read_to_string(out.join(name))?)).collect()
}

const FIRST: &str = "FROM busybox\nRUN echo x > /f\n";

/// Whatever was built on a layer while it was damaged goes with it: steps above it, those that mounted it, and those that
/// copied from what these made.
#[test]
fn what_was_made_from_a_damaged_layer_is_made_again_after_a_repair() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let first = env.context("first", FIRST, &[])?;
    let above = env.context("above", &format!("{FIRST}RUN cp /f /g\n"), &[])?;
    let mounted =
        "FROM busybox AS a\nRUN echo x > /f\nFROM busybox\nRUN --mount=from=a,target=/a cp /a/f /m\n";
    let mounted = env.context("mounted", mounted, &[])?;
    let copied = "FROM busybox AS a\nRUN echo x > /f\nRUN cp /f /g\nFROM scratch\nCOPY --from=a /g /c\n";
    let copied = env.context("copied", copied, &[])?;
    env.build(&first, &["-t", "me/first"])?.ok();
    fs::write(layer_with(&env, "f")?.join("diff/f"), "y\n")?;
    env.build(&above, &[])?.ok();
    assert_eq!(fs::read_to_string(layer_with(&env, "g")?.join("diff/g"))?, "y\n");
    assert_eq!(built(&env, &mounted, "mounted1", &["m"])?, ["y\n"]);
    env.build(&copied, &["-t", "me/copied"])?.ok();

    let repaired = env.run(["cache", "fsck", "--repair"])?;
    assert!(repaired.stdout.contains("me/copied:latest has layer"), "{repaired}");
    assert!(repaired.stdout.contains("1 image kept that may be wrong"), "{repaired}");
    repaired.exits(1);
    assert_eq!(built(&env, &above, "above2", &["f", "g"])?, ["x\n", "x\n"]);
    assert_eq!(built(&env, &mounted, "mounted2", &["m"])?, ["x\n"]);
    assert_eq!(built(&env, &copied, "copied2", &["c"])?, ["x\n"]);
    env.run(["cache", "fsck"])?.ok();
    env.assert_nothing_left();
    Ok(())
}

/// The same when somebody removes the damaged directory instead.
#[test]
fn what_was_made_from_a_layer_that_is_gone_is_made_again() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let above = env.context("above", &format!("{FIRST}RUN cp /f /g\n"), &[])?;
    env.build(&env.context("first", FIRST, &[])?, &[])?.ok();
    let layer = layer_with(&env, "f")?;
    fs::write(layer.join("diff/f"), "y\n")?;
    env.build(&above, &[])?.ok();
    fs::remove_dir_all(layer)?;
    assert_eq!(built(&env, &above, "out", &["f", "g"])?, ["x\n", "x\n"]);
    env.run(["cache", "fsck", "--repair"])?;
    assert_eq!(built(&env, &above, "again", &["f", "g"])?, ["x\n", "x\n"]);
    Ok(())
}

const REMEDY: &str = "rbuild cache fsck --repair";

/// Damaged contents go nowhere, and who meets them learns which file it is and what to do.
#[test]
fn damaged_files_are_neither_written_out_nor_copied_and_the_remedy_is_told() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let first = env.context("first", "FROM busybox\nRUN mkdir d && echo x > /d/f\n", &[])?;
    let copies = "FROM busybox AS a\nRUN mkdir d && echo x > /d/f\nFROM scratch\nCOPY --from=a /d/f /\n";
    let copies = env.context("copies", copies, &[])?;
    env.build(&first, &[])?.ok();
    let file = layer_with(&env, "d/f")?.join("diff/d/f");
    let out = env.work().join("out");
    let tar = format!("type=tar,dest={}", env.work().join("out.tar").display());
    for damage in ["y\n", "longer\n", "", "gone"] {
        if damage == "gone" {
            fs::remove_file(&file)?;
        } else {
            fs::write(&file, damage)?;
        }
        let failing = |run: Run| {
            run.exits(1).says(&["/d/f is damaged in the store", REMEDY]);
        };
        failing(env.build(&first, &["-o", out.to_str().context("UTF-8")?])?);
        assert!(!out.join("d/f").exists(), "{damage}");
        failing(env.build(&first, &["-o", &tar])?);
        assert!(!env.work().join("out.tar").exists(), "{damage}");
        failing(env.build(&copies, &[])?);
        let dated = env.build(&first, &["-t", "me/first", "--source-date-epoch", "1"])?;
        dated.exits(1).says(&["d/f`", REMEDY]);
    }
    env.run(["cache", "fsck", "--repair"])?.ok();
    assert_eq!(built(&env, &copies, "again", &["f"])?, ["x\n"]);
    Ok(())
}

/// Directories of layers that somebody exchanged: each is whole, and not what its name stands for.
#[test]
fn exchanged_layers_are_found_and_made_again() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let first = env.context("first", FIRST, &[])?;
    env.build(&first, &[])?.ok();
    env.build(&env.context("third", "FROM busybox\nRUN echo z > /f\n", &[])?, &[])?.ok();
    let layers = layers_with(&env, "f")?;
    let [one, other] = layers.as_slice() else { panic!("{layers:?}") };
    let aside = env.work().join("aside");
    for (from, to) in [(one, &aside), (other, one), (&aside, other)] {
        fs::rename(from, to)?;
    }
    let out = env.work().join("wrong");
    env.build(&first, &["-o", out.to_str().context("UTF-8")?])?.exits(1).says(&[REMEDY]);
    let found = env.run(["cache", "fsck"])?.exits(1);
    assert_eq!(found.stdout.matches("it is the list of another layer").count(), 2, "{found}");
    env.run(["cache", "fsck", "--repair"])?.ok();
    assert_eq!(built(&env, &first, "right", &["f"])?, ["x\n"]);
    env.run(["cache", "fsck"])?.ok();
    Ok(())
}
