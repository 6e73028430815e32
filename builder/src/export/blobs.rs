//! What image layouts and archives are made of: blobs by digest, written deterministically.

use std::fs::File;
use std::io;

use rbuild_cache::store::Store;
use rbuild_oci::Digest;

use crate::assemble::file_blob::FileBlob;

/// A blob to write: bytes in memory or in a file, or a blob of the store with its length.
pub(super) enum Part<'a> {
    Bytes(&'a [u8]),
    File(&'a FileBlob),
    Blob(u64),
}

/// Brings parts into the order of their digests, each once.
pub(super) fn in_order(mut parts: Vec<(Digest, Part<'_>)>) -> Vec<(Digest, Part<'_>)> {
    parts.sort_by_key(|(digest, _)| *digest);
    parts.dedup_by_key(|(digest, _)| *digest);
    parts
}

/// Opens a blob that the store must have.
pub(super) fn open_blob(store: &Store, digest: Digest) -> io::Result<File> {
    let blob = store.blob(&digest).map_err(io::Error::other)?;
    blob.map(|blob| blob.file)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("blob {digest} is gone")))
}

/// Path of a blob in a layout (image-spec, image-layout.md).
pub(super) fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Header of an archive member: nothing in it depends on who writes it or when.
pub(super) fn header(size: u64, kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(if kind == tar::EntryType::Directory { 0o755 } else { 0o644 });
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_entry_type(kind);
    header
}
