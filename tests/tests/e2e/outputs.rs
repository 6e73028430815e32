//! Where a build's result goes, and what the command prints and writes.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, symlink};
use std::thread;

use anyhow::{Context, Result};
use rbuild_tests::{TestEnv, judge, need};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use serde_json::{Value, json};

use crate::world;

const IMAGE: &str = "FROM busybox\n\
    LABEL one=1 two=\"two words\"\n\
    ENV GREETING=hello\n\
    ARG VERSION=0\n\
    WORKDIR /srv\n\
    COPY --chown=10:20 --chmod=640 page.html .\n\
    RUN echo $GREETING $VERSION > said\n\
    EXPOSE 80 53/udp\n\
    VOLUME /data\n\
    STOPSIGNAL SIGTERM\n\
    HEALTHCHECK --interval=5s CMD true\n\
    USER nobody\n\
    ENTRYPOINT [\"/bin/sh\", \"-c\"]\n\
    CMD [\"cat said\"]\n";

#[test]
fn an_archive_holds_the_image_that_the_dockerfile_says() -> Result<()> {
    need!(Root, Registry, Bases, Judges, Runtime);
    let (_registry, env) = world()?;
    let context = env.context("image", IMAGE, &[("page.html", "page\n")])?;
    let file = env.work().join("image.tar");
    let output = format!("type=oci,dest={}", file.display());
    let args = ["-o", &output, "--label", "three=3", "--label", "one=uno", "--build-arg", "VERSION=7"];
    let (_, digest) = env.build_digest(&context, &args)?;

    let image = format!("oci-archive:{}", file.display());
    assert_eq!(judge::manifest(&image)?["Digest"], json!(digest));
    let config = judge::config(&image)?;
    let config = &config["config"];
    assert_eq!(config["Labels"], json!({"one": "uno", "three": "3", "two": "two words"}));
    assert!(config["Env"].as_array().is_some_and(|list| list.contains(&json!("GREETING=hello"))), "{config}");
    assert_eq!(config["WorkingDir"], json!("/srv"));
    assert_eq!(config["ExposedPorts"], json!({"53/udp": {}, "80/tcp": {}}));
    assert_eq!(config["Volumes"], json!({"/data": {}}));
    assert_eq!(config["StopSignal"], json!("SIGTERM"));
    assert_eq!(config["User"], json!("nobody"));
    assert_eq!(config["Entrypoint"], json!(["/bin/sh", "-c"]));
    assert_eq!(config["Cmd"], json!(["cat said"]));

    let unpacked = judge::unpack(&image)?;
    let listing = unpacked.listing()?;
    assert!(listing.iter().any(|line| line.starts_with("srv/page.html 100640 10:20 ")), "{listing:#?}");
    assert_eq!(unpacked.start(&[])?.finish()?, "hello 7\n");
    Ok(())
}

#[test]
fn a_directory_layout_is_what_the_archive_holds() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (_registry, env) = world()?;
    let context = env.context("layout", "FROM busybox\nRUN echo x > /x\n", &[])?;
    let (dir, file) = (env.work().join("layout-out"), env.work().join("layout.tar"));
    let to_dir = format!("type=oci,dest={},tar=false", dir.display());
    let to_file = format!("type=oci,dest={}", file.display());
    let (_, first) = env.build_digest(&context, &["-t", "me/layout:5", "-o", &to_dir])?;
    let (_, second) = env.build_digest(&context, &["-t", "me/layout:5", "-o", &to_file])?;
    assert_eq!(first, second);
    assert!(dir.join("oci-layout").is_file() && dir.join("index.json").is_file());
    // Without a name skopeo takes the layout's only image.
    assert_eq!(judge::manifest(&format!("oci:{}", dir.display()))?["Digest"], json!(first));
    assert_eq!(judge::manifest(&format!("oci-archive:{}", file.display()))?["Digest"], json!(first));
    Ok(())
}

#[test]
fn quiet_prints_the_image_id_and_nothing_else() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("quiet", "FROM busybox\nRUN echo noise\n", &[])?;
    let id_file = env.work().join("id");
    let id_path = id_file.to_string_lossy().into_owned();
    let context = context.to_string_lossy().into_owned();
    let run = env.run(["build", "-q", "--iidfile", &id_path, &context])?.ok();
    assert_eq!(run.stderr, "", "{run}");
    let id = run.stdout.strip_suffix('\n').context("one line")?;
    let hex = id.strip_prefix("sha256:").context("a digest")?;
    assert!(hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()), "{run}");
    assert_eq!(fs::read_to_string(&id_file)?, id, "no line end in the file");
    Ok(())
}

#[test]
fn the_metadata_file_names_digest_config_and_tags() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (registry, env) = world()?;
    let context = env.context("metadata", "FROM busybox\nRUN true\n", &[])?;
    let (one, two) = (format!("{}/meta/one:1", registry.host()), format!("{}/meta/two:2", registry.host()));
    let (_, digest) = env.build_digest(&context, &["-t", &one, "-t", &two, "--push"])?;
    let metadata: Value = serde_json::from_slice(&fs::read(env.work().join("metadata.json"))?)?;
    assert_eq!(metadata["image.name"], json!(format!("{one},{two}")));
    assert_eq!(metadata["containerimage.descriptor"]["digest"], json!(digest));
    assert!(
        metadata["containerimage.config.digest"].as_str().is_some_and(|text| text.starts_with("sha256:"))
    );
    for name in [one, two] {
        assert_eq!(judge::manifest(&format!("docker://{name}"))?["Digest"], json!(digest));
    }
    Ok(())
}

#[test]
fn a_failed_build_leaves_no_id_file_of_an_earlier_one() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("fails", "FROM busybox\nRUN false\n", &[])?;
    let id = env.write("work/id", "sha256:old")?;
    env.build(&context, &["--iidfile", &id.to_string_lossy()])?.exits(1).says(&["RUN false"]);
    assert!(!id.exists());
    Ok(())
}

#[test]
fn raw_json_progress_is_one_document_a_line() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("json", "FROM busybox\nRUN echo said-in-the-step\n", &[])?;
    let context = context.to_string_lossy().into_owned();
    let run = env.run(["build", "--progress=rawjson", &context])?.ok();
    let mut lines = 0;
    for line in run.stderr.lines() {
        let document: Value =
            serde_json::from_str(line).with_context(|| format!("`{line}` is no JSON\n{run}"))?;
        assert!(document.is_object(), "{run}");
        lines += 1;
    }
    assert!(lines >= 4, "{run}");
    assert!(run.stderr.contains("RUN echo said-in-the-step"), "{run}");
    Ok(())
}

#[test]
fn plain_progress_shows_steps_output_marks_and_a_summary() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("plain", "FROM busybox\nRUN echo out; echo err >&2\n", &[])?;
    let (run, _) = env.build_digest(&context, &["-t", "me/plain"])?;
    assert_eq!(run.stdout, "", "{run}");
    let run = run.says(&["[2/2] RUN echo out; echo err >&2", " out\n", " err\n", "DONE", "me/plain"]);
    assert!(!run.stderr.contains('\u{1b}'), "no escape sequences off a terminal\n{run}");
    let again = env.build(&context, &["-t", "me/plain"])?.ok().says(&["CACHED"]);
    assert!(!again.stderr.contains(" out\n"), "{again}");
    Ok(())
}

#[test]
fn devices_pipes_and_links_are_written_to_and_stay() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?;
    let context = env.context("special", "FROM scratch\nCOPY f /\n", &[("f", "f\n")])?;
    let at = |name: &str| env.work().join(name);
    let mode = Mode::from_bits_retain(0o666);
    mknodat(CWD, at("null"), FileType::CharacterDevice, mode, makedev(1, 3))?;
    mknodat(CWD, at("pipe"), FileType::Fifo, mode, 0)?;
    symlink("null", at("to-null"))?;
    symlink("real", at("to-real"))?;
    let forms = ["type=oci,dest=", "type=docker,dest=", "type=tar,dest="];
    let flags = ["--iidfile", "--metadata-file", "--digest-file"];
    let asked: Vec<(&str, &str)> =
        forms.map(|form| ("-o", form)).into_iter().chain(flags.map(|flag| (flag, ""))).collect();
    for (flag, form) in asked {
        let build = |name: &str| env.build(&context, &[flag, &format!("{form}{name}")]);
        for name in ["null", "to-null"] {
            build(name)?.ok();
            assert!(fs::metadata(at(name))?.file_type().is_char_device(), "{flag} {form}{name}");
        }
        let pipe = at("pipe");
        let reader = thread::spawn(move || fs::read(pipe));
        build("pipe")?.ok();
        assert!(fs::metadata(at("pipe"))?.file_type().is_fifo(), "{flag} {form}");
        assert!(!reader.join().expect("no panic")?.is_empty(), "{flag} {form}");
        build("to-real")?.ok();
        assert!(fs::metadata(at("real"))?.len() > 0 && at("to-real").is_symlink(), "{flag} {form}");
        fs::remove_file(at("real"))?;
        let printed = build("/dev/stdout")?.ok();
        assert!(!printed.stdout.is_empty(), "{flag} {form}");
    }
    env.build(&context, &["-t", "special"])?.ok();
    env.run(["save", "-o", "to-null", "special"])?.ok();
    assert!(at("to-null").is_symlink() && fs::metadata(at("null"))?.file_type().is_char_device());
    Ok(())
}
