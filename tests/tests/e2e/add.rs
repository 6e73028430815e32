//! ADD of local archives (dockerfile reference, golden cases 109 to 111).

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rbuild_tests::{Registry, Run, TestEnv, judge, need};

use crate::world;

/// Runs `tar` in a directory.
fn tar(dir: &Path, args: &[&str]) -> Result<()> {
    let output = Command::new("tar").current_dir(dir).args(args).output().context("run tar")?;
    ensure!(output.status.success(), "tar {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Builds and unpacks the result.
fn built(env: &TestEnv, context: &Path) -> Result<(Run, judge::Unpacked)> {
    let file = env.work().join("out.tar");
    let run = env.build(context, &["-o", &format!("type=oci,dest={}", file.display())])?.ok();
    Ok((run, judge::unpack(&format!("oci-archive:{}", file.display()))?))
}

/// Lines of the listing without what depends on sizes and contents: `path mode owner`, links with their targets.
fn entries(unpacked: &judge::Unpacked) -> Result<Vec<String>> {
    let short = |line: String| match line.split_once(" bytes, sum ") {
        Some((head, _)) => head.rsplit_once(' ').map_or(line.clone(), |(head, _)| head.to_owned()),
        None => line.trim_end().to_owned(),
    };
    Ok(unpacked.listing()?.into_iter().map(short).collect())
}

#[test]
fn case_109_archives_are_known_by_content_and_keep_their_metadata() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (_registry, env) = world()?;
    let text = "FROM scratch\nADD odd.name fake.tar.gz plain.gz /dest/\nADD plain.tar /\nADD --chmod=600 plain.tar /x\n";
    let files = [("fake.tar.gz", "text\n"), ("t/d/f", "content"), ("t/d/su", "x"), (".dockerignore", "t\n")];
    let context = env.context("add", text, &files)?;
    let tree = context.join("t");
    fs::set_permissions(tree.join("d/su"), fs::Permissions::from_mode(0o6755))?;
    fs::set_permissions(tree.join("d"), fs::Permissions::from_mode(0o1777))?;
    fs::hard_link(tree.join("d/f"), tree.join("d/same"))?;
    symlink("/etc/passwd", tree.join("d/link"))?;
    let owned = ["--owner=12", "--group=34", "--mtime=@1000000000"];
    tar(&tree, &[&owned[..], &["-czf", "../odd.name", "d"]].concat())?;
    tar(&tree, &[&owned[..], &["-cf", "../plain.tar", "d/su"]].concat())?;
    fs::copy(tree.join("d/f"), context.join("plain"))?;
    let gzip = Command::new("gzip").arg(context.join("plain")).status().context("run gzip")?;
    assert!(gzip.success());
    let (_, unpacked) = built(&env, &context)?;
    assert_eq!(
        entries(&unpacked)?,
        [
            // Not in the archive, only implied.
            "d 040755 0:0",
            "d/su 106755 12:34",
            "dest 040755 0:0",
            "dest/d 041777 12:34",
            "dest/d/f 100644 12:34",
            "dest/d/link 120777 12:34 -> /etc/passwd",
            "dest/d/same 100644 12:34",
            "dest/d/su 106755 12:34",
            "dest/fake.tar.gz 100644 0:0",
            "dest/plain.gz 100644 0:0",
            "x 040755 0:0",
            "x/d 040755 0:0",
            "x/d/su 106755 12:34",
        ]
    );
    let stat = |path: &str| unpacked.root().join(path).symlink_metadata();
    for path in ["dest/d", "dest/d/f", "dest/d/link", "d/su"] {
        assert_eq!(stat(path)?.mtime(), 1_000_000_000, "{path}");
    }
    assert_eq!(stat("dest/d/f")?.ino(), stat("dest/d/same")?.ino(), "still one file");
    assert_eq!(unpacked.text("/dest/d/f")?, "content");
    assert_eq!(unpacked.text("/dest/fake.tar.gz")?, "text\n");
    env.build(&context, &[])?.ok().assert_all_cached();
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn case_109_every_compression_is_unpacked_and_what_is_damaged_is_never_copied() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (_registry, env) = world()?;
    let text = "FROM scratch\nADD one two /dest/\n";
    let context = env.context("compressions", text, &[("t/x", "xz"), ("t/b", "bzip2")])?;
    tar(&context.join("t"), &["--owner=7", "--group=7", "-cJf", "../one", "x"])?;
    tar(&context.join("t"), &["--owner=8", "--group=8", "-cjf", "../two", "b"])?;
    let (_, unpacked) = built(&env, &context)?;
    assert_eq!(entries(&unpacked)?, ["dest 040755 0:0", "dest/b 100644 8:8", "dest/x 100644 7:7"]);
    // The same through standard input, as a context.
    tar(&context, &["-cJf", "../context.tar.xz", "Dockerfile", "one", "two"])?;
    let archive = fs::File::open(env.work().join("context.tar.xz"))?;
    let mut piped = env.command(["build", "-"]);
    piped.stdin(archive);
    env.start(piped)?.finish()?.ok();
    let mut cut = fs::read(context.join("one"))?;
    cut.truncate(40);
    fs::write(context.join("one"), cut)?;
    env.build(&context, &[])?.exits(1).says(&["ADD one two /dest/", "cannot decompress `one`"]);
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn case_110_what_clashes_is_replaced_and_chown_is_for_all_entries() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (_registry, env) = world()?;
    let text = "FROM scratch\nCOPY image /\nADD --chown=5:6 new.tar /dest\n";
    let files = [
        ("image/dest/a/old", "old"),
        ("image/dest/b", "file"),
        ("image/dest/kept/old", "old"),
        ("t/a", "a file now"),
        ("t/b/new", "new"),
        ("t/kept/new", "new"),
        (".dockerignore", "t\n"),
    ];
    let context = env.context("clash", text, &files)?;
    tar(&context.join("t"), &["--owner=12", "--group=34", "-cf", "../new.tar", "a", "b", "kept"])?;
    let (_, unpacked) = built(&env, &context)?;
    assert_eq!(
        entries(&unpacked)?,
        [
            "dest 040755 0:0",
            "dest/a 100644 5:6",
            "dest/b 040755 5:6",
            "dest/b/new 100644 5:6",
            "dest/kept 040755 5:6",
            "dest/kept/new 100644 5:6",
            "dest/kept/old 100644 0:0",
        ]
    );
    assert_eq!(unpacked.text("/dest/a")?, "a file now");
    Ok(())
}

#[test]
fn case_111_an_archive_stays_below_its_destination() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (_registry, env) = world()?;
    let text = "FROM scratch\nADD evil.tar /dest\n";
    let context =
        env.context("evil", text, &[("evil", "x"), ("abs", "y"), (".dockerignore", "*\n!evil.tar\n")])?;
    let renames = ["--transform=s,^evil$,../../evil,", "--transform=s,^abs$,/a/../../abs,"];
    tar(&context, &[&renames[..], &["-cPf", "evil.tar", "evil", "abs"]].concat())?;
    let (_, unpacked) = built(&env, &context)?;
    assert_eq!(entries(&unpacked)?, ["dest 040755 0:0", "dest/abs 100644 0:0", "dest/evil 100644 0:0"]);
    Ok(())
}

/// One archive makes a file of a directory, the next a directory of the file: what was there before stays hidden, for
/// the steps that follow and for those who pull.
fn replaced_twice(env: &TestEnv) -> Result<()> {
    let text = "FROM busybox\nCOPY image /\nADD one.tar two.tar /\nRUN ls /a > /seen\n";
    let files = [("image/a/old", "old"), ("1/a", "file"), ("2/a/new", "new"), (".dockerignore", "1\n2\n")];
    let context = env.context("twice", text, &files)?;
    let owned = ["--owner=0", "--group=0"];
    tar(&context.join("1"), &[&owned[..], &["-cf", "../one.tar", "a"]].concat())?;
    tar(&context.join("2"), &[&owned[..], &["-cf", "../two.tar", "a"]].concat())?;
    let (_, unpacked) = built(env, &context)?;
    assert_eq!(unpacked.text("/seen")?, "new\n");
    assert!(!unpacked.root().join("a/old").exists());
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn a_directory_replaced_twice_hides_the_image_s() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (_registry, env) = world()?;
    replaced_twice(&env)
}

#[test]
fn a_directory_replaced_twice_hides_the_image_s_without_root() -> Result<()> {
    need!(Root, Registry, Bases, Judges, Subuid);
    let registry = Registry::shared()?;
    replaced_twice(&TestEnv::rootless()?.using(&registry)?)
}

#[test]
fn without_root_devices_of_an_archive_are_in_the_image() -> Result<()> {
    need!(Root, Registry, Bases, Judges, Subuid);
    let registry = Registry::shared()?;
    let env = TestEnv::rootless()?.using(&registry)?;
    let context = env.context("devices", "FROM scratch\nADD dev.tar /\n", &[])?;
    let made = env.dir().join("made");
    fs::create_dir(&made)?;
    let null = Command::new("mknod").arg(made.join("null")).args(["c", "1", "3"]).status()?;
    assert!(null.success());
    tar(&made, &["-cf", context.join("dev.tar").to_str().context("UTF-8")?, "null"])?;
    let (_, unpacked) = built(&env, &context)?;
    assert_eq!(entries(&unpacked)?.len(), 1);
    assert_eq!(unpacked.root().join("null").metadata()?.rdev(), 0x103);
    Ok(())
}

/// Writes an archive of small files.
fn pack(path: &Path, files: &[(&str, &str)]) -> Result<()> {
    let mut archive = tar::Builder::new(fs::File::create(path)?);
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len().try_into()?);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, content.as_bytes())?;
    }
    archive.finish()?;
    Ok(())
}

#[test]
fn many_archives_take_few_descriptors() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?;
    let count = 1100;
    let context = env.context("many", "FROM scratch\nADD *.tar /x/\n", &[])?;
    for number in 0..count {
        let (own, text) = (format!("d{number:04}/f"), number.to_string());
        pack(&context.join(format!("{number:04}.tar")), &[(&own, &text), ("last", &text)])?;
    }
    let out = env.work().join("out");
    let plain = OsStr::new("--progress=plain");
    let args = [OsStr::new("build"), OsStr::new("-o"), out.as_os_str(), plain, context.as_os_str()];
    env.run_with_descriptors(256, args)?.ok();
    assert_eq!(fs::read_to_string(out.join("x/last"))?, (count - 1).to_string(), "the last one wins");
    for number in [0, 255, 256, count - 1] {
        assert_eq!(fs::read_to_string(out.join(format!("x/d{number:04}/f")))?, number.to_string());
    }
    assert_eq!(fs::read_dir(out.join("x"))?.count(), count + 1);
    env.assert_nothing_left();
    Ok(())
}
