//! What a scanned context takes.

use super::super::{ListedDir, ScanMoment, SeenEntry};
use super::*;

#[test]
fn a_file_takes_its_record_and_no_more() {
    const FILES: usize = 1000;
    let time = Mtime { secs: 1, nanos: 0 };
    let stat = FileStat { size: 1, mtime: time, ctime: time, ino: 1, dev: 1, mode: 0, uid: 0, gid: 0 };
    let mut listed = ListedDir::new(b"", stat, ScanMoment::at(2, 0));
    for at in 0..FILES {
        let (name, kind) = (format!("{at:04}"), KnownKind::File(&[1; 32]));
        let entry = SeenEntry { name: name.as_bytes(), stat, is_linked: false, is_suspect: false, kind };
        listed.push(&entry).unwrap();
    }
    let root = listed.done(false);
    let seen = SeenContext::new(Arc::default(), [0; RULES_BYTES], vec![root], SeenXattrs::default()).unwrap();
    assert_eq!(seen.dirs[0].record().0.len(), FILES * (3 + 5 + 60 + 32));
    // Where each begins is known of a large directory, once somebody asks.
    let held = seen.held(0).unwrap();
    assert_eq!((held.starts.len(), held.starts.capacity()), (FILES, FILES));
    assert!(held.kept.is_none() && Arc::ptr_eq(&held, &seen.held(0).unwrap()));
}
