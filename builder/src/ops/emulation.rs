//! Steps for another processor: recognised by their program, emulated where the kernel does not do it by itself.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_frontend::graph::RunOp;
use rbuild_oci::Platform;
use rbuild_sandbox::StepSpec;
use rbuild_sandbox::emulation::{self, EmulationError, Emulator, Machine};

use crate::progress::Events;

type Started = Result<Arc<Emulator>, Arc<EmulationError>>;

/// Emulators of the steps of one build, each made when the first step wants it. What a step writes is the same with and
/// without, so no key knows of them.
#[derive(Debug, Default)]
pub struct Emulators(Mutex<BTreeMap<&'static str, Started>>);

/// How the programs of a step run here.
#[derive(Debug, Default)]
pub struct Emulation {
    /// The processor they are for, when it is another one: `arm64`.
    pub foreign: Option<&'static str>,
    /// Who runs them, when the kernel does not know anybody.
    pub emulator: Option<Arc<Emulator>>,
    /// Why nobody could be found; the step fails if the kernel does not know anybody either.
    pub obstacle: Option<Arc<EmulationError>>,
}

impl Emulation {
    /// The processor of a step's programs; `root` is what the step will see.
    pub fn recognise(root: BorrowedFd<'_>, spec: &StepSpec, op: &RunOp) -> Self {
        let by_platform = || Machine::of_architecture(&op.platform.architecture);
        let foreign = machine(root, spec).or_else(by_platform).filter(|machine| !machine.is_native());
        Self { foreign: foreign.map(|machine| machine.architecture), ..Self::default() }
    }

    /// The platform of a step's programs, in words.
    pub fn platform(&self, op: &RunOp) -> String {
        self.foreign.map_or_else(|| op.platform.to_string(), |name| format!("{}/{name}", Platform::host().os))
    }
}

/// A script of ours is only mounted when the step runs: then its interpreter tells.
fn machine(root: BorrowedFd<'_>, spec: &StepSpec) -> Option<&'static Machine> {
    let Some((_, text)) = &spec.script else { return Machine::of_program(root, &spec.argv, &spec.env) };
    let line = text.split(|byte| *byte == b'\n').next()?;
    let interpreter = str::from_utf8(line.strip_prefix(b"#!")?).ok()?.split_whitespace().next()?;
    Machine::of_program(root, &[interpreter.to_owned()], &spec.env)
}

impl Emulators {
    /// As [`Emulation::recognise`], with an emulator if the step needs one. The first step of a processor waits for it
    /// some milliseconds, and everybody who watches is told.
    pub fn of(&self, root: BorrowedFd<'_>, spec: &StepSpec, op: &RunOp, events: &Events) -> Emulation {
        let emulation = Emulation::recognise(root, spec, op);
        let machine = emulation.foreign.and_then(Machine::of_architecture);
        let Some(machine) = machine.filter(|machine| !emulation::is_registered(machine)) else {
            return emulation;
        };
        let mut started = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let started = started.entry(machine.architecture).or_insert_with(|| {
            let emulator = Emulator::start(machine)?;
            events.remark(format!("programs for {} are emulated by QEMU", machine.architecture));
            Ok(Arc::new(emulator))
        });
        match started {
            Ok(emulator) => Emulation { emulator: Some(Arc::clone(emulator)), ..emulation },
            Err(obstacle) => Emulation { obstacle: Some(Arc::clone(obstacle)), ..emulation },
        }
    }
}
