//! The command line: `args` is what was typed, `request` what it means.
//!
//! [`parse`] turns one into the other and touches nothing: no file, no environment but the [`Env`] it is given.

mod annotation;
mod args;
mod attest;
mod commands;
mod context;
mod control;
mod csv;
mod debug;
mod env;
mod error;
mod filter;
mod image;
mod imagetools;
mod known_flags;
mod output;
mod repository;
mod request;
mod results;
mod source;
mod space;
mod steps;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, Subcommand};
use rbuild_oci::{Platform, Reference};
use rbuild_sandbox::Isolation;

pub use annotation::{Annotation, AnnotationPlace};
pub use attest::{Attestations, Detail, MetadataArg, ProvenanceArg, SbomArg, SlsaVersion};
pub use commands::no_command;
pub use context::{ContextQuestion, ContextRequest};
pub use control::{CacheControl, ExplainFormat, ExplainRequest, Pull};
pub use csv::{CsvError, parse_record};
pub use debug::DebugRequest;
pub use env::Env;
pub use error::{Problem, UsageError};
pub use filter::{ImageFilter, Moment};
pub use image::{
    HistoryRequest, ImageCommand, ImagePruneRequest, InspectRequest, LabelFilter, LoadRequest, LoginRequest,
    PasswordSource, RmiRequest, SaveRequest, TagRequest,
};
pub use imagetools::{
    ImagetoolsCreate, ImagetoolsInspect, ImagetoolsRequest, ImagetoolsSource, SystemDfRequest,
    SystemPruneRequest, SystemRequest,
};
pub use output::{Compression, Destination, ImageOutput, LocalMode, OutputArg, PackingArg};
pub use repository::{RepositoryArg, RepositoryLabels};
pub use request::{BuildRequest, Call, CallMethod, EpochArg, GraphFormat, GraphRequest, Network, ShellAt};
pub use results::Results;
pub use source::{ContextArg, DockerfileArg, NamedContextArg};
pub use space::{CacheRequest, DuRequest, PruneRequest, ShareBy};
pub use steps::{
    AgentArg, DeviceGrant, DeviceGrants, HostAddress, Resources, SecretArg, SecretBytes, SecretSource,
    StepOptions,
};

use args::{BuildCommandArgs, Cli, CommandArgs};
use commands::{command_name, first_own_argument, with_default_command};
use image::{ImageCommandArgs, ImageGroupArgs};

/// A checked command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// Where the store is: `--root`, else `RBUILD_ROOT`; `None` leaves it to the default.
    pub root: Option<PathBuf>,
    /// How RUN steps are kept apart: `--isolation`, else `RBUILD_ISOLATION`.
    pub isolation: Isolation,
    /// Show more when something fails.
    pub debug: bool,
    /// What to do.
    pub command: Command,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Build an image.
    Build(Box<BuildRequest>),
    /// Open a shell in a step.
    Debug(DebugRequest),
    /// Show a build graph.
    Graph(GraphRequest),
    /// Look at a build context.
    Context(ContextRequest),
    /// List images.
    Images(ImagesRequest),
    /// Pull an image.
    Pull(PullRequest),
    /// Push an image.
    Push(PushRequest),
    /// Tell why steps were executed.
    Explain(ExplainRequest),
    /// Show what the store holds.
    Du(DuRequest),
    /// Give space back.
    Prune(PruneRequest),
    /// Look after the store.
    Cache(CacheRequest),
    /// Do something with images or credentials.
    Image(ImageCommand),
    /// Look at and join images at registries.
    Imagetools(ImagetoolsRequest),
    /// Show how much the store holds or give it back, as Docker does.
    System(SystemRequest),
    /// Check this machine.
    Doctor {
        /// As JSON.
        json: bool,
    },
    /// Print the version.
    Version,
    /// Print this text to standard output and succeed.
    Help(String),
}

/// What `rbuild images` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagesRequest {
    /// Show only this repository (all its tags when it has none), or what this pattern matches.
    pub name: Option<String>,
    /// Print only ids.
    pub quiet: bool,
    /// Print whole ids.
    pub no_trunc: bool,
    /// Show digests.
    pub digests: bool,
    /// Show only images that meet all of these (one of those on the name).
    pub filters: Vec<ImageFilter>,
    /// Format of the rows, not parsed yet; empty for the default.
    pub format: String,
    /// Show images with their platforms below them.
    pub tree: bool,
}

/// What `rbuild pull` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullRequest {
    /// The image, `latest` filled in.
    pub name: Reference,
    /// True when the tag was not typed (`Using default tag: latest`).
    pub default_tag: bool,
    /// For which platform; `None` means this machine's.
    pub platform: Option<Platform>,
    /// Print only the name.
    pub quiet: bool,
    /// All tags of the repository; the name has none.
    pub all_tags: bool,
}

/// What `rbuild push` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushRequest {
    /// The image, `latest` filled in.
    pub name: Reference,
    /// True when the tag was not typed.
    pub default_tag: bool,
    /// Only this platform's image; `None` means all there is.
    pub platform: Option<Platform>,
    /// Print only the name.
    pub quiet: bool,
    /// All tags of the repository that are here; the name has none.
    pub all_tags: bool,
}

/// Parses a command line; the first argument is the program's name.
///
/// `build` is meant when the first argument that is not a global flag names no command.
pub fn parse<I>(arguments: I, env: &Env) -> Result<Invocation, UsageError>
where
    I: IntoIterator<Item = OsString>,
{
    let typed: Vec<OsString> = arguments.into_iter().collect();
    let word = typed.get(first_own_argument(&typed)).and_then(|word| word.to_str()).map(str::to_owned);
    let count = typed.len();
    let arguments = with_default_command(typed);
    // A word in the place of a command was taken for the context, and the line makes no sense so: it was to be a command.
    let meant = word.filter(|_| arguments.len() > count).filter(|word| no_command(word).is_some());
    let usage = |problem| match &meant {
        Some(word) => UsageError { command: "rbuild".to_owned(), problem: Problem::NoCommand(word.clone()) },
        None => UsageError { command: command_name(&arguments, &parser::<CommandArgs>(env)), problem },
    };
    // To declare the flags of all commands takes half a millisecond: what is no build, or wrong, pays for it.
    let name = arguments.get(first_own_argument(&arguments));
    let build = match name.is_some_and(|name| name == "build" || name == "b") {
        true => typed_as::<BuildCommandArgs>(&arguments, env).ok(),
        false => None,
    };
    let (cli, matches) = match build {
        Some((Cli { root, isolation, debug, command: BuildCommandArgs::Build(args) }, matches)) => {
            (Cli { root, isolation, debug, command: CommandArgs::Build(args) }, matches)
        }
        None => match typed_as::<CommandArgs>(&arguments, env) {
            Ok(typed) => typed,
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::DisplayHelp
                        | ErrorKind::DisplayVersion
                        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                ) =>
            {
                let command = Command::Help(error.render().to_string());
                return Ok(Invocation { root: None, isolation: Isolation::Auto, debug: false, command });
            }
            Err(error) => return Err(usage(Problem::Syntax(syntax_text(&error)))),
        },
    };
    let sub = matches.subcommand().map(|(_, sub)| sub);
    let command = meaning(cli.command, sub, env).map_err(usage)?;
    let root = cli.root.or_else(|| env.var_os("RBUILD_ROOT").map(PathBuf::from));
    Ok(Invocation {
        root: root.filter(|root| !root.as_os_str().is_empty()),
        isolation: parse_isolation(cli.isolation, env).map_err(usage)?,
        debug: cli.debug,
        command,
    })
}

fn parse_isolation(typed: Option<String>, env: &Env) -> Result<Isolation, Problem> {
    let (flag, value) = match (typed, env.non_empty("RBUILD_ISOLATION")) {
        (Some(typed), _) => ("--isolation", typed),
        (None, Some(value)) => ("the environment variable RBUILD_ISOLATION", value),
        (None, None) => return Ok(Isolation::Auto),
    };
    Isolation::parse(&value).ok_or(Problem::Value {
        flag,
        value,
        expected: "expected auto, root, rootless, single, chroot or norun".to_owned(),
    })
}

fn meaning(args: CommandArgs, matches: Option<&ArgMatches>, env: &Env) -> Result<Command, Problem> {
    Ok(match args {
        CommandArgs::Build(args) => {
            let mut ignored = Vec::new();
            if let Some(matches) = matches {
                known_flags::refuse_unsupported(matches)?;
                ignored = known_flags::without_effect(matches);
            }
            Command::Build(Box::new(BuildRequest::from_args(*args, ignored, env)?))
        }
        CommandArgs::Debug(args) => Command::Debug(args.request()),
        CommandArgs::Graph(args) => Command::Graph(GraphRequest::from_args(args, env)?),
        CommandArgs::Context(args) => Command::Context(args.request()?),
        CommandArgs::Images(args) => {
            if let Some(name) = args.name.as_deref().filter(|name| !name.contains(['*', '?', '['])) {
                parse_image(name)?;
            }
            Command::Images(ImagesRequest {
                name: args.name,
                quiet: args.quiet,
                no_trunc: args.no_trunc,
                digests: args.digests,
                filters: args
                    .filters
                    .iter()
                    .map(|text| filter::parse_filter(text))
                    .collect::<Result<_, _>>()?,
                format: args.format,
                tree: args.tree,
            })
        }
        CommandArgs::Image(args) => Command::Image(match args {
            ImageCommandArgs::Tag(args) => args.request()?,
            ImageCommandArgs::Rmi(args) => args.request()?,
            ImageCommandArgs::Inspect(args) => args.request()?,
            ImageCommandArgs::History(args) => args.request()?,
            ImageCommandArgs::Save(args) => args.request()?,
            ImageCommandArgs::Load(args) => args.request(env)?,
            ImageCommandArgs::Login(args) => args.request()?,
            ImageCommandArgs::Logout(args) => ImageCommand::Logout(args.server),
            ImageCommandArgs::Image { command } => {
                let same = match command {
                    ImageGroupArgs::Ls(args) => CommandArgs::Images(args),
                    ImageGroupArgs::Pull(args) => CommandArgs::Pull(args),
                    ImageGroupArgs::Push(args) => CommandArgs::Push(args),
                    ImageGroupArgs::Rm(args) => CommandArgs::Image(ImageCommandArgs::Rmi(args)),
                    ImageGroupArgs::Inspect(args) => CommandArgs::Image(ImageCommandArgs::Inspect(args)),
                    ImageGroupArgs::History(args) => CommandArgs::Image(ImageCommandArgs::History(args)),
                    ImageGroupArgs::Tag(args) => CommandArgs::Image(ImageCommandArgs::Tag(args)),
                    ImageGroupArgs::Save(args) => CommandArgs::Image(ImageCommandArgs::Save(args)),
                    ImageGroupArgs::Load(args) => CommandArgs::Image(ImageCommandArgs::Load(args)),
                    ImageGroupArgs::Prune(args) => {
                        return Ok(Command::Image(ImageCommand::Prune(args.request()?)));
                    }
                };
                return meaning(same, None, env);
            }
        }),
        CommandArgs::Pull(args) => {
            let name = parse_image(&args.name)?;
            let platform = request::parse_platform(args.platform.as_ref(), env)?;
            Command::Pull(PullRequest {
                default_tag: lacks_tag(&name) && !args.all_tags,
                name: if args.all_tags { without_tag(name, "pull")? } else { name.with_default_tag() },
                platform,
                quiet: args.quiet,
                all_tags: args.all_tags,
            })
        }
        CommandArgs::Push(args) => {
            let name = parse_image(&args.name)?;
            if name.digest().is_some() {
                return Err(Problem::TagWithDigest { value: args.name });
            }
            Command::Push(PushRequest {
                default_tag: lacks_tag(&name) && !args.all_tags,
                name: if args.all_tags { without_tag(name, "push")? } else { name.with_default_tag() },
                platform: request::parse_platform(args.platform.as_ref(), &Env::fixed([]))?,
                quiet: args.quiet,
                all_tags: args.all_tags,
            })
        }
        CommandArgs::Explain(args) => Command::Explain(ExplainRequest::from_args(args)),
        CommandArgs::Du(args) => Command::Du(DuRequest::from_args(&args)?),
        CommandArgs::Prune(args) => Command::Prune(PruneRequest::from_args(&args)?),
        CommandArgs::Cache(args) => Command::Cache(CacheRequest::from_args(args)),
        CommandArgs::Imagetools(args) => Command::Imagetools(args.request(env)?),
        CommandArgs::System(args) => Command::System(args.request()?),
        CommandArgs::Doctor(args) => Command::Doctor { json: args.format == "json" },
        CommandArgs::Version => Command::Version,
    })
}

/// `-a` stands for all tags: none may be named.
fn without_tag(name: Reference, command: &str) -> Result<Reference, Problem> {
    match lacks_tag(&name) {
        true => Ok(name),
        false => Err(Problem::Syntax(format!(
            "tag can't be used with --all-tags/-a: rbuild {command} -a {}",
            name.familiar_name()
        ))),
    }
}

fn parse_image(text: &str) -> Result<Reference, Problem> {
    text.parse().map_err(|cause| Problem::Image { value: text.to_owned(), cause })
}

fn lacks_tag(name: &Reference) -> bool {
    name.tag().is_none() && name.digest().is_none()
}

fn typed_as<C: Subcommand>(arguments: &[OsString], env: &Env) -> Result<(Cli<C>, ArgMatches), clap::Error> {
    let matches = parser::<C>(env).try_get_matches_from(arguments)?;
    Ok((Cli::from_arg_matches(&matches)?, matches))
}

fn parser<C: Subcommand>(env: &Env) -> clap::Command {
    let command = Cli::<C>::command().mut_subcommand("build", known_flags::declare);
    // Help wraps at the terminal's width unless the environment says one.
    match env.var("COLUMNS").and_then(|columns| columns.parse().ok()) {
        Some(columns) => command.term_width(columns),
        None => command,
    }
}

/// The parser's message in Docker's words where Docker has them, without its usage block.
fn syntax_text(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        _ => None,
    };
    if error.kind() == ErrorKind::UnknownArgument
        && let Some(argument) = context(ContextKind::InvalidArg)
    {
        let similar = context(ContextKind::SuggestedArg);
        let similar = similar.map(|similar| format!(" (did you mean {similar}?)")).unwrap_or_default();
        return if argument.starts_with("--") {
            format!("unknown flag: {argument}{similar}")
        } else if argument.starts_with('-') {
            format!("unknown shorthand flag: {argument}{similar}")
        } else {
            format!("unexpected argument: {argument}")
        };
    }
    let rendered = error.render().to_string();
    let text = rendered.strip_prefix("error: ").unwrap_or(&rendered);
    let lines = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}
