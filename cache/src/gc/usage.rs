//! What a store holds, for people.

use std::collections::{BTreeMap, BTreeSet};

use rbuild_oci::Digest;

use super::mark::{Marks, last_use};
use crate::store::snapshot::Snapshot;
use crate::store::{CacheMountInfo, ImageRecord, LayerId, StoreError};

/// Kind of an entry in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum UsageKind {
    /// A layer directory that steps made.
    Layer,
    /// A layer directory of a pulled image.
    Pulled,
    /// A compressed layer, config or manifest.
    Blob,
    /// The directory of a cache mount.
    Mount,
}

/// One layer or blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageEntry {
    /// Layer id or blob digest.
    pub id: String,
    /// What it is.
    pub kind: UsageKind,
    /// Its bytes.
    pub size_bytes: u64,
    /// True when no image holds it.
    pub is_reclaimable: bool,
    /// True when more than one image or result names it.
    pub is_shared: bool,
    /// Results and images that name it.
    pub usage_count: u64,
    /// When it was made, nanoseconds since the epoch; 0 when unknown.
    pub created_unix_ns: i64,
    /// When it was last used, nanoseconds since the epoch.
    pub used_unix_ns: i64,
    /// The step that made it, or the images that hold it.
    pub description: String,
    /// Names of the images that hold it.
    pub images: Vec<String>,
}

/// What a store holds, largest share first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiskUsage {
    /// Layers and blobs; what waits for its last reader is not among them.
    pub entries: Vec<UsageEntry>,
    /// Bytes that wait for running builds to end.
    pub pending_bytes: u64,
    /// Named images.
    pub images: u64,
    /// Cached results.
    pub results: u64,
}

impl DiskUsage {
    /// Bytes of all entries.
    pub fn total_bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.size_bytes).sum()
    }

    /// Bytes that no image holds.
    pub fn reclaimable_bytes(&self) -> u64 {
        self.entries.iter().filter(|entry| entry.is_reclaimable).map(|entry| entry.size_bytes).sum()
    }

    /// Bytes that more than one image or result names.
    pub fn shared_bytes(&self) -> u64 {
        self.entries.iter().filter(|entry| entry.is_shared).map(|entry| entry.size_bytes).sum()
    }
}

/// Who holds what, and what made it.
#[derive(Default)]
struct Holders {
    images: Vec<String>,
    /// Images by their places among these.
    of_layers: BTreeMap<LayerId, BTreeSet<usize>>,
    of_blobs: BTreeMap<Digest, BTreeSet<usize>>,
    steps: BTreeMap<LayerId, String>,
}

impl Holders {
    fn of(snapshot: &Snapshot, blobs_of: impl Fn(&ImageRecord) -> Vec<Digest>) -> Result<Self, StoreError> {
        let mut holders = Self::default();
        for image in snapshot.images() {
            let (name, image) = image?;
            let place = holders.images.len();
            holders.images.push(name);
            for layer in image.all_layers() {
                holders.of_layers.entry(layer).or_default().insert(place);
            }
            let pulled = image.all_layers().filter_map(|id| snapshot.pulled_blob(&id));
            for blob in blobs_of(&image).into_iter().chain(pulled) {
                holders.of_blobs.entry(blob).or_default().insert(place);
            }
        }
        for result in snapshot.results() {
            let result = result?;
            holders.steps.extend(result.own_layer.map(|layer| (layer, result.description)));
        }
        Ok(holders)
    }

    fn names(&self, images: Option<&BTreeSet<usize>>) -> Vec<String> {
        images.into_iter().flatten().map(|place| self.images[*place].clone()).collect()
    }
}

impl DiskUsage {
    /// All of a store but what the snapshot does not know: cache mounts. `blobs_of` finds the blobs of a named image.
    pub(super) fn of(
        snapshot: &Snapshot,
        marks: &Marks,
        blobs_of: impl Fn(&ImageRecord) -> Vec<Digest>,
        mounts: &[CacheMountInfo],
    ) -> Result<Self, StoreError> {
        let holders = Holders::of(snapshot, blobs_of)?;
        let mut usage =
            Self { images: snapshot.images_count(), results: snapshot.results_count(), ..Self::default() };
        for ((id, row), uses) in snapshot.layers.iter().zip(&marks.uses) {
            if row.is_condemned {
                usage.pending_bytes += row.size;
                continue;
            }
            let uses = uses.as_ref();
            let names = holders.names(holders.of_layers.get(id));
            let count = names.len() as u64 + uses.map_or(0, |uses| uses.results);
            let step = holders.steps.get(id);
            usage.entries.push(UsageEntry {
                id: id.to_string(),
                kind: if step.is_some() || row.diff_id.is_none() {
                    UsageKind::Layer
                } else {
                    UsageKind::Pulled
                },
                size_bytes: row.size,
                is_reclaimable: names.is_empty(),
                is_shared: names.len() > 1,
                usage_count: count,
                created_unix_ns: row.created,
                used_unix_ns: last_use(row, uses),
                description: step.cloned().unwrap_or_else(|| names.join(", ")),
                images: names,
            });
        }
        for (digest, row) in snapshot.blobs.iter() {
            if row.is_condemned {
                usage.pending_bytes += row.size;
                continue;
            }
            let is_held = marks.image_blobs.contains(digest);
            usage.entries.push(UsageEntry {
                id: digest.to_string(),
                kind: UsageKind::Blob,
                size_bytes: row.size,
                is_reclaimable: !is_held,
                is_shared: false,
                usage_count: u64::from(is_held),
                created_unix_ns: 0,
                used_unix_ns: row.used,
                description: String::new(),
                images: holders.names(holders.of_blobs.get(digest)),
            });
        }
        usage.entries.extend(mounts.iter().map(|mount| UsageEntry {
            id: mount.mount.to_string(),
            kind: UsageKind::Mount,
            size_bytes: mount.size_bytes,
            is_reclaimable: !mount.is_in_use,
            is_shared: false,
            usage_count: 1,
            created_unix_ns: mount.created_unix_ns,
            used_unix_ns: mount.used_unix_ns,
            description: format!("cache mount {} of {}", mount.id, mount.description),
            images: Vec::new(),
        }));
        usage.entries.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.id.cmp(&b.id)));
        Ok(usage)
    }
}
