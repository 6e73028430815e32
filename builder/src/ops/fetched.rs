//! What was fetched from outside, kept in the store as a layer on nothing: found, collected and checked like any other.

use std::sync::Arc;
use std::time::Instant;

use rbuild_cache::layer::{Change, LayerDiff};
use rbuild_cache::store::{Key, LayerDraft, ResultRecord};
use rbuild_cache::tree::Tree;
use rbuild_oci::CanonicalWriter;
use tokio::sync::SemaphorePermit;

use crate::error::StepFailure;
use crate::ops::{ExecEnv, size_bytes};
use crate::solve::Solved;
use crate::timestamp;

/// The key of a thing whose identity `write` writes.
pub fn key(domain: &str, write: impl FnOnce(&mut CanonicalWriter)) -> Key {
    let mut out = CanonicalWriter::new(domain);
    write(&mut out);
    Key::content(*blake3::hash(&out.finish()).as_bytes())
}

/// Waits for a turn to ask outside: [`ExecEnv::fetch_slots`]. Who has one waits for servers and the disk, for no lock and
/// no second turn; who waits for one has neither.
pub async fn turn(env: &ExecEnv) -> Result<SemaphorePermit<'_>, StepFailure> {
    tokio::select! {
        turn = env.fetch_slots.acquire() => Ok(turn.expect("the semaphore is never closed")),
        () = env.cancel.cancelled() => Err(StepFailure::Canceled),
    }
}

/// What is there already.
pub fn stored(env: &ExecEnv, key: &Key) -> Result<Option<Arc<Solved>>, StepFailure> {
    let Some(record) = env.store.result(key)? else { return Ok(None) };
    Ok(record.own_layer.map(|layer| Arc::new(Solved::whole(record.tree, vec![layer]))))
}

/// Refuses what a layer can hold only as the mark of a deletion.
pub fn plain_files(diff: LayerDiff, what: &str) -> Result<LayerDiff, StepFailure> {
    let is_mark = |change: &Change| matches!(change, Change::Whiteout | Change::Dir { opaque: true, .. });
    for entry in &diff {
        let entry = entry?;
        if is_mark(&entry.change) {
            let (what, path) = (what.to_owned(), entry.path.to_string());
            return Err(StepFailure::FetchedWhiteout { what, path });
        }
    }
    Ok(diff)
}

/// Keeps a filled draft.
pub fn store(
    env: &ExecEnv,
    key: &Key,
    description: &str,
    draft: LayerDraft,
    diff: LayerDiff,
    started: Instant,
) -> Result<Arc<Solved>, StepFailure> {
    let tree = Tree::empty().apply(&env.store, &diff, &env.store.scratch())?;
    let size = size_bytes(&diff)?;
    let layer = env.store.commit_layer(draft, &diff, size)?;
    let record = ResultRecord {
        tree: tree.clone(),
        tree_digest: tree.digest(),
        own_layer: Some(layer),
        stack: None,
        read: Vec::new(),
        created_unix_ns: timestamp::unix_ns(),
        exec_ns: u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX),
        description: description.to_owned(),
    };
    env.store.put_result(key, &record)?;
    Ok(Arc::new(Solved::whole(tree, vec![layer])))
}
