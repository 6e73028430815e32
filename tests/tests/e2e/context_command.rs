//! `rbuild context`, and what a build says about its context.

use std::fs;

use anyhow::Result;
use rbuild_tests::{TestEnv, need};

const IGNORE: &str = "# comment\n**/*.log\n!keep.log\nvendor\n!vendor/ours/**\n";

fn context(env: &TestEnv) -> Result<std::path::PathBuf> {
    env.context(
        "looked-at",
        "FROM scratch\nCOPY . /\n",
        &[
            (".dockerignore", IGNORE),
            ("a.log", "12345"),
            ("keep.log", "1"),
            ("src/main.c", "int main;"),
            ("src/deep/x.log", "x"),
            ("vendor/theirs/big", "0123456789"),
            ("vendor/ours/small", "123"),
        ],
    )
}

#[test]
fn ls_and_du_show_what_is_sent() -> Result<()> {
    let env = TestEnv::new()?;
    let dir = context(&env)?;
    let dir = dir.to_string_lossy();
    let listed = env.run(["context", "ls", &dir])?.ok().stdout;
    let expected = ".dockerignore\nDockerfile\nkeep.log\nsrc/\nsrc/deep/\nsrc/main.c\nvendor/\nvendor/ours/\nvendor/ours/small\n";
    assert_eq!(listed, expected);
    let json = env.run(["context", "ls", "--format", "json", &dir])?.ok().stdout;
    let row: serde_json::Value = serde_json::from_str(json.lines().nth(2).unwrap_or_default())?;
    assert_eq!(row, serde_json::json!({ "path": "keep.log", "type": "file", "size": 1 }));
    let sizes = env.run(["context", "du", &dir])?.ok().stdout;
    let rows: Vec<Vec<&str>> = sizes.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["SIZE", "FILES", "PATH"]);
    assert_eq!(rows[1][2], ".dockerignore", "{sizes}");
    assert!(rows.contains(&vec!["9B", "1", "src"]) && rows.contains(&vec!["3B", "1", "vendor"]), "{sizes}");
    assert_eq!(rows.last().map(|row| (row[1], row[2])), Some(("5", ".")), "{sizes}");
    let two = env.run(["context", "du", "--depth", "2", "--format", "json", &dir])?.ok().stdout;
    assert!(two.contains(r#"{"path":"vendor/ours","size":3,"files":1}"#), "{two}");
    Ok(())
}

#[test]
fn why_names_the_line_that_decides() -> Result<()> {
    let env = TestEnv::new()?;
    let dir = context(&env)?;
    let dir = dir.to_string_lossy();
    let paths = [
        "a.log",
        "keep.log",
        "src/deep/x.log",
        "./vendor/theirs/big",
        "vendor/ours/small",
        "src",
        "none.log",
    ];
    let mut arguments = vec!["context", "why", "--context", &dir];
    arguments.extend(paths);
    let answer = env.run(&arguments)?.ok().stdout;
    let file = format!("{dir}/.dockerignore");
    let expected = format!(
        "a.log: excluded by {file}:2: `**/*.log`\n\
         keep.log: sent: {file}:3: `!keep.log` brings it back\n\
         src/deep/x.log: excluded by {file}:2: `**/*.log`\n\
         vendor/theirs/big: excluded by {file}:4: `vendor`\n\
         vendor/ours/small: sent: {file}:5: `!vendor/ours/**` brings it back\n\
         src: sent: no pattern matches\n\
         none.log: excluded by {file}:2: `**/*.log` (there is no such file)\n"
    );
    assert_eq!(answer, expected);
    // The Dockerfile's own ignore file is the only one, even empty.
    env.write("work/looked-at/Dockerfile.dockerignore", "")?;
    let answer = env.run(["context", "why", "--context", &dir, "a.log"])?.ok().stdout;
    assert_eq!(answer, "a.log: sent: no pattern matches\n");
    let json = env.run(["context", "why", "--context", &dir, "--format", "json", "a.log"])?.ok().stdout;
    assert_eq!(json.trim(), r#"{"path":"a.log","sent":true,"exists":true,"rule":null}"#);
    env.run(["context", "ls", "https://h/x.git"])?.exits(125).says(&["only what is here"]);
    env.run(["context", "ls", "/nowhere"])?.exits(1).says(&["/nowhere"]);
    Ok(())
}

#[test]
fn a_build_warns_about_secrets_and_large_contexts_it_copies() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?;
    let files = [
        (".env", "PASSWORD=canary"),
        ("tls/server.pem", "-----BEGIN PRIVATE KEY-----"),
        ("tls/ca.pem", "-----BEGIN CERTIFICATE-----"),
        (".npmrc", "registry=https://h/\n"),
        ("app/f", "x"),
    ];
    let context = env.context("leaky", "FROM scratch\nCOPY . /\n", &files)?;
    let run = env.build(&context, &[])?.ok();
    let warning = run.stderr.lines().find(|line| line.contains("looks like a secret")).unwrap_or_default();
    assert!(
        warning.contains("`.env`, `tls/server.pem`;") && warning.contains(".dockerignore"),
        "{}",
        run.stderr
    );
    assert!(!run.stderr.contains("canary"));
    // Not what no COPY takes, nor what is ignored.
    fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY app /\n")?;
    assert!(!env.build(&context, &[])?.ok().stderr.contains("looks like a secret"));
    fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY . /\n")?;
    fs::write(context.join(".dockerignore"), ".env\ntls\n")?;
    assert!(!env.build(&context, &[])?.ok().stderr.contains("looks like a secret"));
    fs::create_dir(context.join("data"))?;
    fs::File::create(context.join("data/dump.sql"))?.set_len(120 << 20)?;
    let run = env.build(&context, &[])?.ok();
    let warning = run.stderr.lines().find(|line| line.contains("are copied from the build context"));
    assert!(warning.is_some_and(|line| line.contains("`data` 12")), "{}", run.stderr);
    Ok(())
}

#[test]
fn contexts_that_came_whole_are_warned_about_when_something_is_copied() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?;
    let files = [
        (".env", "PASSWORD=canary"),
        ("tls/server.pem", "-----BEGIN PRIVATE KEY-----"),
        ("tls/ca.pem", "-----BEGIN CERTIFICATE-----"),
        ("Other", "FROM scratch\nCOPY tls/ca.pem /\n"),
    ];
    let context = env.context("leaky", "FROM scratch\nCOPY . /\n", &files)?;
    fs::create_dir(context.join("data"))?;
    fs::File::create(context.join("data/dump.sql"))?.set_len(120 << 20)?;
    let archive = context.with_extension("tar");
    let status = std::process::Command::new("tar")
        .arg("-cf")
        .arg(&archive)
        .arg("-C")
        .arg(&context)
        .arg(".")
        .status()?;
    assert!(status.success());
    let build = |args: &[&str]| {
        let mut command = env.command([&["build", "--progress=plain"], args, &["-"]].concat());
        command.stdin(fs::File::open(&archive)?);
        Ok::<_, anyhow::Error>(env.start(command)?.finish()?.ok())
    };
    let run = build(&[])?.says(&[
        "looks like a secret is copied from the build context: `.env`, `tls/server.pem`; ignore files have no say",
        "126MB are copied from the build context, most of it `data` 126MB",
    ]);
    assert!(!run.stderr.contains("canary"), "{run}");
    // Not again when everything is cached, and not what no COPY takes.
    assert!(!build(&[])?.stderr.contains("[Warning]"));
    assert!(!build(&["-f", "Other"])?.stderr.contains("[Warning]"));
    env.assert_nothing_left();
    Ok(())
}
