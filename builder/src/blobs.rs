//! Small blobs of the store: configs and manifests, whole in memory.

use std::io::{Read, Write};

use rbuild_cache::store::{Lease, Store, StoreError};
use rbuild_oci::Digest;

/// Largest config or manifest read back.
const DOCUMENT_BYTES_MAX: u64 = 8 << 20;

/// Stores bytes and returns their digest.
pub fn write(store: &Store, lease: &Lease, bytes: &[u8]) -> Result<Digest, StoreError> {
    let digest = Digest::of(bytes);
    if store.blob(&digest)?.is_some() {
        return Ok(digest);
    }
    let mut writer = store.ingest(lease)?;
    writer.write_all(bytes).map_err(|source| StoreError::Io { doing: "write", path: lease.work_dir(), source })?;
    writer.commit(Some(digest))
}

/// Reads a document back; `None` when it is gone or not what its digest says.
pub fn read(store: &Store, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
    let Some(blob) = store.blob(digest)? else { return Ok(None) };
    let mut bytes = Vec::new();
    let read = blob.file.take(DOCUMENT_BYTES_MAX + 1).read_to_end(&mut bytes);
    Ok((read.is_ok() && Digest::of(&bytes) == *digest).then_some(bytes))
}
