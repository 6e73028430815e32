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
