//! The commands beside `build`.

use anyhow::Result;
use rbuild_tests::need;

use crate::world;

#[test]
fn images_lists_what_was_built_under_every_name() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let none = env.run(["images"])?.ok();
    assert_eq!(none.stdout.lines().count(), 1, "a header alone\n{none}");
    let context = env.context("listed", "FROM busybox\nRUN echo x > /x\n", &[])?;
    env.build(&context, &["-t", "me/listed:1.0", "-t", "example.com/me/other"])?.ok();
    let run = env.run(["images"])?.ok();
    let header: Vec<_> = run.stdout.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(header, ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"], "{run}");
    let row =
        |name: &str| run.stdout.lines().find(|line| line.starts_with(&format!("{name} "))).map(str::to_owned);
    let (one, two) = (row("me/listed").unwrap_or_default(), row("example.com/me/other").unwrap_or_default());
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&one)[1], "1.0", "{run}");
    assert_eq!(words(&two)[1], "latest", "{run}");
    assert_eq!(words(&one)[2], words(&two)[2], "one image under two names\n{run}");
    Ok(())
}

#[test]
fn the_store_is_where_root_says() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("elsewhere", "FROM busybox\nRUN true\n", &[])?;
    let (elsewhere, context) = (env.work().join("elsewhere-store"), context.to_string_lossy().into_owned());
    let root = elsewhere.to_string_lossy().into_owned();
    env.run(["--root", &root, "build", "-t", "me/there", &context])?.ok();
    assert!(elsewhere.join("store.json").is_file());
    assert!(!env.store().exists(), "RBUILD_ROOT was used although --root says otherwise");
    assert!(env.run(["--root", &root, "images"])?.ok().stdout.contains("me/there"));
    Ok(())
}

#[test]
fn doctor_says_what_this_host_allows() -> Result<()> {
    need!(Root);
    let env = rbuild_tests::TestEnv::new()?;
    let run = env.run(["doctor"])?;
    assert_eq!(run.code, Some(0), "the other suites show that this host can build\n{run}");
    let text = run.stdout.to_lowercase();
    for word in ["overlay", "namespace"] {
        assert!(text.contains(word), "no word of `{word}`\n{run}");
    }
    Ok(())
}

#[test]
fn help_and_version_go_to_stdout() -> Result<()> {
    let env = rbuild_tests::TestEnv::new()?;
    let help = env.run(["--help"])?.ok();
    for word in ["build", "pull", "push", "images", "doctor"] {
        assert!(help.stdout.contains(word), "{help}");
    }
    let build = env.run(["build", "--help"])?.ok();
    for flag in
        ["--tag", "--file", "--target", "--build-arg", "--build-context", "--push", "--output", "--progress"]
    {
        assert!(build.stdout.contains(flag), "{flag}\n{build}");
    }
    assert!(env.run(["version"])?.ok().stdout.starts_with("rbuild "));
    Ok(())
}
