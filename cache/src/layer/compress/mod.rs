//! From tar bytes to a blob: both digests and the compressed form in one pass.
//!
//! ```text
//!  source ─▶ block ─▶ SHA-256 (DiffId) ─▶ deflate on any worker + CRC ─▶ in order: SHA-256 (Digest) ─▶ sink
//! ```
//!
//! Equal input and equal [`Compression`] give equal bytes for any number of threads. The bytes also depend on the
//! engine and the block size, so [`Compression::params`] names everything that matters, with a version.

mod budget;
mod deflate;
#[cfg(feature = "isal")]
mod fast;
mod frame;
mod gzip;
#[cfg(feature = "isal")]
mod literals;
mod plain;

use std::io::{self, Write};

use rbuild_oci::{DiffId, Digest, Sha256};

use super::marks::{Marks, Start, TarPlace};

/// How a layer blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// The tar itself.
    None,
    /// One gzip member.
    Gzip(Gzip),
    /// Zstandard.
    Zstd {
        /// 1 (fast) to 19 (small); others are brought into that range.
        level: i32,
    },
}

/// The engine of gzip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gzip {
    /// ISA-L, and codes for single bytes where matches do not pay: four times as fast as the other, for a twelfth more
    /// bytes.
    #[cfg(feature = "isal")]
    Fast,
    /// zlib-rs, which every build of rbuild has: 1 (fast) to 9 (small); others are brought into that range.
    Level(u32),
}

/// What layers are compressed with unless the user says otherwise. Changing it moves every digest: one per release.
#[cfg(feature = "isal")]
pub const DEFAULT_GZIP: Compression = Compression::Gzip(Gzip::Fast);

/// What layers are compressed with unless the user says otherwise. Changing it moves every digest: one per release.
#[cfg(not(feature = "isal"))]
pub const DEFAULT_GZIP: Compression = Compression::Gzip(Gzip::Level(4));

/// The default when zstd is asked for.
pub const DEFAULT_ZSTD: Compression = Compression::Zstd { level: 3 };

/// Raised whenever the same parameters give other bytes: another engine or release of it, another block size, or another
/// rule for what is tried (gzip 2: codes for single bytes; zstd 2: jobs of 1 MiB, and small tables).
#[cfg(feature = "isal")]
const FAST_VERSION: u32 = 2;
const GZIP_VERSION: u32 = 1;
const ZSTD_VERSION: u32 = 2;

impl Compression {
    /// Names everything the bytes depend on: a key for «this layer compressed like that has this digest».
    pub fn params(&self) -> String {
        match self.in_range() {
            Self::None => "none".to_owned(),
            Self::Gzip(engine) => {
                let engine = match engine {
                    // Other architectures have other code in it, of which nobody has shown that it gives the same.
                    #[cfg(feature = "isal")]
                    Gzip::Fast => {
                        format!("{FAST_VERSION}/{}/{}", rbuild_isal::VERSION, std::env::consts::ARCH)
                    }
                    Gzip::Level(level) => format!("{GZIP_VERSION}/zlib-rs/level={level}"),
                };
                format!("gzip/{engine}/block={}", gzip::BLOCK_BYTES)
            }
            Self::Zstd { level } => format!("zstd/{ZSTD_VERSION}/level={level}/mt"),
        }
    }

    fn in_range(self) -> Self {
        match self {
            Self::None => Self::None,
            Self::Gzip(Gzip::Level(level)) => Self::Gzip(Gzip::Level(level.clamp(1, 9))),
            #[cfg(feature = "isal")]
            Self::Gzip(Gzip::Fast) => self,
            Self::Zstd { level } => Self::Zstd { level: level.clamp(1, 19) },
        }
    }
}

/// What came out of [`encode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoded {
    /// SHA-256 of the tar.
    pub diff_id: DiffId,
    /// SHA-256 of the blob; equals `diff_id`'s bytes without compression.
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// Bytes of the tar.
    pub uncompressed: u64,
}

/// Why a blob was not written. What the sink got so far is to be thrown away.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError<E: std::error::Error + 'static> {
    /// The source of the tar failed.
    #[error(transparent)]
    Source(E),
    /// Writing the blob failed.
    #[error("write the compressed layer")]
    Sink(#[source] io::Error),
    /// The compressor failed: memory, or a defect in it.
    #[error("compress the layer")]
    Compressor(#[source] io::Error),
}

/// Threads and memory of one encode, of which there are so many for the whole process.
pub struct EncodeShare {
    compression: Compression,
    taken: budget::Share<'static>,
}

impl EncodeShare {
    /// For an archive of about `bytes` (`u64::MAX`: nobody knows). Waits for other encodes to end where nothing is free: who
    /// waits must have no share, and nothing that an encode waits for. `gives_way` says that the encode runs on threads that
    /// give way to the steps of a build.
    pub fn wait(compression: Compression, bytes: u64, gives_way: bool) -> Self {
        Self { compression, taken: budget::share(compression.in_range(), bytes, gives_way) }
    }

    /// For a step, which waits for the encodes of others alone that do not give way: `None` when those that do have what it needs.
    pub fn of_step(compression: Compression, bytes: u64) -> Option<Self> {
        Some(Self { compression, taken: budget::share_of_step(compression.in_range(), bytes)? })
    }
}

/// Compresses what `source` writes into `sink`. Neither of the two may take a share, or wait for who does.
///
/// `source` and `sink` run on the calling thread. For the DiffId alone there is [`hash_from`].
pub fn encode<E: std::error::Error + 'static>(
    source: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    share: EncodeShare,
    sink: &mut dyn Write,
) -> Result<Encoded, EncodeError<E>> {
    encode_on(share.taken.threads, source, share.compression, sink)
}

/// [`encode`] on so many threads (at least 1), besides the calling one when above 1, without asking whether they are free:
/// to measure it, and to show that the bytes are the same. One is for hashing where nothing is compressed.
pub fn encode_on<E: std::error::Error + 'static>(
    threads: usize,
    source: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    compression: Compression,
    sink: &mut dyn Write,
) -> Result<Encoded, EncodeError<E>> {
    let mut sink = Sink { out: sink, digest: Sha256::new(), size: 0, error: None };
    let (diff_id, uncompressed) = match compression.in_range() {
        Compression::None => {
            plain::encode(source, &mut sink, plain::TarHash::new(Start::default()), threads.max(1)).map(
                |((), tar)| {
                    sink.digest = tar.hash.clone();
                    (DiffId(tar.hash.finish()), tar.at)
                },
            )
        }
        Compression::Gzip(engine) => gzip::encode(source, engine, &mut sink, threads.max(1)),
        Compression::Zstd { level } => frame::encode(source, level, &mut sink, threads.max(1)),
    }
    .map_err(|failure| failure.at(&mut sink))?;
    Ok(Encoded { diff_id, digest: sink.digest.finish(), size: sink.size, uncompressed })
}

/// What came out of [`hash_from`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hashed {
    /// SHA-256 of the whole tar.
    pub diff_id: DiffId,
    /// Bytes of it.
    pub size: u64,
    /// Marks of it.
    pub marks: Marks,
}

/// The DiffId of an archive of which `source` writes what comes after `marks`, and the marks of all of it. `source` tells
/// the places of the new ones, as [`emit_from`](crate::layer::emit_from) does. Threads as for [`encode_on`].
pub fn hash_from<E: std::error::Error + 'static>(
    mut marks: Marks,
    source: impl FnOnce(&Start, &mut dyn Write) -> Result<Vec<TarPlace>, E>,
    threads: usize,
) -> Result<Hashed, EncodeError<E>> {
    let start = marks.start();
    let mut sink = Sink { out: &mut io::sink(), digest: Sha256::new(), size: 0, error: None };
    let hash = plain::TarHash::new(start.clone());
    let (places, tar) = plain::encode(|out| source(&start, out), &mut sink, hash, threads.max(1))
        .map_err(|failure| failure.at(&mut sink))?;
    marks.extend(places, tar.states);
    Ok(Hashed { diff_id: DiffId(tar.hash.finish()), size: tar.at, marks })
}

/// Who failed, as seen where it happened; a failing sink is remembered in [`Sink`] besides.
enum Failure<E> {
    Source(E),
    Compressor(io::Error),
}

impl<E: std::error::Error + 'static> Failure<E> {
    fn at(self, sink: &mut Sink<'_>) -> EncodeError<E> {
        match (sink.error.take(), self) {
            // The source only saw its writer fail; the cause is here.
            (Some(error), _) => EncodeError::Sink(error),
            (None, Self::Source(error)) => EncodeError::Source(error),
            (None, Self::Compressor(error)) => EncodeError::Compressor(error),
        }
    }
}

/// Hashes and counts the blob on its way out.
struct Sink<'out> {
    out: &'out mut dyn Write,
    digest: Sha256,
    size: u64,
    error: Option<io::Error>,
}

impl Sink<'_> {
    /// Writes without hashing.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.out.write_all(bytes) {
            let kind = error.kind();
            self.error.get_or_insert(error);
            return Err(kind.into());
        }
        self.size += bytes.len() as u64;
        Ok(())
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes)?;
        self.digest.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hashes and counts the tar on its way into `to`.
struct TarHash<W> {
    to: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for TarHash<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to.write_all(bytes)?;
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn hash_source<E>(
    source: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    to: impl Write,
) -> Result<(DiffId, u64), Failure<E>> {
    let mut tar = TarHash { to, hash: Sha256::new(), size: 0 };
    source(&mut tar).map_err(Failure::Source)?;
    Ok((DiffId(tar.hash.finish()), tar.size))
}

#[cfg(test)]
mod tests;
