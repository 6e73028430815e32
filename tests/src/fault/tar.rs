//! Archives as hostile as their author wants them: nothing is checked, everything can be set.

use std::ops::Range;

/// One member. Its checksum is right unless a test breaks it afterwards.
#[derive(Debug, Clone)]
pub struct Member {
    header: [u8; 512],
    body: Vec<u8>,
}

/// Where the size is in a header.
pub const SIZE: Range<usize> = 124..136;
/// Where the owner is.
pub const UID: Range<usize> = 108..116;

impl Member {
    /// Of this type (`0` file, `1` hard link, `2` link, `3` and `4` devices, `5` directory, `6` pipe), owned by root.
    #[must_use]
    pub fn new(name: &[u8], kind: u8) -> Self {
        let member = Self { header: [0; 512], body: Vec::new() };
        let mode: &[u8] = if kind == b'5' { b"0000755\0" } else { b"0000644\0" };
        let ids: &[u8] = b"0000000\0";
        let member = member.field(0, name).field(100, mode).field(UID.start, ids).field(116, ids);
        member
            .field(SIZE.start, b"00000000000\0")
            .field(136, b"00000000000\0")
            .field(156, &[kind])
            .field(257, b"ustar\x0000")
    }

    /// A file with this content.
    #[must_use]
    pub fn file(name: &[u8], body: &[u8]) -> Self {
        Self::new(name, b'0').body(body)
    }

    /// A link to this: of type `2` a symbolic one, of type `1` a hard one.
    #[must_use]
    pub fn link(name: &[u8], kind: u8, target: &[u8]) -> Self {
        Self::new(name, kind).field(157, target)
    }

    /// With content, and the size of it.
    #[must_use]
    pub fn body(self, body: &[u8]) -> Self {
        let member = self.field(SIZE.start, format!("{:011o}\0", body.len()).as_bytes());
        Self { body: body.to_vec(), ..member }
    }

    /// With these bytes at this place of the header.
    #[must_use]
    pub fn field(mut self, at: usize, bytes: &[u8]) -> Self {
        self.header[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// The member as it stands in an archive.
    #[must_use]
    pub fn bytes(mut self) -> Vec<u8> {
        self.header[148..156].fill(b' ');
        let sum: u32 = self.header.iter().map(|byte| u32::from(*byte)).sum();
        let sum = format!("{sum:06o}\0 ");
        let mut bytes = self.field(148, sum.as_bytes()).whole();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    fn whole(self) -> Vec<u8> {
        [self.header.as_slice(), &self.body].concat()
    }
}

/// PAX records for the member behind them.
#[must_use]
pub fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        // The length counts its own digits.
        let rest = key.len() + value.len() + 3;
        let length = (rest + 1..).find(|length| rest + length.to_string().len() == *length).unwrap_or(rest);
        body.extend_from_slice(format!("{length} {key}=").as_bytes());
        body.extend_from_slice(value);
        body.push(b'\n');
    }
    Member::new(b"pax", b'x').body(&body).bytes()
}

/// Members and the end of the archive.
#[must_use]
pub fn archive(members: &[Vec<u8>]) -> Vec<u8> {
    [members.concat(), vec![0; 1024]].concat()
}

/// A zstd frame that begins with these bytes and goes on with so many blocks of 128 KiB of zeros, four bytes each.
#[must_use]
pub fn zstd_of_zeros(begin: &[u8], blocks: usize, window_log: u8) -> Vec<u8> {
    let mut frame = b"\x28\xb5\x2f\xfd\x00".to_vec();
    frame.push((window_log - 10) << 3);
    let mut block = |kind: usize, size: usize, is_last: bool, body: &[u8]| {
        frame.extend_from_slice(&(size << 3 | kind << 1 | usize::from(is_last)).to_le_bytes()[..3]);
        frame.extend_from_slice(body);
    };
    block(0, begin.len(), false, begin);
    for at in 1..=blocks {
        block(1, 128 << 10, at == blocks, &[0]);
    }
    frame
}
