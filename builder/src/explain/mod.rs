//! Why a step is executed and not taken from the cache.
//!
//! Every executed step leaves a [`Record`]: its content key field by field, in words. A miss is compared with the
//! nearest earlier record of the same step, and what differs is its cause. The same step is:
//!
//! 1. the step with the same content key, wherever it stood: then only its result is missing;
//! 2. else, in the same stage of the same Dockerfile and context, the one that is written the same;
//! 3. else one there with the same number or on the same state, which this Dockerfile does not have any more.
//!
//! Of several, the one with the fewest differences, and of these the latest. A hit on what was made elsewhere, or not last,
//! is remembered here; a build that is repeated records nothing.
//!
//! | module | for |
//! |---|---|
//! | `record` | what is remembered |
//! | `compare` | what differs between two records; pure |
//! | `cause` | causes and their sentences; pure |

pub mod cause;
mod compare;
pub mod record;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use petgraph::graph::NodeIndex;
use rbuild_cache::store::{EXECUTION_BYTES_MAX, Execution, GoneWhy, Key, PastExecution, Sighting, Store};
use rbuild_cache::tree::select::{Selections, listing};
use rbuild_cache::tree::{
    Batch, EncodedNode, NodeDigest, NodeStore, NodeStoreError, Over, SpilledNodeStore, Tree, load_node,
};
use rbuild_frontend::graph::{BuildGraph, Op, Role, Step};
use rbuild_frontend::remote::without_user;
use rbuild_oci::CanonicalWriter;

use crate::cli::{BuildRequest, ContextArg, DockerfileArg, ExplainFormat};
use crate::context::files::default_dockerfile;
use crate::ops::select::Selection;
use crate::progress::{Events, VertexId};
use crate::solve::keys::InputDigest;
use crate::timestamp;
use cause::{Above, Cause, details, sentence};
use record::{InputRecord, Producer, Record, fields, split_name};

/// Earlier executions of a stage that its misses are compared with.
const CANDIDATES_MAX: u32 = 64;
/// Names of files in the document of `--explain=json`: some ten MiB.
const NAMES_MAX: usize = 100_000;

/// A build's number as people see and type it.
pub fn build_id(build: u64) -> String {
    format!("{build:016x}")
}

/// Explains the misses of one build.
pub struct Explainer {
    store: Store,
    graph: Arc<BuildGraph>,
    /// Number of the build among those that the store remembers.
    pub build: u64,
    /// Digest of the context and Dockerfile, by name: another version of both is the same lineage.
    lineage: [u8; 32],
    /// Texts of all steps that this Dockerfile has.
    texts: HashSet<[u8; 32]>,
    /// The build as others know it: its names, or its context.
    build_name: String,
    /// Say all that differs, not only a sentence.
    says_all: bool,
    /// Names of files that [`Self::records`] may still have: none where nobody asks for them.
    names_left: AtomicUsize,
    decided: Mutex<HashMap<NodeIndex, Arc<Record>>>,
    /// What other builds executed, by scope: the same for all steps of a stage.
    earlier: Mutex<HashMap<[u8; 32], Arc<[Earlier]>>>,
}

/// An execution of another build.
struct Earlier {
    text: [u8; 32],
    record: Record,
}

/// A step that is about to be executed.
pub struct Miss {
    record: Record,
    scope: [u8; 32],
    text: [u8; 32],
    def: Key,
    key: Key,
    listings: Vec<NodeDigest>,
    /// Nodes of the listings that nobody else has.
    made: SpilledNodeStore,
}

/// What a miss is explained from.
pub struct Inputs<'a> {
    /// The definition key.
    pub def: &'a Key,
    /// The content key.
    pub key: &'a Key,
    /// The digests in it.
    pub digests: &'a [InputDigest],
    /// What COPY selects.
    pub selection: Option<&'a Selection>,
    /// Knows the directory nodes of what is selected.
    pub nodes: &'a dyn NodeStore,
    /// What the user asked for that rules out a hit.
    pub forced: Option<Cause>,
}

impl Explainer {
    /// For one build of `graph`.
    pub fn new(store: Store, graph: Arc<BuildGraph>, build: u64, request: &BuildRequest) -> Self {
        let texts = graph.dag.node_weights().map(|node| text_digest(&node.step)).collect();
        let says_all = request.control.explain == Some(ExplainFormat::Text);
        let names = if request.control.explain == Some(ExplainFormat::Json) { NAMES_MAX } else { 0 };
        let names_left = AtomicUsize::new(names);
        let build_name = build_name(request);
        let (lineage, decided, earlier) = (lineage(request), Mutex::default(), Mutex::default());
        Self { store, graph, build, lineage, texts, build_name, says_all, names_left, decided, earlier }
    }

    /// The build as others know it: its names, or its context.
    pub fn build_name(&self) -> &str {
        &self.build_name
    }

    /// Says why on the step.
    pub fn say(&self, miss: &Miss, events: &Events, vertex: VertexId) {
        let causes = &miss.record.causes;
        events.note(vertex, format!("not cached: {}", sentence(causes)));
        if self.says_all {
            details(causes).into_iter().for_each(|line| events.note(vertex, format!("  {line}")));
        }
    }

    /// Finds out why `node` is executed. Never fails: what cannot be told is told so.
    pub fn miss(&self, node: NodeIndex, inputs: &Inputs<'_>) -> Miss {
        let at = &self.graph.dag[node];
        let made = SpilledNodeStore::new(&self.store.scratch());
        let recorded = self.inputs(node, inputs, &made);
        let listings: Vec<NodeDigest> = recorded.iter().filter_map(|(_, listing)| *listing).collect();
        let mut record = Record {
            name: at.step.name.clone(),
            kind: at.op.kind().to_owned(),
            fields: fields(&at.op),
            inputs: recorded.into_iter().map(|(input, _)| input).collect(),
            causes: Vec::new(),
            is_failed: false,
            exec_ms: 0,
        };
        let (scope, text) = (self.scope(&at.step.stage), text_digest(&at.step));
        record.causes = match &inputs.forced {
            Some(cause) => vec![cause.clone()],
            None => {
                let nodes = Over { above: &made, below: inputs.nodes };
                self.causes(node, &record, inputs.key, (&scope, &text), &nodes)
            }
        };
        let mut decided = record.clone();
        let names = record.causes.iter().map(Cause::files).sum();
        let take = |left: usize| left.checked_sub(names);
        if self.names_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            decided.causes.iter_mut().for_each(Cause::forget_files);
        }
        self.decided().insert(node, Arc::new(decided));
        Miss { record, scope, text, def: *inputs.def, key: *inputs.key, listings, made }
    }

    /// Remembers that a step was executed. `nodes` knows what its selection consists of. Best effort: not being able
    /// to explain the next miss is no reason to fail this build.
    pub fn executed(&self, miss: Miss, took: Duration, is_failed: bool, nodes: &dyn NodeStore) {
        let exec_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let mut record = Record { exec_ms, is_failed, ..miss.record };
        let nodes = Over { above: &miss.made, below: nodes };
        let kept = miss.listings.iter().all(|listing| keep(&self.store, &nodes, listing).is_ok());
        let text = |record: &Record| serde_json::to_string(record).expect("text and numbers serialise");
        let mut json = text(&record);
        if json.len() > EXECUTION_BYTES_MAX {
            record.causes.iter_mut().for_each(Cause::forget_files);
            json = text(&record);
        }
        let execution = Execution {
            build: self.build,
            scope: miss.scope,
            text: miss.text,
            def: miss.def,
            key: miss.key,
            at_unix_ns: timestamp::unix_ns(),
            record: json,
            nodes: if kept { miss.listings } else { Vec::new() },
        };
        let _ = self.store.put_execution(&execution);
    }

    /// Remembers hits: `(node, its definition key, the key it was found by)`, inputs before consumers; `last_covers`
    /// when the last is made of all others. Best effort, as above.
    pub fn hit(&self, hits: &[(NodeIndex, Key, Key)], last_covers: bool) {
        let sightings: Vec<Sighting> = hits
            .iter()
            .map(|(node, def, found_by)| {
                let step = &self.graph.dag[*node].step;
                let (scope, text) = (self.scope(&step.stage), text_digest(step));
                Sighting { scope, text, def: *def, found_by: *found_by }
            })
            .collect();
        let _ = self.store.sight(&sightings, last_covers);
    }

    /// Records of the steps that were executed or are being so, with names of all files for `--explain=json`, as long as
    /// these are not more than a hundred thousand.
    pub fn records(&self) -> HashMap<NodeIndex, Arc<Record>> {
        self.decided().clone()
    }

    fn decided(&self) -> MutexGuard<'_, HashMap<NodeIndex, Arc<Record>>> {
        self.decided.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What other builds executed in a scope, latest first. What this one has executed so far explains none of its misses.
    fn earlier(&self, scope: &[u8; 32]) -> Arc<[Earlier]> {
        let mut known = self.earlier.lock().unwrap_or_else(PoisonError::into_inner);
        let read = || {
            let found = self.store.executions_in(scope, self.build, CANDIDATES_MAX).unwrap_or_default();
            // Why it was executed then, file by file, is most of a record, and nobody asks for it here.
            let earlier = |past: &PastExecution| {
                let record = Record { causes: Vec::new(), ..parse(past)? };
                Some(Earlier { text: past.execution.text, record })
            };
            found.iter().filter_map(earlier).collect()
        };
        Arc::clone(known.entry(*scope).or_insert_with(read))
    }

    fn scope(&self, stage: &str) -> [u8; 32] {
        let mut out = CanonicalWriter::new("explain scope/1");
        out.bytes(&self.lineage).str(stage);
        *blake3::hash(&out.finish()).as_bytes()
    }

    /// The inputs in the key, with the root node of a listing of each that is only partly read.
    fn inputs(
        &self,
        node: NodeIndex,
        inputs: &Inputs<'_>,
        made: &SpilledNodeStore,
    ) -> Vec<(InputRecord, Option<NodeDigest>)> {
        let mut found = Vec::new();
        for (input, producer) in self.graph.inputs(node) {
            let Some(digest) = inputs.digests.iter().find(|digest| digest.slot == input.slot) else {
                continue;
            };
            let listed = || {
                let scratch = self.store.scratch();
                let nothing = Selections::new(&scratch);
                let selected = inputs.selection.map_or(&nothing, |selection| &selection.selected);
                listing(selected, made, &scratch).ok()
            };
            let listing = (input.role == Role::Source).then(listed).flatten();
            let record = InputRecord {
                slot: input.slot,
                digest: hex::encode(digest.digest),
                producer: self.producer(producer),
                listing: listing.map(|node| node.to_string()),
            };
            found.push((record, listing));
        }
        found
    }

    fn producer(&self, node: NodeIndex) -> Producer {
        let at = &self.graph.dag[node];
        match &at.op {
            Op::Scratch => Producer::Scratch,
            Op::Image(image) => {
                Producer::Image { reference: image.reference.clone(), manifest: image.manifest.to_string() }
            }
            Op::Context(context) => Producer::Context { name: context.name.clone() },
            Op::Http(http) => Producer::Fetched {
                address: without_user(&http.url),
                version: http.content.or(http.checksum).map(|digest| digest.to_string()).unwrap_or_default(),
            },
            Op::Git(git) => Producer::Fetched {
                address: git.source.to_string(),
                version: git.commit.clone().unwrap_or_default(),
            },
            Op::Copy(_) | Op::Workdir(_) | Op::Run(_) => {
                Producer::Step { name: at.step.name.clone(), stage: at.step.stage.clone() }
            }
        }
    }

    fn causes(
        &self,
        node: NodeIndex,
        record: &Record,
        key: &Key,
        (scope, text): (&[u8; 32], &[u8; 32]),
        nodes: &dyn NodeStore,
    ) -> Vec<Cause> {
        if let Ok(Some(same)) = self.store.execution_of(key, self.build) {
            let is_failed = parse(&same).is_some_and(|record| record.is_failed);
            return vec![match same.gone {
                _ if is_failed => Cause::FailedBefore,
                Some((at_unix_ns, GoneWhy::Evicted)) => Cause::Evicted { at_unix_ns },
                Some((at_unix_ns, GoneWhy::Damaged)) => Cause::Damaged { at_unix_ns },
                None => Cause::Lost,
            }];
        }
        let number = split_name(&record.name).0;
        let earlier = self.earlier(scope);
        let candidates = earlier.iter().filter(|past| past.record.kind == record.kind).filter_map(|past| {
            let old = &past.record;
            let is_written_the_same = past.text == *text;
            let root = |record: &Record| record.inputs.iter().find(|i| i.slot == 0).map(|i| i.digest.clone());
            let stands_here = split_name(&old.name).0 == number || root(old) == root(record);
            let is_same = is_written_the_same || (stands_here && !self.texts.contains(&past.text));
            is_same.then(|| ((!is_written_the_same, compare::distance(old, record)), old))
        });
        // The latest of equals: the first one found.
        let Some((_, old)) = candidates.min_by_key(|(rank, _)| *rank) else {
            let rebuilt = if earlier.is_empty() { self.store.rebuilt_unix_ns() } else { Ok(None) };
            return vec![match rebuilt {
                Ok(Some(at_unix_ns)) => Cause::FirstSinceRebuild { at_unix_ns },
                _ => Cause::First,
            }];
        };
        let mut causes = compare::own_causes(old, record, nodes);
        match self.above(node, old, record) {
            // A base brings its environment along: that it moved is the cause of both.
            Some(cause @ Cause::Base { .. }) => causes.insert(0, cause),
            Some(cause) => causes.push(cause),
            None => {}
        }
        if causes.is_empty() {
            causes.push(Cause::Other);
        }
        causes
    }

    /// What the state that a step builds on has to do with it.
    fn above(&self, node: NodeIndex, old: &Record, new: &Record) -> Option<Cause> {
        let root = |record: &Record| record.inputs.iter().find(|input| input.slot == 0).cloned();
        let (old, new) = match (root(old), root(new)) {
            (Some(old), Some(new)) if old.digest != new.digest => (old, new),
            _ => return None,
        };
        if let Some(base) = compare::base_cause(&old, &new) {
            return Some(base);
        }
        let name = |producer: &Producer| match producer {
            Producer::Step { name, .. } => name.clone(),
            Producer::Image { reference, .. } => format!("FROM {reference}"),
            Producer::Scratch => "FROM scratch".to_owned(),
            Producer::Fetched { address, .. } => address.clone(),
            Producer::Context { .. } => String::new(),
        };
        let (old_name, step) = (name(&old.producer), name(&new.producer));
        let parent = self.graph.inputs(node).into_iter().find(|(input, _)| input.slot == 0)?.1;
        let how = match self.decided().get(&parent).map(|record| record.causes.first().cloned()) {
            Some(Some(cause @ (Cause::Above { .. } | Cause::Base { .. }))) => return Some(cause),
            Some(Some(Cause::First | Cause::FirstSinceRebuild { .. })) => Above::New,
            Some(Some(Cause::NoCache | Cause::NoCacheFilter { .. } | Cause::Lost)) => Above::OtherResult,
            Some(Some(Cause::Evicted { .. } | Cause::Damaged { .. } | Cause::FailedBefore)) => {
                Above::OtherResult
            }
            Some(_) => Above::Changed,
            None if split_name(&old_name).1 == split_name(&step).1 => Above::OtherResult,
            None => Above::InPlaceOf { old: old_name },
        };
        Some(Cause::Above { step, how })
    }
}

fn build_name(request: &BuildRequest) -> String {
    let names: Vec<String> = request.tags.iter().map(|tag| tag.familiar()).collect();
    match (names.as_slice(), &request.context) {
        ([], ContextArg::Local(path)) => {
            std::path::absolute(path).unwrap_or_else(|_| path.clone()).display().to_string()
        }
        ([], _) => "standard input".to_owned(),
        (names, _) => names.join(", "),
    }
}

/// What makes builds successors of each other: where the context is and which Dockerfile it is, by name; of a directory the
/// same whether `-f` names it or it was found there.
fn lineage(request: &BuildRequest) -> [u8; 32] {
    use std::os::unix::ffi::OsStrExt as _;
    let absolute = |path: &Path| {
        let path = std::fs::canonicalize(path).or_else(|_| std::path::absolute(path));
        path.map(|path| path.as_os_str().as_bytes().to_vec()).unwrap_or_default()
    };
    let mut out = CanonicalWriter::new("explain lineage/1");
    match &request.context {
        ContextArg::Local(path) => out.str("dir").bytes(&absolute(path)),
        ContextArg::Stdin => out.str("stdin"),
        ContextArg::Git(source) => out.str("git").str(&source.to_string()),
        ContextArg::Http(source) => out.str("http").str(&without_user(&source.url)),
    };
    let found = match (&request.context, &request.dockerfile) {
        (ContextArg::Local(dir), None) => default_dockerfile(dir),
        _ => None,
    };
    match (&request.dockerfile, &found) {
        (None, None) => out.str("default"),
        (Some(DockerfileArg::Stdin), _) => out.str("stdin"),
        (Some(DockerfileArg::Http(source)), _) => out.str("http").str(&without_user(&source.url)),
        (Some(DockerfileArg::Path(path)), _) | (None, Some(path)) => out.str("file").bytes(&absolute(path)),
    };
    *blake3::hash(&out.finish()).as_bytes()
}

/// What differs between two states.
pub fn difference_of(old: &Tree, new: &Tree, nodes: &dyn NodeStore) -> Cause {
    compare::between(None, old, new, nodes)
}

/// The record of an execution, if it can be read.
pub fn parse(past: &PastExecution) -> Option<Record> {
    serde_json::from_str(&past.execution.record).ok()
}

fn text_digest(step: &Step) -> [u8; 32] {
    *blake3::hash(split_name(&step.name).1.as_bytes()).as_bytes()
}

/// Puts the nodes of a listing into the store. What the store has is there with all below it.
fn keep(store: &Store, nodes: &dyn NodeStore, root: &NodeDigest) -> Result<(), NodeStoreError> {
    let mut new = Batch::new(store);
    // Each with whether what is below it has been dealt with: so that what is said above stays true, that goes first.
    let mut work = vec![(*root, false)];
    let mut seen = HashSet::new();
    while let Some((digest, is_below_done)) = work.pop() {
        if is_below_done {
            new.add(EncodedNode::of(&load_node(nodes, &digest)?))?;
        } else if seen.insert(digest) && store.node(&digest).is_err() {
            work.push((digest, true));
            work.extend(load_node(nodes, &digest)?.below().map(|below| (below, false)));
        }
    }
    new.put()
}
