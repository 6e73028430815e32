//! Lint rules: the table ([`rules`]), those that need only the AST, and advice.
//!
//! Rules about values and stages are checked while lowering, on the reachable stages only. Every finding carries its
//! rule's name; [`is_skipped`] decides afterwards whether anyone hears of it.

use std::collections::BTreeMap;
use std::str::FromStr;

use rbuild_oci::Platform;

use crate::ast::{CheckOptions, Dockerfile, FromInstruction, Instruction, InstructionKind};
use crate::diagnostic::{Diagnostic, Severity};
use crate::dockerignore::Ignore;
use crate::parse::Logical;
use crate::span::{Lines, Span};

pub(crate) mod advice;
pub mod rules;

use rules::RuleKind;

/// What rules want to know about the main context.
#[derive(Debug, Clone, Default)]
pub struct ContextFacts {
    /// Its ignore file.
    pub ignore: Ignore,
    /// True when there is one.
    pub has_ignore_file: bool,
    /// Which of `node_modules` and `.git` it has and does not ignore.
    pub heavy: Vec<String>,
}

/// True when the check options silence this finding. Errors are never silenced.
pub fn is_skipped(diagnostic: &Diagnostic, check: &CheckOptions) -> bool {
    let Some(rule) = diagnostic.rule.filter(|_| diagnostic.severity == Severity::Warning) else {
        return false;
    };
    let has = |names: &[String]| names.iter().any(|name| name == rule);
    let is_off = rules::find(rule).is_some_and(|rule| rule.kind == RuleKind::Experimental)
        && !check.experimental_all
        && !has(&check.experimental);
    is_off || check.skip_all || has(&check.skip)
}

/// True when `# check=error=true` fails because of this finding.
pub(crate) fn is_violation(rule: &str) -> bool {
    rules::find(rule).is_none_or(|rule| rule.kind != RuleKind::Advice)
}

/// A finding, unless a comment above the instruction skips the rule.
pub(crate) fn finding(
    rule: &'static str,
    message: impl Into<String>,
    span: Span,
    lines: Lines,
    skip_rules: &[String],
) -> Option<Diagnostic> {
    debug_assert!(rules::find(rule).is_some(), "{rule} is not in the table");
    if skip_rules.iter().any(|skip| skip == rule || skip == "all") {
        return None;
    }
    Some(Diagnostic {
        rule: Some(rule),
        severity: Severity::Warning,
        message: message.into(),
        span,
        lines,
        related: Vec::new(),
        help: None,
    })
}

/// Rules that look at how the file is written.
pub(crate) fn syntactic(ast: &Dockerfile, lines: &[Logical], out: &mut Vec<Diagnostic>) {
    for line in lines {
        if let Some(number) = line.blank_inside {
            let at = Lines { first: line.lines.first, last: line.lines.last.max(number) };
            let message = "Empty continuation line";
            out.extend(finding("NoEmptyContinuation", message, line.span, at, &line.skip_rules));
        }
    }
    instruction_casing(ast, out);
    for instruction in &ast.instructions {
        descriptions(instruction, out);
    }
    let mut names: BTreeMap<String, Span> = BTreeMap::new();
    for instruction in &ast.instructions {
        match &instruction.kind {
            InstructionKind::From(from) => from_rules(from, instruction, &mut names, out),
            InstructionKind::Env(pairs) | InstructionKind::Label(pairs) => {
                let keyword = instruction.keyword.value.to_ascii_uppercase();
                if pairs.iter().any(|pair| pair.legacy) {
                    let message = format!(
                        "\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format"
                    );
                    push(out, "LegacyKeyValueFormat", message, instruction.span, instruction);
                }
            }
            InstructionKind::Maintainer(_) => {
                let message = "Maintainer instruction is deprecated in favor of using label";
                push(out, "MaintainerDeprecated", message, instruction.span, instruction);
            }
            _ => {}
        }
    }
}

fn push(
    out: &mut Vec<Diagnostic>,
    rule: &'static str,
    message: impl Into<String>,
    span: Span,
    instruction: &Instruction,
) {
    out.extend(finding(rule, message, span, instruction.lines, &instruction.skip_rules));
}

fn instruction_casing(ast: &Dockerfile, out: &mut Vec<Diagnostic>) {
    let is_lower = |word: &str| word.bytes().all(|b| !b.is_ascii_uppercase());
    let is_upper = |word: &str| word.bytes().all(|b| !b.is_ascii_lowercase());
    let words = || ast.instructions.iter().map(|i| i.keyword.value.as_str());
    let lower = words().filter(|w| is_lower(w)).count();
    let majority_is_lower = lower > words().filter(|w| is_upper(w)).count();
    for instruction in &ast.instructions {
        let word = instruction.keyword.value.as_str();
        if if majority_is_lower { is_lower(word) } else { is_upper(word) } {
            continue;
        }
        let wanted = if majority_is_lower { "lowercase" } else { "uppercase" };
        let message = format!("Command '{word}' should match the case of the command majority ({wanted})");
        push(out, "ConsistentInstructionCasing", message, instruction.keyword.span, instruction);
    }
}

/// A comment right above ARG or FROM is a description, and begins with what it describes.
fn descriptions(instruction: &Instruction, out: &mut Vec<Diagnostic>) {
    let names: Vec<&str> = match &instruction.kind {
        InstructionKind::Arg(args) => args.iter().map(|arg| arg.name.value.as_str()).collect(),
        InstructionKind::From(from) => from.name.iter().map(|name| name.value.as_str()).collect(),
        _ => return,
    };
    let (Some(comment), Some(first)) = (instruction.comments.last(), names.first()) else { return };
    if names.contains(&comment.split(' ').next().unwrap_or_default()) {
        return;
    }
    let example = if names.len() > 1 { "<arg_key>" } else { first };
    let keyword = instruction.keyword.value.to_ascii_uppercase();
    let message = format!("Comment for {keyword} should follow the format: `# {example} <description>`");
    push(out, "InvalidDefinitionDescription", message, instruction.span, instruction);
}

/// Rules about `--platform` as it is written.
fn platform_rules(from: &FromInstruction, instruction: &Instruction, out: &mut Vec<Diagnostic>) {
    let Some(platform) = &from.platform else { return };
    if matches!(platform.value.as_str(), "$TARGETPLATFORM" | "${TARGETPLATFORM}") {
        let message = format!(
            "Setting platform to predefined {} in FROM is redundant as this is the default behavior",
            platform.value
        );
        push(out, "RedundantTargetPlatform", message, platform.span, instruction);
    }
    let Ok(constant) = Platform::from_str(&platform.value) else { return };
    let name = from.name.as_ref().map(|name| name.value.to_lowercase()).unwrap_or_default();
    if !name.contains(&constant.os) && !name.contains(&constant.architecture) {
        let message = format!("FROM --platform flag should not use constant value {:?}", platform.value);
        push(out, "FromPlatformFlagConstDisallowed", message, platform.span, instruction);
    }
}

fn from_rules(
    from: &FromInstruction,
    instruction: &Instruction,
    names: &mut BTreeMap<String, Span>,
    out: &mut Vec<Diagnostic>,
) {
    platform_rules(from, instruction, out);
    if let Some(as_word) = &from.as_word {
        let keyword = instruction.keyword.value.as_str();
        let is_one_case = keyword == keyword.to_ascii_lowercase() || keyword == keyword.to_ascii_uppercase();
        let same = keyword.starts_with('F') == as_word.value.starts_with('A')
            && keyword.ends_with('M') == as_word.value.ends_with('S');
        if is_one_case && !same {
            let message = format!("'{}' and '{keyword}' keywords' casing do not match", as_word.value);
            push(out, "FromAsCasing", message, as_word.span, instruction);
        }
    }
    let Some(name) = &from.name else { return };
    let lower = name.value.to_lowercase();
    if lower != name.value {
        let message = format!("Stage name '{}' should be lowercase", name.value);
        push(out, "StageNameCasing", message, name.span, instruction);
    }
    if matches!(lower.as_str(), "scratch" | "context") {
        let message = format!("Stage name should not use the same name as reserved stage \"{lower}\"");
        push(out, "ReservedStageName", message, name.span, instruction);
    }
    match names.get(&lower) {
        Some(first) => {
            let message = format!("Duplicate stage name {lower:?}, stage names should be unique");
            let mut found =
                finding("DuplicateStageName", message, name.span, instruction.lines, &instruction.skip_rules);
            if let Some(found) = &mut found {
                found.related.push((*first, "first defined here".to_owned()));
            }
            out.extend(found);
        }
        None => {
            names.insert(lower, name.span);
        }
    }
}

/// True when a variable of this name probably holds a secret.
pub fn looks_secret(name: &str) -> bool {
    const SECRET: [&str; 10] = [
        "auth",
        "credential",
        "credentials",
        "key",
        "apikey",
        "password",
        "passwd",
        "pword",
        "secret",
        "token",
    ];
    const HARMLESS: [&str; 3] = ["public", "file", "version"];
    let lower = name.to_ascii_lowercase();
    let words = || lower.split('_');
    words().any(|word| SECRET.contains(&word)) && !words().any(|word| HARMLESS.contains(&word))
}
