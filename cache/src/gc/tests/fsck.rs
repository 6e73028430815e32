//! Every bit counts: what fsck finds, what repair leaves.

use std::os::unix::fs::PermissionsExt;

use rbuild_oci::{ChainId, DiffId};

use super::*;
use crate::layer::{OverlayForm, scan_upper};
use crate::layer::{ParentEntry, ParentView, ParentViewError};
use crate::path::RelPath;
use crate::store::{Finding, PULLED, Rebuilt, StoreError, seal};

/// Nothing below.
struct Nothing;

impl ParentView for Nothing {
    fn entry(&self, _path: &RelPath) -> Result<Option<ParentEntry>, ParentViewError> {
        Ok(None)
    }
}

/// A layer with a listing, files, a link and a hardlink.
fn real_layer(store: &Store, lease: &Lease, content: &str) -> LayerId {
    use std::os::fd::AsFd as _;
    let draft = store.draft(lease).unwrap();
    let dir = draft.diff_path();
    std::fs::create_dir(dir.join("sub")).unwrap();
    std::fs::write(dir.join("sub/file"), content).unwrap();
    std::fs::write(dir.join("top"), "second file").unwrap();
    std::fs::hard_link(dir.join("top"), dir.join("zz")).unwrap();
    std::os::unix::fs::symlink("top", dir.join("link")).unwrap();
    let diff = scan_upper(draft.diff_fd().as_fd(), OverlayForm::User, &Nothing, &store.scratch()).unwrap();
    store.commit_layer(draft, &diff, 11).unwrap()
}

struct Small {
    _dir: tempfile::TempDir,
    root: PathBuf,
    layers: [LayerId; 2],
}

/// Two layers, results, blobs, two images: one on the first layer, one on both.
fn small() -> Small {
    let (dir, root) = fresh();
    let store = open(&root);
    let lease = store.lease().unwrap();
    let layers = [real_layer(&store, &lease, "first"), real_layer(&store, &lease, "second")];
    let config = store.put_blob(&lease, b"config").unwrap();
    let other = store.put_blob(&lease, b"other config").unwrap();
    store.put_result(&key(1), &record(&tree(&store, 1), &layers[..1], 1)).unwrap();
    store.put_result(&key(2), &record(&tree(&store, 2), &layers, 1)).unwrap();
    let diff_id = DiffId(Digest::of(b"tar"));
    store.put_encoding(&diff_id, "gzip", &config, 6).unwrap();
    store.put_image("one", &image(config, &layers[..1])).unwrap();
    store.put_image("two", &image(other, &layers)).unwrap();
    Small { _dir: dir, root, layers }
}

fn fsck(root: &Path, repair: bool) -> Vec<Finding> {
    let collector = until_free(|| Collector::open(root, options()).unwrap());
    if !repair {
        return collector.fsck(OverlayForm::User).unwrap();
    }
    let (findings, left) = collector.repair(OverlayForm::User).unwrap();
    assert!(!left.iter().any(Finding::is_repairable), "{left:?}");
    findings
}

fn rebuild(root: &Path) -> Rebuilt {
    until_free(|| match Store::rebuild(root, options(), OverlayForm::User) {
        Err(StoreError::InUse { .. }) => None,
        other => Some(other.unwrap()),
    })
}

fn files_below(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => files_below(&entry.path(), files),
            kind if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
}

fn flip(path: &Path, at: usize, bit: u8) {
    let mode = std::fs::metadata(path).unwrap().permissions();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1 << bit;
    // In place: another inode would break hardlinks apart.
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, mode).unwrap();
}

#[test]
fn a_sound_store_has_no_findings() {
    let small = small();
    assert_eq!(fsck(&small.root, false), []);
    assert_eq!(fsck(&small.root, true), []);
}

#[test]
fn one_flipped_bit_in_any_object_is_found_and_repair_leaves_a_sound_store() {
    let reference = small();
    let mut files = Vec::new();
    for dir in ["blobs", "layers"] {
        files_below(&reference.root.join(dir), &mut files);
    }
    assert_eq!(files.len(), 2 + 2 * 4, "two blobs; a list and three names of files for each layer");
    for (n, path) in files.iter().enumerate() {
        let size = usize::try_from(std::fs::metadata(path).unwrap().len()).unwrap();
        for at in [0, size / 2, size - 1] {
            flip(path, at, u8::try_from(n % 8).unwrap());
            let findings = fsck(&reference.root, false);
            assert!(findings.iter().any(Finding::is_damage), "{} byte {at}", path.display());
            flip(path, at, u8::try_from(n % 8).unwrap());
        }
    }
    assert_eq!(fsck(&reference.root, false), []);

    for victim in 0..files.len() {
        let small = small();
        let mut files = Vec::new();
        for dir in ["blobs", "layers"] {
            files_below(&small.root.join(dir), &mut files);
        }
        flip(&files[victim], 0, 0);
        assert!(!fsck(&small.root, true).is_empty());
        assert_eq!(fsck(&small.root, false), [], "{} was set aside", files[victim].display());
        let left = open(&small.root).images().unwrap().len();
        assert!(left <= 1, "an image that relied on it is gone");
        let aside = std::fs::read_dir(small.root.join("quarantine")).unwrap();
        let is_name = |name: std::ffi::OsString| name.to_string_lossy().starts_with("name-");
        assert_eq!(aside.filter(|entry| !is_name(entry.as_ref().unwrap().file_name())).count(), 1);
    }
}

#[test]
fn repair_drops_what_relies_on_a_lost_layer_and_nothing_else() {
    let small = small();
    std::fs::remove_dir_all(small.root.join(format!("layers/{}", small.layers[1]))).unwrap();
    let findings = fsck(&small.root, true);
    assert!(findings.contains(&Finding::LayerMissing(small.layers[1])), "{findings:?}");
    assert_eq!(findings.len(), 3, "the layer, a result, an image: {findings:?}");
    let store = open(&small.root);
    assert!(store.image("one").unwrap().is_some() && store.image("two").unwrap().is_none());
    assert!(store.result(&key(1)).unwrap().is_some() && store.result(&key(2)).unwrap().is_none());
    drop(store);
    assert_eq!(fsck(&small.root, false), []);
}

/// `found` reads the damaged layer, `copied` what that made, `linked` stands on neither.
#[test]
fn repair_drops_what_may_have_been_made_from_a_damaged_layer_by_both_keys() {
    let small = small();
    let store = open(&small.root);
    let lease = store.lease().unwrap();
    let bad = small.layers[0];
    let [found, copied, linked, other] =
        ["a", "b", "c", "d"].map(|content| real_layer(&store, &lease, content));
    let by_content = |own, read: &[LayerId]| ResultRecord {
        stack: None,
        read: read.to_vec(),
        ..record(&Tree::empty(), &[own], 1)
    };
    let content = |n| Key::content([n; 32]);
    // Nothing but its content key is known of this one.
    store.put_result(&content(3), &by_content(found, &[bad])).unwrap();
    store
        .put_result(&key(4), &ResultRecord { read: vec![found], ..record(&Tree::empty(), &[copied], 1) })
        .unwrap();
    store.put_result(&content(4), &by_content(copied, &[found])).unwrap();
    store.put_result(&content(5), &by_content(linked, &[other])).unwrap();
    let config = store.put_blob(&lease, b"third config").unwrap();
    store.put_image("three", &image(config, &[copied])).unwrap();
    drop((store, lease));
    flip(&small.root.join(format!("layers/{bad}/diff/sub/file")), 0, 0);

    let findings = fsck(&small.root, true);
    assert!(
        findings.contains(&Finding::ImageMade { name: "three".to_owned(), layer: copied }),
        "{findings:?}"
    );
    let store = open(&small.root);
    for gone in [content(3), key(4), content(4)] {
        assert_eq!(store.result(&gone).unwrap(), None, "{gone}");
    }
    assert!(store.result(&content(5)).unwrap().is_some());
    assert!(store.image("three").unwrap().is_some(), "told, and there");
    drop(store);
    assert_eq!(fsck(&small.root, false), []);
}

#[test]
fn changed_records_and_nodes_are_found_by_name() {
    let links = "substr(bytes, 1, 3) = CAST('RBL' AS BLOB)";
    let bad_links = format!("UPDATE nodes SET bytes = CAST(bytes || x'00' AS BLOB) WHERE {links}");
    let no_links = format!("DELETE FROM nodes WHERE {links}");
    let changes = [
        ("trees.sqlite", bad_links.as_str(), "node"),
        ("trees.sqlite", &no_links, "relies on"),
        (
            "index.sqlite",
            "UPDATE results SET record = CAST(x'00' || record AS BLOB) WHERE rowid = 1",
            "result",
        ),
        (
            "index.sqlite",
            "UPDATE images SET record = replace(record, 'linux', 'linus') WHERE name = 'one'",
            "image one",
        ),
        ("index.sqlite", "UPDATE encodings SET size = size + 1", "encoding"),
        ("index.sqlite", "UPDATE blob_diffs SET diff_id = zeroblob(32)", "blob diff"),
        ("index.sqlite", "DELETE FROM layers WHERE rowid = (SELECT min(rowid) FROM layers)", "layer"),
        (
            "trees.sqlite",
            "UPDATE nodes SET bytes = CAST(bytes || x'00' AS BLOB) WHERE digest = (SELECT min(digest) FROM nodes)",
            "node",
        ),
        ("trees.sqlite", "DELETE FROM nodes WHERE digest = (SELECT min(digest) FROM nodes)", "relies on"),
    ];
    for (file, sql, word) in &changes {
        let small = small();
        let connection = rusqlite::Connection::open(small.root.join(file)).unwrap();
        assert!(connection.execute(sql, []).unwrap() > 0, "{sql}");
        drop(connection);
        let findings = fsck(&small.root, true);
        let text: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert!(findings.iter().any(Finding::is_damage), "{sql}");
        assert!(text.iter().any(|line| line.contains(word)), "{sql}: {text:?}");
        let left: Vec<_> = fsck(&small.root, false).into_iter().filter(Finding::is_damage).collect();
        assert_eq!(left, [], "{sql}");
    }
}

/// A bit of the database itself: the row is found by going through all, and not by its key, so nothing removes it.
#[test]
fn what_a_repair_finds_again_is_told_apart_and_a_rebuild_mends_it() {
    const PAGE_BYTES: usize = 4096;
    const LEAF_OF_A_TABLE: u8 = 13;
    let small = small();
    let file = small.root.join("index.sqlite");
    let connection = rusqlite::Connection::open(&file).unwrap();
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(connection);
    let (bytes, blob) = (std::fs::read(&file).unwrap(), Digest::of(b"config"));
    let is_row = |at: &usize| {
        bytes[*at..].starts_with(blob.as_bytes()) && bytes[at / PAGE_BYTES * PAGE_BYTES] == LEAF_OF_A_TABLE
    };
    flip(&file, (PAGE_BYTES..bytes.len()).find(is_row).unwrap(), 0);
    for _ in 0..2 {
        let collector = until_free(|| Collector::open(&small.root, options()).unwrap());
        let (found, left) = collector.repair(OverlayForm::User).unwrap();
        assert!(matches!(left[..], [Finding::BlobMissing(lost)] if lost != blob), "{left:?}");
        assert!(found.contains(&left[0]), "{found:?}");
    }
    rebuild(&small.root);
    assert_eq!(fsck(&small.root, false), []);
}

/// Each directory is whole, and of another layer.
#[test]
fn layers_whose_directories_were_exchanged_are_found_in_use_and_by_a_check() {
    let small = small();
    let [one, other] = small.layers.map(|id| small.root.join(format!("layers/{id}")));
    let aside = small.root.join("layers/aside");
    for (from, to) in [(&one, &aside), (&other, &one), (&aside, &other)] {
        std::fs::rename(from, to).unwrap();
    }
    let used = open(&small.root).layer_diff(small.layers[0]).unwrap_err();
    assert!(used.is_damage() && used.to_string().contains("another layer"), "{used}");
    let findings = fsck(&small.root, true);
    for layer in small.layers {
        let is_it =
            |finding: &Finding| matches!(finding, Finding::LayerListing { layer: it, .. } if *it == layer);
        assert!(findings.iter().any(is_it), "{findings:?}");
    }
    assert_eq!(fsck(&small.root, false), []);
}

#[test]
fn unlisted_and_changed_entries_are_found() {
    let edits: [fn(&Path); 6] = [
        |dir| std::fs::write(dir.join("new"), "").unwrap(),
        |dir| std::fs::remove_file(dir.join("sub/file")).unwrap(),
        |dir| std::fs::set_permissions(dir.join("top"), PermissionsExt::from_mode(0o600)).unwrap(),
        |dir| {
            std::fs::remove_file(dir.join("link")).unwrap();
            std::os::unix::fs::symlink("other", dir.join("link")).unwrap();
        },
        |dir| {
            std::fs::remove_file(dir.join("zz")).unwrap();
            std::fs::copy(dir.join("top"), dir.join("zz")).unwrap();
        },
        |dir| {
            std::fs::remove_file(dir.join("top")).unwrap();
            std::fs::create_dir(dir.join("top")).unwrap();
        },
    ];
    for (n, edit) in edits.iter().enumerate() {
        let small = small();
        edit(&small.root.join(format!("layers/{}/diff", small.layers[0])));
        let findings = fsck(&small.root, false);
        assert!(
            findings
                .iter()
                .any(|f| matches!(f, Finding::LayerContent { layer, .. } if *layer == small.layers[0])),
            "edit {n}: {findings:?}"
        );
    }
}

#[test]
fn left_overs_are_no_damage() {
    let small = small();
    std::fs::create_dir(small.root.join("layers/00000000000000aa")).unwrap();
    let digest = Digest::of(b"stray");
    let dir = small.root.join(format!("blobs/sha256/{}", &digest.hex()[..2]));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(digest.hex()), "stray").unwrap();
    let findings = fsck(&small.root, false);
    assert_eq!(findings.len(), 2);
    assert!(findings.iter().all(|finding| !finding.is_damage()), "{findings:?}");
    assert_eq!(
        collect(&small.root, &Policy { keep: Duration::from_secs(60), ..Policy::default() }).orphans,
        2
    );
    assert_eq!(fsck(&small.root, false), []);
}

/// The index is gone or is no database: what has a file of its own comes back, byte for byte checked.
fn check_rebuild(damage: impl Fn(&Path)) {
    let Small { _dir, root, .. } = small();
    let before = open(&root).images().unwrap();
    assert!(!before.is_empty());
    damage(&root);
    let refused = open(&root).images();
    assert!(matches!(refused, Err(StoreError::IndexLost { .. } | StoreError::Damaged { .. })), "{refused:?}");
    assert!(refused.unwrap_err().to_string().contains("fsck --rebuild"));
    let rebuilt = rebuild(&root);
    assert_eq!(rebuilt.lost_images, [""; 0]);
    assert_eq!(open(&root).images().unwrap(), before);
    assert_eq!(fsck(&root, false), []);
    let held: Vec<_> = before.iter().flat_map(|(_, image)| image.all_layers()).collect();
    assert!(open(&root).has_layers(&held).unwrap());
}

#[test]
fn a_lost_or_damaged_index_is_made_anew_with_all_names() {
    check_rebuild(|root| {
        for file in ["index.sqlite", "index.sqlite-wal", "index.sqlite-shm"] {
            let _ = std::fs::remove_file(root.join(file));
        }
    });
    check_rebuild(|root| {
        std::fs::write(root.join("index.sqlite"), b"no database at all, just bytes").unwrap()
    });
}

/// A file system that lost its bytes leaves a file of none.
#[test]
fn an_index_of_no_bytes_is_a_lost_one() {
    check_rebuild(|root| {
        std::fs::write(root.join("index.sqlite"), b"").unwrap();
        std::fs::remove_file(root.join("index.sqlite-wal")).unwrap();
    });
    check_rebuild(|root| std::fs::write(root.join("index.sqlite"), b"").unwrap());
}

/// A store with one image of one layer, which was pulled as a blob: `(store, layer, diff id, blob)`.
fn pulled() -> (tempfile::TempDir, LayerId, DiffId, Digest) {
    let (dir, root) = fresh();
    let store = open(&root);
    let lease = store.lease().unwrap();
    let tar = b"somebody else's tar, which nobody makes again of the files";
    let diff_id = DiffId(Digest::of(tar));
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, tar).unwrap();
    let bytes = gzip.finish().unwrap();
    let blob = store.put_blob(&lease, &bytes).unwrap();
    let draft = store.draft(&lease).unwrap();
    std::fs::write(draft.diff_path().join("top"), "file").unwrap();
    let diff = {
        use std::os::fd::AsFd as _;
        scan_upper(draft.diff_fd().as_fd(), OverlayForm::User, &Nothing, &store.scratch()).unwrap()
    };
    store.pulled_as(&draft, &blob).unwrap();
    let layer = store.commit_layer(draft, &diff, 4).unwrap();
    store.set_diff_id(layer, &diff_id, tar.len() as u64).unwrap();
    store.put_encoding(&diff_id, PULLED, &blob, bytes.len() as u64).unwrap();
    let config = store.put_blob(&lease, b"config").unwrap();
    store.put_image("app", &ImageRecord { diff_ids: vec![diff_id], ..image(config, &[layer]) }).unwrap();
    (dir, layer, diff_id, blob)
}

fn lose_index(root: &Path) {
    for file in ["index.sqlite", "index.sqlite-wal", "index.sqlite-shm"] {
        std::fs::remove_file(root.join(file)).unwrap();
    }
}

#[test]
fn a_rebuilt_index_knows_which_blob_a_layer_was_pulled_as() {
    for is_noted in [true, false] {
        let (dir, layer, diff_id, blob) = pulled();
        let root = dir.path().join("store");
        let note = root.join(format!("layers/{layer}/pulled"));
        if !is_noted {
            // Of an earlier version.
            std::fs::remove_file(&note).unwrap();
        }
        let before =
            (open(&root).layer(layer).unwrap().unwrap().tar, open(&root).encoding(&diff_id, PULLED).unwrap());
        lose_index(&root);
        assert_eq!(rebuild(&root).images, ["app"]);
        let store = open(&root);
        assert_eq!(store.layer(layer).unwrap().unwrap().tar, before.0, "{is_noted}");
        assert_eq!(store.encoding(&diff_id, PULLED).unwrap(), before.1, "{is_noted}");
        assert_eq!(before.1.unwrap().0, blob);
        drop(store);
        assert_eq!(fsck(&root, false), []);
    }
}

#[test]
fn a_blob_with_another_tar_is_not_taken_for_the_layers() {
    let (dir, layer, diff_id, _) = pulled();
    let root = dir.path().join("store");
    let other = {
        let store = open(&root);
        let lease = store.lease().unwrap();
        let other = store.put_blob(&lease, b"another tar").unwrap();
        let draft = store.draft(&lease).unwrap();
        store.pulled_as(&draft, &other).unwrap();
        let note = root.join(format!("layers/{layer}/pulled"));
        std::fs::copy(draft.diff_path().with_file_name("pulled"), note).unwrap();
        other
    };
    lose_index(&root);
    rebuild(&root);
    let store = open(&root);
    assert_eq!(store.encoding(&diff_id, PULLED).unwrap(), None);
    assert_eq!(store.encoding(&DiffId(other), PULLED).unwrap(), None);
}

#[test]
fn an_image_whose_pulled_blob_is_gone_is_lost_for_a_rebuild_as_for_fsck() {
    let (dir, layer, _, blob) = pulled();
    let root = dir.path().join("store");
    lose_index(&root);
    std::fs::remove_file(root.join(format!("blobs/sha256/{}/{}", &blob.hex()[..2], blob.hex()))).unwrap();
    let rebuilt = rebuild(&root);
    assert_eq!((rebuilt.layers, rebuilt.lost_images), (0, vec!["app".to_owned()]));
    assert!(root.join(format!("quarantine/layer-{layer}")).exists());
}

#[test]
fn a_rebuild_that_fails_leaves_the_index_and_nothing_else() {
    let small = small();
    let root = &small.root;
    let before = open(root).images().unwrap();
    // Of one that was killed.
    std::fs::write(root.join("work/index.sqlite"), "half of an index").unwrap();
    std::fs::write(root.join("quarantine"), "in the way").unwrap();
    let failed = until_free(|| match Store::rebuild(root, options(), OverlayForm::User) {
        Err(StoreError::InUse { .. }) => None,
        other => Some(other),
    });
    assert!(failed.is_err());
    assert_eq!(open(root).images().unwrap(), before);
    assert!(open(root).result(&key(1)).unwrap().is_some());
    assert!(!root.join("work/index.sqlite").exists());
    std::fs::remove_file(root.join("quarantine")).unwrap();
    assert_eq!(rebuild(root).images, ["one", "two"]);
    assert_eq!(open(root).images().unwrap(), before);
    assert_eq!(fsck(root, false), []);
}

#[test]
fn a_rebuild_sets_damaged_objects_aside_and_names_the_images_that_needed_them() {
    let Small { _dir, root, .. } = small();
    let names: Vec<String> = open(&root).images().unwrap().into_iter().map(|(name, _)| name).collect();
    let mut files = Vec::new();
    files_below(&root.join("layers"), &mut files);
    for file in files {
        flip(&file, 3, 1);
    }
    let rebuilt = rebuild(&root);
    assert_eq!((rebuilt.layers, rebuilt.lost_images), (0, names));
    assert!(rebuilt.set_aside > 0);
    assert_eq!(fsck(&root, false), []);
}

#[test]
fn a_store_in_use_is_not_rebuilt() {
    let Small { _dir, root, .. } = small();
    let _user = open(&root);
    let refused = Store::rebuild(&root, options(), OverlayForm::User);
    assert!(matches!(refused, Err(StoreError::InUse { .. })), "{refused:?}");
}

/// The only file of a name.
fn name_file(root: &Path, name: &str) -> PathBuf {
    root.join(format!("images/{}", blake3::hash(name.as_bytes()).to_hex()))
}

fn change_index(root: &Path, sql: &str) {
    let connection = rusqlite::Connection::open(root.join("index.sqlite")).unwrap();
    assert!(connection.execute(sql, []).unwrap() > 0, "{sql}");
}

/// What a log that lost its last transactions leaves: names of before, or none.
#[test]
fn names_that_the_index_lost_are_told_hold_back_collection_and_come_back() {
    for sql in ["DELETE FROM images", "DELETE FROM images WHERE name = 'two'"] {
        let Small { _dir, root, layers } = small();
        let before = open(&root).images().unwrap();
        change_index(&root, sql);
        change_index(&root, "DELETE FROM results");
        for repair in [false, true] {
            let findings = fsck(&root, repair);
            assert!(findings.contains(&Finding::NameLost("two".to_owned())), "{sql}: {findings:?}");
            assert!(findings.iter().any(|finding| !finding.is_repairable()));
        }
        let policy = Policy { max_used_bytes: Some(0), ..Policy::default() };
        let refused = until_free(|| Collector::open(&root, options()).unwrap()).run(&policy);
        assert!(matches!(&refused, Err(StoreError::NameLost { name, .. }) if name == "two"), "{refused:?}");
        rebuild(&root);
        assert_eq!(open(&root).images().unwrap(), before);
        assert!(open(&root).has_layers(&layers).unwrap());
        assert_eq!(fsck(&root, false), []);
        collect(&root, &policy);
        assert!(open(&root).has_layers(&layers).unwrap());
    }
}

#[test]
fn an_image_without_a_whole_file_of_its_name_is_told_and_repair_writes_it() {
    let damages: [fn(&Path); 3] = [
        |file| std::fs::remove_file(file).unwrap(),
        |file| flip(file, 30, 1),
        |file| std::fs::write(file, "").unwrap(),
    ];
    for damage in damages {
        let Small { _dir, root, .. } = small();
        let before = open(&root).images().unwrap();
        damage(&name_file(&root, "one"));
        assert_eq!(fsck(&root, false), [Finding::NameFile("one".to_owned())]);
        assert_eq!(fsck(&root, true), [Finding::NameFile("one".to_owned())]);
        assert_eq!(fsck(&root, false), []);
        lose_index(&root);
        rebuild(&root);
        assert_eq!(open(&root).images().unwrap(), before);
    }
}

#[test]
fn a_rebuild_counts_the_names_that_nobody_can_read_any_more() {
    let Small { _dir, root, .. } = small();
    flip(&name_file(&root, "one"), 30, 1);
    lose_index(&root);
    let rebuilt = rebuild(&root);
    assert_eq!((rebuilt.images, rebuilt.lost_names), (vec!["two".to_owned()], 1));
    assert_eq!(fsck(&root, false), []);
}

/// What a process that was killed while it gave or removed a name leaves.
#[test]
fn giving_and_removing_that_was_cut_short_harms_nobody() {
    let Small { _dir, root, .. } = small();
    let one = name_file(&root, "one");
    // The row is there: it was being given, or being removed.
    std::fs::rename(&one, root.join("images/.0123456789abcdef")).unwrap();
    assert_eq!(fsck(&root, false), []);
    assert!(one.exists() && !root.join("images/.0123456789abcdef").exists());
    // It is not.
    std::fs::rename(&one, root.join("images/.0123456789abcdef")).unwrap();
    change_index(&root, "DELETE FROM images WHERE name = 'one'");
    collect(&root, &Policy::default());
    assert!(!one.exists() && !root.join("images/.0123456789abcdef").exists());
    assert_eq!(fsck(&root, false).into_iter().filter(Finding::is_damage).count(), 0);
    // And one whose bytes never came.
    std::fs::write(root.join("images/.0123456789abcdef"), "").unwrap();
    assert_eq!(fsck(&root, false).into_iter().filter(Finding::is_damage).count(), 0);
    assert_eq!(std::fs::read_dir(root.join("images")).unwrap().count(), 1);
    assert!(open(&root).remove_image("two").unwrap());
    assert_eq!(std::fs::read_dir(root.join("images")).unwrap().count(), 0);
}

#[test]
fn a_file_of_a_name_that_could_not_be_placed_is_by_whoever_compares_names() {
    let Small { _dir, root, .. } = small();
    let three = name_file(&root, "three");
    std::fs::create_dir(&three).unwrap();
    let store = open(&root);
    let record = store.image("one").unwrap().unwrap();
    store.put_image("three", &record).unwrap();
    drop(store);
    std::fs::remove_dir(&three).unwrap();
    assert_eq!(fsck(&root, false), []);
    assert!(three.is_file());
    lose_index(&root);
    assert!(rebuild(&root).images.contains(&"three".to_owned()));
}

/// Earlier versions had the names of linked files in the record itself.
#[test]
fn records_of_an_earlier_form_are_no_damage_and_go() {
    let small = small();
    let root = &small.root;
    let store = open(root);
    let mut old_tree = Tree::empty().encode();
    old_tree.truncate(old_tree.len() - 4);
    old_tree.extend([1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, b'a', 1, 0, 0, 0, b'b']);
    assert!(Tree::decode(&old_tree).is_err());
    let chain = ChainId::of(&[DiffId(Digest::of(b"tar"))]).unwrap();
    store.put_chain_tree(&chain, &old_tree).unwrap();
    store.put_result(&key(9), &record(&Tree::empty(), &small.layers[..1], 1)).unwrap();
    drop(store);
    let connection = rusqlite::Connection::open(root.join("index.sqlite")).unwrap();
    let (name, mut bytes): (Vec<u8>, Vec<u8>) = connection
        .query_row("SELECT key, record FROM results ORDER BY key DESC LIMIT 1", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    let tree_len = Tree::empty().encode().len();
    bytes.truncate(bytes.len() - tree_len - 8);
    bytes.extend((old_tree.len() as u64).to_le_bytes());
    bytes.extend(&old_tree);
    let seal = seal("result", &name, &bytes);
    let sql = "UPDATE results SET record = ?2, seal = ?3 WHERE key = ?1";
    assert_eq!(connection.execute(sql, (name, bytes, seal)).unwrap(), 1);

    assert_eq!(fsck(root, false), []);
    let collected = collect(root, &Policy::default());
    assert_eq!(collected.results, 1);
    assert!(open(root).result(&key(1)).unwrap().is_some());
    let chains: i64 = connection.query_row("SELECT count(*) FROM chain_trees", [], |row| row.get(0)).unwrap();
    assert_eq!(chains, 0);
}
