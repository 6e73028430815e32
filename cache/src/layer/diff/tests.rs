use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::codec::{decode_diff, encode_diff};
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
        let decoded = decode_diff(encode_diff(pushed.clone())).unwrap();
        prop_assert_eq!(&decoded, &pushed);
        for mut diff in [pushed, decoded] {
            for _ in 0..2 {
                prop_assert_eq!(diff.len(), model.len());
                prop_assert!(diff.iter().eq(model.values().cloned()));
                prop_assert!(diff.iter_from(from).eq(model.values().skip(from).cloned()));
                for path in asked.iter().chain(model.keys()) {
                    prop_assert_eq!(diff.get(path), model.get(path).cloned());
                }
                prop_assert_eq!(diff.root(), model.get(&RelPath::root()).cloned());
                diff.remove_root();
                model.remove(&RelPath::root());
            }
            let rootless: LayerDiff = model.values().cloned().collect();
            prop_assert_eq!(encode_diff(diff), encode_diff(rootless));
            if has_root {
                model.insert(RelPath::root(), entry(RelPath::root(), 1));
            }
        }
    }
}

#[test]
fn a_look_up_passes_over_no_more_than_one_large_entry() {
    let file = |at: usize, xattr: usize| {
        let meta = Meta { xattrs: [(b"user.x".to_vec(), vec![0; xattr])].into(), ..Meta::default() };
        let change = Change::File { meta, size: 0, content: ContentDigest([0; 32]) };
        DiffEntry { path: path(&format!("f{at:02}")), change, mtime: Mtime::default() }
    };
    let diff: LayerDiff = (0..31).map(|at| file(at, 64 << 10)).chain([file(31, 0)]).collect();
    let last = diff.stops.last().unwrap();
    assert_eq!((last.index, diff.stops.len()), (31, 31));
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
    let stops: usize = diff.stops.iter().map(|stop| size_of::<Stop>() + stop.path.as_bytes().len()).sum();
    assert!(diff.encoded().len() + stops < 10_000 * 100, "{} and {stops}", diff.encoded().len());
}
