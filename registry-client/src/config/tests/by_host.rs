//! `hosts.toml` and `buildkitd.toml`.

use std::fs;
use std::path::Path;

use super::super::*;
use super::check;

fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn config(files: &[(&str, &str)]) -> Result<(Config, tempfile::TempDir), ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        write(dir.path(), name, text);
    }
    let settings = Settings {
        certs_dirs: vec![dir.path().join("absent"), dir.path().join("certs.d"), dir.path().join("second")],
        buildkitd_toml: vec![dir.path().join("none.toml"), dir.path().join("buildkitd.toml")],
        ..Settings::default()
    };
    Ok((Config::load(&settings)?, dir))
}

#[test]
fn hosts_toml_gives_mirrors_in_the_order_of_the_file() {
    let (config, dir) = config(&[
        (
            "certs.d/docker.io/hosts.toml",
            r#"
            server = "https://registry-1.docker.io"
            [host."https://z.test:5000"]
              capabilities = ["pull", "resolve"]
              ca = "z.crt"
              client = [["me.cert", "/keys/me.key"]]
            [host."http://a.test/v2/hub"]
              override_path = true
              [host."http://a.test/v2/hub".header]
                x = "y"
            [host."https://digests.test"]
              capabilities = ["pull"]
              skip_verify = true
            [host."https://push-only.test"]
              capabilities = ["push"]
            [host."https://registry-1.docker.io"]
            "#,
        ),
        ("second/docker.io/hosts.toml", "server = \"https://ignored.test\""),
        (
            "certs.d/own.test_5000_/hosts.toml",
            "server = \"https://elsewhere.test/v2/sub\"\nskip_verify = true",
        ),
        ("certs.d/_default/hosts.toml", "[host.\"https://all.test\"]"),
        ("certs.d/plain.test/ca.crt", "no file of hosts"),
    ])
    .unwrap();
    let tagged =
        [("z.test:5000", "library/node"), ("a.test", "hub/library/node"), ("docker.io", "library/node")];
    check(&config, "node:10", &tagged);
    let pinned = format!("node@{}", rbuild_oci::Digest::of(b""));
    let by_digest = [tagged[0], tagged[1], ("digests.test", "library/node"), tagged[2]];
    check(&config, &pinned, &by_digest);
    check(&config, "own.test:5000/a", &[("elsewhere.test", "sub/a")]);
    check(&config, "other.test/a", &[("all.test", "a"), ("other.test", "a")]);
    assert_eq!(config.security_of("a.test"), Security::Plain);
    assert_eq!(config.security_of("digests.test"), Security::Unverified);
    assert_eq!(config.security_of("elsewhere.test"), Security::Unverified);
    assert_eq!(config.security_of("z.test:5000"), Security::Verified);
    let papers = &config.papers["z.test:5000"];
    assert_eq!(papers.authorities, [dir.path().join("certs.d/docker.io/z.crt")]);
    assert_eq!(papers.pairs[0].certificate, dir.path().join("certs.d/docker.io/me.cert"));
    assert_eq!(papers.pairs[0].key.as_deref(), Some(Path::new("/keys/me.key")));
    let Candidates::Endpoints(push) = config.push_endpoint(&"node".parse().unwrap()) else { panic!() };
    assert_eq!(push[0].host, "docker.io", "mirrors take no part in pushes");
}

#[test]
fn hosts_toml_says_where_the_api_of_a_mirror_is_and_what_it_is_told() {
    let (config, _dir) = config(&[(
        "certs.d/a.test/hosts.toml",
        r#"
        [host."https://b.test/proxy"]
        [host."https://c.test/proxy/v2"]
        [host."https://d.test/api/docker"]
          override_path = true
        [host."https://e.test"]
          override_path = true
        [host."https://f.test/v2/sub"]
          override_path = true
          [host."https://f.test/v2/sub".header]
            x-one = "1"
            x-two = ["2", "3"]
            authorization = "no"
            "no header" = "4"
        [host."https://g.test"]
        "#,
    )])
    .unwrap();
    let Candidates::Endpoints(found) = config.pull_candidates(&"a.test/x:1".parse().unwrap()) else {
        panic!()
    };
    let paths: Vec<String> = found
        .iter()
        .map(|place| {
            format!("{}{}", place.host, place.api.path(&format!("/v2/{}/manifests/1", place.repository)))
        })
        .collect();
    assert_eq!(
        paths,
        [
            "b.test/proxy/v2/x/manifests/1?ns=a.test",
            "c.test/proxy/v2/x/manifests/1?ns=a.test",
            "d.test/api/docker/x/manifests/1?ns=a.test",
            "e.test/x/manifests/1?ns=a.test",
            "f.test/v2/sub/x/manifests/1?ns=a.test",
            "g.test/v2/x/manifests/1?ns=a.test",
            "a.test/v2/x/manifests/1",
        ]
    );
    let headers = config.headers_for("f.test");
    let of = |name: &str| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!((of("x-one"), of("x-two")), (vec!["1"], vec!["2", "3"]));
    assert_eq!(headers.len(), 3, "what authorizes is not for a file to say");
    assert!(config.headers_for("g.test").is_empty());
}

#[test]
fn a_default_without_a_server_is_for_hosts_that_no_file_names() {
    let (config, dir) = config(&[
        (
            "certs.d/_default/hosts.toml",
            r#"
            ca = "corporate.pem"
            skip_verify = true
            dial_timeout = "3s"
            [header]
              x-team = "a"
            [host."https://mirror.test"]
            "#,
        ),
        (
            "certs.d/own.test/hosts.toml",
            "[host.\"https://other.test\"]\n[host.\"https://other.test\".header]\nx = \"y\"",
        ),
    ])
    .unwrap();
    assert_eq!(config.papers["*"].authorities, [dir.path().join("certs.d/_default/corporate.pem")]);
    for host in ["any.test", "docker.io", "10.0.0.1:5000"] {
        assert_eq!(config.headers_for(host)["x-team"], "a", "{host}");
        assert!(!config.is_named(host), "{host}");
        assert_eq!(config.security_of(host), Security::Verified, "{host}: nobody named it as insecure");
    }
    for host in ["own.test", "other.test", "mirror.test"] {
        assert!(config.is_named(host) && !config.headers_for(host).contains_key("x-team"), "{host}");
    }
    check(&config, "any.test/a", &[("mirror.test", "a"), ("any.test", "a")]);
}

#[test]
fn buildkitd_toml_gives_mirrors_and_how_hosts_are_spoken_to() {
    let (config, dir) = config(&[(
        "buildkitd.toml",
        r#"
        debug = true
        [worker.oci]
          max-parallelism = 4
        [registry."docker.io"]
          mirrors = ["mirror.test/hub", "http://cache.test:5000"]
        [registry."mirror.test"]
          insecure = true
          ca = ["/certs/ca.pem"]
          [[registry."mirror.test".keypair]]
            key = "key.pem"
            cert = "cert.pem"
        [registry."plain.test"]
          http = true
        [registry."either.test"]
          http = true
          insecure = true
        "#,
    )])
    .unwrap();
    check(
        &config,
        "node:10",
        &[
            ("mirror.test", "hub/library/node"),
            ("cache.test:5000", "library/node"),
            ("docker.io", "library/node"),
        ],
    );
    for (host, security) in [
        ("mirror.test", Security::Unverified),
        ("cache.test:5000", Security::Plain),
        ("plain.test", Security::Plain),
        ("either.test", Security::Insecure),
        ("docker.io", Security::Verified),
    ] {
        assert_eq!(config.security_of(host), security, "{host}");
    }
    let papers = &config.papers["mirror.test"];
    assert_eq!(papers.authorities, [Path::new("/certs/ca.pem")]);
    assert_eq!(papers.pairs[0].key.as_deref(), Some(&*dir.path().join("key.pem")));
}

#[test]
fn wrong_files_of_hosts_are_named() {
    let error = |name: &str, text: &str| config(&[(name, text)]).map(|_| ()).unwrap_err().to_string();
    assert!(error("certs.d/a.test/hosts.toml", "server =").contains("is not a valid hosts.toml"));
    assert!(
        error("certs.d/a.test/hosts.toml", "[host.\"https://x.test\"]\nca = 7").contains("a.test/hosts.toml")
    );
    assert!(error("certs.d/a.test/hosts.toml", "server = \"https://x y\"").contains("`https://x y`"));
    assert!(
        error("buildkitd.toml", "[registry.\"x\"]\nmirrors = 1").contains("is not a valid buildkitd.toml")
    );
    assert!(error("buildkitd.toml", "[registry.x]\nmirrors = [\"a b\"]").contains("`a b`"));
}
