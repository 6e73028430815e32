use std::fs;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use rbuild_cache::store::StatIndex;
use rbuild_frontend::dockerignore::Ignore;
use rbuild_oci::{Digest, canonical_json};
use serde_json::{Value, json};

use super::lines::for_each_line;
use super::*;
use crate::assemble::attestation::Keys;
use crate::context::scan;
use crate::context::wanted::Wanted;

#[track_caller]
fn found_in(root: &Path) -> Found {
    let (ignore, index) = (Ignore::default(), Arc::new(StatIndex::empty()));
    let scratch = Scratch::on(File::open(root).unwrap()).unwrap();
    let context = scan::scan(root, &ignore, &Wanted::everything(), &index, None, &scratch).unwrap();
    scan(&context.tree, &*context.nodes, &context.files().unwrap(), &scratch).unwrap()
}

fn put(root: &Path, path: &str, bytes: impl AsRef<[u8]>) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn the_document_lists_what_package_managers_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/sbom/mixed");
    let found = found_in(&root);
    let subject = Subject { name: "me/app:1", is_image: true, created: "2024-01-02T03:04:05.678Z" };
    let document = Document::of(found, &subject).unwrap();
    let text = said(&document, Keys::AsSaid);
    insta::assert_snapshot!(text);

    let value: Value = serde_json::from_str(&text).unwrap();
    let sorted = canonical_json(&value);
    assert_eq!(said(&document, Keys::Sorted), pretty(&serde_json::from_slice(&sorted).unwrap()));
    let packages = &value["packages"].as_array().unwrap()[1..];
    let contents = Digest::of(&canonical_json(&("me/app:1", packages)));
    let namespace = format!("https://spdx.org/spdxdocs/rbuild-{}", contents.hex());
    assert_eq!(value["documentNamespace"], json!(namespace));
}

fn said(document: &Document, keys: Keys) -> String {
    let mut out = Vec::new();
    document.with_keys(keys, &mut serde_json::Serializer::pretty(&mut out)).unwrap();
    String::from_utf8(out).unwrap()
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap()
}

#[test]
fn hostile_databases_are_bounded() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    let long = "n".repeat(NAME_BYTES_MAX + 1);
    let status = format!(
        "Package: good\nVersion: 1\n\nPackage: {long}\nVersion: 1\n\nPackage: ctl\u{1b}[2J\nVersion: 2\n\n\n\n: \n"
    );
    put(root, "var/lib/dpkg/status", status);
    put(root, "a/node_modules/x/package.json", vec![b'['; 100_000]);
    put(root, "b/node_modules/y/package.json", b"\xff\xfe{}");
    put(root, "c/node_modules/z/package.json", r#"{"name": 7, "version": {"a": 1}}"#);
    put(root, "lib/apk/db/installed", b"P:\xff\nV:1\n");
    let big = root.join("usr/lib/apk/db/installed");
    fs::create_dir_all(big.parent().unwrap()).unwrap();
    File::create(&big).unwrap().set_len(DATABASE_BYTES_MAX + 1).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", root.join("var/lib/dpkg/status.d")).unwrap();

    let found = found_in(root);
    let names: Vec<String> = found.packages.iter().map(|package| package.unwrap().name).collect();
    // What is no UTF-8 is shown as such; control characters and endless names never get in.
    assert_eq!(names, ["ctl[2J", "good", "\u{fffd}"]);
    assert_eq!(found.remarks.len(), 1, "{:?}", found.remarks);
    assert!(found.remarks[0].contains("usr/lib/apk/db/installed"));
}

#[test]
fn only_installed_modules_count() {
    for (dir, expected) in [
        ("node_modules/a", true),
        ("x/node_modules/@s/a", true),
        ("x/node_modules/a/node_modules/b", true),
        ("x/node_modules", false),
        ("x/node_modules/a/lib", false),
        ("node_modules/@s/a/b", false),
        ("", false),
    ] {
        assert_eq!(node::is_installed(dir.as_bytes()), expected, "{dir}");
    }
}

fn any_package() -> impl Strategy<Value = Package> {
    let ecosystem = prop::sample::select(&Ecosystem::ALL[..]);
    (ecosystem, prop::array::uniform8("[a-c\u{1}é]{0,2}")).prop_map(|(ecosystem, fields)| {
        let mut package = Package::new(ecosystem);
        package.fields_mut().into_iter().zip(fields).for_each(|(to, field)| *to = field);
        package
    })
}

proptest! {
    #[test]
    fn packages_come_sorted_and_once(packages in prop::collection::vec(any_package(), 0..200)) {
        let scratch = Scratch::on(File::open(std::env::temp_dir()).unwrap()).unwrap();
        let mut collected = Collected::new(&scratch);
        packages.iter().for_each(|package| collected.add(package).unwrap());
        let found = collected.sorted().unwrap();
        let mut expected = packages;
        expected.sort();
        expected.dedup();
        for _ in 0..2 {
            prop_assert_eq!(found.iter().collect::<io::Result<Vec<_>>>().unwrap(), &expected[..]);
        }
    }

    #[test]
    fn lines_are_those_of_the_whole_text(
        bytes in prop::collection::vec(prop::sample::select(&b"a:\n\n\r\xff\xc3\xa9"[..]), 0..60),
    ) {
        let mut found = String::new();
        for_each_line(&bytes[..], |line| {
            found.push_str(line);
            found.push('\n');
            Ok(true)
        })
        .unwrap();
        let mut whole = String::from_utf8_lossy(&bytes).into_owned();
        if !whole.is_empty() && !whole.ends_with('\n') {
            whole.push('\n');
        }
        prop_assert_eq!(found, whole);
    }
}

#[test]
fn long_lines_are_cut() {
    let text = [vec![b'x'; 1 << 20], b"\nnext\n".to_vec(), vec![b'y'; 1 << 17]].concat();
    let mut lengths = Vec::new();
    for_each_line(&text[..], |line| {
        lengths.push(line.len());
        Ok(true)
    })
    .unwrap();
    assert_eq!(lengths, [64 << 10, 4, 64 << 10]);
}

#[test]
fn paragraphs_end_at_empty_lines() {
    let status = "\n\nPackage: a\nVersion: 1\nDescription: x\n Package: no\n\n\n\nPackage: b\r\n\r\nVersion: 2\n\n\
                  Package: gone\nStatus: deinstall ok config-files\nVersion: 3\n\nPackage: c\nSource: s (4)\nVersion: 4";
    let mut found = Vec::new();
    dpkg::packages(status.as_bytes(), |package| {
        found.extend(package.is_named().then_some((package.name, package.version, package.upstream)));
        Ok(())
    })
    .unwrap();
    let expected = [("a", "1", ""), ("b", "2", ""), ("c", "4", "s")];
    assert_eq!(found, expected.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned())));
}

#[test]
fn a_description_of_node_says_texts_only() {
    for (json, expected) in [
        (r#"{"name": "x", "version": "1", "license": "MIT", "author": "me"}"#, Some(["x", "1", "MIT", "me"])),
        (r#"{"name": "x", "name": "y", "license": {"type": "A", "url": 1}}"#, Some(["y", "", "A", ""])),
        (r#"{"name": ["x"], "version": {"type": "1"}, "license": {"type": ["A"]}}"#, Some(["", "", "", ""])),
        (r#"{"name": null, "version": 1.5, "author": {"x": [], "name": "m"}}"#, Some(["", "", "", "m"])),
        (r#"{"name": true, "version": -1, "author": {"name": {"name": "m"}}}"#, Some(["", "", "", ""])),
        (r#"{"name": "x"} {}"#, None),
        (r#"{"name": "x","#, None),
        (r#"["name"]"#, None),
    ] {
        let found = node::package(json.as_bytes()).unwrap();
        let found =
            found.as_ref().map(|p| [&p.name, &p.version, &p.license, &p.maintainer].map(String::as_str));
        assert_eq!(found, expected, "{json}");
    }
}
