//! Blobs in files: of what has no bound, like statements about all packages of an image.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use rbuild_cache::scratch::Scratch;
use rbuild_cache::store;
use rbuild_oci::{Digest, Sha256};

/// Bytes written at once.
const WRITTEN_BYTES: usize = 64 << 10;

/// A blob in a file that others read as well.
#[derive(Debug, Clone)]
pub struct FileBlob {
    /// Digest of its bytes.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
    /// What has them.
    pub file: Arc<File>,
}

impl FileBlob {
    /// What `put` writes, in a scratch file.
    pub fn write(
        scratch: &Scratch,
        put: impl FnOnce(&mut BufWriter<Hashed<File>>) -> io::Result<()>,
    ) -> io::Result<Self> {
        let (digest, size, file) = hashed(scratch.file()?, put)?;
        Ok(Self { digest, size, file: Arc::new(file) })
    }

    /// A blob of the store; `None` if its bytes are others by now.
    pub fn stored(digest: Digest, blob: store::Blob) -> io::Result<Option<Self>> {
        let stored = Self { digest, size: blob.size, file: Arc::new(blob.file) };
        let (found, ..) = hashed(io::sink(), |out| io::copy(&mut stored.reader(), out).map(drop))?;
        Ok((found == digest).then_some(stored))
    }

    /// Its bytes, from the first on.
    pub fn reader(&self) -> impl Read + use<'_> {
        Window::of(&self.file).take(self.size)
    }
}

/// Gives `to` what `put` writes; returns the digest of that and its length, too.
pub fn hashed<W: Write>(
    to: W,
    put: impl FnOnce(&mut BufWriter<Hashed<W>>) -> io::Result<()>,
) -> io::Result<(Digest, u64, W)> {
    let hashed = Hashed { to, hash: Sha256::new(), size: 0 };
    let mut out = BufWriter::with_capacity(WRITTEN_BYTES, hashed);
    put(&mut out)?;
    let Hashed { to, hash, size } = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok((hash.finish(), size, to))
}

/// Hashes what passes.
pub struct Hashed<W> {
    to: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Reads a file that others read as well.
pub(crate) struct Window<'a> {
    file: &'a File,
    at: u64,
}

impl<'a> Window<'a> {
    /// From its first byte on.
    pub(crate) fn of(file: &'a File) -> Self {
        Self { file, at: 0 }
    }
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.file.read_at(buffer, self.at)?;
        self.at += len as u64;
        Ok(len)
    }
}
