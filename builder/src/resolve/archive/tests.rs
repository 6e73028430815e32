use rbuild_cache::store::StoreOptions;
use serde_json::{Value, json};

use super::*;
use crate::assemble::attestation::REFERENCE_TYPE;

/// An archive under construction: members in order.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn add(mut self, name: &str, kind: tar::EntryType, link: &str, body: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(body.len() as u64);
        let field = &mut header.as_mut_bytes()[..name.len()];
        field.copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(body);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, body: impl AsRef<[u8]>) -> Self {
        self.add(name, tar::EntryType::Regular, "", body.as_ref())
    }

    fn json(self, name: &str, body: &Value) -> Self {
        self.file(name, body.to_string())
    }

    fn blob(self, body: impl AsRef<[u8]>) -> Self {
        let name = format!("blobs/sha256/{}", Digest::of(body.as_ref()).hex());
        self.file(&name, body)
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.add(name, tar::EntryType::Symlink, target, b"")
    }

    fn read(self) -> Result<Vec<ArchivedImage>, ArchiveError> {
        self.read_for(None)
    }

    fn read_for(mut self, wanted: Option<&str>) -> Result<Vec<ArchivedImage>, ArchiveError> {
        self.0.extend_from_slice(&[0; 1024]);
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions { id_map: "test".into(), durable: false };
        let store = Store::open(&dir.path().join("store"), options).unwrap();
        let lease = store.lease().unwrap();
        let cancel = Cancel::new().unwrap();
        let wanted = wanted.map(|wanted| wanted.parse().unwrap());
        let host = "linux/amd64".parse().unwrap();
        read(&store, &lease, self.0.as_slice(), wanted.as_ref(), &host, &cancel)
    }
}

const LAYER: &[u8] = b"a layer, which is judged when it is unpacked";

fn config(architecture: &str, layers: usize) -> Value {
    let diff_ids = vec![Digest::of(LAYER); layers];
    json!({"os": "linux", "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": diff_ids}})
}

fn descriptor(kind: &str, bytes: &str) -> Value {
    json!({"mediaType": kind, "digest": Digest::of(bytes.as_bytes()), "size": bytes.len()})
}

/// Adds an image's blobs; gives its manifest's descriptor.
fn image(tar: Tar, architecture: &str) -> (Tar, Value) {
    let (config, manifest) = manifest_of(&config(architecture, 1).to_string());
    let found = descriptor(media_type::OCI_MANIFEST, &manifest);
    (tar.blob(config).blob(LAYER).blob(manifest), found)
}

/// Config and manifest of an image with one layer.
fn manifest_of(config: &str) -> (String, String) {
    let layer = json!({"mediaType": media_type::OCI_LAYER, "digest": Digest::of(LAYER), "size": LAYER.len()});
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": descriptor(media_type::OCI_CONFIG, config), "layers": [layer]});
    (config.to_owned(), manifest.to_string())
}

fn index(manifests: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests})
}

fn named(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] = json!({IMAGE_NAME: name});
    descriptor
}

fn names(images: &[ArchivedImage]) -> Vec<Vec<String>> {
    images.iter().map(|image| image.names.iter().map(Reference::familiar).collect()).collect()
}

#[test]
fn a_layout_gives_each_image_once_under_all_its_names() {
    let (tar, manifest) = image(Tar::default(), "amd64");
    let entries =
        [named(manifest.clone(), "docker.io/library/a:1"), named(manifest.clone(), "b"), manifest.clone()];
    let images = tar.json("index.json", &index(&entries)).read().unwrap();
    assert_eq!(names(&images), [["a:1", "b:latest"]]);
    assert_eq!(images[0].manifest.map(|d| json!(d)), Some(manifest["digest"].clone()));
    let about = json!({"mediaType": media_type::OCI_MANIFEST, "digest": Digest::of(b"absent"), "size": 1,
        "annotations": {REFERENCE_TYPE: "attestation-manifest"}});
    let (tar, manifest) = image(Tar::default(), "amd64");
    let images = tar.json("./index.json", &index(&[about, manifest])).read().unwrap();
    assert_eq!(names(&images), [[""; 0]], "attestations are no images");
}

#[test]
fn of_several_platforms_all_are_read_or_the_wanted_one() {
    let (tar, mut arm) = image(Tar::default(), "arm64");
    let (tar, mut amd) = image(tar, "amd64");
    arm["platform"] = json!({"os": "linux", "architecture": "arm64"});
    amd["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let inner = index(&[arm.clone(), amd.clone()]).to_string();
    let whole =
        tar.blob(&inner).json("index.json", &index(&[named(descriptor(media_type::OCI_INDEX, &inner), "x")]));
    let nested = || Tar(whole.0.clone());
    let architectures = |images: &[ArchivedImage]| -> Vec<String> {
        let each = std::iter::once(&images[0]).chain(&images[0].others);
        each.map(|image| image.image.config.platform.architecture.clone()).collect()
    };
    let images = nested().read().unwrap();
    assert_eq!(names(&images), [["x:latest"]]);
    assert_eq!(architectures(&images), ["amd64", "arm64"], "this machine's first");
    assert_eq!(images[0].index, Some(Digest::of(inner.as_bytes())));
    let images = nested().read_for(Some("linux/arm64")).unwrap();
    assert_eq!((architectures(&images), images[0].index), (vec!["arm64".to_owned()], None));
    assert!(matches!(nested().read_for(Some("linux/s390x")), Err(ArchiveError::NoPlatform(_))));

    // As docker writes them: the index is whole, the images are not.
    let (tar, _) = image(Tar::default(), "arm64");
    let entry = named(descriptor(media_type::OCI_INDEX, &inner), "x");
    let images = tar.blob(&inner).json("index.json", &index(std::slice::from_ref(&entry))).read().unwrap();
    assert_eq!((architectures(&images), images[0].index), (vec!["arm64".to_owned()], None));
    let none = Tar::default().blob(&inner).json("index.json", &index(&[entry]));
    assert!(matches!(none.read(), Err(ArchiveError::Blob(_))));
    let (tar, _) = image(Tar::default(), "arm64");
    let (tar, _) = image(tar, "amd64");
    let images = tar.json("index.json", &index(&[named(arm.clone(), "x"), named(amd, "x")])).read().unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].image.config.platform.architecture, "amd64");
    let (tar, _) = image(Tar::default(), "arm64");
    let inner = index(&[arm]).to_string();
    let alone = tar.blob(&inner).json("index.json", &index(&[descriptor(media_type::OCI_INDEX, &inner)]));
    assert!(matches!(alone.read_for(Some("linux/amd64")), Err(ArchiveError::NoPlatform(_))));
}

#[test]
fn an_old_docker_archive_is_read_through_its_links() {
    let docker = json!([{"Config": "c.json", "RepoTags": ["me/app:1", "me/app"], "Layers": ["a/layer.tar", "b/layer.tar"]}]);
    let tar = Tar::default()
        .file("a/layer.tar", LAYER)
        .link("b/layer.tar", "../a/layer.tar")
        .json("c.json", &config("amd64", 2))
        .json("manifest.json", &docker);
    let images = tar.read().unwrap();
    assert_eq!(names(&images), [["me/app:1", "me/app:latest"]]);
    let blobs: Vec<Digest> =
        images[0].image.layers.iter().filter_map(|l| Some(l.blob.as_ref()?.digest)).collect();
    assert_eq!(blobs, [Digest::of(LAYER); 2]);
    assert_eq!(images[0].manifest, None);
}

#[test]
fn names_of_manifest_json_complete_a_layout_without() {
    let (tar, manifest) = image(Tar::default(), "amd64");
    let config = format!("blobs/sha256/{}", Digest::of(config("amd64", 1).to_string().as_bytes()).hex());
    let layer = format!("blobs/sha256/{}", Digest::of(LAYER).hex());
    let docker = json!([{"Config": config, "RepoTags": ["me/app:1"], "Layers": [layer]}]);
    let images = tar.json("index.json", &index(&[manifest])).json("manifest.json", &docker).read().unwrap();
    assert_eq!(names(&images), [["me/app:1"]]);
    assert!(images[0].manifest.is_some());
}

#[test]
fn hostile_archives_are_refused() {
    let docker = |config: &str, tags: &[&str], layers: &[&str]| json!([{"Config": config, "RepoTags": tags, "Layers": layers}]);
    let refused = |tar: Tar| tar.read().unwrap_err();
    // Nothing outside of the archive is ever looked at.
    for path in ["/etc/passwd", "../../etc/passwd", "c.json/../../etc/passwd"] {
        let tar = Tar::default().json("manifest.json", &docker(path, &[], &[]));
        assert!(matches!(refused(tar), ArchiveError::Missing(_)), "{path}");
    }
    let linked =
        Tar::default().link("c.json", "/etc/passwd").json("manifest.json", &docker("c.json", &[], &[]));
    assert!(matches!(refused(linked), ArchiveError::Missing(_)));
    let circle = Tar::default().link("a", "b").link("b", "a").json("manifest.json", &docker("a", &[], &[]));
    assert!(matches!(refused(circle), ArchiveError::Missing(_)));

    // A blob's name is only a name: its bytes decide.
    let (tar, mut manifest) = image(Tar::default(), "amd64");
    manifest["size"] = json!(manifest["size"].as_u64().unwrap() + 1);
    assert!(matches!(refused(tar.json("index.json", &index(&[manifest]))), ArchiveError::Blob(_)));
    let (_, manifest) = image(Tar::default(), "amd64");
    let liar =
        Tar::default().file(&format!("blobs/sha256/{}", &manifest["digest"].as_str().unwrap()[7..]), "lies");
    assert!(matches!(refused(liar.json("index.json", &index(&[manifest]))), ArchiveError::Blob(_)));

    let twice = Tar::default().file("index.json", "{}").file("./index.json", "[]");
    assert!(matches!(refused(twice), ArchiveError::Twice(_)));
    let count = Tar::default()
        .json("c.json", &config("amd64", 2))
        .file("l", LAYER)
        .json("manifest.json", &docker("c.json", &[], &["l"]));
    assert!(matches!(
        refused(count),
        ArchiveError::Image(ResolveError::LayerCount { layers: 1, diff_ids: 2, .. })
    ));
    for tag in ["UPPER", "", "a b", &format!("a@{}", Digest::of(b"x"))] {
        let tar = Tar::default()
            .json("c.json", &config("amd64", 0))
            .json("manifest.json", &docker("c.json", &[tag], &[]));
        assert!(matches!(refused(tar), ArchiveError::Name { .. }), "{tag}");
    }
    let manifest_as_index = Tar::default().json(
        "index.json",
        &json!({"schemaVersion": 2, "layers": [],
        "config": {"mediaType": media_type::OCI_CONFIG, "digest": Digest::of(b""), "size": 0}}),
    );
    assert!(matches!(refused(manifest_as_index), ArchiveError::Nesting(_)));
    assert!(matches!(refused(Tar::default().file("manifest.json", "[{}]")), ArchiveError::DockerManifest(_)));
    assert!(matches!(refused(Tar::default().file("x", "y")), ArchiveError::NoImages));
    assert!(matches!(refused(Tar::default()), ArchiveError::NoImages));
    let without_images = Tar::default().json("index.json", &index(&[])).file("manifest.json", "[]");
    assert_eq!(refused(without_images).to_string(), "its index.json names no image");
    let empty = Tar::default().file("manifest.json", "[]");
    assert_eq!(refused(empty).to_string(), "its manifest.json names no image");
    let long = Tar::default()
        .link("c.json", &"x".repeat(90))
        .json("manifest.json", &docker(&"y".repeat(4000), &[], &[]));
    assert!(matches!(refused(long), ArchiveError::Missing(name) if name.len() == 200));
}

#[test]
fn links_are_resolved_by_text_and_never_climb_out() {
    assert_eq!(joined("a/b", "../c/layer.tar"), "a/c/layer.tar");
    assert_eq!(joined("a", "../../../x"), "x");
    assert_eq!(joined("", "./x//y"), "x/y");
    assert_eq!(joined("a", "/x"), "x");
}

#[test]
fn images_of_one_name_are_told_apart_by_platform_stated_or_not() {
    let stated = |mut entry: Value, architecture: &str| {
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entry
    };
    let whole = |is_stated: bool| {
        let (tar, arm) = image(Tar::default(), "arm64");
        let (tar, amd) = image(tar, "amd64");
        let (arm, amd) = if is_stated { (stated(arm, "arm64"), stated(amd, "amd64")) } else { (arm, amd) };
        let (tar, other) = image(tar, "riscv64");
        tar.json("index.json", &index(&[named(arm, "x"), named(amd, "x"), named(other, "y")]))
    };
    let found = |images: Vec<ArchivedImage>| -> Vec<(String, Vec<String>)> {
        let names = names(&images);
        let architecture = |image: ArchivedImage| image.image.config.platform.architecture;
        images.into_iter().map(architecture).zip(names).collect()
    };
    let expected = |architecture: &str| {
        [(architecture, "x:latest"), ("riscv64", "y:latest")].map(|(a, n)| (a.to_owned(), vec![n.to_owned()]))
    };
    for is_stated in [false, true] {
        assert_eq!(found(whole(is_stated).read().unwrap()), expected("amd64"));
        assert_eq!(found(whole(is_stated).read_for(Some("linux/arm64")).unwrap()), expected("arm64"));
        let none = whole(is_stated).read_for(Some("linux/s390x")).map(found);
        assert!(matches!(none, Err(ArchiveError::NoPlatform(_))), "{none:?}");
    }
}

#[test]
fn two_images_of_one_name_and_platform_are_refused_with_their_digests() {
    let (tar, one) = image(Tar::default(), "amd64");
    let other = manifest_of(
        &json!({"os": "linux", "architecture": "amd64", "author": "another",
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(LAYER)]}})
        .to_string(),
    );
    let (config, manifest) = other;
    let two = descriptor(media_type::OCI_MANIFEST, &manifest);
    let whole = tar.blob(config).blob(manifest);
    let with = |entries: &[Value]| Tar(whole.0.clone()).json("index.json", &index(entries)).read();
    let error = with(&[named(one.clone(), "x"), named(two.clone(), "x")]).unwrap_err().to_string();
    let digests = [&one, &two].map(|entry| entry["digest"].as_str().unwrap().to_owned()).join(", ");
    assert_eq!(error, format!("it has 2 images `x:latest` for linux/amd64: {digests}"));
    assert_eq!(names(&with(&[named(one.clone(), "x"), named(one.clone(), "x")]).unwrap()), [["x:latest"]]);
    let apart = with(&[named(one, "x"), two]).unwrap();
    assert_eq!(names(&apart), [vec!["x:latest".to_owned()], vec![]], "what has no name is another image");
}
