//! Leases: who owns unfinished work.
//!
//! `leases/<id>` is flocked by its owner for its whole life; `work/<id>/` holds everything the owner has not
//! finished. The kernel drops the lock on any death, so «can be locked» means «dead»: no process ids, no times.
//! The file is created before the work directory and removed after it, hence a work directory without a lease file
//! is garbage too.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FlockOperation, OFlags};
use rustix::io::Errno;

use super::error::{IoContext, StoreError};
use super::layout::{self, Layout};
use super::{Store, lock};

/// A place for unfinished work, alive until the last clone is dropped or the process dies. Drop removes what is
/// left in it; what a killed process leaves, the next lease of any process removes.
#[derive(Debug, Clone)]
pub struct Lease {
    inner: Arc<LeaseInner>,
}

#[derive(Debug)]
struct LeaseInner {
    layout: Arc<Layout>,
    id: String,
    next: AtomicU64,
    /// Holds the lock.
    _file: File,
}

impl Lease {
    /// 64 random bits that no other lease of the store has.
    pub fn id(&self) -> u64 {
        u64::from_str_radix(&self.inner.id, 16).unwrap_or_default()
    }

    /// Its directory for unfinished work.
    pub fn work_dir(&self) -> PathBuf {
        self.inner.layout.path(&self.work())
    }

    /// Makes a new empty directory (0700) in it, for mount points and other scratch.
    pub fn new_dir(&self) -> Result<PathBuf, StoreError> {
        let dir = self.next_path();
        self.inner.layout.make_dir(&dir)?;
        Ok(self.inner.layout.path(&dir))
    }

    /// The same, for as long as it is held.
    pub fn scratch_dir(&self) -> Result<ScratchDir, StoreError> {
        let name = self.next_path();
        self.inner.layout.make_dir(&name)?;
        let path = self.inner.layout.path(&name);
        Ok(ScratchDir { layout: self.inner.layout.clone(), name, path })
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.inner.layout
    }

    /// `work/<id>`, relative to the root.
    pub(super) fn work(&self) -> String {
        format!("work/{}", self.inner.id)
    }

    /// A relative path in the work directory that was never handed out.
    pub(super) fn next_path(&self) -> String {
        format!("work/{}/{}", self.inner.id, self.inner.next.fetch_add(1, Ordering::Relaxed))
    }
}

/// A directory of a lease's that goes with all below it, however deep, when it is dropped. What cannot be removed then goes
/// with the lease.
#[derive(Debug)]
pub struct ScratchDir {
    layout: Arc<Layout>,
    name: String,
    path: PathBuf,
}

impl ScratchDir {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        let _left = self.layout.remove_tree(&self.name);
    }
}

impl Drop for LeaseInner {
    fn drop(&mut self) {
        // Failing here leaves garbage that the next lease removes; there is nobody to tell.
        if self.layout.remove_tree(&format!("work/{}", self.id)).is_ok() {
            let _ = rustix::fs::unlinkat(self.layout.fd(), format!("leases/{}", self.id), AtFlags::empty());
        }
    }
}

impl Store {
    /// Starts a lease, after removing what dead ones left behind.
    pub fn lease(&self) -> Result<Lease, StoreError> {
        self.sweep_dead()?;
        let layout = &self.inner.layout;
        loop {
            let id = format!("{:016x}", layout::random_id()?);
            let name = format!("leases/{id}");
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
            let file = match layout.try_open(&name, flags) {
                Ok(fd) => File::from(fd),
                Err(Errno::EXIST) => continue,
                Err(error) => return Err(error).doing("create", &layout.path(&name)),
            };
            // Between creating and locking, a sweeper may have taken the file for a dead one's.
            match lock::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if lock::is_same(layout, &name, &file) => {}
                Ok(()) | Err(Errno::WOULDBLOCK) => continue,
                Err(error) => return Err(error).doing("lock", &layout.path(&name)),
            }
            let inner =
                Arc::new(LeaseInner { layout: layout.clone(), id, next: AtomicU64::new(0), _file: file });
            let lease = Lease { inner };
            layout.make_dir(&lease.work())?;
            self.sweep_void(&lease.work())?;
            return Ok(lease);
        }
    }

    /// Removes the work of dead leases. Costs two directory listings when there are none.
    fn sweep_dead(&self) -> Result<(), StoreError> {
        let layout = &self.inner.layout;
        for id in list(layout, "leases")? {
            let name = format!("leases/{id}");
            let Ok(fd) = layout.try_open(&name, OFlags::RDWR) else { continue };
            let is_dead = lock::flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok();
            if is_dead && lock::is_same(layout, &name, &fd) {
                // What cannot be removed now stays for a later sweep; it must not stop a build.
                if layout.remove_tree(&format!("work/{id}")).is_ok() {
                    let _ = rustix::fs::unlinkat(layout.fd(), &name, AtFlags::empty());
                }
            }
        }
        for id in list(layout, "work")? {
            // Order matters: listed before looking, and an owner's lease file outlives its directory.
            if !layout.exists(&format!("leases/{id}")) {
                let _ = layout.remove_tree(&format!("work/{id}"));
            }
        }
        Ok(())
    }
}

/// Lease ids in a directory; other names are not ours to touch.
fn list(layout: &Layout, dir: &str) -> Result<Vec<String>, StoreError> {
    let is_id = |name: &String| name.len() == 16 && name.bytes().all(|b| b.is_ascii_hexdigit());
    Ok(layout::list(layout, dir)?.into_iter().filter(is_id).collect())
}
