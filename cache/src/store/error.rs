//! What can go wrong with the store.

use std::io;
use std::path::{Component, Path, PathBuf};

use rbuild_oci::Digest;

use super::LayerId;

/// A failing store operation. Nothing half-written is visible after any of them; whether a retry makes sense is said
/// per variant.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("could not {doing} `{}`", path.display())]
    Io {
        /// Verb phrase, e.g. "create".
        doing: &'static str,
        /// File or directory in the store.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file system or a quota is full. Retry after freeing space.
    #[error("no space left to {doing} `{}`; free some space or move the store", path.display())]
    NoSpace {
        /// Verb phrase.
        doing: &'static str,
        /// File or directory in the store.
        path: PathBuf,
        /// What the kernel or SQLite said.
        source: io::Error,
    },
    /// The file system is mounted read-only or the directory refuses writes.
    #[error(
        "the store `{}` is read-only; even commands that only look write their locks there: \
         make it writable, or name another one with --root",
        root.display()
    )]
    ReadOnly {
        /// The store.
        root: PathBuf,
    },
    /// The directory is not a directory.
    #[error("the store `{}` is not a directory", root.display())]
    NotADirectory {
        /// The store.
        root: PathBuf,
    },
    /// Somebody else owns the directory.
    #[error("the store `{}` belongs to uid {owner}, this process runs as uid {us}; choose another store: --root DIR", root.display())]
    ForeignOwner {
        /// The store.
        root: PathBuf,
        /// Owner of the directory.
        owner: u32,
        /// Effective uid of this process.
        us: u32,
    },
    /// Others may write into the directory.
    #[error("the store `{}` has mode {mode:04o}, so others can change it; run `chmod 700` on it", root.display())]
    OpenToOthers {
        /// The store.
        root: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The directory is on a file system whose locks or shared memory cannot be relied on.
    #[error("the store `{}` is on {kind}, which has no dependable locks; choose a directory on a local disk", root.display())]
    NetworkFilesystem {
        /// The store.
        root: PathBuf,
        /// Name of the file system type.
        kind: &'static str,
    },
    /// The file system has no locks at all.
    #[error("the store `{}` is on a file system without locks; choose a directory on a local disk", root.display())]
    NoLocks {
        /// The store.
        root: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// A newer rbuild made the store.
    #[error("`{}` was written by a newer rbuild ({found}); use that version or another store", path.display())]
    NewerFormat {
        /// The file that says so.
        path: PathBuf,
        /// What is unknown here.
        found: String,
    },
    /// Layer directories were written under another uid mapping or overlay form; mixing them would give files to
    /// the wrong owners.
    #[error(
        "the store `{}` was made with id map `{recorded}`, this run uses `{wanted}`; use another store, or remove it to start afresh",
        root.display()
    )]
    IdMap {
        /// The store.
        root: PathBuf,
        /// What `store.json` says.
        recorded: String,
        /// What this run needs.
        wanted: String,
    },
    /// Another process migrates or wipes the store for longer than we wait. Retry makes sense.
    #[error("the store `{}` is held by another rbuild that migrates or removes it", root.display())]
    Busy {
        /// The store.
        root: PathBuf,
    },
    /// Another process has the store open. Retry makes sense.
    #[error("the store `{}` is in use by another rbuild; try again when it is done", root.display())]
    InUse {
        /// The store.
        root: PathBuf,
    },
    /// The index is gone or empty in a store that has images.
    #[error("`{}` is gone or empty, and the store has images; `rbuild cache fsck --rebuild` makes it anew", path.display())]
    IndexLost {
        /// Where it should be.
        path: PathBuf,
    },
    /// The index does not know an image that has a file of its name.
    #[error(
        "the index lost the image `{name}`, which `{}` names; `rbuild cache fsck --rebuild` brings it back, nothing is removed before",
        path.display()
    )]
    NameLost {
        /// Its name.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// Something has the place of a file or directory of the store that is no such thing.
    #[error("`{}` is {found}, where rbuild keeps a {wanted}: {remedy}", path.display())]
    WrongKind {
        /// What is in the way.
        path: PathBuf,
        /// With its article.
        found: &'static str,
        /// `file` or `directory`.
        wanted: &'static str,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A file of the store does not hold what was written to it.
    #[error("`{}` is damaged: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A record in the index does not hold what was written to it.
    #[error("the record of {kind} `{name}` is damaged in the index")]
    DamagedRecord {
        /// Kind of record.
        kind: &'static str,
        /// Its key as text.
        name: String,
    },
    /// SQLite failed.
    #[error("could not {doing} in `{}`", path.display())]
    Database {
        /// Verb phrase.
        doing: &'static str,
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The layer has no row: it was removed or never committed.
    #[error("layer {0} is not in the store")]
    UnknownLayer(LayerId),
    /// Received bytes are not the ones asked for; they are discarded.
    #[error("content has digest {actual}, expected {expected}")]
    DigestMismatch {
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// The file system could not write back data of this or an earlier build; every result since the last good
    /// sync was dropped and is built again next time.
    #[error("the file system of the store `{}` lost data while writing it back", root.display())]
    Sync {
        /// The store.
        root: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Gives an I/O result its path.
pub(super) trait IoContext<T> {
    /// Says what was being done to which file.
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> IoContext<T> for Result<T, E> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::io(doing, path, source.into()))
    }
}

impl StoreError {
    /// True for what `fsck --repair` takes out of the way: files of layers, and records.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::UnknownLayer(_) | Self::DamagedRecord { .. } => true,
            // layers/ID/entries, layers/ID/packs/0
            Self::Damaged { path, .. } => path.iter().rev().skip(2).take(2).any(|name| name == "layers"),
            _ => false,
        }
    }

    /// What failed while something was done to a file below the root.
    pub fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace { doing, path, source }
            }
            _ => match in_the_way(&source, &path) {
                Some(error) => error,
                None => Self::Io { doing, path, source },
            },
        }
    }
}

/// What has the place of the store's file at `path`, or of a directory above it, if that is why it failed so. Layers and blobs
/// are left out: checking them says more.
fn in_the_way(source: &io::Error, path: &Path) -> Option<StoreError> {
    // Names in the store are followed nowhere.
    let is_link = source.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
    let (path, wanted) = match source.kind() {
        io::ErrorKind::IsADirectory => (path, "file"),
        io::ErrorKind::NotADirectory => {
            (path.ancestors().find(|path| path.symlink_metadata().is_ok())?, "directory")
        }
        _ if is_link => (path, "file or directory"),
        _ => return None,
    };
    let is_object = |part: Component<'_>| matches!(part.as_os_str().to_str(), Some("layers" | "blobs"));
    if path.parent()?.components().any(is_object) { None } else { wrong_kind(path, wanted) }
}

fn wrong_kind(path: &Path, wanted: &'static str) -> Option<StoreError> {
    let own = "nothing of rbuild's is in it, remove it";
    let (found, remedy) = match path.symlink_metadata().ok()?.file_type() {
        found if found.is_dir() => ("a directory", own),
        found if found.is_symlink() => ("a symbolic link", "put what it leads to in its place, or remove it"),
        _ => ("a file", own),
    };
    Some(StoreError::WrongKind { path: path.to_owned(), found, wanted, remedy })
}

/// The same of a file that must not be a directory, such as a database's.
pub(super) fn directory_at(path: &Path) -> Option<StoreError> {
    let is_dir = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
    if is_dir { wrong_kind(path, "file") } else { None }
}
