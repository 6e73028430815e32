//! Deflate blocks without matches: every byte has a code by how often it occurs.
//!
//! Some contents have uneven bytes that hardly ever repeat as words: base64, samples, packed numbers. Looking for matches in
//! them takes most of the time of compressing, and those that are found cost more than the bytes they stand for.
//!
//! The format is RFC 1951, section 3.2.7. All here is integers: equal bytes give equal blocks on every machine.

/// Symbols: the bytes, and the end of the block.
const SYMBOLS: usize = END + 1;
const END: usize = 256;

/// Bits of the longest code. Four codes and the seven bits of a byte that was not full yet fit into 64; the format allows 15.
const LONGEST: usize = 14;

/// Bits of the longest code for a length in the header, as the format has it.
const LONGEST_OF_LENGTHS: usize = 7;

/// The order of the header's own code lengths (RFC 1951, 3.2.7).
const LENGTHS_ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// Two distance codes of one bit, which nothing uses: a complete set, which the strictest reader takes.
const DISTANCES: [u8; 2] = [1, 1];

/// An empty stored block after its three bits of type: brings the stream to a byte border.
const FLUSH: [u8; 4] = [0, 0, 0xff, 0xff];

/// What one block is made with.
pub(super) struct Literals {
    counts: [u32; SYMBOLS],
    lengths: Vec<u8>,
    /// The header behind the block's type: value and number of bits.
    header: Vec<(u32, u32)>,
}

impl Literals {
    /// The codes for these bytes, of which there may be 16 MiB.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let counts = count(bytes);
        let lengths = code_lengths(&counts, LONGEST);
        let header = header(&lengths);
        Self { counts, lengths, header }
    }

    /// Bytes of the block, its flush among them.
    pub(super) fn size(&self) -> usize {
        let header: u32 = self.header.iter().map(|&(_, bits)| bits).sum();
        let bits = |(&count, &length): (&u32, &u8)| u64::from(count) * u64::from(length);
        let codes: u64 = self.counts.iter().zip(&self.lengths).map(bits).sum();
        (3 + u64::from(header) + codes + 3).div_ceil(8) as usize + FLUSH.len()
    }

    /// Puts the block after what is in `out`, which ends on a byte border, as the block does. `bytes` are those it was made of.
    pub(super) fn encode(&self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut bits = Bits { out, held: 0, count: 0 };
        // Not the last block; codes of its own.
        bits.put(0b100, 3);
        self.header.iter().for_each(|&(value, count)| bits.put(value, count));
        let codes = codes(&self.lengths);
        bits.put_all(bytes, &codes, self.size());
        bits.put(codes[END].0, u32::from(self.lengths[END]));
        bits.put(0, 3);
        bits.put(0, bits.count.wrapping_neg() % 8);
        out.extend_from_slice(&FLUSH);
    }
}

/// How often each byte occurs, and the end once. Four tables, so that equal bytes in a row do not wait for each other.
fn count(bytes: &[u8]) -> [u32; SYMBOLS] {
    let mut tables = [[0_u32; 256]; 4];
    let (fours, rest) = bytes.as_chunks::<4>();
    for four in fours {
        for (table, byte) in tables.iter_mut().zip(four) {
            table[usize::from(*byte)] += 1;
        }
    }
    for byte in rest {
        tables[0][usize::from(*byte)] += 1;
    }
    let mut counts = [1; SYMBOLS];
    for (byte, count) in counts[..END].iter_mut().enumerate() {
        *count = tables.iter().map(|table| table[byte]).sum();
    }
    counts
}

/// Lengths of a complete prefix code that is best for these counts but for the limit. A symbol with the count 0 gets
/// none; a code for fewer than two symbols would not be complete, so the first ones get one besides.
fn code_lengths(counts: &[u32], longest: usize) -> Vec<u8> {
    let mut leaves: Vec<(u32, usize)> = counts
        .iter()
        .enumerate()
        .filter(|(_, count)| **count > 0)
        .map(|(symbol, count)| (*count, symbol))
        .collect();
    let unused = counts.iter().enumerate().filter(|(_, count)| **count == 0).map(|(symbol, _)| (0, symbol));
    leaves.extend(unused.take(2_usize.saturating_sub(leaves.len())));
    leaves.sort_unstable();
    let mut of_length = [0_u32; LONGEST + 1];
    for depth in depths(&leaves) {
        of_length[depth.min(longest)] += 1;
    }
    // Codes that were cut to the limit take more room than there is. For each of them a shorter one becomes two that
    // are a bit longer, one of which is for it.
    let taken: u32 = (1..=longest).map(|length| of_length[length] << (longest - length)).sum();
    for _ in 1 << longest..taken {
        let shorter = (1..longest).rev().find(|length| of_length[*length] > 0).unwrap_or(1);
        of_length[longest] -= 1;
        of_length[shorter] -= 1;
        of_length[shorter + 1] += 2;
    }
    let mut lengths = vec![0; counts.len()];
    let mut rarest_first = leaves.iter();
    for length in (1..=longest).rev() {
        for (_, symbol) in rarest_first.by_ref().take(of_length[length] as usize) {
            lengths[*symbol] = length as u8;
        }
    }
    lengths
}

/// How deep each leaf lies in Huffman's tree. They come by weight.
fn depths(leaves: &[(u32, usize)]) -> Vec<usize> {
    let nodes = 2 * leaves.len() - 1;
    // The inner nodes follow the leaves: they come by weight as well, so the two lightest are always at the fronts.
    let mut weights: Vec<u32> = leaves.iter().map(|(count, _)| *count).collect();
    let mut parents = vec![0; nodes];
    let (mut leaf, mut inner) = (0, leaves.len());
    for node in leaves.len()..nodes {
        let mut weight = 0;
        for _ in 0..2 {
            let next = if leaf < leaves.len() && (inner == node || weights[leaf] <= weights[inner]) {
                &mut leaf
            } else {
                &mut inner
            };
            weight += weights[*next];
            parents[*next] = node;
            *next += 1;
        }
        weights.push(weight);
    }
    let mut depths = vec![0; nodes];
    for node in (0..nodes - 1).rev() {
        depths[node] = depths[parents[node]] + 1;
    }
    depths.truncate(leaves.len());
    depths
}

/// The code of each symbol with its number of bits, the bit that comes first in the stream lowest.
fn codes(lengths: &[u8]) -> Vec<(u32, u32)> {
    let mut codes = vec![(0, 0); lengths.len()];
    let mut next = 0_u32;
    for length in 1..=LONGEST as u32 {
        next <<= 1;
        for (code, _) in codes.iter_mut().zip(lengths).filter(|(_, own)| u32::from(**own) == length) {
            *code = (next.reverse_bits() >> (32 - length), length);
            next += 1;
        }
    }
    codes
}

/// How many codes there are, and their lengths: runs of them coded once more.
fn header(lengths: &[u8]) -> Vec<(u32, u32)> {
    // A symbol of the header's own alphabet, and what follows it.
    let mut runs: Vec<(usize, (u32, u32))> = Vec::new();
    for run in lengths.chunk_by(|one, next| one == next).chain([&DISTANCES[..]]) {
        let (length, mut left) = (usize::from(run[0]), run.len());
        if length > 0 {
            runs.push((length, (0, 0)));
            left -= 1;
        }
        while left > 0 {
            let (symbol, least, most, bits) = match (length, left) {
                (_, 1..3) => (length, 1, 1, 0),
                (0, 3..11) => (17, 3, 10, 3),
                (0, _) => (18, 11, 138, 7),
                _ => (16, 3, 6, 2),
            };
            let taken = left.min(most);
            runs.push((symbol, ((taken - least) as u32, bits)));
            left -= taken;
        }
    }
    let mut counts = [0; LENGTHS_ORDER.len()];
    runs.iter().for_each(|(symbol, _)| counts[*symbol] += 1);
    let own = code_lengths(&counts, LONGEST_OF_LENGTHS);
    let sent = LENGTHS_ORDER.iter().rposition(|symbol| own[*symbol] > 0).map_or(4, |last| (last + 1).max(4));
    let counted = [(lengths.len() as u32 - 257, 5), (DISTANCES.len() as u32 - 1, 5), (sent as u32 - 4, 4)];
    let own_codes = codes(&own);
    counted
        .into_iter()
        .chain(LENGTHS_ORDER[..sent].iter().map(|symbol| (u32::from(own[*symbol]), 3)))
        .chain(runs.into_iter().flat_map(|(symbol, more)| [own_codes[symbol], more]))
        .collect()
}

/// Bits on their way into bytes.
struct Bits<'out> {
    out: &'out mut Vec<u8>,
    held: u64,
    /// Of those that are held; fewer than 8 between calls.
    count: u32,
}

impl Bits<'_> {
    fn put(&mut self, value: u32, count: u32) {
        self.held |= u64::from(value) << self.count;
        self.count += count;
        while self.count >= 8 {
            self.out.push(self.held as u8);
            self.held >>= 8;
            self.count -= 8;
        }
    }

    /// Four codes at a time, and eight bytes written at a place that moves on by those that are full. Together the codes
    /// have no more than `room` bytes.
    fn put_all(&mut self, bytes: &[u8], codes: &[(u32, u32)], room: usize) {
        let mut table = [(0, 0); END];
        table.copy_from_slice(&codes[..END]);
        let (fours, rest) = bytes.as_chunks::<4>();
        let mut at = self.out.len();
        self.out.resize(at + room + 8, 0);
        for four in fours {
            let [a, b, c, d] = four.map(|byte| table[usize::from(byte)]);
            let first = u64::from(a.0) | u64::from(b.0) << a.1;
            let second = u64::from(c.0) | u64::from(d.0) << c.1;
            self.held |= (first | second << (a.1 + b.1)) << self.count;
            self.count += a.1 + b.1 + c.1 + d.1;
            self.out[at..at + 8].copy_from_slice(&self.held.to_le_bytes());
            let full = self.count / 8;
            at += full as usize;
            self.held >>= full * 8;
            self.count %= 8;
        }
        self.out.truncate(at);
        for byte in rest {
            let (code, count) = table[usize::from(*byte)];
            self.put(code, count);
        }
    }
}
