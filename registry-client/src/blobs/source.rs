//! Where the bytes of an upload come from.

use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use tokio::io::AsyncReadExt;

/// The bytes of a blob, from its beginning.
pub type BlobBody = BoxStream<'static, io::Result<Bytes>>;

/// Something that can give a blob's bytes again and again: an upload that breaks starts over or is resumed.
///
/// Resuming reads from the beginning too, so that the digest of every upload is checked over all of its bytes.
pub trait BlobSource: Send + Sync {
    /// Opens the blob at its first byte.
    fn open(&self) -> BoxFuture<'_, io::Result<BlobBody>>;
}

/// A blob in memory.
#[derive(Debug, Clone)]
pub struct BytesSource(pub Bytes);

impl BlobSource for BytesSource {
    fn open(&self) -> BoxFuture<'_, io::Result<BlobBody>> {
        let bytes = self.0.clone();
        Box::pin(async move { Ok(Box::pin(stream::once(async move { Ok(bytes) })) as BlobBody) })
    }
}

/// A blob in a file.
#[derive(Debug, Clone)]
pub struct FileSource(pub PathBuf);

/// Bytes read from a file at a time.
const READ_BYTES: usize = 256 << 10;

impl BlobSource for FileSource {
    fn open(&self) -> BoxFuture<'_, io::Result<BlobBody>> {
        Box::pin(async move {
            let file = tokio::fs::File::open(&self.0).await?;
            let body = stream::try_unfold(file, |mut file| async move {
                let mut buffer = bytes::BytesMut::with_capacity(READ_BYTES);
                let read = file.read_buf(&mut buffer).await?;
                Ok((read > 0).then(|| (buffer.freeze(), file)))
            });
            Ok(Box::pin(body) as BlobBody)
        })
    }
}
