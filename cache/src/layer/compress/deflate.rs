//! One thread's deflate engine.

use std::io;

use flate2::{Compress, FlushCompress, Status};

use super::Gzip;
#[cfg(feature = "isal")]
use super::fast::Fast;

/// Compresses blocks that join on byte boundaries. Kept between blocks.
pub(super) enum Deflater {
    #[cfg(feature = "isal")]
    Fast(Fast),
    Portable(Compress),
}

impl Deflater {
    pub(super) fn new(engine: Gzip) -> Self {
        match engine {
            #[cfg(feature = "isal")]
            Gzip::Fast => Self::Fast(Fast::default()),
            Gzip::Level(level) => Self::Portable(Compress::new(flate2::Compression::new(level), false)),
        }
    }

    /// Puts `bytes` into `out`, in place of what is there: no final block, ended by a flush.
    pub(super) fn deflate(&mut self, bytes: &[u8], dictionary: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        out.clear();
        match self {
            #[cfg(feature = "isal")]
            Self::Fast(fast) => fast.deflate(bytes, dictionary, out),
            Self::Portable(compress) => portable(compress, bytes, dictionary, out),
        }
    }
}

fn portable(compress: &mut Compress, bytes: &[u8], dictionary: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    compress.reset();
    if !dictionary.is_empty() {
        compress.set_dictionary(dictionary).map_err(io::Error::from)?;
    }
    out.reserve(bytes.len() / 2 + 1024);
    loop {
        let taken = usize::try_from(compress.total_in()).map_err(io::Error::other)?;
        let status = compress.compress_vec(&bytes[taken..], out, FlushCompress::Sync)?;
        // Room left over means the flush is complete.
        if matches!(status, Status::Ok | Status::BufError) && out.len() < out.capacity() {
            return Ok(());
        }
        out.reserve(bytes.len() / 4 + 1024);
    }
}
