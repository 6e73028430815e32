mod by_host;

use super::*;

fn config(registries: &str, daemon: &str) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let (conf, json) = (dir.path().join("registries.conf"), dir.path().join("daemon.json"));
    std::fs::write(&conf, registries).unwrap();
    std::fs::write(&json, daemon).unwrap();
    let settings = Settings { registries_conf: vec![conf], daemon_json: Some(json), ..Settings::default() };
    Config::load(&settings)
}

#[track_caller]
fn check(config: &Config, reference: &str, expected: &[(&str, &str)]) {
    let Candidates::Endpoints(found) = config.pull_candidates(&reference.parse().unwrap()) else {
        panic!("{reference} is blocked");
    };
    let found: Vec<_> = found.iter().map(|e| (e.host.as_str(), e.repository.as_str())).collect();
    assert_eq!(found, expected, "{reference}");
}

#[test]
fn without_configuration_a_reference_is_served_by_its_own_registry() {
    let config = Config::load(&Settings {
        registries_conf: vec!["/nonexistent/registries.conf".into()],
        daemon_json: Some("/nonexistent/daemon.json".into()),
        ..Settings::default()
    })
    .unwrap();
    check(&config, "node:10", &[("docker.io", "library/node")]);
    check(&config, "127.0.0.1:5000/a/b", &[("127.0.0.1:5000", "a/b")]);
}

#[test]
fn mirrors_come_in_order_before_the_registry() {
    let config = config(
        r#"
        unqualified-search-registries = ["example.com"]
        [[registry]]
        prefix = "docker.io"
        location = "docker.io"
        [[registry.mirror]]
        location = "127.0.0.1:5000/hub"
        [[registry.mirror]]
        location = "mirror.example.com"
        pull-from-mirror = "digest-only"
        "#,
        r#"{"registry-mirrors": ["http://cache.example.com:8080/", "https://b.example.com/x"]}"#,
    )
    .unwrap();
    check(
        &config,
        "node:10",
        &[
            ("127.0.0.1:5000", "hub/library/node"),
            ("cache.example.com:8080", "library/node"),
            ("b.example.com", "x/library/node"),
            ("docker.io", "library/node"),
        ],
    );
    let digest = format!("node@{}", rbuild_oci::Digest::of(b""));
    let Candidates::Endpoints(found) = config.pull_candidates(&digest.parse().unwrap()) else { panic!() };
    assert_eq!(found.len(), 5);
    assert_eq!(found[2].security, Security::Plain);
    let push = config.push_endpoint(&"node:10".parse().unwrap());
    assert_eq!(
        push,
        Candidates::Endpoints(vec![Endpoint {
            host: "docker.io".into(),
            repository: "library/node".into(),
            security: Security::Verified,
            api: Api::default(),
        }])
    );
}

#[test]
fn the_longest_prefix_wins_and_stops_at_component_borders() {
    let config = config(
        r#"
        [[registry]]
        prefix = "example.com"
        location = "one.test"
        [[registry]]
        prefix = "example.com/team"
        location = "two.test/moved"
        [[registry]]
        prefix = "*.example.org"
        location = "three.test"
        [[registry]]
        prefix = "bad.example.org"
        location = "bad.example.org"
        blocked = true
        "#,
        "",
    )
    .unwrap();
    check(&config, "example.com/x/y", &[("one.test", "x/y")]);
    check(&config, "example.com/team/app:1", &[("two.test", "moved/app")]);
    check(&config, "example.com/teams/app", &[("one.test", "teams/app")]);
    check(&config, "example.com:5000/team/app", &[("example.com:5000", "team/app")]);
    check(&config, "a.b.example.org/x", &[("three.test", "x")]);
    check(&config, "example.org/x", &[("example.org", "x")]);
    let blocked = config.pull_candidates(&"bad.example.org/x".parse().unwrap());
    assert_eq!(blocked, Candidates::Blocked("bad.example.org".into()));
}

#[test]
fn insecure_hosts_are_exactly_those_listed() {
    let config = config(
        "[[registry]]\nlocation = \"lab.test:5000\"\ninsecure = true",
        r#"{"insecure-registries": ["plain.test", "10.1.0.0/16"]}"#,
    )
    .unwrap();
    for (host, expected) in [
        ("lab.test:5000", Security::Insecure),
        ("lab.test", Security::Verified),
        ("plain.test", Security::Insecure),
        ("plain.test:5000", Security::Verified),
        ("10.1.2.3:80", Security::Insecure),
        ("10.2.2.3:80", Security::Verified),
        ("localhost:1", Security::Loopback),
    ] {
        assert_eq!(config.security_of(host), expected, "{host}");
    }
}

#[test]
fn drop_ins_replace_tables_of_the_same_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("registries.conf");
    let drop_in = dir.path().join("registries.conf.d");
    std::fs::create_dir(&drop_in).unwrap();
    std::fs::write(&conf, "[[registry]]\nlocation = \"a.test\"\n[[registry.mirror]]\nlocation=\"m1.test\"")
        .unwrap();
    std::fs::write(
        drop_in.join("10.conf"),
        "[[registry]]\nlocation = \"a.test\"\n[[registry.mirror]]\nlocation=\"m2.test\"",
    )
    .unwrap();
    std::fs::write(drop_in.join("ignored.txt"), "not toml [").unwrap();
    let missing = dir.path().join("missing.conf");
    let settings = Settings { registries_conf: vec![missing, conf], ..Settings::default() };
    check(&Config::load(&settings).unwrap(), "a.test/x", &[("m2.test", "x"), ("a.test", "x")]);
}

#[test]
fn malformed_files_are_errors_that_name_the_file() {
    assert!(
        matches!(config("[[registry]", ""), Err(ConfigError::Toml { path, .. }) if path.ends_with("registries.conf"))
    );
    assert!(matches!(
        config("[registries.search]\nregistries=['a']", ""),
        Err(ConfigError::OldFormat { .. })
    ));
    assert!(matches!(config("[[registry]]\nlocation='https://x'", ""), Err(ConfigError::Location { .. })));
    assert!(matches!(
        config("[[registry]]\nprefix='a.*.b'\nlocation='x.y'", ""),
        Err(ConfigError::Location { .. })
    ));
    assert!(matches!(config("", "{"), Err(ConfigError::Daemon { .. })));
    assert!(matches!(
        config("", r#"{"registry-mirrors":["http://u:p@x/"]}"#),
        Err(ConfigError::Location { .. })
    ));
}
