//! The vocabulary of OCI and Docker images.
//!
//! Values only: no files, no sockets, no async, no Dockerfiles. Every other crate speaks in these types, so strings
//! from outside are parsed here once and stay valid from then on.
//!
//! | type | is | is not |
//! |---|---|---|
//! | [`Digest`] | SHA-256 of a blob as stored or transferred | a [`DiffId`] |
//! | [`DiffId`] | SHA-256 of one uncompressed layer tar | the digest in a manifest |
//! | [`ChainId`] | identity of a stack of [`DiffId`]s | a [`DiffId`], even for one layer |
//! | [`Reference`] | registry, repository, tag and digest, normalised | what the user typed |
//! | [`Platform`] | os, architecture, variant, normalised | a string with slashes |
#![forbid(unsafe_code)]

mod canonical;
mod config;
mod digest;
mod document;
mod duration;
mod file_mode;
mod ids;
mod json;
mod platform;
mod reference;
mod size;

pub use canonical::{Canonical, CanonicalWriter};
pub use config::{ContainerConfig, Healthcheck, History, ImageConfig, RootFs};
pub use digest::{Digest, DigestError, Sha256};
pub use document::{Descriptor, Document, DocumentError, Index, Manifest, ManifestDescriptor, media_type};
pub use duration::parse_duration;
pub use file_mode::{FileMode, FileModeError};
pub use ids::{ChainId, DiffId};
pub use json::{canonical_json, in_canonical_order};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError};
pub use size::parse_bytes;
