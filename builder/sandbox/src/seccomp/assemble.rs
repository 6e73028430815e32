//! Puts a filter's program together, from its end to its start.
//!
//! Jumps of classic BPF only lead forward, so what a jump leads to is there before the jump is. An answer is returned
//! from one place for all that come to it: the program is half as long as with one for each, and it is checked, compiled
//! and tried with every number anew for each step.

use super::{Insn, JMP_ALWAYS, RET, jump, stmt};

/// How far a conditional jump reaches; the unconditional one reaches any distance.
const REACH: usize = u8::MAX as usize;

/// An instruction that is there: how many were when it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(usize);

/// The program so far, its last instruction first.
#[derive(Default)]
pub(super) struct Program {
    reversed: Vec<Insn>,
    /// The newest return of each value.
    returns: Vec<(u32, Place)>,
}

impl Program {
    /// Puts an instruction before all others.
    pub(super) fn put(&mut self, insn: Insn) -> Place {
        self.reversed.push(insn);
        Place(self.reversed.len() - 1)
    }

    /// A place that returns `value`, in reach of conditional jumps for a while.
    pub(super) fn returning(&mut self, value: u32) -> Place {
        let known = self.returns.iter().position(|(of, _)| *of == value);
        match known {
            Some(at) if self.distance(self.returns[at].1) <= REACH / 2 => self.returns[at].1,
            Some(at) => {
                let place = self.put(stmt(RET, value));
                self.returns[at].1 = place;
                place
            }
            None => {
                let place = self.put(stmt(RET, value));
                self.returns.push((value, place));
                place
            }
        }
    }

    /// A conditional jump.
    pub(super) fn branch(&mut self, code: u16, k: u32, taken: Place, otherwise: Place) -> Place {
        // A step on the way to the one may put the other out of reach.
        let mut ways = [taken, otherwise];
        while let Some(far) = ways.iter_mut().find(|way| self.distance(**way) > REACH) {
            *far = self.go_to(*far);
        }
        let [taken, otherwise] = ways.map(|way| u8::try_from(self.distance(way)).unwrap_or(u8::MAX));
        self.put(jump(code, k, taken, otherwise))
    }

    /// Makes sure that what comes next goes on at `place`.
    pub(super) fn follow(&mut self, place: Place) -> Place {
        if self.distance(place) == 0 { place } else { self.go_to(place) }
    }

    fn go_to(&mut self, place: Place) -> Place {
        self.put(stmt(JMP_ALWAYS, u32::try_from(self.distance(place)).unwrap_or(u32::MAX)))
    }

    /// How many instructions are between the next one and this.
    fn distance(&self, place: Place) -> usize {
        self.reversed.len() - 1 - place.0
    }

    pub(super) fn finish(mut self) -> Vec<Insn> {
        self.reversed.reverse();
        self.reversed
    }
}
