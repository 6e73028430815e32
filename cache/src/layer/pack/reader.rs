//! Reading contents out of packs.

use std::io;

use super::{BUFFER_BYTES, MAGIC, Pack, Place};
use crate::tree::ContentDigest;

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

    /// The first pack that has a content, and where in it; an error when one before it cannot say.
    pub fn find(&self, content: &ContentDigest) -> io::Result<Option<(usize, Place)>> {
        for (at, pack) in self.packs.iter().enumerate() {
            if let Some(place) = pack.find(content)? {
                return Ok(Some((at, place)));
            }
        }
        Ok(None)
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
