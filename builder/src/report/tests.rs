use rbuild_frontend::diagnostic::{Diagnostic, Severity};
use rbuild_frontend::span::{Lines, Span};

use super::*;
use crate::cli::Env;

const TERMINAL: Style = Style { color: false, width: 80, snippets: true, github: false };
const GITHUB: Style = Style { github: true, ..Style::PLAIN };

fn file(text: &[u8]) -> SourceFile {
    SourceFile { name: "Dockerfile".to_owned(), bytes: text.into() }
}

fn numbered(lines: u32) -> SourceFile {
    let text: Vec<String> = (1..=lines).map(|n| format!("RUN {n}")).collect();
    file(text.join("\n").as_bytes())
}

fn lines(first: u32, last: u32) -> Lines {
    Lines { first, last }
}

fn bad_dockerfile() -> Report {
    let source = "FROM alpine AS Build\nRUNN make\nCOPY --from=biuld /a /b\n";
    let at = |text: &str| {
        let start = source.find(text).unwrap();
        Span::new(start..start + text.len())
    };
    let error = |message: &str, span, line, related, help| Diagnostic {
        rule: None,
        severity: Severity::Error,
        message: message.to_owned(),
        span,
        lines: lines(line, line),
        related,
        help,
    };
    let mut warning = error("Stage name 'Build' should be lowercase", at("Build"), 1, vec![], None);
    warning.rule = Some("StageNameCasing");
    warning.severity = Severity::Warning;
    let unknown = error(
        "unknown instruction: RUNN (did you mean RUN?)",
        at("RUNN"),
        2,
        vec![],
        Some("use `RUN`".into()),
    );
    let stage = error(
        "stage `biuld` not found",
        at("biuld"),
        3,
        vec![(at("Build"), "similar name defined here".into())],
        None,
    );
    Report::dockerfile(file(source.as_bytes()), vec![warning, unknown, stage])
}

fn failed_step() -> Report {
    let source =
        b"FROM alpine AS base\n\n# comment\nFROM base AS build\n\n\n\n\n\nCOPY . .\nWORKDIR /src\nRUN make\n";
    let message = "process \"/bin/sh -c make\" did not complete successfully: exit code: 2";
    Report::new(Kind::Build, message)
        .step_log(
            "[build 2/4] RUN make",
            b"cc main.c\r\n\x1b[31mmain.c:1: error\x1b[0m\nmake: *** [all] Error 1".to_vec(),
        )
        .excerpt(file(source), lines(12, 12))
}

#[test]
fn a_failed_step_reads_as_docker_prints_it() {
    insta::assert_snapshot!(failed_step().render(Style::PLAIN));
}

#[test]
fn dockerfile_errors_in_docker_s_layout() {
    insta::assert_snapshot!(bad_dockerfile().render(Style::PLAIN));
}

#[test]
fn dockerfile_errors_with_carets_on_a_terminal() {
    insta::assert_snapshot!(bad_dockerfile().render(TERMINAL));
}

#[test]
fn github_gets_workflow_commands_too() {
    let text = bad_dockerfile().render(GITHUB) + &failed_step().render(GITHUB);
    let commands: Vec<&str> = text.lines().filter(|line| line.starts_with("::")).collect();
    insta::assert_snapshot!(commands.join("\n"));
}

#[test]
fn colours_repeat_what_words_say() {
    let text = failed_step().render(Style { color: true, ..TERMINAL });
    assert!(text.contains("\u{1b}[1;31mERROR\u{1b}[0m: failed to solve: process"));
}

#[test]
fn the_excerpt_spreads_its_context_as_buildkit_does() {
    let shown = |first, last, count| -> Vec<String> {
        let text =
            Report::new(Kind::Build, "x").excerpt(numbered(count), lines(first, last)).render(Style::PLAIN);
        let rows = text.lines().filter(|line| line.contains(" | "));
        rows.map(|line| line.split('|').map(|part| part[..4].trim().to_owned()).collect::<Vec<_>>().join(""))
            .collect()
    };
    assert_eq!(shown(5, 5, 9), ["3", "4", "5>>>", "6", "7"]);
    assert_eq!(shown(1, 1, 9), ["1>>>", "2", "3"]);
    assert_eq!(shown(9, 9, 9), ["7", "8", "9>>>"]);
    assert_eq!(shown(4, 6, 9), ["3", "4>>>", "5>>>", "6>>>", "7"]);
    assert_eq!(shown(1, 1, 1), ["1>>>"]);
    assert_eq!(shown(0, 0, 3), [""; 0]);
    assert_eq!(shown(7, 9, 3), [""; 0]);
    assert_eq!(shown(2, 1, 3), ["1", "2>>>", "3"]);
    let long = shown(1, 5000, 5000);
    assert!(long.len() < 60, "{}", long.len());
}

#[test]
fn exit_statuses_are_the_documented_ones() {
    let codes = [
        (Kind::Usage, 125),
        (Kind::Dockerfile, 1),
        (Kind::Build, 1),
        (Kind::Registry, 1),
        (Kind::Store, 1),
        (Kind::Host, 1),
        (Kind::Exhausted, 102),
        (Kind::Internal, 100),
        (Kind::Interrupted, 130),
    ];
    for (kind, code) in codes {
        assert_eq!(Report::new(kind, "x").exit_code(), code, "{kind:?}");
    }
}

#[test]
fn usage_errors_name_the_problem_and_the_help() {
    let report = |line: &[&str]| {
        let arguments = std::iter::once("rbuild").chain(line.iter().copied()).map(Into::into);
        Report::from(&crate::cli::parse(arguments, &Env::fixed([])).unwrap_err()).render(Style::PLAIN)
    };
    assert_eq!(report(&["--bogus", "."]), "unknown flag: --bogus\nSee 'rbuild build --help'.\n");
    assert_eq!(report(&["--policy", "x", "."]), "--policy is not supported yet\n");
    assert_eq!(
        report(&["-o", "type=oci,name=\"a\"", "."]),
        "invalid argument `type=oci,name=\"a\"` for --output: bare \" in non-quoted field; wrap the whole field in double quotes\nSee 'rbuild build --help'.\n"
    );
    assert_eq!(
        report(&["-t", "Up", "."]),
        "ERROR: invalid tag `Up`: invalid reference format: repository name (Up) must be lowercase\nhint: write it in lower case: up\n"
    );
}

#[test]
fn a_cause_that_shows_a_place_in_a_file_keeps_its_lines_and_nothing_else() {
    // The `toml` crate's.
    let error = "TOML parse error at line 2, column 5\n  |\n2 | b = \u{1b}[31m\rERROR\n  |     ^\nstring values must be quoted\n";
    let mut report = Report::new(Kind::Registry, "`/c/hosts.toml` is not a valid hosts.toml");
    report.causes.push(error.to_owned());
    report.causes.push("forged\nhint: run this\u{1b}]0;x\u{7}".to_owned());
    let text = report.render(Style::PLAIN);
    let start = "ERROR: `/c/hosts.toml` is not a valid hosts.toml: TOML parse error at line 2, column 5\n        |\n      2 | b = ";
    assert!(text.starts_with(start), "{text}");
    assert!(text.contains("\n        |     ^\n"), "the mark is below its place: {text}");
    assert!(!text.contains("\\x0a") && !text.contains(['\u{1b}', '\r', '\u{7}']), "{text:?}");
    assert!(text.lines().skip(1).all(|line| line.starts_with("      ")), "{text}");
}

#[derive(Debug, thiserror::Error)]
#[error("pull {image}")]
struct Pull {
    image: &'static str,
    source: Http,
}

#[derive(Debug, thiserror::Error)]
#[error("registry.example answered 503: {0}")]
struct Http(#[source] std::io::Error);

#[test]
fn causes_follow_the_message_and_are_not_said_twice() {
    let error = Pull { image: "a:1", source: Http(std::io::Error::other("try later")) };
    let report = Report::from_error(Kind::Registry, &error).hint("is the registry up?\nsee `rbuild doctor`");
    let expected = "ERROR: pull a:1: registry.example answered 503: try later\nhint: is the registry up?\n      see `rbuild doctor`\n";
    assert_eq!(report.render(Style::PLAIN), expected);
}

#[test]
fn hostile_text_is_drawn_safely_everywhere() {
    let source = b"FROM \x1b[2J\xff\nRUN \xe2\x80\xae x\n";
    let diagnostic = Diagnostic {
        rule: None,
        severity: Severity::Error,
        message: "bad \u{1b}[31m\nname".to_owned(),
        span: Span::new(6..900),
        lines: lines(1, u32::MAX),
        related: vec![(Span { start: 50, end: 3 }, "\u{7}".to_owned())],
        help: Some("\u{1b}]0;x\u{7}help".to_owned()),
    };
    for bytes in [&source[..], b"FROM \xc3\xa9\xc3\xa9\x1b[2J\n", b""] {
        let report = Report::dockerfile(file(bytes), vec![diagnostic.clone()])
            .step_log("\u{1b}c", b"\x1b[2Jx".to_vec());
        for style in [Style::PLAIN, TERMINAL, GITHUB, Style { width: 1, ..TERMINAL }] {
            let text = report.render(style);
            assert!(!text.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{text:?}");
        }
    }
}

#[test]
fn long_logs_show_their_last_hundred_lines() {
    let log: Vec<u8> = (0..250).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
    let text = Report::new(Kind::Build, "x").step_log("s", log).render(Style::PLAIN);
    let shown: Vec<&str> = text.lines().filter(|line| line.starts_with("line ")).collect();
    assert_eq!((shown.len(), shown[0], shown[99]), (100, "line 150", "line 249"));
}

#[test]
fn warnings_are_listed_at_the_end() {
    let Some((file, found)) = bad_dockerfile().diagnostics else { panic!("it has diagnostics") };
    assert_eq!(
        warnings(&found, &file, false, Style::PLAIN),
        "\n 1 warning found (use --debug to expand):\n - StageNameCasing: Stage name 'Build' should be lowercase (line 1)\n"
    );
    assert_eq!(warnings(&found[1..], &file, false, Style::PLAIN), "");
    insta::assert_snapshot!(warnings(&found, &file, true, TERMINAL));
}
