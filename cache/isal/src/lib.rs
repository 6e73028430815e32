//! Intel's ISA-L as a deflate engine: one safe type over its C interface.
//!
//! The library is built from source (`isal-sys`) and linked statically. It only ever compresses here: what other
//! people's archives hold is inflated by safe code. Level 2 alone is offered: level 3's bytes depend on the CPU, level
//! 2's are equal on all tiers of x86-64.

use std::mem::MaybeUninit;

use isal_sys::igzip_lib as isal;

/// What the bytes depend on: the library's release and the level.
pub const VERSION: &str = "isa-l-2.31/level=2";

const LEVEL: u32 = 2;
/// Working memory that the library suggests for the level.
const LEVEL_BYTES: u32 = isal::ISAL_DEF_LVL2_LARGE;
/// What does not compress is stored in blocks of this size, each with a header of five bytes.
const STORED_BYTES_MAX: usize = 65_535;

/// The library refused, which it does only for arguments that it cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Its lengths have 32 bits.
    #[error("{0} bytes are too many for one block")]
    Length(usize),
    /// Its own code.
    #[error("ISA-L refused to compress: code {0}")]
    Code(i32),
}

/// Compresses blocks that join on byte boundaries, each for itself.
pub struct Deflater {
    /// Initialised anew for each block; kept because it is large.
    stream: Box<MaybeUninit<isal::isal_zstream>>,
    level_buffer: Vec<u8>,
}

impl Default for Deflater {
    fn default() -> Self {
        Self { stream: Box::new(MaybeUninit::zeroed()), level_buffer: vec![0; LEVEL_BYTES as usize] }
    }
}

impl Deflater {
    /// Puts raw deflate of `bytes` into `out`, in place of what is there: no final block, ended by a full flush. The
    /// same bytes whatever was compressed before.
    pub fn deflate(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Refused> {
        let room = bytes.len() + (bytes.len() / STORED_BYTES_MAX + 2) * 5 + 64;
        let length = |bytes| u32::try_from(bytes).map_err(|_| Refused::Length(bytes));
        let (avail_in, avail_out) = (length(bytes.len())?, length(room)?);
        out.clear();
        // Not zeroed: that costs a tenth of the compression.
        out.reserve(room);
        // SAFETY: the pointer is to memory of the right size and alignment; the function only writes to it.
        unsafe { isal::isal_deflate_stateless_init(self.stream.as_mut_ptr()) };
        // SAFETY: it was all zeroes when it was made, which every field allows (integers, arrays of them, pointers),
        // and has only been written to as that type since, by the library and below.
        let stream = unsafe { self.stream.assume_init_mut() };
        // The library does not write through `next_in`.
        stream.next_in = bytes.as_ptr().cast_mut();
        stream.avail_in = avail_in;
        stream.next_out = out.as_mut_ptr();
        stream.avail_out = avail_out;
        stream.level = LEVEL;
        stream.level_buf = self.level_buffer.as_mut_ptr();
        stream.level_buf_size = LEVEL_BYTES;
        stream.flush = isal::FULL_FLUSH as u16;
        // SAFETY: the stream is initialised, and each of its three buffers is as long as the stream says, is borrowed
        // by this function, and is used by nothing else during the call.
        let code = unsafe { isal::isal_deflate_stateless(stream) };
        if code != 0 || stream.avail_in != 0 {
            return Err(Refused::Code(code));
        }
        // SAFETY: the library has written that many bytes from the buffer's start, and no more than `room`, which is
        // its capacity at least.
        unsafe { out.set_len(stream.total_out as usize) };
        Ok(())
    }
}
