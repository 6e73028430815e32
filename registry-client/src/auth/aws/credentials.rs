//! AWS credentials, in the order of AWS's own tools: environment, web identity, profile, container, instance.

use std::time::Duration;

use reqwest::{Method, Url};
use serde_json::Value;

use super::profile::{AwsEnv, Profiles};
use super::sigv4::Keys;
use super::sso::Login;
use super::{Ask, process, refused};
use crate::auth::KeychainError;
use crate::config::read_file;
use crate::limits::AWS_TIMEOUT;
use crate::transport::Transport;

/// The instance metadata service answers at once or is not there.
const METADATA_TIMEOUT: Duration = Duration::from_secs(2);

/// Where credentials are to be had.
#[derive(Clone)]
pub(super) enum Source {
    /// Ready ones.
    Keys(Keys),
    /// A token of an identity provider (Kubernetes, a CI system), exchanged for a role's.
    WebIdentity { token_file: String, role: String, session: String },
    /// A role that another source may take on.
    Role { role: String, session: String, external_id: Option<String>, by: Box<Self> },
    /// A program of the user's.
    Process(String),
    /// A login through IAM Identity Center.
    Sso(Login),
    /// The container's own service.
    Container { url: String },
    /// The instance metadata service.
    Instance { endpoint: String },
}

impl Source {
    /// What tells one from another without asking anybody; hashed before it is written anywhere.
    pub(super) fn identity(&self) -> String {
        match self {
            Self::Keys(keys) => format!("keys {}", keys.id),
            Self::WebIdentity { token_file, role, .. } => format!("web {role} {token_file}"),
            Self::Role { role, by, .. } => format!("role {role} by {}", by.identity()),
            Self::Process(command) => format!("process {command}"),
            Self::Sso(login) => login.identity(),
            Self::Container { url } => format!("container {url}"),
            Self::Instance { endpoint } => format!("instance {endpoint}"),
        }
    }
}

/// The first source there is. The instance metadata service counts as one unless it is switched off: whether it
/// answers shows only when it is asked.
pub(super) fn find(env: &AwsEnv) -> Result<Option<Source>, KeychainError> {
    let profile = env.get("AWS_PROFILE").or_else(|| env.get("AWS_DEFAULT_PROFILE"));
    // A profile that was named wins over keys that lie around, as in the AWS command line.
    if let Some(name) = profile {
        let profiles = Profiles::load(env)?;
        return match of_profile(env, &profiles, name, 0)? {
            Some(source) => Ok(Some(source)),
            None => Err(problem(format!("the profile `{name}` holds no credentials"))),
        };
    }
    if let Some(keys) = of_variables(env) {
        return Ok(Some(keys));
    }
    if let (Some(file), Some(role)) = (env.get("AWS_WEB_IDENTITY_TOKEN_FILE"), env.get("AWS_ROLE_ARN")) {
        let session = env.get("AWS_ROLE_SESSION_NAME").unwrap_or("rbuild");
        let (token_file, role, session) = (file.to_owned(), role.to_owned(), session.to_owned());
        return Ok(Some(Source::WebIdentity { token_file, role, session }));
    }
    if let Some(source) = of_profile(env, &Profiles::load(env)?, "default", 0)? {
        return Ok(Some(source));
    }
    Ok(of_container(env)?.or_else(|| of_instance(env)))
}

fn of_variables(env: &AwsEnv) -> Option<Source> {
    let id = env.get("AWS_ACCESS_KEY_ID")?.to_owned();
    let secret = env.get("AWS_SECRET_ACCESS_KEY")?.to_owned();
    Some(Source::Keys(Keys { id, secret, session: env.get("AWS_SESSION_TOKEN").map(str::to_owned) }))
}

fn of_container(env: &AwsEnv) -> Result<Option<Source>, KeychainError> {
    if let Some(path) = env.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") {
        return Ok(Some(Source::Container { url: format!("http://169.254.170.2{path}") }));
    }
    let Some(full) = env.get("AWS_CONTAINER_CREDENTIALS_FULL_URI") else { return Ok(None) };
    let url =
        Url::parse(full).map_err(|_| problem("AWS_CONTAINER_CREDENTIALS_FULL_URI is no address".into()))?;
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    // In clear text only to what cannot be on another machine.
    let is_local = host == "localhost"
        || matches!(host, "169.254.170.2" | "169.254.170.23" | "fd00:ec2::23")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    if url.scheme() == "https" || is_local {
        return Ok(Some(Source::Container { url: full.to_owned() }));
    }
    Err(problem("AWS_CONTAINER_CREDENTIALS_FULL_URI must be https or on this machine".into()))
}

fn of_instance(env: &AwsEnv) -> Option<Source> {
    if env.is_set("AWS_EC2_METADATA_DISABLED", "true") {
        return None;
    }
    let own = env.get("AWS_EC2_METADATA_SERVICE_ENDPOINT");
    let endpoint = own.unwrap_or("http://169.254.169.254").trim_end_matches('/').to_owned();
    Some(Source::Instance { endpoint })
}

fn of_profile(
    env: &AwsEnv,
    profiles: &Profiles,
    name: &str,
    depth: usize,
) -> Result<Option<Source>, KeychainError> {
    let get = |key: &str| profiles.get(name, key);
    if depth > 5 {
        return Err(problem(format!("the profiles from `{name}` on name each other in a circle")));
    }
    if depth == 0 && !profiles.has(name) && name != "default" {
        return Err(problem(format!("there is no profile `{name}` in ~/.aws/config or ~/.aws/credentials")));
    }
    let keys = get("aws_access_key_id").zip(get("aws_secret_access_key")).map(|(id, secret)| {
        let session = get("aws_session_token").map(str::to_owned);
        Source::Keys(Keys { id: id.to_owned(), secret: secret.to_owned(), session })
    });
    let session = get("role_session_name").unwrap_or("rbuild").to_owned();
    let Some(role) = get("role_arn").map(str::to_owned) else {
        if keys.is_some() {
            return Ok(keys);
        }
        if let Some(login) = Login::of(profiles, name)? {
            return Ok(Some(Source::Sso(login)));
        }
        return Ok(get("credential_process").map(|command| Source::Process(command.to_owned())));
    };
    if let Some(file) = get("web_identity_token_file") {
        return Ok(Some(Source::WebIdentity { token_file: file.to_owned(), role, session }));
    }
    let by = match (get("source_profile"), get("credential_source")) {
        // A profile may take on its role with its own keys.
        (Some(source), _) if source == name => keys,
        (Some(source), _) => of_profile(env, profiles, source, depth + 1)?,
        (None, Some("Environment")) => of_variables(env),
        (None, Some("EcsContainer")) => of_container(env)?,
        (None, Some("Ec2InstanceMetadata")) => of_instance(env),
        (None, _) => keys,
    };
    let by = by.ok_or_else(|| problem(format!("nobody can take on the role of the profile `{name}`")))?;
    let external_id = get("external_id").map(str::to_owned);
    Ok(Some(Source::Role { role, session, external_id, by: Box::new(by) }))
}

pub(super) fn problem(words: String) -> KeychainError {
    KeychainError::Aws { what: "finding credentials".to_owned(), words }
}

impl Transport {
    /// Keys of a source; `None` when it turns out not to be there.
    pub(super) async fn aws_keys(
        &self,
        env: &AwsEnv,
        source: &Source,
        region: &str,
    ) -> Result<Option<Keys>, KeychainError> {
        match source {
            Source::Keys(keys) => Ok(Some(keys.clone())),
            Source::WebIdentity { token_file, role, session } => {
                let path = env.path(token_file);
                let token = read_file(&path)?.ok_or_else(|| {
                    problem(format!("the web identity token `{}` is not there", path.display()))
                })?;
                let fields = [
                    ("Action", "AssumeRoleWithWebIdentity"),
                    ("RoleArn", role),
                    ("RoleSessionName", session),
                    ("WebIdentityToken", token.trim()),
                ];
                let ask = Ask {
                    method: Method::POST,
                    url: sts(env, region),
                    headers: vec![("content-type".to_owned(), FORM.to_owned())],
                    body: form(&fields),
                    timeout: AWS_TIMEOUT,
                };
                let (status, body) = self.ask(fields[0].1, ask).await?;
                if status == 200 {
                    of_xml(fields[0].1, &body).map(Some)
                } else {
                    Err(refused(fields[0].1, status, &body))
                }
            }
            Source::Role { role, session, external_id, by } => {
                let Some(keys) = Box::pin(self.aws_keys(env, by, region)).await? else { return Ok(None) };
                let mut fields =
                    vec![("Action", "AssumeRole"), ("RoleArn", role), ("RoleSessionName", session)];
                fields.extend(external_id.as_deref().map(|id| ("ExternalId", id)));
                let headers = [("content-type", FORM.to_owned())];
                let endpoint = sts(env, region);
                let call =
                    self.aws_call("AssumeRole", &endpoint, region, "sts", &headers, form(&fields), &keys);
                of_xml("AssumeRole", &call.await?).map(Some)
            }
            Source::Process(command) => process::keys(command).await.map(Some),
            Source::Sso(login) => self.sso_keys(env, login).await.map(Some),
            Source::Container { url } => {
                let mut headers = Vec::new();
                let file = env.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE");
                let token = match file {
                    Some(file) => read_file(&env.path(file))?,
                    None => env.get("AWS_CONTAINER_AUTHORIZATION_TOKEN").map(str::to_owned),
                };
                if let Some(token) = token {
                    headers.push(("authorization".to_owned(), token.trim().to_owned()));
                }
                let body = self.metadata(Method::GET, url.clone(), headers).await?;
                of_json(&body).map(Some)
            }
            Source::Instance { endpoint } => self.of_instance(endpoint).await,
        }
    }

    /// IMDSv2: a session token first. No answer at all means that this is no EC2 instance.
    async fn of_instance(&self, endpoint: &str) -> Result<Option<Keys>, KeychainError> {
        let ttl = vec![("x-aws-ec2-metadata-token-ttl-seconds".to_owned(), "300".to_owned())];
        let address = format!("{endpoint}/latest/api/token");
        let Ok(token) = self.metadata(Method::PUT, address, ttl).await else { return Ok(None) };
        let token = String::from_utf8_lossy(&token).trim().to_owned();
        let with = || vec![("x-aws-ec2-metadata-token".to_owned(), token.clone())];
        let list = format!("{endpoint}/latest/meta-data/iam/security-credentials/");
        let Ok(roles) = self.metadata(Method::GET, list.clone(), with()).await else { return Ok(None) };
        let roles = String::from_utf8_lossy(&roles).into_owned();
        let Some(role) = roles.lines().next().map(str::trim).filter(|role| !role.is_empty()) else {
            return Ok(None);
        };
        let body = self.metadata(Method::GET, format!("{list}{role}"), with()).await?;
        of_json(&body).map(Some)
    }

    async fn metadata(
        &self,
        method: Method,
        url: String,
        headers: Vec<(String, String)>,
    ) -> Result<Vec<u8>, KeychainError> {
        let what = "asking the metadata service";
        let ask = Ask { method, url, headers, body: Vec::new(), timeout: METADATA_TIMEOUT };
        let (status, body) = self.ask(what, ask).await?;
        if status == 200 { Ok(body) } else { Err(refused(what, status, &body)) }
    }
}

const FORM: &str = "application/x-www-form-urlencoded";

fn sts(env: &AwsEnv, region: &str) -> String {
    let own = env.get("AWS_ENDPOINT_URL_STS").or_else(|| env.get("AWS_ENDPOINT_URL"));
    let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    own.map_or_else(|| format!("https://sts.{region}.{suffix}"), str::to_owned)
}

fn form(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut url = Url::parse("form:").expect("a constant address parses");
    url.query_pairs_mut().append_pair("Version", "2011-06-15").extend_pairs(fields);
    url.query().unwrap_or_default().as_bytes().to_vec()
}

/// The text of the first element of that name.
pub(super) fn xml(text: &str, tag: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{tag}>"))?;
    let (value, _) = rest.split_once(&format!("</{tag}>"))?;
    Some(value.trim().replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&"))
}

fn of_xml(what: &str, body: &[u8]) -> Result<Keys, KeychainError> {
    let text = String::from_utf8_lossy(body);
    match (xml(&text, "AccessKeyId"), xml(&text, "SecretAccessKey"), xml(&text, "SessionToken")) {
        (Some(id), Some(secret), session @ Some(_)) => Ok(Keys { id, secret, session }),
        _ => {
            let words = "the answer holds no credentials".to_owned();
            Err(KeychainError::Aws { what: what.to_owned(), words })
        }
    }
}

fn of_json(body: &[u8]) -> Result<Keys, KeychainError> {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |key: &str| json[key].as_str().map(str::to_owned);
    match (text("AccessKeyId"), text("SecretAccessKey")) {
        (Some(id), Some(secret)) => Ok(Keys { id, secret, session: text("Token") }),
        _ => Err(problem("the metadata service gave no credentials".into())),
    }
}
