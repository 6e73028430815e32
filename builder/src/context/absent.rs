//! Why a source is not there, in words: an ignore file took it, or there is a name near it.

use std::os::fd::AsFd as _;
use std::path::Path;

use rbuild_cache::path::RelPath;
use rbuild_cache::tree::select::SelectError;
use rbuild_cache::tree::{DirReader, Kind, LastLink, NodeStore, Tree};
use rbuild_frontend::suggest::nearest;
use rustix::fs::{AtFlags, OFlags};

use super::ScannedContext;
use super::scan::{names_in, open_beneath};
use crate::error::StepFailure;
use crate::ops::select::SelectionError;

/// The failure to select from a context. Only now is looked at what the scan left out.
pub fn in_context(context: &ScannedContext, error: SelectionError) -> StepFailure {
    explained(error, |path| {
        let ignore = context.ignore.as_ref();
        let text = String::from_utf8_lossy(path.as_bytes());
        let verdict = ignore.map(|found| found.ignore.verdict(&text)).unwrap_or_default();
        let rule =
            ignore.and_then(|found| found.ignore.rule(verdict).filter(|rule| !rule.negated).zip(Some(found)));
        if let Some((rule, found)) = rule.filter(|_| exists(context, path)) {
            let file = found.path.file_name().map_or(Path::new(".dockerignore"), Path::new);
            let (file, line, pattern) = (file.display(), rule.line, rule.text);
            return Some(format!(
                "{file}:{line} excludes it: `{pattern}`; a later line `!{path}` brings it back"
            ));
        }
        let is_sent = |near: &RelPath| {
            ignore.is_none_or(|found| !found.ignore.matches(&String::from_utf8_lossy(near.as_bytes())))
        };
        near(path, |dir| on_disk(context, dir)).filter(is_sent).map(|near| meant(path, &near))
    })
}

/// The failure to select from a stage or an image.
pub fn in_stage(tree: &Tree, nodes: &dyn NodeStore, error: SelectionError) -> StepFailure {
    explained(error, |path| {
        let near = near(path, |dir| in_tree(tree, nodes, dir)).map(|near| meant(path, &near));
        near.or_else(|| Some("paths in a stage begin at its root, not at its WORKDIR".to_owned()))
    })
}

fn explained(error: SelectionError, hint: impl FnOnce(&RelPath) -> Option<String>) -> StepFailure {
    match error {
        SelectionError::Select(SelectError::NotFound { path }) => {
            let hint = hint(&path);
            StepFailure::Absent { path, hint }
        }
        other => other.into(),
    }
}

fn meant(path: &RelPath, near: &RelPath) -> String {
    match near == path {
        true => "a symbolic link on its way leads out of the source, or nowhere".to_owned(),
        false => format!("did you mean /{near}?"),
    }
}

/// A path that is there and differs from `path` in a few letters of its names, or in none: then a link leads nowhere.
fn near(path: &RelPath, names: impl Fn(&RelPath) -> Vec<String>) -> Option<RelPath> {
    path.components().try_fold(RelPath::root(), |dir, name| {
        let (name, names) = (str::from_utf8(name).ok()?, names(&dir));
        let known = names.iter().any(|known| known == name).then_some(name);
        known
            .or_else(|| nearest(name, names.iter().map(String::as_str)))
            .map(|name| dir.join(name.as_bytes()))
    })
}

fn exists(context: &ScannedContext, path: &RelPath) -> bool {
    let parent = path.parent().unwrap_or_else(RelPath::root);
    let dir = open_beneath(context.dir.as_fd(), parent.as_bytes(), OFlags::DIRECTORY);
    dir.is_ok_and(|dir| rustix::fs::statat(&dir, path.name(), AtFlags::SYMLINK_NOFOLLOW).is_ok())
}

/// What is in a directory of a context, sent or not; nothing where it cannot be listed.
fn on_disk(context: &ScannedContext, path: &RelPath) -> Vec<String> {
    let dir = open_beneath(context.dir.as_fd(), path.as_bytes(), OFlags::DIRECTORY).ok();
    let names = dir.and_then(|dir| names_in(dir.as_fd(), path.as_bytes()).ok()).unwrap_or_default();
    names.into_iter().filter_map(|(name, _)| String::from_utf8(name).ok()).collect()
}

fn in_tree(tree: &Tree, nodes: &dyn NodeStore, path: &RelPath) -> Vec<String> {
    let found = tree.resolve(nodes, path.as_bytes(), LastLink::Follow).ok().filter(|found| found.exists());
    let Some(Kind::Dir(node)) = found.map(|found| found.entry.kind) else { return Vec::new() };
    let Ok(mut entries) = DirReader::open(nodes, &node) else { return Vec::new() };
    let mut names = Vec::new();
    while let Ok(Some((name, _))) = entries.next() {
        names.extend(String::from_utf8(name.to_vec()));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_a_path_may_be_misspelt_a_little() {
        let names = |dir: &RelPath| -> Vec<String> {
            let names: &[&str] = match dir.as_bytes() {
                b"" => &["src", "package.json", "Makefile"],
                b"src" => &["index.js", "app.js"],
                _ => &[],
            };
            names.iter().map(|name| (*name).to_owned()).collect()
        };
        let near = |path: &str| near(&RelPath::clamp(path.as_bytes()), names).map(|path| path.to_string());
        assert_eq!(near("srx/indx.js").as_deref(), Some("src/index.js"));
        assert_eq!(near("makefile").as_deref(), Some("Makefile"));
        assert_eq!(near("pakage.json").as_deref(), Some("package.json"));
        assert_eq!(near("src/app.js/x"), None);
        assert_eq!(near("dist"), None);
    }
}
