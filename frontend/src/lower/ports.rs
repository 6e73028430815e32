//! Port specs of EXPOSE.

/// A parsed spec: the container's ports and what is odd about how it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) first: u16,
    pub(super) last: u16,
    /// `tcp`, `udp` or `sctp`.
    pub(super) protocol: String,
    /// Written with upper-case letters.
    pub(super) protocol_casing: bool,
    /// Has an address or a host port, which EXPOSE ignores.
    pub(super) host_part: bool,
}

/// Parses `[[ip:]hostPort:]port[-port][/protocol]`.
pub(super) fn parse(text: &str) -> Result<Ports, String> {
    let (ports, written) = match text.split_once('/') {
        Some((ports, protocol)) => (ports, protocol),
        None => (text, "tcp"),
    };
    let protocol = written.to_lowercase();
    let (host, container) = match ports.rsplit_once(':') {
        Some((host, container)) => (Some(host), container),
        None => (None, ports),
    };
    if container.is_empty() {
        return Err(format!("no port specified: {text}<empty>"));
    }
    let bad_container = || format!("invalid containerPort: {container}");
    let (first, last) = match container.split_once('-') {
        Some((first, last)) => (number(first), number(last)),
        None => (number(container), number(container)),
    };
    let (first, last) = (first.ok_or_else(bad_container)?, last.ok_or_else(bad_container)?);
    if last < first {
        return Err(bad_container());
    }
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("invalid port: {text:?}: invalid proto: {protocol}"));
    }
    Ok(Ports { first, last, protocol_casing: written != protocol, protocol, host_part: host.is_some() })
}

fn number(text: &str) -> Option<u16> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}
