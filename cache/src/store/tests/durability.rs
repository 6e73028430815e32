//! Marks: what counts after which kind of stop.

use super::*;

fn waiting(store: &Store, table: &str) -> i64 {
    let connection = rusqlite::Connection::open(store.root().join("index.sqlite")).unwrap();
    let sql = format!("SELECT count(*) FROM {table} WHERE durable = 0");
    connection.query_row(&sql, [], |row| row.get(0)).unwrap()
}

pub(super) fn pretend_reboot(store: &Store) {
    for table in db::mark::MARKED {
        tamper(store, "index.sqlite", &format!("UPDATE {table} SET boot = zeroblob(16)"));
    }
}

pub(super) fn image(layers: Vec<LayerId>) -> ImageRecord {
    ImageRecord {
        config: Digest::of(b"config"),
        layers,
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

#[test]
fn a_sync_makes_all_rows_outlive_a_reboot() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let id = commit_layer(&store, &lease, "x");
    let digest = commit_blob(&store, &lease, b"x");
    store.put_result(&Key::def([1; 32]), &record(Some(id), Some(vec![id]))).unwrap();
    assert_eq!((waiting(&store, "layers"), waiting(&store, "blobs"), waiting(&store, "results")), (1, 1, 1));
    store.put_image("app", &image(vec![id])).unwrap();
    assert_eq!((waiting(&store, "layers"), waiting(&store, "blobs"), waiting(&store, "results")), (0, 0, 0));
    pretend_reboot(&store);
    let store = open(store.root());
    let _lease = store.lease().unwrap();
    assert!(store.result(&Key::def([1; 32])).unwrap().is_some());
    assert!(store.blob(&digest).unwrap().is_some());
    assert_eq!(store.image("app").unwrap(), Some(image(vec![id])));
}

#[test]
fn what_no_sync_covered_is_void_after_a_reboot_and_its_bytes_are_removed() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let kept = commit_layer(&store, &lease, "kept");
    store.sync().unwrap();
    let id = commit_layer(&store, &lease, "x");
    let digest = commit_blob(&store, &lease, b"x");
    store.put_result(&Key::def([1; 32]), &record(Some(id), None)).unwrap();
    pretend_reboot(&store);
    drop(lease);
    let store = open(store.root());
    assert!(store.result(&Key::def([1; 32])).unwrap().is_none());
    assert!(store.blob(&digest).unwrap().is_none());
    assert!(store.layer(id).unwrap().is_none());
    let lease = store.lease().unwrap();
    assert!(!store.layer_path(id).exists());
    assert_eq!((waiting(&store, "layers"), waiting(&store, "blobs"), waiting(&store, "results")), (0, 0, 0));
    drop(lease);
    assert_eq!(std::fs::read_dir(store.root().join("work")).unwrap().count(), 0);
    assert!(store.layer(kept).unwrap().is_some());
}

#[test]
fn a_void_blob_is_replaced_by_one_stored_now() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let digest = commit_blob(&store, &lease, b"x");
    pretend_reboot(&store);
    let path = store.root().join(format!("blobs/sha256/{}/{}", &digest.hex()[..2], digest.hex()));
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    commit_blob(&store, &lease, b"x");
    assert_eq!(std::fs::read(&path).unwrap(), b"x");
    assert!(store.blob(&digest).unwrap().is_some());
}

#[test]
fn rows_written_while_a_sync_flushes_wait_for_the_next() {
    let (_dir, store) = fresh();
    store.put_result(&Key::def([1; 32]), &record(None, None)).unwrap();
    let covered = store.raise_epoch().unwrap();
    store.put_result(&Key::def([2; 32]), &record(None, None)).unwrap();
    store.mark_durable(covered, &[]).unwrap();
    assert_eq!(waiting(&store, "results"), 1);
    pretend_reboot(&store);
    assert!(store.result(&Key::def([1; 32])).unwrap().is_some());
    assert!(store.result(&Key::def([2; 32])).unwrap().is_none());
}

#[test]
fn a_failed_flush_voids_everything_since_the_last_good_one() {
    let (_dir, store) = fresh();
    store.put_result(&Key::def([1; 32]), &record(None, None)).unwrap();
    store.sync().unwrap();
    store.put_result(&Key::def([2; 32]), &record(None, None)).unwrap();
    let covered = store.raise_epoch().unwrap();
    store.drop_unsynced(covered).unwrap();
    assert!(store.result(&Key::def([1; 32])).unwrap().is_some());
    assert!(store.result(&Key::def([2; 32])).unwrap().is_none());
}

#[test]
fn recording_an_equal_result_again_does_not_undo_its_durability() {
    let (_dir, store) = fresh();
    let key = Key::def([1; 32]);
    store.put_result(&key, &record(None, None)).unwrap();
    store.sync().unwrap();
    store.put_result(&key, &record(None, None)).unwrap();
    assert_eq!(waiting(&store, "results"), 0);
    store.put_result(&key, &ResultRecord { exec_ns: 9, ..record(None, None) }).unwrap();
    assert_eq!(waiting(&store, "results"), 1);
    assert_eq!(store.result(&key).unwrap().unwrap().exec_ns, 9);
}

#[test]
fn an_equal_image_put_again_writes_nothing() {
    let (_dir, store) = fresh();
    store.put_image("app", &image(vec![])).unwrap();
    let version = |store: &Store| {
        store
            .inner
            .index
            .read("test", |c| Ok(c.query_row("SELECT current FROM epoch", [], |row| row.get(0))?))
    };
    let before: i64 = version(&store).unwrap();
    store.put_image("app", &image(vec![])).unwrap();
    assert_eq!(version(&store).unwrap(), before);
    store.put_image("app", &image(vec![LayerId(1)])).unwrap();
    assert_eq!(version(&store).unwrap(), before + 1);
}

#[test]
fn a_store_that_is_not_durable_flushes_nothing_and_still_serves() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions { id_map: "test".to_owned(), durable: false };
    let store = Store::open(dir.path(), options).unwrap();
    store.put_result(&Key::def([1; 32]), &record(None, None)).unwrap();
    store.put_image("app", &image(vec![])).unwrap();
    store.sync().unwrap();
    assert_eq!((waiting(&store, "results"), waiting(&store, "images")), (1, 1));
    assert!(store.image("app").unwrap().is_some());
    pretend_reboot(&store);
    assert!(store.image("app").unwrap().is_none());
}
