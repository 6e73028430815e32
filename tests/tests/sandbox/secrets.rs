//! Suite X, as far as processes and images can be looked at while and after a step runs.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use rbuild_tests::need;
use rbuild_tests::web::{Reply, Web};

use crate::probes::Probe;
use crate::rungs::Place;

const FILE: &str = "canary-process-1f7e";
const VARIABLE: &str = "canary-process-88c3";

/// Pids below a process, and that process.
fn family(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
            if parent == Some(found[at]) && !found.contains(&pid) {
                found.push(pid);
            }
        }
        at += 1;
    }
    found
}

/// X7, X1: secrets are in no argument of any process, and in no environment but the user's own and, where that was asked
/// for, the step's.
#[test]
fn no_helper_has_a_secret_in_its_arguments_or_environment() -> Result<()> {
    need!(Root, Subuid, Compiler);
    let probe = Probe::compile()?;
    for place in [Place::Root, Place::Rootless, Place::Single] {
        let env = place.env()?.with_variable("TOKEN", VARIABLE);
        let text = "FROM scratch\nCOPY --chmod=755 probe /probe\n\
                    RUN --mount=type=secret,id=file --mount=type=secret,id=token --mount=type=ssh [\"/probe\", \"sleep\", \"x\"]\n";
        let context = env.context("helpers", text, &[])?;
        fs::copy(probe.path(), context.join("probe"))?;
        let file = env.write("home/secret", FILE)?;
        let socket = env.dir().join("agent");
        let _agent = UnixListener::bind(&socket)?;
        fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
        let mut command = env.command(["build", "--progress", "plain"]);
        command.args([
            "--secret",
            &format!("id=file,src={}", file.display()),
            "--secret",
            "id=token,env=TOKEN",
        ]);
        command.args(["--ssh", &format!("default={}", socket.display())]).arg(&context);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut output = BufReader::new(child.stderr.take().context("standard error")?);
        let mut line = String::new();
        let mut said = String::new();
        while !line.contains(" probe running") {
            line.clear();
            ensure!(output.read_line(&mut line)? > 0, "the step never ran: {said}");
            said.push_str(&line);
        }
        let mut looked_at = 0;
        for pid in family(child.id()) {
            let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let has =
                |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
            let (arguments, environment) = (read("cmdline"), read("environ"));
            looked_at += 1;
            for text in [FILE, VARIABLE] {
                assert!(
                    !has(&arguments, text),
                    "{text} is an argument of {}",
                    String::from_utf8_lossy(&arguments)
                );
                assert!(
                    pid == child.id() || !has(&environment, text),
                    "{text} is in the environment of {}",
                    String::from_utf8_lossy(&arguments)
                );
            }
        }
        ensure!(looked_at >= 4, "only {looked_at} processes were found");
        child.kill()?;
        child.wait()?;
        // X2: a killed step's secrets are nowhere either.
        for text in [FILE, VARIABLE] {
            let found =
                std::process::Command::new("grep").args(["-rlaF", "--", text]).arg(env.store()).output()?;
            assert_eq!(String::from_utf8_lossy(&found.stdout), "", "{text} is in the store");
        }
        // Nobody was there to remove the unfinished files: the next build does.
        let next = env.context("next", "FROM scratch\nCOPY Dockerfile /\n", &[])?;
        env.build(&next, &[])?.ok();
        env.assert_nothing_left();
    }
    Ok(())
}

/// N8: owners that are asked for are nobody's business where one id is mapped, and keep no step from its mounts.
#[test]
fn mounts_of_other_users_work_where_one_id_is_mapped() -> Result<()> {
    need!(Root, Subuid, Compiler);
    let probe = Probe::compile()?;
    let env = Place::Single.env()?;
    let text = "FROM scratch\nCOPY --chmod=755 probe /probe\nUSER 1000\n\
                RUN --mount=type=secret,id=file,uid=1000,gid=1000,target=/s --mount=type=cache,uid=1000,gid=5,target=/c \\\n\
                    [\"/probe\", \"copy\", \"/s\", \"/c/kept\"]\n";
    let context = env.context("owners", text, &[])?;
    fs::copy(probe.path(), context.join("probe"))?;
    let file = env.write("home/secret", FILE)?;
    env.build(&context, &["--secret", &format!("id=file,src={}", file.display())])?.ok();
    env.assert_nothing_left();
    Ok(())
}

/// X4: what a step copies on purpose is in the image: nobody can tell it from any other file.
#[test]
fn a_secret_that_a_step_copies_is_in_the_image() -> Result<()> {
    need!(Root, Compiler);
    let probe = Probe::compile()?;
    let env = Place::Root.env()?;
    let text = "FROM scratch\nCOPY --chmod=755 probe /probe\n\
                RUN --mount=type=secret,id=file,target=/s [\"/probe\", \"copy\", \"/s\", \"/kept\"]\n";
    let context = env.context("kept", text, &[])?;
    fs::copy(probe.path(), context.join("probe"))?;
    let file = env.write("home/secret", FILE)?;
    let out = env.work().join("out");
    let output = out.to_str().context("UTF-8")?;
    env.build(&context, &["--secret", &format!("id=file,src={}", file.display()), "-o", output])?.ok();
    assert_eq!(fs::read_to_string(out.join("kept"))?, FILE);
    Ok(())
}

/// X6: passwords in addresses, and tokens in that of a context, are in nothing that a build leaves, provenance and list of
/// packages among it.
#[test]
fn secrets_in_addresses_are_in_nothing_that_a_build_leaves() -> Result<()> {
    need!(Root);
    let (password, token) = ("canary-userinfo-20ab", "canary-query-77d1");
    let mut archive = tar::Builder::new(Vec::new());
    let text = "FROM scratch\nCOPY Dockerfile /f\n";
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, "Dockerfile", text.as_bytes())?;
    let archive = archive.into_inner()?;
    let web = Web::serve(move |request| match request.path.split('?').next() {
        Some("/context.tar") => {
            Reply::new(200).body(archive.clone()).header("Content-Type", "application/x-tar")
        }
        _ => Reply::new(200).body("added\n"),
    })?;
    let env = Place::Root.env()?;
    let at = |path: &str| web.url(path).replace("http://", &format!("http://me:{password}@"));
    // Outside of what is searched: it is the author's own file. What ADD asks for is in the history, as with docker; who
    // asks is not.
    let local = env.write("home/added/Dockerfile", &format!("FROM scratch\nADD {} /added\n", at("/file")))?;
    let local = local.parent().context("a directory")?;
    let remote = at("/context.tar") + "?token=" + token;
    for (n, context) in [local, remote.as_ref()].into_iter().enumerate() {
        let image = env.work().join(format!("image-{n}.tar"));
        let metadata = env.work().join(format!("metadata-{n}.json"));
        let output = format!("type=oci,dest={},compression=uncompressed", image.display());
        let metadata = metadata.to_str().context("UTF-8")?;
        // With the statements that tell most: graph, sources and Dockerfile.
        let told = ["--provenance=mode=max", "--sbom=true"];
        let args = ["-t", "me/web", "-o", &output, "--metadata-file", metadata, told[0], told[1]];
        let run = env.build(context, &args)?.ok();
        assert!(!run.stderr.contains(password), "{run}");
        let bytes = fs::read(&image)?;
        for statement in ["https://slsa.dev/provenance/v1", "https://spdx.dev/Document"] {
            let is_there = bytes.windows(statement.len()).any(|window| window == statement.as_bytes());
            ensure!(is_there, "image {n} has no {statement}");
        }
    }
    for text in [password, token] {
        let found =
            std::process::Command::new("grep").args(["-rlaF", "--", text]).arg(env.work()).output()?;
        let left = String::from_utf8_lossy(&found.stdout).into_owned();
        assert_eq!(left, "", "{text} is left");
    }
    env.assert_nothing_left();
    Ok(())
}
