//! A stand-in for AWS: `moto`, which checks signatures and permissions as AWS does.

use std::env;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::http::{self, Answer};
use crate::registry::{free_address, listens};

/// The account that everything is in.
pub const ACCOUNT: &str = "123456789012";
/// What the tokens of the account's registries hold behind `AWS:`.
pub const PASSWORD: &str = "123456789012-auth-token";
/// A role that may use the registries.
pub const ROLE: &str = "arn:aws:iam::123456789012:role/pusher";

/// Requests of [`Aws::start`], and one more: from then on, moto wants them signed by somebody who may.
const UNSIGNED: usize = 6;

/// Where `tests/scripts/setup` puts the program.
#[must_use]
pub fn program() -> PathBuf {
    let cache = env::var_os("RBUILD_TEST_CACHE")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache/rbuild-tests")));
    cache.unwrap_or_default().join("moto-5.2.5/bin/moto_server")
}

/// A server of one test. Dropping it ends it.
#[derive(Debug)]
pub struct Aws {
    server: Child,
    address: SocketAddr,
    keys: (String, String),
    _dir: TempDir,
}

impl Aws {
    /// Starts one with a user and a role that may do everything with ECR, and nothing else.
    ///
    /// The first request after this needs no signature: exchange a web identity with it.
    ///
    /// # Errors
    ///
    /// When the program is not there or does not start.
    pub fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        for _ in 0..5 {
            let address = free_address()?;
            let log = std::fs::File::create(dir.path().join("log"))?;
            let mut server = Command::new(program())
                .args(["-H", "127.0.0.1", "-p", &address.port().to_string()])
                .env_clear()
                .env("HOME", dir.path())
                .env("INITIAL_NO_AUTH_ACTION_COUNT", UNSIGNED.to_string())
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
                .with_context(|| format!("start {}", program().display()))?;
            if listens(&mut server, address)? {
                let mut aws = Self { server, address, keys: Default::default(), _dir: dir };
                aws.keys = aws.set_up()?;
                return Ok(aws);
            }
        }
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
        bail!("moto does not start: {log}")
    }

    fn set_up(&self) -> Result<(String, String)> {
        // `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"ecr:*","Resource":"*"}]}`
        let policy = "%7B%22Version%22%3A%222012-10-17%22%2C%22Statement%22%3A%5B%7B%22Effect%22%3A%22Allow%22%2C\
                      %22Action%22%3A%22ecr%3A%2A%22%2C%22Resource%22%3A%22%2A%22%7D%5D%7D";
        self.iam("CreateUser&UserName=ci")?;
        let made = self.iam("CreateAccessKey&UserName=ci")?;
        self.iam(&format!("PutUserPolicy&UserName=ci&PolicyName=ecr&PolicyDocument={policy}"))?;
        self.iam(&format!("CreateRole&RoleName=pusher&AssumeRolePolicyDocument={policy}"))?;
        self.iam(&format!("PutRolePolicy&RoleName=pusher&PolicyName=ecr&PolicyDocument={policy}"))?;
        let element = |name: &str| {
            let (_, rest) = made.body.split_once(&format!("<{name}>")).context("no key")?;
            Ok::<_, anyhow::Error>(rest.split('<').next().unwrap_or_default().to_owned())
        };
        Ok((element("AccessKeyId")?, element("SecretAccessKey")?))
    }

    fn iam(&self, action: &str) -> Result<Answer> {
        let headers = [
            ("Content-Type", "application/x-www-form-urlencoded"),
            // Who asks is not looked at yet; which service is.
            (
                "Authorization",
                "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=x",
            ),
        ];
        let body = format!("Version=2010-05-08&Action={action}");
        let answer = http::post(self.address, "/", &headers, &body)?;
        ensure!(answer.status == 200, "{action}: {answer:?}");
        Ok(answer)
    }

    /// Where its services are.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Id and secret of the user's key.
    #[must_use]
    pub fn keys(&self) -> (&str, &str) {
        (&self.keys.0, &self.keys.1)
    }
}

impl Drop for Aws {
    fn drop(&mut self) {
        // Its own child: nothing else can have this pid before it is waited for.
        self.server.kill().ok();
        self.server.wait().ok();
    }
}
