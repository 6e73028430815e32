use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::tree::testing::path;

impl Origins {
    /// From which path on each counts.
    pub(in super::super) fn starts(&self) -> Vec<(RelPath, Origin)> {
        let mut cursor = self.cursor(None);
        let mut starts = Vec::new();
        for _ in 0..self.len {
            cursor.advance().ok().unwrap();
            let Start { path, origin } = cursor.next.as_ref().unwrap();
            starts.push((RelPath::new(&path[..]).unwrap(), origin.clone()));
        }
        starts
    }

    /// [`Finder::of`] for one path.
    pub(in super::super) fn of(&self, path: &RelPath) -> Option<Origin> {
        self.finder().of(path).unwrap().cloned()
    }
}

impl Clone for Origins {
    fn clone(&self) -> Self {
        let mut clone = Self::default();
        self.starts().iter().for_each(|(path, origin)| clone.push(path, origin).unwrap());
        clone
    }
}

impl PartialEq for Origins {
    fn eq(&self, other: &Self) -> bool {
        self.starts() == other.starts()
    }
}

fn moved(from: &str, to: &str) -> Moved {
    Moved::new(path(from), path(to))
}

fn some_path() -> impl Strategy<Value = RelPath> {
    prop_oneof![9 => "([a-c]{1,2}/){0,2}[a-z]{1,3}", 1 => "[ab]{200}/[ab]{100,200}", 1 => Just(String::new())]
        .prop_map(|at| path(&at))
}

pub(in super::super) fn some_origin() -> impl Strategy<Value = Origin> {
    let moved = || (some_path(), some_path()).prop_map(|(from, to)| Moved::new(from, to));
    prop_oneof![
        6 => moved().prop_map(Origin::Source),
        3 => moved().prop_map(Origin::Archive),
        1 => prop::collection::vec(any::<u8>(), 0..6000).prop_map(Origin::Inline),
        1 => Just(Origin::Packed),
    ]
}

proptest! {
    #[test]
    fn an_origin_counts_up_to_the_next_one(
        starts in prop::collection::btree_map(some_path(), some_origin(), 0..300),
        asked in prop::collection::vec(some_path(), 0..100),
    ) {
        let mut origins = Origins::new(&Scratch::for_test());
        for (path, origin) in &starts {
            origins.push(path, origin).unwrap();
        }
        prop_assert!(origins.starts.held_bytes() < 16 << 10);
        let starts_read: BTreeMap<_, _> = origins.starts().into_iter().collect();
        prop_assert_eq!(&starts_read, &starts);
        let expected = |path: &RelPath| starts.range(..=path).next_back().map(|(_, origin)| origin);
        // At random, by one who remembers where it was and by one who does not.
        let mut finder = origins.finder();
        for path in &asked {
            prop_assert_eq!(finder.of(path).unwrap(), expected(path));
            prop_assert_eq!(origins.of(path), expected(path).cloned());
        }
        // In order, by several at once, each of whom has some of them.
        let mut ordered: Vec<&RelPath> = asked.iter().chain(starts.keys()).collect();
        ordered.sort();
        let batches: Vec<&[&RelPath]> = ordered.chunks(7).collect();
        let agrees = |thread: usize| {
            let mut finder = origins.finder();
            let mine = batches.iter().skip(thread).step_by(3).copied().flatten();
            mine.copied().all(|path| finder.of(path).unwrap() == expected(path))
        };
        let all_agree = std::thread::scope(|scope| {
            let threads = [0, 1, 2].map(|thread| scope.spawn(move || agrees(thread)));
            threads.into_iter().all(|thread| thread.join().unwrap())
        });
        prop_assert!(all_agree);
    }
}

#[test]
fn a_moved_file_is_found_below_where_it_came_from() {
    for (from, to, at, source) in [
        ("", "", "a/b", Some("a/b")),
        ("", "app", "app/a", Some("a")),
        ("src", "", "a", Some("src/a")),
        ("src", "app/src", "app/src/a", Some("src/a")),
        ("x/f", "y/g", "y/g", Some("x/f")),
        ("x/f", "f", "f", Some("x/f")),
        ("src", "app", "apple/a", None),
    ] {
        assert_eq!(moved(from, to).source_of(&path(at)), source.map(path), "{from} to {to}: {at}");
    }
    assert_eq!(moved("x/a/f", "y/a/f"), moved("x/b", "y/b"), "one rule for what is taken one by one");
}

#[test]
fn origins_that_take_turns_are_found_in_little() {
    let mut origins = Origins::new(&Scratch::for_test());
    let sources = ["x", "y"].map(|from| Origin::Source(moved(from, "some/dir")));
    let at = |at: usize| path(&format!("some/dir/file-{at:05}"));
    for place in 0..10_000 {
        origins.push(&at(2 * place), &sources[place % 2]).unwrap();
    }
    assert!(origins.starts.end() < 200_000, "{}", origins.starts.end());
    assert!(origins.starts.held_bytes() + origins.stops.bytes() < 8 << 10);
    let mut finder = origins.finder();
    for place in 0..10_000 {
        for between in [2 * place, 2 * place + 1] {
            assert_eq!(finder.of(&at(between)).unwrap(), Some(&sources[place % 2]), "{between}");
        }
    }
    assert_eq!(finder.of(&path("some/dir")).unwrap(), None);
}
