use std::io::Read;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

/// Bytes that compress, but not to nothing.
fn sample(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes()[..(state % 5) as usize]);
        bytes.extend_from_slice(b"layer");
    }
    bytes.truncate(len);
    bytes
}

fn encoded(bytes: &[u8], compression: Compression, threads: usize) -> (Encoded, Vec<u8>) {
    let mut blob = Vec::new();
    let source = |out: &mut dyn Write| bytes.chunks(70_001).try_for_each(|chunk| out.write_all(chunk));
    let encoded = encode_on(threads, source, compression, &mut blob).unwrap();
    (encoded, blob)
}

#[test]
fn every_form_decodes_and_is_the_same_for_any_number_of_threads() {
    for len in [0, 1, 1000, gzip::BLOCK_BYTES, gzip::BLOCK_BYTES + 1, 5 * gzip::BLOCK_BYTES + 77] {
        let bytes = sample(len);
        let portable = [4, 9].map(|level| Compression::Gzip(Gzip::Level(level)));
        let large = Compression::Zstd { level: 9 };
        for compression in [Compression::None, DEFAULT_GZIP, DEFAULT_ZSTD, large].into_iter().chain(portable)
        {
            let (one, blob) = encoded(&bytes, compression, 1);
            for threads in 2..=4 {
                assert_eq!(
                    encoded(&bytes, compression, threads),
                    (one, blob.clone()),
                    "{len} {compression:?}"
                );
            }
            let mut decoded = Vec::new();
            match compression {
                Compression::None => decoded.clone_from(&blob),
                // The decoder for a single member: ours must be one.
                Compression::Gzip(_) => {
                    flate2::read::GzDecoder::new(&blob[..]).read_to_end(&mut decoded).map(drop).unwrap();
                }
                Compression::Zstd { .. } => decoded = zstd::decode_all(&blob[..]).unwrap(),
            }
            assert!(decoded == bytes, "{len} {compression:?}");
            assert_eq!(one.diff_id.0, Digest::of(&bytes));
            assert_eq!(one.digest, Digest::of(&blob));
            assert_eq!((one.size, one.uncompressed), (blob.len() as u64, len as u64));
        }
    }
}

#[test]
fn blocks_share_their_window() {
    // Random bytes repeated at a distance below 32 KiB compress across block borders only with a dictionary.
    let noise: Vec<u8> =
        (0..20_000u32).flat_map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[..1].to_vec()).collect();
    let bytes = noise.repeat(3 * gzip::BLOCK_BYTES / noise.len());
    let (joined, _) = encoded(&bytes, Compression::Gzip(Gzip::Level(6)), 2);
    // Three blocks that each start without a window would hold the noise three times: over 60 000 bytes.
    assert!(joined.size < 50_000, "{}", joined.size);
}

#[test]
fn incompressible_bytes_grow_by_little() {
    let bytes: Vec<u8> = (0..40_000u32).flat_map(|n| *blake3::hash(&n.to_le_bytes()).as_bytes()).collect();
    let levels = (1..=9).map(|level| Compression::Gzip(Gzip::Level(level)));
    for compression in levels.chain([DEFAULT_GZIP]) {
        let (encoded, blob) = encoded(&bytes, compression, 2);
        // zlib-rs' level 1 has fixed codes only, which cost random bytes a sixteenth; all else stores them.
        let growth =
            if compression == Compression::Gzip(Gzip::Level(1)) { encoded.uncompressed / 16 } else { 1000 };
        assert!(encoded.size < encoded.uncompressed + growth, "{compression:?}: {}", encoded.size);
        let mut decoded = Vec::new();
        flate2::read::GzDecoder::new(&blob[..]).read_to_end(&mut decoded).unwrap();
        assert!(decoded == bytes);
    }
}

struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0 < bytes.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0 -= bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_the_sinks_failure_and_a_bad_source_is_the_sources() {
    let bytes = sample(8 * gzip::BLOCK_BYTES);
    for compression in [Compression::None, DEFAULT_GZIP, DEFAULT_ZSTD] {
        for threads in [1, 3] {
            let full = encode_on(threads, |out| out.write_all(&bytes), compression, &mut Full(1000));
            assert!(
                matches!(&full, Err(EncodeError::Sink(e)) if e.kind() == io::ErrorKind::StorageFull),
                "{full:?}"
            );
            let source = |out: &mut dyn Write| {
                out.write_all(&bytes)?;
                Err(io::Error::from(io::ErrorKind::InvalidData))
            };
            let failed = encode_on(threads, source, compression, &mut io::sink());
            assert!(matches!(&failed, Err(EncodeError::Source(e)) if e.kind() == io::ErrorKind::InvalidData));
        }
    }
}

#[test]
fn parameters_name_the_level_in_effect() {
    assert_eq!(Compression::Gzip(Gzip::Level(40)).params(), Compression::Gzip(Gzip::Level(9)).params());
    assert_ne!(Compression::Gzip(Gzip::Level(4)).params(), Compression::Gzip(Gzip::Level(6)).params());
    assert_eq!(Compression::Gzip(Gzip::Level(4)).params(), "gzip/1/zlib-rs/level=4/block=524288");
    #[cfg(all(feature = "isal", target_arch = "x86_64"))]
    assert_eq!(DEFAULT_GZIP.params(), "gzip/2/isa-l-2.31/level=2/x86_64/block=524288");
    #[cfg(not(feature = "isal"))]
    assert_eq!(DEFAULT_GZIP, Compression::Gzip(Gzip::Level(4)));
    assert_eq!(DEFAULT_ZSTD.params(), "zstd/2/level=3/mt");
}

#[test]
fn the_judge_of_gzip_itself_accepts_both_engines() {
    let bytes = sample(2 * gzip::BLOCK_BYTES + 1);
    for compression in [DEFAULT_GZIP, Compression::Gzip(Gzip::Level(4))] {
        let (_, blob) = encoded(&bytes, compression, 2);
        let mut gzip = Command::new("gzip").arg("-t").stdin(Stdio::piped()).spawn().unwrap();
        gzip.stdin.take().unwrap().write_all(&blob).unwrap();
        assert!(gzip.wait().unwrap().success(), "{compression:?}");
    }
}

fn noise(len: usize, kind: u8) -> Vec<u8> {
    (0..len).map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[usize::from(kind % 32)]).collect()
}

/// Bytes whose frequencies say all there is to say.
fn digits(len: usize, kind: u8) -> Vec<u8> {
    noise(len, kind).iter().map(|byte| b"0123456789abcdef"[usize::from(byte % 16)]).collect()
}

/// Runs of noise, of one byte, of digits, and of text, long and short.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let piece = (0..4_u8, any::<u8>(), 1..200_000_usize).prop_map(|(kind, byte, len)| match kind {
        0 => vec![byte; len],
        1 => noise(len, byte),
        2 => digits(len, byte),
        _ => sample(len),
    });
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

#[cfg(feature = "isal")]
mod without_matches {
    use super::super::literals::Literals;
    use super::*;

    fn inflated(bytes: &[u8]) -> Vec<u8> {
        let literals = Literals::of(bytes);
        let mut out = b"before".to_vec();
        literals.encode(bytes, &mut out);
        assert_eq!(out.len(), "before".len() + literals.size());
        out.extend([3, 0]);
        let mut inflated = Vec::new();
        flate2::read::DeflateDecoder::new(&out["before".len()..]).read_to_end(&mut inflated).unwrap();
        inflated
    }

    #[test]
    fn codes_that_would_be_too_long_are_cut() {
        // Each byte as often as the two rarer ones together: the rarest would have a code of 23 bits.
        let mut counts = vec![1_usize, 1];
        while counts.len() < 23 {
            counts.push(counts[counts.len() - 1] + counts[counts.len() - 2]);
        }
        let bytes: Vec<u8> = counts
            .iter()
            .enumerate()
            .flat_map(|(byte, count)| std::iter::repeat_n(byte as u8, *count))
            .collect();
        assert!(inflated(&bytes) == bytes);
    }

    #[test]
    fn one_kind_of_byte_none_and_all_of_them() {
        for bytes in [vec![0; 100_000], vec![255], Vec::new(), (0..=255).collect(), vec![7; 3]] {
            assert!(inflated(&bytes) == bytes);
        }
    }

    #[test]
    fn digits_are_smaller_and_text_is_as_small_as_with_matches() {
        let size = |bytes: &[u8]| encoded(bytes, DEFAULT_GZIP, 1).0.size;
        let with_matches = |bytes: &[u8]| {
            let mut all = Vec::new();
            let (mut deflater, mut before) = (rbuild_isal::Deflater::default(), &bytes[..0]);
            for block in bytes.chunks(gzip::BLOCK_BYTES) {
                deflater.start(before).unwrap();
                deflater.push(block, &mut all).unwrap();
                before = block;
            }
            all.len() as u64
        };
        let (digits, text) = (digits(4 << 20, 0), sample(4 << 20));
        assert!(
            size(&digits) * 104 < with_matches(&digits) * 100,
            "{} {}",
            size(&digits),
            with_matches(&digits)
        );
        assert!(size(&text) * 1000 < with_matches(&text) * 1005, "{} {}", size(&text), with_matches(&text));
    }

    proptest! {
        #[test]
        fn whatever_goes_in_comes_out(
            weights in proptest::collection::vec(0..4000_u32, 1..256),
            len in 0..50_000_usize,
        ) {
            let total: u32 = weights.iter().sum::<u32>().max(1);
            let one = |n: usize| {
                let mut at = u32::from_le_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes().first_chunk().unwrap()) % total;
                weights.iter().position(|weight| at.checked_sub(*weight).map(|left| at = left).is_none()).unwrap_or(0) as u8
            };
            let bytes: Vec<u8> = (0..len).map(one).collect();
            prop_assert!(inflated(&bytes) == bytes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn whatever_goes_in_comes_out(bytes in pieces(), threads in 1..4_usize) {
        for compression in [DEFAULT_GZIP, Compression::Gzip(Gzip::Level(1))] {
            let (_, blob) = encoded(&bytes, compression, threads);
            let mut decoded = Vec::new();
            flate2::read::GzDecoder::new(&blob[..]).read_to_end(&mut decoded).unwrap();
            prop_assert!(decoded == bytes, "{compression:?}");
        }
    }
}
