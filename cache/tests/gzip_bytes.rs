//! The bytes of compressed layers, pinned: they are in digests that people have pushed.

use std::io::Write;

use rbuild_cache::layer::{Compression, DEFAULT_GZIP, Gzip, encode_on};

/// Blocks of text, of noise, of digits, and a short one at the end.
fn sample() -> Vec<u8> {
    let text =
        (0..60_000_u32).flat_map(|n| format!("{n} of {}\n", n.wrapping_mul(2_654_435_761)).into_bytes());
    let noise = (0..20_000_u32).flat_map(|n| *blake3::hash(&n.to_le_bytes()).as_bytes());
    let digits = (0..40_000_u32).flat_map(|n| blake3::hash(&n.to_le_bytes()).to_string().into_bytes());
    text.chain(noise).chain(digits).collect()
}

/// Moving one of these moves the digest of everybody's layers: raise the version in `Compression::params` with it.
#[test]
fn the_bytes_of_a_release_stay() {
    let bytes = sample();
    let digest = |compression| {
        let source = |out: &mut dyn Write| out.write_all(&bytes);
        encode_on(2, source, compression, &mut std::io::sink()).unwrap().digest.to_string()
    };
    let mut pinned = vec![(
        Compression::Gzip(Gzip::Level(4)),
        "sha256:607de9e28747f3ecfe94a15553a15a49a2cb50d48692772cf317e2e09ef07a38",
    )];
    if cfg!(all(feature = "isal", target_arch = "x86_64")) {
        pinned
            .push((DEFAULT_GZIP, "sha256:4e1f30847824c56b0dccf4c156ec20d00c9fa492e30646666cde9beb2465bffd"));
    }
    let (found, expected): (Vec<_>, Vec<_>) =
        pinned.into_iter().map(|(compression, expected)| (digest(compression), expected)).unzip();
    assert_eq!(found, expected);
}
