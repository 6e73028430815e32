//! Suites L, M and R of the security reference: registries that lie, break and attack, driven through the real binary
//! and through the client. Each test's first comment line names its rows; `rows.rs` checks that none is missing.
#![forbid(unsafe_code)]

mod ahead;
mod auth;
mod bad_input;
mod layers;
mod lazy;
mod manifests;
mod mirrors;
mod network;
mod preflight;
mod providers;
mod pull;
mod push;
mod rows;
mod streams;

use anyhow::{Result, ensure};
use rbuild_tests::fault::FaultRegistry;
use rbuild_tests::token_server::base64;
use rbuild_tests::{Run, TestEnv};

/// Secret part of the credentials that tests hand out. It must never be seen anywhere.
const CANARY: &str = "canary-5f3a9c";

/// Pulls `app:1`.
fn pull(env: &TestEnv, registry: &FaultRegistry) -> Result<Run> {
    env.run(["pull", &format!("{}/app:1", registry.host())])
}

/// What a refused pull must leave: no image, and a store without damage.
fn assert_nothing_came(env: &TestEnv) -> Result<()> {
    ensure!(env.run(["images", "-q"])?.ok().stdout.is_empty(), "an image came of it");
    env.run(["cache", "fsck"])?.ok();
    Ok(())
}

/// Credentials with the canary for these hosts.
fn log_in(env: &TestEnv, hosts: &[&str]) -> Result<()> {
    let auth = base64(format!("me:{CANARY}").as_bytes());
    let auths: serde_json::Map<_, _> =
        hosts.iter().map(|host| ((*host).to_owned(), serde_json::json!({"auth": auth}))).collect();
    env.write("home/.docker/config.json", &serde_json::json!({"auths": auths}).to_string())?;
    Ok(())
}
