//! Provenance and lists of packages: beside images in registries and archives, beside files, and in the store.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rbuild_tests::git::git;
use rbuild_tests::web::{Reply, Web};
use rbuild_tests::{TestEnv, judge, need};
use serde_json::{Value, json};

use crate::world;

const APP: &str = "FROM busybox AS build\n\
    ARG VERSION=0\n\
    ARG BUILDKIT_SBOM_SCAN_STAGE=true\n\
    RUN mkdir -p /out/node_modules/tool /var/lib/dpkg && echo $VERSION > /out/version\n\
    COPY status /var/lib/dpkg/status\n\
    COPY package.json /out/node_modules/tool/\n\
    FROM busybox\n\
    COPY --from=build /out /srv\n";
const STATUS: &str = "Package: gcc\nStatus: install ok installed\nArchitecture: amd64\nVersion: 4:12.2.0-3\n";
const PACKAGE: &str = "{\"name\": \"tool\", \"version\": \"2.1.0\", \"license\": \"MIT\"}\n";
const FILES: [(&str, &str); 2] = [("status", STATUS), ("package.json", PACKAGE)];

fn read_json(path: &Path) -> Result<Value> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// A blob of a layout directory, checked against its digest's file name.
fn blob(layout: &Path, digest: &Value) -> Result<Value> {
    let digest = digest.as_str().context("a digest")?;
    read_json(&layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:")))
}

/// The index that a layout's only entry is, and per attestation manifest of it the statements.
fn statements(layout: &Path) -> Result<(Value, Vec<Vec<Value>>)> {
    let index = blob(layout, &read_json(&layout.join("index.json"))?["manifests"][0]["digest"])?;
    let mut all = Vec::new();
    for entry in index["manifests"].as_array().context("an index")? {
        if entry["platform"]["os"] != "unknown" {
            ensure!(all.is_empty(), "attestations come last: {index:#}");
            continue;
        }
        ensure!(entry["annotations"]["vnd.docker.reference.type"] == "attestation-manifest", "{entry:#}");
        let manifest = blob(layout, &entry["digest"])?;
        let mut of_image = Vec::new();
        for layer in manifest["layers"].as_array().context("layers")? {
            ensure!(layer["mediaType"] == "application/vnd.in-toto+json", "{layer:#}");
            let statement = blob(layout, &layer["digest"])?;
            ensure!(
                layer["annotations"]["in-toto.io/predicate-type"] == statement["predicateType"],
                "{layer:#}"
            );
            ensure!(statement["_type"] == "https://in-toto.io/Statement/v1");
            let subject = format!(
                "sha256:{}",
                statement["subject"][0]["digest"]["sha256"].as_str().unwrap_or_default()
            );
            ensure!(entry["annotations"]["vnd.docker.reference.digest"] == subject, "{statement:#}");
            of_image.push(statement);
        }
        all.push(of_image);
    }
    Ok((index, all))
}

fn package_names(statement: &Value) -> Vec<&str> {
    let packages = statement["predicate"]["packages"].as_array();
    packages.into_iter().flatten().filter_map(|package| package["name"].as_str()).collect()
}

#[test]
fn attestations_go_with_the_image_to_a_registry_and_nobody_takes_them_for_one() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (registry, env) = world()?;
    let context = env.context("app", APP, &FILES)?;
    let name = format!("{}/attested/app:1", registry.host());
    let args = ["--provenance=mode=max", "--sbom=true", "--build-arg", "VERSION=7", "-t", &name, "--push"];
    let (_, digest) = env.build_digest(&context, &args)?;

    let remote = format!("docker://{name}");
    assert_eq!(judge::digest(&remote)?, digest);
    let index = judge::raw(&remote)?;
    assert_eq!(index["mediaType"], json!("application/vnd.oci.image.index.v1+json"));
    let entries = index["manifests"].as_array().context("entries")?;
    assert_eq!(entries.len(), 2, "{index:#}");
    let (image, attested) = (&entries[0], &entries[1]);
    assert_eq!(attested["platform"], json!({"architecture": "unknown", "os": "unknown"}));
    assert_eq!(
        attested["annotations"],
        json!({
            "vnd.docker.reference.digest": image["digest"],
            "vnd.docker.reference.type": "attestation-manifest",
        })
    );
    let at = format!(
        "docker://{}@{}",
        name.trim_end_matches(":1"),
        attested["digest"].as_str().unwrap_or_default()
    );
    let manifest = judge::raw(&at)?;
    assert_eq!(manifest["artifactType"], json!("application/vnd.docker.attestation.manifest.v1+json"));
    assert_eq!(manifest["subject"]["digest"], image["digest"]);
    assert_eq!(manifest["config"]["mediaType"], json!("application/vnd.oci.empty.v1+json"));
    let kinds: Vec<&Value> = manifest["layers"]
        .as_array()
        .context("layers")?
        .iter()
        .map(|layer| &layer["annotations"]["in-toto.io/predicate-type"])
        .collect();
    let (spdx, slsa) = ("https://spdx.dev/Document", "https://slsa.dev/provenance/v1");
    assert_eq!(kinds, [spdx, spdx, slsa]);

    // What skopeo, and what rbuild elsewhere take from the name is the image.
    assert_eq!(judge::unpack(&remote)?.text("/srv/version")?, "7\n");
    let elsewhere = TestEnv::new()?.using(&registry)?;
    elsewhere.run(["pull", &name])?.ok();
    let on = elsewhere.context("on", &format!("FROM {name}\nRUN grep 7 /srv/version\n"), &[])?;
    elsewhere.build(&on, &["--provenance", "-o", "type=cacheonly"])?.ok();

    let inspect = |format: &str| -> Result<Value> {
        Ok(serde_json::from_str(&env.run(["imagetools", "inspect", "--format", format, &name])?.ok().stdout)?)
    };
    let provenance = inspect("{{json .Provenance}}")?;
    let definition = &provenance["SLSA"]["buildDefinition"];
    let request = &definition["externalParameters"]["request"];
    assert_eq!(request["args"]["build-arg:VERSION"], json!("7"), "{provenance:#}");
    let dependency = &definition["resolvedDependencies"][0];
    assert!(
        dependency["uri"].as_str().is_some_and(|uri| uri.starts_with("pkg:docker/busybox@latest?platform="))
    );
    assert_eq!(dependency["digest"]["sha256"].as_str().map(str::len), Some(64));
    let metadata = &provenance["SLSA"]["runDetails"]["metadata"];
    assert!(metadata["startedOn"].is_string() && metadata["invocationId"].is_string(), "{metadata:#}");
    let layers = metadata["buildkit_metadata"]["layers"].as_object().context("layers")?;
    let listed: Vec<&Value> =
        layers.values().flat_map(|chains| chains[0].as_array().into_iter().flatten()).collect();
    let written = judge::manifest(&remote)?;
    assert_eq!(listed.len(), written["Layers"].as_array().map_or(0, Vec::len), "{layers:#?}");
    let sbom = inspect("{{json .SBOM}}")?;
    let of = |document: &Value| package_names(&json!({ "predicate": document })).join(",");
    assert!(of(&sbom["SPDX"]).ends_with(",tool"), "{sbom:#}");
    assert_eq!(sbom["AdditionalSPDXs"][0]["name"], json!("build"));
    assert_eq!(of(&sbom["AdditionalSPDXs"][0]), "build,gcc,tool", "what the result does not have: {sbom:#}");
    Ok(())
}

#[test]
fn one_epoch_gives_the_same_bytes_with_everything_attested() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (registry, env) = world()?;
    let second = TestEnv::new()?.using(&registry)?;
    let mut digests = Vec::new();
    for env in [&env, &second, &second] {
        let context = env.context("app", APP, &FILES)?;
        let layout = env.work().join("out");
        let output = format!("type=oci,dest={},tar=false", layout.display());
        let args = ["--source-date-epoch", "1700000000", "--sbom", "--provenance=mode=max", "-t", "me/app:1"];
        let platforms = ["--platform", "linux/amd64,linux/arm64", "-o", &output];
        let (_, digest) = env.build_digest(&context, &[&args[..], &platforms].concat())?;
        digests.push(digest);
        let (index, all) = statements(&layout)?;
        let shown: Vec<&Value> = index["manifests"]
            .as_array()
            .context("entries")?
            .iter()
            .map(|e| &e["platform"]["architecture"])
            .collect();
        assert_eq!(shown, ["amd64", "arm64", "unknown", "unknown"]);
        for (statements, platform) in all.iter().zip(["linux%2Famd64", "linux%2Farm64"]) {
            let [packages, _, provenance] = statements.as_slice() else { panic!("{statements:#?}") };
            let subject = format!("pkg:docker/me/app@1?platform={platform}");
            assert_eq!(provenance["subject"][0]["name"], json!(subject));
            assert_eq!(packages["predicate"]["creationInfo"]["created"], json!("2023-11-14T22:13:20Z"));
            let metadata = &provenance["predicate"]["runDetails"]["metadata"];
            assert!(
                metadata.get("startedOn").is_none() && metadata.get("invocationId").is_none(),
                "{metadata:#}"
            );
        }
    }
    assert_eq!(digests[0], digests[1]);
    assert_eq!(digests[1], digests[2]);

    // The archive that holds it all loads as the one image that this machine runs.
    let file = env.work().join("app.tar");
    let output = format!("type=oci,dest={}", file.display());
    let context = env.context("app", APP, &FILES)?;
    env.build(&context, &["--sbom", "-t", "me/loaded:1", "-o", &output])?.ok();
    second.run(["load", "-i", &file.to_string_lossy()])?.ok();
    assert!(second.run(["images"])?.ok().stdout.contains("me/loaded"));
    Ok(())
}

#[test]
fn the_older_form_is_an_image_of_no_platform() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("old", "FROM busybox\nRUN true\n", &[])?;
    let layout = env.work().join("out");
    let output =
        format!("type=oci,dest={},tar=false,oci-artifact=false,oci-mediatypes=false", layout.display());
    let run =
        env.build(&context, &["--attest", "type=provenance,mode=min,version=v0.2", "-o", &output])?.ok();
    run.says(&["attestations exist in OCI images only"]);
    let (index, all) = statements(&layout)?;
    let manifest = blob(&layout, &index["manifests"][1]["digest"])?;
    assert!(manifest.get("artifactType").is_none() && manifest.get("subject").is_none(), "{manifest:#}");
    let config = blob(&layout, &manifest["config"]["digest"])?;
    assert_eq!(config["architecture"], json!("unknown"));
    assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
    let [statement] = all[0].as_slice() else { panic!("{all:#?}") };
    assert_eq!(statement["predicateType"], json!("https://slsa.dev/provenance/v0.2"));
    assert_eq!(statement["subject"][0]["name"], json!("_"), "an image without a name");
    assert_eq!(statement["predicate"]["buildType"], json!("https://mobyproject.org/buildkit@v1"));
    Ok(())
}

#[test]
fn files_get_their_attestations_beside_them() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let dockerfile = "FROM scratch\nCOPY package.json /node_modules/tool/package.json\n";
    let context = env.context("files", dockerfile, &FILES)?;
    let (dir, tar) = (env.work().join("dir"), env.work().join("out.tar"));
    let outputs = [
        format!("type=local,dest={}", dir.display()),
        format!("type=tar,dest={},attestation-prefix=app-", tar.display()),
    ];
    let both = ["--provenance=mode=max", "--sbom", "-o", &outputs[0], "-o", &outputs[1]];
    env.build(&context, &both)?.ok();
    let provenance = read_json(&dir.join("provenance.json"))?;
    assert_eq!(provenance["predicateType"], json!("https://slsa.dev/provenance/v1"));
    assert_eq!(provenance["subject"][0]["name"], json!("node_modules/tool/package.json"));
    let mut members = Vec::new();
    for entry in tar::Archive::new(fs::File::open(&tar)?).entries()? {
        members.push(entry?.path()?.display().to_string());
    }
    for name in ["app-provenance.json", "app-sbom.spdx.json"] {
        assert!(members.iter().any(|member| member == name), "{members:?}");
    }
    assert_eq!(package_names(&read_json(&dir.join("sbom.spdx.json"))?).last(), Some(&"tool"));

    let split = env.work().join("split");
    let platforms = ["--platform=linux/amd64,linux/arm64", "--provenance", "-o", &split.to_string_lossy()];
    env.build(&context, &platforms)?.ok();
    for platform in ["linux_amd64", "linux_arm64"] {
        assert!(split.join(platform).join("provenance.json").is_file());
    }
    // Said beside images only; and asked for nothing, there is nothing.
    for (name, args) in [("inline", &["--provenance=inline-only=true"][..]), ("none", &[])] {
        let dest = env.work().join(name);
        env.build(&context, &[args, &["-o", &dest.to_string_lossy()]].concat())?.ok();
        assert!(dest.join("node_modules").is_dir() && !dest.join("provenance.json").exists());
    }
    let taken = env.context("taken", "FROM scratch\nCOPY package.json /provenance.json\n", &FILES)?;
    let dest = env.work().join("taken-out").to_string_lossy().into_owned();
    env.build(&taken, &["--provenance", "-o", &dest])?
        .exits(1)
        .says(&["provenance.json", "attestation-prefix"]);
    Ok(())
}

#[test]
fn the_store_keeps_attestations_for_a_later_push() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (registry, env) = world()?;
    let context = env.context("kept", "FROM busybox\nRUN echo kept > /kept\n", &[])?;
    let name = format!("{}/attested/kept:1", registry.host());
    let (_, digest) = env.build_digest(&context, &["--provenance=mode=min", "-t", &name])?;
    assert!(env.run(["images", "--digests"])?.ok().stdout.contains(&digest));
    assert!(env.run(["history", &name])?.ok().stdout.contains("echo kept"));
    let shown: Value = serde_json::from_str(&env.run(["inspect", &name])?.ok().stdout)?;
    assert_eq!(shown[0]["Descriptor"]["digest"], json!(digest));
    env.run(["prune", "--all", "--force"])?.ok();
    env.run(["cache", "fsck"])?.ok();
    assert!(env.run(["push", &name])?.ok().stdout.contains(&digest));
    let remote = format!("docker://{name}");
    assert_eq!(judge::digest(&remote)?, digest);
    assert_eq!(judge::raw(&remote)?["manifests"].as_array().map(Vec::len), Some(2));

    // An engine's archive holds the image alone, and the build says so.
    let file = env.work().join("docker.tar");
    let output = format!("type=docker,dest={}", file.display());
    let run = env.build(&context, &["--provenance", "-t", "me/kept:1", "-o", &output])?.ok();
    run.says(&["attestations stay out of type=docker"]);
    assert_eq!(judge::unpack(&format!("docker-archive:{}", file.display()))?.text("/kept")?, "kept\n");
    let saved = env.work().join("saved.tar");
    env.run(["save", "-o", &saved.to_string_lossy(), &name])?.ok();
    assert_eq!(judge::unpack(&format!("docker-archive:{}", saved.display()))?.text("/kept")?, "kept\n");
    Ok(())
}

#[test]
fn secrets_are_in_no_attestation_and_fetched_things_are_with_their_digests() -> Result<()> {
    need!(Root, Registry, Bases);
    const CANARY: &str = "canary-3d1f9c";
    const FETCHED_SHA256: &str = "f6e379b0639054c51806fd5d67948cbcaebd354b0e91a7683932b043c5c3ba32";
    let (_registry, env) = world()?;
    let web = Web::serve(|_| Reply::new(200).body("fetched\n"))?;
    let url = web.url("/dir/file.txt").replace("http://", &format!("http://me:{CANARY}@"));
    let dockerfile = format!(
        "FROM busybox\nARG NPM_TOKEN\nRUN --mount=type=secret,id=key,required wc -c /run/secrets/key > /size\n\
         ADD {url}?sig={CANARY} /file.txt\n"
    );
    let context = env.context("secrets", &dockerfile, &[])?;
    let env = env.with_variable("THE_KEY", CANARY);
    let layout = env.work().join("out");
    let output = format!("type=oci,dest={},tar=false", layout.display());
    let token = format!("NPM_TOKEN={CANARY}");
    for mode in ["min", "max"] {
        let provenance = format!("--provenance=mode={mode}");
        let args =
            ["--secret", "id=key,env=THE_KEY", "--build-arg", &token, &provenance, "--sbom", "-o", &output];
        let (_, _) = env.build_digest(&context, &args)?;
        let (_, all) = statements(&layout)?;
        let statement = all[0].last().context("provenance")?;
        assert!(!serde_json::to_string(&all)?.contains(CANARY), "{all:#?}");
        let metadata = fs::read_to_string(env.work().join("metadata.json"))?;
        assert!(!metadata.contains(CANARY), "{metadata}");
        let definition = &statement["predicate"]["buildDefinition"];
        let dependencies = definition["resolvedDependencies"].as_array().context("dependencies")?;
        let file = json!({"uri": web.url("/dir/file.txt"), "digest": {"sha256": FETCHED_SHA256}});
        assert!(dependencies.contains(&file), "{dependencies:#?}");
        let request = &definition["externalParameters"]["request"];
        match mode {
            "max" => assert_eq!(request["secrets"], json!([{"id": "key"}])),
            _ => assert!(request.get("secrets").is_none(), "{request:#}"),
        }
        // The Dockerfile is there in base64, and it is not there with what must not be told.
        let source = &statement["predicate"]["runDetails"]["metadata"]["buildkit_metadata"]["source"];
        assert_eq!(source.is_object(), mode == "max", "{statement:#}");
    }
    Ok(())
}

#[test]
fn the_metadata_file_tells_how_the_image_was_made() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("metadata", "FROM busybox\nRUN true\nMAINTAINER me\n", &[])?;
    let read = |env: &TestEnv| read_json(&env.work().join("metadata.json"));
    env.build_digest(&context, &["--build-arg", "A=1"])?;
    let metadata = read(&env)?;
    assert!(
        metadata["buildx.build.ref"].as_str().is_some_and(|text| text.split('/').count() == 3),
        "{metadata}"
    );
    let provenance = &metadata["buildx.build.provenance"];
    assert_eq!(
        provenance["buildDefinition"]["externalParameters"]["configSource"]["path"],
        json!("Dockerfile")
    );
    assert!(provenance["buildDefinition"]["internalParameters"].get("buildConfig").is_none());
    assert!(metadata.get("buildx.build.warnings").is_none());
    // An image in the store has the same id, whatever the metadata file tells.
    assert_eq!(metadata["containerimage.digest"], metadata["containerimage.config.digest"]);

    let env =
        env.with_variable("BUILDX_METADATA_PROVENANCE", "max").with_variable("BUILDX_METADATA_WARNINGS", "1");
    env.build_digest(&context, &["--platform", "linux/amd64,linux/arm64"])?;
    let metadata = read(&env)?;
    for platform in ["linux/amd64", "linux/arm64"] {
        let provenance = &metadata[format!("buildx.build.provenance/{platform}")];
        let steps = &provenance["buildDefinition"]["internalParameters"]["buildConfig"]["llbDefinition"];
        assert_eq!(steps.as_array().map(Vec::len), Some(3), "{metadata:#}");
    }
    let warnings = metadata["buildx.build.warnings"].as_array().context("warnings")?;
    // The base is of one platform only, which is another.
    let lines: Vec<&Value> = warnings.iter().map(|warning| &warning["range"][0]["start"]["line"]).collect();
    assert_eq!(lines, [1, 3], "{warnings:#?}");
    let env = env.with_variable("BUILDX_METADATA_PROVENANCE", "disabled");
    env.build_digest(&context, &[])?;
    assert!(read(&env)?.get("buildx.build.provenance").is_none());
    Ok(())
}

#[test]
fn buildx_s_default_is_there_for_who_asks_for_it() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (registry, env) = world()?;
    let context = env.context("default", "FROM busybox\nRUN true\n", &[])?;
    let name = format!("{}/attested/default:1", registry.host());
    env.build(&context, &["-t", &name, "--push"])?.ok();
    let remote = format!("docker://{name}");
    assert_eq!(judge::raw(&remote)?["mediaType"], json!("application/vnd.oci.image.manifest.v1+json"));
    let env = env.with_variable("BUILDX_NO_DEFAULT_ATTESTATIONS", "0");
    env.build(&context, &["-t", &name, "--push"])?.ok();
    let index = judge::raw(&remote)?;
    assert_eq!(index["manifests"].as_array().map(Vec::len), Some(2), "{index:#}");
    let dest = env.work().join("files");
    env.build(&context, &["-o", &dest.to_string_lossy()])?.ok();
    assert!(!dest.join("provenance.json").exists(), "only beside images");
    Ok(())
}

#[test]
fn the_context_s_repository_is_told_in_provenance_and_on_request_in_labels() -> Result<()> {
    const CANARY: &str = "canary-5e1d";
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("project/app", "FROM busybox\nRUN true\n", &[])?;
    let root = context.parent().context("the project")?;
    git(root, &["init", "--quiet", "-b", "main"])?;
    git(root, &["remote", "add", "origin", &format!("https://me:{CANARY}@git.example/team/project.git")])?;
    git(root, &["add", "."])?;
    git(root, &["commit", "--quiet", "-m", "first"])?;
    let revision = git(root, &["rev-parse", "HEAD"])?;
    let vcs = |env: &TestEnv| -> Result<Value> {
        env.build_digest(&context, &["-t", "placed"])?;
        let metadata = read_json(&env.work().join("metadata.json"))?;
        ensure!(!metadata.to_string().contains(CANARY), "{metadata:#}");
        Ok(metadata["buildx.build.provenance"]["runDetails"]["metadata"]["buildkit_metadata"]["vcs"].clone())
    };
    let expected = json!({
        "localdir:context": "app",
        "localdir:dockerfile": "app",
        "revision": revision,
        "source": "https://git.example/team/project.git",
    });
    assert_eq!(vcs(&env)?, expected);
    let labels = |env: &TestEnv| -> Result<Value> {
        let printed =
            env.run(["image", "inspect", "placed", "--format", "{{json .Config.Labels}}"])?.ok().stdout;
        Ok(serde_json::from_str(&printed)?)
    };
    assert_eq!(labels(&env)?, Value::Null, "no label unless asked for");

    let env = env.with_variable("BUILDX_GIT_INFO", "0").with_variable("BUILDX_GIT_LABELS", "full");
    assert_eq!(vcs(&env)?, Value::Null);
    let expected = json!({
        "com.docker.image.source.entrypoint": "app/Dockerfile",
        "org.opencontainers.image.revision": revision,
        "org.opencontainers.image.source": "https://git.example/team/project.git",
    });
    assert_eq!(labels(&env)?, expected);
    // What is typed counts more.
    env.build(&context, &["-t", "placed", "--label", "org.opencontainers.image.revision=mine"])?.ok();
    assert_eq!(labels(&env)?["org.opencontainers.image.revision"], "mine");
    Ok(())
}

#[test]
fn packages_of_a_base_that_no_step_reads_are_listed() -> Result<()> {
    need!(Root, Registry, Bases);
    let (registry, env) = world()?;
    let base = format!("{}/attested/base:1", registry.host());
    let context = env.context("base", "FROM scratch\nCOPY status /var/lib/dpkg/status\n", &FILES[..1])?;
    env.build(&context, &["-t", &base, "--push"])?.ok();
    // A store that has nothing of it: without the list the build would fetch no layer.
    let elsewhere = TestEnv::new()?.using(&registry)?;
    let context = elsewhere.context("on", &format!("FROM {base}\nLABEL a=b\n"), &[])?;
    let layout = elsewhere.work().join("layout");
    let output = format!("type=oci,dest={},tar=false", layout.display());
    elsewhere.build(&context, &["--sbom=true", "-o", &output])?.ok();
    let (_, all) = statements(&layout)?;
    assert_eq!(all.len(), 1);
    assert_eq!(package_names(&all[0][0]), ["stage-0", "gcc"], "{:#}", all[0][0]);
    Ok(())
}
