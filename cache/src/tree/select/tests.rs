use proptest::prelude::*;

use super::testing::{list, select};
use super::*;
use crate::tree::testing::{dir, file, groups, link, tree, tree_linked};
use crate::tree::{Links, MemoryNodeStore, load_node};

fn paths(entries: &[(&str, crate::layer::Change)], source: &str) -> Vec<String> {
    let nodes = MemoryNodeStore::default();
    let tree = tree(&nodes, entries);
    let selected = select(&tree, &nodes, source.as_bytes()).unwrap();
    selected.iter().map(|item| format!("{}={}", String::from_utf8_lossy(&item.name), item.path)).collect()
}

#[track_caller]
fn check_match(pattern: &str, name: &str, expected: bool) {
    assert_eq!(
        Pattern::new(pattern.as_bytes()).unwrap().matches(name.as_bytes()),
        expected,
        "{pattern} {name}"
    );
}

#[test]
fn patterns_match_as_in_go() {
    for (pattern, name, expected) in [
        ("abc", "abc", true),
        ("*", "abc", true),
        ("*c", "abc", true),
        ("a*", "a", true),
        ("a*b*c*d*e*", "axbxcxdxexxx", true),
        ("a*b?c*x", "abxbbxdbxebxczzx", true),
        ("a*b?c*x", "abxbbxdbxebxczzy", false),
        ("ab[c]", "abc", true),
        ("ab[b-d]", "abc", true),
        ("ab[e-g]", "abc", false),
        ("ab[^c]", "abc", false),
        ("ab[^e-g]", "abc", true),
        ("a\\*b", "a*b", true),
        ("a\\*b", "ab", false),
        ("a?b", "a☺b", true),
        ("a[^a]b", "a☺b", true),
        ("a???b", "a☺b", false),
        ("[a-ζ]*", "α", true),
        ("[\\]a]", "]", true),
        ("[\\-]", "-", true),
        ("[x\\-]", "x", true),
        ("**", ".hidden", true),
        ("arr[[]0].txt", "arr[0].txt", true),
        ("arr[0].txt", "arr[0].txt", false),
        ("", "", true),
        ("*x", "xxx", true),
        ("*", "", true),
        ("?", "", false),
        ("*[a-ζ]", "A", false),
    ] {
        check_match(pattern, name, expected);
    }
}

#[test]
fn malformed_patterns_are_refused() {
    for pattern in ["[]a]", "[-]", "[x-]", "[-x]", "[a-b-c]", "[", "[^", "[^bc", "a[", "a\\"] {
        assert!(Pattern::new(pattern.as_bytes()).is_err(), "{pattern}");
    }
}

#[test]
fn many_stars_do_not_explode() {
    let pattern = Pattern::new("*a".repeat(60).as_bytes()).unwrap();
    assert!(!pattern.matches("a".repeat(250).replace('a', "ab").as_bytes()));
}

proptest! {
    #[test]
    fn a_pattern_agrees_with_a_naive_matcher(pattern in "[ab*?]{0,8}", name in "[ab]{0,8}") {
        fn naive(pattern: &[u8], name: &[u8]) -> bool {
            match (pattern, name) {
                ([], []) => true,
                ([b'*', rest @ ..], _) => naive(rest, name) || (!name.is_empty() && naive(pattern, &name[1..])),
                ([b'?', rest @ ..], [_, name @ ..]) => naive(rest, name),
                ([p, rest @ ..], [n, name @ ..]) => p == n && naive(rest, name),
                _ => false,
            }
        }
        let wanted = naive(pattern.as_bytes(), name.as_bytes());
        prop_assert_eq!(Pattern::new(pattern.as_bytes()).unwrap().matches(name.as_bytes()), wanted);
    }

    #[test]
    fn any_bytes_are_a_pattern_or_refused(
        pattern in proptest::collection::vec(any::<u8>(), 0..20),
        name in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        if let Ok(pattern) = Pattern::new(&pattern) {
            pattern.matches(&name);
        }
    }
}

#[test]
fn slashes_dots_and_climbing_change_nothing() {
    let entries = [("d", dir(0o755)), ("d/f", file("F")), ("f", file("F"))];
    for source in ["d", "d/", "d/.", "/d", "./d", "../d", "x/../../d"] {
        assert_eq!(paths(&entries, source), ["d=d"], "{source}");
    }
    assert_eq!(paths(&entries, "f/"), ["f=f"]);
    assert_eq!(paths(&entries, "../f"), ["f=f"]);
    assert_eq!(paths(&entries, ""), ["="]);
}

#[test]
fn a_missing_literal_is_an_error_and_a_missing_match_is_not() {
    let nodes = MemoryNodeStore::default();
    let tree = tree(&nodes, &[("f", file("F"))]);
    let error = select(&tree, &nodes, b"nope").unwrap_err();
    assert_eq!(error.to_string(), "\"/nope\": not found");
    assert!(matches!(select(&tree, &nodes, b"f/x").unwrap_err(), SelectError::NotFound { .. }));
    assert_eq!(select(&tree, &nodes, b"nope*").unwrap(), []);
    assert_eq!(select(&tree, &nodes, b"nope/*").unwrap(), []);
    assert_eq!(select(&tree, &nodes, b"f/*").unwrap(), []);
}

#[test]
fn wildcards_stay_on_their_level_and_come_in_order() {
    let entries = [
        (".h", file("h")),
        ("a", dir(0o755)),
        ("a/y", file("Y")),
        ("b", dir(0o755)),
        ("b/c", dir(0o755)),
        ("b/c/y", file("deep")),
        ("b/y", file("Y")),
        ("y", file("Y")),
    ];
    assert_eq!(paths(&entries, "**/y"), ["y=a/y", "y=b/y"]);
    assert_eq!(paths(&entries, "*"), [".h=.h", "a=a", "b=b", "y=y"]);
    assert_eq!(paths(&entries, "b/[a-y]"), ["c=b/c", "y=b/y"]);
}

#[test]
fn links_are_followed_and_keep_their_own_name() {
    let entries = [
        ("abs", link("/real/f")),
        ("chain", link("up")),
        ("dirs", link("real")),
        ("real", dir(0o755)),
        ("real/f", file("F")),
        ("up", link("../../real/f")),
    ];
    assert_eq!(paths(&entries, "abs"), ["abs=real/f"]);
    assert_eq!(paths(&entries, "chain"), ["chain=real/f"]);
    assert_eq!(paths(&entries, "dirs/f"), ["f=real/f"]);
    assert_eq!(paths(&entries, "dirs/*"), ["f=real/f"]);
    // A component with wildcards is matched against real entries: `dirs` is a link, not a directory.
    assert_eq!(paths(&entries, "dir[s]/f"), Vec::<String>::new());
    assert_eq!(paths(&entries, "a*"), ["abs=real/f"]);
}

#[test]
fn dangling_looping_and_escaping_links_are_not_found() {
    let nodes = MemoryNodeStore::default();
    let tree = tree(&nodes, &[("d", link("nowhere")), ("l", link("l")), ("s", link("../../etc/passwd"))]);
    assert!(matches!(select(&tree, &nodes, b"d").unwrap_err(), SelectError::NotFound { .. }));
    assert!(matches!(select(&tree, &nodes, b"s").unwrap_err(), SelectError::NotFound { .. }));
    assert!(matches!(select(&tree, &nodes, b"*").unwrap_err(), SelectError::NotFound { .. }));
    assert!(matches!(
        select(&tree, &nodes, b"l").unwrap_err(),
        SelectError::Resolve { source: ResolveError::TooManyLinks { .. }, .. }
    ));
}

#[test]
fn a_selection_digest_sees_names_contents_and_links_only() {
    let nodes = MemoryNodeStore::default();
    let plain = tree(
        &nodes,
        &[
            ("d", dir(0o755)),
            ("d/a", file("F")),
            ("d/b", file("F")),
            ("e", dir(0o700)),
            ("e/a", file("F")),
            ("e/b", file("F")),
            ("f", file("F")),
            ("g", file("F")),
        ],
    );
    let linked =
        tree_linked(&nodes, &[("d", dir(0o755)), ("d/a", file("F"))], &[("d/b", "d/a"), ("x", "d/a")]);
    let digest = |tree: &Tree, source: &[u8]| {
        selection_digest(&list(&select(tree, &nodes, source).unwrap()), &nodes, &Scratch::for_test()).unwrap()
    };
    assert_eq!(digest(&plain, b"d"), digest(&plain, b"e"), "a directory's own name and mode are not copied");
    assert_ne!(digest(&plain, b"f"), digest(&plain, b"g"), "a file's name is");
    assert_eq!(digest(&plain, b"f"), digest(&plain, b"[f]"));
    assert_ne!(digest(&plain, b"d"), digest(&linked, b"d"), "links inside are kept");
    assert_eq!(digest(&plain, b"d/a"), digest(&linked, b"d/a"), "a single file has no links");
    assert_ne!(digest(&plain, b"[fg]"), digest(&plain, b"f"));
    assert_ne!(digest(&plain, b"d"), digest(&plain, b"f"));
}

fn pruned(entries: &[(&str, crate::layer::Change)], keep: impl Fn(&str) -> Keep) -> Vec<String> {
    let nodes = MemoryNodeStore::default();
    let tree = tree(&nodes, entries);
    let mut selected = select(&tree, &nodes, b"").unwrap().remove(0);
    prune(&mut selected, &nodes, &nodes, &|path, _| keep(&path.to_string()), &Scratch::for_test()).unwrap();
    let Kind::Dir(node) = selected.entry.kind else { panic!("still a directory") };
    crate::tree::testing::listing(&nodes, &Tree { node, ..Tree::empty() })
}

#[test]
fn pruning_keeps_directories_for_what_is_in_them() {
    let entries = [
        ("a", dir(0o700)),
        ("a/deep", dir(0o711)),
        ("a/deep/x", file("x")),
        ("a/y", file("yy")),
        ("b", dir(0o755)),
        ("b/y", file("yy")),
        ("empty", dir(0o755)),
    ];
    let only_x = |path: &str| if path.ends_with('x') { Keep::Yes } else { Keep::ForItsContents };
    assert_eq!(pruned(&entries, only_x), ["d 700 0:0 a", "d 711 0:0 a/deep", "f 644 0:0 a/deep/x 1"]);
    let not_a = |path: &str| if path == "a" { Keep::No } else { Keep::Yes };
    assert_eq!(pruned(&entries, not_a), ["d 755 0:0 b", "f 644 0:0 b/y 2", "d 755 0:0 empty"]);
}

#[test]
fn pruned_links_no_longer_count() {
    let nodes = MemoryNodeStore::default();
    let entries = [("d", dir(0o755)), ("d/one", file("x"))];
    let linked = tree_linked(&nodes, &entries, &[("d/two", "d/one"), ("d/x", "d/one")]);
    let mut selected = select(&linked, &nodes, b"d").unwrap().remove(0);
    let whole = selection_digest(&list(&[selected.clone()]), &nodes, &Scratch::for_test()).unwrap();
    let keep = |path: &RelPath, _| if path.name() == b"one" { Keep::No } else { Keep::Yes };
    prune(&mut selected, &nodes, &nodes, &keep, &Scratch::for_test()).unwrap();
    assert_eq!(groups(&nodes, selected.links.all()).iter().map(Vec::len).collect::<Vec<_>>(), [2]);
    assert_ne!(selection_digest(&list(&[selected]), &nodes, &Scratch::for_test()).unwrap(), whole);
}

proptest::proptest! {
    #[test]
    fn pruning_leaves_what_is_kept_and_the_way_there(
        steps in crate::tree::testing::steps(),
        kept in proptest::collection::vec(proptest::bool::ANY, 64),
    ) {
        use crate::tree::testing::{apply_model, listing, model_diff};
        let nodes = MemoryNodeStore::default();
        let tree = Tree::empty().apply(&nodes, &model_diff(&apply_model(&steps)), &Scratch::for_test()).unwrap();
        let pruned = |keep: &dyn Fn(&RelPath, bool) -> Keep| {
            let mut selected = select(&tree, &nodes, b"").unwrap().remove(0);
            prune(&mut selected, &nodes, &nodes, keep, &Scratch::for_test()).unwrap();
            let Kind::Dir(node) = selected.entry.kind else { panic!("still a directory") };
            Tree { root: tree.root.clone(), node, links: selected.links.all().clone() }
        };
        proptest::prop_assert_eq!(&pruned(&|_, _| Keep::Yes), &tree);
        let is_kept = |path: &RelPath| kept[path.as_bytes().iter().map(|b| usize::from(*b)).sum::<usize>() % 64];
        let is_in_c = |path: &RelPath| path.parent().unwrap().components().any(|name| name == b"c");
        let some = pruned(&|path, is_dir| match (is_dir, is_kept(path)) {
            (true, _) if path.name() == b"c" => Keep::No,
            (true, _) => Keep::ForItsContents,
            (false, true) => Keep::Yes,
            (false, false) => Keep::No,
        });
        let files = |tree: &Tree| -> Vec<String> {
            listing(&nodes, tree).into_iter().filter(|line| !line.starts_with('d')).collect()
        };
        let wanted: Vec<String> = files(&tree)
            .into_iter()
            .map(|line| (RelPath::new(line.split(' ').nth(3).unwrap()).unwrap(), line))
            .filter(|(path, _)| is_kept(path) && !is_in_c(path))
            .map(|(_, line)| line)
            .collect();
        proptest::prop_assert_eq!(files(&some), wanted);
        // No directory stays for nothing, and no link names what is gone.
        for step in some.walk(&nodes, &RelPath::root()).unwrap().skip(1) {
            let (path, entry) = step.unwrap();
            if let Kind::Dir(node) = &entry.kind {
                proptest::prop_assert!(!load_node(&nodes, node).unwrap().is_empty(), "{}", path);
            }
        }
        let gone = |path: &RelPath| some.get(&nodes, path).unwrap().is_none();
        let left = groups(&nodes, &tree.links).into_iter().map(|mut names| {
            names.retain(|path| !gone(path));
            names
        });
        proptest::prop_assert_eq!(&some.links, &Links::new(left, &nodes).unwrap());
    }
}

/// Paths that wildcards match, component by component.
fn matches(tree: &Tree, nodes: &dyn NodeStore, source: &[u8]) -> Vec<RelPath> {
    let mut level = vec![(RelPath::root(), tree.root_entry())];
    for name in source.split(|byte| *byte == b'/') {
        let pattern = Pattern::new(name).unwrap();
        let mut next = Vec::new();
        for (dir, entry) in level {
            let Kind::Dir(node) = &entry.kind else { continue };
            let mut entries = DirReader::open(nodes, node).unwrap();
            while let Some((name, entry)) = entries.next().unwrap() {
                if pattern.matches(name) {
                    next.push((dir.join(name), entry.clone()));
                }
            }
        }
        level = next;
    }
    level.into_iter().map(|(path, _)| path).collect()
}

proptest! {
    #[test]
    fn several_wildcards_match_in_lexical_order(
        steps in crate::tree::testing::steps(),
        source in prop::sample::select(vec![
            "*", "*/*", "*/*/*", "a*/?", "[ab]*/*/*", "*/[^b]", "a/*", "*/a.b/*", "?/*/a*",
        ]),
    ) {
        use crate::tree::testing::{apply_model, model_diff};
        let nodes = MemoryNodeStore::default();
        // What a link selects is elsewhere.
        let steps: Vec<_> = steps.into_iter().filter(|(_, what)| *what != 5).collect();
        let tree = Tree::empty().apply(&nodes, &model_diff(&apply_model(&steps)), &Scratch::for_test()).unwrap();
        let found: Vec<RelPath> =
            select(&tree, &nodes, source.as_bytes()).unwrap().into_iter().map(|item| item.path).collect();
        prop_assert!(found.is_sorted());
        prop_assert_eq!(found, matches(&tree, &nodes, source.as_bytes()));
    }
}

#[test]
fn thousands_of_matches_are_selected_in_order() {
    let nodes = MemoryNodeStore::default();
    let paths = (0..3000).map(|at| format!("d{:02}/f{at}", at % 40));
    let tree = Tree::empty()
        .apply(
            &nodes,
            &crate::tree::testing::diff_of(
                (0..40)
                    .map(|at| (RelPath::clamp(format!("d{at:02}").as_bytes()), dir(0o755)))
                    .chain(paths.map(|path| (RelPath::clamp(path.as_bytes()), file(&path)))),
            ),
            &Scratch::for_test(),
        )
        .unwrap();
    let found = select(&tree, &nodes, b"*/*").unwrap();
    assert_eq!(found.len(), 3000);
    assert!(found.is_sorted_by_key(|item| item.path.clone()));
    for item in found {
        assert_eq!(tree.get(&nodes, &item.path).unwrap(), Some(item.entry));
        assert_eq!(item.name, item.path.name());
    }
}

#[test]
fn one_mode_for_all_is_the_same_with_nodes_in_a_file() {
    let (memory, scratch) = (MemoryNodeStore::default(), Scratch::for_test());
    let entries = (0..2000).flat_map(|at: u32| {
        let dir_path = RelPath::clamp(format!("d{:03}", at % 500).as_bytes());
        let path = dir_path.join(format!("f{at}").as_bytes());
        [(dir_path, dir(0o700)), (path, file(&(at % 3).to_string()))]
    });
    let tree =
        Tree::empty().apply(&memory, &crate::tree::testing::diff_of(entries), &Scratch::for_test()).unwrap();
    let item = select_path(&tree, &memory, b"").unwrap();
    let (mut one, mut other) = (item.clone(), item);
    let spilled = crate::tree::SpilledNodeStore::new(&scratch);
    let keep = |path: &RelPath, _| if path.name().ends_with(b"7") { Keep::No } else { Keep::Yes };
    for (item, made) in [(&mut one, &memory as &dyn NodeStore), (&mut other, &spilled)] {
        prune(item, &memory, made, &keep, &scratch).unwrap();
        let over = crate::tree::Over { above: &spilled, below: &memory };
        with_mode(item, &over, made, 0o751).unwrap();
    }
    assert_eq!(one, other);
    let listed = |item: &Selected, nodes: &dyn NodeStore| {
        let Kind::Dir(node) = item.entry.kind else { panic!("still a directory") };
        crate::tree::testing::listing(nodes, &Tree { node, ..Tree::empty() })
    };
    let all = listed(&other, &spilled);
    assert_eq!(all, listed(&one, &memory));
    assert!(all.len() > 1600 && all.iter().all(|line| line[2..].starts_with("751 ")));
}

#[test]
fn directories_of_linked_files_are_asked_about_once() {
    let nodes = MemoryNodeStore::default();
    let deep = vec!["d"; 50].join("/");
    let dirs = (1..=50).map(|depth| (RelPath::clamp(vec!["d"; depth].join("/").as_bytes()), dir(0o755)));
    let first = RelPath::clamp(format!("{deep}/a").as_bytes());
    let links = (0..100).map(|at| {
        let target = first.clone();
        (RelPath::clamp(format!("{deep}/x{at}").as_bytes()), crate::layer::Change::Hardlink { target })
    });
    let all = dirs.chain([(first.clone(), file("A"))]).chain(links);
    let tree =
        Tree::empty().apply(&nodes, &crate::tree::testing::diff_of(all), &Scratch::for_test()).unwrap();
    let asked = std::cell::Cell::new(0);
    let keep = |path: &RelPath, _| {
        asked.set(asked.get() + 1);
        if path.name() == b"x7" { Keep::No } else { Keep::Yes }
    };
    let mut selected = select_path(&tree, &nodes, b"").unwrap();
    prune(&mut selected, &nodes, &nodes, &keep, &Scratch::for_test()).unwrap();
    assert_eq!(groups(&nodes, selected.links.all())[0].len(), 100);
    // Once for the tree, and once more for the names and for the first ones.
    assert!(asked.get() < 600, "{}", asked.get());
}
