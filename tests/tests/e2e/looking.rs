//! Questions about Dockerfiles that are elsewhere: `--check`, `--call` and `graph` on repositories, archives and files
//! on web servers, and on a tar that comes through standard input.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use rbuild_tests::git::GitServer;
use rbuild_tests::web::{Reply, Web};
use rbuild_tests::{Run, TestEnv, need};

const TEXT: &str = "FROM busybox:1 AS tools\nCMD echo\nFROM scratch\nCOPY --from=tools /bin /bin\n";

/// Asks every question about a context; `start` runs the binary.
fn asked_about(context: &str, options: &[&str], start: impl Fn(&[&str]) -> Result<Run>) -> Result<()> {
    let ask = |first: &[&str]| start(&[first, options, &[context]].concat());
    let run = ask(&["build", "--check"])?.exits(1);
    assert!(
        run.stdout.contains("WARNING: JSONArgsRecommended") && run.stdout.contains(">>> CMD echo"),
        "{run}"
    );
    let run = ask(&["build", "--call=targets"])?.ok();
    assert_eq!(run.stdout, "TARGET      DESCRIPTION\ntools\n(default)\n");
    let run = ask(&["build", "--call=outline"])?.ok();
    assert!(run.stdout.starts_with("TARGET: default\n"), "{run}");
    let run = ask(&["graph"])?.ok();
    assert!(run.stdout.contains("COPY --from=tools /bin /bin"), "{run}");
    Ok(())
}

#[test]
fn a_repository_is_looked_at_without_building() -> Result<()> {
    need!(Root, Subuid);
    let server = GitServer::start(None)?;
    let repository = server.repository("app")?;
    repository.commit(&[("Dockerfile", "FROM x\nNONSENSE\n"), ("sub/Dockerfile", TEXT), ("Other", TEXT)])?;
    for env in [TestEnv::new()?, TestEnv::rootless()?] {
        let env = env.with_hub_at("127.0.0.1:1")?;
        asked_about(&format!("{}#main:sub", server.url("app")), &[], |args| env.run(args))?;
        asked_about(&server.url("app"), &["-f", "Other"], |args| env.run(args))?;
        env.run(["build", "--check", &server.url("app")])?.exits(1).says(&["unknown instruction: NONSENSE"]);
        env.assert_nothing_left();
    }
    Ok(())
}

#[test]
fn what_a_web_server_has_is_looked_at_without_building() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?.with_hub_at("127.0.0.1:1")?;
    let dir = env.context("packed", "FROM x\n", &[("sub/Dockerfile", TEXT)])?;
    let archive = fs::read(packed(&dir)?)?;
    let web = Web::serve(move |request| match request.path.as_str() {
        "/context.tar.gz" => Reply::new(200).body(archive.clone()),
        "/Dockerfile" => Reply::new(200).body(TEXT),
        _ => Reply::new(404),
    })?;
    asked_about(&web.url("/context.tar.gz"), &["-f", "sub/Dockerfile"], |args| env.run(args))?;
    asked_about(&web.url("/Dockerfile"), &[], |args| env.run(args))?;
    // Its Dockerfile for files that are here.
    let here = env.context("here", "", &[("node_modules/x", "")])?;
    let here = here.to_str().context("UTF-8")?;
    asked_about(here, &["-f", &web.url("/Dockerfile")], |args| env.run(args))?;
    env.run(["graph", &web.url("/none")])?.exits(1).says(&["invalid response status 404"]);
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn a_tar_on_standard_input_is_looked_at_without_building() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?.with_hub_at("127.0.0.1:1")?;
    let archive = packed(&env.context("packed", TEXT, &[("sub/Other", "FROM scratch\nFOO\n")])?)?;
    let start = |args: &[&str]| {
        let mut command = env.command(args);
        command.stdin(fs::File::open(&archive)?);
        env.start(command)?.finish()
    };
    asked_about("-", &[], start)?;
    start(&["build", "--check", "-f", "sub/Other", "-"])?.exits(1).says(&["unknown instruction: FOO"]);
    start(&["graph", "-f", "none", "-"])?.exits(1).says(&["open none: no such file"]);
    // A Dockerfile there needs no store.
    let env = TestEnv::new()?.with_hub_at("127.0.0.1:1")?;
    let file = env.write("work/Dockerfile", TEXT)?;
    let start = |args: &[&str]| {
        let mut command = env.command(args);
        command.stdin(fs::File::open(&file)?);
        env.start(command)?.finish()
    };
    asked_about("-", &[], start)?;
    assert!(!env.store().exists());
    Ok(())
}

fn packed(dir: &Path) -> Result<std::path::PathBuf> {
    let file = dir.with_extension("tar.gz");
    let status =
        std::process::Command::new("tar").arg("-czf").arg(&file).arg("-C").arg(dir).arg(".").status()?;
    assert!(status.success());
    Ok(file)
}
