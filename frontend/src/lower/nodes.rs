//! The graph under construction: equal `(op, inputs)` are one node.

use std::collections::{BTreeSet, HashMap};

use petgraph::graph::{DiGraph, NodeIndex};
use rbuild_oci::{CanonicalWriter, Digest};

use crate::graph::{Input, Node, Op, Role, Step};

#[derive(Debug, Default)]
pub(super) struct Nodes {
    pub(super) dag: DiGraph<Node, Input>,
    /// By digest, not by the encoding: encodings of RUN carry whole environments.
    known: HashMap<Digest, NodeIndex>,
}

impl Nodes {
    /// The node for `op` over `inputs` (slot = position); the step of whoever came first stays.
    pub(super) fn add(&mut self, op: Op, inputs: &[(Role, NodeIndex)], step: Step) -> NodeIndex {
        let mut key = CanonicalWriter::new("frontend-node");
        key.value(&op);
        if let Op::Git(git) = &op {
            // A commit is one whatever was expected of it, which the op's identity therefore does not have. But it is checked.
            key.value(&git.source.checksum);
        }
        for (role, node) in inputs {
            match role {
                Role::Root => key.str("root"),
                Role::Source => key.str("source"),
                Role::Added => key.str("added"),
                Role::Mount(index) => key.str("mount").u64(u64::from(*index)),
            };
            key.u64(node.index() as u64);
        }
        let key = Digest::of(&key.finish());
        if let Some(node) = self.known.get(&key) {
            let known = &mut self.dag[*node];
            if known.step.stage != step.stage {
                known.also_in.insert(step.stage);
            }
            return *node;
        }
        let node = self.dag.add_node(Node { op, step, also_in: BTreeSet::new() });
        for (slot, (role, input)) in (0_u16..).zip(inputs) {
            self.dag.add_edge(*input, node, Input { slot, role: *role });
        }
        self.known.insert(key, node);
        node
    }
}
