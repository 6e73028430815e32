//! Where the bytes of an archive's files come from.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::{Errno, pread};

use super::super::dirs::Dirs;
use super::super::pack::{Pack, PackReader, Place};
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
        match checked(content, each, |take| read_all(&file, size, &mut self.buffer, take)) {
            Ok(true) => Ok(()),
            Ok(false) => Err(EmitError::Changed { path: path.clone(), what: "its content differs" }),
            Err(error) => Err(error.of("read", path)),
        }
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

    /// The pack that has the content of the file at `path`, and where in it.
    pub(crate) fn find(
        &self,
        path: &RelPath,
        content: &ContentDigest,
    ) -> Result<Option<(usize, Place)>, EmitError> {
        let failed = |source| EmitError::Read { step: "look up the content of", path: path.clone(), source };
        self.reader.find(content).map_err(failed)
    }

    /// [`Bodies::body`] for a content that some pack has; false when none has it, and nothing was handed out.
    pub fn try_body(
        &mut self,
        path: &RelPath,
        size: u64,
        content: &ContentDigest,
        each: Each<'_>,
    ) -> Result<bool, EmitError> {
        let Some(found) = self.find(path, content)? else { return Ok(false) };
        let changed = || EmitError::Changed { path: path.clone(), what: "its content in a pack differs" };
        if found.1.length != size {
            return Err(changed());
        }
        let reader = &mut self.reader;
        let read = match reader.is_just_written(found.0) {
            true => reader.read(found, |bytes| each(bytes).map_err(PassError::Take)).map(|()| true),
            false => checked(content, each, |take| reader.read(found, take)),
        };
        match read {
            Ok(true) => Ok(true),
            Ok(false) => Err(changed()),
            Err(error) => Err(error.of("read the content of", path)),
        }
    }
}

/// Who failed while a content was passed on.
#[derive(Debug)]
pub(crate) enum PassError {
    /// Its source.
    Read(io::Error),
    /// Who takes the bytes.
    Take(io::Error),
}

impl<E: Into<io::Error>> From<E> for PassError {
    fn from(error: E) -> Self {
        Self::Read(error.into())
    }
}

impl PassError {
    fn of(self, step: &'static str, path: &RelPath) -> EmitError {
        match self {
            Self::Read(source) => EmitError::Read { step, path: path.clone(), source },
            Self::Take(source) => EmitError::Write(source),
        }
    }
}

/// Takes bytes that are passed on.
pub(crate) type Take<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), PassError>;

/// Passes on what `read` reads, and says whether it was that content.
pub(crate) fn checked(
    content: &ContentDigest,
    each: Each<'_>,
    read: impl FnOnce(Take<'_>) -> Result<(), PassError>,
) -> Result<bool, PassError> {
    let mut hash = blake3::Hasher::new();
    read(&mut |bytes| {
        hash.update(bytes);
        each(bytes).map_err(PassError::Take)
    })?;
    Ok(hash.finalize().as_bytes() == &content.0)
}

/// Reads a file from its start, as far as it goes but not beyond `size`.
pub(crate) fn read_all<E: From<Errno>>(
    file: &OwnedFd,
    size: u64,
    buffer: &mut Vec<u8>,
    mut each: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let most = |left: u64| usize::try_from(left).unwrap_or(BODY_BYTES).min(BODY_BYTES);
    // Most layers of a RUN are a few small files: to clear a whole buffer takes longer than to read them.
    if buffer.len() < most(size) {
        buffer.resize(most(size), 0);
    }
    let mut at = 0;
    while at < size {
        let length = most(size - at);
        match pread(file, &mut buffer[..length], at) {
            Ok(0) => break,
            Ok(count) => {
                each(&buffer[..count])?;
                at += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
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
