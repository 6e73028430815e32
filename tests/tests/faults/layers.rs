//! Suite L: layers that attack whoever unpacks them, pulled by the real binary. What each kind of entry becomes is
//! tested in the cache's own tests, which the table of rows names too.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rbuild_tests::fault::tar::{Member, SIZE, UID, archive, pax, zstd_of_zeros};
use rbuild_tests::fault::{End, FaultRegistry, Image, Reply, digest, wait_until};
use rbuild_tests::{Run, TestEnv, need};
use serde_json::{Value, json};

use crate::{assert_nothing_came, pull};

/// Content that must be nowhere but in a layer.
const MARK: &[u8] = b"mark-of-the-layer";

fn world(image: &Image) -> Result<(FaultRegistry, TestEnv)> {
    let registry = FaultRegistry::good()?;
    registry.add("app", "1", image);
    Ok((registry, TestEnv::new()?))
}

/// Files below a directory with the mark in them, but for the store's own layers and blobs.
fn escaped(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let kind = path.symlink_metadata()?.file_type();
        if kind.is_dir() && !path.ends_with("store") {
            escaped(&path, found)?;
        } else if kind.is_file() && fs::read(&path)?.windows(MARK.len()).any(|window| window == MARK) {
            found.push(path);
        }
    }
    Ok(())
}

/// Pulls an image that must be refused: an error with these words, nothing kept, nothing outside.
#[track_caller]
fn refused(what: &str, image: &Image, words: &str) -> Result<Run> {
    let (registry, env) = world(image)?;
    let run = pull(&env, &registry)?;
    ensure!(run.code == Some(1) && run.stderr.contains(words), "{what}: expected `{words}`\n{run}");
    assert_nothing_came(&env).context(what.to_owned())?;
    let mut found = Vec::new();
    escaped(env.dir(), &mut found)?;
    ensure!(found.is_empty(), "{what}: {found:?}");
    env.assert_nothing_left();
    Ok(run)
}

/// Pulls an image that is taken, and the directory its files are exported to.
#[track_caller]
fn taken(members: &[Vec<u8>]) -> Result<(TestEnv, PathBuf)> {
    let (registry, env) = world(&Image::of_layer(archive(members)))?;
    pull(&env, &registry)?.ok();
    let context = env.context("files", &format!("FROM {}/app:1\n", registry.host()), &[])?;
    let out = env.work().join("out");
    env.build(&context, &["-o", &out.to_string_lossy()])?.ok();
    env.run(["cache", "fsck"])?.ok();
    Ok((env, out))
}

/// L1, L2, L3: names and links that lead outside: refused, or clamped to the layer.
#[test]
fn names_and_links_do_not_lead_outside() -> Result<()> {
    need!(Root);
    let bad_names: [&[u8]; 6] = [b"../../x", b"a/../../x", b"..", b"/..", b".", b""];
    for name in bad_names {
        let what = String::from_utf8_lossy(name).into_owned();
        refused(&what, &Image::of_layer(archive(&[Member::file(name, MARK).bytes()])), "")?;
    }
    let outside = tempfile::tempdir()?;
    let (env, out) = taken(&[
        Member::link(b"a", b'2', outside.path().as_os_str().as_encoded_bytes()).bytes(),
        Member::file(b"a/etc/x", MARK).bytes(),
        Member::link(b"up", b'2', b"../../../..").bytes(),
        Member::file(b"up/y", MARK).bytes(),
        Member::file(b"/etc/z", MARK).bytes(),
    ])?;
    assert_eq!(fs::read_dir(outside.path())?.count(), 0, "nothing went through the link");
    for path in ["a/etc/x", "up/y", "etc/z"] {
        assert_eq!(fs::read(out.join(path))?, MARK, "{path}");
    }
    drop(env);
    for target in [&b"/etc/passwd"[..], b"../x", b"later", b"dir", b"link/passwd"] {
        let members = [
            Member::new(b"dir/", b'5').bytes(),
            Member::link(b"link", b'2', b"/etc").bytes(),
            Member::link(b"hard", b'1', target).bytes(),
            Member::file(b"later", MARK).bytes(),
        ];
        refused(&String::from_utf8_lossy(target), &Image::of_layer(archive(&members)), "hard")?;
    }
    Ok(())
}

/// L2: a link in one layer, and a file through it in the next.
#[test]
fn a_link_of_a_lower_layer_is_not_followed_by_the_next() -> Result<()> {
    need!(Root);
    let outside = tempfile::tempdir()?;
    let target = outside.path().as_os_str().as_encoded_bytes();
    let lower = archive(&[Member::link(b"a", b'2', target).bytes()]);
    let upper = archive(&[Member::file(b"a/x", MARK).bytes()]);
    let mut image = Image::of_layer(lower.clone());
    let config: Value = serde_json::from_slice(&image.config)?;
    let mut config = config;
    config["rootfs"]["diff_ids"] = serde_json::json!([digest(&lower), digest(&upper)]);
    image.config = config.to_string().into_bytes();
    let kind = "application/vnd.oci.image.layer.v1.tar";
    image.manifest = image.manifest_with(|manifest| {
        let one = |bytes: &[u8]| serde_json::json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
        manifest["config"]["digest"] = serde_json::json!(digest(&image.config));
        manifest["config"]["size"] = serde_json::json!(image.config.len());
        manifest["layers"] = serde_json::json!([one(&lower), one(&upper)]);
    });
    let (registry, env) = world(&image)?;
    registry.add("upper", "1", &Image::of_layer(upper));
    pull(&env, &registry)?.ok();
    let context =
        env.context("files", &format!("FROM {}/app:1\nCOPY Dockerfile /a/y\n", registry.host()), &[])?;
    env.build(&context, &["-o", &env.work().join("out").to_string_lossy()])?;
    assert_eq!(fs::read_dir(outside.path())?.count(), 0, "nothing went through the link");
    Ok(())
}

/// L4, L5, L11: devices, set-id bits, attributes and owners: as the image has them, or refused by name.
#[test]
fn devices_attributes_and_owners_are_kept_or_refused() -> Result<()> {
    need!(Root);
    let device = |name: &[u8], kind| Member::new(name, kind).field(329, b"0000001").field(337, b"0000003");
    let (_env, out) = taken(&[
        Member::file(b"setuid", b"x").field(100, b"0006755\0").field(UID.start, b"0001750\0").bytes(),
        device(b"null", b'3').bytes(),
        Member::new(b"pipe", b'6').bytes(),
        pax(&[
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"label"),
            ("SCHILY.xattr.user.note", b"kept"),
        ]),
        Member::file(b"attributes", b"x").bytes(),
        pax(&[("mtime", b"-1000000000.5")]),
        Member::file(b"old", b"x").bytes(),
        pax(&[("mtime", b"253402300799")]),
        Member::file(b"far", b"x").bytes(),
    ])?;
    let stat = out.join("setuid").metadata()?;
    // What leaves as a file loses what lends rights; in the image they are (the cache's own tests).
    assert_eq!(stat.permissions().mode() & 0o7777, 0o755);
    assert!(out.join("pipe").symlink_metadata()?.file_type().is_fifo());
    assert_eq!(out.join("old").metadata()?.mtime(), -1_000_000_001);
    for (what, member) in [
        ("uid -1", Member::file(b"f", MARK).field(UID.start, b"\x80\0\0\0\xff\xff\xff\xff")),
        ("negative uid", Member::file(b"f", MARK).field(UID.start, &[0xff; 8])),
        ("uid over 32 bits", Member::file(b"f", MARK).field(UID.start, b"\x80\0\0\x01\0\0\0\0")),
    ] {
        refused(what, &Image::of_layer(archive(&[member.bytes()])), "")?;
    }
    let large = pax(&[("SCHILY.xattr.user.a", &[0; 70_000])]);
    refused(
        "attributes over the limit",
        &Image::of_layer(archive(&[large, Member::file(b"f", MARK).bytes()])),
        "",
    )?;
    Ok(())
}

/// L6, L9, L14: whiteouts reach their own directory only; the last entry of a name wins; names stay as they are.
#[test]
fn whiteouts_duplicates_and_look_alikes_do_what_they_say() -> Result<()> {
    need!(Root);
    for name in [&b".wh."[..], b".wh..", b".wh...", b"a/.wh..", b".wh.a/b"] {
        let members = [Member::new(b"a/", b'5').bytes(), Member::file(name, b"").bytes()];
        refused(&String::from_utf8_lossy(name), &Image::of_layer(archive(&members)), "")?;
    }
    let composed = "\u{e9}".as_bytes();
    let decomposed = "e\u{301}".as_bytes();
    let (_env, out) = taken(&[
        Member::file(b".wh.nothing", b"").bytes(),
        Member::file(b".wh..wh..opq", b"").bytes(),
        Member::file(b"twice", b"first").bytes(),
        Member::file(b"twice", b"second").bytes(),
        Member::new(b"dir/", b'5').bytes(),
        Member::file(b"dir/inner", b"x").bytes(),
        Member::file(b"dir", b"a file now").bytes(),
        Member::file(b"Case", b"upper").bytes(),
        Member::file(b"case", b"lower").bytes(),
        Member::file(composed, b"composed").bytes(),
        Member::file(decomposed, b"decomposed").bytes(),
        Member::file(b"not-\xff-utf8", b"bytes").bytes(),
    ])?;
    let text = |name: &[u8]| {
        use std::os::unix::ffi::OsStrExt as _;
        fs::read_to_string(out.join(std::ffi::OsStr::from_bytes(name)))
    };
    for (name, content) in [
        (&b"twice"[..], "second"),
        (b"dir", "a file now"),
        (b"Case", "upper"),
        (b"case", "lower"),
        (composed, "composed"),
        (decomposed, "decomposed"),
        (b"not-\xff-utf8", "bytes"),
    ] {
        assert_eq!(text(name)?, content, "{}", String::from_utf8_lossy(name));
    }
    Ok(())
}

/// L7: a kilobyte that becomes gigabytes, and a window of gigabytes: stopped by ratio and by window.
#[test]
fn bombs_are_stopped() -> Result<()> {
    need!(Root);
    let header = Member::new(b"bomb", b'0').field(SIZE.start, b"\x80\0\0\0\0\0\0\x40\0\0\0\0").bytes();
    let kind = "application/vnd.oci.image.layer.v1.tar+zstd";
    let bomb = zstd_of_zeros(&header, 2 << 20, 17);
    let run = refused("bomb", &Image::of_blob(b"x", kind, bomb), "")?;
    assert!(run.wall < Duration::from_secs(60), "{:?}", run.wall);
    let window = zstd_of_zeros(&header, 1, 31);
    refused("window", &Image::of_blob(b"x", kind, window), "")?;
    Ok(())
}

/// L8, L10, L13: sizes, checksums, names and paths that cannot be.
#[test]
fn headers_that_cannot_be_are_refused() -> Result<()> {
    need!(Root);
    let file = || Member::file(b"f", MARK);
    let mut bad_sum = file().bytes();
    bad_sum[0] = b'g';
    let deep = [b"directory-name/".repeat(600), b"f".to_vec()].concat();
    for (what, bytes) in [
        ("negative size", archive(&[file().field(SIZE.start, &[0xff; 12]).bytes()])),
        (
            "huge size",
            archive(&[file().field(SIZE.start, b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff").bytes()]),
        ),
        ("larger than the stream", archive(&[file().field(SIZE.start, b"77777777777\0").bytes()])),
        ("checksum", archive(&[bad_sum])),
        ("cut in an entry", Member::file(b"f", &MARK.repeat(1000)).bytes()[..5000].to_vec()),
        ("path with NUL", archive(&[pax(&[("path", b"a\0b")]), file().bytes()])),
        ("link with NUL", archive(&[pax(&[("linkpath", b"a\0b")]), Member::new(b"l", b'2').bytes()])),
        ("path of 2 MB", archive(&[pax(&[("path", &b"n".repeat(2 << 20))]), file().bytes()])),
        (
            "long name of a gigabyte",
            archive(&[Member::new(b"././@LongLink", b'L').field(SIZE.start, b"10000000000\0").bytes()]),
        ),
        ("component of 256", archive(&[pax(&[("path", &[b'n'; 256])]), file().bytes()])),
        ("path beyond PATH_MAX", archive(&[pax(&[("path", &deep)]), file().bytes()])),
    ] {
        refused(what, &Image::of_layer(bytes), "")?;
    }
    // As long as the kernel takes it, it is taken.
    let long = [b'n'; 255];
    let (_env, out) = taken(&[pax(&[("path", &long)]), file().bytes()])?;
    assert_eq!(fs::read(out.join(std::str::from_utf8(&long)?))?, MARK);
    Ok(())
}

/// A layer that stops in the middle until a test says go: the first answer is cut, the second waits.
fn halting(image: &Image, at: usize) -> Result<(FaultRegistry, Sender<()>)> {
    let (go, wait): (Sender<()>, Receiver<()>) = channel();
    let (wait, bytes, id) = (Mutex::new(wait), image.layer.clone(), digest(&image.layer));
    let registry = FaultRegistry::new(move |request, before| {
        if !request.is_blob() || !request.path.ends_with(&id) {
            return None;
        }
        if before == 0 {
            return Some(Reply::new(200).body(bytes.clone()).end(End::Cut(at)));
        }
        wait.lock().ok()?.recv_timeout(Duration::from_secs(60)).ok();
        None
    })?;
    registry.add("app", "1", image);
    Ok((registry, go))
}

/// Directories of this name below another.
fn find(dir: &Path, name: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.symlink_metadata().is_ok_and(|stat| stat.is_dir()) {
            if entry.file_name() == name {
                found.push(path.clone());
            }
            find(&path, name, found);
        }
    }
}

/// L15: a directory that is swapped for a link to the outside while its layer is being unpacked.
#[test]
fn a_directory_swapped_for_a_link_while_unpacking_leads_nowhere() -> Result<()> {
    need!(Root);
    let filler = vec![7; 4 << 20];
    let begin = [
        Member::new(b"swapped-here/", b'5').bytes(),
        Member::file(b"swapped-here/early", b"x").bytes(),
        Member::file(b"filler", &filler).bytes(),
    ]
    .concat();
    let late = Member::file(b"swapped-here/late", MARK).bytes();
    let image = Image::of_layer(archive(&[begin.clone(), late]));
    let (registry, go) = halting(&image, begin.len())?;
    let env = TestEnv::new()?;
    let outside = tempfile::tempdir()?;
    let running = env.start(env.command(["pull", &format!("{}/app:1", registry.host())]))?;
    let mut found = Vec::new();
    wait_until("the directory is unpacked", || {
        found.clear();
        find(env.store(), "swapped-here", &mut found);
        !found.is_empty()
    })?;
    let place = &found[0];
    fs::rename(place, place.with_file_name("moved-away"))?;
    std::os::unix::fs::symlink(outside.path(), place)?;
    go.send(()).ok();
    let run = running.finish()?;
    assert_eq!(fs::read_dir(outside.path())?.count(), 0, "written through the link\n{run}");
    Ok(())
}

/// L16: an unpacking that is killed is never seen as a layer, and is done again the next time.
#[test]
fn a_killed_unpacking_is_done_again() -> Result<()> {
    need!(Root);
    let begin = [Member::new(b"half-way/", b'5').bytes(), Member::file(b"filler", &vec![7; 4 << 20]).bytes()]
        .concat();
    let image = Image::of_layer(archive(&[begin.clone(), Member::file(b"late", MARK).bytes()]));
    let (registry, go) = halting(&image, begin.len())?;
    let env = TestEnv::new()?;
    let running = env.start(env.command(["pull", &format!("{}/app:1", registry.host())]))?;
    wait_until("half of the layer is unpacked", || {
        let mut found = Vec::new();
        find(env.store(), "half-way", &mut found);
        !found.is_empty()
    })?;
    running.kill()?;
    go.send(()).ok();
    assert_nothing_came(&env)?;
    pull(&env, &registry)?.ok();
    let context = env.context("files", &format!("FROM {}/app:1\n", registry.host()), &[])?;
    let out = env.work().join("out");
    env.build(&context, &["-o", &out.to_string_lossy()])?.ok();
    assert_eq!(fs::read(out.join("late"))?, MARK);
    env.run(["cache", "fsck"])?.ok();
    Ok(())
}

/// An OCI layout of an image of these layers.
fn layout(at: &Path, layers: &[&[u8]]) -> Result<()> {
    fs::create_dir_all(at.join("blobs/sha256"))?;
    let blob = |kind: &str, bytes: &[u8]| -> Result<Value> {
        let digest = digest(bytes);
        fs::write(at.join("blobs").join(digest.replace(':', "/")), bytes)?;
        Ok(
            json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": bytes.len()}),
        )
    };
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = blob("config.v1+json", config.to_string().as_bytes())?;
    let layers: Vec<Value> = layers.iter().map(|layer| blob("layer.v1.tar", layer)).collect::<Result<_>>()?;
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
    let manifest = blob("manifest.v1+json", manifest.to_string().as_bytes())?;
    fs::write(at.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())?;
    fs::write(at.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
    Ok(())
}

/// A layer whose archive leaves a directory out has it from what is below it: in each image from its own, and where it comes
/// twice in one, twice.
#[test]
fn a_layer_that_leaves_directories_out_is_another_on_each_base() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?;
    let opt = |mode: &[u8]| archive(&[Member::new(b"opt/", b'5').field(100, mode).bytes()]);
    let (private, open, shared) =
        (opt(b"0000700\0"), opt(b"0000755\0"), archive(&[Member::file(b"opt/x", MARK).bytes()]));
    let [one, other, both] = ["one", "other", "both"].map(|name| env.work().join(name));
    layout(&one, &[&private, &shared])?;
    layout(&other, &[&open, &shared])?;
    layout(&both, &[&private, &shared, &open, &shared])?;
    let context = env.context("files", "FROM base\n", &[])?;
    for (round, (base, mode)) in
        [(&one, 0o700), (&other, 0o755), (&both, 0o755), (&one, 0o700)].into_iter().enumerate()
    {
        let out = env.work().join(format!("out-{round}"));
        let named = format!("base=oci-layout://{}", base.display());
        env.build(&context, &["--build-context", &named, "-o", &out.to_string_lossy()])?.ok();
        assert_eq!(out.join("opt").metadata()?.permissions().mode() & 0o7777, mode, "{named}");
        assert_eq!(fs::read(out.join("opt/x"))?, MARK);
    }
    env.run(["cache", "fsck"])?.ok();
    env.assert_nothing_left();
    Ok(())
}
