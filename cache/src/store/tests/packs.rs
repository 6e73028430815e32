//! Layers of packs: what is shared, what a directory made late is worth, what goes when.

use std::fs;

use super::durability::{image, pretend_reboot};
use super::*;
use crate::gc::{Collector, Policy};
use crate::layer::{Change, DiffEntry, LayerDiff, Marks, Mtime, OverlayForm};
use crate::path::RelPath;
use crate::tree::ContentDigest;

fn own_meta() -> Meta {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Meta { mode: 0o640, uid, gid, ..Meta::default() }
}

/// A layer of these files; contents that `below` has are shared with it.
pub(in crate::store) fn packed(
    store: &Store,
    lease: &Lease,
    files: &[(&str, &str)],
    below: Option<LayerId>,
) -> LayerId {
    let known = below.map(|id| store.layer_packs(id).unwrap().unwrap()).unwrap_or_default();
    packed_with(store, lease, files, known)
}

fn packed_with(store: &Store, lease: &Lease, files: &[(&str, &str)], known: LayerPacks) -> LayerId {
    let all = vec![true; known.packs.len()];
    let shared = known.keep(&all);
    let mut draft = store.packed_draft(lease).unwrap();
    let mut diff = LayerDiff::default();
    for (name, text) in files {
        let content = ContentDigest::of(text.as_bytes());
        if !shared.packs.iter().any(|pack| pack.find(&content).unwrap().is_some()) {
            draft.writer.write(text.as_bytes()).unwrap();
            draft.writer.end(content, text.len() as u64).unwrap();
        }
        let change = Change::File { meta: own_meta(), size: text.len() as u64, content };
        let path = RelPath::new(name.as_bytes()).unwrap();
        diff.push(&DiffEntry { path, change, mtime: Mtime { secs: 7, nanos: 0 } }).unwrap();
    }
    let ready = store.finish_packs(draft, &shared, Marks::default()).unwrap();
    let size = files.iter().map(|(_, text)| text.len() as u64).sum();
    let made = Made {
        draft: Draft::Packed(ready),
        diff: &diff,
        size_bytes: size,
        tar: None,
        does: transition(0, 1),
    };
    store.commit_step(made, true, |_| Vec::new()).unwrap()
}

const TWO: [(&str, &str); 2] = [("a", "first"), ("b", "second")];

#[test]
fn a_layer_of_packs_is_a_layer_and_gets_its_directory_when_somebody_wants_it() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let id = packed(&store, &lease, &TWO, None);
    assert!(store.has_layers(&[id]).unwrap() && !store.has_dir(id).unwrap());
    assert_eq!(store.layer(id).unwrap().unwrap().size_bytes, 11);
    store.make_dir_of(&lease, id, OverlayForm::User).unwrap();
    assert!(store.has_dir(id).unwrap());
    assert_eq!(fs::read_to_string(store.layer_path(id).join("b")).unwrap(), "second");
    // A second call finds it, and an ordinary layer has one from the start.
    store.make_dir_of(&lease, id, OverlayForm::User).unwrap();
    let written = commit_layer(&store, &lease, "x");
    store.make_dir_of(&lease, written, OverlayForm::User).unwrap();
    assert!(store.layer_packs(written).unwrap().is_none());
}

#[test]
fn a_directory_made_late_does_not_outlive_a_power_cut_unsynced_but_its_layer_does() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let id = packed(&store, &lease, &TWO, None);
    store.sync().unwrap();
    store.make_dir_of(&lease, id, OverlayForm::User).unwrap();
    // What a power cut leaves of a file that was not flushed.
    fs::write(store.layer_path(id).join("a"), "").unwrap();
    pretend_reboot(&store);
    drop(lease);
    let store = open(store.root());
    let lease = store.lease().unwrap();
    assert!(store.has_layers(&[id]).unwrap() && !store.has_dir(id).unwrap());
    store.make_dir_of(&lease, id, OverlayForm::User).unwrap();
    assert_eq!(fs::read_to_string(store.layer_path(id).join("a")).unwrap(), "first");
    store.sync().unwrap();
    pretend_reboot(&store);
    assert!(open(store.root()).has_dir(id).unwrap(), "synced this time");
}

#[test]
fn a_spooled_pack_becomes_the_layer_s_own_and_goes_with_the_lease_when_none_wants_it() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let spooled = |texts: &[&str]| {
        let mut spool = store.spool(&lease).unwrap();
        for text in texts {
            spool.writer.write(text.as_bytes()).unwrap();
            spool.writer.end(ContentDigest::of(text.as_bytes()), text.len() as u64).unwrap();
        }
        spool
    };
    let layer = packed_with(&store, &lease, &TWO, spooled(&["first", "second"]).finish().unwrap());
    assert_eq!(store.held_bytes().unwrap().0, 11, "its own, and once");
    let again = packed(&store, &lease, &[("a", "first")], Some(layer));
    assert_eq!(store.held_bytes().unwrap().0, 11, "shared");
    spooled(&["discarded"]).discard();
    drop(spooled(&["left"]));
    let work = lease.work_dir();
    assert_eq!(fs::read_dir(&work).unwrap().filter(|e| e.as_ref().unwrap().path().is_file()).count(), 2);
    drop(lease);
    assert!(!work.exists());
    let lease = store.lease().unwrap();
    for id in [layer, again] {
        store.make_dir_of(&lease, id, OverlayForm::User).unwrap();
        assert_eq!(fs::read_to_string(store.layer_path(id).join("a")).unwrap(), "first");
    }
}

#[test]
fn shared_bytes_live_as_long_as_one_layer_has_them_and_are_counted_once() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let first = packed(&store, &lease, &TWO, None);
    let second = packed(&store, &lease, &[("a", "first"), ("b", "other")], Some(first));
    assert_eq!(store.held_bytes().unwrap().0, 11 + 5);
    store.put_image("app", &image(vec![second])).unwrap();
    let root = store.root().to_owned();
    drop((lease, store));
    let collector = Collector::open(&root, options()).unwrap().unwrap();
    assert_eq!(collector.run(&Policy::default()).unwrap().layers, 1);
    drop(collector);
    let store = open(&root);
    let lease = store.lease().unwrap();
    assert!(!store.has_layers(&[first]).unwrap());
    store.make_dir_of(&lease, second, OverlayForm::User).unwrap();
    assert_eq!(fs::read_to_string(store.layer_path(second).join("a")).unwrap(), "first");
}

#[test]
fn one_changed_byte_of_a_pack_is_found_in_every_layer_that_shares_it() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let first = packed(&store, &lease, &TWO, None);
    let second = packed(&store, &lease, &[("a", "first"), ("b", "other")], Some(first));
    let root = store.root().to_owned();
    let pack = root.join(format!("layers/{first}/packs/new"));
    drop((lease, store));
    let mut bytes = fs::read(&pack).unwrap();
    bytes[9] ^= 0x20;
    fs::write(&pack, bytes).unwrap();
    let collector = Collector::open(&root, options()).unwrap().unwrap();
    let found = collector.repair(OverlayForm::User).unwrap().0;
    let in_layer = |id: LayerId| {
        found.iter().any(|one| matches!(one, Finding::LayerContent { layer, .. } if *layer == id))
    };
    assert!(in_layer(first) && in_layer(second), "{found:?}");
    assert!(!open(&root).has_layers(&[first]).unwrap());
    assert_eq!(collector.fsck(OverlayForm::User).unwrap(), []);
}

#[test]
fn a_rebuilt_index_has_layers_of_packs_and_forgets_directories_that_may_be_half_written() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let first = packed(&store, &lease, &TWO, None);
    let second = packed(&store, &lease, &[("a", "first"), ("b", "other")], Some(first));
    store.make_dir_of(&lease, second, OverlayForm::User).unwrap();
    let root = store.root().to_owned();
    drop((lease, store));
    let rebuilt = Store::rebuild(&root, options(), OverlayForm::User).unwrap();
    assert_eq!((rebuilt.layers, rebuilt.set_aside), (2, 0));
    let store = open(&root);
    assert!(store.has_layers(&[first, second]).unwrap() && !store.has_dir(second).unwrap());
    let lease = store.lease().unwrap();
    store.make_dir_of(&lease, second, OverlayForm::User).unwrap();
    assert_eq!(fs::read_to_string(store.layer_path(second).join("b")).unwrap(), "other");
}

#[test]
fn the_last_layer_of_a_step_is_remembered_while_it_is_there() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let (first, second) = (packed(&store, &lease, &TWO, None), packed(&store, &lease, &TWO, None));
    assert_eq!(store.recent_layer(&[1; 32]).unwrap(), None);
    for id in [first, second] {
        store.put_recent_layer(&[1; 32], id).unwrap();
        assert_eq!(store.recent_layer(&[1; 32]).unwrap(), Some(id));
    }
    tamper(&store, "index.sqlite", "DELETE FROM layers");
    assert_eq!(store.recent_layer(&[1; 32]).unwrap(), None);
}
