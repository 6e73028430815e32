//! Chunks of an upload, cut from one reading of the blob as they are sent: none is ever held.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, stream};

use super::body::Watch;
use super::session::Outgoing;
use crate::auth::lock;

/// Sent at once, so that a connection that takes no more is noticed.
const SLICE_BYTES: usize = 64 << 10;

/// A blob that is being read, from somewhere on.
pub(super) struct Reading {
    body: BoxStream<'static, io::Result<Bytes>>,
    /// Read and not sent.
    rest: Bytes,
    /// Of the next byte to send.
    pub(super) position: u64,
    watch: Arc<Watch>,
}

/// A reading that is being sent from. Whoever takes it back ends that: a request that was answered before its end may still
/// be there.
pub(super) struct Lent(Arc<Mutex<Option<Reading>>>);

impl Lent {
    pub(super) fn take_back(self) -> Option<Reading> {
        lock(&self.0).take()
    }
}

impl Reading {
    /// `body` begins at `position` of the blob, and what goes wrong with it is in `watch`.
    pub(super) fn new(
        body: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        position: u64,
        watch: Arc<Watch>,
    ) -> Self {
        Self { body: body.boxed(), rest: Bytes::new(), position, watch }
    }

    /// The next `length` bytes, as a chunk to send.
    pub(super) fn chunk(self, length: u64) -> (Outgoing, Lent) {
        let (at, watch) = (self.position, self.watch.clone());
        watch.done.store(length == 0, Ordering::Relaxed);
        let lent = Arc::new(Mutex::new(Some(self)));
        let (reading, mut left) = (lent.clone(), length);
        let slices = stream::poll_fn(move |context| match lock(&reading).as_mut() {
            Some(reading) => reading.poll_slice(&mut left, context),
            None => Poll::Ready(Some(Err(io::Error::other("the chunk was given up")))),
        });
        (Outgoing { at: Some(at), ..Outgoing::stream(slices, length, watch) }, Lent(lent))
    }

    /// The next slice of a chunk of which so much is `left`.
    fn poll_slice(&mut self, left: &mut u64, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if *left == 0 {
            return Poll::Ready(None);
        }
        while self.rest.is_empty() {
            match ready!(self.body.poll_next_unpin(context)) {
                Some(Ok(piece)) => self.rest = piece,
                // It says itself when the blob is shorter than it should be.
                end => return Poll::Ready(end),
            }
        }
        let most = usize::try_from(*left).unwrap_or(usize::MAX).min(SLICE_BYTES);
        let slice = self.rest.split_to(self.rest.len().min(most));
        *left -= slice.len() as u64;
        self.position += slice.len() as u64;
        self.watch.pieces.fetch_add(1, Ordering::Relaxed);
        // That the whole blob was read does not mean that the chunk was sent.
        self.watch.done.store(*left == 0, Ordering::Relaxed);
        Poll::Ready(Some(Ok(slice)))
    }
}
