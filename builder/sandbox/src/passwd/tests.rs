use super::*;

const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\napp:x:1000:1001:App:/srv/app:/bin/sh\n\
    minus:x:4294967295:0::/:\nbig:x:4294967296:0::/:\nsigned:x:+7:0::/:\nnohome:x:5:6\r\n\xff\xfe:x:1:1::/:\n";
const GROUP: &[u8] =
    b"root:x:0:\napp:x:1001:\ndisk:x:6:root,app\naudio:x:29:app\naudio2:x:29:app\nempty:x:77:,,\n";

fn resolve(user: &str) -> Result<ResolvedUser, UserError> {
    resolve_user(user, &parse_passwd(PASSWD), &parse_group(GROUP))
}

fn ids(user: &str) -> (u32, u32, Vec<u32>) {
    let user = resolve(user).unwrap();
    (user.uid, user.gid, user.groups)
}

#[test]
fn lines_that_are_not_entries_are_skipped() {
    let names: Vec<_> = parse_passwd(PASSWD).into_iter().map(|e| e.name).collect();
    assert_eq!(names, ["root", "app", "nohome"]);
}

#[test]
fn a_name_gets_primary_and_supplementary_groups() {
    assert_eq!(ids("app"), (1000, 1001, vec![6, 29, 1001]));
    assert_eq!(resolve("app").unwrap().home, "/srv/app");
}

#[test]
fn a_known_uid_is_the_user_of_that_entry() {
    assert_eq!(ids("1000"), (1000, 1001, vec![6, 29, 1001]));
}

#[test]
fn an_unknown_uid_has_group_0_and_home_slash() {
    assert_eq!(ids("4242"), (4242, 0, vec![0]));
    assert_eq!(resolve("4242").unwrap().home, "/");
}

#[test]
fn an_explicit_group_is_the_only_group() {
    assert_eq!(ids("app:disk"), (1000, 6, vec![6]));
    assert_eq!(ids("app:99"), (1000, 99, vec![99]));
    assert_eq!(ids("7:29"), (7, 29, vec![29]));
}

#[test]
fn an_empty_user_is_root() {
    assert_eq!(ids(""), (0, 0, vec![0, 6]));
    assert_eq!(ids(":"), (0, 0, vec![0, 6]));
    assert_eq!(ids(":audio"), (0, 29, vec![29]));
}

#[test]
fn unknown_names_are_told_apart() {
    assert_eq!(
        resolve("x").unwrap_err().to_string(),
        "unable to find user x: no matching entries in passwd file"
    );
    assert!(matches!(resolve("app:nope"), Err(UserError::UnknownGroup { name }) if name == "nope"));
}

#[test]
fn ids_that_do_not_fit_are_refused_and_never_wrap() {
    for user in ["4294967295", "4294967296", "99999999999999999999", "0:4294967295"] {
        assert!(matches!(resolve(user), Err(UserError::IdOutOfRange { .. })), "{user}");
    }
    for user in ["-1", "+1", "0x10", " 1"] {
        assert!(matches!(resolve(user), Err(UserError::UnknownUser { .. })), "{user}");
    }
}

#[test]
fn account_files_must_be_regular_and_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let root = std::fs::File::open(dir.path()).unwrap();
    let read = || read_account_file(std::os::fd::AsFd::as_fd(&root), "/etc/passwd");
    assert!(read().unwrap().is_empty());
    std::fs::create_dir(dir.path().join("etc")).unwrap();
    let passwd = dir.path().join("etc/passwd");
    std::os::unix::fs::symlink("/real", &passwd).unwrap();
    std::fs::write(dir.path().join("real"), "in:x:1:1::/:").unwrap();
    assert_eq!(read().unwrap(), b"in:x:1:1::/:");
    std::fs::remove_file(&passwd).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &passwd, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    assert!(matches!(read(), Err(UserError::NotRegular { .. })));
    std::fs::remove_file(&passwd).unwrap();
    std::fs::File::create(&passwd).unwrap().set_len(ACCOUNT_FILE_SIZE_BYTES_MAX + 1).unwrap();
    assert!(matches!(read(), Err(UserError::TooLarge { .. })));
}
