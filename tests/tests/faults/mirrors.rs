//! Mirrors as containerd's `hosts.toml` describes them.

use anyhow::Result;
use rbuild_tests::TestEnv;
use rbuild_tests::fault::{FaultRegistry, Image, Reply, Request, digest};

/// Paths of a mirror's API, headers for it alone, and whose image it is that is wanted.
#[test]
fn a_mirror_is_asked_where_its_api_is_and_told_what_the_file_says() -> Result<()> {
    let image = Image::of_size(1000);
    let stored = image.clone();
    let mirror = FaultRegistry::new(move |request: &Request, _| {
        let reply = |bytes: &[u8]| Some(Reply::new(200).body(bytes));
        match request.path.strip_prefix("/proxy/v2/")?.strip_suffix("?ns=registry.test")? {
            "" => reply(b"{}"),
            "team/app/manifests/1" => {
                Some(reply(&stored.manifest)?.header("Content-Type", stored.media_type.clone()))
            }
            path if path == format!("team/app/blobs/{}", digest(&stored.config)) => reply(&stored.config),
            path if path == format!("team/app/blobs/{}", digest(&stored.layer)) => reply(&stored.layer),
            _ => None,
        }
    })?;
    let env = TestEnv::new()?;
    let text = format!(
        "[host.\"http://{}/proxy\"]\n[host.\"http://{0}/proxy\".header]\nX-Team = [\"one\"]\n",
        mirror.host()
    );
    env.write("home/.config/containerd/certs.d/registry.test/hosts.toml", &text)?;
    env.run(["pull", "registry.test/team/app:1"])?.ok();
    let seen = mirror.seen();
    assert!(seen.iter().all(|request| request.header("x-team") == "one"), "{seen:?}");
    assert!(seen.iter().any(Request::is_blob), "{seen:?}");
    Ok(())
}

/// A host's own proxy: used although `NO_PROXY` names every host, and its credentials are for it alone.
#[test]
fn a_host_is_reached_through_its_own_proxy_whose_credentials_nobody_sees() -> Result<()> {
    let proxy = FaultRegistry::good()?;
    proxy.add("team/app", "1", &Image::of_size(1000));
    let env = TestEnv::new()?.with_variable("NO_PROXY", "*").with_variable("RUST_LOG", "trace");
    let file = "home/.config/containerd/certs.d/registry.test/hosts.toml";
    let address = format!("me:canary-91ac@{}", proxy.host());
    env.write(file, &format!("server = \"http://registry.test\"\nproxy = \"http://{address}\"\n"))?;
    let pulled = env.run(["--debug", "pull", "registry.test/team/app:1"])?.ok();
    let failed = env.run(["--debug", "pull", "registry.test/team/app:2"])?.exits(1);
    assert!(proxy.seen().iter().all(|request| !request.header("proxy-authorization").is_empty()));
    env.write(file, &format!("dial_timeout = \"3s\"\nproxy = \"http://{address}/path\"\n"))?;
    let wrong = env.run(["--debug", "pull", "registry.test/team/app:1"])?.exits(1);
    let wrong = wrong.says(&["hosts.toml` has `proxy = \"http://127.0.0.1:", "http://HOST:PORT"]);
    env.write(file, "dial_timeout = \"soon\"\n")?;
    env.run(["pull", "registry.test/team/app:1"])?
        .exits(1)
        .says(&["hosts.toml` has `dial_timeout = \"soon\"`, which should be a duration such as \"3s\""]);
    for run in [pulled, failed, wrong] {
        let said = format!("{run}");
        assert!(!said.contains("canary") && !said.contains("bWU6"), "{said}");
    }
    Ok(())
}
