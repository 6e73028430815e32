//! The contexts of a build: found, received, fetched, scanned.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use rbuild_cache::store::{SeenContext, StoreError};
use rbuild_frontend::dockerignore::Ignore;
use rbuild_frontend::graph::{BuildGraph, Op};
use rbuild_frontend::lint::ContextFacts;

use super::ended;
use crate::cli::{BuildRequest, ContextArg, DockerfileArg, NamedContextArg};
use crate::context::files::{self, FoundDockerfile, FoundIgnore};
use crate::context::remote::Pinned;
use crate::context::scan::scan;
use crate::context::wanted::Wanted;
use crate::context::{ScannedContext, remarks, remote, stdin};
use crate::error::BuildError;
use crate::ops::ExecEnv;
use crate::progress::{Events, Outcome};
use crate::solve::plan::{self, Contexts};

/// Where the main context's files are.
pub(crate) enum MainContext {
    /// A directory, scanned when something reads it; and the Dockerfile, when it is a file.
    Dir { path: PathBuf, dockerfile: Option<PathBuf> },
    /// What came through standard input, or was fetched: then it says which state of what it is.
    Received { context: Arc<ScannedContext>, has_owners: bool, pinned: Option<Pinned> },
}

impl MainContext {
    /// What lint rules want to know of it.
    pub(crate) fn facts(&self) -> Result<Option<ContextFacts>, BuildError> {
        match self {
            Self::Dir { path, dockerfile } => files::facts(path, dockerfile.as_deref()).map(Some),
            Self::Received { .. } => Ok(None),
        }
    }

    pub(super) fn pinned(&self) -> Option<&Pinned> {
        match self {
            Self::Received { pinned, .. } => pinned.as_ref(),
            Self::Dir { .. } => None,
        }
    }
}

/// The path of `-f`, when it is one.
pub(crate) fn path_of(dockerfile: Option<&DockerfileArg>) -> Option<&Path> {
    match dockerfile {
        Some(DockerfileArg::Path(path)) => Some(path),
        Some(DockerfileArg::Stdin | DockerfileArg::Http(_)) | None => None,
    }
}

/// Reads the Dockerfile, and with it whatever context comes through standard input or must be fetched.
pub(crate) async fn main_context(
    request: &BuildRequest,
    env: &Arc<ExecEnv>,
) -> Result<(FoundDockerfile, MainContext), BuildError> {
    let keep_git_dir = request.build_args.get("BUILDKIT_CONTEXT_KEEP_GIT_DIR").is_some_and(|v| v == "1");
    let use_cache = !request.control.no_cache;
    let fetched = match (&request.context, &request.dockerfile) {
        (ContextArg::Git(source), _) => remote::git(env, source, keep_git_dir, use_cache).await.map(Some)?,
        (ContextArg::Http(source), _) => remote::http(env, source, use_cache).await.map(Some)?,
        (ContextArg::Local(_) | ContextArg::Stdin, Some(DockerfileArg::Http(_))) => None,
        (ContextArg::Local(_) | ContextArg::Stdin, _) => return local_context(request, env).await,
    };
    let dockerfile = match (&request.dockerfile, &request.context) {
        (Some(DockerfileArg::Http(source)), _) => Some(remote::dockerfile(env, source, use_cache).await?),
        (Some(DockerfileArg::Stdin), _) => {
            let switch = Arc::clone(env);
            let read = move || files::from_stdin(&mut stdin::Watched(&switch.cancel));
            let read = tokio::task::spawn_blocking(read).await;
            Some(read.unwrap_or_else(|join| std::panic::resume_unwind(join.into_panic()))?)
        }
        (Some(DockerfileArg::Path(_)) | None, _) => None,
    };
    match (fetched, &request.context) {
        (Some(fetched), _) => {
            let found = fetched.dockerfile(dockerfile, path_of(request.dockerfile.as_ref()))?;
            let (context, has_owners) = (Arc::new(fetched.context), fetched.has_owners);
            Ok((found, MainContext::Received { context, has_owners, pinned: Some(fetched.pinned) }))
        }
        (None, ContextArg::Local(path)) => {
            files::require_dir(path)?;
            let found = dockerfile.expect("a context that is here has another Dockerfile elsewhere");
            Ok((found, MainContext::Dir { path: path.clone(), dockerfile: None }))
        }
        (None, _) => Err(BuildError::Stdin(stdin::StdinError::TwoDockerfiles)),
    }
}

/// The same for what is here.
async fn local_context(
    request: &BuildRequest,
    env: &Arc<ExecEnv>,
) -> Result<(FoundDockerfile, MainContext), BuildError> {
    let uses_stdin = request.context == ContextArg::Stdin || request.dockerfile == Some(DockerfileArg::Stdin);
    let id = env.events.vertex("[internal] load build definition from Dockerfile");
    env.events.started(id);
    let (context, dockerfile, of) = (request.context.clone(), request.dockerfile.clone(), Arc::clone(env));
    let read = move || match &context {
        ContextArg::Local(path) => {
            let found = files::dockerfile(path, dockerfile.as_ref(), &mut stdin::Watched(&of.cancel))?;
            let main = MainContext::Dir { path: path.clone(), dockerfile: found.path.clone() };
            Ok((found, main))
        }
        ContextArg::Stdin => {
            let path = path_of(dockerfile.as_ref());
            let got = stdin::receive(stdin::Watched(&of.cancel), &of.lease, of.overlay, path)?;
            let (context, has_owners) = (Arc::new(got.context), got.has_owners);
            Ok((got.dockerfile, MainContext::Received { context, has_owners, pinned: None }))
        }
        ContextArg::Git(_) | ContextArg::Http(_) => unreachable!("fetched by the caller"),
    };
    // Away from the thread that hears signals: standard input may be a pipe that nobody writes to.
    let result = match uses_stdin {
        true => tokio::task::spawn_blocking(read).await,
        false => Ok(read()),
    };
    let result = result.unwrap_or_else(|join| std::panic::resume_unwind(join.into_panic()));
    let result = ended(&env.events, id, result)?;
    env.events.finished(id, Outcome::Done);
    Ok(result)
}

/// Stat indexes on their way to the disk, while the build goes on. However it ends, they are waited for.
#[derive(Default)]
pub(super) struct Indexing(Vec<JoinHandle<Result<(), StoreError>>>);

impl Indexing {
    /// Nothing is written when nothing moved.
    fn add(&mut self, env: &Arc<ExecEnv>, identity: [u8; 32], seen: &Arc<SeenContext>) {
        if seen.differs() {
            let (store, lease, seen) = (env.store.clone(), env.lease.clone(), Arc::clone(seen));
            self.0.push(std::thread::spawn(move || store.put_stat_index(&lease, &identity, &seen)));
        }
    }

    /// Waits until all are written.
    pub(super) fn end(&mut self) -> Result<(), StoreError> {
        let join =
            |thread: JoinHandle<_>| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        self.0.drain(..).map(join).collect::<Vec<_>>().into_iter().collect()
    }
}

impl Drop for Indexing {
    fn drop(&mut self) {
        // Another error is being told.
        self.0.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// Scans or fetches every context that the graph reads. Gives what was fetched by name, too.
pub(super) async fn scan_contexts(
    request: &BuildRequest,
    graph: &BuildGraph,
    main: &MainContext,
    env: &Arc<ExecEnv>,
) -> Result<(Contexts, BTreeMap<String, Pinned>, Indexing), BuildError> {
    let events = &env.events;
    let (mut contexts, mut pinned) = (Contexts::new(), BTreeMap::new());
    let mut indexing = Indexing::default();
    for node in graph.dag.node_weights() {
        let Op::Context(context) = &node.op else { continue };
        let (dir, ignore): (&Path, Option<FoundIgnore>) = match &context.name {
            None => match main {
                MainContext::Dir { path, dockerfile } => {
                    (path, files::find_ignore(path, dockerfile.as_deref())?)
                }
                MainContext::Received { context: received, .. } => {
                    contexts.insert(None, Arc::clone(received));
                    continue;
                }
            },
            Some(name) => {
                let arg = request.named_contexts.iter().find(|(known, _)| known == name).map(|(_, arg)| arg);
                let use_cache = !request.control.no_cache;
                let fetched = match arg {
                    Some(NamedContextArg::Dir(dir)) => Err((dir.as_path(), files::find_ignore(dir, None)?)),
                    Some(NamedContextArg::Git(source)) => {
                        Ok(remote::git(env, source, false, use_cache).await?)
                    }
                    Some(NamedContextArg::Http(source)) => Ok(remote::archive(env, source, use_cache).await?),
                    Some(NamedContextArg::Image(_) | NamedContextArg::OciLayout { .. }) | None => continue,
                };
                match fetched {
                    Err(local) => local,
                    Ok(fetched) => {
                        pinned.insert(name.clone(), fetched.pinned);
                        contexts.insert(context.name.clone(), Arc::new(fetched.context));
                        continue;
                    }
                }
            }
        };
        let title = match &context.name {
            None => "[internal] load build context".to_owned(),
            Some(name) => format!("[context {name}] load from client"),
        };
        let scanned = vertex(events, &title, || -> Result<_, BuildError> {
            let path = dir.canonicalize().map_err(|_| BuildError::NoContext(dir.to_owned()))?;
            let identity = *blake3::hash(path.as_os_str().as_encoded_bytes()).as_bytes();
            let index = Arc::new(env.store.stat_index(&identity)?);
            let patterns = plan::context_patterns(graph, &context.name);
            let wanted = Wanted::by(patterns.iter().map(AsRef::as_ref));
            let everything = Ignore::default();
            let rules = ignore.as_ref().map_or(&everything, |found| &found.ignore);
            // Without an index this is the first scan, so a copy of what it finds is hardly known: it is packed while it is
            // hashed, where a single step takes it, whole.
            let is_packed = index.is_empty() && plan::is_packed_by_one(graph, &context.name);
            let spool = if is_packed { env.store.spool(&env.lease).ok() } else { None };
            let mut scanned = scan(dir, rules, &wanted, &index, spool, &env.store.scratch())?;
            if let Some(seen) = &scanned.seen {
                indexing.add(env, identity, seen);
                // Freed with the process: hundred thousand pieces, one by one, would take longer.
                std::mem::forget(Arc::clone(seen));
            }
            scanned.identity = Some(identity);
            scanned.ignore = ignore;
            Ok(scanned)
        })?;
        let (skipped, more) =
            (scanned.skipped.first(), scanned.skipped.more_than(scanned.skipped.first().len()));
        skipped.iter().for_each(|skipped| events.remark(skipped.clone()));
        if more > 0 {
            events.remark(format!("{more} more devices were left out of the build context"));
        }
        for remark in remarks::remarks(&scanned, ".dockerignore") {
            events.remark(remark);
        }
        contexts.insert(context.name.clone(), Arc::new(scanned));
    }
    Ok((contexts, pinned, indexing))
}

/// Warns about contexts that came whole. Those that were scanned had their say then.
pub(super) fn remark_on_received(graph: &BuildGraph, contexts: &Contexts, events: &Events) {
    for (name, context) in contexts.iter().filter(|(_, context)| context.identity.is_none()) {
        let patterns = plan::context_patterns(graph, name);
        let wanted = Wanted::by(patterns.iter().map(AsRef::as_ref));
        for remark in remarks::of_received(context, &wanted) {
            events.remark(remark);
        }
    }
}

/// Runs short work under a vertex of its own.
fn vertex<T>(
    events: &Events,
    name: &str,
    work: impl FnOnce() -> Result<T, BuildError>,
) -> Result<T, BuildError> {
    let id = events.vertex(name);
    events.started(id);
    let result = ended(events, id, work())?;
    events.finished(id, Outcome::Done);
    Ok(result)
}
