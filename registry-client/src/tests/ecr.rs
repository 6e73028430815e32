//! ECR without a helper, against a scripted AWS. The real protocol's server is `moto`, in the end-to-end tests.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::fake::{Fake, Request, reply};
use super::*;
use crate::auth::aws::Registry;
use crate::transport::Transport;
use crate::{AwsEnv, KeychainError};

const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

/// `AWS:fresh`.
const TOKEN: &str = "QVdTOmZyZXNo";

fn env(home: &std::path::Path, variables: &[(&str, &str)]) -> AwsEnv {
    let mut env = AwsEnv { home: Some(home.to_owned()), ..AwsEnv::default() };
    env.variables.insert("AWS_EC2_METADATA_DISABLED".into(), "true".into());
    env.variables.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    env
}

async fn ask(env: AwsEnv, renew: bool) -> Result<Option<String>, KeychainError> {
    let transport = Transport::new(Settings { aws: env, ..settings() });
    let found = transport.ecr_credentials(&Registry::of(HOST).unwrap(), renew).await?;
    Ok(found.map(|credentials| credentials.secret().to_owned()))
}

const STS: &str = "<R><Credentials><AccessKeyId>ASIA</AccessKeyId><SecretAccessKey>s</SecretAccessKey>\
    <SessionToken>t&amp;t</SessionToken></Credentials></R>";

fn aws(request: &Request) -> fake::Reply {
    let body = String::from_utf8_lossy(&request.body).into_owned();
    let is = |text: &str| request.path.contains(text) || body.contains(text);
    match request.path.as_str() {
        "/role" => reply(200).body(r#"{"AccessKeyId":"C","SecretAccessKey":"s","Token":"t"}"#),
        "/latest/api/token" if request.method == "PUT" => reply(200).body("imds-token"),
        path if path.starts_with("/latest/")
            && request.header("x-aws-ec2-metadata-token") != "imds-token" =>
        {
            reply(401)
        }
        "/latest/meta-data/iam/security-credentials/" => reply(200).body("the-role\n"),
        "/latest/meta-data/iam/security-credentials/the-role" => {
            reply(200).body(r#"{"AccessKeyId":"I","SecretAccessKey":"s","Token":"t"}"#)
        }
        "/federation/credentials?account_id=1&role_name=r" => {
            match request.header("x-amz-sso_bearer_token") {
                "sso-token" => reply(200).body(
                    r#"{"roleCredentials":{"accessKeyId":"SSO","secretAccessKey":"s","sessionToken":"t","expiration":1}}"#,
                ),
                _ => reply(401),
            }
        }
        _ if is("AssumeRole") => reply(200).body(STS),
        // The public service answers with one, not with a list.
        _ if request.header("x-amz-target").starts_with("SpencerFrontendService.") => reply(200).body(format!(
            r#"{{"authorizationData":{{"authorizationToken":"{TOKEN}","expiresAt":4102444800}}}}"#
        )),
        _ if request.header("x-amz-target").ends_with("GetAuthorizationToken") => reply(200).body(format!(
            r#"{{"authorizationData":[{{"authorizationToken":"{TOKEN}","expiresAt":4102444800.5}}]}}"#
        )),
        _ => reply(400),
    }
}

#[tokio::test]
async fn every_source_of_aws_credentials_leads_to_a_token() {
    let fake = Fake::start(aws).await;
    let url = format!("http://{}", fake.host);
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".aws")).unwrap();
    std::fs::write(home.path().join("web"), "jwt\n").unwrap();
    std::fs::write(
        home.path().join(".aws/config"),
        "[profile assume]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = base\n\
         [profile metadata]\nrole_arn = arn:aws:iam::1:role/r\ncredential_source = Ec2InstanceMetadata\n\
         [profile process]\ncredential_process = echo '{\"Version\":1,\"AccessKeyId\":\"P\",\"SecretAccessKey\":\"s\"}'\n\
         [profile sso]\nsso_session = corp\nsso_account_id = 1\nsso_role_name = r\n\
         [sso-session corp]\nsso_region = eu-west-1\nsso_start_url = https://corp.test\n",
    )
    .unwrap();
    std::fs::write(
        home.path().join(".aws/credentials"),
        "[base]\naws_access_key_id = AKIABASE\naws_secret_access_key = s\n",
    )
    .unwrap();
    let cache = home.path().join(".aws/sso/cache");
    std::fs::create_dir_all(&cache).unwrap();
    // SHA-1 of `corp`, as the AWS command line names the file.
    std::fs::write(
        cache.join("ee0bfd2552fbd840c02cc48b6e823320543c450f.json"),
        r#"{"accessToken":"sso-token","expiresAt":"2099-01-01T00:00:00Z"}"#,
    )
    .unwrap();
    let container = format!("{url}/role");
    let cases: [(&str, &[(&str, &str)]); 8] = [
        ("P/", &[("AWS_PROFILE", "process")]),
        ("SSO/", &[("AWS_PROFILE", "sso")]),
        ("AKIAENV/", &[("AWS_ACCESS_KEY_ID", "AKIAENV"), ("AWS_SECRET_ACCESS_KEY", "s")]),
        ("AKIABASE/", &[("AWS_PROFILE", "base")]),
        ("ASIA/", &[("AWS_PROFILE", "assume")]),
        ("ASIA/", &[("AWS_WEB_IDENTITY_TOKEN_FILE", "~/web"), ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r")]),
        ("C/", &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &container)]),
        ("I/", &[("AWS_EC2_METADATA_DISABLED", "false"), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url)]),
    ];
    for (signer, variables) in cases {
        let mut env = env(home.path(), variables);
        env.variables.insert("AWS_ENDPOINT_URL".into(), url.clone());
        env.variables.insert("AWS_ECR_DISABLE_CACHE".into(), "1".into());
        assert_eq!(ask(env, false).await.unwrap().as_deref(), Some("fresh"), "{variables:?}");
        let last = fake.seen().pop().unwrap();
        let signed = last.header("authorization").to_owned();
        assert!(signed.contains(&format!("Credential={signer}")), "{signed}");
        assert!(signed.contains("/eu-west-1/ecr/aws4_request"), "{signed}");
    }
    assert!(!home.path().join(".ecr").exists(), "the cache is switched off");
}

#[tokio::test]
async fn the_public_registry_has_a_service_of_its_own() {
    let fake = Fake::start(aws).await;
    let home = tempfile::tempdir().unwrap();
    let url = format!("http://{}", fake.host);
    let keys =
        [("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_ENDPOINT_URL_ECR_PUBLIC", &*url)];
    let transport = Transport::new(Settings { aws: env(home.path(), &keys), ..settings() });
    let found = transport.ecr_credentials(&Registry::of("public.ecr.aws").unwrap(), false).await.unwrap();
    assert_eq!(found.unwrap().secret(), "fresh");
    let signed = fake.seen().pop().unwrap().header("authorization").to_owned();
    assert!(signed.contains("/us-east-1/ecr-public/aws4_request"), "{signed}");
}

#[tokio::test]
async fn tokens_are_kept_for_the_next_run_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let fake = Fake::start(aws).await;
    let home = tempfile::tempdir().unwrap();
    let url = format!("http://{}", fake.host);
    let env = env(
        home.path(),
        &[("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_ENDPOINT_URL", &url)],
    );
    for _ in 0..2 {
        assert_eq!(ask(env.clone(), false).await.unwrap().as_deref(), Some("fresh"));
    }
    assert_eq!(fake.seen().len(), 1, "the second run asks nobody");
    let file = std::fs::read_dir(home.path().join(".ecr")).unwrap().next().unwrap().unwrap();
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    ask(env.clone(), true).await.unwrap();
    assert_eq!(fake.seen().len(), 2);
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
    ask(env, false).await.unwrap();
    assert_eq!(fake.seen().len(), 3, "a file that others can read is not used");
}

#[tokio::test]
async fn refusals_say_what_aws_said_and_no_secret() {
    let refuses = r#"{"__type":"UnrecognizedClientException","message":"The security token is invalid."}"#;
    let fake = Fake::start(move |_| reply(400).body(refuses)).await;
    let home = tempfile::tempdir().unwrap();
    let url = format!("http://{}", fake.host);
    let keys =
        [("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "canary"), ("AWS_ENDPOINT_URL", &url)];
    let error = ask(env(home.path(), &keys), false).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "GetAuthorizationToken at AWS failed: UnrecognizedClientException: The security token is invalid. (HTTP 400)"
    );
    assert!(!format!("{error:?}").contains("canary"));
    let error = ask(env(home.path(), &[("AWS_PROFILE", "nope")]), false).await.unwrap_err();
    assert!(error.to_string().contains("there is no profile `nope`"), "{error}");
    assert_eq!(ask(env(home.path(), &[]), false).await.unwrap(), None, "nothing is no error");
    std::fs::create_dir(home.path().join(".aws")).unwrap();
    let profiles = "[profile old]\nsso_start_url = https://corp.test\nsso_region = eu-west-1\nsso_account_id = 1\n\
        sso_role_name = r\n[profile half]\nsso_start_url = https://corp.test\n[profile fails]\n\
        credential_process = echo canary; exit 3\n[profile garbage]\ncredential_process = echo canary\n";
    std::fs::write(home.path().join(".aws/config"), profiles).unwrap();
    for (profile, words) in [
        ("old", "run `aws sso login --profile old`"),
        ("half", "has no `sso_region`"),
        ("fails", "run it by hand"),
        ("garbage", "did not print credentials"),
    ] {
        let error = ask(env(home.path(), &[("AWS_PROFILE", profile)]), false).await.unwrap_err().to_string();
        assert!(error.contains(words) && !error.contains("canary"), "{error}");
    }
    let outside = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://evil.test/x")];
    assert!(ask(env(home.path(), &outside), false).await.unwrap_err().to_string().contains("must be https"));
}

/// A clear-text proxy plays the registry: its host is ECR's, its answers are ours.
#[tokio::test]
async fn a_stale_entry_in_a_file_does_not_win_over_a_fresh_token() {
    let service = Fake::start(aws).await;
    let image = Image::new("amd64");
    let (seen, stale) = (std::sync::Arc::new(Mutex::new(Vec::new())), AtomicUsize::new(0));
    let log = seen.clone();
    let registry = Fake::start(move |request| {
        let path = request.path.strip_prefix(&format!("http://{HOST}")).unwrap_or(&request.path).to_owned();
        let authorization = request.header("authorization").to_owned();
        log.lock().unwrap().push(authorization.clone());
        if authorization != format!("Basic {TOKEN}") {
            stale.fetch_add(1, Ordering::Relaxed);
            return reply(401).header("WWW-Authenticate", "Basic realm=\"ecr\"");
        }
        image.serve(&Request { path, ..request.clone() }, "1")
    })
    .await;
    let home = tempfile::tempdir().unwrap();
    let url = format!("http://{}", service.host);
    let settings = Settings {
        aws: env(
            home.path(),
            &[("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_ENDPOINT_URL", &url)],
        ),
        docker_auth_config: Some(format!(r#"{{"auths":{{"{HOST}":{{"auth":"QVdTOnN0YWxl"}}}}}}"#)),
        insecure: vec![HOST.into()],
        proxies: crate::ProxySettings {
            http: Some(set_by_variable(&registry.host, "HTTP_PROXY")),
            https: None,
            no_proxy: None,
        },
        ..settings()
    };
    let client = Client::new(settings).unwrap();
    client.resolve(&reference(HOST, "app:1"), &amd64()).await.unwrap();
    let seen = seen.lock().unwrap();
    assert!(seen.contains(&"Basic QVdTOnN0YWxl".to_owned()), "the entry is tried: {seen:?}");
    assert_eq!(seen.last().unwrap(), &format!("Basic {TOKEN}"));
}
