use rbuild_cache::scratch::Scratch;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use rbuild_cache::store::StatIndex;
use rbuild_frontend::dockerignore::Ignore;

use super::*;
use crate::context::scan;
use crate::context::wanted::Wanted;

#[track_caller]
fn found_in(root: &Path) -> Found {
    let (ignore, index) = (Ignore::default(), Arc::new(StatIndex::empty()));
    let scratch = Scratch::on(File::open(root).unwrap()).unwrap();
    let context = scan::scan(root, &ignore, &Wanted::everything(), &index, None, &scratch).unwrap();
    scan(&context.tree, &*context.nodes, &context.files().unwrap()).unwrap()
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
    let document = document(&found, &subject);
    insta::assert_snapshot!(serde_json::to_string_pretty(&document).unwrap());
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
    let names: Vec<&str> = found.packages.iter().map(|package| package.name.as_str()).collect();
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
