//! A shell where a step failed: its mounts, environment, user and working directory, and what it had written so far.
//!
//! A build that was asked to (`--on-error=shell`, `rbuild debug`) keeps the first failed step in a [`Slot`] until the report
//! is printed, and then enters it. Nothing that is done there comes into a layer: the step stays failed. `rbuild debug
//! --step` keeps the step that is [chosen](choose) in its place, mounted and not run.

pub mod choose;
pub mod last;
mod terminal;

use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_cache::store::LayerDraft;
use rbuild_sandbox::{StepError, StepSpec};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use crate::mounts::Prepared;
use crate::ops::ExecEnv;
use crate::ops::cgroup::StepGroups;
use crate::progress::lines::clean_text as escape;

/// Where a foreign shell is shown in a step whose image has none: in the step's own `/dev`, so nothing of it stays.
const GUEST_SHELL: &str = "/dev/busybox";
/// No busybox is nearly as large.
const GUEST_SHELL_SIZE_BYTES_MAX: u64 = 16 << 20;

/// What a held step is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// It has failed.
    Failed,
    /// It was about to run.
    Before,
}

/// A step, still mounted.
pub struct HeldStep {
    /// Whether it has run.
    pub moment: Moment,
    /// `[build 2/4] RUN make`.
    pub name: String,
    /// The step as it was run.
    pub spec: StepSpec,
    /// Its merged root.
    pub merged: OwnedFd,
    /// The directory its changes are in. Dropped after the mount.
    pub draft: LayerDraft,
    /// Its secrets, agents and caches, which its mounts need; dropped after them.
    pub prepared: Prepared,
    /// Its control groups, which the shell joins too.
    pub groups: StepGroups,
    /// The build, whose lease keeps the layers.
    pub env: Arc<ExecEnv>,
}

/// Where a build leaves its first failed step.
#[derive(Clone, Default)]
pub struct Slot(Arc<Mutex<Option<HeldStep>>>);

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Slot")
    }
}

impl Slot {
    /// Keeps the step, unless there is one already.
    pub fn keep(&self, step: HeldStep) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(step);
    }

    /// Takes the step out.
    pub fn take(&self) -> Option<HeldStep> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Opens a shell in the step and waits for its end. On a terminal it is a terminal session; otherwise it reads commands from
/// standard input. What cannot be done is said on standard error; the build has its exit status already.
pub fn enter(step: HeldStep) {
    let user = if step.spec.user.is_empty() { "root" } else { step.spec.user.as_str() };
    let place = match step.moment {
        Moment::Failed => "in the failed step",
        Moment::Before => "before the step",
    };
    say(&format!(
        "shell {place} {} (user {}, {}); what it changes is dropped, `exit` leaves",
        escape(&step.name),
        escape(user),
        escape(&step.spec.cwd)
    ));
    let spec = if has_shell(step.merged.as_fd()) {
        with_shell(&step.spec, vec!["/bin/sh".to_owned()], None)
    } else if let Some((path, program)) = guest_shell() {
        say(&format!(
            "the image has no /bin/sh: {} is brought, read-only (`{GUEST_SHELL} ls` lists)",
            path.display()
        ));
        with_shell(&step.spec, vec![GUEST_SHELL.to_owned(), "sh".to_owned()], Some(program))
    } else {
        say(
            "the image has no /bin/sh, and this machine no static busybox to bring: install `busybox-static`",
        );
        return;
    };
    let result = terminal::run(&spec, step.merged.as_fd());
    if let Err(error) = result {
        say(&format!("no shell: {}", crate::error::one_line(&error)));
    }
}

/// Why there was no shell.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("open a terminal")]
    Terminal(#[source] io::Error),
    #[error(transparent)]
    Step(#[from] StepError),
}

/// Tells the user something on standard error.
pub fn say(text: &str) {
    // Nobody may be listening; there is nobody to tell that to either.
    let _closed = writeln!(io::stderr().lock(), "rbuild: {text}");
}

fn with_shell(spec: &StepSpec, argv: Vec<String>, program: Option<Vec<u8>>) -> StepSpec {
    let mut spec = StepSpec { argv, ..spec.clone() };
    if let Some(program) = program {
        spec.script = Some((GUEST_SHELL.to_owned(), program));
    }
    if let Ok(term) = std::env::var("TERM")
        && !spec.env.iter().any(|(name, _)| name == "TERM")
    {
        spec.env.push(("TERM".to_owned(), term));
    }
    spec
}

/// Asked before anything is started: what a failed attempt had read of the input would be lost.
fn has_shell(root: BorrowedFd<'_>) -> bool {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = rustix::fs::openat2(root, "bin/sh", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
    found.and_then(rustix::fs::fstat).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_mode & 0o111 != 0
    })
}

/// A static busybox of this machine.
fn guest_shell() -> Option<(PathBuf, Vec<u8>)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/bin", "/usr/bin"].map(PathBuf::from));
    dirs.map(|dir| dir.join("busybox")).find_map(|path| {
        let is_fit =
            path.metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= GUEST_SHELL_SIZE_BYTES_MAX);
        let program = is_fit.then(|| std::fs::read(&path).ok())??;
        is_static_elf(&program).then_some((path, program))
    })
}

/// Whether a 64-bit little-endian ELF program needs no interpreter (elf(5): no program header of type PT_INTERP).
fn is_static_elf(program: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, size: usize| -> Option<u64> {
        let bytes = program.get(at..at.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let has_interpreter = || {
        let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        let mut found = false;
        for n in 0..count {
            let at = usize::try_from(table.checked_add(n * size)?).ok()?;
            found |= number(at, 4)? == u64::from(PT_INTERP);
        }
        Some(found)
    };
    program.starts_with(b"\x7fELF\x02\x01") && has_interpreter() == Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_static_program_is_brought() {
        let mut program = vec![0; 64 + 56];
        program[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (program[32], program[54], program[56]) = (64, 56, 1);
        program[64] = 1;
        assert!(is_static_elf(&program));
        program[64] = 3;
        assert!(!is_static_elf(&program), "has an interpreter");
        program[64] = 1;
        program[57] = 0xff;
        assert!(!is_static_elf(&program), "the table leaves the file");
        assert!(!is_static_elf(b"#!/bin/sh\n"));
    }
}
