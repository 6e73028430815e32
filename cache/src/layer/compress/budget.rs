//! What all encodes of the process may take together, whatever the number of cores, layers, or the format.
//!
//! An encode takes what is free of it and waits only where not even one thread's memory is; what it writes to never waits
//! for a network, so what it took comes back. Whoever holds a share must not wait for another one.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::{Compression, frame, gzip};

/// Memory of all encodes at once: what 64 MiB for a whole build leave them.
const MIB_MAX: usize = 24;
/// Threads of all encodes at once, those that only one thread works for not counted when there are no more. More than so
/// many outrun the thread that reads and hashes.
const THREADS_MAX: usize = 8;

static PROCESS: Budget = Budget::new();

/// Waits for a share of the process's budget.
pub(super) fn share(compression: Compression) -> Share<'static> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    PROCESS.share(compression, cores)
}

/// MiB that an encode takes with so many threads, measured and rounded up; rises with their number.
fn mib(compression: Compression, threads: usize) -> usize {
    match (compression, threads) {
        // Some blocks of 256 KiB.
        (Compression::None, _) => 0,
        // A block and what becomes of it are up to a MiB.
        (Compression::Gzip(_), 1) => 2,
        (Compression::Gzip(_), _) => gzip::unwritten_max(threads),
        (Compression::Zstd { level }, _) => frame::mib(level, threads),
    }
}

/// Threads that have something to do.
fn useful(compression: Compression) -> usize {
    // One hashes.
    if compression == Compression::None { 2 } else { THREADS_MAX }
}

struct Budget {
    free: Mutex<Free>,
    returned: Condvar,
}

struct Free {
    threads: usize,
    mib: usize,
}

/// Goes back to its budget when it is dropped.
pub(super) struct Share<'budget> {
    budget: &'budget Budget,
    /// At least 1.
    pub(super) threads: usize,
    taken: Free,
}

impl Budget {
    const fn new() -> Self {
        Self { free: Mutex::new(Free { threads: THREADS_MAX, mib: MIB_MAX }), returned: Condvar::new() }
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn share(&self, compression: Compression, threads_max: usize) -> Share<'_> {
        let mut free = self.free();
        loop {
            let most = free.threads.min(threads_max).min(useful(compression)).max(1);
            let fitting = (1..=most).rev().find(|threads| mib(compression, *threads) <= free.mib);
            if let Some(threads) = fitting {
                let taken = Free { threads: threads.min(free.threads), mib: mib(compression, threads) };
                free.threads -= taken.threads;
                free.mib -= taken.mib;
                return Share { budget: self, threads, taken };
            }
            free = self.returned.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut free = self.budget.free();
        free.threads += self.taken.threads;
        free.mib += self.taken.mib;
        drop(free);
        self.budget.returned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::{DEFAULT_GZIP, DEFAULT_ZSTD};
    use super::*;

    const LEVELS: std::ops::RangeInclusive<i32> = 1..=19;

    fn all() -> impl Iterator<Item = Compression> {
        let zstd = LEVELS.map(|level| Compression::Zstd { level });
        [Compression::None, DEFAULT_GZIP].into_iter().chain(zstd)
    }

    #[test]
    fn one_thread_of_everything_fits_and_more_take_more() {
        for compression in all() {
            assert!(mib(compression, 1) <= MIB_MAX, "{compression:?}");
            assert!((1..8).all(|threads| mib(compression, threads) <= mib(compression, threads + 1)));
        }
    }

    #[test]
    fn two_cores_are_given_to_two_layers_each_and_many_to_the_first() {
        let budget = Budget::new();
        let threads = |cores: usize, compression: Compression, count: usize| -> Vec<usize> {
            let shares: Vec<_> = (0..count).map(|_| budget.share(compression, cores)).collect();
            shares.iter().map(|share| share.threads).collect()
        };
        assert_eq!(threads(2, DEFAULT_GZIP, 3), [2, 2, 2]);
        assert_eq!(threads(2, DEFAULT_ZSTD, 2), [2, 2]);
        assert_eq!(threads(2, Compression::Zstd { level: 19 }, 1), [2]);
        assert_eq!(threads(64, DEFAULT_GZIP, 6), [8, 1, 1, 1, 1, 1]);
        assert_eq!(threads(64, DEFAULT_ZSTD, 1), [6]);
        assert_eq!(threads(1, DEFAULT_GZIP, 12), [1; 12]);
        let free = budget.free();
        assert_eq!((free.threads, free.mib), (THREADS_MAX, MIB_MAX));
    }

    #[test]
    fn whoever_finds_nothing_free_gets_on_later_and_never_is_more_taken_than_there_is() {
        let (budget, taken, most) = (Budget::new(), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for round in 0..3 {
                for compression in all() {
                    let (budget, taken, most) = (&budget, &taken, &most);
                    scope.spawn(move || {
                        let share = budget.share(compression, 1 + 7 * round);
                        let now = taken.fetch_add(share.taken.mib, Ordering::SeqCst) + share.taken.mib;
                        most.fetch_max(now, Ordering::SeqCst);
                        std::thread::yield_now();
                        taken.fetch_sub(share.taken.mib, Ordering::SeqCst);
                    });
                }
            }
        });
        assert!((15..=MIB_MAX).contains(&most.into_inner()));
        assert_eq!(budget.free().mib, MIB_MAX);
    }
}
