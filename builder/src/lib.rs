//! rbuild: from a Dockerfile to an OCI image.
//!
//! The composition root: `build` reads top to bottom. See `ARCHITECTURE.md` beside this crate.
#![forbid(unsafe_code)]

pub mod cli;
pub mod commands;

pub mod assemble;
pub mod build;
pub mod check;
pub mod context;
pub mod debug;
pub mod devices;
pub mod explain;
pub mod export;
pub mod git;
pub mod mounts;
pub mod ops;
pub mod resolve;
pub mod solve;

pub mod cancel;
pub mod host;
pub mod isolation;
pub mod settings;
pub mod timestamp;

pub mod error;
pub mod failure;
pub mod progress;
pub mod report;
pub mod template;
