use proptest::prelude::*;

use super::*;
use crate::scratch::Scratch;
use crate::tree::select::Selected;
use crate::tree::testing::{apply_model, model_diff, steps};
use crate::tree::{EMPTY_NODE, Entry, Kind, LastLink, LinksBelow};

proptest! {
    /// Whatever is copied where: it is refused with a reason, or the layer fits the parent and means what it says.
    #[test]
    fn plans_fit_their_parent(
        parent in steps(), source in steps(),
        patterns in proptest::collection::vec(prop_oneof![
            Just("*"), Just("a"), Just("b*"), Just("/"), Just("a/*"), Just("../c"), Just("[ab]/?"),
        ], 1..3),
        dest in prop_oneof![
            Just("/"), Just("/a"), Just("/a/b"), Just("/b/"), Just("/n/e/w"), Just("/n/e/w/"), Just("/c/../a/."),
        ],
    ) {
        let nodes = MemoryNodeStore::default();
        let build = |steps: &[_]| Tree::empty().apply(&nodes, &model_diff(&apply_model(steps)), &Scratch::for_test()).unwrap();
        let (parent, source) = (build(&parent), build(&source));
        let selected: Vec<_> = patterns
            .iter()
            .filter_map(|pattern| select(&source, &nodes, pattern.as_bytes()).ok())
            .flatten()
            .collect();
        for item in &selected {
            let real = source.get(&nodes, &item.path).unwrap();
            prop_assert_eq!(real.as_ref(), Some(&item.entry), "selected what is really there");
            prop_assert!(!matches!(item.entry.kind, Kind::Symlink(_)));
        }
        let items: Vec<_> = selected.iter().cloned().map(CopyItem::Selected).collect();
        let from = Some(&FakeTimes(500) as &dyn FileSource);
        let Ok(plan) = plan(&nodes, &parent, &FakeTimes(100), from, &items, &options(dest), &Scratch::for_test()) else {
            return Ok(());
        };
        let next = parent.apply(&nodes, &plan.diff, &Scratch::for_test()).unwrap();
        let mut files = files(&plan).into_iter();
        for entry in plan.diff.entries() {
            let resolved = next.resolve(&nodes, entry.path.as_bytes(), LastLink::Keep).unwrap();
            prop_assert_eq!(&resolved.path, &entry.path, "layer paths are real paths");
            match &entry.change {
                Change::File { content, .. } => {
                    let (at, from) = files.next().unwrap();
                    prop_assert_eq!(&at, &entry.path);
                    let there = source.get(&nodes, &from).unwrap().unwrap();
                    let found = matches!(&there.kind, Kind::File { content: found, .. } if found == content);
                    prop_assert!(found, "{at} has other bytes at {from}");
                }
                Change::Dir { opaque, .. } => prop_assert!(!opaque),
                Change::Whiteout => prop_assert!(false, "COPY removes nothing"),
                _ => {}
            }
        }
        // What comes last is planned without being held: an empty directory after it changes nothing but that.
        if let Some(last) = selected.last() && matches!(last.entry.kind, Kind::Dir(_)) {
            let entry = Entry { kind: Kind::Dir(*EMPTY_NODE), ..last.entry.clone() };
            let empty = CopyItem::Selected(Selected { entry, links: LinksBelow::default(), ..last.clone() });
            let items = items.iter().cloned().chain([empty]).collect::<Vec<_>>();
            let held = super::plan(&nodes, &parent, &FakeTimes(100), from, &items, &options(dest), &Scratch::for_test());
            prop_assert_eq!(&held.unwrap(), &plan);
        }
        // The last item is there in full: its files with their bytes.
        if let Some(last) = selected.last()
            && matches!(last.entry.kind, Kind::Dir(_))
        {
            let top = next.resolve(&nodes, RelPath::clamp(dest.as_bytes()).as_bytes(), LastLink::Follow).unwrap();
            for step in source.walk(&nodes, &last.path).unwrap().skip(1) {
                let (rel, entry) = step.unwrap();
                let copied = next.get(&nodes, &crate::tree::below(&top.path, &rel)).unwrap().unwrap();
                prop_assert_eq!(copied.meta.mode, entry.meta.mode);
                if !matches!(entry.kind, Kind::Dir(_)) {
                    prop_assert_eq!(copied.kind, entry.kind);
                }
            }
        }
        // Doing it again changes nothing.
        let again = super::plan(&nodes, &next, &FakeTimes(100), from, &items, &options(dest), &Scratch::for_test());
        if let Ok(again) = again {
            let whole = next.apply(&nodes, &again.diff, &Scratch::for_test()).unwrap();
            if dest.ends_with('/') || dest.ends_with("/.") {
                prop_assert_eq!(whole.digest(), next.digest());
            }
        }
    }
}
