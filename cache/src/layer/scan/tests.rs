use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, Timespec, Timestamps};

use super::super::diff::Change;
use super::super::overlay;
use super::*;
use crate::tree::{ContentDigest, Kind, Meta, NodeDigest};

struct Upper {
    temp: tempfile::TempDir,
    parent: HashMap<RelPath, ParentEntry>,
}

impl ParentView for HashMap<RelPath, ParentEntry> {
    fn entry(&self, path: &RelPath) -> Result<Option<ParentEntry>, ParentViewError> {
        Ok(self.get(path).cloned())
    }
}

fn form() -> OverlayForm {
    if rustix::process::geteuid().is_root() { OverlayForm::Trusted } else { OverlayForm::User }
}

impl Upper {
    fn new() -> Self {
        let mut upper = Self { temp: tempfile::tempdir().unwrap(), parent: HashMap::new() };
        upper.parent_has_as_is("");
        upper
    }

    fn path(&self, path: &str) -> PathBuf {
        self.temp.path().join(path)
    }

    fn write(&self, path: &str, body: &str) {
        fs::write(self.path(path), body).unwrap();
    }

    fn mkdir(&self, path: &str) {
        fs::create_dir(self.path(path)).unwrap();
    }

    fn mkdir_all(&self, path: &str) {
        fs::create_dir_all(self.path(path)).unwrap();
    }

    fn whiteout(&self, path: &str) {
        let path = self.path(path);
        let dir = File::open(path.parent().unwrap()).unwrap();
        overlay::create_whiteout(&dir, path.file_name().unwrap().as_encoded_bytes()).unwrap();
    }

    /// Gives the parent exactly what the upper directory has at a path now.
    fn parent_has_as_is(&mut self, path: &str) {
        self.parent_has(path, &self.path(path));
    }

    /// Gives the parent what is at `at` on disk.
    fn parent_has(&mut self, path: &str, at: &Path) {
        let stat = at.symlink_metadata().unwrap();
        let mut mode = stat.mode() & 0o7777;
        let kind = if stat.is_dir() {
            Kind::Dir(NodeDigest([0; 32]))
        } else if stat.is_symlink() {
            mode = 0o777;
            Kind::Symlink(fs::read_link(at).unwrap().into_os_string().into_encoded_bytes())
        } else {
            let body = fs::read(at).unwrap();
            Kind::File { size: body.len() as u64, content: ContentDigest(*blake3::hash(&body).as_bytes()) }
        };
        let meta = Meta { mode, uid: stat.uid(), gid: stat.gid(), ..Meta::default() };
        let mtime = Mtime { secs: stat.mtime(), nanos: stat.mtime_nsec() as u32 };
        self.parent.insert(RelPath::new(path).unwrap(), ParentEntry { entry: Entry { meta, kind }, mtime });
    }

    #[track_caller]
    fn scan(&self) -> LayerDiff {
        scan_upper(File::open(self.temp.path()).unwrap().as_fd(), form(), &self.parent, &Scratch::for_test())
            .unwrap()
    }
}

fn paths(diff: &LayerDiff) -> Vec<String> {
    diff.entries().into_iter().map(|entry| entry.path.to_string()).collect()
}

fn mtime_of(path: &Path) -> (i64, i64) {
    let stat = path.symlink_metadata().unwrap();
    (stat.mtime(), stat.mtime_nsec())
}

fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

#[test]
fn no_op_copy_ups_are_taken_out_with_their_directories() {
    let mut upper = Upper::new();
    upper.mkdir("etc");
    upper.mkdir("etc/deep");
    upper.write("etc/deep/same", "body");
    std::os::unix::fs::symlink("same", upper.path("etc/deep/link")).unwrap();
    for path in ["etc", "etc/deep", "etc/deep/same", "etc/deep/link"] {
        upper.parent_has_as_is(path);
    }
    assert_eq!(upper.scan(), LayerDiff::default());
    assert!(!is_there(&upper.path("etc")));
}

#[test]
fn any_difference_is_a_change_and_lists_the_way_to_it() {
    type Edit = fn(&Upper);
    let edits: [(&str, Edit); 3] = [
        ("content", |upper| {
            let path = upper.path("d/f");
            let (secs, nanos) = mtime_of(&path);
            upper.write("d/f", "doby");
            let time = Timespec { tv_sec: secs, tv_nsec: nanos };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::futimens(File::open(path).unwrap(), &times).unwrap();
        }),
        ("mode", |upper| {
            rustix::fs::chmod(upper.path("d/f"), Mode::from_raw_mode(0o4711)).unwrap();
        }),
        ("time", |upper| {
            let time = Timespec { tv_sec: 5, tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::futimens(File::open(upper.path("d/f")).unwrap(), &times).unwrap();
        }),
    ];
    for (what, edit) in edits {
        let mut upper = Upper::new();
        upper.mkdir("d");
        upper.write("d/f", "body");
        upper.write("d/same", "same");
        for path in ["d", "d/f", "d/same"] {
            upper.parent_has_as_is(path);
        }
        edit(&upper);
        let before = mtime_of(&upper.path("d"));
        assert_eq!(paths(&upper.scan()), ["d", "d/f"], "{what}");
        assert!(!is_there(&upper.path("d/same")));
        assert_eq!(
            mtime_of(&upper.path("d")),
            before,
            "taking out the equal file left the directory's time alone"
        );
    }
}

#[test]
fn whiteouts_count_only_over_something() {
    let mut upper = Upper::new();
    upper.mkdir("d");
    upper.write("d/gone", "x");
    for path in ["d", "d/gone"] {
        upper.parent_has_as_is(path);
    }
    fs::remove_file(upper.path("d/gone")).unwrap();
    upper.whiteout("d/gone");
    upper.whiteout("d/never-was");
    let diff = upper.scan();
    assert_eq!(paths(&diff), ["d", "d/gone"]);
    assert_eq!(diff.entries().into_iter().nth(1).unwrap().change, Change::Whiteout);
    assert!(!is_there(&upper.path("d/never-was")));
}

#[test]
fn opaque_marks_count_only_over_a_directory() {
    let mut upper = Upper::new();
    for path in ["new", "replaced"] {
        upper.mkdir(path);
        upper.write(&format!("{path}/f"), "x");
    }
    for path in ["replaced", "replaced/f"] {
        upper.parent_has_as_is(path);
    }
    for path in ["new", "replaced"] {
        let dir = File::open(upper.path(path)).unwrap();
        form().set_opaque(&dir).unwrap();
    }
    let diff = upper.scan();
    // `replaced/f` equals what the parent had there, but nothing of that shows through any more.
    assert_eq!(paths(&diff), ["new", "new/f", "replaced", "replaced/f"]);
    assert!(matches!(diff.entries().into_iter().next().unwrap().change, Change::Dir { opaque: false, .. }));
    assert!(matches!(diff.entries().into_iter().nth(2).unwrap().change, Change::Dir { opaque: true, .. }));
    assert!(!form().is_opaque(File::open(upper.path("new")).unwrap()).unwrap());
}

#[test]
fn sockets_go_and_what_they_hid_stays_hidden() {
    let mut upper = Upper::new();
    upper.write("hidden", "x");
    upper.parent_has_as_is("hidden");
    fs::remove_file(upper.path("hidden")).unwrap();
    let _listening: Vec<_> = ["hidden", "new"]
        .iter()
        .map(|name| std::os::unix::net::UnixListener::bind(upper.path(name)).unwrap())
        .collect();
    let diff = upper.scan();
    assert_eq!(paths(&diff), ["hidden"]);
    assert_eq!(diff.entries().into_iter().next().unwrap().change, Change::Whiteout);
    assert!(!is_there(&upper.path("new")));
    assert_eq!(upper.path("hidden").symlink_metadata().unwrap().rdev(), 0);
}

#[test]
fn an_owner_that_cannot_be_told_is_an_error_and_not_another() {
    let upper = Upper::new();
    std::os::unix::fs::symlink("x", upper.path("link")).unwrap();
    let dir = File::open(upper.temp.path()).unwrap();
    let scan = |special: &SpecialOwner<'_>| {
        let owners = StepOwners { user: (0, 0), special };
        scan_upper_of(dir.as_fd(), OverlayForm::SingleId, &upper.parent, &owners, &Scratch::for_test())
    };
    let failed = scan(&|_| Err(io::Error::other("lost"))).unwrap_err();
    assert!(matches!(failed, ScanError::Io { path, .. } if path.as_bytes() == b"link"));
    let Change::Symlink { meta, .. } = scan(&|_| Ok(Some((8, 9)))).unwrap().entries().remove(0).change else {
        panic!("not a link")
    };
    assert_eq!((meta.uid, meta.gid), (8, 9));
}

#[test]
fn hard_links_form_a_group_even_with_a_copied_up_name() {
    let mut upper = Upper::new();
    upper.write("a", "body");
    upper.parent_has_as_is("a");
    fs::hard_link(upper.path("a"), upper.path("b")).unwrap();
    let diff = upper.scan();
    assert!(matches!(&diff.entries().into_iter().next().unwrap().change, Change::File { size: 4, .. }));
    assert!(
        matches!(&diff.entries().into_iter().nth(1).unwrap().change, Change::Hardlink { target } if target.as_bytes() == b"a")
    );
}

#[test]
fn a_new_root_mode_lists_the_root() {
    let mut upper = Upper::new();
    upper.write("f", "x");
    assert_eq!(paths(&upper.scan()), ["f"]);
    upper.parent.get_mut(&RelPath::root()).unwrap().entry.meta.mode ^= 0o1;
    assert_eq!(paths(&upper.scan()), ["", "f"]);
}

#[test]
fn many_files_give_the_same_listing_on_two_threads() {
    let upper = Upper::new();
    for dir in 0..20 {
        upper.mkdir(&format!("d{dir}"));
        for file in 0..30 {
            upper.write(&format!("d{dir}/f{file}"), &format!("{dir} {file}"));
        }
    }
    let diff = upper.scan();
    assert_eq!(diff.len(), 20 * 31);
    assert!(diff.entries().into_iter().is_sorted_by(|a, b| a.path < b.path));
    for entry in diff.entries() {
        let Change::File { content, .. } = &entry.change else { continue };
        let body = fs::read(upper.path(&entry.path.to_string())).unwrap();
        assert_eq!(content.0, *blake3::hash(&body).as_bytes());
    }
}

/// Something of all that the scan decides, most of it next to something that goes another way.
fn mixed() -> (Upper, Vec<std::os::unix::net::UnixListener>) {
    let mut upper = Upper::new();
    for path in ["a", "a/b", "a/b/c", "a/z", "gone", "gone/deep", "mode", "new", "new/empty", "x"] {
        upper.mkdir(path);
    }
    let same = ["a/b/c/same", "a/b/same", "a/z/same", "gone/deep/same", "gone/same", "mode/same", "x/hidden"];
    for path in same {
        upper.write(path, path);
    }
    upper.write("x/out", "");
    for path in same.iter().chain(&["a", "a/b", "a/b/c", "a/z", "gone", "gone/deep", "mode", "x", "x/out"]) {
        upper.parent_has_as_is(path);
    }
    upper.parent.get_mut(&RelPath::new("mode").unwrap()).unwrap().entry.meta.mode ^= 0o1;
    for path in ["a/b.c", "a/b/c/new", "new/first", "x/last"] {
        upper.write(path, path);
    }
    for (first, link) in [("a/b.c", "a/b/d"), ("a/b/d", "x/link"), ("new/first", "new/link")] {
        fs::hard_link(upper.path(first), upper.path(link)).unwrap();
    }
    for path in ["x/hidden", "x/out"] {
        fs::remove_file(upper.path(path)).unwrap();
    }
    for path in ["x/out", "gone/never-was"] {
        upper.whiteout(path);
    }
    let listening = ["x/hidden", "gone/socket"].map(|path| upper.path(path)).map(|path| {
        // The name of a socket must be short.
        let at = upper.path("s");
        let socket = std::os::unix::net::UnixListener::bind(&at).unwrap();
        fs::rename(at, path).unwrap();
        socket
    });
    (upper, listening.into())
}

#[test]
fn batches_of_any_size_give_the_same_changes() {
    let expected = [
        "a",
        "a/b",
        "a/b/c",
        "a/b/c/new",
        "a/b/d",
        "a/b.c",
        "mode",
        "new",
        "new/empty",
        "new/first",
        "new/link",
        "x",
        "x/hidden",
        "x/last",
        "x/link",
        "x/out",
    ];
    let mut whole = None;
    for at_once in [walk::AT_ONCE, 1, 2, 3, 5, 7, 11, 20] {
        let (upper, _listening) = mixed();
        let time = Timespec { tv_sec: 7, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        for touched in ["", "a/b", "a/b/c", "mode", "x"] {
            rustix::fs::futimens(File::open(upper.path(touched)).unwrap(), &times).unwrap();
        }
        let dir = File::open(upper.temp.path()).unwrap();
        let diff =
            settle_in_batches(dir.as_fd(), form(), &upper.parent, &ROOTS_OWN, &Scratch::for_test(), at_once)
                .unwrap();
        assert_eq!(paths(&diff), expected, "{at_once}");
        for path in expected {
            assert!(is_there(&upper.path(path)), "{path}");
        }
        for path in ["a/z", "gone", "mode/same", "a/b/same", "a/b/c/same"] {
            assert!(!is_there(&upper.path(path)), "{path}");
        }
        for touched in ["", "a/b", "a/b/c", "mode", "x"] {
            assert_eq!(mtime_of(&upper.path(touched)), (7, 0), "{touched} in batches of {at_once}");
        }
        assert_eq!(verify_layer(dir.as_fd(), form(), &diff, &Scratch::for_test()).unwrap(), [], "{at_once}");
        let changes: Vec<_> = diff.entries().into_iter().map(|entry| entry.change).collect();
        let of = |path| changes[expected.iter().position(|listed| *listed == path).unwrap()].clone();
        for path in ["a/b.c", "x/link"] {
            assert!(
                matches!(of(path), Change::Hardlink { target } if target.as_bytes() == b"a/b/d"),
                "{path}"
            );
        }
        assert_eq!(*whole.get_or_insert_with(|| changes.clone()), changes, "{at_once}");
    }
}

/// Has a directory everywhere, and counts how often it was asked: once for each thing that is walked.
#[derive(Default)]
struct Asked(std::cell::Cell<usize>);

impl ParentView for Asked {
    fn entry(&self, _: &RelPath) -> Result<Option<ParentEntry>, ParentViewError> {
        self.0.set(self.0.get() + 1);
        let entry = Entry { meta: Meta::default(), kind: Kind::Dir(NodeDigest([0; 32])) };
        Ok(Some(ParentEntry { entry, mtime: Mtime::default() }))
    }
}

/// How many things were walked in all, and how many at once that were not yet taken.
fn walked(upper: &Upper, at_once: usize) -> (usize, usize) {
    let (asked, mut taken, mut waiting_max) = (Asked::default(), 0, 0);
    let dir = File::open(upper.temp.path()).unwrap();
    for_each(dir.as_fd(), form(), &asked, &ROOTS_OWN, &Scratch::for_test(), at_once, |_| {
        waiting_max = waiting_max.max(asked.0.get() - taken);
        taken += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(taken, asked.0.get());
    (taken, waiting_max)
}

#[test]
fn one_batch_is_in_memory_at_once() {
    let upper = Upper::new();
    for dir in 0..20 {
        upper.mkdir(&format!("d{dir}"));
        for file in 0..dir {
            upper.write(&format!("d{dir}/f{file}"), "");
        }
    }
    assert_eq!(walked(&upper, 8), (1 + 20 + 190, 8));
}

#[test]
fn long_paths_make_a_batch_smaller() {
    let upper = Upper::new();
    let mut deep = String::new();
    for _ in 0..14 {
        deep = format!("{deep}{}/", "d".repeat(250));
        upper.mkdir(&deep);
    }
    for file in 0..1500 {
        upper.write(&format!("{deep}{file}"), "");
    }
    let (all, waiting_max) = walked(&upper, walk::AT_ONCE);
    assert_eq!(all, 1 + 14 + 1500);
    assert!(waiting_max * deep.len() < 5 << 20, "{waiting_max}");
}

#[test]
fn long_targets_make_a_batch_smaller() {
    let upper = Upper::new();
    let target = "t".repeat(4000);
    for link in 0..1500 {
        std::os::unix::fs::symlink(&target, upper.path(&link.to_string())).unwrap();
    }
    let (all, waiting_max) = walked(&upper, walk::AT_ONCE);
    assert_eq!(all, 1 + 1500);
    assert!(waiting_max * target.len() < 5 << 20, "{waiting_max}");
}

#[test]
fn directories_with_many_names_are_walked_in_order_and_come_back_to() {
    let upper = Upper::new();
    let mut expected = Vec::new();
    for dir in ["", "05-/", "05-/05-/", "05-/07-/"] {
        upper.mkdir_all(dir);
        for file in 0..1000 {
            let path = format!("{dir}{file:02}-{}", "x".repeat(20));
            upper.write(&path, "");
            expected.push(RelPath::new(path).unwrap());
        }
    }
    expected.extend(["05-", "05-/05-", "05-/07-"].map(|dir| RelPath::new(dir).unwrap()));
    expected.sort();
    let found: Vec<_> = upper.scan().entries().into_iter().map(|entry| entry.path).collect();
    assert_eq!(found, expected);
}

#[test]
fn two_thousand_levels_are_walked_and_taken_out() {
    // As deep as a tree may be, and deeper than a recursion should go.
    let mut upper = Upper::new();
    let root = File::open(upper.temp.path()).unwrap();
    let mut dirs = super::super::dirs::Dirs::new(root.as_fd());
    let mut path = RelPath::root();
    for _ in 0..2000 {
        rustix::fs::mkdirat(dirs.dir(&path).unwrap(), "d", Mode::from_raw_mode(0o755)).unwrap();
        path = path.join(b"d");
    }
    let diff = upper.scan();
    assert_eq!(diff.len(), 2000);
    let meta = match &diff.entries().into_iter().next().unwrap().change {
        Change::Dir { meta, .. } => meta.clone(),
        other => panic!("{other:?}"),
    };
    let kind = Kind::Dir(NodeDigest([0; 32]));
    for entry in diff.entries() {
        let same = Entry { meta: meta.clone(), kind: kind.clone() };
        upper.parent.insert(entry.path, ParentEntry { entry: same, mtime: entry.mtime });
    }
    assert_eq!(upper.scan(), LayerDiff::default());
    assert_eq!(fs::read_dir(upper.temp.path()).unwrap().count(), 0);
}

#[test]
fn a_file_whose_bytes_are_elsewhere_is_refused() {
    let upper = Upper::new();
    upper.write("f", "");
    let name = match form() {
        OverlayForm::Trusted => "trusted.overlay.metacopy",
        _ => "user.overlay.metacopy",
    };
    let file = File::open(upper.path("f")).unwrap();
    rustix::fs::fsetxattr(&file, name, b"", rustix::fs::XattrFlags::empty()).unwrap();
    let dir = File::open(upper.temp.path()).unwrap();
    let refused = scan_upper(dir.as_fd(), form(), &upper.parent, &Scratch::for_test());
    assert!(matches!(refused, Err(ScanError::RefersToLower { .. })), "{refused:?}");
}

/// Runs a script on a real overlay in a mount namespace that ends with it; false if this machine refuses.
fn run_on_overlay(lower: &Path, upper: &Path, script: &str) -> bool {
    let temp = upper.parent().unwrap();
    for dir in ["work", "merged"] {
        fs::create_dir(temp.join(dir)).unwrap();
    }
    let mount = "mount -t overlay overlay -o lowerdir=$1,upperdir=$2,workdir=$3/work $3/merged ; : > $3/mounted; cd $3/merged";
    let status = std::process::Command::new("unshare")
        .args(["-m", "sh", "-ec", &format!("{mount}\n{script}"), "sh"])
        .args([lower, upper, temp])
        .status();
    let is_mounted = temp.join("mounted").exists();
    if is_mounted {
        assert!(status.unwrap().success(), "the script failed");
    } else {
        let required = std::env::var("RBUILD_TEST_REQUIRE").unwrap_or_default();
        assert!(!required.contains("root"), "no overlay can be mounted here: {status:?}");
        eprintln!("skipped: no overlay can be mounted here");
    }
    is_mounted
}

#[test]
fn a_real_overlay_gives_its_changes_and_nothing_else() {
    let temp = tempfile::tempdir().unwrap();
    let (lower, upper) = (temp.path().join("lower"), temp.path().join("upper"));
    for dir in ["", "bin", "etc", "var", "var/lib", "old"] {
        fs::create_dir(lower.join(dir)).unwrap();
    }
    fs::create_dir(&upper).unwrap();
    let files = ["bin/mode", "bin/opened", "etc/gone", "etc/edited", "var/lib/same", "old/f"];
    for file in files {
        fs::write(lower.join(file), file).unwrap();
    }
    let script = "
        chmod $(stat -c %a bin/mode) bin/mode
        : >> bin/opened
        rm etc/gone
        echo more >> etc/edited
        touch -r var/lib/same var/lib/same
        echo x > var/temporary; rm var/temporary
        rm -r old; mkdir old
        mkdir -p new/deep; echo x > new/deep/f; ln new/deep/f new/link
    ";
    if !run_on_overlay(&lower, &upper, script) {
        return;
    }
    let mut view = Upper { temp: tempfile::tempdir().unwrap(), parent: HashMap::new() };
    for path in ["", "bin", "etc", "var", "var/lib", "old"].into_iter().chain(files) {
        view.parent_has(path, &lower.join(path));
    }
    let scan = || {
        scan_upper(
            File::open(&upper).unwrap().as_fd(),
            OverlayForm::Trusted,
            &view.parent,
            &Scratch::for_test(),
        )
        .unwrap()
    };
    let diff = scan();
    assert_eq!(
        paths(&diff),
        ["etc", "etc/edited", "etc/gone", "new", "new/deep", "new/deep/f", "new/link", "old"]
    );
    assert_eq!(diff.entries().into_iter().nth(2).unwrap().change, Change::Whiteout);
    assert!(matches!(diff.entries().into_iter().nth(3).unwrap().change, Change::Dir { opaque: false, .. }));
    assert!(
        matches!(&diff.entries().into_iter().nth(6).unwrap().change, Change::Hardlink { target } if target.as_bytes() == b"new/deep/f")
    );
    assert!(matches!(diff.entries().into_iter().nth(7).unwrap().change, Change::Dir { opaque: true, .. }));
    assert_eq!(scan(), diff, "what was taken out does not come back");
}

#[test]
fn a_tree_that_no_archive_could_hold_is_refused() {
    let upper = Upper::new();
    let root = File::open(upper.temp.path()).unwrap();
    let mut dirs = super::super::dirs::Dirs::new(root.as_fd());
    let mut path = RelPath::root();
    let name = "n".repeat(255);
    for _ in 0..130 {
        rustix::fs::mkdirat(dirs.dir(&path).unwrap(), name.as_str(), Mode::from_raw_mode(0o755)).unwrap();
        path = path.join(name.as_bytes());
    }
    let refused = scan_upper(root.as_fd(), form(), &upper.parent, &Scratch::for_test());
    assert!(matches!(refused, Err(ScanError::PathTooLong { .. })), "{refused:?}");
    while !path.is_root() {
        rustix::fs::unlinkat(dirs.parent(&path).unwrap(), path.name(), rustix::fs::AtFlags::REMOVEDIR)
            .unwrap();
        dirs.forget(&path);
        path = path.parent().unwrap();
    }
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) -> bool {
    let file = File::open(path).unwrap();
    rustix::fs::fsetxattr(&file, name, value, rustix::fs::XattrFlags::empty()).is_ok()
}

/// Files `0` to `39` with an xattr of 200 bytes each, every fourth of which has a second name.
fn forty_with_xattrs() -> Option<Upper> {
    let upper = Upper::new();
    for at in 0..40 {
        let path = upper.path(&format!("{at:02}"));
        fs::write(&path, format!("{at}")).unwrap();
        if !set_xattr(&path, "user.at", &[at; 200]) {
            eprintln!("skipped: the temporary directory has no user xattrs");
            return None;
        }
        if at % 4 == 0 {
            fs::hard_link(&path, upper.path(&format!("{at:02}-"))).unwrap();
        }
    }
    Some(upper)
}

#[test]
fn of_the_xattrs_of_a_batch_only_so_many_are_held_and_all_are_listed() {
    let Some(upper) = forty_with_xattrs() else { return };
    let dir = File::open(upper.temp.path()).unwrap();
    let scratch = Scratch::for_test();
    let mut walker = Walker::new(dir.as_fd(), form(), &upper.parent, &ROOTS_OWN, &scratch);
    let mut batch = vec![walker.root().unwrap()];
    walker.fill(&mut batch, 1000).unwrap();
    Reader::new(dir.as_fd(), form(), &scratch).unwrap().read(&mut batch).unwrap();
    let held: usize = batch.iter().map(|one| one.meta.held_xattr_bytes()).sum();
    let one = 100 + b"user.at".len() + 200;
    assert!((one..=hash::XATTR_BYTES_AT_ONCE + 2 * one).contains(&held), "{held}");

    for at_once in [1, 3, 7, 1000] {
        let diff =
            settle_in_batches(dir.as_fd(), form(), &upper.parent, &ROOTS_OWN, &scratch, at_once).unwrap();
        assert_eq!(diff.len(), 50);
        for entry in diff.entries() {
            let name = String::from_utf8(entry.path.as_bytes().to_vec()).unwrap();
            match entry.change {
                Change::File { meta, .. } => {
                    assert_eq!(meta.xattrs, [(b"user.at".to_vec(), vec![name.parse().unwrap(); 200])].into());
                }
                Change::Hardlink { target } => assert_eq!(format!("{target}-"), name),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(verify_layer(dir.as_fd(), form(), &diff, &scratch).unwrap(), []);
    }
    // The last file of all, and one with two names.
    for path in ["39", "36-"] {
        let diff = upper.scan();
        assert!(set_xattr(&upper.path(path), "user.at", b"other"));
        let wrong = verify_layer(dir.as_fd(), form(), &diff, &scratch).unwrap();
        assert_eq!(wrong, [RelPath::new(path.trim_end_matches('-')).unwrap()]);
    }
}

#[test]
fn a_directory_that_stays_for_what_is_in_it_keeps_its_xattrs() {
    let mut upper = Upper::new();
    upper.mkdir("d");
    let xattr = (b"user.at".to_vec(), vec![7; 200]);
    if !set_xattr(&upper.path("d"), "user.at", &xattr.1) {
        eprintln!("skipped: the temporary directory has no user xattrs");
        return;
    }
    upper.parent_has_as_is("d");
    let parent = upper.parent.get_mut(&RelPath::new("d").unwrap()).unwrap();
    parent.entry.meta.xattrs = [xattr.clone()].into();
    upper.write("d/new", "x");
    let entries: Vec<_> = upper.scan().entries().into_iter().collect();
    assert!(matches!(&entries[0].change, Change::Dir { meta, .. } if meta.xattrs == [xattr].into()));
    fs::remove_file(upper.path("d/new")).unwrap();
    assert_eq!(upper.scan(), LayerDiff::default());
}
