//! Random operations of several readers and a collector, against a model of what must be there.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const READERS: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    /// Open or close a reader.
    Toggle(usize),
    /// Commit a layer and a result on top of what the reader last found.
    Build(usize, u8),
    /// Look a result up and rely on it from now on.
    Find(usize, u8),
    /// Name what the reader relies on.
    Tag(usize, u8),
    Untag(u8),
    Collect(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let reader = 0..READERS;
    prop_oneof![
        1 => reader.clone().prop_map(Step::Toggle),
        3 => (reader.clone(), 0..6_u8).prop_map(|(reader, n)| Step::Build(reader, n)),
        3 => (reader.clone(), 0..6_u8).prop_map(|(reader, n)| Step::Find(reader, n)),
        2 => (reader, 0..3_u8).prop_map(|(reader, n)| Step::Tag(reader, n)),
        1 => (0..3_u8).prop_map(Step::Untag),
        3 => (0..40_u64).prop_map(Step::Collect),
    ]
}

/// A reader and what it found or made: layers, and a tree.
struct Open {
    store: Store,
    lease: Lease,
    holds: Vec<(Vec<LayerId>, Tree)>,
}

fn check(state: &(Vec<LayerId>, Tree), store: &Store) {
    for layer in &state.0 {
        assert!(store.layer_path(*layer).join("file").exists(), "bytes of {layer} are there");
    }
    // A fresh handle: nothing comes from memory.
    nodes_of(&open(store.root()), &state.1);
}

fn run(steps: &[Step]) {
    let (_dir, root) = fresh();
    let mut readers: Vec<Option<Open>> = (0..READERS).map(|_| None).collect();
    let mut tags: BTreeMap<u8, (Vec<LayerId>, Tree)> = BTreeMap::new();
    let keeper = key(200);
    let mut seed = 0;
    drop(open(&root));
    for step in steps {
        match step {
            Step::Toggle(n) => {
                readers[*n] = match readers[*n].take() {
                    Some(_) => None,
                    None => {
                        let store = open(&root);
                        Some(Open { lease: store.lease().unwrap(), store, holds: Vec::new() })
                    }
                };
            }
            Step::Build(n, name) => {
                let Some(open) = &mut readers[*n] else { continue };
                seed += 1;
                let mut stack = open.holds.last().map(|(stack, _)| stack.clone()).unwrap_or_default();
                stack.truncate(4);
                stack.push(commit_layer(&open.store, &open.lease, "0123456789"));
                // Trees repeat: condemned nodes are met again.
                let tree = tree(&open.store, seed % 4);
                open.store.put_result(&key(*name), &record(&tree, &stack, 1)).unwrap();
                open.holds.push((stack, tree));
            }
            Step::Find(n, name) => {
                let Some(open) = &mut readers[*n] else { continue };
                let Some(found) = open.store.result(&key(*name)).unwrap() else { continue };
                open.holds.push((found.stack.unwrap(), found.tree));
            }
            Step::Tag(n, name) => {
                let Some(open) = &mut readers[*n] else { continue };
                let Some(state) = open.holds.last().cloned() else { continue };
                let config = open.store.put_blob(&open.lease, &[*name]).unwrap();
                open.store.put_image(&name.to_string(), &image(config, &state.0)).unwrap();
                tags.insert(*name, state);
            }
            Step::Untag(name) => {
                open(&root).remove_image(&name.to_string()).unwrap();
                tags.remove(name);
            }
            Step::Collect(budget) => {
                collect(&root, &Policy::budget(*budget));
            }
        }
        for open in readers.iter().flatten() {
            open.holds.iter().for_each(|state| check(state, &open.store));
        }
        let fresh = open(&root);
        for (name, (layers, _)) in &tags {
            let image = fresh.image(&name.to_string()).unwrap().unwrap();
            assert_eq!(&image.layers, layers);
            assert!(fresh.has_layers(layers).unwrap(), "layers of tag {name}");
            assert!(fresh.blob(&image.config).unwrap().is_some(), "config of tag {name}");
        }
        for name in 0..6 {
            // What is found is whole.
            if let Some(found) = fresh.result(&key(name)).unwrap() {
                check(&(found.stack.unwrap(), found.tree), &fresh);
            }
        }
        assert!(fresh.result(&keeper).unwrap().is_none());
    }
    // Nobody is left: everything but the tagged goes at once.
    readers.clear();
    let config = Policy { all: true, ..Policy::default() };
    collect(&root, &config);
    let left: BTreeSet<_> = tags.values().flat_map(|(layers, _)| layers.clone()).collect();
    assert_eq!(std::fs::read_dir(root.join("layers")).unwrap().count(), left.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn nothing_held_found_or_named_is_ever_removed(steps in proptest::collection::vec(step(), 1..30)) {
        run(&steps);
    }
}
