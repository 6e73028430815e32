//! Where the bytes of an archive's files come from.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::super::dirs::Dirs;
use super::super::pack::{Pack, PackReader};
use super::{EmitError, read_error};
use crate::path::RelPath;
use crate::tree::ContentDigest;

/// Bytes read from a file at once.
const BODY_BYTES: usize = 256 << 10;

/// Takes the bytes of one file, in pieces.
pub type Each<'a> = &'a mut dyn FnMut(&[u8]) -> io::Result<()>;

/// Where a layer's files have their bytes.
pub trait Bodies {
    /// Hands all `size` bytes of the file at `path` to `each`. They must hash to `content`; when they do not, what was
    /// handed out is to be thrown away.
    fn body(
        &mut self,
        path: &RelPath,
        size: u64,
        content: &ContentDigest,
        each: Each<'_>,
    ) -> Result<(), EmitError>;
}

/// Files of a layer directory.
#[derive(Debug)]
pub struct DirBodies<'a> {
    dirs: Dirs<'a>,
    buffer: Vec<u8>,
}

impl<'a> DirBodies<'a> {
    /// Reads below `dir`.
    pub fn new(dir: BorrowedFd<'a>) -> Self {
        Self { dirs: Dirs::new(dir), buffer: Vec::new() }
    }

    fn open(&mut self, path: &RelPath, size: u64) -> Result<OwnedFd, EmitError> {
        let parent = self.dirs.parent(path).map_err(read_error("open the directory of", path))?;
        // Non-blocking: if it is a fifo by now, the check below must be reached.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&parent, path.name(), flags, Mode::empty())
            .map_err(read_error("open", path))?;
        let stat = rustix::fs::fstat(&file).map_err(read_error("look at", path))?;
        let changed = |what| EmitError::Changed { path: path.clone(), what };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(changed("it is not a regular file"));
        }
        if u64::try_from(stat.st_size) != Ok(size) {
            return Err(changed("its size differs"));
        }
        Ok(file)
    }
}

impl Bodies for DirBodies<'_> {
    fn body(
        &mut self,
        path: &RelPath,
        size: u64,
        content: &ContentDigest,
        each: Each<'_>,
    ) -> Result<(), EmitError> {
        let file = self.open(path, size)?;
        self.buffer.resize(BODY_BYTES, 0);
        let mut hash = blake3::Hasher::new();
        let mut left = size;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(BODY_BYTES);
            let len = match rustix::io::read(&file, &mut self.buffer[..want]) {
                Ok(0) => return Err(EmitError::Changed { path: path.clone(), what: "it became shorter" }),
                Ok(len) => len,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(read_error("read", path)(errno)),
            };
            hash.update(&self.buffer[..len]);
            each(&self.buffer[..len]).map_err(EmitError::Write)?;
            left -= len as u64;
        }
        if hash.finalize().as_bytes() != &content.0 {
            return Err(EmitError::Changed { path: path.clone(), what: "its content differs" });
        }
        Ok(())
    }
}

/// Files whose contents are in packs.
#[derive(Debug)]
pub struct PackBodies<'a> {
    reader: PackReader<'a>,
}

impl<'a> PackBodies<'a> {
    /// Reads from these.
    pub fn new(packs: &'a [Pack]) -> Self {
        Self { reader: PackReader::new(packs) }
    }

    /// [`Bodies::body`] for a content that some pack has; false when none has it, and nothing was handed out.
    pub fn try_body(
        &mut self,
        path: &RelPath,
        size: u64,
        content: &ContentDigest,
        each: Each<'_>,
    ) -> Result<bool, EmitError> {
        let Some(found) = self.reader.find(content) else { return Ok(false) };
        let changed = || EmitError::Changed { path: path.clone(), what: "its content in a pack differs" };
        if found.1.length != size {
            return Err(changed());
        }
        let mut hash = blake3::Hasher::new();
        self.reader
            .read(found, |bytes| {
                hash.update(bytes);
                each(bytes).map_err(Piece::Each)
            })
            .map_err(|error| match error {
                Piece::Each(source) => EmitError::Write(source),
                Piece::Read(source) => {
                    EmitError::Read { step: "read the content of", path: path.clone(), source }
                }
            })?;
        if hash.finalize().as_bytes() != &content.0 {
            return Err(changed());
        }
        Ok(true)
    }
}

/// Who failed while a content was passed on.
enum Piece {
    Read(io::Error),
    Each(io::Error),
}

impl From<io::Error> for Piece {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

impl Bodies for PackBodies<'_> {
    fn body(
        &mut self,
        path: &RelPath,
        size: u64,
        content: &ContentDigest,
        each: Each<'_>,
    ) -> Result<(), EmitError> {
        if size == 0 || self.try_body(path, size, content, each)? {
            return Ok(());
        }
        Err(EmitError::Changed { path: path.clone(), what: "its content is in no pack" })
    }
}
