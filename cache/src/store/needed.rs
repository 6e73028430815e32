//! Which directory nodes are needed, and the transactions that condemn and free the others.
//!
//! A store has a node for every directory of every tree in it. So there is one list of them, in the order of their
//! digests, and it says of each what a set would: some thirty bytes a node, and never half of them empty.

use rusqlite::{Connection, OptionalExtension};

use super::db::DbError;
use super::error::StoreError;
use super::{Store, readers};
use crate::tree::{DirNode, NodeDigest};

/// Nodes freed per transaction: none keeps builds waiting for long.
const BATCH: usize = if cfg!(test) { 3 } else { 1024 };
/// Nodes condemned per transaction: mostly all. Until the last is, some wait for fewer readers than they should.
const CONDEMNED_AT_ONCE: usize = if cfg!(test) { 3 } else { 1 << 16 };

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

/// The nodes of a store by digest.
#[derive(Debug, Default)]
pub(crate) struct Nodes(Vec<Listed>);

#[derive(Debug, Clone, Copy)]
struct Listed {
    digest: NodeDigest,
    need: Need,
    is_condemned: bool,
}

/// What is to become of a node's row among the condemned.
#[derive(Debug, Clone, Copy)]
enum Change {
    Condemn,
    TakeBack,
}

impl Nodes {
    /// Adds those that were stored since.
    fn list(&mut self, connection: &Connection) -> Result<(), DbError> {
        let known = self.0.len();
        let count: i64 = connection.query_row("SELECT count(*) FROM nodes", [], |row| row.get(0))?;
        // Growing by itself, it would for a moment be there twice and half empty.
        self.0.reserve_exact(usize::try_from(count).unwrap_or(0).saturating_sub(known));
        let mut statement = connection.prepare("SELECT digest FROM nodes ORDER BY digest")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let digest = NodeDigest(row.get(0)?);
            if find(&self.0[..known], &digest).is_none() {
                self.0.push(Listed { digest, need: Need::Nothing, is_condemned: false });
            }
        }
        // In place: a merge wants room for half of them.
        self.0.sort_unstable_by_key(|node| node.digest);
        Ok(())
    }

    /// Finds out which are condemned.
    fn list_condemned(&mut self, connection: &Connection) -> Result<(), DbError> {
        let mut statement = connection.prepare("SELECT digest FROM condemned")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if let Some(place) = find(&self.0, &NodeDigest(row.get(0)?)) {
                self.0[place].is_condemned = true;
            }
        }
        Ok(())
    }

    /// Where the node is, if it is news that it is needed for so much: then what is below it is, too.
    fn raise(&mut self, digest: &NodeDigest, need: Need) -> Option<usize> {
        let place = find(&self.0, digest)?;
        let node = &mut self.0[place];
        let is_news = node.need < need;
        node.need = node.need.max(need);
        is_news.then_some(place)
    }

    fn need(&self, digest: &NodeDigest) -> Need {
        find(&self.0, digest).map_or(Need::Nothing, |place| self.0[place].need)
    }
}

impl Listed {
    fn change(&self) -> Option<(NodeDigest, Change)> {
        let change = match (self.need, self.is_condemned) {
            (Need::Records, true) => Change::TakeBack,
            // One that nothing led to keeps its generation, or it would wait for ever on a busy machine.
            (Need::Records, false) | (Need::Nothing, true) => return None,
            (Need::Readers, _) | (Need::Nothing, false) => Change::Condemn,
        };
        Some((self.digest, change))
    }
}

fn find(sorted: &[Listed], digest: &NodeDigest) -> Option<usize> {
    sorted.binary_search_by_key(digest, |node| node.digest).ok()
}

impl Store {
    /// Brings `nodes` up to date and notes what `roots` and all nodes below them are needed for. Missing and damaged nodes
    /// lead nowhere.
    pub(crate) fn note_needs(
        &self,
        roots: impl IntoIterator<Item = (NodeDigest, Need)>,
        nodes: &mut Nodes,
    ) -> Result<(), StoreError> {
        self.inner.trees.read("walk trees", |connection| {
            nodes.list(connection)?;
            let mut statement = connection.prepare_cached("SELECT bytes FROM nodes WHERE digest = ?1")?;
            // Each node is in it once for a need at most.
            let mut work = Vec::new();
            for (root, need) in roots {
                work.extend(nodes.raise(&root, need));
                while let Some(place) = work.pop() {
                    let digest = nodes.0[place].digest;
                    let bytes: Option<Vec<u8>> =
                        statement.query_row([digest.0], |row| row.get(0)).optional()?;
                    let node = bytes.and_then(|bytes| DirNode::decode(&bytes).ok());
                    let below = node.iter().flat_map(DirNode::below);
                    work.extend(below.filter_map(|digest| nodes.raise(&digest, need)));
                }
            }
            Ok(())
        })
    }

    /// Condemns in the present generation every node that no record needs, and takes back those that one does.
    pub(crate) fn condemn_nodes(&self, nodes: &mut Nodes) -> Result<(), StoreError> {
        let generation = readers::current(&self.inner.layout)?;
        // Only we add to them: what a build takes back meanwhile waits for the next collection.
        self.inner.trees.read("list condemned nodes", |connection| nodes.list_condemned(connection))?;
        let mut changes = nodes.0.iter().filter_map(Listed::change);
        loop {
            let batch: Vec<_> = changes.by_ref().take(CONDEMNED_AT_ONCE).collect();
            if batch.is_empty() {
                return Ok(());
            }
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
        }
    }

    /// Frees condemned nodes that no reader of a generation before `oldest` can hold and that no record needs: `nodes`
    /// must have been brought up to date after `oldest` was found. Returns how many.
    pub(crate) fn free_nodes(&self, oldest: i64, nodes: &Nodes) -> Result<u64, StoreError> {
        let (mut freed, mut after) = (0, Vec::new());
        loop {
            let batch = self.condemned_nodes(oldest, &after)?;
            let Some(last) = batch.last() else { return Ok(freed) };
            after = last.0.to_vec();
            let gone = batch.iter().filter(|digest| nodes.need(digest) < Need::Records);
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
