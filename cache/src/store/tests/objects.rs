//! Blobs, layers, results, images, nodes: stored, found, shared.

use std::io::{Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;

use rbuild_oci::{ChainId, DiffId, Digest};

use super::*;
use crate::layer::LayerDiff;
use crate::tree::NodeStore;

#[test]
fn a_blob_is_visible_only_once_committed_and_reads_back() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let digest = Digest::of(b"hello");
    let mut writer = store.ingest(&lease).unwrap();
    writer.write_all(b"hello").unwrap();
    assert!(store.blob(&digest).unwrap().is_none());
    assert_eq!(writer.commit(Some(digest)).unwrap(), digest);
    let mut blob = store.blob(&digest).unwrap().unwrap();
    let mut text = String::new();
    blob.file.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), blob.size), ("hello", 5));
}

#[test]
fn a_blob_with_another_digest_than_expected_is_refused_and_discarded() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let mut writer = store.ingest(&lease).unwrap();
    writer.write_all(b"evil").unwrap();
    let error = writer.commit(Some(Digest::of(b"good"))).unwrap_err();
    assert!(matches!(error, StoreError::DigestMismatch { actual, .. } if actual == Digest::of(b"evil")));
    assert!(store.blob(&Digest::of(b"evil")).unwrap().is_none());
    assert!(store.blob(&Digest::of(b"good")).unwrap().is_none());
    assert_eq!(std::fs::read_dir(lease.work_dir()).unwrap().count(), 0);
}

#[test]
fn a_file_without_a_name_leaves_nothing() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let mut file = store.nameless_file(&lease).unwrap();
    assert_eq!(std::fs::read_dir(lease.work_dir()).unwrap().count(), 0);
    file.write_all(b"passing").unwrap();
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "passing");
}

#[test]
fn a_small_blob_is_read_whole_up_to_its_limit() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let digest = store.put_blob(&lease, b"{}").unwrap();
    assert_eq!(store.blob_bytes(&digest, 2).unwrap().as_deref(), Some(&b"{}"[..]));
    assert_eq!(store.blob_bytes(&digest, 1).unwrap(), None);
    assert_eq!(store.blob_bytes(&Digest::of(b"other"), 2).unwrap(), None);
}

#[test]
fn a_lease_hands_out_directories_nobody_else_has() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let (a, b) = (lease.new_dir().unwrap(), lease.new_dir().unwrap());
    assert!(a != b && a.is_dir() && b.is_dir() && a.starts_with(lease.work_dir()));
}

#[test]
fn a_scratch_directory_goes_with_all_below_it_however_deep() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let (kept, scratch) = (lease.scratch_dir().unwrap(), lease.scratch_dir().unwrap());
    assert!(kept.path() != scratch.path() && scratch.path().starts_with(lease.work_dir()));
    // Deeper than a process may have open files, and than a path may be long.
    let mut dir = File::open(scratch.path()).unwrap();
    for _ in 0..1100 {
        rustix::fs::mkdirat(&dir, "d", rustix::fs::Mode::RWXU).unwrap();
        let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        dir = rustix::fs::openat(&dir, "d", flags, rustix::fs::Mode::empty()).unwrap().into();
    }
    rustix::fs::symlinkat("/etc", &dir, "link").unwrap();
    drop(scratch);
    let left: Vec<_> =
        std::fs::read_dir(lease.work_dir()).unwrap().map(|left| left.unwrap().path()).collect();
    assert_eq!(left, [kept.path()]);
}

#[test]
fn storing_a_blob_twice_keeps_one() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    commit_blob(&store, &lease, b"same");
    commit_blob(&store, &lease, b"same");
    let usage = store.usage().unwrap();
    assert_eq!((usage.blobs, usage.blob_bytes), (1, 4));
    assert_eq!(std::fs::read_dir(lease.work_dir()).unwrap().count(), 0);
}

#[test]
fn a_draft_becomes_a_layer_with_its_entries() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let draft = store.draft(&lease).unwrap();
    assert_eq!(std::fs::metadata(draft.diff_path()).unwrap().permissions().mode() & 0o7777, 0o755);
    std::fs::write(draft.diff_path().join("a"), "x").unwrap();
    std::fs::write(draft.work_path().join("scratch"), "x").unwrap();
    let id = store.commit_layer(draft, &LayerDiff::saying("entries"), 1).unwrap();
    assert_eq!(store.layer_diff(id).unwrap(), LayerDiff::saying("entries"));
    assert_eq!(std::fs::read_to_string(store.layer_path(id).join("a")).unwrap(), "x");
    let info = store.layer(id).unwrap().unwrap();
    assert_eq!((info.size_bytes, info.tar), (1, None));
    let names: Vec<_> = std::fs::read_dir(store.layer_path(id).parent().unwrap()).unwrap().collect();
    assert_eq!(names.len(), 2, "only diff and entries: {names:?}");
    rustix::fs::fstat(store.layer_dir(id).unwrap()).unwrap();
}

#[test]
fn layers_are_found_by_diff_id() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let id = commit_layer(&store, &lease, "x");
    let diff_id = DiffId(Digest::of(b"tar"));
    let found = |diff_id, below: Option<&ChainId>| store.layer_by_diff_id(diff_id, below).unwrap();
    assert_eq!(found(&diff_id, None), None);
    store.set_diff_id(id, &diff_id, 10_240).unwrap();
    let [one, other] = [b"one", b"two"].map(|text| ChainId(Digest::of(text)));
    for below in [None, Some(&one)] {
        assert_eq!(found(&diff_id, below), Some(id));
    }
    // With something from below it is another layer on each.
    let of_each = DiffId(Digest::of(b"of each"));
    let belows = [None, Some(&one), Some(&other)];
    let ids = belows.map(|below| {
        assert_eq!(found(&of_each, below), None);
        let draft = store.draft(&lease).unwrap();
        store.lies_on(&draft, below).unwrap();
        let id = store.commit_layer(draft, &LayerDiff::saying("x"), 1).unwrap();
        store.set_diff_id(id, &of_each, 10_240).unwrap();
        id
    });
    assert_eq!(belows.map(|below| found(&of_each, below)), ids.map(Some));
    // What that was is not known any more: it is no layer of anything.
    for damaged in ["", &"x".repeat(2000)] {
        std::fs::write(store.layer_path(ids[0]).with_file_name("below"), damaged).unwrap();
        assert_eq!(found(&of_each, None), None);
        assert_eq!(found(&of_each, Some(&other)), Some(ids[2]));
    }
    assert_eq!(store.layer(id).unwrap().unwrap().tar, Some((diff_id, 10_240)));
    let error = store.set_diff_id(LayerId(42), &diff_id, 1).unwrap_err();
    assert!(matches!(error, StoreError::UnknownLayer(LayerId(42))));
}

#[test]
fn a_result_is_found_under_its_own_kind_of_key_only() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let id = commit_layer(&store, &lease, "x");
    let record = record(Some(id), Some(vec![id]));
    store.put_result(&Key::def([9; 32]), &record).unwrap();
    assert_eq!(store.result(&Key::def([9; 32])).unwrap(), Some(record));
    assert_eq!(store.result(&Key::content([9; 32])).unwrap(), None);
}

#[test]
fn an_equal_rerun_keeps_the_older_layer_while_it_is_there() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let does = transition(1, 2);
    assert_eq!(store.layer_that_does(&does).unwrap(), None);
    let commit = || commit_step(&store, &lease, "x", does);
    let older = commit();
    assert_eq!(commit(), older);
    assert_eq!(store.layer_that_does(&does).unwrap(), Some(older));
    // It makes the same trees of the same, and other times.
    let other = Transition { times: TimesDigest([1; 32]), ..does };
    assert_eq!(store.layer_that_does(&other).unwrap(), None);
    assert_ne!(commit_step(&store, &lease, "x", other), older);
    assert_eq!(store.layer_that_does(&does).unwrap(), Some(older));
    std::fs::remove_dir_all(store.layer_path(older)).unwrap();
    assert_eq!(store.layer_that_does(&does).unwrap(), None);
    assert_ne!(commit(), older);
}

/// What is known of a step becomes known at once.
#[test]
fn a_step_is_recorded_with_its_layer_its_tar_and_its_results() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let tar = (DiffId(Digest::of(b"tar")), 512);
    let key = Key::content([5; 32]);
    let diff = LayerDiff::saying("entries");
    let made = |from: u8| Made {
        draft: Draft::Dir(store.draft(&lease).unwrap()),
        diff: &diff,
        size_bytes: 7,
        tar: Some(tar),
        does: transition(from, 2),
    };
    let results = |layer| vec![(key, record(Some(layer), None))];
    let first = store.commit_step(made(1), false, results).unwrap();
    assert_eq!(store.layer(first).unwrap().unwrap().tar, Some(tar));
    assert_eq!(store.layer_diff(first).unwrap(), LayerDiff::saying("entries"));
    assert_eq!(store.result(&key).unwrap().unwrap().own_layer, Some(first));
    // Who wants its own gets it, though another led there.
    let own = store.commit_step(made(1), true, results).unwrap();
    assert_ne!(own, first);
    assert_eq!(store.result(&key).unwrap().unwrap().own_layer, Some(own));
    assert_eq!(store.layer_that_does(&transition(1, 2)).unwrap(), Some(first));
}

#[test]
fn fetched_addresses_read_back_and_are_not_readable_in_the_index() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let url = "https://user:canary@host/file?sig=canary";
    assert_eq!(store.fetched(url).unwrap(), None);
    let record = |etag: &str| FetchRecord {
        content: Digest::of(b"x"),
        etag: Some(etag.into()),
        modified: None,
        mtime: 7,
        fetched_unix_ns: 1,
    };
    store.put_fetched(url, &record("a")).unwrap();
    store.put_fetched(url, &record("b")).unwrap();
    assert_eq!(store.fetched(url).unwrap(), Some(record("b")));
    assert_eq!(store.fetched("https://host/file").unwrap(), None);
    drop(store);
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            assert!(!bytes.windows(6).any(|window| window == b"canary"), "{}", path.display());
        }
    }
}

#[test]
fn images_resolutions_encodings_and_chains_read_back() {
    let (dir, store) = fresh();
    let image = ImageRecord {
        config: Digest::of(b"config"),
        layers: vec![LayerId(u64::MAX), LayerId(3)],
        diff_ids: vec![DiffId(Digest::of(b"tar"))],
        manifest: None,
        index: None,
        others: Vec::new(),
        absent: None,
        platform: "linux/amd64".to_owned(),
        size_bytes: 7,
        created_unix_ns: -1,
    };
    let resolution = Resolution {
        manifest: Digest::of(b"manifest"),
        config: Digest::of(b"config"),
        layers: vec![ResolvedLayer {
            diff_id: DiffId(Digest::of(b"tar")),
            blob: Digest::of(b"gz"),
            size: 3,
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        }],
        resolved_unix_ns: 1,
        served_by: "registry.example".to_owned(),
    };
    let (diff_id, blob) = (DiffId(Digest::of(b"tar")), Digest::of(b"gz"));
    let chain = ChainId::of(&[diff_id]).unwrap();
    store.put_image("app:2", &image).unwrap();
    store.put_image("app:1", &image).unwrap();
    store.put_resolution("debian", "linux/amd64", &resolution).unwrap();
    store.put_encoding(&diff_id, "gzip/1", &blob, 3).unwrap();
    store.put_chain_tree(&chain, b"tree").unwrap();
    drop(store);

    let store = open(&dir.path().join("store"));
    assert_eq!(store.image("app:1").unwrap(), Some(image.clone()));
    assert_eq!(store.images().unwrap(), [("app:1".to_owned(), image.clone()), ("app:2".to_owned(), image)]);
    assert!(store.remove_image("app:1").unwrap());
    assert!(!store.remove_image("app:1").unwrap());
    assert_eq!(store.image("app:1").unwrap(), None);
    assert_eq!(store.resolution("debian", "linux/amd64").unwrap(), Some(resolution));
    assert_eq!(store.resolution("debian", "linux/arm64").unwrap(), None);
    assert_eq!(store.encoding(&diff_id, "gzip/1").unwrap(), Some((blob, 3)));
    assert_eq!(store.encoding(&diff_id, "zstd/1").unwrap(), None);
    assert_eq!(store.diff_of_blob(&blob).unwrap(), Some(diff_id));
    assert_eq!(store.chain_tree(&chain).unwrap().as_deref(), Some(&b"tree"[..]));
}

#[test]
fn nodes_read_back_in_another_process_s_store_handle() {
    let (dir, store) = fresh();
    let nodes: Vec<_> = (0..50).map(node).collect();
    store.put_nodes(&nodes).unwrap();
    store.put_nodes(&nodes).unwrap();
    let other = open(&dir.path().join("store"));
    for node in &nodes {
        assert_eq!(other.node(&node.digest()).unwrap().encode(), node.bytes());
    }
    let absent = NodeDigest([0; 32]);
    assert!(matches!(other.node(&absent), Err(crate::tree::NodeStoreError::Missing(d)) if d == absent));
}

#[test]
fn a_lease_takes_its_leftovers_along_however_deep_they_are() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let draft = store.draft(&lease).unwrap();
    // Deeper than PATH_MAX, as a RUN can nest by relative names.
    let mut at = rustix::io::dup(draft.diff_fd()).unwrap();
    for depth in 0..600 {
        let name = if depth % 2 == 0 { "dddddddddddddddd" } else { "~0" };
        rustix::fs::mkdirat(&at, name, rustix::fs::Mode::RWXU).unwrap();
        rustix::fs::mknodat(&at, "file", rustix::fs::FileType::RegularFile, rustix::fs::Mode::RUSR, 0)
            .unwrap();
        let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::RDONLY;
        at = rustix::fs::openat(&at, name, flags, rustix::fs::Mode::empty()).unwrap();
    }
    // Directories that an ordinary user may not enter, read or change, though they are the user's own.
    for mode in [0o000, 0o500, 0o300] {
        let dir = draft.work_path().join(format!("{mode:o}"));
        std::fs::create_dir_all(dir.join("a/b/c")).unwrap();
        std::fs::write(dir.join("a/file"), "x").unwrap();
        for path in [dir.join("a/b"), dir.join("a"), dir] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    }
    std::fs::set_permissions(draft.work_path(), std::fs::Permissions::from_mode(0o000)).unwrap();
    let work = lease.work_dir();
    drop((draft, at));
    drop(lease);
    assert!(!work.exists());
    assert_eq!(std::fs::read_dir(store.root().join("leases")).unwrap().count(), 0);
}

#[test]
fn what_is_condemned_is_found_by_its_index_and_a_limit_compiles_nothing_anew() {
    let (_dir, store) = fresh();
    assert_eq!(readers::CONDEMNED, format!("until < {}", readers::NONE));
    store
        .inner
        .index
        .read("look at a plan", |connection| {
            for table in ["layers", "blobs"] {
                let condemned = readers::CONDEMNED;
                let sql =
                    format!("EXPLAIN QUERY PLAN SELECT until FROM {table} WHERE {condemned} AND until < ?1");
                let plan: String = connection.query_row(&sql, [1], |row| row.get(3))?;
                assert!(plan.contains(&format!("{table}_condemned")), "{plan}");
            }
            let mut statement = connection.prepare("SELECT id FROM layers WHERE until >= ?1 LIMIT ?2")?;
            for limit in 1..9 {
                assert!(statement.query((5, limit))?.next()?.is_none());
            }
            assert_eq!(statement.get_status(rusqlite::StatementStatus::RePrepare), 0);
            Ok(())
        })
        .unwrap();
}
