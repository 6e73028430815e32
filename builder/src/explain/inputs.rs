//! What a step was made from, as it is remembered: who made each input, and a listing of what was read of it.

use std::collections::HashSet;

use petgraph::graph::NodeIndex;
use rbuild_cache::path::RelPath;
use rbuild_cache::store::Store;
use rbuild_cache::tree::select::{Selections, has_wildcard, listing};
use rbuild_cache::tree::{
    Batch, EncodedNode, NodeDigest, NodeStore, NodeStoreError, SpilledNodeStore, load_node,
};
use rbuild_frontend::graph::{CopySource, Op, Role};
use rbuild_frontend::remote::without_user;

use super::record::{Field, InputRecord, Producer, link};
use super::{Explainer, Inputs};
use crate::ops::select::Selection;

/// Selected entries that are looked at for whether a symbolic link leads there, and such that are remembered.
const LINKS_LOOKED_FOR: usize = 256;
const LINKS_MAX: usize = 8;

impl Explainer {
    /// What a step's stage begins with, or the stage that it is built on.
    pub(super) fn base(&self, node: NodeIndex) -> Option<NodeIndex> {
        let mut at = node;
        while matches!(self.graph.dag[at].op, Op::Copy(_) | Op::Workdir(_) | Op::Run(_)) {
            at = self.root(at)?;
        }
        Some(at)
    }

    /// What a step stands on.
    pub(super) fn root(&self, node: NodeIndex) -> Option<NodeIndex> {
        self.graph.inputs(node).into_iter().find(|(input, _)| input.slot == 0).map(|(_, producer)| producer)
    }

    /// The inputs in the key, with the root node of a listing of each that is only partly read.
    pub(super) fn inputs(
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
                let mut mounted = Selections::new(&scratch);
                let selected = match inputs.mounts.iter().find(|mount| mount.slot == input.slot) {
                    Some(mount) => {
                        mounted.push(&mount.mounted.selected).ok()?;
                        &mounted
                    }
                    None => inputs.selection.map_or(&mounted, |selection| &selection.selected),
                };
                listing(selected, made, &scratch).ok()
            };
            let listing = matches!(input.role, Role::Source | Role::Mount(_)).then(listed).flatten();
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

    pub(super) fn producer(&self, node: NodeIndex) -> Producer {
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
}

/// Sources that symbolic links lead to, as far as few are looked at.
pub(super) fn links(op: &Op, selection: &Selection) -> Vec<Field> {
    let Op::Copy(copy) = op else { return Vec::new() };
    let sources = copy.sources.iter().enumerate().filter_map(|(at, source)| match source {
        CopySource::Path(path) => Some((at, path)),
        CopySource::Below { .. } | CopySource::Remote { .. } | CopySource::Inline { .. } => None,
    });
    let items = sources.flat_map(|(at, path)| selection.selected.of_source(at).map(move |item| (path, item)));
    let led = items.take(LINKS_LOOKED_FOR).filter_map(|(path, item)| {
        let item = item.ok()?;
        let leads_to = item.path.to_string();
        if has_wildcard(path.as_bytes()) {
            let name = String::from_utf8_lossy(&item.name);
            return (item.name != item.path.name()).then(|| link(&name, &leads_to));
        }
        (RelPath::clamp(path.as_bytes()) != item.path).then(|| link(path, &leads_to))
    });
    led.take(LINKS_MAX).collect()
}

/// Puts the nodes of a listing into the store. What the store has is there with all below it.
pub(super) fn keep(store: &Store, nodes: &dyn NodeStore, root: &NodeDigest) -> Result<(), NodeStoreError> {
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
