//! From a solved target to an image: layer identities, config, history, manifest.
//!
//! Times come from the records of the layers, not from the clock, so a fully cached build gives the same image digest
//! as the build that made the layers.

pub mod attestation;
pub mod emit;
pub mod file_blob;
pub mod growing;
pub mod index;
pub mod manifest;
pub mod passing;
pub mod provenance;
pub mod purl;
pub mod said;
pub mod sbom;
mod window;

use std::sync::Arc;

use petgraph::graph::NodeIndex;
use rbuild_cache::store::LayerId;
use rbuild_frontend::graph::{BuildGraph, Op, Target};
use rbuild_oci::{DiffId, Digest, History, ImageConfig};

use crate::assemble::emit::image_layer;
use crate::error::BuildError;
use crate::ops::ExecEnv;
use crate::ops::download::RemoteLayer;
use crate::resolve::{BaseImage, Origin};
use crate::solve::Solved;
use crate::timestamp::rfc3339;

/// `comment` of history entries that come from a Dockerfile.
const HISTORY_COMMENT: &str = "buildkit.dockerfile.v0";

/// One layer of a finished image.
#[derive(Debug, Clone)]
pub struct ImageLayer {
    /// Where it is.
    pub place: Place,
    /// Digest of its tar.
    pub diff_id: DiffId,
    /// Bytes of its files; of one that is not here, of its blob.
    pub size: u64,
    /// True for layers of the base image, which are never rewritten.
    pub is_base: bool,
    /// Times in it later than this are set back to it.
    pub clamp: Option<i64>,
}

/// Where a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the store.
    Here(LayerId),
    /// At a registry; nothing has wanted its files yet.
    There(RemoteLayer),
}

/// A finished image, not yet exported.
#[derive(Debug, Clone)]
pub struct BuiltImage {
    /// Its config.
    pub config: ImageConfig,
    /// The config's bytes.
    pub config_bytes: Vec<u8>,
    /// Digest of the config: the image id.
    pub id: Digest,
    /// Its layers, base first.
    pub layers: Vec<ImageLayer>,
    /// The base image, when there is one.
    pub base: Option<Arc<BaseImage>>,
}

impl BuiltImage {
    /// Bytes of the files of all layers.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }

    /// Those of its layers that are in the store.
    pub fn local_layers(&self) -> impl Iterator<Item = LayerId> {
        self.layers.iter().filter_map(|layer| match &layer.place {
            Place::Here(id) => Some(*id),
            Place::There(_) => None,
        })
    }

    /// Those of its layers that are not.
    pub fn remote_layers(&self) -> impl Iterator<Item = &RemoteLayer> {
        self.layers.iter().filter_map(|layer| match &layer.place {
            Place::Here(_) => None,
            Place::There(remote) => Some(remote),
        })
    }
}

/// The layers of an image that was left at its registry.
pub(crate) fn left_layers(image: &BaseImage) -> impl Iterator<Item = ImageLayer> {
    let from = match &image.origin {
        Origin::Registry(reference) => Some(reference),
        Origin::Layout(_) | Origin::Local => None,
    };
    image.layers.iter().filter_map(move |layer| {
        let (diff_id, blob, from) = (layer.diff_id, layer.blob.clone()?, from?.clone());
        let size = blob.size;
        let place = Place::There(RemoteLayer { diff_id, blob, from });
        Some(ImageLayer { place, diff_id, size, is_base: true, clamp: None })
    })
}

/// Puts the image of `target` together. Layers whose tar was never emitted are hashed now, in parallel. `rewrite` sets
/// newer times in all new layers back to the epoch, when there is one; directories that WORKDIR made have its time
/// anyhow.
pub async fn assemble(
    env: &Arc<ExecEnv>,
    graph: &BuildGraph,
    target: &Target,
    solved: &Solved,
    base: Option<Arc<BaseImage>>,
    rewrite: bool,
) -> Result<BuiltImage, BuildError> {
    let new_count = target.layers.len().min(solved.stack.len());
    let base_count = solved.stack.len() - new_count;
    let clamp = env.source_date_epoch();
    let layers = solved.stack.iter().enumerate().map(|(at, id)| {
        let (env, id, is_base) = (Arc::clone(env), *id, at < base_count);
        let is_workdir = |node: &NodeIndex| matches!(graph.dag[*node].op, Op::Workdir(_));
        let own = at.checked_sub(base_count).and_then(|at| target.layers.get(at));
        let clamp = clamp.filter(|_| own.is_some_and(|node| rewrite || is_workdir(node)));
        async move { image_layer(&env, id, is_base, clamp).await }
    });
    let mut identified = Vec::with_capacity(solved.stack.len());
    for layer in futures_util::future::join_all(layers).await {
        identified.push(layer?);
    }
    let mut config = target.config.clone();
    let base_created = config.history.iter().rev().find_map(|entry| entry.created.clone());
    let base_created = base_created.or_else(|| base.as_ref().and_then(|b| b.config.created.clone()));
    let times: Vec<i64> = identified[base_count..].iter().map(|(_, created_ns)| *created_ns).collect();
    history(&mut config, target, &times, base_created, clamp);
    let left = solved.below.iter().flat_map(|image| left_layers(image));
    let layers: Vec<ImageLayer> = left.chain(identified.into_iter().map(|(layer, _)| layer)).collect();
    config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id).collect();
    let config_bytes = config.to_json();
    if !ImageConfig::is_readable(&config_bytes) {
        return Err(BuildError::ConfigTooLarge);
    }
    Ok(BuiltImage { id: Digest::of(&config_bytes), config, config_bytes, layers, base })
}

/// Appends this build's history. An entry without a layer takes the time of the next layer; after the last layer, the
/// time of the last one; without any new layer, the base image's, so that nothing depends on the clock.
fn history(
    config: &mut ImageConfig,
    target: &Target,
    layer_times_ns: &[i64],
    base_created: Option<String>,
    clamp: Option<i64>,
) {
    let text = |ns: i64| match clamp {
        Some(epoch) => rfc3339(epoch, 0),
        None => rfc3339(ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000) as u32),
    };
    // Layers of a canonical result may be older than the ones below them: never let history run backwards.
    let mut latest = i64::MIN;
    let times: Vec<String> = layer_times_ns
        .iter()
        .map(|ns| {
            latest = latest.max(*ns);
            text(latest)
        })
        .collect();
    let none = clamp.map(|epoch| rfc3339(epoch, 0)).or(base_created).unwrap_or_else(|| rfc3339(0, 0));
    let mut next = 0;
    for step in &target.history {
        let created = times.get(next).or_else(|| times.last()).unwrap_or(&none).clone();
        config.history.push(History {
            created: Some(created),
            created_by: Some(step.created_by.clone()),
            comment: Some(HISTORY_COMMENT.to_owned()),
            empty_layer: step.empty_layer,
            ..History::default()
        });
        if !step.empty_layer {
            next += 1;
        }
    }
    config.created = Some(times.last().unwrap_or(&none).clone());
}

#[cfg(test)]
mod tests {
    use super::*;
    use rbuild_frontend::graph::HistoryStep;
    use rbuild_oci::Platform;

    fn created(steps: &[bool], times: &[i64], base: Option<&str>, clamp: Option<i64>) -> Vec<String> {
        let mut config = ImageConfig::empty(Platform::new("linux", "amd64", None));
        let target = Target {
            node: NodeIndex::new(0),
            stage: "stage-0".into(),
            config: config.clone(),
            history: steps
                .iter()
                .map(|empty| HistoryStep { created_by: "x".into(), empty_layer: *empty })
                .collect(),
            layers: Vec::new(),
            base: None,
            scans: Vec::new(),
        };
        history(&mut config, &target, times, base.map(str::to_owned), clamp);
        config.history.into_iter().filter_map(|entry| entry.created).chain(config.created).collect()
    }

    #[test]
    fn metadata_takes_the_next_layers_time_and_trailing_metadata_the_last() {
        let second = 1_000_000_000;
        assert_eq!(
            created(&[true, false, true, false, true], &[second, 2 * second], None, None),
            [
                "1970-01-01T00:00:01Z",
                "1970-01-01T00:00:01Z",
                "1970-01-01T00:00:02Z",
                "1970-01-01T00:00:02Z",
                "1970-01-01T00:00:02Z",
                "1970-01-01T00:00:02Z",
            ]
        );
    }

    #[test]
    fn an_image_without_new_layers_keeps_the_bases_time() {
        let base = "2020-02-02T02:02:02Z";
        assert_eq!(created(&[true], &[], Some(base), None), [base, base]);
    }

    #[test]
    fn the_epoch_wins_everywhere() {
        assert_eq!(created(&[false, true], &[5], None, Some(0)), ["1970-01-01T00:00:00Z"; 3]);
    }

    #[test]
    fn an_older_canonical_layer_does_not_turn_time_back() {
        let second = 1_000_000_000;
        let times = created(&[false, false], &[9 * second, 3 * second], None, None);
        assert_eq!(times, ["1970-01-01T00:00:09Z"; 3]);
    }
}
