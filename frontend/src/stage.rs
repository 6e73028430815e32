//! Stages of a file: names, the target, which stage a name means, what depends on what.

use std::collections::{BTreeSet, HashMap};

use crate::ast::{Dockerfile, FromInstruction, Instruction, InstructionKind};
use crate::parse::mount::option;
use crate::span::Span;
use crate::suggest;

/// One FROM block.
#[derive(Debug, Clone, Copy)]
pub struct Stage<'a> {
    /// Position among the stages.
    pub index: usize,
    /// The FROM line.
    pub instruction: &'a Instruction,
    /// What it says.
    pub from: &'a FromInstruction,
    /// Instructions after the FROM line.
    pub body: &'a [Instruction],
}

impl Stage<'_> {
    /// The name as written, or `stage-N`.
    pub fn label(&self) -> String {
        match &self.from.name {
            Some(name) => name.value.clone(),
            None => format!("stage-{}", self.index),
        }
    }
}

/// Why a stage cannot be found or used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StageError {
    /// `--target` names nothing.
    #[error("target stage {name:?} could not be found{hint}")]
    UnknownTarget {
        /// What was asked for.
        name: String,
        /// ` (did you mean X?)` or empty.
        hint: String,
    },
    /// `--from=7` with fewer stages.
    #[error("invalid stage index {0}")]
    InvalidIndex(String),
    /// `--from` of a stage further down.
    #[error("cannot copy from stage {later:?}, it needs to be defined before current stage {current:?}")]
    Later {
        /// The stage that comes too late.
        later: String,
        /// The stage that wants it.
        current: String,
    },
    /// The same for `--mount=from=`.
    #[error(
        "cannot mount from stage {later:?} to {target:?}, stage needs to be defined before current command"
    )]
    LaterMount {
        /// The stage that comes too late.
        later: String,
        /// Where it would be mounted.
        target: String,
    },
    /// A stage that needs itself.
    #[error("circular dependency detected on stage: {0}")]
    Circular(String),
    /// There is no FROM at all.
    #[error("dockerfile contains no stages to build")]
    None,
}

/// The stages of a file.
#[derive(Debug)]
pub struct Stages<'a> {
    /// Instructions before the first FROM.
    pub global: &'a [Instruction],
    /// Stages in order.
    pub all: Vec<Stage<'a>>,
    /// Indexes by lower-case name, ascending.
    by_name: HashMap<String, Vec<usize>>,
}

impl<'a> Stages<'a> {
    /// Cuts the file into stages.
    pub fn of(ast: &'a Dockerfile) -> Self {
        let starts: Vec<(usize, &FromInstruction)> = ast
            .instructions
            .iter()
            .enumerate()
            .filter_map(|(at, instruction)| match &instruction.kind {
                InstructionKind::From(from) => Some((at, from)),
                _ => None,
            })
            .collect();
        let mut by_name: HashMap<String, Vec<usize>> = HashMap::new();
        let mut all = Vec::with_capacity(starts.len());
        for (index, (at, from)) in starts.iter().enumerate() {
            let end = starts.get(index + 1).map_or(ast.instructions.len(), |(at, _)| *at);
            let (instruction, body) = (&ast.instructions[*at], &ast.instructions[at + 1..end]);
            all.push(Stage { index, instruction, from, body });
            if let Some(name) = &from.name {
                by_name.entry(name.value.to_lowercase()).or_default().push(index);
            }
        }
        let global = &ast.instructions[..starts.first().map_or(ast.instructions.len(), |(at, _)| *at)];
        Self { global, all, by_name }
    }

    /// The stage to build: by name in any case, by index, else the last.
    pub fn target(&self, wanted: Option<&str>) -> Result<usize, StageError> {
        let last = self.all.len().checked_sub(1).ok_or(StageError::None)?;
        let Some(name) = wanted.filter(|name| !name.is_empty()) else { return Ok(last) };
        if let Some(index) = self.by_name.get(&name.to_lowercase()).and_then(|found| found.last()) {
            return Ok(*index);
        }
        match name.parse::<usize>() {
            Ok(index) if index <= last => Ok(index),
            _ => {
                let names: BTreeSet<&str> = self.by_name.keys().map(String::as_str).collect();
                let hint = suggest::hint(name, names);
                Err(StageError::UnknownTarget { name: name.to_owned(), hint })
            }
        }
    }

    /// The nearest stage of that name above stage `before`.
    pub fn earlier(&self, name: &str, before: usize) -> Option<usize> {
        let found = self.by_name.get(&name.to_lowercase())?;
        found.iter().rev().find(|index| **index < before).copied()
    }

    /// What `--from=name` in stage `current` means: a stage, or `None` for a named context or an image.
    pub fn copy_source(&self, name: &str, current: usize) -> Result<Option<usize>, StageError> {
        let index = match name.parse::<i64>() {
            Ok(number) => match usize::try_from(number) {
                Ok(index) if index < self.all.len() => index,
                _ => return Err(StageError::InvalidIndex(name.to_owned())),
            },
            Err(_) => {
                if let Some(index) = self.earlier(name, current) {
                    return Ok(Some(index));
                }
                match self.by_name.get(&name.to_lowercase()).and_then(|found| found.first()) {
                    Some(index) => *index,
                    None => return Ok(None),
                }
            }
        };
        if index < current {
            return Ok(Some(index));
        }
        let label = self.all[current].label();
        if index == current || self.depends_on(index, current) {
            return Err(StageError::Circular(label));
        }
        Err(StageError::Later { later: self.all[index].label(), current: label })
    }

    /// True when stage `from` needs stage `on`, directly or not.
    fn depends_on(&self, from: usize, on: usize) -> bool {
        let mut seen = BTreeSet::from([from]);
        let mut open = vec![from];
        while let Some(index) = open.pop() {
            if index == on {
                return true;
            }
            let stage = &self.all[index];
            let base = self.earlier(&stage.from.image.value, index);
            let copied = stage.body.iter().flat_map(sources_of).filter_map(|source| {
                let name = &source.name;
                let by_index = name.parse().ok().filter(|index| *index < self.all.len());
                by_index.or_else(|| self.earlier(name, index)).or_else(|| {
                    self.by_name.get(&name.to_lowercase()).and_then(|found| found.first()).copied()
                })
            });
            open.extend(base.into_iter().chain(copied).filter(|needed| seen.insert(*needed)));
        }
        false
    }

    /// All stage names, for suggestions.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.all.iter().filter_map(|stage| stage.from.name.as_ref().map(|name| name.value.as_str()))
    }
}

/// Something else than its own root that an instruction reads: a stage, a named context or an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SourceName {
    /// As written.
    pub(crate) name: String,
    /// Where.
    pub(crate) span: Span,
    /// Target of the mount, as written, when it is a mount's.
    pub(crate) mounted_at: Option<String>,
}

/// What `--from` and `--mount=from=` of an instruction name.
pub(crate) fn sources_of(instruction: &Instruction) -> Vec<SourceName> {
    match &instruction.kind {
        InstructionKind::Copy(copy) => copy
            .from
            .iter()
            .map(|from| SourceName { name: from.value.clone(), span: from.span, mounted_at: None })
            .collect(),
        InstructionKind::Run(run) => run
            .mounts
            .iter()
            .filter_map(|text| {
                let name = option(&text.value, &["from"]).filter(|name| !name.is_empty())?;
                let target = option(&text.value, &["target", "dst", "destination"]);
                Some(SourceName { name, span: text.span, mounted_at: Some(target.unwrap_or_default()) })
            })
            .collect(),
        _ => Vec::new(),
    }
}
