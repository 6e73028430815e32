//! Why a step is executed and not taken from the cache.
//!
//! Every executed step leaves a [`Record`]: its content key field by field, in words. A miss is compared with the
//! nearest earlier record of the same step, and what differs is its cause. The same step is:
//!
//! 1. the step with the same content key, wherever it stood: then only its result is missing;
//! 2. else, in the same stage of the same Dockerfile and context, the one that is written the same;
//! 3. else one there with the same number or on the same state, which this Dockerfile does not have any more;
//! 4. else, in another stage there, one that is written the same: stages get names, and others before them.
//!
//! What another step of this build was found to be is that one's. Of several, the one with the fewest differences, of these
//! one with the same number, and of these the latest. A hit on what was made elsewhere, or not last, is remembered here; a
//! build that is repeated records nothing.
//!
//! | module | for |
//! |---|---|
//! | `record` | what is remembered |
//! | `compare` | what differs between two records; pure |
//! | `inputs` | what a step is made from, as it is remembered |
//! | `why` | which record a miss is compared with, and what is to blame |
//! | `cause` | causes and their sentences; pure |

pub mod cause;
mod compare;
mod inputs;
pub mod record;
mod why;

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use petgraph::graph::NodeIndex;
use rbuild_cache::store::{EXECUTION_BYTES_MAX, Execution, Key, PastExecution, Sighting, Store};
use rbuild_cache::tree::{NodeDigest, NodeStore, Over, SpilledNodeStore, Tree};
use rbuild_frontend::graph::{BuildGraph, Step};
use rbuild_frontend::remote::without_user;
use rbuild_oci::CanonicalWriter;

use crate::cli::{BuildRequest, ContextArg, DockerfileArg, ExplainFormat};
use crate::context::files::default_dockerfile;
use crate::mounts::MountInput;
use crate::ops::select::Selection;
use crate::progress::{Events, VertexId};
use crate::solve::keys::InputDigest;
use crate::timestamp;
use cause::{Cause, details, sentence};
use inputs::{keep, links};
use record::{Record, fields, split_name};

/// Earlier executions of a stage that its misses are compared with.
const CANDIDATES_MAX: u32 = 64;
/// Of the lineage, at the beginning of each of its scopes.
const LINEAGE_BYTES: usize = 16;
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
    /// Names of files that [`Self::decision`] may still give: none where nobody asks for them.
    names_left: AtomicUsize,
    decided: Mutex<HashMap<NodeIndex, Arc<Record>>>,
    /// Steps that were taken from the cache, and the keys of what was taken.
    taken: Mutex<Taken>,
    /// What other builds executed, by scopes: the same for all steps of a stage.
    earlier: Mutex<HashMap<Scopes, Arc<[Earlier]>>>,
}

/// One stage of a Dockerfile, or all.
type Scopes = RangeInclusive<[u8; 32]>;

#[derive(Default)]
struct Taken {
    nodes: HashSet<NodeIndex>,
    keys: HashSet<Key>,
}

/// An execution of another build.
struct Earlier {
    text: [u8; 32],
    keys: [Key; 2],
    record: Record,
}

impl Earlier {
    fn of(past: &PastExecution) -> Option<Self> {
        // Why it was executed then, file by file, is most of a record, and nobody asks for it here.
        let record = Record { causes: Vec::new(), ..parse(past)? };
        let Execution { text, def, key, .. } = past.execution;
        Some(Self { text, keys: [def, key], record })
    }
}

/// What became of a step.
#[derive(Debug, Clone)]
pub enum Decision {
    /// It was executed, or begun.
    Executed(Arc<Record>),
    /// It was taken from the cache.
    Cached,
    /// The build ended before.
    NotReached,
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
    /// What the mounts of RUN read.
    pub mounts: &'a [MountInput],
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
        let (lineage, decided, taken, earlier) =
            (lineage(request), Mutex::default(), Mutex::default(), Mutex::default());
        Self {
            store,
            graph,
            build,
            lineage,
            texts,
            build_name,
            says_all,
            names_left,
            decided,
            taken,
            earlier,
        }
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
        let mut fields = fields(&at.op);
        fields.extend(inputs.selection.map(|selection| links(&at.op, selection)).unwrap_or_default());
        let mut record = Record {
            name: at.step.name.clone(),
            kind: at.op.kind().to_owned(),
            fields,
            inputs: recorded.into_iter().map(|(input, _)| input).collect(),
            base: self.base(node).map(|base| self.producer(base)),
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
        let mut taken = self.taken();
        for (node, def, found_by) in hits {
            taken.nodes.insert(*node);
            taken.keys.extend([*def, *found_by]);
        }
        drop(taken);
        let _ = self.store.sight(&sightings, last_covers);
    }

    /// What became of a step so far, with names of all files for `--explain=json`, as long as these are not more than a
    /// hundred thousand.
    pub fn decision(&self, node: NodeIndex) -> Decision {
        match self.decided().get(&node) {
            Some(record) => Decision::Executed(Arc::clone(record)),
            None if self.taken().nodes.contains(&node) => Decision::Cached,
            None => Decision::NotReached,
        }
    }

    fn decided(&self) -> MutexGuard<'_, HashMap<NodeIndex, Arc<Record>>> {
        self.decided.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What other builds executed in some scopes, latest first. What this one has executed so far explains none of its misses.
    fn earlier(&self, scopes: Scopes) -> Arc<[Earlier]> {
        let mut known = self.earlier.lock().unwrap_or_else(PoisonError::into_inner);
        let read = || {
            let found = self.store.executions_in(&scopes, self.build, CANDIDATES_MAX).unwrap_or_default();
            found.iter().filter_map(Earlier::of).collect()
        };
        Arc::clone(known.entry(scopes.clone()).or_insert_with(read))
    }

    /// It begins with the lineage's bytes: a range of scopes is all stages there.
    fn scope(&self, stage: &str) -> [u8; 32] {
        let mut out = CanonicalWriter::new("explain scope/2");
        out.bytes(&self.lineage).str(stage);
        let mut scope = *blake3::hash(&out.finish()).as_bytes();
        scope[..LINEAGE_BYTES].copy_from_slice(&self.lineage[..LINEAGE_BYTES]);
        scope
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
