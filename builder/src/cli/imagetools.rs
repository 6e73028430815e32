//! `rbuild imagetools` and `rbuild system`: what was typed, and what it means.

use std::path::PathBuf;

use clap::{ArgAction, Args, Subcommand};
use rbuild_oci::{Digest, Platform, Reference};
use serde_json::Value;

use super::args::go_bool;
use super::env::Env;
use super::error::Problem;
use super::image::{ImagePruneArgs, ImagePruneRequest};
use super::request::parse_platform;

/// Look at and join images at registries
#[derive(Debug, Args)]
pub(crate) struct ImagetoolsArgs {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: ImagetoolsCommandArgs,
}

/// The commands of `rbuild imagetools`.
#[derive(Debug, Subcommand)]
pub(crate) enum ImagetoolsCommandArgs {
    /// Show what a name stands for at its registry
    Inspect(InspectArgs),
    /// Make one image of several platforms from images at registries
    Create(CreateArgs),
}

/// Show what a name stands for at its registry
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Image
    #[arg(value_name = "NAME[:TAG|@DIGEST]")]
    pub(crate) name: String,
    /// Print the manifest or index as it is
    #[arg(long)]
    pub(crate) raw: bool,
    /// Show this instead: a Go template such as `{{json .Manifest}}`; fields .Name .Manifest .Image .Provenance .SBOM
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "raw")]
    pub(crate) format: Option<String>,
    /// Accepted for docker's sake: there are no builder instances
    #[arg(long, value_name = "NAME", hide = true)]
    pub(crate) builder: Option<String>,
}

/// Make one image of several platforms from images at registries
///
/// A source is an image, a digest in the repository of the first -t, or a descriptor as JSON.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  rbuild imagetools create -t me/app:1.0 me/app@sha256:… me/app@sha256:…
  rbuild imagetools create -t registry.example/app:1.0 me/app:1.0")]
pub(crate) struct CreateArgs {
    /// Images to join
    #[arg(value_name = "SOURCE")]
    pub(crate) sources: Vec<String>,
    /// Name of the result; repeat for several names
    #[arg(short = 't', long = "tag", value_name = "NAME[:TAG]")]
    pub(crate) tags: Vec<String>,
    /// Keep what the names stand for, and add to it
    #[arg(long)]
    pub(crate) append: bool,
    /// Print the result and push nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Read sources from this file, as the arguments give them
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Annotate the index
    #[arg(long = "annotation", value_name = "[index:]KEY=VALUE")]
    pub(crate) annotations: Vec<String>,
    /// Take only these platforms
    #[arg(short = 'p', long = "platform", value_name = "OS/ARCH", value_delimiter = ',')]
    pub(crate) platforms: Vec<String>,
    /// Make an index of a single image, too
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "true",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true,
          hide_possible_values = true, value_name = "BOOL")]
    pub(crate) prefer_index: bool,
    /// Write the result's descriptor to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) metadata_file: Option<PathBuf>,
    /// Accepted for docker's sake
    #[arg(long, value_name = "MODE", hide = true)]
    pub(crate) progress: Option<String>,
    /// Accepted for docker's sake: there are no builder instances
    #[arg(long, value_name = "NAME", hide = true)]
    pub(crate) builder: Option<String>,
}

/// Look after what the store holds, in Docker's words
#[derive(Debug, Args)]
pub(crate) struct SystemArgs {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: SystemCommandArgs,
}

/// The commands of `rbuild system`.
#[derive(Debug, Subcommand)]
pub(crate) enum SystemCommandArgs {
    /// Show how much images and build cache take
    Df(DfArgs),
    /// Remove images that have no name, and build cache
    Prune(SystemPruneArgs),
}

/// Remove images that have no name, and build cache
///
/// With -a all images and all build cache. What a running build may use stays.
#[derive(Debug, Args)]
pub(crate) struct SystemPruneArgs {
    #[command(flatten)]
    pub(crate) images: ImagePruneArgs,
    /// There are none
    #[arg(long, hide = true)]
    pub(crate) volumes: bool,
}

/// Show how much images and build cache take
#[derive(Debug, Args)]
pub(crate) struct DfArgs {
    /// Show every image and object
    #[arg(short = 'v', long)]
    pub(crate) verbose: bool,
    /// Show rows as: table, json, or a Go template such as `{{.Type}} {{.Size}}`
    #[arg(long, value_name = "TEMPLATE", default_value = "", hide_default_value = true)]
    pub(crate) format: String,
}

/// What `rbuild system` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SystemRequest {
    /// Show.
    Df(SystemDfRequest),
    /// Give space back.
    Prune(SystemPruneRequest),
}

/// What `rbuild system prune` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemPruneRequest {
    /// Which images go. What is not of images is judged by the same time.
    pub images: ImagePruneRequest,
}

/// What `rbuild imagetools` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImagetoolsRequest {
    /// Look.
    Inspect(ImagetoolsInspect),
    /// Join.
    Create(ImagetoolsCreate),
}

/// What `rbuild imagetools inspect` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagetoolsInspect {
    /// The image, `latest` filled in.
    pub name: Reference,
    /// Print the bytes.
    pub raw: bool,
    /// Template, not parsed yet.
    pub format: Option<String>,
}

/// What `rbuild imagetools create` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagetoolsCreate {
    /// Images to join.
    pub sources: Vec<ImagetoolsSource>,
    /// Names of the result, `latest` filled in; empty only with `dry_run`.
    pub tags: Vec<Reference>,
    /// Begin with what the names stand for.
    pub append: bool,
    /// Print, do not push.
    pub dry_run: bool,
    /// Annotations of the index.
    pub annotations: Vec<(String, String)>,
    /// Only these; empty means all.
    pub platforms: Vec<Platform>,
    /// A single image becomes an index.
    pub prefer_index: bool,
    /// Where the result is described.
    pub metadata_file: Option<PathBuf>,
}

/// One source: a name, a digest, or a descriptor; at least one is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImagetoolsSource {
    /// Where it is; `None` means the repository of the first name.
    pub reference: Option<Reference>,
    /// Its digest, when only that was given.
    pub digest: Option<Digest>,
    /// What the user wrote about it.
    pub descriptor: Option<Value>,
}

/// What `rbuild system df` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemDfRequest {
    /// Show every image and object.
    pub verbose: bool,
    /// Format of the rows, not parsed yet; empty for the default.
    pub format: String,
}

impl ImagetoolsArgs {
    pub(crate) fn request(self, env: &Env) -> Result<ImagetoolsRequest, Problem> {
        Ok(match self.command {
            ImagetoolsCommandArgs::Inspect(args) => ImagetoolsRequest::Inspect(ImagetoolsInspect {
                name: super::parse_image(&args.name)?.with_default_tag(),
                raw: args.raw,
                format: args.format,
            }),
            ImagetoolsCommandArgs::Create(args) => ImagetoolsRequest::Create(args.request(env)?),
        })
    }
}

impl CreateArgs {
    fn request(self, env: &Env) -> Result<ImagetoolsCreate, Problem> {
        let syntax = |text: &str| Problem::Syntax(text.to_owned());
        if self.tags.is_empty() && !self.dry_run {
            return Err(syntax("no names for the result: give one with -t, or look at it with --dry-run"));
        }
        let mut sources = Vec::new();
        for path in &self.files {
            let text = std::fs::read_to_string(path).map_err(|error| Problem::Value {
                flag: "--file",
                value: path.display().to_string(),
                expected: format!("cannot be read: {error}"),
            })?;
            sources.push(source(text.trim())?);
        }
        for text in &self.sources {
            sources.push(source(text)?);
        }
        if sources.is_empty() && !self.append {
            return Err(syntax("no sources given"));
        }
        if self.append && self.tags.is_empty() {
            return Err(syntax("--append needs a name to add to: -t NAME"));
        }
        let mut tags = Vec::new();
        for text in &self.tags {
            let name: Reference =
                text.parse().map_err(|cause| Problem::Tag { value: text.clone(), cause })?;
            if name.digest().is_some() {
                return Err(Problem::TagWithDigest { value: text.clone() });
            }
            tags.push(name.with_default_tag());
        }
        let mut annotations = Vec::new();
        for text in &self.annotations {
            let pair = text.strip_prefix("index:").unwrap_or(text).split_once('=');
            let (key, value) = pair.filter(|(key, _)| !key.is_empty()).ok_or_else(|| Problem::Value {
                flag: "--annotation",
                value: text.clone(),
                expected: "expected KEY=VALUE".to_owned(),
            })?;
            annotations.push((key.to_owned(), value.to_owned()));
        }
        let mut platforms = Vec::new();
        for text in &self.platforms {
            platforms.extend(parse_platform(Some(text), env)?);
        }
        Ok(ImagetoolsCreate {
            sources,
            tags,
            append: self.append,
            dry_run: self.dry_run,
            annotations,
            platforms,
            prefer_index: self.prefer_index,
            metadata_file: self.metadata_file,
        })
    }
}

fn source(text: &str) -> Result<ImagetoolsSource, Problem> {
    if text.starts_with('{') {
        let wrong =
            || Problem::Syntax(format!("`{text}` is not a descriptor: expected JSON with digest and size"));
        let descriptor: Value = serde_json::from_str(text).map_err(|_| wrong())?;
        let has_digest = descriptor["digest"].as_str().is_some_and(|digest| digest.parse::<Digest>().is_ok());
        if !has_digest || descriptor["size"].as_u64().is_none() {
            return Err(wrong());
        }
        return Ok(ImagetoolsSource { descriptor: Some(descriptor), ..ImagetoolsSource::default() });
    }
    if let Ok(digest) = text.parse::<Digest>() {
        return Ok(ImagetoolsSource { digest: Some(digest), ..ImagetoolsSource::default() });
    }
    let reference = super::parse_image(text)?.with_default_tag();
    Ok(ImagetoolsSource { reference: Some(reference), ..ImagetoolsSource::default() })
}

impl SystemArgs {
    pub(crate) fn request(self) -> Result<SystemRequest, Problem> {
        Ok(match self.command {
            SystemCommandArgs::Df(args) => {
                SystemRequest::Df(SystemDfRequest { verbose: args.verbose, format: args.format })
            }
            SystemCommandArgs::Prune(args) => {
                SystemRequest::Prune(SystemPruneRequest { images: args.images.request()? })
            }
        })
    }
}
