//! A selection as one tree, so that two of them can be compared path by path.

use std::io;

use super::{SelectError, Selections, SelectionsError};
use crate::layer::{FieldReader, is_below, put_bytes};
use crate::path::compare;
use crate::scratch::Scratch;
use crate::sorter::Sorter;
use crate::tree::{
    EMPTY_NODE, EncodedNode, Entry, Kind, Meta, NodeDigest, NodeStore, NodeStoreError, NodeWriter,
};

/// Lists everything selected at its path in the source, and keeps the new directory nodes in `made`. What is too much for
/// memory while it is sorted goes to a file of `scratch`.
///
/// Metadata of a selected directory itself is left out, as it is of keys. What is selected twice is listed once: what is
/// inside a selected directory as part of it, and of equal paths the first.
pub fn listing(
    selected: &Selections,
    made: &dyn NodeStore,
    scratch: &Scratch,
) -> Result<NodeDigest, SelectError> {
    let mut sorter = Sorter::new(scratch.clone(), |a: &[u8], b: &[u8]| compare(split(a).0, split(b).0));
    let mut head = Vec::new();
    for item in selected {
        let item = item?;
        let meta = match item.entry.kind {
            Kind::Dir(_) => dir_meta(),
            _ => item.entry.meta,
        };
        head.clear();
        put_bytes(&mut head, item.path.as_bytes());
        let entry = Entry { meta, kind: item.entry.kind };
        sorter.push(&[&head, &entry.encode()]).map_err(sort)?;
    }
    let mut sorted = sorter.sorted().map_err(sort)?;
    let mut way = Way { made, path: Vec::new(), open: Vec::new(), top: NodeWriter::new() };
    let mut last = Vec::new();
    while let Some(record) = sorted.next().map_err(sort)? {
        let (path, entry) = split(record);
        let entry = Entry::decode(entry).map_err(|_| sort(io::ErrorKind::InvalidData.into()))?;
        if path.is_empty() {
            // Everything else is inside. A source tree's root is a directory.
            return Ok(if let Kind::Dir(node) = entry.kind { node } else { *EMPTY_NODE });
        }
        // What is inside something comes right after it.
        if path != last && !is_below(path, &last) {
            way.put(path, &entry)?;
            last.clear();
            last.extend_from_slice(path);
        }
    }
    Ok(way.finish()?)
}

/// Path and entry of what is sorted.
fn split(record: &[u8]) -> (&[u8], &[u8]) {
    let mut reader = FieldReader::new(record, 0);
    // What was put there.
    let path = reader.string().unwrap_or_default();
    (path, &record[reader.at()..])
}

fn sort(source: io::Error) -> SelectionsError {
    SelectionsError { doing: "sort", source }
}

fn dir_meta() -> Meta {
    Meta { mode: 0o755, ..Meta::default() }
}

/// The directories that lead to where the listing is.
struct Way<'a> {
    made: &'a dyn NodeStore,
    /// Path of the innermost.
    path: Vec<u8>,
    /// Those below the root, outermost first.
    open: Vec<NodeWriter>,
    top: NodeWriter,
}

impl Way<'_> {
    /// Lists what comes after all before, and is neither the root nor inside anything that was put.
    fn put(&mut self, path: &[u8], entry: &Entry) -> Result<(), NodeStoreError> {
        let (dir, name) = cut(path);
        while !(self.path.is_empty() || self.path == dir || is_below(dir, &self.path)) {
            self.close()?;
        }
        for name in dir[self.path.len()..].split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name);
            self.open.push(NodeWriter::new());
        }
        self.entry(name, entry)
    }

    /// Ends the innermost directory.
    fn close(&mut self) -> Result<(), NodeStoreError> {
        let Some(inner) = self.open.pop() else { return Ok(()) };
        let made = self.made;
        let node = inner.finish(&mut |node: EncodedNode| made.put_nodes(&[node]))?;
        let (dir, name) = cut(&self.path);
        let (dir_len, name) = (dir.len(), name.to_vec());
        self.path.truncate(dir_len);
        self.entry(&name, &Entry { meta: dir_meta(), kind: Kind::Dir(node) })
    }

    fn entry(&mut self, name: &[u8], entry: &Entry) -> Result<(), NodeStoreError> {
        let made = self.made;
        let put = &mut |node: EncodedNode| made.put_nodes(&[node]);
        self.open.last_mut().unwrap_or(&mut self.top).entry(name, entry, put)
    }

    fn finish(mut self) -> Result<NodeDigest, NodeStoreError> {
        while !self.open.is_empty() {
            self.close()?;
        }
        self.top.finish(&mut |node: EncodedNode| self.made.put_nodes(&[node]))
    }
}

/// A path's directory and name.
fn cut(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::path::RelPath;
    use crate::tree::select::Selected;
    use crate::tree::select::testing::list;
    use crate::tree::{ContentDigest, LinksBelow, MemoryNodeStore, Tree, difference};

    fn file(path: &str, content: &[u8], mode: u32) -> Selected {
        let path = RelPath::clamp(path.as_bytes());
        let kind = Kind::File { size: content.len() as u64, content: ContentDigest::of(content) };
        let meta = Meta { mode, ..Meta::default() };
        Selected {
            name: path.name().to_vec(),
            path,
            entry: Entry { meta, kind },
            links: LinksBelow::default(),
        }
    }

    fn listing(selected: &[Selected], made: &dyn NodeStore) -> NodeDigest {
        super::listing(&list(selected), made, &Scratch::for_test()).unwrap()
    }

    #[test]
    fn listings_differ_at_the_paths_of_the_source() {
        let nodes = MemoryNodeStore::default();
        let tree = |selected: &[Selected]| Tree { node: listing(selected, &nodes), ..Tree::empty() };
        let old =
            tree(&[file("src/a.rs", b"1", 0o644), file("run.sh", b"x", 0o664), file("same", b"s", 0o644)]);
        let new =
            tree(&[file("src/a.rs", b"2", 0o644), file("run.sh", b"x", 0o644), file("same", b"s", 0o644)]);
        let changes = difference(&nodes, &old, &new);
        let paths: Vec<String> = changes.map(|change| change.unwrap().path.to_string()).collect();
        assert_eq!(paths, ["run.sh", "src/a.rs"]);
    }

    #[test]
    fn what_is_inside_a_selected_directory_is_listed_once() {
        let nodes = MemoryNodeStore::default();
        let inner = listing(&[file("a", b"1", 0o644)], &nodes);
        let path = RelPath::clamp(b"dir");
        let kind = Kind::Dir(inner);
        let entry = Entry { meta: Meta { mode: 0o700, ..Meta::default() }, kind };
        let dir = Selected { name: b"dir".to_vec(), path, entry, links: LinksBelow::default() };
        let both = listing(&[file("dir/a", b"1", 0o644), dir.clone()], &nodes);
        assert_eq!(both, listing(&[dir.clone(), file("dir/a", b"1", 0o644)], &nodes));
        assert_eq!(both, listing(&[dir], &nodes));
    }

    /// What stands at a path of a listing.
    enum Place {
        /// A directory on the way to what is selected.
        Way(BTreeMap<Vec<u8>, Place>),
        /// Something selected, with all below it.
        Chosen(Entry),
    }

    /// A listing made in memory, item by item.
    fn model(selected: &[Selected], made: &dyn NodeStore) -> NodeDigest {
        let mut top = Place::Way(BTreeMap::new());
        for item in selected {
            let meta = match item.entry.kind {
                Kind::Dir(_) => dir_meta(),
                _ => item.entry.meta.clone(),
            };
            let mut place = &mut top;
            for name in item.path.components() {
                match place {
                    Place::Way(names) => {
                        place = names.entry(name.to_vec()).or_insert_with(|| Place::Way(BTreeMap::new()));
                    }
                    Place::Chosen(_) => break,
                }
            }
            if let Place::Way(_) = place {
                *place = Place::Chosen(Entry { meta, kind: item.entry.kind.clone() });
            }
        }
        match close(top, made).kind {
            Kind::Dir(node) => node,
            _ => *EMPTY_NODE,
        }
    }

    fn close(place: Place, made: &dyn NodeStore) -> Entry {
        let names = match place {
            Place::Chosen(entry) => return entry,
            Place::Way(names) => names,
        };
        let entries = names.into_iter().map(|(name, place)| (name, close(place, made))).collect();
        Entry { meta: dir_meta(), kind: Kind::Dir(crate::tree::testing::put_dir(made, &entries)) }
    }

    fn items() -> impl Strategy<Value = Selected> {
        let paths = prop_oneof![1 => Just(String::new()), 99 => "[ab.+]{1,2}[a-d](/[a-c][.a-c]?d){0,3}"];
        (paths, any::<Option<[u8; 32]>>(), 0..0o10000_u32).prop_map(|(at, node, mode)| {
            let mut item = file(&at, at.as_bytes(), mode);
            item.entry.kind = node.map_or(item.entry.kind, |node| Kind::Dir(NodeDigest(node)));
            item
        })
    }

    proptest! {
        #[test]
        fn a_listing_is_what_it_is_item_by_item(selected in prop::collection::vec(items(), 0..200)) {
            let (nodes, expected) = (MemoryNodeStore::default(), MemoryNodeStore::default());
            let top = listing(&selected, &nodes);
            prop_assert_eq!(top, model(&selected, &expected));
            prop_assert_eq!(nodes.len(), expected.len());
        }
    }
}
