//! The dependency drawing of the design, checked against what cargo says.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rbuild_tests::binary::repository;
use serde_json::Value;

/// Which crate of the workspace may use which, in its normal dependencies. An arrow more is a change of the design.
const DRAWING: &[(&str, &[&str])] = &[
    ("rbuild-oci", &[]),
    ("rbuild-sandbox", &[]),
    ("rbuild-isal", &[]),
    ("rbuild-frontend", &["rbuild-oci"]),
    ("rbuild-registry", &["rbuild-oci"]),
    ("rbuild-cache", &["rbuild-isal", "rbuild-oci", "rbuild-registry"]),
    ("rbuild", &["rbuild-cache", "rbuild-frontend", "rbuild-oci", "rbuild-registry", "rbuild-sandbox"]),
    (
        "rbuild-tests",
        &["rbuild", "rbuild-cache", "rbuild-frontend", "rbuild-oci", "rbuild-registry", "rbuild-sandbox"],
    ),
];

/// Crates that only turn values into values: what would let them do otherwise may not be in their tree.
const PURE: [&str; 2] = ["rbuild-oci", "rbuild-frontend"];
const IMPURE: [&str; 3] = ["tokio", "reqwest", "rustix"];

/// The crates with `unsafe`: system calls, and calls into a C library.
const UNSAFE: [&str; 2] = ["rbuild-sandbox", "rbuild-isal"];

struct Workspace {
    packages: BTreeMap<String, Value>,
    names: BTreeMap<String, String>,
    members: BTreeSet<String>,
    /// Package id to the ids it needs normally: neither for building nor for tests.
    normal: BTreeMap<String, BTreeSet<String>>,
}

impl Workspace {
    fn read() -> Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--format-version", "1", "--offline"])
            // For this platform alone: what others need was never downloaded.
            .args(["--filter-platform", &format!("{}-unknown-linux-gnu", std::env::consts::ARCH)])
            .current_dir(repository())
            .output()
            .context("run cargo metadata")?;
        ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
        let metadata: Value = serde_json::from_slice(&output.stdout)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let packages: BTreeMap<_, _> =
            list(&metadata["packages"]).into_iter().map(|package| (text(&package["id"]), package)).collect();
        let names = packages.iter().map(|(id, package)| (id.clone(), text(&package["name"]))).collect();
        let members = list(&metadata["workspace_members"]).iter().map(text).collect();
        let normal = list(&metadata["resolve"]["nodes"])
            .iter()
            .map(|node| {
                let needed = list(&node["deps"]).into_iter().filter(|dependency| {
                    list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null())
                });
                (text(&node["id"]), needed.map(|dependency| text(&dependency["pkg"])).collect())
            })
            .collect();
        Ok(Self { packages, names, members, normal })
    }

    fn member(&self, name: &str) -> Result<&String> {
        self.members.iter().find(|id| self.names[*id] == name).with_context(|| format!("no member `{name}`"))
    }

    fn tree(&self, id: &str) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let mut open = vec![id.to_owned()];
        while let Some(id) = open.pop() {
            for needed in &self.normal[&id] {
                if seen.insert(needed.clone()) {
                    open.push(needed.clone());
                }
            }
        }
        seen.into_iter().map(|id| self.names[&id].clone()).collect()
    }
}

#[test]
fn crates_depend_only_along_the_drawing() -> Result<()> {
    let workspace = Workspace::read()?;
    let drawn: BTreeMap<_, _> = DRAWING.iter().copied().collect();
    for id in &workspace.members {
        let name = workspace.names[id].as_str();
        let allowed = drawn.get(name).with_context(|| format!("`{name}` is not in the drawing"))?;
        for needed in workspace.normal[id].iter().filter(|needed| workspace.members.contains(*needed)) {
            let needed = workspace.names[needed].as_str();
            assert!(allowed.contains(&needed), "`{name}` uses `{needed}`, which the drawing does not have");
        }
    }
    assert_eq!(workspace.members.len(), drawn.len(), "a crate of the drawing is missing");
    Ok(())
}

#[test]
fn pure_crates_have_no_network_threads_or_files_in_their_tree() -> Result<()> {
    let workspace = Workspace::read()?;
    for pure in PURE {
        let tree = workspace.tree(workspace.member(pure)?);
        for impure in IMPURE {
            assert!(!tree.contains(impure), "`{pure}` has `{impure}` in its tree");
        }
    }
    // The look itself sees what it looks for.
    assert!(workspace.tree(workspace.member("rbuild")?).contains("tokio"));
    Ok(())
}

#[test]
fn every_other_crate_forbids_unsafe_code() -> Result<()> {
    let workspace = Workspace::read()?;
    for id in &workspace.members {
        let package = &workspace.packages[id];
        let name = &workspace.names[id];
        for target in package["targets"].as_array().context("targets")? {
            let kinds = target["kind"].as_array().context("kinds")?;
            if UNSAFE.contains(&name.as_str()) || !kinds.iter().any(|kind| kind == "lib" || kind == "bin") {
                continue;
            }
            let path = Path::new(target["src_path"].as_str().context("source path")?);
            let source = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            let forbids = source.lines().any(|line| line.trim() == "#![forbid(unsafe_code)]");
            assert!(forbids, "{} does not say #![forbid(unsafe_code)]", path.display());
        }
    }
    Ok(())
}
