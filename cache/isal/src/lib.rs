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
/// A stored block of one byte that is not the last block, without that byte.
const STORED_BYTE: [u8; 5] = [0, 1, 0, 0xfe, 0xff];

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

/// Compresses blocks that join on byte boundaries.
pub struct Deflater {
    /// Initialised anew for each block; kept because it is large.
    stream: Box<MaybeUninit<isal::isal_zstream>>,
    level_buffer: Vec<u8>,
    has_window: bool,
}

impl Default for Deflater {
    fn default() -> Self {
        Self {
            stream: Box::new(MaybeUninit::zeroed()),
            level_buffer: vec![0; LEVEL_BYTES as usize],
            has_window: false,
        }
    }
}

impl Deflater {
    /// Begins a block. `dictionary` is what comes before it in the stream, of which the last 32 KiB count.
    pub fn start(&mut self, dictionary: &[u8]) -> Result<(), Refused> {
        let dictionary_bytes = length(dictionary.len())?;
        // SAFETY: the pointer is to memory of the right size and alignment; the function only writes to it.
        unsafe { isal::isal_deflate_init(self.stream.as_mut_ptr()) };
        self.has_window = !dictionary.is_empty();
        let level_buffer = self.level_buffer.as_mut_ptr();
        let stream = self.stream();
        stream.level = LEVEL;
        stream.level_buf = level_buffer;
        stream.level_buf_size = LEVEL_BYTES;
        stream.flush = isal::SYNC_FLUSH as u16;
        // SAFETY: the stream was just initialised; the library copies from the dictionary, which has that length, and
        // does not write through the pointer.
        let code =
            unsafe { isal::isal_deflate_set_dict(stream, dictionary.as_ptr().cast_mut(), dictionary_bytes) };
        if code == 0 { Ok(()) } else { Err(Refused::Code(code)) }
    }

    /// Puts raw deflate of the block's next bytes after what is in `out`: nothing final, ended by a flush. What follows
    /// refers to them.
    ///
    /// The result depends on these, on what was pushed since the start, and on the dictionary alone. For that nothing may
    /// begin without history: the library's code for the first byte then hashes a register that nobody has set
    /// (`write_first_byte` in `igzip_icf_body_h1_gr_bt.asm`, tmp2), and where matches are found depends on what was in
    /// it. The first byte of a stream is stored instead.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Refused> {
        let bytes = match bytes {
            [first, rest @ ..] if !self.has_window => {
                self.start(std::slice::from_ref(first))?;
                out.extend_from_slice(&STORED_BYTE);
                out.push(*first);
                rest
            }
            _ => bytes,
        };
        if bytes.is_empty() {
            return Ok(());
        }
        let avail_in = length(bytes.len())?;
        let stream = self.stream();
        // The library does not write through `next_in`.
        stream.next_in = bytes.as_ptr().cast_mut();
        stream.avail_in = avail_in;
        // Enough for what does not compress; not zeroed, that costs a tenth of the compression.
        let mut room = bytes.len() + bytes.len() / 64 + 1024;
        loop {
            out.reserve(room);
            let avail_out = length(room)?;
            stream.next_out = out.spare_capacity_mut().as_mut_ptr().cast();
            stream.avail_out = avail_out;
            // SAFETY: `start` has initialised the stream (`has_window` says so), each of its three buffers is as long
            // as the stream says, is borrowed by this function or owned by this type, and is used by nothing else
            // during the call. Of earlier calls' buffers the library has kept copies, not pointers.
            let code = unsafe { isal::isal_deflate(stream) };
            if code != 0 {
                return Err(Refused::Code(code));
            }
            let written = (avail_out - stream.avail_out) as usize;
            // SAFETY: the library has written that many bytes after the vector's, and no more than `room`, for which
            // there is capacity.
            unsafe { out.set_len(out.len() + written) };
            // Room left over means the flush is complete.
            if stream.avail_in == 0 && stream.avail_out > 0 {
                return Ok(());
            }
            room = bytes.len() / 4 + 1024;
        }
    }

    fn stream(&mut self) -> &mut isal::isal_zstream {
        // SAFETY: it was all zeroes when it was made, which every field allows (integers, arrays of them, pointers),
        // and has only been written to as that type since, by the library and by this type.
        unsafe { self.stream.assume_init_mut() }
    }
}

fn length(bytes: usize) -> Result<u32, Refused> {
    u32::try_from(bytes).map_err(|_| Refused::Length(bytes))
}
