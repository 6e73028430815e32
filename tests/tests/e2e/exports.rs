//! Results that are no image in the store: files, archives, a Docker engine; and how images are written.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};
use rbuild_tests::{TestEnv, judge, need};
use serde_json::{Value, json};

use crate::world;

const FILES: &str = "FROM busybox AS made\n\
    RUN mkdir -p /out/sub && echo built > /out/sub/result && ln -s sub/result /out/link\n\
    RUN chown 1000:1000 /out/sub/result && chmod 4755 /out/sub/result && ln /out/sub/result /out/hard\n\
    FROM scratch\n\
    COPY --from=made /out /\n\
    COPY --chown=7:8 given /given\n";

#[test]
fn files_of_the_result_land_in_a_directory_of_the_caller() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("files", FILES, &[("given", "given\n")])?;
    let out = env.work().join("out");
    env.write("work/out/old", "old")?;
    env.write("work/outside/result", "untouched")?;
    // An earlier export may have left anything.
    symlink(env.work().join("outside"), out.join("sub"))?;
    let run = env.build(&context, &["-o", "out", "-t", "me/files"])?.ok();
    run.says(&["exporting to client directory", "written  out"]);
    assert_eq!(fs::read_to_string(out.join("sub/result"))?, "built\n");
    assert_eq!(fs::read_to_string(env.work().join("outside/result"))?, "untouched");
    assert_eq!(fs::read_link(out.join("link"))?, Path::new("sub/result"));
    let found = fs::metadata(out.join("sub/result"))?;
    assert_eq!(
        (found.permissions().mode() & 0o7777, found.uid()),
        (0o755, 0),
        "the caller's, and no setuid bit"
    );
    assert_eq!(found.ino(), fs::metadata(out.join("hard"))?.ino());
    assert!(out.join("old").exists(), "mode=copy keeps what is there");
    assert!(!env.run(["images"])?.ok().stdout.contains("me/files"), "no image was asked for");

    env.build(&context, &["-o", "type=local,dest=out,mode=delete"])?.ok();
    assert!(!out.join("old").exists() && out.join("given").exists());
    for (dest, why) in [
        (".", "the working directory is in it"),
        ("/tmp", "is in it"),
        ("files", "the build context is in it"),
    ] {
        let spec = format!("type=local,dest={dest},mode=delete");
        env.build(&context, &["-o", &spec])?.exits(1).says(&["refusing mode=delete", why]);
    }
    let elsewhere = tempfile::tempdir()?;
    let spec = format!("type=local,dest={},mode=delete", elsewhere.path().display());
    env.build(&context, &["-o", &spec])?.exits(1).says(&["it is not below the working directory"]);
    Ok(())
}

#[test]
fn files_of_the_result_are_one_tar_and_each_platform_has_its_directory() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("tar", FILES, &[("given", "given\n")])?;
    let listed = |bytes: &[u8]| -> Result<Vec<String>> {
        let file = env.work().join("listed.tar");
        fs::write(&file, bytes)?;
        let output = Command::new("tar").args(["-tvf"]).arg(&file).args(["--numeric-owner"]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        Ok(text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect())
    };
    let mut command = env.command(["build", "--progress=none", "-o", "-", &context.to_string_lossy()]);
    command.env("SOURCE_DATE_EPOCH", "1000000000");
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = listed(&output.stdout)?;
    let has = |text: &str| assert!(lines.iter().any(|line| line.contains(text)), "{text}: {lines:#?}");
    has("-rw-r--r-- 7/8 6 2001-09-09");
    has("sub/result");
    has("link -> sub/result");
    assert!(lines.iter().any(|line| line.starts_with("-rwsr-xr-x 1000/1000 6")), "{lines:#?}");

    let spec = format!("type=tar,dest={}", env.work().join("two.tar").display());
    let text = "FROM scratch\nARG TARGETARCH\nCOPY <<x /$TARGETARCH\n1\nx\n";
    let context = env.context("two", text, &[])?;
    let platforms = "--platform=linux/amd64,linux/arm64";
    env.build(
        &context,
        &[platforms, "-o", &spec, "-o", "split", "-o", "type=local,dest=merged,platform-split=false"],
    )?
    .ok();
    let lines = listed(&fs::read(env.work().join("two.tar"))?)?;
    for name in ["linux_amd64/amd64", "linux_arm64/arm64"] {
        assert!(lines.iter().any(|line| line.ends_with(name)), "{lines:#?}");
        assert!(env.work().join("split").join(name).is_file(), "{name}");
    }
    assert!(env.work().join("merged/amd64").is_file() && env.work().join("merged/arm64").is_file());
    let clash = env.context("clash", "FROM scratch\nCOPY <<x /same\n1\nx\n", &[])?;
    env.build(&clash, &[platforms, "-o", "type=local,dest=clash-out,platform-split=false"])?
        .exits(1)
        .says(&["/same is in the images of linux/amd64 and linux/arm64"]);
    // An attestation must not take the place of another platform's file.
    let named = "FROM scratch AS arm64\nCOPY <<x /provenance.linux_amd64.json\n1\nx\nFROM scratch AS amd64\n\
        COPY <<x /other\n1\nx\nFROM ${TARGETARCH}\n";
    let named = env.context("named", &format!("ARG TARGETARCH\n{named}"), &[])?;
    let spec = "type=local,dest=named-out,platform-split=false";
    env.build(&named, &[platforms, "--provenance", "-o", spec])?
        .exits(1)
        .says(&["have `provenance.linux_amd64.json` already"]);
    let spec = "type=local,dest=named-out";
    env.build(&named, &[platforms, "--provenance", "-o", spec])?.ok();
    Ok(())
}

#[test]
fn a_docker_archive_and_a_docker_engine_get_the_image() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (_registry, env) = world()?;
    let context = env.context("docker", "FROM busybox\nRUN echo for-docker > /x\n", &[])?;
    let file = env.work().join("docker.tar");
    let spec = format!("type=docker,dest={}", file.display());
    let (_, id) = env.build_id(&context, &["-t", "me/app:7", "-o", &spec])?;
    let archive = format!("docker-archive:{}", file.display());
    assert_eq!(judge::unpack(&format!("{archive}:me/app:7"))?.text("/x")?, "for-docker\n");

    // An engine that says yes, and one that says no.
    for (answer, code) in [
        ("{\"stream\":\"Loaded image: x\"}\n", 0),
        ("{\"stream\":\"x\"}\n{\"errorDetail\":{\"message\":\"no more room\"}}\n", 1),
    ] {
        let socket = env.work().join(format!("engine-{code}.sock"));
        let engine = engine(&socket, answer)?;
        let host = format!("unix://{}", socket.display());
        let mut command = env.command([
            "build",
            "--progress=plain",
            "-t",
            "me/app:7",
            "--load",
            &context.to_string_lossy(),
        ]);
        command.env("DOCKER_HOST", &host);
        let run = env.start(command)?.finish()?.exits(code);
        let (request, body) = engine.join().map_err(|_| anyhow::anyhow!("the engine panicked"))??;
        assert!(request.starts_with("POST /images/load?quiet=1 HTTP/1.1"), "{request}");
        let received = env.work().join("received.tar");
        fs::write(&received, body)?;
        let config = judge::config(&format!("docker-archive:{}:me/app:7", received.display()))?;
        assert!(config["config"]["Env"].is_array(), "{config}");
        if code == 1 {
            run.says(&["no more room", &host]);
        } else {
            assert!(run.stderr.contains(&id), "the same image\n{run}");
        }
    }
    let mut command = env.command(["build", "-t", "x", "--load", &context.to_string_lossy()]);
    command.env("DOCKER_HOST", "unix:///nowhere/docker.sock");
    env.start(command)?.finish()?.exits(1).says(&[
        "unix:///nowhere/docker.sock",
        "DOCKER_HOST",
        "type=docker,dest=",
    ]);
    Ok(())
}

/// An engine that answers; ends with what it was asked.
type Answering = thread::JoinHandle<Result<(String, Vec<u8>)>>;

/// Answers one request on a socket; gives its first line and its decoded body.
fn engine(socket: &Path, answer: &'static str) -> Result<Answering> {
    let listener = UnixListener::bind(socket)?;
    Ok(thread::spawn(move || {
        let (stream, _) = listener.accept()?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = || -> Result<String> {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            Ok(line.trim_end().to_owned())
        };
        let request = line()?;
        while !line()?.is_empty() {}
        let mut body = Vec::new();
        loop {
            let mut size = String::new();
            reader.read_line(&mut size)?;
            let size = usize::from_str_radix(size.trim(), 16).context("a chunk's size")?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk)?;
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                break;
            }
        }
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len());
        (&stream).write_all(format!("{head}{answer}").as_bytes())?;
        Ok((request, body))
    }))
}

#[test]
fn media_types_compression_and_annotations_are_as_asked() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (registry, env) = world()?;
    let context = env.context("forms", "FROM busybox\nRUN echo form > /x\n", &[])?;
    let kinds = |manifest: &Value| -> Vec<String> {
        let layers = manifest["layers"].as_array().cloned().unwrap_or_default();
        let kind = |value: &Value| value["mediaType"].as_str().unwrap_or_default().to_owned();
        std::iter::once(kind(&manifest["config"])).chain(layers.iter().map(kind)).collect()
    };
    let name = format!("{}/forms/image", registry.host());
    let docker = "application/vnd.docker";
    let oci = "application/vnd.oci.image";
    for (attributes, expected) in [
        (
            "oci-mediatypes=false",
            vec![
                format!("{docker}.container.image.v1+json"),
                format!("{docker}.image.rootfs.diff.tar.gzip"),
                format!("{docker}.image.rootfs.diff.tar.gzip"),
            ],
        ),
        (
            "compression=zstd",
            vec![
                format!("{oci}.config.v1+json"),
                format!("{oci}.layer.v1.tar+gzip"),
                format!("{oci}.layer.v1.tar+zstd"),
            ],
        ),
        (
            "compression=zstd,force-compression=true",
            vec![
                format!("{oci}.config.v1+json"),
                format!("{oci}.layer.v1.tar+zstd"),
                format!("{oci}.layer.v1.tar+zstd"),
            ],
        ),
        (
            "compression=uncompressed,force-compression=true",
            vec![
                format!("{oci}.config.v1+json"),
                format!("{oci}.layer.v1.tar"),
                format!("{oci}.layer.v1.tar"),
            ],
        ),
    ] {
        let spec = format!("type=registry,name={name}:form,{attributes}");
        let (_, digest) = env.build_digest(&context, &["-o", &spec])?;
        let remote = format!("docker://{name}:form");
        assert_eq!(kinds(&judge::raw(&remote)?), expected, "{attributes}");
        assert_eq!(judge::digest(&remote)?, digest);
        if attributes.contains("zstd") {
            // umoci cannot read it; skopeo checks every digest on the way.
            let copied = tempfile::tempdir()?;
            judge::copy(&remote, &format!("dir:{}", copied.path().display()))?;
        } else {
            assert_eq!(judge::unpack(&remote)?.text("/x")?, "form\n");
        }
    }

    // Without a tag, and with annotations of every kind.
    let file = env.work().join("annotated.tar");
    let spec = format!("type=oci,dest={},annotation.own=1", file.display());
    let pushed = format!("type=image,push=true,push-by-digest=true,name={name}-untagged");
    let all = [
        "--platform=linux/amd64,linux/arm64",
        "--annotation",
        "a=b",
        "--annotation",
        "index:i=j",
        "--annotation",
        "manifest-descriptor[linux/arm64]:d=e",
        "--annotation",
        "index-descriptor:x=y",
        "-o",
        &spec,
        "-o",
        &pushed,
    ];
    let plain = env.context("annotated", "FROM scratch\nCOPY <<x /x\n1\nx\n", &[])?;
    env.build_digest(&plain, &all)?;
    let index = judge::raw(&format!("oci-archive:{}", file.display()))?;
    assert_eq!(index["annotations"], json!({"i": "j"}));
    assert_eq!(index["manifests"][0]["annotations"], Value::Null);
    assert_eq!(index["manifests"][1]["annotations"], json!({"d": "e"}));
    let layout = env.work().join("unpacked-layout");
    fs::create_dir(&layout)?;
    ensure!(Command::new("tar").arg("-xf").arg(&file).arg("-C").arg(&layout).status()?.success());
    let top: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    assert_eq!(top["manifests"][0]["annotations"]["x"], json!("y"));
    let digest = index["manifests"][0]["digest"].as_str().context("digest")?;
    let manifest: Value =
        serde_json::from_slice(&fs::read(layout.join("blobs").join(digest.replace(':', "/")))?)?;
    assert_eq!(manifest["annotations"], json!({"a": "b", "own": "1"}));
    // The pushed one lacks the annotation of the other output.
    let tags = env.run(["images", "--digests"])?.ok();
    let row = tags
        .stdout
        .lines()
        .find(|line| line.contains("-untagged"))
        .context("it is in the store by its digest")?;
    let digest = row.split_whitespace().find(|word| word.starts_with("sha256:")).context("digest")?;
    assert_eq!(judge::digest(&format!("docker://{name}-untagged@{digest}"))?, digest);
    env.build(&context, &["--annotation", "index:a=b", "-o", "type=oci,dest=x.tar"])?
        .exits(1)
        .says(&["annotation `a` is for the index"]);
    Ok(())
}

/// Builds the same thing in as different a way as one machine allows and gives the manifest's digest.
fn build_somewhere(which: usize) -> Result<(String, String)> {
    let registry = rbuild_tests::Registry::shared()?;
    let env = TestEnv::new()?.using(&registry)?;
    let text = "FROM busybox\nWORKDIR /made/here\nCOPY . /ctx/\nRUN date > /dev/null; echo step > /s; touch -d '2001-01-01 00:00:00' /old\n\
                COPY --chown=3:4 a /b/c/\nENV X=1\n";
    let dir = ["first", "second/deeper/place"][which];
    let mut files = [("a", "a\n"), ("d/b", "b\n"), ("d/e/c", "c\n"), ("z", "z\n")];
    if which == 1 {
        files.reverse();
    }
    let context = env.context(dir, text, &files)?;
    let context = context.to_str().context("UTF-8")?;
    let file = env.work().join("out.tar");
    let (spec, metadata) = (format!("type=oci,dest={}", file.display()), env.work().join("m.json"));
    let binary = env.command(["x"]);
    let program = binary.get_program().to_string_lossy().into_owned();
    let jobs = ["1", "7"][which];
    let mut line = format!(
        "umask {}; exec {} {program} build --progress=plain --jobs {jobs} --no-cache={} -o '{spec}' --metadata-file '{}' '{context}'",
        ["022", "077"][which],
        ["", "taskset -c 0"][which],
        ["false", "true"][which],
        metadata.display(),
    );
    if which == 1 {
        line = format!("cd /; {line}");
    }
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(line).env_clear().envs(binary.get_envs().filter_map(|(k, v)| Some((k, v?))));
    command.current_dir(env.work()).stdin(std::process::Stdio::null());
    command.env("SOURCE_DATE_EPOCH", "1700000000");
    command.env("TZ", ["UTC", "Asia/Kathmandu"][which]).env("LC_ALL", ["C", "tr_TR.UTF-8"][which]);
    command.env("HOSTNAME", ["one", "two"][which]);
    env.start(command)?.finish()?.ok();
    let metadata: Value = serde_json::from_slice(&fs::read(metadata)?)?;
    let digest = metadata["containerimage.digest"].as_str().context("digest")?.to_owned();
    let archive = Command::new("sha256sum").arg(&file).output()?;
    let archive = String::from_utf8(archive.stdout)?.split_whitespace().next().unwrap_or_default().to_owned();
    if which == 1 {
        let config = judge::config(&format!("oci-archive:{}", file.display()))?;
        assert_eq!(config["created"], json!("2023-11-14T22:13:20Z"));
        let unpacked = judge::unpack(&format!("oci-archive:{}", file.display()))?;
        let time = |path: &str| fs::symlink_metadata(unpacked.root().join(path)).map(|found| found.mtime());
        for path in ["made", "made/here", "ctx/a", "s", "b", "b/c/a"] {
            assert_eq!(time(path)?, 1_700_000_000, "{path}");
        }
        assert_eq!(time("old")?, 978_307_200, "older times stay");
    }
    Ok((digest, archive))
}

#[test]
fn golden_157_one_epoch_gives_one_digest_wherever_and_whenever_it_is_built() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let first = build_somewhere(0)?;
    // The next second: what depends on the clock shows.
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map(|d| d.as_secs());
    let second = now()?;
    while now()? == second {
        thread::yield_now();
    }
    assert_eq!(first, build_somewhere(1)?);
    Ok(())
}

#[test]
fn the_epoch_may_come_from_the_dockerfile_or_the_last_commit() -> Result<()> {
    need!(Root, Registry, Judges);
    let env = TestEnv::new()?;
    let created = |env: &TestEnv, context: &Path, arguments: &[&str]| -> Result<Value> {
        let spec = format!("type=oci,dest={}", env.work().join("e.tar").display());
        env.build(context, &[&["-o", spec.as_str()], arguments].concat())?.ok();
        Ok(judge::config(&format!("oci-archive:{}", env.work().join("e.tar").display()))?["created"].clone())
    };
    let text = "ARG SOURCE_DATE_EPOCH=1000000000\nFROM scratch\nCOPY f /f\n";
    let context = env.context("epoch", text, &[("f", "f")])?;
    assert_eq!(created(&env, &context, &[])?, json!("2001-09-09T01:46:40Z"));
    assert_eq!(created(&env, &context, &["--build-arg=SOURCE_DATE_EPOCH=0"])?, json!("1970-01-01T00:00:00Z"));
    let bad = env.context("bad", "ARG SOURCE_DATE_EPOCH=soon\nFROM scratch\nCOPY f /f\n", &[("f", "f")])?;
    env.build(&bad, &[])?.exits(1).says(&["invalid SOURCE_DATE_EPOCH: soon", "Dockerfile:1"]);

    env.build(&context, &["--source-date-epoch=git"])?.exits(1).says(&["cannot tell when the last commit"]);
    for arguments in [
        &["init", "-q"][..],
        &["add", "."],
        &["-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "x"],
    ] {
        let status = Command::new("git")
            .arg("-C")
            .arg(&context)
            .args(arguments)
            .env("GIT_COMMITTER_DATE", "1500000000 +0000")
            .status()?;
        ensure!(status.success());
    }
    assert_eq!(created(&env, &context, &["--source-date-epoch=git"])?, json!("2017-07-14T02:40:00Z"));
    Ok(())
}
