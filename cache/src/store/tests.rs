//! One test per promise of the module head, most with a fresh store each.

mod damage;
mod door;
mod durability;
mod objects;
mod packs;
mod places;
mod processes;
mod speed;
mod stat_index;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use rbuild_oci::Digest;

use super::*;
use crate::layer::{LayerDiff, TimesDigest};
use crate::tree::{DirEntries, EncodedNode, Entry, Kind, Meta, NodeDigest, Tree, TreeDigest};

fn options() -> StoreOptions {
    StoreOptions { id_map: "test".to_owned(), durable: true }
}

fn open(root: &Path) -> Store {
    Store::open(root, options()).unwrap()
}

fn fresh() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store"));
    (dir, store)
}

fn commit_layer(store: &Store, lease: &Lease, content: &str) -> LayerId {
    let draft = store.draft(lease).unwrap();
    std::fs::write(draft.diff_path().join("file"), content).unwrap();
    store.commit_layer(draft, &LayerDiff::saying(content), content.len() as u64).unwrap()
}

/// From one tree to another.
fn transition(from: u8, to: u8) -> Transition {
    let [from, to] = [from, to].map(|byte| TreeDigest([byte; 32]));
    Transition { from, to, times: TimesDigest([0; 32]) }
}

/// As a step, which did this. Which layer does.
fn commit_step(store: &Store, lease: &Lease, content: &str, does: Transition) -> LayerId {
    let draft = store.draft(lease).unwrap();
    std::fs::write(draft.diff_path().join("file"), content).unwrap();
    let (draft, diff) = (Draft::Dir(draft), &LayerDiff::saying(content));
    let made = Made { draft, diff, size_bytes: content.len() as u64, tar: None, does };
    store.commit_step(made, false, |_| Vec::new()).unwrap()
}

fn commit_blob(store: &Store, lease: &Lease, content: &[u8]) -> Digest {
    let mut writer = store.ingest(lease).unwrap();
    writer.write_all(content).unwrap();
    writer.commit(Some(Digest::of(content))).unwrap()
}

fn record(layer: Option<LayerId>, stack: Option<Vec<LayerId>>) -> ResultRecord {
    ResultRecord {
        tree: Tree::empty(),
        tree_digest: TreeDigest([1; 32]),
        own_layer: layer,
        stack,
        read: Vec::new(),
        created_unix_ns: 5,
        exec_ns: 6,
        description: "RUN true".to_owned(),
    }
}

/// A node whose content depends on `seed`.
fn node(seed: u32) -> EncodedNode {
    let mut node = DirEntries::default();
    let meta = Meta { mode: 0o644, uid: seed, gid: 0, xattrs: [(b"user.a".to_vec(), b"b".to_vec())].into() };
    let target = seed.to_string().into_bytes();
    node.insert(b"link".to_vec(), Entry { meta, kind: Kind::Symlink(target) });
    node.insert(b"pipe".to_vec(), Entry { meta: Meta::default(), kind: Kind::Fifo });
    EncodedNode::of(&node.into())
}

/// Runs SQL on the index behind the store's back.
fn tamper(store: &Store, file: &str, sql: &str) -> usize {
    let connection = rusqlite::Connection::open(store.root().join(file)).unwrap();
    connection.execute(sql, []).unwrap()
}
