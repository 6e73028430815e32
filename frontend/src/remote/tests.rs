use super::*;

fn git(text: &str) -> Result<GitSource, RemoteError> {
    match Remote::parse(text)? {
        Some(Remote::Git(source)) => Ok(source),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn addresses_are_told_from_paths_and_from_each_other() {
    for path in
        ["a", "/a/b.git", "./x", "github.com/a/b", "ftp://h/a", "a@b", "me@host:", "a b@host:x", "x:y"]
    {
        assert_eq!(Remote::parse(path), Ok(None), "{path}");
    }
    for address in [
        "git://h/a",
        "ssh://git@h/a",
        "git@h:a/b",
        "me@h.example:x.git#v1",
        "https://h/a.git",
        "http://h/a.git/",
        "https://h/a.git?ref=x",
        "https://h/a.git#b:c",
    ] {
        git(address).unwrap();
    }
    for address in ["https://h/a", "http://h:80/a.tgz?x=y.git", "https://h/a.git/b"] {
        assert!(matches!(Remote::parse(address), Ok(Some(Remote::Http(_)))), "{address}");
    }
}

#[test]
fn names_are_one_component_whatever_the_address_says() {
    for (url, name) in [
        ("https://h/a/b.tgz", "b.tgz"),
        ("https://h/a/b.tgz?sig=/x/y", "b.tgz"),
        ("https://h/a/#f", "a"),
        ("https://h", UNNAMED),
        ("https://h/", UNNAMED),
        ("https://h?x", UNNAMED),
        ("https://h/a/..", UNNAMED),
        ("https://h/a/%2e%2e", UNNAMED),
        ("https://h/a/%2e%2e%2fpasswd", "passwd"),
        ("https://h/a%20b%zz", "a b%zz"),
        ("https://h/%00", UNNAMED),
    ] {
        let Ok(Some(Remote::Http(source))) = Remote::parse(url) else { panic!("{url}") };
        assert_eq!(source.name, name, "{url}");
    }
}

#[test]
fn fragments_and_queries_say_the_same() {
    let source = git("https://u:p@h/r.git#v1:docs/x").unwrap();
    assert_eq!((source.reference.as_str(), source.subdir.as_str()), ("v1", "docs/x"));
    assert_eq!(source.remote, "https://u:p@h/r.git");
    assert_eq!(source.to_string(), "https://h/r.git#v1:docs/x");
    assert_eq!(git("https://h/r.git#:sub").unwrap().subdir, "sub");
    let source =
        git("git@h:r.git?branch=main&subdir=a%2Fb&commit=ABCDEF12&keep-git-dir&submodules=0").unwrap();
    assert_eq!((source.reference.as_str(), source.subdir.as_str()), ("refs/heads/main", "a/b"));
    assert_eq!((source.checksum.as_str(), source.keep_git_dir), ("abcdef12", Some(true)));
    assert!(!source.submodules);
    assert_eq!(git("https://h/r.git?tag=v1&ref=refs/tags/v1").unwrap().reference, "refs/tags/v1");
}

#[test]
fn what_would_lead_elsewhere_is_clamped_or_refused() {
    assert_eq!(git("https://h/r.git#x:../../etc").unwrap().subdir, "etc");
    for (address, error) in [
        ("https://h/r.git#--upload-pack=x", RemoteError::Reference("--upload-pack=x".into())),
        ("https://h/r.git#a..b", RemoteError::Reference("a..b".into())),
        ("https://h/r.git?ref=a%0ab", RemoteError::Reference("a\\nb".into())),
        ("https://h/r.git?what=1", RemoteError::Query("what".into())),
        ("https://h/r.git?tag=a&branch=a", RemoteError::Conflict("ref")),
        ("https://h/r.git?commit=zz", RemoteError::Checksum("zz".into())),
        ("https:///r.git", RemoteError::NoHost("https:///r.git".into())),
        ("https://h/a b", RemoteError::Character("https://h/a b".into())),
    ] {
        assert_eq!(Remote::parse(address), Err(error), "{address}");
    }
}

#[test]
fn github_needs_no_scheme_where_a_context_is_named() {
    let source = GitSource::context("github.com/a/b#main").unwrap().unwrap();
    assert_eq!((source.remote.as_str(), source.reference.as_str()), ("https://github.com/a/b", "main"));
    assert_eq!(GitSource::context("dir"), Ok(None));
}
