use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::scratch::Scratch;
use crate::tree::testing::{apply_model, dir, file, model_diff, put_dir, steps, tree};
use crate::tree::{DirEntries, DirNode, EncodedNode, MemoryNodeStore};

/// All at once: a directory's differences before what is in them.
fn model(nodes: &dyn NodeStore, old: &Tree, new: &Tree) -> Result<Vec<TreeChange>, TreeError> {
    let mut changes = Vec::new();
    // Still to compare, next one last.
    let mut pending = vec![(RelPath::root(), Some(old.root_entry()), Some(new.root_entry()), 0_usize)];
    while let Some((path, old, new, depth)) = pending.pop() {
        if old == new {
            continue;
        }
        match (&old, &new) {
            (
                Some(Entry { meta: old_meta, kind: Kind::Dir(a) }),
                Some(Entry { meta: new_meta, kind: Kind::Dir(b) }),
            ) => {
                if depth >= DEPTH_MAX {
                    return Err(TreeError::TooDeep { path });
                }
                if a != b {
                    let (a, b) = (entries(nodes, a)?, entries(nodes, b)?);
                    let names = a.keys().chain(b.keys()).collect::<BTreeSet<_>>().into_iter().rev();
                    let of = |name: &[u8]| {
                        (path.join(name), a.get(name).cloned(), b.get(name).cloned(), depth + 1)
                    };
                    pending.extend(names.map(|name| of(name)));
                }
                if old_meta != new_meta {
                    changes.push(TreeChange { path, old, new });
                }
            }
            (_, Some(Entry { kind: Kind::Dir(_), .. })) => {
                let added = new.clone().into_iter().flat_map(|entry| Walk::of(nodes, entry));
                for step in added {
                    let (below, entry) = step?;
                    let old = if below.is_root() { old.clone() } else { None };
                    changes.push(TreeChange {
                        path: crate::tree::below(&path, &below),
                        old,
                        new: Some(entry),
                    });
                }
            }
            _ => changes.push(TreeChange { path, old, new }),
        }
    }
    Ok(changes)
}

fn entries(nodes: &dyn NodeStore, dir: &NodeDigest) -> Result<BTreeMap<Vec<u8>, Entry>, NodeStoreError> {
    let mut reader = DirReader::open(nodes, dir)?;
    let mut all = BTreeMap::new();
    while let Some((name, entry)) = reader.next()? {
        all.insert(name.to_vec(), entry.clone());
    }
    Ok(all)
}

/// Notes which nodes are asked for, and does not have one of them.
#[derive(Default)]
struct Asked {
    nodes: MemoryNodeStore,
    lost: Option<NodeDigest>,
    asked: Mutex<BTreeSet<NodeDigest>>,
}

impl NodeStore for Asked {
    fn node(&self, digest: &NodeDigest) -> Result<DirNode, NodeStoreError> {
        self.asked.lock().unwrap().insert(*digest);
        if self.lost == Some(*digest) {
            Err(NodeStoreError::Missing(*digest))
        } else {
            self.nodes.node(digest)
        }
    }

    fn put_nodes(&self, nodes: &[EncodedNode]) -> Result<(), NodeStoreError> {
        self.nodes.put_nodes(nodes)
    }
}

proptest! {
    #[test]
    fn one_by_one_is_the_same_as_all_at_once(
        old in steps(),
        new in steps(),
        lost: Option<prop::sample::Index>,
    ) {
        let mut nodes = Asked::default();
        let build = |steps: &[_]| Tree::empty().apply(&nodes, &model_diff(&apply_model(steps)), &Scratch::for_test()).unwrap();
        let (old, new) = (build(&old), build(&new));
        let all = model(&nodes, &old, &new).unwrap();
        nodes.asked.get_mut().unwrap().clear();
        prop_assert_eq!(&difference(&nodes, &old, &new).collect::<Result<Vec<_>, _>>().unwrap(), &all);
        // As far as it comes when a node is lost.
        let asked: Vec<_> = std::mem::take(nodes.asked.get_mut().unwrap()).into_iter().collect();
        if let (Some(lost), false) = (lost, asked.is_empty()) {
            nodes.lost = Some(*lost.get(&asked));
            let mut some = difference(&nodes, &old, &new);
            for change in &all {
                match some.next() {
                    Some(Ok(found)) => prop_assert_eq!(&found, change),
                    Some(Err(error)) => {
                        prop_assert!(matches!(error, TreeError::Nodes(_)), "{error}");
                        break;
                    }
                    None => prop_assert!(false, "it ended before {change:?}"),
                }
            }
            prop_assert!(some.open.is_empty() || matches!(some.next(), Some(Err(_))));
            prop_assert!(some.next().is_none());
        }
    }
}

#[test]
fn only_the_way_to_what_comes_next_is_loaded() {
    let nodes = Asked::default();
    let names: Vec<String> = (0..40).flat_map(|at| [format!("d{at:02}"), format!("d{at:02}/f")]).collect();
    let of = |content: &str| {
        let what = |at: &str| if at.len() == 3 { dir(0o755) } else { file(&format!("{content} {at}")) };
        tree(&nodes, &names.iter().map(|at| (&**at, what(at))).collect::<Vec<_>>())
    };
    let (empty, old, new) = (Tree::empty(), of("old"), of("new"));
    let loaded = |old, new, count| {
        nodes.asked.lock().unwrap().clear();
        assert_eq!(difference(&nodes, old, new).take(count).filter(|change| change.is_ok()).count(), count);
        nodes.asked.lock().unwrap().len()
    };
    // Both roots, the first part of each and the first directory of each.
    assert_eq!(loaded(&old, &new, 1), 6);
    // The root, its first part and one directory.
    assert_eq!(loaded(&empty, &new, 2), 3);
    // What is in a removed directory is not looked at.
    assert_eq!(loaded(&new, &empty, 40), loaded(&empty, &new, 80) - 40);
}

#[test]
fn too_deep_a_directory_is_an_error() {
    let nodes = MemoryNodeStore::default();
    let nested = |content: &str, depth: usize| {
        let content = crate::tree::ContentDigest::of(content.as_bytes());
        let mut entry = Entry { meta: Default::default(), kind: Kind::File { size: 1, content } };
        for _ in 0..depth {
            let node = put_dir(&nodes, &[(*b"d", entry)].into_iter().collect::<DirEntries>());
            entry = Entry { meta: Default::default(), kind: Kind::Dir(node) };
        }
        let Kind::Dir(node) = entry.kind else { panic!("it is a directory") };
        Tree { node, ..Tree::empty() }
    };
    for (depth, is_too_deep) in [(DEPTH_MAX, false), (DEPTH_MAX + 1, true)] {
        let (old, new) = (nested("a", depth), nested("b", depth));
        let mut changes = difference(&nodes, &old, &new);
        let last = changes.by_ref().last().unwrap();
        assert_eq!(matches!(last, Err(TreeError::TooDeep { .. })), is_too_deep, "{depth}");
        assert!(changes.next().is_none());
    }
}
