//! Kernel locks on files: the store lock and per-key single flight.
//!
//! All are `flock`s, so the kernel releases them on any death of the holder; a lock file that exists means nothing.
//! Order: store lock (shared, for the life of a [`Store`]) → lease → key lock → SQLite's own. Nothing
//! waits for a second key while holding one, so key locks cannot deadlock.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, OFlags};
use rustix::io::Errno;

use super::error::{IoContext, StoreError};
use super::layout::Layout;
use super::{Key, Store};

/// How long opening waits for a migration or a wipe by another process.
const STORE_LOCK_WAIT_MAX: Duration = Duration::from_secs(30);
/// Longest holder description kept in a lock file, in bytes.
const DESCRIPTION_BYTES_MAX: usize = 512;

/// Who holds a key lock, as far as the lock file tells. Only for messages: it may be outdated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockHolder {
    /// Process id as the holder saw it, 0 when unknown.
    pub pid: u32,
    /// What the holder said it does: the first line, cut at 512 bytes.
    pub description: String,
    /// How long it has held the lock; `None` when the clock says nonsense.
    pub held: Option<Duration>,
}

/// The right to execute the step with this key; released by drop or death.
#[derive(Debug)]
pub struct KeyLock {
    file: File,
}

impl Drop for KeyLock {
    fn drop(&mut self) {
        // Only tidies the message; closing the file releases the lock.
        let _ = self.file.set_len(0);
    }
}

impl Store {
    /// Takes the lock of a key, waiting for as long as another process or task holds it. `description` is what
    /// others are told meanwhile; `waiting` is called once, before the wait, with the present holder. Look the
    /// result up again afterwards: the holder probably made it. Blocks the thread; cannot be cancelled.
    pub fn key_lock(
        &self,
        key: &Key,
        description: &str,
        waiting: impl FnOnce(LockHolder),
    ) -> Result<KeyLock, StoreError> {
        let mut waiting = Some(waiting);
        loop {
            if let Some(lock) = self.try_key_lock(key, description)? {
                return Ok(lock);
            }
            let name = file_name(key);
            let mut file = open_lock(&self.inner.layout, &name)?;
            if let Some(waiting) = waiting.take() {
                waiting(read_holder(&mut file));
            }
            flock(&file, FlockOperation::LockExclusive).doing("lock", &self.inner.layout.path(&name))?;
            if let Some(lock) = self.keep_lock(file, &name, description)? {
                return Ok(lock);
            }
        }
    }

    /// Takes the lock of a key if nobody holds it.
    pub fn try_key_lock(&self, key: &Key, description: &str) -> Result<Option<KeyLock>, StoreError> {
        let name = file_name(key);
        loop {
            let file = open_lock(&self.inner.layout, &name)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error).doing("lock", &self.inner.layout.path(&name)),
            }
            if let Some(lock) = self.keep_lock(file, &name, description)? {
                return Ok(Some(lock));
            }
        }
    }

    /// Removes the files of key locks that nobody holds and returns how many. Safe at any time.
    pub fn sweep_key_locks(&self) -> Result<usize, StoreError> {
        let layout = &self.inner.layout;
        let dir = layout.open("locks", OFlags::RDONLY | OFlags::DIRECTORY)?;
        let path = layout.path("locks");
        let mut removed = 0;
        for name in super::layout::read_names(&dir).doing("list", &path)? {
            let Ok(name) = name.doing("list", &path)?.into_string() else { continue };
            if !name.starts_with("def-") && !name.starts_with("content-") {
                continue;
            }
            let name = format!("locks/{name}");
            let Ok(fd) = layout.try_open(&name, OFlags::RDWR) else { continue };
            // Unlinked while held: whoever waits for this file finds the name gone and takes a new one.
            if flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok() && is_same(layout, &name, &fd) {
                rustix::fs::unlinkat(layout.fd(), &name, AtFlags::empty())
                    .doing("remove", &layout.path(&name))?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Finishes taking a lock; `None` when the file was swept meanwhile, so that the lock protects nothing.
    fn keep_lock(
        &self,
        mut file: File,
        name: &str,
        description: &str,
    ) -> Result<Option<KeyLock>, StoreError> {
        if !is_same(&self.inner.layout, name, &file) {
            return Ok(None);
        }
        write_holder(&mut file, description);
        Ok(Some(KeyLock { file }))
    }
}

/// Takes the store lock, shared.
pub(super) fn share_store(layout: &Layout) -> Result<File, StoreError> {
    let file = File::from(layout.open("lock", OFlags::RDWR | OFlags::CREATE)?);
    let begun = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if begun.elapsed() < STORE_LOCK_WAIT_MAX => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(Errno::WOULDBLOCK) => return Err(StoreError::Busy { root: layout.root().to_owned() }),
            Err(error @ (Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS)) => {
                return Err(StoreError::NoLocks { root: layout.root().to_owned(), source: error.into() });
            }
            Err(error) => return Err(error).doing("lock", &layout.path("lock")),
        }
    }
}

/// Serialises the first creation of files (`store.json`, databases); held for milliseconds.
pub(super) fn creation(layout: &Layout) -> Result<File, StoreError> {
    let file = open_lock(layout, "locks/creation")?;
    flock(&file, FlockOperation::LockExclusive).doing("lock", &layout.path("locks/creation"))?;
    Ok(file)
}

/// `flock`, again after a signal.
pub(super) fn flock(fd: impl AsFd, operation: FlockOperation) -> Result<(), Errno> {
    loop {
        match rustix::fs::flock(&fd, operation) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// True while `name` still is the open file.
pub(super) fn is_same(layout: &Layout, name: &str, fd: impl AsFd) -> bool {
    match (rustix::fs::fstat(fd), rustix::fs::statat(layout.fd(), name, AtFlags::SYMLINK_NOFOLLOW)) {
        (Ok(ours), Ok(theirs)) => (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino),
        _ => false,
    }
}

fn file_name(key: &Key) -> String {
    format!("locks/{key}")
}

pub(super) fn open_lock(layout: &Layout, name: &str) -> Result<File, StoreError> {
    Ok(File::from(layout.open(name, OFlags::RDWR | OFlags::CREATE)?))
}

/// Writes who holds a lock into its file. Only for messages: a full disk must not stop the build here.
pub(super) fn write_holder(file: &mut File, description: &str) {
    let mut text = format!("{}\n", std::process::id()).into_bytes();
    // One line; a character cut in half is mended by the reader.
    let line = description.lines().next().unwrap_or_default().as_bytes();
    text.extend_from_slice(&line[..line.len().min(DESCRIPTION_BYTES_MAX)]);
    // Empty but where the last holder died; looking is cheaper than setting.
    let emptied = match file.metadata() {
        Ok(metadata) if metadata.len() == 0 => Ok(()),
        _ => file.set_len(0),
    };
    let _ = emptied.and_then(|()| file.rewind()).and_then(|()| file.write_all(&text));
}

pub(super) fn read_holder(file: &mut File) -> LockHolder {
    let mut text = Vec::new();
    // Written when the lock was taken.
    let since = file.metadata().and_then(|metadata| metadata.modified()).ok();
    // Unreadable is the same as unknown.
    let _ = file.take(DESCRIPTION_BYTES_MAX as u64 + 32).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines();
    let pid = lines.next().and_then(|line| line.parse().ok()).unwrap_or(0);
    let description = lines.next().unwrap_or_default().to_owned();
    LockHolder { pid, description, held: since.and_then(|since| since.elapsed().ok()) }
}
