//! Cache mounts: taken before the step has a place to run, so that who waits for a cache keeps no place from who has it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rbuild_cache::copy::FileSource;
use rbuild_cache::store::{CacheMount as StoredMount, CacheMountId, CacheMountSpec, MountSharing};
use rbuild_cache::tree::{Kind, Meta};
use rbuild_frontend::graph::{CacheMount, Mount, RunOp, Sharing};

use super::bind::copy_out;
use super::{MountInput, owner};
use crate::error::StepFailure;
use crate::ops::ExecEnv;
use crate::ops::copy::Origin;
use crate::progress::VertexId;

/// The caches of a step, by index of the mount; one that is mounted twice is held once.
pub type Caches = BTreeMap<usize, Arc<StoredMount>>;

/// Takes all caches of a step; blocks while others have them. All of a step are taken in one order, so that two steps never
/// wait for each other.
pub fn take(
    env: &ExecEnv,
    op: &RunOp,
    inputs: &[MountInput],
    vertex: VertexId,
    step: &str,
) -> Result<Caches, StepFailure> {
    let mut wanted: BTreeMap<CacheMountId, Vec<(usize, &CacheMount)>> = BTreeMap::new();
    for (index, mount) in op.mounts.iter().enumerate() {
        if let Mount::Cache(cache) = mount {
            let spec = spec(env, cache, input(inputs, index));
            wanted.entry(spec.mount_id()).or_default().push((index, cache));
        }
    }
    let mut taken = Caches::new();
    for mounts in wanted.into_values() {
        let (index, cache) = mounts[0];
        let input = input(inputs, index);
        let sharing = mounts.iter().map(|(_, cache)| cache.sharing).max_by_key(|sharing| match sharing {
            Sharing::Shared => 0,
            Sharing::Private => 1,
            Sharing::Locked => 2,
        });
        let sharing = match sharing.unwrap_or_default() {
            Sharing::Shared => MountSharing::Shared,
            Sharing::Private => MountSharing::Private,
            Sharing::Locked => MountSharing::Locked,
        };
        let waiting = |holder: rbuild_cache::store::LockHolder| {
            let user = match holder.pid {
                0 => "another step".to_owned(),
                pid if pid == std::process::id() => format!("`{}`", holder.description),
                pid => format!("`{}` in another build (pid {pid})", holder.description),
            };
            env.events.note(vertex, format!("waiting for the cache `{}`, which {user} uses", cache.id));
        };
        let fill = |dir: &Path| input.map_or(Ok(()), |input| fill(env, cache, input, dir));
        let spec = spec(env, cache, input);
        let held = env.store.cache_mount(&spec, sharing, &env.lease, step, waiting, &fill)?;
        let held = Arc::new(held);
        taken.extend(mounts.iter().map(|(index, _)| (*index, Arc::clone(&held))));
    }
    Ok(taken)
}

fn input(inputs: &[MountInput], index: usize) -> Option<&MountInput> {
    inputs.iter().find(|input| input.index == index)
}

fn spec(env: &ExecEnv, cache: &CacheMount, input: Option<&MountInput>) -> CacheMountSpec {
    let (uid, gid) = owner(env, cache.uid, cache.gid);
    CacheMountSpec {
        namespace: env.steps.cache_namespace.clone(),
        id: cache.id.clone(),
        mode: cache.mode,
        uid,
        gid,
        initial: input.map(|input| input.mounted.digest),
    }
}

/// Copies what a new cache starts with.
fn fill(env: &ExecEnv, cache: &CacheMount, input: &MountInput, dir: &Path) -> Result<(), StepFailure> {
    if !matches!(input.mounted.selected.entry.kind, Kind::Dir(_)) {
        return Err(StepFailure::CacheFromFile { path: format!("/{}", input.mounted.selected.path) });
    }
    let (uid, gid) = owner(env, cache.uid, cache.gid);
    let root = Meta { mode: cache.mode, uid, gid, ..Meta::default() };
    let nodes = crate::context::nodes_of(&env.store, &input.origin, None);
    let files: Box<dyn FileSource> = match &input.origin {
        Origin::Context(context) => Box::new(context.files()?),
        Origin::Stage(solved) => Box::new(env.stack_source(solved)?),
        Origin::Inline | Origin::Added { .. } => return Ok(()),
    };
    copy_out(env, &nodes, files.as_ref(), &input.mounted, root, cache.from_context, dir)
}
