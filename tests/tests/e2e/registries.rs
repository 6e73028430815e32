//! Pull and push against a real registry server, with and without passwords.

use anyhow::{Context, Result};
use rbuild_tests::fault::TunnelProxy;
use rbuild_tests::token_server::TokenServer;
use rbuild_tests::{Registry, TestEnv, judge, need};
use serde_json::json;

use crate::world;

/// `user:secret`.
const CREDENTIALS: &str = "dXNlcjpzZWNyZXQ=";

#[test]
fn pull_by_tag_and_by_digest_make_the_image_local() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (registry, env) = world()?;
    let base = format!("{}/library/busybox", registry.host());
    let digest = judge::manifest(&format!("docker://{base}:latest"))?["Digest"].clone();
    let digest = digest.as_str().context("digest")?;
    let tagged = env.run(["pull", &base])?.ok();
    assert_eq!(tagged.stdout.lines().last(), Some(&*format!("{base}:latest")), "{tagged}");
    let pinned = format!("{base}@{digest}");
    let quiet = env.run(["pull", "-q", &pinned])?.ok();
    assert_eq!(quiet.stdout, format!("{pinned}\n"), "{quiet}");
    assert!(env.run(["images"])?.ok().stdout.contains(&base));

    // What was pulled is used when the registry is away.
    drop(registry);
    let context = env.context("pinned", &format!("FROM {pinned}\nRUN true\n"), &[])?;
    env.build(&context, &[])?.ok();
    Ok(())
}

#[test]
fn push_sends_what_a_build_kept() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (registry, env) = world()?;
    let context = env.context("pushed", "FROM busybox\nRUN echo pushed > /x\n", &[])?;
    let name = format!("{}/pushed/image:2", registry.host());
    let (_, id) = env.build_id(&context, &["-t", &name])?;
    assert!(judge::manifest(&format!("docker://{name}")).is_err(), "a build without --push pushes nothing");
    let run = env.run(["push", &name])?.ok();
    let last = run.stdout.lines().last().unwrap_or_default();
    let digest = judge::manifest(&format!("docker://{name}"))?["Digest"].clone();
    let digest = digest.as_str().context("digest")?;
    assert!(last.starts_with(&format!("2: digest: {digest} size: ")), "{run}");
    let (pushed, same) = env.build_id(&context, &["-t", &name, "--push"])?;
    assert_eq!(id, same, "{pushed}");
    assert_eq!(
        judge::manifest(&format!("docker://{name}"))?["Digest"],
        json!(digest),
        "one image, one digest"
    );
    assert_eq!(judge::unpack(&format!("docker://{name}"))?.text("/x")?, "pushed\n");
    Ok(())
}

#[test]
fn credentials_come_from_the_docker_config_file() -> Result<()> {
    need!(Root, Registry, Bases, Password);
    let registry = Registry::with_password("user", "secret")?;
    let env = TestEnv::new()?.using(&registry)?;
    let host = registry.host();
    let text = format!("FROM {host}/library/busybox\nRUN echo private > /x\n");
    let context = env.context("private", &text, &[])?;
    let name = format!("{host}/private/image");

    // Without and with the wrong password: the host is named, and what to do.
    env.build(&context, &["-t", &name])?.exits(1).says(&[&host]);
    let wrong = json!({"auths": {&host: {"auth": "dXNlcjp3cm9uZw=="}}});
    env.write("home/.docker/config.json", &wrong.to_string())?;
    env.build(&context, &["-t", &name])?.exits(1).says(&[&host, "rbuild login"]);

    let right = json!({"auths": {&host: {"auth": CREDENTIALS}}, "unknown": {"kept": true}});
    env.write("home/.docker/config.json", &right.to_string())?;
    let run = env.build(&context, &["-t", &name, "--push"])?.ok();
    assert!(
        !run.stderr.contains(CREDENTIALS) && !run.stderr.contains("secret"),
        "credentials are shown\n{run}"
    );
    env.run(["pull", &format!("{name}:latest")])?.ok();
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn docker_config_variable_says_where_credentials_are() -> Result<()> {
    need!(Root, Registry, Bases, Password);
    let registry = Registry::with_password("user", "secret")?;
    let env = TestEnv::new()?;
    let host = registry.host();
    let file =
        env.write("work/docker/config.json", &json!({"auths": {&host: {"auth": CREDENTIALS}}}).to_string())?;
    let env = env.with_variable("DOCKER_CONFIG", &file.parent().context("parent")?.to_string_lossy());
    env.run(["pull", &format!("{host}/library/busybox")])?.ok();
    Ok(())
}

#[test]
fn a_second_push_sends_no_layer_again() -> Result<()> {
    need!(Root, Registry, Bases);
    let (registry, env) = world()?;
    let text = "FROM busybox\nRUN head -c 20000000 /dev/urandom > /big\n";
    let context = env.context("twice", text, &[])?;
    let name = format!("{}/twice/image", registry.host());
    let (first, digest) = env.build_digest(&context, &["-t", &name, "--push"])?;
    let (second, again) = env.build_digest(&context, &["-t", &name, "--push"])?;
    assert_eq!(digest, again);
    assert!(second.wall < first.wall, "first {:?}, second {:?}", first.wall, second.wall);
    second.assert_all_cached();
    Ok(())
}

#[test]
fn metadata_on_a_base_fetches_no_layer_from_a_real_registry() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let registry = Registry::with_bases()?;
    let env = TestEnv::new()?;
    let host = registry.host();
    let text = format!("FROM {host}/library/debian\nENV LAZY=yes\nENTRYPOINT [\"/bin/true\"]\n");
    let context = env.context("lazy", &text, &[])?;
    let name = format!("{host}/lazy/image:1");
    env.build(&context, &["-t", &name, "--push"])?.ok().says(&[": Mounted from library/debian"]);
    let base = judge::manifest(&format!("docker://{host}/library/debian:latest"))?;
    let layers: Vec<String> = serde_json::from_value(base["Layers"].clone())?;
    let fetched = |registry: &Registry| {
        let is_layer = |request: &String| {
            request.starts_with("GET ") && layers.iter().any(|layer| request.ends_with(layer))
        };
        registry.requests().into_iter().filter(is_layer).count()
    };
    assert!(
        registry.requests().iter().any(|request| request.starts_with("POST") && request.contains("mount="))
    );
    assert_eq!(fetched(&registry), 0, "{:?}", registry.requests());
    assert!(judge::unpack(&format!("docker://{name}"))?.text("/etc/os-release")?.contains("Debian"));

    // A step that runs there brings the layers in, each once.
    let before = fetched(&registry);
    let context = env.context("runs", &format!("FROM {name}\nRUN test \"$LAZY\" = yes\n"), &[])?;
    env.build(&context, &[])?.ok();
    assert_eq!(fetched(&registry) - before, layers.len());
    Ok(())
}

#[test]
fn a_moved_tag_is_seen_with_pull_only() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (registry, env) = world()?;
    let base = format!("{}/moved/base:1", registry.host());
    let from = |name: &str| format!("docker://{}/library/{name}:latest", registry.host());
    judge::copy(&from("busybox"), &format!("docker://{base}"))?;
    let context = env.context("moved", &format!("FROM {base}\nRUN echo on-it\n"), &[])?;
    let (_, first) = env.build_digest(&context, &[])?;
    judge::copy(&from("debian"), &format!("docker://{base}"))?;
    let (kept, second) = env.build_digest(&context, &[])?;
    kept.assert_all_cached();
    assert_eq!(first, second);
    let (pulled, third) = env.build_digest(&context, &["--pull"])?;
    assert_eq!(pulled.executed().len(), 1, "{pulled}");
    assert_ne!(second, third);
    Ok(())
}

#[test]
fn a_token_server_s_tokens_open_just_what_they_should() -> Result<()> {
    need!(Root, Registry, Bases, Judges, Openssl);
    let tokens = TokenServer::new("me", "secret")?;
    let registry = Registry::with_bases_and(&tokens.config())?;
    let (env, host) = (TestEnv::new()?.using(&registry)?, registry.host());
    let context = env.context("tokens", &format!("FROM {host}/library/busybox\nRUN echo x > /x\n"), &[])?;
    let name = format!("{host}/me/app:1");
    env.build(&context, &["-t", &name, "--push"])?.exits(1).says(&["rbuild login"]);
    env.run(["login", "-u", "me", "-p", "wrong", &host])?.exits(1);
    env.run(["login", "-u", "me", "-p", "secret", &host])?.ok();
    env.build(&context, &["-t", &name, "--push"])?.ok();
    let granted = tokens.granted();
    let mounts =
        |scope: &String| scope.contains("me/app:pull,push") && scope.contains("library/busybox:pull");
    assert!(granted.iter().any(mounts), "the base's layer is mounted with both scopes: {granted:?}");
    let other = format!("{host}/others/app:1");
    env.build(&context, &["-t", &other, "--push"])?.exits(1).says(&[&host, "others/app"]);
    let judged = format!("docker://{name}");
    let credentials = ["inspect", "--tls-verify=false", "--creds", "me:secret", &judged];
    judge::skopeo(&credentials)?;
    TestEnv::new()?.run(["pull", &name])?.exits(1).says(&["rbuild login"]);
    Ok(())
}

/// A name of its own, a certificate of its own authority, and the only way there is a proxy.
#[test]
fn an_own_authority_is_trusted_where_it_is_put_and_nowhere_else() -> Result<()> {
    need!(Root, Registry, Bases, Openssl);
    let registry = Registry::with_certificate("registry.test")?;
    let proxy = TunnelProxy::new(&[
        ("registry.test:443", registry.address()),
        ("other.test:443", registry.address()),
    ])?;
    let env = TestEnv::new()?.with_variable("HTTPS_PROXY", &proxy.url());
    let name = "registry.test/library/busybox";
    env.run(["pull", name])?.exits(1).says(&["TLS", "certs.d/registry.test"]);
    let authority = registry.authority()?;
    env.write("home/.config/containers/certs.d/registry.test/ca.crt", &authority)?;
    env.write("home/.config/containers/certs.d/other.test/ca.crt", &authority)?;
    env.run(["pull", name])?.ok();
    // The certificate is for another name.
    env.run(["pull", "other.test/library/busybox"])?.exits(1).says(&["TLS", "other.test"]);
    let context = env.context("tls", &format!("FROM {name}\nLABEL a=b\n"), &[])?;
    env.build(&context, &["-t", "registry.test/tls/app:1", "--push"])?.ok();
    // The same proxy out of Docker's config file.
    let env = TestEnv::new()?;
    env.write(
        "home/.docker/config.json",
        &json!({"proxies": {"default": {"httpsProxy": proxy.url()}}}).to_string(),
    )?;
    env.write("home/.config/containers/certs.d/registry.test/ca.crt", &authority)?;
    env.run(["pull", name])?.ok();
    Ok(())
}

#[test]
fn a_pull_through_mirror_serves_docker_hub_s_names() -> Result<()> {
    need!(Root, Registry, Bases);
    let upstream = Registry::with_bases()?;
    let mirror = Registry::mirror_of(&upstream)?;
    let env = TestEnv::new()?.with_hub_at(&mirror.host())?;
    env.run(["pull", "busybox"])?.ok();
    drop(upstream);
    // The mirror has it now; a fresh store gets it from there.
    let other = TestEnv::new()?.with_hub_at(&mirror.host())?;
    other.run(["pull", "busybox"])?.ok();
    Ok(())
}
