//! Amazon ECR: a real registry under ECR's name behind TLS, whose password is the token that moto gives for signed
//! requests.

use anyhow::Result;
use rbuild_tests::aws::{Aws, PASSWORD, ROLE};
use rbuild_tests::fault::{FaultRegistry, Reply, TunnelProxy};
use rbuild_tests::{Registry, TestEnv, Tls, need};
use serde_json::json;

const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

/// The registry, and the only way to it.
struct Ecr {
    aws: Aws,
    registry: Registry,
    proxy: TunnelProxy,
}

impl Ecr {
    fn start() -> Result<Self> {
        let aws = Aws::start()?;
        let registry = Registry::with_tls(HOST, Tls { password: Some(("AWS", PASSWORD)), ..Tls::default() })?;
        let proxy = TunnelProxy::new(&[(&format!("{HOST}:443"), registry.address())])?;
        Ok(Self { aws, registry, proxy })
    }

    /// A world with these variables, that trusts the registry and knows nobody's password.
    fn world(&self, variables: &[(&str, &str)]) -> Result<TestEnv> {
        let mut env = TestEnv::new()?
            .with_variable("HTTPS_PROXY", &self.proxy.url())
            .with_variable("AWS_ENDPOINT_URL", &self.aws.url())
            .with_variable("AWS_EC2_METADATA_DISABLED", "true");
        for (name, value) in variables {
            env = env.with_variable(name, value);
        }
        env.write(format!("home/.config/containers/certs.d/{HOST}/ca.crt"), &self.registry.authority()?)?;
        Ok(env)
    }
}

/// A service that hands out these keys: to containers at `/role`, and to instances as IMDSv2 does.
fn metadata(id: &str, secret: &str) -> Result<FaultRegistry> {
    let keys = json!({"AccessKeyId": id, "SecretAccessKey": secret, "Expiration": "2099-01-01T00:00:00Z"})
        .to_string();
    let list = "/latest/meta-data/iam/security-credentials/";
    FaultRegistry::new(move |request, _| {
        let has_session = request.header("x-aws-ec2-metadata-token") == "session";
        Some(match request.path.as_str() {
            "/role" if request.header("authorization") == "Basic of-the-container" => {
                Reply::new(200).body(keys.clone())
            }
            "/latest/api/token" if request.method == "PUT" => Reply::new(200).body("session"),
            path if path == list && has_session => Reply::new(200).body("the-role"),
            path if path.starts_with(list) && has_session => Reply::new(200).body(keys.clone()),
            _ => Reply::new(401),
        })
    })
}

#[test]
fn every_source_of_aws_credentials_opens_ecr() -> Result<()> {
    need!(Root, Registry, Bases, Openssl, Password, Aws);
    let ecr = Ecr::start()?;
    // First, while moto takes the exchange itself unsigned, as AWS always does.
    let web = ecr.world(&[("AWS_WEB_IDENTITY_TOKEN_FILE", "~/token"), ("AWS_ROLE_ARN", ROLE)])?;
    web.write("home/token", "a.signed.token\n")?;
    let context = web.context("app", &format!("FROM {HOST}/library/busybox\nRUN echo x > /x\n"), &[])?;
    web.build(&context, &["-t", &format!("{HOST}/team/web:1"), "--push"])?.ok();

    let (id, secret) = ecr.aws.keys();
    let service = metadata(id, secret)?;
    let address = format!("http://{}", service.host());
    let of_container = format!("{address}/role");
    let sources: [(&str, &[(&str, &str)]); 5] = [
        ("environment", &[("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret)]),
        ("profile", &[("AWS_PROFILE", "ci")]),
        ("process", &[("AWS_PROFILE", "process")]),
        (
            "container",
            &[
                ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &of_container),
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "Basic of-the-container"),
            ],
        ),
        ("instance", &[("AWS_EC2_METADATA_DISABLED", ""), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &address)]),
    ];
    let keys = json!({"Version": 1, "AccessKeyId": id, "SecretAccessKey": secret});
    for (name, variables) in sources {
        let env = ecr.world(variables)?;
        env.write(
            "home/.aws/config",
            &format!(
                "[profile ci]\nregion = us-east-1\n[profile process]\ncredential_process = echo '{keys}'\n"
            ),
        )?;
        env.write(
            "home/.aws/credentials",
            &format!("[ci]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n"),
        )?;
        let pull = env.run(["pull", &format!("{HOST}/team/web:1")])?.ok();
        env.run(["tag", &format!("{HOST}/team/web:1"), &format!("{HOST}/team/{name}:1")])?.ok();
        let push = env.run(["-D", "push", &format!("{HOST}/team/{name}:1")])?.ok();
        for run in [pull, push] {
            for canary in [secret, PASSWORD] {
                assert!(!run.stderr.contains(canary) && !run.stdout.contains(canary), "{name}: {run}");
            }
        }
    }
    Ok(())
}

#[test]
fn what_aws_refuses_is_said_in_its_words() -> Result<()> {
    need!(Root, Registry, Bases, Openssl, Password, Aws);
    let ecr = Ecr::start()?;
    let (id, secret) = ecr.aws.keys();
    let name = format!("{HOST}/library/busybox");
    // No signature is asked for the first time.
    ecr.world(&[("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret)])?.run(["pull", &name])?.ok();
    let wrong = ecr.world(&[("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", "wrong")])?;
    wrong.run(["pull", &name])?.exits(1).says(&[
        "GetAuthorizationToken",
        "SignatureDoesNotMatch",
        "AWS_PROFILE",
    ]);
    let unknown = ecr.world(&[("AWS_ACCESS_KEY_ID", "AKIAUNKNOWN"), ("AWS_SECRET_ACCESS_KEY", "x")])?;
    unknown.run(["pull", &name])?.exits(1).says(&["GetAuthorizationToken", HOST]);
    ecr.world(&[])?.run(["pull", &name])?.exits(1).says(&["no AWS credentials were found", HOST]);
    // A build learns of it before its first step.
    let context = wrong.context("app", "FROM scratch\nCOPY Dockerfile /\n", &[])?;
    let run = wrong.build(&context, &["-t", &format!("{HOST}/team/app:1"), "--push"])?.exits(1);
    assert!(run.says(&["nothing was built", "SignatureDoesNotMatch"]).executed().is_empty());

    // An old login in Docker's file gives way to a fresh token.
    let stale = ecr.world(&[("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret)])?;
    stale
        .write("home/.docker/config.json", &json!({"auths": {HOST: {"auth": "QVdTOnN0YWxl"}}}).to_string())?;
    stale.run(["pull", &name])?.ok();
    Ok(())
}
