//! What the language has and this version does not do. Found before any image is asked for.

use crate::ast::{Instruction, InstructionKind};
use crate::parse::Issue;
use crate::span::Span;

/// Errors for every such thing in an instruction, as far as its text shows it.
pub(super) fn in_instruction(instruction: &Instruction) -> Vec<Issue> {
    let mut found: Vec<(&str, Option<Span>)> = Vec::new();
    if let InstructionKind::Run(run) = &instruction.kind {
        found.push(("RUN --device", run.devices.first().map(|device| device.span)));
    }
    found
        .into_iter()
        .filter_map(|(what, span)| Some(Issue::new(format!("{what} is not supported yet"), span?)))
        .collect()
}
