//! Which network an address belongs to, and who may send us there.
//!
//! A registry can name other addresses: redirects, token servers, upload locations. A public registry must not be
//! able to aim us at this machine or its internal network (SSRF). A registry may only name addresses of its own
//! class or a more public one: internal installations keep their token server and storage on internal hosts all the
//! time, so «same host and port only» would refuse what people run. Link-local, unspecified and multicast
//! addresses (cloud metadata services live there) are never followed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How far an address reaches; a later class is more internal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum AddressClass {
    /// Anywhere on the Internet.
    Public,
    /// RFC 1918, shared and unique local addresses.
    Private,
    /// This machine.
    Loopback,
    /// Link-local, unspecified, multicast, broadcast: no registry lives there.
    Never,
}

impl AddressClass {
    pub(crate) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::of_v4(v4),
            IpAddr::V6(v6) => Self::of_v6(v6),
        }
    }

    fn of_v4(v4: Ipv4Addr) -> Self {
        let [a, b, ..] = v4.octets();
        if v4.is_loopback() {
            Self::Loopback
        } else if a == 0 || v4.is_link_local() || v4.is_multicast() || a >= 240 {
            Self::Never
        } else if v4.is_private() || (a == 100 && (64..128).contains(&b)) {
            Self::Private
        } else {
            Self::Public
        }
    }

    fn of_v6(v6: Ipv6Addr) -> Self {
        // `::ffff:127.0.0.1`, NAT64 and 6to4 reach the IPv4 address inside.
        let s = v6.segments();
        let embedded = |hi: u16, lo: u16| {
            let ([a, b], [c, d]) = (hi.to_be_bytes(), lo.to_be_bytes());
            Self::of_v4(Ipv4Addr::new(a, b, c, d))
        };
        if v6.is_loopback() {
            Self::Loopback
        } else if v6.is_unspecified() || v6.is_multicast() || (s[0] & 0xffc0) == 0xfe80 {
            Self::Never
        } else if v6.to_ipv4_mapped().is_some() || s[..6] == [0; 6] || s[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
            embedded(s[6], s[7])
        } else if s[0] == 0x2002 {
            embedded(s[1], s[2])
        } else if (s[0] & 0xfe00) == 0xfc00 || (s[0] & 0xffc0) == 0xfec0 {
            Self::Private
        } else {
            Self::Public
        }
    }

    /// The class of a URL host that is a literal address or a name that can only mean this machine.
    pub(crate) fn of_literal(host: &str) -> Option<Self> {
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Some(Self::of(address));
        }
        is_localhost_name(bare).then_some(Self::Loopback)
    }

    /// Whether a registry of class `self` may send us to an address of class `to`.
    pub(crate) fn may_name(self, to: Self) -> bool {
        to != Self::Never && to <= self
    }
}

/// `localhost` and everything below it (RFC 6761).
pub(crate) fn is_localhost_name(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_fall_into_the_class_that_protects() {
        use AddressClass::{Loopback, Never, Private, Public};
        for (text, class) in [
            ("8.8.8.8", Public),
            ("127.8.9.1", Loopback),
            ("10.0.0.1", Private),
            ("172.16.0.1", Private),
            ("172.32.0.1", Public),
            ("192.168.1.1", Private),
            ("100.64.0.1", Private),
            ("169.254.169.254", Never),
            ("0.0.0.0", Never),
            ("0.1.2.3", Never),
            ("224.0.0.1", Never),
            ("255.255.255.255", Never),
            ("::1", Loopback),
            ("::", Never),
            ("fe80::1", Never),
            ("ff02::1", Never),
            ("fd00::1", Private),
            ("::ffff:127.0.0.1", Loopback),
            ("::ffff:169.254.169.254", Never),
            ("::127.0.0.1", Loopback),
            ("64:ff9b::a00:1", Private),
            ("2002:7f00:1::", Loopback),
            ("2001:4860:4860::8888", Public),
        ] {
            assert_eq!(AddressClass::of(text.parse().unwrap()), class, "{text}");
        }
    }

    #[test]
    fn only_more_public_addresses_may_be_named() {
        use AddressClass::{Loopback, Never, Private, Public};
        assert!(Public.may_name(Public));
        assert!(!Public.may_name(Private));
        assert!(!Private.may_name(Loopback));
        assert!(Loopback.may_name(Private));
        assert!(!Loopback.may_name(Never));
        assert_eq!(AddressClass::of_literal("LOCALHOST."), Some(Loopback));
        assert_eq!(AddressClass::of_literal("[::1]"), Some(Loopback));
        assert_eq!(AddressClass::of_literal("example.com"), None);
    }
}
