use std::cell::Cell;

use proptest::prelude::*;

use super::*;
use crate::copy::rules::Rule;
use crate::copy::view::FirstName;
use crate::layer::Mtime;
use crate::tree::testing::{meta, owned, path};
use crate::tree::{ContentDigest, EMPTY_NODE, Entry};

thread_local! {
    static HELD_BYTES_MAX: Cell<usize> = const { Cell::new(2 << 10) };
}

pub(super) fn held_bytes_max() -> usize {
    HELD_BYTES_MAX.get()
}

/// Does something with another limit of what is held.
pub(in crate::copy) fn with_held_bytes_max<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let before = HELD_BYTES_MAX.replace(bytes);
    let result = work();
    HELD_BYTES_MAX.set(before);
    result
}

fn some_planned(seed: u32) -> Planned {
    let rule = Rule::of_number(1).unwrap();
    let kind = match seed % 5 {
        0 => Kind::Dir(*EMPTY_NODE),
        1 => Kind::Symlink(vec![b't'; 1 + seed as usize % 200]),
        2 => Kind::CharDevice { major: seed, minor: u32::MAX },
        3 => Kind::Fifo,
        _ => Kind::File { size: u64::MAX - u64::from(seed), content: ContentDigest([seed as u8; 32]) },
    };
    let mut meta = if seed.is_multiple_of(2) { meta(0o644) } else { owned(0o7777, seed, u32::MAX) };
    if seed.is_multiple_of(7) {
        meta.xattrs.insert(b"user.x".to_vec(), vec![7; seed as usize % 300]);
    }
    Planned {
        entry: Entry { meta, kind },
        mtime: (!seed.is_multiple_of(3)).then(|| Mtime { secs: -i64::from(seed), nanos: 999_999_999 }),
        origin: (!seed.is_multiple_of(4)).then_some(rule),
        item: std::num::NonZeroU32::new(seed % 3),
        first: (seed % 4 == 1).then(|| Box::new(FirstName { path: path("a/b/c"), rule })),
    }
}

fn got(pending: &Pending, path: &RelPath) -> Option<Planned> {
    pending.get(path).unwrap().map(Cow::into_owned)
}

/// All that is planned.
fn listed(pending: &Pending) -> Vec<(RelPath, Planned)> {
    let mut all = pending.all().unwrap();
    let mut listed = Vec::new();
    while let Some(next) = all.next().unwrap() {
        listed.push(next);
    }
    listed
}

#[derive(Debug, Clone)]
enum Step {
    Insert(RelPath, u32),
    /// So many in the order of paths, below one.
    InsertMany(RelPath, u32),
    DropBelow(RelPath),
    Get(RelPath),
}

fn some_path() -> impl Strategy<Value = RelPath> {
    proptest::collection::vec(prop_oneof![Just("a"), Just("b"), Just("a.b"), Just("c")], 1..5)
        .prop_map(|parts| path(&parts.join("/")))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (some_path(), any::<u32>()).prop_map(|(path, seed)| Step::Insert(path, seed >> 8)),
        1 => (some_path(), 1..150_u32).prop_map(|(path, count)| Step::InsertMany(path, count)),
        1 => some_path().prop_map(Step::DropBelow),
        4 => some_path().prop_map(Step::Get),
    ];
    proptest::collection::vec(step, 0..150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]
    #[test]
    fn it_is_a_map(steps in steps(), limit in prop_oneof![Just(1), Just(2 << 10), Just(20 << 10)]) {
        with_held_bytes_max(limit, || {
            let mut pending = Pending::new(Scratch::for_test());
            let mut model = BTreeMap::new();
            for step in &steps {
                match step {
                    Step::Insert(path, seed) => {
                        pending.insert(path.clone(), some_planned(*seed)).unwrap();
                        model.insert(path.clone(), some_planned(*seed));
                    }
                    Step::InsertMany(dir, count) => {
                        for seed in 0..*count {
                            let path = dir.join(format!("x{seed:03}").as_bytes());
                            prop_assert_eq!(got(&pending, &path), model.get(&path).cloned());
                            pending.insert(path.clone(), some_planned(seed)).unwrap();
                            model.insert(path, some_planned(seed));
                        }
                    }
                    Step::DropBelow(path) => {
                        pending.drop_below(path).unwrap();
                        model.retain(|at, _| at == path || strip(at, path).is_none());
                    }
                    Step::Get(path) => {
                        prop_assert_eq!(got(&pending, path), model.get(path).cloned());
                        let after = (std::ops::Bound::Excluded(path), std::ops::Bound::Unbounded);
                        let next = model.range::<RelPath, _>(after).next().map(|(path, _)| path);
                        prop_assert_eq!(pending.next_after(path).unwrap(), next.cloned());
                    }
                }
                let held: usize = pending.held.iter().map(|(path, said)| said.held_bytes(path.as_bytes().len())).sum();
                prop_assert_eq!(held, pending.held_bytes);
                prop_assert!(held <= limit);
            }
            for (path, planned) in &model {
                prop_assert_eq!(got(&pending, path), Some(planned.clone()));
            }
            for path in model.keys().rev() {
                prop_assert_eq!(got(&pending, path), model.get(path).cloned());
            }
            prop_assert_eq!(listed(&pending), model.into_iter().collect::<Vec<_>>());
            Ok(())
        })?;
    }
}

#[test]
fn little_needs_no_file() {
    let mut pending = Pending::new(Scratch::for_test());
    for seed in 0..5 {
        pending.insert(path(&format!("f{seed}")), some_planned(seed * 5)).unwrap();
    }
    pending.drop_below(&path("f1")).unwrap();
    assert_eq!(listed(&pending).len(), 5);
    assert!(pending.file.is_none());
}

#[test]
fn what_comes_in_the_order_of_paths_is_one_run() {
    let mut pending = Pending::new(Scratch::for_test());
    for item in 1..4 {
        for seed in 0..500 {
            pending.insert(path(&format!("d/f{seed:03}")), some_planned(seed)).unwrap();
        }
        assert!(pending.runs.len() <= 2 * item, "{} runs of {item} items", pending.runs.len());
    }
    assert_eq!(listed(&pending).len(), 500);
}
