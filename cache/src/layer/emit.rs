//! From a layer directory to its archive.

mod bodies;

use std::io::{self, Write};
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

pub use bodies::{Bodies, DirBodies, Each, PackBodies};
pub(crate) use bodies::{PassError, checked, read_all};

use super::diff::{Change, DiffEntry, LayerDiff, ListingError, Mtime};
use super::marks::{MARK_BYTES, Start, TarPlace};
use super::tar::{Member, MemberKind, TarWriter};
use crate::path::RelPath;
use crate::tree::Meta;

/// Why an archive was not made. What `out` got so far is to be thrown away.
#[derive(Debug, thiserror::Error)]
pub enum EmitError {
    /// The layer directory does not hold what its listing says.
    #[error("`{path}` is not what the layer's listing says: {what}")]
    Changed {
        /// The file.
        path: RelPath,
        /// What differs.
        what: &'static str,
    },
    /// A name that means a deletion inside archives.
    #[error("`{path}` cannot be in an image: names that start with `.wh.` mean deletions in layer archives")]
    ReservedName {
        /// The entry.
        path: RelPath,
    },
    /// An xattr name that archives cannot hold.
    #[error("`{path}` has the xattr `{name}`, whose name cannot be in an archive: it contains `=`")]
    XattrName {
        /// The entry.
        path: RelPath,
        /// Name of the xattr.
        name: String,
    },
    /// A hard link in the listing names no regular file of the listing.
    #[error("the layer's listing has a hard link `{path}` to `{target}`, which is no file in it")]
    LinkTarget {
        /// The link.
        path: RelPath,
        /// Its target.
        target: RelPath,
    },
    /// The listing cannot be read.
    #[error(transparent)]
    Listing(#[from] ListingError),
    /// Reading from the layer directory failed.
    #[error("{step} `{path}`")]
    Read {
        /// What was being done.
        step: &'static str,
        /// To what, below the layer's root.
        path: RelPath,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Writing the archive failed.
    #[error("write the layer archive")]
    Write(#[source] io::Error),
}

/// Writes the archive of a layer: the same bytes for the same listing, anywhere.
///
/// Reads file contents from `dir` and all else from `diff`, in its order; each content must hash to what is listed.
/// Names have no leading `/`, directories a trailing one, the root is `./`. A whiteout is an empty file `.wh.NAME`
/// with mode 0, owner 0:0 and the time 0, an opaque mark the same as `.wh..wh..opq` right after its directory; so do
/// docker and containerd, but for the time, where they put the current one. Hard links name the first path of their
/// group. Times are whole seconds and, with `clamp`, at most that many since the epoch.
pub fn emit_tar(
    dir: BorrowedFd<'_>,
    diff: &LayerDiff,
    clamp: Option<i64>,
    out: &mut dyn Write,
) -> Result<(), EmitError> {
    emit_tar_from(&mut DirBodies::new(dir), diff, clamp, out)
}

/// [`emit_tar`] with the files' bytes from anywhere.
pub fn emit_tar_from(
    bodies: &mut dyn Bodies,
    diff: &LayerDiff,
    clamp: Option<i64>,
    out: &mut dyn Write,
) -> Result<(), EmitError> {
    emit_from(bodies, diff, clamp, &Start::default(), out).map(drop)
}

/// The part of [`emit_tar_from`]'s archive that follows `start`, and the places of the multiples of a mark's distance in it
/// (see [`Marks`](super::Marks)).
pub fn emit_from(
    bodies: &mut dyn Bodies,
    diff: &LayerDiff,
    clamp: Option<i64>,
    start: &Start,
    out: &mut dyn Write,
) -> Result<Vec<TarPlace>, EmitError> {
    let mut places = Vec::new();
    let mut next = start.at + MARK_BYTES;
    let out = Counted { out, at: start.at - start.place.into, from: start.at };
    let mut emitter = Emitter { bodies, tar: TarWriter::new(out), clamp };
    for (index, entry) in (start.place.entry..).zip(diff.iter_from(start.place.entry)?) {
        let entry = entry?;
        let begin = emitter.tar.out().at;
        emitter.entry(diff, &entry)?;
        emitter.tar.close_member().map_err(EmitError::Write)?;
        while next < emitter.tar.out().at {
            places.push(TarPlace { entry: index, into: next - begin });
            next += MARK_BYTES;
        }
    }
    emitter.tar.finish().map_err(EmitError::Write)?;
    Ok(places)
}

/// Passes on what comes after some place.
struct Counted<'out> {
    out: &'out mut dyn Write,
    /// Bytes of the archive so far.
    at: u64,
    /// Those before are known.
    from: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let known = usize::try_from(self.from.saturating_sub(self.at)).unwrap_or(usize::MAX).min(bytes.len());
        self.at += bytes.len() as u64;
        self.out.write_all(&bytes[known..])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

struct Emitter<'a> {
    bodies: &'a mut dyn Bodies,
    tar: TarWriter<Counted<'a>>,
    clamp: Option<i64>,
}

impl Emitter<'_> {
    fn entry(&mut self, diff: &LayerDiff, entry: &DiffEntry) -> Result<(), EmitError> {
        let DiffEntry { path, change, mtime } = entry;
        if path.name().starts_with(b".wh.") {
            return Err(EmitError::ReservedName { path: path.clone() });
        }
        let name = || path.as_bytes().to_vec();
        match change {
            Change::Whiteout => {
                let hidden = [b".wh.", path.name()].concat();
                self.mark(path.parent().unwrap_or_default().join(&hidden))
            }
            Change::Dir { meta, opaque } => {
                let name = if path.is_root() { b"./".to_vec() } else { [path.as_bytes(), b"/"].concat() };
                self.header(path, name, MemberKind::Dir, meta, *mtime)?;
                if *opaque { self.mark(path.join(b".wh..wh..opq")) } else { Ok(()) }
            }
            Change::File { meta, size, content } => {
                self.header(path, name(), MemberKind::File { size: *size }, meta, *mtime)?;
                let tar = &mut self.tar;
                self.bodies.body(path, *size, content, &mut |bytes| tar.body(bytes))
            }
            Change::Hardlink { target } => {
                let Some(Change::File { meta, .. }) = diff.get(target)?.map(|first| first.change) else {
                    return Err(EmitError::LinkTarget { path: path.clone(), target: target.clone() });
                };
                let kind = MemberKind::Hardlink { target: target.as_bytes().to_vec() };
                // Xattrs belong to the inode: once, with its first name.
                let meta = Meta { mode: meta.mode, uid: meta.uid, gid: meta.gid, ..Meta::default() };
                self.header(path, name(), kind, &meta, *mtime)
            }
            Change::Symlink { meta, target } => {
                self.header(path, name(), MemberKind::Symlink { target: target.clone() }, meta, *mtime)
            }
            Change::CharDevice { meta, major, minor } => {
                let kind = MemberKind::CharDevice { major: *major, minor: *minor };
                self.header(path, name(), kind, meta, *mtime)
            }
            Change::BlockDevice { meta, major, minor } => {
                let kind = MemberKind::BlockDevice { major: *major, minor: *minor };
                self.header(path, name(), kind, meta, *mtime)
            }
            Change::Fifo { meta } => self.header(path, name(), MemberKind::Fifo, meta, *mtime),
        }
    }

    /// An empty file that means a deletion.
    fn mark(&mut self, path: RelPath) -> Result<(), EmitError> {
        let name = path.as_bytes().to_vec();
        self.header(&path, name, MemberKind::File { size: 0 }, &Meta::default(), Mtime::default())
    }

    fn header(
        &mut self,
        path: &RelPath,
        name: Vec<u8>,
        kind: MemberKind,
        meta: &Meta,
        mtime: Mtime,
    ) -> Result<(), EmitError> {
        if let Some(name) = meta.xattrs.keys().find(|name| name.contains(&b'=')) {
            let name = String::from_utf8_lossy(name).into_owned();
            return Err(EmitError::XattrName { path: path.clone(), name });
        }
        let secs = self.clamp.map_or(mtime.secs, |clamp| mtime.secs.min(clamp));
        let (mode, uid, gid, xattrs) = (meta.mode, meta.uid, meta.gid, meta.xattrs.clone());
        let member = Member { path: name, kind, mode, uid, gid, mtime: Mtime { secs, nanos: 0 }, xattrs };
        self.tar.header(&member).map_err(EmitError::Write)
    }
}

fn read_error(step: &'static str, path: &RelPath) -> impl FnOnce(Errno) -> EmitError {
    move |errno| EmitError::Read { step, path: path.clone(), source: errno.into() }
}

#[cfg(test)]
mod tests;
