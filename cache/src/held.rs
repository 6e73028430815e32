//! What all that goes to files when it is much may hold in memory together.
//!
//! ```text
//! holder: LEAST_BYTES without asking, more as long as the budget has it, up to a limit of its own
//! ```
//!
//! Several steps at once have as many sorters and plans. Each takes what is free and, where nothing is, goes to its file sooner:
//! nobody waits, so nobody waits for one another.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Held without asking: less would make too many runs of what a file takes.
pub(crate) const LEAST_BYTES: usize = if cfg!(test) { 1 << 10 } else { 512 << 10 };

/// Held by all together, beyond that of each: a share of what 64 MiB for a whole build leave.
const BUDGET_BYTES: usize = if cfg!(test) { 256 << 10 } else { 16 << 20 };

/// Taken at once.
const STEP_BYTES: usize = LEAST_BYTES / 4;

static PROCESS: Budget = Budget::new(BUDGET_BYTES);

pub(crate) struct Budget {
    free: AtomicUsize,
}

impl Budget {
    pub(crate) const fn new(bytes: usize) -> Self {
        Self { free: AtomicUsize::new(bytes) }
    }

    fn take(&self, bytes: usize) -> bool {
        let less = |free: usize| free.checked_sub(bytes);
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

/// What one of them may hold. Goes back when it is dropped.
pub(crate) struct Held {
    budget: &'static Budget,
    bytes_max: usize,
    taken: usize,
}

impl Held {
    /// Of the process's budget; no more than `bytes_max`.
    pub(crate) const fn new(bytes_max: usize) -> Self {
        Self::of(&PROCESS, bytes_max)
    }

    pub(crate) const fn of(budget: &'static Budget, bytes_max: usize) -> Self {
        Self { budget, bytes_max, taken: 0 }
    }

    /// True when so many bytes may be held from now on, in all; false leaves it as it was.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        if bytes > self.bytes_max {
            return false;
        }
        let more = bytes.saturating_sub(LEAST_BYTES + self.taken).next_multiple_of(STEP_BYTES);
        let is_free = more == 0 || self.budget.take(more);
        self.taken += if is_free { more } else { 0 };
        is_free
    }

    /// How many may be held at least, when up to `bytes` are wanted.
    pub(crate) fn grow_towards(&mut self, bytes: usize) -> usize {
        let mut wanted = bytes.min(self.bytes_max);
        while !self.grow(wanted) {
            wanted = (wanted / 2).max(LEAST_BYTES.min(self.bytes_max));
        }
        wanted
    }

    /// Nothing is held any more.
    pub(crate) fn give_back(&mut self) {
        self.budget.free.fetch_add(std::mem::take(&mut self.taken), Ordering::Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_more_is_taken_than_there_is_and_all_comes_back(
            asked in prop::collection::vec((0..4_usize, 0..40 * LEAST_BYTES, any::<bool>()), 0..200),
        ) {
            let all = 50 * LEAST_BYTES;
            let budget: &'static Budget = Box::leak(Box::new(Budget::new(all)));
            let mut holders: Vec<Held> = (0..4).map(|_| Held::of(budget, 30 * LEAST_BYTES)).collect();
            let mut granted = [0_usize; 4];
            for (at, bytes, is_given_back) in asked {
                let free = budget.free.load(Ordering::Relaxed);
                if is_given_back {
                    holders[at].give_back();
                    granted[at] = 0;
                } else if holders[at].grow(bytes) {
                    prop_assert!(bytes <= 30 * LEAST_BYTES);
                    granted[at] = granted[at].max(bytes);
                } else {
                    let more = bytes.saturating_sub(LEAST_BYTES + holders[at].taken);
                    prop_assert!(bytes > 30 * LEAST_BYTES || more > free - free % STEP_BYTES);
                    prop_assert_eq!(budget.free.load(Ordering::Relaxed), free);
                }
                let needed: usize = granted.iter().map(|bytes| bytes.saturating_sub(LEAST_BYTES)).sum();
                let taken: usize = holders.iter().map(|held| held.taken).sum();
                prop_assert!(needed <= taken && taken <= all);
                prop_assert_eq!(budget.free.load(Ordering::Relaxed), all - taken);
            }
            drop(holders);
            prop_assert_eq!(budget.free.load(Ordering::Relaxed), all);
        }
    }

    #[test]
    fn who_finds_nothing_free_holds_the_least() {
        static BUDGET: Budget = Budget::new(4 * LEAST_BYTES);
        let mut first = Held::of(&BUDGET, 8 * LEAST_BYTES);
        assert_eq!(first.grow_towards(100 * LEAST_BYTES), 4 * LEAST_BYTES);
        assert!(first.grow(5 * LEAST_BYTES) && !first.grow(5 * LEAST_BYTES + 1));
        let mut second = Held::of(&BUDGET, 8 * LEAST_BYTES);
        assert_eq!(second.grow_towards(8 * LEAST_BYTES), LEAST_BYTES);
        assert!(!second.grow(LEAST_BYTES + 1));
        drop(first);
        assert!(second.grow(3 * LEAST_BYTES));
    }
}
