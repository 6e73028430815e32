use super::*;
use crate::scratch::Scratch;
use crate::tree::select::Selected;
use crate::tree::testing::{dir, file, file_with, groups, link, meta, owned};
use crate::tree::{Entry, Kind, LinksBelow, NodeDigest};

fn two_files() -> Context<'static> {
    Context::new(&[("f", file_with(owned(0o644, 1000, 1000), "F")), ("g", file("GG"))])
}

fn dir_tree() -> Context<'static> {
    Context::new(&[
        ("d", dir(0o700)),
        ("d/sub", Change::Dir { meta: owned(0o750, 1000, 1000), opaque: false }),
        ("d/sub/x", file("x")),
    ])
}

#[track_caller]
fn refused(image: Image, context: &Context, sources: &[&str], dest: &str, text: &str) {
    match image.copy_as(context, sources, options(dest)) {
        Ok(image) => panic!("copied: {:?}", listing(&image.nodes, &image.tree)),
        Err(error) => assert_eq!(error.to_string(), text),
    }
}

#[test]
fn case_81_the_top_directory_is_new_and_nested_ones_are_the_sources() {
    let image = Image::scratch().copy(&dir_tree(), &["d"], "/n");
    image.check(&["d 755 0:0 n", "d 750 0:0 n/sub", "f 644 0:0 n/sub/x 1"]);
    assert_eq!(image.mtime("n"), NOW);
    assert_eq!(image.mtime("n/sub/x"), Mtime { secs: 500, nanos: 7 });
    assert_eq!(image.mtime(""), Mtime { secs: 100, nanos: 0 });
    for source in ["d/", "d/."] {
        assert_eq!(Image::scratch().copy(&dir_tree(), &[source], "/n").tree, image.tree, "case 89");
    }
}

#[test]
fn case_82_missing_parents_are_made() {
    Image::scratch().copy(&two_files(), &["f"], "/a/b/c").check(&[
        "d 755 0:0 a",
        "d 755 0:0 a/b",
        "f 644 0:0 a/b/c 1",
    ]);
}

#[test]
fn case_83_chown_is_for_parents_too() {
    let with_owner = CopyOptions { owner: Some((3, 4)), ..options("/m/n/") };
    let image = Image::scratch().copy_as(&two_files(), &["f"], with_owner).unwrap();
    image.check(&["d 755 3:4 m", "d 755 3:4 m/n", "f 644 3:4 m/n/f 1"]);
}

#[test]
fn case_84_chmod_is_for_all_but_symlinks() {
    let mut context = dir_tree();
    context.entries.push(("d/l", link("x")));
    let with_mode = CopyOptions { chmod: Some("4700".parse().unwrap()), ..options("/x/y") };
    let image = Image::scratch().copy_as(&context, &["d"], with_mode).unwrap();
    image.check(&[
        "d 700 0:0 x",
        "d 700 0:0 x/y",
        "l 777 0:0 x/y/l -> x",
        "d 4700 0:0 x/y/sub",
        "f 4700 0:0 x/y/sub/x 1",
    ]);
}

#[test]
fn case_85_several_sources_without_a_slash_overwrite_each_other() {
    Image::scratch().copy(&two_files(), &["f", "g"], "/dest").check(&["f 644 0:0 dest 2"]);
    let image = Image::scratch().copy(&two_files(), &["f", "g"], "/dest/");
    image.check(&["d 755 0:0 dest", "f 644 0:0 dest/f 1", "f 644 0:0 dest/g 2"]);
    assert_eq!(image.files().len(), 2);
}

#[test]
fn case_86_a_file_goes_into_an_existing_directory() {
    let image = Image::with(&[("a", dir(0o711))]).copy(&two_files(), &["f"], "/a");
    image.check(&["d 711 0:0 a", "f 644 0:0 a/f 1"]);
    assert_eq!(image.mtime("a"), Mtime { secs: 100, nanos: 1 }, "listed for the overlay, unchanged");
}

#[test]
fn case_87_a_file_is_no_directory() {
    let image = Image::scratch().copy(&two_files(), &["f"], "/a");
    refused(image, &two_files(), &["g"], "/a/", "/a: not a directory");
    let image = Image::with(&[("a", file("A"))]);
    refused(image, &two_files(), &["g"], "/a/b/c", "/a: not a directory");
}

#[test]
fn cases_88_and_90_odd_spellings_of_a_source_work() {
    Image::scratch().copy(&two_files(), &["f/"], "/a").check(&["f 644 0:0 a 1"]);
    Image::scratch().copy(&two_files(), &["../f"], "/a").check(&["f 644 0:0 a 1"]);
}

#[test]
fn destinations_are_clamped_at_the_root() {
    Image::scratch().copy(&two_files(), &["f"], "/x/../../b//c/.").check(&[
        "d 755 0:0 b",
        "d 755 0:0 b/c",
        "f 644 0:0 b/c/f 1",
    ]);
    Image::scratch().copy(&two_files(), &["f"], "/").check(&["f 644 0:0 f 1"]);
    let long = format!("/{}", "x".repeat(300));
    let error = Image::scratch().copy_as(&two_files(), &["f"], options(&long)).err().unwrap();
    assert!(matches!(error, CopyError::Unfit { .. }), "{error}");
    let deep = "/x".repeat(4000);
    let error = Image::scratch().copy_as(&two_files(), &["f"], options(&deep)).err().unwrap();
    assert!(matches!(error, CopyError::Destination { .. }), "{error}");
}

#[test]
fn case_91_no_match_copies_nothing_and_makes_nothing() {
    let image = Image::scratch().copy(&two_files(), &["nope*"], "/a/");
    image.check(&[]);
    assert_eq!(image.last.diff.len(), 1, "only the root");
}

#[test]
fn case_92_contents_of_each_directory_are_merged() {
    let context =
        Context::new(&[("d1", dir(0o755)), ("d1/a", file("A")), ("d2", dir(0o755)), ("d2/b", file("B"))]);
    let image = Image::scratch().copy(&context, &["d*"], "/a/");
    image.check(&["d 755 0:0 a", "f 644 0:0 a/a 1", "f 644 0:0 a/b 1"]);
}

#[test]
fn cases_93_and_94_wildcards() {
    let context = Context::new(&[
        ("arr[0].txt", file("A")),
        ("x", dir(0o755)),
        ("x/deep", dir(0o755)),
        ("x/deep/y", file("no")),
        ("x/y", file("Y")),
    ]);
    Image::scratch().copy(&context, &["**/y"], "/a/").check(&["d 755 0:0 a", "f 644 0:0 a/y 1"]);
    Image::scratch().copy(&context, &["arr[[]0].txt"], "/").check(&["f 644 0:0 arr[0].txt 1"]);
    Image::scratch().copy(&context, &["arr[0].txt"], "/").check(&[]);
}

#[test]
fn cases_95_and_96_links_as_sources_are_followed_and_inside_are_kept() {
    let context = Context::new(&[
        ("d", dir(0o755)),
        ("d/l", link("../../nowhere")),
        ("to-d", link("d")),
        ("to-f", link("f")),
        ("f", file("F")),
    ]);
    Image::scratch()
        .copy(&context, &["to-d"], "/n")
        .check(&["d 755 0:0 n", "l 777 0:0 n/l -> ../../nowhere"]);
    let image = Image::scratch().copy(&context, &["to-f"], "/n/");
    image.check(&["d 755 0:0 n", "f 644 0:0 n/to-f 1"]);
    assert_eq!(image.files(), [(path("n/to-f"), path("f"))]);
}

#[test]
fn case_97_pipes_stay_pipes_and_links_stay_linked() {
    let mut context = Context::new(&[
        ("d", dir(0o755)),
        ("d/a", file("A")),
        ("d/p", Change::Fifo { meta: meta(0o600) }),
        ("o", dir(0o755)),
    ]);
    context.links = vec![("d/b", "d/a"), ("d/c", "d/a"), ("o/out", "d/a")];
    let image = Image::scratch().copy(&context, &["d"], "/n");
    image.check(&["d 755 0:0 n", "f 644 0:0 n/a 1", "f 644 0:0 n/b 1", "f 644 0:0 n/c 1", "p 600 0:0 n/p"]);
    assert_eq!(groups(&image.nodes, &image.tree.links), [[path("n/a"), path("n/b"), path("n/c")]]);
    assert_eq!(image.files().len(), 1, "one file has one source");
    // A later source overwrites the first name: the others still belong together and have bytes.
    context.entries.push(("z", dir(0o755)));
    context.entries.push(("z/a", file("ZZ")));
    let image = Image::scratch().copy(&context, &["d", "z"], "/n");
    assert_eq!(groups(&image.nodes, &image.tree.links), [[path("n/b"), path("n/c")]]);
    assert_eq!(image.files().len(), 2);
    let image = Image::scratch().copy(&context, &["d/a", "d/b"], "/n/");
    assert!(image.tree.links.is_empty(), "two sources are two files");
}

#[test]
fn case_98_special_modes_are_kept() {
    let context =
        Context::new(&[("d", dir(0o755)), ("d/s", file_with(meta(0o6755), "S")), ("d/t", dir(0o1777))]);
    Image::scratch().copy(&context, &["d"], "/").check(&["f 6755 0:0 s 1", "d 1777 0:0 t"]);
}

#[test]
fn case_99_links_in_the_destination_are_followed_in_the_root() {
    let base = [
        ("abs", link("/real")),
        ("dangling", link("../../new/dir")),
        ("real", dir(0o700)),
        ("up", link("../../../real")),
    ];
    for dest in ["/abs", "/abs/", "/up", "/abs/../up/."] {
        let image = Image::with(&base).copy(&two_files(), &["f"], dest);
        assert!(listing(&image.nodes, &image.tree).contains(&"f 644 0:0 real/f 1".into()), "{dest}");
        assert!(listing(&image.nodes, &image.tree).contains(&"l 777 0:0 abs -> /real".into()), "{dest}");
    }
    let image = Image::with(&base).copy(&two_files(), &["f"], "/dangling/");
    assert!(listing(&image.nodes, &image.tree).contains(&"f 644 0:0 new/dir/f 1".into()));
    let image = Image::with(&base).copy(&two_files(), &["f"], "/dangling");
    assert!(listing(&image.nodes, &image.tree).contains(&"f 644 0:0 new/dir 1".into()));
    // `--link`: planned on nothing, then stacked; the symlink gives way to a directory.
    let linked = Image::scratch().copy(&two_files(), &["f"], "/abs/");
    let base = Image::with(&base);
    let nodes = base.nodes;
    let stacked = base.tree.apply(&nodes, &linked.last.diff, &Scratch::for_test()).unwrap();
    assert!(listing(&nodes, &stacked).contains(&"f 644 0:0 abs/f 1".into()));
}

#[test]
fn case_100_a_link_to_a_file_has_its_target_rewritten() {
    let base = [("l", link("t")), ("t", file("old"))];
    Image::with(&base).copy(&two_files(), &["f"], "/l").check(&["l 777 0:0 l -> t", "f 644 0:0 t 1"]);
    // Inside a directory nothing is followed: the link itself is replaced.
    let base = [("d", dir(0o755)), ("d/f", link("../t")), ("t", file("old"))];
    Image::with(&base).copy(&two_files(), &["f"], "/d/").check(&[
        "d 755 0:0 d",
        "f 644 0:0 d/f 1",
        "f 644 0:0 t 3",
    ]);
}

#[test]
fn case_101_an_existing_destination_keeps_its_metadata() {
    let image = Image::with(&[("tmp", dir(0o1777))]).copy(&dir_tree(), &["d"], "/tmp/");
    image.check(&["d 1777 0:0 tmp", "d 750 0:0 tmp/sub", "f 644 0:0 tmp/sub/x 1"]);
    // Nested ones take the source's, and keep what else is in them.
    let nested = Change::Dir { meta: owned(0o777, 5, 5), opaque: false };
    let base = [("n", dir(0o755)), ("n/sub", nested), ("n/sub/old", file("old"))];
    let image = Image::with(&base).copy(&dir_tree(), &["d"], "/n");
    image.check(&["d 755 0:0 n", "d 750 0:0 n/sub", "f 644 0:0 n/sub/old 3", "f 644 0:0 n/sub/x 1"]);
    assert_eq!(image.mtime("n/sub"), Mtime { secs: 500, nanos: 5 });
    let linked = Image::scratch().copy(&dir_tree(), &["d"], "/tmp/");
    let base = Image::with(&[("tmp", dir(0o1777))]);
    let stacked = base.tree.apply(&base.nodes, &linked.last.diff, &Scratch::for_test()).unwrap();
    assert_eq!(stacked.get(&base.nodes, &path("tmp")).unwrap().unwrap().meta.mode, 0o755);
}

#[test]
fn case_102_types_that_clash_are_refused() {
    let image = || Image::with(&[("n", dir(0o755)), ("n/sub", file("F")), ("x", file("X"))]);
    refused(image(), &dir_tree(), &["d"], "/n", "cannot copy to non-directory: /n/sub");
    refused(image(), &dir_tree(), &["d"], "/x", "cannot copy to non-directory: /x");
    refused(image(), &dir_tree(), &["d"], "/x/", "/x: not a directory");
    let image = || Image::with(&[("n", dir(0o755)), ("n/f", dir(0o755))]);
    refused(image(), &two_files(), &["f"], "/n", "cannot replace to directory /n/f with file");
    refused(image(), &two_files(), &[""], "/n/", "cannot replace to directory /n/f with file");
    let image = Image::with(&[("n", dir(0o755)), ("n/sub", link("/r")), ("r", dir(0o755))]);
    refused(image, &dir_tree(), &["d"], "/n", "cannot copy to non-directory: /n/sub");
    // Earlier sources of the same instruction count.
    let context =
        Context::new(&[("a", dir(0o755)), ("a/x", file("x")), ("b", dir(0o755)), ("b/x", dir(0o755))]);
    refused(Image::scratch(), &context, &["a", "b"], "/n", "cannot copy to non-directory: /n/x");
}

#[test]
fn a_link_copied_by_an_earlier_source_is_followed_by_a_later_one() {
    let context = Context::new(&[("d", dir(0o755)), ("d/n", link("/else")), ("f", file("F"))]);
    let first = Image::scratch().copy(&context, &["d"], "/");
    first.copy(&context, &["f"], "/n/").check(&[
        "d 755 0:0 else",
        "f 644 0:0 else/f 1",
        "l 777 0:0 n -> /else",
    ]);
}

#[test]
fn owners_of_stages_are_kept_and_of_contexts_are_not() {
    let context = || Context::new(&[("f", file_with(owned(0o4755, 7, 8), "F"))]);
    let stage = CopyOptions { from_context: false, ..options("/a") };
    Image::scratch().copy_as(&context(), &["f"], stage).unwrap().check(&["f 4755 7:8 a 1"]);
    Image::scratch().copy(&context(), &["f"], "/a").check(&["f 4755 0:0 a 1"]);
}

#[test]
fn heredocs_are_files_with_a_name() {
    let nodes = MemoryNodeStore::default();
    let items = [CopyItem::Inline { name: b"EOF".to_vec(), content: b"hello\n".to_vec() }];
    let inline = |dest: &str| {
        let plan =
            plan(&nodes, &Tree::empty(), &FakeTimes(1), None, &items, &options(dest), &Scratch::for_test())
                .unwrap();
        listing(&nodes, &Tree::empty().apply(&nodes, &plan.diff, &Scratch::for_test()).unwrap())
    };
    assert_eq!(inline("/x"), ["f 644 0:0 x 6"]);
    assert_eq!(inline("/x/"), ["d 755 0:0 x", "f 644 0:0 x/EOF 6"]);
}

#[test]
fn selected_items_need_their_source() {
    let nodes = MemoryNodeStore::default();
    let source = two_files().tree(&nodes);
    let items = [CopyItem::Selected(select(&source, &nodes, b"f").unwrap().remove(0))];
    let error =
        plan(&nodes, &Tree::empty(), &FakeTimes(1), None, &items, &options("/x"), &Scratch::for_test())
            .unwrap_err();
    assert!(matches!(error, CopyError::NoSource { .. }));
}

fn workdir(image: &mut Image, at: &str, owner: (u32, u32)) -> Result<(), CopyError> {
    let plan = plan_workdir(
        &image.nodes,
        &image.tree,
        &FakeTimes(100),
        at.as_bytes(),
        owner,
        NOW,
        &Scratch::for_test(),
    )?;
    image.apply(plan);
    Ok(())
}

#[test]
fn cases_144_and_145_workdir_makes_what_is_missing_for_the_user() {
    let mut image = Image::with(&[("tmp", dir(0o1777))]);
    workdir(&mut image, "/tmp", (1, 1)).unwrap();
    image.check(&["d 1777 0:0 tmp"]);
    assert_eq!(image.last.diff.len(), 1);
    workdir(&mut image, "/b/c", (0, 0)).unwrap();
    workdir(&mut image, "/q r", (0, 0)).unwrap();
    workdir(&mut image, "/x/y", (1, 1)).unwrap();
    let image = image.copy(&two_files(), &["f"], "/x/y/");
    image.check(&[
        "d 755 0:0 b",
        "d 755 0:0 b/c",
        "d 755 0:0 q r",
        "d 1777 0:0 tmp",
        "d 755 1:1 x",
        "d 755 1:1 x/y",
        "f 644 0:0 x/y/f 1",
    ]);
}

#[test]
fn workdir_follows_links_and_refuses_files() {
    let base = [("dangling", link("new/dir")), ("f", file("F")), ("l", link("/r")), ("r", dir(0o700))];
    let mut image = Image::with(&base);
    workdir(&mut image, "/l/sub", (1, 2)).unwrap();
    workdir(&mut image, "/dangling/x", (1, 2)).unwrap();
    let listed = listing(&image.nodes, &image.tree);
    for line in ["d 755 1:2 new/dir/x", "d 755 1:2 new", "d 755 1:2 r/sub", "d 700 0:0 r"] {
        assert!(listed.contains(&line.into()), "{line} in {listed:?}");
    }
    assert_eq!(workdir(&mut image, "/f", (0, 0)).unwrap_err().to_string(), "/f: not a directory");
    assert_eq!(workdir(&mut image, "/f/x", (0, 0)).unwrap_err().to_string(), "/f: not a directory");
}

#[test]
fn a_directory_that_cannot_be_loaded_is_not_an_empty_one() {
    let nodes = MemoryNodeStore::default();
    let lost = NodeDigest([7; 32]);
    let entry = Entry { meta: meta(0o755), kind: Kind::Dir(lost) };
    let selected = Selected { name: b"d".to_vec(), path: path("d"), entry, links: LinksBelow::default() };
    let (times, parent) = (FakeTimes(1), Tree::empty());
    let planned = plan(
        &nodes,
        &parent,
        &times,
        Some(&times),
        &[CopyItem::Selected(selected)],
        &options("/to/"),
        &Scratch::for_test(),
    );
    let missing = |error: &CopyError| error.to_string().contains("is missing from the store");
    assert!(planned.as_ref().is_err_and(missing), "{planned:?}");
}
