//! What the program means: a command line checked as a whole before anything happens.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use rbuild_oci::{Platform, Reference};

use super::args::{BuildArgs, GraphArgs};
use super::control::{CacheControl, ExplainFormat};
use super::csv::parse_record;
use super::env::Env;
use super::error::Problem;
use super::repository::RepositoryArg;
use super::results::Results;
use super::source::{
    ContextArg, DockerfileArg, NamedContextArg, one_stdin, parse_context, parse_dockerfile,
    parse_named_context,
};
use super::steps::StepOptions;

use crate::git::local::Origin;
use crate::progress::Mode;

/// Everything `rbuild build` was asked for. Paths are relative to the working directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildRequest {
    /// The build context.
    pub context: ContextArg,
    /// The Dockerfile; `None` means `Dockerfile` in the context.
    pub dockerfile: Option<DockerfileArg>,
    /// Names of the image, tags filled in, without duplicates, in the order given.
    pub tags: Vec<Reference>,
    /// What to say about the Dockerfile in place of building.
    pub call: Option<Call>,
    /// The stage to build; `None` means the last.
    pub target: Option<String>,
    /// Build arguments; the last of a name wins. Holds `SOURCE_DATE_EPOCH` whenever that is known.
    pub build_args: BTreeMap<String, String>,
    /// Labels to add to the image.
    pub labels: BTreeMap<String, String>,
    /// Named contexts by normalised name; each name once, the last wins.
    pub named_contexts: Vec<(String, NamedContextArg)>,
    /// What may come from the cache.
    pub control: CacheControl,
    /// The platforms to build for, each once, in the order given; empty means this machine's.
    pub platforms: Vec<Platform>,
    /// Network of RUN steps that do not say.
    pub network: Network,
    /// What RUN steps get.
    pub steps: StepOptions,
    /// What comes out.
    pub results: Results,
    /// How to show progress.
    pub progress: Mode,
    /// Print only the image id to standard output.
    pub quiet: bool,
    /// Time for everything the build dates.
    pub source_date_epoch: Option<EpochArg>,
    /// What to tell of the context's git repository.
    pub repository: RepositoryArg,
    /// That repository, once it was asked for.
    pub origin: Option<Origin>,
    /// Open a shell in a step.
    pub shell: Option<ShellAt>,
    /// Steps at once; `None` leaves it to the builder.
    pub jobs: Option<NonZeroUsize>,
    /// Flags that were given and have no effect here, with their dashes.
    pub flags_without_effect: Vec<String>,
}

/// What `rbuild graph` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphRequest {
    /// The build whose graph it is. Its target is the stage whose needs are marked.
    pub build: Box<BuildRequest>,
    /// How to print.
    pub format: GraphFormat,
}

/// How a graph is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GraphFormat {
    /// Lines.
    Text,
    /// Graphviz.
    Dot,
    /// JSON.
    Json,
}

impl GraphRequest {
    /// Checks what was typed.
    pub(crate) fn from_args(args: GraphArgs, env: &Env) -> Result<Self, Problem> {
        let context = parse_context(&args.context)?;
        let dockerfile = args.file.as_deref().map(parse_dockerfile).transpose()?;
        one_stdin(&context, dockerfile.as_ref())?;
        let build = BuildRequest {
            dockerfile,
            target: args.target.filter(|target| !target.is_empty()),
            build_args: parse_build_args(&args.build_args, env)?,
            progress: parse_progress("auto", false, env)?,
            ..BuildRequest::of(context)
        };
        Ok(Self {
            build: Box::new(build),
            format: match args.format.as_str() {
                "dot" => GraphFormat::Dot,
                "json" => GraphFormat::Json,
                _ => GraphFormat::Text,
            },
        })
    }
}

/// A question about the Dockerfile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// What is asked.
    pub method: CallMethod,
    /// Answer in JSON.
    pub json: bool,
    /// Exit with 0 whatever the answer is.
    pub ignore_status: bool,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallMethod {
    /// What the rules say.
    Check,
    /// Which arguments, secrets and keys a target takes.
    Outline,
    /// Which targets there are.
    Targets,
}

/// The time of a reproducible build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EpochArg {
    /// Seconds since 1970.
    At(i64),
    /// When the last commit of the context's git repository was made.
    Git,
    /// When a context or a stage's sources were made; the build argument has its name.
    Of,
}

impl EpochArg {
    /// The build argument and environment variable.
    pub const NAME: &str = "SOURCE_DATE_EPOCH";
}

/// Where a build stops for a shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShellAt {
    /// In the first step that fails, as it left things.
    FirstFailure,
    /// In this step, before it runs.
    Before(String),
}

/// Network of RUN steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// What the builder gives by default.
    #[default]
    Default,
    /// Loopback only.
    None,
    /// The host's.
    Host,
}

impl BuildRequest {
    /// A build of this context whose result goes nowhere.
    fn of(context: ContextArg) -> Self {
        Self {
            context,
            dockerfile: None,
            tags: Vec::new(),
            call: None,
            target: None,
            build_args: BTreeMap::new(),
            labels: BTreeMap::new(),
            named_contexts: Vec::new(),
            control: CacheControl::default(),
            platforms: Vec::new(),
            network: Network::Default,
            steps: StepOptions::default(),
            results: Results::nowhere(),
            progress: Mode::Auto,
            quiet: false,
            source_date_epoch: None,
            repository: RepositoryArg::NOTHING,
            origin: None,
            shell: None,
            jobs: None,
            flags_without_effect: Vec::new(),
        }
    }

    /// Checks what was typed.
    pub(crate) fn from_args(
        mut args: BuildArgs,
        flags_without_effect: Vec<String>,
        env: &Env,
    ) -> Result<Self, Problem> {
        if args.context.is_empty() {
            args.context.extend(args.results.attest.give_back());
        }
        let context = match args.context.as_slice() {
            [one] => parse_context(one)?,
            _ => {
                return Err(Problem::Syntax(
                    "'rbuild build' requires 1 argument: the build context".to_owned(),
                ));
            }
        };
        let dockerfile = args.file.as_deref().map(parse_dockerfile).transpose()?;
        one_stdin(&context, dockerfile.as_ref())?;
        let mut tags = Vec::new();
        for tag in &args.tags {
            let tag = parse_tag(tag)?;
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        let mut build_args = parse_build_args(&args.build_args, env)?;
        let epoch = match (args.source_date_epoch.as_deref(), args.timestamp.as_deref()) {
            (Some(_), Some(_)) => {
                return Err(Problem::Conflict("--timestamp", "--source-date-epoch".to_owned()));
            }
            (epoch, timestamp) => epoch.or(timestamp),
        };
        let source_date_epoch = source_date_epoch(epoch, &mut build_args, env)?;
        let mut named_contexts: Vec<(String, NamedContextArg)> = Vec::new();
        for text in &args.build_contexts {
            let (name, value) = parse_named_context(text)?;
            named_contexts.retain(|(other, _)| *other != name);
            named_contexts.push((name, value));
        }
        let platforms = parse_platforms(&args.platforms, env)?;
        let results = Results::from_args(args.results, &tags, platforms.len(), env)?;
        if args.quiet && results.uses_stdout() {
            return Err(Problem::StdoutTwice("-q prints the image id there"));
        }
        let network = parse_network(&args.network)?;
        let cache_namespace = build_args.get("BUILDKIT_CACHE_MOUNT_NS").cloned().unwrap_or_default();
        let steps = StepOptions {
            cache_namespace,
            ..StepOptions::from_args(&args.steps, env, network == Network::Host)?
        };
        let control = CacheControl::from_args(&args.control)?;
        if control.explain == Some(ExplainFormat::Json) && (args.quiet || results.uses_stdout()) {
            return Err(Problem::StdoutTwice("--explain=json prints its document there"));
        }
        Ok(Self {
            context,
            dockerfile,
            steps,
            call: parse_call(&args.call, args.check)?,
            target: args.target.filter(|target| !target.is_empty()),
            labels: parse_labels(&args.labels)?,
            named_contexts,
            control,
            platforms,
            network,
            progress: parse_progress(&args.progress, args.quiet, env)?,
            quiet: args.quiet,
            shell: (args.on_error == "shell").then_some(ShellAt::FirstFailure),
            jobs: args.jobs.as_deref().map(parse_jobs).transpose()?,
            tags,
            build_args,
            results,
            source_date_epoch,
            repository: RepositoryArg::from_env(env),
            origin: None,
            flags_without_effect,
        })
    }
}

impl BuildRequest {
    /// The one warning about flags that were accepted and do nothing.
    pub fn ignored_flags_warning(&self) -> Option<String> {
        let flags = self.flags_without_effect.join(", ");
        (!flags.is_empty()).then(|| format!("WARNING: no effect in rbuild, ignored: {flags}"))
    }
}

/// A name to give: a reference without digest, `latest` filled in.
pub(crate) fn parse_tag(text: &str) -> Result<Reference, Problem> {
    let tag: Reference = text.parse().map_err(|cause| Problem::Tag { value: text.to_owned(), cause })?;
    if tag.digest().is_some() {
        return Err(Problem::TagWithDigest { value: text.to_owned() });
    }
    Ok(tag.with_default_tag())
}

pub(crate) fn parse_build_args(texts: &[String], env: &Env) -> Result<BTreeMap<String, String>, Problem> {
    let mut found = BTreeMap::new();
    for text in texts {
        let (key, value) = split_pair("--build-arg", text)?;
        match value {
            Some(value) => found.insert(key.to_owned(), value.to_owned()),
            None => match env.var(key) {
                Some(value) => found.insert(key.to_owned(), value),
                None => found.remove(key),
            },
        };
    }
    Ok(found)
}

fn parse_labels(texts: &[String]) -> Result<BTreeMap<String, String>, Problem> {
    let pairs = texts.iter().map(|text| split_pair("--label", text));
    pairs.map(|pair| pair.map(|(key, value)| (key.to_owned(), value.unwrap_or("").to_owned()))).collect()
}

fn split_pair<'a>(flag: &'static str, text: &'a str) -> Result<(&'a str, Option<&'a str>), Problem> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (text, None),
    };
    if key.is_empty() {
        let expected = "expected KEY=VALUE with a key that is not empty".to_owned();
        return Err(Problem::Value { flag, value: text.to_owned(), expected });
    }
    Ok((key, value))
}

/// The flag wins over `--build-arg SOURCE_DATE_EPOCH`, that over the environment.
fn source_date_epoch(
    flag: Option<&str>,
    build_args: &mut BTreeMap<String, String>,
    env: &Env,
) -> Result<Option<EpochArg>, Problem> {
    let (source, typed) = match (flag, build_args.get(EpochArg::NAME), env.non_empty(EpochArg::NAME)) {
        (Some("git"), ..) => return Ok(Some(EpochArg::Git)),
        (Some(typed), ..) => ("--source-date-epoch", typed.to_owned()),
        (None, Some(typed), _) if typed.is_empty() => return Ok(None),
        (None, Some(typed), _) => ("--build-arg SOURCE_DATE_EPOCH", typed.clone()),
        (None, None, Some(typed)) => ("the environment variable SOURCE_DATE_EPOCH", typed),
        (None, None, None) => return Ok(None),
    };
    let epoch = match typed.parse::<i64>() {
        Ok(seconds) if seconds >= 0 => EpochArg::At(seconds),
        Err(_) if typed.starts_with(|c: char| c.is_ascii_alphabetic()) => EpochArg::Of,
        _ => return Err(Problem::Epoch { flag: source, value: typed }),
    };
    build_args.insert(EpochArg::NAME.to_owned(), typed);
    Ok(Some(epoch))
}

/// `--platform`, else `DOCKER_DEFAULT_PLATFORM`: each once, in the order given. `local` is this machine's.
fn parse_platforms(texts: &[String], env: &Env) -> Result<Vec<Platform>, Problem> {
    const FLAG: &str = "--platform";
    let from_env = env.non_empty("DOCKER_DEFAULT_PLATFORM");
    let texts = if texts.is_empty() { from_env.as_slice() } else { texts };
    let mut platforms: Vec<Platform> = Vec::new();
    for text in texts {
        let fields =
            parse_record(text).map_err(|cause| Problem::Csv { flag: FLAG, value: text.clone(), cause })?;
        for field in fields.iter().map(|field| field.trim()).filter(|field| !field.is_empty()) {
            let platform = match field {
                "local" => Platform::host(),
                field => field.parse().map_err(|cause| Problem::Platform { cause })?,
            };
            if !platforms.contains(&platform) {
                platforms.push(platform);
            }
        }
    }
    Ok(platforms)
}

/// The one platform of a command that works for one.
pub(crate) fn parse_platform(text: Option<&String>, env: &Env) -> Result<Option<Platform>, Problem> {
    let mut platforms = parse_platforms(text.map(std::slice::from_ref).unwrap_or_default(), env)?;
    match platforms.len() {
        0 | 1 => Ok(platforms.pop()),
        _ => Err(Problem::Value {
            flag: "--platform",
            value: text.cloned().unwrap_or_default(),
            expected: "expected one platform".to_owned(),
        }),
    }
}

/// `METHOD[,format=json|text][,ignorestatus[=BOOL]]`; `--check` is `check`.
fn parse_call(text: &str, check: bool) -> Result<Option<Call>, Problem> {
    const FLAG: &str = "--call";
    let fields =
        parse_record(text).map_err(|cause| Problem::Csv { flag: FLAG, value: text.to_owned(), cause })?;
    let invalid =
        |expected: &str| Problem::Value { flag: FLAG, value: text.to_owned(), expected: expected.to_owned() };
    let (mut method, mut json, mut ignore_status) = (None, false, false);
    for (at, field) in fields.iter().enumerate() {
        match field.split_once('=') {
            None if at == 0 || field.starts_with("method") => method = Some(field.as_str()),
            Some(("method", value)) => method = Some(value),
            Some(("format", "json")) => json = true,
            Some(("format", "text")) => json = false,
            Some(("ignorestatus", value)) => {
                ignore_status =
                    super::args::go_bool(value).map_err(|_| invalid("expected ignorestatus=BOOL"))?;
            }
            None if field == "ignorestatus" => ignore_status = true,
            _ => return Err(invalid("expected METHOD[,format=json|text][,ignorestatus=BOOL]")),
        }
    }
    let method = match method.unwrap_or("build") {
        "build" | "" => None,
        "check" | "lint" => Some(CallMethod::Check),
        "outline" => Some(CallMethod::Outline),
        "targets" => Some(CallMethod::Targets),
        _ => return Err(invalid("expected build, check, outline or targets")),
    };
    if check && !matches!(method, None | Some(CallMethod::Check)) {
        return Err(Problem::Conflict("--check", format!("--call={text}")));
    }
    let method = if check { Some(CallMethod::Check) } else { method };
    Ok(method.map(|method| Call { method, json, ignore_status }))
}

fn parse_network(text: &str) -> Result<Network, Problem> {
    match text {
        "" | "default" => Ok(Network::Default),
        "none" => Ok(Network::None),
        "host" => Ok(Network::Host),
        _ => Err(Problem::Value {
            flag: "--network",
            value: text.to_owned(),
            expected: "expected default, none or host".to_owned(),
        }),
    }
}

fn parse_progress(text: &str, quiet: bool, env: &Env) -> Result<Mode, Problem> {
    const FLAG: &str = "--progress";
    let parse = |flag, text: &str| {
        text.parse::<Mode>().map_err(|_| Problem::Value {
            flag,
            value: text.to_owned(),
            expected: "expected auto, plain, tty, quiet, none or rawjson".to_owned(),
        })
    };
    let mode = parse(FLAG, text)?;
    if quiet {
        return match mode {
            Mode::Auto | Mode::Quiet | Mode::None => Ok(Mode::Quiet),
            _ => Err(Problem::Conflict("--quiet", format!("--progress={text}"))),
        };
    }
    match env.non_empty("BUILDKIT_PROGRESS") {
        Some(text) if mode == Mode::Auto => parse("the environment variable BUILDKIT_PROGRESS", &text),
        _ => Ok(mode),
    }
}

fn parse_jobs(text: &str) -> Result<NonZeroUsize, Problem> {
    text.parse().map_err(|_| Problem::Value {
        flag: "--jobs",
        value: text.to_owned(),
        expected: "expected a number from 1".to_owned(),
    })
}
