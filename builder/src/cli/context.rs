//! `rbuild context`: what a build context sends, and why.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::error::Problem;
use super::source::{ContextArg, DockerfileArg, parse_context, parse_dockerfile};

/// Look at what a build context sends
#[derive(Debug, Args)]
pub(crate) struct ContextArgs {
    #[command(subcommand)]
    command: ContextCommandArgs,
}

#[derive(Debug, Subcommand)]
enum ContextCommandArgs {
    /// List what the ignore file leaves
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        of: OfArgs,
        /// The context: a directory
        #[arg(value_name = "CONTEXT", default_value = ".")]
        context: String,
    },
    /// Show how large it is, by directory, largest first
    Du {
        #[command(flatten)]
        of: OfArgs,
        /// Levels of directories to show
        #[arg(short = 'd', long, value_name = "LEVELS", default_value_t = 1)]
        depth: usize,
        /// The context: a directory
        #[arg(value_name = "CONTEXT", default_value = ".")]
        context: String,
    },
    /// Tell which line of which ignore file excludes a path, or brings it back
    Why {
        #[command(flatten)]
        of: OfArgs,
        /// The context: a directory
        #[arg(long, value_name = "DIR", default_value = ".")]
        context: String,
        /// Paths in the context
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct OfArgs {
    /// Dockerfile whose ignore file counts, if it has one of its own (default: CONTEXT/Dockerfile)
    #[arg(short = 'f', long, value_name = "PATH")]
    file: Option<String>,
    /// Print text or json
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    format: String,
}

/// What `rbuild context` was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextRequest {
    /// The directory.
    pub context: PathBuf,
    /// The Dockerfile, when one was named.
    pub dockerfile: Option<PathBuf>,
    /// Answer in JSON.
    pub json: bool,
    /// The question.
    pub question: ContextQuestion,
}

/// A question about a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContextQuestion {
    /// What is in it?
    List,
    /// How large is it, down to so many levels?
    Sizes(usize),
    /// Why are these paths in it, or not?
    Why(Vec<String>),
}

impl ContextArgs {
    pub(crate) fn request(self) -> Result<ContextRequest, Problem> {
        let (of, context, question) = match self.command {
            ContextCommandArgs::Ls { of, context } => (of, context, ContextQuestion::List),
            ContextCommandArgs::Du { of, depth, context } => (of, context, ContextQuestion::Sizes(depth)),
            ContextCommandArgs::Why { of, context, paths } => (of, context, ContextQuestion::Why(paths)),
        };
        let only = |flag, value: &str| Problem::Value {
            flag,
            value: value.to_owned(),
            expected: "expected a path: only what is here can be looked at".to_owned(),
        };
        let ContextArg::Local(dir) = parse_context(&context)? else {
            return Err(only("the build context", &context));
        };
        let dockerfile = match of.file {
            None => None,
            Some(text) => match parse_dockerfile(&text)? {
                DockerfileArg::Path(path) => Some(path),
                DockerfileArg::Stdin | DockerfileArg::Http(_) => return Err(only("--file", &text)),
            },
        };
        Ok(ContextRequest { context: dir, dockerfile, json: of.format == "json", question })
    }
}
