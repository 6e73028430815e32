//! What learners want to hear: rules of rbuild's own, for one stage at a time.

use crate::ast::{Command, Instruction, InstructionKind, SourceWord};
use crate::diagnostic::Diagnostic;

use super::{ContextFacts, finding};

/// Commands that install what a project depends on, and the files that say what.
const INSTALLS: [(&str, &str); 14] = [
    ("npm install", "package.json and package-lock.json"),
    ("npm ci", "package.json and package-lock.json"),
    ("yarn install", "package.json and yarn.lock"),
    ("pnpm install", "package.json and pnpm-lock.yaml"),
    ("pip install -r", "requirements.txt"),
    ("pip3 install -r", "requirements.txt"),
    ("poetry install", "pyproject.toml and poetry.lock"),
    ("uv sync", "pyproject.toml and uv.lock"),
    ("bundle install", "Gemfile and Gemfile.lock"),
    ("composer install", "composer.json and composer.lock"),
    ("go mod download", "go.mod and go.sum"),
    ("cargo fetch", "Cargo.toml and Cargo.lock"),
    ("mvn dependency:go-offline", "pom.xml"),
    ("dotnet restore", "the project files"),
];

/// Advice about one stage's instructions.
pub(crate) fn stage(body: &[Instruction], facts: Option<&ContextFacts>, out: &mut Vec<Diagnostic>) {
    let whole = body.iter().find(|instruction| copies_all(instruction));
    for instruction in body {
        let InstructionKind::Run(run) = &instruction.kind else { continue };
        let mut text = match &run.command {
            Command::Exec(words) => {
                words.iter().map(|word| word.value.as_str()).collect::<Vec<_>>().join(" ")
            }
            Command::Shell(text) => text.value.clone(),
        };
        for heredoc in &run.heredocs {
            text.push('\n');
            text.push_str(&heredoc.body.value);
        }
        let commands = simple_commands(&text);
        apt(instruction, &commands, out);
        if let Some(copy) = whole.filter(|copy| copy.span.start < instruction.span.start) {
            cache_order(copy, instruction, &commands, out);
        }
    }
    if let (Some(copy), Some(facts)) = (whole, facts)
        && !facts.has_ignore_file
        && !facts.heavy.is_empty()
    {
        let message = format!("The context has {} and no .dockerignore", facts.heavy.join(" and "));
        let found = finding("MissingIgnoreFile", message, copy.span, copy.lines, &copy.skip_rules);
        out.extend(found.map(|found| Diagnostic {
            help: Some(format!("write .dockerignore with these lines: {}", facts.heavy.join(", "))),
            ..found
        }));
    }
}

/// A shell text as words, one list per simple command. Enough to recognise a command by its first words; quotes and
/// substitutions stay as they are.
fn simple_commands(text: &str) -> Vec<Vec<&str>> {
    let commands = text.split(['\n', ';', '&', '|', '(', ')']);
    commands.map(|command| command.split_ascii_whitespace().collect()).collect()
}

/// COPY or ADD of all of the main context.
fn copies_all(instruction: &Instruction) -> bool {
    let (from, sources) = match &instruction.kind {
        InstructionKind::Copy(copy) => (copy.from.as_ref(), &copy.sources),
        InstructionKind::Add(add) => (None, &add.sources),
        _ => return false,
    };
    let is_all = |source: &SourceWord| match source {
        SourceWord::Path(path) => matches!(path.value.as_str(), "." | "./" | "/" | "./." | "*" | "./*"),
        SourceWord::Inline(_) => false,
    };
    from.is_none() && sources.iter().any(is_all)
}

fn apt(instruction: &Instruction, commands: &[Vec<&str>], out: &mut Vec<Diagnostic>) {
    let runs = |wanted: &[&str]| {
        commands.iter().any(|words| {
            words.iter().position(|word| matches!(*word, "apt-get" | "apt" | "aptitude")).is_some_and(|at| {
                words[at + 1..].iter().find(|word| !word.starts_with('-')).is_some_and(|w| wanted.contains(w))
            })
        })
    };
    let uses = ["install", "upgrade", "dist-upgrade", "full-upgrade", "build-dep", "download", "source"];
    if runs(&["update"]) && !runs(&uses) {
        let message =
            "apt-get update is alone in its layer: later installs use the lists of the day it was cached";
        let found =
            finding("AptUpdateAlone", message, instruction.span, instruction.lines, &instruction.skip_rules);
        out.extend(found.map(|found| Diagnostic {
            help: Some("RUN apt-get update && apt-get install -y PACKAGE".to_owned()),
            ..found
        }));
    }
}

fn cache_order(copy: &Instruction, install: &Instruction, commands: &[Vec<&str>], out: &mut Vec<Diagnostic>) {
    let installs = |(phrase, _): &&(&str, &str)| {
        let phrase: Vec<&str> = phrase.split(' ').collect();
        commands.iter().any(|words| {
            let rest = words.strip_prefix(phrase.as_slice());
            // `npm install -g tool` and `npm install left-pad` need nothing of the context.
            rest.is_some_and(|rest| match phrase.last() {
                Some(&"install") => {
                    rest.iter().all(|word| word.starts_with('-') && !matches!(*word, "-g" | "--global"))
                }
                _ => true,
            })
        })
    };
    let Some((phrase, files)) = INSTALLS.iter().find(installs) else { return };
    let message = format!(
        "Everything is copied before `{phrase}`: any change of a file installs all dependencies again"
    );
    let found = finding("CacheOrder", message, copy.span, copy.lines, &copy.skip_rules);
    out.extend(found.map(|found| Diagnostic {
        related: vec![(install.span, "dependencies are installed here".to_owned())],
        help: Some(format!(
            "copy {files} before line {}, and move line {} below it",
            install.lines.first, copy.lines.first
        )),
        ..found
    }));
}
