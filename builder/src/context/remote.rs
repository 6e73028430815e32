//! Contexts and Dockerfiles that are elsewhere: git repositories, archives and files on web servers.
//!
//! What is fetched is kept as a layer of the store and read from there: a context that did not change costs a question.
//! Ignore files in it are files like any other.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rbuild_cache::copy::FileSource;
use rbuild_cache::layer::{self, Limits};
use rbuild_cache::path::RelPath;
use rbuild_frontend::graph::{GitOp, HttpOp};
use rbuild_frontend::remote::{GitSource, HttpSource, without_user};
use rbuild_oci::Digest;

use super::ScannedContext;
use super::counted::Counted;
use super::files::{self, FoundDockerfile};
use super::stdin::{self, StdinError};
use crate::error::{BuildError, StepFailure, one_line};
use crate::ops::{self, ExecEnv, blocking, fetched};
use crate::progress::{Outcome, VertexId};
use crate::solve::Solved;

/// Name of the one file of a context that is a file, as with BuildKit.
const ONLY_FILE: &str = "context";

/// What was fetched, and which state of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pinned {
    /// A repository.
    Git {
        /// Its address with reference and directory, without user and query.
        address: String,
        /// The commit.
        commit: String,
    },
    /// A file.
    Http {
        /// Its address without user and query.
        address: String,
        /// Digest of its bytes.
        content: Digest,
    },
}

/// A context that was fetched.
pub struct Fetched {
    /// Its files.
    pub context: ScannedContext,
    /// Which state of what it is.
    pub pinned: Pinned,
    /// True when they have owners of their own, as in a tar.
    pub has_owners: bool,
    /// Where from, for messages.
    address: String,
    /// Set when it is no archive: then it is a Dockerfile, with itself as context.
    only_file: Option<Arc<[u8]>>,
}

impl Fetched {
    /// The Dockerfile: `other` when it is elsewhere, else `path` in the context, else by its default names.
    pub fn dockerfile(
        &self,
        other: Option<FoundDockerfile>,
        path: Option<&Path>,
    ) -> Result<FoundDockerfile, BuildError> {
        match (other, &self.only_file) {
            (Some(found), _) => Ok(found),
            (None, None) => Ok(stdin::dockerfile_in(&self.context, path)?),
            (None, Some(_)) if path.is_some() => Err(StdinError::TwoDockerfiles.into()),
            (None, Some(bytes)) => {
                let (display, bytes) = (self.address.clone(), Arc::clone(bytes));
                Ok(FoundDockerfile { path: None, display, bytes, pinned: None })
            }
        }
    }
}

/// The files of a repository.
pub async fn git(
    env: &Arc<ExecEnv>,
    source: &GitSource,
    keep_git_dir: bool,
    use_cache: bool,
) -> Result<Fetched, BuildError> {
    let address = source.to_string();
    shown(env, &format!("[internal] load git source {address}"), |vertex| async move {
        let keep_git_dir = source.keep_git_dir.unwrap_or(keep_git_dir);
        let commit = ops::git::pin(env, source).await?;
        let pinned = Pinned::Git { address: address.clone(), commit: commit.clone() };
        let op = GitOp { source: source.clone(), keep_git_dir, commit: Some(commit) };
        let solved = ops::git::files(env, &op, use_cache, vertex).await?;
        Ok(Fetched { context: of_layer(env, &solved)?, pinned, has_owners: false, address, only_file: None })
    })
    .await
}

/// What a web server has: an archive, or a Dockerfile.
pub async fn http(env: &Arc<ExecEnv>, source: &HttpSource, use_cache: bool) -> Result<Fetched, BuildError> {
    let address = without_user(&source.url);
    shown(env, &format!("[internal] load remote build context {address}"), |vertex| async move {
        let op =
            HttpOp { url: source.url.clone(), name: ONLY_FILE.to_owned(), checksum: None, content: None };
        let file = ops::http::file(env, &op, use_cache, vertex).await?;
        let (env, content, solved) = (Arc::clone(env), file.content, file.solved);
        let pinned = Pinned::Http { address: address.clone(), content };
        blocking(move || {
            let key = fetched::key("http archive/2", |out| {
                out.value(&content);
            });
            let known = if use_cache { fetched::stored(&env, &key)? } else { None };
            if let Some(tree) = known {
                let context = of_layer(&env, &tree)?;
                return Ok(Fetched { context, pinned, has_owners: true, address, only_file: None });
            }
            let open = || -> Result<File, StepFailure> {
                let path = RelPath::root().join(ONLY_FILE.as_bytes());
                Ok(File::from(env.stack_source(&solved)?.open(&path)?))
            };
            let limits = Limits::default();
            let refused = |source| StepFailure::AddRead { path: address.clone(), source };
            if !layer::is_archive(open()?, &limits).map_err(refused)? {
                let failed = |source| StepFailure::Io { what: "read", path: address.clone(), source };
                let bytes = files::bounded(&mut open()?).map_err(failed)?;
                let context = of_layer(&env, &solved)?;
                let only_file = Some(bytes.into());
                return Ok(Fetched { context, pinned, has_owners: false, address, only_file });
            }
            let started = Instant::now();
            let draft = env.store.draft(&env.lease)?;
            let (dir, scratch) = (draft.diff_fd().as_fd(), env.store.scratch());
            let unpacked = layer::unpack_blob(open()?, None, dir, env.overlay, &limits, &scratch);
            let refused = |source| StepFailure::FetchedUnpack { what: address.clone(), source };
            let (unpacked, _) = unpacked.map_err(refused)?;
            let diff = fetched::plain_files(unpacked.diff, &address)?;
            let tree = fetched::store(&env, &key, &address, draft, diff, started)?;
            let context = of_layer(&env, &tree)?;
            Ok(Fetched { context, pinned, has_owners: true, address, only_file: None })
        })
        .await
    })
    .await
}

/// A named context on a web server, which can only be an archive.
pub async fn archive(
    env: &Arc<ExecEnv>,
    source: &HttpSource,
    use_cache: bool,
) -> Result<Fetched, BuildError> {
    let fetched = http(env, source, use_cache).await?;
    match fetched.only_file {
        None => Ok(fetched),
        Some(_) => Err(BuildError::NotAnArchive(fetched.address)),
    }
}

/// A Dockerfile on a web server.
pub async fn dockerfile(
    env: &Arc<ExecEnv>,
    source: &HttpSource,
    use_cache: bool,
) -> Result<FoundDockerfile, BuildError> {
    let address = without_user(&source.url);
    shown(env, &format!("[internal] load remote Dockerfile {address}"), |vertex| async move {
        let op = HttpOp { url: source.url.clone(), name: source.name.clone(), checksum: None, content: None };
        let file = ops::http::file(env, &op, use_cache, vertex).await?;
        let path = RelPath::root().join(op.name.as_bytes());
        let mut opened = File::from(env.stack_source(&file.solved)?.open(&path)?);
        let failed = |source| StepFailure::Io { what: "read", path: address.clone(), source };
        let bytes = files::bounded(&mut opened).map_err(failed)?;
        let pinned = Some(Pinned::Http { address: address.clone(), content: file.content });
        Ok(FoundDockerfile { path: None, display: address, bytes: bytes.into(), pinned })
    })
    .await
}

/// A layer on nothing, as a context.
fn of_layer(env: &ExecEnv, solved: &Solved) -> Result<ScannedContext, StepFailure> {
    let [layer] = solved.stack.as_slice() else { unreachable!("what is fetched is one layer") };
    Ok(ScannedContext {
        tree: solved.tree.clone(),
        nodes: Arc::new(env.store.clone()),
        dir: env.store.layer_dir(*layer)?,
        layer: Some(*layer),
        newest_unix: None,
        identity: None,
        skipped: Counted::default(),
        size_bytes: 0,
        suspects: Counted::default(),
        seen: None,
        ignore: None,
        packs: Mutex::default(),
    })
}

/// Does it under a vertex of its own. Work that ends the vertex itself is not ended again.
async fn shown<T, F>(env: &ExecEnv, name: &str, work: impl FnOnce(VertexId) -> F) -> Result<T, BuildError>
where
    F: Future<Output = Result<T, StepFailure>>,
{
    let vertex = env.events.vertex(name);
    env.events.started(vertex);
    work(vertex).await.map_err(|failure| match failure {
        StepFailure::Canceled => {
            env.events.finished(vertex, Outcome::Canceled);
            BuildError::Canceled
        }
        failure => {
            env.events.finished(vertex, Outcome::Error(one_line(&failure)));
            failure.into()
        }
    })
}
