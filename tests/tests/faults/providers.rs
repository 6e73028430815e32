//! What single registries do differently, each as its own documentation or source has it.

use std::path::PathBuf;

use anyhow::Result;
use rbuild_tests::TestEnv;
use rbuild_tests::fault::{FaultRegistry, Image, Reply, Request};
use rbuild_tests::token_server::{base64, values};
use serde_json::json;

use crate::{CANARY, log_in};

/// A world in which this name is served, in clear text, by that server.
fn world_with(host: &str, server: &FaultRegistry) -> Result<TestEnv> {
    let env = TestEnv::new()?.with_variable("HTTP_PROXY", &format!("http://{}", server.host()));
    env.write("home/.config/buildkit/buildkitd.toml", &format!("[registry.\"{host}\"]\nhttp = true\n"))?;
    Ok(env)
}

/// Something small to push.
fn context(env: &TestEnv) -> Result<PathBuf> {
    env.context("app", "FROM scratch\nCOPY f /f\n", &[("f", "x")])
}

fn error(status: u16, code: &str, message: &str) -> Reply {
    Reply::new(status).body(json!({"errors": [{"code": code, "message": message}]}).to_string())
}

fn bearer(realm: &str, service: &str, scope: &str) -> Reply {
    let challenge = format!("Bearer realm=\"{realm}\",service=\"{service}\",scope=\"{scope}\"");
    Reply::new(401).header("WWW-Authenticate", challenge)
}

/// The repository that a request is about.
fn repository(request: &Request) -> String {
    let rest = request.path.strip_prefix("/v2/").unwrap_or_default();
    let end = ["/manifests/", "/blobs/", "/tags/"].iter().filter_map(|part| rest.find(part)).min();
    rest[..end.unwrap_or(0)].to_owned()
}

/// GitLab: its tokens come from another host, by `GET` alone, for a job's own project; a job's credentials are in
/// `DOCKER_AUTH_CONFIG`.
#[test]
fn gitlab_s_tokens_are_for_a_job_s_project() -> Result<()> {
    let account = format!("Basic {}", base64(format!("gitlab-ci-token:{CANARY}").as_bytes()));
    let gitlab = FaultRegistry::new(move |request, _| {
        Some(match request.method.as_str() {
            "GET" if request.header("authorization") == account => {
                let granted =
                    values(request, "scope").iter().all(|scope| scope.starts_with("repository:group/"));
                let token = if granted { "for-the-group" } else { "for-nothing" };
                Reply::new(200).body(json!({"token": token, "expires_in": 300}).to_string())
            }
            "GET" => error(403, "DENIED", "access forbidden"),
            _ => Reply::new(404).body("<title>The page could not be found</title>"),
        })
    })?;
    let realm = format!("http://{}/jwt/auth", gitlab.host());
    let registry = FaultRegistry::new(move |request, _| {
        let scope = format!("repository:{}:pull,push", repository(request));
        (request.header("authorization") != "Bearer for-the-group")
            .then(|| bearer(&realm, "container_registry", &scope))
    })?;
    let auths =
        json!({"auths": {registry.host(): {"auth": base64(format!("gitlab-ci-token:{CANARY}").as_bytes())}}});
    let env = TestEnv::new()?.with_variable("DOCKER_AUTH_CONFIG", &auths.to_string());
    let name = format!("{}/group/app:1", registry.host());
    let run = env.build(&context(&env)?, &["-t", &name, "--push"])?.ok();
    assert!(!run.stderr.contains(CANARY), "{run}");
    assert!(registry.manifest("group/app:1").is_some());
    let asked = gitlab.seen();
    let asked_for =
        |scope: &str| asked.iter().any(|request| values(request, "scope").iter().any(|own| own == scope));
    assert!(asked_for("repository:group/app:pull,push"), "{asked:?}");
    assert!(
        asked.iter().all(|request| {
            request.method == "POST" || values(request, "service") == ["container_registry"]
        })
    );
    registry.assert_no_credentials_but("Bearer for-the-group");

    let other = format!("{}/others/app:1", registry.host());
    let fresh = TestEnv::new()?.with_variable("DOCKER_AUTH_CONFIG", &auths.to_string());
    let run = fresh.build(&context(&fresh)?, &["-t", &other, "--push"])?.exits(1);
    assert!(run.says(&["nothing was built", "others/app", &registry.host()]).executed().is_empty());
    let wrong = TestEnv::new()?;
    log_in(&wrong, &[&registry.host()])?;
    wrong.run(["pull", &name])?.exits(1).says(&["access forbidden", "(HTTP 403)"]);
    Ok(())
}

/// Harbor: robot accounts have `$` and `+` in their names; a full project says so when a blob is finished.
#[test]
fn harbor_s_robots_push_until_the_quota_is_used_up() -> Result<()> {
    let quota = "Quota exceeded when processing the request of adding 8.8 MiB of storage resource, which when updated \
                 to current usage of 9.9 MiB will exceed the configured upper limit of 10.0 MiB.";
    let registry = FaultRegistry::new(move |request, _| {
        if request.path.starts_with("/service/token") {
            let is_robot =
                values(request, "username") == ["robot$team+ci"] && values(request, "password") == [CANARY];
            let by_header = format!("Basic {}", base64(format!("robot$team+ci:{CANARY}").as_bytes()));
            return Some(match request.method.as_str() {
                // The form first, which must carry the name as it is.
                "POST" if !request.body.is_empty() && !is_robot => Reply::new(500),
                "POST" => Reply::new(405),
                _ if request.header("authorization") == by_header => {
                    Reply::new(200).body(r#"{"token":"robot","access_token":"","expires_in":1800}"#)
                }
                _ => error(401, "UNAUTHORIZED", "unauthorized"),
            });
        }
        if request.header("authorization") != "Bearer robot" {
            let realm = format!("http://{}/service/token", request.header("host"));
            return Some(bearer(&realm, "harbor-registry", ""));
        }
        let is_full = request.path.starts_with("/v2/full/") && request.method == "PUT";
        if request.path.starts_with("/v2/fixed/app/manifests/") && request.method == "PUT" {
            let words = "Failed to process request due to 'app:1' configured as immutable.";
            return Some(error(412, "PRECONDITION", words));
        }
        is_full.then(|| error(403, "DENIED", quota))
    })?;
    let env = TestEnv::new()?;
    let auth = base64(format!("robot$team+ci:{CANARY}").as_bytes());
    env.write("home/.docker/config.json", &json!({"auths": {registry.host(): {"auth": auth}}}).to_string())?;
    let name = |repository: &str| format!("{}/{repository}/app:1", registry.host());
    env.build(&context(&env)?, &["-t", &name("team"), "--push"])?.ok();
    let full = env.build(&context(&env)?, &["-t", &name("full"), "--push"])?.exits(1);
    full.says(&[quota, "DENIED", "quota of its project is used up"]);
    assert!(registry.manifest("full/app:1").is_none());
    let fixed = env.build(&context(&env)?, &["-t", &name("fixed"), "--push"])?.exits(1);
    fixed.says(&["configured as immutable", "push under another tag"]);
    // The registry itself was never told the password.
    let told = registry.seen().into_iter().filter(|request| request.path.starts_with("/v2/"));
    assert!(told.into_iter().all(|request| !request.header("authorization").starts_with("Basic ")));
    Ok(())
}

/// GHCR: too much at once is a 403 that says when to come again, in the middle of an upload too.
#[test]
fn ghcr_s_secondary_limits_are_waited_out() -> Result<()> {
    let registry = FaultRegistry::new(|request, before| {
        // The first of each kind; of sessions the first that gets a blob (the one before only asked for permission).
        let is_meant = request.method == "POST"
            || request.method == "PUT"
                && (request.path.contains("/manifests/") || request.path.contains("/uploads/2"));
        let is_limited = is_meant && before == 0;
        is_limited.then(|| {
            error(403, "DENIED", "You have exceeded a secondary rate limit").header("Retry-After", "1")
        })
    })?;
    let env = TestEnv::new()?;
    env.build(&context(&env)?, &["-t", &format!("{}/me/app:1", registry.host()), "--push"])?.ok();
    assert!(registry.manifest("me/app:1").is_some());
    Ok(())
}

/// Google: keys are JSON, the token server knows no `POST`, and blobs are sent in one piece.
#[test]
fn google_s_registries_get_json_keys_and_whole_blobs() -> Result<()> {
    const HOST: &str = "europe-docker.pkg.dev";
    let key =
        json!({"type": "service_account", "private_key": format!("-----BEGIN\n{CANARY}:x\n")}).to_string();
    let account = format!("Basic {}", base64(format!("_json_key:{key}").as_bytes()));
    let registry = FaultRegistry::new(move |request, _| {
        if request.path.starts_with("/v2/token") {
            return Some(match request.method.as_str() {
                "GET" if request.header("authorization") == account => {
                    Reply::new(200).body(r#"{"token":"google","expires_in":3600}"#)
                }
                "GET" => error(403, "DENIED", "Unauthenticated request."),
                _ => Reply::new(404),
            });
        }
        let realm = format!("http://{HOST}/v2/token");
        (request.header("authorization") != "Bearer google").then(|| bearer(&realm, HOST, ""))
    })?;
    let env = world_with(HOST, &registry)?;
    let auth = base64(format!("_json_key:{key}").as_bytes());
    env.write("home/.docker/config.json", &json!({"auths": {HOST: {"auth": auth}}}).to_string())?;
    let run = env.build(&context(&env)?, &["-t", &format!("{HOST}/project/repo/app:1"), "--push"])?.ok();
    assert!(!run.stderr.contains(CANARY), "{run}");
    assert!(registry.manifest("project/repo/app:1").is_some());
    assert_eq!(registry.count("PATCH", ""), 0, "no piece by piece");
    Ok(())
}

/// Azure: `docker login` of `az acr login` leaves a refresh token, which the token server exchanges.
#[test]
fn azure_s_refresh_tokens_are_exchanged() -> Result<()> {
    const HOST: &str = "team.azurecr.io";
    let registry = FaultRegistry::new(|request, _| {
        if request.path.starts_with("/oauth2/token") {
            let is_known = values(request, "grant_type") == ["refresh_token"]
                && values(request, "refresh_token") == [CANARY]
                && values(request, "service") == [HOST];
            return Some(match (request.method.as_str(), is_known) {
                ("POST", true) => Reply::new(200).body(r#"{"access_token":"azure"}"#),
                _ => error(401, "UNAUTHORIZED", "authentication required"),
            });
        }
        let realm = format!("http://{HOST}/oauth2/token");
        let scope = format!("repository:{}:pull", repository(request));
        (request.header("authorization") != "Bearer azure").then(|| bearer(&realm, HOST, &scope))
    })?;
    registry.add("app", "1", &Image::of_size(100));
    let env = world_with(HOST, &registry)?;
    let user = base64(b"00000000-0000-0000-0000-000000000000:");
    env.write(
        "home/.docker/config.json",
        &json!({"auths": {HOST: {"auth": user, "identitytoken": CANARY}}}).to_string(),
    )?;
    let run = env.run(["-D", "pull", &format!("{HOST}/app:1")])?.ok();
    assert!(!run.stderr.contains(CANARY), "{run}");
    env.build(&context(&env)?, &["-t", &format!("{HOST}/me/app:1"), "--push"])?.ok();
    let pushes = registry.seen().into_iter().flat_map(|request| values(&request, "scope"));
    assert!(pushes.into_iter().any(|scope| scope == "repository:me/app:pull,push"));
    Ok(())
}

/// ECR: a repository must be there before the build; a tag may be immutable.
#[test]
fn ecr_wants_its_repository_made_first_and_may_hold_tags_still() -> Result<()> {
    const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    let missing =
        "The repository with name 'team/none' does not exist in the registry with id '123456789012'";
    let immutable = "The image tag '1' already exists in the 'team/fixed' repository and cannot be overwritten because \
                     the repository is immutable.";
    let registry = FaultRegistry::new(move |request, _| {
        let auth = format!("Basic {}", base64(format!("AWS:{CANARY}").as_bytes()));
        if request.header("authorization") != auth {
            return Some(
                Reply::new(401).header("WWW-Authenticate", format!("Basic realm=\"https://{HOST}/\"")),
            );
        }
        if request.path.starts_with("/v2/team/none/") {
            return Some(error(404, "NAME_UNKNOWN", missing));
        }
        let is_fixed = request.path.starts_with("/v2/team/fixed/manifests/") && request.method == "PUT";
        is_fixed.then(|| error(400, "TAG_INVALID", immutable))
    })?;
    let env = world_with(HOST, &registry)?.with_variable("AWS_EC2_METADATA_DISABLED", "true");
    let auth = base64(format!("AWS:{CANARY}").as_bytes());
    env.write("home/.docker/config.json", &json!({"auths": {HOST: {"auth": auth}}}).to_string())?;
    let none = env.build(&context(&env)?, &["-t", &format!("{HOST}/team/none:1"), "--push"])?.exits(1);
    let none = none.says(&[
        "nothing was built",
        &format!("NAME_UNKNOWN: {missing}"),
        "aws ecr create-repository --repository-name team/none",
    ]);
    assert!(none.executed().is_empty(), "{none}");
    let fixed = env.build(&context(&env)?, &["-t", &format!("{HOST}/team/fixed:1"), "--push"])?.exits(1);
    fixed.says(&[immutable, "push under another tag"]);
    assert!(registry.manifest("team/fixed:1").is_none());
    Ok(())
}
