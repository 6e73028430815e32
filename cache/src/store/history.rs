//! What was executed, and why: the past that a miss is compared with.
//!
//! One row for each execution of a step, written beside its results, and one for each hit that is not what its step was
//! made from last, there: found elsewhere, or gone back to. A build that is repeated writes nothing.
//! The text is the builder's; here it is only sealed, bounded and forgotten in time:
//!
//! * of one step (equal `scope` and `text`) the last [`PER_STEP`] executions stay, of all the last [`ROWS_MAX`];
//! * results that are given up or set aside leave their execution with the time and the reason;
//! * rows keep the directory nodes they name from being collected. Losing one makes an explanation coarser, nothing
//!   else, so rows carry no mark of durability.

use std::collections::{BTreeMap, HashSet};
use std::ops::RangeInclusive;

use rusqlite::{Connection, OptionalExtension as _, Transaction};

use super::db::{DbError, now_unix_ns, seal};
use super::error::StoreError;
use super::{Key, KeyKind, Store};
use crate::tree::NodeDigest;

/// Executions kept of one step.
const PER_STEP: i64 = 8;
/// Executions kept in all.
const ROWS_MAX: i64 = 4096;
/// Longest record kept, in bytes; an execution with a longer one is not remembered.
pub const EXECUTION_BYTES_MAX: usize = 64 * 1024;
/// Nodes of one execution kept; beyond, explanations are coarser.
const NODES_MAX: usize = 64;
const NODE_BYTES: usize = 32;

/// One execution of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Execution {
    /// The build that executed it.
    pub build: u64,
    /// Where the step stands: equal for all versions of one stage of one Dockerfile.
    pub scope: [u8; 32],
    /// Digest of the step as it is written.
    pub text: [u8; 32],
    /// Its definition key.
    pub def: Key,
    /// Its content key.
    pub key: Key,
    /// When it ended, nanoseconds since the epoch.
    pub at_unix_ns: i64,
    /// What the builder wants to know of it later.
    pub record: String,
    /// Root nodes of what it read, to be kept with it.
    pub nodes: Vec<NodeDigest>,
}

/// Why a result is not there any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoneWhy {
    /// It was given up for its space.
    Evicted,
    /// It was found damaged.
    Damaged,
}

/// A hit on a result whose step stands somewhere else, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// As [`Execution::scope`].
    pub scope: [u8; 32],
    /// As [`Execution::text`].
    pub text: [u8; 32],
    /// Its definition key here.
    pub def: Key,
    /// The key it was found by.
    pub found_by: Key,
}

/// An execution as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastExecution {
    /// Larger is later.
    pub id: i64,
    /// What was executed.
    pub execution: Execution,
    /// When and why its result went, nanoseconds since the epoch. Kept also after the step has run again.
    pub gone: Option<(i64, GoneWhy)>,
}

impl GoneWhy {
    fn text(self) -> &'static str {
        match self {
            Self::Evicted => "evicted",
            Self::Damaged => "damaged",
        }
    }
}

impl Sighting {
    fn column(&self) -> &'static str {
        match self.found_by.kind {
            KeyKind::Def => "def",
            KeyKind::Content => "key",
        }
    }
}

impl Store {
    /// Remembers an execution and forgets what is beyond the bounds.
    pub fn put_execution(&self, execution: &Execution) -> Result<(), StoreError> {
        if execution.record.len() > EXECUTION_BYTES_MAX {
            return Ok(());
        }
        let nodes: Vec<u8> = execution.nodes.iter().take(NODES_MAX).flat_map(|node| node.0).collect();
        let key = execution.key.to_bytes();
        let sealed = sealed(&key, &execution.record, &nodes);
        let build = execution.build.cast_signed();
        self.inner.index.write("remember an execution", |transaction| {
            let sql = "INSERT INTO executions (build, scope, text, def, key, at, record, nodes, seal)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
            let (scope, text, at) = (execution.scope, execution.text, execution.at_unix_ns);
            let def = execution.def.to_bytes();
            let row = (build, scope, text, def, key, at, &execution.record, &nodes, sealed);
            transaction.prepare_cached(sql)?.execute(row)?;
            forget(transaction, &scope, &text)
        })
    }

    /// Remembers for each hit what its step was made from, where that is not what the latest execution there says: it was
    /// executed elsewhere, or something else was built since. The next miss is compared with it. Writes nothing when a
    /// build is repeated. `last_covers`: the definition of the last is made of the others', so that where nothing was
    /// remembered since that, nothing has changed.
    pub fn sight(&self, sightings: &[Sighting], last_covers: bool) -> Result<(), StoreError> {
        let new = self
            .inner
            .index
            .read("look for executions", |connection| not_latest(connection, sightings, last_covers))?;
        if new.is_empty() {
            return Ok(());
        }
        self.inner.index.write("remember hits", |transaction| {
            for sighting @ Sighting { scope, text, def, found_by } in new {
                let sql = format!(
                    "INSERT INTO executions (build, scope, text, def, key, at, record, nodes, seal)
                     SELECT 0, ?1, ?2, ?3, key, at, record, nodes, seal FROM executions
                     WHERE {} = ?4 ORDER BY id DESC LIMIT 1",
                    sighting.column()
                );
                let def = def.to_bytes();
                let row = (scope, text, def, found_by.to_bytes());
                if transaction.prepare_cached(&sql)?.execute(row)? > 0 {
                    // One sighting is enough; what was executed stays told as such.
                    let sql = "DELETE FROM executions
                        WHERE build = 0 AND scope = ?1 AND text = ?2 AND def = ?3 AND id <> last_insert_rowid()";
                    transaction.prepare_cached(sql)?.execute((scope, text, def))?;
                    forget(transaction, scope, text)?;
                }
            }
            Ok(())
        })
    }

    /// Executions of a range of scopes in other builds than `build`; at most `limit`, latest first.
    pub fn executions_in(
        &self,
        scopes: &RangeInclusive<[u8; 32]>,
        build: u64,
        limit: u32,
    ) -> Result<Vec<PastExecution>, StoreError> {
        self.inner.index.read("look for earlier executions", |connection| {
            let which = "WHERE scope BETWEEN ?1 AND ?2 AND build <> ?3 ORDER BY id DESC LIMIT ?4";
            list(connection, which, (scopes.start(), scopes.end(), build.cast_signed(), limit))
        })
    }

    /// The last execution with this key in another build than `build`, wherever it was.
    pub fn execution_of(&self, key: &Key, build: u64) -> Result<Option<PastExecution>, StoreError> {
        self.inner.index.read("look for an earlier execution", |connection| {
            let which = "WHERE key = ?1 AND build <> ?2 ORDER BY id DESC LIMIT 1";
            Ok(list(connection, which, (key.to_bytes(), build.cast_signed()))?.pop())
        })
    }

    /// The last executions, latest first.
    pub fn executions(&self, limit: u32) -> Result<Vec<PastExecution>, StoreError> {
        self.inner
            .index
            .read("list executions", |connection| list(connection, "ORDER BY id DESC LIMIT ?1", [limit]))
    }
}

/// Those of which their step was not made last, as far as it is known how they were made. One step may stand for several: one on each platform, or one that is
/// written twice.
fn not_latest<'a>(
    connection: &Connection,
    sightings: &'a [Sighting],
    last_covers: bool,
) -> Result<Vec<&'a Sighting>, DbError> {
    if let (Some(Sighting { scope, text, def, .. }), true) = (sightings.last(), last_covers) {
        let sql = "SELECT def = ?1 AND scope = ?2 AND text = ?3 FROM executions ORDER BY id DESC LIMIT 1";
        let row = (def.to_bytes(), scope, text);
        let is_latest = connection.prepare_cached(sql)?.query_row(row, |row| row.get(0)).optional()?;
        if is_latest == Some(true) {
            return Ok(Vec::new());
        }
    }
    let mut alike: BTreeMap<([u8; 32], [u8; 32]), Vec<&Sighting>> = BTreeMap::new();
    for sighting in sightings {
        alike.entry((sighting.scope, sighting.text)).or_default().push(sighting);
    }
    let sql = "SELECT def FROM executions WHERE scope = ?1 AND text = ?2
        GROUP BY def ORDER BY max(id) DESC LIMIT ?3";
    let mut statement = connection.prepare_cached(sql)?;
    let mut new: HashSet<Key> = HashSet::new();
    for ((scope, text), group) in alike {
        let defs: HashSet<Key> = group.iter().map(|sighting| sighting.def).collect();
        // No more are kept.
        let count = i64::try_from(defs.len()).map_or(PER_STEP, |count| count.min(PER_STEP));
        let rows = statement.query_map((scope, text, count), |row| row.get::<_, Vec<u8>>(0))?;
        let latest = rows.collect::<Result<Vec<_>, _>>()?;
        let is_full = i64::try_from(latest.len()) == Ok(count);
        let latest: HashSet<Option<Key>> = latest.iter().map(|def| Key::from_bytes(def)).collect();
        let is_other = |def: &Option<Key>| def.is_none_or(|def| !defs.contains(&def));
        match latest.iter().any(is_other) {
            true => new.extend(defs),
            false if is_full => {}
            false => new.extend(defs.into_iter().filter(|def| !latest.contains(&Some(*def)))),
        }
    }
    let mut found = Vec::new();
    for sighting in sightings.iter().filter(|sighting| new.contains(&sighting.def)) {
        let sql = format!("SELECT EXISTS (SELECT 1 FROM executions WHERE {} = ?1)", sighting.column());
        let row = [sighting.found_by.to_bytes()];
        if connection.prepare_cached(&sql)?.query_row(row, |row| row.get(0))? {
            found.push(sighting);
        }
    }
    Ok(found)
}

/// Deletes what is beyond the bounds after an insertion.
fn forget(transaction: &Transaction<'_>, scope: &[u8; 32], text: &[u8; 32]) -> Result<(), DbError> {
    let id = transaction.last_insert_rowid();
    let sql = "DELETE FROM executions WHERE scope = ?1 AND text = ?2 AND id NOT IN
        (SELECT id FROM executions WHERE scope = ?1 AND text = ?2 ORDER BY id DESC LIMIT ?3)";
    transaction.prepare_cached(sql)?.execute((scope, text, PER_STEP))?;
    transaction.prepare_cached("DELETE FROM executions WHERE id <= ?1")?.execute([id - ROWS_MAX])?;
    Ok(())
}

/// Notes that results went, in the transaction that removes them.
pub(super) fn note_gone<'a>(
    transaction: &Transaction<'_>,
    keys: impl IntoIterator<Item = &'a [u8]>,
    why: GoneWhy,
) -> Result<(), DbError> {
    let mut statement = transaction.prepare_cached(
        "UPDATE executions SET gone_at = ?2, gone_why = ?3 WHERE key = ?1 AND gone_at IS NULL",
    )?;
    let now = now_unix_ns();
    for key in keys {
        statement.execute((key, now, why.text()))?;
    }
    Ok(())
}

/// Notes that all results went, in the transaction that removes them. The nodes that executions name went with them: what
/// changed since cannot be told any more.
pub(super) fn note_all_gone(transaction: &Transaction<'_>, why: GoneWhy) -> Result<(), DbError> {
    let sql = "UPDATE executions SET gone_at = ?1, gone_why = ?2 WHERE gone_at IS NULL";
    transaction.execute(sql, (now_unix_ns(), why.text()))?;
    Ok(())
}

/// Shows `take` the root nodes that each execution names, for [`split`].
pub(super) fn each_nodes(
    connection: &Connection,
    mut take: impl FnMut(&[u8]) -> Result<(), DbError>,
) -> Result<(), DbError> {
    let mut statement = connection.prepare("SELECT nodes FROM executions")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        take(&row.get::<_, Vec<u8>>(0)?)?;
    }
    Ok(())
}

/// Rows that do not hold what was written.
pub(super) fn damaged(connection: &Connection) -> Result<Vec<i64>, DbError> {
    let mut statement = connection.prepare("SELECT id, key, record, nodes, seal FROM executions")?;
    let mut rows = statement.query([])?;
    let mut damaged = Vec::new();
    while let Some(row) = rows.next()? {
        let id = row.get(0)?;
        let whole = (|| {
            let (key, record) = (row.get::<_, Vec<u8>>(1).ok()?, row.get::<_, String>(2).ok()?);
            let (nodes, seal) = (row.get::<_, Vec<u8>>(3).ok()?, row.get::<_, [u8; 8]>(4).ok()?);
            (sealed(&key, &record, &nodes) == seal).then_some(())
        })();
        if whole.is_none() {
            damaged.push(id);
        }
    }
    Ok(damaged)
}

/// Damaged rows are passed over.
fn list(
    connection: &Connection,
    which: &str,
    parameters: impl rusqlite::Params,
) -> Result<Vec<PastExecution>, DbError> {
    let sql = format!(
        "SELECT id, build, scope, text, key, at, record, nodes, seal, gone_at, gone_why, def
         FROM executions {which}"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(parameters)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let (key, record, nodes): (Vec<u8>, String, Vec<u8>) = (row.get(4)?, row.get(6)?, row.get(7)?);
        let is_whole = row.get(8).ok() == Some(sealed(&key, &record, &nodes));
        let def = Key::from_bytes(&row.get::<_, Vec<u8>>(11)?);
        let (Some(key), Some(def), true) = (Key::from_bytes(&key), def, is_whole) else { continue };
        let gone = match (row.get::<_, Option<i64>>(9)?, row.get::<_, Option<String>>(10)?.as_deref()) {
            (Some(at), Some("damaged")) => Some((at, GoneWhy::Damaged)),
            (Some(at), _) => Some((at, GoneWhy::Evicted)),
            (None, _) => None,
        };
        let execution = Execution {
            build: row.get::<_, i64>(1)?.cast_unsigned(),
            scope: row.get(2)?,
            text: row.get(3)?,
            def,
            key,
            at_unix_ns: row.get(5)?,
            record,
            nodes: split(&nodes),
        };
        found.push(PastExecution { id: row.get(0)?, execution, gone });
    }
    Ok(found)
}

fn sealed(key: &[u8], record: &str, nodes: &[u8]) -> [u8; 8] {
    seal("execution", &[key, nodes].concat(), record.as_bytes())
}

/// Nodes of an execution.
pub(super) fn split(nodes: &[u8]) -> Vec<NodeDigest> {
    let chunks = nodes.chunks_exact(NODE_BYTES);
    chunks.filter_map(|chunk| chunk.try_into().ok().map(NodeDigest)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreOptions;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreOptions { id_map: "t".into(), durable: false }).unwrap();
        (dir, store)
    }

    fn execution(n: u8, text: u8) -> Execution {
        Execution {
            build: u64::MAX - u64::from(n),
            scope: [1; 32],
            text: [text; 32],
            def: Key::def([n; 32]),
            key: Key::content([n; 32]),
            at_unix_ns: i64::from(n),
            record: format!("record {n}"),
            nodes: vec![NodeDigest([n; 32])],
        }
    }

    #[test]
    fn the_last_executions_of_a_step_stay_and_come_back_whole() {
        let (_dir, store) = store();
        let count = u8::try_from(2 * PER_STEP + 2).unwrap();
        for n in 0..count {
            store.put_execution(&execution(n, n % 2)).unwrap();
        }
        let found = store.executions_in(&([1; 32]..=[1; 32]), 0, 100).unwrap();
        let kept: Vec<_> = found.iter().map(|past| past.execution.clone()).collect();
        assert_eq!(kept, (2..count).rev().map(|n| execution(n, n % 2)).collect::<Vec<_>>());
        let of = |n| store.execution_of(&Key::content([n; 32]), 0).unwrap().map(|past| past.execution);
        assert_eq!((of(0), of(7)), (None, Some(execution(7, 1))));
        assert_eq!(store.executions_in(&([0; 32]..=[3; 32]), 0, 100).unwrap(), found);
        assert_eq!(store.executions_in(&([2; 32]..=[3; 32]), 0, 100).unwrap(), []);
    }

    #[test]
    fn a_long_build_does_not_stand_before_those_before_it() {
        let (_dir, store) = store();
        store.put_execution(&execution(0, 0)).unwrap();
        let running = execution(1, 1).build;
        for n in 1..20 {
            store.put_execution(&Execution { build: running, ..execution(n, n) }).unwrap();
        }
        let found = store.executions_in(&([1; 32]..=[1; 32]), running, 4).unwrap();
        assert_eq!(found.into_iter().map(|past| past.execution).collect::<Vec<_>>(), [execution(0, 0)]);
        assert!(store.execution_of(&Key::content([5; 32]), running).unwrap().is_none());
    }

    #[test]
    fn a_hit_on_what_another_stage_made_is_remembered_once() {
        let (_dir, store) = store();
        store.put_execution(&execution(1, 0)).unwrap();
        let by_def =
            Sighting { scope: [2; 32], text: [9; 32], def: Key::def([1; 32]), found_by: Key::def([1; 32]) };
        let by_key =
            Sighting { scope: [3; 32], def: Key::def([7; 32]), found_by: Key::content([1; 32]), ..by_def };
        let unknown = Sighting { found_by: Key::def([77; 32]), def: Key::def([77; 32]), ..by_def };
        for _ in 0..2 {
            store.sight(&[by_def], true).unwrap();
            store.sight(&[by_key], false).unwrap();
            store.sight(&[unknown], true).unwrap();
        }
        let found = store.executions(10).unwrap();
        assert_eq!(found.len(), 3);
        assert_eq!(
            found[0].execution,
            Execution { build: 0, scope: [3; 32], text: [9; 32], def: Key::def([7; 32]), ..execution(1, 0) }
        );
    }

    /// Ids and definitions, latest first.
    fn latest(store: &Store) -> Vec<(i64, Key)> {
        let found = store.executions_in(&([1; 32]..=[1; 32]), 77, 100).unwrap();
        found.into_iter().map(|past| (past.id, past.execution.def)).collect()
    }

    fn hit(n: u8, text: u8) -> Sighting {
        let def = Key::def([n; 32]);
        Sighting { scope: [1; 32], text: [text; 32], def, found_by: def }
    }

    #[test]
    fn what_was_gone_back_to_is_the_latest_again() {
        let (_dir, store) = store();
        // Two steps, made twice; the second time only the first of them got far.
        for n in [1, 2, 3] {
            store.put_execution(&execution(n, n % 2)).unwrap();
        }
        let back = [hit(1, 1), hit(2, 0)];
        store.sight(&back, true).unwrap();
        let after = latest(&store);
        assert_eq!(after[0].1, Key::def([1; 32]), "{after:?}");
        assert_eq!(after.len(), 4, "what was executed is told as such all the same");
        store.sight(&back, true).unwrap();
        assert_eq!(latest(&store), after, "a repeated build writes nothing");
        // There and back, as often as one likes.
        for _ in 0..5 {
            store.sight(&[hit(3, 1), hit(2, 0)], true).unwrap();
            assert_eq!(latest(&store)[0].1, Key::def([3; 32]));
            store.sight(&back, true).unwrap();
            assert_eq!(latest(&store)[0].1, Key::def([1; 32]));
        }
        assert!(store.executions(10).unwrap().iter().any(|past| past.execution == execution(3, 1)));
    }

    #[test]
    fn a_step_that_stands_for_several_is_none_of_them_gone_back_to() {
        let (_dir, store) = store();
        for n in [1, 2, 3] {
            store.put_execution(&execution(n, 0)).unwrap();
        }
        let platforms = [hit(1, 0), hit(2, 0)];
        store.sight(&platforms, false).unwrap();
        let after = latest(&store);
        let defs: Vec<Key> = after.iter().map(|(_, def)| *def).collect();
        assert_eq!(defs[..3], [2, 1, 3].map(|n| Key::def([n; 32])));
        store.sight(&platforms, false).unwrap();
        assert_eq!(latest(&store), after);
        // More than are kept.
        let many: Vec<Sighting> = (1..=6).map(|n| hit(n, 0)).collect();
        for n in 4..=6 {
            store.put_execution(&execution(n, 0)).unwrap();
        }
        let after = latest(&store);
        store.sight(&many, false).unwrap();
        assert_eq!(latest(&store), after);
    }

    #[test]
    fn what_went_says_why_and_a_flipped_record_is_passed_over() {
        let (_dir, store) = store();
        store.put_execution(&execution(1, 0)).unwrap();
        store.put_execution(&execution(2, 0)).unwrap();
        let key = Key::content([1; 32]).to_bytes();
        let note = |t: &Transaction<'_>| note_gone(t, [key.as_slice()], GoneWhy::Damaged);
        store.inner.index.write("test", note).unwrap();
        let sql = "UPDATE executions SET record = 'recorD 2' WHERE at = 2";
        store.inner.index.write("test", |t| Ok(t.execute(sql, [])?)).unwrap();
        let found = store.executions(10).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].gone.map(|(_, why)| why), Some(GoneWhy::Damaged));
        assert_eq!(store.inner.index.read("test", damaged).unwrap(), [2]);
    }
}
