//! One switch that stops a build: Ctrl-C, or the first failing step.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::pipe::PipeFlags;
use tokio::sync::Notify;

/// Why a build stops early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// This signal asked for it: SIGINT, SIGTERM or SIGHUP, by number.
    Signal(u8),
    /// Another step failed.
    Failure,
}

/// Cheap handle on the switch; clones share it. Thrown once, never reset.
#[derive(Debug, Clone)]
pub struct Cancel(Arc<Inner>);

/// The state for [`Reason::Failure`]; signal numbers are smaller, and 0 is «not thrown».
const FAILURE: u8 = u8::MAX;

#[derive(Debug)]
struct Inner {
    state: AtomicU8,
    notify: Notify,
    read: OwnedFd,
    write: OwnedFd,
}

impl Cancel {
    /// A switch that is off. Fails when the process has no file descriptors left.
    pub fn new() -> std::io::Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Inner { state: AtomicU8::new(0), notify: Notify::new(), read, write })))
    }

    /// Throws the switch. The first reason stays.
    pub fn cancel(&self, reason: Reason) {
        let value = match reason {
            Reason::Signal(number) => number,
            Reason::Failure => FAILURE,
        };
        if self.0.state.compare_exchange(0, value, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            // The pipe is empty and has room for one byte; it stays readable for every waiter.
            let _ = rustix::io::write(&self.0.write, b"x");
            self.0.notify.notify_waiters();
        }
    }

    /// Whether and why.
    pub fn reason(&self) -> Option<Reason> {
        match self.0.state.load(Ordering::SeqCst) {
            0 => None,
            FAILURE => Some(Reason::Failure),
            number => Some(Reason::Signal(number)),
        }
    }

    /// Becomes readable when the switch is thrown, for `poll` in blocking code.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.read.as_fd()
    }

    /// Waits until the switch is thrown.
    pub async fn cancelled(&self) {
        let notified = self.0.notify.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        if self.reason().is_none() {
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiters_before_and_after_wake_and_the_first_reason_stays() {
        let cancel = Cancel::new().expect("pipe");
        let waiter = tokio::spawn({
            let cancel = cancel.clone();
            async move { cancel.cancelled().await }
        });
        tokio::task::yield_now().await;
        cancel.cancel(Reason::Signal(2));
        cancel.cancel(Reason::Failure);
        waiter.await.expect("waiter");
        cancel.cancelled().await;
        assert_eq!(cancel.reason(), Some(Reason::Signal(2)));
    }
}
