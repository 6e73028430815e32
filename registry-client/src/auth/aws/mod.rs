//! Amazon ECR without a helper: `GetAuthorizationToken` signed with whatever AWS credentials there are.
//!
//! ```text
//! host ──▶ Registry (region, service) ──▶ cache file ──hit──▶ `AWS` and token
//!                                             │ miss
//!             credentials: environment · profile (keys, role, process, SSO) · web identity · container · instance
//!                                                                                     └──▶ sigv4 ──▶ ECR
//! ```
//!
//! Nothing is looked for before an ECR registry asks for authentication and no file or helper knew an answer, or
//! what they knew was refused. The process environment is not read here: [`crate::Settings::aws`] is it.

mod cache;
mod credentials;
mod process;
mod profile;
mod sigv4;
mod sso;
mod time;

pub use profile::AwsEnv;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::Value;

use super::keychain::{Credentials, KeychainError};
use crate::error::{Reply, escape};
use crate::limits::{AWS_BYTES_MAX, AWS_TIMEOUT};
use crate::transport::Transport;

/// An ECR registry, as its host name tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registry {
    region: String,
    /// Domain of the region's services.
    suffix: &'static str,
    is_public: bool,
    is_fips: bool,
}

/// Domains of ECR and of the API that belongs to them.
const SUFFIXES: [(&str, &str); 10] = [
    ("amazonaws.com", "amazonaws.com"),
    ("amazonaws.com.cn", "amazonaws.com.cn"),
    ("amazonaws.eu", "amazonaws.eu"),
    ("on.aws", "amazonaws.com"),
    ("on.amazonwebservices.com.cn", "amazonaws.com.cn"),
    ("on.amazonwebservices.eu", "amazonaws.eu"),
    ("sc2s.sgov.gov", "sc2s.sgov.gov"),
    ("c2s.ic.gov", "c2s.ic.gov"),
    ("cloud.adc-e.uk", "cloud.adc-e.uk"),
    ("csp.hci.ic.gov", "csp.hci.ic.gov"),
];

impl Registry {
    /// `None` for hosts that are not ECR's.
    pub(crate) fn of(host: &str) -> Option<Self> {
        if matches!(host, "public.ecr.aws" | "ecr-public.aws.com") {
            let region = "us-east-1".to_owned();
            return Some(Self { region, suffix: "amazonaws.com", is_public: true, is_fips: false });
        }
        let (account, rest) = host.split_at_checked(12)?;
        if !account.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let rest = rest.strip_prefix(".dkr.ecr").or_else(|| rest.strip_prefix(".dkr-ecr"))?;
        let (rest, is_fips) = rest.strip_prefix("-fips").map_or((rest, false), |rest| (rest, true));
        let (region, domain) = rest.strip_prefix('.')?.split_once('.')?;
        let (_, suffix) = SUFFIXES.iter().find(|(known, _)| *known == domain)?;
        let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
        let is_region = !region.starts_with(['-', '_']) && !region.is_empty() && region.bytes().all(is_word);
        is_region.then(|| Self { region: region.to_owned(), suffix, is_public: false, is_fips })
    }

    fn service(&self) -> &'static str {
        if self.is_public { "ecr-public" } else { "ecr" }
    }

    /// Where the token is asked for, when nothing else is set.
    fn endpoint(&self, wants_fips: bool) -> String {
        match (self.is_public, self.is_fips || wants_fips) {
            (true, _) => format!("https://api.ecr-public.{}.{}", self.region, self.suffix),
            (false, false) => format!("https://api.ecr.{}.{}", self.region, self.suffix),
            (false, true) => format!("https://ecr-fips.{}.{}", self.region, self.suffix),
        }
    }
}

/// A name and password for one registry, and how long they are good.
#[derive(Clone)]
struct Token {
    authorization: String,
    expires: u64,
}

impl Token {
    fn credentials(&self) -> Option<Credentials> {
        let text = String::from_utf8(STANDARD.decode(&self.authorization).ok()?).ok()?;
        let (user, password) = text.split_once(':')?;
        Some(Credentials::Basic { user: user.to_owned(), password: password.to_owned() })
    }

    /// Not used any more shortly before its end: a push takes a while.
    fn is_fresh(&self, now: u64) -> bool {
        self.expires > now + 15 * 60
    }
}

/// What the answers of AWS look like to a person.
fn refused(what: &str, status: u16, body: &[u8]) -> KeychainError {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |key: &str| json[key].as_str().map(str::to_owned);
    let kind = text("__type").map(|kind| kind.rsplit('#').next().unwrap_or_default().to_owned());
    let words = match (kind, text("message").or_else(|| text("Message"))) {
        (Some(kind), Some(message)) => format!("{kind}: {message}"),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => {
            let xml = |tag| credentials::xml(&String::from_utf8_lossy(body), tag);
            match (xml("Code"), xml("Message")) {
                (Some(code), Some(message)) => format!("{code}: {message}"),
                _ => Reply::parse(status, &body[..body.len().min(2000)], &[]).text,
            }
        }
    };
    KeychainError::Aws { what: what.to_owned(), words: escape(&format!("{words} (HTTP {status})")) }
}

pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A request to AWS or a metadata service of the machine.
struct Ask {
    method: Method,
    url: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    timeout: Duration,
}

impl Transport {
    /// Name and token for an ECR registry; `None` when this machine has no AWS credentials.
    ///
    /// `renew` passes by what is remembered: the registry refused it.
    pub(crate) async fn ecr_credentials(
        &self,
        registry: &Registry,
        renew: bool,
    ) -> Result<Option<Credentials>, KeychainError> {
        let env = self.settings().aws.clone();
        let Some(source) = credentials::find(&env)? else { return Ok(None) };
        let wants_fips = env.is_set("AWS_USE_FIPS_ENDPOINT", "true");
        let endpoint = env
            .get(&format!("AWS_ENDPOINT_URL_{}", registry.service().replace('-', "_").to_uppercase()))
            .or_else(|| env.get("AWS_ENDPOINT_URL"))
            .map_or_else(|| registry.endpoint(wants_fips), str::to_owned);
        let key = format!("{}\n{endpoint}\n{}\n{}", source.identity(), registry.region, registry.service());
        let file = cache::File::of(&env, &key);
        if let Some(token) = file.as_ref().filter(|_| !renew).and_then(cache::File::read)
            && token.is_fresh(now())
        {
            return Ok(token.credentials());
        }
        let Some(keys) = self.aws_keys(&env, &source, &registry.region).await? else { return Ok(None) };
        let token = self.ecr_token(registry, &endpoint, &keys).await?;
        if let Some(file) = file {
            file.write(&token);
        }
        let broken = || KeychainError::Aws {
            what: "GetAuthorizationToken".to_owned(),
            words: "the answer holds no token".to_owned(),
        };
        token.credentials().map(Some).ok_or_else(broken)
    }

    async fn ecr_token(
        &self,
        registry: &Registry,
        endpoint: &str,
        keys: &sigv4::Keys,
    ) -> Result<Token, KeychainError> {
        let target = match registry.is_public {
            true => "SpencerFrontendService.GetAuthorizationToken",
            false => "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken",
        };
        let headers =
            [("content-type", "application/x-amz-json-1.1".to_owned()), ("x-amz-target", target.to_owned())];
        let what = "GetAuthorizationToken";
        let (region, service) = (registry.region.as_str(), registry.service());
        let body = self.aws_call(what, endpoint, region, service, &headers, b"{}".to_vec(), keys).await?;
        let json: Value = serde_json::from_slice(&body).unwrap_or_default();
        // The public service answers with one, the private one with a list.
        let data = match &json["authorizationData"] {
            Value::Array(list) => list.first().cloned().unwrap_or_default(),
            one => one.clone(),
        };
        let expires = data["expiresAt"].as_f64().map_or_else(|| now() + 12 * 3600, |seconds| seconds as u64);
        match data["authorizationToken"].as_str() {
            Some(token) => Ok(Token { authorization: token.to_owned(), expires }),
            None => Err(KeychainError::Aws {
                what: what.to_owned(),
                words: "the answer holds no token".to_owned(),
            }),
        }
    }

    /// A signed `POST`.
    #[expect(clippy::too_many_arguments, reason = "each is one word of the request")]
    async fn aws_call(
        &self,
        what: &str,
        endpoint: &str,
        region: &str,
        service: &str,
        headers: &[(&str, String)],
        body: Vec<u8>,
        keys: &sigv4::Keys,
    ) -> Result<Vec<u8>, KeychainError> {
        let url = reqwest::Url::parse(endpoint).map_err(|_| KeychainError::Aws {
            what: what.to_owned(),
            words: format!("`{}` is not an address", escape(endpoint)),
        })?;
        let host = url.host_str().unwrap_or_default();
        let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let time = sigv4::time(now());
        let request = sigv4::Request { host: &host, region, service, headers, body: &body, time: &time };
        let headers = sigv4::sign(&request, keys);
        let url = url.to_string();
        let ask = Ask { method: Method::POST, url, headers, body, timeout: AWS_TIMEOUT };
        let (status, body) = self.ask(what, ask).await?;
        if status == 200 { Ok(body) } else { Err(refused(what, status, &body)) }
    }

    /// One request; any status is an answer.
    async fn ask(&self, what: &str, ask: Ask) -> Result<(u16, Vec<u8>), KeychainError> {
        let failed = |words: String| KeychainError::Aws { what: what.to_owned(), words };
        let url = reqwest::Url::parse(&ask.url).map_err(|_| failed("the address is none".to_owned()))?;
        let client = self.plain_client(&url).await.map_err(|error| failed(error.to_string()))?;
        let mut request = client.request(ask.method, url);
        for (name, value) in ask.headers {
            let mut value = reqwest::header::HeaderValue::from_str(&value)
                .map_err(|_| failed(format!("a header `{name}` cannot be sent")))?;
            value.set_sensitive(true);
            request = request.header(name, value);
        }
        let exchange = async {
            let mut answer = request.body(ask.body).send().await?;
            let (status, mut body) = (answer.status().as_u16(), Vec::new());
            while let Some(chunk) = answer.chunk().await? {
                body.extend_from_slice(&chunk);
                if body.len() > AWS_BYTES_MAX {
                    break;
                }
            }
            Ok::<_, reqwest::Error>((status, body))
        };
        match tokio::time::timeout(ask.timeout, exchange).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                let error = error.without_url();
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
                Err(failed(escape(&format!("{error}{}", cause.unwrap_or_default()))))
            }
            Err(_) => Err(failed("no answer in time".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_ecr_are_told_from_others() {
        let of = |host: &str| Registry::of(host);
        let found = of("123456789012.dkr.ecr.eu-west-1.amazonaws.com").unwrap();
        assert_eq!(found.endpoint(false), "https://api.ecr.eu-west-1.amazonaws.com");
        assert_eq!(found.endpoint(true), "https://ecr-fips.eu-west-1.amazonaws.com");
        let fips = of("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com").unwrap();
        assert_eq!(fips.endpoint(false), "https://ecr-fips.us-gov-west-1.amazonaws.com");
        let china = of("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn").unwrap();
        assert_eq!(china.endpoint(false), "https://api.ecr.cn-north-1.amazonaws.com.cn");
        let dual = of("123456789012.dkr-ecr.us-west-2.on.aws").unwrap();
        assert_eq!(dual.endpoint(false), "https://api.ecr.us-west-2.amazonaws.com");
        assert!(of("123456789012.dkr.ecr.eusc-de-east-1.amazonaws.eu").is_some());
        assert!(of("public.ecr.aws").unwrap().is_public && of("ecr-public.aws.com").is_some());
        for other in [
            "12345678901.dkr.ecr.us-east-1.amazonaws.com",
            "1234567890123.dkr.ecr.us-east-1.amazonaws.com",
            "123456789012.dkr.ecr.us-east-1.amazonaws.com.evil.test",
            "123456789012.dkr.ecr.us-east-1.example.com",
            "123456789012.dkr.ecr..amazonaws.com",
            "123456789012.dkr.ecr.US.amazonaws.com",
            "x.public.ecr.aws",
            "ghcr.io",
            "",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn refusals_of_aws_are_repeated_in_its_words() {
        let words = |body: &str| refused("X", 400, body.as_bytes()).to_string();
        let json = r#"{"__type":"com.amazon.coral#AccessDeniedException","Message":"no"}"#;
        assert_eq!(words(json), "X at AWS failed: AccessDeniedException: no (HTTP 400)");
        let xml =
            "<ErrorResponse><Error><Code>ExpiredToken</Code><Message>old</Message></Error></ErrorResponse>";
        assert_eq!(words(xml), "X at AWS failed: ExpiredToken: old (HTTP 400)");
    }
}
