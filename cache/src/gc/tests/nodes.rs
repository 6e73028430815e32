//! Which directory nodes stay: many of them, and some that were lost for a while.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::tree::{DirNode, EncodedNode};

/// A node with a directory for each of these, and something of its own.
fn node(number: usize, below: &BTreeSet<NodeDigest>) -> EncodedNode {
    let mut entries = DirEntries::default();
    let meta = Meta { uid: number as u32, ..Meta::default() };
    entries.insert(b"pipe".to_vec(), Entry { meta, kind: Kind::Fifo });
    for (at, node) in below.iter().enumerate() {
        let entry = Entry { meta: Meta::default(), kind: Kind::Dir(*node) };
        entries.insert(format!("{at}").into_bytes(), entry);
    }
    EncodedNode::of(&DirNode::Entries(entries.into()))
}

/// All that is in the file of nodes: they are loaded by no store.
fn stored(root: &Path) -> BTreeSet<NodeDigest> {
    let connection = rusqlite::Connection::open(root.join("trees.sqlite")).unwrap();
    let mut statement = connection.prepare("SELECT digest FROM nodes").unwrap();
    let rows = statement.query_map([], |row| row.get(0).map(NodeDigest)).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

fn reachable(
    below: &BTreeMap<NodeDigest, BTreeSet<NodeDigest>>,
    roots: impl IntoIterator<Item = NodeDigest>,
) -> BTreeSet<NodeDigest> {
    let (mut found, mut work) = (BTreeSet::new(), Vec::from_iter(roots));
    while let Some(node) = work.pop() {
        if let Some(below) = below.get(&node)
            && found.insert(node)
        {
            work.extend(below);
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    /// Nodes that share what is below them, of which some are lost, and results some of which go.
    #[test]
    fn what_results_lead_to_stays_and_nothing_else(
        shape in prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..6), 1..120),
        lost in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
        roots in prop::collection::vec(any::<prop::sample::Index>(), 1..8),
        kept in any::<u8>(),
    ) {
        let (_dir, root) = fresh();
        let store = open(&root);
        let lease = store.lease().unwrap();
        let (mut nodes, mut below) = (Vec::<NodeDigest>::new(), BTreeMap::new());
        for (number, shape) in shape.iter().enumerate() {
            // Mostly of what came last: they are deep.
            let near = |at: &prop::sample::Index| nodes[nodes.len() - 1 - at.index(nodes.len().min(12))];
            let dirs: BTreeSet<_> = shape.iter().filter(|_| !nodes.is_empty()).map(near).collect();
            let made = node(number, &dirs);
            store.put_nodes(std::slice::from_ref(&made)).unwrap();
            nodes.push(made.digest());
            below.insert(made.digest(), dirs);
        }
        let (named, given_up) = (commit_layer(&store, &lease, "named"), commit_layer(&store, &lease, "given up"));
        let config = store.put_blob(&lease, b"config").unwrap();
        store.put_image("app", &image(config, &[named])).unwrap();
        let (mut staying, mut going) = (Vec::new(), Vec::new());
        for (number, at) in roots.iter().enumerate() {
            let tree = Tree { node: *at.get(&nodes), ..Tree::empty() };
            let is_kept = kept >> number & 1 == 1;
            let layer = if is_kept { named } else { given_up };
            store.put_result(&key(number as u8), &record(&tree, &[layer], 1)).unwrap();
            if is_kept { staying.push(tree.node) } else { going.push(tree.node) }
        }
        drop((lease, store));
        let connection = rusqlite::Connection::open(root.join("trees.sqlite")).unwrap();
        for at in &lost {
            connection.execute("DELETE FROM nodes WHERE digest = ?1", [at.get(&nodes).0]).unwrap();
            below.remove(at.get(&nodes));
        }
        drop(connection);
        let before = stored(&root);
        prop_assert_eq!(before.len(), below.len());

        // Somebody else has the store open, so all that goes waits.
        let reader = open(&root);
        let collected = collect(&root, &Policy::default());
        prop_assert_eq!((collected.results, collected.nodes), (going.len() as u64, 0));
        prop_assert_eq!(stored(&root), before.clone());
        let left = reachable(&below, staying);
        prop_assert_eq!(condemned_nodes(&root), before.difference(&left).copied().collect::<BTreeSet<_>>());
        drop(reader);
        let collected = collect(&root, &Policy::default());
        prop_assert_eq!(collected.nodes as usize, before.len() - left.len());
        prop_assert_eq!(stored(&root), left);
        prop_assert_eq!(condemned_nodes(&root), BTreeSet::new());
    }
}

/// A build that knows a node stores what is missing above it only.
#[test]
fn what_is_below_a_node_that_comes_back_during_a_collection_stays() {
    let (_dir, root) = fresh();
    let store = open(&root);
    let lease = store.lease().unwrap();
    let layer = commit_layer(&store, &lease, "named");
    let config = store.put_blob(&lease, b"config").unwrap();
    store.put_image("app", &image(config, &[layer])).unwrap();
    let bottom = node(0, &BTreeSet::new());
    let middle = node(1, &[bottom.digest()].into());
    let top = node(2, &[middle.digest()].into());
    store.put_nodes(&[bottom.clone(), middle.clone(), top.clone()]).unwrap();
    let tree = Tree { node: top.digest(), ..Tree::empty() };
    store.put_result(&key(1), &record(&tree, &[layer], 1)).unwrap();
    drop((lease, store));
    let lose = |sql: &str| {
        let connection = rusqlite::Connection::open(root.join("trees.sqlite")).unwrap();
        assert_eq!(connection.execute(sql, [middle.digest().0]).unwrap(), 1);
    };
    for loss in ["DELETE FROM nodes WHERE digest = ?1", "UPDATE nodes SET bytes = x'00' WHERE digest = ?1"] {
        lose(loss);
        let collector = until_free(|| Collector::open(&root, options()).unwrap());
        let mut pauses = 0;
        collector
            .run_with(&Policy::default(), || {
                pauses += 1;
                if pauses == 2 {
                    open(&root).put_nodes(std::slice::from_ref(&middle)).unwrap();
                }
            })
            .unwrap();
        let all = [&bottom, &middle, &top].map(EncodedNode::digest);
        assert_eq!((pauses, stored(&root)), (2, all.into()), "{loss}");
    }
}
