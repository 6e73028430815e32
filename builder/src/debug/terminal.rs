//! A step on a pseudo-terminal that is connected to this process's standard input and output.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rbuild_sandbox::{Console, StepSpec};
use rustix::event::{PollFd, PollFlags};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{
    LocalModes, OptionalActions, OutputModes, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr,
    tcsetwinsize,
};

use super::Failure;

/// What a terminal takes for the end of input.
const END_OF_INPUT: u8 = 4;

/// Runs the step to its end. The terminal has its own modes back on return.
pub(super) fn run(spec: &StepSpec, root: BorrowedFd<'_>) -> Result<(), Failure> {
    let (master, slave) = open().map_err(|errno| Failure::Terminal(errno.into()))?;
    let stdin = io::stdin();
    let raw = Raw::enter(stdin.as_fd(), &slave);
    let mut spec = spec.clone();
    spec.console = Some(Console(Arc::new(slave)));
    let proxy = std::thread::spawn(move || connect(&master));
    // Ctrl-C is a key of the shell's terminal here; nothing cancels the session from outside.
    let (cancel, _never) = rustix::pipe::pipe().map_err(|errno| Failure::Terminal(errno.into()))?;
    let ended = rbuild_sandbox::run_step(&spec, root, cancel.as_fd(), &mut |_, _| {});
    // The last of the step's ends: the proxy reads what is left, and ends.
    drop(spec);
    let _panicked = proxy.join();
    drop(raw);
    ended?;
    Ok(())
}

fn open() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    Ok((master, slave))
}

/// Our terminal in raw mode, so that every key reaches the step; put back when dropped.
struct Raw(Option<Termios>);

impl Raw {
    fn enter(stdin: BorrowedFd<'_>, slave: &OwnedFd) -> Self {
        if let Ok(modes) = tcgetattr(stdin) {
            let mut raw = modes.clone();
            raw.make_raw();
            // A terminal that refuses is used as it is.
            let _refused = tcsetattr(stdin, OptionalActions::Now, &raw);
            return Self(Some(modes));
        }
        // Commands from a file or a pipe: output as the programs write it, without the commands in it.
        if let Ok(mut modes) = tcgetattr(slave) {
            modes.local_modes -= LocalModes::ECHO;
            modes.output_modes -= OutputModes::OPOST;
            let _refused = tcsetattr(slave, OptionalActions::Now, &modes);
        }
        Self(None)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(modes) = &self.0 {
            let _refused = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, modes);
        }
    }
}

/// Moves bytes both ways until the step's end of the terminal is closed.
fn connect(master: &OwnedFd) {
    let Ok(mut terminal) = master.try_clone().map(File::from) else { return };
    let mut input = Some(io::stdin());
    let mut output = io::stdout().lock();
    let mut buffer = [0; 4096];
    let is_terminal = isatty(io::stdin().as_fd());
    loop {
        if is_terminal && let Ok(size) = tcgetwinsize(io::stdin().as_fd()) {
            // Looked at with every key: a window that changed is noticed with the next one.
            let _refused = tcsetwinsize(master, size);
        }
        let stdin = input.as_ref().map(AsFd::as_fd);
        let mut events: Vec<PollFd<'_>> = [Some(master.as_fd()), stdin]
            .into_iter()
            .flatten()
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        if rustix::io::retry_on_intr(|| rustix::event::poll(&mut events, None)).is_err() {
            return;
        }
        let is_ready = |n: usize| events.get(n).is_some_and(|event| !event.revents().is_empty());
        let (from_step, from_user) = (is_ready(0), is_ready(1));
        if from_step {
            match terminal.read(&mut buffer) {
                // A closed terminal reads as an I/O error.
                Ok(0) | Err(_) => return,
                Ok(count) => {
                    let _closed = output.write_all(&buffer[..count]).and_then(|()| output.flush());
                }
            }
        }
        if from_user && let Some(stdin) = &input {
            match rustix::io::read(stdin, &mut buffer) {
                Ok(0) | Err(_) => {
                    let _gone = terminal.write_all(&[END_OF_INPUT]);
                    input = None;
                }
                Ok(count) => {
                    let _gone = terminal.write_all(&buffer[..count]);
                }
            }
        }
    }
}
