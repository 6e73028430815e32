//! Inflating on one thread, making files on another.

use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use super::decompress::{DecompressError, LayerReader, LayerSums};
use super::limits::Limits;
use super::overlay::OverlayForm;
use super::unpack::{UnpackError, Unpacked, unpack, unpack_added};
use crate::scratch::Scratch;

/// Tar bytes handed over at once.
const BLOCK_BYTES: usize = 256 << 10;

/// Blocks that wait for the other side: enough to ride out a burst of small files.
const BLOCKS_WAITING_MAX: usize = 8;

/// Why a blob was not unpacked. The directory must be thrown away.
#[derive(Debug, thiserror::Error)]
pub enum UnpackBlobError {
    /// The blob does not become tar bytes.
    #[error(transparent)]
    Decompress(#[from] DecompressError),
    /// The tar bytes do not become a layer.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
}

/// Unpacks a layer blob into the empty directory `dir`, inflating and hashing on a second thread.
///
/// `media_type` as for [`LayerReader::open`]; `None` goes by the first bytes alone, as ADD does. The caller compares
/// the sums with what the manifest and the config promise, and only then makes the layer visible.
pub fn unpack_blob(
    blob: impl Read + Send,
    media_type: Option<&str>,
    dir: BorrowedFd<'_>,
    form: OverlayForm,
    limits: &Limits,
    scratch: &Scratch,
) -> Result<(Unpacked, LayerSums), UnpackBlobError> {
    let open = || match media_type {
        Some(media_type) => LayerReader::open(blob, media_type, limits),
        None => LayerReader::sniff(blob, limits),
    };
    on_two_threads(open, |tar| unpack(tar, dir, form, limits, scratch))
}

/// Unpacks the archive that ADD was given into the empty directory `dir`, inflating on a second thread, going by its
/// first bytes. See [`super::is_archive`] for what to give it.
///
/// The bytes of regular files are in `dir` at the paths of the listing, without its owners, modes and times; nothing
/// else of the listing need be there. Names that climb out with `..` stay at the top; what means a deletion in image
/// layers is refused, so is an entry below a file or symbolic link of the same archive.
pub fn unpack_archive(
    file: impl Read + Send,
    dir: BorrowedFd<'_>,
    limits: &Limits,
    scratch: &Scratch,
) -> Result<(Unpacked, LayerSums), UnpackBlobError> {
    on_two_threads(|| LayerReader::sniff(file, limits), |tar| unpack_added(tar, dir, limits, scratch))
}

fn on_two_threads<R: Read>(
    open: impl FnOnce() -> Result<LayerReader<R>, DecompressError> + Send,
    unpack: impl FnOnce(Blocks) -> Result<Unpacked, UnpackError>,
) -> Result<(Unpacked, LayerSums), UnpackBlobError> {
    let (sender, receiver) = sync_channel(BLOCKS_WAITING_MAX);
    let (give_back, returned) = channel();
    std::thread::scope(|scope| {
        let inflating = scope.spawn(move || open().and_then(|reader| inflate(reader, &sender, &returned)));
        let unpacked = unpack(Blocks { receiver, give_back, block: Vec::new(), at: 0 });
        let sums = inflating.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (unpacked, sums) {
            // What goes wrong while inflating reaches the other side as a stream that ends too early.
            (_, Err(error)) => Err(error.into()),
            (Err(error), Ok(_)) => Err(error.into()),
            (Ok(_), Ok(None)) => unreachable!("unpack reads to the end of the stream"),
            (Ok(unpacked), Ok(Some(sums))) => Ok((unpacked, sums)),
        }
    })
}

/// Sums, or `None` when the other side has given up.
fn inflate(
    mut reader: LayerReader<impl Read>,
    sender: &SyncSender<Vec<u8>>,
    returned: &Receiver<Vec<u8>>,
) -> Result<Option<LayerSums>, DecompressError> {
    loop {
        // One that was read already: zeroing a new one for each piece would cost as much as half of the hashing.
        let mut block = returned.try_recv().unwrap_or_default();
        block.resize(BLOCK_BYTES, 0);
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            match reader.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(len) => filled += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.downcast().unwrap_or_else(DecompressError::Read)),
            }
        }
        let is_last = filled < BLOCK_BYTES;
        block.truncate(filled);
        if sender.send(block).is_err() {
            return Ok(None);
        }
        if is_last {
            return reader.finish().map(Some);
        }
    }
}

/// The tar bytes as they arrive. The stream ends when the sender is gone.
struct Blocks {
    receiver: Receiver<Vec<u8>>,
    give_back: Sender<Vec<u8>>,
    block: Vec<u8>,
    at: usize,
}

impl Read for Blocks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.block.len() {
            self.at = 0;
            let next = self.receiver.recv().unwrap_or_default();
            // Nobody takes it when all is inflated.
            let _ = self.give_back.send(std::mem::replace(&mut self.block, next));
        }
        let len = buffer.len().min(self.block.len() - self.at);
        buffer[..len].copy_from_slice(&self.block[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rbuild_oci::Digest;

    use super::super::compress::{Compression, DEFAULT_GZIP, DEFAULT_ZSTD, encode_on};
    use super::super::tar::tests::Raw;
    use super::*;

    fn archive() -> Vec<u8> {
        let octal = |id: u32| format!("{id:07o}").into_bytes();
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let owned = |name: &[u8]| Raw::new(name, b'0').raw(108..116, &octal(uid)).raw(116..124, &octal(gid));
        [owned(b"big").with(&vec![7; 3 * BLOCK_BYTES]), owned(b"small").with(b"x")].concat()
    }

    fn blob(compression: Compression) -> Vec<u8> {
        let mut blob = Vec::new();
        encode_on(1, |out| out.write_all(&archive()), compression, &mut blob).unwrap();
        blob
    }

    fn unpacked(blob: &[u8], limits: &Limits) -> Result<(Unpacked, LayerSums), UnpackBlobError> {
        let temp = tempfile::tempdir().unwrap();
        let dir = std::fs::File::open(temp.path()).unwrap();
        let scratch = Scratch::on(&dir).unwrap();
        unpack_blob(blob, None, dir.as_fd(), OverlayForm::User, limits, &scratch)
    }

    #[test]
    fn a_blob_becomes_a_layer_and_both_digests() {
        for compression in [Compression::None, DEFAULT_GZIP, DEFAULT_ZSTD] {
            let blob = blob(compression);
            let (layer, sums) = unpacked(&blob, &Limits::default()).unwrap();
            assert_eq!(layer.diff.len(), 2);
            assert_eq!((sums.diff_id.0, sums.digest), (Digest::of(&archive()), Digest::of(&blob)));
        }
    }

    #[test]
    fn the_failure_of_either_side_is_the_one_reported() {
        let good = blob(DEFAULT_GZIP);
        let cut = unpacked(&good[..good.len() - 9], &Limits::default());
        assert!(matches!(cut, Err(UnpackBlobError::Decompress(DecompressError::Read(_)))), "{cut:?}");
        let limits = Limits { ratio_max: 2, ratio_free_bytes: 1000, ..Limits::default() };
        let bomb = unpacked(&good, &limits);
        assert!(matches!(bomb, Err(UnpackBlobError::Decompress(DecompressError::Ratio { .. }))), "{bomb:?}");
        let limits = Limits { entries_max: 1, ..Limits::default() };
        let many = unpacked(&good, &limits);
        assert!(matches!(many, Err(UnpackBlobError::Unpack(UnpackError::TooManyEntries { .. }))), "{many:?}");
    }
}
