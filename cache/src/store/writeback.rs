//! Beginning to write back before anybody waits for it.
//!
//! The kernel keeps what was written in memory for half a minute, so all that a build wrote would be waiting when its
//! sync comes, and the build with it. Whoever adds much to the store says so here; past [`BEHIND_BYTES`] a thread
//! flushes the file that grows, or after a step the file system, while the build goes on compressing and pushing. That
//! promises nothing: what makes rows durable is [`Store::sync`](super::Store::sync) alone, which then finds little left to
//! do. What has no name ([`Store::nameless_file`]) is left alone: it is gone before the sync.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use rustix::fs::OFlags;

use super::Store;

/// Bytes that may wait unflushed: less is flushed at the end in less time than a flush of its own would take.
const BEHIND_BYTES: u64 = 64 << 20;

/// A file tells of its growth in steps of this many bytes.
const TELL_BYTES: u64 = 8 << 20;

/// What waits to be written back, and whether somebody sees to it.
#[derive(Debug, Default)]
pub(super) struct Writeback {
    behind: AtomicU64,
    is_running: AtomicBool,
}

impl Store {
    /// Notes that the store's directory has this many bytes more.
    pub(super) fn wrote(&self, bytes: u64) {
        // Of its own: a failure that it saw has to be reported to the sync's descriptor all the same.
        let all = || self.inner.layout.open(".", OFlags::RDONLY | OFlags::DIRECTORY).ok().map(Behind::All);
        self.wrote_to(bytes, all);
    }

    fn wrote_to(&self, bytes: u64, to: impl FnOnce() -> Option<Behind>) {
        if self.inner.options.durable {
            // Nobody waits for it, and it holds nothing of the store: neither the process's end nor a collection does.
            drop(self.inner.writeback.add(bytes, to));
        }
    }
}

impl Writeback {
    /// Starts a thread when much is behind and nobody is at it; it ends when little is left.
    fn add(self: &Arc<Self>, bytes: u64, to: impl FnOnce() -> Option<Behind>) -> Option<JoinHandle<()>> {
        let behind = self.behind.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if behind < BEHIND_BYTES || self.is_running.swap(true, Ordering::AcqRel) {
            return None;
        }
        let worker = Arc::clone(self);
        let flushing = to().and_then(|to| {
            std::thread::Builder::new().name("writeback".to_owned()).spawn(move || worker.flush(&to)).ok()
        });
        if flushing.is_none() {
            // The sync does it all.
            self.is_running.store(false, Ordering::Release);
        }
        flushing
    }

    fn flush(&self, to: &Behind) {
        while self.behind.load(Ordering::Relaxed) >= BEHIND_BYTES {
            self.behind.store(0, Ordering::Relaxed);
            let _ = match to {
                Behind::File(file) => rustix::fs::fdatasync(file),
                Behind::All(root) => rustix::fs::syncfs(root),
            };
        }
        self.is_running.store(false, Ordering::Release);
    }
}

/// What is flushed.
#[derive(Debug)]
enum Behind {
    /// The file that grew.
    File(File),
    /// The store's file system: much came in many files.
    All(OwnedFd),
}

/// A growing file of the store.
#[derive(Debug)]
pub(super) struct Growing {
    file: File,
    store: Store,
    untold: u64,
}

impl Growing {
    pub(super) fn new(file: File, store: Store) -> Self {
        Self { file, store, untold: 0 }
    }

    pub(super) fn into_file(self) -> File {
        self.file
    }
}

impl Write for Growing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.untold += count as u64;
        if self.untold >= TELL_BYTES {
            let file = || self.file.try_clone().ok().map(Behind::File);
            self.store.wrote_to(std::mem::take(&mut self.untold), file);
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::super::StoreOptions;
    use super::*;

    #[test]
    fn much_is_flushed_meanwhile_and_little_is_left_to_the_sync() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(temp.path(), StoreOptions { id_map: "x".into(), durable: true }).unwrap();
        let writeback = &store.inner.writeback;
        let root = || store.inner.layout.open(".", OFlags::RDONLY | OFlags::DIRECTORY).ok().map(Behind::All);
        let file = || tempfile::tempfile().ok().map(Behind::File);
        assert!(writeback.add(BEHIND_BYTES - 1, root).is_none());
        writeback.add(1, root).unwrap().join().unwrap();
        assert_eq!(writeback.behind.load(Ordering::Relaxed), 0);
        assert!(writeback.add(1, file).is_none(), "it begins anew");
        writeback.add(BEHIND_BYTES, file).unwrap().join().unwrap();

        let mut growing = Growing::new(tempfile::tempfile().unwrap(), store.clone());
        for _ in 0..2 {
            growing.write_all(&vec![0; TELL_BYTES as usize - 1]).unwrap();
        }
        assert_eq!(writeback.behind.load(Ordering::Relaxed), 2 * TELL_BYTES - 2);
    }

    #[test]
    fn a_store_without_durability_is_never_flushed() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(temp.path(), StoreOptions { id_map: "x".into(), durable: false }).unwrap();
        store.wrote(2 * BEHIND_BYTES);
        assert_eq!(store.inner.writeback.behind.load(Ordering::Relaxed), 0);
    }
}
