//! Contents of many files in one file.
//!
//! ```text
//! "rbpack1\0"  contents, back to back  index  count u64  first 32 bytes of BLAKE3 of index and count
//! index = count × { content 32 bytes · offset u64 · length u64 }, ascending by content
//! ```
//!
//! A layer that nothing has to mount is kept like this: one sequential write instead of a dozen system calls a file,
//! and the next layer that has most of the same files shares the pack instead of holding them again. Contents are
//! known by their digest; whoever reads one hashes it.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;

use hashbrown::HashTable;

use crate::tree::ContentDigest;

const MAGIC: &[u8; 8] = b"rbpack1\0";
const ENTRY_BYTES: usize = 32 + 8 + 8;
/// Count and seal.
const TAIL_BYTES: u64 = 8 + 32;
/// Ten million files.
const INDEX_BYTES_MAX: u64 = 480_000_000;
/// Steps of a search that go by how digests are spread.
const GUESSES_MAX: usize = 6;
/// Written to the file at once.
const BUFFER_BYTES: usize = 256 << 10;
/// Entries of the index that are hashed and written at once, 48 KiB.
const ENTRIES_AT_ONCE: usize = 1024;

/// A file that is no pack.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// It cannot be read.
    #[error("read a pack of file contents")]
    Io(#[from] io::Error),
    /// Its bytes are not what was written.
    #[error("a pack of file contents is damaged: {0}")]
    Damaged(&'static str),
}

/// Where a content is in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// Makes a pack, content by content.
pub struct PackWriter {
    out: BufWriter<Box<dyn Write + Send>>,
    at: u64,
    index: Vec<(ContentDigest, Place)>,
    /// Positions in `index`, by the digests there.
    positions: HashTable<u32>,
}

impl PackWriter {
    /// Writes into an empty file.
    pub fn new(file: impl Write + Send + 'static) -> io::Result<Self> {
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, Box::new(file) as Box<dyn Write + Send>);
        out.write_all(MAGIC)?;
        Ok(Self { out, at: MAGIC.len() as u64, index: Vec::new(), positions: HashTable::new() })
    }

    /// True when the pack has this content.
    pub fn has(&self, content: &ContentDigest) -> bool {
        let is_it = |at: &u32| self.index[*at as usize].0 == *content;
        self.positions.find(beginning(&content.0), is_it).is_some()
    }

    /// Adds bytes of the content that [`Self::end`] will name.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Ends a content of `length` bytes, all written since the last one ended.
    pub fn end(&mut self, content: ContentDigest, length: u64) {
        if self.has(&content) {
            return;
        }
        let at = u32::try_from(self.index.len()).expect("so many contents would fill hundreds of gigabytes");
        self.index.push((content, Place { offset: self.at - length, length }));
        let hash = |at: &u32| beginning(&self.index[*at as usize].0.0);
        self.positions.insert_unique(beginning(&content.0), at, hash);
    }

    /// Bytes of contents so far.
    pub fn bytes(&self) -> u64 {
        self.at - MAGIC.len() as u64
    }

    /// Completes the file.
    pub fn finish(mut self) -> io::Result<()> {
        drop(self.positions);
        self.index.sort_unstable_by_key(|(content, _)| *content);
        let mut seal = blake3::Hasher::new();
        let mut bytes = Vec::with_capacity(ENTRIES_AT_ONCE * ENTRY_BYTES);
        for entries in self.index.chunks(ENTRIES_AT_ONCE) {
            bytes.clear();
            for (content, place) in entries {
                bytes.extend_from_slice(&content.0);
                bytes.extend_from_slice(&place.offset.to_le_bytes());
                bytes.extend_from_slice(&place.length.to_le_bytes());
            }
            seal.update(&bytes);
            self.out.write_all(&bytes)?;
        }
        let count = (self.index.len() as u64).to_le_bytes();
        seal.update(&count);
        self.out.write_all(&count)?;
        self.out.write_all(seal.finalize().as_bytes())?;
        self.out.flush()
    }
}

/// A complete pack, open for reading.
#[derive(Debug)]
pub struct Pack {
    file: File,
    index: Vec<u8>,
    bytes: u64,
    is_just_written: bool,
}

impl Pack {
    /// Opens a pack and checks its index; contents are checked by whoever reads them.
    pub fn open(mut file: File) -> Result<Self, PackError> {
        let damaged = |why| Err(PackError::Damaged(why));
        let size = file.metadata()?.len();
        let Some(body) = size.checked_sub(TAIL_BYTES).filter(|body| *body >= MAGIC.len() as u64) else {
            return damaged("it is cut short");
        };
        let mut magic = [0; MAGIC.len()];
        file.read_exact(&mut magic)?;
        if &magic != MAGIC {
            return damaged("it is something else");
        }
        let mut count = [0; 8];
        file.read_exact_at(&mut count, body)?;
        let count = u64::from_le_bytes(count);
        let length = count.checked_mul(ENTRY_BYTES as u64).filter(|length| *length <= INDEX_BYTES_MAX);
        let end = length.and_then(|length| body.checked_sub(length)).filter(|end| *end >= MAGIC.len() as u64);
        let Some(end) = end else { return damaged("its index is larger than the file") };
        let mut index = vec![0; usize::try_from(body - end).unwrap_or(0) + 8];
        file.read_exact_at(&mut index, end)?;
        let mut seal = [0; 32];
        file.read_exact_at(&mut seal, body + 8)?;
        if blake3::hash(&index).as_bytes() != &seal {
            return damaged("its index changed");
        }
        index.truncate(index.len() - 8);
        let pack = Self { file, index, bytes: end - MAGIC.len() as u64, is_just_written: false };
        let is_inside = |place: Place| place.offset.checked_add(place.length).is_some_and(|at| at <= end);
        if !(0..pack.len()).all(|at| is_inside(pack.place(at))) {
            return damaged("its index leads out of it");
        }
        Ok(pack)
    }

    /// Says that this process has just written it, hashing what it wrote: whoever reads a content need not hash it.
    pub(crate) fn just_written(self) -> Self {
        Self { is_just_written: true, ..self }
    }

    /// See [`Self::just_written`].
    pub(crate) fn is_just_written(&self) -> bool {
        self.is_just_written
    }

    /// Number of contents.
    pub fn len(&self) -> usize {
        self.index.len() / ENTRY_BYTES
    }

    /// True when it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Bytes of all contents.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where a content is.
    pub fn find(&self, content: &ContentDigest) -> Option<Place> {
        let (mut low, mut high) = (0, self.len());
        // Beginnings of what lies before and after; digests are spread evenly, so a few guesses are enough. Whoever chose
        // contents for theirs gets halves after that.
        let (mut least, mut most) = (0, u64::MAX);
        let wanted = beginning(&content.0);
        let mut guesses = 0..GUESSES_MAX;
        while low < high {
            let middle = match guesses.next() {
                Some(_) if least < most => {
                    let share = u128::from(wanted.clamp(least, most) - least) * (high - low) as u128;
                    let at = share / (u128::from(most - least) + 1);
                    low + usize::try_from(at).unwrap_or(0).min(high - low - 1)
                }
                _ => low + (high - low) / 2,
            };
            let found = self.content(middle);
            match found.cmp(&content.0[..]) {
                std::cmp::Ordering::Less => (low, least) = (middle + 1, beginning(found)),
                std::cmp::Ordering::Greater => (high, most) = (middle, beginning(found)),
                std::cmp::Ordering::Equal => return Some(self.place(middle)),
            }
        }
        None
    }

    /// Reads everything; true when every content has its digest.
    pub fn verify(&self) -> io::Result<bool> {
        let mut buffer = vec![0; BUFFER_BYTES];
        for at in 0..self.len() {
            let Place { mut offset, mut length } = self.place(at);
            let mut hash = blake3::Hasher::new();
            while length > 0 {
                let count = usize::try_from(length).unwrap_or(usize::MAX).min(BUFFER_BYTES);
                self.read_at(&mut buffer[..count], offset)?;
                hash.update(&buffer[..count]);
                offset += count as u64;
                length -= count as u64;
            }
            if hash.finalize().as_bytes()[..] != *self.content(at) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads bytes of a content. Shorter only at the end of the file, which a whole pack does not meet.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    /// The file, to copy from.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn content(&self, at: usize) -> &[u8] {
        &self.index[at * ENTRY_BYTES..at * ENTRY_BYTES + 32]
    }

    fn place(&self, at: usize) -> Place {
        let number = |from: usize| {
            let from = at * ENTRY_BYTES + from;
            u64::from_le_bytes(self.index[from..from + 8].try_into().expect("eight bytes"))
        };
        Place { offset: number(32), length: number(40) }
    }
}

/// The first eight bytes of a digest as a number, in the digests' order.
fn beginning(digest: &[u8]) -> u64 {
    u64::from_be_bytes(digest[..8].try_into().expect("a digest has 32 bytes"))
}

/// Reads contents of several packs, most of them lying one after the other: small ones come out of one larger read.
#[derive(Debug)]
pub struct PackReader<'a> {
    packs: &'a [Pack],
    window: Vec<u8>,
    /// Pack and offset of the window's first byte.
    start: (usize, u64),
}

impl<'a> PackReader<'a> {
    /// Reads from these.
    pub fn new(packs: &'a [Pack]) -> Self {
        Self { packs, window: Vec::new(), start: (0, 0) }
    }

    /// The pack that has a content, and where in it.
    pub fn find(&self, content: &ContentDigest) -> Option<(usize, Place)> {
        self.packs.iter().enumerate().find_map(|(at, pack)| Some((at, pack.find(content)?)))
    }

    /// Hands out the bytes at a place in pieces.
    pub fn read<E: From<io::Error>>(
        &mut self,
        (pack, place): (usize, Place),
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut at, end) = (place.offset, place.offset + place.length);
        while at < end {
            let (in_pack, from) = self.start;
            let is_here = in_pack == pack && from <= at && at < from + self.window.len() as u64;
            if !is_here {
                self.fill(pack, at)?;
            }
            let skip = usize::try_from(at - self.start.1).unwrap_or(usize::MAX);
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            let piece = &self.window[skip..self.window.len().min(skip.saturating_add(left))];
            each(piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// True when what is read there need not be hashed.
    pub(crate) fn is_just_written(&self, pack: usize) -> bool {
        self.packs[pack].is_just_written()
    }

    fn fill(&mut self, pack: usize, at: u64) -> io::Result<()> {
        // Contents end before the index, which is inside the file: the last window is cut there.
        let end = MAGIC.len() as u64 + self.packs[pack].bytes();
        let length = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX).min(BUFFER_BYTES);
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.window.resize(length, 0);
        self.start = (pack, at);
        let read = self.packs[pack].read_at(&mut self.window, at);
        if read.is_err() {
            self.window.clear();
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack_of(contents: &[&[u8]]) -> File {
        let file = tempfile::tempfile().unwrap();
        let mut writer = PackWriter::new(file.try_clone().unwrap()).unwrap();
        for content in contents {
            let digest = ContentDigest::of(content);
            if !writer.has(&digest) {
                writer.write(content).unwrap();
            }
            writer.end(digest, content.len() as u64);
        }
        writer.finish().unwrap();
        reopened(&file)
    }

    fn reopened(file: &File) -> File {
        use std::io::Seek;
        let mut file = file.try_clone().unwrap();
        file.rewind().unwrap();
        file
    }

    fn read(reader: &mut PackReader<'_>, content: &[u8]) -> Vec<u8> {
        let found = reader.find(&ContentDigest::of(content)).unwrap();
        let mut bytes = Vec::new();
        reader
            .read(found, |piece| {
                bytes.extend_from_slice(piece);
                Ok::<_, io::Error>(())
            })
            .unwrap();
        bytes
    }

    #[test]
    fn contents_come_back_from_whichever_pack_has_them_and_equal_ones_are_kept_once() {
        let large = b"0123456789".repeat(BUFFER_BYTES / 4);
        let contents: [&[u8]; 5] = [b"a", b"", &large, b"b", b"a"];
        let packs = [Pack::open(pack_of(&contents)).unwrap(), Pack::open(pack_of(&[b"c", b"b"])).unwrap()];
        assert_eq!((packs[0].len(), packs[0].bytes()), (4, 2 + large.len() as u64));
        let mut reader = PackReader::new(&packs);
        for content in [b"c".as_slice(), b"a", &large, b"b", b"", &large, b"c"] {
            assert!(read(&mut reader, content) == content);
        }
        assert_eq!(reader.find(&ContentDigest::of(b"not there")), None);
        assert_eq!(Pack::open(pack_of(&[])).unwrap().len(), 0);
    }

    #[test]
    fn an_index_of_several_pieces_is_whole_and_each_content_is_kept_once() {
        let contents: Vec<[u8; 4]> = (0..2 * ENTRIES_AT_ONCE as u32 + 7).map(u32::to_le_bytes).collect();
        let twice: Vec<&[u8]> = contents.iter().chain(&contents).map(|content| &content[..]).collect();
        let packs = [Pack::open(pack_of(&twice)).unwrap()];
        assert_eq!((packs[0].len(), packs[0].bytes()), (contents.len(), 4 * contents.len() as u64));
        assert!(packs[0].verify().unwrap());
        let mut reader = PackReader::new(&packs);
        assert!(contents.iter().all(|content| read(&mut reader, content) == content));
    }

    #[test]
    fn a_changed_byte_outside_of_the_contents_and_every_cut_are_noticed() {
        let whole = pack_of(&[b"first", b"second"]);
        let mut bytes = Vec::new();
        reopened(&whole).read_to_end(&mut bytes).unwrap();
        let contents = MAGIC.len()..MAGIC.len() + 11;
        for at in (0..bytes.len()).filter(|at| !contents.contains(at)) {
            let file = tempfile::tempfile().unwrap();
            bytes[at] ^= 1;
            file.write_all_at(&bytes, 0).unwrap();
            bytes[at] ^= 1;
            assert!(matches!(Pack::open(file), Err(PackError::Damaged(_))), "byte {at}");
        }
        for length in 0..bytes.len() {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&bytes[..length], 0).unwrap();
            assert!(Pack::open(file).is_err(), "length {length}");
        }
    }
}
