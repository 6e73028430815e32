//! Layer directories and layer archives.

mod diff;

pub use diff::{Change, DiffEntry, LayerDiff, Mtime};
