//! `rbuild context`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use rbuild_frontend::dockerignore::{Ignore, clean};
use serde_json::{Value, json};

use crate::cli::{ContextQuestion, ContextRequest};
use crate::context::{files, list};
use crate::error::BuildError;
use crate::report::human;

/// Answers a question about a context.
pub(super) fn run(request: &ContextRequest) -> Result<(), BuildError> {
    files::require_dir(&request.context)?;
    let dockerfile = request.dockerfile.clone().or_else(|| files::default_dockerfile(&request.context));
    let found = files::find_ignore(&request.context, dockerfile.as_deref())?;
    let (file, ignore) = found.map_or((None, Ignore::default()), |found| (Some(found.path), found.ignore));
    super::print(&match &request.question {
        ContextQuestion::List => entries(request, &ignore)?,
        ContextQuestion::Sizes(depth) => sizes(request, &ignore, *depth)?,
        ContextQuestion::Why(paths) => why(request, file, &ignore, paths),
    })
}

fn entries(request: &ContextRequest, ignore: &Ignore) -> Result<String, BuildError> {
    let (mut text, mut rows) = (String::new(), Vec::new());
    list::list(&request.context, ignore, |entry| {
        let path = String::from_utf8_lossy(entry.path);
        match request.json {
            true => rows.push(json!({ "path": path, "type": entry.kind, "size": entry.size })),
            false => {
                let slash = if entry.kind == "dir" { "/" } else { "" };
                let _ = writeln!(text, "{}{slash}", shown(&path));
            }
        }
    })?;
    Ok(if request.json { lines(&rows) } else { text })
}

fn sizes(request: &ContextRequest, ignore: &Ignore, depth: usize) -> Result<String, BuildError> {
    // Bytes and files by directory, or by file where that is what the last level has.
    let mut known: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut total = (0_u64, 0_u64);
    list::list(&request.context, ignore, |entry| {
        if entry.kind == "dir" {
            return;
        }
        let path = String::from_utf8_lossy(entry.path);
        let add = |sum: &mut (u64, u64)| *sum = (sum.0.saturating_add(entry.size), sum.1 + 1);
        add(&mut total);
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for end in ends.take(depth) {
            add(known.entry(path[..end].to_owned()).or_default());
        }
    })?;
    let mut rows: Vec<_> = known.into_iter().collect();
    rows.sort_by_key(|(path, (bytes, _))| (std::cmp::Reverse(*bytes), path.clone()));
    rows.push((".".to_owned(), total));
    if request.json {
        let row = |(path, (bytes, files)): &(String, (u64, u64))| json!({ "path": path, "size": bytes, "files": files });
        return Ok(lines(&rows.iter().map(row).collect::<Vec<_>>()));
    }
    let mut text = format!("{:<10}{:>8}  PATH\n", "SIZE", "FILES");
    for (path, (bytes, files)) in &rows {
        let _ = writeln!(text, "{:<10}{files:>8}  {}", human::size(*bytes), shown(path));
    }
    Ok(text)
}

fn why(request: &ContextRequest, file: Option<PathBuf>, ignore: &Ignore, paths: &[String]) -> String {
    let file = file.map(|path| path.display().to_string());
    let (mut text, mut rows) = (String::new(), Vec::new());
    for path in paths {
        // As in COPY: relative to the context, and nothing climbs out of it.
        let path = clean(&format!("/{path}")).trim_start_matches('/').to_owned();
        let verdict = ignore.verdict(&path);
        let (is_sent, rule) = (!ignore.excludes(verdict), ignore.rule(verdict));
        let exists = request.context.join(&path).symlink_metadata().is_ok();
        if request.json {
            let rule = rule.map(
                |rule| json!({ "file": file, "line": rule.line, "pattern": rule.text, "negated": rule.negated }),
            );
            rows.push(json!({ "path": path, "sent": is_sent, "exists": exists, "rule": rule }));
            continue;
        }
        let at = |line: usize| format!("{}:{line}", file.as_deref().unwrap_or_default());
        let reason = match rule {
            Some(rule) if is_sent => format!("sent: {}: `{}` brings it back", at(rule.line), rule.text),
            Some(rule) => format!("excluded by {}: `{}`", at(rule.line), rule.text),
            None if file.is_none() => "sent: there is no ignore file".to_owned(),
            None => "sent: no pattern matches".to_owned(),
        };
        let missing = if exists { "" } else { " (there is no such file)" };
        let _ = writeln!(text, "{}: {reason}{missing}", shown(&path));
    }
    if request.json { lines(&rows) } else { text }
}

/// One JSON value per line.
fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

/// A path as it may stand on a terminal.
fn shown(path: &str) -> String {
    path.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
