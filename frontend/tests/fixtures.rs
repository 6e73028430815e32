//! Runs every folder under `fixtures/parse` and `fixtures/plan`.
//!
//! A case is a folder with a `Dockerfile`; what comes out is compared with the snapshot beside it. A plan case may
//! have a file `options` with lines `target NAME`, `platform P`, `build-arg K=V`, `label K=V`,
//! `context NAME local|REFERENCE`, and `NAME.image.json` files: the configs of its base images (others get a plain
//! one). `cargo insta review` accepts new snapshots.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use rbuild_frontend::diagnostic::{Diagnostic, Severity};
use rbuild_frontend::lower::{LowerOptions, Lowering, NamedContext, Progress, ResolvedImage};
use rbuild_frontend::{Source, parse};
use rbuild_oci::{DiffId, Digest, ImageConfig, Platform};

fn cases(area: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(area);
    let mut cases: Vec<PathBuf> =
        std::fs::read_dir(&root).expect("fixtures").map(|entry| entry.expect("entry").path()).collect();
    cases.sort();
    assert!(!cases.is_empty(), "no cases in {}", root.display());
    cases
}

fn compare(case: &Path, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(case);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!("expected", text));
}

fn print_diagnostics(source: &Source, diagnostics: &[Diagnostic]) -> String {
    let mut out = String::new();
    for found in diagnostics {
        let kind = match (found.severity, found.rule) {
            (Severity::Error, _) => "error".to_owned(),
            (Severity::Warning, Some(rule)) => format!("warning {rule}"),
            (Severity::Warning, None) => "warning".to_owned(),
        };
        let marked = String::from_utf8_lossy(&source.bytes()[found.span.range()]).into_owned();
        let lines = format!("{}-{}", found.lines.first, found.lines.last);
        writeln!(out, "{kind} (lines {lines}): {}\n    at {marked:?}", found.message).expect("writes");
        for (span, text) in &found.related {
            let marked = String::from_utf8_lossy(&source.bytes()[span.range()]).into_owned();
            writeln!(out, "    {text}: {marked:?}").expect("writes");
        }
        if let Some(help) = &found.help {
            writeln!(out, "    help: {help}").expect("writes");
        }
    }
    out
}

#[test]
fn parse_fixtures() {
    for case in cases("parse") {
        let parsed = parse(&std::fs::read(case.join("Dockerfile")).expect("Dockerfile"));
        let mut text = print_diagnostics(&parsed.source, &parsed.diagnostics);
        write!(text, "{:#?}", parsed.ast).expect("writes");
        compare(&case, &text);
    }
}

fn options(case: &Path) -> LowerOptions {
    let mut options = LowerOptions::new(Platform::new("linux", "amd64", None));
    let text = std::fs::read_to_string(case.join("options")).unwrap_or_default();
    for line in text.lines() {
        let (key, value) = line.split_once(' ').expect("KEY VALUE");
        let pair = |separator| {
            let (name, value): (&str, &str) = value.split_once(separator).expect("NAME VALUE");
            (name.to_owned(), value.to_owned())
        };
        match key {
            "target" => options.target = Some(value.to_owned()),
            "platform" => options.target_platforms.push(value.parse().expect("platform")),
            "build-arg" => options.build_args.extend([pair('=')]),
            "label" => options.labels.push(pair('=')),
            "context" => {
                let (name, kind) = pair(' ');
                let context = if kind == "local" { NamedContext::Local } else { NamedContext::Image(kind) };
                options.named_contexts.insert(name, context);
            }
            other => panic!("unknown option {other}"),
        }
    }
    options
}

fn image(case: &Path, reference: &str, platform: &Platform) -> ResolvedImage {
    let identity = match platform.to_string().as_str() {
        "linux/amd64" => reference.to_owned(),
        other => format!("{reference} {other}"),
    };
    let file = case.join(format!("{}.image.json", reference.replace(['/', ':'], "_")));
    let config = match std::fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes).expect("image config"),
        Err(_) => {
            let mut config = ImageConfig::empty(platform.clone());
            config.config.env = vec!["PATH=/usr/bin:/bin".to_owned()];
            config.rootfs.diff_ids = vec![DiffId(Digest::of(reference.as_bytes()))];
            config
        }
    };
    ResolvedImage { reference: reference.to_owned(), manifest: Digest::of(identity.as_bytes()), config }
}

#[test]
fn plan_fixtures() {
    for case in cases("plan") {
        let parsed = parse(&std::fs::read(case.join("Dockerfile")).expect("Dockerfile"));
        let mut lowering = Lowering::new(&parsed, options(&case));
        let mut text = String::new();
        let plan = loop {
            match lowering.step() {
                Progress::Need(requests) => {
                    for request in requests {
                        writeln!(text, "needs {} for {}", request.reference, request.platform)
                            .expect("writes");
                        let image = image(&case, &request.reference, &request.platform);
                        lowering.provide(&request, image);
                    }
                }
                Progress::Done(graph) => break graph.dump(),
                Progress::NeedEpoch(of) => panic!("no case has the time of {of:?}"),
                Progress::Failed => break "failed\n".to_owned(),
            }
        };
        text.push_str(&print_diagnostics(&parsed.source, lowering.diagnostics()));
        for name in lowering.unused_build_args() {
            writeln!(text, "unused build-arg {name}").expect("writes");
        }
        text.push_str(&plan);
        compare(&case, &text);
    }
}
