//! Which step a user means.

use petgraph::graph::NodeIndex;
use rbuild_frontend::graph::{BuildGraph, Op};

use crate::explain::record::split_name;

/// No step, or none that has a command.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// Nothing matches.
    #[error("this build has no RUN step `{which}`")]
    NoSuchStep {
        /// What was asked for.
        which: String,
        /// Names of those there are.
        steps: Vec<String>,
    },
    /// Several match.
    #[error("`{which}` may be several steps")]
    Ambiguous {
        /// What was asked for.
        which: String,
        /// Their names.
        steps: Vec<String>,
    },
    /// Nothing was asked for, and nothing failed.
    #[error("no step of this build fails")]
    NothingFailed,
}

/// The RUN step of this number (in the target's stage before others), number and count, or text.
fn choose(graph: &BuildGraph, which: &str) -> Result<NodeIndex, ChoiceError> {
    let runs = || graph.dag.node_indices().filter(|node| matches!(graph.dag[*node].op, Op::Run(_)));
    let name = |node: NodeIndex| graph.dag[node].step.name.as_str();
    let names = |nodes: &[NodeIndex]| nodes.iter().map(|node| name(*node).to_owned()).collect();
    let mut found: Vec<NodeIndex> = runs().filter(|node| is_meant(name(*node), which)).collect();
    if found.len() > 1 {
        let is_target =
            |node: &NodeIndex| graph.targets.iter().any(|target| target.stage == graph.dag[*node].step.stage);
        if found.iter().any(is_target) {
            found.retain(is_target);
        }
    }
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(ChoiceError::NoSuchStep {
            which: which.to_owned(),
            steps: names(&runs().collect::<Vec<_>>()),
        }),
        several => Err(ChoiceError::Ambiguous { which: which.to_owned(), steps: names(several) }),
    }
}

/// Makes the step the only target; its node.
pub fn retarget(graph: &mut BuildGraph, which: &str) -> Result<NodeIndex, ChoiceError> {
    let node = choose(graph, which)?;
    graph.targets.truncate(1);
    for target in &mut graph.targets {
        target.node = node;
    }
    Ok(node)
}

fn is_meant(name: &str, which: &str) -> bool {
    let (number, text) = split_name(name);
    let label = name.split("] ").next().unwrap_or_default();
    match which.split_once('/').map(|(a, b)| (a.parse::<u32>(), b.parse::<u32>())) {
        Some((Ok(wanted), Ok(count))) => number == Some(wanted) && label.ends_with(&format!("/{count}")),
        _ => match which.parse::<u32>() {
            Ok(wanted) => number == Some(wanted),
            Err(_) => text.contains(which),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_named_by_number_count_or_text() {
        let name = "[build 2/4] RUN make -j4";
        for which in ["2", "2/4", "make", "RUN make"] {
            assert!(is_meant(name, which), "{which}");
        }
        for which in ["4", "2/5", "build", "cake"] {
            assert!(!is_meant(name, which), "{which}");
        }
    }
}
