//! What the engine makes, read by another implementation.

use std::io::Read;

use rbuild_isal::Deflater;

/// Text-like bytes, different from block to block.
fn sample(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(len + 16);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(format!("line {} of it\n", state % 1000).as_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let step = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(step).collect()
}

fn deflated(deflater: &mut Deflater, bytes: &[u8]) -> Vec<u8> {
    let mut out = b"left over".to_vec();
    deflater.deflate(bytes, &mut out).expect("no block of these is too long");
    out
}

#[test]
fn blocks_join_to_one_stream_that_another_implementation_reads() {
    let mut deflater = Deflater::default();
    let blocks = [
        sample(512 << 10),
        noise(512 << 10),
        Vec::new(),
        vec![b'x'],
        vec![0; 100_000],
        vec![0xff; 9],
        sample(77),
    ];
    let mut joined: Vec<u8> = blocks.iter().flat_map(|block| deflated(&mut deflater, block)).collect();
    // A final, empty block.
    joined.extend([3, 0]);
    let mut read = Vec::new();
    flate2::read::DeflateDecoder::new(&joined[..]).read_to_end(&mut read).unwrap();
    assert!(read == blocks.concat());
}

#[test]
fn a_block_is_the_same_whatever_came_before() {
    let (mut used, block) = (Deflater::default(), sample(300_000));
    deflated(&mut used, &noise(500_000));
    deflated(&mut used, &sample(1000));
    let again = deflated(&mut used, &block);
    assert!(again == deflated(&mut Deflater::default(), &block));
    assert!(again.len() < block.len() / 3);
}

#[test]
fn noise_grows_by_no_more_than_stored_blocks_cost() {
    for len in [1, 7, 100, 65_535, 65_536, 512 << 10] {
        let bytes = noise(len);
        assert!(deflated(&mut Deflater::default(), &bytes).len() <= bytes.len() + 100, "{len}");
    }
}
