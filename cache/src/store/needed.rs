//! Which directory nodes are needed, and the transactions that condemn and free the others.
//!
//! A store has a node for every directory of every tree in it. So what each is needed for is in a table that goes to a file
//! when it grows, as does what a walk has still to visit; and nodes that nothing led to are in neither. What is to become of
//! them all is found out going through the store's own list, as many at once as one transaction takes.

pub(super) mod stack;

use std::io;

use rusqlite::{CachedStatement, OptionalExtension};

use self::stack::Stack;
use super::db::DbError;
use super::error::{IoContext, StoreError};
use super::{Store, readers};
use crate::digest_table::DigestTable;
use crate::scratch::Scratch;
use crate::tree::{DirNode, NodeDigest};

/// Nodes freed per transaction: none keeps builds waiting for long.
const BATCH: usize = if cfg!(test) { 3 } else { 1024 };
/// Nodes condemned per transaction: mostly all. Until the last is, some wait for fewer readers than they should.
const CONDEMNED_AT_ONCE: usize = if cfg!(test) { 3 } else { 1 << 16 };
/// A table of nodes in memory: some hundred thousand.
const HELD_BYTES: usize = if cfg!(test) { 600 } else { 5 << 20 };

/// What a node is needed for; more for a node is more for all below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    /// Nothing leads to it.
    Nothing,
    /// What leads to it goes now: a reader of this generation may have come by it.
    Readers,
    /// Something that stays leads to it.
    Records,
}

/// What the nodes of a store are needed for.
pub(crate) struct Needs {
    table: DigestTable<1>,
    /// Those that were not there or could not be read: a build may store them meanwhile, and then what is below them is
    /// needed.
    lost: Stack,
    scratch: Scratch,
}

/// Going down from nodes.
struct Walk<'a> {
    store: &'a Store,
    bytes_of: CachedStatement<'a>,
    needs: &'a mut Needs,
    /// Where to go on.
    work: Stack,
}

/// What is to become of a node's row among the condemned.
#[derive(Debug, Clone, Copy)]
enum Change {
    Condemn,
    TakeBack,
}

impl Need {
    fn of([value]: [u8; 1]) -> Self {
        match value {
            0 => Self::Nothing,
            1 => Self::Readers,
            _ => Self::Records,
        }
    }

    fn change(self, is_condemned: bool) -> Option<Change> {
        match (self, is_condemned) {
            (Self::Records, true) => Some(Change::TakeBack),
            // One that nothing led to keeps its generation, or it would wait for ever on a busy machine.
            (Self::Records, false) | (Self::Nothing, true) => None,
            (Self::Readers, _) | (Self::Nothing, false) => Some(Change::Condemn),
        }
    }
}

impl Needs {
    /// Nothing leads anywhere so far.
    fn new(scratch: Scratch) -> Self {
        Self { table: DigestTable::new(&scratch, HELD_BYTES), lost: Stack::new(&scratch), scratch }
    }

    /// True if it is news that the node is needed for so much: then what is below it is, too.
    fn raise(&mut self, node: &NodeDigest, need: Need) -> io::Result<bool> {
        self.table.change(&node.0, |before| {
            before.is_none_or(|before| Need::of(before) < need).then_some([need as u8])
        })
    }

    fn of(&self, node: &NodeDigest) -> io::Result<Need> {
        Ok(self.table.get(&node.0)?.map_or(Need::Nothing, Need::of))
    }
}

impl Walk<'_> {
    /// Notes that what it is to go on with, and all below that, is needed for so much.
    fn go_on(&mut self, need: Need) -> Result<(), DbError> {
        while let Some(node) = self.store.in_scratch(self.work.pop())? {
            if self.store.in_scratch(self.needs.raise(&node, need))? {
                self.visit(&node)?;
            }
        }
        Ok(())
    }

    /// It is to go on with what a node names.
    fn visit(&mut self, digest: &NodeDigest) -> Result<(), DbError> {
        let bytes: Option<Vec<u8>> = self.bytes_of.query_row([digest.0], |row| row.get(0)).optional()?;
        let pushed = match bytes.and_then(|bytes| DirNode::decode(&bytes).ok()) {
            Some(node) => node.below().try_for_each(|node| self.work.push(node)),
            None => self.needs.lost.push(*digest),
        };
        Ok(self.store.in_scratch(pushed)?)
    }
}

impl Store {
    /// For [`Self::note_needs`].
    pub(crate) fn no_needs(&self) -> Needs {
        Needs::new(self.scratch())
    }

    /// Notes what `roots` and all nodes below them are needed for, and what is below those that were lost the last time.
    /// Missing and damaged nodes lead nowhere.
    pub(crate) fn note_needs(
        &self,
        roots: impl IntoIterator<Item = Result<(NodeDigest, Need), StoreError>>,
        needs: &mut Needs,
    ) -> Result<(), StoreError> {
        self.inner.trees.read("walk trees", |connection| {
            let bytes_of = connection.prepare_cached("SELECT bytes FROM nodes WHERE digest = ?1")?;
            let mut walk = Walk { store: self, bytes_of, work: Stack::new(&needs.scratch), needs };
            let mut lost = std::mem::replace(&mut walk.needs.lost, Stack::new(&walk.needs.scratch));
            while let Some(node) = self.in_scratch(lost.pop())? {
                let need = self.in_scratch(walk.needs.of(&node))?;
                walk.visit(&node)?;
                walk.go_on(need)?;
            }
            for root in roots {
                let (root, need) = root?;
                self.in_scratch(walk.work.push(root))?;
                walk.go_on(need)?;
            }
            Ok(())
        })
    }

    fn in_scratch<T>(&self, result: io::Result<T>) -> Result<T, StoreError> {
        result.doing("keep what is needed in a scratch file of", self.root())
    }

    /// Condemns in the present generation every node that no record needs, and takes back those that one does.
    pub(crate) fn condemn_nodes(&self, needs: &Needs) -> Result<(), StoreError> {
        let generation = readers::current(&self.inner.layout)?;
        let mut after = Vec::new();
        loop {
            let batch = self.next_changes(&after, needs)?;
            let Some((last, _)) = batch.last() else { return Ok(()) };
            after = last.0.to_vec();
            self.inner.trees.write_durably("condemn nodes", |transaction| {
                let mut take_back = transaction.prepare_cached("DELETE FROM condemned WHERE digest = ?1")?;
                let mut condemn =
                    transaction.prepare_cached("INSERT OR REPLACE INTO condemned VALUES (?1, ?2)")?;
                for (digest, change) in &batch {
                    match change {
                        Change::TakeBack => take_back.execute([digest.0])?,
                        Change::Condemn => condemn.execute((digest.0, generation))?,
                    };
                }
                Ok(())
            })?;
            if batch.len() < CONDEMNED_AT_ONCE {
                return Ok(());
            }
        }
    }

    /// The next nodes after a digest of which something is to become. Only the collector adds to the condemned: what a
    /// build takes back meanwhile waits for the next collection.
    fn next_changes(&self, after: &[u8], needs: &Needs) -> Result<Vec<(NodeDigest, Change)>, StoreError> {
        self.inner.trees.read("list nodes", |connection| {
            let sql = "SELECT digest, EXISTS (SELECT 1 FROM condemned WHERE digest = nodes.digest)
                FROM nodes WHERE digest > ?1 ORDER BY digest";
            let mut statement = connection.prepare_cached(sql)?;
            let mut rows = statement.query([after])?;
            let mut batch = Vec::new();
            while batch.len() < CONDEMNED_AT_ONCE
                && let Some(row) = rows.next()?
            {
                let digest = NodeDigest(row.get(0)?);
                let need = self.in_scratch(needs.of(&digest))?;
                batch.extend(need.change(row.get(1)?).map(|change| (digest, change)));
            }
            Ok(batch)
        })
    }

    /// Frees condemned nodes that no reader of a generation before `oldest` can hold and that no record needs: `needs`
    /// must have been noted after `oldest` was found. Returns how many.
    pub(crate) fn free_nodes(&self, oldest: i64, needs: &Needs) -> Result<u64, StoreError> {
        let (mut freed, mut after) = (0, Vec::new());
        loop {
            let batch = self.condemned_nodes(oldest, &after)?;
            let Some(last) = batch.last() else { return Ok(freed) };
            after = last.0.to_vec();
            let mut gone = Vec::new();
            for digest in batch {
                if self.in_scratch(needs.of(&digest))? < Need::Records {
                    gone.push(digest);
                }
            }
            freed += self.inner.trees.write("remove nodes", |transaction| {
                let mut count = 0;
                // Whoever stored the node again meanwhile took it off the list.
                let mut unlist =
                    transaction.prepare_cached("DELETE FROM condemned WHERE digest = ?1 AND until < ?2")?;
                let mut remove = transaction.prepare_cached("DELETE FROM nodes WHERE digest = ?1")?;
                for digest in gone {
                    if unlist.execute((digest.0, oldest))? > 0 {
                        count += remove.execute([digest.0])?;
                    }
                }
                Ok(count as u64)
            })?;
        }
    }

    /// The next condemned nodes after a digest.
    fn condemned_nodes(&self, oldest: i64, after: &[u8]) -> Result<Vec<NodeDigest>, StoreError> {
        self.inner.trees.read("list condemned nodes", |connection| {
            let sql =
                "SELECT digest FROM condemned WHERE digest > ?2 AND until < ?1 ORDER BY digest LIMIT ?3";
            let mut statement = connection.prepare_cached(sql)?;
            let rows =
                statement.query_map((oldest, after, BATCH as i64), |row| row.get(0).map(NodeDigest))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// True when some node waits to be freed.
    pub(crate) fn has_condemned_nodes(&self, oldest: i64) -> Result<bool, StoreError> {
        self.inner.trees.read("look for condemned nodes", |connection| {
            let sql = "SELECT EXISTS (SELECT 1 FROM condemned WHERE until < ?1)";
            Ok(connection.query_row(sql, [oldest], |row| row.get(0))?)
        })
    }
}
