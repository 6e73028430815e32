//! What is wrong with an archive.

use std::io;

use rbuild_cache::layer::{DecompressError, TarError};
use rbuild_cache::store::StoreError;
use rbuild_oci::{Digest, DocumentError, Platform, ReferenceError};

use super::{IMAGES_MAX, INDEX_DEPTH_MAX, MEMBERS_MAX, NAME_BYTES_MAX};
use crate::resolve::ResolveError;

/// Why an archive does not give its images.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Not a tar, or one that is cut or ambiguous.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// Compressed in a way rbuild does not read.
    #[error(transparent)]
    Decompress(#[from] DecompressError),
    /// A member cannot be read.
    #[error("cannot read `{name}`")]
    Read {
        /// In the archive.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// More members than allowed.
    #[error("it has more than {MEMBERS_MAX} members")]
    TooManyMembers,
    /// More images than allowed.
    #[error("it has more than {IMAGES_MAX} images")]
    TooManyImages,
    /// A name longer than allowed.
    #[error("a name in it has more than {NAME_BYTES_MAX} bytes")]
    NameTooLong,
    /// Two members of one name with different content.
    #[error("it has two different members `{0}`")]
    Twice(String),
    /// Neither `index.json` nor `manifest.json`.
    #[error("it is no image archive: it has neither index.json nor manifest.json")]
    NoImages,
    /// The member that should list images lists none.
    #[error("its {0} names no image")]
    Empty(&'static str),
    /// A member that is named is not there.
    #[error("`{0}` is missing")]
    Missing(String),
    /// A document that is named is not there, or does not have the size that was stated.
    #[error("the blob {0} is missing, too large, or not of the size that is stated for it")]
    Blob(Digest),
    /// `manifest.json` is not what Docker writes.
    #[error("manifest.json is not a Docker archive's")]
    DockerManifest(#[source] serde_json::Error),
    /// A manifest or index is not acceptable.
    #[error("the document {name} is not acceptable")]
    Document {
        /// Its digest, or `index.json`.
        name: String,
        /// Why.
        #[source]
        source: DocumentError,
    },
    /// `index.json` is a manifest, or indexes are nested too deep.
    #[error("{0} is no index, or has more than {INDEX_DEPTH_MAX} levels below it")]
    Nesting(String),
    /// A digest rbuild cannot verify.
    #[error("`{0}` is not a sha256 digest")]
    Digest(String),
    /// A config is not one.
    #[error("the image config {digest} is not valid")]
    Config {
        /// Its digest.
        digest: Digest,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// No image of an index is for the platform.
    #[error("it has no image for {0}")]
    NoPlatform(Platform),
    /// Different images of one name.
    #[error("it has {} images `{name}` for {platform}: {}", digests.len(), digests.join(", "))]
    Several {
        /// Their name.
        name: String,
        /// Their platform.
        platform: Platform,
        /// Their digests.
        digests: Vec<String>,
    },
    /// A name in the archive is no image name.
    #[error("an image in it is named `{name}`")]
    Name {
        /// As it stands there.
        name: String,
        /// Why.
        #[source]
        source: ReferenceError,
    },
    /// Config and manifest disagree.
    #[error(transparent)]
    Image(#[from] ResolveError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
