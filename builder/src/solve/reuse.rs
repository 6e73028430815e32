//! Which steps may take a result from the cache.

use petgraph::graph::NodeIndex;
use rbuild_frontend::graph::{BuildGraph, Node};

use crate::cli::CacheControl;
use crate::explain::cause::Cause;

/// How a step uses the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reuse {
    /// A result is taken.
    Take,
    /// Nothing is looked up; this is why.
    Never(Cause),
    /// A result is taken, and the step executed again to compare.
    Verify,
}

/// The user's wishes, for every step of one graph.
#[derive(Debug, Clone)]
pub struct ReuseRules {
    control: CacheControl,
    /// By node: whether it or anything it is made from is executed whatever is cached. Its definition then says
    /// nothing about its result.
    is_refreshed: Vec<bool>,
}

impl ReuseRules {
    /// The rules for `graph`; `order` is topological.
    pub fn new(control: &CacheControl, graph: &BuildGraph, order: &[NodeIndex]) -> Self {
        let mut rules = Self { control: control.clone(), is_refreshed: vec![false; graph.dag.node_count()] };
        for &node in order {
            let is_refreshed = control.verify
                || matches!(rules.of(graph, node), Reuse::Never(_))
                || graph.inputs(node).iter().any(|(_, producer)| rules.is_refreshed[producer.index()]);
            rules.is_refreshed[node.index()] = is_refreshed;
        }
        rules
    }

    /// How a step uses the cache.
    pub fn of(&self, graph: &BuildGraph, node: NodeIndex) -> Reuse {
        if self.control.no_cache {
            return Reuse::Never(Cause::NoCache);
        }
        let is_named =
            |stage: &&str| self.control.no_cache_filter.iter().any(|name| name.eq_ignore_ascii_case(stage));
        if let Some(stage) = graph.dag[node].stages().find(is_named) {
            return Reuse::Never(Cause::NoCacheFilter { stage: stage.to_owned() });
        }
        if self.control.verify { Reuse::Verify } else { Reuse::Take }
    }

    /// True when a result may be taken by definition, without looking at what is below.
    pub fn by_definition(&self, node: NodeIndex) -> bool {
        !self.is_refreshed[node.index()]
    }

    /// Names of `--no-cache-filter` that no stage of the graph has.
    pub fn unknown_stages(&self, graph: &BuildGraph) -> Vec<String> {
        let is_known = |name: &&String| {
            let mut stages = graph.dag.node_weights().flat_map(Node::stages);
            stages.any(|stage| name.eq_ignore_ascii_case(stage))
        };
        self.control.no_cache_filter.iter().filter(|name| !is_known(name)).cloned().collect()
    }
}
