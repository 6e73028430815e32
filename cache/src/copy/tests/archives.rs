use super::*;
use crate::tree::testing::{diff, dir, file, file_with, link, owned};

fn add(
    image: &mut Image,
    entries: &[(&str, Change)],
    implied: &[&str],
    options: &CopyOptions,
) -> Result<(), CopyError> {
    let archive = diff(entries);
    let implied: Vec<RelPath> = implied.iter().map(|at| path(at)).collect();
    let items = [CopyItem::Archive(Archive { diff: &archive, implied: &implied })];
    let plan = plan(&image.nodes, &image.tree, &FakeTimes(100), None, &items, options)?;
    image.apply(plan);
    Ok(())
}

#[test]
fn archives_keep_owners_and_modes() {
    let entries = [
        ("", dir(0o700)),
        ("bin", dir(0o711)),
        ("bin/a", file_with(owned(0o4755, 5, 6), "A")),
        ("bin/b", Change::Hardlink { target: path("bin/a") }),
    ];
    let mut image = Image::scratch();
    let with_mode = CopyOptions { chmod: Some(0o600), ..options("/dest") };
    add(&mut image, &entries, &[], &with_mode).unwrap();
    image.check(&[
        "d 755 0:0 dest",
        "d 711 0:0 dest/bin",
        "f 4755 5:6 dest/bin/a 1",
        "f 4755 5:6 dest/bin/b 1",
    ]);
    assert_eq!(image.tree.links.groups(), [[path("dest/bin/a"), path("dest/bin/b")]]);
    let origin = FileOrigin::Archive { index: 0, path: path("bin/a") };
    assert_eq!(image.last.files, [(path("dest/bin/a"), origin)]);
    let mut image = Image::scratch();
    let with_owner = CopyOptions { owner: Some((1, 2)), ..options("/") };
    add(&mut image, &entries[..3], &[], &with_owner).unwrap();
    image.check(&["d 711 1:2 bin", "f 4755 1:2 bin/a 1"]);
}

#[test]
fn case_110_what_clashes_is_replaced() {
    let mut image = Image::with(&[
        ("a", dir(0o755)),
        ("a/old", file("old")),
        ("b", file("B")),
        ("c", dir(0o700)),
        ("c/kept", file("k")),
    ]);
    let entries = [("a", file("A")), ("b", dir(0o711)), ("b/x", file("x")), ("c", dir(0o750))];
    add(&mut image, &entries, &[], &options("/")).unwrap();
    image.check(&["f 644 0:0 a 1", "d 711 0:0 b", "f 644 0:0 b/x 1", "d 750 0:0 c", "f 644 0:0 c/kept 1"]);
}

#[test]
fn a_directory_replaced_twice_is_opaque() {
    let nodes = MemoryNodeStore::default();
    let mut image = Image::with(&[("a", dir(0o755)), ("a/old", file("old"))]);
    let (first, second) = (diff(&[("a", file("A"))]), diff(&[("a", dir(0o700)), ("a/new", file("n"))]));
    let items = [&first, &second].map(|diff| CopyItem::Archive(Archive { diff, implied: &[] }));
    let plan = plan(&image.nodes, &image.tree, &FakeTimes(1), None, &items, &options("/")).unwrap();
    image.apply(plan);
    image.check(&["d 700 0:0 a", "f 644 0:0 a/new 1"]);
    assert!(nodes.is_empty());
}

#[test]
fn implied_directories_go_through_links_and_change_nothing() {
    let base = [("lib", link("usr/lib")), ("usr", dir(0o711)), ("usr/lib", dir(0o711))];
    let entries = [("lib", dir(0o755)), ("lib/x", file("x"))];
    let mut image = Image::with(&base);
    add(&mut image, &entries, &["lib"], &options("/")).unwrap();
    image.check(&["l 777 0:0 lib -> usr/lib", "d 711 0:0 usr", "d 711 0:0 usr/lib", "f 644 0:0 usr/lib/x 1"]);
    let mut image = Image::with(&base);
    add(&mut image, &entries, &[], &options("/")).unwrap();
    image.check(&["d 755 0:0 lib", "f 644 0:0 lib/x 1", "d 711 0:0 usr", "d 711 0:0 usr/lib"]);
}

#[test]
fn archives_need_a_directory_and_have_no_whiteouts() {
    let mut image = Image::with(&[("f", file("F"))]);
    let error = add(&mut image, &[("x", file("x"))], &[], &options("/f")).unwrap_err();
    assert_eq!(error.to_string(), "/f: not a directory");
    let error = add(&mut image, &[("x", Change::Whiteout)], &[], &options("/")).unwrap_err();
    assert!(matches!(error, CopyError::Whiteout { .. }));
    let dangling = Change::Hardlink { target: path("nope") };
    let error = add(&mut image, &[("x", dangling)], &[], &options("/")).unwrap_err();
    assert!(matches!(error, CopyError::LinkTarget { .. }));
}
