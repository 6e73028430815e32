//! Collection on real stores: what goes, what stays, who holds things back, and random operations against a model.

mod fsck;
mod model;
mod nodes;
mod processes;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rbuild_oci::{ChainId, DiffId, Digest};

use super::*;
use crate::layer::LayerDiff;
use crate::path::RelPath;
use crate::store::{ImageRecord, Key, LayerId, Lease, Resolution, ResultRecord, Store, StoreOptions};
use crate::tree::testing::put_dir;
use crate::tree::{DirEntries, Entry, Kind, Links, Meta, NodeDigest, NodeStore, Tree, entry_in};

pub(super) fn options() -> StoreOptions {
    // What a machine's stop loses is the store's own tests' business.
    StoreOptions { id_map: "test".to_owned(), durable: false }
}

pub(super) fn open(root: &Path) -> Store {
    Store::open(root, options()).unwrap()
}

fn fresh() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    (dir, root)
}

pub(super) fn collect(root: &Path, policy: &Policy) -> Collected {
    let collector = until_free(|| Collector::open(root, options()).unwrap());
    collector.run(policy).unwrap()
}

/// Tries until a lock is free: a child that another test is about to start holds every lock of this process between
/// its fork and its exec.
pub(super) fn until_free<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let until = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        match attempt() {
            Some(value) => return value,
            None if std::time::Instant::now() < until => std::thread::yield_now(),
            None => panic!("somebody else has the lock"),
        }
    }
}

pub(super) fn commit_layer(store: &Store, lease: &Lease, content: &str) -> LayerId {
    let draft = store.draft(lease).unwrap();
    std::fs::write(draft.diff_path().join("file"), content).unwrap();
    store.commit_layer(draft, &LayerDiff::saying(content), content.len() as u64).unwrap()
}

/// A stored tree of one directory in the root, and of names of one file, different for each seed.
pub(super) fn tree(store: &Store, seed: u32) -> Tree {
    let names = ["a", "b"].map(|name| RelPath::clamp(format!("{name}{seed}").as_bytes()));
    let links = Links::new([names.to_vec()], store).unwrap();
    Tree { node: root(store, seed), links, ..Tree::empty() }
}

fn root(store: &Store, seed: u32) -> NodeDigest {
    let mut inner = DirEntries::default();
    let meta = Meta { mode: 0o644, uid: seed, ..Meta::default() };
    inner.insert(b"pipe".to_vec(), Entry { meta, kind: Kind::Fifo });
    let inner_digest = put_dir(store, &inner);
    let mut node = DirEntries::default();
    node.insert(b"dir".to_vec(), Entry { meta: Meta::default(), kind: Kind::Dir(inner_digest) });
    put_dir(store, &node)
}

pub(super) fn nodes_of(store: &Store, tree: &Tree) -> Vec<NodeDigest> {
    let Kind::Dir(inner) = entry_in(store, &tree.node, b"dir").unwrap().unwrap().kind else {
        panic!("made by `tree`")
    };
    store.node(&inner).unwrap();
    tree.nodes().chain([inner]).collect()
}

pub(super) fn record(tree: &Tree, stack: &[LayerId], exec_ns: u64) -> ResultRecord {
    ResultRecord {
        tree: tree.clone(),
        tree_digest: tree.digest(),
        own_layer: stack.last().copied(),
        stack: Some(stack.to_vec()),
        read: Vec::new(),
        created_unix_ns: 5,
        exec_ns,
        description: "RUN true".to_owned(),
    }
}

pub(super) fn image(config: Digest, layers: &[LayerId]) -> ImageRecord {
    ImageRecord {
        config,
        layers: layers.to_vec(),
        diff_ids: vec![],
        manifest: None,
        index: None,
        others: Vec::new(),
        absent: None,
        platform: "linux/amd64".to_owned(),
        size_bytes: 0,
        created_unix_ns: 0,
    }
}

pub(super) fn key(n: u8) -> Key {
    Key::def([n; 32])
}

fn tamper(root: &Path, sql: &str) {
    let connection = rusqlite::Connection::open(root.join("index.sqlite")).unwrap();
    assert!(connection.execute(sql, []).unwrap() > 0, "{sql}");
}

#[test]
fn what_images_hold_stays_and_the_rest_goes_with_bytes_rows_and_nodes() {
    let (_dir, root) = fresh();
    let store = open(&root);
    let lease = store.lease().unwrap();
    let (base, kept, lost) = (
        commit_layer(&store, &lease, "base"),
        commit_layer(&store, &lease, "kept"),
        commit_layer(&store, &lease, "lost"),
    );
    let (kept_tree, lost_tree) = (tree(&store, 1), tree(&store, 2));
    store.put_result(&key(1), &record(&kept_tree, &[base, kept], 1)).unwrap();
    store.put_result(&key(2), &record(&lost_tree, &[base, lost], 1)).unwrap();
    let layer_blob = store.put_blob(&lease, b"a layer's tar").unwrap();
    let manifest = format!(r#"{{"layers":[{{"digest":"{layer_blob}"}}]}}"#);
    let manifest = store.put_blob(&lease, manifest.as_bytes()).unwrap();
    let config = store.put_blob(&lease, b"config").unwrap();
    let unnamed = store.put_blob(&lease, b"unnamed").unwrap();
    store
        .put_image("app", &ImageRecord { manifest: Some(manifest), ..image(config, &[base, kept]) })
        .unwrap();
    let (kept_nodes, lost_nodes) = (nodes_of(&store, &kept_tree), nodes_of(&store, &lost_tree));
    drop((lease, store));

    let collected = collect(&root, &Policy::default());
    assert_eq!((collected.layers, collected.blobs, collected.results), (1, 1, 1));
    assert_eq!((collected.freed_bytes, collected.deferred_bytes), (4 + 7, 0));
    assert_eq!(collected.nodes, lost_nodes.len() as u64);
    let store = open(&root);
    assert!(store.result(&key(1)).unwrap().is_some());
    assert!(store.result(&key(2)).unwrap().is_none());
    assert!(store.has_layers(&[base, kept]).unwrap());
    assert!(!store.layer_path(lost).exists());
    for blob in [layer_blob, manifest, config] {
        assert!(store.blob(&blob).unwrap().is_some());
    }
    assert!(store.blob(&unnamed).unwrap().is_none());
    kept_nodes.iter().for_each(|node| drop(store.node(node).unwrap()));
    lost_nodes.iter().for_each(|node| assert!(store.node(node).is_err()));
    assert_eq!(std::fs::read_dir(root.join("work")).unwrap().count(), 0);
    assert_eq!(collect(&root, &Policy::default()).given_up, [], "a second run finds nothing");
}

#[test]
fn a_reader_keeps_what_it_may_have_found_until_it_ends_and_a_later_one_does_not_see_it() {
    let (_dir, root) = fresh();
    let store = open(&root);
    let lease = store.lease().unwrap();
    let layer = commit_layer(&store, &lease, "x");
    let blob = store.put_blob(&lease, b"blob").unwrap();
    let tree = tree(&store, 1);
    let nodes = nodes_of(&store, &tree);
    store.put_result(&key(1), &record(&tree, &[layer], 1)).unwrap();
    drop(lease);

    let collected = collect(&root, &Policy::default());
    assert_eq!((collected.layers, collected.freed_bytes, collected.deferred_bytes), (0, 0, 5));
    let later = open(&root);
    assert!(later.result(&key(1)).unwrap().is_none() && later.layer(layer).unwrap().is_none());
    assert!(later.blob(&blob).unwrap().is_none());
    // The first one still has it all.
    assert!(store.layer(layer).unwrap().is_some() && store.layer_path(layer).join("file").exists());
    assert!(store.blob(&blob).unwrap().is_some());
    // Whoever came later holds nothing back.
    drop(store);
    let collected = collect(&root, &Policy::default());
    assert_eq!((collected.layers, collected.blobs, collected.freed_bytes), (1, 1, 5));
    assert!(!later.layer_path(layer).exists());
    assert!(nodes.iter().all(|node| later.node(node).is_err()));
}

#[test]
fn what_a_reader_records_after_it_was_condemned_is_saved() {
    let (_dir, root) = fresh();
    let store = open(&root);
    let lease = store.lease().unwrap();
    let (named, cached) = (commit_layer(&store, &lease, "named"), commit_layer(&store, &lease, "cached"));
    let config = store.put_blob(&lease, b"config").unwrap();
    let tree = tree(&store, 1);
    let nodes = nodes_of(&store, &tree);
    assert_eq!(collect(&root, &Policy::default()).given_up.len(), 3);
    store.put_image("app", &image(config, &[named])).unwrap();
    store.put_result(&key(1), &record(&tree, &[named, cached], 1)).unwrap();
    drop((lease, store));

    let collected = collect(&root, &Policy { keep: Duration::from_secs(3600), ..Policy::default() });
    assert_eq!((collected.layers, collected.blobs, collected.nodes), (0, 0, 0));
    let store = open(&root);
    assert!(store.result(&key(1)).unwrap().is_some());
    assert!(store.blob(&config).unwrap().is_some());
    assert!(nodes.iter().all(|node| store.node(node).is_ok()));
}

#[test]
fn nodes_that_are_stored_again_while_they_wait_are_kept() {
    let (_dir, root) = fresh();
    let first = open(&root);
    let nodes = nodes_of(&first, &tree(&first, 1));
    collect(&root, &Policy::default());
    let second = open(&root);
    drop(first);
    let again = tree(&second, 1);
    // The first reader is gone, the second has recorded nothing yet.
    collect(&root, &Policy::default());
    second.put_result(&key(1), &record(&again, &[], 1)).unwrap();
    drop(second);
    collect(&root, &Policy::default());
    let store = open(&root);
    assert!(nodes.iter().all(|node| store.node(node).is_ok()));
}

/// A stored tree with a directory for each seed, and all its nodes.
fn wide_tree(store: &Store, seeds: Range<u32>) -> (Tree, BTreeSet<NodeDigest>) {
    let mut dirs = DirEntries::default();
    for seed in seeds {
        let kind = Kind::Dir(root(store, seed));
        dirs.insert(seed.to_string().into_bytes(), Entry { meta: Meta::default(), kind });
    }
    let wide = Tree { node: put_dir(store, &dirs), ..Tree::empty() };
    let (mut nodes, mut work) = (BTreeSet::new(), vec![wide.node]);
    while let Some(digest) = work.pop() {
        nodes.insert(digest);
        work.extend(store.node(&digest).unwrap().below());
    }
    (wide, nodes)
}

fn condemned_nodes(root: &Path) -> BTreeSet<NodeDigest> {
    let connection = rusqlite::Connection::open(root.join("trees.sqlite")).unwrap();
    let mut statement = connection.prepare("SELECT digest FROM condemned").unwrap();
    let rows = statement.query_map([], |row| row.get(0).map(NodeDigest)).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

/// Far more than one transaction changes.
#[test]
fn many_nodes_are_condemned_held_by_a_later_reader_taken_back_and_freed() {
    let (_dir, root) = fresh();
    let first = open(&root);
    let lease = first.lease().unwrap();
    let (named, lost) = (commit_layer(&first, &lease, "named"), commit_layer(&first, &lease, "lost"));
    let config = first.put_blob(&lease, b"config").unwrap();
    first.put_image("app", &image(config, &[named])).unwrap();
    // The two have ten directories in common.
    let (kept_tree, kept) = wide_tree(&first, 0..30);
    let (lost_tree, going) = wide_tree(&first, 20..50);
    let going: BTreeSet<_> = going.difference(&kept).copied().collect();
    let lost_record = record(&lost_tree, &[lost], 1);
    first.put_result(&key(1), &record(&kept_tree, &[named], 1)).unwrap();
    first.put_result(&key(2), &lost_record).unwrap();
    drop(lease);
    let have_all = |store: &Store| kept.union(&going).all(|node| store.node(node).is_ok());

    assert_eq!(collect(&root, &Policy::default()).nodes, 0);
    assert_eq!(condemned_nodes(&root), going);

    // Recorded again, found by a later reader, and dropped at once: now it is the later one that they wait for.
    first.put_result(&key(3), &lost_record).unwrap();
    let second = open(&root);
    assert!(second.result(&key(3)).unwrap().is_some());
    let collected = collect(&root, &Policy::default());
    assert_eq!((collected.results, collected.nodes), (1, 0));
    drop(first);
    assert_eq!(collect(&root, &Policy::default()).nodes, 0);
    assert_eq!(condemned_nodes(&root), going);
    assert!(have_all(&open(&root)));

    second.put_result(&key(4), &lost_record).unwrap();
    drop(second);
    let keep = Policy { keep: Duration::from_secs(3600), ..Policy::default() };
    assert_eq!(collect(&root, &keep).nodes, 0);
    assert_eq!(condemned_nodes(&root), BTreeSet::new());
    assert!(have_all(&open(&root)));

    assert_eq!(collect(&root, &Policy::default()).nodes, going.len() as u64);
    let store = open(&root);
    assert!(kept.iter().all(|node| store.node(node).is_ok()));
    assert!(going.iter().all(|node| store.node(node).is_err()));
    assert_eq!(condemned_nodes(&root), BTreeSet::new());
}

#[test]
fn remembered_trees_stay_as_far_up_as_all_layers_of_a_known_stack_are_there() {
    let (_dir, root) = fresh();
    let store = open(&root);
    let lease = store.lease().unwrap();
    let diff_ids = ["a", "b", "c", "d"].map(|content| DiffId(Digest::of(content.as_bytes())));
    let layers = ["a", "b", "d"].map(|content| {
        let layer = commit_layer(&store, &lease, content);
        store.set_diff_id(layer, &DiffId(Digest::of(content.as_bytes())), 1).unwrap();
        layer
    });
    let config = store.put_blob(&lease, b"config").unwrap();
    // The third layer is nowhere, so what is above it is of no use.
    store.put_image("app", &ImageRecord { diff_ids: diff_ids.to_vec(), ..image(config, &layers) }).unwrap();
    let unknown = ChainId::of(&[diff_ids[1], diff_ids[0]]).unwrap();
    let chains: Vec<ChainId> = ChainId::each(&diff_ids).chain([unknown]).collect();
    let trees: Vec<Tree> = (1..).zip(&chains).map(|(seed, _)| tree(&store, seed)).collect();
    for (chain, tree) in chains.iter().zip(&trees) {
        store.put_chain_tree(chain, &tree.encode()).unwrap();
    }
    drop((lease, store));

    let collected = collect(&root, &Policy::default());
    let store = open(&root);
    let gone: usize = trees[2..].iter().map(|tree| tree.nodes().count() + 1).sum();
    assert_eq!(collected.nodes, gone as u64);
    for (at, (chain, tree)) in chains.iter().zip(&trees).enumerate() {
        let is_kept = at < 2;
        assert_eq!(store.chain_tree(chain).unwrap(), is_kept.then(|| tree.encode()), "{at}");
        assert!(tree.nodes().all(|node| store.node(&node).is_ok() == is_kept), "{at}");
    }
}

#[test]
fn one_collects_at_a_time() {
    let (_dir, root) = fresh();
    let first = Collector::open(&root, options()).unwrap();
    assert!(first.is_some() && Collector::open(&root, options()).unwrap().is_none());
    drop(first);
    assert!(Collector::open(&root, options()).unwrap().is_some());
}

#[test]
fn a_budget_gives_up_blobs_then_what_no_result_names_then_what_is_cheap_to_make_again() {
    let (_dir, root) = fresh();
    let store = open(&root);
    let lease = store.lease().unwrap();
    let text = "x".repeat(4096);
    let layers: Vec<_> = (0..3).map(|n| commit_layer(&store, &lease, &format!("{n}{text}"))).collect();
    let tree = tree(&store, 1);
    store.put_result(&key(1), &record(&tree, &[layers[0]], 60_000_000_000)).unwrap();
    store.put_result(&key(2), &record(&tree, &[layers[1]], 1_000_000)).unwrap();
    let blob = store.put_blob(&lease, text.as_bytes()).unwrap();
    drop((lease, store));
    let order = [blob.to_string(), layers[2].to_string(), layers[1].to_string(), layers[0].to_string()];
    for (left, count) in [(3_u64, 1), (2, 1), (1, 1), (1, 0)] {
        let collected = collect(&root, &Policy::budget(left * 4097));
        assert_eq!(collected.given_up.len(), count);
        if count > 0 {
            assert_eq!(collected.given_up[0].0, order[usize::try_from(3 - left).unwrap()]);
        }
    }
    assert!(open(&root).result(&key(1)).unwrap().is_some(), "a minute's work is what stays");
}

#[test]
fn what_was_used_just_now_stays_however_short_the_time() {
    let (_dir, root) = fresh();
    let store = open(&root);
    let lease = store.lease().unwrap();
    let layer = commit_layer(&store, &lease, "x");
    store.put_result(&key(1), &record(&tree(&store, 1), &[layer], 1)).unwrap();
    let half_an_hour_passes = || tamper(&root, "UPDATE results SET used = used - 31 * 60000000000");
    let hit = || {
        assert!(store.result(&key(1)).unwrap().is_some());
        store.sync().unwrap();
        root.join("uses").exists()
    };
    // A build that is repeated at once writes nothing.
    assert!(!hit());
    half_an_hour_passes();
    assert!(hit());
    drop((lease, store));
    let keep = |minutes: u64| Policy { keep: Duration::from_secs(minutes * 60), ..Policy::default() };
    assert_eq!(collect(&root, &keep(30)).given_up, [], "used a second ago");
    half_an_hour_passes();
    assert_eq!(collect(&root, &keep(32)).given_up, []);
    assert_eq!(collect(&root, &keep(30)).given_up.len(), 1);
}

#[test]
fn the_last_use_counts_for_every_layer_below() {
    let (_dir, root) = fresh();
    let store = open(&root);
    let lease = store.lease().unwrap();
    let layers: Vec<_> = (0..2).map(|n| commit_layer(&store, &lease, &n.to_string())).collect();
    let tree = tree(&store, 1);
    store.put_result(&key(1), &record(&tree, &layers[..1], 1)).unwrap();
    store.put_result(&key(2), &record(&tree, &layers, 1)).unwrap();
    tamper(&root, "UPDATE results SET used = 1");
    assert!(store.result(&key(2)).unwrap().is_some(), "a hit on the last step");
    store.sync().unwrap();
    assert!(root.join("uses").exists(), "a build that made nothing appends its use");
    drop((lease, store));
    let collected = collect(&root, &Policy { keep: Duration::from_secs(3600), ..Policy::default() });
    assert_eq!(collected.given_up, [], "both steps were used just now");
    assert!(!root.join("uses").exists());
    tamper(&root, "UPDATE results SET used = 1");
    assert_eq!(
        collect(&root, &Policy { keep: Duration::from_secs(3600), ..Policy::default() }).given_up.len(),
        2
    );
}

/// More than are recorded in one transaction, and some of them twice.
#[test]
fn uses_of_many_results_are_recorded() {
    let (_dir, root) = fresh();
    let store = open(&root);
    let lease = store.lease().unwrap();
    for n in 0..7 {
        let layer = commit_layer(&store, &lease, &n.to_string());
        store.put_result(&key(n), &record(&tree(&store, 1), &[layer], 1)).unwrap();
    }
    drop((lease, store));
    tamper(&root, "UPDATE results SET used = 1");
    for _ in 0..2 {
        let store = open(&root);
        assert!((0..7).all(|n| store.result(&key(n)).unwrap().is_some()));
        store.sync().unwrap();
    }
    // Who wrote it was killed.
    let uses = std::fs::OpenOptions::new().append(true).open(root.join("uses")).unwrap();
    std::io::Write::write_all(&mut &uses, b"cut").unwrap();
    let keep = Policy { keep: Duration::from_secs(3600), ..Policy::default() };
    assert_eq!(collect(&root, &keep).given_up, []);
    assert!(!root.join("uses").exists());
}

/// D11: what was used «later» than now counts as used now: it is old by no measure, and a budget takes it like the rest.
#[test]
fn a_clock_set_back_makes_nothing_old_and_nothing_immortal() {
    let (_dir, root) = fresh();
    let store = open(&root);
    let lease = store.lease().unwrap();
    let layer = commit_layer(&store, &lease, "x");
    store.put_result(&key(1), &record(&tree(&store, 1), &[layer], 1)).unwrap();
    drop((lease, store));
    tamper(&root, &format!("UPDATE results SET used = {}", i64::MAX));
    let keep = Policy { keep: Duration::from_secs(1), ..Policy::default() };
    assert_eq!(collect(&root, &keep).given_up, []);
    assert_eq!(collect(&root, &Policy::budget(0)).given_up.len(), 1);
    assert!(open(&root).result(&key(1)).unwrap().is_none());
}

#[test]
fn all_drops_results_of_images_but_not_the_images() {
    let (_dir, root) = fresh();
    let store = open(&root);
    let lease = store.lease().unwrap();
    let layer = commit_layer(&store, &lease, "x");
    let config = store.put_blob(&lease, b"config").unwrap();
    store.put_result(&key(1), &record(&tree(&store, 1), &[layer], 1)).unwrap();
    store.put_image("app", &image(config, &[layer])).unwrap();
    drop((lease, store));
    assert_eq!(collect(&root, &Policy::default()).results, 0);
    assert_eq!(collect(&root, &Policy { all: true, ..Policy::default() }).results, 1);
    let store = open(&root);
    assert!(store.result(&key(1)).unwrap().is_none() && store.has_layers(&[layer]).unwrap());
}

#[test]
fn directories_and_blobs_without_a_row_go_once_nobody_can_be_about_to_record_them() {
    let (_dir, root) = fresh();
    let store = open(&root);
    let lease = store.lease().unwrap();
    let layer = commit_layer(&store, &lease, "x");
    let blob = store.put_blob(&lease, b"x").unwrap();
    tamper(&root, "DELETE FROM layers");
    tamper(&root, "DELETE FROM blobs");
    drop(lease);
    assert_eq!(collect(&root, &Policy::default()).orphans, 1, "storing a blob renames and records at once");
    assert!(store.layer_path(layer).exists(), "the open store may be its maker");
    let blob = root.join(format!("blobs/sha256/{}/{}", &blob.hex()[..2], blob.hex()));
    assert!(!blob.exists());
    let path = store.layer_path(layer);
    drop(store);
    assert_eq!(collect(&root, &Policy::default()).orphans, 1);
    assert!(!path.exists());
}

#[test]
fn a_damaged_image_record_stops_collection() {
    let (_dir, root) = fresh();
    let store = open(&root);
    let lease = store.lease().unwrap();
    let layer = commit_layer(&store, &lease, "x");
    store.put_image("app", &image(Digest::of(b"config"), &[layer])).unwrap();
    drop((lease, store));
    tamper(&root, "UPDATE images SET record = replace(record, 'linux', 'linus')");
    let collector = Collector::open(&root, options()).unwrap().unwrap();
    let error = collector.run(&Policy::default()).unwrap_err();
    assert!(error.to_string().contains("`app`"), "{error}");
    assert!(open(&root).has_layers(&[layer]).unwrap());
}

#[test]
fn a_pulled_layer_and_its_blob_stay_and_go_together() {
    let (_dir, root) = fresh();
    let store = open(&root);
    let lease = store.lease().unwrap();
    let pull = |content: &str| {
        let layer = commit_layer(&store, &lease, content);
        let blob = store.put_blob(&lease, format!("blob of {content}").as_bytes()).unwrap();
        let diff_id = DiffId(Digest::of(content.as_bytes()));
        store.set_diff_id(layer, &diff_id, 1).unwrap();
        store.put_encoding(&diff_id, crate::store::PULLED, &blob, 9).unwrap();
        (layer, blob)
    };
    let (named, cached, lost) = (pull("named"), pull("cached"), pull("lost"));
    let config = store.put_blob(&lease, b"config").unwrap();
    store.put_image("app", &image(config, &[named.0])).unwrap();
    // Condemned both, then recorded by who had found the layer: the blob comes back with it.
    assert_eq!(collect(&root, &Policy::default()).given_up.len(), 2);
    store.put_result(&key(1), &record(&tree(&store, 1), &[cached.0], 1)).unwrap();
    drop((lease, store));
    let keep = Policy { keep: Duration::from_secs(60), ..Policy::default() };
    let collected = collect(&root, &keep);
    assert_eq!((collected.layers, collected.blobs), (1, 1));
    let store = open(&root);
    for (layer, blob) in [named, cached] {
        assert!(store.has_layers(&[layer]).unwrap() && store.blob(&blob).unwrap().is_some());
    }
    assert!(store.blob(&lost.1).unwrap().is_none() && !store.layer_path(lost.0).exists());
    drop(store);
    let collected = collect(&root, &Policy::default());
    assert_eq!(collected.given_up, [(cached.0.to_string(), 6 + 14)]);
    assert_eq!((collected.layers, collected.blobs), (1, 1));
}

/// Collects everything while a reader that found `key(1)` records `key(2)` at the given pause and ends.
fn record_during_collection(pause: u32) {
    let (_dir, root) = fresh();
    let store = open(&root);
    let lease = store.lease().unwrap();
    let layer = commit_layer(&store, &lease, "x");
    let named = commit_layer(&store, &lease, "named");
    let config = store.put_blob(&lease, b"config").unwrap();
    let resolution = Resolution {
        manifest: store.put_blob(&lease, b"manifest of a base").unwrap(),
        config: store.put_blob(&lease, b"config of a base").unwrap(),
        layers: Vec::new(),
        resolved_unix_ns: 1,
        served_by: "registry.test".into(),
    };
    store.put_result(&key(1), &record(&tree(&store, 1), &[layer], 1)).unwrap();
    drop((lease, store));

    let reader = open(&root);
    let found = reader.result(&key(1)).unwrap().unwrap();
    let nodes = nodes_of(&reader, &found.tree);
    let mut reader = Some(reader);
    let mut pauses = 0;
    let collector = Collector::open(&root, options()).unwrap().unwrap();
    let collected = collector.run_with(&Policy::default(), || {
        pauses += 1;
        if pauses == pause
            && let Some(reader) = reader.take()
        {
            reader.put_result(&key(2), &record(&found.tree, &[layer], 1)).unwrap();
            reader.put_image("app", &image(config, &[named])).unwrap();
            reader.put_resolution("base", "linux/amd64", &resolution).unwrap();
        }
    });
    assert_eq!((pauses, collected.unwrap().freed_bytes), (2, 0), "pause {pause}");
    drop(collector);
    let store = open(&root);
    assert!(store.result(&key(2)).unwrap().is_some(), "pause {pause}");
    assert!(store.layer_path(layer).join("file").exists());
    assert!(nodes.iter().all(|node| store.node(node).is_ok()), "pause {pause}");
    assert!(store.has_layers(&[named]).unwrap() && store.blob(&config).unwrap().is_some());
    assert!(store.resolution("base", "linux/amd64").unwrap().is_some());
    for blob in [resolution.manifest, resolution.config] {
        assert!(store.blob(&blob).unwrap().is_some(), "pause {pause}");
    }
}

#[test]
fn what_is_recorded_between_mark_and_sweep_by_a_reader_that_then_ends_is_saved() {
    record_during_collection(1);
    record_during_collection(2);
}

#[test]
fn results_that_cannot_be_read_go() {
    let (_dir, root) = fresh();
    let store = open(&root);
    let lease = store.lease().unwrap();
    let layer = commit_layer(&store, &lease, "x");
    let config = store.put_blob(&lease, b"config").unwrap();
    store.put_image("app", &image(config, &[layer])).unwrap();
    store.put_result(&key(1), &record(&tree(&store, 1), &[layer], 1)).unwrap();
    store.put_result(&key(2), &record(&tree(&store, 2), &[layer], 1)).unwrap();
    drop((lease, store));
    let connection = rusqlite::Connection::open(root.join("index.sqlite")).unwrap();
    let damage = "UPDATE results SET record = x'00' WHERE key = (SELECT max(key) FROM results)";
    assert_eq!(connection.execute(damage, []).unwrap(), 1);
    let collected = collect(&root, &Policy::default());
    assert_eq!((collected.results, collected.layers), (1, 0));
    let left: i64 = connection.query_row("SELECT count(*) FROM results", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 1);
    assert!(open(&root).result(&key(1)).unwrap().is_some());
}
