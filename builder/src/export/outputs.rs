//! Carries out what `--output` and `--push` ask for, one after the other. Outputs that pack layers in the same way share
//! their blobs: a layer is encoded once in its life.

use std::sync::Arc;

use rbuild_cache::layer::{Compression, DEFAULT_GZIP, DEFAULT_ZSTD};
use rbuild_oci::Reference;
use rbuild_registry::Client;

use crate::assemble::BuiltImage;
use crate::assemble::index::ImageSet;
use crate::build::ended;
use crate::cancel::Cancel;
use crate::cli::{self, BuildRequest, OutputArg};
use crate::error::BuildError;
use crate::export::oci_layout::{self, Destination};
use crate::export::registry;
use crate::ops::{ExecEnv, blocking};
use crate::progress::Outcome;

/// The images of a build on their way out.
pub struct Outputs<'a> {
    /// What was asked for.
    pub request: &'a BuildRequest,
    /// Store and events.
    pub env: &'a Arc<ExecEnv>,
    /// Where pushes go through.
    pub registry: &'a Client,
    /// One for each platform.
    pub images: &'a [BuiltImage],
    /// They belong into an index.
    pub is_multi: bool,
}

impl Outputs<'_> {
    /// Writes everything. `None` when nothing needed a manifest.
    pub async fn write(&self, cancel: &Cancel) -> Result<Option<Arc<ImageSet>>, BuildError> {
        let mut first = None;
        for output in &self.request.outputs {
            let set = match output {
                OutputArg::CacheOnly => continue,
                // The store needs no manifest of a single image; of several the index is what the name stands for.
                OutputArg::Image { push: false, .. } if !self.is_multi => continue,
                OutputArg::Image { compression, .. } => self.pack(*compression, cancel).await?,
                OutputArg::Oci { compression, .. } => self.pack(*compression, cancel).await?,
            };
            match output {
                OutputArg::Oci { dest, archive, names, .. } => {
                    let dest = match (dest, archive) {
                        (cli::Destination::Stdout, _) => Destination::Stdout,
                        (cli::Destination::Path(path), true) => Destination::Archive(path.clone()),
                        (cli::Destination::Path(path), false) => Destination::Directory(path.clone()),
                    };
                    self.layout(&set, names, dest).await?;
                }
                OutputArg::Image { push: true, names, .. } => self.push(&set, names, cancel).await?,
                OutputArg::Image { .. } | OutputArg::CacheOnly => {}
            }
            first.get_or_insert(set);
        }
        Ok(first)
    }

    async fn pack(
        &self,
        compression: cli::Compression,
        cancel: &Cancel,
    ) -> Result<Arc<ImageSet>, BuildError> {
        let compression = layer_compression(compression);
        let set = ImageSet::pack(self.env, self.images, compression, self.is_multi).await?;
        if cancel.reason().is_some() {
            return Err(BuildError::Canceled);
        }
        Ok(Arc::new(set))
    }

    async fn layout(
        &self,
        set: &Arc<ImageSet>,
        names: &[Reference],
        dest: Destination,
    ) -> Result<(), BuildError> {
        let events = &self.env.events;
        let id = events.vertex("exporting to oci image format");
        events.started(id);
        let (store, names, of) = (self.env.store.clone(), names.to_vec(), Arc::clone(set));
        let written = blocking(move || Ok(oci_layout::write(&store, &of, &names, &dest))).await?;
        ended(events, id, written)?;
        let what = if set.index.is_some() { "manifest list" } else { "manifest" };
        events.note(id, format!("exporting {what} {}", set.root().digest));
        events.finished(id, Outcome::Done);
        Ok(())
    }

    async fn push(
        &self,
        set: &Arc<ImageSet>,
        names: &[Reference],
        cancel: &Cancel,
    ) -> Result<(), BuildError> {
        let events = &self.env.events;
        let shown: Vec<String> = names.iter().map(Reference::familiar).collect();
        let id = events.vertex(format!("pushing {}", shown.join(", ")));
        events.started(id);
        let pushing = registry::push(self.registry, &self.env.store, set, names, events, id);
        let pushed = tokio::select! {
            pushed = pushing => pushed,
            () = cancel.cancelled() => Err(BuildError::Canceled),
        };
        ended(events, id, pushed)?;
        events.finished(id, Outcome::Done);
        Ok(())
    }
}

/// Names that the image gets in the store: those of outputs that make an image here.
pub fn store_names(request: &BuildRequest) -> Vec<Reference> {
    names_of(request, |output| match output {
        OutputArg::Image { names, .. } => names.clone(),
        OutputArg::Oci { .. } | OutputArg::CacheOnly => Vec::new(),
    })
}

/// Names that the image gets anywhere.
pub fn all_names(request: &BuildRequest) -> Vec<Reference> {
    names_of(request, |output| match output {
        OutputArg::Image { names, .. } | OutputArg::Oci { names, .. } => names.clone(),
        OutputArg::CacheOnly => Vec::new(),
    })
}

/// Names that the image is pushed under.
pub fn pushed_names(request: &BuildRequest) -> Vec<Reference> {
    names_of(request, |output| match output {
        OutputArg::Image { push: true, names, .. } => names.clone(),
        _ => Vec::new(),
    })
}

/// Each name once, in the order of the outputs.
fn names_of(request: &BuildRequest, of: impl Fn(&OutputArg) -> Vec<Reference>) -> Vec<Reference> {
    let mut names: Vec<Reference> = Vec::new();
    for name in request.outputs.iter().flat_map(of) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Files and directories that the outputs make.
pub fn written_paths(request: &BuildRequest) -> Vec<String> {
    let written = |output: &OutputArg| match output {
        OutputArg::Oci { dest: cli::Destination::Path(path), .. } => Some(path.display().to_string()),
        _ => None,
    };
    request.outputs.iter().filter_map(written).collect()
}

fn layer_compression(asked: cli::Compression) -> Compression {
    match asked {
        cli::Compression::Unchanged | cli::Compression::Gzip(None) => DEFAULT_GZIP,
        cli::Compression::Uncompressed => Compression::None,
        cli::Compression::Gzip(Some(level)) => Compression::Gzip { level: u32::from(level) },
        cli::Compression::Zstd(None) => DEFAULT_ZSTD,
        cli::Compression::Zstd(Some(level)) => Compression::Zstd { level: i32::from(level) },
    }
}
