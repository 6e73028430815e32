//! The fast engine: ISA-L, and codes for single bytes where matches do not pay.
//!
//! Whether they pay is tried on the bytes themselves: the beginning of a block is compressed with matches, and is kept. Only
//! if codes alone would have made it no larger, the rest is tried piece by piece, each at its own beginning. Contents
//! that compress well pay for the question with one count of a sixteenth of their bytes.

use std::io;

use super::literals::Literals;

/// Of a block, and what deflate looks back: the rest of the block needs no other window.
const FIRST_TRIED: usize = 32 << 10;

/// What is decided at once, after the beginning of the block: half of what is left of a full one.
const PIECE: usize = 240 << 10;

/// Of each such piece.
const TRIED: usize = 8 << 10;

/// What the engine wants to have left in a buffer each time it is called, all times together.
const ROOM: usize = 16 << 10;

#[derive(Default)]
pub(super) struct Fast {
    matches: rbuild_isal::Deflater,
}

impl Fast {
    /// Puts `bytes` after what is in `out`: no final block, ended by a flush.
    pub(super) fn deflate(&mut self, bytes: &[u8], dictionary: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        // At once, and for all that follows even if nothing compresses: a buffer that grows bit by bit ends up twice as large.
        out.reserve_exact(bytes.len() + bytes.len() / 64 + ROOM);
        self.matches.start(dictionary).map_err(io::Error::other)?;
        let (tried, rest) = bytes.split_at(bytes.len().min(FIRST_TRIED));
        if self.matches_pay(tried, out)? {
            return self.push(rest, out);
        }
        for at in (0..rest.len()).step_by(PIECE) {
            let piece = &rest[at..rest.len().min(at + PIECE)];
            // What came before it is part of the block: the first piece follows what was tried.
            let before = &bytes[..tried.len() + at];
            self.matches.start(&before[before.len() - FIRST_TRIED..]).map_err(io::Error::other)?;
            let (tried, rest) = piece.split_at(piece.len().min(TRIED));
            let literals = if self.matches_pay(tried, out)? { None } else { Some(Literals::of(rest)) };
            match literals {
                // Else it is as good as noise, which the other leaves as it is.
                Some(literals) if literals.size() < rest.len() => literals.encode(rest, out),
                _ => self.push(rest, out)?,
            }
        }
        Ok(())
    }

    /// Compresses these bytes and says whether codes for single bytes would have made them no smaller.
    fn matches_pay(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> io::Result<bool> {
        let from = out.len();
        self.push(bytes, out)?;
        Ok(out.len() - from < Literals::of(bytes).size())
    }

    fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        self.matches.push(bytes, out).map_err(io::Error::other)
    }
}
