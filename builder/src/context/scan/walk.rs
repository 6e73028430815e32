//! Goes through a context's directories, on several threads where there is much to look at.
//!
//! All directories that the last scan went through are there to be looked at from the start, in no need of the
//! directories that hold them; what is found on the way joins them. Which of them still are part of the context is
//! settled at the end.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rbuild_cache::path::compare;
use rbuild_cache::store::SeenDir;
use rbuild_frontend::dockerignore::Verdict;

use super::ScanError;
use super::lister::{FoundDirs, Lister, Task, join};
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
        let (mut buffer, mut done) = (Vec::new(), Done::default());
        while let Some(task) = queue.next() {
            queue.look(lister, task, &mut buffer, &mut done);
        }
        done
    };
    let done = std::thread::scope(|scope| {
        let mut helpers = Vec::new();
        let (mut buffer, mut done) = (Vec::new(), Done::default());
        loop {
            if helpers.is_empty() && queue.is_worth_helpers(lister) {
                let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
                helpers.extend((1..threads).map(|_| scope.spawn(work)));
            }
            let Some(task) = queue.next() else { break };
            queue.look(lister, task, &mut buffer, &mut done);
        }
        for helper in helpers {
            done.append(helper.join().expect("looking does not panic"));
        }
        done
    });
    let State { leads_out, still, .. } = queue.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    if leads_out { Ok(None) } else { held(lister, &still, done).map(Some) }
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
    /// Which of those of the last scan a directory still has that is not as it was.
    still: Vec<bool>,
    /// Threads that may find more.
    busy: usize,
    leads_out: bool,
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
        let still = vec![false; known.len()];
        let has_root = !known.is_empty();
        let mut state = State { known, found: Vec::new(), found_count: 0, still, busy: 0, leads_out: false };
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
            if state.leads_out {
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

    fn look(&self, lister: &Lister<'_>, task: Task, buffer: &mut Vec<u8>, done: &mut Done) {
        let (mut dirs, mut still, mut leads_out) = (FoundDirs::default(), Vec::new(), false);
        let holder = match lister.look(&task, buffer) {
            Ok(looked) => {
                (dirs, still, leads_out) = (looked.dirs, looked.still, looked.leads_out);
                if looked.skipped != Counted::default() {
                    done.skipped.push((looked.dir.path().to_vec(), looked.skipped));
                }
                let holder = if dirs.len() == 0 { Vec::new() } else { looked.dir.path().to_vec() };
                done.dirs.push(looked.dir);
                holder
            }
            Err(error) => {
                done.failed.push((lister.path(&task).to_vec(), error));
                Vec::new()
            }
        };
        let mut state = self.lock();
        state.busy -= 1;
        state.leads_out |= leads_out;
        let is_news = dirs.len() > 0 || leads_out || state.busy == 0;
        if dirs.len() > 0 {
            state.wait_for(holder, dirs);
        }
        still.into_iter().for_each(|at| state.still[at] = true);
        drop(state);
        if is_news {
            self.changed.notify_all();
        }
    }
}

/// Those directories that the directory which holds them still has. Why one of those cannot be looked at is an error;
/// of the others it is none: they are gone, or something else is in their place.
fn held(lister: &Lister<'_>, still: &[bool], done: Done) -> Result<Walked, ScanError> {
    let Done { mut dirs, skipped: mut skipped_in, mut failed } = done;
    dirs.sort_unstable_by(|a, b| compare(a.path(), b.path()));
    skipped_in.sort_unstable_by(|(a, _), (b, _)| compare(a, b));
    failed.sort_unstable_by(|(a, _), (b, _)| compare(a, b));
    // What no index knows was found where it is.
    let has = |holder: &SeenDir, path: &[u8]| {
        holder.place_kept().is_some() || lister.known(path).is_none_or(|at| still[at])
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
            Some(around) => around.path() == holder && has(around, path),
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
    for (path, error) in failed {
        if path.is_empty() || find(holder_of(&path)).is_some_and(|holder| has(holder, &path)) {
            return Err(error);
        }
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
