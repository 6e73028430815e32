use super::*;
use crate::Settings;
use crate::config::{Dial, Pair, Papers};
use crate::endpoint::{Api, Endpoint, security};
use crate::transport::clients::{Clients, Route};

fn target() -> Target {
    Target { host: "r.test".into(), repository: "app".into(), action: "pull".into() }
}

fn direct(trust: Trust, guard: Option<AddressClass>) -> Route {
    Route { trust, guard, via: Via::Direct, connect: Settings::default().deadlines.connect }
}

/// Judges `url` as an address named by the registry `host`, which was found in `class`.
async fn judge(
    settings: &Settings,
    host: &str,
    class: AddressClass,
    url: &str,
) -> Result<Security, RegistryError> {
    let transport = Transport::new(settings.clone());
    let endpoint = Endpoint {
        host: host.to_owned(),
        repository: String::new(),
        security: security(host, false),
        api: Api::default(),
    };
    let state = Host::new(&endpoint, 1);
    state.found_at(class);
    let base = Url::parse(&format!("https://{host}/")).unwrap();
    transport.check(&state, &Url::parse(url).unwrap(), &base, &target()).await
}

fn violated(result: Result<Security, RegistryError>) -> Violation {
    match result {
        Err(RegistryError::Protocol { violation, .. }) => violation,
        other => panic!("{other:?}"),
    }
}

/// R9, R10: internal addresses of every kind.
#[tokio::test]
async fn a_public_registry_cannot_aim_us_inside() {
    let settings = Settings::default();
    for url in [
        "https://127.0.0.1/token",
        "https://localhost:5000/token",
        "https://[::1]/token",
        "https://169.254.169.254/latest/meta-data",
        "https://10.0.0.1/",
        "https://[::ffff:192.168.0.1]/",
        "https://0.0.0.0/",
        // Numbers in other bases are addresses too; the URL parser normalises them.
        "https://0x7f000001/",
        "https://2130706433/",
    ] {
        let found = violated(judge(&settings, "r.test", AddressClass::Public, url).await);
        assert!(matches!(found, Violation::InternalAddress(_)), "{url}: {found:?}");
    }
    assert!(judge(&settings, "r.test", AddressClass::Public, "https://auth.test/").await.is_ok());
    assert!(judge(&settings, "r.test", AddressClass::Private, "https://10.0.0.1/").await.is_ok());
    let metadata = judge(&settings, "localhost", AddressClass::Loopback, "https://169.254.169.254/").await;
    assert!(matches!(violated(metadata), Violation::InternalAddress(_)));
    let allowed = Settings { internal_hosts: vec!["10.0.0.1:8443".into()], ..Settings::default() };
    assert!(judge(&allowed, "r.test", AddressClass::Public, "https://10.0.0.1:8443/").await.is_ok());
    assert!(judge(&allowed, "r.test", AddressClass::Public, "https://10.0.0.1/").await.is_err());
}

/// R8, R9: downgrades, addresses that are none.
#[tokio::test]
async fn https_never_becomes_http_and_odd_addresses_are_refused() {
    let settings = Settings::default();
    let found = violated(judge(&settings, "r.test", AddressClass::Public, "http://auth.test/t?sig=s3").await);
    assert_eq!(found, Violation::Downgrade("http://auth.test/t".into()), "signed queries are not printed");
    for url in ["ftp://auth.test/", "file:///etc/passwd", "https://user:hunter2@auth.test/", "data:,x"] {
        let found = violated(judge(&settings, "r.test", AddressClass::Public, url).await);
        assert!(matches!(&found, Violation::Address(text) if !text.contains("hunter2")), "{url}: {found:?}");
    }
    let insecure = Settings { insecure: vec!["auth.test".into()], ..Settings::default() };
    assert!(judge(&insecure, "r.test", AddressClass::Public, "http://auth.test/").await.is_ok());
}

#[tokio::test]
async fn names_that_resolve_inside_are_refused_while_connecting() {
    // `x.localhost` stands for any name an attacker lets point to this machine.
    let transport = Transport::new(Settings::default());
    let route = direct(Trust::None, Some(AddressClass::Public));
    let client = transport.clients().await.unwrap().get(&route).unwrap_or_else(|_| panic!("no client"));
    let error = client.get("http://x.localhost:1/").send().await.unwrap_err();
    let error = unreachable(&target(), error);
    assert!(
        matches!(&error, RegistryError::Protocol { violation: Violation::InternalAddress(name), .. } if name == "x.localhost"),
        "{error:?}"
    );
}

#[tokio::test]
async fn loopback_is_never_reached_through_a_proxy() {
    let http = Some(crate::tests::set_by_variable("proxy.test:3128", "HTTP_PROXY"));
    let proxies =
        crate::ProxySettings { http, https: None, no_proxy: Some(".inside.test,10.0.0.0/8".into()) };
    let mut config = crate::config::Config::default();
    config.proxies = proxies;
    let clients = Clients::new(&Settings::default(), &config);
    let proxied = |url: &str| clients.via(None, &Url::parse(url).unwrap()) == Via::Settings;
    assert!(proxied("http://r.test/"));
    assert!(!proxied("https://r.test/"), "no proxy is set for https");
    for url in ["http://localhost:5000/", "http://127.0.0.1/", "http://[::1]:5000/", "http://a.localhost/"] {
        assert!(!proxied(url), "{url}");
    }
    for url in ["http://a.inside.test/", "http://10.1.2.3:5000/"] {
        assert!(!proxied(url), "exempt, so that its addresses are judged: {url}");
    }
}

#[tokio::test]
async fn the_default_s_papers_are_for_hosts_of_which_nothing_is_said_and_its_certificate_for_registries_alone()
 {
    let papers = |name: &str, pairs: &[&str]| Papers {
        authorities: vec![name.into()],
        pairs: pairs.iter().map(|name| Pair { certificate: name.into(), key: None }).collect(),
    };
    let mut config = crate::config::Config::default();
    config.papers.insert("*".to_owned(), papers("all.pem", &["me.pem"]));
    config.papers.insert("own.test".to_owned(), papers("own.pem", &[]));
    config.dials.extend(["own.test", "file.test"].map(|host| (host.to_owned(), Dial::default())));
    let clients = Clients::new(&Settings::default(), &config);
    let trust = |host: &str, is_own| clients.registry_trust(host.to_owned(), is_own).ok().unwrap();
    let some = |papers| Trust::Papers(std::sync::Arc::new(papers));
    assert_eq!(trust("any.test", true), some(papers("all.pem", &["me.pem"])));
    assert_eq!(trust("auth.test", false), some(papers("all.pem", &[])), "a token server");
    assert_eq!(trust("own.test", true), some(papers("own.pem", &[])));
    assert_eq!(trust("file.test", true), Trust::System, "its file says nothing of papers");
    assert_eq!(clients.trust_for("any.test".to_owned()).ok().unwrap(), Trust::System, "no registry");
}

/// R7: TLS failures are final.
#[tokio::test]
async fn tls_failures_are_told_apart_from_failed_connections() {
    let (address, server) = crate::tests::without_tls().await;
    let transport = Transport::new(Settings::default());
    let route = direct(Trust::Unverified, None);
    let client = transport.clients().await.unwrap().get(&route).unwrap_or_else(|_| panic!("no client"));
    let error = unreachable(&target(), client.get(format!("https://{address}/")).send().await.unwrap_err());
    server.abort();
    assert!(matches!(error, RegistryError::Unreachable { reason: Reason::Tls, .. }), "{error:?}");
    let error = unreachable(&target(), client.get("https://127.0.0.1:1/").send().await.unwrap_err());
    assert!(matches!(error, RegistryError::Unreachable { reason: Reason::Connect, .. }), "{error:?}");
}
