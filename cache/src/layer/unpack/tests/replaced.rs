//! Entries in the way of others.

use super::*;

/// L9: what is replaced costs what it took to make. Quadratic, these would take minutes.
#[test]
fn replacing_many_names_and_deep_directories_takes_no_longer_than_making_them() {
    let files = |count: usize| (0..count).flat_map(|n| file(format!("d/{n}").as_bytes(), b""));
    let again = (0..1000).flat_map(|_| file(b"d/0", b""));
    let archive: Vec<u8> = entry(b"d/", b'5').into_iter().chain(files(1000)).chain(again).collect();
    let case = unpack_with(&archive, &Limits::default());
    assert_eq!(case.paths().len(), 1001);
    let deep = [b"a/".repeat(1500), b"f".to_vec()].concat();
    let round = |n: u8| [pax_of(&[(b"path", &deep)]), file(b"x", &[n]), file(b"a", &[n])].concat();
    let mut archive: Vec<u8> = (0..3).flat_map(round).collect();
    archive.extend(entry(b"a/", b'5'));
    if !is_root() {
        return;
    }
    let case = unpack_with(&archive, &Limits::default());
    assert_eq!(case.paths(), ["a"]);
    assert!(matches!(case.change("a"), Change::Dir { opaque: true, .. }));
    assert_eq!(std::fs::read_dir(case.path("a")).unwrap().count(), 0);
}

/// L3: all names of a file are equal, in whichever order they come and go, and an inode that is used again is another file.
#[test]
fn hard_links_are_told_apart_when_inodes_are_used_again() {
    let mut parts = Vec::new();
    for n in 0..50_u8 {
        // The only name of the file before goes each time.
        parts.extend([
            file(b"z", &[n; 3]),
            link(b"m", b'1', b"z"),
            link(b"b", b'1', b"m"),
            file(b"z", &[n; 5]),
        ]);
        parts.extend([link(b"y", b'1', b"b"), file(b"m", b"other"), file(b"b", b"others")]);
    }
    let case = unpack_parts(&parts);
    assert_eq!(case.paths(), ["b", "m", "y", "z"]);
    assert!(matches!(case.change("b"), Change::File { size: 6, .. }));
    assert!(matches!(case.change("m"), Change::File { size: 5, .. }));
    assert!(matches!(case.change("y"), Change::File { size: 3, .. }));
    assert_eq!(std::fs::read(case.path("y")).unwrap(), [49; 3]);
    assert_eq!(std::fs::read(case.path("z")).unwrap(), [49; 5]);
}

/// L2: what is read, linked, hidden or removed is never what a link leads to.
#[test]
fn links_lead_nowhere_while_unpacking() {
    if !needs_root("whiteouts") {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    std::fs::create_dir(outside.path().join("dir")).unwrap();
    std::fs::write(outside.path().join("dir/secret"), "kept").unwrap();
    let sym = || link(b"d/a", b'2', outside.path().as_os_str().as_encoded_bytes());
    for after in [
        file(b"d/a/dir/.wh.secret", b""),
        file(b"d/a/dir/.wh..wh..opq", b""),
        file(b"d/a/dir/secret", b"x"),
        file(b"d/a", b"x"),
        entry(b"d/a/", b'5'),
        file(b"d", b"x"),
        link(b"d/a/dir", b'2', b"/"),
    ] {
        let case = unpack_parts(&[entry(b"d/", b'5'), sym(), after]);
        assert!(!case.paths().is_empty());
        case.nothing_escaped();
    }
    let case = unpack_parts(&[entry(b"d/", b'5'), sym(), link(b"got", b'1', b"d/a/dir/secret")]);
    assert!(matches!(case.result, Err(UnpackError::LinkTarget { .. })));
    assert_eq!(std::fs::read(outside.path().join("dir/secret")).unwrap(), b"kept");
    let dir = File::open(outside.path().join("dir")).unwrap();
    assert!(!OverlayForm::Trusted.is_opaque(dir).unwrap());
}
