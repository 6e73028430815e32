//! Condemning what was chosen and freeing what nobody can hold any more.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::fs::File;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rbuild_oci::Digest;

use super::mark::{DiskUsage, Marks, Object};
use super::policy::Policy;
use crate::layer::OverlayForm;
use crate::store::collect::Snapshot;
use crate::store::needed::{Need, Needs};
use crate::store::{Finding, LayerId, Lease, Store, StoreError, StoreOptions};

/// The one process that collects.
#[derive(Debug)]
pub struct Collector {
    store: Store,
    lease: Lease,
    _lock: File,
}

/// What a collection did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Collected {
    /// Layers and blobs given up by this run and their bytes, in the order of sacrifice.
    pub given_up: Vec<(String, u64)>,
    /// Results dropped.
    pub results: u64,
    /// Bytes that are free now, of this run and of earlier ones.
    pub freed_bytes: u64,
    /// Layers freed.
    pub layers: u64,
    /// Blobs freed.
    pub blobs: u64,
    /// Directory nodes freed.
    pub nodes: u64,
    /// Directories and files without a row that were removed.
    pub orphans: u64,
    /// Bytes given up that running builds may still read: a later collection frees them.
    pub deferred_bytes: u64,
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layer(id) => id.fmt(f),
            Self::Blob(digest) => digest.fmt(f),
            Self::Mount(id) => id.fmt(f),
        }
    }
}

impl Collector {
    /// Opens the store at `root` for collection; `None` while another process collects. A [`Store`] that this process
    /// has open besides holds back what is freed, as any reader does.
    pub fn open(root: &Path, options: StoreOptions) -> Result<Option<Self>, StoreError> {
        let Some((store, lock)) = Store::open_collector(root, options)? else { return Ok(None) };
        let lease = store.lease()?;
        Ok(Some(Self { store, lease, _lock: lock }))
    }

    /// Checks every byte of the store; `form` is how overlay marks are written in it. With `repair`, damaged bytes move
    /// to `quarantine/` and what relies on them is dropped. Sorted.
    pub fn fsck(&self, form: OverlayForm, repair: bool) -> Result<Vec<Finding>, StoreError> {
        self.store.fsck(&self.lease, form, repair)
    }

    /// What [`Self::run`] would give up, without doing it: ids and bytes in the order of sacrifice.
    pub fn preview(&self, policy: &Policy) -> Result<Vec<(String, u64)>, StoreError> {
        let snapshot = self.store.snapshot()?;
        let marks = self.mark(&snapshot);
        let mounts = self.store.cache_mounts()?;
        let mut units = marks.units(&snapshot);
        units.extend(Marks::mount_units(&mounts));
        let usage = marks.usage(&snapshot, &mounts);
        let chosen = policy.choose(&units, &usage, self.store.disk()?.0, now_unix_ns());
        Ok(chosen.into_iter().map(|unit| (unit.object.to_string(), unit.bytes)).collect())
    }

    /// Collects. Builds go on meanwhile; whatever they rely on stays readable until they end.
    pub fn run(&self, policy: &Policy) -> Result<Collected, StoreError> {
        self.run_with(policy, || {})
    }

    /// [`Self::run`] with something happening between marking and condemning, and again before freeing.
    pub(super) fn run_with(
        &self,
        policy: &Policy,
        mut meanwhile: impl FnMut(),
    ) -> Result<Collected, StoreError> {
        let store = &self.store;
        let now = now_unix_ns();
        store.tidy(&self.lease)?;
        let snapshot = store.snapshot()?;
        let marks = self.mark(&snapshot);
        let (layers, blobs) = marks.wrongly_condemned(&snapshot);
        store.reprieve(&layers, &blobs)?;

        let mut collected = Collected::default();
        let mounts = store.cache_mounts()?;
        let mut units = marks.units(&snapshot);
        units.extend(Marks::mount_units(&mounts));
        let chosen = policy.choose(&units, &marks.usage(&snapshot, &mounts), store.disk()?.0, now);
        let (mut layers, mut blobs) = (Vec::new(), Vec::new());
        for unit in &chosen {
            match unit.object {
                Object::Layer(id) => layers.push((id, snapshot.layers[&id].used)),
                Object::Blob(digest) => blobs.push((digest, snapshot.blobs[&digest].used)),
                Object::Mount(_) => {}
            }
        }
        meanwhile();
        let gone = self.drop_results(policy, &snapshot, &marks, &layers, now, &mut collected)?;
        let gone_layers: BTreeSet<LayerId> = store.condemn_layers(&layers)?.into_iter().collect();
        // A pulled layer's blob goes only when the layer does.
        blobs.extend(chosen.iter().filter_map(|unit| match unit.object {
            Object::Layer(id) if gone_layers.contains(&id) => {
                unit.blob.map(|blob| (blob, snapshot.blobs[&blob].used))
            }
            _ => None,
        }));
        let gone_blobs = store.condemn_blobs(&blobs)?;
        let gone_blobs: BTreeSet<Digest> = gone_blobs.into_iter().collect();
        let mut mounts_freed: u64 = 0;
        for unit in &chosen {
            let is_gone = match unit.object {
                Object::Layer(id) => gone_layers.contains(&id),
                Object::Blob(digest) => gone_blobs.contains(&digest),
                // Whoever took it meanwhile keeps it. Nobody reads one without its lock, so it is free at once.
                Object::Mount(id) => match store.remove_cache_mount(id, &self.lease)? {
                    Some(bytes) => {
                        mounts_freed += bytes;
                        true
                    }
                    None => false,
                },
            };
            if is_gone {
                collected.given_up.push((unit.object.to_string(), unit.bytes));
            }
        }
        let mut needs = self.condemn_nodes(&snapshot, &gone, &gone_layers)?;
        drop(snapshot);
        meanwhile();
        let orphans = store.orphan_layers()?;
        let listed_in = store.generation_now()?;
        let oldest = store.retire(!orphans.is_empty())?;

        let freed = store.free_objects(&self.lease, oldest)?;
        collected.layers = freed.layers;
        collected.blobs = freed.blobs;
        collected.freed_bytes = freed.bytes + mounts_freed;
        if store.has_condemned_nodes(oldest)? {
            // Records written since the mark, by processes that have ended since.
            let later = store.snapshot()?;
            store.note_needs(roots(&later).map(|root| Ok((root, Need::Records))), &mut needs)?;
            collected.nodes = store.free_nodes(oldest, &needs)?;
        }
        if oldest > listed_in {
            collected.orphans += store.remove_orphan_layers(&self.lease, &orphans)?;
        }
        collected.orphans += store.remove_orphan_blobs(&self.lease)?;
        store.empty_trash(&self.lease)?;
        collected.deferred_bytes = store.condemned_bytes()?;
        store.checkpoint()?;
        Ok(collected)
    }

    fn mark(&self, snapshot: &Snapshot) -> Marks {
        mark(&self.store, snapshot)
    }

    /// Drops results that name a layer which goes or is gone, that cannot be read, or that `-a` asks for. Returns
    /// their keys.
    fn drop_results<'a>(
        &self,
        policy: &Policy,
        snapshot: &'a Snapshot,
        marks: &Marks,
        layers: &[(LayerId, i64)],
        now: i64,
        collected: &mut Collected,
    ) -> Result<HashSet<&'a [u8]>, StoreError> {
        let going: BTreeSet<LayerId> = layers.iter().map(|(id, _)| *id).collect();
        let is_lost = |id: &LayerId| going.contains(id) || !snapshot.layers.contains_key(id);
        let is_all_held = |layers: &[LayerId]| layers.iter().all(|layer| marks.image_layers.contains(layer));
        let unreadable = snapshot.damaged_results.iter().chain(&snapshot.old_results);
        let damaged = unreadable.map(|(key, used)| (key.as_slice(), *used));
        let unwanted = snapshot
            .results
            .iter()
            .filter(|result| {
                result.layers.iter().any(is_lost)
                    || (policy.all
                        && policy.filters.is_empty()
                        && policy.max_used_bytes.is_none()
                        && policy.is_idle(result.used, now)
                        && is_all_held(&result.layers))
            })
            .map(|result| (result.key.as_slice(), result.used));
        let dropped: Vec<(&[u8], i64)> = damaged.chain(unwanted).collect();
        collected.results = self.store.drop_results(&dropped)?;
        Ok(dropped.into_iter().map(|(key, _)| key).collect())
    }

    /// Condemns nodes that no record leads to any more. Returns what each is needed for.
    fn condemn_nodes(
        &self,
        snapshot: &Snapshot,
        dropped: &HashSet<&[u8]>,
        gone: &BTreeSet<LayerId>,
    ) -> Result<Needs, StoreError> {
        let live: BTreeSet<Digest> = snapshot
            .layers
            .iter()
            .filter(|(id, row)| !row.is_condemned && !gone.contains(id))
            .filter_map(|(_, row)| row.diff_id)
            .collect();
        let useful = snapshot.useful_chains(|diff| live.contains(&diff.0));
        let is_useful = |chain: &[u8; 32]| useful.contains(chain);
        let unwanted = snapshot.chains.iter().filter(|(chain, roots)| roots.is_none() || !is_useful(chain));
        let chains: Vec<[u8; 32]> =
            unwanted.map(|(chain, _)| chain).chain(&snapshot.old_chains).copied().collect();
        self.store.drop_chains(&chains)?;
        let results = snapshot.results.iter().filter(|result| !dropped.contains(result.key.as_slice()));
        let chains = snapshot.chains.iter().filter(|(chain, _)| is_useful(chain));
        let results = results.flat_map(|result| &result.roots);
        let made = results.chain(chains.filter_map(|(_, roots)| roots.as_ref()).flatten()).copied();
        let kept = made.chain(snapshot.read_nodes.iter().copied()).map(|root| (root, Need::Records));
        // What goes now was reachable until now: a reader of this generation may have come by it.
        let until_now = roots(snapshot).map(|root| (root, Need::Readers));
        let mut needs = self.store.no_needs();
        self.store.note_needs(kept.chain(until_now).map(Ok), &mut needs)?;
        self.store.condemn_nodes(&needs)?;
        Ok(needs)
    }
}

/// What the store holds. Uses that builds noted in passing may be missing from it.
pub fn usage(store: &Store) -> Result<DiskUsage, StoreError> {
    let snapshot = store.snapshot()?;
    Ok(mark(store, &snapshot).usage(&snapshot, &store.cache_mounts()?))
}

fn mark(store: &Store, snapshot: &Snapshot) -> Marks {
    Marks::of(snapshot, |image| store.image_blobs(image))
}

fn roots(snapshot: &Snapshot) -> impl Iterator<Item = crate::tree::NodeDigest> + '_ {
    let results = snapshot.results.iter().flat_map(|result| &result.roots);
    let chains = snapshot.chains.values().flatten().flatten();
    results.chain(chains).chain(&snapshot.read_nodes).copied()
}

fn now_unix_ns() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX)
}
