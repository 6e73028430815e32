//! Executes COPY and ADD: a plan on trees, then the files into a layer. No mount, no sandbox.
//!
//! Archives that ADD meets are unpacked when their turn comes: what is in them is part of the plan.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rbuild_cache::copy::{
    self, CopyError, CopyItem, CopyOptions, CopyPlan, FileSource, SourceError, Sources,
};
use rbuild_cache::layer::{self, EmitError, EncodeShare, LayerDiff, Marks, Mtime, Pack, Start};
use rbuild_cache::path::RelPath;
use rbuild_cache::store::{Draft, LayerId, LayerPacks, ReadyPacks};
use rbuild_cache::tree::Tree;
use rbuild_frontend::graph::{CopyOp, CopySource, RemoteForm};
use rbuild_oci::DiffId;

use crate::cancel::Cancel;
use crate::context::ScannedContext;
use crate::error::StepFailure;
use crate::ops::added::AddedFiles;
use crate::ops::archive::Archives;
use crate::ops::select::Selection;
use crate::ops::{ExecEnv, NewLayer, archive_bytes, blocking, owner, size_bytes, without_same_root};
use crate::progress::VertexId;
use crate::solve::Solved;

/// Below this many entries a thread for the tree would cost more than it brings.
const PARALLEL_ENTRIES_MIN: usize = 1000;

/// Where the files come from.
#[derive(Clone)]
pub enum Origin {
    /// A build context.
    Context(Arc<ScannedContext>),
    /// Another stage or image.
    Stage(Arc<Solved>),
    /// What ADD fetched, by slot, and perhaps the build context.
    Added {
        /// The context, when there are paths among the sources.
        context: Option<Arc<ScannedContext>>,
        /// What was fetched.
        remotes: Vec<(u16, Arc<Solved>)>,
    },
    /// Only here-documents.
    Inline,
}

/// How the layer of a copy is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// As a directory: something of this build mounts it, or reads its files.
    Directory,
    /// As packs: nothing does.
    Packs {
        /// Names the layer that this step made last, whose packs may have most of it.
        recent: [u8; 32],
        /// It is a layer of the image, not of a stage that the image takes files from.
        is_of_image: bool,
        /// Directories that the step makes have the time that its last layer gave them.
        keeps_times: bool,
    },
}

/// Copies into a new layer on top of `root`.
pub async fn execute(
    env: &Arc<ExecEnv>,
    copy: &CopyOp,
    root: &Arc<Solved>,
    origin: Origin,
    selection: Option<Arc<Selection>>,
    keep: Keep,
    vertex: VertexId,
) -> Result<NewLayer, StepFailure> {
    let _slot = env.disk_slots.acquire().await.expect("the semaphore is never closed");
    env.events.started(vertex);
    let (worker, copy, root) = (Arc::clone(env), copy.clone(), Arc::clone(root));
    match blocking(move || layer(&worker, &copy, &root, &origin, selection.as_deref(), keep)).await {
        Err(_) if env.cancel.reason().is_some() => Err(StepFailure::Canceled),
        done => done,
    }
}

fn layer(
    env: &ExecEnv,
    op: &CopyOp,
    root: &Solved,
    origin: &Origin,
    selection: Option<&Selection>,
    keep: Keep,
) -> Result<NewLayer, StepFailure> {
    // The layer of `--link` is made on nothing: neither files nor accounts of the root matter.
    let below = if op.link { &Solved::whole(Tree::empty(), Vec::new()) } else { root };
    let owner = op.chown.as_ref().map(|chown| owner::chown(env, below, &chown.text)).transpose()?;
    let parents = env.stack_source(below)?;
    let options = CopyOptions {
        dest: op.dest.clone(),
        owner,
        chmod: op.chmod.clone(),
        from_context: op.from_context,
        now: env.now(),
    };
    let files: Option<Box<dyn FileSource>> = match origin {
        Origin::Context(context) => Some(Box::new(context.files()?)),
        Origin::Stage(solved) => Some(Box::new(env.stack_source(solved)?)),
        Origin::Added { context, remotes } => {
            Some(Box::new(AddedFiles::new(env, context.as_deref(), remotes)?))
        }
        Origin::Inline => None,
    };
    let nodes = crate::context::nodes_of(&env.store, origin, selection.map(|selection| &*selection.pruned));
    let watched = |inner| Watched { inner, cancel: &env.cancel };
    let (files, parents) = (files.as_deref().map(watched), watched(&parents));
    let source = files.as_ref().map(|files| files as &dyn FileSource);
    let scratch = env.store.scratch();
    let mut archives = Archives::new(env, source);
    let items = items(op, selection, &mut archives).map(|item| match env.cancel.reason() {
        Some(_) => Err(StepFailure::Canceled),
        None => item,
    });
    let mut plan = copy::plan(&nodes, &below.tree, &parents, source, items, &options, &scratch)?;
    let unpacked = archives.files().map(watched);
    let unpacked = unpacked.as_ref().map(|files| files as &dyn FileSource);
    let sources = Sources { main: source, archives: unpacked, ..Sources::default() };
    let (draft, tar, recent, tree, size_bytes) = match keep {
        Keep::Directory => {
            let draft = env.store.draft(&env.lease)?;
            copy::materialise(&plan, draft.diff_fd().as_fd(), &sources, env.overlay.owners(), env.overlay)?;
            plan.diff = without_same_root(plan.diff, &below.tree.root)?;
            let tree = root.tree.apply(&env.store, &plan.diff, &scratch)?;
            (Draft::Dir(draft), None, None, tree, size_bytes(&plan.diff)?)
        }
        Keep::Packs { recent, is_of_image, keeps_times } => {
            plan.diff = without_same_root(plan.diff, &below.tree.root)?;
            let last = Last::find(env, &recent)?;
            let spooled = match origin {
                Origin::Context(context) | Origin::Added { context: Some(context), .. } => {
                    context.take_packs()
                }
                Origin::Added { context: None, .. } | Origin::Stage(_) | Origin::Inline => None,
            };
            if let Some(last) = last.as_ref().filter(|_| keeps_times) {
                plan.diff = copy::keep_times(plan.diff, options.now, &last.listing, &scratch)?;
            }
            let size_bytes = size_bytes(&plan.diff)?;
            let (packed, tree) = both(
                plan.diff.len() >= PARALLEL_ENTRIES_MIN,
                || pack(env, &plan, size_bytes, &sources, last, spooled, is_of_image),
                || root.tree.apply(&env.store, &plan.diff, &scratch),
            );
            let (packs, tar) = packed?;
            (Draft::Packed(packs), Some(tar), Some(recent), tree?, size_bytes)
        }
    };
    Ok(NewLayer { draft, diff: plan.diff, tree, size_bytes, tar, recent })
}

/// Does two things that need nothing of one another, the second on a thread of its own where that is worth it.
fn both<A, B: Send>(is_much: bool, first: impl FnOnce() -> A, second: impl FnOnce() -> B + Send) -> (A, B) {
    if !is_much {
        return (first(), second());
    }
    std::thread::scope(|scope| {
        let second = scope.spawn(second);
        (first(), second.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Packs the layer: contents that the step's last layer has are shared with it, what the scan of the context has `spooled` is
/// taken as it is, the others are read from their sources, and digest and length of the layer's tar come out of the same
/// pass, with its blob when that will be wanted and no thread that gives way to all steps has what it takes: a step does
/// not wait for those.
fn pack(
    env: &ExecEnv,
    plan: &CopyPlan,
    size_bytes: u64,
    sources: &Sources<'_>,
    last: Option<Last>,
    spooled: Option<LayerPacks>,
    is_of_image: bool,
) -> Result<(ReadyPacks, (DiffId, u64)), StepFailure> {
    // Damaged packs are no reason to fail here: the contents are read from where they came.
    let packs = |last: &Last| env.store.layer_packs(last.layer).ok().flatten();
    let known = spooled.or_else(|| last.as_ref().and_then(packs)).unwrap_or_default();
    let worth = copy::worth_sharing(&plan.diff, &known.packs).unwrap_or_default();
    let shared = known.keep(&worth);
    let mut draft = env.store.packed_draft(&env.lease)?;
    let writer = &mut draft.writer;
    let mut emit =
        |start: &Start, out: &mut dyn Write| copy::pack(plan, sources, &shared.packs, writer, start, out);
    let compression = env.wanted_compression().filter(|_| is_of_image);
    let share = compression.and_then(|compression| {
        let share = EncodeShare::of_step(compression, archive_bytes(size_bytes, &plan.diff))?;
        Some((compression, share))
    });
    let (tar, marks) = if let Some((compression, share)) = share {
        let archive = |out: &mut dyn Write| emit(&Start::default(), out).map(drop);
        let encode = |sink: &mut dyn Write| Ok(layer::encode(archive, share, sink)?);
        let encoded = env.identify(compression, encode)?;
        ((encoded.diff_id, encoded.uncompressed), Marks::default())
    } else {
        let marks = match last {
            // It is a hint: what cannot be read of it is made anew.
            Some(last) => last.marks_for(&plan.diff, &shared.packs).unwrap_or_default(),
            None => Marks::default(),
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let hashed = layer::hash_from(marks, emit, threads)?;
        ((hashed.diff_id, hashed.size), hashed.marks)
    };
    let ready = env.store.finish_packs(draft, &shared, marks)?;
    Ok((ready, tar))
}

/// The layer that the step made last.
struct Last {
    layer: LayerId,
    listing: LayerDiff,
    marks: Marks,
}

impl Last {
    /// One with a damaged listing is as none.
    fn find(env: &ExecEnv, step: &[u8; 32]) -> Result<Option<Self>, StepFailure> {
        let Some(layer) = env.store.recent_layer(step)? else { return Ok(None) };
        let Ok(listing) = env.store.layer_diff(layer) else { return Ok(None) };
        let marks = env.store.layer_marks(layer, &listing).unwrap_or_default();
        Ok(Some(Self { layer, listing, marks }))
    }

    /// Its marks that hold for this layer. Without them all of the archive is made.
    fn marks_for(self, diff: &LayerDiff, shared: &[Pack]) -> Result<Marks, EmitError> {
        copy::marks_that_hold(self.marks, &self.listing, diff, shared)
    }
}

/// Fails when the build is stopped.
struct Watched<'a> {
    inner: &'a dyn FileSource,
    cancel: &'a Cancel,
}

impl<'a> Watched<'a> {
    fn get(&self, path: &RelPath) -> Result<&'a dyn FileSource, SourceError> {
        let stopped = || io::Error::other("the build was stopped");
        match self.cancel.reason() {
            Some(_) => Err(SourceError::Io { action: "read", path: path.clone(), source: stopped() }),
            None => Ok(self.inner),
        }
    }
}

impl FileSource for Watched<'_> {
    fn open(&self, path: &RelPath) -> Result<OwnedFd, SourceError> {
        self.get(path)?.open(path)
    }

    fn mtime(&self, path: &RelPath) -> Result<Mtime, SourceError> {
        self.get(path)?.mtime(path)
    }

    fn is_immutable(&self) -> bool {
        self.inner.is_immutable()
    }

    fn give(&self, path: &RelPath, dir: BorrowedFd<'_>, name: &[u8]) -> Result<bool, SourceError> {
        self.get(path)?.give(path, dir, name)
    }
}

/// What to copy, in the arguments' order, each item made when it is asked for: an archive is unpacked then, unless it is to
/// stay one.
fn items<'a>(
    op: &'a CopyOp,
    selection: Option<&'a Selection>,
    archives: &'a mut Archives<'_>,
) -> impl Iterator<Item = Result<CopyItem, StepFailure>> {
    let items = op.sources.iter().enumerate().flat_map(move |(at, source)| {
        let (inline, unpack) = match source {
            CopySource::Inline { name, content } => {
                let (name, content) = (name.clone().into_bytes(), content.clone().into_bytes());
                (Some(CopyItem::Inline { name, content }), false)
            }
            CopySource::Remote { form, .. } => (None, *form == RemoteForm::Archive),
            CopySource::Path(_) | CopySource::Below { .. } => (None, op.unpack),
        };
        let selected = selection.map(|selection| selection.selected.of_source(at)).into_iter().flatten();
        let selected = selected.map(move |selected| Ok((CopyItem::Selected(selected?), unpack)));
        inline.map(|inline| Ok((inline, false))).into_iter().chain(selected)
    });
    items.map(|item: Result<_, CopyError>| match item? {
        (CopyItem::Selected(selected), true) => archives.item(selected),
        (item, _) => Ok(item),
    })
}
