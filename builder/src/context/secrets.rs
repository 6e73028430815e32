//! Files that should rarely be in an image: known by their names, where names say too little by what is in them.

use std::os::fd::AsFd;

/// Bytes looked at of a file whose name says too little.
const LOOK_BYTES_MAX: usize = 64 << 10;

/// What a name tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suspicion {
    /// It is a secret.
    ByName,
    /// It is one if this is in it.
    With(&'static str),
}

/// True when this is at the beginning of a file. One that cannot be read holds nothing.
pub(super) fn holds(file: impl AsFd, needle: &str) -> bool {
    let mut bytes = vec![0; LOOK_BYTES_MAX];
    let read = rustix::io::read(file, &mut bytes[..]).unwrap_or(0);
    bytes[..read].windows(needle.len()).any(|window| window == needle.as_bytes())
}

/// What the path of a file, relative to the context, tells.
pub(super) fn suspicion(path: &[u8]) -> Option<Suspicion> {
    let mut names = path.rsplit(|b| *b == b'/');
    let (name, dir) = (names.next().unwrap_or_default(), names.next().unwrap_or_default());
    let ends = |end: &str| name.ends_with(end.as_bytes()) && name.len() > end.len();
    match (dir, name) {
        (_, b"id_rsa" | b"id_dsa" | b"id_ecdsa" | b"id_ed25519") => Some(Suspicion::ByName),
        (_, b".env" | b".netrc" | b".pgpass" | b".git-credentials" | b".htpasswd") => Some(Suspicion::ByName),
        (b".aws", b"credentials") | (b".kube", b"config") => Some(Suspicion::ByName),
        (b".docker", b"config.json") => Some(Suspicion::With("\"auth\"")),
        (_, b".npmrc") => Some(Suspicion::With("_authToken")),
        (_, b".pypirc") => Some(Suspicion::With("password")),
        _ if name.starts_with(b".env.") => {
            let is_sample = [".example", ".sample", ".template", ".dist"].iter().any(|end| ends(end));
            (!is_sample).then_some(Suspicion::ByName)
        }
        _ if ends(".pem") || ends(".key") => Some(Suspicion::With("PRIVATE KEY")),
        _ if ends(".p12") || ends(".pfx") || ends(".keystore") => Some(Suspicion::ByName),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_secrets_from_samples() {
        for (path, found) in [
            (".env", Some(Suspicion::ByName)),
            ("app/.env.production", Some(Suspicion::ByName)),
            (".env.example", None),
            ("keys/id_rsa", Some(Suspicion::ByName)),
            ("id_rsa.pub", None),
            (".aws/credentials", Some(Suspicion::ByName)),
            ("credentials", None),
            ("tls/server.pem", Some(Suspicion::With("PRIVATE KEY"))),
            (".pem", None),
            (".npmrc", Some(Suspicion::With("_authToken"))),
            ("src/env.js", None),
        ] {
            assert_eq!(suspicion(path.as_bytes()), found, "{path}");
        }
    }
}
