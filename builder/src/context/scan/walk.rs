//! Goes through a context's directories, on several threads where there is much to look at.
//!
//! All directories that the last scan went through are there to be looked at from the start, in no need of the
//! directories that hold them; what is found on the way joins them. Which of them still are part of the context is
//! settled at the end.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rbuild_cache::path::compare;

use super::ScanError;
use super::lister::{Found, Lister, Looked, Task, join, name_of};

/// Below so many files and waiting directories helpers would cost more than they bring.
const PARALLEL_FILES_MIN: u64 = 500;
const PARALLEL_DIRS_MIN: usize = 16;
/// The kernel's directory locks make more useless.
const THREADS_MAX: usize = 4;

/// Looks at all directories. Gives them in order, the root first; `None` when a symlink leads out of what is wanted.
pub(super) fn walk(lister: &Lister<'_>) -> Result<Option<Vec<Looked>>, ScanError> {
    let queue = Queue::new(lister);
    let work = || {
        let (mut buffer, mut done) = (Vec::new(), Vec::new());
        while let Some(task) = queue.next() {
            queue.look(lister, task, &mut buffer, &mut done);
        }
        done
    };
    let mut done = std::thread::scope(|scope| {
        let mut helpers = Vec::new();
        let (mut buffer, mut done) = (Vec::new(), Vec::new());
        loop {
            if helpers.is_empty() && queue.is_worth_helpers(lister) {
                let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
                helpers.extend((1..threads).map(|_| scope.spawn(work)));
            }
            let Some(task) = queue.next() else { break };
            queue.look(lister, task, &mut buffer, &mut done);
        }
        done.extend(helpers.into_iter().flat_map(|helper| helper.join().expect("looking does not panic")));
        done
    });
    if queue.lock().leads_out {
        return Ok(None);
    }
    done.sort_unstable_by(|(a, _), (b, _)| compare(a, b));
    held(lister, done).map(Some)
}

type Done = Vec<(Vec<u8>, Result<Looked, ScanError>)>;

/// Directories to look at.
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Those of the last scan that are left.
    known: std::ops::Range<usize>,
    found: Vec<Task>,
    /// Threads that may find more.
    busy: usize,
    leads_out: bool,
}

impl Queue {
    fn new(lister: &Lister<'_>) -> Self {
        let known = if lister.is_current { 0..lister.index.len() } else { 0..0 };
        let root = known.is_empty().then(|| Task::Found { path: Vec::new(), verdict: Default::default() });
        let state = State { known, found: root.into_iter().collect(), busy: 0, leads_out: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_worth_helpers(&self, lister: &Lister<'_>) -> bool {
        let state = self.lock();
        let is_long = !state.known.is_empty() && lister.index.files() >= PARALLEL_FILES_MIN;
        is_long || state.found.len() >= PARALLEL_DIRS_MIN
    }

    /// The next one; `None` when none is left, and none will come.
    fn next(&self) -> Option<Task> {
        let mut state = self.lock();
        loop {
            let task = state.found.pop().or_else(|| state.known.next().map(Task::Known));
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
        let looked = lister.look(&task, buffer);
        let (mut found, mut leads_out) = (Vec::new(), false);
        if let Ok(Looked { path, found: Found::Listed(listed), .. }) = &looked {
            let paths = listed.dirs.iter().map(|(name, verdict)| (join(path, name), *verdict));
            let is_new = |path: &[u8]| !lister.is_current || lister.index.find(path).is_none();
            found.extend(
                paths.filter(|(path, _)| is_new(path)).map(|(path, verdict)| Task::Found { path, verdict }),
            );
            leads_out = listed.leads_out;
        }
        done.push((lister.path(&task).to_vec(), looked));
        let mut state = self.lock();
        state.busy -= 1;
        state.leads_out |= leads_out;
        let is_news = !found.is_empty() || leads_out || state.busy == 0;
        state.found.extend(found);
        drop(state);
        if is_news {
            self.changed.notify_all();
        }
    }
}

/// Those directories that the directory which holds them still has. Why one of those cannot be looked at is an error;
/// of the others it is none: they are gone, or something else is in their place.
fn held(lister: &Lister<'_>, done: Done) -> Result<Vec<Looked>, ScanError> {
    let mut all: Vec<Looked> = Vec::with_capacity(done.len());
    // From the root to the last one that is held.
    let mut above: Vec<usize> = Vec::new();
    for (path, looked) in done {
        let dir = path.get(..path.len() - name_of(&path).len()).unwrap_or_default();
        let dir = dir.strip_suffix(b"/").unwrap_or(dir);
        while above.last().is_some_and(|at| !path.is_empty() && !is_in(dir, &all[*at].path)) {
            above.pop();
        }
        let is_held = match above.last().map(|at| &all[*at]) {
            None => path.is_empty(),
            Some(holder) if holder.path != dir => false,
            Some(Looked { found: Found::Listed(listed), .. }) => {
                listed.dirs.binary_search_by(|(name, _)| name.as_slice().cmp(name_of(&path))).is_ok()
            }
            Some(Looked { found: Found::Kept(_), .. }) => lister.index.find(&path).is_some(),
        };
        if is_held {
            above.push(all.len());
            all.push(looked?);
        }
    }
    Ok(all)
}

fn is_in(path: &[u8], dir: &[u8]) -> bool {
    dir.is_empty() || path == dir || path.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/'))
}
