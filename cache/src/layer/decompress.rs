//! From a blob to tar bytes, hashing both.

mod permit;
mod windows;

use std::io::{self, BufReader, Read};
use std::sync::{Arc, OnceLock};

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;
use rbuild_oci::{DiffId, Digest, Sha256};

use self::permit::Permit;
use self::windows::Windows;
use super::limits::Limits;

const BUFFER_BYTES: usize = 128 << 10;

/// What an archive's bytes are, by their first ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ArchiveFormat {
    /// Not compressed.
    Tar,
    /// gzip, any number of members.
    Gzip,
    /// Zstandard, any number of frames.
    Zstd,
    /// bzip2, any number of streams. Not for layers of images.
    Bzip2,
    /// xz, any number of streams. Not for layers of images.
    Xz,
}

/// Digests and sizes of a blob read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerSums {
    /// SHA-256 of the uncompressed archive.
    pub diff_id: DiffId,
    /// SHA-256 of the blob.
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// Bytes of the uncompressed archive.
    pub uncompressed: u64,
}

/// Why a blob does not become tar bytes. From [`Read::read`] it comes as the source of an [`io::Error`].
#[derive(Debug, thiserror::Error)]
pub enum DecompressError {
    /// The media type names no layer format we know.
    #[error("`{0}` is not the media type of a layer that rbuild can unpack")]
    MediaType(String),
    /// The bytes are a compression that layers may not have.
    #[error(
        "the layer is compressed with {0}, which is not supported for layers: gzip, zstd and plain tar are"
    )]
    Unsupported(&'static str),
    /// Reading the blob or inflating it failed.
    #[error("read the layer blob")]
    Read(#[source] io::Error),
    /// More comes out than any layer may have.
    #[error("the layer is larger than {max} bytes when uncompressed")]
    TooLarge {
        /// Limit in bytes.
        max: u64,
    },
    /// More comes out than the blob's size can honestly hold.
    #[error("the layer expands more than {max} times: {compressed} bytes gave {uncompressed} so far")]
    Ratio {
        /// Limit.
        max: u64,
        /// Bytes read from the blob.
        compressed: u64,
        /// Bytes that came out.
        uncompressed: u64,
    },
}

/// Reads a layer blob as tar bytes, hashing the blob and the tar, within [`Limits`].
///
/// The format is found from the first bytes; a media type only says whether the blob may be a layer at all. Read it
/// to its end or call [`finish`](Self::finish), which does: the sums are of everything.
///
/// Where a window of more than 8 MiB begins, reading waits until no other reader of the process has such a one, and other
/// readers wait for this one to be dropped. So nobody may have two of them at a time that he reads in turns, nor read one out of
/// what another gives.
pub struct LayerReader<R: Read> {
    decoder: Decoder<R>,
    format: ArchiveFormat,
    tar: Sha256,
    uncompressed: u64,
    uncompressed_max: u64,
    ratio_max: u64,
    ratio_free_bytes: u64,
    /// Dropped after the decoder, which has the window.
    _large_window: LargeWindow,
}

/// The permit for a large window, once it was met.
type LargeWindow = Arc<OnceLock<Permit<'static>>>;

/// The bytes looked at for the format, then the rest.
type Input<R> = BufReader<io::Chain<io::Cursor<Vec<u8>>, Blob<R>>>;

enum Decoder<R: Read> {
    Tar(Input<R>),
    Gzip(Box<MultiGzDecoder<Input<R>>>),
    Zstd(zstd::stream::read::Decoder<'static, Input<R>>),
    Bzip2(Box<MultiBzDecoder<Input<R>>>),
    Xz(Box<XzReader<Input<R>>>),
}

impl<R: Read> Decoder<R> {
    fn input(&self) -> &Input<R> {
        match self {
            Self::Tar(input) => input,
            Self::Gzip(decoder) => decoder.get_ref(),
            Self::Zstd(decoder) => decoder.get_ref(),
            Self::Bzip2(decoder) => decoder.get_ref(),
            Self::Xz(decoder) => decoder.inner(),
        }
    }
}

/// Hashes and counts what is read, and looks for large windows.
#[derive(Debug)]
struct Blob<R> {
    input: R,
    digest: Sha256,
    size: u64,
    windows: Option<Windows>,
    large_window: LargeWindow,
}

impl<R> Blob<R> {
    /// Bytes that are read, but not yet decoded.
    fn look_at(&mut self, bytes: &[u8]) {
        if let Some(windows) = &mut self.windows
            && windows.pass(bytes) >= permit::LARGE_BYTES_MIN
        {
            self.large_window.get_or_init(permit::take);
            // One permit is for all that follow.
            self.windows = None;
        }
    }
}

impl<R: Read> Read for Blob<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.input.read(buffer)?;
        self.digest.update(&buffer[..len]);
        self.size += len as u64;
        self.look_at(&buffer[..len]);
        Ok(len)
    }
}

impl<R: Read> LayerReader<R> {
    /// Opens a layer of an image. Media types: OCI `…layer.v1.tar` (also `nondistributable`) with `+gzip`, `+zstd` or
    /// nothing, Docker `…rootfs.diff.tar` and `….tar.gzip`.
    pub fn open(input: R, media_type: &str, limits: &Limits) -> Result<Self, DecompressError> {
        const LAYER_TYPES: [&str; 11] = [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.oci.image.layer.nondistributable.v1.tar",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
            "application/vnd.docker.image.rootfs.diff.tar",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.diff.tar.zstd",
            "application/vnd.docker.image.rootfs.foreign.diff.tar",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        ];
        if !LAYER_TYPES.contains(&media_type) {
            return Err(DecompressError::MediaType(media_type.chars().take(120).collect()));
        }
        let reader = Self::sniff(input, limits)?;
        match reader.format {
            ArchiveFormat::Bzip2 => Err(DecompressError::Unsupported("bzip2")),
            ArchiveFormat::Xz => Err(DecompressError::Unsupported("xz")),
            ArchiveFormat::Tar | ArchiveFormat::Gzip | ArchiveFormat::Zstd => Ok(reader),
        }
    }

    /// Opens an archive by its first bytes alone. Bytes that are no known compression are taken for a tar, which its
    /// reader then judges.
    pub fn sniff(input: R, limits: &Limits) -> Result<Self, DecompressError> {
        let large_window = LargeWindow::default();
        let mut blob = Blob {
            input,
            digest: Sha256::new(),
            size: 0,
            windows: None,
            large_window: Arc::clone(&large_window),
        };
        let mut magic = Vec::with_capacity(6);
        // A pipe may hand out one byte at a time: read until there are six or there is no more.
        (&mut blob).take(6).read_to_end(&mut magic).map_err(DecompressError::Read)?;
        let format = match magic.as_slice() {
            [0x1f, 0x8b, ..] => ArchiveFormat::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => ArchiveFormat::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0] => ArchiveFormat::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => ArchiveFormat::Bzip2,
            _ => ArchiveFormat::Tar,
        };
        blob.windows = match format {
            ArchiveFormat::Zstd => Some(Windows::of_zstd()),
            ArchiveFormat::Xz => Some(Windows::of_xz()),
            ArchiveFormat::Tar | ArchiveFormat::Gzip | ArchiveFormat::Bzip2 => None,
        };
        blob.look_at(&magic);
        let input = BufReader::with_capacity(BUFFER_BYTES, io::Cursor::new(magic).chain(blob));
        let decoder = match format {
            ArchiveFormat::Tar => Decoder::Tar(input),
            ArchiveFormat::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(input))),
            ArchiveFormat::Zstd => {
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(input).map_err(DecompressError::Read)?;
                decoder.window_log_max(limits.zstd_window_log_max).map_err(DecompressError::Read)?;
                Decoder::Zstd(decoder)
            }
            ArchiveFormat::Bzip2 => Decoder::Bzip2(Box::new(MultiBzDecoder::new(input))),
            ArchiveFormat::Xz => {
                Decoder::Xz(Box::new(XzReader::new_mem_limit(input, true, limits.xz_memory_kib_max)))
            }
        };
        Ok(Self {
            decoder,
            format,
            tar: Sha256::new(),
            uncompressed: 0,
            uncompressed_max: limits.uncompressed_bytes_max,
            ratio_max: limits.ratio_max,
            ratio_free_bytes: limits.ratio_free_bytes,
            _large_window: large_window,
        })
    }

    /// What the bytes turned out to be.
    pub fn format(&self) -> ArchiveFormat {
        self.format
    }

    /// Reads what is left and returns the sums of everything.
    pub fn finish(mut self) -> Result<LayerSums, DecompressError> {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match self.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.downcast().unwrap_or_else(DecompressError::Read)),
            }
        }
        let blob = self.decoder.input().get_ref().get_ref().1;
        Ok(LayerSums {
            diff_id: DiffId(self.tar.finish()),
            digest: blob.digest.clone().finish(),
            size: blob.size,
            uncompressed: self.uncompressed,
        })
    }

    fn check_limits(&self) -> Result<(), DecompressError> {
        if self.uncompressed > self.uncompressed_max {
            return Err(DecompressError::TooLarge { max: self.uncompressed_max });
        }
        let compressed = self.decoder.input().get_ref().get_ref().1.size;
        let (uncompressed, max) = (self.uncompressed, self.ratio_max);
        if uncompressed > self.ratio_free_bytes && uncompressed / max.max(1) > compressed {
            return Err(DecompressError::Ratio { max, compressed, uncompressed });
        }
        Ok(())
    }
}

impl<R: Read> Read for LayerReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = match &mut self.decoder {
            Decoder::Tar(input) => input.read(buffer),
            Decoder::Gzip(decoder) => decoder.read(buffer),
            Decoder::Zstd(decoder) => decoder.read(buffer),
            Decoder::Bzip2(decoder) => decoder.read(buffer),
            Decoder::Xz(decoder) => decoder.read(buffer),
        }?;
        self.tar.update(&buffer[..len]);
        self.uncompressed += len as u64;
        self.check_limits().map_err(io::Error::other)?;
        Ok(len)
    }
}

impl<R: Read> std::fmt::Debug for LayerReader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (format, uncompressed) = (self.format, self.uncompressed);
        write!(f, "LayerReader {{ format: {format:?}, uncompressed: {uncompressed} }}")
    }
}

#[cfg(test)]
mod tests;
