//! Condemning what was chosen and freeing what nobody can hold any more.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rbuild_oci::Digest;

use super::mark::{Marks, Object, Unit};
use super::policy::Policy;
use super::usage::DiskUsage;
use crate::layer::OverlayForm;
use crate::store::needed::{Need, Needs};
use crate::store::snapshot::{ResultRow, Snapshot, each};
use crate::store::{CacheMountInfo, Finding, LayerId, Lease, LockHolder, Store, StoreError, StoreOptions};

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
        Self::open_with(root, options, None)
    }

    /// [`Self::open`] that waits while another process collects; `waiting` is called once, before the wait, with the
    /// present holder. Blocks the thread; cannot be cancelled.
    pub fn open_after(
        root: &Path,
        options: StoreOptions,
        mut waiting: impl FnMut(LockHolder),
    ) -> Result<Self, StoreError> {
        let opened = Self::open_with(root, options, Some(&mut waiting))?;
        Ok(opened.expect("whoever waits gets it"))
    }

    fn open_with(
        root: &Path,
        options: StoreOptions,
        waiting: Option<&mut dyn FnMut(LockHolder)>,
    ) -> Result<Option<Self>, StoreError> {
        let Some((store, lock)) = Store::open_collector(root, options, waiting)? else { return Ok(None) };
        let lease = store.with_reserve(|| store.lease())?;
        Ok(Some(Self { store, lease, _lock: lock }))
    }

    /// Checks every byte of the store; `form` is how overlay marks are written in it. Sorted.
    pub fn fsck(&self, form: OverlayForm) -> Result<Vec<Finding>, StoreError> {
        self.store.fsck(&self.lease, form, false)
    }

    /// [`Self::fsck`], after which damaged bytes are in `quarantine/` and what relies on them is dropped. Also gives what
    /// is damaged after that: where the database itself is, a row may be found and not be found again to be removed.
    pub fn repair(&self, form: OverlayForm) -> Result<(Vec<Finding>, Vec<Finding>), StoreError> {
        let findings = self.store.fsck(&self.lease, form, true)?;
        let mut left = Vec::new();
        if findings.iter().any(Finding::is_damage) {
            left = self.fsck(form)?;
            left.retain(Finding::is_damage);
        }
        Ok((findings, left))
    }

    /// What [`Self::run`] would give up, without doing it: ids and bytes in the order of sacrifice.
    pub fn preview(&self, policy: &Policy) -> Result<Vec<(String, u64)>, StoreError> {
        let snapshot = self.store.snapshot()?;
        let marks = mark(&self.store, &snapshot)?;
        let mounts = self.store.cache_mounts()?;
        let units = units(&snapshot, &marks, &mounts);
        let chosen = self.choose(policy, &snapshot, &marks, &mounts, &units, now_unix_ns())?;
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
        store.open_reserve()?;
        store.tidy(&self.lease)?;
        store.refuse_lost_names()?;
        let snapshot = store.snapshot()?;
        let marks = mark(store, &snapshot)?;
        let (layers, blobs) = marks.wrongly_condemned(&snapshot);
        store.reprieve(&layers, &blobs)?;

        let mut collected = Collected::default();
        let mounts = store.cache_mounts()?;
        let units = units(&snapshot, &marks, &mounts);
        let chosen = self.choose(policy, &snapshot, &marks, &mounts, &units, now)?;
        let used_blob = |digest| snapshot.blobs.get(&digest).map(|row| (digest, row.used));
        let (mut layers, mut blobs) = (Vec::new(), Vec::new());
        for unit in &chosen {
            match unit.object {
                Object::Layer(id) => layers.extend(snapshot.layers.get(&id).map(|row| (id, row.used))),
                Object::Blob(digest) => blobs.extend(used_blob(digest)),
                Object::Mount(_) => {}
            }
        }
        meanwhile();
        let going: BTreeSet<LayerId> = layers.iter().map(|(id, _)| *id).collect();
        let goes = |result: &ResultRow| {
            let is_lost = |id: &LayerId| going.contains(id) || !snapshot.layers.contains_key(id);
            result.layers.iter().any(is_lost)
                || (policy.all
                    && policy.filters.is_empty()
                    && policy.max_used_bytes.is_none()
                    && policy.is_idle(result.used, now)
                    && result.layers.iter().all(|layer| marks.image_layers.contains(layer)))
        };
        collected.results = self.drop_results(&snapshot, goes)?;
        let gone_layers: BTreeSet<LayerId> = store.condemn_layers(&layers)?.into_iter().collect();
        // A pulled layer's blob goes only when the layer does.
        blobs.extend(chosen.iter().filter_map(|unit| match unit.object {
            Object::Layer(id) if gone_layers.contains(&id) => unit.blob.and_then(used_blob),
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
        let mut needs = self.condemn_nodes(&snapshot, goes, &gone_layers)?;
        drop((snapshot, marks, units, mounts));
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
            store.note_needs(later.roots().map(|root| Ok((root?, Need::Records))), &mut needs)?;
            collected.nodes = store.free_nodes(oldest, &needs)?;
        }
        if oldest > listed_in {
            collected.orphans += store.remove_orphan_layers(&self.lease, &orphans)?;
        }
        collected.orphans += store.remove_orphan_blobs(&self.lease)?;
        store.empty_trash(&self.lease)?;
        collected.deferred_bytes = store.condemned_bytes()?;
        store.checkpoint()?;
        store.fill_reserve();
        Ok(collected)
    }

    fn choose<'a>(
        &self,
        policy: &Policy,
        snapshot: &Snapshot,
        marks: &Marks,
        mounts: &[CacheMountInfo],
        units: &'a [Unit],
        now: i64,
    ) -> Result<Vec<&'a Unit>, StoreError> {
        // Only filters ask who holds what.
        let meant = match policy.filters.is_empty() {
            true => None,
            false => Some(policy.meant(&usage_of(&self.store, snapshot, marks, mounts)?)),
        };
        Ok(policy.choose(units, meant.as_ref(), self.store.disk()?.0, now))
    }

    /// Drops results that name a layer which goes or is gone, that cannot be read, or that `-a` asks for: those that
    /// `goes` says, and what cannot be read. Returns how many.
    fn drop_results(
        &self,
        snapshot: &Snapshot,
        goes: impl Fn(&ResultRow) -> bool,
    ) -> Result<u64, StoreError> {
        let unread = snapshot.unread_results().map(|row| row.map(|row| (row.key, row.used)));
        let unwanted = snapshot.results().filter(|row| row.as_ref().map_or(true, &goes));
        self.store.drop_results(unread.chain(unwanted.map(|row| row.map(|row| (row.key, row.used)))))
    }

    /// Condemns nodes that no record leads to any more: no result but those of which `goes` says that they were dropped, and
    /// no chain of layers of which some are in `gone`. Returns what each is needed for.
    fn condemn_nodes(
        &self,
        snapshot: &Snapshot,
        goes: impl Fn(&ResultRow) -> bool,
        gone: &BTreeSet<LayerId>,
    ) -> Result<Needs, StoreError> {
        let useful = snapshot.useful_chains(gone)?;
        let is_useful = |chain: &[u8; 32]| snapshot.is_among(&useful, chain);
        let chains = || {
            snapshot.chains().map(|row| {
                let row = row?;
                Ok((is_useful(&row.chain)?, row))
            })
        };
        let unwanted = chains().filter_map(|chain| match chain {
            Ok((true, _)) => None,
            Ok((false, row)) => Some(Ok(row.chain)),
            Err(error) => Some(Err(error)),
        });
        let unread = snapshot.unread_chains().map(|row| row.map(|(chain, _)| chain));
        self.store.drop_chains(unread.chain(unwanted))?;
        let results = snapshot.results().filter(|row| row.as_ref().map_or(true, |row| !goes(row)));
        let results = results.flat_map(|row| each(row.map(|row| row.roots)));
        let chains = chains().flat_map(|chain| {
            each(chain.map(|(is_useful, row)| if is_useful { row.roots } else { Vec::new() }))
        });
        let kept = results.chain(chains).chain(snapshot.read_nodes());
        let kept = kept.map(|root| Ok((root?, Need::Records)));
        // What goes now was reachable until now: a reader of this generation may have come by it.
        let until_now = snapshot.roots().map(|root| Ok((root?, Need::Readers)));
        let mut needs = self.store.no_needs();
        self.store.note_needs(kept.chain(until_now), &mut needs)?;
        self.store.condemn_nodes(&needs)?;
        Ok(needs)
    }
}

/// What the store holds. Uses that builds noted in passing may be missing from it.
pub fn usage(store: &Store) -> Result<DiskUsage, StoreError> {
    let snapshot = store.snapshot()?;
    usage_of(store, &snapshot, &mark(store, &snapshot)?, &store.cache_mounts()?)
}

fn usage_of(
    store: &Store,
    snapshot: &Snapshot,
    marks: &Marks,
    mounts: &[CacheMountInfo],
) -> Result<DiskUsage, StoreError> {
    DiskUsage::of(snapshot, marks, |image| store.image_blobs(image), mounts)
}

fn mark(store: &Store, snapshot: &Snapshot) -> Result<Marks, StoreError> {
    Marks::of(snapshot, |image| store.image_blobs(image))
}

fn units(snapshot: &Snapshot, marks: &Marks, mounts: &[CacheMountInfo]) -> Vec<Unit> {
    let mut units = marks.units(snapshot);
    units.extend(Marks::mount_units(mounts));
    units
}

fn now_unix_ns() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX)
}
