//! What can be said about a Dockerfile without building it: nothing here opens a store or asks a registry.

use rbuild_frontend::diagnostic::{Diagnostic, Severity};
use rbuild_frontend::graph::BuildGraph;
use rbuild_frontend::lower::{ImageRequest, LowerOptions, Lowering, Progress, ResolvedImage};
use rbuild_frontend::parse::Parsed;

use crate::error::BuildError;

/// A Dockerfile that was read and has no errors of syntax.
#[derive(Debug)]
pub struct Read {
    /// Its syntax tree, and what the parser found.
    pub parsed: Parsed,
    /// What to tell the frontend.
    pub options: LowerOptions,
}

/// What the rules say about all stages, by place, errors first. Base images count as unknown.
pub fn check(read: &Read) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
    let options = LowerOptions { all_stages: true, advice: true, ..read.options.clone() };
    let (_, found) = lower(&read.parsed, options, &|_| None);
    found.into_iter().partition(|diagnostic| diagnostic.severity == Severity::Error)
}

/// The graph of all stages. Base images that `known` does not have are in it by name only, without their triggers.
pub fn graph(
    read: &Read,
    known: &dyn Fn(&ImageRequest) -> Option<ResolvedImage>,
) -> Result<BuildGraph, BuildError> {
    let options = LowerOptions { all_stages: true, ..read.options.clone() };
    let (graph, found) = lower(&read.parsed, options, known);
    graph.ok_or(BuildError::Dockerfile(found))
}

fn lower(
    parsed: &Parsed,
    options: LowerOptions,
    known: &dyn Fn(&ImageRequest) -> Option<ResolvedImage>,
) -> (Option<BuildGraph>, Vec<Diagnostic>) {
    let mut lowering = Lowering::new(parsed, options);
    loop {
        match lowering.step() {
            Progress::Need(requests) => {
                for request in &requests {
                    match known(request) {
                        Some(image) => lowering.provide(request, image),
                        None => lowering.provide_opaque(request),
                    }
                }
            }
            // No answer depends on it.
            Progress::NeedEpoch(_) => lowering.provide_epoch(0),
            Progress::Done(graph) => return (Some(*graph), lowering.diagnostics().to_vec()),
            Progress::Failed => return (None, lowering.diagnostics().to_vec()),
        }
    }
}
