//! Names of commands: which one is meant when none is typed, Docker's groups, and words that are no command here.

use std::ffi::{OsStr, OsString};

use super::image::ImageCommandArgs;

/// Index of the first argument that is not a global flag, or the length.
pub(super) fn first_own_argument(arguments: &[OsString]) -> usize {
    let mut index = 1;
    while let Some(argument) = arguments.get(index) {
        match argument.to_str() {
            Some("--root" | "--isolation") => index += 2,
            Some("-D" | "--debug") => index += 1,
            Some(text) if text.starts_with("--root=") || text.starts_with("--isolation=") => index += 1,
            _ => break,
        }
    }
    index.min(arguments.len())
}

/// True for the name of a command, and for what stands in its place.
fn is_command(text: &OsStr) -> bool {
    matches!(
        text.to_str(),
        Some(
            "build"
                | "b"
                | "debug"
                | "graph"
                | "context"
                | "images"
                | "pull"
                | "push"
                | "explain"
                | "du"
                | "prune"
                | "cache"
                | "imagetools"
                | "system"
                | "doctor"
                | "version"
                | "-h"
                | "--help"
        )
    ) || text.to_str().is_some_and(ImageCommandArgs::is_name)
}

/// The command a context's name was probably meant to be: `rbuild imags` builds from the directory `imags`, and
/// when there is none the user should hear which command is near.
fn similar_command(context: &str) -> Option<&'static str> {
    let near = |name: &&str| {
        let (a, b) = (context.as_bytes(), name.as_bytes());
        let prefix = a.iter().zip(b).take_while(|(x, y)| x == y).count();
        let suffix =
            a[prefix..].iter().rev().zip(b[prefix..].iter().rev()).take_while(|(x, y)| x == y).count();
        // One edit, or two letters swapped.
        let left = (a.len() - prefix - suffix).max(b.len() - prefix - suffix);
        b.len() >= 4
            && (left == 1
                || (left == 2
                    && a.len() == b.len()
                    && a[prefix] == b[prefix + 1]
                    && a[prefix + 1] == b[prefix]))
    };
    [
        "build", "graph", "images", "pull", "push", "explain", "prune", "cache", "doctor", "version",
        "inspect", "history", "login", "logout", "save", "load", "debug",
    ]
    .into_iter()
    .find(|name| near(name))
}

pub(super) fn with_default_command(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let first = first_own_argument(&arguments);
    match arguments.get(first) {
        Some(argument) if argument == "help" => {
            let names_command = arguments.get(first + 1).is_some_and(|argument| is_command(argument));
            arguments.remove(first);
            arguments.insert(if names_command { first + 1 } else { first }, "--help".into());
        }
        Some(argument) if argument == "--version" || argument == "-V" => arguments[first] = "version".into(),
        // What Docker has in groups, too: the command is declared once.
        Some(group) if arguments.get(first + 1).is_some_and(|next| is_of_group(group, next)) => {
            arguments.remove(first);
        }
        Some(argument) if is_command(argument) => {}
        Some(_) => arguments.insert(first, "build".into()),
        None if arguments.is_empty() => arguments.extend(["rbuild".into(), "--help".into()]),
        None => arguments.push("--help".into()),
    }
    arguments
}

/// Commands of Docker's groups that stand by themselves here: `docker buildx build`, `docker builder prune`.
fn is_of_group(group: &OsStr, command: &OsStr) -> bool {
    let commands: &[&str] = match group.to_str() {
        Some("image") => &["build"],
        Some("builder") => &["build", "prune"],
        Some("buildx") => &["build", "b", "du", "prune", "imagetools", "version"],
        _ => &[],
    };
    command.to_str().is_some_and(|command| commands.contains(&command))
}

/// What to say of a word that was taken for a context, when a command of Docker or a misspelt one was meant; `None` when it
/// looks like nothing of the kind.
pub fn no_command(word: &str) -> Option<String> {
    let why = match word {
        "run" | "ps" | "exec" | "start" | "stop" | "restart" | "kill" | "rm" | "logs" | "attach" | "cp"
        | "top" | "stats" | "create" | "commit" | "container" | "compose" | "network" | "volume"
        | "stack" | "service" | "swarm" => {
            "rbuild builds images and runs no containers: --load gives an image to a Docker engine, --push to a registry"
        }
        "buildx" | "builder" => {
            "rbuild needs no builder: `rbuild build`, `rbuild du` and `rbuild prune` work by themselves"
        }
        "search" => "rbuild searches no registry",
        "info" => {
            "rbuild has no daemon: `rbuild doctor` tells what this machine allows, `rbuild system df` what the store holds"
        }
        "manifest" => "`rbuild imagetools` looks at and joins images at registries",
        "export" => "`rbuild build -o DIR` writes the files of a build, `rbuild save` an image",
        "import" => "`rbuild load` reads images; `ADD files.tar /` in a Dockerfile makes one of files",
        "bake" => "rbuild reads Dockerfiles only",
        _ => return similar_command(word).map(|name| format!("did you mean the command `rbuild {name}`?")),
    };
    Some(why.to_owned())
}

/// `rbuild build`, for `See '… --help'`.
pub(super) fn command_name(arguments: &[OsString], parser: &clap::Command) -> String {
    let typed = arguments.get(first_own_argument(arguments)).and_then(|argument| argument.to_str());
    let known = typed.and_then(|typed| parser.find_subcommand(typed));
    known.map_or_else(|| "rbuild".to_owned(), |sub| format!("rbuild {}", sub.get_name()))
}
