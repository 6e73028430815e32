//! Goes through a context's directories, on several threads where there is much to look at.
//!
//! All directories that the last scan went through are there to be looked at from the start, in no need of the
//! directories that hold them; what is found on the way joins them. Which of them still are part of the context is
//! settled at the end.

use std::cmp::Ordering;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rbuild_cache::path::compare;
use rbuild_cache::scratch::Scratch;
use rbuild_cache::sorter::Sorter;
use rbuild_cache::store::{IndexDamaged, KnownDir, Records, SeenDir};
use rbuild_frontend::dockerignore::Verdict;
use rustix::io::Errno;

use super::lister::{FoundDirs, Lister, Outcome, Task, join};
use super::{ScanError, io};
use crate::context::counted::Counted;

/// Below so many files and waiting directories helpers would cost more than they bring.
const PARALLEL_FILES_MIN: u64 = 500;
const PARALLEL_DIRS_MIN: usize = 16;
/// The kernel's directory locks make more useless.
const THREADS_MAX: usize = 4;

/// What a walk gives.
pub(super) struct Walked {
    /// In order, the root first.
    pub(super) dirs: Vec<SeenDir>,
    /// Devices.
    pub(super) skipped: Counted,
}

/// Looks at all directories; `None` when a symlink leads out of what is wanted.
pub(super) fn walk(lister: &Lister<'_>) -> Result<Option<Walked>, ScanError> {
    let queue = Queue::new(lister);
    let work = || {
        let (mut records, mut done) = (Records::new(lister.index), Done::default());
        while let Some(task) = queue.next() {
            queue.look(lister, task, &mut records, &mut done);
        }
        done
    };
    let done = std::thread::scope(|scope| {
        let mut helpers = Vec::new();
        let (mut records, mut done) = (Records::new(lister.index), Done::default());
        loop {
            if helpers.is_empty() && queue.is_worth_helpers(lister) {
                let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
                helpers.extend((1..threads).map(|_| scope.spawn(work)));
            }
            let Some(task) = queue.next() else { break };
            queue.look(lister, task, &mut records, &mut done);
        }
        for helper in helpers {
            done.append(helper.join().expect("looking does not panic"));
        }
        done
    });
    let state = queue.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    match state.ends {
        Some(Ended::LedOut) => Ok(None),
        Some(Ended::Damaged(damaged)) => Err(damaged.into()),
        Some(Ended::Failed(error)) => Err(error),
        None => held(lister, state.still, state.unopened, done).map(Some),
    }
}

type Compare = fn(&[u8], &[u8]) -> Ordering;

/// Directories of the last scan that could not be opened, by their places, and why. There may be many more of them than of
/// what is in the context.
struct Unopened(Sorter<Compare>);

impl Unopened {
    fn new(scratch: &Scratch) -> Self {
        Self(Sorter::new(scratch.clone(), |a, b| a.cmp(b)))
    }

    fn add(&mut self, known: &KnownDir, errno: Errno) -> std::io::Result<()> {
        self.0.push(&[&(known.place() as u64).to_be_bytes(), &errno.raw_os_error().to_be_bytes()])
    }

    /// The first one for which it is true.
    fn find(
        self,
        lister: &Lister<'_>,
        is_it: impl Fn(&[u8]) -> Result<bool, ScanError>,
    ) -> Result<Option<(Vec<u8>, Errno)>, ScanError> {
        let mut sorted = self.0.sorted().map_err(unkept)?;
        while let Some(record) = sorted.next().map_err(unkept)? {
            let Some((place, errno)) = record.split_first_chunk() else { continue };
            let known = lister.index.dir(u64::from_be_bytes(*place) as usize)?;
            if is_it(known.path())? {
                let errno = errno.first_chunk().map_or(0, |errno| i32::from_be_bytes(*errno));
                return Ok(Some((known.path().to_vec(), Errno::from_raw_os_error(errno))));
            }
        }
        Ok(None)
    }
}

fn unkept(error: std::io::Error) -> ScanError {
    io("note what is gone of", b".")(error)
}

/// Why a walk went no further.
enum Ended {
    /// A symlink leads out of what is wanted.
    LedOut,
    Damaged(IndexDamaged),
    Failed(ScanError),
}

/// What was looked at, in any order, with devices and failures by their directories.
#[derive(Default)]
struct Done {
    dirs: Vec<SeenDir>,
    skipped: Vec<(Vec<u8>, Counted)>,
    failed: Vec<(Vec<u8>, ScanError)>,
}

impl Done {
    fn append(&mut self, other: Self) {
        self.dirs.extend(other.dirs);
        self.skipped.extend(other.skipped);
        self.failed.extend(other.failed);
    }
}

/// Directories to look at.
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Those of the last scan that are left.
    known: std::ops::Range<usize>,
    /// Those that were found and are left, by the directories that hold them.
    found: Vec<(Vec<u8>, FoundDirs)>,
    found_count: usize,
    /// Places of those of the last scan that a directory still has which is not as it was.
    still: Vec<u32>,
    unopened: Unopened,
    /// Threads that may find more.
    busy: usize,
    ends: Option<Ended>,
}

impl State {
    fn wait_for(&mut self, holder: Vec<u8>, dirs: FoundDirs) {
        self.found_count += dirs.len();
        self.found.push((holder, dirs));
    }

    fn pop_found(&mut self) -> Option<Task> {
        let (holder, dirs) = self.found.last_mut()?;
        let task = dirs.pop().map(|(name, verdict)| Task::Found { path: join(holder, &name), verdict });
        if dirs.len() == 0 {
            self.found.pop();
        }
        self.found_count -= usize::from(task.is_some());
        task
    }
}

impl Queue {
    fn new(lister: &Lister<'_>) -> Self {
        let known = if lister.is_current { 0..lister.index.len() } else { 0..0 };
        let has_root = !known.is_empty();
        let unopened = Unopened::new(lister.scratch);
        let (found, still) = (Vec::new(), Vec::new());
        let mut state = State { known, found, found_count: 0, still, unopened, busy: 0, ends: None };
        if !has_root {
            let mut root = FoundDirs::default();
            root.push(b"", Verdict::default());
            state.wait_for(Vec::new(), root);
        }
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_worth_helpers(&self, lister: &Lister<'_>) -> bool {
        let state = self.lock();
        let is_long = !state.known.is_empty() && lister.index.files() >= PARALLEL_FILES_MIN;
        is_long || state.found_count >= PARALLEL_DIRS_MIN
    }

    /// The next one; `None` when none is left, and none will come.
    fn next(&self) -> Option<Task> {
        let mut state = self.lock();
        loop {
            let task = state.pop_found().or_else(|| state.known.next().map(Task::Known));
            if state.ends.is_some() {
                return None;
            }
            if task.is_some() {
                state.busy += 1;
                return task;
            }
            if state.busy == 0 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn look(&self, lister: &Lister<'_>, task: Task, records: &mut Records<'_>, done: &mut Done) {
        let (mut dirs, mut still, mut unopened, mut ends) = (FoundDirs::default(), Vec::new(), None, None);
        let mut holder = Vec::new();
        match lister.look(&task, records) {
            Ok(Outcome::Looked(looked)) => {
                (dirs, still) = (looked.dirs, looked.still);
                ends = looked.leads_out.then_some(Ended::LedOut);
                if looked.skipped != Counted::default() {
                    done.skipped.push((looked.dir.path().to_vec(), looked.skipped));
                }
                if dirs.len() > 0 {
                    holder = looked.dir.path().to_vec();
                }
                done.dirs.push(looked.dir);
            }
            Ok(Outcome::Unopened { known, after, errno }) => unopened = Some((known, after, errno)),
            Err(ScanError::Index(damaged)) => ends = Some(Ended::Damaged(damaged)),
            Err(error) => {
                let path = match task {
                    Task::Known(at) => lister.index.dir(at).map(|known| known.path().to_vec()),
                    Task::Found { path, .. } => Ok(path),
                };
                match path {
                    Ok(path) => done.failed.push((path, error)),
                    Err(damaged) => ends = Some(Ended::Damaged(damaged)),
                }
            }
        }
        let mut state = self.lock();
        state.busy -= 1;
        if let Some((known, after, errno)) = unopened {
            // What is below it is not part of the context either, whatever comes of looking there.
            state.known.start = state.known.start.max(after.min(state.known.end));
            ends = state.unopened.add(&known, errno).err().map(|error| Ended::Failed(unkept(error)));
        }
        let is_news = dirs.len() > 0 || ends.is_some() || state.busy == 0;
        if dirs.len() > 0 {
            state.wait_for(holder, dirs);
        }
        // An index numbers its directories with as many bits.
        state.still.extend(still.into_iter().map(|place| place as u32));
        state.ends = state.ends.take().or(ends);
        drop(state);
        if is_news {
            self.changed.notify_all();
        }
    }
}

/// Those directories that the directory which holds them still has. Why one of those cannot be looked at is an error;
/// of the others it is none: they are gone, or something else is in their place.
fn held(
    lister: &Lister<'_>,
    mut still: Vec<u32>,
    unopened: Unopened,
    done: Done,
) -> Result<Walked, ScanError> {
    let Done { mut dirs, skipped: mut skipped_in, mut failed } = done;
    dirs.sort_unstable_by(|a, b| compare(a.path(), b.path()));
    skipped_in.sort_unstable_by(|(a, _), (b, _)| compare(a, b));
    failed.sort_unstable_by(|(a, _), (b, _)| compare(a, b));
    still.sort_unstable();
    // What no index knows was found where it is.
    let is_still = |known: KnownDir| still.binary_search(&(known.place() as u32)).is_ok();
    let has = |holder: &SeenDir, path: &[u8]| -> Result<bool, ScanError> {
        Ok(holder.place_kept().is_some() || lister.known(path)?.is_none_or(is_still))
    };
    let mut is_held = Vec::with_capacity(dirs.len());
    // From the root to the last one that is held.
    let mut above: Vec<usize> = Vec::new();
    for (at, dir) in dirs.iter().enumerate() {
        let (path, holder) = (dir.path(), holder_of(dir.path()));
        while above.last().is_some_and(|at| !path.is_empty() && !is_in(holder, dirs[*at].path())) {
            above.pop();
        }
        is_held.push(match above.last().map(|at| &dirs[*at]) {
            None => path.is_empty(),
            Some(around) => around.path() == holder && has(around, path)?,
        });
        if is_held[at] {
            above.push(at);
        }
    }
    let mut is_held = is_held.into_iter();
    dirs.retain(|_| is_held.next().unwrap_or(false));
    let find = |path: &[u8]| {
        let found = dirs.binary_search_by(|dir| compare(dir.path(), path)).ok();
        found.map(|at| &dirs[at])
    };
    let is_missed = |path: &[u8]| match find(holder_of(path)) {
        Some(holder) if !path.is_empty() => has(holder, path),
        _ => Ok(path.is_empty()),
    };
    let unopened = unopened.find(lister, is_missed)?;
    let mut first = unopened.map(|(path, errno)| (io("open", &path)(errno), path));
    for (path, error) in failed {
        if first.as_ref().is_some_and(|(_, first)| compare(first, &path).is_lt()) {
            break;
        }
        if is_missed(&path)? {
            first = Some((error, path));
            break;
        }
    }
    if let Some((error, _)) = first {
        return Err(error);
    }
    let mut skipped = Counted::default();
    for (path, counted) in skipped_in {
        if find(&path).is_some() {
            skipped.append(counted);
        }
    }
    Ok(Walked { dirs, skipped })
}

fn holder_of(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(&[], |at| &path[..at])
}

fn is_in(path: &[u8], dir: &[u8]) -> bool {
    dir.is_empty() || path == dir || path.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/'))
}
