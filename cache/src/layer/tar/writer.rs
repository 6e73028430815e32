//! Writing an archive.
//!
//! ustar headers; PAX records only for what they cannot hold: names over their fields, owners over 2 097 151, sizes
//! over 8 GiB, times before 1970 or after 2242, xattrs. Times are whole seconds, rounded down: what docker,
//! containerd and BuildKit write into layers, and a PAX header for each file's nanoseconds would add 1 KiB per entry.
//! No access times, no owner names, nothing that depends on the machine.

use std::io::{self, Write};

use super::block::{self, Block, field};
use super::pax;
use super::{BLOCK_BYTES, Member, MemberKind};

/// Name of every PAX header; readers ignore it.
const PAX_NAME: &[u8] = b"PaxHeaders.0/entry";

/// Writes headers and padding; the caller writes bodies between them.
pub(in super::super) struct TarWriter<W> {
    out: W,
    padding: usize,
}

impl<W: Write> TarWriter<W> {
    pub(in super::super) fn new(out: W) -> Self {
        Self { out, padding: 0 }
    }

    /// Where it writes to.
    pub(in super::super) fn out(&self) -> &W {
        &self.out
    }

    /// Closes the previous member and writes the header of the next one. Nanoseconds of its mtime are dropped.
    pub(in super::super) fn header(&mut self, member: &Member) -> io::Result<()> {
        self.close_member()?;
        let (block, records) = encode(member);
        if !records.is_empty() {
            let mut extension = [0; BLOCK_BYTES];
            extension[..PAX_NAME.len()].copy_from_slice(PAX_NAME);
            block::put_octal(&mut extension[field::MODE], 0o644);
            block::put_octal(&mut extension[field::UID], 0);
            block::put_octal(&mut extension[field::GID], 0);
            block::put_octal(&mut extension[field::SIZE], records.len() as u64);
            block::put_octal(&mut extension[field::MTIME], 0);
            extension[field::TYPE] = b'x';
            extension[field::MAGIC].copy_from_slice(block::USTAR);
            block::put_checksum(&mut extension);
            self.out.write_all(&extension)?;
            self.out.write_all(&records)?;
            self.padding = records.len().wrapping_neg() % BLOCK_BYTES;
            self.close_member()?;
        }
        self.out.write_all(&block)?;
        if let MemberKind::File { size } = member.kind {
            self.padding = (size.wrapping_neg() % BLOCK_BYTES as u64) as usize;
        }
        Ok(())
    }

    /// Writes bytes of the current member's body; the caller keeps to the size in its header.
    pub(in super::super) fn body(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    /// Writes the end mark: two zero blocks.
    pub(in super::super) fn finish(mut self) -> io::Result<()> {
        self.close_member()?;
        self.out.write_all(&[0; 2 * BLOCK_BYTES])
    }

    /// Pads the member to whole blocks, unless that was done.
    pub(in super::super) fn close_member(&mut self) -> io::Result<()> {
        let padding = std::mem::take(&mut self.padding);
        self.out.write_all(&[0; BLOCK_BYTES][..padding])
    }
}

fn encode(member: &Member) -> (Block, Vec<u8>) {
    let mut block = [0; BLOCK_BYTES];
    let mut records = Vec::new();
    put_path(&mut block, &mut records, &member.path);
    block::put_octal(&mut block[field::MODE], u64::from(member.mode & 0o7777));
    for (range, key, id) in [(field::UID, "uid", member.uid), (field::GID, "gid", member.gid)] {
        if !block::put_octal(&mut block[range.clone()], u64::from(id)) {
            block::put_octal(&mut block[range], 0);
            pax::push(&mut records, &[key.as_bytes()], id.to_string().as_bytes());
        }
    }
    let size = if let MemberKind::File { size } = member.kind { size } else { 0 };
    if !block::put_octal(&mut block[field::SIZE], size) {
        block::put_octal(&mut block[field::SIZE], 0);
        pax::push(&mut records, &[b"size"], size.to_string().as_bytes());
    }
    let secs = member.mtime.secs;
    if !u64::try_from(secs).is_ok_and(|secs| block::put_octal(&mut block[field::MTIME], secs)) {
        block::put_octal(&mut block[field::MTIME], 0);
        pax::push(&mut records, &[b"mtime"], secs.to_string().as_bytes());
    }
    block[field::TYPE] = match &member.kind {
        MemberKind::File { .. } => b'0',
        MemberKind::Hardlink { target } => {
            put_link(&mut block, &mut records, target);
            b'1'
        }
        MemberKind::Symlink { target } => {
            put_link(&mut block, &mut records, target);
            b'2'
        }
        MemberKind::CharDevice { .. } => b'3',
        MemberKind::BlockDevice { .. } => b'4',
        MemberKind::Dir => b'5',
        MemberKind::Fifo => b'6',
    };
    block[field::MAGIC].copy_from_slice(block::USTAR);
    let (major, minor) = match member.kind {
        MemberKind::CharDevice { major, minor } | MemberKind::BlockDevice { major, minor } => (major, minor),
        _ => (0, 0),
    };
    block::put_number(&mut block[field::MAJOR], major);
    block::put_number(&mut block[field::MINOR], minor);
    for (name, value) in &member.xattrs {
        pax::push(&mut records, &[pax::XATTR_PREFIX, name], value);
    }
    block::put_checksum(&mut block);
    (block, records)
}

fn put_path(block: &mut Block, records: &mut Vec<u8>, path: &[u8]) {
    if path.len() <= field::NAME.len() {
        block[..path.len()].copy_from_slice(path);
        return;
    }
    // The first slash that leaves a name that fits gives the shortest prefix.
    let from = path.len() - field::NAME.len() - 1;
    let slash = path[from..path.len() - 1].iter().position(|b| *b == b'/').map(|at| from + at);
    match slash {
        Some(slash) if slash > 0 && slash <= field::PREFIX.len() => {
            block[field::PREFIX.start..field::PREFIX.start + slash].copy_from_slice(&path[..slash]);
            block[..path.len() - slash - 1].copy_from_slice(&path[slash + 1..]);
        }
        _ => {
            block[field::NAME].copy_from_slice(&path[..field::NAME.len()]);
            pax::push(records, &[b"path"], path);
        }
    }
}

fn put_link(block: &mut Block, records: &mut Vec<u8>, target: &[u8]) {
    let fits = target.len().min(field::LINK.len());
    block[field::LINK.start..field::LINK.start + fits].copy_from_slice(&target[..fits]);
    if fits < target.len() {
        pax::push(records, &[b"linkpath"], target);
    }
}
