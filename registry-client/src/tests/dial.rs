//! Proxies and times that `hosts.toml` names for a host.

use std::sync::Arc;
use std::time::Instant;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::fake::{Fake, reply};
use super::*;
use crate::{ProxySettings, Reason, RegistryError};

/// A client with a `hosts.toml` for each host, in an environment whose proxy is none and may be used for nothing.
fn client_with(files: &[(&str, String)]) -> (Client, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    for (host, text) in files {
        std::fs::create_dir(dir.path().join(host)).unwrap();
        std::fs::write(dir.path().join(host).join("hosts.toml"), text).unwrap();
    }
    let nowhere = Some(set_by_variable("http://127.0.0.1:1", "PROXY"));
    let proxies = ProxySettings { http: nowhere.clone(), https: nowhere, no_proxy: Some("*".to_owned()) };
    let settings = Settings { certs_dirs: vec![dir.path().to_owned()], proxies, ..settings() };
    (Client::new(settings).unwrap(), dir)
}

/// A proxy for clear text that is every host at once, and refuses tunnels.
async fn proxy(image: Image) -> Fake {
    Fake::start(move |request| {
        let mut inner = request.clone();
        if let Some((_, path)) = request.path.split_once("://").and_then(|(_, rest)| rest.split_once('/')) {
            // Without `?ns=` and what a token is for.
            inner.path = format!("/{}", path.split('?').next().unwrap());
        }
        match inner.path.as_str() {
            _ if request.method == "CONNECT" => reply(403),
            "/token" => reply(200).body(r#"{"token":"t"}"#),
            path if path.contains("/blobs/") && !path.starts_with("/storage") => {
                reply(307).header("Location", format!("http://storage.test/storage{path}"))
            }
            _ if request.path.starts_with("http://locked.test/")
                && request.header("authorization") != "Bearer t" =>
            {
                reply(401).header("WWW-Authenticate", r#"Bearer realm="http://auth.test/token",service="s""#)
            }
            _ => image.serve(&inner, "1"),
        }
    })
    .await
}

#[tokio::test]
async fn a_host_s_own_proxy_wins_over_the_environment() {
    let proxy = proxy(Image::new("amd64")).await;
    let text = format!("server = 'http://r.test'\nproxy = 'http://me:hunter2@{}'\n", proxy.host);
    let (client, _dir) = client_with(&[("r.test", text)]);
    let found = client.resolve(&reference("r.test", "app:1"), &amd64()).await.unwrap();
    assert_eq!(found.served_by, "r.test");
    let seen = proxy.seen();
    assert!(seen.len() >= 3, "{seen:?}");
    // `me:hunter2`
    assert!(
        seen.iter().all(|request| request.header("proxy-authorization") == "Basic bWU6aHVudGVyMg=="),
        "{seen:?}"
    );
    let lines = proxy.lines();
    assert_eq!(lines[0], "GET http://r.test/v2/app/manifests/1");
    assert!(lines.iter().any(|line| line.starts_with("GET http://storage.test/storage/")), "{lines:?}");
}

#[tokio::test]
async fn what_a_host_names_and_loopback_hosts_are_reached_through_its_proxy() {
    let proxy = proxy(Image::new("amd64")).await;
    let own = format!("proxy = 'http://{}'\n", proxy.host);
    let text = format!("server = 'http://locked.test'\n{own}");
    let (client, _dir) = client_with(&[("locked.test", text), ("127.0.0.1:1", own)]);
    client.resolve(&reference("locked.test", "app:1"), &amd64()).await.unwrap();
    assert!(
        proxy.lines().iter().any(|line| line.starts_with("GET http://auth.test/token?")),
        "{:?}",
        proxy.lines()
    );
    client.resolve(&reference("127.0.0.1:1", "app:1"), &amd64()).await.unwrap();
    assert!(proxy.lines().contains(&"GET http://127.0.0.1:1/v2/app/manifests/1".to_owned()));
}

#[tokio::test]
async fn a_mirror_s_proxy_is_for_the_mirror_and_the_default_one_for_hosts_without_a_file() {
    let (mirror, rest) = (proxy(Image::new("arm64")).await, proxy(Image::new("amd64")).await);
    let text = format!("[host.'http://mirror.test']\nproxy = 'http://{}'\n", mirror.host);
    let other =
        format!("proxy = 'http://{}'\n[host.'http://plain.test']\ncapabilities = ['push']\n", rest.host);
    let (client, _dir) = client_with(&[("r.test", text), ("_default", other)]);
    let found = client.resolve(&reference("r.test", "app:1"), &"linux/arm64".parse().unwrap()).await.unwrap();
    assert_eq!(found.served_by, "mirror.test");
    assert!(rest.lines().is_empty(), "{:?}", rest.lines());
    // Tunnels are refused, which is all that is looked at.
    for (host, line) in [("r.test", None), ("plain.test", None), ("x.test", Some("CONNECT x.test:443"))] {
        client.resolve(&reference(host, "app:2"), &amd64()).await.unwrap_err();
        assert_eq!(rest.lines().pop().as_deref(), line, "{host}");
    }
}

#[tokio::test]
async fn docker_hub_s_proxy_is_told_under_any_of_its_names_and_its_credentials_in_no_error() {
    let proxy = proxy(Image::new("amd64")).await;
    for server in ["https://registry-1.docker.io", "https://docker.io"] {
        let text = format!("server = '{server}'\nproxy = 'http://me:hunter2@{}'\n", proxy.host);
        let (client, _dir) = client_with(&[("docker.io", text)]);
        let before = proxy.lines().len();
        let error = client.resolve(&"busybox:1".parse().unwrap(), &amd64()).await.unwrap_err();
        assert_eq!(proxy.lines()[before], "CONNECT registry-1.docker.io:443", "{server}");
        assert_eq!(proxy.seen()[before].header("proxy-authorization"), "Basic bWU6aHVudGVyMg==");
        let said = format!("{error:?} {error} {:?}", error.hint());
        assert!(!said.contains("hunter2") && !said.contains("bWU6"), "{said}");
    }
}

/// Names are the proxy's to look up, as with Go: here nobody knows them.
#[tokio::test]
async fn socks_proxies_are_told_the_name() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut greeting = [0; 2];
        stream.read_exact(&mut greeting).await.unwrap();
        stream.read_exact(&mut vec![0; greeting[1].into()]).await.unwrap();
        stream.write_all(&[5, 0]).await.unwrap();
        let mut head = [0; 5];
        stream.read_exact(&mut head).await.unwrap();
        let mut name = vec![0; head[4].into()];
        stream.read_exact(&mut name).await.unwrap();
        (head[3], String::from_utf8(name).unwrap())
    });
    let text = format!("server = 'http://r.test'\nproxy = 'socks5://{address}'\n");
    let (client, _dir) = client_with(&[("r.test", text)]);
    client.resolve(&reference("r.test", "app:1"), &amd64()).await.unwrap_err();
    assert_eq!(asked.await.unwrap(), (3, "r.test".to_owned()));
}

/// A port on which nobody answers: its queue of connections is full.
async fn black_hole() -> (String, TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await
    {
        waiting.push(stream.unwrap());
    }
    (address.to_string(), listener, waiting)
}

#[tokio::test]
async fn a_dial_timeout_ends_the_wait_for_a_mirror_that_is_not_there() {
    let image = Arc::new(Image::new("amd64"));
    let served = Arc::clone(&image);
    let upstream = Fake::start(move |request| served.serve(request, "1")).await;
    let (hole, _listener, _waiting) = black_hole().await;
    let mut took = Vec::new();
    for key in ["dial_timeout = '100ms'", ""] {
        let text = format!("[host.'http://{hole}']\n{key}\n");
        let (client, _dir) = client_with(&[(&upstream.host, text)]);
        let start = Instant::now();
        let found = client.resolve(&reference(&upstream.host, "app:1"), &amd64()).await.unwrap();
        assert_eq!(found.served_by, upstream.host);
        took.push(start.elapsed());
    }
    // Two schemes are tried: on loopback either may be spoken.
    assert!(took[0] >= Duration::from_millis(100) && took[0] < Duration::from_millis(1500), "{took:?}");
    assert!(
        took[1] >= settings().deadlines.connect,
        "without the key it is the time of every host: {took:?}"
    );
}

#[tokio::test]
async fn a_file_that_is_no_toml_is_told_without_its_secrets() {
    let text = "[host.'https://r.test']\n  proxy = 'http://me:hunter2@proxy\n".to_owned();
    let (client, _dir) = client_with(&[("r.test", text)]);
    let error = client.resolve(&reference("r.test", "app:1"), &amd64()).await.unwrap_err();
    let RegistryError::Settings(error) = error else { panic!("{error:?}") };
    let said = format!("{error} {}", std::error::Error::source(&error).unwrap());
    assert!(said.contains("line 2") && said.contains("proxy = ***"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}

/// The words for what failed, and the fix.
fn said(error: &RegistryError) -> (String, String) {
    (error.to_string(), error.hint().unwrap())
}

#[tokio::test]
async fn a_proxy_that_fails_is_named_with_the_file_that_sets_it() {
    for (address, why, check) in [
        ("127.0.0.1:1", "cannot be reached: cannot connect", "is up and its address right"),
        (
            "no.invalid:1",
            "cannot be reached: the host name cannot be resolved",
            "check the name of the proxy",
        ),
    ] {
        for scheme in ["http", "https"] {
            let text = format!("server = '{scheme}://r.test'\nproxy = 'http://me:hunter2@{address}'\n");
            let (client, dir) = client_with(&[("r.test", text)]);
            let error = client.resolve(&reference("r.test", "app:1"), &amd64()).await.unwrap_err();
            let file = dir.path().join("r.test/hosts.toml").display().to_string();
            let (message, hint) = said(&error);
            assert_eq!(
                message,
                format!(
                    "pull manifest `1` of r.test/app: the proxy `http://{address}` (set by `proxy` in {file}) {why}"
                )
            );
            assert!(hint.contains(check), "{hint}");
            assert!(hint.ends_with(&format!(": correct or remove `proxy` in {file}")), "{hint}");
            assert!(!format!("{error:?}").contains("hunter2"));
        }
    }
}

#[tokio::test]
async fn a_variable_that_names_a_proxy_which_fails_is_named() {
    let proxies = ProxySettings {
        https: Some(set_by_variable("me:hunter2@127.0.0.1:1", "https_proxy")),
        no_proxy: Some("direct.invalid".to_owned()),
        ..ProxySettings::default()
    };
    let client = Client::new(Settings { proxies, ..settings() }).unwrap();
    let error = client.resolve(&reference("r.test", "app:1"), &amd64()).await.unwrap_err();
    let (message, hint) = said(&error);
    let part = "the proxy `127.0.0.1:1` (set by https_proxy) cannot be reached: cannot connect";
    assert!(message.ends_with(part), "{message}");
    assert!(
        hint.ends_with("correct or unset https_proxy, or list `r.test` in NO_PROXY to go without it"),
        "{hint}"
    );
    let error = client.resolve(&reference("direct.invalid", "app:1"), &amd64()).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::Unreachable { reason: Reason::Name, proxy: None, .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_proxy_that_refuses_and_one_without_tls_are_told_apart_from_the_registry() {
    let refusing = proxy(Image::new("amd64")).await;
    let (plain, server) = without_tls().await;
    for (address, why) in [
        (format!("http://{}", refusing.host), ") opened no connection to it"),
        (format!("https://{plain}"), ") cannot be reached: the TLS connection failed"),
    ] {
        let (client, _dir) = client_with(&[("r.test", format!("proxy = '{address}'\n"))]);
        let error = client.resolve(&reference("r.test", "app:1"), &amd64()).await.unwrap_err();
        assert!(error.to_string().ends_with(why), "{error}");
    }
    server.abort();
}
