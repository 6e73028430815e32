//! Dockerfile text to build graph.
//!
//! ```text
//! bytes ─parse─▶ Dockerfile (AST) ─stage─▶ stages ─lower─▶ BuildGraph
//! ```
//!
//! Everything here is a function over values: no files, no network, no environment, no clock. What lowering needs
//! from outside (pinned base images) it asks for, see [`lower`].
#![forbid(unsafe_code)]

pub mod ast;
pub mod diagnostic;
pub mod dockerignore;
pub mod expand;
pub mod graph;
pub mod lint;
pub mod lower;
pub mod outline;
pub mod parse;
pub mod remote;
pub mod source;
pub mod span;
pub mod stage;
pub mod suggest;

pub use parse::{Parsed, parse};
pub use source::Source;
