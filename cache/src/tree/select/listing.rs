//! A selection as one tree, so that two of them can be compared path by path.

use std::collections::BTreeMap;

use super::Selected;
use crate::tree::{EncodedNode, Entry, Kind, Meta, NodeDigest, NodeStore, NodeStoreError, NodeWriter};

/// What stands at a path of the listing.
enum Place {
    /// A directory on the way to what is selected.
    Way(BTreeMap<Vec<u8>, Place>),
    /// Something selected, with all below it.
    Chosen(Entry),
}

/// Lists everything selected at its path in the source, and keeps the new directory nodes in `made`.
///
/// Metadata of a selected directory itself is left out, as it is of keys. What is selected twice is listed once.
pub fn listing(selected: &[Selected], made: &dyn NodeStore) -> Result<NodeDigest, NodeStoreError> {
    let mut top = Place::Way(BTreeMap::new());
    for item in selected {
        let meta = match item.entry.kind {
            Kind::Dir(_) => Meta { mode: 0o755, ..Meta::default() },
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
    match top {
        Place::Chosen(Entry { kind: Kind::Dir(node), .. }) => Ok(node),
        // A source tree's root is a directory.
        Place::Chosen(_) => Ok(*crate::tree::EMPTY_NODE),
        Place::Way(names) => close(names, made),
    }
}

/// Paths of a tree are far shorter than what the stack takes.
fn close(names: BTreeMap<Vec<u8>, Place>, made: &dyn NodeStore) -> Result<NodeDigest, NodeStoreError> {
    let put = &mut |node: EncodedNode| made.put_nodes(&[node]);
    let mut out = NodeWriter::new();
    for (name, place) in names {
        let entry = match place {
            Place::Chosen(entry) => entry,
            Place::Way(below) => {
                let meta = Meta { mode: 0o755, ..Meta::default() };
                Entry { meta, kind: Kind::Dir(close(below, made)?) }
            }
        };
        out.entry(&name, &entry, put)?;
    }
    out.finish(put)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::RelPath;
    use crate::tree::{ContentDigest, LinkGroups, MemoryNodeStore, Tree, difference};

    fn file(path: &str, content: &[u8], mode: u32) -> Selected {
        let path = RelPath::clamp(path.as_bytes());
        let kind = Kind::File { size: content.len() as u64, content: ContentDigest::of(content) };
        let meta = Meta { mode, ..Meta::default() };
        Selected {
            name: path.name().to_vec(),
            path,
            entry: Entry { meta, kind },
            links: LinkGroups::default(),
        }
    }

    #[test]
    fn listings_differ_at_the_paths_of_the_source() {
        let nodes = MemoryNodeStore::default();
        let tree = |selected: &[Selected]| Tree { node: listing(selected, &nodes).unwrap(), ..Tree::empty() };
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
        let inner = listing(&[file("a", b"1", 0o644)], &nodes).unwrap();
        let path = RelPath::clamp(b"dir");
        let kind = Kind::Dir(inner);
        let entry = Entry { meta: Meta { mode: 0o700, ..Meta::default() }, kind };
        let dir = Selected { name: b"dir".to_vec(), path, entry, links: LinkGroups::default() };
        let both = listing(&[file("dir/a", b"1", 0o644), dir.clone()], &nodes).unwrap();
        assert_eq!(both, listing(&[dir.clone(), file("dir/a", b"1", 0o644)], &nodes).unwrap());
        assert_eq!(both, listing(&[dir], &nodes).unwrap());
    }
}
