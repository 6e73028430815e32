//! A store whose files changed: nothing wrong is built, written or said to be mended.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rbuild_tests::{TestEnv, need};

use crate::world;

/// Files of this name in layers of the store.
fn in_layers(env: &TestEnv, name: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for layer in fs::read_dir(env.store().join("layers"))? {
        let file = layer?.path().join("diff").join(name);
        if file.symlink_metadata().is_ok() {
            found.push(file);
        }
    }
    Ok(found)
}

/// The one layer that has a file of this name.
fn layer_with(env: &TestEnv, name: &str) -> Result<PathBuf> {
    let mut files = in_layers(env, name)?;
    ensure!(files.len() == 1, "{files:?}");
    let file = files.pop().context("one")?;
    Ok(file.parent().and_then(Path::parent).context("below the layer")?.to_owned())
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
    assert_eq!(built(&env, &above, "above1", &["g"])?, ["y\n"]);
    assert_eq!(built(&env, &mounted, "mounted1", &["m"])?, ["y\n"]);
    env.build(&copied, &["-t", "me/copied"])?.ok();

    let repaired = env.run(["cache", "fsck", "--repair"])?;
    let told = "me/copied:latest has layer";
    assert!(repaired.stdout.contains(told), "{repaired}");
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
