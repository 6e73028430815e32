//! `rbuild build --check` and `--call`: answers about a Dockerfile.

use std::path::Path;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rbuild_frontend::diagnostic::Diagnostic;
use rbuild_frontend::lint::rules::{self, RuleKind};
use rbuild_frontend::outline::{self, Outline, TargetInfo};
use rbuild_frontend::span::Lines;
use serde_json::{Value, json};

use super::read::{self, Place};
use crate::build::Source;
use crate::check;
use crate::cli::{BuildRequest, Call, CallMethod, Env};
use crate::error::BuildError;
use crate::failure;
use crate::progress::{self, Display, Mode};
use crate::report::{SourceFile, Style, findings};
use crate::settings::Settings;

/// Answers on standard output. The exit status of a check is 1 when a rule of BuildKit's is broken: advice is no reason
/// to fail.
pub(super) fn run(
    request: &BuildRequest,
    call: Call,
    settings: Settings,
    root: Option<&Path>,
    env: &Env,
) -> ExitCode {
    let mut source = Source::default();
    let (events, consumer) = progress::start(request.progress, Display::stderr(env));
    let place = Place { settings, root, events: &events };
    let answered = answer(request, call, place, env, &mut source);
    let error = match &answered {
        Ok(answer) if answer.errors.is_empty() => None,
        Ok(answer) => Some(BuildError::Dockerfile(answer.errors.clone())),
        Err(_) => None,
    };
    if let Some(error) = error.as_ref().or(answered.as_ref().err()) {
        events.failed(failure::report(error, Some(&source)));
    }
    drop(events);
    consumer.finish();
    let answered = answered.and_then(|answer| super::print(&answer.text).map(|()| answer.is_clean));
    match (answered, error) {
        (Err(error), _) | (Ok(_), Some(error)) if request.progress == Mode::RawJson => {
            failure::status(&error, Some(&source))
        }
        (Err(error), _) | (Ok(_), Some(error)) => failure::print(&error, Some(&source), env),
        (Ok(is_clean), None) if is_clean || call.ignore_status => ExitCode::SUCCESS,
        (Ok(_), None) => ExitCode::FAILURE,
    }
}

struct Answer {
    text: String,
    /// Nothing is wrong.
    is_clean: bool,
    /// What a check found that is not in the text.
    errors: Vec<Diagnostic>,
}

fn answer(
    request: &BuildRequest,
    call: Call,
    place: Place<'_>,
    env: &Env,
    source: &mut Source,
) -> Result<Answer, BuildError> {
    let events = place.events;
    let (read, _) = read::read(request, place, source)?;
    let file = failure::source_file(source).expect("it was just read");
    let ast = &read.parsed.ast;
    let text = match call.method {
        CallMethod::Targets => {
            let targets = outline::targets(ast);
            if call.json { pretty(&targets_json(&targets, &file)) } else { targets_text(&targets) }
        }
        CallMethod::Outline => {
            let outline = outline::outline(ast, request.target.as_deref(), &request.build_args);
            let outline = outline.map_err(BuildError::Stage)?;
            if call.json { pretty(&outline_json(&outline, &file)) } else { outline_text(&outline) }
        }
        CallMethod::Check => {
            let (errors, warnings) = check::check(&read);
            let is_advice = |d: &Diagnostic| {
                d.rule.and_then(rules::find).is_some_and(|rule| rule.kind == RuleKind::Advice)
            };
            let is_clean = errors.is_empty() && warnings.iter().all(is_advice);
            if call.json {
                let text = pretty(&check_json(&errors, &warnings, &file));
                return Ok(Answer { text, is_clean, errors: Vec::new() });
            }
            // Machines get each finding as an event, people all of them as one text.
            let text = match request.progress {
                Mode::RawJson => {
                    warnings.into_iter().for_each(|warning| events.warning(warning));
                    String::new()
                }
                _ => check_text(&warnings, &file, env),
            };
            return Ok(Answer { text, is_clean, errors });
        }
    };
    Ok(Answer { text, is_clean: true, errors: Vec::new() })
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

fn check_text(warnings: &[Diagnostic], file: &SourceFile, env: &Env) -> String {
    let summary = match warnings.len() {
        0 => "Check complete, no warnings found.\n".to_owned(),
        1 => "Check complete, 1 warning has been found!\n".to_owned(),
        count => format!("Check complete, {count} warnings have been found!\n"),
    };
    summary + &findings(warnings, file, Style::stderr(env))
}

fn check_json(errors: &[Diagnostic], warnings: &[Diagnostic], file: &SourceFile) -> Value {
    let warnings: Vec<Value> = warnings
        .iter()
        .map(|found| {
            let rule = found.rule.and_then(rules::find);
            let mut value = json!({
                "ruleName": found.rule,
                "description": rule.map(|rule| rule.fires),
                "detail": found.message,
                "location": location(found.lines),
            });
            if let Some(help) = &found.help {
                value["help"] = help.as_str().into();
            }
            value
        })
        .collect();
    let sources = [json!({ "filename": file.name, "data": STANDARD.encode(&file.bytes) })];
    let mut value = json!({ "warnings": warnings, "sources": sources });
    if let Some(error) = errors.first() {
        value["buildError"] = json!({ "message": error.message, "location": location(error.lines) });
    }
    value
}

fn location(lines: Lines) -> Value {
    let at = |line: u32| json!({ "line": line, "character": 0 });
    json!({ "sourceIndex": 0, "ranges": [{ "start": at(lines.first), "end": at(lines.last) }] })
}

fn targets_json(targets: &[TargetInfo], file: &SourceFile) -> Value {
    let shown: Vec<Value> = targets
        .iter()
        .map(|target| {
            json!({
                "name": target.name,
                "default": target.is_default,
                "description": target.description,
                "base": target.base,
                "location": location(target.lines),
            })
        })
        .collect();
    json!({ "targets": shown, "sources": [STANDARD.encode(&file.bytes)] })
}

fn targets_text(targets: &[TargetInfo]) -> String {
    let rows = targets.iter().map(|target| {
        let name = match (target.name.is_empty(), target.is_default) {
            (true, true) => "(default)".to_owned(),
            (true, false) => "(no name)".to_owned(),
            (false, true) => format!("{} (default)", target.name),
            (false, false) => target.name.clone(),
        };
        vec![name, target.description.clone()]
    });
    table(&["TARGET", "DESCRIPTION"], rows.collect())
}

fn outline_json(outline: &Outline, file: &SourceFile) -> Value {
    let args: Vec<Value> = outline
        .args
        .iter()
        .map(|arg| {
            json!({
                "name": arg.name,
                "description": arg.description,
                "value": arg.value,
                "location": location(arg.lines),
            })
        })
        .collect();
    let needs = |list: &[(String, bool)]| -> Vec<Value> {
        list.iter().map(|(name, required)| json!({ "name": name, "required": required })).collect()
    };
    json!({
        "name": outline.name,
        "description": outline.description,
        "args": args,
        "secrets": needs(&outline.secrets),
        "ssh": needs(&outline.ssh),
        "sources": [STANDARD.encode(&file.bytes)],
    })
}

fn outline_text(outline: &Outline) -> String {
    let name = if outline.name.is_empty() { "default" } else { &outline.name };
    let mut text = format!("TARGET: {name}\n");
    if !outline.description.is_empty() {
        text.push_str(&format!("DESCRIPTION: {}\n", outline.description));
    }
    if !outline.args.is_empty() {
        let row = |arg: &outline::ArgInfo| {
            vec![arg.name.clone(), arg.value.clone().unwrap_or_default(), arg.description.clone()]
        };
        let rows = outline.args.iter().map(row).collect();
        text.push_str(&format!("\n{}", table(&["BUILD ARG", "VALUE", "DESCRIPTION"], rows)));
    }
    for (title, list) in [("SECRET", &outline.secrets), ("SSH", &outline.ssh)] {
        if !list.is_empty() {
            let row = |(name, required): &(String, bool)| {
                vec![name.clone(), if *required { "true" } else { "" }.to_owned()]
            };
            text.push_str(&format!("\n{}", table(&[title, "REQUIRED"], list.iter().map(row).collect())));
        }
    }
    text
}

/// Columns as wide as what is in them, three blanks apart.
fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let header: Vec<String> = header.iter().map(|text| (*text).to_owned()).collect();
    let mut widths = vec![0; header.len()];
    for row in std::iter::once(&header).chain(&rows) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in std::iter::once(&header).chain(&rows) {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(progress::lines::clean_text(&cells.collect::<Vec<_>>().join("   ")).trim_end());
        text.push('\n');
    }
    text
}
