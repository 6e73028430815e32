//! `RUN --mount`: options to [`Mount`]s and the nodes they read.

use petgraph::graph::NodeIndex;

use crate::ast::{RunInstruction, Spanned};
use crate::dockerignore::clean;
use crate::expand;
use crate::graph::{BindMount, CacheMount, Mount, Role, SecretMount, Sharing, SshMount, TmpfsMount};
use crate::parse::Issue;
use crate::parse::mount::{Field, fields, go_bool};
use crate::suggest;

use rbuild_oci::parse_bytes;

use super::bases::Source;
use super::pass::{Pass, failed};
use super::stages::Work;

/// Most mounts of one RUN.
const MOUNTS_MAX: usize = 64;
/// File systems of the sandbox: nothing is mounted over them, and nothing below those two that are the kernel's.
const KERNEL_DIRS: [&str; 2] = ["/proc", "/sys"];

/// What a RUN's mounts come to.
pub(super) struct Lowered {
    pub(super) mounts: Vec<Mount>,
    /// Trees that they read, by index of the mount.
    pub(super) inputs: Vec<(Role, NodeIndex)>,
    /// Not all of those are known yet: this pass will not be the last.
    pub(super) is_partial: bool,
}

/// The options of one mount as they were written.
#[derive(Default)]
struct Options {
    kind: Kind,
    from: Option<String>,
    source: String,
    target: String,
    read_only: Option<bool>,
    required: bool,
    size_bytes: Option<u64>,
    id: Option<String>,
    sharing: Option<Sharing>,
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    env: Option<String>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Cache => "cache",
            Self::Tmpfs => "tmpfs",
            Self::Secret => "secret",
            Self::Ssh => "ssh",
        }
    }
}

impl Pass<'_> {
    pub(super) fn mounts(&mut self, work: &mut Work, run: &RunInstruction) -> Result<Lowered, Issue> {
        let mut lowered = Lowered { mounts: Vec::new(), inputs: Vec::new(), is_partial: false };
        if let Some(excess) = run.mounts.get(MOUNTS_MAX) {
            return Err(Issue::new(format!("a RUN has at most {MOUNTS_MAX} mounts"), excess.span));
        }
        let mut sockets = 0;
        for (index, text) in (0_u16..).zip(&run.mounts) {
            let options = self.options_of(work, text)?;
            let mut mount = mount(&options, work.state.workdir(), &mut sockets)
                .map_err(|message| Issue::new(message, text.span))?;
            if let Some(target) = mount.target() {
                check_target(target).map_err(|message| Issue::new(message, text.span))?;
                if lowered.mounts.iter().any(|other: &Mount| other.target() == Some(target)) {
                    return Err(Issue::new(format!("duplicate mount target {target:?}"), text.span));
                }
            }
            let reads_context = options.kind == Kind::Bind && options.from.is_none();
            if reads_context || options.from.is_some() {
                let from_context;
                let node = match &options.from {
                    None => {
                        from_context = !self.options.context_has_owners;
                        Some(self.context_node(None))
                    }
                    Some(from) => {
                        let (span, lines) = work.place(text.span);
                        let found = self.mount_source(from, mount.target(), work.stage, span, lines)?;
                        from_context = matches!(&found, Source::Local(name) if !self.has_owners(name));
                        self.source_node(work, found)
                    }
                };
                match &mut mount {
                    Mount::Bind(mount) => mount.from_context = from_context,
                    Mount::Cache(mount) => mount.from_context = from_context,
                    Mount::Tmpfs(_) | Mount::Secret(_) | Mount::Ssh(_) => {}
                }
                match node {
                    Some(node) => lowered.inputs.push((Role::Mount(index), node)),
                    None => lowered.is_partial = true,
                }
            }
            lowered.mounts.push(mount);
        }
        Ok(lowered)
    }

    fn options_of(&mut self, work: &Work, text: &Spanned<String>) -> Result<Options, Issue> {
        let mut options = Options::default();
        for field in fields(&text.value) {
            let value = match &field.value {
                None => None,
                Some(value) if field.key == "from" => Some(value.clone()),
                Some(value) => {
                    let expansion = expand::word(value, self.ast.escape, &work.state);
                    let expansion = expansion.map_err(|error| failed(text, &error))?;
                    self.undefined(work, &expansion.unset, text.span);
                    self.charge(expansion.text.len(), text.span)?;
                    Some(expansion.text)
                }
            };
            options.set(&field, value).map_err(|message| Issue::new(message, text.span))?;
        }
        options.check().map_err(|message| Issue::new(message, text.span))?;
        Ok(options)
    }
}

impl Options {
    /// Takes one field; what a key means depends on the type given before it, as with BuildKit.
    fn set(&mut self, field: &Field, value: Option<String>) -> Result<(), String> {
        let key = field.key.as_str();
        let unexpected = || format!("unexpected key '{key}' for mount type '{}'", self.kind.name());
        let Some(value) = value else {
            match key {
                "readonly" | "ro" => self.read_only = Some(true),
                "readwrite" | "rw" => self.read_only = Some(false),
                "required" if self.may_be_required() => self.required = true,
                _ => return Err(unexpected()),
            }
            return Ok(());
        };
        let wrong = || format!("invalid value for {key}: {value}");
        let number = |radix| {
            let parsed = u32::from_str_radix(&value, radix).ok().filter(|_| !value.starts_with('+'));
            parsed.ok_or_else(|| format!("invalid value {value} for {key}"))
        };
        match key {
            "type" => {
                self.kind = match value.to_lowercase().as_str() {
                    "bind" => Kind::Bind,
                    "cache" => Kind::Cache,
                    "tmpfs" => Kind::Tmpfs,
                    "secret" => Kind::Secret,
                    "ssh" => Kind::Ssh,
                    other => return Err(crate::parse::mount::unsupported_type(other)),
                }
            }
            "from" => self.from = Some(value).filter(|from| !from.is_empty()),
            "source" | "src" => self.source = value,
            "target" | "dst" | "destination" => self.target = value,
            "readonly" | "ro" => self.read_only = Some(go_bool(&value).ok_or_else(wrong)?),
            "readwrite" | "rw" => self.read_only = Some(!go_bool(&value).ok_or_else(wrong)?),
            "required" if self.may_be_required() => self.required = go_bool(&value).ok_or_else(wrong)?,
            "size" if self.kind == Kind::Tmpfs => {
                self.size_bytes = Some(parse_bytes(&value).ok_or_else(wrong)?).filter(|size| *size > 0);
            }
            "required" | "size" => return Err(unexpected()),
            "id" => self.id = Some(value).filter(|id| !id.is_empty()),
            "sharing" => {
                self.sharing = Some(match value.to_lowercase().as_str() {
                    "shared" => Sharing::Shared,
                    "private" => Sharing::Private,
                    "locked" => Sharing::Locked,
                    other => {
                        let hint = suggest::hint(other, ["shared", "private", "locked"]);
                        return Err(format!("unsupported sharing value {value:?}{hint}"));
                    }
                });
            }
            "mode" => {
                self.mode = Some(number(8)?);
                if self.mode > Some(0o7777) {
                    return Err(format!("invalid value {value} for mode"));
                }
            }
            "uid" => self.uid = Some(number(10)?),
            "gid" => self.gid = Some(number(10)?),
            "env" => self.env = Some(value),
            _ => return Err(format!("unexpected key '{key}'")),
        }
        Ok(())
    }

    fn may_be_required(&self) -> bool {
        matches!(self.kind, Kind::Secret | Kind::Ssh)
    }

    /// What only the whole mount shows.
    fn check(&self) -> Result<(), String> {
        let kind = self.kind.name();
        if matches!(self.kind, Kind::Bind | Kind::Tmpfs) {
            let given = [("mode", self.mode), ("uid", self.uid), ("gid", self.gid)];
            if let Some((key, _)) = given.iter().find(|(_, value)| value.is_some()) {
                return Err(format!("{key} not allowed for {kind:?} type mounts"));
            }
        }
        if self.sharing.is_some() && self.kind != Kind::Cache {
            return Err(format!("invalid cache sharing set for {kind} mount"));
        }
        if self.env.is_some() && self.kind != Kind::Secret {
            return Err(format!("unexpected key 'env' for mount type '{kind}'"));
        }
        if self.from.is_some() && !matches!(self.kind, Kind::Bind | Kind::Cache) {
            return Err(format!("{kind} mount should not have a from"));
        }
        if self.kind == Kind::Secret {
            if self.source.is_empty() && self.target.is_empty() && self.id.is_none() {
                return Err("invalid secret mount. one of source, target required".to_owned());
            }
            if !self.source.is_empty() && self.id.is_some() {
                return Err("both source and id can't be set".to_owned());
            }
            if self.env.as_ref().is_some_and(|name| name.is_empty() || name.contains(['=', '\0'])) {
                return Err("invalid secret mount. env must be the name of a variable".to_owned());
            }
        }
        Ok(())
    }
}

fn mount(options: &Options, workdir: &str, sockets: &mut usize) -> Result<Mount, String> {
    let target = absolute(workdir, &options.target);
    let source = || match clean(&format!("/{}", options.source)).as_str() {
        "/" => String::new(),
        path => path.trim_start_matches('/').to_owned(),
    };
    let base = |path: &str| path.rsplit('/').find(|name| !name.is_empty()).unwrap_or_default().to_owned();
    let (uid, gid) = (options.uid.unwrap_or(0), options.gid.unwrap_or(0));
    Ok(match options.kind {
        Kind::Bind => Mount::Bind(BindMount {
            target,
            source: source(),
            writable: options.read_only == Some(false),
            from_context: false,
        }),
        Kind::Cache => Mount::Cache(CacheMount {
            id: options.id.clone().unwrap_or_else(|| clean(&options.target)),
            target,
            sharing: options.sharing.unwrap_or_default(),
            source: source(),
            from_context: false,
            read_only: options.read_only == Some(true),
            mode: options.mode.unwrap_or(0o755),
            uid,
            gid,
        }),
        Kind::Tmpfs => Mount::Tmpfs(TmpfsMount { target, size_bytes: options.size_bytes }),
        Kind::Secret => {
            let named = options.id.clone().or(Some(options.source.clone()).filter(|text| !text.is_empty()));
            let id = named.unwrap_or_else(|| base(&options.target));
            if id.is_empty() {
                return Err("invalid secret mount. one of source, target required".to_owned());
            }
            let default = || format!("/run/secrets/{}", base(&id));
            let target = match (&options.env, options.target.is_empty()) {
                (_, false) => Some(target),
                (None, true) => Some(default()),
                (Some(_), true) => None,
            };
            let (env, required) = (options.env.clone(), options.required);
            Mount::Secret(SecretMount {
                id,
                target,
                env,
                required,
                mode: options.mode.unwrap_or(0o400),
                uid,
                gid,
            })
        }
        Kind::Ssh => {
            let number = *sockets;
            *sockets += 1;
            let target = match options.target.is_empty() {
                true => format!("/run/buildkit/ssh_agent.{number}"),
                false => target,
            };
            Mount::Ssh(SshMount {
                id: options.id.clone().unwrap_or_else(|| "default".to_owned()),
                target,
                required: options.required,
                mode: options.mode.unwrap_or(0o600),
                uid,
                gid,
            })
        }
    })
}

fn absolute(workdir: &str, path: &str) -> String {
    if path.starts_with('/') { clean(path) } else { clean(&format!("/{workdir}/{path}")) }
}

fn check_target(target: &str) -> Result<(), String> {
    let is_kernels = KERNEL_DIRS
        .iter()
        .any(|dir| target.strip_prefix(dir).is_some_and(|below| below.is_empty() || below.starts_with('/')));
    if target == "/" || target == "/dev" || is_kernels || target.contains('\0') {
        return Err(format!("invalid mount target {target:?}"));
    }
    Ok(())
}
