//! Room that is kept for removing things.
//!
//! Forgetting a name or giving space back writes to the index first. On a disk that is full that fails, and nothing of rbuild's
//! could make room any more. So a file of some hundred KiB is kept, given up when a removal finds no room, and made again by
//! the next collection that leaves enough.

use std::fs::File;

use rustix::fs::{AtFlags, FallocateFlags, OFlags};

use super::Store;
use super::error::StoreError;
use super::layout::Layout;

const FILE: &str = "reserve";
/// A removal writes some pages of 4 KiB to the log of the index, and a lease takes a directory.
pub(super) const BYTES: u64 = 512 << 10;
/// On a disk with less than so many times that nothing is kept back.
const SHARE_MIN: u64 = 16;

/// Makes it, unless it is there or the disk is nearly full. Best effort: without it only a full disk differs.
pub(super) fn make(layout: &Layout) {
    let free =
        rustix::fs::fstatvfs(layout.fd()).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    if free < SHARE_MIN * BYTES {
        return;
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let Ok(file) = layout.try_open(FILE, flags).map(File::from) else { return };
    if rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, BYTES).is_err() {
        give_up(layout);
    }
}

/// True when there was one.
fn give_up(layout: &Layout) -> bool {
    rustix::fs::unlinkat(layout.fd(), FILE, AtFlags::empty()).is_ok()
}

impl Store {
    /// Removes something; where there is no room for that, once more in that of the reserve.
    pub(crate) fn with_reserve<T>(
        &self,
        remove: impl Fn() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match remove() {
            Err(StoreError::NoSpace { .. }) if give_up(&self.inner.layout) => remove(),
            removed => removed,
        }
    }

    /// Gives the reserve up if there is less room than it has: a collection that began must not end for want of it.
    pub(crate) fn open_reserve(&self) -> Result<(), StoreError> {
        if self.disk()?.0 < BYTES {
            give_up(&self.inner.layout);
        }
        Ok(())
    }

    /// Makes the reserve again.
    pub(crate) fn fill_reserve(&self) {
        make(&self.inner.layout);
    }
}
