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

fn deflated(deflater: &mut Deflater, dictionary: &[u8], bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    deflater.start(dictionary).expect("no dictionary of these is too long");
    deflater.push(bytes, &mut out).expect("no block of these is too long");
    out
}

#[test]
fn blocks_join_to_one_stream_that_another_implementation_reads() {
    let blocks = [
        sample(512 << 10),
        noise(512 << 10),
        Vec::new(),
        vec![b'x'],
        vec![0; 100_000],
        vec![0xff; 9],
        sample(77),
        noise(3),
        sample(512 << 10),
    ];
    for first in 0..blocks.len() {
        let blocks = &blocks[first..];
        let mut deflater = Deflater::default();
        let (mut joined, mut before) = (Vec::new(), Vec::new());
        for block in blocks {
            joined.extend(deflated(&mut deflater, &before, block));
            before.clone_from(block);
        }
        // A final, empty block.
        joined.extend([3, 0]);
        let mut read = Vec::new();
        flate2::read::DeflateDecoder::new(&joined[..]).read_to_end(&mut read).unwrap();
        assert!(read == blocks.concat(), "from block {first}");
    }
}

/// Small blocks feel it most when something else than their bytes has a say. Threads have other stacks, other heaps,
/// and other things in their registers.
#[test]
fn a_block_is_the_same_whoever_compresses_it_and_whatever_came_before() {
    let (text, other) = (sample(1 << 20), noise(60_000));
    let cases: Vec<(usize, usize, usize)> = (0..1200)
        .map(|n| {
            (
                n * 797,
                [0, 1, 20, 32 << 10][n % 4],
                [77, 300, 5, 1000, 40, 9000, 77, 512 << 10][n % 8].min(if n < 64 { 1 << 20 } else { 1000 }),
            )
        })
        .map(|(at, dictionary, len)| (at % 400_000 + dictionary, dictionary, len))
        .collect();
    let all = || -> Vec<Vec<u8>> {
        let mut kept = Deflater::default();
        let one = |(n, (at, dictionary, len)): (usize, &(usize, usize, usize))| {
            let (dictionary, block) = (&text[at - dictionary..*at], &text[*at..*at + *len]);
            if n % 3 == 0 {
                deflated(&mut kept, &other[..n], &other[n..n + 300]);
            }
            if n % 2 == 0 {
                return deflated(&mut kept, dictionary, block);
            }
            let moved = [&other[..n % 64], block, &other[..100]].concat();
            let dictionary = [dictionary, b"more"].concat();
            let dictionary = &dictionary[..dictionary.len() - 4];
            deflated(&mut Deflater::default(), dictionary, &moved[n % 64..n % 64 + *len])
        };
        cases.iter().enumerate().map(one).collect()
    };
    let results: Vec<Vec<Vec<u8>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(all)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for result in &results {
        for (n, (one, first)) in result.iter().zip(&results[0]).enumerate() {
            assert!(one == first, "case {n}: {:?}", cases[n]);
        }
    }
}

#[test]
fn noise_grows_by_no_more_than_stored_blocks_cost() {
    for len in [1, 7, 100, 65_535, 65_536, 512 << 10] {
        let bytes = noise(len);
        let out = deflated(&mut Deflater::default(), &[], &bytes);
        assert!(out.len() <= bytes.len() + bytes.len() / 1000 + 100, "{len}: {}", out.len());
    }
}
