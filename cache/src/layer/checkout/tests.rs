use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::*;
use crate::copy::DirSource;
use crate::layer::DiffEntry;
use crate::tree::ContentDigest;

fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

fn meta(mode: u32) -> Meta {
    Meta { mode, uid: 4242, gid: 4242, ..Meta::default() }
}

fn dir(mode: u32) -> Change {
    Change::Dir { meta: meta(mode), opaque: false }
}

fn file(mode: u32, text: &str) -> Change {
    Change::File { meta: meta(mode), size: text.len() as u64, content: ContentDigest::of(text.as_bytes()) }
}

fn listing(entries: &[(&str, Change)]) -> LayerDiff {
    let entry = |(at, change): &(&str, Change)| DiffEntry {
        path: path(at),
        change: change.clone(),
        mtime: Mtime { secs: 1_000, nanos: 5 },
    };
    let mut entries: Vec<_> = entries.iter().map(entry).collect();
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    entries.into_iter().collect()
}

/// A directory with the files that the listings here name, and a place to write to.
fn world(files: &[(&str, &str)]) -> (tempfile::TempDir, DirSource, File) {
    let temp = tempfile::tempdir().unwrap();
    let from = temp.path().join("from");
    for (at, text) in files {
        let at = from.join(at);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(at, text).unwrap();
    }
    fs::create_dir_all(&from).unwrap();
    fs::create_dir(temp.path().join("to")).unwrap();
    let source = DirSource::new(File::open(&from).unwrap().into());
    let to = File::open(temp.path().join("to")).unwrap();
    (temp, source, to)
}

fn write(to: &File, source: &DirSource, listing: &LayerDiff, delete: bool) -> u64 {
    let mut checkout = Checkout::new(to.as_fd(), None);
    checkout.add(&RelPath::root(), listing, source).unwrap();
    if delete {
        checkout.delete_others().unwrap();
    }
    let devices = checkout.devices;
    checkout.finish().unwrap();
    devices
}

fn mode(at: &Path) -> u32 {
    at.symlink_metadata().unwrap().permissions().mode() & 0o7777
}

#[test]
fn files_are_the_callers_and_lend_nobody_any_rights() {
    let (temp, source, to) = world(&[("d/tool", "tool"), ("plain", "text")]);
    let state = listing(&[
        ("", dir(0o700)),
        ("d", dir(0o1555)),
        ("d/tool", file(0o6755, "tool")),
        ("link", Change::Symlink { meta: meta(0o777), target: b"/etc/passwd".to_vec() }),
        ("null", Change::CharDevice { meta: meta(0o666), major: 1, minor: 3 }),
        ("other", Change::Hardlink { target: path("plain") }),
        ("pipe", Change::Fifo { meta: meta(0o640) }),
        ("plain", file(0o644, "text")),
    ]);
    // A hard link comes after its target in a real listing.
    let is_link = |entry: &DiffEntry| matches!(entry.change, Change::Hardlink { .. });
    let (links, others): (Vec<_>, Vec<_>) = state.entries().into_iter().partition(is_link);
    let state: LayerDiff = others.into_iter().chain(links).collect();
    let before = mode(&temp.path().join("to"));
    assert_eq!(write(&to, &source, &state, false), 1);
    let at = |name: &str| temp.path().join("to").join(name);
    assert_eq!(mode(&temp.path().join("to")), before, "the directory itself is the user's");
    assert_eq!((mode(&at("d")), mode(&at("d/tool"))), (0o1555, 0o755));
    assert_eq!(at("d/tool").metadata().unwrap().uid(), rustix::process::geteuid().as_raw());
    assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("/etc/passwd"));
    assert!(!at("null").exists());
    assert_eq!(at("other").metadata().unwrap().ino(), at("plain").metadata().unwrap().ino());
    for name in ["d", "d/tool", "link", "pipe", "plain"] {
        let found = at(name).symlink_metadata().unwrap();
        assert_eq!((found.mtime(), found.mtime_nsec()), (1_000, 5), "{name}");
    }
}

#[test]
fn links_in_the_directory_lead_nowhere() {
    let (temp, source, to) = world(&[("a/f", "new"), ("b", "new")]);
    let outside = temp.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("f"), "old").unwrap();
    fs::write(outside.join("b"), "old").unwrap();
    symlink(&outside, temp.path().join("to/a")).unwrap();
    symlink(outside.join("b"), temp.path().join("to/b")).unwrap();
    let state = listing(&[
        ("", dir(0o755)),
        ("a", dir(0o755)),
        ("a/f", file(0o644, "new")),
        ("b", file(0o644, "new")),
    ]);
    write(&to, &source, &state, false);
    for name in ["f", "b"] {
        assert_eq!(fs::read_to_string(outside.join(name)).unwrap(), "old");
    }
    assert_eq!(fs::read_to_string(temp.path().join("to/a/f")).unwrap(), "new");
    assert!(temp.path().join("to/a").symlink_metadata().unwrap().is_dir());
    assert!(temp.path().join("to/b").symlink_metadata().unwrap().is_file());
}

#[test]
fn what_is_in_the_way_is_replaced_and_the_rest_stays_or_goes_as_asked() {
    for delete in [false, true] {
        let (temp, source, to) = world(&[("a", "a"), ("d/f", "f")]);
        let at = |name: &str| temp.path().join("to").join(name);
        fs::create_dir_all(at("a/deep/er")).unwrap();
        fs::write(at("d"), "a file").unwrap();
        fs::create_dir_all(at("stays/there")).unwrap();
        symlink(temp.path().join("from"), at("dangling")).unwrap();
        let state = listing(&[
            ("", dir(0o755)),
            ("a", file(0o600, "a")),
            ("d", dir(0o755)),
            ("d/f", file(0o644, "f")),
        ]);
        write(&to, &source, &state, delete);
        assert_eq!((fs::read_to_string(at("a")).unwrap(), mode(&at("a"))), ("a".into(), 0o600));
        assert_eq!(fs::read_to_string(at("d/f")).unwrap(), "f");
        assert_eq!(at("stays/there").exists(), !delete);
        assert_eq!(at("dangling").symlink_metadata().is_ok(), !delete);
        assert!(temp.path().join("from/a").exists(), "a link is removed, not what it leads to");
        // Again over itself: nothing temporary is left.
        write(&to, &source, &state, delete);
        let names: Vec<_> =
            fs::read_dir(temp.path().join("to")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(names.iter().all(|name| !name.to_string_lossy().starts_with(".rbuild")), "{names:?}");
    }
}

#[test]
fn later_times_are_set_back() {
    let (temp, source, to) = world(&[("f", "f")]);
    let state = listing(&[("", dir(0o755)), ("d", dir(0o755)), ("f", file(0o644, "f"))]);
    let mut checkout = Checkout::new(to.as_fd(), Some(999));
    checkout.add_dir(&path("p")).unwrap();
    checkout.add(&path("p"), &state, &source).unwrap();
    checkout.add_file(&path("p/extra"), &mut &b"more"[..]).unwrap();
    checkout.delete_others().unwrap();
    checkout.finish().unwrap();
    for name in ["d", "f"] {
        let found = temp.path().join("to/p").join(name).metadata().unwrap();
        assert_eq!((found.mtime(), found.mtime_nsec()), (999, 0), "{name}");
    }
    assert_eq!(fs::read_to_string(temp.path().join("to/p/extra")).unwrap(), "more");
}

#[test]
fn directories_are_finished_after_what_is_in_them() {
    let (temp, source, to) = world(&[("a/b/f", "f"), ("a/c/f", "f"), ("d/f", "f")]);
    let dirs = ["a", "a/b", "a/c", "a-b", "d"];
    let state = |mode: u32, secs: i64| -> LayerDiff {
        let of = |(at, name): (usize, &&str)| DiffEntry {
            path: path(name),
            change: dir(mode + at as u32),
            mtime: Mtime { secs: secs + at as i64, nanos: 7 },
        };
        let files = ["a/b/f", "a/c/f", "d/f"].map(|at| DiffEntry {
            path: path(at),
            change: file(0o644, "f"),
            mtime: Mtime::default(),
        });
        let mut entries: Vec<_> = dirs.iter().enumerate().map(of).chain(files).collect();
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        entries.into_iter().collect()
    };
    let (first, second) = (state(0o700, 1000), state(0o770, 2000));
    let mut checkout = Checkout::new(to.as_fd(), None);
    checkout.add_dir(&path("p")).unwrap();
    for (prefix, state) in [("", &first), ("", &second), ("p", &second)] {
        checkout.add(&path(prefix), state, &source).unwrap();
    }
    checkout.finish().unwrap();
    // Of two states the first says what a directory is like.
    for (below, mode_of, secs) in [("to", 0o700, 1000), ("to/p", 0o770, 2000)] {
        for (at, name) in dirs.iter().enumerate() {
            let found = temp.path().join(below).join(name);
            let stat = found.metadata().unwrap();
            let expected = (mode_of + at as u32, secs + at as i64, 7);
            assert_eq!((mode(&found), stat.mtime(), stat.mtime_nsec()), expected, "{below}/{name}");
        }
    }
}

#[test]
fn a_file_in_place_of_a_directory_keeps_nothing_below_it() {
    let (temp, source, to) = world(&[("d/e/f", "f"), ("g/h", "h")]);
    let first = listing(&[
        ("", dir(0o755)),
        ("d", dir(0o755)),
        ("d/e", dir(0o755)),
        ("d/e/f", file(0o644, "f")),
        ("g", dir(0o755)),
        ("g/h", file(0o644, "h")),
    ]);
    fs::create_dir_all(temp.path().join("to/g/old/older")).unwrap();
    fs::write(temp.path().join("to/g/old/older/f"), "").unwrap();
    let mut checkout = Checkout::new(to.as_fd(), None);
    checkout.add(&RelPath::root(), &first, &source).unwrap();
    checkout.add_file(&path("d"), &mut &b"in its place"[..]).unwrap();
    checkout.delete_others().unwrap();
    assert_eq!(fs::read_to_string(temp.path().join("to/d")).unwrap(), "in its place");
    assert_eq!(fs::read_dir(temp.path().join("to/g")).unwrap().count(), 1, "h");
}
