//! Which nodes' files something will look at.

use std::collections::HashSet;

use petgraph::graph::NodeIndex;
use rbuild_frontend::graph::{BuildGraph, Op, Role};

/// Nodes whose state has to be known, and to be here: what steps that are to be executed or looked up by content stand
/// on or read, what is searched for packages, and with `reads_targets` the targets. An image that is not among them is left at its registry: below
/// metadata alone and below `COPY --link`, whose layer is the same on any root, nothing depends on its files.
///
/// Any other COPY needs its root: where the destination leads is decided by links and directories there.
pub fn whole(graph: &BuildGraph, needed: &[NodeIndex], reads_targets: bool) -> HashSet<NodeIndex> {
    let mut whole = HashSet::new();
    let mut add = |node: NodeIndex| {
        let mut next = Some(node);
        while let Some(node) = next.filter(|node| whole.insert(*node)) {
            let inputs = graph.inputs(node);
            next = inputs.iter().find(|(input, _)| input.role == Role::Root).map(|(_, below)| *below);
        }
    };
    for &node in needed {
        let is_linked = matches!(&graph.dag[node].op, Op::Copy(copy) if copy.link);
        for (input, producer) in graph.inputs(node) {
            if !(is_linked && input.role == Role::Root) {
                add(producer);
            }
        }
    }
    if reads_targets {
        graph.targets.iter().for_each(|target| add(target.node));
    }
    graph.targets.iter().flat_map(|target| &target.scans).for_each(|scan| add(scan.node));
    whole
}
