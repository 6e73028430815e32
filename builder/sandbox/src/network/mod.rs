//! A network for steps that reaches the outside and not the host: one namespace, one user-mode stack, for a whole build.
//!
//! ```text
//! builder ── starts once ──▶ holder ── makes the network namespace, starts ──▶ pasta or slirp4netns
//!    │ ◀── namespace (an fd) ──┘  dies with the builder                          dies with the holder
//!    └─ each step's init joins the namespace before it does anything else
//! ```
//!
//! The host's loopback and IPv4 link-local addresses (metadata services) are closed. Steps hold no `CAP_NET_ADMIN` over the
//! namespace, so they cannot open them again. pasta does not run as the host's root; there the user namespace it gets belongs
//! to «nobody», because the owner of a user namespace has every capability in it, and steps are root. Steps of one build share the
//! namespace, as they share a host; builds never do. Nothing here needs privileges of its own.

mod holder;
mod stack;

pub(crate) use holder::holder_main;

use self::stack::UserStack;
use crate::channel;
use crate::sealed_self::NETWORK_MARKER;
use crate::watched;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

/// The holder gives up after [`holder::READY_SECONDS_MAX`] by itself.
const ANSWER_SECONDS_MAX: i64 = 2 * holder::READY_SECONDS_MAX;
const ANSWER_SIZE_BYTES_MAX: usize = 4 << 10;

/// A network namespace with a user-mode stack, until dropped.
#[derive(Debug)]
pub struct UserNetwork {
    namespace: OwnedFd,
    stack: UserStack,
    /// Its closing is the holder's order to end.
    _holder: OwnedFd,
}

/// Networks are the same when they are the same namespace.
impl PartialEq for UserNetwork {
    fn eq(&self, other: &UserNetwork) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for UserNetwork {}

/// Why there is no such network here.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Neither program is on `PATH`.
    #[error("neither `pasta` nor `slirp4netns` is installed")]
    NoStack,
    /// The holder could not be started or talked to.
    #[error("start the network's process")]
    Holder {
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Every installed program failed.
    #[error("{}", reasons.join("; "))]
    Failed {
        /// One text a program, beginning with its name.
        reasons: Vec<String>,
    },
}

impl NetworkError {
    /// What the user or an administrator can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            NetworkError::NoStack => "install `passt` (it brings pasta) or `slirp4netns`",
            NetworkError::Holder { .. } => "make sure /proc is mounted",
            NetworkError::Failed { .. } => {
                "make /dev/net/tun usable for this user (mode 0666), and allow network namespaces"
            }
        }
    }
}

impl UserNetwork {
    /// Makes the namespace and waits until it has a route to the outside: some 10 (slirp4netns) to 50 ms (pasta).
    ///
    /// With `loopback_dns` the host's name servers are on its loopback, which steps cannot reach: the stack then offers one
    /// at [`nameserver`](UserNetwork::nameserver). Installed programs are tried in order; nothing is left of those that failed.
    pub fn start(loopback_dns: bool) -> Result<UserNetwork, NetworkError> {
        let stacks = UserStack::installed();
        if stacks.is_empty() {
            return Err(NetworkError::NoStack);
        }
        let mut reasons = Vec::new();
        for stack in stacks {
            match UserNetwork::with(stack.clone(), loopback_dns)
                .map_err(|source| NetworkError::Holder { source })?
            {
                Ok(network) => return Ok(network),
                Err(why) => reasons.push(format!("{}: {why}", stack.name())),
            }
        }
        Err(NetworkError::Failed { reasons })
    }

    /// The inner error is the holder's reason.
    fn with(stack: UserStack, loopback_dns: bool) -> io::Result<Result<UserNetwork, String>> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0(NETWORK_MARKER)
            .arg(std::process::id().to_string())
            .args(stack.to_args(loopback_dns))
            .env_clear()
            .process_group(0)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        watched::spawn("sandbox-network", command)?;
        let timeout = Timespec { tv_sec: ANSWER_SECONDS_MAX, tv_nsec: 0 };
        let mut answer = [PollFd::new(&ours, PollFlags::IN)];
        if rustix::io::retry_on_intr(|| rustix::event::poll(&mut answer, Some(&timeout)))? == 0 {
            return Ok(Err("no answer in time".to_owned()));
        }
        let mut text = [0; ANSWER_SIZE_BYTES_MAX];
        let (count, fds) = match channel::receive(ours.as_fd(), &mut text) {
            Err(Errno::CONNRESET) => (0, Vec::new()),
            other => other?,
        };
        match (&text[..count], fds.into_iter().next()) {
            (b"ready", Some(namespace)) => Ok(Ok(UserNetwork { namespace, stack, _holder: ours })),
            ([], _) => Ok(Err("its process died".to_owned())),
            (why, _) => Ok(Err(String::from_utf8_lossy(why).trim().to_owned())),
        }
    }

    /// The program that carries the traffic: `pasta` or `slirp4netns`.
    pub fn stack_name(&self) -> &'static str {
        self.stack.name()
    }

    /// Address of the name server that forwards to the host's, for a network started with `loopback_dns`.
    pub fn nameserver(&self) -> &'static str {
        stack::NAMESERVER
    }

    pub(crate) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}
