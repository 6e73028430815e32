//! Asks outside what the leaves of a graph mean right now, before any key is made.
//!
//! A file whose checksum the Dockerfile gives needs no question: its key is known, and it is fetched only when a step
//! that wants it is executed. Any other file is asked for, with the validators of the last answer, and fetched when it
//! changed. Of a repository only the commit is asked for; its files are fetched when a step wants them.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::join_all;
use petgraph::graph::NodeIndex;
use rbuild_frontend::graph::{BuildGraph, Op};

use crate::error::{BuildError, StepError, StepFailure, one_line};
use crate::ops::{ExecEnv, git, http};
use crate::progress::Outcome;
use crate::solve::Solved;

/// Leaves that are there already.
pub type Fetched = HashMap<NodeIndex, Arc<Solved>>;

/// What a leaf turned out to be.
enum Pin {
    Http(http::File),
    Git(String),
}

/// Fills in what the leaves of `graph` are, some at the same time ([`ExecEnv::fetch_slots`]).
pub async fn pin(graph: &mut BuildGraph, env: &Arc<ExecEnv>, use_cache: bool) -> Result<Fetched, BuildError> {
    let asked = graph.dag.node_indices().filter_map(|node| {
        let (op, name) = (&graph.dag[node].op, &graph.dag[node].step.name);
        let is_open = match op {
            Op::Http(http) => http.checksum.is_none(),
            Op::Git(_) => true,
            _ => false,
        };
        is_open.then_some(async move {
            let vertex = env.events.vertex(format!("[internal] load metadata for {name}"));
            env.events.started(vertex);
            let pin = match op {
                Op::Http(op) => http::file(env, op, use_cache, vertex).await.map(Pin::Http),
                Op::Git(op) => git::pin(env, &op.source).await.map(Pin::Git),
                _ => unreachable!("nothing else is asked about"),
            };
            let outcome = match &pin {
                Ok(Pin::Http(_)) => return (node, pin),
                Ok(Pin::Git(_)) => Outcome::Done,
                Err(StepFailure::Canceled) => Outcome::Canceled,
                Err(failure) => Outcome::Error(one_line(failure)),
            };
            env.events.finished(vertex, outcome);
            (node, pin)
        })
    });
    let answers = join_all(asked.collect::<Vec<_>>()).await;
    let mut fetched = Fetched::new();
    for (node, answer) in answers {
        let answer = match answer {
            Ok(answer) => answer,
            Err(StepFailure::Canceled) => return Err(BuildError::Canceled),
            Err(failure) => {
                return Err(BuildError::Step(Box::new(StepError::new(&graph.dag[node].step, failure))));
            }
        };
        match (&mut graph.dag[node].op, answer) {
            (Op::Http(op), Pin::Http(file)) => {
                op.content = Some(file.content);
                fetched.insert(node, file.solved);
            }
            (Op::Git(op), Pin::Git(commit)) => op.commit = Some(commit),
            _ => unreachable!("answers belong to their nodes"),
        }
    }
    Ok(fetched)
}
