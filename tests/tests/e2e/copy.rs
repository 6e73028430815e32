//! What COPY does with special files, modes, and links on the way (golden cases 97 to 102 and 145).

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use rbuild_tests::{TestEnv, judge, need};

use crate::world;

fn built(env: &TestEnv, context: &Path) -> Result<judge::Unpacked> {
    let file = env.work().join("out.tar");
    env.build(context, &["-o", &format!("type=oci,dest={}", file.display())])?.ok();
    judge::unpack(&format!("oci-archive:{}", file.display()))
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

#[test]
fn cases_97_and_98_special_files_links_and_modes_are_copied() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (_registry, env) = world()?;
    let files = [("d/one", "x"), ("d/su", "x"), ("d/sticky/f", "x")];
    let context = env.context("special", "FROM scratch\nCOPY d /d/\nADD d/socket /added\n", &files)?;
    let dir = context.join("d");
    fs::hard_link(dir.join("one"), dir.join("two"))?;
    assert!(Command::new("mkfifo").arg(dir.join("pipe")).status()?.success());
    drop(UnixListener::bind(dir.join("socket"))?);
    set_mode(&dir.join("pipe"), 0o640)?;
    set_mode(&dir.join("su"), 0o6755)?;
    set_mode(&dir.join("sticky"), 0o1777)?;
    let unpacked = built(&env, &context)?;
    let stat = |path: &str| unpacked.root().join("d").join(path).symlink_metadata();
    assert!(stat("pipe")?.file_type().is_fifo());
    assert_eq!(stat("pipe")?.mode() & 0o7777, 0o640);
    assert!(stat("socket")?.is_file());
    assert_eq!(stat("socket")?.len(), 0);
    assert_eq!(unpacked.text("/added")?, "");
    assert_eq!(stat("one")?.ino(), stat("two")?.ino(), "still one file");
    assert_eq!(stat("su")?.mode() & 0o7777, 0o6755);
    assert_eq!(stat("sticky")?.mode() & 0o7777, 0o1777);
    env.build(&context, &[])?.ok().assert_all_cached();
    Ok(())
}

#[test]
fn cases_99_to_101_links_at_the_destination_are_followed_in_the_image() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (_registry, env) = world()?;
    let text = "FROM busybox\n\
                RUN mkdir /real && echo old > /target && ln -s /real /l && ln -s target /fl && chmod 1777 /tmp\n\
                COPY f /l\nCOPY g /fl\nCOPY d /tmp/\n";
    let context = env.context("links", text, &[("f", "F"), ("g", "G"), ("d/x", "X")])?;
    set_mode(&context.join("d"), 0o700)?;
    let unpacked = built(&env, &context)?;
    assert_eq!(unpacked.text("/real/f")?, "F");
    assert_eq!(unpacked.text("/target")?, "G");
    for (link, target) in [("l", "/real"), ("fl", "target")] {
        assert_eq!(fs::read_link(unpacked.root().join(link))?, Path::new(target));
    }
    assert_eq!(unpacked.text("/tmp/x")?, "X");
    assert_eq!(unpacked.root().join("tmp").metadata()?.mode() & 0o7777, 0o1777);
    Ok(())
}

#[test]
fn case_102_directories_and_files_do_not_replace_one_another() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    for (name, before, from, message) in [
        ("dir-on-file", "touch /dest/x", "dir", "cannot copy to non-directory: /dest/x"),
        ("file-on-dir", "mkdir /dest/x", "file", "cannot replace to directory /dest/x with file"),
        ("dir-on-link", "mkdir /real && ln -s /real /dest/x", "dir", "cannot copy to non-directory: /dest/x"),
    ] {
        let text = format!("FROM busybox\nRUN mkdir /dest && {before}\nCOPY {from} /dest/\n");
        let context = env.context(name, &text, &[("dir/x/y", "y"), ("file/x", "x")])?;
        env.build(&context, &[])?.exits(1).says(&[message, &format!("COPY {from} /dest/")]);
    }
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn case_145_a_working_directory_is_the_user_s_and_a_copy_into_it_root_s() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (_registry, env) = world()?;
    let text = "FROM busybox\nRUN echo daemon:x:1:1::/:/bin/sh >> /etc/passwd\n\
                USER daemon\nWORKDIR /x/y\nCOPY f .\n";
    let context = env.context("workdir", text, &[("f", "F")])?;
    let unpacked = built(&env, &context)?;
    for (path, owner) in [("x", 1), ("x/y", 1), ("x/y/f", 0)] {
        let stat = unpacked.root().join(path).metadata()?;
        assert_eq!((stat.uid(), stat.gid()), (owner, owner), "{path}");
    }
    Ok(())
}
