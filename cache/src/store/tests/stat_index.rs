//! The stat index of contexts.

use proptest::prelude::*;

use super::*;
use crate::layer::Mtime;
use crate::path::RelPath;
use crate::tree::ContentDigest;

const SCANNED: ScanMoment = ScanMoment::at(1000, 0);

fn stat(ctime: Mtime) -> FileStat {
    let mtime = Mtime { secs: 10, nanos: 1 };
    FileStat { size: 3, mtime, ctime, ino: 4, dev: 5, mode: 0o100_644, uid: 6, gid: 7 }
}

fn entry(path: &str, stat: FileStat) -> FingerprintEntry {
    let content = ContentDigest(*blake3::hash(path.as_bytes()).as_bytes());
    FingerprintEntry { path: RelPath::new(path).unwrap(), stat, content }
}

fn save(entries: &[FingerprintEntry]) -> (tempfile::TempDir, Store, FingerprintIndex) {
    let (dir, store) = fresh();
    let lease = store.lease().unwrap();
    store.put_fingerprints(&lease, &[1; 32], SCANNED, &entries.to_vec().into()).unwrap();
    let index = store.fingerprints(&[1; 32]).unwrap();
    (dir, store, index)
}

const OLD: Mtime = Mtime { secs: 20, nanos: 1 };

#[test]
fn a_file_left_alone_before_the_scan_is_known_as_long_as_its_stat_is_equal() {
    let known = entry("a/b", stat(OLD));
    let (_dir, store, index) = save(std::slice::from_ref(&known));
    assert_eq!(index.lookup(known.path.as_bytes(), &known.stat, &mut 0), Some((0, known.content)));
    let changes: [fn(&mut FileStat); 8] = [
        |stat| stat.size += 1,
        |stat| stat.mtime.nanos += 1,
        |stat| stat.ctime.nanos += 1,
        |stat| stat.ino += 1,
        |stat| stat.dev += 1,
        |stat| stat.mode ^= 0o111,
        |stat| stat.uid += 1,
        |stat| stat.gid += 1,
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut stat = known.stat;
        change(&mut stat);
        assert_eq!(index.lookup(known.path.as_bytes(), &stat, &mut 0), None, "change {number}");
    }
    assert!(store.fingerprints(&[2; 32]).unwrap().is_empty());
}

#[test]
fn a_file_changed_around_the_scan_is_read_again() {
    let at = |secs, nanos| entry("f", stat(Mtime { secs, nanos }));
    let is_trusted = |entry: FingerprintEntry| {
        let (_dir, _store, index) = save(std::slice::from_ref(&entry));
        index.lookup(entry.path.as_bytes(), &entry.stat, &mut 0).is_some()
    };
    assert!(is_trusted(at(999, 500_000_000)));
    assert!(!is_trusted(at(999, 995_000_000)), "within the clock's step");
    assert!(!is_trusted(at(999, 0)), "a file system that keeps whole seconds");
    assert!(is_trusted(at(997, 0)));
    assert!(!is_trusted(at(1000, 1)));
    assert!(!is_trusted(at(2000, 1)), "a clock that was set back");
    let mut future = at(20, 1);
    future.stat.mtime.secs = 5000;
    assert!(!is_trusted(future));
}

#[test]
fn a_damaged_index_knows_nothing() {
    let known = entry("a", stat(OLD));
    let (_dir, store, _) = save(std::slice::from_ref(&known));
    let path = store.root().join(format!("contexts/{}", "01".repeat(32)));
    let good = std::fs::read(&path).unwrap();
    for length in 0..good.len() {
        std::fs::write(&path, &good[..length]).unwrap();
        assert!(store.fingerprints(&[1; 32]).unwrap().is_empty(), "cut to {length}");
    }
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, &bytes).unwrap();
        assert!(store.fingerprints(&[1; 32]).unwrap().is_empty(), "bit {bit}");
    }
}

#[test]
fn a_real_file_is_known_until_it_is_written_again() {
    let (dir, store) = fresh();
    let lease = store.lease().unwrap();
    let path = dir.path().join("file");
    let stat = || FileStat::from(&rustix::fs::stat(&path).unwrap());
    std::fs::write(&path, "one").unwrap();
    // Until the clock that stamps files has moved on by more than its step.
    while !fingerprint::settled(stat().ctime, ScanMoment::now()) {
        std::thread::yield_now();
    }
    let known = FingerprintEntry { content: ContentDigest::of(b"one"), ..entry("file", stat()) };
    store.put_fingerprints(&lease, &[1; 32], ScanMoment::now(), &vec![known.clone()].into()).unwrap();
    let index = store.fingerprints(&[1; 32]).unwrap();
    assert_eq!(index.lookup(known.path.as_bytes(), &stat(), &mut 0), Some((0, known.content)));
    // Same size, and the modification time set back as a careful forger would.
    std::fs::write(&path, "two").unwrap();
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 },
        last_modification: rustix::fs::Timespec {
            tv_sec: known.stat.mtime.secs,
            tv_nsec: i64::from(known.stat.mtime.nanos),
        },
    };
    rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::empty()).unwrap();
    assert_eq!((stat().size, stat().mtime), (known.stat.size, known.stat.mtime));
    assert_eq!(index.lookup(known.path.as_bytes(), &stat(), &mut 0), None);
}

#[test]
fn the_moment_of_a_scan_is_no_later_than_what_is_written_after_it() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..100 {
        let before = ScanMoment::now();
        std::fs::write(dir.path().join("f"), "x").unwrap();
        let metadata = std::fs::metadata(dir.path().join("f")).unwrap();
        let written = ScanMoment::at(metadata.ctime(), u32::try_from(metadata.ctime_nsec()).unwrap());
        assert!(before <= written, "{before:?} {written:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_file_is_found_in_any_order_and_no_other(
        names in proptest::collection::btree_set("[a-c.!]{1,2}(/[a-c.!]{1,2}){0,2}", 0..40),
        order in any::<prop::sample::Index>(),
    ) {
        let mut entries: Vec<_> = names
            .iter()
            .filter(|name| RelPath::new(name.as_bytes()).is_ok())
            .map(|name| entry(name, stat(OLD)))
            .collect();
        let (_dir, _store, index) = save(&entries);
        let mut sorted: Vec<_> = entries.iter().map(|entry| entry.path.clone()).collect();
        sorted.sort();
        let found: Vec<_> = index.paths().map(|path| RelPath::new(path).unwrap()).collect();
        prop_assert_eq!(&found, &sorted);
        if !entries.is_empty() {
            let at = order.index(entries.len());
            entries.rotate_left(at);
        }
        let mut hint = 0;
        for entry in &entries {
            let found = index.lookup(entry.path.as_bytes(), &entry.stat, &mut hint);
            prop_assert_eq!(found.map(|(_, content)| content), Some(entry.content));
            let absent = entry.path.join(b"zz");
            prop_assert_eq!(index.lookup(absent.as_bytes(), &entry.stat, &mut hint), None);
        }
    }

    #[test]
    fn the_next_index_has_what_was_kept_and_what_was_read(
        fates in proptest::collection::btree_map("[a-c.!]{1,2}(/[a-c.!]{1,2}){0,2}", 0..3_u8, 0..40),
    ) {
        let fates: Vec<_> = fates.into_iter().filter(|(name, _)| RelPath::new(name.as_bytes()).is_ok()).collect();
        let older: Vec<_> = fates.iter().filter(|(_, fate)| *fate < 2).map(|(name, _)| entry(name, stat(OLD))).collect();
        let (_dir, store, index) = save(&older);
        let mut seen = SeenFiles::new(index);
        let mut expected = Vec::new();
        // 0: as it was, 1: gone, 2: new.
        for (name, fate) in &fates {
            let mut entry = entry(name, stat(OLD));
            match fate {
                0 => seen.keep(seen.last().lookup(name.as_bytes(), &entry.stat, &mut 0).unwrap().0),
                1 => prop_assert_eq!(seen.mtime(&entry.path, &mut 0), None),
                _ => {
                    entry.stat.mtime.secs = 11;
                    seen.add([entry.clone()]);
                }
            }
            if *fate != 1 {
                expected.push(entry);
            }
        }
        prop_assert_eq!(seen.differ(), fates.iter().any(|(_, fate)| *fate != 0));
        let mut hint = 0;
        for entry in &expected {
            prop_assert_eq!(seen.mtime(&entry.path, &mut hint), Some(entry.stat.mtime));
        }
        store.put_fingerprints(&store.lease().unwrap(), &[1; 32], SCANNED, &seen).unwrap();
        let next = store.fingerprints(&[1; 32]).unwrap();
        prop_assert_eq!(next.len(), expected.len());
        for entry in &expected {
            let found = next.lookup(entry.path.as_bytes(), &entry.stat, &mut 0);
            prop_assert_eq!(found.map(|(_, content)| content), Some(entry.content));
        }
    }
}
