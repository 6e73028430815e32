//! Drives the real `rbuild` binary against real parts.
//!
//! A test takes a [`TestEnv`] (own home, own store, cleared environment), usually a [`Registry`] (a real
//! `docker-registry` on a free loopback port, full of the bases that `tests/scripts/make-bases` makes), runs the
//! binary, and has the result judged by tools this project did not write ([`judge`]): skopeo, umoci, runc.
//!
//! ```no_run
//! use rbuild_tests::{Registry, TestEnv};
//! # fn main() -> anyhow::Result<()> {
//! let registry = Registry::with_bases()?;
//! let env = TestEnv::new()?.using(&registry)?;
//! let context = env.fixture("tutorial/node")?;
//! let built = env.build(&context, &["-t", "me/app"])?.ok();
//! assert_eq!(built.steps().len(), 5);
//! # Ok(()) }
//! ```
//!
//! Which binary: `$RBUILD_BIN`, else the workspace's own debug build, built when needed.
//!
//! What a machine cannot do is *skipped* with a line that says why, and *failed* when `RBUILD_TEST_REQUIRE` is set
//! ([`need!`]), as the continuous integration does.
#![forbid(unsafe_code)]

pub mod archive;
pub mod aws;
pub mod bases;
pub mod binary;
pub mod container;
pub mod differences;
pub mod docker;
pub mod env;
pub mod fault;
pub mod generated;
pub mod git;
pub mod http;
pub mod judge;
pub mod leak;
pub mod need;
pub mod registry;
pub mod run;
pub mod token_server;
pub mod tun;
pub mod user;
pub mod web;
mod wire;

pub use env::TestEnv;
pub use registry::{Registry, Tls};
pub use run::{Outcome, Run, Step};
