//! Instructions with several items, more of them than is held in memory.

use proptest::prelude::*;

use super::*;
use crate::copy::pending::with_held_bytes_max;
use crate::layer::DiffEntry;
use crate::tree::testing::{Model, apply_model, diff, dir, file, link, model_diff, steps};

/// One thing to copy.
#[derive(Debug, Clone)]
enum Item {
    Pattern(&'static str),
    Inline(&'static str),
    Archive(Files),
}

/// What is in an archive: its list, and which of its directories are only implied.
#[derive(Debug, Clone)]
struct Files {
    diff: Vec<DiffEntry>,
    implied: Vec<RelPath>,
}

/// [`steps`] with more hard links.
fn linking() -> impl Strategy<Value = Vec<(Vec<&'static str>, u8)>> {
    let more = |what| if what == 3 || what == 6 { what / 6 + 7 } else { what };
    (steps(), any::<bool>()).prop_map(move |(mut steps, is_linking)| {
        steps.iter_mut().filter(|_| is_linking).for_each(|(_, what)| *what = more(*what));
        steps
    })
}

/// An archive's entries, some directories opaque or only implied; seldom one is missing that others need.
fn files() -> impl Strategy<Value = Files> {
    let missing = prop_oneof![15 => Just(None), 1 => (0..20_usize).prop_map(Some)];
    (linking(), any::<u64>(), any::<u64>(), missing).prop_map(|(steps, opaques, implieds, missing)| {
        let mut diff = model_diff(&apply_model(&steps)).entries();
        let is_set = |bits: u64, at: usize| bits >> (at % 64) & 1 == 1;
        let mut implied = Vec::new();
        for (at, entry) in diff.iter_mut().enumerate() {
            let Change::Dir { opaque, .. } = &mut entry.change else { continue };
            if is_set(implieds, at) && is_set(implieds, at + 1) {
                implied.push(entry.path.clone());
            } else {
                *opaque = is_set(opaques, at) && is_set(opaques, at + 1);
            }
        }
        if let Some(at) = missing.filter(|at| *at < diff.len()) {
            diff.remove(at);
        }
        Files { diff, implied }
    })
}

fn items() -> impl Strategy<Value = Vec<Item>> {
    let pattern = prop_oneof![
        4 => Just("/"), 2 => Just("a"), 1 => Just("b"), 1 => Just("*"), 1 => Just("a/*"), 1 => Just("a/b"), 1 => Just("*/a"),
    ];
    let item = prop_oneof![
        4 => pattern.prop_map(Item::Pattern),
        1 => prop_oneof![Just("a"), Just("n")].prop_map(Item::Inline),
        4 => files().prop_map(Item::Archive),
    ];
    proptest::collection::vec(item, 1..5)
}

/// A tree whose symlinks lead somewhere.
fn linked(steps: &[(Vec<&'static str>, u8)]) -> Model {
    let targets = ["a", "/b", "../c", "/", "/a.b", "b/c", "/n/e"];
    let mut model = apply_model(steps);
    for (at, (change, _)) in model.values_mut().enumerate() {
        if let Change::Symlink { target, .. } = change {
            *target = targets[at % targets.len()].into();
        }
    }
    model
}

fn dest() -> impl Strategy<Value = &'static str> {
    prop_oneof![3 => Just("/"), 2 => Just("/a/"), 1 => Just("/c"), 1 => Just("/n/e/w/"), 1 => Just("/b/a")]
}

/// What is planned, or why not.
fn planned(
    parent: &[(Vec<&'static str>, u8)],
    source: &[(Vec<&'static str>, u8)],
    items: &[Item],
    dest: &str,
) -> Result<CopyPlan, CopyError> {
    let nodes = MemoryNodeStore::default();
    let build =
        |model: &Model| Tree::empty().apply(&nodes, &model_diff(model), &Scratch::for_test()).unwrap();
    let (parent, source) = (build(&linked(parent)), build(&linked(source)));
    let mut copied = Vec::new();
    for (number, item) in items.iter().enumerate() {
        match item {
            Item::Pattern(pattern) => {
                let selected = select(&source, &nodes, pattern.as_bytes()).unwrap_or_default();
                copied.extend(selected.into_iter().map(CopyItem::Selected));
            }
            Item::Inline(name) => {
                copied.push(CopyItem::Inline { name: name.as_bytes().to_vec(), content: b"inline".to_vec() });
            }
            Item::Archive(files) => {
                let diff = files.diff.iter().cloned().collect();
                copied.push(archive(&number.to_string(), diff, |at| files.implied.contains(at)));
            }
        }
    }
    let from = Some(&FakeTimes(500) as &dyn FileSource);
    plan(&nodes, &parent, &FakeTimes(100), from, &copied, &options(dest), &Scratch::for_test())
}

proptest! {
    #[test]
    fn plans_are_the_same_however_little_is_held(
        parent in linking(), source in linking(), items in items(), dest in dest(),
    ) {
        let planned = |held| with_held_bytes_max(held, || {
            planned(&parent, &source, &items, dest).map_err(|error| error.to_string())
        });
        let all = planned(usize::MAX);
        prop_assert_eq!(&planned(1), &all);
        prop_assert_eq!(&planned(2 << 10), &all);
    }
}

/// A layer's hard links, and the files that they are names of.
fn links(plan: &CopyPlan) -> Vec<(String, String)> {
    let link = |entry: DiffEntry| match entry.change {
        Change::Hardlink { target } => Some((entry.path.to_string(), target.to_string())),
        _ => None,
    };
    plan.diff.entries().into_iter().filter_map(link).collect()
}

fn pair(at: &str, target: &str) -> (String, String) {
    (at.into(), target.into())
}

/// Two directories: one with a file of three names and one of two, one with other files in the place of first names.
fn overwriting() -> Context<'static> {
    let mut context = Context::new(&[
        ("d", dir(0o755)),
        ("d/a", file("A")),
        ("d/k", file("K")),
        ("d/sub", dir(0o755)),
        ("z", dir(0o755)),
        ("z/a", file("ZZ")),
    ]);
    context.links = vec![("d/b", "d/a"), ("d/sub/c", "d/a"), ("d/l", "d/k")];
    context
}

#[test]
fn names_of_a_file_stay_together_when_a_later_item_takes_the_first() {
    let context = overwriting();
    // The later one is not held when it comes last.
    for sources in [&["d", "z"][..], &["d", "z", "z/a"], &["d", "z", "d/k"]] {
        let image = Image::scratch().copy(&context, sources, "/n/");
        let mut expected = vec![pair("n/sub/c", "n/b")];
        // What is copied by itself is a file of its own, even from where it was.
        if sources.last() != Some(&"d/k") {
            expected.insert(0, pair("n/l", "n/k"));
        }
        assert_eq!(links(&image.last), expected, "{sources:?}");
        let from = image.files();
        assert!(from.contains(&(path("n/a"), path("z/a"))) && from.contains(&(path("n/b"), path("d/b"))));
    }
    let image = Image::scratch().copy(&context, &["d", "z", "d"], "/n/");
    assert_eq!(links(&image.last), [pair("n/b", "n/a"), pair("n/l", "n/k"), pair("n/sub/c", "n/a")]);
}

/// An archive's entries, and which directories it only implies.
type Listed<'a> = (&'a [(&'a str, Change)], &'a [&'a str]);

fn unpacked(image: &Image, archives: &[Listed<'_>]) -> CopyPlan {
    let items: Vec<CopyItem> = (0..)
        .zip(archives)
        .map(|(number, (entries, implied))| {
            let is_implied = |at: &RelPath| implied.contains(&&*at.to_string());
            archive(&i32::to_string(&number), diff(entries), is_implied)
        })
        .collect();
    plan(&image.nodes, &image.tree, &FakeTimes(1), None, &items, &options("/"), &Scratch::for_test()).unwrap()
}

fn hard(target: &str) -> Change {
    Change::Hardlink { target: path(target) }
}

#[test]
fn names_in_an_archive_stay_together_when_a_later_one_takes_the_first() {
    let first = [("a", file("A")), ("b", hard("a")), ("c", hard("a")), ("k", file("K")), ("l", hard("k"))];
    let image = Image::scratch();
    let plan = unpacked(&image, &[(&first, &[]), (&[("a", file("other"))], &[])]);
    assert_eq!(links(&plan), [pair("c", "b"), pair("l", "k")]);
    // A directory in the place of one.
    let plan = unpacked(&image, &[(&first, &[]), (&[("k", dir(0o755)), ("k/x", file("x"))], &[])]);
    assert_eq!(links(&plan), [pair("b", "a"), pair("c", "a")]);
    // The same names again: all are of the later archive.
    let plan = unpacked(&image, &[(&first, &[]), (&first, &[])]);
    assert_eq!(links(&plan), [pair("b", "a"), pair("c", "a"), pair("l", "k")]);
    let plan = unpacked(&image, &[(&first, &[]), (&first[..1], &[])]);
    assert_eq!(links(&plan), [pair("c", "b"), pair("l", "k")]);
}

#[test]
fn the_least_name_is_first_where_a_directory_is_elsewhere() {
    let image = Image::with(&[("lib", link("usr/lib")), ("usr", dir(0o755)), ("usr/lib", dir(0o755))]);
    let entries = [
        ("lib", dir(0o755)),
        ("lib/x", file("x")),
        ("m", dir(0o755)),
        ("m/y", hard("lib/x")),
        ("z", hard("lib/x")),
    ];
    let plan = unpacked(&image, &[(&entries, &["lib"])]);
    assert_eq!(links(&plan), [pair("usr/lib/x", "m/y"), pair("z", "m/y")]);
    // The same archive puts another file there, by another way.
    let mut entries = entries.to_vec();
    entries.extend([("usr", dir(0o755)), ("usr/lib", dir(0o755)), ("usr/lib/x", file("other"))]);
    entries.sort_by_key(|(at, _)| path(at));
    let plan = unpacked(&image, &[(&entries, &["lib"])]);
    assert_eq!(links(&plan), [pair("z", "m/y")]);
}
