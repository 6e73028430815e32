//! Lists as bytes: in memory while they are short, else in a file that is read through a window.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::layer::{CUT_OFF, FieldReader};
use crate::scratch::Scratch;

/// Bytes that are held in memory before they go to a file.
#[cfg(not(test))]
const HELD_BYTES: usize = 256 << 10;
#[cfg(test)]
const HELD_BYTES: usize = 2 << 10;

/// Bytes of a file that are read into memory rather than looked up there: a stack has a list for each of its layers.
const READ_BYTES: u64 = HELD_BYTES as u64 / 4;

/// Bytes written at once.
const WRITTEN_BYTES: usize = HELD_BYTES / 4;

/// Bytes read ahead for all entries, and for the one that is looked for.
pub(crate) const ALL_AHEAD: usize = 64 << 10;
pub(crate) const ONE_AHEAD: usize = 4 << 10;

/// Encoded entries. Places among them are counted from where the file begins, or the memory.
#[derive(Default)]
pub(crate) struct Encoded {
    /// Where the first entry is.
    pub(crate) start: u64,
    file: Option<Part>,
    /// What follows what is in the file.
    bytes: Vec<u8>,
    /// Where the file is made.
    scratch: Option<Scratch>,
}

/// A part of a file.
struct Part {
    file: File,
    from: u64,
    len: u64,
}

impl Encoded {
    pub(crate) fn new(scratch: Scratch) -> Self {
        Self { scratch: Some(scratch), ..Self::default() }
    }

    /// Nothing, but the first entry will be at `start`.
    pub(crate) fn of_start(start: u64) -> Self {
        Self { start, ..Self::default() }
    }

    /// What a file has, `len` bytes from `from` on; in memory when that is little.
    pub(crate) fn read(file: File, from: u64, len: u64) -> io::Result<Self> {
        if len > READ_BYTES {
            return Ok(Self { file: Some(Part { file, from, len }), ..Self::default() });
        }
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, from)?;
        Ok(Self { bytes, ..Self::default() })
    }

    /// Where the next entry will be.
    pub(crate) fn end(&self) -> u64 {
        self.file.as_ref().map_or(0, |part| part.len) + self.bytes.len() as u64
    }

    /// Bytes of all entries.
    pub(crate) fn len(&self) -> u64 {
        self.end() - self.start
    }

    /// Appends what `put` does.
    pub(crate) fn append(&mut self, put: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        put(&mut self.bytes);
        let limit = if self.file.is_some() { WRITTEN_BYTES } else { HELD_BYTES };
        match &self.scratch {
            Some(scratch) if self.bytes.len() > limit => {
                if self.file.is_none() {
                    self.file = Some(Part { file: scratch.file()?, from: 0, len: 0 });
                }
                self.write_out()
            }
            _ => Ok(()),
        }
    }

    fn write_out(&mut self) -> io::Result<()> {
        let Some(Part { file, from, len }) = &mut self.file else { return Ok(()) };
        file.write_all_at(&self.bytes, *from + *len)?;
        *len += self.bytes.len() as u64;
        self.bytes.clear();
        self.bytes.shrink_to(WRITTEN_BYTES);
        Ok(())
    }

    /// So many bytes at a place, which were appended at once.
    pub(crate) fn bytes_at(&self, at: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len);
        self.append_to(&mut bytes, at, len)?;
        // All of them are in the file, or none.
        if bytes.len() < len { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
    }

    /// Memory that they take.
    #[cfg(test)]
    pub(crate) fn held_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// Reads from a place on, `ahead` bytes at once.
    pub(crate) fn read_from(&self, at: u64, ahead: usize) -> Input<'_> {
        let (window, window_at) = match self.file {
            // All of them.
            None => (Cow::Borrowed(&self.bytes[..]), 0),
            Some(_) => (Cow::Owned(Vec::new()), at),
        };
        let skipped = usize::try_from(at - window_at).unwrap_or(usize::MAX).min(window.len());
        Input { encoded: self, window, window_at, at: skipped, ahead }
    }

    /// Hands out the bytes of all entries in pieces.
    pub(crate) fn for_each_piece(&self, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut input = self.read_from(self.start, WRITTEN_BYTES);
        loop {
            take(&input.window[input.at..])?;
            input.at = input.window.len();
            if !input.read_more()? {
                return Ok(());
            }
        }
    }

    /// Up to `most` bytes at a place, appended to `to`.
    fn append_to(&self, to: &mut Vec<u8>, at: u64, most: usize) -> io::Result<()> {
        let in_file = self.file.as_ref().filter(|part| at < part.len);
        let Some(Part { file, from, len }) = in_file else {
            let skipped = at - self.file.as_ref().map_or(0, |part| part.len);
            let rest = self.bytes.get(usize::try_from(skipped).unwrap_or(usize::MAX)..).unwrap_or_default();
            to.extend_from_slice(&rest[..rest.len().min(most)]);
            return Ok(());
        };
        let before = to.len();
        let count = usize::try_from(len - at).unwrap_or(usize::MAX).min(most);
        to.resize(before + count, 0);
        file.read_exact_at(&mut to[before..], from + at)
    }
}

/// Why an entry was not read.
pub(crate) enum ReadError {
    /// The file cannot be read.
    Io(io::Error),
    /// It is no entry, for this reason.
    Malformed(&'static str),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(error) => error,
            // What was checked when it was opened, or written here, is something else now.
            ReadError::Malformed(what) => Self::new(io::ErrorKind::InvalidData, what),
        }
    }
}

/// Reads encoded entries, as many of them at once as are ahead.
pub(crate) struct Input<'a> {
    encoded: &'a Encoded,
    /// Some of the bytes, or all.
    window: Cow<'a, [u8]>,
    /// Where they begin.
    window_at: u64,
    /// Where it goes on in them.
    at: usize,
    ahead: usize,
}

impl Input<'_> {
    /// Where it goes on.
    pub(crate) fn at(&self) -> u64 {
        self.window_at + self.at as u64
    }

    /// What `read` reads; it is called again, with more, when it came to the end. It has changed nothing then.
    pub(crate) fn read<T>(
        &mut self,
        mut read: impl FnMut(&mut FieldReader<'_>) -> Result<T, &'static str>,
    ) -> Result<T, ReadError> {
        loop {
            let mut reader = FieldReader::new(&self.window, self.at);
            match read(&mut reader) {
                Ok(value) => {
                    self.at = reader.at();
                    return Ok(value);
                }
                Err(CUT_OFF) if self.read_more()? => {}
                Err(what) => return Err(ReadError::Malformed(what)),
            }
        }
    }

    /// False when there is no more.
    fn read_more(&mut self) -> io::Result<bool> {
        let next = self.window_at + self.window.len() as u64;
        if next >= self.encoded.end() {
            return Ok(false);
        }
        // Only what is in a file has more than its window.
        let window = self.window.to_mut();
        window.drain(..self.at);
        self.window_at += std::mem::take(&mut self.at) as u64;
        // An entry larger than what is read at once is read in steps that double.
        let most = self.ahead.max(window.len());
        self.encoded.append_to(window, next, most)?;
        Ok(true)
    }
}
