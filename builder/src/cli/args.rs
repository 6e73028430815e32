//! What the user typed: flags and their help, nothing checked beyond their shape.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

use super::context::ContextArgs;
use super::control::{CacheControlArgs, ExplainArgs};
use super::debug::DebugArgs;
use super::image::ImageCommandArgs;
use super::imagetools::{ImagetoolsArgs, SystemArgs};
use super::results::ResultArgs;
use super::space::{CacheArgs, DuArgs, PruneArgs};
use super::steps::StepArgs;

/// Go's boolean spellings, which Docker's flags accept (`--pull=false`).
pub(crate) fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// Build OCI images from Dockerfiles
///
/// Without a command, `build` is meant: `rbuild -t user/app:1.0 .`
#[derive(Debug, Parser)]
#[command(name = "rbuild", disable_help_subcommand = true, subcommand_required = true, max_term_width = 100)]
pub(crate) struct Cli<C: Subcommand> {
    /// Keep images and cache in this directory [env: RBUILD_ROOT]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub(crate) root: Option<PathBuf>,

    /// Keep RUN steps apart like this: auto, root, rootless, single, chroot or norun [env: RBUILD_ISOLATION]
    #[arg(long, global = true, value_name = "MODE", help_heading = "Global options")]
    pub(crate) isolation: Option<String>,

    /// Show what is useful for debugging
    #[arg(short = 'D', long, global = true, help_heading = "Global options")]
    pub(crate) debug: bool,

    #[command(subcommand)]
    pub(crate) command: C,
}

/// `build` as in [`CommandArgs`], without the others.
#[derive(Debug, Subcommand)]
pub(crate) enum BuildCommandArgs {
    #[command(visible_alias = "b")]
    Build(Box<BuildArgs>),
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum CommandArgs {
    /// Build an image from a Dockerfile
    #[command(visible_alias = "b")]
    Build(Box<BuildArgs>),
    Debug(DebugArgs),
    /// Show the graph of a Dockerfile's steps without building
    Graph(GraphArgs),
    Context(ContextArgs),
    /// List the images in the store
    Images(ImagesArgs),
    /// Pull an image from a registry
    Pull(PullArgs),
    /// Push an image to a registry
    Push(PushArgs),
    /// Tell why steps were executed
    Explain(ExplainArgs),
    /// Show what the store holds
    Du(DuArgs),
    /// Remove build cache
    Prune(PruneArgs),
    /// Look after the store
    Cache(CacheArgs),
    #[command(flatten)]
    Image(ImageCommandArgs),
    /// Look at and join images at registries
    Imagetools(ImagetoolsArgs),
    /// Look after what the store holds, in Docker's words
    System(SystemArgs),
    /// Check what this machine offers for building
    Doctor(DoctorArgs),
    /// Show the version
    Version,
}

/// Build an image from a Dockerfile
///
/// The context is the directory COPY and ADD read from; the Dockerfile is `Dockerfile` in it unless -f says otherwise.
#[derive(Debug, Args)]
#[command(
    override_usage = "rbuild [build] [OPTIONS] CONTEXT",
    after_long_help = "\
Examples:
  rbuild -t user/app:1.0 .
  rbuild -t user/app:dev -f Dockerfile.dev --build-arg VERSION=1.2 .
  rbuild -t registry.example/app:1.0 --push .
  rbuild -o type=oci,dest=app.tar ."
)]
pub(crate) struct BuildArgs {
    /// Directory, git or http address to build from; - for standard input
    #[arg(value_name = "CONTEXT")]
    pub(crate) context: Vec<String>,

    /// Name the image; repeat for several names
    #[arg(short = 't', long = "tag", value_name = "NAME[:TAG]", help_heading = "What to build")]
    pub(crate) tags: Vec<String>,
    /// Read this Dockerfile (default: CONTEXT/Dockerfile)
    #[arg(short = 'f', long, value_name = "PATH", help_heading = "What to build")]
    pub(crate) file: Option<String>,
    /// Build this stage (default: the last)
    #[arg(long, value_name = "STAGE", help_heading = "What to build")]
    pub(crate) target: Option<String>,
    /// Set a build argument; without a value, take it from the environment
    #[arg(long = "build-arg", value_name = "KEY[=VALUE]", help_heading = "What to build")]
    pub(crate) build_args: Vec<String>,
    /// Named contexts.
    #[arg(
        help = "Add a named context: a directory, oci-layout://DIR[:TAG|@DIGEST], docker-image://NAME, a git repository or an archive",
        long = "build-context",
        value_name = "NAME=SOURCE",
        help_heading = "What to build"
    )]
    pub(crate) build_contexts: Vec<String>,
    /// Add a label to the image
    #[arg(long = "label", value_name = "KEY[=VALUE]", help_heading = "What to build")]
    pub(crate) labels: Vec<String>,
    /// Build for these platforms (default: this machine's) [env: DOCKER_DEFAULT_PLATFORM]
    #[arg(long = "platform", value_name = "OS/ARCH[,…]", help_heading = "What to build")]
    pub(crate) platforms: Vec<String>,

    /// Only check the Dockerfile, as --call=check does
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true,
          hide_possible_values = true, value_name = "BOOL", help_heading = "What to build")]
    pub(crate) check: bool,
    /// Say something about the Dockerfile in place of building: check, outline or targets[,format=json]
    #[arg(
        long,
        value_name = "METHOD",
        default_value = "build",
        hide_default_value = true,
        help_heading = "What to build"
    )]
    pub(crate) call: String,

    #[command(flatten)]
    pub(crate) control: CacheControlArgs,
    /// Network of RUN steps: default, none or host
    #[arg(
        long,
        value_name = "MODE",
        default_value = "default",
        hide_default_value = true,
        help_heading = "How to build"
    )]
    pub(crate) network: String,
    #[command(flatten)]
    pub(crate) steps: StepArgs,
    /// Run at most this many steps at once
    #[arg(long, value_name = "N", help_heading = "How to build")]
    pub(crate) jobs: Option<String>,
    /// When a step fails: fail, or open a shell in it first
    #[arg(long, value_name = "ACTION", default_value = "fail", hide_default_value = true,
          value_parser = ["fail", "shell"], hide_possible_values = true, help_heading = "How to build")]
    pub(crate) on_error: String,
    /// Use this Unix time for everything the build dates, or `git` for the context's last commit's [env:
    /// SOURCE_DATE_EPOCH]
    #[arg(long, value_name = "SECONDS|git", help_heading = "How to build")]
    pub(crate) source_date_epoch: Option<String>,
    /// Same as --source-date-epoch
    #[arg(long, value_name = "SECONDS", help_heading = "How to build", hide = true)]
    pub(crate) timestamp: Option<String>,

    #[command(flatten)]
    pub(crate) results: ResultArgs,

    /// Show progress as: auto, plain, tty, quiet, none or rawjson [env: BUILDKIT_PROGRESS]
    #[arg(
        long,
        value_name = "MODE",
        default_value = "auto",
        hide_default_value = true,
        help_heading = "What to show"
    )]
    pub(crate) progress: String,
    /// Print only the image id
    #[arg(short = 'q', long, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = go_bool,
          hide_default_value = true, hide_possible_values = true, value_name = "BOOL",
          help_heading = "What to show")]
    pub(crate) quiet: bool,
}

/// Check what this machine offers for building
///
/// Tries the real steps of every way to isolate RUN, and names what is missing and one remedy for each gap.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print text or json
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    pub(crate) format: String,
}

/// Show the graph of a Dockerfile's steps without building
///
/// What the target needs is marked. No registry is asked: of base images that are not in the store only the name is
/// known.
#[derive(Debug, Args)]
pub(crate) struct GraphArgs {
    /// Directory, git or http address to build from; - for standard input
    #[arg(value_name = "CONTEXT", default_value = ".")]
    pub(crate) context: String,
    /// Read this Dockerfile (default: CONTEXT/Dockerfile)
    #[arg(short = 'f', long, value_name = "PATH")]
    pub(crate) file: Option<String>,
    /// Mark what this stage needs (default: the last)
    #[arg(long, value_name = "STAGE")]
    pub(crate) target: Option<String>,
    /// Set a build argument; without a value, take it from the environment
    #[arg(long = "build-arg", value_name = "KEY[=VALUE]")]
    pub(crate) build_args: Vec<String>,
    /// Print text, dot (for Graphviz) or json
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "dot", "json"])]
    pub(crate) format: String,
}

/// List the images in the store
#[derive(Debug, Args)]
pub(crate) struct ImagesArgs {
    /// Show only this repository or image; `*` matches within a name's component
    #[arg(value_name = "NAME[:TAG]")]
    pub(crate) name: Option<String>,
    /// Accepted for docker's sake: there are no intermediate images
    #[arg(short = 'a', long, hide = true)]
    pub(crate) all: bool,
    /// Print only image ids
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
    /// Print whole ids
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Show digests
    #[arg(long)]
    pub(crate) digests: bool,
    /// Show only images that meet a condition: dangling=, label=, before=, since=, until=, reference=
    #[arg(short = 'f', long = "filter", value_name = "KEY=VALUE")]
    pub(crate) filters: Vec<String>,
    /// Show rows as: table, json, or a Go template such as `{{.Repository}}:{{.Tag}}`
    #[arg(long, value_name = "TEMPLATE", default_value = "", hide_default_value = true)]
    pub(crate) format: String,
    /// Show each image once, with all its names, and below it its platforms
    #[arg(long, conflicts_with_all = ["quiet", "digests", "no_trunc", "format"])]
    pub(crate) tree: bool,
}

/// Pull an image from a registry
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// Image to pull
    #[arg(value_name = "NAME[:TAG|@DIGEST]")]
    pub(crate) name: String,
    /// Pull every tag of the repository
    #[arg(short = 'a', long)]
    pub(crate) all_tags: bool,
    /// Pull for this platform (default: this machine's) [env: DOCKER_DEFAULT_PLATFORM]
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
    /// Print only the image's name
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
}

/// Push an image to a registry
#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// Image to push
    #[arg(value_name = "NAME[:TAG]")]
    pub(crate) name: String,
    /// Push every tag of the repository that is here
    #[arg(short = 'a', long)]
    pub(crate) all_tags: bool,
    /// Push only this platform's image of several
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
    /// Accepted for docker's sake: nothing is signed here
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) disable_content_trust: Option<String>,
    /// Print only the image's name
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
}
