//! Certificates and proxies: whom rbuild trusts, and which way it goes.

use anyhow::Result;
use rbuild_tests::fault::{FaultRegistry, Image, TunnelProxy};
use rbuild_tests::{Registry, TestEnv, Tls, need};

const HOST: &str = "registry.test";

/// The only way to the registry's name.
fn way_to(registry: &Registry) -> Result<TunnelProxy> {
    TunnelProxy::new(&[(&format!("{HOST}:443"), registry.address())])
}

#[test]
fn a_server_s_own_certificate_is_pinned_where_it_is_put() -> Result<()> {
    need!(Root, Registry, Bases, Openssl);
    let registry = Registry::with_tls(HOST, Tls { is_own_authority: true, ..Tls::default() })?;
    let other = Registry::with_tls(HOST, Tls { is_own_authority: true, ..Tls::default() })?;
    let proxy = TunnelProxy::new(&[
        ("registry.test:443", registry.address()),
        ("other.test:443", registry.address()),
    ])?;
    let env = TestEnv::new()?.with_variable("HTTPS_PROXY", &proxy.url());
    let name = "registry.test/library/busybox";
    env.run(["pull", name])?.exits(1).says(&["TLS", "certs.d/registry.test"]);
    let put = |host: &str, from: &Registry| {
        env.write(format!("home/.config/containers/certs.d/{host}/ca.crt"), &from.authority()?)
    };
    // Another's certificate for the same name is not this one's.
    put("registry.test", &other)?;
    env.run(["pull", name])?.exits(1).says(&["TLS"]);
    put("registry.test", &registry)?;
    env.run(["pull", name])?.ok();
    // The name counts as ever.
    put("other.test", &registry)?;
    env.run(["pull", "other.test/library/busybox"])?.exits(1).says(&["TLS", "other.test"]);
    Ok(())
}

#[test]
fn client_certificates_come_from_docker_s_containerd_s_and_buildkit_s_files() -> Result<()> {
    need!(Root, Registry, Bases, Openssl);
    let registry = Registry::with_tls(HOST, Tls { wants_clients: true, ..Tls::default() })?;
    let proxy = way_to(&registry)?;
    let (certificate, key) = registry.client_pair()?;
    let authority = registry.authority()?;
    let name = "registry.test/library/busybox";
    let world = |folder: &str, with_pair: bool| -> Result<TestEnv> {
        let env = TestEnv::new()?.with_variable("HTTPS_PROXY", &proxy.url());
        env.write(format!("{folder}/ca.crt"), &authority)?;
        if with_pair {
            env.write(format!("{folder}/me.cert"), &certificate)?;
            env.write(format!("{folder}/me.key"), &key)?;
        }
        Ok(env)
    };
    let docker = "home/.config/containers/certs.d/registry.test";
    world(docker, false)?.run(["pull", name])?.exits(1).says(&["registry.test"]);
    let env = world(docker, true)?;
    env.run(["pull", name])?.ok();
    let context = env.context("mtls", &format!("FROM {name}\nLABEL a=b\n"), &[])?;
    env.build(&context, &["-t", "registry.test/mtls/app:1", "--push"])?.ok();

    let env = world("home/papers", true)?;
    env.write(
        "home/.config/containerd/certs.d/registry.test/hosts.toml",
        "server = \"https://registry.test\"\nca = \"../../../../papers/ca.crt\"\n\
         client = [[\"../../../../papers/me.cert\", \"../../../../papers/me.key\"]]\n",
    )?;
    env.run(["pull", name])?.ok();

    let env = world("home/papers", true)?;
    env.write(
        "home/.config/buildkit/buildkitd.toml",
        "[registry.\"registry.test\"]\nca = [\"../../papers/ca.crt\"]\n[[registry.\"registry.test\".keypair]]\n\
         key = \"../../papers/me.key\"\ncert = \"../../papers/me.cert\"\n",
    )?;
    env.run(["pull", name])?.ok();
    Ok(())
}

#[test]
fn mirrors_of_containerd_and_buildkit_serve_the_hub_s_names() -> Result<()> {
    need!(Root, Registry, Bases);
    let registry = Registry::shared()?;
    let host = registry.host();
    // Nobody is there under the hub's own name.
    for (file, text) in [
        ("home/.config/containerd/certs.d/docker.io/hosts.toml", format!("[host.\"http://{host}\"]\n")),
        (
            "home/.config/buildkit/buildkitd.toml",
            format!("[registry.\"docker.io\"]\nmirrors = [\"{host}\"]\n"),
        ),
        (
            "home/.docker/buildx/buildkitd.default.toml",
            format!("[registry.\"docker.io\"]\nmirrors = [\"{host}\"]\n"),
        ),
    ] {
        let env = TestEnv::new()?.with_variable("HTTPS_PROXY", "http://127.0.0.1:1");
        env.write(file, &text)?;
        env.run(["pull", "busybox"])?.ok();
    }
    let env = TestEnv::new()?;
    env.write("home/.config/containerd/certs.d/docker.io/hosts.toml", "[host")?;
    env.run(["pull", "busybox"])?.exits(1).says(&["hosts.toml"]);
    Ok(())
}

/// Two connections break in the middle of what they bring, over TLS and HTTP/2, as a server that goes away does it.
#[test]
fn connections_that_break_within_a_layer_are_no_failure() -> Result<()> {
    need!(Root, Registry, Bases, Openssl);
    let registry = Registry::with_certificate(HOST)?;
    let proxy = TunnelProxy::cutting(&[("registry.test:443", registry.address())], 2, 300_000)?;
    let env = TestEnv::new()?.with_variable("HTTPS_PROXY", &proxy.url());
    env.write("home/.config/containers/certs.d/registry.test/ca.crt", &registry.authority()?)?;
    env.run(["pull", "registry.test/library/debian"])?.ok();
    assert!(proxy.heads().len() >= 3, "connections were cut: {:?}", proxy.heads());
    env.run(["cache", "fsck"])?.ok();
    Ok(())
}

/// A proxy for clear text is asked for every host but those of `NO_PROXY`: names, suffixes, networks, everything.
#[test]
fn no_proxy_keeps_hosts_away_from_the_proxy() -> Result<()> {
    let proxy = FaultRegistry::good()?;
    proxy.add("app", "1", &Image::of_size(100));
    // Nothing connects to the broadcast address, and that shows at once.
    let hosts = ["registry.test", "sub.corp.test", "255.255.255.255:5000"];
    let pull = |no_proxy: &str, host: &str| -> Result<bool> {
        let env = TestEnv::new()?
            .with_variable("HTTP_PROXY", &format!("http://{}", proxy.host()))
            .with_variable("NO_PROXY", no_proxy);
        let tables: String =
            hosts.iter().map(|host| format!("[registry.\"{host}\"]\nhttp = true\n")).collect();
        env.write("home/.config/buildkit/buildkitd.toml", &tables)?;
        let before = proxy.seen().len();
        // Away from the proxy there is no such host.
        let run = env.run(["pull", &format!("{host}/app:1")])?;
        let was_asked = proxy.seen().len() > before;
        assert_eq!(run.code == Some(0), was_asked, "{no_proxy} {host}: {run}");
        Ok(was_asked)
    };
    for host in hosts {
        assert!(pull("other.test,.example.com,10.0.0.0/8", host)?, "{host}");
    }
    for (no_proxy, host) in [
        ("registry.test", "registry.test"),
        ("x.test, .corp.test", "sub.corp.test"),
        ("corp.test", "sub.corp.test"),
        ("255.0.0.0/8", "255.255.255.255:5000"),
        ("255.255.255.255", "255.255.255.255:5000"),
        ("*", "registry.test"),
    ] {
        assert!(!pull(no_proxy, host)?, "{no_proxy} {host}");
    }
    Ok(())
}
