use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::super::TarError;
use super::super::diff::Change;
use super::super::scan::verify_layer;
use super::super::tar::tests::{Raw, pax_of};
use super::*;
use crate::scratch::Scratch;

mod replaced;

#[derive(Debug)]
struct Case {
    temp: tempfile::TempDir,
    result: Result<Unpacked, UnpackError>,
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// False, and says so, when this test cannot run as an ordinary user.
#[track_caller]
fn needs_root(what: &str) -> bool {
    if !is_root() {
        let required = std::env::var("RBUILD_TEST_REQUIRE").unwrap_or_default();
        assert!(!required.contains("root"), "this test needs root for {what}");
        eprintln!("skipped: needs root for {what}");
    }
    is_root()
}

fn unpack_with(archive: &[u8], limits: &Limits) -> Case {
    let temp = tempfile::tempdir().unwrap();
    std::fs::create_dir(temp.path().join("layer")).unwrap();
    let dir = File::open(temp.path().join("layer")).unwrap();
    let form = if is_root() { OverlayForm::Trusted } else { OverlayForm::User };
    let result = unpack(archive, dir.as_fd(), form, limits, &Scratch::on(&dir).unwrap());
    Case { temp, result }
}

fn unpack_parts(parts: &[Vec<u8>]) -> Case {
    unpack_with(&parts.concat(), &Limits::default())
}

impl Case {
    fn path(&self, path: &str) -> std::path::PathBuf {
        self.temp.path().join("layer").join(path)
    }

    #[track_caller]
    fn unpacked(&self) -> &Unpacked {
        self.result.as_ref().unwrap()
    }

    #[track_caller]
    fn change(&self, path: &str) -> Change {
        let found = self.unpacked().diff.get(&RelPath::new(path).unwrap()).unwrap();
        found.unwrap_or_else(|| panic!("no {path}")).change
    }

    fn paths(&self) -> Vec<String> {
        self.unpacked().diff.entries().into_iter().map(|entry| entry.path.to_string()).collect()
    }

    fn implied(&self) -> Vec<String> {
        let Unpacked { diff, implied_dirs, .. } = self.unpacked();
        implied_dirs.paths(diff).iter().map(ToString::to_string).collect()
    }

    /// Nothing but the layer directory was made beside it.
    #[track_caller]
    fn nothing_escaped(&self) {
        let names: Vec<_> =
            std::fs::read_dir(self.temp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["layer"]);
    }
}

fn file(name: &[u8], body: &[u8]) -> Vec<u8> {
    owned(Raw::new(name, b'0')).with(body)
}

/// Owned by the test's user, so that no privilege is needed.
fn owned(raw: Raw) -> Raw {
    let octal = |id: u32| format!("{id:07o}").into_bytes();
    raw.raw(108..116, &octal(rustix::process::geteuid().as_raw()))
        .raw(116..124, &octal(rustix::process::getegid().as_raw()))
}

fn entry(name: &[u8], flag: u8) -> Vec<u8> {
    owned(Raw::new(name, flag)).mode(0o755).seal()
}

fn link(name: &[u8], flag: u8, target: &[u8]) -> Vec<u8> {
    owned(Raw::new(name, flag)).link(target).seal()
}

/// L1: names that climb are refused, others land inside.
#[test]
fn hostile_names_never_leave_the_layer() {
    for name in [&b"../../x"[..], b"a/../../x", b"..", b"/..", b"a/../.."] {
        let case = unpack_parts(&[file(name, b"x")]);
        assert!(matches!(case.result, Err(UnpackError::Name { .. })), "{:?}", case.result);
        case.nothing_escaped();
    }
    for (name, lands) in [(&b"/etc/x"[..], "etc/x"), (b"./x", "x"), (b"//a//./x", "a/x"), (b"a/../x", "x")] {
        let case = unpack_parts(&[entry(b"etc/", b'5'), entry(b"a/", b'5'), file(name, b"body")]);
        assert_eq!(std::fs::read(case.path(lands)).unwrap(), b"body");
        case.nothing_escaped();
    }
    assert!(matches!(unpack_parts(&[file(b"", b"")]).result, Err(UnpackError::Name { .. })));
    assert!(matches!(unpack_parts(&[file(b".", b"x")]).result, Err(UnpackError::Name { .. })));
    let root = unpack_parts(&[entry(b"./", b'5')]);
    assert_eq!(root.paths(), [""]);
}

/// L2: a link is no parent.
#[test]
fn a_link_as_parent_is_replaced_by_a_directory() {
    if !needs_root("implied directories owned by 0:0") {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().as_os_str().as_encoded_bytes().to_vec();
    let case = unpack_parts(&[link(b"a", b'2', &target), file(b"a/etc/x", b"x")]);
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    assert!(case.path("a").symlink_metadata().unwrap().is_dir());
    assert!(matches!(case.change("a"), Change::Dir { opaque: true, .. }));
    assert_eq!(case.paths(), ["a", "a/etc", "a/etc/x"]);
}

/// L3: targets of hard links.
#[test]
fn hard_links_name_earlier_files_of_the_archive_only() {
    for target in [&b"/etc/passwd"[..], b"../x", b"later", b"dir", b"sym", b"sym/x", b"link"] {
        let case = unpack_parts(&[
            entry(b"dir/", b'5'),
            link(b"sym", b'2', b"/etc/passwd"),
            link(b"link", b'1', target),
            file(b"later", b"x"),
        ]);
        assert!(matches!(case.result, Err(UnpackError::LinkTarget { .. })), "{:?}", case.result);
    }
    let case = unpack_parts(&[entry(b"d/", b'5'), file(b"d/f", b"x"), link(b"d", b'1', b"d/f")]);
    assert!(matches!(case.result, Err(UnpackError::LinkTarget { .. })), "{:?}", case.result);
}

#[test]
fn the_first_path_of_a_hard_link_group_is_the_file_whatever_the_archive_says() {
    let case = unpack_parts(&[file(b"z", b"body"), link(b"m", b'1', b"z"), link(b"a", b'1', b"/m")]);
    assert!(matches!(case.change("a"), Change::File { size: 4, .. }));
    for path in ["m", "z"] {
        assert!(matches!(case.change(path), Change::Hardlink { target } if target.as_bytes() == b"a"));
    }
    assert_eq!(case.path("a").metadata().unwrap().ino(), case.path("z").metadata().unwrap().ino());
}

#[test]
fn replacing_the_first_name_leaves_the_other_links_alone() {
    let case = unpack_parts(&[file(b"a", b"old"), link(b"b", b'1', b"a"), file(b"a", b"newer")]);
    assert!(matches!(case.change("a"), Change::File { size: 5, .. }));
    assert!(matches!(case.change("b"), Change::File { size: 3, .. }));
    assert_eq!(std::fs::read(case.path("b")).unwrap(), b"old");
}

/// L6: names of whiteouts.
#[test]
fn whiteouts_affect_names_of_their_own_directory_only() {
    for name in [&b".wh."[..], b".wh..", b".wh...", b"a/.wh..", b".wh.a/b", b".wh.a/.wh..wh..opq"] {
        let case = unpack_parts(&[entry(b"a/", b'5'), file(name, b"")]);
        assert!(matches!(case.result, Err(UnpackError::Name { .. })), "{name:?}: {:?}", case.result);
        case.nothing_escaped();
    }
    let case = unpack_parts(&[file(b".wh..wh.plnk/1.2", b""), file(b".wh..wh.aufs", b"")]);
    assert!(case.paths().is_empty());
}

/// L6: what whiteouts become.
#[test]
fn whiteouts_and_opaque_marks_become_overlays() {
    if !needs_root("whiteouts") {
        return;
    }
    let long = [b".wh.".to_vec(), vec![b'n'; 255]].concat();
    let case = unpack_parts(&[
        entry(b"d/", b'5'),
        file(b"d/kept", b""),
        file(b"d/.wh..wh..opq", b""),
        file(b".wh.gone", b""),
        pax_of(&[(b"path", &long)]),
        file(b"x", b""),
    ]);
    assert_eq!(case.change("gone"), Change::Whiteout);
    assert_eq!(case.change(&"n".repeat(255)), Change::Whiteout);
    let gone = case.path("gone").symlink_metadata().unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert!(matches!(case.change("d"), Change::Dir { opaque: true, .. }));
    assert!(OverlayForm::Trusted.is_opaque(File::open(case.path("d")).unwrap()).unwrap());
    assert!(case.path("d/kept").exists());
}

#[test]
fn a_directory_after_its_whiteout_is_opaque() {
    if !needs_root("whiteouts") {
        return;
    }
    let case = unpack_parts(&[file(b".wh.d", b""), entry(b"d/", b'5'), file(b"d/f", b"")]);
    assert!(matches!(case.change("d"), Change::Dir { opaque: true, .. }));
    let case = unpack_parts(&[entry(b"d/", b'5'), file(b"d/f", b""), file(b".wh.d", b"")]);
    assert_eq!(case.paths(), ["d"]);
    assert_eq!(case.change("d"), Change::Whiteout);
}

/// L9: one name several times.
#[test]
fn the_last_of_several_entries_with_one_name_wins() {
    let case = unpack_parts(&[
        entry(b"d/", b'5'),
        entry(b"d/sub/", b'5'),
        file(b"d/sub/f", b"1"),
        file(b"d", b"now a file"),
        file(b"e", b"first"),
        entry(b"e/", b'5'),
        file(b"e/inner", b"2"),
        entry(b"k/", b'5'),
        file(b"k/kept", b"3"),
        owned(Raw::new(b"k/", b'5')).mode(0o700).seal(),
    ]);
    assert_eq!(case.paths(), ["d", "e", "e/inner", "k", "k/kept"]);
    assert_eq!(std::fs::read(case.path("d")).unwrap(), b"now a file");
    assert!(matches!(case.change("e"), Change::Dir { opaque: true, .. }));
    assert!(matches!(case.change("k"), Change::Dir { meta, opaque: false } if meta.mode == 0o700));
}

/// L4: devices and pipes.
#[test]
fn devices_keep_their_numbers_and_0_0_is_the_whiteout_it_would_be() {
    if !needs_root("mknod") {
        return;
    }
    let device = |name: &[u8], flag, major: &[u8], minor: &[u8]| {
        Raw::new(name, flag).raw(329..337, major).raw(337..345, minor).mode(0o660).seal()
    };
    let case = unpack_parts(&[
        device(b"null", b'3', b"0000001", b"0000003"),
        device(b"sda", b'4', b"0000010", b"0000000"),
        device(b"zero", b'3', b"0000000", b"0000000"),
        entry(b"pipe", b'6'),
    ]);
    assert!(matches!(case.change("null"), Change::CharDevice { major: 1, minor: 3, .. }));
    assert!(matches!(case.change("sda"), Change::BlockDevice { major: 8, minor: 0, .. }));
    assert_eq!(case.change("zero"), Change::Whiteout);
    assert!(matches!(case.change("pipe"), Change::Fifo { .. }));
    if model::has_devices() {
        let null = case.path("null").symlink_metadata().unwrap();
        assert!(null.file_type().is_char_device());
        assert_eq!(null.mode() & 0o7777, 0o660);
    }
}

/// L4: set-id bits.
#[test]
fn special_bits_and_owners_survive() {
    if !needs_root("chown") {
        return;
    }
    let case = unpack_parts(&[Raw::new(b"su", b'0').mode(0o6755).raw(108..116, b"0001750").with(b"x")]);
    let stat = case.path("su").metadata().unwrap();
    assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid()), (0o6755, 1000, 0));
}

/// L5: the allow-list of attributes.
#[test]
fn only_allowed_xattrs_are_kept() {
    let case = unpack_parts(&[
        pax_of(&[
            (b"SCHILY.xattr.user.note", b"\x00value"),
            (b"SCHILY.xattr.user.overlay.opaque", b"y"),
            (b"SCHILY.xattr.user.rbuild.x", b"y"),
            (b"SCHILY.xattr.trusted.overlay.opaque", b"y"),
            (b"SCHILY.xattr.security.selinux", b"label"),
            (b"SCHILY.xattr.system.posix_acl_access", b"acl"),
        ]),
        file(b"f", b"x"),
    ]);
    if matches!(&case.result, Err(UnpackError::Io { source, .. }) if source.kind() == io::ErrorKind::Unsupported)
    {
        eprintln!("skipped: the temporary directory has no user xattrs");
        return;
    }
    assert_eq!(case.unpacked().xattrs_dropped, 5);
    let Change::File { meta, .. } = case.change("f") else { panic!("a file") };
    assert_eq!(meta.xattrs.keys().collect::<Vec<_>>(), [b"user.note"]);
    let written = File::open(case.path("f")).unwrap();
    let read = xattrs::kept_xattrs(&written).unwrap();
    assert_eq!(read, meta.xattrs);
}

/// L7, L13: entries, listings and paths beyond the limits.
#[test]
fn limits_stop_archives_that_cost_too_much() {
    let many: Vec<u8> = (0..20).flat_map(|n| file(format!("f{n}").as_bytes(), b"")).collect();
    let limits = Limits { entries_max: 10, ..Limits::default() };
    assert!(matches!(unpack_with(&many, &limits).result, Err(UnpackError::TooManyEntries { max: 10 })));
    let limits = Limits { listing_bytes_max: 1000, ..Limits::default() };
    assert!(matches!(unpack_with(&many, &limits).result, Err(UnpackError::ListingTooLarge { .. })));
    // What is always the same takes room all the same.
    for again in [file(b".wh.x", b""), file(b".wh..wh..opq", b"")] {
        let many = again.repeat(20);
        assert!(matches!(unpack_with(&many, &limits).result, Err(UnpackError::ListingTooLarge { .. })));
    }
    let deep = b"d/".repeat(9000);
    let case = unpack_parts(&[pax_of(&[(b"path", &deep)]), entry(b"x", b'5')]);
    assert!(matches!(case.result, Err(UnpackError::Name { .. })));
    let case = unpack_parts(&[pax_of(&[(b"path", &[b'n'; 256])]), file(b"x", b"")]);
    assert!(matches!(case.result, Err(UnpackError::Name { .. })));
    let case = unpack_parts(&[pax_of(&[(b"linkpath", &[b'n'; 5000])]), entry(b"x", b'2')]);
    assert!(matches!(case.result, Err(UnpackError::SymlinkTarget { .. })));
}

/// L8: an archive cut in an entry.
#[test]
fn truncation_in_a_body_is_an_error() {
    let archive = file(b"f", &[7; 2000]);
    let case = unpack_with(&archive[..1500], &Limits::default());
    assert!(matches!(case.result, Err(UnpackError::Tar(TarError::Truncated { .. }))));
}

/// L13: paths too long for any tree.
#[test]
fn a_path_that_no_tree_holds_is_refused_before_anything_is_made() {
    for deep in [[b"directory-name/".repeat(600), b"f".to_vec()].concat(), b"d/".repeat(2047)] {
        let case = unpack_parts(&[pax_of(&[(b"path", &deep)]), file(b"x", b"deep")]);
        let fits = deep.len() <= crate::tree::PATH_BYTES_MAX;
        assert_eq!(case.result.is_ok(), fits, "{:?}", case.result.err());
    }
}

/// L14: names that differ in case.
#[test]
fn names_that_differ_in_case_only_are_kept_apart() {
    let case = unpack_parts(&[file(b"F", b"upper"), file(b"f", b"lower")]);
    assert_eq!(case.paths().len(), 2);
}

#[test]
fn many_implied_directories_cost_no_more_for_what_hides_some() {
    if !needs_root("chown") {
        return;
    }
    let (deep, count) = (2000, 3000);
    let chain = [b"d/".repeat(deep), b"f".to_vec()].concat();
    let wide: Vec<u8> = (0..count).flat_map(|at| file(format!("w/{at:04}/f").as_bytes(), b"")).collect();
    let dirs = |levels: usize| vec!["d"; levels].join("/");
    let opaque = |dir: &str| file(RelPath::clamp(dir.as_bytes()).join(b".wh..wh..opq").as_bytes(), b"");
    for (hiding, chained, all) in
        [(None, deep, deep + count + 1), (Some(10), 9, 9 + count + 1), (Some(0), 0, 0)]
    {
        let mark = hiding.map_or(Vec::new(), |levels| opaque(&dirs(levels)));
        let mut case = unpack_parts(&[pax_of(&[(b"path", &chain)]), file(b"x", b""), wide.clone(), mark]);
        assert_eq!(case.implied().len(), deep + count + 1 + usize::from(hiding == Some(0)));
        let meta = Meta { mode: 0o2775, uid: 5, gid: 6, ..Meta::default() };
        let dir = File::open(case.path("")).unwrap();
        let mut asked = Vec::new();
        let unpacked = case.result.as_mut().unwrap();
        fix_implied(dir.as_fd(), OverlayForm::Trusted, unpacked, &Scratch::for_test(), |path| {
            asked.push(path.clone());
            Ok(Some((meta.clone(), Mtime { secs: 7, nanos: 0 })))
        })
        .unwrap();
        assert_eq!(asked.len(), all);
        assert!(asked.is_sorted());
        for (levels, is_theirs) in
            [(1, chained >= 1), (9, chained >= 9), (10, chained >= 10), (1500, chained >= 1500)]
        {
            let Change::Dir { meta: found, .. } = case.change(&dirs(levels)) else { panic!("a directory") };
            assert_eq!(found == meta, is_theirs, "{levels}");
            let stat = case.path(&dirs(levels)).metadata().unwrap();
            assert_eq!((stat.uid(), stat.gid()) == (5, 6), is_theirs, "{levels}");
        }
        let stat = case.path("w/2999").metadata().unwrap();
        assert_eq!((stat.uid(), stat.mtime()) == (5, 7), hiding != Some(0));
        let mut wrong =
            verify_layer(dir.as_fd(), OverlayForm::Trusted, &case.unpacked().diff, &Scratch::for_test())
                .unwrap();
        wrong.retain(|path| !path.is_root());
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}

#[test]
fn implied_directories_take_the_metadata_of_the_layers_below() {
    if !needs_root("chown") {
        return;
    }
    let mut case = unpack_parts(&[
        file(b"usr/bin/tool", b"x"),
        entry(b"new/", b'5'),
        file(b"new/.wh..wh..opq", b""),
        file(b"new/sub/f", b""),
        file(b"var/f", b""),
    ]);
    assert_eq!(case.implied(), ["new/sub", "usr", "usr/bin", "var"]);
    assert!(matches!(case.change("usr/bin"), Change::Dir { meta, .. } if meta.mode == 0o755));
    let dir = File::open(case.path("")).unwrap();
    let meta = Meta { mode: 0o2775, uid: 5, gid: 6, ..Meta::default() };
    let mtime = Mtime { secs: 1234, nanos: 5 };
    let mut asked = Vec::new();
    fix_implied(
        dir.as_fd(),
        OverlayForm::Trusted,
        case.result.as_mut().unwrap(),
        &Scratch::for_test(),
        |path| {
            asked.push(path.to_string());
            Ok((path.as_bytes() != b"var").then(|| (meta.clone(), mtime)))
        },
    )
    .unwrap();
    assert_eq!(asked, ["usr", "usr/bin", "var"]);
    assert_eq!(case.change("usr/bin"), Change::Dir { meta: meta.clone(), opaque: false });
    assert!(matches!(case.change("var"), Change::Dir { meta, .. } if meta.mode == 0o755));
    let stat = case.path("usr/bin").metadata().unwrap();
    assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid(), stat.mtime()), (0o2775, 5, 6, 1234));
    assert!(case.unpacked().implied_dirs.is_empty());
}

/// L11: owners that cannot be mapped.
#[test]
fn an_owner_beyond_the_map_names_the_file_and_the_ids() {
    let path = RelPath::new("usr/bin/sudo").unwrap();
    let meta = Meta { uid: 70_000, gid: 8, ..Meta::default() };
    let error = create::owner_error(&path, &meta, Errno::INVAL).to_string();
    assert!(error.contains("`usr/bin/sudo`") && error.contains("70000:8") && error.contains("/etc/subuid"));
}

#[test]
fn times_keep_their_nanoseconds_and_directories_their_own() {
    let case = unpack_parts(&[
        pax_of(&[(b"mtime", b"1000.25")]),
        entry(b"d/", b'5'),
        pax_of(&[(b"mtime", b"-3.5")]),
        file(b"d/f", b"x"),
    ]);
    let at = |path: &str| {
        let stat = case.path(path).metadata().unwrap();
        (stat.mtime(), stat.mtime_nsec())
    };
    assert_eq!(at("d"), (1000, 250_000_000));
    assert_eq!(at("d/f"), (-4, 500_000_000));
    assert_eq!(
        case.unpacked().diff.entries().into_iter().nth(1).unwrap().mtime,
        Mtime { secs: -4, nanos: 500_000_000 }
    );
}

fn add(parts: &[Vec<u8>]) -> Case {
    let temp = tempfile::tempdir().unwrap();
    std::fs::create_dir(temp.path().join("layer")).unwrap();
    let dir = File::open(temp.path().join("layer")).unwrap();
    let result =
        unpack_added(&parts.concat()[..], dir.as_fd(), &Limits::default(), &Scratch::on(&dir).unwrap());
    Case { temp, result }
}

#[test]
fn case_111_names_that_climb_stay_at_the_top_of_an_added_archive() {
    for (name, lands) in
        [(&b"../evil"[..], "evil"), (b"/../evil", "evil"), (b"a/../../evil", "evil"), (b"../../b/c", "b/c")]
    {
        let case = add(&[file(name, b"body"), link(b"../l", b'1', name)]);
        assert_eq!(std::fs::read(case.path(lands)).unwrap(), b"body");
        assert_eq!(std::fs::read(case.path("l")).unwrap(), b"body");
        case.nothing_escaped();
    }
}

#[test]
fn an_added_archive_is_listed_in_full_but_only_its_bytes_are_on_disk() {
    let case = add(&[
        Raw::new(b"d/", b'5').mode(0o1777).raw(108..116, b"0000005").seal(),
        Raw::new(b"d/su", b'0').mode(0o6755).raw(108..116, b"0211060").with(b"x"),
        link(b"d/also", b'1', b"d/su"),
        link(b"sym", b'2', b"/etc/passwd"),
        entry(b"pipe", b'6'),
        Raw::new(b"null", b'3').raw(329..337, b"0000001").raw(337..345, b"0000003").seal(),
        entry(b"pipe2", b'6'),
        file(b"pipe2", b"not a pipe"),
        file(b"implied/f", b""),
    ]);
    assert_eq!(case.paths(), ["d", "d/also", "d/su", "implied", "implied/f", "null", "pipe", "pipe2", "sym"]);
    assert_eq!(case.implied(), ["implied"]);
    assert!(matches!(case.change("d"), Change::Dir { meta, .. } if (meta.mode, meta.uid) == (0o1777, 5)));
    let Change::File { meta, .. } = case.change("d/also") else { panic!("a file") };
    assert_eq!((meta.mode, meta.uid), (0o6755, 70_192));
    assert!(matches!(case.change("null"), Change::CharDevice { major: 1, minor: 3, .. }));
    assert!(matches!(case.change("pipe2"), Change::File { size: 10, .. }));
    assert!(matches!(case.change("sym"), Change::Symlink { target, .. } if target == b"/etc/passwd"));
    for absent in ["null", "pipe", "sym"] {
        assert!(case.path(absent).symlink_metadata().is_err(), "{absent}");
    }
    let stat = case.path("d/su").metadata().unwrap();
    let own = rustix::process::geteuid().as_raw();
    assert_eq!((stat.mode() & 0o7077, stat.uid()), (0, own), "no foreign setuid file lies about");
    assert_eq!(std::fs::read(case.path("d/also")).unwrap(), b"x");
}

#[test]
fn an_added_archive_deletes_nothing() {
    for name in [&b".wh.x"[..], b"d/.wh.x", b".wh..wh..opq", b"d/.wh..wh..opq", b".wh..wh.plnk/1", b".wh.x/y"]
    {
        let case = add(&[entry(b"d/", b'5'), file(name, b"")]);
        assert!(matches!(case.result, Err(UnpackError::Name { .. })), "{name:?}: {:?}", case.result);
    }
    let zero = Raw::new(b"zero", b'3').raw(329..337, b"0000000").raw(337..345, b"0000000").seal();
    assert!(matches!(add(&[zero]).result, Err(UnpackError::WhiteoutDevice { .. })));
}

#[test]
fn an_added_archive_has_nothing_below_its_own_links_and_files() {
    let sym = || link(b"a", b'2', b"/etc");
    for parts in [
        vec![sym(), file(b"a/x", b"x")],
        vec![sym(), file(b"a/deep/er/x", b"x")],
        vec![file(b"a", b"x"), entry(b"a/b/", b'5')],
    ] {
        let case = add(&parts);
        let Err(UnpackError::BelowNonDirectory { above, .. }) = &case.result else { panic!("{case:?}") };
        assert_eq!(above.as_bytes(), b"a");
        case.nothing_escaped();
    }
    let replaced = add(&[sym(), entry(b"a/", b'5'), file(b"a/x", b"x")]);
    assert!(matches!(replaced.change("a"), Change::Dir { opaque: true, .. }));
}
