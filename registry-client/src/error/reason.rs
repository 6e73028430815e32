//! Why there was no answer.

use std::fmt;

use crate::settings::SetBy;

/// At which step a connection failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The name has no address.
    Name,
    /// No connection.
    Connect,
    /// TLS refused: certificate unknown, expired, for another name, or no TLS spoken.
    Tls,
    /// A deadline passed.
    Timeout,
    /// The connection broke in the middle.
    Broken,
    /// Slower than [`crate::limits::RATE_BYTES_PER_SECOND_MIN`].
    TooSlow,
    /// The trust store or client certificate of this machine cannot be used.
    TrustStore,
    /// A proxy answered, and opened no connection to the host.
    Tunnel,
}

/// A proxy between us and a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedProxy {
    /// Its address without credentials.
    pub address: String,
    /// Where it is set.
    pub set_by: SetBy,
}

/// What could not be reached, and why.
pub(super) struct Unreached<'a> {
    pub(super) reason: Reason,
    pub(super) proxy: Option<&'a FailedProxy>,
}

impl fmt::Display for Unreached<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.reason, self.proxy) {
            (reason, None) => reason.fmt(f),
            (Reason::Tunnel, Some(proxy)) => write!(f, "the {proxy} opened no connection to it"),
            (reason, Some(proxy)) => write!(f, "the {proxy} cannot be reached: {reason}"),
        }
    }
}

impl fmt::Display for FailedProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "proxy `{}` (set by {})", self.address, self.set_by)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "the host name cannot be resolved",
            Self::Connect => "cannot connect",
            Self::Tls => "the TLS connection failed",
            Self::Timeout => "timed out",
            Self::Broken => "the connection broke",
            Self::TooSlow => "the transfer is too slow",
            Self::TrustStore => "cannot set up TLS",
            Self::Tunnel => "the proxy opened no connection to it",
        })
    }
}
