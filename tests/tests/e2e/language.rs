//! The Dockerfile language beyond what one image shows (`golden`): keys, checks, graphs, contexts on standard input.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use rbuild_tests::{TestEnv, judge, need};

/// `d 755 0:0 path`, links with their targets, without sizes and contents.
fn listing(unpacked: &judge::Unpacked) -> Result<Vec<String>> {
    use std::os::unix::fs::MetadataExt as _;
    let root = unpacked.root();
    let (mut found, mut left) = (Vec::new(), vec![root.clone()]);
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir)? {
            let (path, stat) = entry.map(|entry| (entry.path(), entry.metadata()))?;
            let stat = stat?;
            let kind = stat.file_type();
            let (tag, rest) = match (kind.is_dir(), kind.is_symlink()) {
                (true, _) => ("d", String::new()),
                (_, true) => ("l", format!(" -> {}", fs::read_link(&path)?.display())),
                _ => ("f", String::new()),
            };
            let name = path.strip_prefix(&root)?.display().to_string();
            let (mode, uid, gid) = (stat.mode() & 0o7777, stat.uid(), stat.gid());
            found.push((name.clone(), format!("{tag} {mode:o} {uid}:{gid} {name}{rest}")));
            if kind.is_dir() {
                left.push(path);
            }
        }
    }
    found.sort_by(|(a, _), (b, _)| a.split('/').cmp(b.split('/')));
    Ok(found.into_iter().map(|(_, line)| line).collect())
}

fn built(env: &TestEnv, context: &Path) -> Result<judge::Unpacked> {
    let file = env.work().join("out.tar");
    env.build(context, &["-o", &format!("type=oci,dest={}", file.display())])?.ok();
    judge::unpack(&format!("oci-archive:{}", file.display()))
}

#[test]
fn a_linked_copy_is_cached_whatever_it_is_put_on() -> Result<()> {
    need!(Root, Judges);
    let env = TestEnv::new()?;
    let text = |base: &str, link: &str| {
        format!(
            "FROM scratch AS base\nCOPY {base} /base/\nFROM base\nCOPY {link} f /d/f\nCOPY --from=base /base /again/\n"
        )
    };
    let files = [("f", "F"), ("one/x", "1"), ("two/y", "2")];
    for (link, executed_again) in [("--link", false), ("--chmod=600", true)] {
        env.build(&env.context("first", &text("one", link), &files)?, &[])?.ok();
        let second = env.context("second", &text("two", link), &files)?;
        let run = env.build(&second, &["-o", "type=oci,dest=second.tar"])?.ok();
        let is_executed = run.executed().iter().any(|step| step.contains(link));
        assert_eq!(is_executed, executed_again, "{link}\n{run}");
        let unpacked = judge::unpack(&format!("oci-archive:{}", env.work().join("second.tar").display()))?;
        for (path, content) in [("/base/y", "2"), ("/d/f", "F"), ("/again/y", "2")] {
            assert_eq!(unpacked.text(path)?, content);
        }
        assert!(!unpacked.root().join("base/x").exists());
        fs::remove_file(env.work().join("second.tar"))?;
    }
    Ok(())
}

#[test]
fn a_linked_layer_never_comes_from_a_copy_that_had_it_easier() -> Result<()> {
    need!(Root, Judges);
    let env = TestEnv::new()?;
    // On this base the linked copy changes nothing.
    let files = [("f", "F"), ("other", "O")];
    let same = env.context("same", "FROM scratch\nCOPY f /d/\nCOPY f /d/\nCOPY --link f /d/\n", &files)?;
    env.build(&same, &[])?.ok();
    let bare = env.context("bare", "FROM scratch\nCOPY other /\nCOPY --link f /d/\n", &files)?;
    assert_eq!(built(&env, &bare)?.text("/d/f")?, "F");
    Ok(())
}

#[test]
fn excluded_files_do_not_enter_the_key() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?;
    let text = "FROM scratch\nCOPY --exclude=**/*.md d /a/\nCOPY --parents d/x/*.txt /b/\n";
    let context = env.context("keys", text, &[("d/x/a.txt", "a"), ("d/x/r.md", "r")])?;
    env.build(&context, &[])?.ok();
    fs::write(context.join("d/x/r.md"), "changed")?;
    fs::write(context.join("d/other.md"), "new")?;
    env.build(&context, &[])?.ok().assert_all_cached();
    fs::write(context.join("d/x/a.txt"), "changed")?;
    assert_eq!(env.build(&context, &[])?.ok().executed().len(), 2);
    Ok(())
}

#[test]
fn sources_and_owners_that_are_not_there_are_named() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?;
    for (name, line, message) in [
        ("parents", "COPY --parents d/nope/x /p/", "\"/d/nope/x\": not found"),
        ("pivot", "COPY --parents nope/./x /p/", "\"/nope"),
        ("user", "COPY --chown=nosuch f /p", "unable to find user nosuch"),
        ("linked", "COPY --link --chown=daemon f /p", "unable to find user daemon"),
        ("mode", "COPY --chmod=888 f /p", "it should be octal string and between 0 and 07777"),
        ("symbolic", "COPY --chmod=zzz f /p", "invalid syntax"),
    ] {
        let context = env.context(name, &format!("FROM scratch\n{line}\n"), &[("f", "F"), ("d/f", "F")])?;
        env.build(&context, &[])?.exits(1).says(&[message, line]);
    }
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn a_check_reports_rules_and_contacts_nobody() -> Result<()> {
    let env = TestEnv::new()?.with_hub_at("127.0.0.1:1")?;
    let text = "FROM busybox\nCOPY . .\nRUN npm install\nCMD echo\nFROM busybox:1 AS Up\n";
    let context = env.context("check", text, &[("node_modules/x", ""), ("package.json", "{}")])?;
    let path = context.to_str().context("UTF-8")?;
    let run = env.run(["--check", path])?.exits(1);
    let all = format!("{}{}", run.stdout, run.stderr);
    for wanted in [
        "Check complete, 5 warnings have been found!",
        "WARNING: JSONArgsRecommended",
        "WARNING: StageNameCasing",
        "ADVICE: CacheOrder",
        "ADVICE: LatestBaseImage",
        "ADVICE: MissingIgnoreFile",
        "   4 | >>> CMD echo",
        "copy package.json and package-lock.json before line 3, and move line 2 below it",
    ] {
        assert!(all.contains(wanted), "no {wanted:?}\n{run}");
    }
    let run = env.run(["build", "--call=check,format=json", path])?.exits(1);
    let json: serde_json::Value = serde_json::from_str(&run.stdout)?;
    let rules: Vec<_> =
        json["warnings"].as_array().context("a list")?.iter().map(|w| w["ruleName"].as_str()).collect();
    assert!(rules.contains(&Some("JSONArgsRecommended")), "{json}");
    assert_eq!(json["sources"][0]["filename"], "Dockerfile");
    env.run(["build", "--call=check,ignorestatus=true", path])?.ok();
    assert!(!env.store().exists(), "a check needs no store");
    Ok(())
}

#[test]
fn exit_statuses_of_checks() -> Result<()> {
    let env = TestEnv::new()?.with_hub_at("127.0.0.1:1")?;
    for (name, text, status, message) in [
        ("clean", "FROM busybox:1\n", 0, "Check complete, no warnings found."),
        ("advice", "FROM busybox\n", 0, "ADVICE: LatestBaseImage"),
        ("skipped", "# check=skip=all\nFROM busybox\nCMD echo\n", 0, "no warnings found"),
        ("warning", "FROM busybox:1\nCMD echo\n", 1, "WARNING: JSONArgsRecommended"),
        ("error", "# check=error=true\nFROM busybox:1\nCMD echo\n", 1, "lint violation found for rules"),
        ("unreached", "FROM busybox:1 AS x\nSTOPSIGNAL x\nFROM x\n", 1, "invalid signal: x"),
        ("broken", "FROM busybox:1\nFOO\n", 1, "unknown instruction: FOO"),
    ] {
        let context = env.context(name, text, &[])?;
        let run = env.run(["--check", context.to_str().context("UTF-8")?])?.exits(status);
        assert!(format!("{}{}", run.stdout, run.stderr).contains(message), "{message}\n{run}");
    }
    Ok(())
}

#[test]
fn outlines_and_targets_are_printed() -> Result<()> {
    let env = TestEnv::new()?.with_hub_at("127.0.0.1:1")?;
    let text = "# V the version\nARG V=1\n# base common\nFROM busybox:$V AS base\nARG MODE=debug\n\
                FROM base\nRUN --mount=type=secret,id=npm,required true\n";
    let context = env.context("outline", text, &[])?;
    let path = context.to_str().context("UTF-8")?;
    let run = env.run(["build", "--call=targets", path])?.ok();
    assert_eq!(run.stdout, "TARGET      DESCRIPTION\nbase        common\n(default)\n");
    let run = env.run(["build", "--call=outline", "--build-arg=MODE=release", path])?.ok();
    assert_eq!(
        run.stdout,
        "TARGET: default\n\nBUILD ARG   VALUE     DESCRIPTION\nV           1         the version\n\
         MODE        release\n\nSECRET   REQUIRED\nnpm      true\n"
    );
    let run = env.run(["build", "--call=targets,format=json", path])?.ok();
    let json: serde_json::Value = serde_json::from_str(&run.stdout)?;
    assert_eq!(json["targets"][0]["base"], "busybox:$V");
    assert_eq!(json["targets"][1]["default"], true);
    env.run(["build", "--call=outline", "--target=bse", path])?.exits(1).says(&["did you mean base?"]);
    Ok(())
}

#[test]
fn a_graph_is_drawn_without_a_registry() -> Result<()> {
    let env = TestEnv::new()?.with_hub_at("127.0.0.1:1")?;
    let text = "FROM busybox AS a\nRUN x\nFROM busybox AS unused\nRUN y\nFROM scratch\nCOPY --from=a /x /\n";
    let context = env.context("graph", text, &[])?;
    let path = context.to_str().context("UTF-8")?;
    let run = env.run(["graph", path])?.ok();
    for line in ["[a 2/2] RUN x", "  <- root ", "target stage-2 is node"] {
        assert!(run.stdout.contains(line), "{line}\n{run}");
    }
    let marked = |run: &rbuild_tests::Run, step: &str| {
        run.stdout.lines().any(|line| line.starts_with('*') && line.contains(step))
    };
    assert!(marked(&run, "RUN x") && !marked(&run, "RUN y"), "{run}");
    let run = env.run(["graph", "--target", "unused", path])?.ok();
    assert!(!marked(&run, "RUN x") && marked(&run, "RUN y"), "{run}");
    assert!(env.run(["graph", "--format=dot", path])?.ok().stdout.starts_with("digraph build {"));
    let json: serde_json::Value =
        serde_json::from_str(&env.run(["graph", "--format=json", path])?.ok().stdout)?;
    assert_eq!(json["targets"][0]["stage"], "stage-2");
    env.run(["graph", "--target", "nosuch", path])?.exits(1).says(&["target stage"]);
    assert!(!env.store().exists(), "looking makes no store");
    Ok(())
}

#[test]
fn a_graph_knows_the_triggers_of_images_in_the_store() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?.with_hub_at("127.0.0.1:1")?;
    let base = env.context("base", "FROM scratch\nCOPY f /\nONBUILD COPY g /\n", &[("f", "F")])?;
    env.build(&base, &["-t", "me/base"])?.ok();
    let child = env.context("child", "FROM me/base\n", &[])?;
    let run = env.run(["graph", child.to_str().context("UTF-8")?])?.ok();
    assert!(run.stdout.contains("ONBUILD COPY g /"), "{run}");
    Ok(())
}

/// A run that reads this file as its standard input.
fn run_with(env: &TestEnv, args: &[&str], input: &Path) -> Result<rbuild_tests::Run> {
    let mut command = env.command(args);
    command.stdin(fs::File::open(input)?);
    env.start(command)?.finish()
}

fn tar(dir: &Path, args: &[&str]) -> Result<()> {
    let output = std::process::Command::new("tar").current_dir(dir).args(args).output()?;
    anyhow::ensure!(output.status.success(), "tar {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn a_tar_on_standard_input_is_a_context_with_owners() -> Result<()> {
    need!(Root, Judges);
    let env = TestEnv::new()?;
    let text = "FROM scratch\nCOPY d /d/\nCOPY --chown=1:2 d/f /mine\n";
    let files = [("d/f", "F"), (".dockerignore", "d\n"), ("sub/Other", "FROM scratch\nCOPY sub /s/\n")];
    let context = env.context("tarred", text, &files)?;
    let archive = env.work().join("context.tar");
    let packed = |options: &[&str]| {
        let to = archive.to_str().context("UTF-8")?;
        let owned = ["--owner=12", "--group=34", "--mtime=@1000000000"];
        tar(&context, &[&owned[..], options, &["-cf", to, "."]].concat())
    };
    for (options, executed) in [(&[][..], 2), (&["-z"][..], 0), (&["--zstd"][..], 0)] {
        packed(options)?;
        let args = ["build", "--progress=plain", "-o", "type=oci,dest=out.tar", "-"];
        let run = run_with(&env, &args, &archive)?.ok();
        assert_eq!(run.executed().len(), executed, "{options:?}\n{run}");
        let unpacked = judge::unpack(&format!("oci-archive:{}", env.work().join("out.tar").display()))?;
        assert_eq!(listing(&unpacked)?, ["d 755 0:0 d", "f 644 12:34 d/f", "f 644 1:2 mine"]);
        let stat = unpacked.root().join("d/f").metadata()?;
        assert_eq!(std::os::unix::fs::MetadataExt::mtime(&stat), 1_000_000_000);
        fs::remove_file(env.work().join("out.tar"))?;
    }
    let run = run_with(&env, &["build", "--progress=plain", "-f", "sub/Other", "-"], &archive)?.ok();
    assert_eq!(run.executed(), ["[1/1] COPY sub /s/"]);
    run_with(&env, &["build", "-f", "nosuch", "-"], &archive)?.exits(1).says(&["open nosuch: no such file"]);
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn a_dockerfile_on_standard_input_has_an_empty_context() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?;
    let build = |text: &str, args: &[&str]| {
        let file = env.write("work/input", text)?;
        run_with(&env, &[&["build", "--progress=plain"], args].concat(), &file)
    };
    build("FROM scratch\nCOPY <<E /f\nx\nE\n", &["-"])?.ok();
    build("FROM scratch\nCOPY f /f\n", &["-"])?.exits(1).says(&["\"/f\": not found", "stdin:2"]);
    build("FROM scratch\nCOPY f /f\n", &["-f", "x", "-"])?.exits(1).says(&["ambiguous Dockerfile source"]);
    build("", &["-"])?.exits(1).says(&["the Dockerfile cannot be empty"]);
    let context =
        env.context("local", "FROM nowhere\n", &[("f", "F"), ("g.md", "G"), (".dockerignore", "*.md")])?;
    let path = context.to_str().context("UTF-8")?;
    let run = build("FROM scratch\nCOPY f /\nCOPY . /all/\n", &["-f", "-", path])?.ok();
    assert_eq!(run.executed().len(), 2, "{run}");
    build("FROM scratch\nCOPY g.md /\n", &["-f-", path])?.exits(1).says(&["\"/g.md\": not found"]);
    build("", &["-f", "-", "-"])?.exits(125).says(&["can't use stdin for both build context and dockerfile"]);
    let run = build("FROM busybox:1\nCMD echo\n", &["--check", "-"])?.exits(1);
    assert!(run.stdout.contains("JSONArgsRecommended"), "{run}");
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn a_hostile_tar_on_standard_input_stays_inside() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?;
    let context = env.context("hostile", "FROM scratch\nCOPY . /\n", &[("evil", "x")])?;
    std::os::unix::fs::symlink("/etc/hostname", context.join("Linked"))?;
    let archive = env.work().join("hostile.tar");
    let to = archive.to_str().context("UTF-8")?;
    tar(&context, &["-cf", to, "Dockerfile", "Linked"])?;
    run_with(&env, &["build", "-f", "Linked", "-"], &archive)?.exits(1).says(&["open Linked: no such file"]);
    run_with(&env, &["build", "-f", "../../Dockerfile", "-"], &archive)?.ok();
    tar(&context, &["-cPf", to, "--transform=s,^evil$,../../evil,", "Dockerfile", "evil"])?;
    run_with(&env, &["build", "-"], &archive)?.exits(1).says(&["unpack the build context"]);
    let whole = fs::read(&archive)?;
    fs::write(&archive, &whole[..700])?;
    run_with(&env, &["build", "-"], &archive)?.exits(1).says(&["unpack the build context"]);
    env.assert_nothing_left();
    Ok(())
}

/// G1: a signal while the context is read.
#[test]
fn a_build_that_waits_for_standard_input_can_be_stopped() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?;
    let (reader, writer) = std::io::pipe()?;
    let mut command = env.command(["build", "--progress=plain", "-"]);
    command.stdin(reader);
    let started = env.start(command)?;
    let pid = rustix::process::Pid::from_raw(i32::try_from(started.pid())?).context("a pid")?;
    // Once it catches SIGINT it is at work, and all that it waits for is standard input.
    let status = format!("/proc/{}/status", started.pid());
    let catches = || -> Result<bool> {
        let text = fs::read_to_string(&status)?;
        let mask = text.lines().find_map(|line| line.strip_prefix("SigCgt:")).context("a mask")?;
        Ok(u64::from_str_radix(mask.trim(), 16)? & 0b10 != 0)
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !catches()? {
        anyhow::ensure!(std::time::Instant::now() < deadline, "no signal is caught");
        std::thread::yield_now();
    }
    rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
    started.finish()?.exits(130);
    drop(writer);
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn without_root_a_tar_on_standard_input_keeps_its_owners() -> Result<()> {
    need!(Root, Judges, Subuid);
    let env = TestEnv::rootless()?;
    let context = env.context("tarred", "FROM scratch\nCOPY d /d/\n", &[("d/f", "F")])?;
    fs::set_permissions(context.join("d/f"), std::os::unix::fs::PermissionsExt::from_mode(0o4000))?;
    let archive = env.work().join("context.tar");
    tar(&context, &["--owner=12", "--group=34", "-cf", archive.to_str().context("UTF-8")?, "."])?;
    let args = ["build", "--progress=plain", "-o", "type=oci,dest=out.tar", "-"];
    run_with(&env, &args, &archive)?.ok();
    let unpacked = judge::unpack(&format!("oci-archive:{}", env.work().join("out.tar").display()))?;
    assert_eq!(listing(&unpacked)?, ["d 755 0:0 d", "f 4000 12:34 d/f"]);
    env.assert_nothing_left();
    Ok(())
}
