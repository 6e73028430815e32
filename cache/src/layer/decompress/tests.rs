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
    let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
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
    let frames = [frame(&tar[..500]), b"\x50\x2a\x4d\x18\x01\0\0\0x".to_vec(), frame(&tar[500..])].concat();
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

/// 1 MiB of tar in frames or blocks of which the second has a window of 16 MiB.
fn with_large_windows() -> [Vec<u8>; 2] {
    let tar = vec![7u8; 1 << 19];
    let zstd = [20, 24].map(|window_log| {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(window_log).unwrap();
        encoder.write_all(&tar).unwrap();
        encoder.finish().unwrap()
    });
    let xz = [20, 24].map(|dictionary_log| {
        let mut options = lzma_rust2::XzOptions::with_preset(0);
        options.lzma_options.dict_size = 1 << dictionary_log;
        let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
        encoder.write_all(&tar).unwrap();
        encoder.finish().unwrap()
    });
    // Apart, so that the first is read without the second.
    let skippable = [&b"\x50\x2a\x4d\x18\0\0\x04\0"[..], &[0; 4 << 16]].concat();
    [[&zstd[0][..], &skippable, &zstd[1]].concat(), [&xz[0][..], &[0; 4 << 16], &xz[1]].concat()]
}

#[test]
fn only_one_reader_has_a_large_window_at_a_time() {
    for blob in with_large_windows() {
        let mut first = LayerReader::sniff(&blob[..], &Limits::default()).unwrap();
        let mut small = vec![0; 1 << 18];
        first.read_exact(&mut small).unwrap();
        assert!(first._large_window.get().is_none(), "it is not met yet");
        let mut large = vec![0; 3 << 18];
        first.read_exact(&mut large).unwrap();
        assert!(first._large_window.get().is_some(), "{:?}", first.format);

        let (sender, ended) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let blob = &blob;
            scope.spawn(move || sender.send(sums(blob).unwrap().uncompressed));
            let a_while = std::time::Duration::from_millis(200);
            assert!(ended.recv_timeout(a_while).is_err(), "the other one waits");
            // Who has no large window waits for nobody.
            assert_eq!(sums(&gzip(&large)).unwrap().uncompressed, 3 << 18);
            drop(first);
            assert_eq!(ended.recv(), Ok(1 << 20));
        });
    }
}

#[test]
fn what_fails_gives_its_permit_back() {
    for blob in with_large_windows() {
        for _ in 0..3 {
            assert!(sums(&blob[..blob.len() - 3]).is_err());
        }
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
