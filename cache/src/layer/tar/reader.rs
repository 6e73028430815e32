//! Reading an archive entry by entry.

use std::io::Read;

use super::super::diff::Mtime;
use super::super::limits::Limits;
use super::block::{self, Block, field};
use super::pax::{self, Records};
use super::{BLOCK_BYTES, Member, MemberKind, TarError};

/// Reads members in order; between two of them, the body of a file.
#[derive(Debug)]
pub(in super::super) struct TarReader<'limits, R> {
    input: R,
    limits: &'limits Limits,
    /// Bytes taken from the input.
    at: u64,
    body_left: u64,
    padding_left: u64,
}

impl<'limits, R: Read> TarReader<'limits, R> {
    pub(in super::super) fn new(input: R, limits: &'limits Limits) -> Self {
        Self { input, limits, at: 0, body_left: 0, padding_left: 0 }
    }

    /// The next member, its predecessor's unread body skipped; `None` at the end of the archive.
    ///
    /// The end is two zero blocks, one zero block and the end of the stream, or the end of the stream where a header
    /// could start: whether bytes are missing is what digests are for.
    pub(in super::super) fn next(&mut self) -> Result<Option<Member>, TarError> {
        self.skip(self.body_left + self.padding_left)?;
        (self.body_left, self.padding_left) = (0, 0);
        let mut extensions = Extensions::default();
        loop {
            let at = self.at;
            let Some(header) = self.header()? else {
                return match extensions.first_at {
                    Some(at) => Err(TarError::StrayExtension { at }),
                    None => Ok(None),
                };
            };
            let flag = header[field::TYPE];
            match flag {
                b'x' => {
                    let data = self.extension(&header, at)?;
                    let records = pax::parse(&data).map_err(|what| TarError::Pax { at, what })?;
                    extensions.add(at, |slots| &mut slots.records, records)?;
                }
                b'L' => {
                    let name = self.long_name(&header, at)?;
                    extensions.add(at, |slots| &mut slots.long_name, name)?;
                }
                b'K' => {
                    let name = self.long_name(&header, at)?;
                    extensions.add(at, |slots| &mut slots.long_link, name)?;
                }
                b'g' => self.global(&header, at)?,
                _ => return self.member(&header, at, extensions).map(Some),
            }
        }
    }

    /// Reads from the current member's body; 0 at its end.
    pub(in super::super) fn read_body(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let want = usize::try_from(self.body_left).unwrap_or(usize::MAX).min(buffer.len());
        let mut filled = 0;
        while filled < want {
            match self.read_some(&mut buffer[filled..want])? {
                0 => return Err(TarError::Truncated { at: self.at }),
                len => filled += len,
            }
        }
        self.body_left -= want as u64;
        Ok(want)
    }

    /// Reads the input to its end: what follows the end mark belongs to the digest.
    pub(in super::super) fn drain(&mut self) -> Result<(), TarError> {
        let mut buffer = [0; 16 << 10];
        while self.read_some(&mut buffer)? > 0 {}
        Ok(())
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        loop {
            match self.input.read(buffer) {
                Ok(len) => {
                    self.at += len as u64;
                    return Ok(len);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TarError::Read { at: self.at, source }),
            }
        }
    }

    /// A block, or `None` when the stream ends right here.
    fn block(&mut self) -> Result<Option<Block>, TarError> {
        let mut block = [0; BLOCK_BYTES];
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            match self.read_some(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(TarError::Truncated { at: self.at }),
                len => filled += len,
            }
        }
        Ok(Some(block))
    }

    /// A header with a valid checksum, or `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<Block>, TarError> {
        let at = self.at;
        let Some(block) = self.block()? else { return Ok(None) };
        if block.iter().all(|b| *b == 0) {
            return match self.block()? {
                Some(second) if second.iter().any(|b| *b != 0) => Err(TarError::Checksum { at }),
                _ => Ok(None),
            };
        }
        if block::checksum_holds(&block) { Ok(Some(block)) } else { Err(TarError::Checksum { at }) }
    }

    fn skip(&mut self, mut left: u64) -> Result<(), TarError> {
        let mut buffer = [0; 16 << 10];
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            match self.read_some(&mut buffer[..want])? {
                0 => return Err(TarError::Truncated { at: self.at }),
                len => left -= len as u64,
            }
        }
        Ok(())
    }

    /// The body of an extension, within the limit.
    fn extension(&mut self, header: &Block, at: u64) -> Result<Vec<u8>, TarError> {
        let size = unsigned(header, field::SIZE, "size", at)?;
        let max = self.limits.extension_bytes_max;
        if size > max as u64 {
            return Err(TarError::ExtensionTooLong { at, size, max });
        }
        let mut data = vec![0; size as usize];
        self.body_left = size;
        self.read_body(&mut data)?;
        self.skip(padding(size))?;
        Ok(data)
    }

    fn long_name(&mut self, header: &Block, at: u64) -> Result<Vec<u8>, TarError> {
        let mut name = self.extension(header, at)?;
        // One or more NULs close it; none may be inside.
        while name.last() == Some(&0) {
            name.pop();
        }
        if name.is_empty() || name.contains(&0) {
            return Err(TarError::Pax { at, what: "a GNU long name is empty or contains NUL" });
        }
        Ok(name)
    }

    /// Global records are not applied, as in the tools that read images; what would change where things are is
    /// refused, or readers that do apply them would see another archive.
    fn global(&mut self, header: &Block, at: u64) -> Result<(), TarError> {
        let data = self.extension(header, at)?;
        let records = pax::parse(&data).map_err(|what| TarError::Pax { at, what })?;
        if records == Records::default() {
            Ok(())
        } else {
            Err(TarError::Pax { at, what: "global records that change entries are not supported" })
        }
    }

    fn member(&mut self, header: &Block, at: u64, extensions: Extensions) -> Result<Member, TarError> {
        let records = extensions.records.unwrap_or_default();
        let path = records.path.or(extensions.long_name).unwrap_or_else(|| header_name(header));
        let shown = || String::from_utf8_lossy(&path).chars().take(200).collect::<String>();
        let flag = header[field::TYPE];
        if records.is_sparse || flag == b'S' {
            return Err(TarError::Sparse { name: shown() });
        }
        let max = self.limits.xattr_bytes_max;
        if records.xattr_bytes > max {
            return Err(TarError::XattrsTooLong { at, max });
        }
        let size = match records.size {
            Some(size) => size,
            None => unsigned(header, field::SIZE, "size", at)?,
        };
        let link = records.link.or(extensions.long_link);
        let link = || link.unwrap_or_else(|| block::text(&header[field::LINK]).to_vec());
        let device = || -> Result<(u32, u32), TarError> {
            Ok((id(header, field::MAJOR, "major number", at)?, id(header, field::MINOR, "minor number", at)?))
        };
        let kind = match flag {
            // Before POSIX, a directory was a name that ends in a slash.
            0 if path.ends_with(b"/") => MemberKind::Dir,
            0 | b'0' | b'7' => MemberKind::File { size },
            b'1' => MemberKind::Hardlink { target: link() },
            b'2' => MemberKind::Symlink { target: link() },
            b'3' => device().map(|(major, minor)| MemberKind::CharDevice { major, minor })?,
            b'4' => device().map(|(major, minor)| MemberKind::BlockDevice { major, minor })?,
            b'5' => MemberKind::Dir,
            b'6' => MemberKind::Fifo,
            flag => return Err(TarError::UnknownType { name: shown(), flag }),
        };
        if size > 0 && !matches!(kind, MemberKind::File { .. }) {
            return Err(TarError::SizeWithoutBody { name: shown(), size });
        }
        // Beyond this the padding sum would overflow, long after any limit.
        if size > i64::MAX as u64 {
            return Err(TarError::Number { field: "size", at });
        }
        (self.body_left, self.padding_left) = (size, padding(size));
        let uid = records.uid.map_or_else(|| id(header, field::UID, "uid", at), Ok)?;
        let gid = records.gid.map_or_else(|| id(header, field::GID, "gid", at), Ok)?;
        // -1 means «no change» to chown: a file must not end up with our own ids because of it.
        if uid == u32::MAX || gid == u32::MAX {
            return Err(TarError::Number { field: "owner", at });
        }
        let mtime = match records.mtime {
            Some(mtime) => mtime,
            None => Mtime { secs: signed(header, field::MTIME, "mtime", at)?, nanos: 0 },
        };
        let mode = (unsigned(header, field::MODE, "mode", at)? & 0o7777) as u32;
        Ok(Member { path, kind, mode, uid, gid, mtime, xattrs: records.xattrs })
    }
}

/// Extensions that wait for their entry.
#[derive(Default)]
struct Extensions {
    first_at: Option<u64>,
    records: Option<Records>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Extensions {
    /// Keeps one; a second of the same kind would be a chain without end.
    fn add<T>(
        &mut self,
        at: u64,
        slot: impl FnOnce(&mut Self) -> &mut Option<T>,
        value: T,
    ) -> Result<(), TarError> {
        self.first_at.get_or_insert(at);
        match slot(self).replace(value) {
            None => Ok(()),
            Some(_) => Err(TarError::StrayExtension { at }),
        }
    }
}

fn header_name(header: &Block) -> Vec<u8> {
    let name = block::text(&header[field::NAME]);
    // GNU archives keep times where POSIX has the prefix.
    let prefix =
        if &header[field::MAGIC] == block::USTAR { block::text(&header[field::PREFIX]) } else { b"" };
    if prefix.is_empty() { name.to_vec() } else { [prefix, name].join(&b'/') }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK_BYTES as u64
}

fn signed(
    header: &Block,
    range: std::ops::Range<usize>,
    field: &'static str,
    at: u64,
) -> Result<i64, TarError> {
    block::number(&header[range]).ok_or(TarError::Number { field, at })
}

fn unsigned(
    header: &Block,
    range: std::ops::Range<usize>,
    field: &'static str,
    at: u64,
) -> Result<u64, TarError> {
    u64::try_from(signed(header, range, field, at)?).map_err(|_| TarError::Number { field, at })
}

fn id(header: &Block, range: std::ops::Range<usize>, field: &'static str, at: u64) -> Result<u32, TarError> {
    u32::try_from(signed(header, range, field, at)?).map_err(|_| TarError::Number { field, at })
}

/// Collects every member with its body: for tests of the reader and of the writer.
#[cfg(test)]
pub(super) fn read_all(archive: &[u8]) -> Result<Vec<(Member, Vec<u8>)>, TarError> {
    let limits = Limits::default();
    let mut reader = TarReader::new(archive, &limits);
    let mut all = Vec::new();
    while let Some(member) = reader.next()? {
        let mut body = Vec::new();
        let mut buffer = [0; 700];
        loop {
            match reader.read_body(&mut buffer)? {
                0 => break,
                len => body.extend_from_slice(&buffer[..len]),
            }
        }
        all.push((member, body));
    }
    Ok(all)
}
