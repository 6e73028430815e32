//! The table of rows and tests, made from the tests' own comments.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rbuild_tests::binary::repository;

/// Suites of the security reference that must be complete here, and their last rows.
const COMPLETE: [(&str, usize); 3] = [("L", 16), ("M", 10), ("R", 24)];

/// Where such tests are.
const FOLDERS: [&str; 5] = [
    "cache/src/layer",
    "tests/tests/faults",
    "registry-client/src/tests",
    "registry-client/src/transport",
    "registry-client/src/blobs",
];

/// Finds `/// R1, R2: words` above a test.
fn collect(dir: &Path, rows: &mut BTreeMap<(String, usize), Vec<String>>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, rows)?;
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let mut pending: Vec<(String, usize)> = Vec::new();
        for line in text.lines().map(str::trim) {
            if let Some((ids, _)) = line.strip_prefix("/// ").and_then(|rest| rest.split_once(':')) {
                let ids: Option<Vec<_>> = ids.split(", ").map(row).collect();
                pending.extend(ids.unwrap_or_default());
            } else if let Some(name) = line.trim_start_matches("async ").strip_prefix("fn ") {
                let name = name.split('(').next().unwrap_or_default();
                let module = path.strip_prefix(repository()).unwrap_or(&path).display().to_string();
                for id in pending.drain(..) {
                    rows.entry(id).or_default().push(format!("`{name}` ({module})"));
                }
            }
        }
    }
    Ok(())
}

/// `R12`.
fn row(text: &str) -> Option<(String, usize)> {
    let (suite, number) = text.split_at_checked(1)?;
    let is_suite = suite.bytes().all(|byte| byte.is_ascii_uppercase());
    Some((suite.to_owned(), number.parse().ok().filter(|_| is_suite)?))
}

#[test]
fn every_row_has_a_test_and_the_table_says_which() -> Result<()> {
    let mut rows = BTreeMap::new();
    for folder in FOLDERS {
        collect(&repository().join(folder), &mut rows)?;
    }
    for (suite, last) in COMPLETE {
        for number in 1..=last {
            ensure!(rows.contains_key(&(suite.to_owned(), number)), "{suite}{number} has no test");
        }
    }
    let mut table = String::from(
        "<!-- Made from the tests' comments: RBUILD_UPDATE=1 cargo test -p rbuild-tests --test faults rows -->\n\n\
         | row | tests |\n|---|---|\n",
    );
    for ((suite, number), tests) in &rows {
        writeln!(table, "| {suite}{number} | {} |", tests.join("<br>"))?;
    }
    let path = repository().join("tests/tests/faults/ROWS.md");
    if std::env::var_os("RBUILD_UPDATE").is_some() {
        fs::write(&path, &table)?;
    }
    let present = fs::read_to_string(&path).unwrap_or_default();
    ensure!(
        present == table,
        "tests/tests/faults/ROWS.md is out of date: run this test with RBUILD_UPDATE=1"
    );
    Ok(())
}
