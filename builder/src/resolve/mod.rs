//! From image names to pinned images: local store, recorded resolutions, layouts, registries.
//!
//! Order: a named context, then an image in the local store, then a tag resolved before, then the registry. A
//! resolution is recorded with the manifest's and config's digests, so a later build needs no network. What [`Pull`]
//! changes:
//!
//! | | what is here | the registry |
//! |---|---|---|
//! | missing | first | asked when there is nothing |
//! | always | not looked at | asked; the build fails when it does not answer |
//! | newer | used, with a remark, when the registry cannot be reached | asked first |
//! | never | the only source | not asked |

pub mod archive;
pub mod layout;
mod namesakes;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use rbuild_cache::store::{ImageRecord, Resolution, ResolvedLayer, Store};
use rbuild_oci::{DiffId, Digest, ImageConfig, Manifest, Platform, Reference, ReferenceError};
use rbuild_registry::{Client, ErrorKind, RegistryError};

use crate::cli::{NamedContextArg, Pull};
use crate::progress::Events;
use crate::report::counted;
use crate::resolve::layout::{Layout, LayoutError};
use crate::timestamp;

/// Says which registries let this account pull little more: a build that fails tomorrow is announced today.
pub fn remark_on_quotas(client: &Client, events: &Events) {
    for (host, quota) in client.low_quotas() {
        let hours = match quota.window / 3600 {
            0 => String::new(),
            hours => format!(" per {}", counted(hours, "hour", "hours")),
        };
        events.remark(format!("{} of {} pulls{hours} are left at {host}", quota.remaining, quota.limit));
    }
}

/// A compressed layer as its image names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRef {
    /// Digest of the compressed bytes.
    pub digest: Digest,
    /// Their length.
    pub size: u64,
    /// Media type in the manifest.
    pub media_type: String,
}

/// Name under which the store remembers a layer's compressed form as some registry or layout has it.
pub use rbuild_cache::store::PULLED;

/// One layer of a base image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseLayer {
    /// Digest of its uncompressed tar.
    pub diff_id: DiffId,
    /// Where its compressed bytes are known; `None` for images built here.
    pub blob: Option<BlobRef>,
}

impl From<ResolvedLayer> for BaseLayer {
    fn from(layer: ResolvedLayer) -> Self {
        let blob = BlobRef { digest: layer.blob, size: layer.size, media_type: layer.media_type };
        Self { diff_id: layer.diff_id, blob: Some(blob) }
    }
}

/// Where a base image's layers come from when they are not local.
#[derive(Debug, Clone)]
pub enum Origin {
    /// A registry.
    Registry(Reference),
    /// An OCI layout directory.
    Layout(Arc<Layout>),
    /// Only the local store has it.
    Local,
}

/// A pinned image.
#[derive(Debug, Clone)]
pub struct BaseImage {
    /// Normalised name, for people and records.
    pub reference: String,
    /// What pins it: the manifest's digest, or the config's for an image built here.
    pub identity: Digest,
    /// Its config's bytes, as its maker wrote them.
    pub config_bytes: Vec<u8>,
    /// Its config.
    pub config: ImageConfig,
    /// Its layers, base first.
    pub layers: Vec<BaseLayer>,
    /// Where missing layers come from.
    pub origin: Origin,
}

/// Base images of one build by identity.
pub type BaseImages = HashMap<Digest, Arc<BaseImage>>;

/// Why an image cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The name is not a reference.
    #[error("failed to parse the image name `{text}`")]
    Reference {
        /// What was written.
        text: String,
        /// Why.
        #[source]
        source: ReferenceError,
    },
    /// The registry did not give it.
    #[error("{reference}")]
    Registry {
        /// Normalised name.
        reference: String,
        /// Why.
        #[source]
        source: RegistryError,
    },
    /// It is not here, and the registry was not to be asked.
    #[error("{reference} is not in the store, and --pull=never does not ask the registry")]
    Never {
        /// Normalised name.
        reference: String,
    },
    /// A layout did not give it.
    #[error("failed to read the image layout")]
    Layout(#[from] LayoutError),
    /// Its config and manifest disagree.
    #[error("image {reference} lists {layers} layers in its manifest but {diff_ids} in its config")]
    LayerCount {
        /// Name.
        reference: String,
        /// In the manifest.
        layers: usize,
        /// In the config.
        diff_ids: usize,
    },
    /// A descriptor's digest is not sha256.
    #[error("image {reference} names a layer by `{digest}`, which is not a sha256 digest")]
    LayerDigest {
        /// Name.
        reference: String,
        /// The text.
        digest: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] rbuild_cache::store::StoreError),
    /// A stored config does not parse.
    #[error("the stored config of {reference} is damaged")]
    Config {
        /// Name.
        reference: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// Resolves names for one build.
pub struct Resolver {
    store: Store,
    registry: Client,
    named: BTreeMap<String, NamedContextArg>,
    pull: Pull,
    events: Events,
}

impl Resolver {
    /// A resolver; nothing is contacted yet.
    pub fn new(
        store: Store,
        registry: Client,
        named: BTreeMap<String, NamedContextArg>,
        pull: Pull,
        events: Events,
    ) -> Self {
        Self { store, registry, named, pull, events }
    }

    /// Finds the image `text`, or the one that the named context `named` stands for.
    pub async fn resolve(
        &self,
        text: &str,
        named: Option<&str>,
        platform: &Platform,
    ) -> Result<BaseImage, ResolveError> {
        match named.and_then(|name| self.named.get(name)) {
            Some(NamedContextArg::OciLayout { dir, tag, digest }) => {
                Self::in_layout(dir, tag.as_deref(), *digest, platform)
            }
            Some(NamedContextArg::Image(Some(reference))) => {
                self.by_reference(reference.clone(), platform).await
            }
            Some(
                NamedContextArg::Image(None)
                | NamedContextArg::Dir(_)
                | NamedContextArg::Git(_)
                | NamedContextArg::Http(_),
            )
            | None => {
                let reference = text
                    .parse::<Reference>()
                    .map_err(|source| ResolveError::Reference { text: text.to_owned(), source })?;
                self.by_reference(reference, platform).await
            }
        }
    }

    /// The image when it is in the store; nobody else is asked, whatever `--pull` says.
    pub fn stored(&self, text: &str, platform: &Platform) -> Result<Option<BaseImage>, ResolveError> {
        let reference = text
            .parse::<Reference>()
            .map_err(|source| ResolveError::Reference { text: text.to_owned(), source })?
            .with_default_tag();
        match local_image(&self.store, &reference, platform)? {
            Some(image) => Ok(Some(image)),
            None => self.recorded(&reference, platform),
        }
    }

    fn in_layout(
        dir: &std::path::Path,
        tag: Option<&str>,
        digest: Option<Digest>,
        platform: &Platform,
    ) -> Result<BaseImage, ResolveError> {
        let layout = Layout::open(dir)?;
        let image = layout.image(tag, digest, platform)?;
        let reference = format!("oci-layout://{}", dir.display());
        let layers = base_layers(&reference, &image.manifest, &image.config)?;
        Ok(BaseImage {
            reference,
            identity: image.manifest_digest,
            config_bytes: image.config_bytes,
            config: image.config,
            layers,
            origin: Origin::Layout(Arc::new(layout)),
        })
    }

    async fn by_reference(
        &self,
        reference: Reference,
        platform: &Platform,
    ) -> Result<BaseImage, ResolveError> {
        let reference = reference.with_default_tag();
        if matches!(self.pull, Pull::Missing | Pull::Never)
            && let Some(image) = self.here(&reference, platform)?
        {
            return Ok(image);
        }
        if self.pull == Pull::Never {
            return Err(ResolveError::Never { reference: reference.to_string() });
        }
        match fetch(&self.store, &self.registry, &reference, platform).await {
            // A registry that answered has said what the tag means: only silence leaves room for what is here.
            Err(ResolveError::Registry { source, .. })
                if self.pull == Pull::Newer && gave_no_answer(&source) =>
            {
                let Some(image) = self.here(&reference, platform)? else {
                    return Err(ResolveError::Registry { reference: reference.to_string(), source });
                };
                self.events.remark(self.offline_note(&reference, platform));
                Ok(image)
            }
            other => other,
        }
    }

    /// The image in the store or as it was resolved before.
    fn here(&self, reference: &Reference, platform: &Platform) -> Result<Option<BaseImage>, ResolveError> {
        let recorded = self.recorded(reference, platform)?;
        Ok(match (local_image(&self.store, reference, platform)?, recorded) {
            // Pulled here: the record also knows where its layers can be had again.
            (Some(local), Some(recorded)) if local.identity == recorded.identity => Some(recorded),
            (Some(image), _) | (None, Some(image)) => Some(image),
            (None, None) => None,
        })
    }

    fn offline_note(&self, reference: &Reference, platform: &Platform) -> String {
        let name = reference.familiar();
        match self.store.resolution(&reference.to_string(), &platform.to_string()) {
            Ok(Some(resolution)) => {
                let when = timestamp::rfc3339(resolution.resolved_unix_ns / 1_000_000_000, 0);
                format!(
                    "[Warning] the registry cannot be reached: {name} is taken as it was resolved on {when}"
                )
            }
            _ => format!("[Warning] the registry cannot be reached: {name} is taken from the store"),
        }
    }

    fn recorded(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Option<BaseImage>, ResolveError> {
        let Some(resolution) = self.store.resolution(&reference.to_string(), &platform.to_string())? else {
            return Ok(None);
        };
        let Some(config_bytes) = self.store.blob_bytes(&resolution.config, ImageConfig::BYTES_MAX)? else {
            return Ok(None);
        };
        let config = ImageConfig::parse(&config_bytes)
            .map_err(|source| ResolveError::Config { reference: reference.to_string(), source })?;
        let layers = resolution.layers.into_iter().map(BaseLayer::from).collect();
        Ok(Some(BaseImage {
            reference: reference.to_string(),
            identity: resolution.manifest,
            config_bytes,
            config,
            layers,
            origin: Origin::Registry(reference.clone()),
        }))
    }
}

/// True when nothing is known about what the registry has: no connection, too many requests, or it is out of order.
fn gave_no_answer(error: &RegistryError) -> bool {
    matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::RateLimited)
        || error.status().is_some_and(|status| status >= 500)
}

/// Asks the registry and records the answer.
pub async fn fetch(
    store: &Store,
    registry: &Client,
    reference: &Reference,
    platform: &Platform,
) -> Result<BaseImage, ResolveError> {
    let found = registry
        .resolve(reference, platform)
        .await
        .map_err(|source| ResolveError::Registry { reference: reference.to_string(), source })?;
    let layers = base_layers(&reference.to_string(), &found.manifest, &found.config)?;
    let lease = store.lease()?;
    let recorded = layers.iter().filter_map(|layer| {
        let blob = layer.blob.clone()?;
        Some(ResolvedLayer {
            diff_id: layer.diff_id,
            blob: blob.digest,
            size: blob.size,
            media_type: blob.media_type,
        })
    });
    let resolution = Resolution {
        manifest: store.put_blob(&lease, &found.manifest_bytes)?,
        config: store.put_blob(&lease, &found.config_bytes)?,
        layers: recorded.collect(),
        resolved_unix_ns: timestamp::unix_ns(),
        served_by: found.served_by,
    };
    store.put_resolution(&reference.to_string(), &platform.to_string(), &resolution)?;
    Ok(BaseImage {
        reference: reference.to_string(),
        identity: found.manifest_digest,
        config_bytes: found.config_bytes,
        config: found.config,
        layers,
        origin: Origin::Registry(reference.clone()),
    })
}

/// An image that was built or pulled here under this very name, when all its layers are still here.
fn local_image(
    store: &Store,
    reference: &Reference,
    platform: &Platform,
) -> Result<Option<BaseImage>, ResolveError> {
    let Some(named) = store.image(&reference.to_string())? else { return Ok(None) };
    if reference.digest().is_some_and(|digest| Some(digest) != named.digest()) {
        return Ok(None);
    }
    // Of an index the image that fits exactly, else the first that runs there.
    let parsed = |record: &ImageRecord| record.platform.parse::<Platform>().ok();
    let exact = named.each().find(|record| parsed(record).as_ref() == Some(platform));
    let fitting = || named.each().find(|record| parsed(record).is_some_and(|p| p.satisfies(platform)));
    let Some(record) = exact.or_else(fitting) else { return Ok(None) };
    if !store.has_layers(&record.layers)? {
        return Ok(None);
    }
    let Some(config_bytes) = store.blob_bytes(&record.config, ImageConfig::BYTES_MAX)? else {
        return Ok(None);
    };
    let config = ImageConfig::parse(&config_bytes)
        .map_err(|source| ResolveError::Config { reference: reference.to_string(), source })?;
    if !config.platform.satisfies(platform) {
        return Ok(None);
    }
    let absent = record.absent_layers().iter().cloned().map(BaseLayer::from);
    let local = record.local_layers().map(|(_, diff_id)| BaseLayer { diff_id, blob: None });
    let layers = absent.chain(local).collect();
    let origin = match &record.absent {
        Some(absent) => Origin::Registry(
            absent
                .from
                .parse()
                .map_err(|source| ResolveError::Reference { text: absent.from.clone(), source })?,
        ),
        None => Origin::Local,
    };
    let identity = record.manifest.unwrap_or(record.config);
    Ok(Some(BaseImage { reference: reference.to_string(), identity, config_bytes, config, layers, origin }))
}

pub(crate) fn base_layers(
    reference: &str,
    manifest: &Manifest,
    config: &ImageConfig,
) -> Result<Vec<BaseLayer>, ResolveError> {
    let diff_ids = &config.rootfs.diff_ids;
    if manifest.layers().len() != diff_ids.len() {
        return Err(ResolveError::LayerCount {
            reference: reference.to_owned(),
            layers: manifest.layers().len(),
            diff_ids: diff_ids.len(),
        });
    }
    let layer = |(descriptor, diff_id): (&rbuild_oci::Descriptor, &DiffId)| {
        let text = descriptor.digest().to_string();
        let digest = text.parse().map_err(|_| ResolveError::LayerDigest {
            reference: reference.to_owned(),
            digest: text.chars().take(80).collect(),
        })?;
        let blob =
            BlobRef { digest, size: descriptor.size(), media_type: descriptor.media_type().to_string() };
        Ok(BaseLayer { diff_id: *diff_id, blob: Some(blob) })
    };
    manifest.layers().iter().zip(diff_ids).map(layer).collect()
}
