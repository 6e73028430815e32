//! Flags of `docker build`, buildx and buildah that rbuild knows by name without acting on them.
//!
//! Two kinds, and no third: flags that a build may depend on are refused by name («not supported yet»); flags that
//! have no meaning for a builder without a daemon are accepted with one warning. Nothing is ignored silently, except
//! values that ask for exactly what rbuild does (`--tls-verify`).

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::error::Problem;

/// Takes a value or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// `--flag[=BOOL]`.
    Bool,
    /// `--flag VALUE`, repeatable.
    Value,
}

/// Refused, with the one value that asks for nothing.
const NOT_YET: &[(&str, Shape, Option<&str>)] = &[
    ("authfile", Shape::Value, None),
    ("build-arg-file", Shape::Value, None),
    ("cache-from", Shape::Value, None),
    ("cache-to", Shape::Value, None),
    ("cert-dir", Shape::Value, None),
    ("creds", Shape::Value, None),
    ("ignorefile", Shape::Value, None),
    ("insecure-registry", Shape::Value, None),
    ("policy", Shape::Value, None),
    ("push-ignore-immutable-tag-errors", Shape::Bool, Some("false")),
    ("registry-certificate", Shape::Value, None),
    ("registry-client-cert", Shape::Value, None),
    ("registry-map", Shape::Value, None),
    ("registry-mirror", Shape::Value, None),
    ("retry", Shape::Value, None),
    ("retry-delay", Shape::Value, None),
    ("skip-default-registry-fallback", Shape::Bool, Some("false")),
    ("source-policy-file", Shape::Value, None),
    ("tls-verify", Shape::Bool, Some("true")),
];

/// Accepted without effect.
const WITHOUT_EFFECT: &[(&str, Option<char>, Shape)] = &[
    ("builder", None, Shape::Value),
    ("compress", None, Shape::Bool),
    ("cpu-period", None, Shape::Value),
    ("cpu-quota", None, Shape::Value),
    ("cpu-shares", Some('c'), Shape::Value),
    ("cpuset-cpus", None, Shape::Value),
    ("cpuset-mems", None, Shape::Value),
    ("force-rm", None, Shape::Bool),
    ("memory", Some('m'), Shape::Value),
    ("memory-swap", None, Shape::Value),
    ("rm", None, Shape::Bool),
    ("security-opt", None, Shape::Value),
    ("squash", None, Shape::Bool),
];

/// Teaches the parser the flags, hidden from the help.
pub(crate) fn declare(command: Command) -> Command {
    let not_yet = NOT_YET.iter().map(|(name, shape, _)| argument(name, None, *shape));
    let without_effect = WITHOUT_EFFECT.iter().map(|(name, short, shape)| argument(name, *short, *shape));
    command.args(not_yet).args(without_effect)
}

fn argument(name: &'static str, short: Option<char>, shape: Shape) -> Arg {
    let arg = Arg::new(name).long(name).hide(true).action(ArgAction::Append);
    let arg = match short {
        Some(short) => arg.short(short),
        None => arg,
    };
    match shape {
        // As text: `-m 2g` and `--rm=maybe` alike reach the message that names the flag.
        Shape::Bool => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        Shape::Value => arg,
    }
}

/// Refuses the first flag that is not supported yet.
pub(crate) fn refuse_unsupported(matches: &ArgMatches) -> Result<(), Problem> {
    for (name, shape, harmless) in NOT_YET {
        for value in given(matches, name) {
            let asks_nothing = match (shape, harmless) {
                (Shape::Bool, Some(harmless)) => {
                    super::args::go_bool(value).ok().map(|b| b.to_string()).as_deref() == Some(*harmless)
                }
                (Shape::Value, Some(harmless)) => value == *harmless,
                (_, None) => false,
            };
            if !asks_nothing {
                return Err(Problem::FlagNotYet { flag: format!("--{name}") });
            }
        }
    }
    Ok(())
}

/// Flags given that have no effect here, with their dashes, in alphabetical order.
pub(crate) fn without_effect(matches: &ArgMatches) -> Vec<String> {
    let used = WITHOUT_EFFECT.iter().filter(|(name, ..)| given(matches, name).next().is_some());
    used.map(|(name, ..)| format!("--{name}")).collect()
}

fn given<'a>(matches: &'a ArgMatches, name: &str) -> impl Iterator<Item = &'a str> + use<'a> {
    let typed = matches.value_source(name) == Some(ValueSource::CommandLine);
    let values = if typed { matches.get_many::<String>(name) } else { None };
    values.into_iter().flatten().map(String::as_str)
}
