//! Authorities and client certificates as files: which ones belong to a host.

use std::path::{Path, PathBuf};

use super::ConfigError;

/// Files that prove who a host is, and who we are to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Papers {
    /// PEM files of authorities (or of a server's own certificate) trusted beside the system's.
    pub(crate) authorities: Vec<PathBuf>,
    /// Our certificates and their keys; the first is shown.
    pub(crate) pairs: Vec<Pair>,
}

/// A client certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Pair {
    /// PEM file of the certificate; of the key, too, when there is no other.
    pub(crate) certificate: PathBuf,
    /// PEM file of the key.
    pub(crate) key: Option<PathBuf>,
}

impl Papers {
    pub(crate) fn is_empty(&self) -> bool {
        self.authorities.is_empty() && self.pairs.is_empty()
    }

    /// Docker's naming in a `certs.d` folder: `*.crt` are authorities, `X.cert` with `X.key` is ours.
    pub(crate) fn of_folder(folder: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Read { path: folder.to_owned(), source };
        let entries = std::fs::read_dir(folder).map_err(unreadable)?;
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|e| e.path())).collect();
        paths.sort();
        let mut papers = Self::default();
        for path in paths {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => papers.authorities.push(path),
                Some("cert") => {
                    let key = Some(path.with_extension("key"));
                    papers.pairs.push(Pair { certificate: path, key });
                }
                _ => {}
            }
        }
        Ok(papers)
    }
}
