use std::fs;

use rbuild_oci::media_type;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

/// A layout directory in the making.
struct Dir(TempDir);

impl Dir {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        Self(dir)
    }

    fn blob(&self, kind: &str, content: &Value) -> Value {
        let bytes = content.to_string();
        let digest = Digest::of(bytes.as_bytes());
        fs::write(self.0.path().join("blobs/sha256").join(digest.hex()), &bytes).unwrap();
        json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
    }

    /// An image's descriptor, without its platform as skopeo writes it.
    fn image(&self, architecture: &str, which: &str) -> Value {
        let config = json!({"os": "linux", "architecture": architecture, "config": {"Env": [which]},
            "rootfs": {"type": "layers", "diff_ids": []}});
        let config = self.blob(media_type::OCI_CONFIG, &config);
        let manifest = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config,
            "layers": []});
        self.blob(media_type::OCI_MANIFEST, &manifest)
    }

    /// What the image for a platform is, by its variable: the whole error otherwise.
    fn find(&self, entries: &[Value], tag: Option<&str>, platform: &str) -> Result<String, String> {
        self.look(entries, tag, None, platform)
    }

    fn look(
        &self,
        entries: &[Value],
        tag: Option<&str>,
        digest: Option<&str>,
        platform: &str,
    ) -> Result<String, String> {
        let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
        fs::write(self.0.path().join("index.json"), index).unwrap();
        let layout = Layout::open(self.0.path()).unwrap();
        let digest = digest.map(|digest| digest.parse().unwrap());
        match layout.image(tag, digest, &platform.parse().unwrap()) {
            Ok(image) => Ok(serde_json::from_slice::<Value>(&image.config_bytes).unwrap()["config"]["Env"]
                [0]
            .as_str()
            .unwrap()
            .to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

fn index(entries: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": entries})
}

fn named(mut descriptor: Value, tag: &str) -> Value {
    descriptor["annotations"] = json!({REF_NAME: tag});
    descriptor
}

fn stated(mut descriptor: Value, architecture: &str) -> Value {
    descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
    descriptor
}

fn digest(descriptor: &Value) -> &str {
    descriptor["digest"].as_str().unwrap()
}

#[test]
fn entries_of_one_name_are_told_apart_by_platform_stated_or_not() {
    let dir = Dir::new();
    let (arm, amd) = (dir.image("arm64", "arm"), dir.image("amd64", "amd"));
    let inner = json!({"schemaVersion": 2, "manifests": [stated(dir.image("riscv64", "risc"), "riscv64")]});
    let inner = dir.blob(media_type::OCI_INDEX, &inner);
    let plain = [named(arm.clone(), "x"), named(amd.clone(), "x"), named(inner, "x")];
    let with_platform = [named(stated(arm, "arm64"), "x"), named(stated(amd, "amd64"), "x")];
    for entries in [&plain[..], &with_platform[..]] {
        for tag in [Some("x"), None] {
            assert_eq!(dir.find(entries, tag, "linux/amd64").as_deref(), Ok("amd"));
            assert_eq!(dir.find(entries, tag, "linux/arm64").as_deref(), Ok("arm"));
            let none = dir.find(entries, tag, "linux/s390x").unwrap_err();
            assert!(none.ends_with("has no image for linux/s390x"), "{none}");
        }
    }
    assert_eq!(dir.find(&plain, Some("x"), "linux/riscv64").as_deref(), Ok("risc"));
    let alone = [named(dir.image("arm64", "arm"), "x")];
    assert_eq!(dir.find(&alone, Some("x"), "linux/amd64").as_deref(), Ok("arm"), "the only one is meant");
}

#[test]
fn two_images_of_one_name_and_platform_are_refused_with_their_digests() {
    let dir = Dir::new();
    let (old, new, arm) = (dir.image("amd64", "old"), dir.image("amd64", "new"), dir.image("arm64", "arm"));
    let entries = [named(old.clone(), "x"), named(stated(new.clone(), "amd64"), "x"), named(arm, "x")];
    let error = dir.find(&entries, Some("x"), "linux/amd64").unwrap_err();
    let words = format!("has 2 images `x` for linux/amd64: {}, {}", digest(&old), digest(&new));
    assert!(error.ends_with(&words), "{error}");
    assert_eq!(dir.find(&entries, Some("x"), "linux/arm64").as_deref(), Ok("arm"));
    let twice = [named(old.clone(), "x"), named(old.clone(), "x")];
    assert_eq!(dir.find(&twice, Some("x"), "linux/amd64").as_deref(), Ok("old"), "one image, listed twice");
    let inner = json!({"schemaVersion": 2, "manifests": [stated(old.clone(), "amd64")]});
    let inner = named(dir.blob(media_type::OCI_INDEX, &inner), "x");
    let both = [named(old, "x"), inner];
    assert_eq!(dir.find(&both, Some("x"), "linux/amd64").as_deref(), Ok("old"), "alone, and in an index");
}

/// What skopeo and buildah leave of an image whose name another got, and what buildx means without a tag.
#[test]
fn without_a_tag_the_only_image_is_meant_or_latest() {
    let dir = Dir::new();
    let (old, new) = (dir.image("amd64", "old"), dir.image("amd64", "new"));
    let entries = [old.clone(), named(new.clone(), "latest")];
    assert_eq!(dir.find(&entries, None, "linux/amd64").as_deref(), Ok("new"));
    assert_eq!(dir.find(std::slice::from_ref(&old), None, "linux/amd64").as_deref(), Ok("old"));
    let error = dir.find(&[named(old.clone(), "1"), named(new.clone(), "2")], None, "linux/amd64");
    let words = format!("has 2 images for linux/amd64: 1 ({}), 2 ({})", digest(&old), digest(&new));
    assert!(error.as_ref().is_err_and(|error| error.ends_with(&words)), "{error:?}");
    let mut about = named(dir.image("unknown", "attestation"), "latest");
    about["annotations"]["vnd.docker.reference.type"] = json!("attestation-manifest");
    assert_eq!(dir.find(&[about, old], None, "linux/amd64").as_deref(), Ok("old"));
}

#[test]
fn a_digest_is_found_in_nested_indexes_verified_and_within_limits() {
    let dir = Dir::new();
    let (arm, amd) = (dir.image("arm64", "arm"), dir.image("amd64", "amd"));
    let inner = index(&[stated(arm.clone(), "arm64"), stated(amd.clone(), "amd64")]);
    let inner = dir.blob(media_type::OCI_INDEX, &inner);
    let absent = json!({"mediaType": media_type::OCI_INDEX, "digest": Digest::of(b"absent"), "size": 6});
    let outer = dir.blob(media_type::OCI_INDEX, &index(&[absent, inner.clone()]));
    let look =
        |entries: &[Value], wanted: &Value| dir.look(entries, None, Some(digest(wanted)), "linux/amd64");
    // The platform is what the digest says.
    assert_eq!(look(std::slice::from_ref(&outer), &arm).as_deref(), Ok("arm"));
    assert_eq!(look(std::slice::from_ref(&outer), &amd).as_deref(), Ok("amd"));
    assert_eq!(
        look(std::slice::from_ref(&outer), &inner).as_deref(),
        Ok("amd"),
        "an index is for the wanted platform"
    );
    let stranger = dir.image("amd64", "in no index");
    assert!(look(std::slice::from_ref(&outer), &stranger).unwrap_err().contains("has no image `sha256:"));

    let mut deep = outer;
    for _ in 0..INDEX_DEPTH_MAX {
        deep = dir.blob(media_type::OCI_INDEX, &index(&[deep]));
    }
    assert!(look(&[deep], &amd).unwrap_err().contains("has no image `sha256:"), "too deep");
    let many: Vec<Value> = (0..=INDEXES_MAX)
        .map(|n| {
            let annotated = json!({"schemaVersion": 2, "manifests": [], "annotations": {"n": n.to_string()}});
            dir.blob(media_type::OCI_INDEX, &annotated)
        })
        .collect();
    let half = INDEXES_MAX / 2;
    let halves = [&many[..half], &many[half..]].map(|part| dir.blob(media_type::OCI_INDEX, &index(part)));
    assert!(look(&halves, &amd).unwrap_err().contains("more than 100 nested indexes"));

    let path = dir.0.path().join("blobs/sha256").join(digest(&inner).strip_prefix("sha256:").unwrap());
    fs::write(path, index(&[stated(stranger, "amd64")]).to_string()).unwrap();
    assert!(look(&[inner], &amd).unwrap_err().contains("does not match its digest"));
}
