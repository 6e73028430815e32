//! The build graph: what a Dockerfile means, as typed operations over filesystem states.
//!
//! Every op has exactly one output, a tree. Nodes are interned: equal `(op, inputs)` are one node, so stages that say
//! the same thing share work. Metadata instructions (ENV, LABEL, CMD, …) make no node; they only shape a
//! [`Target`]'s config and history.
//!
//! What enters an op's identity is what its [`Canonical`] impl writes; [`Step`] (names, spans) never does.
//! This module knows nothing of the AST, so that a second frontend could produce the same type.

use std::collections::BTreeSet;

use petgraph::graph::{DiGraph, NodeIndex};
use rbuild_oci::{Canonical, CanonicalWriter, Digest, FileMode, ImageConfig, Platform};

use crate::remote::GitSource;
use crate::span::Lines;

mod draw;
mod dump;
mod mount;

pub use mount::{BindMount, CacheMount, Mount, SecretMount, Sharing, SshMount, TmpfsMount};

/// The graph and what was asked for.
#[derive(Debug)]
pub struct BuildGraph {
    /// Ops and how outputs flow into inputs (edge from producer to consumer).
    pub dag: DiGraph<Node, Input>,
    /// One per requested platform, in the order asked for; never empty.
    pub targets: Vec<Target>,
}

/// One node: the op, and how to talk about it.
#[derive(Debug, Clone)]
pub struct Node {
    /// What is done.
    pub op: Op,
    /// Who says so first.
    pub step: Step,
    /// Other stages that say the same.
    pub also_in: BTreeSet<String>,
}

impl Node {
    /// The stages that it is in, the one first that shows it.
    pub fn stages(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.step.stage).chain(&self.also_in).map(String::as_str)
    }
}

/// How a node appears to people. Not part of its identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// `[build 2/4] RUN make`: the plain progress name.
    pub name: String,
    /// Stage name as written (or `stage-N`), for filters such as `--no-cache-filter`.
    pub stage: String,
    /// Lines of the instruction in the Dockerfile, for excerpts. `None` for nodes without one.
    pub lines: Option<Lines>,
}

/// How an input is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Position among the op's inputs: 0 is the root that the result builds on.
    pub slot: u16,
    /// What the op does with it.
    pub role: Role,
}

/// What an op does with an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The result is this tree plus the op's changes.
    Root,
    /// Files are copied from it (COPY, ADD). The selection is in [`CopyOp::sources`].
    Source,
    /// A file or repository that ADD fetches. Which source it is says [`CopySource::Remote`].
    Added,
    /// It is mounted during RUN. The selection is in the RUN's mount with this index.
    Mount(u16),
}

/// An operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// The empty tree.
    Scratch,
    /// A base image, pinned.
    Image(ImageOp),
    /// The files of a build context, after its ignore file.
    Context(ContextOp),
    /// A file from a web server.
    Http(HttpOp),
    /// A state of a git repository.
    Git(GitOp),
    /// COPY or ADD.
    Copy(CopyOp),
    /// WORKDIR: makes a directory.
    Workdir(WorkdirOp),
    /// RUN.
    Run(RunOp),
}

/// A pinned base image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageOp {
    /// Normalised reference, for people and for pulling. Not part of the identity.
    pub reference: String,
    /// Digest of the image manifest (never of an index).
    pub manifest: Digest,
    /// Platform chosen.
    pub platform: Platform,
}

/// A local build context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextOp {
    /// `None` for the main context, else the name given with `--build-context`.
    pub name: Option<String>,
}

/// A file from a web server. No inputs; its tree has the one file in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpOp {
    /// Address as written.
    pub url: String,
    /// Name of the file.
    pub name: String,
    /// What its bytes must be, where the instruction says so.
    pub checksum: Option<Digest>,
    /// What its bytes are: filled in by who runs the graph, before keys are made.
    pub content: Option<Digest>,
}

/// A state of a git repository. No inputs; its tree is that of the commit, or of a directory in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitOp {
    /// What was asked for.
    pub source: GitSource,
    /// True when `.git` is to be there too.
    pub keep_git_dir: bool,
    /// The commit that the reference leads to: filled in by who runs the graph, before keys are made.
    pub commit: Option<String>,
}

/// Where a copied thing comes from within the op's source input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopySource {
    /// A path or Go wildcard pattern, relative to the source root, cleaned, without leading `/`; empty means the
    /// whole root.
    Path(String),
    /// `COPY --parents`: all that an ignore-file pattern matches, with its path kept.
    Below {
        /// What paths are kept relative to: as in [`CopySource::Path`].
        pivot: String,
        /// Relative to the pivot, cleaned; `**` is any depth. Empty means everything.
        pattern: String,
    },
    /// All of an input of its own, with the role [`Role::Added`].
    Remote {
        /// Slot of the input.
        slot: u16,
        /// How to take it.
        form: RemoteForm,
    },
    /// A here-document.
    Inline {
        /// File name (the heredoc word).
        name: String,
        /// Its bytes after expansion.
        content: String,
    },
}

/// How ADD takes what it fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteForm {
    /// The one file.
    File,
    /// The one file, unpacked if it is an archive.
    Archive,
    /// All that is there.
    Tree,
}

impl RemoteForm {
    /// `file`, `archive`, `tree`.
    pub fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Archive => "archive",
            Self::Tree => "tree",
        }
    }
}

/// Owner for COPY and ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chown {
    /// `--chown` text after expansion (`user[:group]`), never empty.
    pub text: String,
}

/// COPY or ADD of files. Inputs: slot 0 the root; then the source, absent when no path is copied; then what ADD
/// fetches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyOp {
    /// Sources in order.
    pub sources: Vec<CopySource>,
    /// Destination: absolute, cleaned, ends in `/` exactly when it must be a directory.
    pub dest: String,
    /// Owner; `None` means 0:0 for context files and kept for `--from`.
    pub chown: Option<Chown>,
    /// `--chmod`.
    pub chmod: Option<FileMode>,
    /// True when the source is a build context, so owners are not taken from the host.
    pub from_context: bool,
    /// True for ADD, unless it says otherwise: local archives are unpacked.
    pub unpack: bool,
    /// `--link`: the files are copied onto nothing and the layer is put on top of the root, whatever the root has.
    pub link: bool,
    /// `--exclude`: ignore-file patterns, relative to each copied directory.
    pub exclude: Vec<String>,
}

/// WORKDIR's directory. Input: slot 0 the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkdirOp {
    /// Absolute, cleaned.
    pub path: String,
    /// USER in force, as written; owner of components that are newly made. Empty means root.
    pub user: String,
}

/// Network of a RUN step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// What the builder gives by default.
    #[default]
    Default,
    /// Only a loopback device.
    None,
    /// The host's.
    Host,
}

/// RUN. Inputs: slot 0 the root; then one for each mount that reads a tree ([`Role::Mount`]), in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOp {
    /// Full argv, shell included.
    pub argv: Vec<String>,
    /// Environment in order: image ENV, then declared ARGs with a value. Unique names.
    pub env: Vec<(String, String)>,
    /// Names in `env` that are ARGs, for people; not part of the identity.
    pub arg_names: Vec<String>,
    /// Proxy variables: given to the step, not part of the identity.
    pub proxy_env: Vec<(String, String)>,
    /// Working directory, absolute.
    pub cwd: String,
    /// USER text; empty means root.
    pub user: String,
    /// Network.
    pub network: Network,
    /// `--security=insecure`: every capability, nothing filtered or hidden.
    pub insecure: bool,
    /// What is mounted, in the order written; no two have one target.
    pub mounts: Vec<Mount>,
    /// Devices that it gets, in the order written.
    pub devices: Vec<DeviceRequest>,
    /// Names that `/etc/hosts` gets besides `localhost`. Their addresses are the executor's and no part of the identity.
    pub host_names: Vec<String>,
    /// Name of the machine that the step sees, when one is asked for (`BUILDKIT_SANDBOX_HOSTNAME`).
    pub hostname: Option<String>,
    /// Platform the step runs for.
    pub platform: Platform,
    /// A script that is executed directly (heredoc starting `#!`): its text, mounted read-only at the path in
    /// `argv[0]`, mode 0755.
    pub script: Option<String>,
}

/// A device of the machine that a step asks for (`--device`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceRequest {
    /// As written: `vendor/class=name`, `vendor/class`, `vendor/class=*`, or a name that the command line explains.
    pub name: String,
    /// The step fails without.
    pub required: bool,
}

/// A finished image description, still without layers' digests.
#[derive(Debug, Clone)]
pub struct Target {
    /// Node whose tree is the image's filesystem.
    pub node: NodeIndex,
    /// Stage name as written, or `stage-N`.
    pub stage: String,
    /// Config and platform. `history` and `rootfs` hold the base image's part only; `created` is empty.
    pub config: ImageConfig,
    /// This build's history entries, in order, after the base's.
    pub history: Vec<HistoryStep>,
    /// Nodes of the layers that this build adds, base first: the k-th `HistoryStep` with a layer belongs to the k-th
    /// node here.
    pub layers: Vec<NodeIndex>,
    /// The base image's manifest and the node that stands for it, `None` for scratch.
    pub base: Option<NodeIndex>,
    /// What else is searched for packages, when they are to be listed; each once.
    pub scans: Vec<Scan>,
}

/// Something that goes into an image in part, and whose packages are listed as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// The stage's name, or `context`.
    pub name: String,
    /// Its files: a step, or the main build context.
    pub node: NodeIndex,
}

/// One history entry of this build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryStep {
    /// `created_by` text.
    pub created_by: String,
    /// True when no layer belongs to it.
    pub empty_layer: bool,
}

impl BuildGraph {
    /// The inputs of a node, sorted by slot.
    pub fn inputs(&self, node: NodeIndex) -> Vec<(Input, NodeIndex)> {
        use petgraph::Direction::Incoming;
        use petgraph::visit::EdgeRef;
        let edges = self.dag.edges_directed(node, Incoming);
        let mut inputs: Vec<_> = edges.map(|e| (e.weight().clone(), e.source())).collect();
        inputs.sort_by_key(|(input, _)| input.slot);
        inputs
    }
}

impl Op {
    /// A word for logs and records: `image`, `copy`, `run`, …
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Scratch => "scratch",
            Self::Image(_) => "image",
            Self::Context(_) => "context",
            Self::Http(_) => "http",
            Self::Git(_) => "git",
            Self::Copy(_) => "copy",
            Self::Workdir(_) => "workdir",
            Self::Run(_) => "run",
        }
    }
}

/// What enters an op's identity, field by field. A field left out here never causes a miss; a field added here is a
/// bump of the version in the key's domain label.
///
/// | op | in | out |
/// |---|---|---|
/// | image | manifest digest | reference, platform |
/// | context | name | (its content enters through each consumer's selection) |
/// | http | name and content, or else name, url and checksum | |
/// | git | remote, subdir, submodules, keep_git_dir and commit, or else the reference | checksum |
/// | copy | sources (paths in the definition key only), dest, chown, chmod, from_context, unpack, link, exclude | |
/// | workdir | path, user | |
/// | run | argv, env, cwd, user, network, insecure, platform, script, host names, hostname, devices (name, required) | arg_names, what a device is, proxy_env, addresses of hosts, limits |
/// | bind mount | target, source, writable, from_context | (what is mounted enters through the input) |
/// | cache mount | target, source, from_context, read_only, mode, uid, gid | id, sharing, contents |
/// | tmpfs mount | target, size | |
/// | secret, ssh mount | id, target, env, required, mode, uid, gid | contents |
impl Canonical for Op {
    fn write(&self, out: &mut CanonicalWriter) {
        self.write_as(out, Identity::Definition);
    }
}

/// What the request says: what the machine has under that name is in no key.
impl Canonical for DeviceRequest {
    fn write(&self, out: &mut CanonicalWriter) {
        out.str(&self.name).bool(self.required);
    }
}

/// An op over inputs whose contents are known. As [`Op`]'s own identity, but that paths of COPY's sources are left out:
/// the digest of what they select is an input. A directory under another name copies the same.
#[derive(Debug, Clone, Copy)]
pub struct OverContents<'a>(pub &'a Op);

impl Canonical for OverContents<'_> {
    fn write(&self, out: &mut CanonicalWriter) {
        self.0.write_as(out, Identity::OverContents);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Identity {
    Definition,
    OverContents,
}

impl Op {
    fn write_as(&self, out: &mut CanonicalWriter, identity: Identity) {
        out.str(self.kind());
        match self {
            Self::Scratch => {}
            Self::Image(op) => {
                out.value(&op.manifest);
            }
            Self::Context(op) => {
                out.value(&op.name);
            }
            Self::Http(op) => {
                out.str(&op.name);
                match &op.content {
                    Some(content) => out.str("content").value(content),
                    None => out.str("url").str(&op.url).value(&op.checksum),
                };
            }
            Self::Git(op) => {
                let source = &op.source;
                out.str(&source.remote).str(&source.subdir).bool(source.submodules).bool(op.keep_git_dir);
                match &op.commit {
                    Some(commit) => out.str("commit").str(commit),
                    None => out.str("reference").str(&source.reference),
                };
            }
            Self::Copy(op) => {
                out.u64(op.sources.len() as u64);
                for source in &op.sources {
                    match source {
                        CopySource::Path(_) if identity == Identity::OverContents => out.str("path"),
                        CopySource::Below { .. } if identity == Identity::OverContents => out.str("below"),
                        CopySource::Path(path) => out.str("path").str(path),
                        CopySource::Below { pivot, pattern } => out.str("below").str(pivot).str(pattern),
                        CopySource::Remote { slot, form } => {
                            out.str("remote").u64(u64::from(*slot)).str(form.word())
                        }
                        CopySource::Inline { name, content } => out.str("inline").str(name).str(content),
                    };
                }
                out.str(&op.dest)
                    .value(&op.chown.as_ref().map(|c| c.text.clone()))
                    .value(&op.chmod)
                    .bool(op.from_context)
                    .bool(op.unpack)
                    .bool(op.link)
                    .value(&op.exclude);
            }
            Self::Workdir(op) => {
                out.str(&op.path).str(&op.user);
            }
            Self::Run(op) => {
                let network = match op.network {
                    Network::Default => "default",
                    Network::None => "none",
                    Network::Host => "host",
                };
                out.value(&op.argv)
                    .value(&op.env)
                    .str(&op.cwd)
                    .str(&op.user)
                    .str(network)
                    .bool(op.insecure)
                    .value(&op.mounts)
                    .value(&op.host_names)
                    .value(&op.platform)
                    .value(&op.script);
                // Only when there is one: all other steps keep their keys. What follows an op is a number below 65536.
                if let Some(hostname) = &op.hostname {
                    out.str("hostname").str(hostname);
                }
                if !op.devices.is_empty() {
                    out.str("devices").value(&op.devices);
                }
            }
        }
    }
}
