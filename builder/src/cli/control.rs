//! Flags that say what may come from the cache, and `rbuild explain`.

use clap::{ArgAction, Args};

use super::args::go_bool;
use super::csv::parse_record;
use super::error::Problem;

/// What may come from the cache
#[derive(Debug, Args)]
pub(crate) struct CacheControlArgs {
    /// Execute every step again
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true,
          hide_possible_values = true, value_name = "BOOL", help_heading = "How to build")]
    pub(crate) no_cache: bool,
    /// Execute every step of these stages again
    #[arg(long, value_name = "STAGE[,STAGE]", help_heading = "How to build")]
    pub(crate) no_cache_filter: Vec<String>,
    /// When to ask the registry for base images: missing, always (--pull alone), newer or never
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "missing",
          default_missing_value = "always", hide_default_value = true, value_name = "WHEN",
          help_heading = "How to build")]
    pub(crate) pull: String,
    /// Execute cached steps again and fail when one gives something else
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, hide_default_value = true,
          hide_possible_values = true, value_name = "BOOL", help_heading = "How to build")]
    pub(crate) verify_cache: bool,
    /// Say everything that differs for each executed step; json: as one document on standard output
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "text", value_name = "FORMAT",
          help_heading = "What to show")]
    pub(crate) explain: Option<String>,
}

/// Tell why steps were executed
///
/// Builds that executed something are remembered for a while, with why each step was executed.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  rbuild explain                    the last build that executed something
  rbuild explain 4/7                the last execution of step 4 of 7
  rbuild explain 'RUN make'         the last executions of steps with this text
  rbuild explain 9f86d081           the build with this id")]
pub(crate) struct ExplainArgs {
    /// A build's id, a step's number or a part of its text
    #[arg(value_name = "ID|STEP", conflicts_with = "last")]
    pub(crate) which: Option<String>,
    /// The last build that executed something (the default)
    #[arg(long)]
    pub(crate) last: bool,
    /// Print text or json
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    pub(crate) format: String,
}

/// What a build may take from the cache, and what it says about it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CacheControl {
    /// Execute every step again.
    pub no_cache: bool,
    /// Execute every step of these stages again.
    pub no_cache_filter: Vec<String>,
    /// When to ask the registry for base images.
    pub pull: Pull,
    /// Execute cached steps again and compare.
    pub verify: bool,
    /// Say all that differs.
    pub explain: Option<ExplainFormat>,
}

/// When the registry is asked for a base image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pull {
    /// When the image is neither in the store nor was resolved before.
    #[default]
    Missing,
    /// Always; the build fails when the registry does not answer.
    Always,
    /// Always, but what is here is used when the registry cannot be reached.
    Newer,
    /// Not at all.
    Never,
}

/// How explanations are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExplainFormat {
    /// Lines.
    Text,
    /// JSON.
    Json,
}

/// What `rbuild explain` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainRequest {
    /// Build id or step; `None` for the last build.
    pub which: Option<String>,
    /// How to print.
    pub format: ExplainFormat,
}

impl CacheControl {
    /// Checks what was typed.
    pub(super) fn from_args(args: &CacheControlArgs) -> Result<Self, Problem> {
        let mut no_cache_filter = Vec::new();
        for text in &args.no_cache_filter {
            let flag = "--no-cache-filter";
            let names =
                parse_record(text).map_err(|cause| Problem::Csv { flag, value: text.clone(), cause })?;
            no_cache_filter.extend(names.into_iter().filter(|name| !name.is_empty()));
        }
        let explain = match args.explain.as_deref() {
            None => None,
            Some("text" | "true") => Some(ExplainFormat::Text),
            Some("json") => Some(ExplainFormat::Json),
            Some(other) => return Err(wrong("--explain", other, "expected text or json")),
        };
        if args.verify_cache && (args.no_cache || !no_cache_filter.is_empty()) {
            let other = if args.no_cache { "--no-cache" } else { "--no-cache-filter" };
            return Err(Problem::Conflict("--verify-cache", other.to_owned()));
        }
        Ok(Self {
            no_cache: args.no_cache,
            no_cache_filter,
            pull: parse_pull(&args.pull)?,
            verify: args.verify_cache,
            explain,
        })
    }
}

/// Docker's boolean forms, and buildah's words.
fn parse_pull(text: &str) -> Result<Pull, Problem> {
    match (text, go_bool(text)) {
        ("always", _) | (_, Ok(true)) => Ok(Pull::Always),
        ("missing", _) | (_, Ok(false)) => Ok(Pull::Missing),
        ("newer", _) => Ok(Pull::Newer),
        ("never", _) => Ok(Pull::Never),
        _ => Err(wrong("--pull", text, "expected always, missing, newer, never, true or false")),
    }
}

impl ExplainRequest {
    pub(super) fn from_args(args: ExplainArgs) -> Self {
        let format = if args.format == "json" { ExplainFormat::Json } else { ExplainFormat::Text };
        Self { which: args.which.filter(|which| !which.is_empty()), format }
    }
}

fn wrong(flag: &'static str, value: &str, expected: &str) -> Problem {
    Problem::Value { flag, value: value.to_owned(), expected: expected.to_owned() }
}
