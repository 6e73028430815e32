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

/// Waits for a share of the process's budget, for an archive of about so many bytes.
pub(super) fn share(compression: Compression, bytes: u64, gives_way: bool) -> Share<'static> {
    PROCESS.share(compression, threads_max(compression, bytes), gives_way)
}

/// Waits for one as long as none is needed that somebody has who gives way.
pub(super) fn share_of_step(compression: Compression, bytes: u64) -> Option<Share<'static>> {
    PROCESS.share_of_step(compression, threads_max(compression, bytes))
}

/// Threads that have something to do, of those that there are.
fn threads_max(compression: Compression, bytes: u64) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.min(useful(compression, bytes))
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

/// Threads that so many bytes keep busy, one at least: what is compressed at once is a block, or a job.
fn useful(compression: Compression, bytes: u64) -> usize {
    let piece = match compression {
        // One hashes.
        Compression::None => return 2,
        Compression::Gzip(_) => gzip::BLOCK_BYTES as u64,
        Compression::Zstd { .. } => u64::from(frame::JOB_BYTES),
    };
    usize::try_from(bytes.div_ceil(piece)).unwrap_or(usize::MAX).clamp(1, THREADS_MAX)
}

struct Budget {
    free: Mutex<Free>,
    returned: Condvar,
}

struct Free {
    threads: usize,
    mib: usize,
    /// Of what is taken, what those have who give way to the steps of a build.
    giving_way_mib: usize,
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
        Self {
            free: Mutex::new(Free { threads: THREADS_MAX, mib: MIB_MAX, giving_way_mib: 0 }),
            returned: Condvar::new(),
        }
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn share(&self, compression: Compression, threads_max: usize, gives_way: bool) -> Share<'_> {
        let mut free = self.free();
        loop {
            if let Some(share) = self.take(&mut free, compression, threads_max, gives_way) {
                return share;
            }
            free = self.returned.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn share_of_step(&self, compression: Compression, threads_max: usize) -> Option<Share<'_>> {
        let mut free = self.free();
        loop {
            let share = self.take(&mut free, compression, threads_max, false);
            // Were all others done, this much would not be free.
            if share.is_some() || MIB_MAX - free.giving_way_mib < mib(compression, 1) {
                return share;
            }
            free = self.returned.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn take(
        &self,
        free: &mut Free,
        compression: Compression,
        threads_max: usize,
        gives_way: bool,
    ) -> Option<Share<'_>> {
        let most = free.threads.min(threads_max).max(1);
        let threads = (1..=most).rev().find(|threads| mib(compression, *threads) <= free.mib)?;
        let mib = mib(compression, threads);
        let giving_way_mib = if gives_way { mib } else { 0 };
        let taken = Free { threads: threads.min(free.threads), mib, giving_way_mib };
        free.threads -= taken.threads;
        free.mib -= taken.mib;
        free.giving_way_mib += taken.giving_way_mib;
        if gives_way {
            // Steps that wait may have no reason to any more.
            self.returned.notify_all();
        }
        Some(Share { budget: self, threads, taken })
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut free = self.budget.free();
        free.threads += self.taken.threads;
        free.mib += self.taken.mib;
        free.giving_way_mib -= self.taken.giving_way_mib;
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
            let shares: Vec<_> = (0..count).map(|_| budget.share(compression, cores, false)).collect();
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
    fn a_small_layer_leaves_threads_to_others() {
        assert_eq!([0, 1, 512 << 10].map(|bytes| useful(DEFAULT_GZIP, bytes)), [1; 3]);
        assert_eq!([(512 << 10) + 1, 3 << 20, u64::MAX].map(|bytes| useful(DEFAULT_GZIP, bytes)), [2, 6, 8]);
        let zstd = [0, 1 << 20, (1 << 20) + 1, u64::MAX].map(|bytes| useful(DEFAULT_ZSTD, bytes));
        assert_eq!(zstd, [1, 1, 2, 8]);
    }

    #[test]
    fn a_step_waits_for_other_steps_and_not_for_who_gives_way() {
        let budget = Budget::new();
        let large = Compression::Zstd { level: 19 };
        let of_step = |compression| {
            let share = budget.share_of_step(compression, 8);
            share.map(|share| share.threads)
        };
        let giving_way = budget.share(large, 2, true);
        assert_eq!((of_step(DEFAULT_ZSTD), of_step(Compression::None)), (None, Some(6)));
        drop(giving_way);
        assert_eq!((of_step(DEFAULT_ZSTD), of_step(DEFAULT_GZIP)), (Some(6), Some(8)));
        let (a_while, small) = (std::time::Duration::from_millis(100), DEFAULT_ZSTD);
        for comes_back in [true, false] {
            let (sender, got) = std::sync::mpsc::channel();
            std::thread::scope(|scope| {
                let step = budget.share(small, 1, false);
                let _giving_way = budget.share(small, 1, true);
                scope.spawn(move || sender.send(of_step(large)));
                assert!(got.recv_timeout(a_while).is_err(), "it waits for the other step");
                if comes_back {
                    drop(step);
                    assert_eq!(got.recv(), Ok(Some(1)));
                } else {
                    let _another = budget.share(small, 1, true);
                    assert_eq!(got.recv(), Ok(None));
                }
            });
        }
    }

    #[test]
    fn whoever_finds_nothing_free_gets_on_later_and_never_is_more_taken_than_there_is() {
        let (budget, taken, most) = (Budget::new(), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for round in 0..3 {
                for compression in all() {
                    let (budget, taken, most) = (&budget, &taken, &most);
                    scope.spawn(move || {
                        let share = budget.share(compression, 1 + 7 * round, round == 1);
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
