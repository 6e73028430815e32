//! A scan that has an index finds what one without finds.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use proptest::prelude::*;
use rbuild_cache::store::{FileStat, ListedDir, Store, StoreOptions};
use rbuild_cache::tree::{ContentDigest, Entry};

use super::*;

/// A context and a store that has its index.
struct Case {
    dir: tempfile::TempDir,
    store: Store,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("context")).unwrap();
        let options = StoreOptions { id_map: "test".to_owned(), durable: false };
        let store = Store::open(&dir.path().join("store"), options).unwrap();
        Self { dir, store }
    }

    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("context")
    }

    /// A scan as a build makes it. Gives it, and whether it wrote the next index.
    fn scan(&self, ignore: &Ignore, wanted: &Wanted) -> (ScannedContext, bool) {
        let index = Arc::new(self.store.stat_index(&[1; 32]).unwrap());
        let scanned = scan(&self.root(), ignore, wanted, &index, None, &scratch()).unwrap();
        let seen = scanned.seen.as_ref().unwrap();
        let differs = seen.differs();
        if differs {
            self.store.put_stat_index(&self.store.lease().unwrap(), &[1; 32], seen).unwrap();
        }
        (scanned, differs)
    }

    /// The same by somebody who knows nothing.
    fn scan_anew(&self, ignore: &Ignore, wanted: &Wanted) -> ScannedContext {
        scan(&self.root(), ignore, wanted, &Arc::default(), None, &scratch()).unwrap()
    }

    /// Until what was changed so far is older than any doubt.
    fn settle(&self) {
        let probe = self.dir.path().join("probe");
        fs::write(&probe, "").unwrap();
        let changed = fs::metadata(&probe).unwrap();
        let (secs, nanos) = (changed.ctime(), u32::try_from(changed.ctime_nsec()).unwrap());
        let later =
            ScanMoment::at(secs + i64::from(nanos > 980_000_000), (nanos + 20_000_000) % 1_000_000_000);
        while ScanMoment::now() <= later {
            std::thread::yield_now();
        }
    }
}

fn entries(scanned: &ScannedContext) -> Vec<(RelPath, Entry)> {
    let walk = scanned.tree.walk(&*scanned.nodes, &RelPath::root()).unwrap();
    walk.collect::<Result<_, _>>().unwrap()
}

#[track_caller]
fn assert_same(found: &ScannedContext, expected: &ScannedContext) {
    let all = entries(expected);
    assert_eq!(entries(found), all);
    assert_eq!(found.tree, expected.tree);
    assert_eq!(found.skipped, expected.skipped);
    assert_eq!(found.suspects, expected.suspects);
    assert_eq!(found.size_bytes, expected.size_bytes);
    let (files, expected) = (found.files().unwrap(), DirSource::new(expected.dir.try_clone().unwrap()));
    for (path, _) in all.iter().filter(|(path, _)| !path.is_root()) {
        assert_eq!(files.mtime(path).unwrap(), expected.mtime(path).unwrap(), "{path}");
    }
}

const NAMES: [&str; 7] = ["a", "b", "a.log", "k.log", "d", "e", ".env"];

/// Something that happens to a context.
#[derive(Debug, Clone)]
enum Edit {
    Write(Vec<usize>, u8),
    /// Same length and modification time as before.
    Forge(Vec<usize>, u8),
    Remove(Vec<usize>),
    Dir(Vec<usize>),
    Mode(Vec<usize>, u32),
    Link(Vec<usize>, Vec<usize>),
    Symlink(Vec<usize>),
    Rename(Vec<usize>, Vec<usize>),
    Xattr(Vec<usize>, bool),
    Fifo(Vec<usize>),
}

fn edit() -> impl Strategy<Value = Edit> {
    let path = || proptest::collection::vec(0..NAMES.len(), 1..4);
    prop_oneof![
        6 => (path(), any::<u8>()).prop_map(|(path, byte)| Edit::Write(path, byte)),
        2 => (path(), any::<u8>()).prop_map(|(path, byte)| Edit::Forge(path, byte)),
        2 => path().prop_map(Edit::Remove),
        3 => path().prop_map(Edit::Dir),
        2 => (path(), prop_oneof![Just(0o755_u32), Just(0o700)]).prop_map(|(path, mode)| Edit::Mode(path, mode)),
        1 => (path(), path()).prop_map(|(from, to)| Edit::Link(from, to)),
        1 => path().prop_map(Edit::Symlink),
        2 => (path(), path()).prop_map(|(from, to)| Edit::Rename(from, to)),
        1 => (path(), any::<bool>()).prop_map(|(path, is_set)| Edit::Xattr(path, is_set)),
        1 => path().prop_map(Edit::Fifo),
    ]
}

/// Does it, where it can be done.
fn apply(root: &Path, edit: &Edit) {
    let at = |path: &[usize]| path.iter().fold(root.to_owned(), |dir, name| dir.join(NAMES[*name]));
    let is_file = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
    match edit {
        Edit::Write(path, byte) => {
            let path = at(path);
            if is_file(&path) || fs::symlink_metadata(&path).is_err() {
                let _ = fs::write(path, [*byte; 3]);
            }
        }
        Edit::Forge(path, byte) => {
            let path = at(path);
            if let Ok(before) = fs::symlink_metadata(&path).and_then(|found| found.modified())
                && is_file(&path)
            {
                fs::write(&path, [*byte; 3]).unwrap();
                fs::File::options().write(true).open(&path).unwrap().set_modified(before).unwrap();
            }
        }
        Edit::Remove(path) => {
            let path = at(path);
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        }
        Edit::Dir(path) => drop(fs::create_dir_all(at(path))),
        Edit::Mode(path, mode) => {
            let path = at(path);
            if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_symlink()) {
                let _ = fs::set_permissions(path, fs::Permissions::from_mode(*mode));
            }
        }
        Edit::Link(from, to) => drop(fs::hard_link(at(from), at(to))),
        Edit::Symlink(path) => drop(symlink("a", at(path))),
        Edit::Rename(from, to) => drop(fs::rename(at(from), at(to))),
        Edit::Xattr(path, is_set) => {
            let path = at(path);
            // Where the file system has none, nothing is set.
            let _ = if *is_set {
                rustix::fs::lsetxattr(&path, "user.x", b"1", rustix::fs::XattrFlags::empty())
            } else {
                rustix::fs::lremovexattr(&path, "user.x")
            };
        }
        Edit::Fifo(path) => {
            let mode = Mode::RUSR | Mode::WUSR;
            let _ = rustix::fs::mknodat(rustix::fs::CWD, at(path), rustix::fs::FileType::Fifo, mode, 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn whatever_was_edited_an_index_changes_nothing_of_what_is_found(
        rounds in proptest::collection::vec(
            (proptest::collection::vec(edit(), 0..12), any::<bool>(), 0..4_usize, 0..4_usize),
            1..6,
        ),
    ) {
        let case = Case::new();
        let ignores = ["", "*.log\n", "**/*.log\n!**/k.log\n", "d\n!d/e/a\n"];
        let wanteds = [vec![""], vec!["d"], vec!["a", "e/d"], vec!["?/a"]];
        for (edits, settles, ignore, wanted) in rounds {
            edits.iter().for_each(|edit| apply(&case.root(), edit));
            if settles {
                case.settle();
            }
            // The same rules most of the time: those are what directories are trusted by.
            let ignore = Ignore::parse(ignores[ignore / 2].as_bytes()).unwrap();
            let wanted = Wanted::by(wanteds[wanted / 3].iter().copied());
            let (found, _) = case.scan(&ignore, &wanted);
            assert_same(&found, &case.scan_anew(&ignore, &wanted));
            let (again, _) = case.scan(&ignore, &wanted);
            assert_same(&again, &found);
        }
    }
}

/// Some directories and files, left alone for long enough, and their index.
fn settled() -> (Case, Ignore, Wanted) {
    let case = Case::new();
    for at in 0..60 {
        let dir = case.root().join(format!("d{}/e{}", at % 6, at % 3));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("f{at}")), format!("{at}")).unwrap();
    }
    fs::write(case.root().join("d0/x.log"), "").unwrap();
    case.settle();
    let ignore = Ignore::parse(b"**/*.log\nd1\n!d1/e1/f7\n").unwrap();
    let wanted = Wanted::everything();
    assert!(case.scan(&ignore, &wanted).1);
    (case, ignore, wanted)
}

/// Directories that were listed, the others being as they were.
fn listed(scanned: &ScannedContext) -> BTreeSet<OsString> {
    let seen = scanned.seen.as_ref().unwrap();
    seen.listed().map(|path| OsStr::from_bytes(path).to_owned()).collect()
}

#[test]
fn only_what_changed_is_listed_and_an_index_written_only_then() {
    let (case, ignore, wanted) = settled();
    let (first, differs) = case.scan(&ignore, &wanted);
    assert!(!differs);
    let is_trusted = trusted_dev(first.dir.as_fd()).is_some();
    let expect = |paths: &[&str], scanned: &ScannedContext| {
        let paths: BTreeSet<_> = paths.iter().map(OsString::from).collect();
        // Elsewhere all are, each time.
        assert!(if is_trusted { listed(scanned) == paths } else { listed(scanned).is_superset(&paths) });
    };
    expect(&[], &first);
    // A file, a name, what is ignored, and a mode.
    fs::write(case.root().join("d2/e2/f2"), "other").unwrap();
    let (changed, differs) = case.scan(&ignore, &wanted);
    assert!(differs);
    expect(&["d2/e2"], &changed);
    assert_ne!(changed.tree.node, first.tree.node);
    assert_same(&changed, &case.scan_anew(&ignore, &wanted));
    case.settle();
    let _ = case.scan(&ignore, &wanted);
    let (again, differs) = case.scan(&ignore, &wanted);
    expect(&[], &again);
    assert!(!differs);
    fs::write(case.root().join("d0/y.log"), "").unwrap();
    let (unchanged, _) = case.scan(&ignore, &wanted);
    expect(&["d0"], &unchanged);
    assert_eq!(unchanged.tree, again.tree);
}

#[test]
fn an_xattr_taken_from_a_directory_counts_though_its_parent_did_not_move() {
    let (case, ignore, wanted) = settled();
    let dir = case.root().join("d2/e2");
    rustix::fs::lsetxattr(&dir, "user.x", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    case.settle();
    let _ = case.scan(&ignore, &wanted);
    let (with, _) = case.scan(&ignore, &wanted);
    rustix::fs::lremovexattr(&dir, "user.x").unwrap();
    let (without, _) = case.scan(&ignore, &wanted);
    assert_ne!(without.tree, with.tree);
    assert_same(&without, &case.scan_anew(&ignore, &wanted));
}

#[test]
fn other_rules_list_everything_and_read_nothing() {
    let (case, ignore, wanted) = settled();
    let (first, _) = case.scan(&ignore, &wanted);
    let (all, differs) = case.scan(&Ignore::default(), &wanted);
    assert!(differs);
    assert_eq!(listed(&all).len(), 1 + 6 + 6);
    assert_same(&all, &case.scan_anew(&Ignore::default(), &wanted));
    let (back, _) = case.scan(&ignore, &wanted);
    assert_eq!(back.tree, first.tree);
}

#[test]
fn a_directory_that_became_something_else_is_none_any_more() {
    let (case, ignore, wanted) = settled();
    fs::rename(case.root().join("d3"), case.root().join("elsewhere")).unwrap();
    symlink("elsewhere", case.root().join("d3")).unwrap();
    fs::remove_dir_all(case.root().join("d4")).unwrap();
    fs::write(case.root().join("d4"), "a file").unwrap();
    let (found, _) = case.scan(&ignore, &wanted);
    assert_same(&found, &case.scan_anew(&ignore, &wanted));
}

#[test]
fn a_damaged_index_changes_nothing_of_what_is_found() {
    let (case, ignore, wanted) = settled();
    // Rows of more than one block.
    for at in 0..100 {
        fs::create_dir(case.root().join(format!("d5/{at}"))).unwrap();
    }
    case.settle();
    assert!(case.scan(&ignore, &wanted).1);
    let path = case.store.root().join(format!("contexts/{}", "01".repeat(32)));
    let good = fs::read(&path).unwrap();
    let expected = case.scan_anew(&ignore, &wanted);
    let mut without = 0;
    for at in (0..good.len()).step_by(good.len() / 150) {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&path, bytes).unwrap();
        let index = Arc::new(case.store.stat_index(&[1; 32]).unwrap());
        let found = scan(&case.root(), &ignore, &wanted, &index, None, &scratch()).unwrap();
        assert_same(&found, &expected);
        // And it is replaced.
        let seen = found.seen.as_ref().unwrap();
        assert!(seen.differs() || trusted_dev(found.dir.as_fd()).is_none(), "byte {at}");
        without += usize::from(!index.is_empty() && listed(&found).len() == 1 + 6 + 6 + 100);
    }
    assert!(without > 0, "no row was damaged");
}

#[test]
fn a_directory_that_an_unmoved_one_has_must_be_there() {
    let case = Case::new();
    fs::create_dir(case.root().join("d")).unwrap();
    case.settle();
    let look = |path: &str| {
        let found = fs::metadata(case.root().join(path)).map(|_| case.root().join(path));
        let stat = rustix::fs::stat(found.unwrap_or(case.root())).unwrap();
        let mut listed = ListedDir::new(path.as_bytes(), FileStat::from(&stat), ScanMoment::now());
        listed.may_be_trusted = true;
        listed.done(false)
    };
    let (ignore, wanted) = (Ignore::default(), Wanted::everything());
    let scan_by = |dirs: &[&str], rules| {
        let dirs = dirs.iter().map(|path| look(path)).collect();
        let seen = SeenContext::new(Arc::default(), rules, dirs, SeenXattrs::new(&scratch())).unwrap();
        case.store.put_stat_index(&case.store.lease().unwrap(), &[1; 32], &seen).unwrap();
        let index = Arc::new(case.store.stat_index(&[1; 32]).unwrap());
        scan(&case.root(), &ignore, &wanted, &index, None, &scratch()).map(|found| listed(&found).len())
    };
    let rules = rules(&ignore, &wanted);
    let root = rustix::fs::open(case.root(), OFlags::DIRECTORY, Mode::empty()).unwrap();
    if trusted_dev(root.as_fd()).is_some() {
        assert_eq!(scan_by(&["", "d"], rules).unwrap(), 0);
        for (gone, path) in [(vec!["", "a", "d"], "a"), (vec!["", "d", "d/x", "d/x/y", "e"], "d/x")] {
            let error = scan_by(&gone, rules).unwrap_err();
            assert!(
                matches!(&error, ScanError::Io { what: "open", path: at, .. } if at == path),
                "{error:?}"
            );
        }
    }
    // By other rules nothing is kept.
    assert_eq!(scan_by(&["", "a", "d"], [0; 32]).unwrap(), 2);
    // Nor when the directory itself is not as it was.
    fs::write(case.root().join("new"), "").unwrap();
    assert_eq!(scan_by(&["", "d", "e", "e/f", "g"], [0; 32]).unwrap(), 2);
}

#[test]
fn however_much_is_gone_what_is_left_is_found() {
    let (case, ignore, wanted) = settled();
    for at in 0..300 {
        fs::create_dir_all(case.root().join(format!("d0/n{at}/m"))).unwrap();
        fs::create_dir_all(case.root().join(format!("many{at}"))).unwrap();
    }
    case.settle();
    let _ = case.scan(&ignore, &wanted);
    for at in 0..300 {
        fs::remove_dir(case.root().join(format!("many{at}"))).unwrap();
    }
    fs::remove_dir_all(case.root().join("d0")).unwrap();
    fs::write(case.root().join("d2/new"), "new").unwrap();
    let (found, differs) = case.scan(&ignore, &wanted);
    assert!(differs);
    assert_same(&found, &case.scan_anew(&ignore, &wanted));
    assert_eq!(case.store.stat_index(&[1; 32]).unwrap().len(), 1 + 5 + 5);
}

#[test]
fn what_is_read_is_packed_once_however_often_it_is_there() {
    let case = Case::new();
    let mut contents = Vec::new();
    let large = b"0123456789".repeat(60_000);
    fs::write(case.root().join("large"), &large).unwrap();
    fs::write(case.root().join("empty"), "").unwrap();
    for at in 0..100 {
        let content = format!("{}\n", at % 40).into_bytes();
        fs::write(case.root().join(format!("f{at}")), &content).unwrap();
        contents.push(content);
    }
    contents.sort();
    contents.dedup();
    let spool = case.store.spool(&case.store.lease().unwrap()).unwrap();
    let (none, all) = (Ignore::default(), Wanted::everything());
    let scanned = scan(&case.root(), &none, &all, &Arc::default(), Some(spool), &scratch()).unwrap();
    let plain = case.scan_anew(&none, &all);
    assert_same(&scanned, &plain);
    assert!(plain.take_packs().is_none());
    let [pack] = &scanned.take_packs().unwrap().packs[..] else { panic!("one pack") };
    assert!(scanned.take_packs().is_none());
    assert_eq!(pack.len(), contents.len());
    assert_eq!(pack.bytes(), contents.iter().map(|content| content.len() as u64).sum::<u64>());
    assert!(pack.verify().unwrap());
    for content in contents {
        let found = pack.find(&ContentDigest::of(&content)).unwrap().map(|place| place.length);
        assert_eq!(found, Some(content.len() as u64));
    }
    assert_eq!(pack.find(&ContentDigest::of(&large)).unwrap(), None, "it is too large");
    // A few small files are not worth it.
    let (few, spool) = (case.root().join("few"), case.store.spool(&case.store.lease().unwrap()).unwrap());
    fs::create_dir(&few).unwrap();
    fs::write(few.join("one"), "1").unwrap();
    assert!(
        scan(&few, &none, &all, &Arc::default(), Some(spool), &scratch()).unwrap().take_packs().is_none()
    );
}

fn scratch() -> Scratch {
    Scratch::on(fs::File::open(std::env::temp_dir()).unwrap()).unwrap()
}
