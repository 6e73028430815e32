//! Names to addresses, without the C library.
//!
//! The release binary is linked statically; the C library's resolver would load NSS plugins of another build of
//! itself at run time. This one reads `/etc/hosts` and `/etc/resolv.conf` itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::OnceCell;

use super::address::{AddressClass, is_localhost_name};

/// Every address of a name is more internal than the registry that named it.
#[derive(Debug, thiserror::Error)]
#[error("{name}")]
pub(super) struct InternalName {
    name: String,
}

/// A resolver for one HTTP client.
#[derive(Clone)]
pub(super) struct Resolver {
    inner: Arc<OnceCell<TokioResolver>>,
    guard: Option<AddressClass>,
}

impl Resolver {
    /// With a guard, addresses that a registry of that class may not name are left out.
    pub(super) fn new(guard: Option<AddressClass>) -> Self {
        Self { inner: Arc::new(OnceCell::new()), guard }
    }

    pub(super) async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, NetError> {
        // RFC 6761: never a question for a name server, and the common case of a local registry.
        if is_localhost_name(name) {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let resolver = self.inner.get_or_try_init(|| async { system_resolver() }).await?;
        Ok(resolver.lookup_ip(name).await?.iter().collect())
    }
}

/// The resolver the system's files describe. Without `resolv.conf` the local name server is asked, as the C library
/// does; never a public one nobody chose.
fn system_resolver() -> Result<TokioResolver, NetError> {
    let mut builder = TokioResolver::builder_tokio().unwrap_or_else(|_| {
        let local = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![local]);
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
    });
    builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    builder.build()
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let mut found = resolver.addresses(name.as_str()).await?;
            if let Some(guard) = resolver.guard {
                let before = found.len();
                found.retain(|address| guard.may_name(AddressClass::of(*address)));
                if found.is_empty() && before > 0 {
                    return Err(InternalName { name: name.as_str().to_owned() }.into());
                }
            }
            let addresses: Addrs = Box::new(found.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}
