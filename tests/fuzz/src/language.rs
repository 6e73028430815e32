//! Dockerfiles and ignore files.

use rbuild_frontend::dockerignore::Ignore;
use rbuild_frontend::lower::{LowerOptions, Lowering, Progress, ResolvedImage};
use rbuild_frontend::parse;
use rbuild_frontend::span::Span;
use rbuild_oci::{Digest, ImageConfig, Platform};

/// Spans lie in the file, and lines that are marked exist.
pub(crate) fn dockerfile(bytes: &[u8]) {
    let parsed = parse(bytes);
    let is_inside = |span: Span| span.start <= span.end && span.end <= bytes.len();
    for instruction in &parsed.ast.instructions {
        assert!(is_inside(instruction.span) && is_inside(instruction.keyword.span), "{instruction:?}");
    }
    let mut options = LowerOptions::new(Platform::new("linux", "amd64", None));
    options.all_stages = true;
    options.advice = true;
    let mut lowering = Lowering::new(&parsed, options);
    // An image may bring triggers, and they more images: three rounds are enough to come to the end.
    for _ in 0..3 {
        let Progress::Need(requests) = lowering.step() else { break };
        for request in requests {
            let mut config = ImageConfig::empty(request.platform.clone());
            config.config.on_build = vec![request.reference.clone()];
            let manifest = Digest::of(request.reference.as_bytes());
            lowering
                .provide(&request, ResolvedImage { reference: request.reference.clone(), manifest, config });
        }
    }
    for found in lowering.diagnostics() {
        let related = found.related.iter().map(|(span, _)| *span);
        assert!(related.chain([found.span]).all(is_inside), "{found:?}");
        assert!(found.lines.first <= found.lines.last, "{found:?}");
        assert!(found.lines.last <= parsed.source.line_count().max(1), "{found:?}");
    }
}

/// What is below a directory that is skipped is excluded.
pub(crate) fn dockerignore(bytes: &[u8]) {
    // The last line is the path that is asked for.
    let at = bytes.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
    let (rules, path) = bytes.split_at(at);
    let (Ok(ignore), Ok(path)) = (Ignore::parse(rules), std::str::from_utf8(path)) else { return };
    let path = path.trim_start_matches(['\n', '/']);
    let is_excluded = ignore.matches(path);
    for (at, _) in path.match_indices('/') {
        if !path[..at].is_empty() && ignore.may_skip_dir(&path[..at]) {
            assert!(is_excluded, "{path:?} below a skipped directory is kept");
        }
    }
}
