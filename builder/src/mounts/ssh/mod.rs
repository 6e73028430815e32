//! SSH agents for steps: each gets a socket of its own, and this process talks to the user's agent, or is one itself for
//! keys in files.
//!
//! A step can ask which keys there are and have something signed, and nothing else: it cannot add, remove or lock keys
//! of the user's agent. (draft-ietf-sshm-ssh-agent)

mod agent;
mod key;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::pipe::PipeFlags;

use agent::Keys;
use key::KeyError;

use crate::cli::AgentArg;

/// The largest message that OpenSSH's agent takes.
const MESSAGE_BYTES_MAX: usize = 256 << 10;
/// Connections of one step at a time.
const CONNECTIONS_MAX: usize = 64;
const REQUEST_IDENTITIES: u8 = 11;
const SIGN_REQUEST: u8 = 13;
const EXTENSION: u8 = 27;
/// Tells the agent which host a connection is for; keys may be restricted to some.
const SESSION_BIND: &[u8] = b"\0\0\0\x18session-bind@openssh.com";
/// SSH_AGENT_FAILURE.
const FAILURE: &[u8] = &[0, 0, 0, 1, 5];
const NAME: &str = "agent";

/// Why an agent cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Nothing there.
    #[error("cannot use {} for --ssh {id}", path.display())]
    Look {
        /// Name of the agent.
        id: String,
        /// Its socket or key.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A key in a file.
    #[error("cannot use {} for --ssh {id}: {source}", path.display())]
    Key {
        /// Name of the agent.
        id: String,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: KeyError,
    },
    /// A socket beside something else under one name.
    #[error("--ssh {id} names a socket and more; an agent is one socket, or keys in files")]
    Several {
        /// Name of the agent.
        id: String,
    },
    /// The step's socket cannot be made.
    #[error("cannot make a socket for the step's SSH agent")]
    Socket(#[source] io::Error),
}

impl AgentError {
    /// What to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Look { id, path, .. }
            | Self::Key { id, path, source: KeyError::NoKey | KeyError::Read(_) } => Some(format!(
                "--ssh {id}={} takes the socket of an agent or unencrypted private keys; `--ssh {id}` alone takes the agent of \
                 SSH_AUTH_SOCK",
                path.display()
            )),
            Self::Key { id, path, .. } => Some(format!(
                "add it to your agent with `ssh-add {}`, which asks for a passphrase if there is one, and give the agent with \
                 --ssh {id}",
                path.display()
            )),
            _ => None,
        }
    }
}

/// Who answers.
#[derive(Debug, Clone)]
pub enum Agent {
    /// The user's agent, at its socket.
    Socket(Arc<Path>),
    /// This process, with keys of files.
    Keys(Arc<Keys>),
}

/// Agents of a build, by id.
#[derive(Debug, Clone, Default)]
pub struct Agents(BTreeMap<String, Agent>);

impl Agents {
    /// Checks that each is a socket or keys, before anything is built.
    pub fn new(args: &[AgentArg]) -> Result<Self, AgentError> {
        let agent = |arg: &AgentArg| Ok((arg.id.clone(), Agent::new(arg)?));
        args.iter().map(agent).collect::<Result<_, _>>().map(Self)
    }

    /// The agent of an id.
    pub fn get(&self, id: &str) -> Option<&Agent> {
        self.0.get(id)
    }
}

impl Agent {
    fn new(AgentArg { id, paths }: &AgentArg) -> Result<Self, AgentError> {
        let mut keys = Keys::new();
        for path in paths {
            let meta = std::fs::metadata(path).map_err(|source| AgentError::Look {
                id: id.clone(),
                path: path.clone(),
                source,
            })?;
            if meta.file_type().is_socket() {
                return match paths.len() {
                    1 => Ok(Self::Socket(path.as_path().into())),
                    _ => Err(AgentError::Several { id: id.clone() }),
                };
            }
            keys.add(path).map_err(|source| AgentError::Key {
                id: id.clone(),
                path: path.clone(),
                source,
            })?;
        }
        Ok(Self::Keys(Arc::new(keys)))
    }

    /// Answers one connection to its end.
    fn serve(&self, client: &UnixStream) -> io::Result<()> {
        match self {
            Self::Socket(path) => UnixStream::connect(path).and_then(|agent| relay(client, &agent)),
            Self::Keys(keys) => keys.serve(client),
        }
    }
}

/// A socket that leads to an agent, until dropped.
#[derive(Debug)]
pub struct Proxy {
    socket: OwnedFd,
    /// Closed to end the thread.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Serves `agent` on a new socket in `dir`, an empty directory.
    pub fn start(agent: &Agent, dir: &Path, mode: u32, uid: u32, gid: u32) -> Result<Self, AgentError> {
        let made = || -> io::Result<Self> {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let dir = rustix::fs::open(dir, flags, Mode::empty())?;
            // Addresses of sockets are short, paths of stores need not be.
            let listener = UnixListener::bind(format!("/proc/self/fd/{}/{NAME}", dir.as_raw_fd()))?;
            listener.set_nonblocking(true)?;
            rustix::fs::chmodat(&dir, NAME, Mode::from_raw_mode(mode), AtFlags::empty())?;
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::chownat(&dir, NAME, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let socket = rustix::fs::openat(&dir, NAME, flags, Mode::empty())?;
            let (stopped, stop) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            let agent = agent.clone();
            let thread = std::thread::Builder::new()
                .name("ssh-agent".to_owned())
                .spawn(move || serve(&listener, &stopped, &agent))?;
            Ok(Self { socket, stop: Some(stop), thread: Some(thread) })
        };
        made().map_err(AgentError::Socket)
    }

    /// Open on the socket, for mounting.
    pub fn socket(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it did, the step is over all the same.
            let _ = thread.join();
        }
    }
}

fn serve(listener: &UnixListener, stopped: &OwnedFd, agent: &Agent) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
        if rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, None)).is_err()
            || !fds[1].revents().is_empty()
        {
            return;
        }
        let Ok((client, _)) = listener.accept() else { continue };
        if open.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            continue;
        }
        open.fetch_add(1, Ordering::Relaxed);
        let (agent, count) = (agent.clone(), Arc::clone(&open));
        // Not joined: it ends when the step's end of the connection is closed, which the step's death does.
        let spawned = std::thread::Builder::new().name("ssh-agent".to_owned()).spawn(move || {
            let _closed = client.set_nonblocking(false).and_then(|()| agent.serve(&client));
            count.fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Passes requests on one by one.
fn relay(mut client: &UnixStream, mut agent: &UnixStream) -> io::Result<()> {
    while let Some(request) = message(&mut client)? {
        if is_allowed(&request[4..]) {
            agent.write_all(&request)?;
            let Some(reply) = message(&mut agent)? else { return Ok(()) };
            client.write_all(&reply)?;
        } else {
            client.write_all(FAILURE)?;
        }
    }
    Ok(())
}

fn is_allowed(body: &[u8]) -> bool {
    match body.first() {
        Some(&(REQUEST_IDENTITIES | SIGN_REQUEST)) => true,
        Some(&EXTENSION) => body[1..].starts_with(SESSION_BIND),
        _ => false,
    }
}

/// One message with its length in front; `None` at the end.
fn message(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let count = u32::from_be_bytes(length) as usize;
    if count == 0 || count > MESSAGE_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut whole = length.to_vec();
    whole.resize(4 + count, 0);
    from.read_exact(&mut whole[4..])?;
    Ok(Some(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An agent that answers every message with its own type plus one.
    fn agent(dir: &Path) -> PathBuf {
        let path = dir.join("real");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let mut client = client.unwrap();
                while let Ok(Some(request)) = message(&mut client) {
                    client.write_all(&[0, 0, 0, 1, request[4] + 1]).unwrap();
                }
            }
        });
        path
    }

    fn ask(socket: &Path, body: &[u8]) -> Option<u8> {
        let mut stream = UnixStream::connect(socket).unwrap();
        let mut request = (body.len() as u32).to_be_bytes().to_vec();
        request.extend_from_slice(body);
        stream.write_all(&request).unwrap();
        message(&mut stream).ok().flatten().map(|reply| reply[4])
    }

    fn owner() -> (u32, u32) {
        (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
    }

    #[test]
    fn a_step_may_look_and_sign_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let agent = agent(dir.path());
        let own = dir.path().join("own");
        std::fs::create_dir(&own).unwrap();
        let (uid, gid) = owner();
        let agent = Agent::Socket(agent.as_path().into());
        let proxy = Proxy::start(&agent, &own, 0o600, uid, gid).unwrap();
        let socket = own.join(NAME);
        assert_eq!(ask(&socket, &[REQUEST_IDENTITIES]), Some(12));
        assert_eq!(ask(&socket, &[SIGN_REQUEST, 1, 2]), Some(14));
        assert_eq!(ask(&socket, &[&[EXTENSION], SESSION_BIND].concat()), Some(28));
        // Add, remove, remove all, lock, another extension, nothing known.
        for kind in [17, 18, 19, 22, EXTENSION, 200] {
            assert_eq!(ask(&socket, &[kind]), Some(5), "{kind}");
        }
        // Too long and empty messages end the connection.
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(&u32::MAX.to_be_bytes()).unwrap();
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
        drop(proxy);
        assert!(UnixStream::connect(&socket).is_err(), "nobody listens any more");
    }

    #[test]
    fn an_agent_is_one_socket_or_keys() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("id_ed25519.pub");
        std::fs::write(&file, "ssh-ed25519 AAAA me\n").unwrap();
        let arg = |paths: &[&Path]| AgentArg {
            id: "default".into(),
            paths: paths.iter().map(|path| path.to_path_buf()).collect(),
        };
        let error = Agents::new(&[arg(&[&file])]).unwrap_err();
        assert!(error.to_string().contains("neither an agent's socket nor a private key"), "{error}");
        assert!(error.hint().unwrap().contains("--ssh default"), "{:?}", error.hint());
        assert!(matches!(Agents::new(&[arg(&[&dir.path().join("none")])]), Err(AgentError::Look { .. })));
        let socket = agent(dir.path());
        assert!(matches!(Agents::new(&[arg(&[&socket])]).unwrap().get("default"), Some(Agent::Socket(_))));
        assert!(matches!(Agents::new(&[arg(&[&socket, &socket])]), Err(AgentError::Several { .. })));
    }
}
