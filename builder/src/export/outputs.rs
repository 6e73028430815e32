//! Carries out what `--output`, `--push` and `--load` ask for, one after the other. Outputs that pack layers in the same
//! way share their blobs: a layer is encoded once, unless only pushes wanted it ([`crate::assemble::passing`]).

use std::path::PathBuf;
use std::sync::Arc;

use rbuild_cache::layer::{Compression, DEFAULT_GZIP, DEFAULT_ZSTD, Gzip};
use rbuild_oci::Reference;
use rbuild_registry::Client;

use crate::assemble::BuiltImage;
use crate::assemble::attestation::{Form, Predicate};
use crate::assemble::index::{ImageSet, SetPacking};
use crate::build::ended;
use crate::cancel::Cancel;
use crate::cli::{self, BuildRequest, ContextArg, ImageOutput, LocalMode, OutputArg, PackingArg, Results};
use crate::error::BuildError;
use crate::export::ahead::Ahead;
use crate::export::archive::{self, SavedImage};
use crate::export::engine::{self, EngineAddress, EngineError};
use crate::export::files::{self, Files, FilesForm};
use crate::export::oci_layout::{self, Destination};
use crate::export::registry::Push;
use crate::ops::{ExecEnv, blocking};
use crate::progress::{Outcome, VertexId};
use crate::report::counted;

/// The images of a build on their way out.
pub struct Outputs<'a> {
    /// What was asked for.
    pub results: &'a Results,
    /// Store and events.
    pub env: &'a Arc<ExecEnv>,
    /// Where pushes go through.
    pub registry: &'a Client,
    /// Where a local engine is.
    pub engine: &'a EngineAddress,
    /// One for each platform, with times in new layers set back to the epoch.
    pub rewritten: &'a [BuiltImage],
    /// The same with times as they are.
    pub plain: &'a [BuiltImage],
    /// What is said about each of them; empty when nothing is.
    pub said: &'a [Vec<Predicate>],
    /// The files of each, when an output wants them.
    pub files: &'a Arc<Vec<Files>>,
    /// Pushes that began while the steps ran.
    pub ahead: &'a Ahead,
    /// They belong into an index.
    pub is_multi: bool,
}

/// True when new layers of an output get times no later than the epoch, which is so unless somebody says no.
pub fn rewrites(results: &Results, packing: &PackingArg) -> bool {
    packing.rewrite_timestamp.or(results.rewrite_timestamp).unwrap_or(true)
}

/// How an output that makes an image packs it; `None` for those that make none.
pub fn packing(output: &OutputArg) -> Option<&PackingArg> {
    match output {
        OutputArg::Image(ImageOutput { packing, .. })
        | OutputArg::Oci { packing, .. }
        | OutputArg::Docker { packing, .. } => Some(packing),
        OutputArg::Local { .. } | OutputArg::Tar { .. } | OutputArg::CacheOnly => None,
    }
}

/// What the first output that compresses layers makes of them.
pub fn wanted_compression(results: &Results) -> Option<Compression> {
    let packs = |output: &&OutputArg| !matches!(output, OutputArg::Image(image) if !image.push);
    let packings = results.outputs.iter().filter(packs).filter_map(packing);
    packings.map(|packing| layer_compression(packing.compression)).find(|wanted| *wanted != Compression::None)
}

/// True when nobody but registries gets blobs of the build.
pub fn only_pushes(results: &Results) -> bool {
    let mut packed = results.outputs.iter().filter(|output| packing(output).is_some()).peekable();
    packed.peek().is_some() && packed.all(|output| matches!(output, OutputArg::Image(image) if image.push))
}

/// True for outputs of the image's files alone.
pub fn wants_files(output: &OutputArg) -> bool {
    matches!(output, OutputArg::Local { .. } | OutputArg::Tar { .. })
}

impl Outputs<'_> {
    /// Writes everything. Gives what the image in the store is to stand for: what its own output packed, else what the
    /// first one did; `None` when nothing needed a manifest.
    pub async fn write(&self, cancel: &Cancel) -> Result<Option<Arc<ImageSet>>, BuildError> {
        let (mut first, mut stored) = (None, None);
        for (number, output) in self.results.outputs.iter().enumerate() {
            if cancel.reason().is_some() {
                return Err(BuildError::Canceled);
            }
            let set = match (output, packing(output)) {
                // The store needs no manifest of a single image; of several the index is what the name stands for.
                (OutputArg::Image(image), Some(_)) if !image.push && !self.is_multi && !self.says() => {
                    if !image.not_stored && !image.names.is_empty() {
                        let images = self.rewritten.iter().chain(self.plain);
                        let left = images.flat_map(BuiltImage::remote_layers).cloned();
                        super::fetch(self.env, left.collect()).await?;
                    }
                    continue;
                }
                (OutputArg::Docker { .. }, Some(packing)) => {
                    if self.says() {
                        let text = "attestations stay out of type=docker: what an engine loads is one image";
                        self.env.events.remark(text);
                    }
                    self.pack(packing, &[], &[]).await?
                }
                (
                    OutputArg::Image(ImageOutput { names, .. }) | OutputArg::Oci { names, .. },
                    Some(packing),
                ) => self.pack(packing, names, self.said).await?,
                (_, Some(packing)) => self.pack(packing, &[], &[]).await?,
                (_, None) => {
                    self.write_files(output).await?;
                    continue;
                }
            };
            if !matches!(output, OutputArg::Image(image) if image.push) {
                super::bring_in(self.env, &set.images).await?;
            }
            if cancel.reason().is_some() {
                return Err(BuildError::Canceled);
            }
            match output {
                OutputArg::Oci { dest, archive, names, .. } => {
                    let dest = match (dest, archive) {
                        (cli::Destination::Stdout, _) => Destination::Stdout,
                        (cli::Destination::Path(path), true) => Destination::Archive(path.clone()),
                        (cli::Destination::Path(path), false) => Destination::Directory(path.clone()),
                    };
                    self.layout(&set, names, dest).await?;
                }
                OutputArg::Docker { dest, names, .. } => self.docker(&set, names, dest, cancel).await?,
                OutputArg::Image(image) if image.push => self.push(number, &set, image, cancel).await?,
                _ => {}
            }
            if matches!(output, OutputArg::Image(_)) {
                stored.get_or_insert(Arc::clone(&set));
            }
            first.get_or_insert(set);
        }
        Ok(stored.or(first))
    }

    /// True when something is said about the images.
    fn says(&self) -> bool {
        self.said.iter().any(|list| !list.is_empty())
    }

    async fn pack(
        &self,
        packing: &PackingArg,
        names: &[Reference],
        said: &[Vec<Predicate>],
    ) -> Result<Arc<ImageSet>, BuildError> {
        let images = if rewrites(self.results, packing) { self.rewritten } else { self.plain };
        let annotations = [self.results.annotations.as_slice(), &packing.annotations].concat();
        let compression = layer_compression(packing.compression);
        let needs_oci = match (&compression, annotations.is_empty()) {
            (_, false) => Some("annotations"),
            (Compression::Zstd { .. }, true) => Some("compression=zstd"),
            _ if said.iter().any(|list| !list.is_empty()) => Some("attestations"),
            _ => None,
        };
        if let (true, Some(what)) = (packing.docker_types, needs_oci) {
            let text = format!("{what} exist in OCI images only: oci-mediatypes=false is not followed");
            self.env.events.remark(text);
        }
        let packing = SetPacking {
            compression,
            force: packing.force,
            docker_types: packing.docker_types && needs_oci.is_none(),
            annotations,
            attestation_form: if packing.image_attestations { Form::Image } else { Form::Artifact },
        };
        Ok(Arc::new(ImageSet::pack(self.env, images, names, said, &packing, self.is_multi).await?))
    }

    fn begin(&self, name: impl Into<String>) -> VertexId {
        let id = self.env.events.vertex(name.into());
        self.env.events.started(id);
        id
    }

    fn end<T>(&self, id: VertexId, result: Result<T, BuildError>) -> Result<T, BuildError> {
        let result = ended(&self.env.events, id, result)?;
        self.env.events.finished(id, Outcome::Done);
        Ok(result)
    }

    async fn layout(
        &self,
        set: &Arc<ImageSet>,
        names: &[Reference],
        dest: Destination,
    ) -> Result<(), BuildError> {
        let id = self.begin("exporting to oci image format");
        let (store, names, of) = (self.env.store.clone(), names.to_vec(), Arc::clone(set));
        let written = blocking(move || Ok(oci_layout::write(&store, &of, &names, &dest))).await?;
        if written.is_ok() {
            for attestation in &set.attestations {
                let digest = attestation.manifest.digest;
                self.env.events.note(id, format!("exporting attestation manifest {digest}"));
            }
            let what = if set.index.is_some() { "manifest list" } else { "manifest" };
            self.env.events.note(id, format!("exporting {what} {}", set.root().digest));
        }
        self.end(id, written)
    }

    async fn docker(
        &self,
        set: &Arc<ImageSet>,
        names: &[Reference],
        dest: &Option<cli::Destination>,
        cancel: &Cancel,
    ) -> Result<(), BuildError> {
        let names = names.iter().map(|name| name.clone().with_default_tag()).collect();
        let image = SavedImage::new(set.images[0].clone(), names);
        let Some(dest) = dest else {
            let id = self.begin(format!("loading into the Docker engine at {}", self.engine));
            let loaded = engine::load(self.engine, &self.env.store, image, cancel).await;
            let loaded = loaded.map_err(|error| match error {
                EngineError::Canceled => BuildError::Canceled,
                error => error.into(),
            });
            return self.end(id, loaded);
        };
        let id = self.begin("exporting to docker image format");
        let (store, switch, dest) = (self.env.store.clone(), cancel.clone(), dest.clone());
        let path = match &dest {
            cli::Destination::Path(path) => path.clone(),
            cli::Destination::Stdout => PathBuf::from("-"),
        };
        let written = blocking(move || {
            Ok(match &dest {
                cli::Destination::Path(path) => archive::write_file(&store, &[image], path, &switch),
                cli::Destination::Stdout => {
                    archive::write(&store, &[image], std::io::stdout().lock(), &switch)
                }
            })
        });
        let written = written.await?.map_err(|source| BuildError::Export { path, source });
        self.end(id, written)
    }

    async fn push(
        &self,
        number: usize,
        set: &Arc<ImageSet>,
        image: &ImageOutput,
        cancel: &Cancel,
    ) -> Result<(), BuildError> {
        let digest = set.root().digest;
        let pinned = |name: &Reference| if image.by_digest { name.only_digest(digest) } else { name.clone() };
        let names: Vec<Reference> = image.names.iter().map(pinned).collect();
        let new = || Arc::new(Push::new(self.registry, self.env, names.clone()));
        let push = self.ahead.push(number).unwrap_or_else(new);
        let id = push.vertex();
        let pushed = tokio::select! {
            pushed = push.finish(set, &names) => pushed,
            () = cancel.cancelled() => Err(BuildError::Canceled),
        };
        self.end(id, pushed)
    }

    async fn write_files(&self, output: &OutputArg) -> Result<(), BuildError> {
        let clamp = self.env.source_date_epoch();
        let clamp = clamp.filter(|_| self.results.rewrite_timestamp.unwrap_or(true));
        let form = |asked: &Option<bool>, prefix: &String| FilesForm {
            split: asked.unwrap_or(self.is_multi),
            is_merged: *asked == Some(false),
            attestation_prefix: prefix.clone(),
            clamp,
        };
        let images = Arc::clone(self.files);
        match output {
            OutputArg::Local { dest, mode, platform_split, attestation_prefix } => {
                let id = self.begin("exporting to client directory");
                let (dest, mode, form) = (dest.clone(), *mode, form(platform_split, attestation_prefix));
                let write = move || files::write_directory(&images, &dest, mode, &form);
                let devices = blocking(move || Ok(write())).await?.map_err(BuildError::from);
                let devices = self.end(id, devices)?;
                if devices > 0 {
                    let devices = counted(devices, "device was", "devices were");
                    self.env.events.remark(format!("{devices} left out of the directory"));
                }
                Ok(())
            }
            OutputArg::Tar { dest, platform_split, attestation_prefix } => {
                let id = self.begin("exporting to client tarball");
                let (dest, form) = (dest.clone(), form(platform_split, attestation_prefix));
                let write = move || files::write_tar(&images, &dest, &form);
                let written = blocking(move || Ok(write())).await?.map_err(BuildError::from);
                self.end(id, written)
            }
            _ => Ok(()),
        }
    }
}

/// Names that the image gets in the store: those of outputs that make an image here. `set` is what exporters made of it.
pub fn store_names(results: &Results, set: Option<&ImageSet>) -> Vec<Reference> {
    names_of(results, |output| match output {
        OutputArg::Image(image) if !image.not_stored => {
            let digest = set.map(|set| set.root().digest);
            let mut names = if image.by_digest { Vec::new() } else { image.names.clone() };
            if image.canonical || image.by_digest {
                names.extend(
                    digest.into_iter().flat_map(|d| image.names.iter().map(move |n| n.only_digest(d))),
                );
            }
            if names.is_empty()
                && let (Some(prefix), Some(digest)) = (&image.dangling, digest)
            {
                names.push(prefix.only_digest(digest));
            }
            names
        }
        _ => Vec::new(),
    })
}

/// Names that the image gets anywhere.
pub fn all_names(results: &Results) -> Vec<Reference> {
    names_of(results, |output| match output {
        OutputArg::Image(ImageOutput { names, .. })
        | OutputArg::Oci { names, .. }
        | OutputArg::Docker { names, .. } => names.clone(),
        OutputArg::Local { .. } | OutputArg::Tar { .. } | OutputArg::CacheOnly => Vec::new(),
    })
}

/// Names that the image is pushed under.
pub fn pushed_names(results: &Results) -> Vec<Reference> {
    names_of(results, |output| match output {
        OutputArg::Image(image) if image.push => image.names.clone(),
        _ => Vec::new(),
    })
}

/// Each name once, in the order of the outputs.
fn names_of(results: &Results, of: impl Fn(&OutputArg) -> Vec<Reference>) -> Vec<Reference> {
    let mut names: Vec<Reference> = Vec::new();
    for name in results.outputs.iter().flat_map(of) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Files and directories that the outputs make.
pub fn written_paths(results: &Results) -> Vec<String> {
    let written = |output: &OutputArg| match output {
        OutputArg::Oci { dest: cli::Destination::Path(path), .. }
        | OutputArg::Docker { dest: Some(cli::Destination::Path(path)), .. }
        | OutputArg::Tar { dest: cli::Destination::Path(path), .. }
        | OutputArg::Local { dest: path, .. } => Some(path.display().to_string()),
        _ => None,
    };
    results.outputs.iter().filter_map(written).collect()
}

/// Destinations that lose what was there: asked before anything is built.
pub fn check(request: &BuildRequest) -> Result<(), BuildError> {
    let context = match &request.context {
        ContextArg::Local(dir) => Some(dir.as_path()),
        ContextArg::Stdin | ContextArg::Git(_) | ContextArg::Http(_) => None,
    };
    for output in &request.results.outputs {
        match output {
            OutputArg::Local { dest, mode: LocalMode::Delete, .. } => files::may_delete(dest, context)?,
            output if output.is_stdout() && std::io::IsTerminal::is_terminal(&std::io::stdout()) => {
                return Err(files::FilesError::Terminal.into());
            }
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn layer_compression(asked: cli::Compression) -> Compression {
    match asked {
        cli::Compression::Unchanged | cli::Compression::Gzip(None) => DEFAULT_GZIP,
        cli::Compression::Uncompressed => Compression::None,
        cli::Compression::Gzip(Some(level)) => Compression::Gzip(Gzip::Level(u32::from(level))),
        cli::Compression::Zstd(None) => DEFAULT_ZSTD,
        cli::Compression::Zstd(Some(level)) => Compression::Zstd { level: i32::from(level) },
    }
}
