//! What is searched for packages besides the result.

use super::*;

const STAGES: &str = "FROM busybox AS a\nARG BUILDKIT_SBOM_SCAN_STAGE=true\nRUN a\n\
    FROM busybox AS b\nARG BUILDKIT_SBOM_SCAN_STAGE=x,B\nRUN b\n\
    FROM busybox AS c\nARG BUILDKIT_SBOM_SCAN_STAGE=a,b\nRUN c\n\
    FROM busybox AS unreached\nARG BUILDKIT_SBOM_SCAN_STAGE=true\nARG BUILDKIT_SBOM_SCAN_CONTEXT=true\n\
    FROM busybox\nARG BUILDKIT_SBOM_SCAN_STAGE=true\n\
    COPY --from=a / /a\nCOPY --from=b / /b\nCOPY --from=c / /c\n";

fn scans(text: &str, args: &[(&str, &str)]) -> Vec<(String, &'static str)> {
    let built = build_with(text, LowerOptions { lists_packages: true, ..build_args(args) });
    let graph = &built.graph;
    let scans = &graph.targets[0].scans;
    scans.iter().map(|scan| (scan.name.clone(), graph.dag[scan.node].op.kind())).collect()
}

#[test]
fn stages_say_whether_they_are_searched() {
    let run = |name: &str| (name.to_owned(), "run");
    assert_eq!(scans(STAGES, &[]), [run("a"), run("b")]);
    assert_eq!(scans(STAGES, &[("BUILDKIT_SBOM_SCAN_STAGE", "c")]), [run("c")]);
    assert_eq!(scans(STAGES, &[("BUILDKIT_SBOM_SCAN_STAGE", "false")]), []);
    // Only where an ARG says so.
    let silent = "FROM busybox AS a\nRUN a\nFROM busybox\nCOPY --from=a / /a\n";
    assert_eq!(scans(silent, &[("BUILDKIT_SBOM_SCAN_STAGE", "true")]), []);
    let global = format!("ARG BUILDKIT_SBOM_SCAN_STAGE=true\n{silent}");
    assert_eq!(scans(&global, &[]), [run("a")]);
}

#[test]
fn the_context_is_searched_once_whoever_asks() {
    let context = [("context".to_owned(), "context")];
    let text = "ARG BUILDKIT_SBOM_SCAN_CONTEXT=true\nFROM busybox AS a\nRUN a\nFROM a\nRUN b\n";
    assert_eq!(scans(text, &[]), context);
    let copied = "FROM busybox\nARG BUILDKIT_SBOM_SCAN_CONTEXT=1\nCOPY x /\n";
    assert_eq!(scans(copied, &[]), context);
}

#[test]
fn nothing_is_searched_unless_packages_are_listed() {
    let built = build_with("FROM busybox\nARG BUILDKIT_SBOM_SCAN_CONTEXT=1\nRUN x\n", options(|_| {}));
    assert!(built.graph.targets[0].scans.is_empty());
    assert!(built.graph.dag.node_weights().all(|node| !matches!(node.op, Op::Context(_))));
    // The arguments steer; no step sees them.
    assert_eq!(built.run_env("BUILDKIT_SBOM_SCAN_CONTEXT"), None);
}
