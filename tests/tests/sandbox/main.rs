//! Steps from inside and from outside: what the security reference asks of the sandbox (suites S, N, G, Q, X), on every
//! rung of the isolation ladder. Each test's first comment line names its rows; `rows.rs` checks that none is missing.
#![forbid(unsafe_code)]

mod agent;
mod emulation;
mod lifecycle;
mod limits;
mod oracle;
mod packages;
mod probes;
mod rows;
mod rungs;
mod secrets;
mod table;
