//! `--build-context` of every kind, and what a context hides.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::Result;
use rbuild_tests::web::{Reply, Web};
use rbuild_tests::{Registry, TestEnv, bases, judge, need};

use crate::world;

const COPIES: &str = "FROM scratch\nCOPY --from=other /name.txt /\n";

#[test]
fn a_named_directory_is_a_source() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (_registry, env) = world()?;
    let context = env.context("main", COPIES, &[("name.txt", "main\n")])?;
    let other = env.context("other", "", &[("name.txt", "other\n")])?;
    let file = env.work().join("out.tar");
    let (named, output) = (format!("other={}", other.display()), format!("type=oci,dest={}", file.display()));
    env.build(&context, &["--build-context", &named, "-o", &output])?.ok();
    assert_eq!(judge::unpack(&format!("oci-archive:{}", file.display()))?.text("/name.txt")?, "other\n");
    Ok(())
}

#[test]
fn a_named_context_takes_the_place_of_a_base_image() -> Result<()> {
    need!(Bases);
    let env = TestEnv::new()?.with_hub_at("127.0.0.1:1")?;
    let context = env.context("main", "FROM nobody/has-this:3\nRUN busybox true\n", &[])?;
    let layout = bases::dir()?.join("busybox");
    let named = |rest: &str| format!("nobody/has-this:3=oci-layout://{}{rest}", layout.display());
    env.build(&context, &["--build-context", &named(":latest")])?.ok();
    env.build(&context, &["--build-context", &named("")])?.ok();
    let index: serde_json::Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    let digest = index["manifests"][0]["digest"].as_str().unwrap_or_default();
    env.build(&context, &["--build-context", &named(&format!("@{digest}"))])?.ok().assert_all_cached();
    env.build(&context, &["--build-context", &named(":no-such-tag")])?.exits(1).says(&["no-such-tag"]);
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn a_named_context_can_be_another_image() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (registry, env) = world()?;
    let context = env.context("main", "FROM alpine\nRUN echo $0 > /x\n", &[])?;
    let file = env.work().join("out.tar");
    let named = format!("alpine=docker-image://{}/library/busybox:latest", registry.host());
    let output = format!("type=oci,dest={}", file.display());
    env.build(&context, &["--build-context", &named, "-o", &output])?.ok();
    let unpacked = judge::unpack(&format!("oci-archive:{}", file.display()))?;
    assert!(unpacked.root().join("bin/busybox").is_file());
    Ok(())
}

#[test]
fn what_dockerignore_names_is_not_in_the_context() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (_registry, env) = world()?;
    let ignore = "# comment\n*.log\n!keep.log\nsecret\n**/node_modules\n";
    let files = [
        (".dockerignore", ignore),
        ("a.log", "x"),
        ("keep.log", "x"),
        ("secret/key", "x"),
        ("web/node_modules/m.js", "x"),
        ("web/index.js", "x"),
    ];
    let context = env.context("ignore", "FROM scratch\nCOPY . /\n", &files)?;
    let file = env.work().join("out.tar");
    env.build(&context, &["-o", &format!("type=oci,dest={}", file.display())])?.ok();
    let listing = judge::unpack(&format!("oci-archive:{}", file.display()))?.listing()?;
    let names: Vec<_> = listing.iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, [".dockerignore", "Dockerfile", "keep.log", "web", "web/index.js"], "{listing:#?}");
    let run = env.context("ignored", "FROM scratch\nCOPY a.log /\n", &files)?;
    env.build(&run, &[])?.exits(1).says(&["a.log", ".dockerignore"]);
    Ok(())
}

#[test]
fn links_do_not_lead_out_of_the_context() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (_registry, env) = world()?;
    let context = env.context("links", "FROM scratch\nCOPY . /\n", &[("f", "x")])?;
    std::os::unix::fs::symlink("/etc/passwd", context.join("link"))?;
    let file = env.work().join("out.tar");
    env.build(&context, &["-o", &format!("type=oci,dest={}", file.display())])?.ok();
    let unpacked = judge::unpack(&format!("oci-archive:{}", file.display()))?;
    assert_eq!(fs::read_link(unpacked.root().join("link"))?.to_str(), Some("/etc/passwd"));
    std::os::unix::fs::symlink("/etc", context.join("out"))?;
    let through = env.write("work/links/Dockerfile.out", "FROM scratch\nCOPY out/passwd /\n")?;
    env.build(&context, &["-f", &through.to_string_lossy()])?.exits(1).says(&["out/passwd"]);
    Ok(())
}

#[test]
fn what_no_instruction_names_is_neither_read_nor_able_to_fail_the_build() -> Result<()> {
    need!(Root, Registry, Bases, Subuid);
    let registry = Registry::shared()?;
    let env = TestEnv::rootless()?.using(&registry)?;
    let context = env.context("unreadable", "FROM busybox\nCOPY f /f\n", &[("f", "f"), ("secret", "x")])?;
    let secret = context.join("secret");
    std::os::unix::fs::chown(&secret, Some(0), Some(0))?;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
    env.build(&context, &["-t", "unreadable"])?.ok();
    fs::write(context.join("Dockerfile"), "FROM busybox\nCOPY . /all\n")?;
    env.build(&context, &[])?.exits(1).says(&["secret"]);
    Ok(())
}

#[test]
fn a_source_that_is_a_link_reaches_its_target_anywhere_in_the_context() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (_registry, env) = world()?;
    let text = "FROM busybox\nCOPY link/a /a\nCOPY entry /b\n";
    let context = env.context("links", text, &[("real/a", "a"), ("real/b", "b")])?;
    std::os::unix::fs::symlink("real", context.join("link"))?;
    std::os::unix::fs::symlink("real/b", context.join("entry"))?;
    let archive = env.work().join("links.tar");
    let output = format!("type=oci,dest={}", archive.display());
    env.build(&context, &["-t", "links", "-o", &output])?.ok();
    let image = judge::unpack(&format!("oci-archive:{}", archive.display()))?;
    assert_eq!((image.text("/a")?, image.text("/b")?), ("a".to_owned(), "b".to_owned()));
    Ok(())
}

#[test]
fn a_build_may_log_into_the_context_it_copies() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("logged", "FROM busybox\nCOPY . /all\nRUN cat /all/build.log\n", &[])?;
    for _ in 0..2 {
        let log = fs::File::create(context.join("build.log"))?;
        let mut command = env.command(["build", "--progress", "plain", "-t", "logged"]);
        command.arg(&context).stdout(log.try_clone()?).stderr(log);
        let status = env.spawn(&mut command)?.wait()?;
        assert!(status.success(), "{}", fs::read_to_string(context.join("build.log"))?);
    }
    Ok(())
}

/// A tar of a directory, compressed as `flags` say.
fn packed(dir: &std::path::Path, flags: &str) -> Result<Vec<u8>> {
    let file = dir.with_extension("packed");
    let done = Command::new("tar")
        .args(["--owner=7", "--group=8", flags])
        .arg(&file)
        .args(["-C"])
        .arg(dir)
        .arg(".")
        .status()?;
    assert!(done.success());
    Ok(fs::read(file)?)
}

#[test]
fn a_context_on_a_web_server_is_an_archive_or_a_dockerfile() -> Result<()> {
    need!(Root, Judges);
    let env = TestEnv::new()?;
    let files = [
        ("f", "of the archive"),
        ("sub/Dockerfile", "FROM scratch\nCOPY sub /s\n"),
        (".dockerignore", "*\n"),
    ];
    let archived = packed(&env.context("archived", "FROM scratch\nCOPY f /\n", &files)?, "-cJf")?;
    let web = Web::serve(move |request| match request.path.as_str() {
        "/context.tar.xz?sig=canary" if request.header("if-none-match") == "\"1\"" => Reply::new(304),
        "/context.tar.xz?sig=canary" => Reply::new(200).body(archived.clone()).header("ETag", "\"1\""),
        "/Dockerfile" => Reply::new(200).body("FROM scratch\nCOPY context /itself\n"),
        "/other" => Reply::new(200).body("FROM scratch\nCOPY f /from-other\n"),
        "/bad" => Reply::new(200).body("FROM scratch\nNONSENSE\n"),
        _ => Reply::new(404),
    })?;
    let file = env.work().join("out.tar");
    let output = format!("type=oci,dest={}", file.display());
    let build = |context: &str, args: &[&str]| -> Result<judge::Unpacked> {
        env.build(std::path::Path::new(context), &[&["-o", &output], args].concat())?.ok();
        judge::unpack(&format!("oci-archive:{}", file.display()))
    };
    let archive = web.url("/context.tar.xz?sig=canary");
    let listing = build(&archive, &[])?.listing()?;
    assert!(
        listing.len() == 1 && listing[0].starts_with("f 100644 7:8 14 "),
        "tar owners stay: {listing:#?}"
    );
    let again = env.build(std::path::Path::new(&archive), &[])?.ok();
    again.assert_all_cached();
    assert!(!again.stderr.contains("canary"), "{}", again.stderr);
    assert!(build(&archive, &["-f", "sub/Dockerfile"])?.root().join("s/Dockerfile").is_file());
    assert_eq!(build(&archive, &["-f", &web.url("/other")])?.text("/from-other")?, "of the archive");
    assert!(build(&web.url("/Dockerfile"), &[])?.text("/itself")?.starts_with("FROM scratch"));
    // A Dockerfile from there for files from here.
    let local = env.context("local", "", &[("f", "of here")])?;
    let local = local.to_string_lossy();
    assert_eq!(build(&local, &["-f", &web.url("/other")])?.text("/from-other")?, "of here");
    // Named: its owners stay, and it is a base.
    let text = "FROM base\nCOPY --from=base f /again\n";
    let named = env.context("named", text, &[])?;
    let arg = format!("base={archive}");
    let listing = build(&named.to_string_lossy(), &["--build-context", &arg])?.listing()?;
    assert!(listing.iter().any(|line| line.starts_with("again 100644 7:8")), "{listing:#?}");
    for (context, args, words) in [
        (web.url("/none"), vec![], vec!["invalid response status 404"]),
        (web.url("/bad"), vec![], vec!["unknown instruction: NONSENSE", "/bad"]),
        (web.url("/Dockerfile"), vec!["-f", "x"], vec!["ambiguous Dockerfile source"]),
        (local.clone().into_owned(), vec!["-f", "https://127.0.0.1:1/x"], vec!["cannot connect"]),
    ] {
        env.build(std::path::Path::new(&context), &args)?.exits(1).says(&words);
    }
    let one_file = format!("base={}", web.url("/other"));
    env.build(&named, &["--build-context", &one_file])?.exits(1).says(&["is not an archive"]);
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn scratch_is_a_named_context_and_a_platform_has_its_own() -> Result<()> {
    need!(Root, Judges);
    let env = TestEnv::new()?;
    let context = env.context("main", "FROM base\nCOPY --from=files f /\n", &[])?;
    let (any, mine) = (env.context("any", "", &[("f", "any")])?, env.context("mine", "", &[("f", "mine")])?);
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let named = [
        "base=docker-image://scratch".to_owned(),
        format!("files={}", any.display()),
        format!("files::linux/{architecture}={}", mine.display()),
    ];
    let file = env.work().join("out.tar");
    let output = format!("type=oci,dest={}", file.display());
    let args = [
        "--build-context",
        &named[0],
        "--build-context",
        &named[1],
        "--build-context",
        &named[2],
        "-o",
        &output,
    ];
    env.build(&context, &args)?.ok();
    assert_eq!(judge::unpack(&format!("oci-archive:{}", file.display()))?.text("/f")?, "mine");
    Ok(())
}

/// A layout whose `index.json` has two images of one name: as one per platform, without saying so as skopeo does, and as
/// two for the same platform. `load` and contexts take the same view.
#[test]
fn images_of_one_name_in_a_layout_are_told_apart_by_platform_or_refused() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?;
    let context =
        env.context("main", "FROM scratch\nARG TARGETARCH WHICH\nLABEL a=$TARGETARCH-$WHICH\n", &[])?;
    let archive = env.work().join("out.tar");
    let mut all: Vec<serde_json::Value> = Vec::new();
    let (joined, index) = (env.work().join("joined"), env.work().join("joined/index.json"));
    for (architecture, which) in [("arm64", "1"), ("amd64", "1"), ("amd64", "2")] {
        let output = format!("type=oci,tar=false,dest={}", joined.display());
        let args = ["--platform", &format!("linux/{architecture}"), "--build-arg", &format!("WHICH={which}")];
        let args: Vec<&str> =
            args.into_iter().chain(["-t", "x:1", "--provenance=false", "-o", &output]).collect();
        env.build(&context, &args)?.ok();
        let made: serde_json::Value = serde_json::from_slice(&fs::read(&index)?)?;
        let mut entry = made["manifests"].as_array().and_then(|all| all.last()).cloned().unwrap_or_default();
        entry.as_object_mut().map(|entry| entry.remove("platform"));
        all.push(entry);
    }
    let write = |entries: &[serde_json::Value]| -> Result<()> {
        fs::write(&index, serde_json::json!({"schemaVersion": 2, "manifests": entries}).to_string())?;
        let mut tar = Command::new("tar");
        anyhow::ensure!(tar.arg("-C").arg(&joined).arg("-cf").arg(&archive).arg(".").status()?.success());
        Ok(())
    };
    let base = env.context("base", "FROM base\n", &[])?;
    let named = format!("base=oci-layout://{}:1", joined.display());
    let archive = archive.display().to_string();
    let label = ["image", "inspect", "--format", "{{.Config.Labels.a}}"];
    write(&all[..2])?;
    env.build(&base, &["--build-context", &named, "-t", "got", "--platform", "linux/amd64"])?.ok();
    assert_eq!(env.run(label.into_iter().chain(["got"]))?.ok().stdout.trim(), "amd64-1");
    env.run(["load", "--platform", "linux/arm64", "-i", &archive])?.ok();
    assert_eq!(env.run(label.into_iter().chain(["x:1"]))?.ok().stdout.trim(), "arm64-1");
    write(&all)?;
    let digests: Vec<&str> = all[1..].iter().filter_map(|entry| entry["digest"].as_str()).collect();
    let words = format!("for linux/amd64: {}", digests.join(", "));
    let platform = ["--build-context", &named, "--platform", "linux/amd64"];
    env.build(&base, &platform)?.exits(1).says(&["has 2 images `1`", &words, "oci-layout://"]);
    env.run(["load", "--platform", "linux/amd64", "-i", &archive])?
        .exits(1)
        .says(&["it has 2 images `x:1`", &words]);
    assert_eq!(
        env.run(label.into_iter().chain(["x:1"]))?.ok().stdout.trim(),
        "arm64-1",
        "nothing was renamed"
    );
    Ok(())
}
