//! What may differ from another program's results, written down with the reason for it.
//!
//! ```text
//! # Newer Docker does as we do.
//! CASE DIFFERENCE        <- `*` stands for any text
//! ```
//!
//! A comment above a group of lines is its reason. A line that covers nothing any more is an error, as is a difference
//! that no line covers.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result, ensure};

use crate::binary::repository;

struct Allowed {
    pattern: String,
    is_used: bool,
}

/// Checks `CASE` and `DIFFERENCE` pairs against a file below `fixtures`.
///
/// # Errors
///
/// Naming every difference without a line, and every line without a difference.
pub fn check<'a>(file: &str, found: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<()> {
    let mut allowed = read(file)?;
    let mut wrong = String::new();
    for (case, difference) in found {
        let line = format!("{case} {difference}");
        let mut covering = allowed.iter_mut().filter(|a| matches(&a.pattern, &line)).peekable();
        if covering.peek().is_none() {
            writeln!(wrong, "{line}")?;
        }
        covering.for_each(|allowed| allowed.is_used = true);
    }
    for stale in allowed.iter().filter(|allowed| !allowed.is_used) {
        writeln!(wrong, "no longer so: {}", stale.pattern)?;
    }
    ensure!(wrong.is_empty(), "theirs | ours:\n{wrong}");
    Ok(())
}

fn read(file: &str) -> Result<Vec<Allowed>> {
    let text = fs::read_to_string(repository().join("fixtures").join(file)).context(file.to_owned())?;
    let mut has_reason = false;
    let mut list = Vec::new();
    for line in text.lines() {
        if line.trim().is_empty() {
            has_reason = false;
        } else if line.starts_with('#') {
            has_reason = true;
        } else {
            ensure!(has_reason, "`{line}` has no reason above it");
            list.push(Allowed { pattern: line.to_owned(), is_used: false });
        }
    }
    Ok(list)
}

fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|after| {
            after.char_indices().map(|(at, _)| at).chain([after.len()]).any(|at| matches(rest, &after[at..]))
        }),
    }
}
