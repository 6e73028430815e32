//! Credentials, challenges, token servers, redirects.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::Result;
use rbuild_tests::TestEnv;
use rbuild_tests::fault::{FaultRegistry, Image, Reply, TunnelProxy};
use serde_json::json;

use crate::{CANARY, assert_nothing_came, log_in, pull};

/// R5: a registry that is never content gets at most three tries of a request.
#[test]
fn endless_challenges_end() -> Result<()> {
    for challenge in ["Basic realm=\"x\"", "Bearer realm=\"http://HOST/token\",service=\"s\""] {
        let registry = FaultRegistry::new(move |request, _| {
            if request.path.starts_with("/token") {
                return Some(Reply::new(200).body(r#"{"token":"t"}"#));
            }
            let challenge = challenge.replace("HOST", request.header("host"));
            Some(Reply::new(401).header("WWW-Authenticate", challenge))
        })?;
        let env = TestEnv::new()?;
        log_in(&env, &[&registry.host()])?;
        let run = pull(&env, &registry)?.exits(1).says(&[&registry.host(), "rbuild login"]);
        assert!(!run.stderr.contains(CANARY), "{run}");
        assert!(registry.count("GET", "/manifests/1") <= 3, "{}", registry.count("GET", "/manifests/1"));
    }
    Ok(())
}

/// R5: answers of a token server without a token, and challenges that are garbage.
#[test]
fn broken_challenges_and_token_servers_are_named() -> Result<()> {
    for (challenge, token, words) in [
        ("Bearer realm=\"http://HOST/token\"", "{}", "gave no token"),
        ("Bearer realm=\"http://HOST/token\"", "<html>", "gave no token"),
        ("Bearer realm=", "", "not supported"),
        ("Digest realm=\"x\", nonce=\"y\"", "", "not supported"),
        (",,,=\"", "", "not supported"),
    ] {
        let registry = FaultRegistry::new(move |request, _| {
            if request.path.starts_with("/token") {
                return Some(Reply::new(200).body(token));
            }
            let challenge = challenge.replace("HOST", request.header("host"));
            Some(Reply::new(401).header("WWW-Authenticate", challenge))
        })?;
        pull(&TestEnv::new()?, &registry)?.exits(1).says(&[words, &registry.host()]);
    }
    Ok(())
}

/// R5: several challenges at once, and a token that expires in the middle.
#[test]
fn the_best_challenge_is_answered_and_old_tokens_are_renewed() -> Result<()> {
    let image = Image::of_size(1000);
    let registry = FaultRegistry::new(|request, before| {
        if request.path.starts_with("/token") {
            return Some(Reply::new(200).body(format!(r#"{{"token":"t{before}","expires_in":300}}"#)));
        }
        // The first token is good for manifests only: it expires before the blobs.
        let wanted = if request.path.contains("/blobs/") { "Bearer t1" } else { "Bearer t0" };
        let challenge = format!("Bearer realm=\"http://{}/token\",service=\"s\"", request.header("host"));
        (request.header("authorization") != wanted).then(|| {
            Reply::new(401)
                .header("WWW-Authenticate", "Negotiate")
                .header("WWW-Authenticate", "Basic realm=\"x\"")
                .header("WWW-Authenticate", challenge)
        })
    })?;
    registry.add("app", "1", &image);
    pull(&TestEnv::new()?, &registry)?.ok();
    Ok(())
}

/// R8: a redirect to another origin goes without credentials; a loop of redirects ends.
#[test]
fn redirects_elsewhere_get_no_credentials() -> Result<()> {
    let image = Image::of_size(1000);
    let storage = FaultRegistry::good()?;
    storage.add("app", "1", &image);
    let host = storage.host();
    let registry = FaultRegistry::new(move |request, _| {
        if request.header("authorization").is_empty() {
            return Some(Reply::new(401).header("WWW-Authenticate", "Basic realm=x"));
        }
        let address = format!("http://{host}{}", request.path);
        request
            .is_blob()
            .then(|| Reply::new(307).header("Location", address).header("Set-Cookie", "a=canary"))
    })?;
    registry.add("app", "1", &image);
    let env = TestEnv::new()?;
    log_in(&env, &[&registry.host()])?;
    pull(&env, &registry)?.ok();
    assert!(storage.count("GET", "/blobs/") >= 2);
    storage.assert_no_credentials(CANARY);

    let looping = FaultRegistry::new(|request, _| {
        request.is_manifest().then(|| Reply::new(307).header("Location", request.path.clone()))
    })?;
    pull(&TestEnv::new()?, &looping)?.exits(1).says(&["too many redirects"]);
    assert!(looping.count("GET", "/manifests/1") <= 11);
    Ok(())
}

/// R9: a token server at an address that no registry may name, directly or by a redirect.
#[test]
fn internal_token_servers_are_refused() -> Result<()> {
    for realm in ["http://169.254.169.254/token", "http://0.0.0.0/token", "http://[fe80::1]/token"] {
        let registry = FaultRegistry::new(move |_, _| {
            Some(
                Reply::new(401).header("WWW-Authenticate", format!("Bearer realm=\"{realm}\",service=\"s\"")),
            )
        })?;
        let env = TestEnv::new()?;
        log_in(&env, &[&registry.host()])?;
        pull(&env, &registry)?.exits(1).says(&["internal address"]);
    }
    let redirecting = FaultRegistry::new(|request, _| {
        Some(match request.path.starts_with("/token") {
            true => Reply::new(302).header("Location", "http://169.254.169.254/latest/meta-data/"),
            false => Reply::new(401).header(
                "WWW-Authenticate",
                format!("Bearer realm=\"http://{}/token\",service=\"s\"", request.header("host")),
            ),
        })
    })?;
    pull(&TestEnv::new()?, &redirecting)?.exits(1).says(&["internal address"]);
    Ok(())
}

/// R15: a mount that is refused, for whatever reason, becomes an upload, and rights are not widened.
#[test]
fn refused_mounts_become_uploads() -> Result<()> {
    let image = Image::of_size(1000);
    for status in [202, 404, 401, 403] {
        let registry = FaultRegistry::new(move |request, _| {
            let refuses = request.path.contains("mount=") && status != 202;
            if refuses {
                return Some(Reply::new(status));
            }
            // A registry that ignores the parameters opens a session.
            (request.path.contains("mount=") && status == 202)
                .then(|| Reply::new(202).header("Location", "/v2/app/blobs/uploads/999"))
        })?;
        registry.add("base", "1", &image);
        let env = TestEnv::new()?;
        let text = format!("FROM {}/base:1\nLABEL a=b\n", registry.host());
        let context = env.context("mount", &text, &[])?;
        let name = format!("{}/app:1", registry.host());
        env.build(&context, &["-t", &name, "--push"])?.ok();
        assert!(registry.manifest("app:1").is_some(), "{status}");
    }
    Ok(())
}

/// R19: a list of tags that goes on at another server is not followed there (loops: the client's own tests).
#[test]
fn lists_stay_at_their_registry() -> Result<()> {
    let other = FaultRegistry::good()?;
    let next = format!("<http://{}/v2/app/tags/list>; rel=\"next\"", other.host());
    let registry = FaultRegistry::new(move |request, _| {
        let is_list = request.path.contains("/tags/list");
        is_list.then(|| Reply::new(200).header("Link", next.clone()).body(r#"{"tags":["1"]}"#))
    })?;
    let run = TestEnv::new()?.run(["pull", "-a", &format!("{}/app", registry.host())])?.exits(1);
    assert!(run.stderr.contains("list"), "{run}");
    assert!(other.seen().is_empty());
    Ok(())
}

/// R20: a proxy that answers for itself, and the registry's credentials, which are not the proxy's.
#[test]
fn proxies_that_refuse_are_named_and_get_no_credentials() -> Result<()> {
    let proxy = FaultRegistry::new(|_, _| {
        Some(Reply::new(407).header("Proxy-Authenticate", "Basic").body("<title>Proxy login</title>"))
    })?;
    for scheme in ["HTTP_PROXY", "https_proxy"] {
        let env = TestEnv::new()?.with_variable(scheme, &format!("http://{}", proxy.host()));
        env.write(
            "home/.docker/config.json",
            &json!({"auths": {"registry.test": {"auth": crate::base64(format!("me:{CANARY}").as_bytes())}}})
                .to_string(),
        )?;
        env.write(
            "home/.config/containers/registries.conf",
            "[[registry]]\nlocation = \"registry.test\"\ninsecure = true\n",
        )?;
        let run = env.run(["pull", "registry.test/app:1"])?.exits(1).says(&["registry.test"]);
        assert!(!run.stderr.contains(CANARY));
    }
    assert!(!proxy.seen().is_empty(), "the proxy was asked");
    proxy.assert_no_credentials(CANARY);

    // One that lets nothing through.
    let tunnel = TunnelProxy::new(&[])?;
    let env = TestEnv::new()?.with_variable("HTTPS_PROXY", &tunnel.url());
    env.run(["pull", "registry.test/app:1"])?.exits(1).says(&["registry.test", "proxy"]);
    assert!(tunnel.heads().iter().all(|head| head.starts_with("CONNECT ")), "{:?}", tunnel.heads());
    Ok(())
}

/// R22: helpers that print garbage, fail, or say secrets on standard error.
#[test]
fn bad_helpers_are_named_and_their_words_are_not_repeated() -> Result<()> {
    for (script, words) in [
        ("echo nonsense", "docker-credential-bad"),
        ("echo canary-5f3a9c >&2; exit 1", "docker-credential-bad"),
        ("echo 'no such thing'; exit 1", "no such thing"),
    ] {
        let registry = FaultRegistry::new(|_, _| Some(Reply::new(401).header("WWW-Authenticate", "Basic")))?;
        let env = TestEnv::new()?;
        let helper =
            env.write("work/bin/docker-credential-bad", &format!("#!/bin/sh\ncat >/dev/null\n{script}\n"))?;
        fs::set_permissions(&helper, fs::Permissions::from_mode(0o755))?;
        env.write("home/.docker/config.json", &json!({"credsStore": "bad"}).to_string())?;
        let path =
            format!("{}:{}", env.dir().join("work/bin").display(), std::env::var("PATH").unwrap_or_default());
        let env = env.with_variable("PATH", &path);
        let run = pull(&env, &registry)?.exits(1).says(&[words]);
        assert!(!run.stderr.contains(CANARY) && !run.stdout.contains(CANARY), "{run}");
    }
    Ok(())
}

/// X1, X5: a password is seen nowhere but at its registry, at any verbosity, in success and in failure.
#[test]
fn the_canary_is_nowhere_but_at_its_registry() -> Result<()> {
    let image = Image::of_size(1000);
    let reflecting = FaultRegistry::new(|request, before| {
        if request.header("authorization").is_empty() {
            return Some(Reply::new(401).header("WWW-Authenticate", "Basic realm=x"));
        }
        let reflected = format!("you sent {} and canary-5f3a9c", request.header("authorization"));
        (request.is_manifest() && before < 2).then(|| Reply::new(403).body(reflected))
    })?;
    reflecting.add("app", "1", &image);
    let other = FaultRegistry::new(|_, _| Some(Reply::new(401).header("WWW-Authenticate", "Basic realm=x")))?;
    let env = TestEnv::new()?.with_variable("RUST_LOG", "trace");
    log_in(&env, &[&reflecting.host()])?;
    let secret = crate::base64(format!("me:{CANARY}").as_bytes());
    let name = format!("{}/app:1", reflecting.host());
    let mut runs = vec![env.run(["-D", "pull", &name])?.exits(1)];
    let context = env.context("canary", &format!("FROM {name}\nLABEL a=b\n"), &[])?;
    for mode in ["plain", "tty", "rawjson"] {
        runs.push(env.build(&context, &["--progress", mode, "-t", &name, "--push"])?);
    }
    runs.push(env.run(["-D", "pull", &format!("{}/app:1", other.host())])?.exits(1));
    let refusing = FaultRegistry::new(|_, _| Some(Reply::new(401).header("WWW-Authenticate", "Basic")))?;
    runs.push(env.run(["-D", "login", "-u", "me", "-p", CANARY, &refusing.host()])?.exits(1));
    for run in &mut runs {
        // The line that was typed holds it; what was printed must not.
        run.command.clear();
    }
    for run in &runs {
        assert!(!run.stderr.contains(CANARY) && !run.stdout.contains(CANARY), "{run}");
        assert!(!run.stderr.contains(&secret) && !run.stdout.contains(&secret), "{run}");
    }
    other.assert_no_credentials(CANARY);
    let found = std::process::Command::new("grep").args(["-rl", CANARY]).arg(env.store()).output()?;
    assert!(found.stdout.is_empty(), "{}", String::from_utf8_lossy(&found.stdout));
    Ok(())
}

/// R5: a pull without credentials from a registry that wants some says how to log in.
#[test]
fn anonymous_pulls_are_told_to_log_in() -> Result<()> {
    let registry = FaultRegistry::new(|_, _| Some(Reply::new(401).header("WWW-Authenticate", "Basic")))?;
    let env = TestEnv::new()?;
    pull(&env, &registry)?.exits(1).says(&[&format!("rbuild login {}", registry.host())]);
    assert_nothing_came(&env)
}
