//! Which nodes' layers something will mount, or read files of.

use std::collections::HashSet;

use petgraph::graph::NodeIndex;
use rbuild_frontend::graph::{BuildGraph, Op, Role};

/// Nodes whose layers a step that is to be executed needs as directories: all below a RUN, and all below what a COPY
/// takes files from. The layers of other copies are kept as packs; should this be wrong, such a layer gets its directory
/// when it is needed.
pub fn mounted(graph: &BuildGraph, needed: &[NodeIndex]) -> HashSet<NodeIndex> {
    let mut mounted = HashSet::new();
    for &node in needed {
        let op = &graph.dag[node].op;
        for (input, producer) in graph.inputs(node) {
            let is_read = match input.role {
                Role::Root => matches!(op, Op::Run(_)),
                Role::Source | Role::Added | Role::Mount(_) => {
                    !matches!(graph.dag[producer].op, Op::Context(_))
                }
            };
            let mut next = is_read.then_some(producer);
            while let Some(node) = next.filter(|node| mounted.insert(*node)) {
                let inputs = graph.inputs(node);
                next = inputs.iter().find(|(input, _)| input.role == Role::Root).map(|(_, below)| *below);
            }
        }
    }
    mounted
}
