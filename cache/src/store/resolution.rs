//! Base images as they were resolved, and the trees of their layer stacks.

use rbuild_oci::{ChainId, DiffId, Digest};
use rusqlite::OptionalExtension;
use serde::{Deserialize, Serialize};

use super::db::{from_json, now_unix_ns, seal};
use super::error::StoreError;
use super::{Store, readers};

/// What a reference meant for a platform when a registry was last asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolution {
    /// The platform's manifest, a stored blob.
    pub manifest: Digest,
    /// Its image config, a stored blob.
    pub config: Digest,
    /// Layers, base first.
    pub layers: Vec<ResolvedLayer>,
    /// When the registry was asked, nanoseconds since the epoch.
    pub resolved_unix_ns: i64,
    /// Host that answered: the registry or a mirror.
    pub served_by: String,
}

/// One layer of a resolved image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedLayer {
    /// Digest of the uncompressed tar, from the config.
    pub diff_id: DiffId,
    /// Digest of the blob, from the manifest.
    pub blob: Digest,
    /// Length of the blob in bytes.
    pub size: u64,
    /// Media type of the blob.
    pub media_type: String,
}

impl Store {
    /// The recorded meaning of a reference. A damaged record is a miss. The blobs it names may be gone.
    pub fn resolution(&self, reference: &str, platform: &str) -> Result<Option<Resolution>, StoreError> {
        let row = self.inner.index.read("look up a resolution", |connection| {
            let sql = "SELECT record, seal FROM resolutions WHERE reference = ?1 AND platform = ?2";
            let mut statement = connection.prepare_cached(sql)?;
            let found = statement.query_row((reference, platform), |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, [u8; 8]>(1)?))
            });
            Ok(found.optional()?)
        })?;
        let name = resolution_name(reference, platform);
        Ok(row.and_then(|(text, sealed)| from_json("resolution", &name, &text, sealed).ok()))
    }

    /// Everything that was resolved, by reference. A damaged record is left out.
    pub fn resolutions(&self) -> Result<Vec<(String, Resolution)>, StoreError> {
        let rows = self.inner.index.read("list resolutions", |connection| {
            let sql =
                "SELECT reference, platform, record, seal FROM resolutions ORDER BY reference, platform";
            let mut statement = connection.prepare_cached(sql)?;
            let rows = statement.query_map((), |row| {
                let names = (row.get::<_, String>(0)?, row.get::<_, String>(1)?);
                Ok((names, row.get::<_, String>(2)?, row.get::<_, [u8; 8]>(3)?))
            })?;
            Ok(rows.collect::<Result<Vec<_>, _>>()?)
        })?;
        let parsed = |((reference, platform), text, sealed): ((String, String), String, [u8; 8])| {
            let name = resolution_name(&reference, &platform);
            Some((reference, from_json("resolution", &name, &text, sealed).ok()?))
        };
        Ok(rows.into_iter().filter_map(parsed).collect())
    }

    /// Records the meaning of a reference, replacing an earlier one. Its manifest and config must be stored, and stay.
    pub fn put_resolution(
        &self,
        reference: &str,
        platform: &str,
        resolution: &Resolution,
    ) -> Result<(), StoreError> {
        let text = serde_json::to_string(resolution).expect("digests, text and numbers serialise");
        let name = resolution_name(reference, platform);
        let sealed = seal("resolution", name.as_bytes(), text.as_bytes());
        self.inner.index.write("record a resolution", |transaction| {
            let sql = "INSERT OR REPLACE INTO resolutions VALUES (?1, ?2, ?3, ?4)";
            transaction.prepare_cached(sql)?.execute((reference, platform, &text, sealed))?;
            // Until now nothing named them. Those of the layers are the encodings' matter.
            readers::touch_blobs(transaction, &[resolution.manifest, resolution.config])
        })
    }

    /// The encoded tree of a stack of image layers. Its nodes are in the store; a damaged record is a miss.
    pub fn chain_tree(&self, chain: &ChainId) -> Result<Option<Vec<u8>>, StoreError> {
        let boot = self.boot()?;
        let row = self.inner.index.read("look up the tree of a chain", |connection| {
            let sql = "SELECT record, seal FROM chain_trees WHERE chain = ?1 AND (durable = 1 OR boot = ?2)";
            let mut statement = connection.prepare_cached(sql)?;
            let found = statement.query_row((chain.0.as_bytes(), boot.0), |row| {
                Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, [u8; 8]>(1)?))
            });
            Ok(found.optional()?)
        })?;
        Ok(row
            .filter(|(tree, sealed)| seal(CHAIN_TREE, chain.0.as_bytes(), tree) == *sealed)
            .map(|(tree, _)| tree))
    }

    /// Records the encoded tree of a stack of image layers, whose nodes must be stored.
    pub fn put_chain_tree(&self, chain: &ChainId, tree: &[u8]) -> Result<(), StoreError> {
        let boot = self.boot()?;
        let sealed = seal(CHAIN_TREE, chain.0.as_bytes(), tree);
        self.inner.index.write("record the tree of a chain", |transaction| {
            let sql = "INSERT OR REPLACE INTO chain_trees
                VALUES (?1, ?2, ?3, ?4, ?5, (SELECT current FROM epoch), 0)";
            let row = (chain.0.as_bytes(), tree, sealed, now_unix_ns(), boot.0);
            transaction.prepare_cached(sql)?.execute(row)?;
            Ok(())
        })
    }
}

/// What the seal of a chain's tree is for. The number rises when the same files get another tree, unless the one before does
/// not decode any more.
pub(super) const CHAIN_TREE: &str = "chain tree 2";

/// Neither part can contain a line break.
fn resolution_name(reference: &str, platform: &str) -> String {
    format!("{reference}\n{platform}")
}
