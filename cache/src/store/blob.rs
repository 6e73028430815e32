//! Immutable OCI blobs by SHA-256.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};

use rbuild_oci::{DiffId, Digest, Sha256};
use rusqlite::{Connection, OptionalExtension, Transaction};
use rustix::fs::{AtFlags, Mode, OFlags};

use super::db::mark::BootId;
use super::db::{DbError, now_unix_ns, seal};
use super::error::{IoContext, StoreError};
use super::lease::Lease;
use super::writeback::Growing;
use super::{Store, layout, readers};

/// Writes gathered before they reach the file; a caller that writes in larger pieces bypasses the buffer.
const WRITE_BUFFER_BYTES: usize = 64 * 1024;
/// Piece size when a blob is hashed again.
const READ_BUFFER_BYTES: usize = 256 * 1024;

/// Compression parameters of an encoding that came from elsewhere. Such a blob cannot be made again from its layer's
/// directory: as long as the layer stays, so does the blob.
pub const PULLED: &str = "pulled";

/// A stored blob, open for reading at its start.
#[derive(Debug)]
pub struct Blob {
    /// Length in bytes.
    pub size: u64,
    /// The bytes.
    pub file: File,
}

/// Receives a blob's bytes; nothing is visible before [`BlobWriter::commit`]. Dropped uncommitted, the bytes stay
/// in the lease's work directory until the lease ends.
#[derive(Debug)]
pub struct BlobWriter {
    blob: UnhashedBlob,
    hash: Sha256,
}

/// Receives the bytes of a blob from somebody who hashes them anyway.
#[derive(Debug)]
pub struct UnhashedBlob {
    store: Store,
    _lease: Lease,
    temp: String,
    file: BufWriter<Growing>,
    size: u64,
}

impl Write for UnhashedBlob {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl UnhashedBlob {
    /// Bytes received so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many of them are in the file already.
    pub fn bytes_in_file(&self) -> u64 {
        self.size - self.file.buffer().len() as u64
    }

    /// The file for reading along, at its start. It stays the same when the blob is published.
    pub fn reader(&self) -> Result<File, StoreError> {
        Ok(File::from(self.store.inner.layout.open(&self.temp, OFlags::RDONLY)?))
    }

    /// Publishes the blob. `digest` is that of all bytes that were written, computed by the caller: the store takes its
    /// word for it. A blob that is there already is kept.
    pub fn commit_as(self, digest: Digest) -> Result<(), StoreError> {
        let layout = &self.store.inner.layout;
        let temp_path = layout.path(&self.temp);
        let file =
            self.file.into_inner().map_err(io::IntoInnerError::into_error).doing("write", &temp_path)?;
        rustix::fs::fchmod(file.into_file(), Mode::RUSR).doing("change the mode of", &temp_path)?;
        self.store.publish_blob(&self.temp, digest, self.size)
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.blob.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.blob.flush()
    }
}

impl BlobWriter {
    /// Bytes received so far.
    pub fn size(&self) -> u64 {
        self.blob.size
    }

    /// Publishes the blob under the digest of what was written. With `expected`, other bytes are refused
    /// ([`StoreError::DigestMismatch`]) and discarded. A blob that is there already is kept.
    pub fn commit(self, expected: Option<Digest>) -> Result<Digest, StoreError> {
        let digest = self.hash.finish();
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            // Frees the space early; the lease would do it anyway.
            let layout = &self.blob.store.inner.layout;
            let _ = rustix::fs::unlinkat(layout.fd(), &self.blob.temp, AtFlags::empty());
            return Err(StoreError::DigestMismatch { expected, actual: digest });
        }
        self.blob.commit_as(digest)?;
        Ok(digest)
    }
}

impl Store {
    /// Starts receiving a blob.
    pub fn ingest(&self, lease: &Lease) -> Result<BlobWriter, StoreError> {
        Ok(BlobWriter { blob: self.ingest_unhashed(lease)?, hash: Sha256::new() })
    }

    /// The same for bytes that the caller hashes.
    pub fn ingest_unhashed(&self, lease: &Lease) -> Result<UnhashedBlob, StoreError> {
        let temp = lease.next_path();
        let fd = self.inner.layout.open(&temp, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
        let growing = Growing::new(fd.into(), self.clone());
        let file = BufWriter::with_capacity(WRITE_BUFFER_BYTES, growing);
        Ok(UnhashedBlob { store: self.clone(), _lease: lease.clone(), temp, file, size: 0 })
    }

    /// An empty file on the store's disk for what is gone before the build ends: it has no name, lives as long as somebody
    /// has it open, and nothing of it is written back early.
    pub fn nameless_file(&self, lease: &Lease) -> Result<File, StoreError> {
        let layout = &self.inner.layout;
        let temp = lease.next_path();
        let fd = layout.open(&temp, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
        rustix::fs::unlinkat(layout.fd(), &temp, AtFlags::empty()).doing("remove", &layout.path(&temp))?;
        Ok(fd.into())
    }

    /// Opens a blob. `None` when it was never stored, is gone, or does not hold its bytes any more: storing it
    /// again then replaces the file. The size is checked always, the digest when the file was touched since it was
    /// stored.
    pub fn blob(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        let boot = self.boot()?;
        let row = self
            .inner
            .index
            .read("look up a blob", |connection| row(connection, digest, boot, self.generation()))?;
        match row {
            Some(row) => self.open_blob(digest, row),
            None => Ok(None),
        }
    }

    /// Stores a blob held in memory. Writes nothing when it is there.
    pub fn put_blob(&self, lease: &Lease, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if self.blob(&digest)?.is_some_and(|blob| blob.size == bytes.len() as u64) {
            return Ok(digest);
        }
        let mut writer = self.ingest(lease)?;
        writer.write_all(bytes).doing("write", &self.inner.layout.path(&writer.blob.temp))?;
        writer.commit(Some(digest))
    }

    /// Reads a small blob (a manifest or a config) whole, hashing it every time: these decide things. `None` as for
    /// [`Store::blob`], and for one over `limit_bytes`.
    pub fn blob_bytes(&self, digest: &Digest, limit_bytes: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(blob) = self.blob(digest)?.filter(|blob| blob.size <= limit_bytes) else { return Ok(None) };
        let mut bytes = Vec::with_capacity(usize::try_from(blob.size).unwrap_or(0) + 1);
        let path = self.inner.layout.path(&layout::blob(digest));
        blob.file.take(limit_bytes).read_to_end(&mut bytes).doing("read", &path)?;
        Ok((Digest::of(&bytes) == *digest).then_some(bytes))
    }

    /// Remembers that `blob` is the layer `diff_id`, compressed as `params` says. Only for bytes that were produced
    /// or verified here: everything later trusts it.
    pub fn put_encoding(
        &self,
        diff_id: &DiffId,
        params: &str,
        blob: &Digest,
        size: u64,
    ) -> Result<(), StoreError> {
        let sealed = seal("encoding", &encoding_key(diff_id, params), &encoding_value(blob, size));
        self.inner.index.write("record an encoding", |transaction| {
            let sql = "INSERT OR REPLACE INTO encodings VALUES (?1, ?2, ?3, ?4, ?5)";
            let size = i64::try_from(size).unwrap_or(i64::MAX);
            let (diff, digest) = (diff_id.0.as_bytes(), blob.as_bytes());
            transaction.prepare_cached(sql)?.execute((diff, params, digest, size, sealed))?;
            // Until now nothing named the blob.
            readers::touch_blobs(transaction, &[*blob])?;
            put_diff(transaction, blob, diff_id)
        })
    }

    /// Digest and size of a layer's blob for these compression parameters. The blob itself may be gone.
    pub fn encoding(&self, diff_id: &DiffId, params: &str) -> Result<Option<(Digest, u64)>, StoreError> {
        let row = self.inner.index.read("look up an encoding", |connection| {
            let sql = "SELECT blob, size, seal FROM encodings WHERE diff_id = ?1 AND params = ?2";
            let mut statement = connection.prepare_cached(sql)?;
            let found = statement.query_row((diff_id.0.as_bytes(), params), |row| {
                Ok((row.get(0)?, row.get::<_, i64>(1)?, row.get::<_, [u8; 8]>(2)?))
            });
            Ok(found.optional()?)
        })?;
        Ok(row.and_then(|(blob, size, sealed)| {
            let (blob, size) = (Digest::from_bytes(blob), u64::try_from(size).ok()?);
            let expected = seal("encoding", &encoding_key(diff_id, params), &encoding_value(&blob, size));
            (sealed == expected).then_some((blob, size))
        }))
    }

    /// Remembers the uncompressed digest of a blob whose bytes were verified here.
    pub fn put_diff_of_blob(&self, blob: &Digest, diff_id: &DiffId) -> Result<(), StoreError> {
        self.inner
            .index
            .write("record the diff id of a blob", |transaction| put_diff(transaction, blob, diff_id))
    }

    /// Uncompressed digest of a blob that was once unpacked or emitted here.
    pub fn diff_of_blob(&self, blob: &Digest) -> Result<Option<DiffId>, StoreError> {
        let row = self.inner.index.read("look up the diff id of a blob", |connection| {
            let mut statement =
                connection.prepare_cached("SELECT diff_id, seal FROM blob_diffs WHERE blob = ?1")?;
            let found = statement.query_row([blob.as_bytes()], |row| {
                Ok((row.get::<_, [u8; 32]>(0)?, row.get::<_, [u8; 8]>(1)?))
            });
            Ok(found.optional()?)
        })?;
        Ok(row
            .filter(|(diff, sealed)| seal("blob diff", blob.as_bytes(), diff) == *sealed)
            .map(|(diff, _)| DiffId(Digest::from_bytes(diff))))
    }

    fn open_blob(&self, digest: &Digest, row: Row) -> Result<Option<Blob>, StoreError> {
        let layout = &self.inner.layout;
        let name = layout::blob(digest);
        let Ok(fd) = layout.try_open(&name, OFlags::RDONLY) else { return Ok(None) };
        let stat = rustix::fs::fstat(&fd).doing("stat", &layout.path(&name))?;
        if u64::try_from(stat.st_size) != Ok(row.size) {
            return Ok(None);
        }
        let mut file = File::from(fd);
        if ctime_ns(&stat) != row.ctime && !hashes_to(&mut file, digest).doing("read", &layout.path(&name))? {
            return Ok(None);
        }
        Ok(Some(Blob { size: row.size, file }))
    }

    /// Moves a verified file to its place and writes its row. The rename happens inside the transaction: a sweeper
    /// removes row and file inside one too, so neither can slip between the other's two steps.
    fn publish_blob(&self, temp: &str, digest: Digest, size: u64) -> Result<(), StoreError> {
        let boot = self.boot()?;
        let layout = &self.inner.layout;
        if let Some(blob) = self.blob(&digest)?.filter(|blob| blob.size == size) {
            drop(blob);
            let _ = rustix::fs::unlinkat(layout.fd(), temp, AtFlags::empty());
            return Ok(());
        }
        layout.make_dir(&layout::blob_dir(&digest))?;
        let name = layout::blob(&digest);
        self.inner.index.write("record a blob", |transaction| {
            // A file that is in the way has no valid row, is damaged, or was put there this instant by another
            // process with equal bytes: replacing is right for all three.
            layout.replace(temp, &name)?;
            let stat = rustix::fs::statat(layout.fd(), &name, AtFlags::SYMLINK_NOFOLLOW)
                .doing("stat", &layout.path(&name))?;
            let sql = "INSERT OR REPLACE INTO blobs (digest, size, ctime, used, boot, epoch, durable)
                VALUES (?1, ?2, ?3, ?4, ?5, (SELECT current FROM epoch), 0)";
            let row = (digest.as_bytes(), stat.st_size, ctime_ns(&stat), now_unix_ns(), boot.0);
            transaction.prepare_cached(sql)?.execute(row)?;
            Ok(())
        })
    }
}

/// What the index says of a blob.
struct Row {
    size: u64,
    ctime: i64,
}

fn row(
    connection: &Connection,
    digest: &Digest,
    boot: BootId,
    generation: i64,
) -> Result<Option<Row>, DbError> {
    let sql = "SELECT size, ctime FROM blobs WHERE digest = ?1 AND (durable = 1 OR boot = ?2)
        AND until >= ?3";
    let mut statement = connection.prepare_cached(sql)?;
    let row = statement
        .query_row((digest.as_bytes(), boot.0, generation), |row| Ok((row.get::<_, i64>(0)?, row.get(1)?)))
        .optional()?;
    Ok(row.and_then(|(size, ctime)| Some(Row { size: u64::try_from(size).ok()?, ctime })))
}

/// Digests of rows that an earlier boot left unsynced.
pub(super) fn void(transaction: &Transaction<'_>, boot: BootId) -> Result<Vec<Digest>, DbError> {
    let mut statement = transaction.prepare("SELECT digest FROM blobs WHERE durable = 0 AND boot <> ?1")?;
    let rows = statement.query_map([boot.0], |row| row.get(0).map(Digest::from_bytes))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn put_diff(transaction: &Transaction<'_>, blob: &Digest, diff_id: &DiffId) -> Result<(), DbError> {
    let sealed = seal("blob diff", blob.as_bytes(), diff_id.0.as_bytes());
    let sql = "INSERT OR REPLACE INTO blob_diffs VALUES (?1, ?2, ?3)";
    transaction.prepare_cached(sql)?.execute((blob.as_bytes(), diff_id.0.as_bytes(), sealed))?;
    Ok(())
}

fn encoding_key(diff_id: &DiffId, params: &str) -> Vec<u8> {
    [diff_id.0.as_bytes().as_slice(), params.as_bytes()].concat()
}

fn encoding_value(blob: &Digest, size: u64) -> Vec<u8> {
    [blob.as_bytes().as_slice(), &size.to_le_bytes()].concat()
}

pub(super) fn ctime_ns(stat: &rustix::fs::Stat) -> i64 {
    i64::try_from(i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec)).unwrap_or(0)
}

/// Hashes the file from its start and rewinds it.
pub(super) fn hashes_to(file: &mut File, digest: &Digest) -> io::Result<bool> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    file.rewind()?;
    Ok(hash.finish() == *digest)
}
