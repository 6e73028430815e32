//! What a scanned context takes.

use super::super::{KnownKind, ListedDir, ScanMoment, SeenEntry};
use super::*;

const FILES: usize = 1000;

/// A directory whose files have the numbers of their names as times.
fn listed(path: &str) -> SeenDir {
    let time = Mtime { secs: 1, nanos: 0 };
    let stat = FileStat { size: 1, mtime: time, ctime: time, ino: 1, dev: 1, mode: 0, uid: 0, gid: 0 };
    let mut listed = ListedDir::new(path.as_bytes(), stat, ScanMoment::at(2, 0));
    for at in 0..FILES {
        let (name, kind) = (format!("{at:04}"), KnownKind::File(&[1; 32]));
        let stat = FileStat { mtime: Mtime { secs: at as i64, nanos: 0 }, ..stat };
        let entry = SeenEntry { name: name.as_bytes(), stat, is_linked: false, is_suspect: false, kind };
        listed.push(&entry).unwrap();
    }
    listed.done(false)
}

fn seen(last: &Arc<StatIndex>, dirs: Vec<SeenDir>) -> SeenContext {
    SeenContext::new(Arc::clone(last), [0; RULES_BYTES], dirs, SeenXattrs::default()).unwrap()
}

#[test]
fn a_file_takes_its_record_and_no_more() {
    let seen = seen(&Arc::default(), vec![listed("")]);
    assert_eq!(seen.dirs[0].record().0.len(), FILES * (3 + 5 + 60 + 32));
    // How to look into a large directory is known, once somebody asks.
    let held = seen.held(0, b"0500").unwrap();
    assert!(held.end().is_none() && Arc::ptr_eq(&held, &seen.held(0, b"0001").unwrap()));
}

#[test]
fn of_many_large_directories_little_is_held_and_everything_found() {
    let paths: Vec<_> = (0..40).map(|at| format!("d{at:02}")).collect();
    let dirs = || [String::new()].iter().chain(&paths).map(|path| listed(path)).collect::<Vec<_>>();
    let new = seen(&Arc::default(), dirs());
    let mut bytes = Vec::new();
    assert!(new.write(&mut bytes).unwrap());
    let file = crate::scratch::Scratch::for_test().file().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
    let last = Arc::new(StatIndex::open(file).unwrap());
    let kept = (0..last.len()).map(|at| SeenDir::kept(&last.dir(at).unwrap(), false)).collect();
    let kept = seen(&last, kept);
    for seen in [&new, &kept] {
        let mut hint = SeenHint::default();
        // Some in order, some not.
        for at in (0..FILES).step_by(50).chain([7, 3, FILES - 1, 8]) {
            for path in &paths {
                let path = RelPath::new(format!("{path}/{at:04}").into_bytes()).unwrap();
                assert_eq!(seen.mtime(&path, &mut hint).map(|time| time.secs), Some(at as i64), "{path}");
            }
        }
        let (count, bytes) = seen.recent.lock().unwrap().held();
        assert!((1..40).contains(&count) && bytes < 4 << 10, "{count} with {bytes}");
    }
    assert_eq!(kept.node(), new.node());
}
