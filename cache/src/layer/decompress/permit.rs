//! Who may keep a large window.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Windows of at most so many bytes are everybody's: what `zstd -19` and `xz -6` have, and so nearly all archives.
pub(super) const LARGE_BYTES_MIN: u64 = (8 << 20) + 1;

/// The one permit of the process.
static PROCESS: Permits = Permits { is_taken: Mutex::new(false), returned: Condvar::new() };

/// Waits until no other decoder has it.
///
/// A decoder asks for it when it meets the header of a large window, with all else in hand that it was given: a turn to unpack, a
/// connection, perhaps a share of the compression budget. So who has it must need nothing more to come to his end than what
/// he reads from, and what takes his bytes must not wait for who waits here. That holds: what is unpacked is only
/// written to the disk, what is compressed anew has its share before the first byte is read, and no decoder reads what
/// another one gives out. Streams that are not read meanwhile leave room on their connection for the one that is
/// (`CONNECTION_WINDOW_BYTES` of the registry client). When a build is stopped what is read from ends, so all who wait get
/// their turn, and end, too.
pub(super) fn take() -> Permit<'static> {
    PROCESS.take()
}

#[derive(Debug)]
struct Permits {
    is_taken: Mutex<bool>,
    returned: Condvar,
}

/// Goes back when it is dropped.
#[derive(Debug)]
pub(super) struct Permit<'a>(&'a Permits);

impl Permits {
    fn is_taken(&self) -> MutexGuard<'_, bool> {
        self.is_taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Permit<'_> {
        let mut is_taken = self.is_taken();
        while *is_taken {
            is_taken = self.returned.wait(is_taken).unwrap_or_else(PoisonError::into_inner);
        }
        *is_taken = true;
        Permit(self)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.0.is_taken() = false;
        self.0.returned.notify_one();
    }
}
