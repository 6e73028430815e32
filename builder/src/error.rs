//! What can go wrong in a build, by what was being done to which thing.

use std::path::PathBuf;
use std::sync::Arc;

use rbuild_cache::copy::{CopyError, MaterialiseError, PackLayerError, SourceError};
use rbuild_cache::layer::{
    DecompressError, EmitError, EncodeError, FlattenError, ListingError, ScanError as LayerScanError,
    UnpackBlobError, UnpackError,
};
use rbuild_cache::path::RelPath;
use rbuild_cache::store::{LayerDirError, StoreError};
use rbuild_cache::tree::{NodeStoreError, ResolveError as PathError, TreeError};
use rbuild_frontend::diagnostic::Diagnostic;
use rbuild_frontend::dockerignore::IgnoreError;
use rbuild_frontend::graph::Step;
use rbuild_frontend::span::Lines;
use rbuild_oci::{DiffId, Digest, ImageConfig, Platform};
use rbuild_registry::{FetchError, RegistryError};
use rbuild_sandbox::emulation::EmulationError;
use rbuild_sandbox::{BootstrapError, MountError, passwd::UserError};

use crate::commands::ImageError;
use crate::context::scan::ScanError;
use crate::context::stdin::StdinError;
use crate::debug::choose::ChoiceError;
use crate::debug::last::LastBuildError;
use crate::devices::DeviceError;
use crate::export::engine::EngineError;
use crate::export::files::FilesError;
use crate::git::GitError;
use crate::mounts::secret::SecretError;
use crate::mounts::ssh::AgentError;
use crate::ops::select::SelectionError;
use crate::resolve::ResolveError;
use crate::resolve::layout::LayoutError;

/// A build that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The Dockerfile has errors; each diagnostic is drawn on its own.
    #[error("the Dockerfile has errors")]
    Dockerfile(Vec<Diagnostic>),
    /// There is no Dockerfile.
    #[error("failed to read dockerfile: open {}: no such file or directory", .path.display())]
    NoDockerfile {
        /// Where it was looked for.
        path: PathBuf,
        /// Files beside it that look like one.
        similar: Vec<String>,
    },
    /// The Dockerfile or an ignore file cannot be read.
    #[error("failed to read `{}`", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A target that is not there.
    #[error(transparent)]
    Stage(rbuild_frontend::stage::StageError),
    /// The context is not a directory that can be read.
    #[error("unable to prepare context: path \"{}\" not found", .0.display())]
    NoContext(PathBuf),
    /// The context is something other than a directory.
    #[error("unable to prepare context: \"{}\" is not a directory", .0.display())]
    ContextNotDirectory(PathBuf),
    /// An ignore file has a bad pattern.
    #[error("failed to parse `{}`", .path.display())]
    Ignore {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: IgnoreError,
    },
    /// Standard input is no context.
    #[error(transparent)]
    Stdin(#[from] StdinError),
    /// `SOURCE_DATE_EPOCH` names something that has no time.
    #[error("invalid SOURCE_DATE_EPOCH: {name}: {why}")]
    Epoch {
        /// Context or stage.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A named context that is one file.
    #[error("{0} is not an archive: a named context on a web server must be one")]
    NotAnArchive(String),
    /// The context cannot be scanned.
    #[error("failed to read the build context")]
    Scan(#[from] ScanError),
    /// A base image cannot be had.
    #[error("failed to resolve source metadata for {reference}")]
    Base {
        /// Image, as normalised.
        reference: String,
        /// Lines of the instruction that names it.
        lines: Option<Lines>,
        /// Stage names that `--from` could have meant.
        stages: Vec<String>,
        /// Why.
        #[source]
        source: ResolveError,
    },
    /// An image for `pull` or `push` cannot be had.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// A step failed.
    #[error(transparent)]
    Step(Box<StepError>),
    /// Work outside a step failed.
    #[error(transparent)]
    Work(#[from] StepFailure),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer that an image needs is gone from the store.
    #[error("layer {0} is no longer in the store")]
    LayerVanished(String),
    /// `rbuild explain` was asked for something that is not remembered.
    #[error("no build and no step `{0}` is remembered")]
    NothingToExplain(String),
    /// `rbuild debug` found no step to open a shell in.
    #[error(transparent)]
    NoStepToEnter(#[from] ChoiceError),
    /// `rbuild debug` knows of no build.
    #[error(transparent)]
    LastBuild(#[from] LastBuildError),
    /// `--verify-cache` found steps that give something else when they are executed again.
    #[error("{differing} of {verified} cached results differ when their steps are executed again")]
    NotReproduced {
        /// How many differ.
        differing: usize,
        /// How many were executed again.
        verified: usize,
    },
    /// A result cannot be written.
    #[error("failed to write `{}`", .path.display())]
    Export {
        /// Where to.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// An annotation for an index that is not there.
    #[error("annotation `{key}` is for the index, and the result has none: it is a single image")]
    NoIndex {
        /// Its key.
        key: String,
    },
    /// The engine did not take an image.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The files of the image cannot be written.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The time of the last commit cannot be had.
    #[error("cannot tell when the last commit was made in `{}`: {why}", .dir.display())]
    GitTime {
        /// The context.
        dir: PathBuf,
        /// What git said.
        why: String,
    },
    /// A push failed.
    #[error("failed to push {reference}")]
    Push {
        /// Destination.
        reference: String,
        /// Why.
        #[source]
        source: Box<RegistryError>,
    },
    /// A destination that cannot be pushed to, found before anything ran.
    #[error("cannot push to {reference}: nothing was built")]
    Preflight {
        /// Repository.
        reference: String,
        /// Why.
        #[source]
        source: Box<RegistryError>,
        /// Other repositories that refuse, and why.
        others: Vec<(String, RegistryError)>,
    },
    /// No image of that name is in the store.
    #[error("An image does not exist locally with the tag: {0}")]
    NoSuchImage(String),
    /// There is no cache mount of that name.
    #[error("no such cache mount: {0}")]
    NoCacheMount(String),
    /// A cache mount that was to be removed is in use.
    #[error("the cache mount `{0}` is in use and was kept")]
    CacheMountInUse(String),
    /// A command on images or credentials failed.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Registry settings are broken.
    #[error(transparent)]
    RegistryConfig(#[from] rbuild_registry::ConfigError),
    /// What the Dockerfile says of the image is more than anybody reads back.
    #[error(
        "the image's config has more than {} values or {} bytes",
        ImageConfig::VALUES_MAX,
        ImageConfig::BYTES_MAX
    )]
    ConfigTooLarge,
    /// The process cannot get the privileges a build needs.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The runtime, a pipe or a thread cannot be had.
    #[error("cannot set up the build")]
    Setup(#[source] std::io::Error),
    /// The build was stopped.
    #[error("canceled")]
    Canceled,
    /// The build was stopped by this signal.
    #[error("canceled by {}", signal_name(*.0))]
    Signal(u8),
}

/// True for a cause that names a layer of the HTTP client and says nothing about what happened.
fn is_plumbing(text: &str) -> bool {
    let prefixes = [
        "error sending request",
        "client error (",
        "dns error",
        "error resolving DNS",
        "DNS error: no records",
    ];
    prefixes.iter().any(|prefix| text.starts_with(prefix))
}

/// Texts of a chain of causes below `above`. One that the text right above it ends with says nothing new, also when that text
/// itself is left out.
pub fn causes_below(mut above: String, mut next: Option<&dyn std::error::Error>) -> Vec<String> {
    let mut texts = Vec::new();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !above.ends_with(&text) && !is_plumbing(&text) {
            texts.push(text.clone());
        }
        above = text;
        next = cause.source();
    }
    texts
}

/// An error and its causes on one line.
pub fn one_line(error: &dyn std::error::Error) -> String {
    let text = error.to_string();
    let causes = causes_below(text.clone(), error.source());
    std::iter::once(text).chain(causes).collect::<Vec<_>>().join(": ")
}

fn signal_name(number: u8) -> String {
    match number {
        1 => "SIGHUP (the terminal went away)".to_owned(),
        2 => "SIGINT (Ctrl-C)".to_owned(),
        15 => "SIGTERM".to_owned(),
        other => format!("signal {other}"),
    }
}

/// A failed step and where it stands.
#[derive(Debug, thiserror::Error)]
#[error("{failure}")]
pub struct StepError {
    /// `[build 2/4] RUN make`.
    pub name: String,
    /// Its lines.
    pub lines: Option<Lines>,
    /// Why.
    #[source]
    pub failure: StepFailure,
}

impl StepError {
    /// Names the step.
    pub fn new(step: &Step, failure: StepFailure) -> Self {
        Self { name: step.name.clone(), lines: step.lines, failure }
    }
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepFailure {
    /// The command ended with a status other than 0.
    #[error("process \"{command}\" did not complete successfully: exit code: {code}")]
    Exit {
        /// Its argv, joined.
        command: String,
        /// Status.
        code: i32,
        /// End of its output.
        log: Vec<u8>,
        /// What the disk that holds the store had none of when it ended: `space` or `inodes`.
        lacked: Option<&'static str>,
    },
    /// The command was killed.
    #[error("process \"{command}\" did not complete successfully: exit code: {} (killed by signal {signal})", 128 + .signal)]
    Signal {
        /// Its argv, joined.
        command: String,
        /// Signal number.
        signal: i32,
        /// End of its output.
        log: Vec<u8>,
    },
    /// The sandbox could not be set up or the command not started.
    #[error("{source}")]
    Sandbox {
        /// Why.
        source: rbuild_sandbox::StepError,
        /// End of its output.
        log: Vec<u8>,
    },
    /// A secret that the step cannot do without.
    #[error("secret {id}: not found")]
    NoSecret {
        /// Which.
        id: String,
    },
    /// A variable cannot hold what is in a secret.
    #[error("secret {id} cannot be a variable: it is not text")]
    SecretNotText {
        /// Which.
        id: String,
    },
    /// A secret cannot be had.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// Where nothing can be mounted.
    #[error(
        "RUN --mount cannot be had with --isolation=chroot, but for type=ssh and secrets as variables: nothing can be mounted there"
    )]
    MountsInChroot,
    /// A secret's file where nothing can be mounted.
    #[error(
        "secret {id} cannot be a file with --isolation=chroot: it would be written to disk, where the layer is made from"
    )]
    SecretFileInChroot {
        /// Which.
        id: String,
    },
    /// More rights than a container of the default profile can give.
    #[error(
        "RUN --security=insecure cannot be had with isolation `chroot`: nothing but the filter and the rights it has keeps a step inside"
    )]
    InsecureInChroot,
    /// A shell before a step of a rung that mounts none.
    #[error("isolation `chroot` opens no shell in a step: it takes a mounted one")]
    ShellInChroot,
    /// An agent that the step cannot do without.
    #[error("no SSH key {id:?} forwarded from the client")]
    NoAgent {
        /// Which.
        id: String,
    },
    /// An agent cannot be had.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// A device cannot be had.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Where nothing can be mounted.
    #[error("RUN --device cannot be had with --isolation=chroot: nothing can be mounted there")]
    DevicesInChroot,
    /// A cache would start with something other than a directory.
    #[error("a cache cannot start with {path}, which is not a directory")]
    CacheFromFile {
        /// In the source.
        path: String,
    },
    /// The kernel killed the step for want of memory.
    #[error("process \"{command}\" ran out of memory (limit: {limit_bytes} bytes)")]
    OutOfMemory {
        /// Its argv, joined.
        command: String,
        /// What `--resource memory=` allows.
        limit_bytes: u64,
        /// End of its output.
        log: Vec<u8>,
    },
    /// Steps cannot be run here.
    #[error("RUN cannot be executed: isolation is `norun`")]
    RunRefused {
        /// What would change that.
        remedies: Vec<String>,
    },
    /// The command is for another processor, and the kernel knows no emulator for it.
    #[error("exec: {program:?}: this machine ({}) cannot run programs for {platform}", Platform::host())]
    Foreign {
        /// Program as written in argv.
        program: String,
        /// What the program is for.
        platform: String,
        /// Why it cannot be emulated, where that was tried.
        #[source]
        why: Option<Arc<EmulationError>>,
    },
    /// The files of a state cannot be listed.
    #[error(transparent)]
    Flatten(#[from] FlattenError),
    /// The overlay cannot be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The build was stopped.
    #[error("canceled")]
    Canceled,
    /// A source does not exist.
    #[error("\"/{path}\": not found")]
    Absent {
        /// As asked for, cleaned.
        path: RelPath,
        /// What to do, when that can be told.
        hint: Option<String>,
    },
    /// A source cannot be selected.
    #[error(transparent)]
    Select(#[from] SelectionError),
    /// A copy is not possible.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// A source file cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A path in the image cannot be resolved.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A tree cannot be edited.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A directory node cannot be loaded.
    #[error(transparent)]
    Node(#[from] NodeStoreError),
    /// What a step changed cannot be read.
    #[error(transparent)]
    LayerScan(#[from] LayerScanError),
    /// A layer cannot be written as an archive.
    #[error(transparent)]
    Encode(#[from] EncodeError<EmitError>),
    /// A layer's files cannot be written.
    #[error(transparent)]
    Materialise(#[from] MaterialiseError),
    /// A layer cannot be packed.
    #[error(transparent)]
    Pack(EncodeError<PackLayerError>),
    /// A layer that was kept without a directory cannot get one.
    #[error(transparent)]
    LayerDir(LayerDirError),
    /// A layer's listing cannot be kept, or not be read any more.
    #[error(transparent)]
    Listing(#[from] ListingError),
    /// A pulled layer cannot be decompressed.
    #[error("failed to decompress layer {layer}")]
    Blob {
        /// Its blob.
        layer: Digest,
        /// Why.
        #[source]
        source: DecompressError,
    },
    /// A pulled layer cannot be unpacked.
    #[error("failed to unpack layer {layer}")]
    Unpack {
        /// Its blob.
        layer: Digest,
        /// Why.
        #[source]
        source: UnpackError,
    },
    /// It cannot be told whether a local file is an archive.
    #[error("cannot decompress `{path}`, which ADD would have to unpack")]
    AddRead {
        /// In the context.
        path: String,
        /// Why.
        #[source]
        source: DecompressError,
    },
    /// A local archive cannot be unpacked.
    #[error("cannot unpack `{path}`")]
    AddUnpack {
        /// In the context.
        path: String,
        /// Why.
        #[source]
        source: UnpackBlobError,
    },
    /// A pulled layer's bytes are not what the manifest says.
    #[error("layer {wanted} was received as {found}")]
    LayerDigest {
        /// In the manifest.
        wanted: Digest,
        /// Of the bytes.
        found: Digest,
    },
    /// A layer's tar is not what the config says.
    #[error("layer content {found} does not match the diff id {wanted}")]
    LayerDiffId {
        /// In the config.
        wanted: DiffId,
        /// Of the bytes.
        found: DiffId,
    },
    /// A layer is gone and cannot be fetched again.
    #[error("layer {0} is no longer in the store and cannot be fetched again")]
    LayerVanished(DiffId),
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A layer that was left at its registry cannot be had from there now.
    #[error("layer {layer} was left at {from} when the image was built, and cannot be fetched from there")]
    LayerElsewhere {
        /// Digest of its blob.
        layer: Digest,
        /// The image that has it.
        from: String,
        /// Why.
        #[source]
        source: RegistryError,
    },
    /// A layout failed.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A file cannot be had from its web server.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// A git repository cannot be had.
    #[error(transparent)]
    Git(#[from] GitError),
    /// What was fetched does not become files.
    #[error("cannot unpack {what}")]
    FetchedUnpack {
        /// Address, without what may be secret.
        what: String,
        /// Why.
        #[source]
        source: UnpackBlobError,
    },
    /// What was fetched has a file that no image can have.
    #[error("{what} has `{path}`: names that begin with `.wh.` mean deletions in images")]
    FetchedWhiteout {
        /// Address, without what may be secret.
        what: String,
        /// Which file.
        path: String,
    },
    /// What was fetched is not what the instruction says.
    #[error("digest mismatch for {url}: got {found}, expected {expected}")]
    Checksum {
        /// Address, without what may be secret.
        url: String,
        /// What `--checksum` says.
        expected: Digest,
        /// Of the bytes.
        found: Digest,
    },
    /// A file is larger than any that is fetched.
    #[error("{url} is larger than {max_bytes} bytes, the most that is fetched")]
    FetchTooLarge {
        /// Address, without what may be secret.
        url: String,
        /// The limit.
        max_bytes: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A user or group that `--chown` or USER names cannot be resolved.
    #[error(transparent)]
    User(UserError),
    /// A file cannot be used.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl From<EncodeError<PackLayerError>> for StepFailure {
    fn from(error: EncodeError<PackLayerError>) -> Self {
        match error {
            EncodeError::Source(PackLayerError::Source(source)) => Self::Materialise(source),
            other => Self::Pack(other),
        }
    }
}

impl From<LayerDirError> for StepFailure {
    fn from(error: LayerDirError) -> Self {
        match error {
            LayerDirError::Store(source) => Self::Store(source),
            other => Self::LayerDir(other),
        }
    }
}

impl StepFailure {
    /// End of the step's output, when it has one.
    pub fn log(&self) -> &[u8] {
        match self {
            Self::Exit { log, .. }
            | Self::Signal { log, .. }
            | Self::OutOfMemory { log, .. }
            | Self::Sandbox { log, .. } => log,
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Link(&'static str, #[source] Option<Box<Link>>);

    #[test]
    fn what_the_plumbing_says_is_left_out_with_what_it_only_repeats() {
        let chain = |texts: &[&'static str]| {
            let link = |below, text| Some(Box::new(Link(text, below)));
            *texts.iter().copied().rfold(None, link).unwrap()
        };
        let name = chain(&[
            "push a",
            "the host name cannot be resolved",
            "client error (Connect)",
            "dns error",
            "DNS error: no records found for Query { b }",
            "no records found for Query { b }",
        ]);
        assert_eq!(one_line(&name), "push a: the host name cannot be resolved");
        let connect =
            chain(&["push a: cannot connect", "cannot connect", "error sending request", "refused"]);
        assert_eq!(one_line(&connect), "push a: cannot connect: refused");
    }
}
