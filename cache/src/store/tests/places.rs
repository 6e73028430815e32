//! Directories and small files of the store that somebody removed, or that are something else.

use super::*;
use crate::gc::{Collector, Policy};
use crate::layer::OverlayForm;

/// A build's worth of everything, and a collection; what fsck finds then.
fn work_in(root: &Path, content: &str) -> Result<Vec<Finding>, StoreError> {
    let store = Store::open(root, options())?;
    let lease = store.lease()?;
    let key = Key::content([7; 32]);
    let lock = store.key_lock(&key, "RUN true", |_| {})?;
    let mut writer = store.ingest(&lease)?;
    writer.write_all(content.as_bytes()).unwrap();
    writer.commit(Some(Digest::of(content.as_bytes())))?;
    let draft = store.draft(&lease)?;
    let layer = store.commit_layer(draft, &LayerDiff::default(), 0)?;
    store.put_result(&key, &record(Some(layer), None))?;
    assert!(store.result(&key)?.is_some_and(|record| record.own_layer == Some(layer)), "{content}");
    // As a stat index is.
    let (layout, temp) = (&store.inner.layout, lease.next_path());
    layout.write_new(&temp, b"index")?;
    layout.replace(&temp, &format!("contexts/{}", hex::encode([5; 32])))?;
    store.sync()?;
    drop((lock, lease, store));
    let collector = Collector::open(root, options())?.unwrap();
    collector.run(&Policy::default())?;
    collector.fsck(OverlayForm::User)
}

#[test]
fn directories_that_are_gone_are_made_again() {
    for gone in layout::DIRS {
        let (_dir, store) = fresh();
        let root = store.root().to_owned();
        drop(store);
        assert_eq!(work_in(&root, "before").unwrap(), [], "{gone}");
        std::fs::remove_dir_all(root.join(gone)).unwrap();
        let findings = work_in(&root, "after").unwrap_or_else(|error| panic!("{gone}: {error:?}"));
        let lost = |finding: &Finding| {
            matches!(finding, Finding::BlobMissing(_) | Finding::LayerMissing(_) | Finding::Result { .. })
        };
        assert!(findings.iter().all(lost), "{gone}: {findings:?}");
        assert!(root.join(gone).is_dir(), "{gone}");
    }
}

#[test]
fn what_has_the_place_of_a_file_is_named_with_the_remedy() {
    let key = Key::content([7; 32]).to_string();
    let files = ["lock", "store.json", "readers/current", "index.sqlite-shm"];
    let more = [format!("locks/{key}"), format!("contexts/{}", hex::encode([5; 32])), "locks/gc".into()];
    for file in files.into_iter().map(str::to_owned).chain(more) {
        let (_dir, store) = fresh();
        let root = store.root().to_owned();
        drop(store);
        work_in(&root, "before").unwrap();
        let path = root.join(&file);
        let _ = std::fs::remove_file(&path);
        std::fs::create_dir(&path).unwrap();
        let said = work_in(&root, "after").unwrap_err().to_string();
        let wanted = "is a directory, where rbuild keeps a file: nothing of rbuild's is in it, remove it";
        assert_eq!(said, format!("`{}` {wanted}", path.display()));
        std::fs::remove_dir(&path).unwrap();
        work_in(&root, "again").unwrap_or_else(|error| panic!("{file}: {error:?}"));
    }
}

#[test]
fn a_file_that_has_the_place_of_a_directory_is_named_with_the_remedy() {
    for dir in ["work", "leases", "locks", "contexts", "layers", "blobs"] {
        let (_dir, store) = fresh();
        let path = store.root().join(dir);
        std::fs::remove_dir_all(&path).unwrap();
        std::fs::write(&path, "x").unwrap();
        let root = store.root().to_owned();
        drop(store);
        let said = work_in(&root, "x").unwrap_err().to_string();
        let wanted = "is a file, where rbuild keeps a directory: nothing of rbuild's is in it, remove it";
        assert_eq!(said, format!("`{}` {wanted}", path.display()));
    }
}

#[test]
fn fsck_finds_what_has_the_place_of_a_file_and_sets_it_aside() {
    let (_dir, store) = fresh();
    let root = store.root().to_owned();
    drop(store);
    work_in(&root, "before").unwrap();
    std::fs::create_dir(root.join("contexts/dir")).unwrap();
    std::fs::create_dir(root.join("locks/content-1")).unwrap();
    let collector = Collector::open(&root, options()).unwrap().unwrap();
    let expected = ["contexts/dir", "locks/content-1"].map(|place| Finding::NoFile(place.to_owned()));
    assert_eq!(collector.repair(OverlayForm::User).unwrap().0, expected);
    assert_eq!(collector.fsck(OverlayForm::User).unwrap(), []);
    assert!(root.join("quarantine/contexts-dir").is_dir());
}
