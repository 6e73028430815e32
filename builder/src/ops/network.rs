//! The network that RUN steps get: decided once for a build, ahead of the first step that wants it.

use std::sync::{Arc, Once, OnceLock};

use rbuild_frontend::graph::Network;
use rbuild_sandbox::{NetworkError, UserNetwork};

use crate::progress::Events;

/// Networks of the steps of one build.
#[derive(Debug)]
pub struct StepNetwork {
    /// What `--network` says of steps that ask for the default.
    default: Network,
    /// The network apart from the host's, or why this machine cannot give one.
    user: OnceLock<Result<Arc<UserNetwork>, NetworkError>>,
    /// Somebody was told of that.
    was_said: Once,
}

impl StepNetwork {
    /// Decides nothing yet.
    pub fn new(default: Network) -> Self {
        Self { default, user: OnceLock::new(), was_said: Once::new() }
    }

    /// What `asked` comes to, given what the build asked for.
    pub fn resolve(&self, asked: Network) -> Network {
        if asked == Network::Default { self.default } else { asked }
    }

    /// The network for a step that asks for `asked`. On the default network it waits until that is there (some 50 ms from
    /// its start), or is told, with everybody who watches, that it shares the host's.
    pub fn of(&self, asked: Network, events: &Events) -> rbuild_sandbox::Network {
        let network = self.prepare(asked);
        if network == rbuild_sandbox::Network::Host
            && let Some(Err(error)) = self.user.get()
            && self.resolve(asked) == Network::Default
        {
            self.was_said.call_once(|| {
                events.remark(format!(
                    "RUN steps share the host's network: {error}; {} (--network=none cuts it off)",
                    error.remedy()
                ));
            });
        }
        network
    }

    /// As [`of`](Self::of), and tells nobody: for who only makes it ready.
    pub fn prepare(&self, asked: Network) -> rbuild_sandbox::Network {
        match self.resolve(asked) {
            Network::None => rbuild_sandbox::Network::None,
            Network::Host => rbuild_sandbox::Network::Host,
            Network::Default => match self.user.get_or_init(start) {
                Ok(network) => rbuild_sandbox::Network::User(Arc::clone(network)),
                Err(_) => rbuild_sandbox::Network::Host,
            },
        }
    }

    /// `/etc/resolv.conf` for a step on `network`: the host's. A name server on the host's loopback is out of reach of a
    /// network of its own, which offers one instead.
    pub fn resolv_conf(network: &rbuild_sandbox::Network) -> Vec<u8> {
        // Without the file a step has no name resolution, as on the host.
        let host = std::fs::read("/etc/resolv.conf").unwrap_or_default();
        match network {
            rbuild_sandbox::Network::User(user) if is_loopback_only(&host) => {
                with_nameserver(&host, user.nameserver())
            }
            _ => host,
        }
    }
}

fn start() -> Result<Arc<UserNetwork>, NetworkError> {
    let host = std::fs::read("/etc/resolv.conf").unwrap_or_default();
    UserNetwork::start(is_loopback_only(&host)).map(Arc::new)
}

/// Addresses of the file's name servers (resolv.conf(5)); a scope (`fe80::1%eth0`) is left out.
fn nameservers(file: &[u8]) -> impl Iterator<Item = std::net::IpAddr> {
    file.split(|byte| *byte == b'\n').filter_map(|line| {
        let line = std::str::from_utf8(line).ok()?;
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then_some(())?;
        words.next()?.split('%').next()?.parse().ok()
    })
}

fn is_loopback_only(file: &[u8]) -> bool {
    let mut servers = nameservers(file).peekable();
    servers.peek().is_some() && servers.all(|address| address.is_loopback())
}

/// The file with `server` in place of its name servers; search domains and options stay.
fn with_nameserver(file: &[u8], server: &str) -> Vec<u8> {
    let mut text = format!("nameserver {server}\n").into_bytes();
    for line in file.split_inclusive(|byte| *byte == b'\n') {
        if nameservers(line).next().is_none() {
            text.extend(line);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_loopback_resolver_is_replaced() {
        let stub = b"search example.com\nnameserver 127.0.0.53\noptions edns0\n";
        assert!(is_loopback_only(stub));
        assert_eq!(
            with_nameserver(stub, "10.0.2.3"),
            b"nameserver 10.0.2.3\nsearch example.com\noptions edns0\n"
        );
        assert!(is_loopback_only(b"nameserver ::1\nnameserver 127.0.0.1"));
        assert!(!is_loopback_only(b"nameserver 127.0.0.53\nnameserver 192.0.2.1\n"));
        assert!(!is_loopback_only(b"# nameserver 127.0.0.1\n"));
        assert!(!is_loopback_only(b""));
    }

    #[test]
    fn a_step_that_asks_gets_what_it_asks_for() {
        let none = StepNetwork::new(Network::None);
        assert_eq!(none.resolve(Network::Default), Network::None);
        assert_eq!(none.resolve(Network::Host), Network::Host);
        assert_eq!(StepNetwork::new(Network::Host).resolve(Network::None), Network::None);
    }
}
