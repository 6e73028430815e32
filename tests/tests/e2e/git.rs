//! Git repositories: ADD, contexts, named contexts (dockerfile reference 3.10 and 5; hostile case C7).

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::Result;
use rbuild_tests::git::{COMMIT_TIME, GitServer};
use rbuild_tests::{Run, TestEnv, judge, need};

fn built(env: &TestEnv, context: &str, args: &[&str]) -> Result<(Run, judge::Unpacked)> {
    let file = env.work().join("out.tar");
    let output = format!("type=oci,dest={}", file.display());
    let run = env.build(Path::new(context), &[&["-o", &output], args].concat())?.ok();
    Ok((run, judge::unpack(&format!("oci-archive:{}", file.display()))?))
}

fn names(unpacked: &judge::Unpacked) -> Result<Vec<String>> {
    let listing = unpacked.listing()?;
    Ok(listing.iter().map(|line| line.split(' ').take(3).collect::<Vec<_>>().join(" ")).collect())
}

#[test]
fn add_brings_the_files_of_a_commit_and_fetches_them_once() -> Result<()> {
    need!(Root, Judges);
    let (server, env) = (GitServer::start(None)?, TestEnv::new()?);
    let repository = server.repository("app")?;
    fs::write(repository.work().join("run.sh"), "#!/bin/sh\n")?;
    fs::set_permissions(repository.work().join("run.sh"), fs::Permissions::from_mode(0o775))?;
    symlink("/etc/passwd", repository.work().join("link"))?;
    // Attributes that would leave files out of an archive, or change them, must not.
    let attributes = "hidden export-ignore\nsub/f export-subst\n";
    let first =
        repository.commit(&[("sub/f", "$Format:%H$"), ("hidden", "x"), (".gitattributes", attributes)])?;
    let url = server.url("app");
    let context =
        env.context("git", &format!("FROM scratch\nADD {url} /src\nADD {url}#main:sub /sub/\n"), &[])?;
    let context = context.to_string_lossy().into_owned();
    let (_, unpacked) = built(&env, &context, &[])?;
    assert_eq!(
        names(&unpacked)?,
        [
            "src 040755 0:0",
            "src/.gitattributes 100644 0:0",
            "src/hidden 100644 0:0",
            "src/link 120777 0:0",
            "src/run.sh 100755 0:0",
            "src/sub 040755 0:0",
            "src/sub/f 100644 0:0",
            "sub 040755 0:0",
            "sub/f 100644 0:0",
        ]
    );
    assert_eq!(unpacked.text("/src/sub/f")?, "$Format:%H$");
    assert_eq!(fs::metadata(unpacked.root().join("src/hidden"))?.mtime(), COMMIT_TIME);
    let asked = server.web().seen().len();
    env.build(Path::new(&context), &[])?.ok().assert_all_cached();
    let again: Vec<_> = server.web().seen().split_off(asked).into_iter().map(|seen| seen.path).collect();
    // Two references are asked for, nothing is fetched.
    assert!(again.len() <= 6 && again.iter().all(|target| !target.contains("git-receive")), "{again:?}");
    // A commit is what it is: it needs no network, not even once another build had it.
    let second = repository.commit(&[("sub/f", "changed")])?;
    let moved = format!("changed {}.. -> {}..", &first[..19], &second[..19]);
    let because = [format!("not cached: {url} {moved}"), format!("not cached: {url}#main:sub {moved}")];
    env.build(Path::new(&context), &[])?.ok().says(&because.each_ref().map(String::as_str));
    // The same commit, other files of it.
    let kept = format!("FROM scratch\nADD --keep-git-dir=true {url} /src\nADD {url}#main:sub /sub/\n");
    fs::write(Path::new(&context).join("Dockerfile"), kept)?;
    env.build(Path::new(&context), &[])?.ok().says(&[&format!("not cached: files in {url} changed")]);
    let pinned = env.context("pinned", &format!("FROM scratch\nADD {url}#{first} /\n"), &[])?;
    env.build(&pinned, &[])?.ok();
    drop(server);
    env.build(&pinned, &[])?.ok().assert_all_cached();
    let other = env.context("other", &format!("FROM scratch\nADD {url}#{first} /elsewhere/\n"), &[])?;
    env.build(&other, &[])?.ok();
    env.build(Path::new(&context), &[])?.exits(1).says(&["git ls-remote failed"]);
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn references_checksums_and_the_query_form_lead_to_the_same_commit() -> Result<()> {
    need!(Root, Judges);
    let (server, env) = (GitServer::start(None)?, TestEnv::new()?);
    let repository = server.repository("app")?;
    let tagged = repository.commit(&[("f", "tagged"), ("d/f", "below")])?;
    repository.git(&["tag", "-a", "-m", "x", "v1"])?;
    repository.git(&["push", "--quiet", "origin", "v1", "HEAD:refs/heads/old"])?;
    let latest = repository.commit(&[("f", "latest")])?;
    let url = server.url("app");
    for (source, flags, text) in [
        (format!("{url}#v1"), "", "tagged"),
        (format!("{url}?tag=v1"), "", "tagged"),
        (format!("{url}?branch=old&subdir=d"), "", "below"),
        (format!("{url}?ref=old#:d"), "", "below"),
        (format!("{url}?commit={tagged}"), "", "tagged"),
        (format!("{url}#main"), &format!("--checksum={latest} "), "latest"),
        (format!("{url}#v1"), &format!("--checksum={} ", &tagged[..12]), "tagged"),
    ] {
        let context = env.context("refs", &format!("FROM scratch\nADD {flags}{source} /\n"), &[])?;
        let (_, unpacked) = built(&env, &context.to_string_lossy(), &[])?;
        assert_eq!(unpacked.text("/f")?, text, "{source}");
    }
    for (source, words) in [
        (format!("--checksum={latest} {url}#v1"), "expected checksum to match"),
        (format!("{url}#none"), "git reference `none` was not found"),
        (format!("{url}#main:f"), "is not a directory"),
        (format!("{url}#main:missing"), "is not a directory"),
        (format!("{url}#--upload-pack=touch"), "invalid git reference"),
        (format!("{url}?what=x"), "unexpected query \"what\""),
        (server.url("none"), "git ls-remote failed"),
    ] {
        let context = env.context("refs", &format!("FROM scratch\nADD {source} /\n"), &[])?;
        env.build(&context, &[])?.exits(1).says(&[words]);
    }
    // Whoever else wants the same of the repository.
    let text = format!("FROM scratch\nADD {url}#main /a/\nADD --checksum={tagged} {url}#main /b/\n");
    let context = env.context("refs", &text, &[])?;
    env.build(&context, &[])?.exits(1).says(&["expected checksum to match"]);
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn submodules_come_along_and_hostile_ones_do_not() -> Result<()> {
    need!(Root, Judges);
    let (server, env) = (GitServer::start(None)?, TestEnv::new()?);
    let inner = server.repository("inner")?;
    inner.commit(&[("deep", "deep")])?;
    let library = server.repository("library")?;
    library.commit(&[
        ("lib.c", "int x;"),
        (".gitmodules", "[submodule \"i\"]\n\tpath = in\n\turl = ../inner.git\n"),
    ])?;
    let link = |repository: &rbuild_tests::git::Repository, path: &str, commit: &str| {
        repository.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{commit},{path}")])
    };
    link(&library, "in", &inner.git(&["rev-parse", "HEAD"])?)?;
    library.git(&["commit", "--quiet", "-m", "link"])?;
    library.git(&["push", "--quiet", "origin", "HEAD:main"])?;
    let app = server.repository("app")?;
    app.commit(&[
        ("f", "f"),
        (".gitmodules", "[submodule \"l\"]\n\tpath = vendor/lib\n\turl = ../library.git\n"),
    ])?;
    link(&app, "vendor/lib", &library.git(&["rev-parse", "HEAD"])?)?;
    app.git(&["commit", "--quiet", "-m", "link"])?;
    app.git(&["push", "--quiet", "origin", "HEAD:main"])?;
    let url = server.url("app");
    let context =
        env.context("sub", &format!("FROM scratch\nADD {url} /a\nADD {url}?submodules=false /b\n"), &[])?;
    let (_, unpacked) = built(&env, &context.to_string_lossy(), &[])?;
    assert_eq!(unpacked.text("/a/vendor/lib/lib.c")?, "int x;");
    assert_eq!(unpacked.text("/a/vendor/lib/in/deep")?, "deep");
    assert!(!unpacked.root().join("b/vendor/lib/lib.c").exists());
    for address in ["ext::sh -c touch% /tmp/x", "file:///etc", "/etc", "-u./payload"] {
        let text = format!("[submodule \"l\"]\n\tpath = vendor/lib\n\turl = {address}\n");
        fs::write(app.work().join(".gitmodules"), text)?;
        app.git(&["commit", "--quiet", "-m", "hostile", ".gitmodules"])?;
        app.git(&["push", "--quiet", "origin", "HEAD:main"])?;
        env.build(&context, &[])?.exits(1).says(&["submodule `vendor/lib`", "only http, https, ssh and git"]);
    }
    // Where clouds keep their credentials.
    let text = "[submodule \"l\"]\n\tpath = vendor/lib\n\turl = http://169.254.169.254/latest.git\n";
    fs::write(app.work().join(".gitmodules"), text)?;
    app.git(&["commit", "--quiet", "-m", "metadata", ".gitmodules"])?;
    app.git(&["push", "--quiet", "origin", "HEAD:main"])?;
    env.build(&context, &[])?.exits(1).says(&["refusing to connect to http://169.254.169.254", "link-local"]);
    // Neither may the Dockerfile; a name is looked up once, and git told what it means.
    let metadata = env.context("metadata", "FROM scratch\nADD http://169.254.169.254/x.git /\n", &[])?;
    env.build(&metadata, &[])?
        .exits(1)
        .says(&["refusing to connect to http://169.254.169.254", "link-local"]);
    let named = url.replace("127.0.0.1", "localhost");
    let context = env.context("named", &format!("FROM scratch\nADD {named}?submodules=false /a\n"), &[])?;
    let (_, unpacked) = built(&env, &context.to_string_lossy(), &[])?;
    assert_eq!(unpacked.text("/a/f")?, "f");
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn a_repository_may_have_very_many_files() -> Result<()> {
    need!(Root, Judges);
    let (server, env) = (GitServer::start(None)?, TestEnv::new()?);
    let app = server.repository("app")?;
    app.commit(&[("small/f", "f")])?;
    let (blob, small) = (app.git(&["rev-parse", "HEAD:small/f"])?, app.git(&["rev-parse", "HEAD:small"])?);
    // 400,000 files of two trees: more than 64 MiB as a listing, and next to nothing to fetch.
    let long = "n".repeat(200);
    let files: String = (0..1000).map(|at| format!("100644 blob {blob}\t{long}{at}\n")).collect();
    let files = app.tree(&files)?;
    let dirs: String = (0..400).map(|at| format!("040000 tree {files}\t{at}\n")).collect();
    let dirs = app.tree(&dirs)?;
    let root = app.tree(&format!("040000 tree {dirs}\tlarge\n040000 tree {small}\tsmall\n"))?;
    let commit = app.git(&["commit-tree", "-m", "many", &root])?;
    app.git(&["push", "--quiet", "--force", "origin", &format!("{commit}:refs/heads/main")])?;
    let url = server.url("app");
    let context = env.context("many", &format!("FROM scratch\nADD {url}#main:small /a\n"), &[])?;
    let (_, unpacked) = built(&env, &context.to_string_lossy(), &[])?;
    assert_eq!(unpacked.text("/a/f")?, "f");
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn the_git_directory_comes_only_when_asked_for_and_without_hooks() -> Result<()> {
    need!(Root, Judges);
    let (server, env) = (GitServer::start(None)?, TestEnv::new()?);
    let repository = server.repository("app")?;
    let commit = repository.commit(&[("f", "content"), ("d/f", "x")])?;
    let url = server.url("app");
    let text = format!(
        "FROM scratch\nADD --keep-git-dir=true {url} /kept\nADD {url} /bare\nADD --keep-git-dir=true {url}#:d /sub\n"
    );
    let context = env.context("keep", &text, &[])?;
    let (_, unpacked) = built(&env, &context.to_string_lossy(), &[])?;
    let kept = unpacked.root().join("kept");
    assert!(!unpacked.root().join("bare/.git").exists() && !unpacked.root().join("sub/.git").exists());
    assert!(!kept.join(".git/hooks").exists());
    assert_eq!(fs::read_to_string(kept.join(".git/HEAD"))?.trim(), commit);
    let git = |args: &[&str]| -> Result<String> {
        let mut command = std::process::Command::new("git");
        command.arg("-C").arg(&kept).args(["-c", "safe.directory=*"]).args(args);
        Ok(String::from_utf8(command.output()?.stdout)?.trim().to_owned())
    };
    assert_eq!(git(&["log", "--format=%H"])?, commit);
    assert_eq!(git(&["status", "--porcelain"])?, "");
    assert_eq!(git(&["remote", "get-url", "origin"])?, url);
    Ok(())
}

#[test]
fn a_repository_is_a_context_and_its_ignore_file_is_just_a_file() -> Result<()> {
    need!(Root, Judges);
    let (server, env) = (GitServer::start(None)?, TestEnv::new()?);
    let repository = server.repository("app")?;
    let text = "FROM scratch\nCOPY . /\n";
    repository.commit(&[
        ("Dockerfile", text),
        ("f", "root"),
        (".dockerignore", "*\n"),
        ("sub/Dockerfile", text),
        ("sub/g", "g"),
    ])?;
    let url = server.url("app");
    let (_, unpacked) = built(&env, &url, &[])?;
    let root: Vec<String> =
        names(&unpacked)?.iter().filter_map(|l| Some(l.split(' ').next()?.to_owned())).collect();
    assert_eq!(root, [".dockerignore", "Dockerfile", "f", "sub", "sub/Dockerfile", "sub/g"], "case 127");
    env.build(Path::new(&url), &[])?.ok().assert_all_cached();
    let (_, unpacked) = built(&env, &format!("{url}#main:sub"), &[])?;
    assert_eq!(unpacked.text("/g")?, "g");
    // Another Dockerfile in it, and one from outside.
    let (_, unpacked) = built(&env, &url, &["-f", "sub/Dockerfile"])?;
    assert_eq!(unpacked.text("/f")?, "root");
    env.build(Path::new(&url), &["-f", "none"])?.exits(1).says(&["failed to read dockerfile: open none"]);
    let (_, unpacked) = built(&env, &url, &["--build-arg", "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1"])?;
    assert!(unpacked.root().join(".git/HEAD").is_file());
    // And as a named context: a source, a base, a stage's replacement.
    let text = "FROM scratch AS stage\nCOPY nothing /\nFROM base\nCOPY --from=stage g /copied\n";
    let local = env.context("local", text, &[])?;
    let named = [format!("base={url}"), format!("stage={url}#main:sub")];
    let args = ["--build-context", &named[0], "--build-context", &named[1]];
    let (_, unpacked) = built(&env, &local.to_string_lossy(), &args)?;
    assert_eq!((unpacked.text("/copied")?, unpacked.text("/f")?), ("g".to_owned(), "root".to_owned()));
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn nothing_of_the_users_git_has_a_say() -> Result<()> {
    need!(Root);
    let (server, env) = (GitServer::start(None)?, TestEnv::new()?);
    server.repository("app")?.commit(&[("f", "content")])?;
    let marker = env.work().join("marker");
    let config = format!(
        "[core]\n\tfsmonitor = touch {0}\n\tsshCommand = touch {0}\n[url \"http://127.0.0.1:1/\"]\n\tinsteadOf = http://\n[credential]\n\thelper = \"!touch {0}\"\n",
        marker.display()
    );
    env.write("home/.gitconfig", &config)?;
    let context = env.context("user", &format!("FROM scratch\nADD {} /\n", server.url("app")), &[])?;
    env.build(&context, &[])?.ok();
    // A scheme outside the list is no address, and so a path that is not there.
    for source in ["ext::touch%20marker", "file:///etc/x.git"] {
        let context = env.context("ext", &format!("FROM scratch\nADD {source} /\n"), &[])?;
        env.build(&context, &[])?.exits(1).says(&["not found"]);
    }
    assert!(!marker.exists());
    // Without the program there is a word about it.
    let env = TestEnv::new()?.with_variable("PATH", "/nowhere");
    let context = env.context("none", &format!("FROM scratch\nADD {} /\n", server.url("app")), &[])?;
    env.build(&context, &[])?.exits(1).says(&["need the program `git`", "install the package `git`"]);
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn a_server_may_not_send_git_elsewhere() -> Result<()> {
    need!(Root);
    let (server, env) = (GitServer::start(None)?, TestEnv::new()?);
    server.repository("app")?.commit(&[("f", "content")])?;
    let to = server.url("app");
    let web = rbuild_tests::web::Web::serve(move |request| {
        let query = request.path.split_once(".git").map_or("", |(_, rest)| rest);
        rbuild_tests::web::Reply::new(301).header("Location", format!("{to}{query}"))
    })?;
    let context = env.context("moved", &format!("FROM scratch\nADD {} /\n", web.url("/x.git")), &[])?;
    env.build(&context, &[])?.exits(1).says(&["use the address that it redirects to"]);
    assert!(server.web().seen().is_empty());
    env.assert_nothing_left();
    Ok(())
}
