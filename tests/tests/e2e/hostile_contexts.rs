//! Build contexts as nobody would have them (hostile cases C1 to C3 and C8 to C11).

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use rbuild_tests::{Run, TestEnv, judge, need};

/// No build of these takes longer, however loaded the machine is.
const TIME_MAX: Duration = Duration::from_secs(120);

fn built(env: &TestEnv, context: &Path) -> Result<(Run, judge::Unpacked)> {
    let file = env.work().join("out.tar");
    let run = env.build(context, &["-o", &format!("type=oci,dest={}", file.display())])?.ok();
    assert!(run.wall < TIME_MAX, "{:?}", run.wall);
    Ok((run, judge::unpack(&format!("oci-archive:{}", file.display()))?))
}

#[test]
fn c1_links_show_nothing_of_the_host() -> Result<()> {
    need!(Root, Judges);
    let env = TestEnv::new()?;
    let context = env.context("c1", "FROM scratch\nCOPY . /\n", &[("real/f", "x")])?;
    symlink("/etc/shadow", context.join("file"))?;
    symlink("/", context.join("root"))?;
    symlink("loop-b", context.join("loop-a"))?;
    symlink("loop-a", context.join("loop-b"))?;
    symlink("../../../../real", context.join("climbs"))?;
    let (_, unpacked) = built(&env, &context)?;
    for (name, target) in
        [("file", "/etc/shadow"), ("root", "/"), ("loop-a", "loop-b"), ("climbs", "../../../../real")]
    {
        assert_eq!(fs::read_link(unpacked.root().join(name))?.to_str(), Some(target));
    }
    for source in ["root/etc/passwd", "file", "loop-a"] {
        let text = format!("FROM scratch\nCOPY {source} /x\n");
        fs::write(context.join("Dockerfile"), text)?;
        env.build(&context, &[])?.exits(1).says(&[source]);
    }
    // Resolved in the context, where climbing ends at its top.
    fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY climbs/f /x\n")?;
    assert_eq!(built(&env, &context)?.1.text("/x")?, "x");
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn c2_pipes_sockets_and_holes_block_and_fill_nothing() -> Result<()> {
    need!(Root, Judges);
    let env = TestEnv::new()?;
    let text = "FROM scratch AS all\nCOPY . /\nFROM scratch\nCOPY --from=all pipe sock f /\n";
    let context = env.context("c2", text, &[("f", "x"), (".dockerignore", "huge\n")])?;
    let made = std::process::Command::new("mkfifo").arg(context.join("pipe")).status()?;
    assert!(made.success());
    let _socket = std::os::unix::net::UnixListener::bind(context.join("sock"))?;
    // A terabyte of nothing, which nobody asks for.
    fs::File::create(context.join("huge"))?.set_len(1 << 40)?;
    let (_, unpacked) = built(&env, &context)?;
    let listing = unpacked.listing()?;
    assert!(listing[1].starts_with("pipe 010"), "{listing:#?}");
    assert!(listing[2].starts_with("sock 100") && listing[2].contains(" 0 bytes"), "{listing:#?}");
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn c3_what_vanishes_or_changes_is_noticed_or_taken_whole() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?;
    let context = env.context("c3", "FROM scratch\nCOPY d /\n", &[("d/steady", "x")])?;
    let dir = context.join("d");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let told = std::sync::Arc::clone(&stop);
    // Somebody is at work in the directory all the time.
    let worker = std::thread::spawn(move || {
        let mut round = 0_u64;
        while !told.load(std::sync::atomic::Ordering::Relaxed) {
            round += 1;
            let path = dir.join(format!("f{}", round % 7));
            match round % 4 {
                0 => drop(fs::write(&path, vec![b'a'; (round % 9000) as usize])),
                1 => drop(fs::remove_file(&path)),
                2 => drop(symlink("/etc/passwd", &path)),
                _ => drop(fs::write(&path, "short")),
            }
        }
    });
    for _ in 0..12 {
        let run = env.build(&context, &["--no-cache", "-t", "c3"])?;
        // Done, or a word about what changed: never a wrong image, a panic or a hang.
        let is_said =
            ["changed", "no such file", "not a regular file", "not found", "too many levels", "cannot"]
                .iter()
                .any(|word| run.stderr.contains(word));
        assert!(run.code == Some(0) || (run.code == Some(1) && is_said), "{run}");
        assert!(!run.stderr.contains("panicked") && run.wall < TIME_MAX, "{run}");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    drop(worker.join());
    env.run(["cache", "fsck"])?.ok();
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn c8_names_of_any_bytes_are_copied_faithfully() -> Result<()> {
    need!(Root, Judges);
    let env = TestEnv::new()?;
    let context = env.context("c8", "FROM scratch\nCOPY . /\n", &[])?;
    let names: [&[u8]; 5] = [b"new\nline", b"caf\xe9", b" blank ", b"-dash", b"\x1b[31mred"];
    for name in names {
        fs::write(context.join(OsStr::from_bytes(name)), name)?;
    }
    let (run, unpacked) = built(&env, &context)?;
    for name in names {
        assert_eq!(fs::read(unpacked.root().join(OsStr::from_bytes(name)))?, name);
    }
    assert!(!run.stderr.contains('\u{1b}'), "no name steers the terminal");
    Ok(())
}

#[test]
fn c9_deep_trees_and_long_names_are_copied_or_refused() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?;
    let context = env.context("c9", "FROM scratch\nCOPY . /\n", &[])?;
    // No path of this length can be given to the kernel: a thousand levels at a time, each below the next.
    for round in 0..4 {
        let chain = format!("chain{round}");
        let end = context.join(&chain).join("d/".repeat(999));
        fs::create_dir_all(&end)?;
        if round == 0 {
            fs::write(end.join("f"), "x")?;
        } else {
            fs::rename(context.join("d"), end.join("d"))?;
        }
        fs::rename(context.join(chain), context.join("d"))?;
    }
    let run = env.build(&context, &["-t", "deep"])?;
    assert!(run.wall < TIME_MAX && !run.stderr.contains("panicked"), "{run}");
    run.exits(1).says(&["path of more than"]);
    // What is deep and ignored is no matter.
    fs::write(context.join(".dockerignore"), "d\n")?;
    env.build(&context, &["-t", "deep"])?.ok();
    env.assert_nothing_left();
    let removed = std::process::Command::new("rm").args(["-rf", "d"]).current_dir(&context).status()?;
    assert!(removed.success());
    Ok(())
}

#[test]
fn c10_files_with_more_names_are_copies_of_their_own() -> Result<()> {
    need!(Root, Judges);
    let env = TestEnv::new()?;
    let context = env.context("c10", "FROM scratch\nCOPY . /\n", &[("in/a", "inside")])?;
    fs::write(env.work().join("outside"), "outside")?;
    fs::hard_link(env.work().join("outside"), context.join("in/linked"))?;
    fs::hard_link(context.join("in/a"), context.join("in/b"))?;
    let (_, unpacked) = built(&env, &context)?;
    assert_eq!(unpacked.text("/in/linked")?, "outside");
    // The layer's files are its own: writing to the host's changes no stored layer.
    fs::write(env.work().join("outside"), "CHANGED")?;
    fs::write(context.join("in/a"), "CHANGED")?;
    env.run(["cache", "fsck"])?.ok();
    Ok(())
}

#[test]
fn c11_users_and_modes_that_are_none_are_named() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?;
    for (line, words) in [
        ("COPY --chown=nobody-here f /", "nobody-here"),
        ("COPY --chmod=7777777 f /", "7777777"),
        ("COPY --chmod=u=q f /", "u=q"),
        ("COPY --chown=-1 f /", "-1"),
        ("COPY --chown=4294967295:0 f /", "4294967295"),
    ] {
        let context = env.context("c11", &format!("FROM scratch\n{line}\n"), &[("f", "x")])?;
        env.build(&context, &["-t", "c11"])?.exits(1).says(&[words]);
    }
    assert_eq!(env.run(["images", "-q"])?.ok().stdout.trim(), "");
    env.assert_nothing_left();
    Ok(())
}
