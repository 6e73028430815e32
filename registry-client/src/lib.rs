//! Client of the OCI distribution protocol: pulls and pushes with every byte verified while it streams.
//!
//! ```text
//! Client ──▶ config (mirrors, insecure) ──▶ endpoint (which host, which scheme)
//!    │                                           │
//!    ├─▶ manifests · tags · referrers · blobs ───┤
//!    │                                           ▼
//!    └────────────────────────────────▶ transport (retry, redirect, address guard, DNS, TLS) ◀── auth
//! ```
//!
//! Rules the modules share:
//!
//! * Nothing is read, resolved or connected before the first request: [`Client::new`] is free.
//! * Credentials belong to one origin. Another origin never sees them, `https` never becomes `http`.
//! * Only our own hash of the bytes counts; headers that state a digest are compared, never believed.
//! * Everything a registry sends is bounded ([`limits`]) and escaped before it reaches a message.
//! * This crate reads no environment variables and knows no store: [`Settings`] is plain data. (The system's TLS
//!   roots honour `SSL_CERT_FILE` and `SSL_CERT_DIR`, which `rustls-native-certs` reads.)
#![forbid(unsafe_code)]

mod client;
mod login;
mod settings;

mod blobs;
mod fetch;
mod manifests;
mod referrers;
mod tags;

mod auth;
mod config;
mod endpoint;
mod transport;

mod error;
pub mod limits;

#[cfg(test)]
mod tests;

pub use auth::{AwsEnv, Kept, KeychainError, Server, ServerError, erase_credentials, store_credentials};
pub use blobs::pull::BlobStream;
pub use blobs::push::{Progress, PushOutcome};
pub use blobs::source::{BlobBody, BlobSource, BytesSource, FileSource};
pub use blobs::stream::GrowingBlob;
pub use client::Client;
pub use config::ConfigError;
pub use error::{ErrorKind, FailedProxy, Reason, RegistryError, Reply, Target, Violation};
pub use fetch::{FetchError, FetchRequest, FetchStream, Fetched};
pub use manifests::{ResolvedImage, StoredManifest};
pub use settings::{Deadlines, ProxySetting, ProxySettings, SetBy, Settings};
pub use transport::host::Quota;
pub use transport::reach::{Reach, ReachError};
