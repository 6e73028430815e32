//! What can go wrong between us and a registry.
//!
//! Every error says what was being done to which repository at which host ([`Target`]), and carries the registry's
//! own words ([`Reply`]) when it had any: bounded, escaped, verbatim otherwise.

mod hint;
mod reason;
mod reply;

use std::fmt;
use std::time::Duration;

use rbuild_oci::{Digest, DocumentError, Platform};

use crate::auth::KeychainError;
use crate::config::ConfigError;

use reason::Unreached;
pub use reason::{FailedProxy, Reason};
pub use reply::Reply;
pub(crate) use reply::escape;

/// What was being done to which thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Host spoken to, as named (`docker.io` stays `docker.io`).
    pub host: String,
    /// Repository there.
    pub repository: String,
    /// The deed, such as «pull manifest `3.20`».
    pub action: String,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.repository.as_str() {
            // The registry as a whole.
            "" => write!(f, "{} at {}", self.action, self.host),
            repository => write!(f, "{} of {}/{repository}", self.action, self.host),
        }
    }
}

/// A failed operation on a registry.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The registry has no such manifest, blob or repository (404).
    #[error("{target}: not found{reply}")]
    NotFound {
        /// What was asked.
        target: Box<Target>,
        /// For a tag: some that exist, the likeliest first.
        existing: Vec<String>,
        /// The registry's words.
        reply: Box<Reply>,
    },
    /// The registry or its token server wants (other) credentials (401).
    #[error("{target}: {}{reply}", if *had_credentials { "the credentials were refused" } else { "authentication required" })]
    Unauthorized {
        /// What was asked.
        target: Box<Target>,
        /// Whether credentials were configured for the host.
        had_credentials: bool,
        /// The registry's words.
        reply: Box<Reply>,
    },
    /// The account may not do this (403).
    #[error("{target}: access denied{reply}")]
    Denied {
        /// What was asked.
        target: Box<Target>,
        /// The registry's words.
        reply: Box<Reply>,
    },
    /// Too many requests (429), still after waiting.
    #[error("{target}: rate limited{reply}")]
    RateLimited {
        /// What was asked.
        target: Box<Target>,
        /// How long the registry wants us to wait.
        retry_after: Option<Duration>,
        /// The registry's words.
        reply: Box<Reply>,
    },
    /// Any other status: a request refused, or a fault (5xx) that outlasted the retries.
    #[error("{target}: unexpected answer{reply}")]
    Refused {
        /// What was asked.
        target: Box<Target>,
        /// The registry's words.
        reply: Box<Reply>,
    },
    /// No answer was got at all, or it broke off.
    #[error("{target}: {}", Unreached { reason: *reason, proxy: proxy.as_deref() })]
    Unreachable {
        /// What was asked.
        target: Box<Target>,
        /// At which step it failed.
        reason: Reason,
        /// The proxy that it is about, when it is not about the host itself.
        proxy: Option<Box<FailedProxy>>,
        /// The cause, when there is one.
        #[source]
        source: Option<Box<reqwest::Error>>,
    },
    /// The bytes are not those the digest names. They must not be used.
    #[error("{target}: the content has digest {actual}, expected {expected}")]
    DigestMismatch {
        /// What was transferred.
        target: Box<Target>,
        /// Digest asked for.
        expected: Digest,
        /// Digest of what came.
        actual: Digest,
    },
    /// More or fewer bytes than the descriptor says.
    #[error("{target}: got {actual} bytes, expected {expected}")]
    SizeMismatch {
        /// What was transferred.
        target: Box<Target>,
        /// Bytes the descriptor promises.
        expected: u64,
        /// Bytes that came; for an endless body, one more than expected.
        actual: u64,
    },
    /// A document beyond the limits of [`crate::limits`].
    #[error("{target}: larger than the limit of {limit} bytes")]
    TooLarge {
        /// What was transferred.
        target: Box<Target>,
        /// The limit.
        limit: u64,
    },
    /// A manifest or index that does not parse.
    #[error("{target}")]
    Manifest {
        /// Which.
        target: Box<Target>,
        /// Why.
        #[source]
        source: DocumentError,
    },
    /// An image config that does not parse.
    #[error("{target}: the image config is not valid")]
    Config {
        /// Which.
        target: Box<Target>,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The index lists no image for the platform.
    #[error("{target}: no image for platform {wanted}")]
    NoPlatform {
        /// Which.
        target: Box<Target>,
        /// What was asked for.
        wanted: Platform,
        /// What there is.
        available: Vec<Platform>,
    },
    /// The other side broke the protocol, or its answer is unsafe to act on.
    #[error("{target}: {violation}")]
    Protocol {
        /// What was being done.
        target: Box<Target>,
        /// How.
        violation: Violation,
    },
    /// `registries.conf` says `blocked = true`.
    #[error("{target}: registry `{prefix}` is blocked by registries.conf")]
    Blocked {
        /// What was asked.
        target: Box<Target>,
        /// The entry's prefix.
        prefix: String,
    },
    /// Reading the blob to push failed.
    #[error("{target}: cannot read the blob to upload")]
    Source {
        /// What was being done.
        target: Box<Target>,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The registry takes this blob in one piece only: an upload that began before the blob was whole is of no use.
    #[error("{target}: the registry does not take blobs piece by piece")]
    NotStreamed {
        /// What was being done.
        target: Box<Target>,
        /// Its words, when it was asked.
        #[source]
        source: Option<Box<RegistryError>>,
    },
    /// Credentials could not be obtained.
    #[error("{target}: cannot get credentials")]
    Credentials {
        /// What was being done.
        target: Box<Target>,
        /// Why.
        #[source]
        source: KeychainError,
    },
    /// A configuration file is wrong.
    #[error(transparent)]
    Settings(#[from] ConfigError),
    /// Every mirror failed, and then the registry itself.
    #[error("failed at {} and at the registry itself", mirror_hosts(mirrors))]
    AfterMirrors {
        /// One failure per mirror, in the order tried.
        mirrors: Vec<RegistryError>,
        /// How the registry itself failed.
        #[source]
        upstream: Box<RegistryError>,
    },
}

fn mirror_hosts(mirrors: &[RegistryError]) -> String {
    let hosts: Vec<&str> = mirrors.iter().filter_map(|m| m.target()).map(|t| t.host.as_str()).collect();
    format!("mirror {}", hosts.join(", "))
}

/// What to match on when the details do not matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No such image, tag, blob or repository.
    NotFound,
    /// Credentials missing or refused.
    Unauthorized,
    /// Not allowed for this account.
    Denied,
    /// Too many requests.
    RateLimited,
    /// No connection, no name, no TLS, no answer.
    Unreachable,
    /// Bytes that are not what their digest or size says.
    Corrupt,
    /// Beyond a limit.
    TooLarge,
    /// Not an image, or not one for the platform.
    Unsuitable,
    /// A registry that misbehaves.
    Protocol,
    /// Blobs must be pushed whole.
    NotStreamed,
    /// Configuration or credentials on this machine.
    Local,
}

/// How the other side broke the rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// A redirect, `Location` or `realm` that is not an address.
    #[error("the registry sent an address that cannot be used: `{0}`")]
    Address(String),
    /// From `https` to `http`.
    #[error("refusing to go from https to `{0}`")]
    Downgrade(String),
    /// A public registry pointing into the internal network.
    #[error("refusing to follow the registry to the internal address `{0}`")]
    InternalAddress(String),
    /// More than [`crate::limits::REDIRECTS_MAX`] hops.
    #[error("too many redirects")]
    Redirects,
    /// An answer without a header it must have.
    #[error("the answer has no `{0}` header")]
    HeaderMissing(&'static str),
    /// A `401` with no challenge we can answer.
    #[error("the registry asks for authentication in a way that is not supported: `{0}`")]
    Challenge(String),
    /// A token answer without a token.
    #[error("the token server `{0}` gave no token")]
    NoToken(String),
    /// The registry stored something under another digest than ours.
    #[error("the registry reports digest `{reported}` for content with digest {sent}")]
    StoredDigest {
        /// Digest of what was sent.
        sent: Digest,
        /// What the registry says.
        reported: String,
    },
    /// A blob that was taken and then is not there.
    #[error("the registry took blob {0} and does not have it")]
    Lost(Digest),
    /// A list that is none.
    #[error("the registry sent a list that cannot be read")]
    List,
    /// A list that goes on and on.
    #[error("the list does not end, or goes on at another address: `{0}`")]
    Pages(String),
    /// Indexes nested beyond [`crate::limits::INDEX_DEPTH_MAX`].
    #[error("indexes are nested too deeply")]
    IndexDepth,
    /// A descriptor whose digest is not one we can verify.
    #[error("descriptor digest `{0}` is not a sha256 digest")]
    DescriptorDigest(String),
    /// The config is not an image config.
    #[error("not a container image: its config has media type `{0}`")]
    NotAnImage(String),
    /// Bytes that no header can carry as a media type.
    #[error("`{0}` is not a media type")]
    MediaType(String),
    /// The config's `rootfs` is not a list of layers.
    #[error("the image config has the unknown rootfs type `{0}`")]
    RootFs(String),
    /// An entry of an index that is of another type than it says.
    #[error("the index says that this is `{stated}`, and it is `{found}`")]
    EntryType {
        /// In the index.
        stated: String,
        /// In truth.
        found: String,
    },
    /// An entry of an index that is for another platform than it says.
    #[error("the index says that this image is for {stated}, and the image says that it is for {found}")]
    EntryPlatform {
        /// In the index.
        stated: Platform,
        /// In the image's config.
        found: Platform,
    },
    /// Layers and diff ids differ in number.
    #[error("the manifest lists {layers} layers and the config {diff_ids}")]
    LayerCount {
        /// Layers in the manifest.
        layers: usize,
        /// Diff ids in the config.
        diff_ids: usize,
    },
    /// A `206` for another range than asked, or a range that cannot be.
    #[error("the answer covers another byte range than asked: `{0}`")]
    Range(String),
}

impl RegistryError {
    /// The class of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Unauthorized { .. } => ErrorKind::Unauthorized,
            Self::Denied { .. } => ErrorKind::Denied,
            Self::RateLimited { .. } => ErrorKind::RateLimited,
            Self::Unreachable { .. } => ErrorKind::Unreachable,
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } => ErrorKind::Corrupt,
            Self::TooLarge { .. } => ErrorKind::TooLarge,
            Self::NoPlatform { .. } | Self::Protocol { violation: Violation::NotAnImage(_), .. } => {
                ErrorKind::Unsuitable
            }
            Self::NotStreamed { .. } => ErrorKind::NotStreamed,
            Self::Refused { .. } | Self::Manifest { .. } | Self::Config { .. } | Self::Protocol { .. } => {
                ErrorKind::Protocol
            }
            Self::Blocked { .. } | Self::Source { .. } | Self::Credentials { .. } | Self::Settings(_) => {
                ErrorKind::Local
            }
            Self::AfterMirrors { upstream, .. } => upstream.kind(),
        }
    }

    /// What was being done, when the failure belongs to one request.
    pub fn target(&self) -> Option<&Target> {
        match self {
            Self::NotFound { target, .. }
            | Self::Unauthorized { target, .. }
            | Self::Denied { target, .. }
            | Self::RateLimited { target, .. }
            | Self::Refused { target, .. }
            | Self::Unreachable { target, .. }
            | Self::DigestMismatch { target, .. }
            | Self::SizeMismatch { target, .. }
            | Self::TooLarge { target, .. }
            | Self::Manifest { target, .. }
            | Self::Config { target, .. }
            | Self::NoPlatform { target, .. }
            | Self::Protocol { target, .. }
            | Self::Blocked { target, .. }
            | Self::Source { target, .. }
            | Self::NotStreamed { target, .. }
            | Self::Credentials { target, .. } => Some(target),
            Self::Settings(_) => None,
            Self::AfterMirrors { upstream, .. } => upstream.target(),
        }
    }

    /// HTTP status, when the registry answered with one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::NotFound { reply, .. }
            | Self::Unauthorized { reply, .. }
            | Self::Denied { reply, .. }
            | Self::RateLimited { reply, .. }
            | Self::Refused { reply, .. } => Some(reply.status),
            Self::AfterMirrors { upstream, .. } => upstream.status(),
            _ => None,
        }
    }
}
