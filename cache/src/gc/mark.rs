//! What is held, and since when it was not used.

use std::collections::{BTreeMap, BTreeSet};

use rbuild_oci::Digest;

use crate::store::snapshot::{LayerRow, Snapshot};
use crate::store::{CacheMountId, CacheMountInfo, ImageRecord, LayerId, StoreError};

/// Fetching a layer again is taken to cost this much per byte: 50 MB a second.
const PULL_NS_PER_BYTE: u64 = 20;

/// Something that can be given up on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Object {
    Layer(LayerId),
    Blob(Digest),
    Mount(CacheMountId),
}

/// Order of sacrifice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// Can be fetched or made again from its layer.
    Blob,
    /// No result names it.
    Unreferenced,
    /// Results name it.
    Cached,
    /// A cache mount: no build makes all of it again.
    Mount,
}

/// An object that no image holds.
#[derive(Debug, Clone)]
pub(super) struct Unit {
    pub(super) object: Object,
    pub(super) class: Class,
    pub(super) bytes: u64,
    /// Last use of it or of a result that names it, nanoseconds since the epoch.
    pub(super) used: i64,
    /// What making it again costs.
    pub(super) cost_ns: u64,
    /// The blob a layer was pulled as, which goes with it; `bytes` counts it.
    pub(super) blob: Option<Digest>,
}

/// What is held.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Layers of named images.
    pub(super) image_layers: BTreeSet<LayerId>,
    /// Blobs of named images, and the documents of resolved references.
    pub(super) image_blobs: BTreeSet<Digest>,
    /// Blobs that layers which nobody condemned were pulled as, and how many such layers there are.
    pub(super) pulled_blobs: BTreeMap<Digest, usize>,
    /// How results use the snapshot's layers, in their order; `None` of those that none names.
    pub(super) uses: Vec<Option<Use>>,
}

/// How results use a layer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Use {
    pub(super) used: i64,
    pub(super) exec_ns: Option<u64>,
    pub(super) results: u64,
}

impl Marks {
    /// Marks from roots. `blobs_of` finds the blobs of a named image.
    pub(super) fn of(
        snapshot: &Snapshot,
        blobs_of: impl Fn(&ImageRecord) -> Vec<Digest>,
    ) -> Result<Self, StoreError> {
        let mut marks = Self { uses: vec![None; snapshot.layers.len()], ..Self::default() };
        for resolution in snapshot.resolutions() {
            let resolution = resolution?;
            marks.image_blobs.extend([resolution.manifest, resolution.config]);
        }
        for image in snapshot.images() {
            let (_, image) = image?;
            marks.image_layers.extend(image.all_layers());
            let pulled = image.all_layers().filter_map(|id| snapshot.pulled_blob(&id));
            marks.image_blobs.extend(blobs_of(&image).into_iter().chain(pulled));
        }
        let live = snapshot.layers.iter().filter(|(_, row)| !row.is_condemned);
        for blob in live.filter_map(|(id, _)| snapshot.pulled_blob(id)) {
            *marks.pulled_blobs.entry(blob).or_default() += 1;
        }
        for result in snapshot.results() {
            let result = result?;
            for layer in &result.layers {
                // One that is gone is no layer to give up.
                let Some(place) = snapshot.layers.place(layer) else { continue };
                let uses = marks.uses[place].get_or_insert_default();
                uses.used = uses.used.max(result.used);
                uses.results += 1;
                if result.own_layer == Some(*layer) {
                    uses.exec_ns = uses.exec_ns.max(Some(result.exec_ns));
                }
            }
        }
        Ok(marks)
    }

    /// Condemned objects that are held all the same: a record was written while they were being condemned.
    pub(super) fn wrongly_condemned(&self, snapshot: &Snapshot) -> (Vec<LayerId>, Vec<Digest>) {
        let layers = snapshot.layers.iter().zip(&self.uses).filter(|((id, row), uses)| {
            row.is_condemned && (self.image_layers.contains(id) || uses.is_some())
        });
        let blobs = snapshot.blobs.iter().filter(|(digest, row)| {
            row.is_condemned && (self.image_blobs.contains(digest) || self.pulled_blobs.contains_key(digest))
        });
        (layers.map(|((id, _), _)| *id).collect(), blobs.map(|(digest, _)| *digest).collect())
    }

    /// Everything that could be given up.
    pub(super) fn units(&self, snapshot: &Snapshot) -> Vec<Unit> {
        let mut units = Vec::new();
        for (digest, row) in snapshot.blobs.iter() {
            let is_held = self.image_blobs.contains(digest) || self.pulled_blobs.contains_key(digest);
            if !row.is_condemned && !is_held {
                units.push(Unit {
                    object: Object::Blob(*digest),
                    class: Class::Blob,
                    bytes: row.size,
                    used: row.used,
                    cost_ns: row.size.saturating_mul(PULL_NS_PER_BYTE),
                    blob: None,
                });
            }
        }
        for ((id, row), uses) in snapshot.layers.iter().zip(&self.uses) {
            if row.is_condemned || self.image_layers.contains(id) {
                continue;
            }
            let blob = snapshot
                .pulled_blob(id)
                .filter(|blob| !self.image_blobs.contains(blob) && self.pulled_blobs.get(blob) == Some(&1));
            let blob_bytes = blob.and_then(|blob| snapshot.blobs.get(&blob)).map_or(0, |row| row.size);
            units.push(Unit {
                object: Object::Layer(*id),
                class: if uses.is_some() { Class::Cached } else { Class::Unreferenced },
                bytes: row.size + blob_bytes,
                used: last_use(row, uses.as_ref()),
                cost_ns: uses
                    .and_then(|uses| uses.exec_ns)
                    .unwrap_or_else(|| row.size.saturating_mul(PULL_NS_PER_BYTE)),
                blob,
            });
        }
        units
    }

    /// Cache mounts that nobody uses.
    pub(super) fn mount_units(mounts: &[CacheMountInfo]) -> impl Iterator<Item = Unit> {
        mounts.iter().filter(|mount| !mount.is_in_use).map(|mount| Unit {
            object: Object::Mount(mount.mount),
            class: Class::Mount,
            bytes: mount.size_bytes,
            used: mount.used_unix_ns,
            cost_ns: mount.size_bytes.saturating_mul(PULL_NS_PER_BYTE),
            blob: None,
        })
    }
}

/// A layer that no result names is as old as its own row says.
pub(super) fn last_use(row: &LayerRow, uses: Option<&Use>) -> i64 {
    uses.map_or(row.used, |uses| uses.used)
}
