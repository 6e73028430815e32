//! Children that die with this process.
//!
//! They ask the kernel for it themselves. Parent-death signals follow the *thread* that forked (measured), so a thread is
//! kept for each: it waits for the child's end.

use std::io;
use std::process::Command;
use std::sync::mpsc;

/// Starts the child from a thread, named `name`, that lives as long as the child does, and reaps it.
pub(crate) fn spawn(name: &str, mut command: Command) -> io::Result<()> {
    let (result, started) = mpsc::channel();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || match command.spawn() {
        Ok(mut child) => {
            let _heard = result.send(Ok(()));
            // What the command holds of ours, the child's end of its socket first, must not stay open here.
            drop(command);
            let _ended = child.wait();
        }
        Err(error) => drop(result.send(Err(error))),
    })?;
    // The thread sends before anything else it does.
    started.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
}
