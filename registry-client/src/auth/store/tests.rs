use super::*;
use crate::auth::keychain::{Credentials, Keychain};

struct World {
    dir: tempfile::TempDir,
    settings: Settings,
}

impl World {
    fn new(config: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker/config.json");
        if let Some(text) = config {
            fs::create_dir(dir.path().join("docker")).unwrap();
            fs::write(&path, text).unwrap();
        }
        let settings = Settings {
            docker_config: Some(path),
            helper_path: Some(dir.path().into()),
            ..Settings::default()
        };
        Self { dir, settings }
    }

    fn path(&self) -> &Path {
        self.settings.docker_config.as_deref().unwrap()
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path()).unwrap()
    }

    fn mode(&self, path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    async fn store(&self, server: &str) -> Result<Kept, KeychainError> {
        store_credentials(&self.settings, &server.parse().unwrap(), "user", "pa:ss").await
    }

    async fn erase(&self, server: &str) -> Result<(), KeychainError> {
        erase_credentials(&self.settings, &server.parse().unwrap()).await
    }

    async fn find(&self, host: &str) -> Option<Credentials> {
        Keychain::new(&self.settings).find(&self.settings, host, "x", "pull").await.unwrap()
    }

    /// A helper that writes what it is told to `log` and exits with `status`.
    fn helper(&self, name: &str, status: u8, words: &str) {
        let path = self.dir.path().join(format!("docker-credential-{name}"));
        let log = self.dir.path().join("log");
        let text = format!(
            "#!/bin/sh\n{{ echo \"$1\"; /bin/cat; echo; }} >> '{}'\necho '{words}'\nexit {status}\n",
            log.display()
        );
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

fn basic() -> Option<Credentials> {
    Some(Credentials::Basic { user: "user".into(), password: "pa:ss".into() })
}

#[tokio::test]
async fn a_new_file_is_for_its_owner_alone() {
    let world = World::new(None);
    assert_eq!(world.store("r.example").await.unwrap(), Kept::File(world.path().to_owned()));
    assert_eq!(world.mode(world.path()), 0o600);
    assert_eq!(world.mode(world.path().parent().unwrap()), 0o700);
    assert_eq!(
        world.text(),
        "{\n\t\"auths\": {\n\t\t\"r.example\": {\n\t\t\t\"auth\": \"dXNlcjpwYTpzcw==\"\n\t\t}\n\t}\n}\n"
    );
    assert_eq!(world.find("r.example").await, basic());
    assert_eq!(fs::read_dir(world.path().parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
}

#[tokio::test]
async fn what_others_wrote_stays() {
    let before = r#"{"z": [1, {"y": null}], "auths": {"a.b": {"auth": "eDp5", "email": "e"}}, "HttpHeaders": {"A": "b"}}"#;
    let world = World::new(Some(before));
    fs::set_permissions(world.path(), fs::Permissions::from_mode(0o640)).unwrap();
    world.store("docker.io").await.unwrap();
    let mut expected: Value = serde_json::from_str(before).unwrap();
    expected["auths"]["https://index.docker.io/v1/"] = json!({"auth": "dXNlcjpwYTpzcw=="});
    let found: Value = serde_json::from_str(&world.text()).unwrap();
    assert_eq!(found, expected);
    let order: Vec<_> = found.as_object().unwrap().keys().cloned().collect();
    assert_eq!(order, ["z", "auths", "HttpHeaders"], "fields keep their order");
    assert_eq!(world.mode(world.path()), 0o640, "the mode is kept");
    assert_eq!(world.find("docker.io").await, basic());
    world.erase("index.docker.io").await.unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(&world.text()).unwrap(),
        serde_json::from_str::<Value>(before).unwrap()
    );
}

#[tokio::test]
async fn a_link_stays_a_link() {
    let world = World::new(Some("{}"));
    let real = world.dir.path().join("real.json");
    fs::rename(world.path(), &real).unwrap();
    std::os::unix::fs::symlink(&real, world.path()).unwrap();
    world.store("r.example").await.unwrap();
    assert!(fs::symlink_metadata(world.path()).unwrap().is_symlink());
    assert!(fs::read_to_string(real).unwrap().contains("r.example"));
}

#[test]
fn what_is_no_file_keeps_nothing_and_stays() {
    use std::os::unix::fs::FileTypeExt as _;
    let world = World::new(Some("{}"));
    let socket = world.dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    fs::remove_file(world.path()).unwrap();
    std::os::unix::fs::symlink(&socket, world.path()).unwrap();
    let error = replace(world.path(), b"{}").unwrap_err();
    assert!(error.to_string().contains("regular file"), "{error}");
    assert!(fs::metadata(&socket).unwrap().file_type().is_socket());
    assert!(fs::symlink_metadata(world.path()).unwrap().is_symlink());
}

#[tokio::test]
async fn a_broken_file_is_named_and_left_alone() {
    for text in ["{", "[]", r#"{"auths": 1}"#] {
        let world = World::new(Some(text));
        let error = world.store("r.example").await.unwrap_err();
        assert!(matches!(&error, KeychainError::Syntax { .. }), "{error:?}");
        assert!(error.to_string().contains("config.json"), "{error}");
        assert_eq!(world.text(), text);
    }
}

#[tokio::test]
async fn every_form_of_a_server_is_forgotten_and_nothing_else() {
    let world = World::new(Some(
        r#"{"auths": {"r.example": {}, "https://r.example": {}, "http://r.example": {}, "r.example:5000": {}, "x": {}}}"#,
    ));
    world.erase("r.example").await.unwrap();
    let found: Value = serde_json::from_str(&world.text()).unwrap();
    assert_eq!(found, json!({"auths": {"r.example:5000": {}, "x": {}}}));
    let before = fs::metadata(world.path()).unwrap().ino();
    world.erase("r.example").await.unwrap();
    assert_eq!(fs::metadata(world.path()).unwrap().ino(), before, "nothing to forget writes nothing");
}

#[tokio::test]
async fn a_helper_keeps_the_secret_and_the_file_says_so() {
    let world = World::new(Some(r#"{"credsStore": "all", "credHelpers": {"own.example": "own"}}"#));
    world.helper("all", 0, "");
    world.helper("own", 0, "");
    assert_eq!(world.store("r.example").await.unwrap(), Kept::Helper("all".into()));
    assert_eq!(world.store("own.example").await.unwrap(), Kept::Helper("own".into()));
    assert!(!world.text().contains("dXNl"), "no secret in the file");
    let found: Value = serde_json::from_str(&world.text()).unwrap();
    assert_eq!(found["auths"], json!({"r.example": {}, "own.example": {}}));
    let log = world.log();
    assert!(log.starts_with("store\n"), "{log}");
    assert!(log.contains(r#"{"ServerURL":"r.example","Username":"user","Secret":"pa:ss"}"#), "{log}");
    world.erase("r.example").await.unwrap();
    assert!(world.log().contains("erase\nr.example\n") && world.log().contains("erase\nhttps://r.example\n"));
    assert_eq!(serde_json::from_str::<Value>(&world.text()).unwrap()["auths"], json!({"own.example": {}}));
}

#[tokio::test]
async fn a_helper_that_fails_keeps_the_file_as_it_was() {
    let text = r#"{"credsStore": "bad"}"#;
    let world = World::new(Some(text));
    world.helper("bad", 1, "locked: pa:ss is not taken");
    let error = world.store("r.example").await.unwrap_err();
    let KeychainError::HelperRefused { words, .. } = &error else { panic!("{error:?}") };
    assert!(words.contains("locked") && !words.contains("pa:ss"), "{words}");
    assert_eq!(world.text(), text);
    // What a helper does not know needs no erasing.
    world.helper("bad", 1, "credentials not found in native keychain");
    world.erase("r.example").await.unwrap();
    let missing = World::new(Some(r#"{"credsStore": "absent"}"#));
    assert!(matches!(missing.store("r.example").await, Err(KeychainError::HelperStart { .. })));
}
