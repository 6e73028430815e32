//! Builds OCI images from Dockerfiles.
#![forbid(unsafe_code)]

pub mod cli;
pub mod progress;
pub mod report;
