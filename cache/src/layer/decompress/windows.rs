//! How much of what it has read a decoder must keep, found in the headers as the compressed bytes pass.
//!
//! ```text
//!  zstd = { magic, descriptor, header, { block header, body }…, checksum? | skippable magic, size, body }…     RFC 8878
//!  xz   = { magic, flags, { block header, { chunk header, body }…, padding, check }…, index, footer, padding }…  xz-file-format
//! ```
//!
//! Bodies are passed over. What is malformed ends it: the decoder stops there, too.

/// Follows one stream.
#[derive(Debug)]
pub(super) struct Windows {
    state: State,
    /// Bytes of a header so far, and how many it has.
    head: Vec<u8>,
    wanted: usize,
    /// Bytes to pass over before that.
    skip: u64,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Magic,
    SkippableSize,
    Descriptor,
    FrameHeader {
        descriptor: u8,
    },
    Block {
        has_checksum: bool,
    },
    /// The first four bytes of a stream of xz, or of the padding before it.
    Stream,
    StreamFlags,
    BlockSize {
        check_bytes: u64,
    },
    BlockHeader {
        check_bytes: u64,
    },
    /// The control byte of a chunk, after so many bytes of its block.
    Chunk {
        check_bytes: u64,
        seen: u64,
    },
    ChunkSizes {
        check_bytes: u64,
        seen: u64,
        control: u8,
    },
    /// A byte of an index of which so many were `seen`, whose numbers of seven bits a byte are their count and two for each
    /// record.
    Index {
        seen: u64,
        left: Option<u64>,
        number: u64,
        shift: u32,
    },
    /// Nothing that is known follows.
    End,
}

/// What follows a header: the window that it asks for (0: none), the next state, bytes of that, and bytes to pass over before.
struct Step(u64, State, usize, u64);

const END: Step = Step(0, State::End, 1, 0);

impl Windows {
    pub(super) fn of_zstd() -> Self {
        Self { state: State::Magic, head: Vec::new(), wanted: 4, skip: 0 }
    }

    pub(super) fn of_xz() -> Self {
        Self { state: State::Stream, head: Vec::new(), wanted: 4, skip: 0 }
    }

    /// Takes what comes next. The most bytes that a header in it asks a decoder to keep, 0 without one.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) -> u64 {
        let mut largest = 0;
        while !bytes.is_empty() && !matches!(self.state, State::End) {
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
            self.skip -= skipped as u64;
            bytes = &bytes[skipped..];
            let (head, rest) = bytes.split_at((self.wanted - self.head.len()).min(bytes.len()));
            if self.skip > 0 || head.is_empty() {
                continue;
            }
            self.head.extend_from_slice(head);
            bytes = rest;
            if self.head.len() == self.wanted {
                let Step(window, state, wanted, skip) = step(self.state, &self.head);
                largest = largest.max(window);
                (self.state, self.wanted, self.skip) = (state, wanted, skip);
                self.head.clear();
            }
        }
        largest
    }
}

fn step(state: State, head: &[u8]) -> Step {
    match state {
        State::Magic => match head {
            [0x28, 0xb5, 0x2f, 0xfd] => Step(0, State::Descriptor, 1, 0),
            [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Step(0, State::SkippableSize, 4, 0),
            _ => END,
        },
        State::SkippableSize => Step(0, State::Magic, 4, little_endian(head)),
        State::Descriptor => {
            let descriptor = head[0];
            let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
            let window = usize::from(!is_single_segment(descriptor));
            Step(0, State::FrameHeader { descriptor }, window + dictionary + content_bytes(descriptor), 0)
        }
        State::FrameHeader { descriptor } => {
            let has_checksum = descriptor & 4 != 0;
            Step(frame_window(descriptor, head), State::Block { has_checksum }, 3, 0)
        }
        State::Block { has_checksum } => {
            let header = little_endian(head);
            let size = header >> 3;
            let body = match header >> 1 & 3 {
                // A byte that is repeated.
                1 => 1,
                3 => return END,
                _ => size,
            };
            match header & 1 {
                0 => Step(0, State::Block { has_checksum }, 3, body),
                _ => Step(0, State::Magic, 4, body + if has_checksum { 4 } else { 0 }),
            }
        }
        State::Stream if head == [0; 4] => Step(0, State::Stream, 4, 0),
        State::Stream => Step(0, State::StreamFlags, 8, 0),
        State::StreamFlags => {
            let check_bytes = [0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64];
            Step(0, State::BlockSize { check_bytes: check_bytes[usize::from(head[3] & 15)] }, 1, 0)
        }
        State::BlockSize { .. } if head[0] == 0 => index(1, None, 0, 0),
        State::BlockSize { check_bytes } => {
            Step(0, State::BlockHeader { check_bytes }, usize::from(head[0]) * 4 + 3, 0)
        }
        State::BlockHeader { check_bytes } => match dictionary(head) {
            Some(window) => Step(window, State::Chunk { check_bytes, seen: 0 }, 1, 0),
            None => END,
        },
        State::Chunk { check_bytes, seen } => match head[0] {
            0 => {
                let padding = (seen + 1).wrapping_neg() % 4;
                Step(0, State::BlockSize { check_bytes }, 1, padding + check_bytes)
            }
            control @ (1 | 2) => Step(0, State::ChunkSizes { check_bytes, seen: seen + 1, control }, 2, 0),
            control @ 0x80.. => Step(0, State::ChunkSizes { check_bytes, seen: seen + 1, control }, 4, 0),
            _ => END,
        },
        State::ChunkSizes { check_bytes, seen, control } => {
            let size = 1 + u64::from(u16::from_be_bytes([head[head.len() - 2], head[head.len() - 1]]));
            let body = size + u64::from(control >= 0xc0);
            Step(0, State::Chunk { check_bytes, seen: seen + head.len() as u64 + body }, 1, body)
        }
        State::Index { seen, left, number, shift } => {
            let number = number | u64::from(head[0] & 0x7f) << shift;
            match head[0] {
                0x80.. if shift >= 56 => END,
                0x80.. => index(seen + 1, left, number, shift + 7),
                _ => {
                    let left = left.map_or(number.saturating_mul(2), |left| left - 1);
                    index(seen + 1, Some(left), 0, 0)
                }
            }
        }
        State::End => END,
    }
}

/// The next byte of an index; after the last of its numbers its padding, check, and the footer.
fn index(seen: u64, left: Option<u64>, number: u64, shift: u32) -> Step {
    match left {
        Some(0) => Step(0, State::Stream, 4, seen.wrapping_neg() % 4 + 4 + 12),
        _ => Step(0, State::Index { seen, left, number, shift }, 1, 0),
    }
}

fn is_single_segment(descriptor: u8) -> bool {
    descriptor & 0x20 != 0
}

/// Bytes of the field for the length of what comes out.
fn content_bytes(descriptor: u8) -> usize {
    match descriptor >> 6 {
        0 => usize::from(is_single_segment(descriptor)),
        flag => 1 << flag,
    }
}

fn frame_window(descriptor: u8, header: &[u8]) -> u64 {
    let field = content_bytes(descriptor);
    let content = little_endian(&header[header.len() - field..]) + if field == 2 { 256 } else { 0 };
    if is_single_segment(descriptor) {
        return content;
    }
    let (exponent, mantissa) = (header[0] >> 3, u64::from(header[0] & 7));
    let window = (1 << (10 + exponent)) / 8 * (8 + mantissa);
    // No more is kept than comes out.
    if field == 0 { window } else { window.min(content) }
}

/// The largest dictionary of a block's filters, of which LZMA2 alone has one; `None` when it is no header.
fn dictionary(header: &[u8]) -> Option<u64> {
    let (flags, mut rest) = header.split_first()?;
    // Lengths of the block.
    for flag in [0x40, 0x80] {
        if flags & flag != 0 {
            number(&mut rest)?;
        }
    }
    let mut largest = 0;
    for _ in 0..=flags & 3 {
        let (filter, size) = (number(&mut rest)?, number(&mut rest)?);
        let (properties, others) = rest.split_at_checked(usize::try_from(size).ok()?)?;
        rest = others;
        if let (0x21, [bits @ 0..=40]) = (filter, properties) {
            let bits = u32::from(*bits);
            largest = largest.max((2 | u64::from(bits & 1)) << (bits / 2 + 11));
        }
    }
    Some(largest)
}

/// Seven bits a byte, the lowest first.
fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for at in 0..9 {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Up to eight bytes.
fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use zstd::zstd_safe::CParameter;

    use super::*;

    /// The windows that are asked for, in their order, when the bytes come in pieces of so many.
    fn windows(mut followed: Windows, stream: &[u8], piece: usize) -> Vec<u64> {
        let all = stream.chunks(piece).map(|piece| followed.pass(piece));
        all.filter(|window| *window > 0).collect()
    }

    fn zstd(body: &[u8], window_log: u32, has_checksum: bool, tells_size: bool) -> Vec<u8> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(window_log).unwrap();
        encoder.include_checksum(has_checksum).unwrap();
        encoder.set_parameter(CParameter::ContentSizeFlag(true)).unwrap();
        encoder.set_pledged_src_size(tells_size.then_some(body.len() as u64)).unwrap();
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    }

    fn xz(body: &[u8], dictionary: u32, check: lzma_rust2::CheckType, block: Option<u64>) -> Vec<u8> {
        let mut options = lzma_rust2::XzOptions::with_preset(0);
        options.lzma_options.dict_size = dictionary;
        options.set_check_sum_type(check);
        options.set_block_size(block.and_then(std::num::NonZero::new));
        let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    }

    /// Some that can be compressed, some that cannot, some that is one byte.
    fn body(length: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..length)
            .map(|at| match at >> 15 & 3 {
                0 => random(),
                1 => 7,
                _ => (at / 9) as u8,
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn every_frame_of_zstd_tells_its_window(
            frames in prop::collection::vec((0..400_000_usize, 10..=24_u32, any::<bool>(), any::<bool>()), 1..4),
            skippable in prop::option::of(0..70_000_u32),
            piece in prop_oneof![1..20_usize, 1000..200_000_usize],
        ) {
            let (mut stream, mut expected) = (Vec::new(), Vec::new());
            for (length, window_log, has_checksum, tells_size) in frames {
                if let Some(length) = skippable {
                    stream.extend_from_slice(b"\x53\x2a\x4d\x18");
                    stream.extend_from_slice(&length.to_le_bytes());
                    stream.extend(vec![0x28; length as usize]);
                }
                let frame = zstd(&body(length, length as u64), window_log, has_checksum, tells_size);
                stream.extend_from_slice(&frame);
                let window = 1 << window_log;
                expected.push(if tells_size { window.min(length as u64) } else { window });
            }
            prop_assert!(zstd::decode_all(&stream[..]).is_ok());
            let mut found = windows(Windows::of_zstd(), &stream, 1);
            // An empty frame that says so keeps nothing.
            expected.retain(|window| *window > 0);
            prop_assert_eq!(&found, &expected);
            found = windows(Windows::of_zstd(), &stream, piece);
            prop_assert_eq!(found.iter().max(), expected.iter().max());
        }

        #[test]
        fn every_block_of_xz_tells_its_dictionary(
            streams in prop::collection::vec((0..200_000_usize, 12..=24_u32, 0..4_usize, prop::option::of(30_000..200_000_u64)), 1..4),
            padding in 0..3_usize,
            piece in prop_oneof![1..20_usize, 1000..200_000_usize],
        ) {
            use lzma_rust2::CheckType::{Crc32, Crc64, None as Unchecked, Sha256};
            let (mut stream, mut expected) = (Vec::new(), Vec::new());
            for (length, dictionary_log, check, block) in streams {
                let check = [Unchecked, Crc32, Crc64, Sha256][check];
                let dictionary = 1_u32 << dictionary_log;
                stream.extend(xz(&body(length, length as u64), dictionary, check, block));
                stream.extend(vec![0; 4 * padding]);
                let blocks = match block {
                    // The encoder makes none smaller than the dictionary.
                    Some(block) => length.div_ceil((block as usize).max(dictionary as usize)),
                    None => usize::from(length > 0),
                };
                expected.extend(vec![u64::from(dictionary); blocks]);
            }
            let mut decoded = lzma_rust2::XzReader::new(&stream[..], true);
            prop_assert!(std::io::copy(&mut decoded, &mut std::io::sink()).is_ok());
            let found = windows(Windows::of_xz(), &stream, 1);
            prop_assert_eq!(&found, &expected);
            let found = windows(Windows::of_xz(), &stream, piece);
            prop_assert_eq!(found.iter().max(), expected.iter().max());
        }

        #[test]
        fn whatever_comes_it_ends_without_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            from in 0..13_usize,
        ) {
            for (mut followed, magic) in [
                (Windows::of_zstd(), &b"\x28\xb5\x2f\xfd"[..]),
                (Windows::of_xz(), &b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4\x46\x02"[..]),
            ] {
                followed.pass(&magic[..from.min(magic.len())]);
                followed.pass(&bytes);
                followed.pass(&bytes);
            }
        }
    }
}
