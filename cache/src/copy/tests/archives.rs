use super::*;
use crate::scratch::Scratch;
use crate::tree::testing::{diff, dir, file, file_with, groups, link, owned};

fn add(
    image: &mut Image,
    entries: &[(&str, Change)],
    implied: &[&str],
    options: &CopyOptions,
) -> Result<(), CopyError> {
    let items = [archive("0", diff(entries), |at| implied.contains(&&*at.to_string()))];
    let plan = plan(&image.nodes, &image.tree, &FakeTimes(100), None, &items, options, &Scratch::for_test())?;
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
    let with_mode = CopyOptions { chmod: Some("600".parse().unwrap()), ..options("/dest") };
    add(&mut image, &entries, &[], &with_mode).unwrap();
    image.check(&[
        "d 755 0:0 dest",
        "d 711 0:0 dest/bin",
        "f 4755 5:6 dest/bin/a 1",
        "f 4755 5:6 dest/bin/b 1",
    ]);
    assert_eq!(groups(&image.nodes, &image.tree.links), [[path("dest/bin/a"), path("dest/bin/b")]]);
    assert_eq!(image.files(), [(path("dest/bin/a"), path("0/bin/a"))]);
    let origin = Origin::Archive(Moved::new(path("0"), path("dest")));
    assert_eq!(image.last.origins.of(&path("dest/bin/a")), Some(&origin));
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
    let items = [("0", first), ("1", second)].map(|(dir, diff)| archive(dir, diff, |_| false));
    let plan =
        plan(&image.nodes, &image.tree, &FakeTimes(1), None, &items, &options("/"), &Scratch::for_test())
            .unwrap();
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
    assert_eq!(image.files(), [(path("usr/lib/x"), path("0/lib/x"))]);
    let mut image = Image::with(&base);
    add(&mut image, &entries, &[], &options("/")).unwrap();
    image.check(&["d 755 0:0 lib", "f 644 0:0 lib/x 1", "d 711 0:0 usr", "d 711 0:0 usr/lib"]);
}

#[test]
fn links_to_files_in_many_implied_directories_lead_to_where_the_image_has_these() {
    let (mut base, mut entries, mut implied) =
        (vec![("real".to_owned(), dir(0o711))], Vec::new(), Vec::new());
    let mut expected = Vec::new();
    for at in 0..300 {
        let (real, dirs) = (format!("real/d{at:03}"), [format!("l{at:03}"), format!("l{at:03}/in")]);
        // In every other one the directory in it is elsewhere again.
        let (inner, place) = match at % 2 {
            0 => (dir(0o711), format!("{real}/in/f{at:03}")),
            _ => (link("/real"), format!("real/f{at:03}")),
        };
        base.extend([(dirs[0].clone(), link(&real)), (format!("{real}/in"), inner), (real, dir(0o711))]);
        let (first, other) = (format!("l{at:03}/in/f{at:03}"), format!("z{at:03}"));
        expected.push((path(&place), path("0").join(first.as_bytes()), vec![path(&place), path(&other)]));
        entries.extend(dirs.iter().map(|at| (at.clone(), dir(0o755))));
        entries.extend([(other, Change::Hardlink { target: path(&first) }), (first, file("f"))]);
        implied.extend(dirs);
    }
    for entries in [&mut base, &mut entries] {
        entries.sort_by_key(|(at, _)| path(at));
    }
    let [base, entries] = [&base, &entries].map(|entries| -> Vec<(&str, Change)> {
        entries.iter().map(|(at, change)| (&**at, change.clone())).collect()
    });
    let implied: Vec<&str> = implied.iter().map(String::as_str).collect();
    let mut image = Image::with(&base);
    add(&mut image, &entries, &implied, &options("/")).unwrap();
    expected.sort();
    let names: Vec<_> = expected.iter().map(|(.., names)| names.clone()).collect();
    assert_eq!(groups(&image.nodes, &image.tree.links), names);
    let from: Vec<_> = expected.into_iter().map(|(place, first, _)| (place, first)).collect();
    assert_eq!(image.files(), from);
}

#[test]
fn missing_implied_directories_are_roots_even_with_chown() {
    let base = [("gone", link("usr/later/on")), ("usr", dir(0o711)), ("f", file("F"))];
    let entries = [("gone", dir(0o755)), ("gone/x", file("x")), ("new", dir(0o755)), ("new/y", file("y"))];
    let mut image = Image::with(&base);
    let with_owner = CopyOptions { owner: Some((1, 2)), ..options("/") };
    add(&mut image, &entries, &["gone", "new"], &with_owner).unwrap();
    image.check(&[
        "f 644 0:0 f 1",
        "l 777 0:0 gone -> usr/later/on",
        "d 755 0:0 new",
        "f 644 1:2 new/y 1",
        "d 711 0:0 usr",
        "d 755 0:0 usr/later",
        "d 755 0:0 usr/later/on",
        "f 644 1:2 usr/later/on/x 1",
    ]);
    assert_eq!(image.mtime("new"), NOW);
    let error = add(&mut image, &[("f", dir(0o755)), ("f/x", file("x"))], &["f"], &options("/")).unwrap_err();
    assert_eq!(error.to_string(), "/f: not a directory");
}

#[test]
fn a_directory_after_a_file_of_its_name_hides_the_image_s() {
    let mut image = Image::with(&[("a", dir(0o755)), ("a/old", file("old"))]);
    let entries = [("a", Change::Dir { meta: owned(0o700, 0, 0), opaque: true }), ("a/new", file("n"))];
    add(&mut image, &entries, &[], &options("/")).unwrap();
    image.check(&["d 700 0:0 a", "f 644 0:0 a/new 1"]);
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
