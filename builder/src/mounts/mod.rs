//! `RUN --mount`: from what the graph says to what the sandbox mounts.
//!
//! | module | for |
//! |---|---|
//! | `bind` | trees of stages, images and contexts |
//! | `cache` | directories that outlive the build |
//! | `secret`, `redact` | secrets: finding them, and keeping them out of output |
//! | `ssh` | a socket that leads to an SSH agent |
//!
//! What is made for one step only is undone when its [`Prepared`] is dropped.

mod bind;
pub mod cache;
pub mod redact;
pub mod secret;
pub mod ssh;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rbuild_cache::scratch::Scratch;
use rbuild_cache::store::{CacheMount, ScratchDir};
use rbuild_cache::tree::select::{Selected, mounted_digest, select_path};
use rbuild_cache::tree::{NodeStore, Tree};
use rbuild_frontend::graph::{Mount, RunOp, SecretMount, SshMount};
use rbuild_sandbox::{MountSource, Rung, StepMount};

use crate::cli::SecretBytes;
use crate::error::StepFailure;
use crate::ops::ExecEnv;
use crate::ops::copy::Origin;
use crate::ops::select::SelectionError;

pub use bind::Materialised;
use cache::Caches;

/// The part of a tree that a mount takes.
#[derive(Debug)]
pub struct Mounted {
    /// It, with its real path.
    pub selected: Selected,
    /// Its identity, for keys.
    pub digest: [u8; 32],
}

impl Mounted {
    /// Finds it, without touching files.
    pub fn of(
        mount: &Mount,
        tree: &Tree,
        nodes: &dyn NodeStore,
        scratch: &Scratch,
    ) -> Result<Self, SelectionError> {
        let selected = select_path(tree, nodes, mount.source().as_bytes())?;
        let digest = mounted_digest(&selected, nodes, scratch)?;
        Ok(Self { selected, digest })
    }
}

/// A tree that a mount reads.
#[derive(Clone)]
pub struct MountInput {
    /// Which of the step's mounts.
    pub index: usize,
    /// Which of the node's inputs.
    pub slot: u16,
    /// Where its files are.
    pub origin: Origin,
    /// What of it.
    pub mounted: Arc<Mounted>,
}

/// What a step gets, and what has to go after it.
#[derive(Default)]
pub struct Prepared {
    /// For the sandbox.
    pub mounts: Vec<StepMount>,
    /// Variables that secrets are.
    pub env: Vec<(String, String)>,
    /// Secrets that the step knows.
    pub secrets: Vec<SecretBytes>,
    /// What the sandbox keeps open for as long as the step lives.
    pub held: Vec<Arc<OwnedFd>>,
    agents: Vec<ssh::Proxy>,
    /// Held, not looked at.
    _caches: Vec<Arc<CacheMount>>,
    /// Directories that are thrown away. Last, when the trees are closed: what is below them is a mount's.
    scratch: Vec<ScratchDir>,
}

/// Prepares all mounts of a step. Everything that can be missing is missed here, before the command runs. `caches` were
/// taken by [`cache::take`].
pub fn prepare(
    env: &ExecEnv,
    op: &RunOp,
    inputs: &[MountInput],
    caches: &Caches,
) -> Result<Prepared, StepFailure> {
    let mut prepared = Prepared::default();
    for (index, mount) in op.mounts.iter().enumerate() {
        let input = inputs.iter().find(|input| input.index == index);
        match mount {
            Mount::Bind(bind) => {
                let input = input.expect("every bind mount has an input");
                // Mount points of what is below it have to be made somewhere.
                let is_outer = op.mounts.iter().filter_map(Mount::target).any(|other| {
                    other.strip_prefix(bind.target.as_str()).is_some_and(|below| below.starts_with('/'))
                });
                let source = bind::tree(
                    env,
                    input,
                    bind.from_context,
                    bind.writable || is_outer,
                    &mut prepared.scratch,
                )?;
                prepared.mounts.push(StepMount {
                    target: bind.target.clone(),
                    source,
                    read_only: !bind.writable,
                });
            }
            Mount::Tmpfs(tmpfs) => {
                let size_bytes = tmpfs.size_bytes;
                let source = match env.failed_step {
                    None => MountSource::Tmpfs { size_bytes },
                    // It goes with the step otherwise, and a shell in the step is to find what was left there.
                    Some(_) => {
                        let failed = |source| StepFailure::Io {
                            what: "set up the mount of",
                            path: tmpfs.target.clone(),
                            source,
                        };
                        let root = Arc::new(rbuild_sandbox::tmpfs(size_bytes).map_err(failed)?);
                        MountSource::Tree { root, path: String::new() }
                    }
                };
                prepared.mounts.push(StepMount { target: tmpfs.target.clone(), source, read_only: false });
            }
            Mount::Secret(secret) => prepared.add_secret(env, secret)?,
            Mount::Cache(mount) => {
                let cache = caches.get(&index).expect("the step's caches were taken");
                let io = |source| StepFailure::Io { what: "hold", path: "a cache mount".to_owned(), source };
                let root = cache.data().try_clone().map_err(io)?;
                prepared.mounts.push(StepMount {
                    target: mount.target.clone(),
                    source: MountSource::Tree { root: Arc::new(root), path: String::new() },
                    read_only: mount.read_only,
                });
                prepared.held.push(Arc::new(cache.lock().map_err(io)?));
                prepared._caches.push(Arc::clone(cache));
            }
            Mount::Ssh(ssh) => prepared.add_agent(env, ssh)?,
        }
    }
    Ok(prepared)
}

/// What of a step's mounts can be had where nothing is mounted: secrets as variables, agents, and what nobody gave and
/// nobody requires.
pub fn prepare_without_mounts(env: &ExecEnv, op: &RunOp) -> Result<Prepared, StepFailure> {
    let mut prepared = Prepared::default();
    for mount in &op.mounts {
        match mount {
            Mount::Secret(secret) => {
                if secret.target.is_some() && env.secrets.get(&secret.id)?.is_some() {
                    return Err(StepFailure::SecretFileInChroot { id: secret.id.clone() });
                }
                prepared.add_secret(env, secret)?;
            }
            Mount::Ssh(ssh) => prepared.add_agent(env, ssh)?,
            Mount::Bind(_) | Mount::Cache(_) | Mount::Tmpfs(_) => return Err(StepFailure::MountsInChroot),
        }
    }
    Ok(prepared)
}

/// The owner that something mounted can have: where one id is mapped every user of a step is that one.
fn owner(env: &ExecEnv, uid: u32, gid: u32) -> (u32, u32) {
    if env.rung == Rung::Single { (0, 0) } else { (uid, gid) }
}

impl Prepared {
    fn add_agent(&mut self, env: &ExecEnv, mount: &SshMount) -> Result<(), StepFailure> {
        let Some(agent) = env.agents.get(&mount.id) else {
            return match mount.required {
                true => Err(StepFailure::NoAgent { id: mount.id.clone() }),
                false => Ok(()),
            };
        };
        let dir = env.lease.scratch_dir()?;
        let (uid, gid) = owner(env, mount.uid, mount.gid);
        let proxy = ssh::Proxy::start(agent, dir.path(), mount.mode, uid, gid)?;
        self.mounts.push(StepMount {
            target: mount.target.clone(),
            source: MountSource::Tree {
                root: Arc::new(proxy.socket().map_err(ssh::AgentError::Socket)?),
                path: String::new(),
            },
            read_only: false,
        });
        self.agents.push(proxy);
        self.scratch.push(dir);
        Ok(())
    }

    fn add_secret(&mut self, env: &ExecEnv, mount: &SecretMount) -> Result<(), StepFailure> {
        let Some(secret) = env.secrets.get(&mount.id)? else {
            return match mount.required {
                true => Err(StepFailure::NoSecret { id: mount.id.clone() }),
                false => Ok(()),
            };
        };
        if let Some(name) = &mount.env {
            let value = String::from_utf8(secret.expose().to_vec())
                .ok()
                .filter(|value| !value.contains('\0'))
                .ok_or_else(|| StepFailure::SecretNotText { id: mount.id.clone() })?;
            self.env.push((name.clone(), value));
        }
        if let Some(target) = &mount.target {
            let (uid, gid) = owner(env, mount.uid, mount.gid);
            self.mounts.push(StepMount {
                target: target.clone(),
                source: MountSource::File { mode: mount.mode, uid, gid, content: secret.expose().to_vec() },
                read_only: true,
            });
        }
        self.secrets.push(secret);
        Ok(())
    }
}
