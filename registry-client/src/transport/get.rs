//! One GET of a file from the web, with its redirects.
//!
//! Unlike a registry, a web server has no configuration here: `https` is always verified, `http` is spoken because the
//! address says so. The user's address may lead anywhere but to link-local, multicast and unspecified addresses (cloud
//! metadata services live there); a redirect only to addresses no more internal than the first server's own.

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Method, Response, Url};

use super::Transport;
use super::address::AddressClass;
use super::clients::{Trust, Via};
use super::exchange::{authority, client_error, origin, printable, timed_out};
use crate::error::{RegistryError, Target, escape};
use crate::fetch::FetchError;
use crate::limits::REDIRECTS_MAX;

impl Transport {
    /// Sends the request and follows redirects; the last answer is returned, whatever its status.
    pub(crate) async fn get_file(
        &self,
        first: &Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
        target: &Target,
    ) -> Result<Response, FetchError> {
        let (home, mut url) = (origin(first), first.clone());
        // How internal the first server is; nothing is refused on the way to it but what nobody may name.
        let mut class = AddressClass::Loopback;
        let mut authorization = authorization;
        for hop in 0..=REDIRECTS_MAX {
            let literal = AddressClass::of_literal(url.host_str().unwrap_or_default());
            if literal.is_some_and(|literal| !class.may_name(literal)) {
                return Err(FetchError::InternalAddress(printable(&url)));
            }
            let answer = self.get_once(&url, headers, authorization, class, target).await?;
            if hop == 0 {
                let via = self.clients().await.map_err(RegistryError::Settings)?.via(None, &url);
                let peer = answer.remote_addr().filter(|_| via == Via::Direct);
                class =
                    peer.map(|peer| AddressClass::of(peer.ip())).or(literal).unwrap_or(AddressClass::Public);
            }
            let is_redirect = matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            let Some(location) = answer.headers().get(LOCATION).filter(|_| is_redirect) else {
                return Ok(answer);
            };
            let text = String::from_utf8_lossy(location.as_bytes()).into_owned();
            let next = url.join(&text).map_err(|_| FetchError::Redirect(escape(&text)))?;
            let has_user = !next.username().is_empty() || next.password().is_some();
            if !matches!(next.scheme(), "http" | "https") || next.host_str().is_none() || has_user {
                return Err(FetchError::Redirect(printable(&next)));
            }
            if url.scheme() == "https" && next.scheme() == "http" {
                return Err(FetchError::Downgrade(printable(&next)));
            }
            if origin(&next) != home {
                // For good: a later hop back home is the other server's wish, not ours.
                authorization = None;
            }
            url = next;
        }
        Err(FetchError::Redirects(printable(first)))
    }

    async fn get_once(
        &self,
        url: &Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
        class: AddressClass,
        target: &Target,
    ) -> Result<Response, FetchError> {
        let clients = self.clients().await.map_err(RegistryError::Settings)?;
        let trust = match url.scheme() {
            "http" => Trust::None,
            _ => clients.trust_for(authority(url)).map_err(|error| client_error(target, error))?,
        };
        let route = clients.route(None, url, trust, Some(class));
        let client = clients.get(&route).map_err(|error| client_error(target, error))?;
        let mut request = client.request(Method::GET, url.clone()).headers(headers.clone());
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value.clone());
        }
        let answer = tokio::time::timeout(self.deadlines().first_byte, request.send())
            .await
            .map_err(|_| timed_out(target))?;
        match answer {
            Ok(answer) => Ok(answer),
            Err(source) => Err(self.failed(None, url, target, source).await.into()),
        }
    }
}
