//! Blobs that pass through: made for a push, gone after it.
//!
//! What goes to a registry need not stay here as well: digest, length and DiffId of a layer's blob are remembered, and its
//! bytes can be made again, the same ones, as long as the layer is here. So where a build does nothing but push, a large
//! blob never becomes one of the store: uploads read it out of memory while it is made, what they are too slow for waits
//! in a file without a name, and who comes later than that has it made again.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_cache::layer::{Compression, DEFAULT_GZIP, DEFAULT_ZSTD};
use rbuild_cache::store::{LayerId, PULLED, Store, StoreError};
use rbuild_oci::Digest;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::assemble::emit::{Pace, Stoppable};
use crate::assemble::growing::{Grower, Growing, Listener};
use crate::assemble::manifest::LayerBlob;
use crate::assemble::window::Share;
use crate::assemble::{ImageLayer, Place};
use crate::error::{BuildError, StepFailure};
use crate::ops::ExecEnv;

/// A smaller blob stays: it costs the disk little, and making it again would cost the next push more.
pub(super) const PASSING_BYTES_MIN: u64 = 8 << 20;

/// The blobs of one build that pass through.
#[derive(Default)]
pub struct Passing {
    /// Whether there may be any.
    is_allowed: bool,
    /// Those that are whole.
    files: Mutex<HashMap<Digest, Arc<File>>>,
    share: Share,
    /// Who wants to read along blobs that steps make.
    listeners: Arc<Mutex<Vec<UnboundedSender<Growing>>>>,
}

/// How a blob is made that was made before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Again {
    pub(super) layer: LayerId,
    pub(super) clamp: Option<i64>,
    pub(super) compression: Compression,
}

impl Passing {
    /// `is_allowed` for a build whose blobs nobody but registries gets.
    pub fn new(is_allowed: bool) -> Self {
        Self { is_allowed, ..Self::default() }
    }

    /// Whether a blob like this may pass: `rbuild push` and `rbuild save` must be able to make it again from what the image's
    /// record says.
    pub(super) fn takes(&self, compression: Compression, clamp: Option<i64>) -> bool {
        self.is_allowed && clamp.is_none() && [DEFAULT_GZIP, DEFAULT_ZSTD].contains(&compression)
    }

    /// The memory for them while they are made.
    pub(super) fn share(&self) -> &Share {
        &self.share
    }

    pub(super) fn put(&self, digest: Digest, file: Arc<File>) {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, file);
    }

    /// The bytes of a blob that passes. The file has no position of its own: read it at offsets.
    pub fn file(&self, digest: &Digest) -> Option<Arc<File>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    /// All that has passed. What was not written to the disk by now never will be, whoever still holds a file.
    pub fn end(&self) {
        for (_, file) in self.files.lock().unwrap_or_else(PoisonError::into_inner).drain() {
            // At worst the sync writes it for nothing.
            let _ = file.set_len(0);
        }
    }

    /// Large blobs that steps make, each from when it begins to grow.
    pub fn listen(&self) -> UnboundedReceiver<Growing> {
        let (sender, heard) = unbounded_channel();
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        heard
    }

    /// Tells all who listen.
    pub(crate) fn listener(&self) -> Listener {
        let listeners = Arc::clone(&self.listeners);
        Box::new(move |growing| {
            for listener in listeners.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                // Who has gone wants none.
                let _ = listener.send(growing.clone());
            }
        })
    }
}

/// Digest and length of a blob that was made of this layer before, and how to make it again. A pulled layer's blob is
/// somebody else's making.
pub(crate) fn remembered(
    store: &Store,
    layer: &ImageLayer,
    compression: Compression,
) -> Result<Option<(Digest, u64, Again)>, StoreError> {
    let Place::Here(id) = layer.place else { return Ok(None) };
    if store.encoding(&layer.diff_id, PULLED)?.is_some() {
        return Ok(None);
    }
    let again = Again { layer: id, clamp: layer.clamp, compression };
    let known = store.encoding(&layer.diff_id, &compression.params())?;
    Ok(known.map(|(digest, size)| (digest, size, again)))
}

/// [`remembered`] for a blob of which only the digest is known, in whatever form the store's own blobs are made again.
pub(crate) fn remembered_as(
    store: &Store,
    layer: &ImageLayer,
    digest: Digest,
) -> Result<Option<Again>, StoreError> {
    for compression in [DEFAULT_GZIP, DEFAULT_ZSTD] {
        if let Some((.., again)) =
            remembered(store, layer, compression)?.filter(|(known, ..)| *known == digest)
        {
            return Ok(Some(again));
        }
    }
    Ok(None)
}

/// Sees to it that the bytes of a blob are here, if they can be made: in the store, or with `passes` for this process.
pub(crate) async fn make(env: &Arc<ExecEnv>, blob: &LayerBlob, passes: bool) -> Result<(), BuildError> {
    let Some(Again { layer, clamp, compression }) = blob.again else { return Ok(()) };
    let _turn = env.emissions.turn(layer).await;
    let digest = blob.digest;
    if env.store.blob(&digest)?.is_some() || (passes && env.passing.file(&digest).is_some()) {
        return Ok(());
    }
    let worker = Arc::clone(env);
    let encode = move || {
        let mut writer = Stoppable { inner: Grower::made_again(&worker, passes)?, cancel: &worker.cancel };
        let encoded = worker.encode_layer(layer, clamp, compression, Pace::Now, &mut writer)?;
        if encoded.digest != digest {
            return Err(StepFailure::LayerDigest { wanted: digest, found: encoded.digest });
        }
        Ok(writer.inner.commit_as(&worker.passing, digest)?)
    };
    Ok(Pace::Now.run(env, encode).await?)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_has_passed_is_gone_even_for_who_still_holds_it() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"passing").unwrap();
        let (passing, digest) = (Passing::default(), Digest::of(b"passing"));
        passing.put(digest, Arc::new(file));
        let held = passing.file(&digest).unwrap();
        passing.end();
        assert!(passing.file(&digest).is_none());
        assert_eq!(held.metadata().unwrap().len(), 0);
    }
}
