//! Dockerfile text to build graph.
#![forbid(unsafe_code)]

pub mod diagnostic;
pub mod graph;
pub mod span;
