//! Documents of the repository that tests make: tables of rows and outcomes, never edited by hand.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::binary::repository;

/// Fails when `path` in the repository holds something else than `text`; with `RBUILD_UPDATE` set it is written.
///
/// # Errors
///
/// When the document is out of date, or cannot be written.
pub fn is_current(path: &str, text: &str) -> Result<()> {
    let full = repository().join(path);
    if std::env::var_os("RBUILD_UPDATE").is_some() {
        fs::write(&full, text).with_context(|| format!("write {}", full.display()))?;
    }
    let is_same = fs::read_to_string(&full).is_ok_and(|present| present == text);
    ensure!(is_same, "{path} is out of date: run this test with RBUILD_UPDATE=1");
    Ok(())
}

/// Rows of the security reference, such as `R12`, and the tests that say in a comment that they are of one.
#[derive(Debug, Default)]
pub struct Rows(BTreeMap<(String, usize), Vec<String>>);

impl Rows {
    /// Reads `/// R1, R2: words` above functions in Rust files of these folders of the repository.
    ///
    /// # Errors
    ///
    /// When a file cannot be read.
    pub fn of(folders: &[&str]) -> Result<Self> {
        let mut rows = Self::default();
        for folder in folders {
            rows.collect(&repository().join(folder))?;
        }
        Ok(rows)
    }

    fn collect(&mut self, dir: &Path) -> Result<()> {
        for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                self.collect(&path)?;
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                self.collect_file(&path)?;
            }
        }
        Ok(())
    }

    fn collect_file(&mut self, path: &Path) -> Result<()> {
        let text = fs::read_to_string(path)?;
        let mut pending: Vec<(String, usize)> = Vec::new();
        for line in text.lines().map(str::trim) {
            if let Some((ids, _)) = line.strip_prefix("/// ").and_then(|rest| rest.split_once(':')) {
                let ids: Option<Vec<_>> = ids.split(", ").map(row).collect();
                pending.extend(ids.unwrap_or_default());
            } else if let Some(name) = line.trim_start_matches("async ").strip_prefix("fn ") {
                let name = name.split('(').next().unwrap_or_default();
                let module = path.strip_prefix(repository()).unwrap_or(path).display().to_string();
                for id in pending.drain(..) {
                    self.0.entry(id).or_default().push(format!("`{name}` ({module})"));
                }
            }
        }
        Ok(())
    }

    /// Fails when a suite's row, from 1 to the last, has no test.
    ///
    /// # Errors
    ///
    /// Naming the row.
    pub fn require(&self, suites: &[(&str, usize)]) -> Result<()> {
        for (suite, last) in suites {
            for number in 1..=*last {
                ensure!(self.0.contains_key(&((*suite).to_owned(), number)), "{suite}{number} has no test");
            }
        }
        Ok(())
    }

    /// The table, below a comment that says how to make it. Only rows of these suites, if any are named.
    ///
    /// # Errors
    ///
    /// Never, in practice.
    pub fn to_markdown(&self, command: &str, suites: &[(&str, usize)]) -> Result<String> {
        let mut table =
            format!("<!-- Made from the tests' comments: {command} -->\n\n| row | tests |\n|---|---|\n");
        for ((suite, number), tests) in &self.0 {
            if suites.is_empty() || suites.iter().any(|(known, _)| known == suite) {
                writeln!(table, "| {suite}{number} | {} |", tests.join("<br>"))?;
            }
        }
        Ok(table)
    }
}

/// `R12`.
fn row(text: &str) -> Option<(String, usize)> {
    let (suite, number) = text.split_at_checked(1)?;
    let is_suite = suite.bytes().all(|byte| byte.is_ascii_uppercase());
    Some((suite.to_owned(), number.parse().ok().filter(|_| is_suite)?))
}
