//! Which repositories belong where below another one.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Read};

use rbuild_frontend::remote::{GitSource, Remote};

use super::GitError;

/// Longest record of a listing that is looked at. No path of this length can be a file's.
const RECORD_BYTES_MAX: usize = 8 << 10;

/// Path, address and commit of each link in what `git ls-tree -r -z` writes, of those that have an address. Holds nothing
/// of the rest, however many they are. `None` as soon as there are more than `max`.
pub(super) fn links(
    listing: impl Read,
    addresses: &BTreeMap<String, String>,
    max: usize,
) -> io::Result<Option<Vec<(String, String, String)>>> {
    let mut listing = BufReader::with_capacity(64 << 10, listing);
    let (mut links, mut record) = (Vec::new(), Vec::new());
    loop {
        record.clear();
        if listing.by_ref().take(RECORD_BYTES_MAX as u64).read_until(0, &mut record)? == 0 {
            return Ok(Some(links));
        }
        if record.pop_if(|last| *last == 0).is_none() {
            listing.skip_until(0)?;
            continue;
        }
        let Some((path, commit)) = link(&record) else { continue };
        let Some(address) = addresses.get(path) else { continue };
        if links.len() == max {
            return Ok(None);
        }
        links.push((path.to_owned(), address.clone(), commit.to_owned()));
    }
}

/// Path and commit of a record, if a submodule is there.
fn link(record: &[u8]) -> Option<(&str, &str)> {
    let record = record.strip_prefix(b"160000 commit ")?;
    let (commit, path) = std::str::from_utf8(record).ok()?.split_once('\t')?;
    Some((path, commit))
}

/// Addresses by path, from `git config -z --get-regexp ^submodule\..*\.(path|url)$`.
pub(super) fn addresses(listing: &[u8]) -> BTreeMap<String, String> {
    let mut named: BTreeMap<String, (Option<String>, Option<String>)> = BTreeMap::new();
    for record in listing.split(|b| *b == 0) {
        let Ok(text) = std::str::from_utf8(record) else { continue };
        let Some((key, value)) = text.split_once('\n') else { continue };
        let Some((name, what)) = key.strip_prefix("submodule.").and_then(|key| key.rsplit_once('.')) else {
            continue;
        };
        let entry = named.entry(name.to_owned()).or_default();
        match what {
            "path" => entry.0 = Some(value.to_owned()),
            "url" => entry.1 = Some(value.to_owned()),
            _ => {}
        }
    }
    named.into_values().filter_map(|(path, url)| Some((path?, url?))).collect()
}

/// The repository that an address means, seen from the one whose `.gitmodules` has it.
pub(super) fn source(parent: &GitSource, path: &str, address: &str) -> Result<GitSource, GitError> {
    let refused = |why| GitError::Submodule {
        path: path.escape_default().to_string(),
        remote: rbuild_frontend::remote::without_user(&parent.remote),
        address: address.escape_default().to_string(),
        why,
    };
    let full = match address.starts_with("./") || address.starts_with("../") {
        true => beside(&parent.remote, address).ok_or_else(|| refused("it climbs out of the server"))?,
        false => address.to_owned(),
    };
    if full.contains(['#', '?']) {
        return Err(refused("it is more than an address"));
    }
    // Most say `https://host/x` without `.git`, which alone would be a file's address.
    let parsed = match Remote::parse(&full) {
        Ok(Some(Remote::Git(source))) => Ok(source),
        Ok(Some(Remote::Http(file))) => {
            Ok(GitSource { remote: file.url, submodules: true, ..GitSource::default() })
        }
        Ok(None) => Err(refused("only http, https, ssh and git addresses are fetched")),
        Err(_) => Err(refused("it is not an address")),
    }?;
    if parent.remote.starts_with("https://") && parsed.remote.starts_with("http://") {
        return Err(refused("refusing to go from https to http"));
    }
    // What a stranger's repository names must not be read with the keys of who builds.
    if parsed.is_ssh() && !parent.is_ssh() {
        return Err(refused("it is reached with your ssh keys, and the repository itself is not"));
    }
    Ok(parsed)
}

/// `../x` beside `https://h/a/b.git` is `https://h/a/x`.
fn beside(parent: &str, relative: &str) -> Option<String> {
    let (prefix, path) = match parent.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_once('/')?;
            (format!("{scheme}://{authority}/"), path)
        }
        None => {
            let (host, path) = parent.split_once(':')?;
            (format!("{host}:"), path)
        }
    };
    let mut parts: Vec<&str> = path.trim_end_matches('/').split('/').collect();
    for part in relative.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            other => parts.push(other),
        }
    }
    Some(format!("{prefix}{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(remote: &str) -> GitSource {
        GitSource { remote: remote.into(), ..GitSource::default() }
    }

    #[test]
    fn relative_addresses_stay_on_their_server() {
        let found = |remote: &str, address| source(&parent(remote), "p", address).map(|source| source.remote);
        assert_eq!(found("https://h/a/b.git", "../c.git").unwrap(), "https://h/a/c.git");
        assert_eq!(found("https://h/a/b.git", "./c.git").unwrap(), "https://h/a/b.git/c.git");
        assert_eq!(found("git@h:a/b.git", "../c.git").unwrap(), "git@h:a/c.git");
        assert!(found("https://h/b.git", "../../../x.git").is_err());
        assert_eq!(found("https://h/b.git", "https://g/c").unwrap(), "https://g/c");
    }

    #[test]
    fn hostile_addresses_are_refused() {
        for address in [
            "ext::sh -c id",
            "file:///etc",
            "/etc",
            "--upload-pack=id",
            "http://g/c.git",
            "ssh://git@g/c.git",
            "git@g:c.git",
            "https://g/c.git#x",
            "https://g/c git",
            "",
        ] {
            let refused = source(&parent("https://h/b.git"), "p", address);
            assert!(matches!(refused, Err(GitError::Submodule { .. })), "{address}: {refused:?}");
        }
    }

    #[test]
    fn listings_are_read_by_their_records() {
        let known = |paths: &[&str]| -> BTreeMap<String, String> {
            paths.iter().map(|path| ((*path).to_owned(), format!("of {path}"))).collect()
        };
        let found = |tree: &[u8], paths: &[&str], max| links(tree, &known(paths), max).unwrap();
        let link = |path: &str, commit: &str| (path.to_owned(), format!("of {path}"), commit.to_owned());
        let tree = b"100644 blob 11\ta\x00160000 commit 22\tsub dir/x\x00160000 commit 33\tunknown\0";
        assert_eq!(found(tree, &["sub dir/x", "a", "b"], 1), Some(vec![link("sub dir/x", "22")]));
        assert_eq!(found(tree, &["sub dir/x", "unknown"], 1), None);
        assert_eq!(found(tree, &["a"], 0), Some(Vec::new()));
        // A path that is too long to be one is passed over, and what comes after it is read.
        for length in [RECORD_BYTES_MAX - 20, RECORD_BYTES_MAX, RECORD_BYTES_MAX + 1, 9 * RECORD_BYTES_MAX] {
            let long = "l".repeat(length);
            let tree = format!("160000 commit 44\t{long}\x00160000 commit 55\tshort\0");
            let short = link("short", "55");
            let all = if length < RECORD_BYTES_MAX { vec![link(&long, "44"), short] } else { vec![short] };
            assert_eq!(found(tree.as_bytes(), &[&long, "short"], 2), Some(all));
        }
        let config = b"submodule.a.b.path\nsub\0submodule.a.b.url\nhttps://h/x\0submodule.lone.path\ny\0";
        assert_eq!(addresses(config), BTreeMap::from([("sub".to_owned(), "https://h/x".to_owned())]));
    }
}
