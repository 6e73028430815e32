use std::os::unix::fs::symlink;
use std::path::Path;

use proptest::prelude::*;
use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2, readlink};
use rustix::io::Errno;

use super::*;
use crate::tree::MemoryNodeStore;
use crate::tree::testing::{dir, file, link, tree};

fn go(entries: &[(&str, crate::layer::Change)], path: &str) -> Result<Resolved, ResolveError> {
    let nodes = MemoryNodeStore::default();
    tree(&nodes, entries).resolve(&nodes, path.as_bytes(), LastLink::Follow)
}

#[track_caller]
fn check(entries: &[(&str, crate::layer::Change)], path: &str, real: &str, missing: &[&str]) {
    let found = go(entries, path).unwrap();
    let found_missing: Vec<_> = found.missing.iter().map(|name| String::from_utf8_lossy(name)).collect();
    assert_eq!(
        (found.path.to_string().as_str(), found_missing),
        (real, missing.iter().map(|m| (*m).into()).collect())
    );
}

#[test]
fn links_stay_in_the_root() {
    let entries = [
        ("a", dir(0o755)),
        ("a/abs", link("/b")),
        ("a/up", link("../../../b/f")),
        ("b", dir(0o755)),
        ("b/f", file("F")),
        ("dangling", link("/new/dir")),
        ("l", link("l")),
    ];
    check(&entries, "/a/abs/f", "b/f", &[]);
    check(&entries, "a/up", "b/f", &[]);
    check(&entries, "../../b//./f", "b/f", &[]);
    check(&entries, "/", "", &[]);
    check(&entries, "dangling/x", "", &["new", "dir", "x"]);
    check(&entries, "a/abs/none/x", "b", &["none", "x"]);
    assert!(matches!(go(&entries, "l"), Err(ResolveError::TooManyLinks { .. })));
    assert!(
        matches!(go(&entries, "b/f/x"), Err(ResolveError::NotDirectory { path }) if path.to_string() == "b/f")
    );
    assert!(matches!(go(&entries, "b/f/"), Err(ResolveError::NotDirectory { .. })));
    assert!(matches!(go(&entries, &"x/".repeat(3000)), Err(ResolveError::Invalid { .. })));
}

#[test]
fn stepping_back_out_of_nothing_is_refused() {
    let error = go(&[("a", dir(0o755))], "none/x/../a").unwrap_err();
    assert!(matches!(error, ResolveError::NotFound { path } if path.to_string() == "none/x"));
}

#[test]
fn forty_links_are_followed_and_no_more() {
    let mut entries = vec![("f".to_owned(), file("F"))];
    for at in 1..=41 {
        let target = if at == 1 { "f".to_owned() } else { format!("l{:02}", at - 1) };
        entries.push((format!("l{at:02}"), link(&target)));
    }
    let entries: Vec<_> = entries.iter().map(|(path, change)| (path.as_str(), change.clone())).collect();
    check(&entries, "l40", "f", &[]);
    assert!(matches!(go(&entries, "l41"), Err(ResolveError::TooManyLinks { .. })));
}

/// What the kernel finds: the real path below the root, or its error.
fn kernel(root: &Path, path: &str, last: LastLink) -> Result<String, Errno> {
    let fd = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let keep = if last == LastLink::Keep { OFlags::NOFOLLOW } else { OFlags::empty() };
    // openat2 may ask to be called again when something else is renamed or mounted meanwhile.
    let found = loop {
        let flags = OFlags::PATH | OFlags::CLOEXEC | keep;
        match openat2(&fd, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            Err(Errno::AGAIN) => {}
            other => break other?,
        }
    };
    use std::os::fd::AsRawFd;
    let real = readlink(format!("/proc/self/fd/{}", found.as_raw_fd()), Vec::new())?.into_string().unwrap();
    let root = readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?.into_string().unwrap();
    Ok(real.strip_prefix(&root).unwrap().trim_start_matches('/').to_owned())
}

fn name() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("a"), Just("b"), Just("c"), Just("d")]
}

fn wild_path() -> impl Strategy<Value = String> {
    let part = prop_oneof![6 => name(), 2 => Just(".."), 1 => Just("."), 1 => Just("")];
    (any::<bool>(), proptest::collection::vec(part, 1..5)).prop_map(|(absolute, parts)| {
        let path = parts.join("/");
        match path.is_empty() {
            true => "/".to_owned(),
            false if absolute => format!("/{path}"),
            false => path,
        }
    })
}

#[derive(Debug, Clone)]
enum Thing {
    Dir,
    File,
    Link(String),
}

fn thing() -> impl Strategy<Value = Thing> {
    prop_oneof![3 => Just(Thing::Dir), 1 => Just(Thing::File), 4 => wild_path().prop_map(Thing::Link)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn resolution_is_the_kernels(
        things in proptest::collection::vec((proptest::collection::vec(name(), 1..4), thing()), 1..25),
        paths in proptest::collection::vec(wild_path(), 1..20),
    ) {
        // `/proc/self/fd` below needs the tree on a real filesystem; without openat2 there is no oracle.
        let root = tempfile::tempdir().unwrap();
        let mut entries = Vec::new();
        for (parts, thing) in &things {
            let at = root.path().join(parts.join("/"));
            let parent = at.parent().unwrap();
            // Only where the parent is a real directory on the way, so both sides build the same tree.
            let real_parent = (1..parts.len()).all(|n| {
                let up = root.path().join(parts[..n].join("/"));
                up.symlink_metadata().is_ok_and(|meta| meta.is_dir())
            });
            if !real_parent || !parent.exists() || at.symlink_metadata().is_ok() {
                continue;
            }
            let change = match thing {
                Thing::Dir => { std::fs::create_dir(&at).unwrap(); dir(0o755) }
                Thing::File => { std::fs::write(&at, "").unwrap(); file("") }
                Thing::Link(target) => { symlink(target, &at).unwrap(); link(target) }
            };
            entries.push((parts.join("/"), change));
        }
        let entries: Vec<_> = entries.iter().map(|(path, change)| (path.as_str(), change.clone())).collect();
        let nodes = MemoryNodeStore::default();
        let tree = tree(&nodes, &entries);
        for path in &paths {
            for last in [LastLink::Follow, LastLink::Keep] {
                let ours = match tree.resolve(&nodes, path.as_bytes(), last) {
                    Ok(found) if found.exists() => Ok(found.path.to_string()),
                    Ok(_) | Err(ResolveError::NotFound { .. }) => Err(Errno::NOENT),
                    Err(ResolveError::NotDirectory { .. }) => Err(Errno::NOTDIR),
                    Err(ResolveError::TooManyLinks { .. }) => Err(Errno::LOOP),
                    Err(other) => panic!("{other}"),
                };
                prop_assert_eq!(&ours, &kernel(root.path(), path, last), "{} {:?}", path, last);
            }
        }
    }
}
