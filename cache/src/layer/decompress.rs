//! From a blob to tar bytes, hashing both.

use std::io::{self, BufReader, Read};

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;
use rbuild_oci::{DiffId, Digest, Sha256};

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
pub struct LayerReader<R: Read> {
    decoder: Decoder<R>,
    format: ArchiveFormat,
    tar: Sha256,
    uncompressed: u64,
    uncompressed_max: u64,
    ratio_max: u64,
    ratio_free_bytes: u64,
}

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

/// Hashes and counts what is read.
#[derive(Debug)]
struct Blob<R> {
    input: R,
    digest: Sha256,
    size: u64,
}

impl<R: Read> Read for Blob<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.input.read(buffer)?;
        self.digest.update(&buffer[..len]);
        self.size += len as u64;
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
        let mut blob = Blob { input, digest: Sha256::new(), size: 0 };
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
mod tests {
    use std::io::Write;

    use super::*;

    /// One byte per read, as a slow pipe gives.
    struct Dribble<'a>(&'a [u8]);

    impl Read for Dribble<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let len = buffer.len().min(1);
            self.0.read(&mut buffer[..len])
        }
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn bzip2(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder =
            lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn sums(blob: &[u8]) -> Result<LayerSums, DecompressError> {
        LayerReader::sniff(Dribble(blob), &Limits::default())?.finish()
    }

    #[test]
    fn every_format_gives_the_sums_of_both_sides() {
        let tar = vec![7u8; 3000];
        let members = [gzip(&tar[..1000]), gzip(&tar[1000..])].concat();
        let frame = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
        let frames =
            [frame(&tar[..500]), b"\x50\x2a\x4d\x18\x01\0\0\0x".to_vec(), frame(&tar[500..])].concat();
        let streams = [xz(&tar[..700]), xz(&tar[700..])].concat();
        let runs = [bzip2(&tar[..700]), bzip2(&tar[700..])].concat();
        for blob in [tar.clone(), gzip(&tar), members, frames, streams, runs, Vec::new()] {
            let sums = sums(&blob).unwrap();
            let expected = if blob.is_empty() { &[][..] } else { &tar[..] };
            assert_eq!(sums.diff_id.0, Digest::of(expected));
            assert_eq!(sums.digest, Digest::of(&blob));
            assert_eq!((sums.size, sums.uncompressed), (blob.len() as u64, expected.len() as u64));
        }
    }

    #[test]
    fn cut_or_followed_by_rubbish_is_an_error() {
        let tar = vec![7u8; 3000];
        for blob in [gzip(&tar), zstd::encode_all(&tar[..], 1).unwrap(), bzip2(&tar), xz(&tar)] {
            assert!(matches!(sums(&blob[..blob.len() - 3]), Err(DecompressError::Read(_))));
            assert!(matches!(sums(&[&blob[..], b"rubbish"].concat()), Err(DecompressError::Read(_))));
        }
    }

    #[test]
    fn a_bomb_stops_at_its_limit() {
        let zeros = vec![0u8; 4 << 20];
        let limits = Limits { ratio_free_bytes: 1 << 20, ratio_max: 50, ..Limits::default() };
        for blob in [gzip(&zeros), zstd::encode_all(&zeros[..], 1).unwrap(), bzip2(&zeros), xz(&zeros)] {
            let bomb = LayerReader::sniff(&blob[..], &limits).unwrap().finish();
            assert!(matches!(bomb, Err(DecompressError::Ratio { .. })), "{bomb:?}");
            let small = Limits { uncompressed_bytes_max: 1 << 20, ..Limits::default() };
            let large = LayerReader::sniff(&blob[..], &small).unwrap().finish();
            assert!(matches!(large, Err(DecompressError::TooLarge { .. })), "{large:?}");
        }
    }

    #[test]
    fn a_zstd_window_beyond_the_limit_is_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(28).unwrap();
        encoder.write_all(&[1, 2, 3]).unwrap();
        let blob = encoder.finish().unwrap();
        assert!(matches!(sums(&blob), Err(DecompressError::Read(_))));
    }

    #[test]
    fn an_xz_dictionary_beyond_the_limit_is_refused() {
        let mut options = lzma_rust2::XzOptions::with_preset(1);
        options.lzma_options.dict_size = 192 << 20;
        let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
        encoder.write_all(&[1, 2, 3]).unwrap();
        let blob = encoder.finish().unwrap();
        assert!(matches!(sums(&blob), Err(DecompressError::Read(_))));
    }

    /// The decoders are other people's code and the bytes anybody's: whatever comes, it ends, and without a panic.
    #[test]
    fn damaged_archives_end_in_an_error_or_in_bytes() {
        let mut body: Vec<u8> = (0..20_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        body.extend_from_slice(&[0; 5000]);
        let limits = Limits { uncompressed_bytes_max: 1 << 20, ..Limits::default() };
        for blob in [bzip2(&body), xz(&body), gzip(&body), zstd::encode_all(&body[..], 1).unwrap()] {
            let mut seed = 0x2545_f491_4f6c_dd1d_u64;
            for _ in 0..300 {
                let mut damaged = blob.clone();
                for _ in 0..3 {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    let at = usize::try_from(seed >> 8).unwrap() % damaged.len();
                    damaged[at] ^= u8::try_from(seed & 0xff).unwrap();
                }
                if let Ok(reader) = LayerReader::sniff(&damaged[..], &limits) {
                    let _ = reader.finish();
                }
            }
        }
    }

    #[test]
    fn other_compressions_and_media_types_are_named() {
        let layer = |bytes: &[u8]| {
            let media_type = "application/vnd.oci.image.layer.v1.tar";
            LayerReader::open(bytes, media_type, &Limits::default()).err()
        };
        assert!(matches!(layer(&xz(b"x")), Some(DecompressError::Unsupported("xz"))));
        assert!(matches!(layer(&bzip2(b"x")), Some(DecompressError::Unsupported("bzip2"))));
        let open = |media_type| LayerReader::open(&b""[..], media_type, &Limits::default());
        assert!(matches!(open("application/vnd.in-toto+json"), Err(DecompressError::MediaType(_))));
        assert!(open("application/vnd.oci.image.layer.v1.tar+zstd").is_ok());
    }
}
