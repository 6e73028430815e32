//! Two records of one step: what differs.

use rbuild_cache::tree::{Entry, Kind, NodeDigest, NodeStore, Tree, TreeChange, difference};

use super::cause::{Cause, FileChange, Shown};
use super::record::{
    COMMAND, Class, Field, INSTRUCTION, InputRecord, LINK, Producer, Record, short_reference, split_name,
};

/// Changed files kept by name.
pub(super) const FILES_MAX: usize = 1000;

/// Fields that say what is read.
const SELECTING: [&str; 4] = ["sources", "--parents", "--exclude", "--chmod"];

/// How many fields and inputs differ.
pub(super) fn distance(old: &Record, new: &Record) -> usize {
    let fields = |record: &Record| record.fields.len();
    let same = new.fields.iter().filter(|field| old.fields.contains(field)).count();
    let inputs = new.inputs.iter().filter(|input| !is_same_input(old, input)).count();
    fields(old).max(fields(new)) - same + inputs
}

fn is_same_input(old: &Record, input: &InputRecord) -> bool {
    old.inputs.iter().any(|other| other.slot == input.slot && other.digest == input.digest)
}

/// What differs but for the state that the step builds on, in the order in which causes are named.
pub(super) fn own_causes(old: &Record, new: &Record, nodes: &dyn NodeStore) -> Vec<Cause> {
    let mut found: Vec<(Class, Cause)> = Vec::new();
    for field in &new.fields {
        match old.fields.iter().find(|other| other.name == field.name) {
            Some(other) if other == field => {}
            _ if field.name == INSTRUCTION => found.push((field.class, instruction(old, new))),
            other => found.push((field.class, changed(other, Some(field)))),
        }
    }
    let gone = old.fields.iter().filter(|field| new.fields.iter().all(|other| other.name != field.name));
    found.extend(gone.map(|field| (field.class, changed(Some(field), None))));
    // A variable that is an ARG now and was ENV before, with the value it had, is one change and says so twice.
    found.sort_by_key(|(class, _)| *class);
    let mut causes: Vec<Cause> = found.into_iter().map(|(_, cause)| cause).collect();
    // Other sources have other files, as have links that lead elsewhere, and `--chmod` gives them other modes: that is one
    // change.
    let selects = |what: &str| SELECTING.contains(&what) || what.starts_with(LINK);
    if causes.iter().any(|cause| matches!(cause, Cause::Value { what, .. } if selects(what))) {
        return causes;
    }
    for input in new.inputs.iter().filter(|input| input.slot > 0 && !is_same_input(old, input)) {
        let other = old.inputs.iter().find(|other| other.slot == input.slot);
        let flag = if new.kind == "run" { "--mount from" } else { "--from" };
        causes.push(other.map_or(Cause::Other, |other| files(other, input, flag, nodes)));
    }
    if causes.is_empty() && variables(old).ne(variables(new)) {
        causes.push(Cause::Order);
    }
    causes
}

/// Names of the variables, in their order, which programs see.
fn variables(record: &Record) -> impl Iterator<Item = &str> {
    let variables = record.fields.iter().filter(|field| field.class == Class::Variable);
    variables.map(|field| field.name.as_str())
}

/// COPY and ADD are told apart by whether archives are unpacked, and people write that in two ways.
fn instruction(old: &Record, new: &Record) -> Cause {
    let written = |record: &Record| {
        let text = split_name(&record.name).1;
        let text = text.strip_prefix("ONBUILD ").unwrap_or(text);
        let mut words = text.split_whitespace();
        let keyword = words.next().unwrap_or_default().to_owned();
        words
            .take_while(|word| word.starts_with("--"))
            .find(|word| word.starts_with("--unpack"))
            .map_or(keyword.clone(), |flag| format!("{keyword} {flag}"))
    };
    let shown = |record| Shown::Text(written(record));
    Cause::Value { what: INSTRUCTION.to_owned(), old: shown(old), new: shown(new) }
}

/// The other base image, when both versions stand on one.
pub(super) fn base_cause(old: &Producer, new: &Producer) -> Option<Cause> {
    match (old, new) {
        (
            Producer::Image { reference: old_reference, manifest: old },
            Producer::Image { reference, manifest: new },
        ) if (old_reference, old) != (reference, new) => Some(Cause::Base {
            old_reference: old_reference.clone(),
            old: old.clone(),
            reference: reference.clone(),
            new: new.clone(),
        }),
        _ => None,
    }
}

fn changed(old: Option<&Field>, new: Option<&Field>) -> Cause {
    let name = old.or(new).map(|field| field.name.clone()).unwrap_or_default();
    if name == COMMAND {
        let text = |field: Option<&Field>| field.and_then(|field| field.value.clone());
        return Cause::Command { old: text(old), new: text(new) };
    }
    let shown = |field: Option<&Field>| match field {
        None => Shown::Absent,
        Some(Field { value: None, .. }) => Shown::Hidden,
        Some(Field { value: Some(value), class, .. }) if value.is_empty() && *class != Class::Variable => {
            Shown::Absent
        }
        Some(Field { value: Some(value), .. }) => Shown::Text(value.clone()),
    };
    Cause::Value { what: name, old: shown(old), new: shown(new) }
}

fn files(old: &InputRecord, new: &InputRecord, flag: &str, nodes: &dyn NodeStore) -> Cause {
    let (was, is) = (place(&old.producer), place(&new.producer));
    let from = match (&old.producer, &new.producer) {
        // What it is says more than which of its files are others, and a single one has no name.
        (Producer::Fetched { version: old, .. }, Producer::Fetched { address, version: new })
            if old != new && was == is =>
        {
            return Cause::Fetched { address: address.clone(), old: old.clone(), new: new.clone() };
        }
        // Files that are elsewhere have not changed.
        _ if was != is => {
            let what = if flag == "--from" && matches!(new.producer, Producer::Fetched { .. }) {
                "address"
            } else {
                flag
            };
            return Cause::Value { what: what.to_owned(), old: Shown::Text(was), new: Shown::Text(is) };
        }
        (_, Producer::Context { name: None } | Producer::Scratch) => None,
        _ => Some(is.clone()),
    };
    let (Some(before), Some(after)) = (tree(old), tree(new)) else {
        return match (&old.producer, &new.producer) {
            (Producer::Image { manifest: old, .. }, Producer::Image { manifest: new, .. }) if old != new => {
                Cause::Fetched { address: is, old: old.clone(), new: new.clone() }
            }
            _ => Cause::Files { from, files: Vec::new(), count: 0 },
        };
    };
    between(from, &before, &after, nodes)
}

/// Where an input comes from, as it is told.
fn place(producer: &Producer) -> String {
    match producer {
        Producer::Scratch => "scratch".to_owned(),
        Producer::Context { name: None } => "the build context".to_owned(),
        Producer::Context { name: Some(name) } => name.clone(),
        Producer::Image { reference, .. } => short_reference(reference),
        Producer::Fetched { address, .. } => address.clone(),
        Producer::Step { stage, .. } => format!("stage {stage}"),
    }
}

/// What files differ between two trees.
pub(super) fn between(from: Option<String>, before: &Tree, after: &Tree, nodes: &dyn NodeStore) -> Cause {
    let unknown = |from| Cause::Files { from, files: Vec::new(), count: 0 };
    let mut changes = difference(nodes, before, after);
    let first = changes.next();
    let mut changes = changes.peekable();
    let is_only_one = changes.peek().is_none();
    let (mut files, mut count) = (Vec::new(), 0);
    for change in first.into_iter().chain(changes) {
        // Nodes of the past may have been lost: then only that something changed is known.
        let Ok(TreeChange { path, old, new }) = change else { return unknown(from) };
        // Directories that come with their contents are no news.
        if matches!((&old, &new), (None, Some(Entry { kind: Kind::Dir(_), .. }))) && !is_only_one {
            continue;
        }
        count += 1;
        if files.len() < FILES_MAX
            && let Some(how) = how(old.as_ref(), new.as_ref())
        {
            files.push(FileChange { path: path.to_string(), how });
        }
    }
    // Of none: names under which things are copied, or hard links. Both are no part of the listing.
    Cause::Files { from, files, count }
}

fn tree(input: &InputRecord) -> Option<Tree> {
    let mut node = [0; 32];
    hex::decode_to_slice(input.listing.as_ref()?, &mut node).ok()?;
    Some(Tree { node: NodeDigest(node), ..Tree::empty() })
}

/// What became of an entry, in a few words.
fn how(old: Option<&Entry>, new: Option<&Entry>) -> Option<String> {
    let (old, new) = match (old, new) {
        (None, None) => return None,
        (None, Some(_)) => return Some("new".to_owned()),
        (Some(_), None) => return Some("removed".to_owned()),
        (Some(old), Some(new)) => (old, new),
    };
    let mut words = Vec::new();
    match (&old.kind, &new.kind) {
        (Kind::File { content: a, .. }, Kind::File { content: b, .. }) => {
            if a != b {
                words.push("content".to_owned());
            }
        }
        (Kind::Dir(_), Kind::Dir(_)) | (Kind::Fifo, Kind::Fifo) => {}
        (Kind::Symlink(a), Kind::Symlink(b)) => {
            if a != b {
                let text = |target: &[u8]| String::from_utf8_lossy(target).into_owned();
                words.push(format!("target {} -> {}", text(a), text(b)));
            }
        }
        (a, b) if kind(a) == kind(b) => words.push("device number".to_owned()),
        (a, b) => words.push(format!("{} -> {}", kind(a), kind(b))),
    }
    let (old, new) = (&old.meta, &new.meta);
    if old.mode != new.mode && words.iter().all(|word| !word.contains(" -> ")) {
        words.push(format!("mode {:04o} -> {:04o}", old.mode, new.mode));
    }
    if (old.uid, old.gid) != (new.uid, new.gid) {
        words.push(format!("owner {}:{} -> {}:{}", old.uid, old.gid, new.uid, new.gid));
    }
    if old.xattrs != new.xattrs {
        words.push("extended attributes".to_owned());
    }
    Some(words.join(", "))
}

fn kind(kind: &Kind) -> &'static str {
    match kind {
        Kind::Dir(_) => "directory",
        Kind::File { .. } => "file",
        Kind::Symlink(_) => "symlink",
        Kind::CharDevice { .. } | Kind::BlockDevice { .. } => "device",
        Kind::Fifo => "pipe",
    }
}

#[cfg(test)]
mod tests {
    use rbuild_cache::layer::{Change, DiffEntry, LayerDiff, Mtime};
    use rbuild_cache::path::RelPath;
    use rbuild_cache::scratch::Scratch;
    use rbuild_cache::tree::{ContentDigest, EncodedNode, MemoryNodeStore, Meta};

    use super::*;

    /// Of sorted paths; those that end with a slash are directories.
    fn state(nodes: &dyn NodeStore, paths: &[&str], content: &str) -> Tree {
        let entry = |at: &&str| {
            let meta = Meta { mode: 0o755, ..Meta::default() };
            let content = ContentDigest::of(content.as_bytes());
            let change = match at.strip_suffix('/') {
                Some(_) => Change::Dir { meta, opaque: false },
                None => Change::File { meta, size: 1, content },
            };
            DiffEntry { path: RelPath::clamp(at.as_bytes()), change, mtime: Mtime::default() }
        };
        let scratch = Scratch::on(std::fs::File::open(std::env::temp_dir()).unwrap()).unwrap();
        Tree::empty().apply(nodes, &paths.iter().map(entry).collect::<LayerDiff>(), &scratch).unwrap()
    }

    #[track_caller]
    fn check(before: &[&str], after: &[&str], expected: &[&str]) {
        let nodes = MemoryNodeStore::default();
        let (before, after) = (state(&nodes, before, "old"), state(&nodes, after, "new"));
        let Cause::Files { from: None, files, count } = between(None, &before, &after, &nodes) else {
            panic!("it is about files");
        };
        let found: Vec<String> = files.iter().map(|file| format!("{} {}", file.path, file.how)).collect();
        assert_eq!(found, expected);
        assert_eq!(count, expected.len());
    }

    #[test]
    fn a_directory_is_news_only_when_nothing_else_is() {
        check(&[], &["a/"], &["a new"]);
        check(&[], &["a/", "a/f", "b/"], &["a/f new"]);
        check(&["x"], &["a/", "x"], &["x content"]);
        check(&["x"], &["a/"], &["x removed"]);
        check(&["x"], &["x/"], &["x file -> directory"]);
        check(&["a/", "a/f"], &[], &["a removed"]);
        check(&[], &["a/", "b/"], &[]);
        check(&["a"], &["a"], &["a content"]);
    }

    #[test]
    fn of_many_files_the_first_are_named() {
        let names: Vec<String> = (0..FILES_MAX + 10).map(|at| format!("f{at:05}")).collect();
        let paths: Vec<&str> = names.iter().map(String::as_str).collect();
        let nodes = MemoryNodeStore::default();
        let (before, after) = (state(&nodes, &paths, "old"), state(&nodes, &paths, "new"));
        let Cause::Files { files, count, .. } = between(None, &before, &after, &nodes) else {
            panic!("it is about files");
        };
        assert_eq!(count, FILES_MAX + 10);
        assert!(files.iter().map(|file| &file.path).eq(&names[..FILES_MAX]));
    }

    #[test]
    fn when_nodes_are_lost_only_that_something_changed_is_known() {
        let (nodes, half) = (MemoryNodeStore::default(), MemoryNodeStore::default());
        let paths = ["a", "b/", "b/f"];
        let before = state(&nodes, &paths, "old");
        let after = state(&nodes, &paths, "new");
        for tree in [&before, &after] {
            half.put_nodes(&[EncodedNode::of(&nodes.node(&tree.node).unwrap())]).unwrap();
        }
        let unknown = Cause::Files { from: None, files: Vec::new(), count: 0 };
        assert_eq!(between(None, &before, &after, &half), unknown);
    }
}
