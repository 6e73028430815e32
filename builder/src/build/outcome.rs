//! What a build gives, and what is known of one that failed.

use std::collections::BTreeMap;
use std::time::Duration;

use rbuild_frontend::diagnostic::Diagnostic;
use rbuild_oci::{Digest, Platform, Reference};
use rbuild_sandbox::Rung;

use crate::assemble::index::ImageSet;
use crate::assemble::provenance;
use crate::context::files::FoundDockerfile;
use crate::debug::Slot;
use crate::explain::Decision;

/// What a build gave.
#[derive(Debug, Clone)]
pub struct BuildOutcome {
    /// Names it got.
    pub names: Vec<Reference>,
    /// Platform and id (digest of the config) of every image, in the order asked for.
    pub images: Vec<(Platform, Digest)>,
    /// The manifest or index, when an exporter made one.
    pub document: Option<Described>,
    /// Uncompressed size of all layers of all images.
    pub size: u64,
    /// Names it was pushed under.
    pub pushed: Vec<Reference>,
    /// Files and directories written.
    pub written: Vec<String>,
    /// How its RUN steps were isolated, or would have been.
    pub isolation: Rung,
    /// Steps that make layers.
    pub steps: usize,
    /// Those that were not executed.
    pub cached: usize,
    /// Cached results whose steps were executed again, and gave the same.
    pub verified: usize,
    /// How each image was made, when the metadata file is to say.
    pub provenance: Vec<(Platform, provenance::Document)>,
    /// Which build this was.
    pub invocation: String,
    /// Warnings of the Dockerfile.
    pub warnings: Vec<Diagnostic>,
    /// Wall time.
    pub elapsed: Duration,
}

impl BuildOutcome {
    /// What identifies the result: the image's id; of several images the index's digest.
    pub fn id(&self) -> Option<Digest> {
        match (self.images.as_slice(), &self.document) {
            ([(_, id)], _) => Some(*id),
            (_, document) => document.as_ref().map(|document| document.digest),
        }
    }
}

/// The document that the names of a result stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Its media type.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length.
    pub size: u64,
    /// Annotations of its descriptor.
    pub annotations: BTreeMap<String, String>,
    /// The platform of a single image.
    pub platform: Option<Platform>,
}

impl Described {
    pub(super) fn of(set: &ImageSet) -> Self {
        let root = set.root();
        Self {
            media_type: root.media_type.to_owned(),
            digest: root.digest,
            size: root.bytes.len() as u64,
            annotations: set.described_by(),
            platform: root.platform.cloned(),
        }
    }
}

/// What is known of a build also when it fails: the Dockerfile as far as it was read, and what was decided.
#[derive(Debug, Default)]
pub struct Source {
    /// What was read; `None` until then.
    pub dockerfile: Option<FoundDockerfile>,
    /// The step that failed, when a shell in it was asked for.
    pub failed_step: Slot,
    /// Steps and why they were executed, for `--explain=json`.
    pub decisions: Vec<(String, Decision)>,
}
