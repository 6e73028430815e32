//! COPY and ADD planned on trees.
//!
//! ```text
//! source tree ──select──▶ items ─┐
//! parent tree ───────────────────┴─plan──▶ CopyPlan { diff, origins } ──materialise──▶ layer directory
//! ```
//!
//! [`plan()`] is pure but for modification times: it resolves the destination in the parent tree, checks every rule of
//! COPY (dockerfile reference 3.4–3.6, 3.10) and gives the layer's diff, so the next tree and its digest are known
//! before a byte is copied. [`materialise()`] then fills an empty directory, needing neither mounts nor a sandbox.
//!
//! | module | for |
//! |---|---|
//! | `plan`, `contents` | COPY and ADD, what they take out of a directory |
//! | `archive`, `places` | unpacked archives merged into the image, behind its symlinks |
//! | `workdir` | WORKDIR |
//! | `view`, `pending` | the parent tree with what is planned so far, most of it in a file when it is much |
//! | `finished` | what was planned as a layer |
//! | `origins` | where the bytes of planned files are |
//! | `materialise`, `bytes` | filling the layer directory |
//! | `pack` | keeping a layer without a directory, and making that later |
//! | `source`, `stack` | reading a context directory, a stack of layers |

mod archive;
mod bytes;
mod contents;
mod finished;
mod materialise;
mod origins;
mod pack;
mod pending;
mod places;
mod plan;
mod source;
mod stack;
mod view;
mod whole;
mod workdir;

#[cfg(test)]
mod tests;

pub use materialise::{MaterialiseError, Sources, materialise};
pub use origins::{Moved, Origin, Origins};
pub use pack::{PackLayerError, keep_times, marks_that_hold, materialise_packed, pack, worth_sharing};
pub use plan::{Archive, CopyItem, CopyOptions, plan};
pub use source::{DirSource, FileSource, SourceError};
pub use stack::{ListedLayer, StackLayer, StackSource};
pub use whole::plan_whole;
pub use workdir::plan_workdir;

use crate::layer::{LayerDiff, ListingError};
use crate::path::RelPath;
use crate::tree::select::SelectionsError;
use crate::tree::{CodecError, NodeStoreError, ResolveError, TreeError};

/// A layer that is known but not written yet.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone, PartialEq))]
pub struct CopyPlan {
    /// All of the layer, with the directories that lead to changes (as an overlay upper directory needs them) and
    /// always the root, which an emitter of archives leaves out when the parent has the same.
    pub diff: LayerDiff,
    /// Where the bytes of each [`crate::layer::Change::File`] are.
    pub origins: Origins,
}

/// Why something cannot be copied. Paths are those of the image.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A list of entries cannot be kept or read.
    #[error(transparent)]
    Listing(#[from] ListingError),
    /// The list of what to copy cannot be read.
    #[error(transparent)]
    Selections(#[from] SelectionsError),
    /// Something on the way to the destination, or a destination that ends in `/`, is not a directory.
    #[error("/{path}: not a directory")]
    NotDirectory {
        /// What is in the way.
        path: RelPath,
    },
    /// A directory would have to replace something else.
    #[error("cannot copy to non-directory: /{path}")]
    ToNonDirectory {
        /// What is in the way.
        path: RelPath,
    },
    /// A file or link would have to replace a directory.
    #[error("cannot replace to directory /{path} with file")]
    ReplaceDirectory {
        /// The directory.
        path: RelPath,
    },
    /// A selected item without the source that it was selected from.
    #[error("\"/{path}\" was selected from no source")]
    NoSource {
        /// Path in the source.
        path: RelPath,
    },
    /// A name, path or metadata that no tree can hold.
    #[error("/{path} does not fit into an image")]
    Unfit {
        /// The destination.
        path: RelPath,
        /// Why.
        #[source]
        source: CodecError,
    },
    /// The destination path cannot be followed.
    #[error("cannot resolve destination `{dest}`")]
    Destination {
        /// As given.
        dest: String,
        /// Why.
        #[source]
        source: ResolveError,
    },
    /// A modification time could not be read.
    #[error("cannot read the time of /{path}")]
    Time {
        /// Path in the source, or in the parent image.
        path: RelPath,
        /// Why.
        #[source]
        source: SourceError,
    },
    /// An archive to unpack has a whiteout, which means something in image layers only.
    #[error("archive entry `{path}` is a whiteout")]
    Whiteout {
        /// Path in the archive.
        path: RelPath,
    },
    /// An archive's hardlink names nothing that comes before it.
    #[error("archive entry `{path}` is a hardlink to `{target}`, which is not an earlier file")]
    LinkTarget {
        /// Path in the archive.
        path: RelPath,
        /// What it names.
        target: RelPath,
    },
    /// Walking the source failed.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Nodes could not be read.
    #[error(transparent)]
    Nodes(#[from] NodeStoreError),
}
