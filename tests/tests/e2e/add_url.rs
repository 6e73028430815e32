//! ADD of files from web servers (dockerfile reference 3.10, golden case 112; hostile case C5).

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use rbuild_tests::web::{Reply, Web};
use rbuild_tests::{Run, TestEnv, judge, need};

/// `Wed, 21 Oct 2015 07:28:00 GMT` in seconds.
const MODIFIED: i64 = 1_445_412_480;
const MODIFIED_TEXT: &str = "Wed, 21 Oct 2015 07:28:00 GMT";

fn built(env: &TestEnv, context: &Path, args: &[&str]) -> Result<(Run, judge::Unpacked)> {
    let file = env.work().join("out.tar");
    let output = format!("type=oci,dest={}", file.display());
    let run = env.build(context, &[&["-o", &output], args].concat())?.ok();
    Ok((run, judge::unpack(&format!("oci-archive:{}", file.display()))?))
}

fn mtime(unpacked: &judge::Unpacked, path: &str) -> Result<i64> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(fs::symlink_metadata(unpacked.root().join(path))?.mtime())
}

/// A file server with validators; `/changing` is another file on every request.
fn files() -> Result<Web> {
    Web::serve(|request| {
        let path = request.path.split('?').next().unwrap_or_default();
        match path {
            "/dir/app.bin" if request.header("if-none-match") == "\"one\"" => Reply::new(304),
            "/dir/app.bin" => Reply::new(200)
                .body("content")
                .header("ETag", "\"one\"")
                .header("Last-Modified", MODIFIED_TEXT),
            "/plain" => Reply::new(200).body("plain"),
            "/" => Reply::new(200).body("root"),
            "/moved" => Reply::new(302).header("Location", "/dir/app.bin"),
            _ => Reply::new(404),
        }
    })
}

#[test]
fn case_112_a_file_has_the_mode_owner_time_and_name_that_docker_gives_it() -> Result<()> {
    need!(Root, Judges);
    let (web, env) = (files()?, TestEnv::new()?);
    let text = format!(
        "FROM scratch\nADD {} /as\nADD {} {} {} local /d/\nADD --chmod=640 --chown=3:4 {} /m\n",
        web.url("/dir/app.bin?sig=/a/b"),
        web.url("/dir/app.bin#x"),
        web.url("/plain"),
        web.url("/"),
        web.url("/moved"),
    );
    let context = env.context("url", &text, &[("local", "of the context")])?;
    let (_, unpacked) = built(&env, &context, &[])?;
    let short = |line: String| line.split(" bytes").next().unwrap_or_default().to_owned();
    let listing: Vec<String> = unpacked.listing()?.into_iter().map(short).collect();
    assert_eq!(
        listing,
        [
            "as 100600 0:0 7",
            "d 040755 0:0 ",
            "d/__unnamed__ 100600 0:0 4",
            "d/app.bin 100600 0:0 7",
            "d/local 100644 0:0 14",
            "d/plain 100600 0:0 5",
            "m 100640 3:4 7",
        ]
    );
    assert_eq!((mtime(&unpacked, "as")?, mtime(&unpacked, "d/plain")?), (MODIFIED, 0));
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn what_did_not_change_is_not_fetched_again_and_serves_without_a_network() -> Result<()> {
    need!(Root, Judges);
    let (web, env) = (files()?, TestEnv::new()?);
    let url = web.url("/dir/app.bin");
    let context = env.context("cached", &format!("FROM scratch\nADD {url} /f\n"), &[])?;
    env.build(&context, &[])?.ok();
    env.build(&context, &[])?.ok().assert_all_cached();
    let seen = web.seen();
    assert_eq!(seen.len(), 2, "{seen:#?}");
    assert_eq!(seen[1].header("if-none-match"), "\"one\"");
    assert_eq!(seen[1].header("if-modified-since"), MODIFIED_TEXT);
    // A known checksum needs no question at all.
    let sum = "sha256:ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73";
    fs::write(context.join("Dockerfile"), format!("FROM scratch\nADD --checksum={sum} {url} /g\n"))?;
    env.build(&context, &[])?.ok();
    env.build(&context, &[])?.ok().assert_all_cached();
    assert_eq!(web.seen().len(), 2);
    env.build(&context, &["--no-cache"])?.ok();
    assert_eq!(web.seen()[2].header("if-none-match"), "");
    drop(web);
    fs::write(context.join("Dockerfile"), format!("FROM scratch\nADD {url} /h\n"))?;
    let (run, unpacked) = built(&env, &context, &[])?;
    run.says(&["cannot be reached: using what it gave on"]);
    assert_eq!(unpacked.text("/h")?, "content");
    env.assert_nothing_left();
    Ok(())
}

/// A server of files as most are: it compares times of whole seconds, and says no more.
#[test]
fn a_file_that_changes_twice_within_a_second_is_fetched_again() -> Result<()> {
    need!(Root);
    let (text, at) = (Arc::new(Mutex::new("one")), httpdate(-30)?);
    let (served, modified) = (Arc::clone(&text), at.clone());
    let web = Web::serve(move |request| match request.header("if-modified-since") {
        "" => Reply::new(200)
            .body(*served.lock().expect("no panic"))
            .header("Last-Modified", &modified)
            .header("Date", httpdate(0).unwrap_or_default()),
        since if since == modified => Reply::new(304),
        _ => Reply::new(400),
    })?;
    let env = TestEnv::new()?;
    let url = web.url("/f");
    let context = env.context("racy", &format!("FROM scratch\nADD {url} /f\n"), &[])?;
    let first = env.build_id(&context, &[])?.1;
    *text.lock().expect("no panic") = "two";
    let second = env.build_id(&context, &[])?.1;
    assert_ne!(first, second);
    // The same for a Dockerfile.
    let (run, same) = env.build_id(&context, &[])?;
    run.assert_all_cached();
    assert_eq!(same, second);
    *text.lock().expect("no panic") = "FROM scratch\nLABEL version=1\n";
    let first = env.build_id(&context, &["-f", &url])?.1;
    *text.lock().expect("no panic") = "FROM scratch\nLABEL version=2\n";
    assert_ne!(env.build_id(&context, &["-f", &url])?.1, first);
    assert!(web.seen().iter().all(|request| request.header("if-modified-since").is_empty()));
    Ok(())
}

/// The time so many seconds from now, as HTTP has it, by the system's `date`.
fn httpdate(seconds: i64) -> Result<String> {
    let at = format!("{seconds} seconds");
    let date = std::process::Command::new("date")
        .args(["-u", "+%a, %d %b %Y %H:%M:%S GMT", "-d", &at])
        .env("LC_ALL", "C")
        .output()?;
    Ok(String::from_utf8(date.stdout)?.trim().to_owned())
}

#[test]
fn a_changed_file_is_fetched_and_an_equal_one_is_the_same_step() -> Result<()> {
    need!(Root);
    let count = AtomicUsize::new(0);
    let web = Web::serve(move |request| match request.path.as_str() {
        "/changing" => {
            let number = count.fetch_add(1, Ordering::SeqCst);
            Reply::new(200).body(format!("version {}", number / 2)).header("ETag", format!("\"{number}\""))
        }
        _ => Reply::new(404),
    })?;
    let env = TestEnv::new()?;
    let context =
        env.context("changing", &format!("FROM scratch\nADD {} /f\n", web.url("/changing")), &[])?;
    let first = env.build_id(&context, &[])?.1;
    let (run, same) = env.build_id(&context, &[])?;
    run.assert_all_cached();
    assert_eq!(first, same);
    let (run, other) = env.build_id(&context, &[])?;
    assert_ne!(other, first);
    run.says(&[&format!("not cached: {} changed sha256:", web.url("/changing"))]);
    Ok(())
}

#[test]
fn case_112_what_is_wrong_with_a_fetched_file_is_said_in_dockers_words() -> Result<()> {
    need!(Root);
    let (web, env) = (files()?, TestEnv::new()?);
    let good = web.url("/plain");
    let bad_sum = format!("sha256:{}", "0".repeat(64));
    let cases = [
        (format!("ADD {} /", web.url("/missing?token=canary")), vec!["invalid response status 404"]),
        (format!("ADD --checksum={bad_sum} {good} /"), vec!["digest mismatch", &bad_sum]),
        (format!("ADD --checksum=md5:00 {good} /"), vec!["unsupported digest algorithm"]),
        (format!("ADD --checksum=zz {good} /"), vec!["invalid checksum digest format"]),
        (format!("ADD --checksum=sha256:00 {good} /"), vec!["invalid checksum digest format"]),
        (
            format!("ADD --checksum={bad_sum} {good} x /"),
            vec!["checksum can't be specified for multiple sources"],
        ),
        (format!("ADD --checksum={bad_sum} Dockerfile /"), vec!["checksum requires HTTP(S) or Git sources"]),
        (format!("ADD --keep-git-dir {good} /"), vec!["keep-git-dir requires a Git source"]),
        (format!("COPY {good} /"), vec!["source can't be a URL for COPY"]),
        ("ADD http:///x /".to_owned(), vec!["names no host"]),
        ("ADD http://127.0.0.1:1/x /".to_owned(), vec!["127.0.0.1", "cannot connect"]),
    ];
    for (line, words) in cases {
        let context = env.context("bad", &format!("FROM scratch\n{line}\n"), &[])?;
        let run = env.build(&context, &["-t", "bad"])?.exits(1).says(&words);
        assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    }
    assert_eq!(env.run(["images", "-q"])?.ok().stdout.trim(), "");
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn a_fetched_archive_is_unpacked_only_when_that_is_asked_for() -> Result<()> {
    need!(Root, Judges);
    let env = TestEnv::new()?;
    let archive = {
        let dir = env.context("t", "", &[("a/b", "content")])?;
        let made = std::process::Command::new("tar")
            .args(["--owner=7", "--group=7", "-cJf", "x.tar.xz", "a"])
            .current_dir(&dir)
            .status()?;
        assert!(made.success());
        fs::read(dir.join("x.tar.xz"))?
    };
    let length = archive.len();
    let web = Web::serve(move |_| Reply::new(200).body(archive.clone()))?;
    let url = web.url("/x.tar.xz");
    let text = format!("FROM scratch\nADD {url} /as/\nADD --unpack=true {url} /out/\n");
    let (_, unpacked) = built(&env, &env.context("archive", &text, &[])?, &[])?;
    let listing = unpacked.listing()?;
    assert!(listing[1].starts_with(&format!("as/x.tar.xz 100600 0:0 {length} ")), "{listing:#?}");
    assert!(listing.iter().any(|line| line.starts_with("out/a/b 100644 7:7")), "{listing:#?}");
    Ok(())
}

#[test]
fn a_server_cannot_send_the_build_elsewhere_or_fill_the_disk() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?;
    let web = Web::serve(|request| match request.path.as_str() {
        "/file" => Reply::new(302).header("Location", "file:///etc/passwd"),
        "/ftp" => Reply::new(301).header("Location", "ftp://127.0.0.1/x"),
        "/metadata" => Reply::new(307).header("Location", "http://169.254.169.254/latest"),
        "/loop" => Reply::new(302).header("Location", "/loop"),
        "/user" => Reply::new(302).header("Location", "http://me:secret@127.0.0.1/x"),
        "/huge" => Reply::new(200).body("x").length(10 << 30),
        "/cut" => Reply::new(200).body("half").length(8),
        _ => Reply::new(500),
    })?;
    for (path, words) in [
        ("/file", "refusing the redirect to `file:///etc/passwd`"),
        ("/ftp", "refusing the redirect to `ftp://127.0.0.1/x`"),
        ("/metadata", "internal address `http://169.254.169.254/latest`"),
        ("/loop", "too many redirects"),
        ("/user", "refusing the redirect to `http://127.0.0.1/x`"),
        ("/huge", "the most that is fetched"),
        ("/cut", "the connection broke"),
    ] {
        let context = env.context("hostile", &format!("FROM scratch\nADD {} /f\n", web.url(path)), &[])?;
        let run = env.build(&context, &["-t", "x"])?.exits(1).says(&[words]);
        assert!(!run.stderr.contains("secret"), "{}", run.stderr);
    }
    let context = env.context("hostile", "FROM scratch\nADD http://169.254.169.254/latest /f\n", &[])?;
    env.build(&context, &[])?.exits(1).says(&["internal address"]);
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn a_broken_download_goes_on_where_it_broke_if_the_file_is_still_the_same() -> Result<()> {
    need!(Root, Judges);
    let env = TestEnv::new()?;
    let web = Web::serve(|request| {
        let whole = "0123456789".repeat(1000);
        let etag = "\"strong\"";
        match request
            .header("range")
            .strip_prefix("bytes=")
            .and_then(|range| range.trim_end_matches('-').parse().ok())
        {
            Some(from) if request.header("if-range") == etag => {
                let rest: String = whole.chars().skip(from).collect();
                let range = format!("bytes {from}-{}/{}", whole.len() - 1, whole.len());
                Reply::new(206).body(rest).header("Content-Range", &range).header("ETag", etag)
            }
            _ => Reply::new(200).body(&whole[..4000]).length(whole.len()).header("ETag", etag),
        }
    })?;
    let context = env.context("cut", &format!("FROM scratch\nADD {} /f\n", web.url("/f")), &[])?;
    let (_, unpacked) = built(&env, &context, &[])?;
    assert_eq!(unpacked.text("/f")?, "0123456789".repeat(1000));
    assert_eq!(web.seen().len(), 2);
    Ok(())
}

#[test]
fn few_addresses_are_asked_and_fetched_at_once() -> Result<()> {
    need!(Root);
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (asked_now, asked_most) = (Arc::clone(&now), Arc::clone(&most));
    let web = Web::serve(move |request| {
        asked_most.fetch_max(asked_now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(100));
        // Before the answer: who asks next may have waited for it.
        asked_now.fetch_sub(1, Ordering::SeqCst);
        if request.path.contains(".git") {
            Reply::new(404)
        } else {
            Reply::new(200).body(request.path.clone())
        }
    })?;
    let env = TestEnv::new()?;
    let add = |ending: &str| -> String {
        (0..12).map(|number| format!("ADD {} /f\n", web.url(&format!("/{number}{ending}")))).collect()
    };
    let files = env.context("files", &format!("FROM scratch\n{}", add("")), &[])?;
    env.build(&files, &[])?.ok();
    let wrong = add("").replace("ADD", &format!("ADD --checksum=sha256:{}", "0".repeat(64)));
    let sums = env.context("sums", &format!("FROM scratch\n{wrong}"), &[])?;
    env.build(&sums, &["--no-cache"])?.exits(1);
    let repositories = env.context("repositories", &format!("FROM scratch\n{}", add(".git")), &[])?;
    env.build(&repositories, &[])?.exits(1).says(&["git ls-remote failed"]);
    assert!((2..=4).contains(&most.load(Ordering::SeqCst)), "{most:?}");
    env.assert_nothing_left();
    Ok(())
}
