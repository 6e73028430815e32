//! Tokens from a token server: OAuth2 `POST`, or `GET` for anonymous access and older servers
//! (distribution's auth/token and auth/oauth specifications).

use std::time::{Duration, Instant};

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;

use super::keychain::Credentials;
use super::{Authorization, basic};
use crate::error::{RegistryError, Target, Violation, escape};
use crate::limits::TOKEN_BYTES_MAX;
use crate::transport::exchange::Exchange;
use crate::transport::{Host, Transport};

/// What a token is good for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) realm: String,
    pub(crate) service: Option<String>,
    pub(crate) scopes: Vec<String>,
}

/// A token and the moment from which it is not used any more.
pub(crate) struct Token {
    pub(crate) value: String,
    pub(crate) expires: Instant,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<f64>,
}

/// Lifetime of a token whose server names none (token specification).
const LIFETIME_DEFAULT: f64 = 60.0;

/// Tokens are replaced this long before they expire, so that a request underway does not outlive them.
const MARGIN: f64 = 5.0;

impl Transport {
    /// Gets a new token. The realm must be an address the registry may name.
    pub(crate) async fn fetch_token(
        &self,
        host: &Host,
        key: &Key,
        credentials: Option<&Credentials>,
        target: &Target,
    ) -> Result<Token, RegistryError> {
        let bad_realm = || RegistryError::Protocol {
            target: Box::new(target.clone()),
            violation: Violation::Address(escape(&key.realm)),
        };
        let realm = Url::parse(&key.realm).map_err(|_| bad_realm())?;
        let server = realm.host_str().ok_or_else(bad_realm)?.to_owned();
        let target =
            Target { action: format!("get a token from {server} to {}", target.action), ..target.clone() };
        let answer = match credentials {
            Some(credentials) => match self.post(host, &realm, key, credentials, &target).await? {
                Some(answer) => answer,
                None => self.get(host, &realm, key, Some(credentials), &target).await?,
            },
            None => self.get(host, &realm, key, None, &target).await?,
        };
        let authorization = Authorization {
            secrets: credentials.map(|c| c.secret().to_owned()).into_iter().collect(),
            has_credentials: credentials.is_some(),
            ..Authorization::default()
        };
        let answer = self.expect(answer, &[StatusCode::OK], &target, &authorization).await?;
        let body = self.body(answer, TOKEN_BYTES_MAX as u64, &target).await?;
        let no_token = || RegistryError::Protocol {
            target: Box::new(target.clone()),
            violation: Violation::NoToken(server.clone()),
        };
        // The parser's message is dropped: it can quote the token.
        let answer: Answer = serde_json::from_slice(&body).map_err(|_| no_token())?;
        let value =
            answer.token.or(answer.access_token).filter(|token| !token.is_empty()).ok_or_else(no_token)?;
        Ok(Token { value, expires: Instant::now() + lifetime(answer.expires_in) })
    }

    /// The OAuth2 flow. `None` when the server wants the older one: GCR answers 404, Artifactory 401, others 405.
    async fn post(
        &self,
        host: &Host,
        realm: &Url,
        key: &Key,
        credentials: &Credentials,
        target: &Target,
    ) -> Result<Option<Response>, RegistryError> {
        let mut form = Url::parse("form:").expect("a constant URL parses");
        {
            let mut fields = form.query_pairs_mut();
            // A login asks for no repository; an empty scope is a malformed one to some servers.
            if !key.scopes.is_empty() {
                fields.append_pair("scope", &key.scopes.join(" "));
            }
            fields.append_pair("client_id", "rbuild");
            fields.append_pair("service", key.service.as_deref().unwrap_or_default());
            match credentials {
                Credentials::Basic { user, password } => fields
                    .append_pair("grant_type", "password")
                    .append_pair("username", user)
                    .append_pair("password", password),
                Credentials::IdentityToken(token) => {
                    fields.append_pair("grant_type", "refresh_token").append_pair("refresh_token", token)
                }
                Credentials::RegistryToken(_) => return Ok(None),
            };
        }
        let body = form.query().unwrap_or_default().to_owned();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        let exchange = Exchange {
            method: Method::POST,
            url: realm.clone(),
            headers,
            body: Some(body.into()),
            authorization: None,
        };
        let answer = self.exchange_with_retries(host, exchange, target).await?;
        let has_password = matches!(credentials, Credentials::Basic { .. });
        Ok(match answer.status() {
            StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED if has_password => None,
            StatusCode::METHOD_NOT_ALLOWED if has_password => None,
            _ => Some(answer),
        })
    }

    async fn get(
        &self,
        host: &Host,
        realm: &Url,
        key: &Key,
        credentials: Option<&Credentials>,
        target: &Target,
    ) -> Result<Response, RegistryError> {
        let mut url = realm.clone();
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = &key.service {
                query.append_pair("service", service);
            }
            for scope in &key.scopes {
                query.append_pair("scope", scope);
            }
            if let Some(Credentials::Basic { user, .. }) = credentials {
                query.append_pair("account", user);
            }
        }
        let authorization = match credentials {
            Some(Credentials::Basic { user, password }) => basic(user, password),
            _ => None,
        };
        let exchange =
            Exchange { method: Method::GET, url, headers: HeaderMap::new(), body: None, authorization };
        self.exchange_with_retries(host, exchange, target).await
    }
}

fn lifetime(expires_in: Option<f64>) -> Duration {
    let seconds = expires_in.filter(|s| s.is_finite() && *s > 0.0).unwrap_or(LIFETIME_DEFAULT);
    Duration::from_secs_f64((seconds - MARGIN).clamp(1.0, 24.0 * 3600.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_sane_whatever_the_server_says() {
        assert_eq!(lifetime(None), Duration::from_secs(55));
        assert_eq!(lifetime(Some(300.0)), Duration::from_secs(295));
        assert_eq!(lifetime(Some(-1.0)), Duration::from_secs(55));
        assert_eq!(lifetime(Some(f64::NAN)), Duration::from_secs(55));
        assert_eq!(lifetime(Some(1e300)), Duration::from_secs(24 * 3600));
        assert_eq!(lifetime(Some(2.0)), Duration::from_secs(1));
    }
}
