//! Telling archives from other files, as ADD must.

use std::io::Read;

use super::decompress::{ArchiveFormat, DecompressError, LayerReader};
use super::limits::Limits;
use super::tar::{BLOCK_BYTES, Block, checksum_holds};

/// True when the bytes, inflated if they are gzip, bzip2, xz or Zstandard, begin with a tar header. Names play no part.
///
/// Bytes that only look like gzip or bzip2, a compressed file that is not a tar, and an archive without entries are no
/// archives. Zstandard and xz that do not inflate within the limits are an error: a copy would silently be something
/// else than what ADD promises.
pub fn is_archive(file: impl Read, limits: &Limits) -> Result<bool, DecompressError> {
    let mut reader = LayerReader::sniff(file, limits)?;
    let format = reader.format();
    let mut block: Block = [0; BLOCK_BYTES];
    let mut filled = 0;
    while filled < BLOCK_BYTES {
        match reader.read(&mut block[filled..]) {
            Ok(0) => return Ok(false),
            Ok(len) => filled += len,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            // No text begins with their magic, and a larger window than allowed ends here too.
            Err(error) if matches!(format, ArchiveFormat::Zstd | ArchiveFormat::Xz) => {
                return Err(error.downcast().unwrap_or_else(DecompressError::Read));
            }
            // Whoever copies the file learns whether it is the disk.
            Err(_) => return Ok(false),
        }
    }
    Ok(block.iter().any(|b| *b != 0) && checksum_holds(&block))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::compress::{Compression, DEFAULT_GZIP, DEFAULT_ZSTD, encode_on};
    use super::super::tar::tests::Raw;
    use super::*;

    fn is(bytes: &[u8]) -> Result<bool, DecompressError> {
        is_archive(bytes, &Limits::default())
    }

    fn compressed(bytes: &[u8], compression: Compression) -> Vec<u8> {
        let mut blob = Vec::new();
        encode_on(1, |out| out.write_all(bytes), compression, &mut blob).unwrap();
        blob
    }

    #[test]
    fn archives_are_known_by_content_only() {
        let tar = Raw::new(b"name", b'0').with(b"body");
        for compression in [Compression::None, DEFAULT_GZIP, DEFAULT_ZSTD] {
            assert!(is(&compressed(&tar, compression)).unwrap());
            for other in [&b"not a tar"[..], &[b'x'; 2000], &[0; 10_240], b""] {
                assert!(!is(&compressed(other, compression)).unwrap(), "{compression:?} {other:?}");
            }
        }
    }

    #[test]
    fn what_only_looks_compressed_is_a_file() {
        assert!(!is(b"\x1f\x8b but text").unwrap());
        assert!(!is(b"BZh91AY but text").unwrap());
        assert!(!is(&compressed(&[7; 4000], DEFAULT_GZIP)[..20]).unwrap());
    }

    #[test]
    fn what_cannot_be_inflated_is_an_error_and_never_a_file() {
        assert!(matches!(is(b"\xfd7zXZ\0..."), Err(DecompressError::Read(_))));
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(28).unwrap();
        encoder.write_all(&Raw::new(b"name", b'0').with(b"body")).unwrap();
        assert!(matches!(is(&encoder.finish().unwrap()), Err(DecompressError::Read(_))));
    }
}
