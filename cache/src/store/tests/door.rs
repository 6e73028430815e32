//! What opening accepts and refuses.

use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn a_new_store_is_private_and_opens_again() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("a/b/store");
    drop(open(&root));
    assert_eq!(std::fs::metadata(&root).unwrap().permissions().mode() & 0o7777, 0o700);
    for name in ["store.json", "lock"] {
        assert_eq!(std::fs::metadata(root.join(name)).unwrap().permissions().mode() & 0o077, 0, "{name}");
    }
    let store = open(&root);
    assert_eq!(store.usage().unwrap().layers, 0);
    assert_eq!(std::fs::metadata(root.join("index.sqlite")).unwrap().permissions().mode() & 0o077, 0);
}

#[test]
fn a_store_below_a_linked_directory_opens() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("disk")).unwrap();
    std::os::unix::fs::symlink("disk", dir.path().join("home")).unwrap();
    let store = open(&dir.path().join("home/store"));
    let lease = store.lease().unwrap();
    let digest = commit_blob(&store, &lease, b"x");
    assert!(open(&dir.path().join("disk/store")).blob(&digest).unwrap().is_some());
}

#[test]
fn a_directory_that_others_can_write_is_refused_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = Store::open(dir.path(), options()).unwrap_err();
    assert!(matches!(error, StoreError::OpenToOthers { mode: 0o777, .. }));
    assert!(error.to_string().contains("chmod 700"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was created");
}

#[test]
fn a_directory_that_others_can_read_is_closed_to_them() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    drop(open(dir.path()));
    assert_eq!(std::fs::metadata(dir.path()).unwrap().permissions().mode() & 0o7777, 0o700);
}

#[test]
fn what_opening_would_refuse_is_told_without_opening() {
    let (dir, store) = fresh();
    let root = store.root().to_owned();
    drop(store);
    assert!(Store::refusal(&dir.path().join("nothing")).is_none());
    assert!(!dir.path().join("nothing").exists());
    assert!(Store::refusal(&root).is_none());
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(Store::refusal(&root), Some(StoreError::OpenToOthers { mode: 0o777, .. })));
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::write(root.join("store.json"), r#"{"format": 99}"#).unwrap();
    assert!(matches!(Store::refusal(&root), Some(StoreError::NewerFormat { .. })));
}

#[test]
fn a_foreign_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    if std::os::unix::fs::chown(dir.path(), Some(12_345), None).is_err() {
        eprintln!("skipped: cannot chown here");
        return;
    }
    let error = Store::open(dir.path(), options()).unwrap_err();
    assert!(matches!(error, StoreError::ForeignOwner { owner: 12_345, .. }));
}

#[test]
fn a_file_in_the_place_of_a_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "").unwrap();
    assert!(matches!(Store::open(&path, options()), Err(StoreError::NotADirectory { .. })));
}

#[test]
fn another_id_map_is_refused_with_a_way_out() {
    let (_dir, store) = fresh();
    let other = StoreOptions { id_map: "0:100000:65536".to_owned(), durable: true };
    let error = Store::open(store.root(), other).unwrap_err();
    assert!(matches!(&error, StoreError::IdMap { recorded, .. } if recorded == "test"));
    assert!(error.to_string().contains("use another store"), "{error}");
}

#[track_caller]
fn check_meta(json: &str, is_expected: impl Fn(&StoreError) -> bool) {
    let (_dir, store) = fresh();
    std::fs::write(store.root().join("store.json"), json).unwrap();
    // Of an earlier version, which made no copy.
    std::fs::remove_file(store.root().join("store.json.bak")).unwrap();
    let error = Store::open(store.root(), options()).unwrap_err();
    assert!(is_expected(&error), "{error:?}");
}

#[test]
fn newer_formats_and_unknown_features_are_refused() {
    let newer = |error: &StoreError| matches!(error, StoreError::NewerFormat { .. });
    check_meta(r#"{"format": 2, "shape": "unknown"}"#, newer);
    check_meta(r#"{"format": 1, "id_map": "test", "incompatible": ["x"]}"#, newer);
    check_meta(r#"{"format": 1, "id_map": "test", "ro_compatible": ["x"]}"#, newer);
}

#[test]
fn unreadable_metadata_is_damage_with_a_way_out() {
    let damaged = |error: &StoreError| matches!(error, StoreError::Damaged { .. });
    let mended = |error: &StoreError| damaged(error) && error.to_string().contains("remove the file");
    check_meta("", mended);
    check_meta("{\"format\": 1, ", mended);
    check_meta("{\"format\": 1}", mended);
    check_meta("{}", mended);
    check_meta(&"x".repeat(100_000), damaged);
}

#[test]
fn a_flipped_bit_in_the_metadata_is_harmless_or_damage_with_a_way_out() {
    let (_dir, store) = fresh();
    let path = store.root().join("store.json");
    let good = std::fs::read(&path).unwrap();
    std::fs::remove_file(store.root().join("store.json.bak")).unwrap();
    let mut damaged = 0;
    for at in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[at / 8] ^= 1 << (at % 8);
        std::fs::write(&path, &bytes).unwrap();
        let Err(error) = Store::open(store.root(), options()) else { continue };
        damaged += 1;
        let is_said =
            matches!(error, StoreError::Damaged { .. }) && error.to_string().contains("remove the file");
        assert!(is_said, "bit {at}: {error}");
    }
    // All of the map, for one.
    assert!(damaged > good.len() * 8 / 2, "{damaged}");
    std::fs::write(&path, &good).unwrap();
    drop(open(store.root()));
}

#[test]
fn metadata_that_is_gone_or_damaged_is_made_of_its_copy() {
    let (_dir, store) = fresh();
    let root = store.root().to_owned();
    drop(store);
    let path = root.join("store.json");
    let good = std::fs::read(&path).unwrap();
    let damage: [&dyn Fn(); 2] =
        [&|| std::fs::remove_file(&path).unwrap(), &|| std::fs::write(&path, "{").unwrap()];
    for damage in damage {
        damage();
        let other = StoreOptions { id_map: "0:100000:65536".to_owned(), durable: true };
        let error = Store::open(&root, other).unwrap_err();
        assert!(matches!(error, StoreError::IdMap { .. }), "it is still not another's: {error:?}");
        drop(open(&root));
        assert_eq!(std::fs::read(&path).unwrap(), good);
    }
}

#[test]
fn tables_of_a_newer_version_are_refused() {
    let (_dir, store) = fresh();
    store.usage().unwrap();
    tamper(&store, "index.sqlite", "PRAGMA user_version = 99");
    let error = open(store.root()).usage().unwrap_err();
    assert!(matches!(error, StoreError::NewerFormat { .. }), "{error:?}");
}

#[test]
fn a_lost_index_is_made_anew() {
    let (_dir, store) = fresh();
    let root = store.root().to_owned();
    let lease = store.lease().unwrap();
    commit_blob(&store, &lease, b"x");
    drop((lease, store));
    for file in ["index.sqlite", "index.sqlite-wal", "index.sqlite-shm"] {
        let _ = std::fs::remove_file(root.join(file));
    }
    let store = open(&root);
    let digest = Digest::of(b"x");
    assert!(store.blob(&digest).unwrap().is_none());
    let lease = store.lease().unwrap();
    assert_eq!(commit_blob(&store, &lease, b"x"), digest);
    assert!(store.blob(&digest).unwrap().is_some());
}
