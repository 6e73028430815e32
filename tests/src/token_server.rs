//! A real token server: names and passwords in, signed tokens out (distribution's «Docker Registry v2 authentication»).

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fault::{FaultRegistry, Reply, Request};
use crate::need::program_path;

/// Who may do what: every account may pull and push what begins with its own name, and pull `library/`.
#[derive(Debug)]
pub struct TokenServer {
    server: FaultRegistry,
    dir: TempDir,
    granted: Arc<Mutex<Vec<String>>>,
}

/// What its tokens say they come from and are for.
const ISSUER: &str = "rbuild-tests";
const SERVICE: &str = "registry.tests";

impl TokenServer {
    /// Knows one account.
    ///
    /// # Errors
    ///
    /// When openssl makes no key.
    pub fn new(name: &str, password: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tokens"]);
        openssl.args(["-keyout", "key.pem", "-out", "cert.pem"]).current_dir(dir.path());
        ensure!(run(&mut openssl)?, "openssl makes no certificate");
        let account = base64(format!("{name}:{password}").as_bytes());
        let granted = Arc::new(Mutex::new(Vec::new()));
        let (path, name, password) = (dir.path().to_owned(), name.to_owned(), password.to_owned());
        let log = Arc::clone(&granted);
        let server = FaultRegistry::new(move |request, _| {
            Some(answer(request, &path, &name, &password, &account, &log).unwrap_or_else(|_| Reply::new(500)))
        })?;
        Ok(Self { server, dir, granted })
    }

    /// The part of a registry's configuration that sends everybody here.
    #[must_use]
    pub fn config(&self) -> String {
        format!(
            "auth: {{token: {{realm: \"http://{}/token\", service: {SERVICE}, issuer: {ISSUER}, \
             rootcertbundle: {}}}}}\n",
            self.server.host(),
            self.dir.path().join("cert.pem").display()
        )
    }

    /// What was granted so far: `scope` for each token.
    #[must_use]
    pub fn granted(&self) -> Vec<String> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn run(command: &mut Command) -> Result<bool> {
    Ok(command.env("PATH", program_path()).stderr(Stdio::null()).status().context("run openssl")?.success())
}

fn answer(
    request: &Request,
    dir: &Path,
    name: &str,
    password: &str,
    account: &str,
    log: &Mutex<Vec<String>>,
) -> Result<Reply> {
    let values = |key: &str| values(request, key);
    let by_form = values("username") == [name] && values("password") == [password];
    let by_header = request.header("authorization") == format!("Basic {account}");
    let is_known = by_form || by_header;
    let claims_to_be = !values("username").is_empty() || !request.header("authorization").is_empty();
    if claims_to_be && !is_known {
        return Ok(Reply::new(401).body(r#"{"details":"unauthorized: authentication required"}"#));
    }
    let mut access = Vec::new();
    for scope in values("scope").iter().flat_map(|scopes| scopes.split(' ')) {
        let mut parts = scope.splitn(3, ':');
        let (Some("repository"), Some(repository), Some(actions)) =
            (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let own = is_known && repository.starts_with(&format!("{name}/"));
        let may = |action: &str| own || is_known && action == "pull" && repository.starts_with("library/");
        let actions: Vec<&str> = actions.split(',').filter(|action| may(action)).collect();
        access.push(json!({"type": "repository", "name": repository, "actions": actions}));
    }
    log.lock().unwrap_or_else(PoisonError::into_inner).push(values("scope").join(" "));
    let token = token(dir, if is_known { name } else { "" }, &access)?;
    let kind = if request.method == "POST" { "access_token" } else { "token" };
    Ok(Reply::new(200).body(json!({kind: token, "expires_in": 300}).to_string()))
}

fn token(dir: &Path, subject: &str, access: &[Value]) -> Result<String> {
    let pem = fs::read_to_string(dir.join("cert.pem"))?;
    let certificate: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [certificate]});
    let claims = json!({"iss": ISSUER, "sub": subject, "aud": SERVICE, "exp": now + 300, "nbf": now - 10,
        "iat": now - 10, "jti": now.to_string(), "access": access});
    let signed = format!("{}.{}", url64(header.to_string().as_bytes()), url64(claims.to_string().as_bytes()));
    let mut child = Command::new("openssl")
        .args(["dgst", "-sha256", "-sign", "key.pem"])
        .current_dir(dir)
        .env("PATH", program_path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("stdin")?.write_all(signed.as_bytes())?;
    let signature = child.wait_with_output()?.stdout;
    Ok(format!("{signed}.{}", url64(&signature)))
}

/// The values of a field in a request's form, of a `POST`, or else in its query.
#[must_use]
pub fn values(request: &Request, key: &str) -> Vec<String> {
    let body = String::from_utf8_lossy(&request.body);
    let query = request.path.split_once('?').map_or("", |(_, query)| query);
    let fields = if request.method == "POST" { &*body } else { query };
    let pairs = fields.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(own, _)| *own == key).map(|(_, value)| decode(value)).collect()
}

/// Percent decoding of a form.
fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        match first {
            b'+' => bytes.push(b' '),
            b'%' if tail.len() >= 2 => {
                let hex =
                    std::str::from_utf8(&tail[..2]).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok());
                bytes.push(hex.unwrap_or(b'?'));
                rest = &tail[2..];
            }
            other => bytes.push(*other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn url64(bytes: &[u8]) -> String {
    base64(bytes).replace('+', "-").replace('/', "_").trim_end_matches('=').to_owned()
}

/// Base64, as headers have it.
#[must_use]
pub fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for at in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * at) & 63) as usize];
            text.push(if at <= chunk.len() { letter as char } else { '=' });
        }
    }
    text
}
