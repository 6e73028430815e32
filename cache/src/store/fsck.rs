//! Checking every byte of a store against what it should be, and setting aside what is not.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::AsFd;

use rbuild_oci::Digest;
use rusqlite::{OptionalExtension as _, Statement};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::db::{DbError, seal};
use super::error::{IoContext, StoreError};
use super::needed::stack::Stack;
use super::snapshot::{ChainRow, ResultRow, Snapshot, UnreadResult};
use super::{GoneWhy, LayerId, Lease, Store, history, layout, names};
use crate::digest_table::DigestTable;
use crate::layer::{Change, DiffEntry, LayerDiff, OverlayForm, Pack, ScanError, verify_layer};
use crate::path::RelPath;
use crate::tree::{ContentDigest, DirNode, NodeDigest};

/// Paths named per damaged layer.
const PATHS_SHOWN: usize = 3;

/// A table of nodes in memory.
const HELD_BYTES: usize = if cfg!(test) { 600 } else { 5 << 20 };

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Finding {
    /// SQLite finds its own file malformed.
    #[error("index: {0}")]
    Index(String),
    /// A blob's file is gone.
    #[error("blob {0} is recorded, its file is gone")]
    BlobMissing(Digest),
    /// A blob's bytes changed.
    #[error("blob {0} does not hold its bytes")]
    BlobContent(Digest),
    /// A layer's directory is gone.
    #[error("layer {0} is recorded, its directory is gone")]
    LayerMissing(LayerId),
    /// A layer's list cannot be read.
    #[error("layer {layer}: its list of entries is damaged: {why}")]
    LayerListing {
        /// Which.
        layer: LayerId,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A layer's directory is not what its list says.
    #[error("layer {layer}: {count} entries differ from its list, among them {shown}")]
    LayerContent {
        /// Which.
        layer: LayerId,
        /// How many paths differ.
        count: usize,
        /// The first few.
        shown: String,
    },
    /// A layer's directory cannot be read.
    #[error("layer {layer} cannot be read: {why}")]
    LayerUnreadable {
        /// Which.
        layer: LayerId,
        /// What the scan said.
        why: String,
    },
    /// A pulled layer lost the blob it came as, which nothing can make again.
    #[error("layer {layer} relies on the blob it was pulled as, {blob}, which is gone or damaged")]
    PulledBlob {
        /// Which.
        layer: LayerId,
        /// Its blob.
        blob: Digest,
    },
    /// A directory node's bytes are not its digest's.
    #[error("directory node {0} is damaged")]
    Node(NodeDigest),
    /// A record cannot be read or does not hold what was written.
    #[error("the record of {kind} {name} is damaged")]
    Record {
        /// Kind of record.
        kind: &'static str,
        /// Its key as text.
        name: String,
    },
    /// A cached result needs a layer or directory node that is not there, or its step may have read a damaged layer.
    #[error("the cached result of `{step}` ({key}) relies on what is gone or damaged")]
    Result {
        /// Key, in hex.
        key: String,
        /// The step as people know it.
        step: String,
    },
    /// A remembered tree of image layers needs a directory node that is not there.
    #[error("the tree of chain {0} relies on nodes that are gone or damaged")]
    Chain(String),
    /// A named image needs something that is not there.
    #[error("image {name} relies on {lost}, which is gone or damaged")]
    Image {
        /// Its name.
        name: String,
        /// Layer or blob.
        lost: String,
    },
    /// An image stays that has a layer which a step made from a damaged one, or before that was damaged: nothing tells.
    #[error(
        "image {name} has layer {layer}, which was or may have been made from what is damaged; build it again"
    )]
    ImageMade {
        /// Its name.
        name: String,
        /// Its layer.
        layer: LayerId,
    },
    /// A name has a file of its own that says what the index does not.
    #[error(
        "image {0}: the index lost it, its file in images/ has it; rbuild cache fsck --rebuild brings it back"
    )]
    NameLost(String),
    /// The index has a name whose file is gone or damaged.
    #[error("image {0}: its file in images/ is gone or damaged, a lost index would lose it")]
    NameFile(String),
    /// A file of a name is damaged, and the index does not know whose it is.
    #[error("images/{0} is damaged, and no image in the index has it")]
    NameUnreadable(String),
    /// A layer directory that no row knows: harmless, collection removes it.
    #[error("layer directory {0} belongs to nothing")]
    OrphanLayer(LayerId),
    /// A blob file that no row knows: harmless, collection removes it.
    #[error("blob file {0} belongs to nothing")]
    OrphanBlob(Digest),
    /// Something else is where a file of the store belongs.
    #[error("`{0}` in the store is no file, and rbuild keeps one there")]
    NoFile(String),
}

impl Finding {
    /// False for left-overs, which harm nobody.
    pub fn is_damage(&self) -> bool {
        !matches!(self, Self::OrphanLayer(_) | Self::OrphanBlob(_))
    }

    /// True when a repair does not remove it, and a later check does not find it any more.
    pub fn is_kept(&self) -> bool {
        matches!(self, Self::ImageMade { .. })
    }

    /// False for what only a rebuild of the index mends.
    pub fn is_repairable(&self) -> bool {
        !matches!(self, Self::NameLost(_))
    }
}

/// Rows to remove, by table.
#[derive(Debug, Default)]
struct Bad {
    layers: BTreeSet<LayerId>,
    /// Sound layers of steps that read those, or others of these.
    made_from_bad: BTreeSet<LayerId>,
    blobs: BTreeSet<Digest>,
    nodes: BTreeSet<NodeDigest>,
    results: BTreeSet<Vec<u8>>,
    chains: BTreeSet<[u8; 32]>,
    images: BTreeSet<String>,
    /// `(table, rowid or key as text)` of records that are nothing but text.
    facts: Vec<Fact>,
}

#[derive(Debug)]
enum Fact {
    Encoding([u8; 32], String),
    BlobDiff([u8; 32]),
    Resolution(String, String),
    Fetch(String),
    Execution(i64),
}

/// Packs whose contents were read and found right, and those that were not, by device and inode: layers share them.
#[derive(Debug, Default)]
pub(super) struct SoundPacks(HashMap<(u64, u64), bool>);

impl SoundPacks {
    /// Files of a listing whose contents are in no sound pack. An error when one that was sound cannot be read any more.
    fn missing(&mut self, listing: &LayerDiff, packs: &[Pack]) -> io::Result<Vec<RelPath>> {
        let sound: Vec<&Pack> = packs.iter().filter(|pack| self.is_sound(pack)).collect();
        let has = |content: &ContentDigest, size: u64| -> io::Result<bool> {
            for pack in &sound {
                if pack.find(content)?.is_some_and(|place| place.length == size) {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        let mut missing = Vec::new();
        for entry in listing {
            let DiffEntry { path, change, .. } = entry.map_err(io::Error::other)?;
            if let Change::File { size: size @ 1.., content, .. } = change
                && !has(&content, size)?
            {
                missing.push(path);
            }
        }
        Ok(missing)
    }

    fn is_sound(&mut self, pack: &Pack) -> bool {
        let Ok(stat) = rustix::fs::fstat(pack.file()) else { return false };
        *self.0.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| pack.verify().unwrap_or(false))
    }
}

impl Store {
    /// Checks everything; `form` is how overlay marks are written in this store. With `repair`, damaged bytes move to
    /// `quarantine/` and rows that rely on them go; what is sound is not touched. Only under the collection lock.
    pub(crate) fn fsck(
        &self,
        lease: &Lease,
        form: OverlayForm,
        repair: bool,
    ) -> Result<Vec<Finding>, StoreError> {
        let mut findings = Vec::new();
        let mut bad = Bad::default();
        for (db, name) in [(&self.inner.index, "index.sqlite"), (&self.inner.trees, "trees.sqlite")] {
            let lines = db.read("check the database", |connection| {
                let mut statement = connection.prepare("PRAGMA quick_check(20)")?;
                let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
                Ok(rows.collect::<Result<Vec<_>, _>>()?)
            })?;
            let wrong = lines.into_iter().filter(|line| line != "ok");
            findings.extend(wrong.map(|line| Finding::Index(format!("{name}: {line}"))));
        }
        let mut snapshot = self.snapshot_without_images()?;
        self.list_images(&mut snapshot, |name, _| {
            findings.push(Finding::Record { kind: "image", name: name.clone() });
            bad.images.insert(name);
            Ok(())
        })?;
        self.check_facts(&mut findings, &mut bad)?;
        self.check_blobs(&snapshot, &mut findings, &mut bad)?;
        let mut sound_packs = SoundPacks::default();
        for (id, _) in snapshot.layers.iter() {
            if let Some(finding) = self.check_layer(*id, form, &mut sound_packs)? {
                bad.layers.insert(*id);
                findings.push(finding);
            }
        }
        for (id, blob) in &snapshot.pulled {
            if !snapshot.blobs.contains_key(blob) || bad.blobs.contains(blob) {
                bad.layers.insert(*id);
                findings.push(Finding::PulledBlob { layer: *id, blob: *blob });
            }
        }
        self.check_trees(&snapshot, &mut findings, &mut bad)?;
        check_dependants(&snapshot, &mut findings, &mut bad)?;
        self.find_orphans(lease, &mut findings)?;
        findings.extend(self.check_places(repair)?);
        let mut differences = self.compare_names()?;
        // Its record is damaged, which is said already; with `repair` its file goes as its row does.
        differences.lost.retain(|name| !bad.images.contains(name));
        findings.extend(differences.lost.iter().cloned().map(Finding::NameLost));
        findings.extend(differences.without_file.iter().cloned().map(Finding::NameFile));
        findings.extend(differences.unreadable.iter().cloned().map(Finding::NameUnreadable));
        if repair {
            self.set_aside(&bad)?;
            self.repair_names(&differences)?;
        }
        findings.sort();
        Ok(findings)
    }

    /// Records that only state facts: whoever needs one that is gone finds it out again.
    fn check_facts(&self, findings: &mut Vec<Finding>, bad: &mut Bad) -> Result<(), StoreError> {
        let facts = self.inner.index.read("check records", |connection| {
            let mut facts = Vec::new();
            let mut statement =
                connection.prepare("SELECT diff_id, params, blob, size, seal FROM encodings")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (diff, params): ([u8; 32], String) = (row.get(0)?, row.get(1)?);
                let (blob, size): ([u8; 32], i64) = (row.get(2)?, row.get(3)?);
                let key = [diff.as_slice(), params.as_bytes()].concat();
                let value = [blob.as_slice(), &size.to_le_bytes()].concat();
                if seal("encoding", &key, &value) != row.get::<_, [u8; 8]>(4)? {
                    facts.push(Fact::Encoding(diff, params));
                }
            }
            let mut statement = connection.prepare("SELECT blob, diff_id, seal FROM blob_diffs")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (blob, diff): ([u8; 32], [u8; 32]) = (row.get(0)?, row.get(1)?);
                if seal("blob diff", &blob, &diff) != row.get::<_, [u8; 8]>(2)? {
                    facts.push(Fact::BlobDiff(blob));
                }
            }
            let mut statement =
                connection.prepare("SELECT reference, platform, record, seal FROM resolutions")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (reference, platform, text): (String, String, String) =
                    (row.get(0)?, row.get(1)?, row.get(2)?);
                let name = format!("{reference}\n{platform}");
                if seal("resolution", name.as_bytes(), text.as_bytes()) != row.get::<_, [u8; 8]>(3)? {
                    facts.push(Fact::Resolution(reference, platform));
                }
            }
            let mut statement = connection.prepare("SELECT address, record, seal FROM fetches")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (address, text): (String, String) = (row.get(0)?, row.get(1)?);
                if seal("fetch", address.as_bytes(), text.as_bytes()) != row.get::<_, [u8; 8]>(2)? {
                    facts.push(Fact::Fetch(address));
                }
            }
            facts.extend(history::damaged(connection)?.into_iter().map(Fact::Execution));
            Ok(facts)
        })?;
        for fact in &facts {
            let (kind, name) = match fact {
                Fact::Encoding(diff, params) => ("encoding", format!("{} ({params})", hex::encode(diff))),
                Fact::BlobDiff(blob) => ("blob diff", hex::encode(blob)),
                Fact::Fetch(address) => ("fetch", address.clone()),
                Fact::Resolution(reference, platform) => ("resolution", format!("{reference} {platform}")),
                Fact::Execution(id) => ("execution", id.to_string()),
            };
            findings.push(Finding::Record { kind, name });
        }
        bad.facts = facts;
        Ok(())
    }

    fn check_blobs(
        &self,
        snapshot: &Snapshot,
        findings: &mut Vec<Finding>,
        bad: &mut Bad,
    ) -> Result<(), StoreError> {
        for (digest, row) in snapshot.blobs.iter() {
            let finding = match self.inner.layout.try_open(&layout::blob(digest), OFlags::RDONLY) {
                Err(_) => Finding::BlobMissing(*digest),
                Ok(fd) => {
                    let mut file = std::fs::File::from(fd);
                    let is_whole = file.metadata().is_ok_and(|metadata| metadata.len() == row.size);
                    // A file that cannot be read does not hold its bytes either.
                    if is_whole && super::blob::hashes_to(&mut file, digest).unwrap_or(false) {
                        continue;
                    }
                    Finding::BlobContent(*digest)
                }
            };
            findings.push(finding);
            bad.blobs.insert(*digest);
        }
        Ok(())
    }

    /// What is wrong with a layer.
    pub(super) fn check_layer(
        &self,
        id: LayerId,
        form: OverlayForm,
        sound_packs: &mut SoundPacks,
    ) -> Result<Option<Finding>, StoreError> {
        let layout = &self.inner.layout;
        let is_packed = layout.exists(&layout::layer_packs(id));
        if !is_packed && !layout.exists(&layout::layer_diff(id)) {
            return Ok(Some(Finding::LayerMissing(id)));
        }
        let listing = match self.layer_diff(id) {
            Ok(listing) => listing,
            Err(StoreError::Damaged { why, .. }) => {
                return Ok(Some(Finding::LayerListing { layer: id, why }));
            }
            Err(StoreError::UnknownLayer(_)) => {
                return Ok(Some(Finding::LayerListing { layer: id, why: "it is gone" }));
            }
            Err(error) => return Err(error),
        };
        let unreadable = |why: String| Ok(Some(Finding::LayerUnreadable { layer: id, why }));
        let mut wrong = Vec::new();
        if is_packed {
            let packs = match self.layer_packs(id) {
                Ok(packs) => packs.unwrap_or_default().packs,
                Err(error) => return unreadable(error.to_string()),
            };
            match sound_packs.missing(&listing, &packs) {
                Ok(missing) => wrong = missing,
                Err(error) => return unreadable(error.to_string()),
            }
        }
        if wrong.is_empty() && self.has_dir(id)? {
            let dir = layout.open(&layout::layer_diff(id), OFlags::RDONLY | OFlags::DIRECTORY)?;
            match verify_layer(dir.as_fd(), form, &listing, &self.scratch()) {
                Ok(found) => wrong = found,
                // To verify takes room, too: without any, nothing is known of the layer.
                Err(ScanError::Io { source, .. }) if is_out_of_room(&source) => {
                    return Err(StoreError::io("verify", &layout.path(&layout::layer_diff(id)), source));
                }
                Err(error) => return unreadable(error.to_string()),
            }
        }
        Ok((!wrong.is_empty()).then(|| {
            let shown: Vec<String> = wrong.iter().take(PATHS_SHOWN).map(|path| format!("`{path}`")).collect();
            Finding::LayerContent { layer: id, count: wrong.len(), shown: shown.join(", ") }
        }))
    }

    /// Nodes against their digests, then every tree against the nodes.
    fn check_trees(
        &self,
        snapshot: &Snapshot,
        findings: &mut Vec<Finding>,
        bad: &mut Bad,
    ) -> Result<(), StoreError> {
        let whole = self.whole_nodes(findings, bad)?;
        let are_whole = |roots: &[NodeDigest]| -> Result<bool, StoreError> {
            for root in roots {
                if !self.in_table(whole.has(root))? {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        for result in snapshot.results() {
            let result = result?;
            if !are_whole(&result.roots)? {
                findings.push(result_finding(&result));
                bad.results.insert(result.key);
            }
        }
        for chain in snapshot.chains() {
            let ChainRow { chain, roots } = chain?;
            if !are_whole(&roots)? {
                bad.chains.insert(chain);
                findings.push(Finding::Chain(hex::encode(chain)));
            }
        }
        // Records of an earlier form are no damage.
        for chain in snapshot.unread_chains() {
            if let (chain, false) = chain? {
                bad.chains.insert(chain);
                findings.push(Finding::Chain(hex::encode(chain)));
            }
        }
        for result in snapshot.unread_results() {
            let UnreadResult { key, is_old, .. } = result?;
            if !is_old {
                findings.push(Finding::Record { kind: "result", name: hex::encode(&key) });
                bad.results.insert(key);
            }
        }
        Ok(())
    }

    /// Nodes below which nothing is missing. Says which are damaged.
    fn whole_nodes(&self, findings: &mut Vec<Finding>, bad: &mut Bad) -> Result<Whole, StoreError> {
        let mut whole = Whole(DigestTable::new(&self.scratch(), HELD_BYTES));
        self.inner.trees.read("check nodes", |connection| {
            let mut rows = connection.prepare("SELECT digest, bytes FROM nodes")?;
            let mut rows = rows.query([])?;
            while let Some(row) = rows.next()? {
                let (digest, bytes) = (NodeDigest(row.get(0)?), row.get::<_, Vec<u8>>(1)?);
                let is_sound = NodeDigest::of(&bytes) == digest && DirNode::decode(&bytes).is_ok();
                if !is_sound {
                    findings.push(Finding::Node(digest));
                    bad.nodes.insert(digest);
                }
                let state = if is_sound { State::Unknown } else { State::Broken };
                self.in_table(whole.set(&digest, state))?;
            }
            let mut bytes = connection.prepare("SELECT bytes FROM nodes WHERE digest = ?1")?;
            let mut digests = connection.prepare("SELECT digest FROM nodes")?;
            let mut digests = digests.query([])?;
            let mut work = Stack::new(&self.scratch());
            while let Some(row) = digests.next()? {
                self.in_table(work.push(NodeDigest(row.get(0)?)))?;
                self.find_whole(&mut bytes, &mut work, &mut whole)?;
            }
            Ok(())
        })?;
        Ok(whole)
    }

    /// Finds out what is whole of `work` and all below it: each node after those below it, which are looked at twice.
    fn find_whole(
        &self,
        bytes: &mut Statement<'_>,
        work: &mut Stack,
        whole: &mut Whole,
    ) -> Result<(), DbError> {
        while let Some(digest) = self.in_table(work.pop())? {
            let state = self.in_table(whole.state(&digest))?;
            if !matches!(state, State::Unknown | State::Below) {
                continue;
            }
            let found: Option<Vec<u8>> = bytes.query_row([digest.0], |row| row.get(0)).optional()?;
            let node = found.and_then(|bytes| DirNode::decode(&bytes).ok());
            if state == State::Unknown {
                self.in_table(whole.set(&digest, State::Below))?;
                self.in_table(work.push(digest))?;
                for below in node.iter().flat_map(DirNode::below) {
                    if self.in_table(whole.state(&below))? == State::Unknown {
                        self.in_table(work.push(below))?;
                    }
                }
                continue;
            }
            let mut is_whole = node.is_some();
            for below in node.iter().flat_map(DirNode::below) {
                is_whole &= self.in_table(whole.has(&below))?;
            }
            self.in_table(whole.set(&digest, if is_whole { State::Whole } else { State::Broken }))?;
        }
        Ok(())
    }

    fn in_table<T>(&self, result: io::Result<T>) -> Result<T, StoreError> {
        result.doing("check nodes with a scratch file of", self.root())
    }

    fn find_orphans(&self, lease: &Lease, findings: &mut Vec<Finding>) -> Result<(), StoreError> {
        let orphans = self.orphan_layers()?;
        let listed_in = self.generation_now()?;
        // Somebody who is alive may be about to record what is listed.
        if self.retire(!orphans.is_empty())? > listed_in {
            let still: BTreeSet<LayerId> = self.orphan_layers()?.into_iter().collect();
            findings.extend(orphans.into_iter().filter(|id| still.contains(id)).map(Finding::OrphanLayer));
        }
        findings.extend(self.orphan_blobs()?.into_iter().map(Finding::OrphanBlob));
        self.empty_trash(lease)
    }

    /// Removes rows in one durable transaction, then moves their bytes to `quarantine/`.
    fn set_aside(&self, bad: &Bad) -> Result<(), StoreError> {
        let layout = &self.inner.layout;
        layout.make_dir("quarantine")?;
        self.inner.index.write_durably("drop damaged records", |transaction| {
            let remove = |sql: &str, keys: &mut dyn Iterator<Item = Vec<u8>>| -> rusqlite::Result<()> {
                let mut statement = transaction.prepare_cached(sql)?;
                for key in keys {
                    statement.execute([key])?;
                }
                Ok(())
            };
            remove("DELETE FROM results WHERE key = ?1", &mut bad.results.iter().cloned())?;
            history::note_gone(transaction, bad.results.iter().map(Vec::as_slice), GoneWhy::Damaged)?;
            remove("DELETE FROM chain_trees WHERE chain = ?1", &mut bad.chains.iter().map(|c| c.to_vec()))?;
            for name in &bad.images {
                // The file first; see `names`.
                let to = format!("quarantine/{}", names::quarantined(name));
                let _ = layout.replace(&names::path_of(name), &to);
                transaction.execute("DELETE FROM images WHERE name = ?1", [name])?;
            }
            for id in &bad.layers {
                transaction.execute("DELETE FROM layers WHERE id = ?1", [id.to_sql()])?;
            }
            for id in bad.layers.union(&bad.made_from_bad) {
                for table in ["transitions", "recent"] {
                    transaction.execute(&format!("DELETE FROM {table} WHERE layer = ?1"), [id.to_sql()])?;
                }
            }
            for fact in &bad.facts {
                match fact {
                    Fact::Encoding(diff, params) => transaction.execute(
                        "DELETE FROM encodings WHERE diff_id = ?1 AND params = ?2",
                        (diff, params),
                    )?,
                    Fact::BlobDiff(blob) => {
                        transaction.execute("DELETE FROM blob_diffs WHERE blob = ?1", [blob])?
                    }
                    Fact::Fetch(address) => {
                        transaction.execute("DELETE FROM fetches WHERE address = ?1", [address])?
                    }
                    Fact::Resolution(reference, platform) => transaction.execute(
                        "DELETE FROM resolutions WHERE reference = ?1 AND platform = ?2",
                        (reference, platform),
                    )?,
                    Fact::Execution(id) => {
                        transaction.execute("DELETE FROM executions WHERE id = ?1", [id])?
                    }
                };
            }
            for digest in &bad.blobs {
                transaction.execute("DELETE FROM blobs WHERE digest = ?1", [digest.as_bytes()])?;
                let _ = layout.publish(&layout::blob(digest), &format!("quarantine/blob-{}", digest.hex()));
            }
            Ok(())
        })?;
        for id in &bad.layers {
            let _ = layout.publish(&layout::layer(*id), &format!("quarantine/layer-{id}"));
        }
        self.inner.trees.write_durably("drop damaged nodes", |transaction| {
            let mut statement = transaction.prepare_cached("DELETE FROM nodes WHERE digest = ?1")?;
            bad.nodes.iter().try_for_each(|digest| statement.execute([digest.0]).map(drop))?;
            Ok(())
        })
    }
}

fn result_finding(result: &ResultRow) -> Finding {
    Finding::Result { key: hex::encode(&result.key), step: result.description.clone() }
}

/// Which nodes are there with all that is below them.
struct Whole(DigestTable<1>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// It is there.
    Unknown,
    /// What is below it is being looked at.
    Below,
    /// All that is below it is there.
    Whole,
    /// It is damaged or not there, or something below it is.
    Broken,
}

impl Whole {
    fn has(&self, node: &NodeDigest) -> io::Result<bool> {
        Ok(self.state(node)? == State::Whole)
    }

    fn state(&self, node: &NodeDigest) -> io::Result<State> {
        // The empty directory needs no row.
        if node == &*crate::tree::EMPTY_NODE {
            return Ok(State::Whole);
        }
        Ok(match self.0.get(&node.0)? {
            Some([0]) => State::Unknown,
            Some([1]) => State::Below,
            Some([2]) => State::Whole,
            _ => State::Broken,
        })
    }

    fn set(&mut self, node: &NodeDigest, state: State) -> io::Result<()> {
        self.0.put(&node.0, [state as u8])
    }
}

/// Results and images that rely on what is bad or not there.
fn check_dependants(
    snapshot: &Snapshot,
    findings: &mut Vec<Finding>,
    bad: &mut Bad,
) -> Result<(), StoreError> {
    let is_sound = |bad: &Bad, id: &LayerId| snapshot.layers.contains_key(id) && !bad.layers.contains(id);
    for image in snapshot.images() {
        let (name, image) = image?;
        let layer = image.all_layers().find(|id| !is_sound(bad, id)).map(|id| format!("layer {id}"));
        let is_lost = |digest: &Digest| !snapshot.blobs.contains_key(digest) || bad.blobs.contains(digest);
        let config = || image.each().map(|image| image.config).find(is_lost);
        let index = || image.index.filter(is_lost).map(|index| format!("index {index}"));
        let lost = layer.or_else(|| config().map(|config| format!("config {config}"))).or_else(index);
        if let Some(lost) = lost {
            findings.push(Finding::Image { name: name.clone(), lost });
            bad.images.insert(name);
        }
    }
    for result in snapshot.results() {
        let result = result?;
        if !bad.results.contains(&result.key) && !result.layers.iter().all(|id| is_sound(bad, id)) {
            findings.push(result_finding(&result));
            bad.results.insert(result.key);
        }
    }
    check_made_from_bad(snapshot, findings, bad)
}

/// Results of steps that read a damaged layer, and of those that read what these made. Their own layers are what they
/// should be: only what the steps saw was not. When a layer was damaged is not known, so all that read it go.
fn check_made_from_bad(
    snapshot: &Snapshot,
    findings: &mut Vec<Finding>,
    bad: &mut Bad,
) -> Result<(), StoreError> {
    let mut known = None;
    // Each pass finds what was made from the finds of the last.
    while !bad.layers.is_empty() && known != Some(bad.made_from_bad.len()) {
        known = Some(bad.made_from_bad.len());
        for result in snapshot.results() {
            let result = result?;
            let is_bad = |id| bad.layers.contains(id) || bad.made_from_bad.contains(id);
            if !result.layers.iter().chain(&result.read).any(is_bad) {
                continue;
            }
            bad.made_from_bad.extend(result.own_layer.filter(|id| !bad.layers.contains(id)));
            if !bad.results.contains(&result.key) {
                findings.push(result_finding(&result));
                bad.results.insert(result.key);
            }
        }
    }
    for image in snapshot.images() {
        let (name, image) = image?;
        let made = image.all_layers().find(|id| bad.made_from_bad.contains(id));
        if let Some(layer) = made.filter(|_| !bad.images.contains(&name)) {
            findings.push(Finding::ImageMade { name, layer });
        }
    }
    Ok(())
}

/// True when it is no fault of what was looked at.
pub(super) fn is_out_of_room(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::NOSPC | Errno::DQUOT | Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}
