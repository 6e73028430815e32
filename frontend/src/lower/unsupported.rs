//! What the language has and this version does not do. Found before any image is asked for.

use crate::ast::{Instruction, InstructionKind};
use crate::parse::Issue;
use crate::span::Span;

/// Errors for every such thing in an instruction, as far as its text shows it; sources that are URLs show only after
/// expansion.
pub(super) fn in_instruction(instruction: &Instruction) -> Vec<Issue> {
    let mut found: Vec<(&str, Option<Span>)> = Vec::new();
    match &instruction.kind {
        InstructionKind::Run(run) => {
            found.push(("RUN --device", run.devices.first().map(|device| device.span)));
        }
        InstructionKind::Add(add) => {
            found.push(("ADD --checksum", add.checksum.as_ref().map(|flag| flag.span)));
            found.push(("ADD --keep-git-dir", add.keep_git_dir.as_ref().map(|flag| flag.span)));
        }
        _ => {}
    }
    found
        .into_iter()
        .filter_map(|(what, span)| Some(Issue::new(format!("{what} is not supported yet"), span?)))
        .collect()
}
