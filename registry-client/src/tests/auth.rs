use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;

use super::fake::{Fake, Request, reply};
use super::*;
use crate::{ErrorKind, RegistryError, Violation};

/// Settings with a password for hosts.
fn with_password(hosts: &[&str]) -> Settings {
    let auth = base64::engine::general_purpose::STANDARD.encode("user:hunter2");
    let entries: Vec<String> = hosts.iter().map(|host| format!(r#""{host}":{{"auth":"{auth}"}}"#)).collect();
    Settings { docker_auth_config: Some(format!(r#"{{"auths":{{{}}}}}"#, entries.join(","))), ..settings() }
}

const BASIC: &str = "Basic dXNlcjpodW50ZXIy";

#[tokio::test]
async fn basic_credentials_are_sent_after_the_challenge_only() {
    let image = Image::new("amd64");
    let fake = Fake::start(move |request| match request.header("authorization") {
        BASIC => image.serve(request, "1"),
        _ => reply(401).header("WWW-Authenticate", r#"Basic realm="registry""#),
    })
    .await;
    let target = reference(&fake.host, "app:1");
    let known = Client::new(with_password(&[&fake.host])).unwrap();
    known.resolve(&target, &amd64()).await.unwrap();
    assert_eq!(fake.seen()[0].header("authorization"), "");
    let error = client().resolve(&target, &amd64()).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized { had_credentials: false, .. }), "{error:?}");
    let mut wrong = with_password(&[&fake.host]);
    wrong.docker_auth_config = wrong.docker_auth_config.map(|text| text.replace("dXNlcjpodW50ZXIy", "dTpw"));
    let before = fake.seen().len();
    let error = Client::new(wrong).unwrap().resolve(&target, &amd64()).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized { had_credentials: true, .. }), "{error:?}");
    assert!(fake.seen().len() - before <= 3, "wrong credentials are not tried again and again");
}

/// A token server that issues `token-<n>`, and a registry that accepts what the test says.
async fn tokens(post: u16, body: &'static str) -> Fake {
    let count = AtomicUsize::new(0);
    Fake::start(move |request| match (request.method.as_str(), post) {
        ("POST", status) if status != 200 => reply(status),
        ("POST", _) if request.body.is_empty() => reply(200),
        _ if body.is_empty() => reply(200).body(format!(
            r#"{{"token":"token-{}","expires_in":300}}"#,
            count.fetch_add(1, Ordering::Relaxed)
        )),
        _ => reply(200).body(body),
    })
    .await
}

async fn bearer_registry(token_host: &str, accepts: impl Fn(&str) -> bool + Send + Sync + 'static) -> Fake {
    let image = Image::new("amd64");
    let challenge =
        format!(r#"Bearer realm="http://{token_host}/token",service="reg",scope="repository:app:pull""#);
    Fake::start(move |request: &Request| match request.header("authorization").strip_prefix("Bearer ") {
        Some(token) if accepts(token) => image.serve(request, "1"),
        _ => reply(401).header("WWW-Authenticate", challenge.clone()),
    })
    .await
}

#[tokio::test]
async fn anonymous_tokens_are_fetched_once_per_scope() {
    let server = tokens(200, "").await;
    let fake = bearer_registry(&server.host, |token| token == "token-0").await;
    client().resolve(&reference(&fake.host, "app:1"), &amd64()).await.unwrap();
    assert_eq!(server.lines(), ["GET /token?service=reg&scope=repository%3Aapp%3Apull"]);
    assert!(server.seen()[0].header("authorization").is_empty());
}

#[tokio::test]
async fn passwords_go_by_post_and_fall_back_to_get() {
    for (status, get) in [(200, false), (404, true), (401, true), (405, true)] {
        let server = tokens(status, r#"{"access_token":"right"}"#).await;
        let fake = bearer_registry(&server.host, |token| token == "right").await;
        let client = Client::new(with_password(&[&fake.host])).unwrap();
        client.resolve(&reference(&fake.host, "app:1"), &amd64()).await.unwrap();
        let seen = server.seen();
        let form = String::from_utf8(seen[0].body.clone()).unwrap();
        assert!(form.contains("grant_type=password") && form.contains("password=hunter2"), "{form}");
        assert!(form.contains("scope=repository%3Aapp%3Apull"), "{form}");
        assert_eq!(seen.len(), 1 + usize::from(get), "{status}");
        if get {
            assert_eq!(seen[1].header("authorization"), BASIC);
            assert_eq!(seen[1].method, "GET");
        }
        assert!(fake.seen().iter().all(|request| request.header("authorization") != BASIC));
    }
}

/// R5: no more than two new tokens a request.
#[tokio::test]
async fn an_endless_401_ends_after_two_new_tokens() {
    let server = tokens(200, "").await;
    let fake = bearer_registry(&server.host, |_| false).await;
    let error = client().resolve(&reference(&fake.host, "app:1"), &amd64()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    let asked = fake.lines().len();
    assert!(asked <= 1 + crate::limits::REAUTHENTICATIONS_MAX, "{asked}");
    assert!(server.lines().len() <= 1 + crate::limits::REAUTHENTICATIONS_MAX);
}

#[tokio::test]
async fn an_expired_token_is_replaced() {
    let server = tokens(200, "").await;
    let uses = Arc::new(AtomicUsize::new(0));
    let counter = uses.clone();
    let fake = bearer_registry(&server.host, move |token| match token {
        "token-0" => counter.fetch_add(1, Ordering::Relaxed) == 0,
        other => other == "token-1",
    })
    .await;
    client().resolve(&reference(&fake.host, "app:1"), &amd64()).await.unwrap();
    assert_eq!(server.lines().len(), 2);
}

#[tokio::test]
async fn token_servers_that_misbehave_are_named() {
    for body in ["{}", "not json", r#"{"token":""}"#] {
        let server = tokens(200, body).await;
        let fake = bearer_registry(&server.host, |_| true).await;
        let error = client().resolve(&reference(&fake.host, "app:1"), &amd64()).await.unwrap_err();
        assert!(
            matches!(&error, RegistryError::Protocol { violation: Violation::NoToken(_), .. }),
            "{error:?}"
        );
    }
    let fake = Fake::start(|_| reply(401).header("WWW-Authenticate", "Negotiate \u{202e}x")).await;
    let error = client().resolve(&reference(&fake.host, "app:1"), &amd64()).await.unwrap_err();
    assert!(
        matches!(&error, RegistryError::Protocol { violation: Violation::Challenge(_), .. }),
        "{error:?}"
    );
    assert!(!error.to_string().contains('\u{202e}'));
}

/// R8: of blobs and of token requests.
#[tokio::test]
async fn redirects_to_another_origin_go_without_credentials() {
    let image = Image::new("amd64");
    let layer = image.layer.clone();
    let stored = layer.clone();
    let storage = Fake::start(move |_| reply(200).body(stored.clone())).await;
    let address = format!("http://{}/signed?secret=1", storage.host);
    let fake = Fake::start(move |request| {
        if request.header("authorization") != BASIC {
            return reply(401).header("WWW-Authenticate", "Basic");
        }
        match request.path.as_str() {
            path if path.contains("/blobs/") && path.starts_with("/v2/loop") => {
                reply(307).header("Location", path)
            }
            path if path.contains("/blobs/") => reply(307).header("Location", address.clone()),
            _ => image.serve(request, "1"),
        }
    })
    .await;
    let client = Client::new(with_password(&[&fake.host, &storage.host])).unwrap();
    let digest = Digest::of(&layer);
    let mut stream =
        client.blob(&reference(&fake.host, "app"), digest, layer.len() as u64, |_| {}).await.unwrap();
    while stream.chunk().await.unwrap().is_some() {}
    assert_eq!(storage.lines(), ["GET /signed?secret=1"]);
    assert_eq!(storage.seen()[0].header("authorization"), "");
    let error = client.blob(&reference(&fake.host, "loop"), digest, 1, |_| {}).await.unwrap_err();
    assert!(matches!(error, RegistryError::Protocol { violation: Violation::Redirects, .. }), "{error:?}");
}

/// R17: reflected secrets are blotted out.
#[tokio::test]
async fn secrets_reflected_by_a_registry_do_not_reach_the_message() {
    let fake = Fake::start(|request| match request.header("authorization") {
        "" => reply(401).header("WWW-Authenticate", "Basic"),
        _ => reply(403).body("<pre>you said user:hunter2 \u{1b}[2J</pre>"),
    })
    .await;
    let client = Client::new(with_password(&[&fake.host])).unwrap();
    let error = client.resolve(&reference(&fake.host, "app:1"), &amd64()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    let text = format!("{error} {error:?}");
    assert!(!text.contains("hunter2") && !text.contains('\u{1b}'), "{text}");
}

#[tokio::test]
async fn identity_tokens_are_refresh_tokens_and_registry_tokens_are_used_as_they_are() {
    let server = tokens(200, r#"{"access_token":"right"}"#).await;
    let fake = bearer_registry(&server.host, |token| token == "right").await;
    let with = |entry: &str| {
        let text = format!(r#"{{"auths":{{"{}":{entry}}}}}"#, fake.host);
        Client::new(Settings { docker_auth_config: Some(text), ..settings() }).unwrap()
    };
    let target = reference(&fake.host, "app:1");
    with(r#"{"registrytoken":"right"}"#).resolve(&target, &amd64()).await.unwrap();
    assert!(server.lines().is_empty());
    with(r#"{"identitytoken":"re+fresh"}"#).resolve(&target, &amd64()).await.unwrap();
    let form = String::from_utf8(server.seen()[0].body.clone()).unwrap();
    assert!(form.contains("grant_type=refresh_token&refresh_token=re%2Bfresh"), "{form}");
}

#[tokio::test]
async fn a_token_server_that_refuses_the_password_is_the_one_named() {
    let server = Fake::start(|_| reply(401).body(r#"{"details":"incorrect username or password"}"#)).await;
    let fake = bearer_registry(&server.host, |_| true).await;
    let client = Client::new(with_password(&[&fake.host])).unwrap();
    let error = client.resolve(&reference(&fake.host, "app:1"), &amd64()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    let expected = format!(
        "get a token from 127.0.0.1 to pull manifest `1` of {}/app: the credentials were refused (HTTP 401): \
         incorrect username or password",
        fake.host
    );
    assert_eq!(error.to_string(), expected);
    assert!(error.hint().unwrap().contains(&format!("rbuild login {}", fake.host)));
}

#[tokio::test]
async fn parallel_requests_share_one_token() {
    let server = tokens(200, "").await;
    let fake = bearer_registry(&server.host, |token| token == "token-0").await;
    let (client, target) = (client(), reference(&fake.host, "app:1"));
    let platform = amd64();
    let all = (0..8).map(|_| client.resolve(&target, &platform));
    for result in futures_util::future::join_all(all).await {
        result.unwrap();
    }
    assert_eq!(server.lines().len(), 1, "{:?}", server.lines());
}

#[tokio::test]
async fn login_checks_a_password_without_those_in_files() {
    let fake = Fake::start(|request| match (request.path.as_str(), request.header("authorization")) {
        ("/v2/", BASIC) => reply(200).body("{}"),
        _ => reply(401).header("WWW-Authenticate", r#"Basic realm="registry""#),
    })
    .await;
    let server: crate::Server = fake.host.parse().unwrap();
    client().verify(&server, "user", "hunter2").await.unwrap();
    // The right password in a file must not make a wrong one pass.
    let known = Client::new(with_password(&[&fake.host])).unwrap();
    let error = known.verify(&server, "user", "wrong-canary").await.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized { had_credentials: true, .. }), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("wrong-canary"));
    assert!(error.to_string().contains(&format!("log in at {}", fake.host)), "{error}");
}

#[tokio::test]
async fn login_asks_a_token_server_for_no_repository() {
    let server_of_tokens = tokens(200, r#"{"token":"good"}"#).await;
    let registry = bearer_registry(&server_of_tokens.host, |token| token == "good").await;
    let server: crate::Server = registry.host.parse().unwrap();
    let result = client().verify(&server, "user", "hunter2").await;
    let asked = server_of_tokens.seen();
    let body = String::from_utf8_lossy(&asked[0].body).into_owned();
    assert!(body.contains("username=user") && !body.contains("scope="), "{body}");
    // The fake serves images only: that it answered is what counts.
    assert!(matches!(result, Ok(()) | Err(RegistryError::NotFound { .. })), "{result:?}");
    let refusing = tokens(401, "").await;
    let registry = bearer_registry(&refusing.host, |_| false).await;
    let error = client().verify(&registry.host.parse().unwrap(), "user", "bad").await.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error:?}");
}

/// Azure: user zero and an account's token, which the registry exchanges for one of its own.
#[tokio::test]
async fn azure_s_tokens_are_exchanged_before_use() {
    for knows_account in [true, false] {
        let image = Image::new("amd64");
        let fake = Fake::start(move |request| {
            let body = String::from_utf8_lossy(&request.body).into_owned();
            match request.path.as_str() {
                // Asked again when the body is there.
                _ if request.method == "POST" && body.is_empty() => reply(200),
                "/oauth2/exchange" if knows_account => {
                    assert!(body.contains("access_token=aad") && body.contains("service=acr"), "{body}");
                    reply(200).body(r#"{"refresh_token":"refresh"}"#)
                }
                "/oauth2/exchange" => reply(401),
                "/oauth2/token" => {
                    let token = if knows_account { "refresh" } else { "aad" };
                    assert!(body.contains("grant_type=refresh_token"), "{body}");
                    assert!(body.contains(&format!("refresh_token={token}")), "{body}");
                    reply(200).body(r#"{"access_token":"good"}"#)
                }
                _ if request.header("authorization") == "Bearer good" => image.serve(request, "1"),
                _ => reply(401).header(
                    "WWW-Authenticate",
                    format!(
                        "Bearer realm=\"http://{}/oauth2/token\",service=\"acr\"",
                        request.header("host")
                    ),
                ),
            }
        })
        .await;
        let auth = "MDAwMDAwMDAtMDAwMC0wMDAwLTAwMDAtMDAwMDAwMDAwMDAwOmFhZA==";
        let text = format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, fake.host);
        let client = Client::new(Settings { docker_auth_config: Some(text), ..settings() }).unwrap();
        client.resolve(&reference(&fake.host, "app:1"), &amd64()).await.unwrap();
    }
}

/// Google: a key file as the password, and a token server that knows no `POST`.
#[tokio::test]
async fn google_s_key_files_are_passwords() {
    let image = Image::new("amd64");
    // `_json_key:{"type": "service_account", "k": "a:b"}`
    let auth = "X2pzb25fa2V5OnsidHlwZSI6ICJzZXJ2aWNlX2FjY291bnQiLCAiayI6ICJhOmIifQ==";
    let fake = Fake::start(move |request| match request.path.as_str() {
        "/v2/token" if request.method == "POST" => reply(404),
        path if path.starts_with("/v2/token?") => {
            assert_eq!(request.header("authorization"), format!("Basic {auth}"));
            reply(200).body(r#"{"token":"good"}"#)
        }
        _ if request.header("authorization") == "Bearer good" => image.serve(request, "1"),
        _ => reply(401).header(
            "WWW-Authenticate",
            format!("Bearer realm=\"http://{}/v2/token\",service=\"gcr\"", request.header("host")),
        ),
    })
    .await;
    let text = format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, fake.host);
    let client = Client::new(Settings { docker_auth_config: Some(text), ..settings() }).unwrap();
    client.resolve(&reference(&fake.host, "app:1"), &amd64()).await.unwrap();
}
