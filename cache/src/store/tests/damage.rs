//! What vanished or changed on disk behind the store's back.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use rbuild_oci::{ChainId, DiffId, Digest};

use super::*;
use crate::tree::{NodeStore, NodeStoreError};

#[test]
fn a_layer_that_was_read_and_is_lost_is_a_miss_but_one_that_was_collected_is_not() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let [read, own] = ["read", "own"].map(|content| commit_layer(&store, &lease, content));
    let key = Key::content([1; 32]);
    store.put_result(&key, &ResultRecord { read: vec![read], ..record(Some(own), None) }).unwrap();
    assert!(store.result(&key).unwrap().is_some());
    std::fs::remove_dir_all(store.root().join(format!("layers/{read}"))).unwrap();
    assert_eq!(store.result(&key).unwrap(), None);
    tamper(&store, "index.sqlite", &format!("DELETE FROM layers WHERE id = {}", read.to_sql()));
    assert!(store.result(&key).unwrap().is_some());
}

#[test]
fn a_result_whose_own_layer_vanished_is_a_miss() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let id = commit_layer(&store, &lease, "x");
    let key = Key::content([1; 32]);
    store.put_result(&key, &record(Some(id), None)).unwrap();
    assert!(store.result(&key).unwrap().is_some());
    std::fs::rename(store.layer_path(id).parent().unwrap(), lease.work_dir().join("gone")).unwrap();
    assert_eq!(store.result(&key).unwrap(), None);
    assert_eq!(store.layer(id).unwrap(), None);
    assert!(!store.has_layers(&[id]).unwrap());
    assert!(store.layer_dir(id).is_err());
}

#[test]
fn a_result_with_one_unknown_layer_in_its_stack_is_a_miss() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let id = commit_layer(&store, &lease, "x");
    let key = Key::def([1; 32]);
    store.put_result(&key, &record(Some(id), Some(vec![LayerId(7), id]))).unwrap();
    assert_eq!(store.result(&key).unwrap(), None);
    store.put_result(&key, &record(Some(id), Some(vec![id]))).unwrap();
    assert!(store.result(&key).unwrap().is_some());
}

#[test]
fn damaged_records_are_misses_and_a_damaged_image_is_named() {
    let (_dir, store) = fresh();
    let chain = ChainId(Digest::of(b"c"));
    let (diff_id, blob) = (DiffId(Digest::of(b"tar")), Digest::of(b"gz"));
    let image = ImageRecord {
        config: Digest::of(b"config"),
        layers: vec![],
        diff_ids: vec![],
        manifest: None,
        index: None,
        others: Vec::new(),
        absent: None,
        platform: "linux/amd64".to_owned(),
        size_bytes: 7,
        created_unix_ns: 0,
    };
    store.put_result(&Key::def([1; 32]), &record(None, None)).unwrap();
    store.put_chain_tree(&chain, b"tree").unwrap();
    store.put_encoding(&diff_id, "gzip/1", &blob, 3).unwrap();
    store.put_image("app", &image).unwrap();
    for sql in [
        "UPDATE results SET record = CAST(record || x'00' AS BLOB)",
        "UPDATE chain_trees SET record = x'00'",
        "UPDATE encodings SET size = 4",
        "UPDATE blob_diffs SET diff_id = blob",
        "UPDATE images SET record = replace(record, '7', '8')",
    ] {
        assert_eq!(tamper(&store, "index.sqlite", sql), 1, "{sql}");
    }
    assert_eq!(store.result(&Key::def([1; 32])).unwrap(), None);
    assert_eq!(store.chain_tree(&chain).unwrap(), None);
    assert_eq!(store.encoding(&diff_id, "gzip/1").unwrap(), None);
    assert_eq!(store.diff_of_blob(&blob).unwrap(), None);
    let error = store.image("app").unwrap_err();
    assert!(
        matches!(&error, StoreError::DamagedRecord { kind: "image", name } if name == "app"),
        "{error:?}"
    );
    assert_eq!(store.images().unwrap(), []);
    store.put_image("app", &image).unwrap();
    assert_eq!(store.image("app").unwrap(), Some(image));
}

#[test]
fn a_record_moved_under_another_key_is_a_miss() {
    let (_dir, store) = fresh();
    store.put_result(&Key::def([1; 32]), &record(None, None)).unwrap();
    let sql = format!("UPDATE results SET key = x'64{}'", "02".repeat(32));
    assert_eq!(tamper(&store, "index.sqlite", &sql), 1);
    assert_eq!(store.result(&Key::def([2; 32])).unwrap(), None);
}

#[track_caller]
fn check_blob_damage(change: impl Fn(&PathBuf)) {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let digest = commit_blob(&store, &lease, b"some bytes");
    let path = store.root().join(format!("blobs/sha256/{}/{}", &digest.hex()[..2], digest.hex()));
    change(&path);
    assert!(store.blob(&digest).unwrap().is_none());
    commit_blob(&store, &lease, b"some bytes");
    let mut blob = store.blob(&digest).unwrap().unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut blob.file, &mut bytes).unwrap();
    assert_eq!(bytes, b"some bytes");
}

#[test]
fn a_removed_cut_or_changed_blob_is_a_miss_and_storing_it_again_mends_it() {
    check_blob_damage(|path| std::fs::remove_file(path).unwrap());
    check_blob_damage(|path| overwrite(path, b"some"));
    check_blob_damage(|path| overwrite(path, b"some bytEs"));
    check_blob_damage(|path| overwrite(path, b""));
}

/// Writes until the change time moved: within one clock tick of the commit nobody could tell by it.
fn overwrite(path: &PathBuf, bytes: &[u8]) {
    let ctime = |path: &PathBuf| {
        let metadata = std::fs::metadata(path).unwrap();
        (metadata.ctime(), metadata.ctime_nsec())
    };
    let before = ctime(path);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    while ctime(path) == before {
        std::fs::write(path, bytes).unwrap();
    }
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_touched_blob_with_its_bytes_unchanged_still_is_a_hit() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let digest = commit_blob(&store, &lease, b"some bytes");
    let path = store.root().join(format!("blobs/sha256/{}/{}", &digest.hex()[..2], digest.hex()));
    overwrite(&path, b"some bytes");
    let mut blob = store.blob(&digest).unwrap().unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut blob.file, &mut bytes).unwrap();
    assert_eq!(bytes, b"some bytes", "open at its start after the check");
}

#[test]
fn a_sidecar_is_refused_at_every_length_but_its_own_and_with_any_bit_flipped() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let id = commit_layer(&store, &lease, "entries");
    let path = store.layer_path(id).with_file_name("entries");
    let good = std::fs::read(&path).unwrap();
    let is_damaged = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        matches!(store.layer_diff(id), Err(StoreError::Damaged { .. }))
    };
    for length in 0..good.len() {
        assert!(is_damaged(&good[..length]), "cut to {length}");
    }
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(is_damaged(&bytes), "bit {bit}");
    }
    assert!(is_damaged(&[good.clone(), vec![0]].concat()));
    assert!(!is_damaged(&good));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(store.layer_diff(id), Err(StoreError::UnknownLayer(gone)) if gone == id));
}

#[test]
fn a_damaged_node_is_noticed_and_mended_by_the_next_who_makes_it() {
    let (_dir, store) = fresh();
    let nodes = [node(1), node(2)];
    store.put_nodes(&nodes).unwrap();
    let (digest, other) = (nodes[0].digest(), nodes[1].digest());
    let sql = format!("UPDATE nodes SET bytes = x'00' WHERE digest = x'{digest}'");
    assert_eq!(tamper(&store, "trees.sqlite", &sql), 1);
    let reader = open(store.root());
    assert!(matches!(reader.node(&digest), Err(NodeStoreError::Damaged(found)) if found == digest));
    assert!(reader.node(&other).is_ok());
    reader.put_nodes(&nodes).unwrap();
    assert_eq!(open(store.root()).node(&digest).unwrap().encode(), nodes[0].bytes());
}

#[test]
fn swapped_nodes_are_noticed() {
    let (_dir, store) = fresh();
    let nodes = [node(1), node(2)];
    store.put_nodes(&nodes).unwrap();
    let (a, b) = (nodes[0].digest(), nodes[1].digest());
    let sql = format!(
        "UPDATE nodes SET bytes = (SELECT bytes FROM nodes WHERE digest = x'{a}') WHERE digest = x'{b}'"
    );
    assert_eq!(tamper(&store, "trees.sqlite", &sql), 1);
    assert!(matches!(open(store.root()).node(&b), Err(NodeStoreError::Damaged(_))));
}

#[test]
fn a_database_that_is_none_is_named() {
    let (_dir, store) = fresh();
    std::fs::write(store.root().join("index.sqlite"), "not a database at all, but long enough".repeat(100))
        .unwrap();
    let error = store.usage().unwrap_err();
    assert!(
        matches!(&error, StoreError::Damaged { path, .. } if path.ends_with("index.sqlite")),
        "{error:?}"
    );
}

#[test]
fn without_the_file_of_nodes_results_are_misses_once_and_images_stay() {
    let (_dir, store) = fresh();
    let root = store.root().to_owned();
    let lease = store.lease().unwrap();
    let layer = commit_layer(&store, &lease, "x");
    let key = Key::content([1; 32]);
    store.put_nodes(&[]).unwrap();
    store.put_result(&key, &record(Some(layer), None)).unwrap();
    let image = ImageRecord {
        config: Digest::of(b"config"),
        layers: vec![layer],
        diff_ids: vec![DiffId(Digest::of(b"tar"))],
        manifest: None,
        index: None,
        others: Vec::new(),
        absent: None,
        platform: "linux/amd64".to_owned(),
        size_bytes: 7,
        created_unix_ns: 0,
    };
    store.put_image("app", &image).unwrap();
    drop((lease, store));
    assert!(!open(&root).has_forgotten_results());
    for name in ["trees.sqlite", "trees.sqlite-wal", "trees.sqlite-shm"] {
        let _ = std::fs::remove_file(root.join(name));
    }
    let store = open(&root);
    assert!(store.has_forgotten_results());
    assert_eq!(store.result(&key).unwrap(), None);
    assert!(store.image("app").unwrap().is_some() && store.layer(layer).unwrap().is_some());
    store.put_result(&key, &record(Some(layer), None)).unwrap();
    drop(store);
    let store = open(&root);
    assert!(!store.has_forgotten_results() && store.result(&key).unwrap().is_some());
}
