//! The stat index of contexts.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::stat_index::settled;
use super::*;
use crate::layer::Mtime;
use crate::path::{RelPath, compare};
use crate::scratch::Scratch;
use crate::tree::testing::put_dir;
use crate::tree::{
    ContentDigest, DirEntries, DirNode, DirReader, Entry, Kind, MemoryNodeStore, Meta, NodeStore, Tree,
};

const SCANNED: ScanMoment = ScanMoment::at(1000, 0);
const RULES: [u8; 32] = [9; 32];
const OLD: Mtime = Mtime { secs: 20, nanos: 1 };

fn stat(ctime: Mtime) -> FileStat {
    let mtime = Mtime { secs: 10, nanos: 1 };
    FileStat { size: 3, mtime, ctime, ino: 4, dev: 5, mode: 0o100_644, uid: 6, gid: 7 }
}

/// A file, with its name as content, or a symlink.
#[derive(Clone)]
struct Thing {
    name: String,
    stat: FileStat,
    content: ContentDigest,
    target: Option<&'static str>,
    is_marked: bool,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

fn file(name: &str, stat: FileStat) -> Thing {
    let (content, xattrs) = (ContentDigest::of(name.as_bytes()), BTreeMap::new());
    Thing { name: name.to_owned(), stat, content, target: None, is_marked: false, xattrs }
}

/// A directory that was listed and then read, or what becomes of it when `change` is made before that.
fn changed(
    path: &str,
    stat: FileStat,
    things: &[Thing],
    change: &dyn Fn(&mut ListedDir),
    xattrs: &SeenXattrs,
) -> SeenDir {
    let mut listed = ListedDir::new(path.as_bytes(), stat, SCANNED);
    listed.may_be_trusted = true;
    let mut unread = Vec::new();
    for thing in things {
        let Thing { name, stat, target, is_marked, .. } = thing;
        let kind = target.map_or(KnownKind::File(&[0; 32]), |target| KnownKind::Symlink(target.as_bytes()));
        // Not as it is when it is opened.
        let before = if target.is_some() { *stat } else { FileStat { size: 99, ino: 99, ..*stat } };
        let (is_linked, is_suspect) = (*is_marked, *is_marked);
        let entry = SeenEntry { name: name.as_bytes(), stat: before, is_linked, is_suspect, kind };
        let place = listed.push(&entry).unwrap();
        if target.is_none() {
            listed.mark_unread(place);
            unread.push(thing);
        }
    }
    change(&mut listed);
    let mut dir = listed.done(false);
    assert_eq!(dir.is_noted(), things.iter().any(|thing| thing.is_marked));
    let places: Vec<_> = dir.unread().collect();
    assert_eq!(places.len(), unread.len());
    for (place, thing) in places.into_iter().zip(unread) {
        assert_eq!((dir.name(place), dir.size(place)), (thing.name.as_bytes(), 99));
        let Thing { stat, content, xattrs: own, .. } = thing.clone();
        dir.fill(place, &ReadFile { stat, content, xattrs: own }, SCANNED, xattrs).unwrap();
    }
    assert_eq!(dir.unread().count(), 0);
    dir
}

fn dir(path: &str, things: Vec<Thing>) -> SeenDir {
    let stat = FileStat { mode: 0o40_755, ..stat(OLD) };
    changed(path, stat, &things, &|_| {}, &SeenXattrs::default())
}

fn kept(last: &StatIndex, at: usize) -> SeenDir {
    SeenDir::kept(&last.dir(at).unwrap(), false)
}

fn seen(last: &Arc<StatIndex>, dirs: Vec<SeenDir>) -> SeenContext {
    SeenContext::new(Arc::clone(last), RULES, dirs, SeenXattrs::default()).unwrap()
}

fn save(store: &Store, seen: &SeenContext) -> Arc<StatIndex> {
    save_as(store, 1, seen)
}

fn save_as(store: &Store, context: u8, seen: &SeenContext) -> Arc<StatIndex> {
    store.put_stat_index(&store.lease().unwrap(), &[context; 32], seen).unwrap();
    Arc::new(store.stat_index(&[context; 32]).unwrap())
}

fn save_new(store: &Store, dirs: Vec<SeenDir>) -> Arc<StatIndex> {
    save(store, &seen(&Arc::new(StatIndex::empty()), dirs))
}

/// Name, stat, trust and content of all that is recorded in a directory.
type Recorded = Vec<(String, FileStat, bool, Option<ContentDigest>)>;

fn recorded(index: &StatIndex, dir: &KnownDir) -> Result<Recorded, RecordDamaged> {
    let mut records = Records::new(index);
    let (mut record, mut all) = (records.of(dir)?, Vec::new());
    while let Some(known) = record.peek()? {
        let content = match known.kind {
            KnownKind::File(content) => Some(ContentDigest(*content)),
            _ => None,
        };
        all.push((known.name.to_str().unwrap().to_owned(), known.stat(), !known.is_young, content));
        record.skip();
    }
    Ok(all)
}

fn index_path(store: &Store, context: u8) -> std::path::PathBuf {
    store.root().join(format!("contexts/{}", hex::encode([context; 32])))
}

#[test]
fn what_was_listed_is_recorded() {
    let (_dir, store) = fresh();
    let link = Thing { target: Some("to"), ..file("s", stat(OLD)) };
    let marked = Thing { is_marked: true, ..file("m", stat(OLD)) };
    let index = save_new(&store, vec![dir("", vec![marked, link]), dir("a", vec![file("b", stat(OLD))])]);
    let find = |path: &[u8]| index.find(path).unwrap().map(|dir| dir.place());
    assert_eq!((index.len(), index.files(), find(b"a"), find(b"b")), (2, 2, Some(1), None));
    assert!(index.is_by(&RULES) && !index.is_by(&[0; 32]));
    assert_eq!(index.dirs_in(&index.dir(0).unwrap()).collect::<Vec<_>>(), [Ok(1)]);
    let mut records = Records::new(&index);
    let mut record = records.of(&index.dir(0).unwrap()).unwrap();
    // Twice the same.
    for _ in 0..2 {
        let known = record.peek().unwrap().unwrap();
        assert_eq!(known.kind, KnownKind::File(&ContentDigest::of(b"m").0));
        assert_eq!((known.is_linked, known.is_suspect, known.is_young), (true, true, false));
        record.skip();
        let known = record.peek().unwrap().unwrap();
        assert_eq!(known.kind, KnownKind::Symlink(b"to"));
        assert_eq!(known.stat, &stat(OLD).to_bytes());
        record.skip();
        assert!(record.peek().unwrap().is_none());
        record.rewind();
    }
    assert!(store.stat_index(&[2; 32]).unwrap().is_empty());
}

#[test]
fn no_change_of_a_stat_goes_unnoticed() {
    let changes: [fn(&mut FileStat); 8] = [
        |stat| stat.size += 1,
        |stat| stat.mtime.nanos += 1,
        |stat| stat.ctime.nanos += 1,
        |stat| stat.ino += 1,
        |stat| stat.dev += 1,
        |stat| stat.mode ^= 0o111,
        |stat| stat.uid += 1,
        |stat| stat.gid += 1,
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut changed = stat(OLD);
        change(&mut changed);
        assert_ne!(changed.to_bytes(), stat(OLD).to_bytes(), "change {number}");
    }
}

#[test]
fn what_changed_around_the_scan_is_not_trusted() {
    let (_dir, store) = fresh();
    let is_trusted = |stat: FileStat| {
        let of_file = save_new(&store, vec![dir("", vec![file("f", stat)])]);
        let empty = changed("", stat, &[], &|_| {}, &SeenXattrs::default());
        let of_dir = save_new(&store, vec![empty]).dir(0).unwrap().is_trusted();
        // A directory is trusted or not by its own times.
        assert!(of_file.dir(0).unwrap().is_trusted());
        assert_eq!(recorded(&of_file, &of_file.dir(0).unwrap()).unwrap()[0].2, of_dir);
        of_dir
    };
    let at = |secs, nanos| is_trusted(stat(Mtime { secs, nanos }));
    assert!(at(999, 500_000_000));
    assert!(!at(999, 995_000_000), "within the clock's step");
    assert!(!at(999, 0), "a file system that keeps whole seconds");
    assert!(at(997, 0));
    assert!(!at(1000, 1));
    assert!(!at(2000, 1), "a clock that was set back");
    let mut future = stat(Mtime { secs: 20, nanos: 1 });
    future.mtime.secs = 5000;
    assert!(!is_trusted(future));
}

#[test]
fn a_directory_with_something_that_no_record_holds_is_not_trusted() {
    let (_store_dir, store) = fresh();
    let xattrs = || BTreeMap::from([(b"user.x".to_vec(), b"1".to_vec())]);
    let with = |things: Vec<Thing>, change: fn(&mut ListedDir, &SeenXattrs)| {
        let (held, stat) = (SeenXattrs::new(&Scratch::for_test()), FileStat { mode: 0o40_755, ..stat(OLD) });
        let dir = changed("", stat, &things, &|listed| change(listed, &held), &held);
        let seen = SeenContext::new(Arc::default(), RULES, vec![dir], held).unwrap();
        let names: Vec<_> =
            things.iter().map(|thing| (thing.name.clone().into_bytes(), thing.xattrs.clone())).collect();
        let found = entries(&seen, &seen.node()).into_iter().map(|(name, entry)| (name, entry.meta.xattrs));
        assert_eq!(found.collect::<Vec<_>>(), names);
        assert_eq!((entries(&seen, &seen.node()).len(), seen.bytes()), (3, 9));
        let index = save(&store, &seen);
        assert_eq!(index.files(), 3);
        let root = index.dir(0).unwrap();
        (root.is_trusted(), recorded(&index, &root).unwrap().len())
    };
    let plain = || ["f", "g", "h"].map(|name| file(name, stat(OLD))).to_vec();
    assert_eq!(with(plain(), |_, _| {}), (true, 3));
    assert_eq!(with(plain(), |dir, _| dir.may_be_trusted = false), (false, 3));
    assert_eq!(
        with(plain(), |dir, held| dir
            .set_xattrs(&[(b"user.x".to_vec(), b"1".to_vec())].into(), held)
            .unwrap()),
        (false, 3)
    );
    for at in 0..3 {
        let mut things = plain();
        things[at].xattrs = xattrs();
        assert_eq!(with(things, |_, _| {}), (false, 2));
    }
}

/// Names and entries of a directory.
fn entries(nodes: &dyn NodeStore, dir: &NodeDigest) -> Vec<(Vec<u8>, Entry)> {
    let mut reader = DirReader::open(nodes, dir).unwrap();
    let next = || reader.next().unwrap().map(|(name, entry)| (name.to_vec(), entry.clone()));
    std::iter::from_fn(next).collect()
}

#[test]
fn parts_of_a_large_directory_are_made_one_by_one() {
    const MANY: usize = 10_000;
    let (_dir, store) = fresh();
    let held = || SeenXattrs::new(&Scratch::for_test());
    let many = |is_marked, held: &SeenXattrs| {
        let mut things: Vec<_> = (0..MANY).map(|at| file(&format!("{at:05}"), stat(OLD))).collect();
        if is_marked {
            things[7].xattrs.insert(b"user.x".to_vec(), b"1".to_vec());
        }
        let name = if is_marked { "a" } else { "b" };
        changed(name, FileStat { mode: 0o40_755, ..stat(OLD) }, &things, &|_| {}, held)
    };
    let xattrs = held();
    let listed = vec![dir("", Vec::new()), many(true, &xattrs), many(false, &xattrs)];
    let listed = SeenContext::new(Arc::default(), RULES, listed, xattrs).unwrap();
    let index = save(&store, &listed);
    let xattrs = held();
    let known = vec![dir("", Vec::new()), many(true, &xattrs), kept(&index, 2)];
    let known = SeenContext::new(Arc::clone(&index), RULES, known, xattrs).unwrap();
    assert_eq!(known.node(), listed.node());
    for seen in [&listed, &known] {
        for (_, entry) in entries(seen, &seen.node()) {
            let Kind::Dir(digest) = entry.kind else { unreachable!() };
            let node = NodeStore::node(seen, &digest).unwrap();
            assert!(node.digest() == digest && matches!(node, DirNode::Parts(_)));
            let found = entries(seen, &digest);
            assert_eq!(found.len(), MANY);
            assert_eq!(digest, put_dir(&MemoryNodeStore::default(), &found.into_iter().collect()));
        }
    }
}

/// Where it must not be believed, an answer is missing.
fn assert_nothing_wrong(index: &StatIndex, whole: &StatIndex, paths: &[String], what: &str) -> usize {
    let mut missing = 0;
    let mut assert_dir = |found: &KnownDir, place: usize| {
        let known = whole.dir(place).unwrap();
        assert_eq!(
            (found.path(), found.stat(), found.node()),
            (known.path(), known.stat(), known.node()),
            "{what}"
        );
        let flags = |dir: &KnownDir| (dir.place(), dir.is_trusted(), dir.is_excluded());
        assert_eq!(flags(found), flags(&known), "{what}");
        match recorded(index, found) {
            Ok(found) => assert_eq!(Ok(found), recorded(whole, &known), "{what}"),
            Err(RecordDamaged) => missing += 1,
        }
    };
    let mut damaged = 0;
    for place in 0..index.len() {
        match index.dir(place) {
            Ok(dir) => {
                assert_dir(&dir, place);
                let inner: Vec<_> = index.dirs_in(&dir).collect();
                let known: Vec<_> = whole.dirs_in(&whole.dir(place).unwrap()).collect();
                match inner.split_last() {
                    Some((Err(IndexDamaged), before)) => assert_eq!(*before, known[..before.len()], "{what}"),
                    _ => assert_eq!(inner, known, "{what}"),
                }
            }
            Err(IndexDamaged) => damaged += 1,
        }
    }
    if index.is_empty() {
        return 1;
    }
    for path in paths {
        let known = whole.find(path.as_bytes()).unwrap();
        match (index.find(path.as_bytes()), known) {
            (Ok(Some(found)), Some(known)) => assert_dir(&found, known.place()),
            (Ok(found), known) => assert!(found.is_none() && known.is_none(), "{what}: {path}"),
            (Err(IndexDamaged), _) => damaged += 1,
        }
    }
    missing + damaged
}

#[test]
fn no_part_of_an_index_is_published() {
    let (_dir, store) = fresh();
    let things = |name| vec![file(name, stat(OLD))];
    let dirs = || (0..20).map(|at| dir(&format!("d{at:02}"), things("b")));
    let last = save_new(&store, [dir("", things("a"))].into_iter().chain(dirs()).collect());
    let path = index_path(&store, 1);
    let mut bytes = std::fs::read(&path).unwrap();
    // In the second record, of what will be kept, far from the end that was read.
    bytes[110] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let kept = (1..last.len()).map(|at| kept(&last, at));
    let next = seen(&last, [dir("", things("c"))].into_iter().chain(kept).collect());
    assert!(next.differs());
    store.put_stat_index(&store.lease().unwrap(), &[1; 32], &next).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[test]
fn an_index_of_another_version_is_not_used() {
    let (_dir, store) = fresh();
    save_new(&store, vec![dir("", vec![file("a", stat(OLD))])]);
    let path = index_path(&store, 1);
    let mut bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes.split_off(bytes.len() - 8), b"rbstats6");
    for version in [&b"rbstats5"[..], b"rbstats7"] {
        std::fs::write(&path, [&bytes, version].concat()).unwrap();
        assert!(store.stat_index(&[1; 32]).unwrap().is_empty());
    }
    // As the version before began.
    std::fs::write(&path, [b"rbstats5", &[0; 200][..]].concat()).unwrap();
    assert!(store.stat_index(&[1; 32]).unwrap().is_empty());
    assert_eq!(save_new(&store, vec![dir("", Vec::new())]).len(), 1);
}

#[test]
fn a_real_file_is_known_until_it_is_written_again() {
    let (dir, _store) = fresh();
    let path = dir.path().join("file");
    let stat = || FileStat::from(&rustix::fs::stat(&path).unwrap());
    std::fs::write(&path, "one").unwrap();
    // Until the clock that stamps files has moved on by more than its step.
    while !settled(stat().ctime, ScanMoment::now()) {
        std::thread::yield_now();
    }
    let known = stat();
    assert_eq!(stat(), known);
    // Same size, and the modification time set back as a careful forger would.
    std::fs::write(&path, "two").unwrap();
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 },
        last_modification: rustix::fs::Timespec {
            tv_sec: known.mtime.secs,
            tv_nsec: i64::from(known.mtime.nanos),
        },
    };
    rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::empty()).unwrap();
    assert_eq!((stat().size, stat().mtime), (known.size, known.mtime));
    assert_ne!(stat().to_bytes(), known.to_bytes());
}

#[test]
fn the_moment_of_a_scan_is_no_later_than_what_is_written_after_it() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..100 {
        let before = ScanMoment::now();
        std::fs::write(dir.path().join("f"), "x").unwrap();
        let metadata = std::fs::metadata(dir.path().join("f")).unwrap();
        let written = ScanMoment::at(metadata.ctime(), u32::try_from(metadata.ctime_nsec()).unwrap());
        assert!(before <= written, "{before:?} {written:?}");
    }
}

/// Directories, some below others, each with the versions of its files.
type Model = BTreeMap<String, BTreeMap<String, u32>>;

fn model() -> impl Strategy<Value = Model> {
    // Some in several pieces.
    let files = || proptest::collection::btree_map("[f-h]{1,2}", 0..2_u32, 0..10);
    let dirs = proptest::collection::btree_map("[a-c.!]{1,2}(/[a-c.!]{1,2}){0,2}", files(), 0..12);
    (dirs, files()).prop_map(|(dirs, root)| {
        let mut model = Model::from([(String::new(), root)]);
        for (path, files) in dirs {
            let Ok(clean) = RelPath::new(path.as_bytes()) else { continue };
            let mut above = clean.parent();
            while let Some(dir) = above {
                model.entry(dir.to_string()).or_default();
                above = dir.parent();
            }
            model.insert(path, files);
        }
        model
    })
}

fn versioned(name: &str, version: u32) -> Thing {
    let content = ContentDigest::of(format!("{name} {version}").as_bytes());
    let times = FileStat { mtime: Mtime { secs: 11 + i64::from(version), nanos: 1 }, ..stat(OLD) };
    Thing { content, ..file(name, times) }
}

/// What a scan sees that finds `last` unmoved where the model is: a directory is kept when it held the same before.
fn look(model: &Model, before: Option<&Model>, last: &Arc<StatIndex>) -> SeenContext {
    let names = |model: &Model, path: &str| -> Vec<String> {
        let in_it = model.keys().filter(|inner| {
            let inner = RelPath::new(inner.as_bytes()).unwrap();
            inner.parent().is_some_and(|holder| holder.as_bytes() == path.as_bytes())
        });
        in_it.cloned().collect()
    };
    let dirs = model.iter().map(|(path, files)| {
        let is_same = before.is_some_and(|before| {
            before.get(path) == Some(files) && names(before, path) == names(model, path)
        });
        match last.find(path.as_bytes()).unwrap().filter(|_| is_same) {
            Some(known) => SeenDir::kept(&known, false),
            None => dir(path, files.iter().map(|(name, version)| versioned(name, *version)).collect()),
        }
    });
    seen(last, dirs.collect())
}

/// The same by hand.
fn tree_of(model: &Model) -> (Tree, MemoryNodeStore) {
    let nodes = MemoryNodeStore::default();
    let mut paths: Vec<_> = model.keys().collect();
    paths.sort_by(|a, b| compare(b.as_bytes(), a.as_bytes()));
    let mut open: BTreeMap<RelPath, DirEntries> = BTreeMap::new();
    let mut root = Tree::empty();
    for path in paths {
        let path = RelPath::new(path.as_bytes()).unwrap();
        let mut node = open.remove(&path).unwrap_or_default();
        for (name, version) in &model[&path.to_string()] {
            let content = versioned(name, *version).content;
            let meta = Meta { mode: 0o644, ..Meta::default() };
            let entry = Entry { meta, kind: Kind::File { size: 3, content } };
            node.insert(name.clone().into_bytes(), entry);
        }
        let digest = put_dir(&nodes, &node);
        match path.parent() {
            Some(holder) => {
                let meta = Meta { mode: 0o755, ..Meta::default() };
                let entry = Entry { meta, kind: Kind::Dir(digest) };
                open.entry(holder).or_default().insert(path.name().to_vec(), entry);
            }
            None => root.node = digest,
        }
    }
    (root, nodes)
}

/// What a model says of an index.
fn assert_is(index: &StatIndex, model: &Model, probes: &[String]) {
    let mut paths: Vec<&str> = model.keys().map(String::as_str).collect();
    paths.sort_by(|a, b| compare(a.as_bytes(), b.as_bytes()));
    assert_eq!(index.len(), paths.len());
    assert_eq!(index.files(), model.values().map(|files| files.len() as u64).sum::<u64>());
    let holder = |path: &str| path.rfind('/').map_or("", |at| &path[..at]).to_owned();
    // From the last one, too: blocks are not read in their order.
    for place in (0..paths.len()).chain((0..paths.len()).rev()) {
        let dir = index.dir(place).unwrap();
        assert_eq!((dir.path(), dir.place()), (paths[place].as_bytes(), place));
        let is_in = |at: &usize| !paths[*at].is_empty() && holder(paths[*at]) == paths[place];
        let inner: Vec<_> = (0..paths.len()).filter(is_in).map(Ok).collect();
        assert_eq!(index.dirs_in(&dir).collect::<Vec<_>>(), inner);
        let below = |path: &&&str| paths[place].is_empty() || path.starts_with(&format!("{}/", paths[place]));
        assert_eq!(index.after(&dir), Ok(place + paths[place + 1..].iter().take_while(below).count() + 1));
        let files = &model[paths[place]];
        let found = recorded(index, &dir).unwrap();
        let known = files.iter().map(|(name, version)| (name.clone(), versioned(name, *version)));
        let known = known.map(|(name, thing)| (name, thing.stat, true, Some(thing.content)));
        assert_eq!(found, known.collect::<Vec<_>>());
    }
    for path in probes {
        let place = index.find(path.as_bytes()).unwrap().map(|dir| dir.place());
        assert_eq!(place, paths.iter().position(|known| known == path), "{path}");
    }
}

/// Paths that are there, and some that are not.
fn probes(models: &[Model]) -> Vec<String> {
    let known = models.iter().flat_map(Model::keys);
    known
        .flat_map(|path| ["", "/a", "!", "/\u{1}", "\u{1}", "zz"].map(|end| format!("{path}{end}")))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_kept_and_what_is_listed_make_the_same_nodes_and_index(
        models in proptest::collection::vec(model(), 1..4),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<proptest::sample::Index>()), 0..4),
    ) {
        // Some that are nearly the same: a file more or less in one directory.
        let mut builds = Vec::new();
        for model in models {
            builds.push(model.clone());
            for (dir, file) in &changes {
                let mut next = builds.last().unwrap().clone();
                let files = next.values_mut().nth(dir.index(model.len())).unwrap();
                let name = ["f", "gg", "hf"][file.index(3)].to_owned();
                if files.remove(&name).is_none() {
                    files.insert(name, 1);
                }
                builds.push(next);
            }
        }
        let probes = probes(&builds);
        let (_dir, store) = fresh();
        let (mut before, mut index) = (None, Arc::new(StatIndex::empty()));
        for build in &builds {
            let scanned = look(build, before, &index);
            prop_assert_eq!(scanned.differs(), before != Some(build));
            let (tree, nodes) = tree_of(build);
            prop_assert_eq!(scanned.node(), tree.node);
            let walk = |nodes: &dyn NodeStore| {
                tree.walk(nodes, &RelPath::root()).unwrap().collect::<Result<Vec<_>, _>>().unwrap()
            };
            prop_assert_eq!(walk(&nodes), walk(&scanned));
            let mut hint = SeenHint::default();
            for (path, files) in build {
                for (name, version) in files.iter().chain(files.iter().rev()) {
                    let path = RelPath::clamp(format!("{path}/{name}").as_bytes());
                    let mtime = scanned.mtime(&path, &mut hint).map(|time| time.secs);
                    prop_assert_eq!(mtime, Some(11 + i64::from(*version)));
                }
                let absent = RelPath::clamp(format!("{path}/zz").as_bytes());
                prop_assert_eq!(scanned.mtime(&absent, &mut hint), None);
            }
            // What was kept is copied, and reads as if all had been listed.
            index = save(&store, &scanned);
            save_as(&store, 2, &look(build, None, &Arc::new(StatIndex::empty())));
            let file = |context| std::fs::read(index_path(&store, context)).unwrap();
            prop_assert!(file(1) == file(2));
            assert_is(&index, build, &probes);
            before = Some(build);
            prop_assert!(!look(build, before, &index).differs());
        }
    }
}

/// An index on which damage can be tried, and what it is when whole.
struct Damaged {
    _dir: tempfile::TempDir,
    store: Store,
    whole: Arc<StatIndex>,
    good: Vec<u8>,
    paths: Vec<String>,
}

impl Damaged {
    fn of(model: &Model) -> Self {
        let (_dir, store) = fresh();
        let whole = save(&store, &look(model, None, &Arc::new(StatIndex::empty())));
        let good = std::fs::read(index_path(&store, 1)).unwrap();
        let paths = model.keys().flat_map(|path| [path.clone(), format!("{path}z")]).collect();
        let damaged = Self { _dir, store, whole, good, paths };
        damaged.assert_says_so(0, 0, false);
        damaged
    }

    fn open(&self, bytes: &[u8]) -> StatIndex {
        // The whole one is read as long as its own file is there.
        std::fs::write(index_path(&self.store, 2), bytes).unwrap();
        self.store.stat_index(&[2; 32]).unwrap()
    }

    /// With this done to a byte nothing is wrong and, where it is damage, something missing.
    fn assert_says_so(&self, at: usize, flip: u8, is_damage: bool) {
        let mut bytes = self.good.clone();
        bytes[at] ^= flip;
        let missing =
            assert_nothing_wrong(&self.open(&bytes), &self.whole, &self.paths, &format!("byte {at}"));
        assert_eq!(missing > 0, is_damage, "byte {at} of {}", self.good.len());
    }
}

#[test]
fn an_index_damaged_anywhere_knows_nothing_wrong() {
    let files = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), 0)).collect();
    let dirs =
        [("", &["f", "g"][..]), ("a", &[]), ("a/b", &["f", "g", "h", "i", "j"]), ("a.b", &["x"]), ("c", &[])];
    let index = Damaged::of(&dirs.map(|(path, names)| (path.to_owned(), files(names))).into());
    for length in 0..index.good.len() {
        assert!(index.open(&index.good[..length]).is_empty(), "cut to {length}");
    }
    for at in 0..index.good.len() {
        // There is no byte on which nothing depends.
        index.assert_says_so(at, 1 << (at % 8), true);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn a_damaged_index_knows_nothing_wrong(
        model in model(),
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), 1..=255_u8), 16),
    ) {
        let index = Damaged::of(&model);
        for (at, flip) in flips {
            index.assert_says_so(at.index(index.good.len()), flip, true);
        }
    }
}
