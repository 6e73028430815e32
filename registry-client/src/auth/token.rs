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

/// Azure's user for «the password is a token».
const ACR_USER: &str = "00000000-0000-0000-0000-000000000000";

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
        let exchanged = match credentials {
            Some(Credentials::Basic { user, password }) if user == ACR_USER => {
                self.exchange_acr(host, &realm, key, password, &target).await?
            }
            _ => None,
        };
        let credentials = exchanged.as_ref().or(credentials);
        let answer = match credentials {
            Some(credentials) => match self.post(host, &realm, key, credentials, &target).await? {
                Some(answer) => answer,
                None => self.get(host, &realm, key, Some(credentials), &target).await?,
            },
            None => self.get(host, &realm, key, None, &target).await?,
        };
        let authorization = Authorization {
            secrets: credentials.map(Credentials::printed_forms).unwrap_or_default(),
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

    /// Azure's registries take an account's access token in exchange for a refresh token of theirs. `None` when what we
    /// have is that refresh token already.
    async fn exchange_acr(
        &self,
        host: &Host,
        realm: &Url,
        key: &Key,
        token: &str,
        target: &Target,
    ) -> Result<Option<Credentials>, RegistryError> {
        let Some(path) = realm.path().strip_suffix("/token") else { return Ok(None) };
        let mut url = realm.clone();
        url.set_path(&format!("{path}/exchange"));
        let service = key.service.as_deref().unwrap_or_default();
        let fields = [("grant_type", "access_token"), ("service", service), ("access_token", token)];
        let answer = self.exchange_with_retries(host, form(url, &fields), target).await?;
        if answer.status() != StatusCode::OK {
            return Ok(Some(Credentials::IdentityToken(token.to_owned())));
        }
        let body = self.body(answer, TOKEN_BYTES_MAX as u64, target).await?;
        #[derive(Deserialize)]
        struct Exchanged {
            refresh_token: String,
        }
        let exchanged = serde_json::from_slice::<Exchanged>(&body).ok();
        Ok(exchanged.map(|exchanged| Credentials::IdentityToken(exchanged.refresh_token)))
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
        let (scopes, service) = (key.scopes.join(" "), key.service.as_deref().unwrap_or_default());
        let mut fields = vec![("client_id", "rbuild"), ("service", service)];
        // A login asks for no repository; an empty scope is a malformed one to some servers.
        if !scopes.is_empty() {
            fields.push(("scope", &scopes));
        }
        match credentials {
            Credentials::Basic { user, password } => fields.extend([
                ("grant_type", "password"),
                ("username", user.as_str()),
                ("password", password.as_str()),
            ]),
            Credentials::IdentityToken(token) => {
                fields.extend([("grant_type", "refresh_token"), ("refresh_token", token.as_str())]);
            }
            Credentials::RegistryToken(_) => return Ok(None),
        }
        let answer = self.exchange_with_retries(host, form(realm.clone(), &fields), target).await?;
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

/// A form for a token server.
fn form(url: Url, fields: &[(&str, &str)]) -> Exchange {
    let mut form = Url::parse("form:").expect("a constant URL parses");
    form.query_pairs_mut().extend_pairs(fields);
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    let body = Some(form.query().unwrap_or_default().to_owned().into());
    Exchange { method: Method::POST, url, headers, body, authorization: None }
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
