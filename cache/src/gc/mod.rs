//! Giving space back.
//!
//! ```text
//!  snapshot ─▶ mark (what images hold) ─▶ policy (what to give up) ─▶ condemn ─▶ retire ─▶ free
//! ```
//!
//! | module | for |
//! |---|---|
//! | `filter` | conditions of `du` and `prune`; pure |
//! | `mark` | what is held, by images and by results |
//! | `policy` | which units to give up, in which order; pure |
//! | `sweep` | condemning and freeing |
//! | `usage` | who holds what, for people |
//!
//! The unit is a layer directory or a blob. Images hold their layers, config, manifest and blobs: nothing of theirs is
//! ever given up. The order of sacrifice is blobs (they can be fetched or made again), layers that no result names,
//! layers that results name, cache mounts; with a layer go the results that name it. Why nothing in use is freed, and nothing
//! recorded lost, is told in the head of `store::readers`. One collector runs at a time, builds never wait for it,
//! and it can be killed anywhere: what is condemned stays condemned, what lies in its lease is removed by the next.

mod filter;
mod mark;
mod policy;
mod sweep;
#[cfg(test)]
mod tests;
mod usage;

pub use filter::{Filter, FilterError};
pub use policy::Policy;
pub use sweep::{Collected, Collector, usage};
pub use usage::{DiskUsage, UsageEntry, UsageKind};
