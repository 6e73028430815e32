use super::*;

fn basic(user: &str, password: &str) -> Option<Credentials> {
    Some(Credentials::Basic { user: user.into(), password: password.into() })
}

fn auth(user: &str, password: &str) -> String {
    STANDARD.encode(format!("{user}:{password}"))
}

async fn find(
    settings: &Settings,
    host: &str,
    repository: &str,
) -> Result<Option<Credentials>, KeychainError> {
    Keychain::new(settings).find(settings, host, repository, "pull").await
}

fn docker(dir: &tempfile::TempDir, text: &str) -> Settings {
    let path = dir.path().join("config.json");
    std::fs::write(&path, text).unwrap();
    Settings { docker_config: Some(path), ..Settings::default() }
}

#[tokio::test]
async fn hub_credentials_are_found_under_the_key_docker_writes() {
    let dir = tempfile::tempdir().unwrap();
    let settings =
        docker(&dir, &format!(r#"{{"auths":{{"{HUB_KEY}":{{"auth":"{}"}}}}}}"#, auth("me", "a:b")));
    assert_eq!(find(&settings, "docker.io", "library/x").await.unwrap(), basic("me", "a:b"));
    assert_eq!(find(&settings, "dhi.io", "x").await.unwrap(), basic("me", "a:b"));
    assert_eq!(find(&settings, "ghcr.io", "x").await.unwrap(), None);
}

#[tokio::test]
async fn keys_with_scheme_and_path_are_legacy_names_of_a_host() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        r#"{{"auths":{{"https://r.test:5000/v2/":{{"auth":"{}"}},"r.test/team":{{"auth":"{}"}}}}}}"#,
        auth("u", "p\0\0"),
        auth("t", "p"),
    );
    let settings = docker(&dir, &text);
    assert_eq!(find(&settings, "r.test:5000", "x").await.unwrap(), basic("u", "p"));
    assert_eq!(find(&settings, "r.test", "team/x").await.unwrap(), None, "Docker's file has no namespaces");
}

#[tokio::test]
async fn the_longest_namespace_wins_in_containers_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("auth.json");
    let entry = |key: &str| format!(r#""{key}":{{"auth":"{}"}}"#, auth(key, "p"));
    let all = [entry("r.test"), entry("r.test/ns"), entry("r.test/ns/user/image")].join(",");
    std::fs::write(&path, format!(r#"{{"auths":{{{all}}}}}"#)).unwrap();
    let settings =
        Settings { containers_auth_files: vec!["/nonexistent".into(), path], ..Settings::default() };
    for (repository, key) in
        [("ns/user/image", "r.test/ns/user/image"), ("ns/user/other", "r.test/ns"), ("nsx/y", "r.test")]
    {
        assert_eq!(find(&settings, "r.test", repository).await.unwrap(), basic(key, "p"), "{repository}");
    }
}

#[tokio::test]
async fn tokens_are_recognised_and_the_variable_comes_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = docker(
        &dir,
        r#"{"auths":{"a.test":{"identitytoken":"id"},"b.test":{"registrytoken":"reg"},"c.test":{}}}"#,
    );
    assert_eq!(find(&settings, "a.test", "x").await.unwrap(), Some(Credentials::IdentityToken("id".into())));
    assert_eq!(find(&settings, "b.test", "x").await.unwrap(), Some(Credentials::RegistryToken("reg".into())));
    assert_eq!(find(&settings, "c.test", "x").await.unwrap(), None);
    settings.docker_auth_config =
        Some(format!(r#"{{"auths":{{"a.test":{{"auth":"{}"}}}},"credsStore":"never"}}"#, auth("ci", "x")));
    assert_eq!(find(&settings, "a.test", "x").await.unwrap(), basic("ci", "x"));
    assert!(find(&settings, "b.test", "x").await.unwrap().is_some(), "other hosts fall through to the file");
}

#[tokio::test]
async fn malformed_files_are_errors_that_name_the_file_and_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let error = find(&docker(&dir, "{\n\"auths\": hunter2}"), "a.test", "x").await.unwrap_err();
    assert!(matches!(&error, KeychainError::Syntax { line: 2, .. }), "{error:?}");
    assert!(error.to_string().contains("config.json"));
    assert!(!format!("{error:?}").contains("hunter2"));
    let bad = docker(&dir, r#"{"auths":{"a.test":{"auth":"%%%"}}}"#);
    assert!(matches!(find(&bad, "a.test", "x").await, Err(KeychainError::Auth { .. })));
    let empty_user = docker(&dir, &format!(r#"{{"auths":{{"a.test":{{"auth":"{}"}}}}}}"#, auth("", "p")));
    assert!(matches!(find(&empty_user, "a.test", "x").await, Err(KeychainError::Auth { .. })));
}

/// Installs an executable script as a helper.
fn helper(dir: &tempfile::TempDir, name: &str, script: &str) {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.path().join(format!("docker-credential-{name}"));
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn helpers_answer_for_their_host_and_are_asked_once() {
    let dir = tempfile::tempdir().unwrap();
    helper(
        &dir,
        "one",
        &format!(
            r#"read server; echo "$server" >> {0}/calls; echo secret-on-stderr >&2
            printf '{{"ServerURL":"%s","Username":"u","Secret":"s"}}' "$server""#,
            dir.path().display()
        ),
    );
    helper(&dir, "none", "echo 'credentials not found in native keychain'; exit 1");
    helper(&dir, "token", r#"echo '{"Username":"<token>","Secret":"refresh"}'"#);
    helper(&dir, "broken", "echo not json hunter2");
    helper(&dir, "fails", "echo 'vault is locked'; exit 1");
    let mut settings = docker(
        &dir,
        r#"{"credsStore":"none","credHelpers":{"a.test":"one","t.test":"token","b.test":"broken","f.test":"fails",
            "m.test":"missing","e.test":"../evil"}}"#,
    );
    settings.helper_path = Some(dir.path().into());
    let keychain = Keychain::new(&settings);
    let find = |host: &'static str| keychain.find(&settings, host, "x", "pull");
    assert_eq!(find("a.test").await.unwrap(), basic("u", "s"));
    assert_eq!(find("a.test").await.unwrap(), basic("u", "s"));
    assert_eq!(std::fs::read_to_string(dir.path().join("calls")).unwrap(), "a.test\n");
    assert_eq!(find("t.test").await.unwrap(), Some(Credentials::IdentityToken("refresh".into())));
    assert_eq!(find("other.test").await.unwrap(), None);
    let error = find("b.test").await.unwrap_err();
    assert!(matches!(error, KeychainError::HelperAnswer { .. }) && !format!("{error:?}").contains("hunter2"));
    assert!(
        matches!(find("f.test").await, Err(KeychainError::HelperRefused { words, .. }) if words == "vault is locked")
    );
    let missing = find("m.test").await.unwrap_err();
    assert!(missing.to_string().contains("docker-credential-missing") && missing.hint().is_some());
    assert!(matches!(find("e.test").await, Err(KeychainError::HelperName { .. })));
}
