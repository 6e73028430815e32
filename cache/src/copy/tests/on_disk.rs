use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use rustix::fs::{Mode, OFlags, fstat, mkdirat, open, openat};

use super::*;
use crate::layer::{DiffEntry, LayerDiff, OverlayForm, Owners};
use crate::scratch::Scratch;
use crate::tree::testing::{dir, file, file_with, link, meta};
use crate::tree::{ContentDigest, MemoryNodeStore, Meta, PATH_BYTES_MAX};

pub(super) fn dir_fd(path: &Path) -> OwnedFd {
    open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

pub(super) fn ourselves() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// Context with one of each on disk, and the same as a tree.
pub(super) fn context(root: &Path) -> Context<'static> {
    fs::create_dir_all(root.join("d/sub")).unwrap();
    fs::write(root.join("d/a"), "content of a").unwrap();
    fs::hard_link(root.join("d/a"), root.join("d/b")).unwrap();
    fs::write(root.join("d/empty"), "").unwrap();
    symlink("../nowhere", root.join("d/l")).unwrap();
    rustix::fs::mkfifoat(dir_fd(root), "d/p", Mode::from_raw_mode(0o600)).unwrap();
    fs::write(root.join("d/sub/big"), vec![b'x'; 600_000]).unwrap();
    let when = std::time::UNIX_EPOCH + std::time::Duration::new(1_234_567, 89);
    let file_at = fs::File::options().write(true).open(root.join("d/a")).unwrap();
    file_at.set_modified(when).unwrap();
    let mut context = Context::new(&[
        ("d", dir(0o755)),
        ("d/a", file_with(meta(0o4750), "content of a")),
        ("d/empty", file("")),
        ("d/l", link("../nowhere")),
        ("d/p", Change::Fifo { meta: meta(0o640) }),
        ("d/sub", dir(0o500)),
        ("d/sub/big", file(&"x".repeat(600_000))),
    ]);
    context.links = vec![("d/b", "d/a")];
    context
}

pub(super) fn plan_all(
    context: &Context,
    nodes: &MemoryNodeStore,
    source: &dyn FileSource,
    dest: &str,
) -> CopyPlan {
    let tree = context.tree(nodes);
    let items: Vec<_> = select(&tree, nodes, b"d").unwrap().into_iter().map(CopyItem::Selected).collect();
    let options = CopyOptions { owner: Some(ourselves()), ..options(dest) };
    let stack = StackSource::new(Vec::new());
    plan(nodes, &Tree::empty(), &stack, Some(source), &items, &options, &Scratch::for_test()).unwrap()
}

/// What a directory really holds, as a diff without times; symlinks' own modes are left as planned.
#[track_caller]
pub(super) fn check_on_disk(root: &Path, plan: &CopyPlan) {
    let mut seen = 0;
    for DiffEntry { path, change, mtime } in plan.diff.entries() {
        let at = root.join(path.to_string());
        let stat = at.symlink_metadata().unwrap_or_else(|error| panic!("{path}: {error}"));
        seen += 1;
        assert_eq!((stat.mtime(), stat.mtime_nsec()), (mtime.secs, i64::from(mtime.nanos)), "{path}");
        let mode = stat.mode() & 0o7777;
        match change {
            Change::Dir { meta, .. } => assert!(stat.is_dir() && mode == meta.mode, "{path}"),
            Change::File { meta, content, .. } => {
                assert_eq!(mode, meta.mode, "{path}");
                assert_eq!(ContentDigest::of(&fs::read(&at).unwrap()), content, "{path}");
                assert_eq!((stat.uid(), stat.gid()), (meta.uid, meta.gid), "{path}");
            }
            Change::Hardlink { target } => {
                assert_eq!(stat.ino(), root.join(target.to_string()).metadata().unwrap().ino());
            }
            Change::Symlink { target, .. } => {
                assert_eq!(fs::read_link(&at).unwrap().to_str().unwrap().as_bytes(), target);
            }
            Change::Fifo { meta } => assert!(stat.mode() & 0o170_000 == 0o010_000 && mode == meta.mode),
            other => panic!("{other:?} is not in these cases"),
        }
    }
    let on_disk = count(root);
    assert_eq!(on_disk, seen, "nothing but the plan is there");
}

fn count(at: &Path) -> usize {
    let below = fs::read_dir(at).unwrap().map(|entry| entry.unwrap());
    1 + below
        .map(|entry| if entry.file_type().unwrap().is_dir() { count(&entry.path()) } else { 1 })
        .sum::<usize>()
}

#[test]
fn a_plan_becomes_a_directory() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (context, nodes) = (context(from.path()), MemoryNodeStore::default());
    let is_root = ourselves().0 == 0;
    for source in [DirSource::new(dir_fd(from.path())), DirSource::immutable(dir_fd(from.path()))] {
        let into = to.path().join(source.is_immutable().to_string());
        fs::create_dir(&into).unwrap();
        let plan = plan_all(&context, &nodes, &source, "/new/n");
        let sources = Sources { main: Some(&source), ..Sources::default() };
        let owners = if is_root { Owners::Set } else { Owners::Keep };
        materialise(&plan, dir_fd(&into).as_fd(), &sources, owners, OverlayForm::User).unwrap();
        check_on_disk(&into, &plan);
        let when = plan.diff.entries().into_iter().find(|entry| entry.path == path("new/n/a")).unwrap().mtime;
        assert_eq!(when, Mtime { secs: 1_234_567, nanos: 89 });
    }
}

#[test]
fn a_file_that_changed_is_named() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (context, nodes) = (context(from.path()), MemoryNodeStore::default());
    let source = DirSource::new(dir_fd(from.path()));
    let plan = plan_all(&context, &nodes, &source, "/n");
    let sources = Sources { main: Some(&source), ..Sources::default() };
    for (case, bytes) in [("same size", "CONTENT OF A"), ("longer", "CONTENT of a!"), ("shorter", "x")] {
        fs::write(from.path().join("d/a"), bytes).unwrap();
        let into = to.path().join(case);
        fs::create_dir(&into).unwrap();
        let error =
            materialise(&plan, dir_fd(&into).as_fd(), &sources, Owners::Keep, OverlayForm::User).unwrap_err();
        assert!(matches!(&error, MaterialiseError::Changed { source_path } if *source_path == path("d/a")));
        assert_eq!(error.to_string(), "/d/a changed while it was being copied");
    }
}

#[test]
fn a_file_that_only_grew_is_copied_as_it_was() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (context, nodes) = (context(from.path()), MemoryNodeStore::default());
    let source = DirSource::new(dir_fd(from.path()));
    let plan = plan_all(&context, &nodes, &source, "/n");
    let sources = Sources { main: Some(&source), ..Sources::default() };
    let before = fs::read(from.path().join("d/a")).unwrap();
    fs::write(from.path().join("d/a"), [before.as_slice(), b" and more"].concat()).unwrap();
    materialise(&plan, dir_fd(to.path()).as_fd(), &sources, Owners::Keep, OverlayForm::User).unwrap();
    assert_eq!(fs::read(to.path().join("n/a")).unwrap(), before);
}

#[test]
fn many_files_are_made_at_once_and_the_first_error_counts() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dirs: Vec<String> = (0..20).map(|at| format!("d/{at:02}")).collect();
    let files: Vec<String> = (0..1000).map(|at| format!("{}/f{at:03}", dirs[at % 20])).collect();
    let mut context = Context::new(&[("d", dir(0o755))]);
    for at in &dirs {
        fs::create_dir_all(from.path().join(at)).unwrap();
        context.entries.push((at, dir(0o755)));
    }
    for at in &files {
        fs::write(from.path().join(at), at).unwrap();
        context.entries.push((at, file_with(meta(0o640), at)));
    }
    let nodes = MemoryNodeStore::default();
    let source = DirSource::new(dir_fd(from.path()));
    let plan = plan_all(&context, &nodes, &source, "/");
    let mut origins = Origins::default();
    let origin = Origin::Source(Moved::new(path("d"), RelPath::root()));
    origins.push(&path("00/f000"), &origin).unwrap();
    assert_eq!(plan.origins, origins, "one for all");
    let sources = Sources { main: Some(&source), ..Sources::default() };
    let into = |name: &str| {
        let into = to.path().join(name);
        fs::create_dir(&into).unwrap();
        into
    };
    let whole = into("whole");
    materialise(&plan, dir_fd(&whole).as_fd(), &sources, Owners::Keep, OverlayForm::User).unwrap();
    check_on_disk(&whole, &plan);
    for broken in ["d/00/f000", "d/07/f007", "d/19/f999"] {
        fs::write(from.path().join(broken), "!").unwrap();
    }
    let error =
        materialise(&plan, dir_fd(&into("broken")).as_fd(), &sources, Owners::Keep, OverlayForm::User)
            .unwrap_err();
    assert!(matches!(error, MaterialiseError::Changed { source_path } if source_path == path("d/00/f000")));
}

#[test]
fn a_file_swapped_for_something_else_is_not_followed() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (context, nodes) = (context(from.path()), MemoryNodeStore::default());
    let source = DirSource::new(dir_fd(from.path()));
    let plan = plan_all(&context, &nodes, &source, "/n");
    fs::remove_file(from.path().join("d/a")).unwrap();
    symlink("/etc/passwd", from.path().join("d/a")).unwrap();
    let sources = Sources { main: Some(&source), ..Sources::default() };
    let error =
        materialise(&plan, dir_fd(to.path()).as_fd(), &sources, Owners::Keep, OverlayForm::User).unwrap_err();
    assert!(
        matches!(error, MaterialiseError::Source { source: SourceError::NotRegular { .. }, .. }),
        "{error}"
    );
    fs::remove_file(from.path().join("d/a")).unwrap();
    rustix::fs::mkfifoat(dir_fd(from.path()), "d/a", Mode::from_raw_mode(0o600)).unwrap();
    assert!(
        matches!(source.open(&path("d/a")), Err(SourceError::NotRegular { .. })),
        "does not wait for a writer"
    );
    fs::rename(from.path().join("d"), from.path().join("real")).unwrap();
    symlink("real", from.path().join("d")).unwrap();
    let fresh = DirSource::new(dir_fd(from.path()));
    assert!(
        matches!(fresh.open(&path("d/empty")), Err(SourceError::Missing { .. })),
        "no parent link either"
    );
}

#[test]
fn a_socket_is_copied_as_the_empty_file_it_was_scanned_as() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    drop(std::os::unix::net::UnixListener::bind(from.path().join("d")).unwrap());
    let (context, nodes) = (Context::new(&[("d", file(""))]), MemoryNodeStore::default());
    let source = DirSource::new(dir_fd(from.path()));
    let plan = plan_all(&context, &nodes, &source, "/s");
    let sources = Sources { main: Some(&source), ..Sources::default() };
    materialise(&plan, dir_fd(to.path()).as_fd(), &sources, Owners::Keep, OverlayForm::User).unwrap();
    check_on_disk(to.path(), &plan);
}

#[test]
fn the_files_of_a_disposable_archive_are_taken_and_others_copied() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let unpacked = from.path().join("7");
    fs::create_dir(&unpacked).unwrap();
    fs::write(unpacked.join("one"), "1").unwrap();
    fs::hard_link(unpacked.join("one"), unpacked.join("two")).unwrap();
    let (uid, gid) = ourselves();
    let one = file_with(Meta { mode: 0o6755, uid, gid, ..Meta::default() }, "1");
    let listing =
        crate::tree::testing::diff(&[("one", one), ("two", Change::Hardlink { target: path("one") })]);
    let items = [archive("7", listing, |_| false)];
    let options = CopyOptions { owner: Some((uid, gid)), ..options("/d") };
    let stack = StackSource::new(Vec::new());
    let plan = plan(
        &MemoryNodeStore::default(),
        &Tree::empty(),
        &stack,
        None,
        &items,
        &options,
        &Scratch::for_test(),
    )
    .unwrap();
    for (name, source, is_taken) in [
        ("taken", DirSource::disposable(dir_fd(from.path())), true),
        ("copied", DirSource::immutable(dir_fd(from.path())), false),
    ] {
        let into = to.path().join(name);
        fs::create_dir(&into).unwrap();
        let before = fs::metadata(unpacked.join("one")).unwrap();
        let sources = Sources { archives: Some(&source), ..Sources::default() };
        materialise(&plan, dir_fd(&into).as_fd(), &sources, Owners::Keep, OverlayForm::User).unwrap();
        check_on_disk(&into, &plan);
        assert_eq!(fs::metadata(into.join("d/two")).unwrap().ino() == before.ino(), is_taken, "{name}");
    }
}

#[test]
fn what_is_as_deep_as_can_be_in_an_archive_s_directory_is_found() {
    let from = tempfile::tempdir().unwrap();
    let deepest = path(&["d/".repeat((PATH_BYTES_MAX - 3) / 2).as_str(), "one"].concat());
    assert_eq!(deepest.as_bytes().len(), PATH_BYTES_MAX);
    let in_archive = path("1234").join(deepest.as_bytes());
    let mut dir = dir_fd(from.path());
    for name in in_archive.parent().unwrap().components() {
        mkdirat(&dir, name, Mode::RWXU).unwrap();
        dir = openat(&dir, name, OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let made = openat(&dir, "one", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
    let source = DirSource::disposable(dir_fd(from.path()));
    let found = source.open(&in_archive).unwrap();
    assert_eq!(fstat(&found).unwrap().st_ino, fstat(&made).unwrap().st_ino);
    let elsewhere = path("1235").join(deepest.as_bytes());
    assert!(matches!(source.open(&elsewhere), Err(SourceError::Missing { .. })));
}

#[test]
fn a_link_of_an_archive_has_its_bytes_when_its_first_name_is_overwritten() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let unpacked = from.path().join("0");
    fs::create_dir(&unpacked).unwrap();
    fs::write(unpacked.join("one"), "1").unwrap();
    fs::hard_link(unpacked.join("one"), unpacked.join("two")).unwrap();
    let one = file_with(meta(0o644), "1");
    let listing =
        crate::tree::testing::diff(&[("one", one), ("two", Change::Hardlink { target: path("one") })]);
    let items = [
        archive("0", listing, |_| false),
        CopyItem::Inline { name: b"one".to_vec(), content: b"inline".to_vec() },
    ];
    let options = CopyOptions { owner: Some(ourselves()), ..options("/d/") };
    let stack = StackSource::new(Vec::new());
    let plan = plan(
        &MemoryNodeStore::default(),
        &Tree::empty(),
        &stack,
        None,
        &items,
        &options,
        &Scratch::for_test(),
    )
    .unwrap();
    let source = DirSource::disposable(dir_fd(from.path()));
    let sources = Sources { archives: Some(&source), ..Sources::default() };
    materialise(&plan, dir_fd(to.path()).as_fd(), &sources, Owners::Keep, OverlayForm::User).unwrap();
    check_on_disk(to.path(), &plan);
    assert_eq!(fs::read(to.path().join("d/one")).unwrap(), b"inline");
    assert_eq!(fs::read(to.path().join("d/two")).unwrap(), b"1");
}

/// A layer of which only the listing is asked for.
struct Listing(LayerDiff);

impl ListedLayer for Listing {
    fn listing(&self) -> Result<&LayerDiff, SourceError> {
        Ok(&self.0)
    }
    fn dir(&self) -> Result<BorrowedFd<'_>, SourceError> {
        panic!("the directory is open already")
    }
}

#[test]
fn the_topmost_layer_with_an_entry_shows() {
    let layers = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for (layer, content) in layers.iter().zip(["base", "middle", "top"]) {
        fs::create_dir(layer.path().join("d")).unwrap();
        fs::write(layer.path().join("d").join(content), content).unwrap();
    }
    fs::write(layers[0].path().join("d/same"), "base").unwrap();
    fs::write(layers[1].path().join("d/same"), "middle").unwrap();
    symlink("/etc", layers[2].path().join("elsewhere")).unwrap();
    // A device that could not be made.
    let device = Change::CharDevice { meta: meta(0o666), major: 1, minor: 3 };
    let listed = vec![DiffEntry { path: path("d/null"), change: device, mtime: NOW }];
    let listings = [LayerDiff::default(), LayerDiff::from_iter(listed), LayerDiff::default()];
    let stack = layers.iter().zip(listings);
    let stack = StackSource::new(
        stack
            .map(|(layer, listing)| StackLayer::Dir(dir_fd(layer.path()), Box::new(Listing(listing))))
            .collect(),
    );
    assert_eq!(stack.mtime(&path("d/null")).unwrap(), NOW);
    assert!(matches!(stack.mtime(&path("d/none")), Err(SourceError::Missing { .. })));
    let text = |at: &str| std::io::read_to_string(fs::File::from(stack.open(&path(at)).unwrap())).unwrap();
    assert_eq!(
        (text("d/base"), text("d/same"), text("d/top")),
        ("base".into(), "middle".into(), "top".into())
    );
    assert!(matches!(stack.open(&path("d/none")), Err(SourceError::Damaged { .. })));
    assert!(matches!(stack.open(&path("elsewhere/passwd")), Err(SourceError::Damaged { .. })));
    let when = |at: &Path| fs::symlink_metadata(at).unwrap();
    for (at, layer) in [("d", 2), ("d/same", 1), ("elsewhere", 2), ("", 2)] {
        let stat = when(&layers[layer].path().join(at));
        let expected = Mtime { secs: stat.mtime(), nanos: u32::try_from(stat.mtime_nsec()).unwrap() };
        assert_eq!(stack.mtime(&path(at)).unwrap(), expected, "{at}");
    }
}

#[test]
fn an_owner_we_may_not_give_is_named() {
    let to = tempfile::tempdir().unwrap();
    let owner = Meta { mode: 0o644, uid: u32::MAX - 1, gid: 0, xattrs: Default::default() };
    let change = Change::Symlink { meta: owner, target: b"x".to_vec() };
    let root = DiffEntry { path: path(""), change: dir(0o755), mtime: NOW };
    let entries = vec![root, DiffEntry { path: path("l"), change, mtime: NOW }];
    let plan = CopyPlan { diff: LayerDiff::from_iter(entries), origins: Origins::default() };
    let sources = Sources::default();
    let result = materialise(&plan, dir_fd(to.path()).as_fd(), &sources, Owners::Set, OverlayForm::User);
    // Full privileges may give a file to anyone.
    if ourselves().0 != 0 {
        assert!(matches!(result, Err(MaterialiseError::Chown { path, .. }) if path.to_string() == "l"));
    } else {
        assert_eq!(to.path().join("l").symlink_metadata().unwrap().uid(), u32::MAX - 1);
    }
}

#[test]
fn opaque_directories_are_marked_in_the_form_of_the_store() {
    let opaque = Change::Dir { meta: meta(0o755), opaque: true };
    let root = DiffEntry { path: path(""), change: dir(0o700), mtime: NOW };
    let entries = vec![root, DiffEntry { path: path("o"), change: opaque, mtime: NOW }];
    let plan = CopyPlan { diff: LayerDiff::from_iter(entries), origins: Origins::default() };
    let marks =
        [(OverlayForm::User, "user.overlay.opaque"), (OverlayForm::Trusted, "trusted.overlay.opaque")];
    // Only full privileges may write the other one.
    for (form, mark) in marks.into_iter().take(if ourselves().0 == 0 { 2 } else { 1 }) {
        let to = tempfile::tempdir().unwrap();
        let into = dir_fd(to.path());
        materialise(&plan, into.as_fd(), &Sources::default(), Owners::Keep, form).unwrap();
        let mut value = [0; 8];
        for (_, each) in marks {
            let got = rustix::fs::getxattr(to.path().join("o"), each, &mut value[..]);
            assert_eq!(
                got.map(|len| value[..len] == *b"y").unwrap_or(false),
                each == mark,
                "{form:?} {each}"
            );
        }
        assert_eq!(
            to.path().metadata().unwrap().mode() & 0o7777,
            0o700,
            "the layer's root is the merged root"
        );
    }
}

#[test]
fn directories_with_more_xattrs_than_are_held_are_finished_like_others() {
    let entry = |at: &str| {
        let xattrs = [(b"user.large".to_vec(), vec![b'x'; 150])].into_iter().collect();
        let change = Change::Dir { meta: Meta { xattrs, ..meta(0o711) }, opaque: false };
        DiffEntry { path: path(at), change, mtime: NOW }
    };
    let names = ["", "a", "a/b", "a/b/c", "a/b/c/d", "e", "e/f"];
    let plan = CopyPlan { diff: names.map(entry).into_iter().collect(), origins: Origins::default() };
    let to = tempfile::tempdir().unwrap();
    let into = dir_fd(to.path());
    materialise(&plan, into.as_fd(), &Sources::default(), Owners::Keep, OverlayForm::User).unwrap();
    for name in names {
        let (at, mut value) = (to.path().join(name), [0; 200]);
        assert_eq!(rustix::fs::getxattr(&at, "user.large", &mut value[..]), Ok(150), "{name}");
        let found = at.metadata().unwrap();
        assert_eq!((found.mode() & 0o7777, found.mtime()), (0o711, NOW.secs), "{name}");
    }
}

/// What `chmod` of this machine makes of a file's mode, with umask 0.
fn chmod_program(path: &Path, text: &str, mode: u32) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let script = "umask 0; exec chmod -- \"$1\" \"$2\"";
    let status =
        std::process::Command::new("sh").args(["-c", script, "sh", text]).arg(path).status().unwrap();
    assert!(status.success(), "{text}");
    path.metadata().unwrap().permissions().mode() & 0o7777
}

#[test]
fn symbolic_modes_do_what_chmod_does() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    fs::write(&file, "").unwrap();
    let texts = [
        "u=rwX,go=rX",
        "+x",
        "g=u",
        "go-w",
        "u+s,+t",
        "a=",
        "u=rw-r",
        "o=g-x",
        "ug+s",
        "=",
        "+X",
        "u=g,g=o",
        "a+rwxst",
        "o+s",
        "u+t",
        "-x+X",
        "u-x,+X",
        "g+o-w=r",
        "uo=t",
    ];
    for text in texts {
        let mode: rbuild_oci::FileMode = text.parse().unwrap();
        for before in [0o644, 0o755, 0o600, 0o4711, 0o7777, 0, 0o010] {
            let wanted = chmod_program(&file, text, before);
            assert_eq!(mode.apply(before, false), wanted, "{text} on {before:o}");
        }
    }
}
