//! The image commands as learners and scripts use them, judged by skopeo where it applies.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, Result};
use rbuild_tests::{Registry, TestEnv, judge, need};
use serde_json::{Value, json};

use crate::world;

const DOCKERFILE: &str = "FROM busybox\nENV GREETING=hello\nLABEL team=\"a b\" tier=web\nRUN echo made > /made\nCMD [\"sh\", \"/made\"]\n";

/// A world with `me/app:1.0` and `me/app:2.0`, which are one image, and its id.
fn with_app() -> Result<(Arc<Registry>, TestEnv, String)> {
    let (registry, env) = world()?;
    let context = env.context("app", DOCKERFILE, &[])?;
    let (_, id) = env.build_id(&context, &["-t", "me/app:1.0", "-t", "me/app:2.0"])?;
    Ok((registry, env, id))
}

/// Everything standard output says of a run that succeeds.
#[track_caller]
fn stdout(env: &TestEnv, args: &[&str]) -> Result<String> {
    Ok(env.run(args)?.ok().stdout)
}

#[test]
fn an_image_is_tagged_found_by_id_and_removed_name_by_name() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env, id) = with_app()?;
    assert_eq!(stdout(&env, &["tag", "me/app:1.0", "example.com/other"])?, "");
    assert_eq!(stdout(&env, &["tag", &id, "me/by-id:x"])?, "");
    let short = &id["sha256:".len()..][..12];
    assert_eq!(
        stdout(&env, &["image", "inspect", "-f", "{{.Id}}", "example.com/other", short, &id])?,
        format!("{id}\n").repeat(3)
    );

    env.run(["rmi", short])?.exits(1).says(&["must be forced", "multiple repositories"]);
    assert_eq!(stdout(&env, &["rmi", "me/by-id:x"])?, "Untagged: me/by-id:x\n");
    assert_eq!(
        stdout(&env, &["image", "rm", "example.com/other", "me/app:1.0"])?,
        "Untagged: example.com/other:latest\nUntagged: me/app:1.0\n"
    );
    assert_eq!(stdout(&env, &["rmi", "me/app:2.0"])?, format!("Untagged: me/app:2.0\nDeleted: {id}\n"));
    env.run(["rmi", "me/app:2.0"])?.exits(1).says(&["No such image: me/app:2.0"]);
    env.run(["rmi", "-f", "me/app:2.0"])?.exits(0).says(&["No such image: me/app:2.0"]);
    assert_eq!(stdout(&env, &["images", "-q", "me/app"])?, "");

    // Names are gone, layers are not: building again executes nothing.
    env.build(&env.work().join("app"), &["-t", "me/app:3.0"])?.ok().assert_all_cached();
    assert_eq!(stdout(&env, &["rmi", "-f", short])?, format!("Untagged: me/app:3.0\nDeleted: {id}\n"));
    Ok(())
}

#[test]
fn wrong_names_are_refused_with_what_is_there() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env, _) = with_app()?;
    env.run(["tag", "me/app:9", "x"])?.exits(1).says(&[
        "No such image: me/app:9",
        "me/app:1.0",
        "me/app:2.0",
    ]);
    env.run(["tag", "me/app:1.0", "Me/App"])?.exits(1).says(&["must be lowercase"]);
    env.run(["tag", "me/app:1.0"])?.exits(125);
    env.run(["history", "nothing"])?.exits(1).says(&["No such image: nothing:latest"]);
    Ok(())
}

#[test]
fn inspect_prints_docker_s_json_and_templates() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env, id) = with_app()?;
    let text = stdout(&env, &["inspect", "me/app:1.0"])?;
    assert!(text.starts_with("[\n    {\n        \"Id\": \"sha256:"), "{text}");
    let images: Value = serde_json::from_str(&text)?;
    let image = &images[0];
    assert_eq!(image["Id"], json!(id));
    assert_eq!(image["RepoTags"], json!(["me/app:1.0", "me/app:2.0"]));
    assert_eq!(image["Config"]["Labels"], json!({"team": "a b", "tier": "web"}));
    assert_eq!(image["Config"]["Cmd"], json!(["sh", "/made"]));
    assert_eq!(image["RootFS"]["Type"], "layers");
    assert_eq!(image["Os"], "linux");
    assert!(image["Size"].as_u64().is_some_and(|size| size > 100_000), "{text}");

    for (format, expected) in [
        ("{{.Id}}", format!("{id}\n")),
        ("{{index .RepoTags 1}}", "me/app:2.0\n".to_owned()),
        ("{{json .Config.Labels}}", "{\"team\":\"a b\",\"tier\":\"web\"}\n".to_owned()),
        ("{{.Config.Entrypoint}} {{.Config.Cmd}}", "[] [sh /made]\n".to_owned()),
        ("{{.Os}}/{{.Config.WorkingDir}}|", "linux/|\n".to_owned()),
        (
            r#"{{range .Config.Env}}{{if eq . "GREETING=hello"}}{{println .}}{{end}}{{end}}"#,
            "GREETING=hello\n\n".to_owned(),
        ),
    ] {
        assert_eq!(stdout(&env, &["inspect", "--format", format, "me/app:1.0"])?, expected, "{format}");
    }

    let missing = env.run(["inspect", "no/such", "me/app:1.0", "nor/this"])?.exits(1);
    let missing = missing.says(&["No such image: no/such:latest", "No such image: nor/this:latest"]);
    assert_eq!(serde_json::from_str::<Value>(&missing.stdout)?[0]["Id"], json!(id));
    assert_eq!(env.run(["inspect", "no/such"])?.exits(1).stdout, "[]\n");
    env.run(["inspect", "-f", "{{.Id", "me/app:1.0"])?.exits(64).says(&["template parsing error"]);
    env.run(["inspect", "-f", "{{.Nope}}", "me/app:1.0"])?.exits(1).says(&["no field .Nope", ".Id"]);
    Ok(())
}

#[test]
fn history_shows_the_steps_newest_first() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env, id) = with_app()?;
    let table = stdout(&env, &["history", "me/app:1.0"])?;
    let lines: Vec<&str> = table.lines().collect();
    let words: Vec<&str> = lines[0].split_whitespace().collect();
    assert_eq!(words, ["IMAGE", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"], "{table}");
    assert!(lines[1].starts_with(&id["sha256:".len()..][..12]) && lines[1].contains("CMD"), "{table}");
    assert!(lines[2].starts_with("<missing>") && lines[2].contains("RUN"), "{table}");
    let ids = stdout(&env, &["history", "-q", "--no-trunc", "me/app:1.0"])?;
    assert_eq!(ids.lines().next(), Some(&*id), "{ids}");
    let sizes = stdout(&env, &["history", "-H=false", "--format", "{{.Size}} {{.CreatedBy}}", "me/app:1.0"])?;
    assert!(
        sizes.lines().any(|line| line.starts_with("5 RUN")),
        "`made` and a line end are five bytes\n{sizes}"
    );
    Ok(())
}

#[test]
fn images_filters_and_formats() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env, id) = with_app()?;
    let context = env.context("plain", "FROM busybox\nRUN echo other > /other\n", &[])?;
    env.build(&context, &["-t", "example.com/plain:x"])?.ok();
    let names = |args: &[&str]| -> Result<Vec<String>> {
        let mut all = vec!["images", "--format", "{{.Repository}}:{{.Tag}}"];
        all.extend(args);
        let mut names: Vec<String> = stdout(&env, &all)?.lines().map(str::to_owned).collect();
        names.sort();
        Ok(names)
    };
    let app = ["me/app:1.0", "me/app:2.0"];
    assert_eq!(names(&[])?, ["example.com/plain:x", app[0], app[1]]);
    assert_eq!(names(&["-a", "me/app"])?, app);
    assert_eq!(names(&["me/app:2.0"])?, app[1..]);
    assert_eq!(names(&["m*/*"])?, app);
    assert_eq!(names(&["-f", "label=tier=web"])?, app);
    assert_eq!(names(&["-f", "label=team"])?, app);
    assert_eq!(names(&["-f", "label=tier=db"])?, [""; 0]);
    assert_eq!(
        names(&["--filter", "reference=*/plain", "--filter", "reference=*/*:2*"])?,
        ["example.com/plain:x", app[1]]
    );
    assert_eq!(names(&["-f", "dangling=true"])?, [""; 0]);
    assert_eq!(names(&["-f", "dangling=false"])?.len(), 3);
    assert_eq!(names(&["-f", "before=me/app:1.0", "-f", "reference=me/*"])?, [""; 0]);
    env.run(["images", "-f", "size=1"])?.exits(125);
    env.run(["images", "-f", "since=no/such"])?.exits(1).says(&["No such image"]);
    assert_eq!(stdout(&env, &["image", "ls", "-q", "--no-trunc", "me/app"])?, format!("{id}\n").repeat(2));
    let table = stdout(&env, &["images", "--format", r"table {{.Tag}}\t{{.ID}}", "me/app:1.0"])?;
    assert_eq!(table, format!("TAG       IMAGE ID\n1.0       {}\n", &id["sha256:".len()..][..12]));
    let row: Value = serde_json::from_str(&stdout(&env, &["images", "--format", "json", "me/app:1.0"])?)?;
    assert_eq!((&row["Repository"], &row["Containers"]), (&json!("me/app"), &json!("N/A")));
    Ok(())
}

#[test]
fn saved_archives_are_read_by_skopeo_and_loaded_again() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (_registry, env, id) = with_app()?;
    env.run(["pull", "busybox"])?.ok();
    let file = env.work().join("saved.tar");
    let path = file.to_string_lossy().into_owned();
    assert_eq!(stdout(&env, &["save", "-o", &path, "me/app", "busybox"])?, "");
    assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
    for name in ["me/app:1.0", "me/app:2.0", "busybox:latest"] {
        let docker = format!("docker-archive:{path}:{name}");
        let config = judge::config(&docker)?;
        assert_eq!(config["os"], "linux", "{name}");
    }
    let unpacked = judge::unpack(&format!("docker-archive:{path}:me/app:1.0"))?;
    assert_eq!(unpacked.text("/made")?, "made\n");
    let one = env.work().join("one.tar").to_string_lossy().into_owned();
    env.run(["save", "-o", &one, "me/app:1.0"])?.ok();
    assert_eq!(judge::unpack(&format!("oci-archive:{one}"))?.text("/made")?, "made\n");
    // Equal images, equal bytes.
    let again = env.work().join("again.tar").to_string_lossy().into_owned();
    env.run(["image", "save", "-o", &again, "me/app:1.0"])?.ok();
    assert_eq!(fs::read(&one)?, fs::read(&again)?);

    // Into another store, where nothing is known.
    let other = env.work().join("other-store").to_string_lossy().into_owned();
    let loaded = env.run(["--root", &other, "load", "-q", "-i", &path])?.ok();
    let mut lines: Vec<&str> = loaded.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        ["Loaded image: busybox:latest", "Loaded image: me/app:1.0", "Loaded image: me/app:2.0"]
    );
    assert_eq!(
        stdout(&env, &["--root", &other, "inspect", "-f", "{{.Id}}", "me/app:2.0"])?,
        format!("{id}\n")
    );
    let digest = |args: &[&str]| {
        stdout(&env, &[args, &["images", "--digests", "--format", "{{.Digest}}", "busybox"]].concat())
    };
    assert_eq!(digest(&["--root", &other])?, digest(&[])?, "a pulled image keeps its manifest");
    let resaved = env.work().join("resaved.tar").to_string_lossy().into_owned();
    env.run(["--root", &other, "save", "-o", &resaved, "me/app", "busybox"])?.ok();
    assert_eq!(fs::read(&path)?, fs::read(&resaved)?, "the round trip loses nothing");
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn archives_of_other_tools_are_loaded() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (registry, env) = world()?;
    let from = format!("docker://{}/library/busybox:latest", registry.host());
    let work = env.work();
    for (kind, suffix) in [("docker-archive", ":skopeo/docker:1"), ("oci-archive", ":skopeo/oci:1")] {
        let path = work.join(format!("{kind}.tar"));
        judge::copy(&from, &format!("{kind}:{}{suffix}", path.display()))?;
        let path = path.to_string_lossy().into_owned();
        let run = env.run(["load", "-i", &path])?.ok();
        assert_eq!(run.stdout, format!("Loaded image: {}\n", &suffix[1..]), "{run}");
        let inspected = judge::config(&format!("{kind}:{path}"))?;
        let layers = stdout(&env, &["inspect", "-f", "{{json .RootFS.Layers}}", &suffix[1..]])?;
        assert_eq!(serde_json::from_str::<Value>(&layers)?, inspected["rootfs"]["diff_ids"]);
    }
    // What was loaded is a base like any other.
    let context = env.context("on-loaded", "FROM skopeo/docker:1\nRUN echo on > /on\n", &[])?;
    env.build(&context, &["-t", "me/on"])?.ok();
    // A tag alone is no name: the image is found by its id.
    env.run(["rmi", "skopeo/docker:1", "skopeo/oci:1"])?.ok();
    let path = work.join("unnamed.tar");
    judge::copy(&from, &format!("oci-archive:{}:latest", path.display()))?;
    let run = env.run(["load", "-i", &path.to_string_lossy()])?.ok();
    let id = run.stdout.trim().strip_prefix("Loaded image ID: ").with_context(|| run.to_string())?.to_owned();
    assert_eq!(stdout(&env, &["images", "-f", "dangling=true", "-q", "--no-trunc"])?, format!("{id}\n"));
    env.run(["tag", &id, "me/named"])?.ok();
    assert_eq!(stdout(&env, &["images", "-f", "dangling=true", "-q"])?, "");
    Ok(())
}

#[test]
fn archives_are_read_from_a_pipe_and_compressed() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env, id) = with_app()?;
    let file = env.work().join("piped.tar");
    let mut save = env.command(["save", "me/app:1.0"]);
    save.stdout(fs::File::create(&file)?);
    let status = env.spawn(&mut save)?.wait()?;
    assert!(status.success());
    let compressed = std::process::Command::new("gzip").arg("-k").arg(&file).status()?;
    assert!(compressed.success());
    env.run(["rmi", "me/app:1.0", "me/app:2.0"])?.ok();
    let mut load = env.command(["load"]);
    load.stdin(Stdio::from(fs::File::open(env.work().join("piped.tar.gz"))?));
    let run = env.start(load)?.finish()?.ok();
    assert_eq!(run.stdout, "Loaded image: me/app:1.0\n", "{run}");
    assert_eq!(stdout(&env, &["inspect", "-f", "{{.Id}}", "me/app:1.0"])?, format!("{id}\n"));
    Ok(())
}

#[test]
fn damaged_archives_name_nothing() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env, _) = with_app()?;
    let path = env.work().join("whole.tar");
    env.run(["save", "-o", &path.to_string_lossy(), "me/app:1.0"])?.ok();
    let whole = fs::read(&path)?;
    let damaged = env.work().join("damaged.tar");
    let other = env.work().join("empty-store").to_string_lossy().into_owned();
    let mut flipped = whole.clone();
    // In the middle of the largest member, a layer.
    flipped[whole.len() / 2] ^= 1;
    for bytes in [&whole[..whole.len() / 2], &flipped, b"no archive at all", b"", &[0; 4096]] {
        fs::write(&damaged, bytes)?;
        let run = env.run(["--root", &other, "load", "-i", &damaged.to_string_lossy()])?.exits(1);
        assert!(run.stderr.contains("cannot load the archive"), "{run}");
        assert_eq!(stdout(&env, &["--root", &other, "images", "-q"])?, "", "{run}");
    }
    env.run(["load", "-i", "/no/such/file"])?.exits(1).says(&["/no/such/file"]);
    env.run(["save", "-o", "/no/such/dir/file", "me/app"])?.exits(1).says(&["/no/such/dir/file"]);
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn login_verifies_before_it_stores_and_logout_forgets() -> Result<()> {
    need!(Root, Registry, Bases, Password);
    let registry = Registry::with_password("user", "canary-secret")?;
    let env = TestEnv::new()?;
    let host = registry.host();
    let file =
        env.write("home/.docker/config.json", "{\n\t\"HttpHeaders\": {\"X\": \"y\"}, \"unknown\": [1]\n}")?;
    let before = fs::read_to_string(&file)?;
    let login = |args: &[&str], password: &str| {
        let input = env.write("work/password", password)?;
        let mut command = env.command([&["login"], args].concat());
        command.stdin(Stdio::from(fs::File::open(input)?));
        env.start(command)?.finish()
    };

    let refused =
        login(&["-u", "user", "--password-stdin", &host], "wrong-canary\n")?.exits(1).says(&[&host]);
    assert!(!refused.stderr.contains("canary") && !refused.stdout.contains("Succeeded"), "{refused}");
    assert_eq!(fs::read_to_string(&file)?, before, "nothing is stored that was not verified");
    env.run(["pull", &format!("{host}/library/busybox")])?.exits(1);

    let run =
        login(&["-u", "user", "--password-stdin", &host], "canary-secret\n")?.ok().says(&["unencrypted"]);
    assert_eq!(run.stdout, "Login Succeeded\n");
    assert!(!run.stderr.contains("canary"), "{run}");
    let config: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    assert_eq!((&config["HttpHeaders"], &config["unknown"]), (&json!({"X": "y"}), &json!([1])));
    assert!(config["auths"][&host]["auth"].is_string());
    env.run(["pull", &format!("{host}/library/busybox")])?.ok();

    let run = env.run(["logout", &host])?.ok();
    assert_eq!(run.stdout, format!("Removing login credentials for {host}\n"));
    assert!(!fs::read_to_string(&file)?.contains("auth\""));
    env.run(["logout", &host])?.ok();
    env.run(["pull", &format!("{host}/library/busybox")])?.exits(1);

    let inline = env.run(["login", "-u", "user", "-p", "canary-secret", &format!("http://{host}/v2/")])?.ok();
    inline.says(&["WARNING! Using --password via the CLI is insecure"]);
    for args in [&["--password-stdin", &host][..], &["-u", "user", "-p", "x", "--password-stdin", &host]] {
        login(args, "x\n")?.exits(125);
    }
    login(&["-u", "user", "--password-stdin", &host], "\n")?.exits(1).says(&["password is empty"]);
    // What is kept is tried first, and asked for anew when it is refused.
    assert_eq!(
        stdout(&env, &["login", &host])?,
        "Authenticating with existing credentials...\nLogin Succeeded\n"
    );
    fs::write(&file, json!({"auths": {&host: {"auth": "dXNlcjp3cm9uZw=="}}}).to_string())?;
    env.run(["login", &host])?.exits(1).says(&["is refused", "non TTY", "--password-stdin"]);
    env.run(["login", "-u", "user", "-p", "x", "no-registry"])?.exits(1).says(&["is not a registry"]);
    fs::write(&file, "{ broken")?;
    login(&["-u", "user", "--password-stdin", &host], "canary-secret\n")?.exits(1).says(&["config.json"]);
    assert_eq!(fs::read_to_string(&file)?, "{ broken");
    Ok(())
}

#[test]
fn a_new_credentials_file_is_private() -> Result<()> {
    need!(Root, Registry, Bases, Password);
    let registry = Registry::with_password("user", "secret")?;
    let env = TestEnv::new()?;
    env.run(["login", "-u", "user", "-p", "secret", &registry.host()])?.ok();
    let file = env.dir().join("home/.docker/config.json");
    assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(file.parent().context("parent")?)?.permissions().mode() & 0o777, 0o700);
    Ok(())
}

#[test]
fn the_image_group_has_docker_s_commands() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env, id) = with_app()?;
    let help = stdout(&env, &["image", "--help"])?;
    for word in ["ls", "rm", "inspect", "history", "tag", "save", "load", "pull", "push"] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(word)), "{word}\n{help}");
    }
    let context = env.work().join("app").to_string_lossy().into_owned();
    env.run(["image", "build", "-q", "-t", "me/grouped", &context])?.ok();
    assert_eq!(stdout(&env, &["image", "list", "-q", "--no-trunc", "me/grouped"])?, format!("{id}\n"));
    env.run(["image", "tag", "me/grouped", "me/grouped:2"])?.ok();
    env.run(["image", "history", "me/grouped:2"])?.ok();
    env.run(["image", "remove", "me/grouped", "me/grouped:2"])?.ok();
    Ok(())
}
