//! `RUN --mount` as the graph has it: defaults filled in, paths absolute.

use rbuild_oci::{Canonical, CanonicalWriter};

/// One mount of a RUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mount {
    /// Files of another tree.
    Bind(BindMount),
    /// A directory that outlives the build.
    Cache(CacheMount),
    /// Memory.
    Tmpfs(TmpfsMount),
    /// A secret, as a file, a variable or both.
    Secret(SecretMount),
    /// A socket to an SSH agent.
    Ssh(SshMount),
}

/// `type=bind`. Its tree is the input with the mount's index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindMount {
    /// Where, absolute and cleaned.
    pub target: String,
    /// What of the tree, cleaned, without leading `/`; empty means all of it.
    pub source: String,
    /// The step may write; what it writes is dropped.
    pub writable: bool,
    /// The tree is a build context whose owners mean nothing: everything is root's.
    pub from_context: bool,
}

/// `type=cache`. When there is an input with the mount's index, a new cache starts with what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMount {
    /// Where, absolute and cleaned.
    pub target: String,
    /// Which cache.
    pub id: String,
    /// Who may use it at the same time.
    pub sharing: Sharing,
    /// What of the input's tree, as in [`BindMount::source`].
    pub source: String,
    /// As [`BindMount::from_context`].
    pub from_context: bool,
    /// The step may not write.
    pub read_only: bool,
    /// Permission bits of a new cache.
    pub mode: u32,
    /// Owner of a new cache.
    pub uid: u32,
    /// Group of a new cache.
    pub gid: u32,
}

/// Who may use a cache at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sharing {
    /// Everybody.
    #[default]
    Shared,
    /// Each has one of its own.
    Private,
    /// One after the other.
    Locked,
}

/// `type=tmpfs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TmpfsMount {
    /// Where, absolute and cleaned.
    pub target: String,
    /// Most bytes in it; `None` leaves it to the kernel.
    pub size_bytes: Option<u64>,
}

/// `type=secret`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretMount {
    /// Its name for `--secret`.
    pub id: String,
    /// File to show it as.
    pub target: Option<String>,
    /// Variable to show it as.
    pub env: Option<String>,
    /// Without it the step must not run.
    pub required: bool,
    /// Permission bits of the file.
    pub mode: u32,
    /// Owner of the file.
    pub uid: u32,
    /// Group of the file.
    pub gid: u32,
}

/// `type=ssh`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshMount {
    /// Its name for `--ssh`.
    pub id: String,
    /// The socket.
    pub target: String,
    /// Without it the step must not run.
    pub required: bool,
    /// Permission bits of the socket.
    pub mode: u32,
    /// Owner of the socket.
    pub uid: u32,
    /// Group of the socket.
    pub gid: u32,
}

impl Mount {
    /// Where it appears; `None` for a secret that is a variable only.
    pub fn target(&self) -> Option<&str> {
        match self {
            Self::Bind(mount) => Some(&mount.target),
            Self::Cache(mount) => Some(&mount.target),
            Self::Tmpfs(mount) => Some(&mount.target),
            Self::Secret(mount) => mount.target.as_deref(),
            Self::Ssh(mount) => Some(&mount.target),
        }
    }

    /// What of it is in the key, in words.
    pub fn declaration(&self) -> String {
        let switch = |name: &str, is_set: bool| if is_set { format!(",{name}") } else { String::new() };
        let owner = |mode: u32, uid: u32, gid: u32| format!(",mode={mode:04o},uid={uid},gid={gid}");
        match self {
            Self::Bind(m) => format!(
                "type=bind,target={},source={}{}{}",
                m.target,
                m.source,
                switch("rw", m.writable),
                switch("from a context", m.from_context)
            ),
            Self::Cache(m) => format!(
                "type=cache,target={},source={}{}{}{}",
                m.target,
                m.source,
                owner(m.mode, m.uid, m.gid),
                switch("ro", m.read_only),
                switch("from a context", m.from_context)
            ),
            Self::Tmpfs(m) => format!("type=tmpfs,target={},size={}", m.target, m.size_bytes.unwrap_or(0)),
            Self::Secret(m) => format!(
                "type=secret,id={},target={},env={}{}{}",
                m.id,
                m.target.as_deref().unwrap_or_default(),
                m.env.as_deref().unwrap_or_default(),
                owner(m.mode, m.uid, m.gid),
                switch("required", m.required)
            ),
            Self::Ssh(m) => format!(
                "type=ssh,id={},target={}{}{}",
                m.id,
                m.target,
                owner(m.mode, m.uid, m.gid),
                switch("required", m.required)
            ),
        }
    }

    /// True when it reads a build context whose owners mean nothing.
    pub fn is_from_context(&self) -> bool {
        match self {
            Self::Bind(mount) => mount.from_context,
            Self::Cache(mount) => mount.from_context,
            Self::Tmpfs(_) | Self::Secret(_) | Self::Ssh(_) => false,
        }
    }

    /// Path that it takes of its input's tree, when it has an input.
    pub fn source(&self) -> &str {
        match self {
            Self::Bind(mount) => &mount.source,
            Self::Cache(mount) => &mount.source,
            Self::Tmpfs(_) | Self::Secret(_) | Self::Ssh(_) => "",
        }
    }
}

/// Declarations only: what is in a secret, an agent or a cache, and which cache it is, changes no key.
impl Canonical for Mount {
    fn write(&self, out: &mut CanonicalWriter) {
        let file = |out: &mut CanonicalWriter, mode: u32, uid: u32, gid: u32| {
            out.u64(mode.into()).u64(uid.into()).u64(gid.into());
        };
        match self {
            Self::Bind(BindMount { target, source, writable, from_context }) => {
                out.str("bind").str(target).str(source).bool(*writable).bool(*from_context);
            }
            // Which cache it is changes nothing, as with BuildKit.
            Self::Cache(CacheMount {
                target,
                id: _,
                sharing: _,
                source,
                from_context,
                read_only,
                mode,
                uid,
                gid,
            }) => {
                out.str("cache").str(target).str(source).bool(*from_context).bool(*read_only);
                file(out, *mode, *uid, *gid);
            }
            Self::Tmpfs(TmpfsMount { target, size_bytes }) => {
                out.str("tmpfs").str(target).value(size_bytes);
            }
            Self::Secret(SecretMount { id, target, env, required, mode, uid, gid }) => {
                out.str("secret").str(id).value(target).value(env).bool(*required);
                file(out, *mode, *uid, *gid);
            }
            Self::Ssh(SshMount { id, target, required, mode, uid, gid }) => {
                out.str("ssh").str(id).str(target).bool(*required);
                file(out, *mode, *uid, *gid);
            }
        }
    }
}
