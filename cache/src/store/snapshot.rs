//! The index at one moment, for collecting and checking: what is there, and what names it.
//!
//! Of layers and blobs it has a few numbers each. Records, which are as long as stacks are high, stay bytes: they are in a
//! file when they are many, and read one by one, as often as somebody wants to go through them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use rbuild_oci::{ChainId, DiffId, Digest};

use super::db::{from_json, seal};
use super::error::{IoContext, StoreError};
use super::resolution::CHAIN_TREE;
use super::{ImageRecord, LayerId, PULLED, Resolution, ResultRecord, Store, history, readers, result};
use crate::digest_table::DigestTable;
use crate::encoded::{ALL_AHEAD, Encoded};
use crate::layer::put_bytes;
use crate::scratch::Scratch;
use crate::tree::{NodeDigest, Tree};

/// A table of digests in memory.
const HELD_BYTES: usize = if cfg!(test) { 600 } else { 1 << 20 };

/// A layer row.
#[derive(Debug, Clone)]
pub(crate) struct LayerRow {
    pub(crate) size: u64,
    pub(crate) diff_id: Option<Digest>,
    pub(crate) created: i64,
    pub(crate) used: i64,
    pub(crate) is_condemned: bool,
}

/// A blob row.
#[derive(Debug, Clone)]
pub(crate) struct BlobRow {
    pub(crate) size: u64,
    pub(crate) used: i64,
    pub(crate) is_condemned: bool,
}

/// A result row.
#[derive(Debug, Clone)]
pub(crate) struct ResultRow {
    pub(crate) key: Vec<u8>,
    pub(crate) used: i64,
    pub(crate) own_layer: Option<LayerId>,
    /// Own layer and stack.
    pub(crate) layers: Vec<LayerId>,
    /// Others that the step read.
    pub(crate) read: Vec<LayerId>,
    pub(crate) exec_ns: u64,
    pub(crate) description: String,
    /// The nodes that its tree names.
    pub(crate) roots: Vec<NodeDigest>,
}

/// A result that cannot be read.
#[derive(Debug, Clone)]
pub(crate) struct UnreadResult {
    pub(crate) key: Vec<u8>,
    pub(crate) used: i64,
    /// An earlier version recorded it in a form of its own: that is no damage.
    pub(crate) is_old: bool,
}

/// A remembered tree of image layers.
#[derive(Debug, Clone)]
pub(crate) struct ChainRow {
    pub(crate) chain: [u8; 32],
    /// What it names.
    pub(crate) roots: Vec<NodeDigest>,
}

/// The index at one moment.
pub(crate) struct Snapshot {
    /// Of the store.
    root: PathBuf,
    scratch: Scratch,
    pub(crate) layers: Ordered<LayerId, LayerRow>,
    pub(crate) blobs: Ordered<Digest, BlobRow>,
    /// Blobs that layers were pulled as. They may be gone.
    pub(crate) pulled: BTreeMap<LayerId, Digest>,
    /// Key, use, record.
    results: Rows<3>,
    /// Key, use, and if it is old.
    unread_results: Rows<3>,
    /// Name, record.
    images: Rows<2>,
    /// Records.
    resolutions: Rows<1>,
    /// Root nodes of what remembered executions read.
    read_nodes: Rows<1>,
    /// Chain, tree.
    chains: Rows<2>,
    /// Chains of trees that cannot be read, and if they are in the form of an earlier version.
    unread_chains: Rows<2>,
}

/// Values in the order of their keys: a map takes nearly twice the memory.
pub(crate) struct Ordered<K, V>(Vec<(K, V)>);

impl<K: Ord, V> Ordered<K, V> {
    /// Where a key is among all.
    pub(crate) fn place(&self, key: &K) -> Option<usize> {
        self.0.binary_search_by(|(other, _)| other.cmp(key)).ok()
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.place(key).map(|place| &self.0[place].1)
    }

    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.place(key).is_some()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().map(|(key, value)| (key, value))
    }
}

/// Rows of so many fields, in a file when they are many.
struct Rows<const FIELDS: usize> {
    encoded: Encoded,
    count: u64,
}

impl<const FIELDS: usize> Rows<FIELDS> {
    fn new(scratch: &Scratch) -> Self {
        Self { encoded: Encoded::new(scratch.clone()), count: 0 }
    }

    fn push(&mut self, fields: [&[u8]; FIELDS]) -> io::Result<()> {
        self.count += 1;
        self.encoded.append(|bytes| fields.iter().for_each(|field| put_bytes(bytes, field)))
    }

    fn iter(&self) -> impl Iterator<Item = io::Result<[Vec<u8>; FIELDS]>> {
        let mut input = self.encoded.read_from(self.encoded.start, ALL_AHEAD);
        (0..self.count).map(move |_| {
            let row = input.read(|reader| {
                let mut row = [const { Vec::new() }; FIELDS];
                for field in &mut row {
                    *field = reader.string()?.to_vec();
                }
                Ok(row)
            });
            row.map_err(io::Error::from)
        })
    }
}

impl Store {
    /// Reads everything that decides what is kept. Fails on a damaged image record: what it names is unknown, so
    /// nothing could be removed safely.
    pub(crate) fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let mut snapshot = self.snapshot_without_images()?;
        self.list_images(&mut snapshot, |_, error| Err(error))?;
        Ok(snapshot)
    }

    /// Adds the images; `damaged` is told the names of those whose records are.
    pub(super) fn list_images(
        &self,
        snapshot: &mut Snapshot,
        mut damaged: impl FnMut(String, StoreError) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.inner.index.read("list images", |connection| {
            let mut statement = connection.prepare("SELECT name, record, seal FROM images ORDER BY name")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (name, text): (String, String) = (row.get(0)?, row.get(1)?);
                match from_json::<ImageRecord>("image", &name, &text, row.get(2)?) {
                    Ok(_) => self.listed(snapshot.images.push([name.as_bytes(), text.as_bytes()]))?,
                    Err(error) => damaged(name, error)?,
                }
            }
            Ok(())
        })
    }

    /// [`Self::snapshot`] with no images in it.
    pub(super) fn snapshot_without_images(&self) -> Result<Snapshot, StoreError> {
        let mut snapshot = Snapshot::new(self.root().to_owned(), self.scratch());
        self.inner.index.read("list the index", |connection| {
            let size = |value: i64| u64::try_from(value).unwrap_or(0);
            let count = |table| {
                let sql = format!("SELECT count(*) FROM {table}");
                connection.query_row(&sql, [], |row| row.get::<_, i64>(0)).map(|count| count as usize)
            };
            snapshot.layers.0.reserve_exact(count("layers")?);
            let mut statement = connection
                .prepare("SELECT id, coalesce(disk, size), diff_id, created, used, until FROM layers")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let layer = LayerRow {
                    size: size(row.get(1)?),
                    diff_id: row.get::<_, Option<[u8; 32]>>(2)?.map(Digest::from_bytes),
                    created: row.get(3)?,
                    used: row.get(4)?,
                    is_condemned: row.get::<_, i64>(5)? != readers::NONE,
                };
                snapshot.layers.0.push((LayerId::from_sql(row.get(0)?), layer));
            }
            snapshot.layers.0.sort_unstable_by_key(|(id, _)| *id);
            snapshot.blobs.0.reserve_exact(count("blobs")?);
            let mut statement = connection.prepare("SELECT digest, size, used, until FROM blobs")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let blob = BlobRow {
                    size: size(row.get(1)?),
                    used: row.get(2)?,
                    is_condemned: row.get::<_, i64>(3)? != readers::NONE,
                };
                snapshot.blobs.0.push((Digest::from_bytes(row.get(0)?), blob));
            }
            snapshot.blobs.0.sort_unstable_by_key(|(digest, _)| *digest);
            let mut statement = connection.prepare(
                "SELECT id, blob FROM layers JOIN encodings ON encodings.diff_id = layers.diff_id AND params = ?1",
            )?;
            let mut rows = statement.query([PULLED])?;
            while let Some(row) = rows.next()? {
                snapshot.pulled.insert(LayerId::from_sql(row.get(0)?), Digest::from_bytes(row.get(1)?));
            }
            let mut statement = connection.prepare("SELECT key, record, seal, used FROM results")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (key, bytes): (Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(1)?);
                let is_sealed = seal("result", &key, &bytes) == row.get::<_, [u8; 8]>(2)?;
                let used = row.get::<_, i64>(3)?.to_le_bytes();
                self.listed(if is_sealed && result::decode(&bytes).is_some() {
                    snapshot.results.push([&key, &used, &bytes])
                } else {
                    snapshot.unread_results.push([&key, &used, &[u8::from(is_sealed)]])
                })?;
            }
            let mut statement = connection.prepare("SELECT chain, record, seal FROM chain_trees")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (chain, tree): ([u8; 32], Vec<u8>) = (row.get(0)?, row.get(1)?);
                let is_sealed = seal(CHAIN_TREE, &chain, &tree) == row.get::<_, [u8; 8]>(2)?;
                self.listed(if is_sealed && Tree::decode(&tree).is_ok() {
                    snapshot.chains.push([&chain, &tree])
                } else {
                    snapshot.unread_chains.push([&chain, &[u8::from(is_sealed)]])
                })?;
            }
            history::each_nodes(connection, |nodes| Ok(self.listed(snapshot.read_nodes.push([nodes]))?))?;
            let mut statement = connection.prepare("SELECT record FROM resolutions")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let text: String = row.get(0)?;
                self.listed(snapshot.resolutions.push([text.as_bytes()]))?;
            }
            Ok(())
        })?;
        Ok(snapshot)
    }

    fn listed<T>(&self, result: io::Result<T>) -> Result<T, StoreError> {
        result.doing("list the index in a scratch file of", self.root())
    }
}

impl Snapshot {
    fn new(root: PathBuf, scratch: Scratch) -> Self {
        Self {
            root,
            layers: Ordered(Vec::new()),
            blobs: Ordered(Vec::new()),
            pulled: BTreeMap::new(),
            results: Rows::new(&scratch),
            unread_results: Rows::new(&scratch),
            images: Rows::new(&scratch),
            resolutions: Rows::new(&scratch),
            read_nodes: Rows::new(&scratch),
            chains: Rows::new(&scratch),
            unread_chains: Rows::new(&scratch),
            scratch,
        }
    }

    /// The stored blob that a layer was pulled as: useless without each other.
    pub(crate) fn pulled_blob(&self, layer: &LayerId) -> Option<Digest> {
        self.pulled.get(layer).filter(|blob| self.blobs.contains_key(blob)).copied()
    }

    /// How many results can be read.
    pub(crate) fn results_count(&self) -> u64 {
        self.results.count
    }

    /// How many images there are.
    pub(crate) fn images_count(&self) -> u64 {
        self.images.count
    }

    /// Results that can be read.
    pub(crate) fn results(&self) -> impl Iterator<Item = Result<ResultRow, StoreError>> {
        self.results.iter().map(|row| {
            self.read(row.and_then(|[key, used, record]| {
                let record = result::decode(&record).ok_or(io::ErrorKind::InvalidData)?;
                Ok(result_row(key, number(&used)?, record))
            }))
        })
    }

    /// Those that cannot.
    pub(crate) fn unread_results(&self) -> impl Iterator<Item = Result<UnreadResult, StoreError>> {
        self.unread_results.iter().map(|row| {
            self.read(row.and_then(|[key, used, is_old]| {
                Ok(UnreadResult { key, used: number(&used)?, is_old: is_old == [1] })
            }))
        })
    }

    /// Names and what they stand for, by name.
    pub(crate) fn images(&self) -> impl Iterator<Item = Result<(String, ImageRecord), StoreError>> {
        self.images.iter().map(|row| {
            self.read(row.and_then(|[name, record]| {
                let name = String::from_utf8(name).map_err(io::Error::other)?;
                Ok((name, serde_json::from_slice(&record)?))
            }))
        })
    }

    /// What references were resolved to. Their manifests and configs are small, and what lets a build start without the
    /// registry.
    pub(crate) fn resolutions(&self) -> impl Iterator<Item = Result<Resolution, StoreError>> {
        // A damaged one names nothing.
        self.resolutions.iter().filter_map(|row| match self.read(row) {
            Ok([record]) => serde_json::from_slice(&record).ok().map(Ok),
            Err(error) => Some(Err(error)),
        })
    }

    /// Remembered trees of image layers.
    pub(crate) fn chains(&self) -> impl Iterator<Item = Result<ChainRow, StoreError>> {
        self.chains.iter().map(|row| {
            self.read(row.and_then(|[chain, tree]| {
                let tree = Tree::decode(&tree).map_err(io::Error::other)?;
                Ok(ChainRow { chain: digest(&chain)?, roots: tree.nodes().collect() })
            }))
        })
    }

    /// Those that cannot be read, and if that is because an earlier version recorded them.
    pub(crate) fn unread_chains(&self) -> impl Iterator<Item = Result<([u8; 32], bool), StoreError>> {
        self.unread_chains
            .iter()
            .map(|row| self.read(row.and_then(|[chain, is_old]| Ok((digest(&chain)?, is_old == [1])))))
    }

    /// Root nodes of what remembered executions read.
    pub(crate) fn read_nodes(&self) -> impl Iterator<Item = Result<NodeDigest, StoreError>> {
        self.read_nodes.iter().flat_map(|row| match self.read(row) {
            Ok([nodes]) => history::split(&nodes).into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        })
    }

    /// Every node that something recorded names.
    pub(crate) fn roots(&self) -> impl Iterator<Item = Result<NodeDigest, StoreError>> {
        let results = self.results().flat_map(|row| each(row.map(|row| row.roots)));
        let chains = self.chains().flat_map(|row| each(row.map(|row| row.roots)));
        results.chain(chains).chain(self.read_nodes())
    }

    /// Chains of layers that are there and not in `gone`, as far up as an image or a resolved reference has all of them.
    pub(crate) fn useful_chains(&self, gone: &BTreeSet<LayerId>) -> Result<Chains, StoreError> {
        let mut live = DigestTable::<0>::new(&self.scratch, HELD_BYTES);
        for diff in self
            .layers
            .iter()
            .filter(|(id, row)| !row.is_condemned && !gone.contains(id))
            .filter_map(|(_, row)| row.diff_id)
        {
            self.read(live.put(diff.as_bytes(), []))?;
        }
        let mut chains = Chains(DigestTable::new(&self.scratch, HELD_BYTES));
        let mut note = |stack: &[DiffId]| -> Result<(), StoreError> {
            let mut there = 0;
            while let Some(diff) = stack.get(there)
                && self.read(live.get(diff.0.as_bytes()))?.is_some()
            {
                there += 1;
            }
            let mut each = ChainId::each(&stack[..there]);
            each.try_for_each(|chain| self.read(chains.0.put(chain.0.as_bytes(), [])))
        };
        for image in self.images() {
            image?.1.each().try_for_each(|image| note(&image.diff_ids))?;
        }
        for resolution in self.resolutions() {
            let diffs: Vec<_> = resolution?.layers.iter().map(|layer| layer.diff_id).collect();
            note(&diffs)?;
        }
        Ok(chains)
    }

    /// If a chain is among these.
    pub(crate) fn is_among(&self, chains: &Chains, chain: &[u8; 32]) -> Result<bool, StoreError> {
        Ok(self.read(chains.0.get(chain))?.is_some())
    }

    fn read<T>(&self, result: io::Result<T>) -> Result<T, StoreError> {
        result.doing("read back what was listed of", &self.root)
    }
}

/// Some chains.
pub(crate) struct Chains(DigestTable<0>);

/// Each of some nodes, or why there are none.
pub(crate) fn each(
    nodes: Result<Vec<NodeDigest>, StoreError>,
) -> impl Iterator<Item = Result<NodeDigest, StoreError>> {
    let (nodes, error) = match nodes {
        Ok(nodes) => (nodes, None),
        Err(error) => (Vec::new(), Some(Err(error))),
    };
    nodes.into_iter().map(Ok).chain(error)
}

fn number(bytes: &[u8]) -> io::Result<i64> {
    Ok(i64::from_le_bytes(bytes.try_into().map_err(io::Error::other)?))
}

fn digest(bytes: &[u8]) -> io::Result<[u8; 32]> {
    bytes.try_into().map_err(io::Error::other)
}

fn result_row(key: Vec<u8>, used: i64, record: ResultRecord) -> ResultRow {
    let mut layers = record.stack.unwrap_or_default();
    layers.extend(record.own_layer.filter(|own| !layers.contains(own)));
    ResultRow {
        key,
        used,
        own_layer: record.own_layer,
        layers,
        read: record.read,
        exec_ns: record.exec_ns,
        description: record.description,
        roots: record.tree.nodes().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_and_many_come_back_as_often_as_they_are_wanted() {
        for count in [0, 1, 3, 500] {
            let mut rows = Rows::<2>::new(&Scratch::for_test());
            let model: Vec<[Vec<u8>; 2]> =
                (0..count).map(|n| [vec![n as u8; n % 7], vec![n as u8; n * 31 % 3000]]).collect();
            for [one, other] in &model {
                rows.push([one, other]).unwrap();
            }
            assert!(rows.encoded.held_bytes() < 8 << 10, "{count}");
            for _ in 0..2 {
                assert_eq!(rows.iter().collect::<io::Result<Vec<_>>>().unwrap(), model);
            }
        }
    }
}
