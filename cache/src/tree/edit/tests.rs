use std::collections::BTreeMap;
use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::layer::{DiffEntry, Mtime};
use crate::tree::batch::BATCH_BYTES;
use crate::tree::testing::{
    Model, apply_model, copy_nodes, diff, diff_of, dir, file, groups as groups_of, link, listing, meta,
    model_diff, path, steps, tree, tree_linked,
};
use crate::tree::{DirEntries, DirNode, MemoryNodeStore, NodeStoreError, difference};

#[test]
fn an_edit_changes_only_what_it_names() {
    let nodes = MemoryNodeStore::default();
    let base = tree(&nodes, &[("a", dir(0o755)), ("a/x", file("x")), ("b", dir(0o700)), ("b/y", file("yy"))]);
    let next = base
        .apply(
            &nodes,
            &diff(&[("b", dir(0o711)), ("b/n", link("y")), ("b/y", Change::Whiteout)]),
            &Scratch::for_test(),
        )
        .unwrap();
    assert_eq!(
        listing(&nodes, &next),
        ["d 755 0:0 a", "f 644 0:0 a/x 1", "d 711 0:0 b", "l 777 0:0 b/n -> y"]
    );
    assert_eq!(next.get(&nodes, &path("a")).unwrap(), base.get(&nodes, &path("a")).unwrap());
    assert_eq!(next.get(&nodes, &path("b/n/z")).unwrap(), None);
    assert_eq!(next.get(&nodes, &RelPath::root()).unwrap(), Some(next.root_entry()));
}

#[test]
fn parents_need_not_be_listed_but_must_be_directories() {
    let nodes = MemoryNodeStore::default();
    let base = tree(&nodes, &[("a", dir(0o755)), ("f", file("F"))]);
    let next = base.apply(&nodes, &diff(&[("a/x", file("x"))]), &Scratch::for_test()).unwrap();
    assert_eq!(listing(&nodes, &next), ["d 755 0:0 a", "f 644 0:0 a/x 1", "f 644 0:0 f 1"]);
    for entries in [[("f/x", file("x"))], [("none/x", file("x"))]] {
        let error = base.apply(&nodes, &diff(&entries), &Scratch::for_test()).unwrap_err();
        assert!(matches!(error, TreeError::ParentNotDirectory { .. }), "{error}");
    }
}

#[test]
fn opaque_directories_and_replacements_hide_what_was_there() {
    let nodes = MemoryNodeStore::default();
    let base = tree(&nodes, &[("a", dir(0o755)), ("a/x", file("x")), ("f", file("F"))]);
    let opaque = Change::Dir { meta: meta(0o750), opaque: true };
    let next = base
        .apply(&nodes, &diff(&[("a", opaque), ("a/y", file("y")), ("f", dir(0o700))]), &Scratch::for_test())
        .unwrap();
    assert_eq!(listing(&nodes, &next), ["d 750 0:0 a", "f 644 0:0 a/y 1", "d 700 0:0 f"]);
    let next = base.apply(&nodes, &diff(&[("a", file("A"))]), &Scratch::for_test()).unwrap();
    assert_eq!(listing(&nodes, &next), ["f 644 0:0 a 1", "f 644 0:0 f 1"]);
}

#[test]
fn the_root_takes_metadata_and_nothing_else() {
    let nodes = MemoryNodeStore::default();
    let next = Tree::empty()
        .apply(&nodes, &diff(&[("", dir(0o711)), ("f", file("F"))]), &Scratch::for_test())
        .unwrap();
    assert_eq!(next.root, meta(0o711));
    let error = Tree::empty().apply(&nodes, &diff(&[("", file("F"))]), &Scratch::for_test()).unwrap_err();
    assert!(matches!(error, TreeError::RootReplaced));
}

#[test]
fn a_touched_path_leaves_its_link_group() {
    let nodes = MemoryNodeStore::default();
    let base = tree_linked(
        &nodes,
        &[("a", file("A")), ("d", dir(0o755)), ("d/f", file("E"))],
        &[("b", "a"), ("c", "a"), ("e", "d/f")],
    );
    let groups = |tree: &Tree| format!("{:?}", groups_of(&nodes, &tree.links));
    assert_eq!(groups(&base), r#"[["a", "b", "c"], ["d/f", "e"]]"#);
    let next = base.apply(&nodes, &diff(&[("b", file("B"))]), &Scratch::for_test()).unwrap();
    assert_eq!(groups(&next), r#"[["a", "c"], ["d/f", "e"]]"#);
    let next = base.apply(&nodes, &diff(&[("d", Change::Whiteout)]), &Scratch::for_test()).unwrap();
    assert_eq!(groups(&next), r#"[["a", "b", "c"]]"#);
    let next = base.apply(&nodes, &diff(&[("d", dir(0o700))]), &Scratch::for_test()).unwrap();
    assert_eq!(groups(&next), groups(&base), "a directory's metadata moves no group");
    assert!(std::ptr::eq(next.links.nodes(), base.links.nodes()), "nor makes it again");
    assert_ne!(base.digest(), tree(&nodes, &[("a", file("A"))]).digest());
}

#[test]
fn malformed_diffs_are_refused() {
    let nodes = MemoryNodeStore::default();
    let entry = |at: &str, change| DiffEntry { path: path(at), change, mtime: Mtime::default() };
    let apply = |entries: Vec<DiffEntry>| {
        Tree::empty().apply(&nodes, &LayerDiff::from_iter(entries), &Scratch::for_test())
    };
    let error = apply(vec![entry("b", file("")), entry("a", file(""))]).unwrap_err();
    assert!(matches!(error, TreeError::Unsorted { path } if path.to_string() == "a"));
    assert!(matches!(
        apply(vec![entry("a", file("")), entry("a", file(""))]),
        Err(TreeError::Unsorted { .. })
    ));
    let hard = |target: &str| Change::Hardlink { target: path(target) };
    for target in ["a", "b", "c"] {
        let entries = vec![entry("a", dir(0o755)), entry("b", hard(target)), entry("c", file(""))];
        assert!(matches!(apply(entries), Err(TreeError::LinkTarget { .. })), "{target}");
    }
    assert!(matches!(apply(vec![entry(&"x".repeat(256), file(""))]), Err(TreeError::Unfit { .. })));
    assert!(matches!(apply(vec![entry("a", link(""))]), Err(TreeError::Unfit { .. })));
    assert!(matches!(apply(vec![entry("a", dir(0o20_000))]), Err(TreeError::Unfit { .. })));
    assert!(nodes.is_empty(), "a refused diff keeps nothing");
}

/// The layer that turns `old` into `new`.
fn layer_between(nodes: &dyn NodeStore, old: &Tree, new: &Tree) -> LayerDiff {
    let mut changes: BTreeMap<RelPath, Change> = BTreeMap::new();
    let as_change = |entry: &Entry, replaces: bool| match entry.kind.clone() {
        Kind::Dir(_) => Change::Dir { meta: entry.meta.clone(), opaque: replaces },
        Kind::File { size, content } => Change::File { meta: entry.meta.clone(), size, content },
        Kind::Symlink(target) => Change::Symlink { meta: entry.meta.clone(), target },
        Kind::Fifo => Change::Fifo { meta: entry.meta.clone() },
        other => panic!("{other:?} is not generated"),
    };
    for change in difference(nodes, old, new) {
        let change = change.unwrap();
        let made = match &change.new {
            None => Change::Whiteout,
            Some(entry) => as_change(entry, false),
        };
        changes.insert(change.path, made);
    }
    let regroup = |a: &Tree, b: &Tree| -> Vec<Vec<RelPath>> {
        let others = groups_of(nodes, &b.links);
        groups_of(nodes, &a.links).into_iter().filter(|group| !others.contains(group)).collect()
    };
    for path in regroup(old, new).into_iter().flatten() {
        if let Some(entry) =
            new.get(nodes, &path).unwrap().filter(|entry| !matches!(entry.kind, Kind::Dir(_)))
        {
            changes.insert(path, as_change(&entry, false));
        }
    }
    for group in regroup(new, old) {
        let entry = new.get(nodes, &group[0]).unwrap().unwrap();
        changes.insert(group[0].clone(), as_change(&entry, false));
        for path in &group[1..] {
            changes.insert(path.clone(), Change::Hardlink { target: group[0].clone() });
        }
    }
    diff_of(changes)
}

proptest! {
    #[test]
    fn applying_a_difference_gives_the_other_tree(old in steps(), new in steps()) {
        let nodes = MemoryNodeStore::default();
        let build = |steps: &[_]| Tree::empty().apply(&nodes, &model_diff(&apply_model(steps)), &Scratch::for_test()).unwrap();
        let (old_tree, new_tree) = (build(&old), build(&new));
        let layer = layer_between(&nodes, &old_tree, &new_tree);
        prop_assert_eq!(&old_tree.apply(&nodes, &layer, &Scratch::for_test()).unwrap(), &new_tree);
        let equal = apply_model(&old) == apply_model(&new) || model_diff(&apply_model(&old)) == model_diff(&apply_model(&new));
        prop_assert_eq!(old_tree.digest() == new_tree.digest(), equal);
        prop_assert!(difference(&nodes, &new_tree, &new_tree).next().is_none());
    }

    #[test]
    fn step_by_step_is_the_same_as_at_once(steps in steps(), cut in 0_usize..40) {
        let nodes = MemoryNodeStore::default();
        let fresh = MemoryNodeStore::default();
        let half = Tree::empty()
            .apply(&nodes, &model_diff(&apply_model(&steps[..cut.min(steps.len())])), &Scratch::for_test()).unwrap();
        let whole = Tree::empty().apply(&fresh, &model_diff(&apply_model(&steps)), &Scratch::for_test()).unwrap();
        copy_nodes(&fresh, &nodes, &whole);
        let layer = layer_between(&nodes, &half, &whole);
        prop_assert_eq!(half.apply(&nodes, &layer, &Scratch::for_test()).unwrap(), whole);
    }

    #[test]
    fn a_directory_in_parts_is_the_same_however_it_came_about(
        old in wide(),
        new in wide(),
        is_of_earlier_version: bool,
    ) {
        let (nodes, fresh) = (MemoryNodeStore::default(), MemoryNodeStore::default());
        let mut old_tree = Tree::empty().apply(&nodes, &model_diff(&old), &Scratch::for_test()).unwrap();
        // Which had no parts.
        if is_of_earlier_version && old != new {
            let mut reader = DirReader::open(&nodes, &old_tree.node).unwrap();
            let next = || reader.next().unwrap().map(|(name, entry)| (name.to_vec(), entry.clone()));
            let whole = EncodedNode::of(&std::iter::from_fn(next).collect::<DirEntries>().into());
            old_tree.node = whole.digest();
            nodes.put_nodes(&[whole]).unwrap();
        }
        let new_tree = Tree::empty().apply(&fresh, &model_diff(&new), &Scratch::for_test()).unwrap();
        let whiteouts = old.keys().filter(|at| !new.contains_key(at)).map(|at| (at.clone(), Change::Whiteout));
        let others = new.iter().filter(|(at, change)| old.get(*at) != Some(*change));
        let differing = diff_of(whiteouts.chain(others.map(|(at, (change, _))| (at.clone(), change.clone()))));
        prop_assert_eq!(&old_tree.apply(&nodes, &differing, &Scratch::for_test()).unwrap(), &new_tree);
        let walked: Vec<_> = new_tree.walk(&nodes, &RelPath::root()).unwrap().map(|s| s.unwrap().0).collect();
        prop_assert!(walked.iter().skip(1).eq(new.keys()));
        for at in old.keys().chain(new.keys()) {
            prop_assert_eq!(new_tree.get(&nodes, at).unwrap().is_some(), new.contains_key(at));
        }
        let found: Vec<_> = difference(&nodes, &old_tree, &new_tree).map(|c| c.unwrap().path).collect();
        let wanted: Vec<_> = differing.entries().into_iter().map(|entry| entry.path).collect();
        prop_assert_eq!(found, wanted);
    }
}

/// Files in one directory.
fn wide() -> impl Strategy<Value = Model> {
    let content = prop_oneof![3 => Just("one"), 1 => Just("two")];
    let files = prop::collection::btree_map(0_u8..60, content, 0..60);
    files.prop_map(|files| {
        files.into_iter().map(|(at, content)| (path(&format!("f{at:02}")), (file(content), None))).collect()
    })
}

#[test]
fn new_nodes_go_to_the_store_in_portions() {
    struct Portions {
        nodes: MemoryNodeStore,
        puts: Mutex<Vec<usize>>,
    }
    impl NodeStore for Portions {
        fn node(&self, digest: &NodeDigest) -> Result<DirNode, NodeStoreError> {
            self.nodes.node(digest)
        }

        fn put_nodes(&self, nodes: &[EncodedNode]) -> Result<(), NodeStoreError> {
            self.puts.lock().unwrap().push(nodes.iter().map(|node| node.bytes().len()).sum());
            self.nodes.put_nodes(nodes)
        }
    }
    let nodes = Portions { nodes: MemoryNodeStore::default(), puts: Mutex::default() };
    let dirs = (0..300).map(|at| (path(&format!("d{at:03}")), dir(0o755)));
    let files = (0..30_000).map(|at| (path(&format!("d{:03}/file-{at}", at / 100)), file("x")));
    let made = Tree::empty().apply(&nodes, &diff_of(dirs.chain(files)), &Scratch::for_test()).unwrap();
    let puts = nodes.puts.into_inner().unwrap();
    assert!(puts.len() > 2 && puts.iter().all(|bytes| *bytes < 2 * BATCH_BYTES), "{puts:?}");
    assert_eq!(made.walk(&nodes.nodes, &RelPath::root()).unwrap().count(), 1 + 300 + 30_000);
}
