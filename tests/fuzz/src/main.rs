//! One fuzzer, several targets: `FUZZ_TARGET` names the one to run (see `tests/scripts/fuzz`).
//!
//! A target reads hostile bytes and asserts what must hold whatever they are: no panic, no hang, bounded memory (the
//! script's limits), and the invariants that its function names.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

mod archive;
mod documents;
mod language;
mod registry;

const TARGETS: [(&str, fn(&[u8])); 6] = [
    ("dockerfile", language::dockerfile),
    ("dockerignore", language::dockerignore),
    ("challenge", registry::challenge),
    ("reference", documents::reference),
    ("document", documents::document),
    ("archive", archive::archive),
];

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|(target, _)| *target == name);
    found.unwrap_or_else(|| panic!("FUZZ_TARGET is `{name}`, not one of {:?}", TARGETS.map(|(t, _)| t))).1
});

fuzz_target!(|bytes: &[u8]| TARGET(bytes));

/// What `registry`'s and `archive`'s source files take from the roots of their crates.
#[path = "../../../registry-client/src/limits.rs"]
#[allow(dead_code, reason = "few of them are used here")]
mod limits;
mod tree {
    pub(crate) const PATH_BYTES_MAX: usize = 4095;
    pub(crate) const DEPTH_MAX: usize = 1024;
}
