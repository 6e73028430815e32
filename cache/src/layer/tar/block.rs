//! Fields of a 512-byte header.

use super::BLOCK_BYTES;

/// Where the fields are: POSIX.1-1988 ustar.
pub(super) mod field {
    use std::ops::Range;

    pub(in super::super) const NAME: Range<usize> = 0..100;
    pub(in super::super) const MODE: Range<usize> = 100..108;
    pub(in super::super) const UID: Range<usize> = 108..116;
    pub(in super::super) const GID: Range<usize> = 116..124;
    pub(in super::super) const SIZE: Range<usize> = 124..136;
    pub(in super::super) const MTIME: Range<usize> = 136..148;
    pub(in super::super) const CHECKSUM: Range<usize> = 148..156;
    pub(in super::super) const TYPE: usize = 156;
    pub(in super::super) const LINK: Range<usize> = 157..257;
    pub(in super::super) const MAGIC: Range<usize> = 257..265;
    pub(in super::super) const MAJOR: Range<usize> = 329..337;
    pub(in super::super) const MINOR: Range<usize> = 337..345;
    pub(in super::super) const PREFIX: Range<usize> = 345..500;
}

pub(in super::super) type Block = [u8; BLOCK_BYTES];

/// Magic and version of POSIX archives. GNU's differ, and so does what their prefix field means.
pub(super) const USTAR: &[u8; 8] = b"ustar\x0000";

/// Bytes up to the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// An octal or base-256 number; an empty field is 0.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(0x80..) => base_256(field),
        _ => octal(field).and_then(|value| i64::try_from(value).ok()),
    }
}

fn octal(field: &[u8]) -> Option<u64> {
    let digits = text(field).trim_ascii();
    digits.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// GNU's binary form: the top bit is a mark, the next one the sign of a big-endian two's complement number.
fn base_256(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    let negative = first & 0x40 != 0;
    let start = i64::from(first & 0x7f) - if negative { 0x80 } else { 0 };
    rest.iter().try_fold(start, |value, byte| value.checked_mul(256)?.checked_add(i64::from(*byte)))
}

/// Writes an octal number with its closing NUL; false when it does not fit.
pub(super) fn put_octal(field: &mut [u8], value: u64) -> bool {
    let digits = field.len() - 1;
    if digits < 22 && value >> (3 * digits) != 0 {
        return false;
    }
    let mut rest = value;
    for at in (0..digits).rev() {
        field[at] = b'0' + (rest & 7) as u8;
        rest >>= 3;
    }
    field[digits] = 0;
    true
}

/// Writes a number, in base-256 when octal does not hold it.
pub(super) fn put_number(field: &mut [u8], value: u32) {
    if put_octal(field, u64::from(value)) {
        return;
    }
    field.fill(0);
    field[0] = 0x80;
    let end = field.len();
    field[end - 4..].copy_from_slice(&value.to_be_bytes());
}

/// True when the checksum field matches; old writers summed signed bytes, which is accepted as everywhere.
pub(in super::super) fn checksum_holds(block: &Block) -> bool {
    let Some(stated) = octal(&block[field::CHECKSUM]) else { return false };
    let (unsigned, signed) = checksums(block);
    stated == unsigned || i64::try_from(stated) == Ok(signed)
}

/// Fills in the checksum.
pub(super) fn put_checksum(block: &mut Block) {
    let (unsigned, _) = checksums(block);
    // Six digits, NUL, blank: the historical layout. 512 * 255 always fits.
    put_octal(&mut block[field::CHECKSUM.start..field::CHECKSUM.end - 1], unsigned);
    block[field::CHECKSUM.end - 1] = b' ';
}

fn checksums(block: &Block) -> (u64, i64) {
    let mut unsigned = 0u64;
    let mut signed = 0i64;
    for (at, byte) in block.iter().enumerate() {
        let byte = if field::CHECKSUM.contains(&at) { b' ' } else { *byte };
        unsigned += u64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    (unsigned, signed)
}
