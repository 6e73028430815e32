use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::super::codec::tests::{decoded, encoded};
use super::*;

fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

fn paths() -> impl Strategy<Value = RelPath> {
    prop::collection::vec("[a-c\\.é]{1,3}", 1..4)
        .prop_filter_map("clean", |parts| RelPath::new(parts.join("/")).ok())
}

fn entry(path: RelPath, number: u32) -> DiffEntry {
    let change = match number % 12 {
        0 => Change::Whiteout,
        1 => Change::Dir { meta: Meta { uid: number, ..Meta::default() }, opaque: false },
        5 => Change::Symlink { meta: Meta::default(), target: number.to_string().into_bytes() },
        6 => Change::CharDevice { meta: Meta::default(), major: number, minor: 1 },
        7 => Change::BlockDevice { meta: Meta::default(), major: number, minor: 1 },
        8 => Change::Fifo { meta: Meta::default() },
        _ => {
            let value = vec![1; number as usize * 5];
            let meta = Meta { mode: 0o644, xattrs: [(vec![b'n'], value)].into(), ..Meta::default() };
            Change::File { meta, size: number.into(), content: ContentDigest([number as u8; 32]) }
        }
    };
    DiffEntry { path, change, mtime: Mtime { secs: -i64::from(number), nanos: number } }
}

proptest! {
    /// As what it stands for, a sorted list, whether it was pushed or decoded.
    #[test]
    fn a_diff_is_its_entries(
        numbers in prop::collection::btree_map(paths(), 0..1000_u32, 0..150),
        has_root in any::<bool>(),
        asked in prop::collection::vec(paths(), 0..20),
        from in 0..160_usize,
    ) {
        let mut model: BTreeMap<RelPath, DiffEntry> =
            numbers.into_iter().map(|(path, number)| (path.clone(), entry(path, number))).collect();
        if has_root {
            model.insert(RelPath::root(), entry(RelPath::root(), 1));
        }
        let pushed: LayerDiff = model.values().cloned().collect();
        let mut spilled = LayerDiff::new(&Scratch::for_test());
        model.values().for_each(|entry| spilled.push(entry).unwrap());
        let read = decoded(&encoded(&pushed)).unwrap();
        prop_assert_eq!(encoded(&spilled), encoded(&pushed));
        prop_assert_eq!(encoded(&read), encoded(&pushed));
        for mut diff in [pushed, spilled, read] {
            for _ in 0..2 {
                prop_assert_eq!(diff.len(), model.len());
                prop_assert!(diff.entries().into_iter().eq(model.values().cloned()));
                let some: Vec<_> = diff.iter_from(from).unwrap().map(Result::unwrap).collect();
                prop_assert!(some.into_iter().eq(model.values().skip(from).cloned()));
                prop_assert_eq!(diff.at(from).unwrap(), model.values().nth(from).cloned());
                for path in asked.iter().chain(model.keys()) {
                    prop_assert_eq!(diff.get(path).unwrap(), model.get(path).cloned());
                    prop_assert_eq!(diff.position(path).unwrap(), model.keys().position(|at| at == path));
                }
                prop_assert_eq!(diff.root().unwrap(), model.get(&RelPath::root()).cloned());
                diff.remove_root().unwrap();
                model.remove(&RelPath::root());
            }
            let rootless: LayerDiff = model.values().cloned().collect();
            prop_assert_eq!(encoded(&diff), encoded(&rootless));
            if has_root {
                model.insert(RelPath::root(), entry(RelPath::root(), 1));
            }
        }
    }
}

/// A listing of several windows in a file, and the place of its first entry there.
fn on_disk() -> (std::fs::File, LayerDiff) {
    let diff: LayerDiff = (0..5000).map(|at| entry(path(&format!("f{at:04}")), at % 100)).collect();
    let bytes = encoded(&diff);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let read = super::super::codec::decode_diff(file.try_clone().unwrap(), 0, bytes.len() as u64).unwrap();
    (file, read)
}

#[test]
fn a_file_that_changes_while_it_is_read_is_an_error_and_no_panic() {
    for byte in [0x00, 0x7f, 0xff] {
        let (file, diff) = on_disk();
        let half = diff.encoded.end() / 2;
        file.write_all_at(&vec![byte; usize::try_from(half).unwrap()], half).unwrap();
        // What is wrong may come late, but the first error is the last thing that comes.
        let read: Vec<_> = diff.iter().take(10_000).collect();
        let errors = read.iter().filter(|entry| entry.is_err()).count();
        assert!(errors == 0 || (errors == 1 && read.last().unwrap().is_err()), "{byte}: {errors}");
        let _any = diff.get(&path("f4999"));
        let _any = diff.iter_from(4000).map(Iterator::count);
    }
}

#[test]
fn a_file_that_is_cut_while_it_is_read_is_an_error() {
    let (file, diff) = on_disk();
    file.set_len(diff.encoded.end() / 2).unwrap();
    let read: Vec<_> = diff.iter().collect();
    assert!(read.len() > 1000 && read[..read.len() - 1].iter().all(Result::is_ok));
    let error = read.last().unwrap().as_ref().unwrap_err();
    assert_eq!(error.to_string(), "read a layer's list of entries");
    assert!(diff.get(&path("f4999")).is_err());
    assert!(diff.get(&path("f0001")).unwrap().is_some());
}

#[test]
fn a_file_of_a_deep_tree_takes_less_than_a_hundred_bytes() {
    let file = |at: usize| {
        let path = path(&format!("app/node_modules/package-{:04}/lib/file-{at:06}.js", at / 20));
        let meta = Meta { mode: 0o644, uid: 1000, gid: 1000, ..Meta::default() };
        let change = Change::File { meta, size: 70_000, content: ContentDigest::of(&at.to_le_bytes()) };
        DiffEntry { path, change, mtime: Mtime { secs: 1_700_000_000, nanos: 123_456_789 } }
    };
    let diff: LayerDiff = (0..10_000).map(file).collect();
    let (bytes, stops) = (diff.encoded.len(), diff.stops.bytes() as u64);
    assert!(bytes + stops < 10_000 * 100, "{bytes} and {stops}");
}
