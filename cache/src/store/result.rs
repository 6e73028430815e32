//! Results of steps by cache key.

use std::collections::BTreeSet;
use std::fmt;

use rbuild_oci::DiffId;
use rusqlite::{OptionalExtension, Transaction};

use super::db::mark::BootId;
use super::db::{DbError, now_unix_ns, seal};
use super::error::StoreError;
use super::layer::LayerRow;
use super::{Draft, LayerId, Store, readers};
use crate::layer::{LayerDiff, TimesDigest};
use crate::tree::{Tree, TreeDigest};

/// First byte of an encoded record.
const VERSION: u8 = 2;

/// What a key is derived from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyKind {
    /// Definitions only: known before anything ran.
    Def,
    /// Trees of the inputs.
    Content,
}

/// A cache key. Keys of the two kinds never meet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Which of the two.
    pub kind: KeyKind,
    /// The digest.
    pub digest: [u8; 32],
}

impl Key {
    /// A definition key.
    pub const fn def(digest: [u8; 32]) -> Self {
        Self { kind: KeyKind::Def, digest }
    }

    /// A content key.
    pub const fn content(digest: [u8; 32]) -> Self {
        Self { kind: KeyKind::Content, digest }
    }

    /// As stored: one byte of kind, then the digest.
    pub(super) fn to_bytes(self) -> [u8; 33] {
        let mut bytes = [0; 33];
        bytes[0] = match self.kind {
            KeyKind::Def => b'd',
            KeyKind::Content => b'c',
        };
        bytes[1..].copy_from_slice(&self.digest);
        bytes
    }

    /// The key of these bytes, if they are one's.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (kind, digest) = bytes.split_first()?;
        let digest = digest.try_into().ok()?;
        match kind {
            b'd' => Some(Self::def(digest)),
            b'c' => Some(Self::content(digest)),
            _ => None,
        }
    }
}

/// `def-<hex>` or `content-<hex>`.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            KeyKind::Def => "def",
            KeyKind::Content => "content",
        };
        write!(f, "{kind}-{}", hex::encode(self.digest))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?} {})", self.kind, hex::encode(&self.digest[..6]))
    }
}

/// What a step made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultRecord {
    /// The output tree; its directory nodes are in the store.
    pub tree: Tree,
    /// Identity of the output tree.
    pub tree_digest: TreeDigest,
    /// The step's own layer; `None` when the step makes none.
    pub own_layer: Option<LayerId>,
    /// All layers of the output, base first. Only in records of definition keys: equal trees may be stacked
    /// differently, so a content record must not bring a stack along.
    pub stack: Option<Vec<LayerId>>,
    /// Layers that the step read or may have read besides those of `stack`: of what it stands on, copies from and mounts.
    /// The result needs none of them; they tell what goes when one of them turns out to be damaged.
    pub read: Vec<LayerId>,
    /// When the step ran, nanoseconds since the epoch: the `created` of its history entry.
    pub created_unix_ns: i64,
    /// How long the step ran.
    pub exec_ns: u64,
    /// The step as people know it.
    pub description: String,
}

/// What a step made, about to be committed.
pub struct Made<'a> {
    /// The layer's files.
    pub draft: Draft,
    /// What is in it.
    pub diff: &'a LayerDiff,
    /// Bytes of its regular files.
    pub size_bytes: u64,
    /// Digest and length of its tar, when they are known already.
    pub tar: Option<(DiffId, u64)>,
    /// What it does.
    pub does: Transition,
}

/// What a layer does: layers that do the same can stand for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// The tree that it leads from.
    pub from: TreeDigest,
    /// And to.
    pub to: TreeDigest,
    /// What it has and the trees do not.
    pub times: TimesDigest,
}

impl Transition {
    /// As rows have it: from where, and to where.
    fn ends(&self) -> ([u8; 32], [u8; 32]) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"rbuild/transition/2").update(&self.from.0).update(&self.times.0);
        (*hasher.finalize().as_bytes(), self.to.0)
    }
}

impl Store {
    /// Looks a result up. `None` also when a layer it relies on is gone or the record is damaged: the step then runs
    /// again, as it does when a layer that it read was lost: who knows what that was like before. Nodes of the tree are not looked at.
    pub fn result(&self, key: &Key) -> Result<Option<ResultRecord>, StoreError> {
        let boot = self.boot()?;
        let key = key.to_bytes();
        self.inner.index.read("look up a result", |connection| {
            let sql = "SELECT record, seal, used FROM results WHERE key = ?1 AND (durable = 1 OR boot = ?2)";
            let mut statement = connection.prepare_cached(sql)?;
            let found = statement.query_row((key, boot.0), |row| {
                Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, [u8; 8]>(1)?, row.get::<_, i64>(2)?))
            });
            let Some((bytes, sealed, used)) = found.optional()? else { return Ok(None) };
            if seal("result", &key, &bytes) != sealed {
                return Ok(None);
            }
            let Some(record) = decode(&bytes) else { return Ok(None) };
            let stack = record.stack.as_deref().unwrap_or_default();
            // What is found by its definition stands: it may have been found so before the layer was lost.
            let is_of_def = record.stack.is_some();
            let is_usable = self.are_usable(connection, record.own_layer.as_slice(), boot)?
                && self.are_usable(connection, stack, boot)?
                && (is_of_def || !self.has_lost(connection, &record.read)?);
            if is_usable {
                self.inner.uses.note(key, used);
            }
            Ok(is_usable.then_some(record))
        })
    }

    /// Records a result; an earlier record of the key is replaced. Its layers must be committed, its nodes stored.
    pub fn put_result(&self, key: &Key, record: &ResultRecord) -> Result<(), StoreError> {
        self.put_results(&[(*key, record)])
    }

    /// [`Store::put_result`] for several keys, all or none.
    pub fn put_results(&self, results: &[(Key, &ResultRecord)]) -> Result<(), StoreError> {
        let boot = self.boot()?;
        self.inner.index.write("record a result", |transaction| insert_results(transaction, results, boot))
    }

    /// Commits the layer that a step made and records all that is known of it, in one transaction: the layer, what it does,
    /// and `results`, which are made for the layer to use. That is an older one that does the same
    /// if there is one, unless `keeps_own`.
    pub fn commit_step(
        &self,
        made: Made<'_>,
        keeps_own: bool,
        results: impl FnOnce(LayerId) -> Vec<(Key, ResultRecord)>,
    ) -> Result<LayerId, StoreError> {
        let boot = self.boot()?;
        let Made { draft, diff, size_bytes, tar, does } = made;
        let (dir, disk_bytes, marks) = match &draft {
            Draft::Dir(draft) => {
                self.wrote(size_bytes);
                (draft.dir_name(), None, None)
            }
            Draft::Packed(ready) => (ready.dir_name(), Some(ready.own_bytes()), Some(ready.marks())),
        };
        let id = self.place_layer(dir, diff, size_bytes, marks)?;
        let row = LayerRow { id, size_bytes, disk_bytes, tar };
        let recorded = self.inner.index.write("record a step", |transaction| {
            row.insert(transaction, boot)?;
            let first = self.insert_transition(transaction, &does, id, boot)?;
            let layer = if keeps_own { id } else { first };
            let results = results(layer);
            let results: Vec<_> = results.iter().map(|(key, record)| (*key, record)).collect();
            insert_results(transaction, &results, boot)?;
            Ok(layer)
        });
        self.recorded(dir, id, recorded)
    }

    /// The first layer that did the same, if it is still there. A step that ran again and did what it had done
    /// uses it instead of its own, so that images and pushes do not change.
    pub fn layer_that_does(&self, does: &Transition) -> Result<Option<LayerId>, StoreError> {
        let boot = self.boot()?;
        let (from, to) = does.ends();
        self.inner.index.read("look up a layer that does the same", |connection| {
            let sql = "SELECT layer FROM transitions
                WHERE parent = ?1 AND child = ?2 AND (durable = 1 OR boot = ?3)";
            let mut statement = connection.prepare_cached(sql)?;
            let found = statement.query_row((from, to, boot.0), |row| row.get(0).map(LayerId::from_sql));
            match found.optional()? {
                Some(layer) if self.are_usable(connection, &[layer], boot)? => Ok(Some(layer)),
                _ => Ok(None),
            }
        })
    }

    /// Records what a layer does and returns the layer to use: an older usable one if there is, else this one.
    fn insert_transition(
        &self,
        transaction: &Transaction<'_>,
        does: &Transition,
        layer: LayerId,
        boot: BootId,
    ) -> Result<LayerId, DbError> {
        let sql = "SELECT layer FROM transitions
            WHERE parent = ?1 AND child = ?2 AND (durable = 1 OR boot = ?3)";
        let mut statement = transaction.prepare_cached(sql)?;
        let (from, to) = does.ends();
        let found = statement.query_row((from, to, boot.0), |row| row.get(0).map(LayerId::from_sql));
        if let Some(older) = found.optional()?
            && self.are_usable(transaction, &[older], boot)?
        {
            readers::touch_layers(transaction, &[older])?;
            return Ok(older);
        }
        let sql = "INSERT OR REPLACE INTO transitions
            VALUES (?1, ?2, ?3, ?4, (SELECT current FROM epoch), 0)";
        transaction.prepare_cached(sql)?.execute((from, to, layer.to_sql(), boot.0))?;
        Ok(layer)
    }
}

fn insert_results(
    transaction: &Transaction<'_>,
    results: &[(Key, &ResultRecord)],
    boot: BootId,
) -> Result<(), DbError> {
    // An equal valid row keeps its mark: it may be durable already.
    let sql = "INSERT INTO results VALUES (?1, ?2, ?3, ?4, ?5, (SELECT current FROM epoch), 0)
        ON CONFLICT (key) DO UPDATE SET record = excluded.record, seal = excluded.seal,
            used = excluded.used, boot = excluded.boot, epoch = excluded.epoch, durable = 0
        WHERE record <> excluded.record OR seal <> excluded.seal
            OR (durable = 0 AND boot <> excluded.boot)";
    let mut statement = transaction.prepare_cached(sql)?;
    let mut named = BTreeSet::new();
    for (key, record) in results {
        let key = key.to_bytes();
        let bytes = encode(record);
        let sealed = seal("result", &key, &bytes);
        statement.execute((key, bytes, sealed, now_unix_ns(), boot.0))?;
        named.extend(record.own_layer);
        named.extend(record.stack.iter().flatten().copied());
    }
    readers::touch_layers(transaction, &named.into_iter().collect::<Vec<_>>())
}

fn encode(record: &ResultRecord) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256 + record.description.len());
    bytes.push(VERSION);
    bytes.extend_from_slice(&record.tree_digest.0);
    let layers = |bytes: &mut Vec<u8>, layers: Option<&[LayerId]>| match layers {
        None => bytes.push(0),
        Some(layers) => {
            bytes.push(1);
            put_length(bytes, layers.len());
            layers.iter().for_each(|layer| bytes.extend_from_slice(&layer.0.to_le_bytes()));
        }
    };
    layers(&mut bytes, Some(record.own_layer.as_slice()));
    layers(&mut bytes, record.stack.as_deref());
    layers(&mut bytes, Some(&record.read));
    bytes.extend_from_slice(&record.created_unix_ns.to_le_bytes());
    bytes.extend_from_slice(&record.exec_ns.to_le_bytes());
    put_length(&mut bytes, record.description.len());
    bytes.extend_from_slice(record.description.as_bytes());
    let tree = record.tree.encode();
    put_length(&mut bytes, tree.len());
    bytes.extend_from_slice(&tree);
    bytes
}

fn put_length(bytes: &mut Vec<u8>, length: usize) {
    bytes.extend_from_slice(&(length as u64).to_le_bytes());
}

/// `None` for anything `encode` does not produce.
pub(super) fn decode(bytes: &[u8]) -> Option<ResultRecord> {
    let mut rest = bytes;
    if take(&mut rest, 1)? != [VERSION] {
        return None;
    }
    let tree_digest = TreeDigest(take(&mut rest, 32)?.try_into().ok()?);
    let own_layer = match take_layers(&mut rest)??.as_slice() {
        [] => None,
        [layer] => Some(*layer),
        _ => return None,
    };
    let stack = take_layers(&mut rest)?;
    let read = take_layers(&mut rest)??;
    let created_unix_ns = i64::from_le_bytes(take(&mut rest, 8)?.try_into().ok()?);
    let exec_ns = take_u64(&mut rest)?;
    let description = String::from_utf8(take_bytes(&mut rest)?.to_vec()).ok()?;
    let tree = Tree::decode(take_bytes(&mut rest)?).ok()?;
    rest.is_empty().then_some(ResultRecord {
        tree,
        tree_digest,
        own_layer,
        stack,
        read,
        created_unix_ns,
        exec_ns,
        description,
    })
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(head)
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(take(rest, 8)?.try_into().ok()?))
}

fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_u64(rest)?).ok()?;
    take(rest, length)
}

/// Outer `None`: malformed. Inner: no list.
fn take_layers(rest: &mut &[u8]) -> Option<Option<Vec<LayerId>>> {
    match take(rest, 1)? {
        [0] => Some(None),
        [1] => {
            let count = usize::try_from(take_u64(rest)?).ok().filter(|count| *count <= rest.len() / 8)?;
            (0..count).map(|_| take_u64(rest).map(LayerId)).collect::<Option<Vec<_>>>().map(Some)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tree::{Links, NodeDigest};

    proptest! {
        #[test]
        fn a_record_survives_the_round_trip_and_no_prefix_decodes(
            links in proptest::collection::vec(any::<[u8; 32]>(), 0..3),
            own in proptest::option::of(any::<u64>()),
            stack in proptest::option::of(proptest::collection::vec(any::<u64>(), 0..8)),
            read in proptest::collection::vec(any::<u64>(), 0..8),
            created in any::<i64>(),
            exec_ns in any::<u64>(),
            description in ".{0,40}",
        ) {
            let links = Links::of_nodes(links.into_iter().map(NodeDigest).collect());
            let record = ResultRecord {
                tree: Tree { links, ..Tree::empty() },
                tree_digest: TreeDigest([7; 32]),
                own_layer: own.map(LayerId),
                stack: stack.map(|stack| stack.into_iter().map(LayerId).collect()),
                read: read.into_iter().map(LayerId).collect(),
                created_unix_ns: created,
                exec_ns,
                description,
            };
            let bytes = encode(&record);
            prop_assert_eq!(decode(&bytes), Some(record));
            for end in 0..bytes.len() {
                prop_assert_eq!(decode(&bytes[..end]), None);
            }
        }
    }
}
