//! The Dockerfile language where files matter: each folder of `fixtures/copy` is a case with a `context/` and the
//! listing that is `expected` of its image.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use rbuild_tests::{TestEnv, binary::repository, judge, need};

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
fn every_copy_fixture_gives_its_listing() -> Result<()> {
    need!(Root, Judges);
    let env = TestEnv::new()?;
    let fixtures = repository().join("fixtures/copy");
    let mut cases: Vec<_> = fs::read_dir(&fixtures)?.collect::<std::io::Result<_>>()?;
    cases.sort_by_key(fs::DirEntry::file_name);
    assert!(cases.len() >= 5, "fixtures are missing");
    let mut wrong = Vec::new();
    for case in cases {
        let expected = fs::read_to_string(case.path().join("expected")).context("read `expected`")?;
        let found = listing(&built(&env, &case.path().join("context"))?)?;
        if found != expected.lines().collect::<Vec<_>>() {
            wrong.push(format!("{}:\n{}", case.file_name().display(), found.join("\n")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    env.assert_nothing_left();
    Ok(())
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
