//! The commands on images and credentials: what was typed, and what it means.

use std::path::PathBuf;

use clap::{ArgAction, Args, Subcommand};
use rbuild_oci::{Platform, Reference};

use super::args::{ImagesArgs, PullArgs, PushArgs, go_bool};
use super::env::Env;
use super::error::Problem;
use super::filter::{Moment, parse_moment};
use super::request::parse_platform;
use crate::timestamp;

/// Commands at the top level.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommandArgs {
    /// Give an image another name
    Tag(TagArgs),
    /// Remove images
    Rmi(RmiArgs),
    /// Show everything about images as JSON
    Inspect(InspectArgs),
    /// Show how an image was made
    History(HistoryArgs),
    /// Write images to a tar archive
    Save(SaveArgs),
    /// Read images from a tar archive
    Load(LoadArgs),
    /// Log in to a registry
    Login(LoginArgs),
    /// Log out from a registry
    Logout(LogoutArgs),
    /// Manage images
    Image {
        /// What to do with them.
        #[command(subcommand)]
        command: ImageGroupArgs,
    },
}

/// `rbuild image …`, as docker groups them.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageGroupArgs {
    /// List the images in the store
    #[command(visible_alias = "list")]
    Ls(ImagesArgs),
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm(RmiArgs),
    /// Show everything about images as JSON
    Inspect(InspectArgs),
    /// Show how an image was made
    History(HistoryArgs),
    /// Give an image another name
    Tag(TagArgs),
    /// Write images to a tar archive
    Save(SaveArgs),
    /// Read images from a tar archive
    Load(LoadArgs),
    /// Pull an image from a registry
    Pull(PullArgs),
    /// Push an image to a registry
    Push(PushArgs),
    /// Remove images that are not used
    Prune(ImagePruneArgs),
}

/// Remove images that are not used
///
/// Without -a those without a name. What nothing else uses goes with them; build cache stays (`rbuild prune`).
#[derive(Debug, Args)]
pub(crate) struct ImagePruneArgs {
    /// All images, named ones too
    #[arg(short = 'a', long)]
    pub(crate) all: bool,
    /// Do not ask
    #[arg(short = 'f', long)]
    pub(crate) force: bool,
    /// Only what matches: until=DURATION|TIME (made before), label=KEY[=VALUE] or label!=KEY[=VALUE]
    #[arg(long = "filter", value_name = "FILTER")]
    pub(crate) filters: Vec<String>,
}

/// Give an image another name
#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    /// Image to name
    #[arg(value_name = "IMAGE")]
    pub(crate) source: String,
    /// Its new name
    #[arg(value_name = "NAME[:TAG]")]
    pub(crate) target: String,
}

/// Remove images
///
/// Removes names. An image goes with its last name; its layers are freed when nothing else uses them.
#[derive(Debug, Args)]
pub(crate) struct RmiArgs {
    /// Images to remove, by name or id
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) names: Vec<String>,
    /// Remove an image under all its names; do not fail for images that are not there
    #[arg(short = 'f', long)]
    pub(crate) force: bool,
    /// Accepted for docker's sake: layers are never removed with their image
    #[arg(long, hide = true)]
    pub(crate) no_prune: bool,
    /// Remove only the image for this platform of several
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
}

/// Show everything about images as JSON
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Images, by name or id
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) names: Vec<String>,
    /// Show this instead: a Go template such as `{{.Id}}`, or json
    #[arg(short = 'f', long, value_name = "TEMPLATE")]
    pub(crate) format: Option<String>,
    /// Accepted for docker's sake: only images are here
    #[arg(long = "type", value_name = "TYPE", hide = true)]
    pub(crate) kind: Option<String>,
    /// Show the image for this platform of several
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
}

/// Show how an image was made
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Image, by name or id
    #[arg(value_name = "IMAGE")]
    pub(crate) name: String,
    /// Sizes and dates for people
    #[arg(short = 'H', long, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_value = "true", default_missing_value = "true", value_parser = go_bool,
          hide_default_value = true, hide_possible_values = true, value_name = "BOOL")]
    pub(crate) human: bool,
    /// Print only ids
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
    /// Print whole ids and instructions
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Show rows as: table, json, or a Go template such as `{{.CreatedBy}}`
    #[arg(long, value_name = "TEMPLATE", default_value = "", hide_default_value = true)]
    pub(crate) format: String,
    /// Show the image for this platform of several
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
}

/// Write images to a tar archive
///
/// The archive is an OCI image layout and a Docker archive at once. A name without a tag stands for all its tags.
#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// Images, by name or id
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) names: Vec<String>,
    /// Write to this file instead of standard output
    #[arg(short = 'o', long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Write only the image for this platform of several
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
}

/// Read images from a tar archive
///
/// Reads OCI image layouts and Docker archives, compressed or not. Every byte is checked as in a pull.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Read from this file instead of standard input
    #[arg(short = 'i', long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// Show no progress
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
    /// Load only the image for this platform of several
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
}

/// Log in to a registry
///
/// The password is checked with the registry before it is stored.
#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// Registry (default: Docker Hub)
    #[arg(value_name = "SERVER")]
    pub(crate) server: Option<String>,
    /// User name
    #[arg(short = 'u', long, value_name = "NAME")]
    pub(crate) username: Option<String>,
    /// Password; `-` reads it from standard input
    #[arg(short = 'p', long, value_name = "PASSWORD", allow_hyphen_values = true)]
    pub(crate) password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    pub(crate) password_stdin: bool,
}

/// Log out from a registry
#[derive(Debug, Args)]
pub(crate) struct LogoutArgs {
    /// Registry (default: Docker Hub)
    #[arg(value_name = "SERVER")]
    pub(crate) server: Option<String>,
}

/// What to do with images or credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageCommand {
    /// Name an image.
    Tag(TagRequest),
    /// Remove images.
    Rmi(RmiRequest),
    /// Show images.
    Inspect(InspectRequest),
    /// Show an image's history.
    History(HistoryRequest),
    /// Write images to an archive.
    Save(SaveRequest),
    /// Read images from an archive.
    Load(LoadRequest),
    /// Remove unused images.
    Prune(ImagePruneRequest),
    /// Store credentials.
    Login(LoginRequest),
    /// Forget credentials of this server, as typed; `None` is Docker Hub.
    Logout(Option<String>),
}

/// What `rbuild image prune` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePruneRequest {
    /// Named images, too.
    pub all: bool,
    /// Do not ask.
    pub force: bool,
    /// Only images made before this.
    pub until: Option<Moment>,
    /// Only images that meet all of these.
    pub labels: Vec<LabelFilter>,
}

/// A condition on a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelFilter {
    /// Name.
    pub key: String,
    /// Value; `None` means any.
    pub value: Option<String>,
    /// Must not be so.
    pub is_negated: bool,
}

/// What `rbuild tag` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagRequest {
    /// Name or id, as typed.
    pub source: String,
    /// The new name, `latest` filled in; has no digest.
    pub target: Reference,
}

/// What `rbuild rmi` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RmiRequest {
    /// Names or ids, as typed; at least one.
    pub names: Vec<String>,
    /// Remove all names of an id; missing images are no failure.
    pub force: bool,
    /// Only this platform's image of several.
    pub platform: Option<Platform>,
}

/// What `rbuild inspect` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InspectRequest {
    /// Names or ids, as typed; at least one.
    pub names: Vec<String>,
    /// Template, not parsed yet.
    pub format: Option<String>,
    /// This platform's image of several.
    pub platform: Option<Platform>,
}

/// What `rbuild history` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRequest {
    /// Name or id, as typed.
    pub name: String,
    /// Sizes and dates for people.
    pub human: bool,
    /// Print only ids.
    pub quiet: bool,
    /// Print whole ids and instructions.
    pub no_trunc: bool,
    /// Format of the rows, not parsed yet; empty for the default.
    pub format: String,
    /// This platform's image of several.
    pub platform: Option<Platform>,
}

/// What `rbuild save` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaveRequest {
    /// Names or ids, as typed; at least one.
    pub names: Vec<String>,
    /// File; `None` is standard output.
    pub output: Option<PathBuf>,
    /// Only this platform's image of several.
    pub platform: Option<Platform>,
}

/// What `rbuild load` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadRequest {
    /// File; `None` is standard input.
    pub input: Option<PathBuf>,
    /// Show no progress.
    pub quiet: bool,
    /// Which image of an index; `None` means all.
    pub platform: Option<Platform>,
}

/// What `rbuild login` was asked for.
#[derive(Clone, PartialEq, Eq)]
pub struct LoginRequest {
    /// As typed; `None` is Docker Hub.
    pub server: Option<String>,
    /// User name.
    pub user: Option<String>,
    /// Where the password comes from.
    pub password: PasswordSource,
}

impl std::fmt::Debug for LoginRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoginRequest").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Where a password comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum PasswordSource {
    /// Asked for on the terminal.
    Terminal,
    /// Standard input, whole.
    Stdin,
    /// The command line.
    Argument(String),
}

impl ImageCommandArgs {
    /// Names the top-level commands answer to.
    pub(crate) fn is_name(text: &str) -> bool {
        matches!(text, "tag" | "rmi" | "inspect" | "history" | "save" | "load" | "login" | "logout" | "image")
    }
}

/// Of what is here already, only what was typed restricts: `DOCKER_DEFAULT_PLATFORM` is for what is got anew.
fn typed_platform(text: Option<&String>) -> Result<Option<Platform>, Problem> {
    parse_platform(text, &Env::fixed([]))
}

impl ImagePruneArgs {
    pub(crate) fn request(self) -> Result<ImagePruneRequest, Problem> {
        let (mut all, mut until, mut labels) = (self.all, None, Vec::new());
        let now = timestamp::unix_ns();
        for filter in &self.filters {
            let wrong = |expected: &str| Problem::Value {
                flag: "--filter",
                value: filter.clone(),
                expected: expected.to_owned(),
            };
            let (key, value) = filter.split_once('=').ok_or_else(|| wrong("expected KEY=VALUE"))?;
            match key {
                "until" => {
                    let expected = "expected a duration such as until=24h, or a time such as 2026-01-31";
                    let moment = parse_moment(value).ok_or_else(|| wrong(expected))?;
                    // Of several the earliest counts: what meets that one meets all.
                    let is_later = |until: &Moment| moment.unix_ns(now) > until.unix_ns(now);
                    until = until.filter(is_later).or(Some(moment));
                }
                "label" | "label!" if !value.is_empty() => {
                    let pair = value.split_once('=');
                    labels.push(LabelFilter {
                        key: pair.map_or(value, |(key, _)| key).to_owned(),
                        value: pair.map(|(_, value)| value.to_owned()),
                        is_negated: key.ends_with('!'),
                    });
                }
                // Docker's other word for -a.
                "dangling" => all = all || !go_bool(value).map_err(|expected| wrong(&expected))?,
                _ => return Err(wrong("expected until=, label= or label!=")),
            }
        }
        Ok(ImagePruneRequest { all, force: self.force, until, labels })
    }
}

impl TagArgs {
    pub(crate) fn request(self) -> Result<ImageCommand, Problem> {
        let target: Reference =
            self.target.parse().map_err(|cause| Problem::Tag { value: self.target.clone(), cause })?;
        if target.digest().is_some() {
            return Err(Problem::TagWithDigest { value: self.target });
        }
        Ok(ImageCommand::Tag(TagRequest { source: self.source, target: target.with_default_tag() }))
    }
}

impl RmiArgs {
    pub(crate) fn request(self) -> Result<ImageCommand, Problem> {
        let platform = typed_platform(self.platform.as_ref())?;
        Ok(ImageCommand::Rmi(RmiRequest { names: self.names, force: self.force, platform }))
    }
}

impl InspectArgs {
    pub(crate) fn request(self) -> Result<ImageCommand, Problem> {
        match self.kind.as_deref() {
            None | Some("" | "image") => {
                let platform = typed_platform(self.platform.as_ref())?;
                Ok(ImageCommand::Inspect(InspectRequest { names: self.names, format: self.format, platform }))
            }
            Some(kind) => Err(Problem::Value {
                flag: "--type",
                value: kind.to_owned(),
                expected: "only images can be inspected".to_owned(),
            }),
        }
    }
}

impl HistoryArgs {
    pub(crate) fn request(self) -> Result<ImageCommand, Problem> {
        let Self { name, human, quiet, no_trunc, format, platform } = self;
        let platform = typed_platform(platform.as_ref())?;
        Ok(ImageCommand::History(HistoryRequest { name, human, quiet, no_trunc, format, platform }))
    }
}

impl SaveArgs {
    pub(crate) fn request(self) -> Result<ImageCommand, Problem> {
        let platform = typed_platform(self.platform.as_ref())?;
        Ok(ImageCommand::Save(SaveRequest { names: self.names, output: self.output, platform }))
    }
}

impl LoadArgs {
    pub(crate) fn request(self, env: &Env) -> Result<ImageCommand, Problem> {
        let platform = parse_platform(self.platform.as_ref(), env)?;
        Ok(ImageCommand::Load(LoadRequest { input: self.input, quiet: self.quiet, platform }))
    }
}

impl LoginArgs {
    pub(crate) fn request(self) -> Result<ImageCommand, Problem> {
        let from_stdin = self.password_stdin || self.password.as_deref() == Some("-");
        if self.password_stdin && self.password.as_deref().is_some_and(|password| password != "-") {
            return Err(Problem::Syntax("--password and --password-stdin are mutually exclusive".to_owned()));
        }
        let user = self.username.filter(|user| !user.is_empty());
        if from_stdin && user.is_none() {
            return Err(Problem::Syntax(
                "the --password-stdin option requires --username to be set".to_owned(),
            ));
        }
        let password = match self.password {
            _ if from_stdin => PasswordSource::Stdin,
            Some(password) if password.is_empty() => {
                return Err(Problem::Syntax("the password is empty".to_owned()));
            }
            Some(password) => PasswordSource::Argument(password),
            None => PasswordSource::Terminal,
        };
        Ok(ImageCommand::Login(LoginRequest { server: self.server, user, password }))
    }
}
