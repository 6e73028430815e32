//! What is not done until somebody needs it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rbuild_tests::{Registry, TestEnv, judge, need};

use crate::world;

/// Directories of layers that have an entry of this name.
fn layers_with(env: &TestEnv, name: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for layer in fs::read_dir(env.store().join("layers"))? {
        let path = layer?.path();
        if path.join(name).exists() {
            found.push(path);
        }
    }
    Ok(found)
}

fn packs_of(layer: &Path) -> Result<Vec<fs::Metadata>> {
    fs::read_dir(layer.join("packs"))?.map(|pack| Ok(pack?.metadata()?)).collect()
}

/// A thousand files of a kilobyte.
fn many_files(env: &TestEnv, context: &str) -> Result<()> {
    for at in 0..1000 {
        env.write(format!("work/{context}/src/d{}/f{at}", at % 10), &format!("{at}\n").repeat(200))?;
    }
    Ok(())
}

#[test]
fn a_copy_that_nothing_mounts_is_one_file_and_the_next_one_holds_what_changed() -> Result<()> {
    need!(Root, Judges);
    let env = TestEnv::new()?;
    let context = env.context("packed", "FROM scratch\nCOPY src /src\n", &[])?;
    many_files(&env, "packed")?;
    env.build(&context, &["-t", "packed"])?.ok();
    assert_eq!(layers_with(&env, "diff")?, [] as [PathBuf; 0], "no file was created");
    let first = layers_with(&env, "packs")?;
    let [pack] = &packs_of(&first[0])?[..] else { panic!("one pack") };
    let whole = pack.size();

    fs::write(context.join("src/d3/f3"), "changed\n")?;
    env.build(&context, &["-t", "packed"])?.ok();
    let layers = layers_with(&env, "packs")?;
    let second = layers.iter().find(|layer| !first.contains(layer)).context("a second layer")?;
    let mut sizes: Vec<(u64, u64)> =
        packs_of(second)?.iter().map(|pack| (pack.nlink(), pack.size())).collect();
    sizes.sort_unstable();
    assert!(sizes.len() == 2 && sizes[0].1 < 200 && sizes[1] == (2, whole), "{sizes:?}");

    // The image no longer needs the context.
    fs::remove_dir_all(context.join("src"))?;
    let out = env.work().join("out.tar");
    env.run(["save", "-o", &out.to_string_lossy(), "packed"])?.ok();
    let unpacked = judge::unpack(&format!("oci-archive:{}", out.display()))?;
    assert_eq!(unpacked.text("/src/d3/f3")?, "changed\n");
    assert_eq!(unpacked.text("/src/d9/f999")?, "999\n".repeat(200));
    env.run(["cache", "fsck"])?.ok();
    Ok(())
}

/// The hash of the next archive goes on from that of the last one: an independent judge finds the same of the whole archive.
#[test]
fn a_layer_of_which_only_the_end_was_hashed_has_the_right_digest() -> Result<()> {
    need!(Root, Judges);
    let env = TestEnv::new()?;
    let context = env.context("edited", "FROM scratch\nCOPY src /src\n", &[])?;
    for at in 0..12 {
        env.write(format!("work/edited/src/f{at:02}"), &format!("{at:05}\n").repeat(100_000))?;
    }
    env.build(&context, &["-t", "edited"])?.ok();
    let [layer] = &layers_with(&env, "packs")?[..] else { panic!("one layer") };
    anyhow::ensure!(layer.join("marks").exists(), "seven megabytes have marks");
    let out = env.work().join("out.tar");
    // Skopeo and umoci compare what they unpack with the config's DiffId.
    let unpacked = || -> Result<judge::Unpacked> {
        env.build(&context, &["-t", "edited"])?.ok();
        env.run(["save", "-o", &out.to_string_lossy(), "edited"])?.ok();
        let unpacked = judge::unpack(&format!("oci-archive:{}", out.display()))?;
        fs::remove_file(&out)?;
        Ok(unpacked)
    };
    fs::write(context.join("src/f07"), "changed\n")?;
    assert_eq!(unpacked()?.text("/src/f07")?, "changed\n");
    // Nothing needs the marks: damaged ones are as none.
    for layer in layers_with(&env, "marks")? {
        let mut bytes = fs::read(layer.join("marks"))?;
        bytes[40] ^= 1;
        fs::write(layer.join("marks"), bytes)?;
    }
    fs::write(context.join("src/a"), "first\n")?;
    assert_eq!(unpacked()?.text("/src/a")?, "first\n");
    fs::set_permissions(context.join("src/f10"), fs::Permissions::from_mode(0o755))?;
    assert_eq!(unpacked()?.text("/src/f10")?.len(), 600_000);
    fs::write(context.join("src/z"), "last\n")?;
    fs::remove_file(context.join("src/f05"))?;
    assert_eq!(unpacked()?.text("/src/z")?, "last\n");
    env.run(["cache", "fsck"])?.ok();
    Ok(())
}

#[test]
fn a_packed_layer_is_written_out_when_a_later_build_runs_on_it_or_copies_from_it() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let copy = "FROM busybox AS files\nCOPY --chown=12:34 a /dir/a\n";
    let context = env.context("later", copy, &[("a", "content\n")])?;
    env.build(&context, &[])?.ok();
    let packed = layers_with(&env, "packs")?;
    assert!(packed.len() == 1 && !packed[0].join("diff").exists());
    let text =
        format!("{copy}RUN stat -c %u:%g /dir/a && cat /dir/a\nFROM scratch\nCOPY --from=files /dir /\n");
    env.write("work/later/Dockerfile", &text)?;
    let run = env.build(&context, &["--target", "files"])?.ok();
    assert!(run.stderr.contains("12:34") && run.stderr.contains("content"), "{run}");
    assert_eq!(run.executed().len(), 1, "{run}");
    assert!(packed[0].join("diff/dir/a").exists());

    env.write(
        "work/later/Dockerfile",
        &format!("{copy}FROM busybox\nCOPY --from=files /dir /\nRUN cat /a\n"),
    )?;
    fs::write(context.join("a"), "other\n")?;
    env.build(&context, &["--target", "files"])?.ok();
    let run = env.build(&context, &[])?.ok();
    assert!(run.stderr.contains("other"), "{run}");
    env.run(["cache", "fsck"])?.ok();
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn every_form_of_a_layer_has_one_digest() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let files = [("d/a", "a\n"), ("d/b/c", "c\n"), ("e", "")];
    let packed = env.context("one", "FROM busybox\nCOPY . /x/\n", &files)?;
    // The directory that COPY makes has the time of the build, which an epoch takes out of the layer.
    const EPOCH: &str = "--source-date-epoch=0";
    let (_, id) = env.build_id(&packed, &[EPOCH])?;
    // The same step in a build where something runs on it, in a store of its own.
    let other = env.with_store(&packed.with_file_name("other-store"));
    let text = "FROM busybox AS one\nCOPY . /x/\nFROM one\nRUN ls /x\n";
    other.write("work/both.Dockerfile", text)?;
    let file = other.work().join("both.Dockerfile");
    let file = file.to_string_lossy();
    other.build(&packed, &[EPOCH, "-f", &file])?.ok();
    assert!(layers_with(&other, "packs")?.is_empty(), "written at once");
    let (run, second) = other.build_id(&packed, &[EPOCH, "-f", &file, "--target", "one"])?;
    run.assert_all_cached();
    // The time of the layer is in the config; all else has to be the same.
    assert_ne!(id, "");
    assert_ne!(second, "");
    let diff_ids = |env: &TestEnv, id: &str| -> Result<serde_json::Value> {
        let path = env.store().join(format!("blobs/sha256/{}/{}", &id[7..9], &id[7..]));
        let config: serde_json::Value = serde_json::from_slice(&fs::read(path)?)?;
        Ok(config["rootfs"]["diff_ids"].clone())
    };
    let in_other = diff_ids(&other, &second)?;
    let first = other.with_store(&packed.with_file_name("store"));
    assert_eq!(diff_ids(&first, &id)?, in_other);
    Ok(())
}

/// Lengths of the store's blobs that are larger than any document.
fn large_blobs(env: &TestEnv) -> Result<Vec<u64>> {
    let mut found = Vec::new();
    for dir in fs::read_dir(env.store().join("blobs/sha256"))? {
        for blob in fs::read_dir(dir?.path())? {
            found.push(blob?.metadata()?.size());
        }
    }
    found.retain(|bytes| *bytes > 8 << 20);
    Ok(found)
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length / 8).flat_map(|_| next()).collect()
}

#[test]
fn a_blob_made_for_a_push_goes_up_while_it_is_made_does_not_stay_and_is_made_again_the_same() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (registry, env) = world()?;
    let dockerfile = "FROM busybox\nCOPY big /big\nRUN cat /big /big > /twice\nCOPY last /last\n";
    let context = env.context("passing", dockerfile, &[])?;
    let (big, last) = (noise(12 << 20), noise(16 << 20));
    fs::write(context.join("big"), &big)?;
    fs::write(context.join("last"), &last)?;
    let name = format!("{}/passing:1", registry.host());
    env.build(&context, &["--push", "-t", &name])?.ok();
    let requests = registry.requests();
    // On a busy machine a layer may be made before its upload has begun: then it goes up in one request, as one that is known.
    let patches = requests.iter().filter(|line| line.starts_with("PATCH /v2/passing/")).count();
    assert!(patches >= 1, "none of three layers was sent while it was made: {requests:#?}");
    let puts: Vec<&str> = requests
        .iter()
        .filter(|line| line.starts_with("PUT /v2/passing/blobs/"))
        .filter_map(|line| line.split_once("&digest=").map(|(_, digest)| digest))
        .collect();
    let different: BTreeSet<&str> = puts.iter().copied().collect();
    assert!(different.len() >= 4 && different.len() == puts.len(), "each blob went up once: {requests:#?}");
    assert_eq!(large_blobs(&env)?, [] as [u64; 0]);
    assert_eq!(fs::read_dir(env.store().join("work"))?.count(), 0);
    env.run(["cache", "fsck"])?.ok();
    let digest = judge::digest(&format!("docker://{name}"))?;

    // Nothing is made for a registry that has everything.
    let before = registry.requests().len();
    env.build(&context, &["--push", "-t", &name])?.ok().assert_all_cached();
    assert!(
        registry.requests()[before..]
            .iter()
            .all(|line| !line.starts_with("P") || line.contains("/manifests/"))
    );

    // One that has nothing gets the same bytes, without the context, and again nothing stays.
    fs::remove_file(context.join("big"))?;
    fs::remove_file(context.join("last"))?;
    let other = Registry::empty()?;
    let copy = format!("{}/passing:1", other.host());
    env.run(["tag", &name, &copy])?.ok();
    env.run(["push", &copy])?.ok();
    assert_eq!(judge::digest(&format!("docker://{copy}"))?, digest);
    let unpacked = judge::unpack(&format!("docker://{copy}"))?;
    assert!(fs::read(unpacked.root().join("last"))? == last);
    assert!(fs::read(unpacked.root().join("twice"))? == [big.as_slice(), &big].concat());
    assert_eq!(large_blobs(&env)?, [] as [u64; 0]);

    // An archive needs them as blobs: it has the same, too.
    let out = env.work().join("out.tar");
    env.run(["save", "-o", &out.to_string_lossy(), &name])?.ok();
    assert_eq!(judge::digest(&format!("oci-archive:{}", out.display()))?, digest);
    assert_eq!(large_blobs(&env)?.len(), 3);
    env.run(["cache", "fsck"])?.ok();
    Ok(())
}
