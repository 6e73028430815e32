//! `SOURCE_DATE_EPOCH` that names a context, or a stage made of sources, in place of a time.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use rbuild_tests::git::{COMMIT_TIME, GitServer};
use rbuild_tests::web::{Reply, Web};
use rbuild_tests::{TestEnv, judge, need};
use serde_json::{Value, json};

/// What `TZ=UTC date -Rd @1000000000` says.
const MODIFIED: &str = "Sun, 09 Sep 2001 01:46:40 GMT";
const MODIFIED_AS_CREATED: &str = "2001-09-09T01:46:40Z";
/// The newest member of the archive, in both ways of writing.
const PACKED: &str = "@1200000000";
const PACKED_AS_CREATED: &str = "2008-01-10T21:20:00Z";

fn created(env: &TestEnv, context: &str, args: &[&str]) -> Result<Value> {
    let file = env.work().join("dated.tar");
    let output = format!("type=oci,dest={}", file.display());
    env.build(Path::new(context), &[&["-o", &output], args].concat())?.ok();
    let config = judge::config(&format!("oci-archive:{}", file.display()))?;
    fs::remove_file(file)?;
    Ok(config["created"].clone())
}

#[test]
fn the_time_of_sources_dates_the_image() -> Result<()> {
    need!(Root, Judges);
    let env = TestEnv::new()?;
    let server = GitServer::start(None)?;
    let text = "FROM scratch\nCOPY f /f\n";
    server.repository("app")?.commit(&[("Dockerfile", text), ("f", "F")])?;
    let committed = json!(chronological(COMMIT_TIME)?);
    let packed = env.context("packed", text, &[("f", "F")])?;
    let archive = packed.with_extension("tar");
    let status = std::process::Command::new("tar")
        .arg("-cf")
        .arg(&archive)
        .args(["--mtime", PACKED, "-C"])
        .arg(&packed)
        .args(["Dockerfile", "f"])
        .status()?;
    assert!(status.success());
    let bytes = fs::read(&archive)?;
    let web = Web::serve(move |request| match request.path.as_str() {
        "/file" => Reply::new(200).body("content").header("Last-Modified", MODIFIED),
        "/context.tar" => Reply::new(200).body(bytes.clone()),
        _ => Reply::new(404),
    })?;

    // The main context, in each of its kinds that have a time.
    assert_eq!(created(&env, &server.url("app"), &["--source-date-epoch=context"])?, committed);
    let args = ["--build-arg", "SOURCE_DATE_EPOCH=context"];
    assert_eq!(created(&env, &web.url("/context.tar"), &args)?, json!(PACKED_AS_CREATED));
    let mut command =
        env.command(["build", "--source-date-epoch=context", "-o", "type=oci,dest=in.tar", "-"]);
    command.stdin(fs::File::open(&archive)?);
    env.start(command)?.finish()?.ok();
    let config = judge::config(&format!("oci-archive:{}", env.work().join("in.tar").display()))?;
    assert_eq!(config["created"], json!(PACKED_AS_CREATED));

    // A named context, and stages: the newest of what they fetch. What a stage sees of it is the number.
    let text = format!(
        "ARG SOURCE_DATE_EPOCH=sources\nFROM scratch AS sources\nADD {} /old\nADD {} /new/\n\
         FROM scratch AS other\nCOPY f /f\nFROM scratch\nARG SOURCE_DATE_EPOCH\n\
         LABEL at=$SOURCE_DATE_EPOCH\nCOPY f /f\n",
        web.url("/file"),
        server.url("app")
    );
    let local = env.context("local", &text, &[("f", "F")])?;
    let local = local.to_str().context("UTF-8")?;
    assert_eq!(created(&env, local, &[])?, committed, "the commit is newer than the file");
    let named = format!("named={}", web.url("/context.tar"));
    let args = ["--build-context", &named, "--source-date-epoch=named"];
    assert_eq!(created(&env, local, &args)?, json!(PACKED_AS_CREATED));
    let text = format!("FROM scratch AS one\nADD {} /\nFROM scratch\nCOPY f /f\n", web.url("/file"));
    let one = env.context("one", &text, &[("f", "F")])?;
    let one = one.to_str().context("UTF-8")?;
    assert_eq!(created(&env, one, &["--source-date-epoch=one"])?, json!(MODIFIED_AS_CREATED));

    // What has no time, and what is nothing.
    for (name, why) in [
        ("context", "the files of a directory"),
        ("other", "it is not a stage of ADD with addresses"),
        ("nosuch", "invalid SOURCE_DATE_EPOCH: nosuch"),
    ] {
        let args = ["--source-date-epoch", name];
        env.build(Path::new(local), &args)?.exits(1).says(&["invalid SOURCE_DATE_EPOCH", why]);
    }
    env.assert_nothing_left();
    Ok(())
}

/// Seconds since the epoch as RFC 3339, by the system's `date`.
fn chronological(seconds: i64) -> Result<String> {
    let date = std::process::Command::new("date")
        .args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d", &format!("@{seconds}")])
        .output()?;
    Ok(String::from_utf8(date.stdout)?.trim().to_owned())
}

#[test]
fn an_image_built_for_an_epoch_is_saved_and_pushed_from_the_store_later() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (registry, env) = crate::world()?;
    let text = "FROM busybox\nWORKDIR /srv\nRUN echo made > made\n";
    let context = env.context("kept", text, &[])?;
    let epoch = "--source-date-epoch=1700000000";
    let name = format!("{}/epochs/kept", registry.host());
    env.build(&context, &[epoch, "-t", &name])?.ok();
    // The store has layers with the times of the steps; what leaves it has those of the image.
    let archive = env.work().join("kept.tar").to_string_lossy().into_owned();
    env.run(["save", "-o", &archive, &name])?.ok();
    assert_eq!(judge::unpack(&format!("oci-archive:{archive}"))?.text("/srv/made")?, "made\n");
    let pushed = env.run(["push", &name])?.ok().stdout;
    let (_, digest) = env.build_digest(&context, &[epoch, "--push", "-t", &format!("{name}:again")])?;
    assert!(pushed.contains(&digest), "{pushed}: not {digest}");
    assert_eq!(judge::config(&format!("docker://{name}"))?["created"], "2023-11-14T22:13:20Z");
    Ok(())
}
