//! Where a host name leads, for programs that connect by themselves (git).

use std::net::IpAddr;

use super::address::AddressClass;
use super::resolver::Resolver;

/// How internal a host is, as seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach(AddressClass);

/// Why nobody should connect.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// Its addresses are link-local, multicast or unspecified (cloud metadata services live there), or more internal than
    /// who names it.
    #[error("{0} is link-local, or more internal than the server that names it")]
    Refused(String),
    /// It has no address.
    #[error("the address of {host} cannot be found")]
    Lookup {
        /// The name.
        host: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Reach {
    /// Anywhere on the Internet: what is known of a host that a proxy looks up.
    pub const PUBLIC: Self = Self(AddressClass::Public);

    /// The class of a host that is written as an address, or can only mean this machine.
    ///
    /// # Errors
    ///
    /// [`ReachError::Refused`].
    pub fn of_literal(host: &str, named_by: Option<Self>) -> Result<Option<Self>, ReachError> {
        match AddressClass::of_literal(host) {
            Some(class) if may_name(named_by, class) => Ok(Some(Self(class))),
            Some(_) => Err(ReachError::Refused(host.to_owned())),
            None => Ok(None),
        }
    }

    /// The addresses of a host to which one may connect, and the least internal class of them. `named_by` is what sends us
    /// there; `None` for an address that the user or the Dockerfile gives, which may lead anywhere but to link-local ones.
    ///
    /// # Errors
    ///
    /// [`ReachError`]: nothing is left, or nothing was found.
    pub async fn of(host: &str, named_by: Option<Self>) -> Result<(Self, Vec<IpAddr>), ReachError> {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let found = match bare.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => Resolver::new(None)
                .addresses(bare)
                .await
                .map_err(|source| ReachError::Lookup { host: host.to_owned(), source: source.into() })?,
        };
        let allowed = |address: &IpAddr| may_name(named_by, AddressClass::of(*address));
        let kept: Vec<IpAddr> = found.into_iter().filter(allowed).collect();
        let class = kept.iter().map(|address| AddressClass::of(*address)).min();
        let class = class.ok_or_else(|| ReachError::Refused(host.to_owned()))?;
        Ok((Self(class), kept))
    }
}

fn may_name(by: Option<Reach>, class: AddressClass) -> bool {
    by.map_or(AddressClass::Loopback, |reach| reach.0).may_name(class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn link_local_is_never_reached_and_others_by_no_more_public_host() {
        for host in ["169.254.169.254", "[fe80::1]", "0.0.0.0", "::ffff:169.254.169.254"] {
            assert!(matches!(Reach::of(host, None).await, Err(ReachError::Refused(_))), "{host}");
            assert!(Reach::of_literal(host, None).is_err(), "{host}");
        }
        let (private, addresses) = Reach::of("10.1.2.3", None).await.unwrap();
        assert_eq!(addresses, ["10.1.2.3".parse::<IpAddr>().unwrap()]);
        for (host, by, is_allowed) in [
            ("localhost", None, true),
            ("127.0.0.1", Some(private), false),
            ("localhost", Some(Reach::PUBLIC), false),
            ("10.0.0.1", Some(private), true),
            ("192.168.0.1", Some(Reach::PUBLIC), false),
            ("8.8.8.8", Some(Reach::PUBLIC), true),
        ] {
            assert_eq!(Reach::of(host, by).await.is_ok(), is_allowed, "{host}");
            assert_eq!(Reach::of_literal(host, by).is_ok(), is_allowed, "{host}");
        }
        assert_eq!(Reach::of_literal("example.com", None).unwrap(), None);
    }
}
