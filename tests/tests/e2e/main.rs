//! The real `rbuild` on real parts, end to end. One binary, so that its tests share one registry.
#![forbid(unsafe_code)]

mod add;
mod add_url;
mod attestations;
mod bad_input;
mod broken;
mod cache_control;
mod caching;
mod cases;
mod context_command;
mod contexts;
mod copy;
mod damage;
mod debugging;
mod devices;
mod differential;
mod docker_cli;
mod ecr;
mod epochs;
mod explain;
mod exports;
mod gc;
mod git;
mod golden;
mod hostile_contexts;
mod image_commands;
mod image_platforms;
mod images;
mod interrupt;
mod isolation;
mod language;
mod lazy;
mod looking;
mod machines;
mod mounts;
mod nothing_to_do;
mod outputs;
mod platforms;
mod registries;
mod registry_commands;
mod rootless;
mod stages;
mod steps;
mod stores;
mod tls;
mod tutorial;

use std::sync::Arc;

use anyhow::Result;
use rbuild_tests::{Registry, TestEnv};

/// A fresh world whose Docker Hub is the shared registry.
fn world() -> Result<(Arc<Registry>, TestEnv)> {
    let registry = Registry::shared()?;
    let env = TestEnv::new()?.using(&registry)?;
    Ok((registry, env))
}
