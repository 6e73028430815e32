//! What is held, by whom, and since when it was not used.

use std::collections::{BTreeMap, BTreeSet};

use rbuild_oci::Digest;

use crate::store::collect::{LayerRow, Snapshot};
use crate::store::{CacheMountId, CacheMountInfo, ImageRecord, LayerId};

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

/// Who holds what.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Layers of named images.
    pub(super) image_layers: BTreeSet<LayerId>,
    /// Blobs of named images with those images, as they are numbered in the snapshot, and the documents of resolved
    /// references, which belong to none.
    pub(super) image_blobs: BTreeMap<Digest, BTreeSet<usize>>,
    /// Blobs that layers which nobody condemned were pulled as, and how many such layers there are.
    pub(super) pulled_blobs: BTreeMap<Digest, usize>,
    /// Layers that results name, and how they are used.
    pub(super) result_layers: BTreeMap<LayerId, Use>,
}

/// How results use a layer.
#[derive(Debug, Clone, Default)]
pub(super) struct Use {
    pub(super) used: i64,
    pub(super) exec_ns: Option<u64>,
    pub(super) results: u64,
    pub(super) description: String,
}

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

impl Marks {
    /// Marks from roots. `blobs_of` finds the blobs of a named image.
    pub(super) fn of(snapshot: &Snapshot, blobs_of: impl Fn(&ImageRecord) -> Vec<Digest>) -> Self {
        let mut marks = Self::default();
        marks.image_blobs.extend(snapshot.resolved_blobs.iter().map(|blob| (*blob, BTreeSet::new())));
        for (number, (_, image)) in snapshot.images.iter().enumerate() {
            marks.image_layers.extend(image.all_layers());
            let rows = image.all_layers().filter_map(|id| snapshot.layers.get(&id));
            let pulled = rows.filter_map(|row| snapshot.pulled_blob(row));
            for blob in blobs_of(image).into_iter().chain(pulled) {
                marks.image_blobs.entry(blob).or_default().insert(number);
            }
        }
        let live = snapshot.layers.values().filter(|row| !row.is_condemned);
        for blob in live.filter_map(|row| snapshot.pulled_blob(row)) {
            *marks.pulled_blobs.entry(blob).or_default() += 1;
        }
        for result in &snapshot.results {
            for layer in &result.layers {
                let uses = marks.result_layers.entry(*layer).or_default();
                uses.used = uses.used.max(result.used);
                uses.results += 1;
                if result.own_layer == Some(*layer) {
                    uses.exec_ns = uses.exec_ns.max(Some(result.exec_ns));
                    uses.description.clone_from(&result.description);
                }
            }
        }
        marks
    }

    /// Condemned objects that are held all the same: a record was written while they were being condemned.
    pub(super) fn wrongly_condemned(&self, snapshot: &Snapshot) -> (Vec<LayerId>, Vec<Digest>) {
        let layers = snapshot.layers.iter().filter(|(id, row)| {
            row.is_condemned && (self.image_layers.contains(id) || self.result_layers.contains_key(id))
        });
        let blobs = snapshot.blobs.iter().filter(|(digest, row)| {
            row.is_condemned
                && (self.image_blobs.contains_key(digest) || self.pulled_blobs.contains_key(digest))
        });
        (layers.map(|(id, _)| *id).collect(), blobs.map(|(digest, _)| *digest).collect())
    }

    /// Everything that could be given up.
    pub(super) fn units(&self, snapshot: &Snapshot) -> Vec<Unit> {
        let mut units = Vec::new();
        for (digest, row) in &snapshot.blobs {
            let is_held = self.image_blobs.contains_key(digest) || self.pulled_blobs.contains_key(digest);
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
        for (id, row) in &snapshot.layers {
            if row.is_condemned || self.image_layers.contains(id) {
                continue;
            }
            let uses = self.result_layers.get(id);
            let blob = snapshot.pulled_blob(row).filter(|blob| {
                !self.image_blobs.contains_key(blob) && self.pulled_blobs.get(blob) == Some(&1)
            });
            let blob_bytes = blob.map_or(0, |blob| snapshot.blobs[&blob].size);
            units.push(Unit {
                object: Object::Layer(*id),
                class: if uses.is_some() { Class::Cached } else { Class::Unreferenced },
                bytes: row.size + blob_bytes,
                used: last_use(row, uses),
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

    /// The picture for people.
    pub(super) fn usage(&self, snapshot: &Snapshot, mounts: &[CacheMountInfo]) -> DiskUsage {
        let mut usage = DiskUsage {
            images: snapshot.images.len() as u64,
            results: snapshot.results.len() as u64,
            ..DiskUsage::default()
        };
        for (id, row) in &snapshot.layers {
            if row.is_condemned {
                usage.pending_bytes += row.size;
                continue;
            }
            let uses = self.result_layers.get(id);
            let names: Vec<String> = snapshot
                .images
                .iter()
                .filter(|(_, image)| image.all_layers().any(|layer| layer == *id))
                .map(|(name, _)| name.clone())
                .collect();
            let count = names.len() as u64 + uses.map_or(0, |uses| uses.results);
            let made = uses.filter(|uses| uses.exec_ns.is_some());
            usage.entries.push(UsageEntry {
                id: id.to_string(),
                kind: if made.is_some() || row.diff_id.is_none() {
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
                description: made.map_or_else(|| names.join(", "), |uses| uses.description.clone()),
                images: names,
            });
        }
        for (digest, row) in &snapshot.blobs {
            if row.is_condemned {
                usage.pending_bytes += row.size;
                continue;
            }
            let holders = self.image_blobs.get(digest);
            let is_held = holders.is_some();
            let images = holders.into_iter().flatten().map(|number| snapshot.images[*number].0.clone());
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
                images: images.collect(),
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
        usage
    }
}

/// A layer that no result names is as old as its own row says.
fn last_use(row: &LayerRow, uses: Option<&Use>) -> i64 {
    uses.map_or(row.used, |uses| uses.used)
}
