//! A whole state, whatever layers it is made of: as one listing, and as the members of one archive of files.

use std::io::{self, Write};
use std::os::fd::OwnedFd;

use super::diff::{Change, DiffEntry, LayerDiff, ListingError, Mtime};
use super::emit::{PassError, checked, read_all};
use super::tar::{Member, MemberKind, TarWriter};
use crate::copy::{FileSource, SourceError};
use crate::path::RelPath;
use crate::scratch::Scratch;
use crate::tree::{ContentDigest, FirstNames, Kind, Meta, NodeStore, Tree, TreeError};

/// Bytes read from a file at once.
const BODY_BYTES: usize = 256 << 10;

/// Why a state cannot be listed or archived.
#[derive(Debug, thiserror::Error)]
pub enum FlattenError {
    /// Its tree cannot be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A file cannot be found or opened.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A file cannot be read to its end.
    #[error("cannot read /{path}")]
    Read {
        /// The file.
        path: RelPath,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The list of files cannot be kept or read.
    #[error(transparent)]
    Listing(#[from] ListingError),
    /// The archive cannot be written.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
}

/// Lists a state as the one layer on nothing that would make it: the root first, every path once, no whiteouts.
/// `files` has the times.
pub fn listing(
    tree: &Tree,
    nodes: &dyn NodeStore,
    files: &dyn FileSource,
    scratch: &Scratch,
) -> Result<LayerDiff, FlattenError> {
    let mut names = FirstNames::new(tree.links.iter(nodes));
    let mut listing = LayerDiff::new(scratch);
    let walk = tree.walk(nodes, &RelPath::root()).map_err(TreeError::from)?;
    for found in walk {
        let (path, entry) = found?;
        let mtime = match files.mtime(&path) {
            Ok(mtime) => mtime,
            // `FROM scratch` has no layer to ask for the root's.
            Err(SourceError::Missing { .. }) if path.is_root() => Mtime::default(),
            Err(error) => return Err(error.into()),
        };
        let meta = entry.meta;
        let first = names.first_of(&path).map_err(TreeError::from)?;
        let change = match (first, entry.kind) {
            (Some(target), Kind::File { .. }) => Change::Hardlink { target },
            (_, Kind::Dir(_)) => Change::Dir { meta, opaque: false },
            (_, Kind::File { size, content }) => Change::File { meta, size, content },
            (_, Kind::Symlink(target)) => Change::Symlink { meta, target },
            (_, Kind::CharDevice { major, minor }) => Change::CharDevice { meta, major, minor },
            (_, Kind::BlockDevice { major, minor }) => Change::BlockDevice { meta, major, minor },
            (_, Kind::Fifo) => Change::Fifo { meta },
        };
        listing.push(&DiffEntry { path, change, mtime })?;
    }
    Ok(listing)
}

/// An archive of files being written: members of one state or, below directories, of several.
pub struct FilesArchive<'a> {
    tar: TarWriter<&'a mut dyn Write>,
    buffer: Vec<u8>,
}

impl<'a> FilesArchive<'a> {
    /// Begins an archive.
    pub fn new(out: &'a mut dyn Write) -> Self {
        Self { tar: TarWriter::new(out), buffer: vec![0; BODY_BYTES] }
    }

    /// Adds a state's listing, but its root, below `prefix` (empty, or a name with a `/` at its end). The same bytes
    /// for the same listing anywhere; times are whole seconds and, with `clamp`, at most that many since the epoch.
    pub fn add(
        &mut self,
        prefix: &str,
        listing: &LayerDiff,
        files: &dyn FileSource,
        clamp: Option<i64>,
    ) -> Result<(), FlattenError> {
        let named = |path: &RelPath| [prefix.as_bytes(), path.as_bytes()].concat();
        for entry in listing {
            let DiffEntry { path, change, mtime } = entry?;
            if path.is_root() {
                continue;
            }
            let secs = clamp.map_or(mtime.secs, |clamp| mtime.secs.min(clamp));
            let mut planned = None;
            let (kind, meta) = match change {
                Change::Whiteout => continue,
                Change::Dir { meta, .. } => (MemberKind::Dir, meta),
                Change::File { meta, size, content } => {
                    planned = Some((size, content));
                    (MemberKind::File { size }, meta)
                }
                Change::Hardlink { target } => {
                    let Some(Change::File { meta, .. }) = listing.get(&target)?.map(|first| first.change)
                    else {
                        continue;
                    };
                    // Xattrs belong to the inode: once, with its first name.
                    let meta = Meta { mode: meta.mode, uid: meta.uid, gid: meta.gid, ..Meta::default() };
                    (MemberKind::Hardlink { target: named(&target) }, meta)
                }
                Change::Symlink { meta, target } => (MemberKind::Symlink { target }, meta),
                Change::CharDevice { meta, major, minor } => (MemberKind::CharDevice { major, minor }, meta),
                Change::BlockDevice { meta, major, minor } => {
                    (MemberKind::BlockDevice { major, minor }, meta)
                }
                Change::Fifo { meta } => (MemberKind::Fifo, meta),
            };
            let mut name = named(&path);
            if kind == MemberKind::Dir {
                name.push(b'/');
            }
            let Meta { mode, uid, gid, xattrs } = meta;
            let mtime = Mtime { secs, nanos: 0 };
            // Opened first: a header is not taken back.
            let file =
                planned.map(|planned| Ok::<_, SourceError>((files.open(&path)?, planned))).transpose()?;
            let member = Member { path: name, kind, mode, uid, gid, mtime, xattrs };
            self.tar.header(&member).map_err(FlattenError::Write)?;
            if let Some((file, (size, content))) = file {
                self.body(&path, &file, size, &content)?;
            }
        }
        Ok(())
    }

    /// Adds a directory.
    pub fn add_dir(&mut self, name: &str, mtime_secs: i64) -> Result<(), FlattenError> {
        self.own(format!("{name}/"), MemberKind::Dir, 0o755, mtime_secs)
    }

    /// Adds a file that is not of an image, of `size` bytes.
    pub fn add_file(
        &mut self,
        name: &str,
        size: u64,
        bytes: &mut dyn io::Read,
        mtime_secs: i64,
    ) -> Result<(), FlattenError> {
        self.own(name.to_owned(), MemberKind::File { size }, 0o644, mtime_secs)?;
        let failed = |source| FlattenError::Read { path: RelPath::clamp(name.as_bytes()), source };
        let mut left = size;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(BODY_BYTES);
            bytes.read_exact(&mut self.buffer[..want]).map_err(failed)?;
            self.tar.body(&self.buffer[..want]).map_err(FlattenError::Write)?;
            left -= want as u64;
        }
        Ok(())
    }

    /// Writes the end mark.
    pub fn finish(self) -> Result<(), FlattenError> {
        self.tar.finish().map_err(FlattenError::Write)
    }

    fn own(&mut self, name: String, kind: MemberKind, mode: u32, secs: i64) -> Result<(), FlattenError> {
        let Meta { uid, gid, xattrs, .. } = Meta::default();
        let mtime = Mtime { secs, nanos: 0 };
        let member = Member { path: name.into_bytes(), kind, mode, uid, gid, mtime, xattrs };
        self.tar.header(&member).map_err(FlattenError::Write)
    }

    fn body(
        &mut self,
        path: &RelPath,
        file: &OwnedFd,
        size: u64,
        content: &ContentDigest,
    ) -> Result<(), FlattenError> {
        let (tar, buffer) = (&mut self.tar, &mut self.buffer);
        let mut each = |bytes: &[u8]| tar.body(bytes);
        match checked(content, &mut each, |take| read_all(file, size, buffer, take)) {
            Ok(true) => Ok(()),
            Ok(false) => Err(SourceError::Damaged { path: path.clone(), what: "its content differs" }.into()),
            Err(PassError::Read(source)) => Err(FlattenError::Read { path: path.clone(), source }),
            Err(PassError::Take(error)) => Err(FlattenError::Write(error)),
        }
    }
}
