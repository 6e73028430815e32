//! Unpacking as a map of paths in memory does it, to compare with.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;

use super::super::diff::DiffEntry;
use super::super::dirs::is_below;
use super::super::scan::verify_layer;
use super::super::tar::tests::Raw;
use super::*;

#[derive(Debug, Clone)]
enum Kind {
    File(u8),
    Dir,
    Symlink,
    Fifo,
    Device,
    Whiteout,
    Opaque,
    /// To one of the files there are.
    Link(prop::sample::Index),
    /// To something, or nothing.
    WildLink(RelPath),
}

enum Node {
    Dir { meta: Meta, mtime: Mtime, opaque: bool, is_implied: bool },
    File { group: usize },
    Other { change: Change, mtime: Mtime },
}

struct Model {
    purpose: Purpose,
    nodes: BTreeMap<RelPath, Node>,
    files: Vec<(Change, Mtime)>,
    /// The archive so far.
    tar: Vec<u8>,
}

impl Model {
    fn remove(&mut self, path: &RelPath) {
        self.nodes.retain(|at, _| at != path && !is_below(at.as_bytes(), path.as_bytes()));
    }

    fn ensure_dir(&mut self, path: &RelPath) {
        let mut dirs: Vec<RelPath> = std::iter::successors(Some(path.clone()), RelPath::parent).collect();
        dirs.reverse();
        for dir in dirs {
            if matches!(self.nodes.get(&dir), Some(Node::Dir { .. })) {
                continue;
            }
            let opaque = self.nodes.contains_key(&dir);
            self.remove(&dir);
            let meta = Meta { mode: 0o755, ..Meta::default() };
            self.nodes.insert(dir, Node::Dir { meta, mtime: Mtime::default(), opaque, is_implied: true });
        }
    }

    fn put(&mut self, path: &RelPath, node: Node) {
        self.ensure_dir(&path.parent().unwrap_or_default());
        self.remove(path);
        self.nodes.insert(path.clone(), node);
    }

    fn check_added(&self, path: &RelPath) -> Result<(), UnpackError> {
        for above in std::iter::successors(path.parent(), RelPath::parent) {
            match self.nodes.get(&above) {
                None => {}
                Some(Node::Dir { .. }) => break,
                Some(_) => return Err(UnpackError::BelowNonDirectory { path: path.clone(), above }),
            }
        }
        Ok(())
    }

    fn is_file(&self, path: &RelPath) -> Option<usize> {
        match self.nodes.get(path) {
            Some(Node::File { group }) => Some(*group),
            _ => None,
        }
    }

    fn take(&mut self, path: RelPath, kind: &Kind, mode: u32, secs: u16) -> Result<(), UnpackError> {
        let only_layers = matches!(kind, Kind::Whiteout | Kind::Opaque);
        let only_dirs = !matches!(kind, Kind::Opaque | Kind::Dir);
        if (only_layers && self.purpose == Purpose::Add) || (only_dirs && path.is_root()) {
            return Ok(());
        }
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let meta = Meta { mode, uid, gid, ..Meta::default() };
        let mtime = Mtime { secs: secs.into(), nanos: 0 };
        let raw = |name: &[u8], flag| {
            let octal = |value: u32| format!("{value:07o}").into_bytes();
            let raw = Raw::new(if name.is_empty() { b"./" } else { name }, flag).mode(mode.into());
            let secs = format!("{secs:011o}").into_bytes();
            raw.raw(108..116, &octal(uid)).raw(116..124, &octal(gid)).raw(136..148, &secs)
        };
        let (name, dir) = (path.name(), path.parent().unwrap_or_default());
        let link_target = match kind {
            Kind::Link(index) => {
                let files: Vec<_> = self.nodes.keys().filter(|path| self.is_file(path).is_some()).collect();
                if files.is_empty() {
                    return Ok(());
                }
                (*index.get(&files)).clone()
            }
            Kind::WildLink(target) => target.clone(),
            _ => RelPath::root(),
        };
        self.tar.extend(match kind {
            Kind::File(byte) => raw(path.as_bytes(), b'0').with(&[*byte; 3]),
            Kind::Dir => raw(path.as_bytes(), b'5').seal(),
            Kind::Symlink => raw(path.as_bytes(), b'2').link(b".").seal(),
            Kind::Fifo => raw(path.as_bytes(), b'6').seal(),
            Kind::Device => {
                raw(path.as_bytes(), b'3').raw(329..337, b"0000001").raw(337..345, b"0000003").seal()
            }
            Kind::Whiteout => raw(dir.join(&[b".wh.", name].concat()).as_bytes(), b'0').seal(),
            Kind::Opaque => raw(path.join(b".wh..wh..opq").as_bytes(), b'0').seal(),
            Kind::Link(_) | Kind::WildLink(_) => {
                raw(path.as_bytes(), b'1').link(&[b"/", link_target.as_bytes()].concat()).seal()
            }
        });
        if self.purpose == Purpose::Add {
            self.check_added(&path)?;
        }
        let other = |change| Node::Other { change, mtime };
        match kind {
            Kind::File(byte) => {
                let content = ContentDigest(*blake3::hash(&[*byte; 3]).as_bytes());
                self.put(&path, Node::File { group: self.files.len() });
                self.files.push((Change::File { meta, size: 3, content }, mtime));
            }
            Kind::Dir => {
                self.ensure_dir(&path);
                let Some(Node::Dir { opaque, .. }) = self.nodes.get(&path) else { unreachable!() };
                let opaque = *opaque;
                self.nodes.insert(path, Node::Dir { meta, mtime, opaque, is_implied: false });
            }
            Kind::Opaque => {
                self.ensure_dir(&path);
                let Some(Node::Dir { opaque, .. }) = self.nodes.get_mut(&path) else { unreachable!() };
                *opaque = true;
            }
            Kind::Symlink => {
                let meta = Meta { mode: 0o777, ..meta };
                self.put(&path, other(Change::Symlink { meta, target: b".".to_vec() }));
            }
            Kind::Fifo => self.put(&path, other(Change::Fifo { meta })),
            Kind::Device => self.put(&path, other(Change::CharDevice { meta, major: 1, minor: 3 })),
            Kind::Whiteout => {
                self.put(&path, Node::Other { change: Change::Whiteout, mtime: Mtime::default() });
            }
            Kind::Link(_) | Kind::WildLink(_) => {
                let target = format!("/{link_target}");
                let refuse = || UnpackError::LinkTarget { path: path.clone(), target };
                let Some(group) = self.is_file(&link_target) else { return Err(refuse()) };
                if link_target != path {
                    self.put(&path, Node::File { group });
                    if self.is_file(&link_target).is_none() {
                        return Err(refuse());
                    }
                }
            }
        }
        Ok(())
    }

    fn unpacked(&self) -> Unpacked {
        let (mut implied_dirs, mut entries) = (ImpliedDirs::default(), Vec::new());
        let mut firsts = BTreeMap::new();
        for (path, node) in &self.nodes {
            let (change, mtime) = match node {
                Node::Dir { opaque: false, is_implied: true, .. } if path.is_root() => continue,
                Node::Dir { meta, mtime, opaque, is_implied } => {
                    if *is_implied {
                        implied_dirs.push(entries.len()).unwrap();
                    }
                    (Change::Dir { meta: meta.clone(), opaque: *opaque }, *mtime)
                }
                Node::File { group } => {
                    let (file, mtime) = self.files[*group].clone();
                    match firsts.get(group) {
                        Some(first) => (Change::Hardlink { target: RelPath::clone(first) }, mtime),
                        None => {
                            firsts.insert(*group, path.clone());
                            (file, mtime)
                        }
                    }
                }
                Node::Other { change, mtime } => (change.clone(), *mtime),
            };
            entries.push(DiffEntry { path: path.clone(), change, mtime });
        }
        Unpacked { diff: entries.into_iter().collect(), implied_dirs, xattrs_dropped: 0 }
    }
}

fn path() -> impl Strategy<Value = RelPath> {
    let name = prop::sample::select(vec!["a", "b", "a.b", "c"]);
    prop::collection::vec(name, 1..5).prop_map(|parts| RelPath::new(parts.join("/")).unwrap())
}

fn entries() -> impl Strategy<Value = Vec<(RelPath, Kind, u32, u16)>> {
    let kind = prop_oneof![
        6 => any::<u8>().prop_map(Kind::File),
        4 => Just(Kind::Dir),
        2 => Just(Kind::Symlink),
        1 => Just(Kind::Fifo),
        1 => Just(Kind::Device),
        2 => Just(Kind::Whiteout),
        1 => Just(Kind::Opaque),
        5 => any::<prop::sample::Index>().prop_map(Kind::Link),
    ];
    let kind = prop_oneof![200 => kind, 1 => path().prop_map(Kind::WildLink)];
    let path = prop_oneof![30 => path(), 1 => Just(RelPath::root())];
    prop::collection::vec((path, kind, 0o700..0o1000_u32, any::<u16>()), 0..120)
}

fn form() -> OverlayForm {
    if rustix::process::geteuid().is_root() { OverlayForm::Trusted } else { OverlayForm::SingleId }
}

/// What the test's user may make.
pub(super) fn has_devices() -> bool {
    let temp = tempfile::tempdir().unwrap();
    let (path, null) = (temp.path().join("null"), rustix::fs::makedev(1, 3));
    let kind = FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, &path, kind, rustix::fs::Mode::RUSR, null).is_ok()
}

/// The paths below a directory, itself included.
fn on_disk(root: &std::path::Path) -> Vec<RelPath> {
    let (mut found, mut waiting) = (Vec::new(), vec![RelPath::root()]);
    while let Some(path) = waiting.pop() {
        let at = root.join(path.to_string());
        if at.symlink_metadata().unwrap().is_dir() {
            let names = std::fs::read_dir(at).unwrap();
            waiting.extend(names.map(|entry| path.join(entry.unwrap().file_name().as_encoded_bytes())));
        }
        found.push(path);
    }
    found.sort();
    found
}

fn check_layer(root: &std::path::Path, dir: &OwnedFd, unpacked: &Unpacked, has_implied_root: bool) {
    let is_absent = |entry: &DiffEntry| matches!(entry.change, Change::CharDevice { .. }) && !has_devices();
    let entries = unpacked.diff.entries();
    let absent: Vec<RelPath> =
        entries.iter().filter(|entry| is_absent(entry)).map(|entry| entry.path.clone()).collect();
    let mut wrong = verify_layer(dir.as_fd(), form(), &unpacked.diff, &Scratch::for_test()).unwrap();
    let is_opaque = |path: &RelPath| {
        matches!(
            unpacked.diff.get(path).unwrap(),
            Some(DiffEntry { change: Change::Dir { opaque: true, .. }, .. })
        )
    };
    wrong.retain(|path| {
        // The root's metadata is the lower layers'.
        let is_lower = path.is_root() && has_implied_root;
        // A scan sees no marks where a directory above hides all of the lower layers.
        let is_hidden = std::iter::successors(path.parent(), RelPath::parent).any(|above| is_opaque(&above));
        !(is_lower || is_hidden && is_opaque(path))
    });
    assert_eq!(wrong, absent);
    for entry in entries {
        let is_other = entry.path.is_root() && has_implied_root;
        if entry.change != Change::Whiteout && !absent.contains(&entry.path) && !is_other {
            let stat = root.join(entry.path.to_string()).symlink_metadata().unwrap();
            assert_eq!(stat.mtime(), entry.mtime.secs, "{entry:?}");
        }
    }
}

/// As if every directory were asked for by itself, and what hides it.
fn check_fixed(dir: &OwnedFd, unpacked: &mut Unpacked) {
    let entries = unpacked.diff.entries();
    let implied = unpacked.implied_dirs.paths(&unpacked.diff);
    let opaque: Vec<&RelPath> = entries
        .iter()
        .filter(|entry| matches!(entry.change, Change::Dir { opaque: true, .. }))
        .map(|entry| &entry.path)
        .collect();
    let is_hidden = |path: &RelPath| {
        std::iter::successors(Some(path.clone()), RelPath::parent).any(|dir| opaque.contains(&&dir))
    };
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let below = |path: &RelPath| {
        let len = path.as_bytes().len();
        let meta = Meta { mode: 0o700 + len as u32, uid, gid, ..Meta::default() };
        (!len.is_multiple_of(3)).then_some((meta, Mtime { secs: len as i64, nanos: 0 }))
    };
    let shown: Vec<RelPath> = implied.into_iter().filter(|path| !is_hidden(path)).collect();
    let expected = entries.iter().cloned().map(|mut entry| {
        if shown.contains(&entry.path)
            && let Some((meta, mtime)) = below(&entry.path)
        {
            (entry.change, entry.mtime) = (Change::Dir { meta, opaque: false }, mtime);
        }
        entry
    });
    let expected: Vec<DiffEntry> = expected.collect();
    let mut asked = Vec::new();
    fix_implied(dir.as_fd(), form(), unpacked, &Scratch::for_test(), |path| {
        asked.push(path.clone());
        Ok(below(path))
    })
    .unwrap();
    assert_eq!((asked, unpacked.diff.entries()), (shown, expected));
    assert!(unpacked.implied_dirs.is_empty());
}

fn check_added(root: &std::path::Path, unpacked: &Unpacked) {
    let stat = |path: &RelPath| root.join(path.to_string()).symlink_metadata().unwrap();
    let mut expected = vec![RelPath::root()];
    for entry in unpacked.diff.entries() {
        match &entry.change {
            Change::Dir { .. } => assert!(stat(&entry.path).is_dir()),
            Change::File { content, .. } => {
                let bytes = std::fs::read(root.join(entry.path.to_string())).unwrap();
                assert_eq!(blake3::hash(&bytes).as_bytes(), &content.0);
            }
            Change::Hardlink { target } => assert_eq!(stat(&entry.path).ino(), stat(target).ino()),
            _ => continue,
        }
        expected.push(entry.path.clone());
    }
    expected.sort();
    expected.dedup();
    assert_eq!(on_disk(root), expected);
}

proptest! {
    #[test]
    fn it_is_as_if_all_paths_were_remembered(entries in entries(), is_layer in any::<bool>()) {
        let purpose = if is_layer { Purpose::Layer } else { Purpose::Add };
        let (nodes, files, tar) = (BTreeMap::new(), Vec::new(), Vec::new());
        let mut model = Model { purpose, nodes, files, tar };
        let refused = entries.into_iter().find_map(|(path, kind, mode, secs)| {
            // An ADD would mostly end with the first entry below a file or link.
            let before = model.tar.len();
            match model.take(path, &kind, mode, secs) {
                Err(UnpackError::BelowNonDirectory { .. }) if secs % 64 != 0 => {
                    model.tar.truncate(before);
                    None
                }
                taken => taken.err(),
            }
        });
        let temp = tempfile::tempdir().unwrap();
        let dir = OwnedFd::from(File::open(temp.path()).unwrap());
        let (limits, scratch) = (Limits::default(), Scratch::on(&dir).unwrap());
        let unpacked = match purpose {
            Purpose::Layer => unpack(&model.tar[..], dir.as_fd(), form(), &limits, &scratch),
            Purpose::Add => unpack_added(&model.tar[..], dir.as_fd(), &limits, &scratch),
        };
        match (unpacked, refused) {
            (Ok(mut unpacked), None) => {
                prop_assert_eq!(&unpacked, &model.unpacked());
                match purpose {
                    Purpose::Layer => {
                        let implied = unpacked.implied_dirs.paths(&unpacked.diff);
                        let has_implied_root = implied.contains(&RelPath::root());
                        check_layer(temp.path(), &dir, &unpacked, has_implied_root);
                        check_fixed(&dir, &mut unpacked);
                        check_layer(temp.path(), &dir, &unpacked, has_implied_root);
                    }
                    Purpose::Add => check_added(temp.path(), &unpacked),
                }
            }
            (Err(error), Some(refused)) => prop_assert_eq!(error.to_string(), refused.to_string()),
            (unpacked, refused) => prop_assert!(false, "{unpacked:?} instead of {refused:?}"),
        }
    }
}
