//! A context from standard input: a tar, plain or compressed, or else a Dockerfile whose context is empty.
//!
//! The tar is unpacked as layers are, into the lease's work area: bounded, and nothing of it leads outside. Its tree comes
//! from the listing, so owners, modes and times are the tar's. An ignore file in it is a file like any other.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rbuild_cache::copy::{DirSource, FileSource, SourceError};
use rbuild_cache::layer::{
    self, DecompressError, LayerDiff, Limits, ListingError, OverlayForm, UnpackBlobError, unpack_blob,
};
use rbuild_cache::path::RelPath;
use rbuild_cache::scratch::Scratch;
use rbuild_cache::store::{Lease, StoreError};
use rbuild_cache::tree::{Kind, LastLink, MemoryNodeStore, ResolveError, Tree, TreeError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::ScannedContext;
use super::counted::Counted;
use super::epoch::newest;
use super::files::{DEFAULT_NAMES, FoundDockerfile, bounded};
use crate::cancel::Cancel;

/// Bytes that are enough to tell whether they begin a tar: Zstandard inflates in blocks of up to 128 KiB.
const HEAD_BYTES: u64 = 256 << 10;
/// How long a stopped build may wait for standard input.
const POLL_NS: i64 = 50_000_000;

/// Why standard input is no context.
#[derive(Debug, thiserror::Error)]
pub enum StdinError {
    /// It cannot be read, or a compression is not known.
    #[error("cannot read the build context from standard input")]
    Head(#[from] DecompressError),
    /// It broke off, or is longer than a Dockerfile may be.
    #[error("cannot read standard input")]
    Read(#[source] io::Error),
    /// It is not an archive that can be unpacked.
    #[error("cannot unpack the build context from standard input")]
    Unpack(#[source] UnpackBlobError),
    /// There is no room for it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its directory cannot be opened.
    #[error("cannot open the unpacked build context")]
    Open(#[source] io::Error),
    /// Its tree cannot be made.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The list of its files cannot be read.
    #[error(transparent)]
    Listing(#[from] ListingError),
    /// It has no Dockerfile.
    #[error("failed to read dockerfile: open {path}: no such file or directory")]
    NoDockerfile {
        /// Where it should be.
        path: String,
    },
    /// The Dockerfile's path cannot be followed.
    #[error("cannot find the Dockerfile `{path}` in the build context")]
    Resolve {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        source: ResolveError,
    },
    /// The Dockerfile cannot be read.
    #[error("cannot read the Dockerfile `{path}` in the build context")]
    Dockerfile {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        source: SourceError,
    },
    /// `-f` beside a Dockerfile on standard input.
    #[error("ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles")]
    TwoDockerfiles,
}

/// What standard input gave.
pub struct Received {
    /// The Dockerfile.
    pub dockerfile: FoundDockerfile,
    /// The files.
    pub context: ScannedContext,
    /// True for a tar, whose files keep their owners.
    pub has_owners: bool,
}

/// Reads a context. `dockerfile` is a path in the tar.
pub fn receive(
    mut input: impl Read + Send,
    lease: &Lease,
    overlay: OverlayForm,
    dockerfile: Option<&Path>,
) -> Result<Received, StdinError> {
    let head = head(&mut input)?;
    let limits = Limits::default();
    let place = lease.new_dir()?;
    let dir: OwnedFd = File::open(&place).map_err(StdinError::Open)?.into();
    let scratch = Scratch::on(&dir).map_err(StdinError::Open)?;
    if !is_archive(&head)? {
        let dockerfile = only_dockerfile(&head, &mut input, dockerfile)?;
        let context = context(LayerDiff::default(), dir, &scratch)?;
        return Ok(Received { dockerfile, context, has_owners: false });
    }
    let all = io::Cursor::new(head).chain(input);
    let unpacked = unpack_blob(all, None, dir.as_fd(), overlay, &limits, &scratch);
    let (unpacked, _) = unpacked.map_err(StdinError::Unpack)?;
    let context = context(unpacked.diff, dir, &scratch)?;
    Ok(Received { dockerfile: dockerfile_in(&context, dockerfile)?, context, has_owners: true })
}

/// True when these first bytes begin a tar.
pub fn is_archive(head: &[u8]) -> Result<bool, StdinError> {
    Ok(layer::is_archive(head, &Limits::default())?)
}

/// As many first bytes as [`is_archive`] may need.
pub fn head(input: &mut impl Read) -> Result<Vec<u8>, StdinError> {
    let mut head = Vec::new();
    input.by_ref().take(HEAD_BYTES).read_to_end(&mut head).map_err(StdinError::Read)?;
    Ok(head)
}

/// All of standard input as a Dockerfile. `dockerfile` is the path of `-f`: there cannot be another.
pub fn only_dockerfile(
    head: &[u8],
    rest: &mut impl Read,
    dockerfile: Option<&Path>,
) -> Result<FoundDockerfile, StdinError> {
    if dockerfile.is_some() {
        return Err(StdinError::TwoDockerfiles);
    }
    let bytes = bounded(&mut head.chain(rest)).map_err(StdinError::Read)?;
    Ok(FoundDockerfile { path: None, display: "stdin".to_owned(), bytes: bytes.into(), pinned: None })
}

fn context(diff: LayerDiff, dir: OwnedFd, scratch: &Scratch) -> Result<ScannedContext, StdinError> {
    let nodes = Arc::new(MemoryNodeStore::default());
    let newest_unix = newest(&diff)?;
    let tree = Tree::empty().apply(&*nodes, &diff, scratch)?;
    Ok(ScannedContext {
        tree,
        nodes,
        dir,
        identity: None,
        layer: None,
        newest_unix,
        skipped: Counted::default(),
        size_bytes: 0,
        suspects: Counted::default(),
        seen: None,
        ignore: None,
        packs: Mutex::default(),
    })
}

/// The Dockerfile of an unpacked context. Symlinks are followed inside it and never out of it.
pub fn dockerfile_in(context: &ScannedContext, wanted: Option<&Path>) -> Result<FoundDockerfile, StdinError> {
    let names: Vec<String> = match wanted {
        Some(path) => vec![path.display().to_string()],
        None => DEFAULT_NAMES.iter().map(|name| (*name).to_owned()).collect(),
    };
    let source = || -> Result<DirSource, StdinError> {
        Ok(DirSource::immutable(context.dir.try_clone().map_err(StdinError::Open)?))
    };
    for name in &names {
        let path = RelPath::clamp(name.as_bytes());
        let found = match context.tree.resolve(&*context.nodes, path.as_bytes(), LastLink::Follow) {
            Ok(found) if found.exists() && matches!(found.entry.kind, Kind::File { .. }) => found.path,
            Ok(_) | Err(ResolveError::NotFound { .. } | ResolveError::NotDirectory { .. }) => continue,
            Err(source) => return Err(StdinError::Resolve { path: name.clone(), source }),
        };
        let failed = |source| StdinError::Dockerfile { path: name.clone(), source };
        let mut file = File::from(source()?.open(&found).map_err(failed)?);
        let bytes = bounded(&mut file).map_err(StdinError::Read)?;
        let (display, bytes) = (name.clone(), bytes.into());
        return Ok(FoundDockerfile { path: None, display, bytes, pinned: None });
    }
    Err(StdinError::NoDockerfile { path: names.into_iter().next().unwrap_or_default() })
}

/// Standard input, until the build is stopped: who writes to a pipe may take for ever, and what was unpacked so far must
/// be gone before the build ends.
pub struct Watched<'a>(pub &'a Cancel);

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let stdin = rustix::stdio::stdin();
        let moment = Timespec { tv_sec: 0, tv_nsec: POLL_NS };
        loop {
            if self.0.reason().is_some() {
                return Err(io::Error::other("the build was stopped"));
            }
            match poll(&mut [PollFd::new(&stdin, PollFlags::IN)], Some(&moment)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(rustix::io::read(stdin, buffer)?),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
