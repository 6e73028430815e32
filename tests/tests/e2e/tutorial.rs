//! The Dockerfiles people learn with, as they write them, from base images of the same names.

use std::fs;

use anyhow::Result;
use rbuild_tests::{judge, need};
use serde_json::json;

use crate::world;

#[test]
fn the_node_app_builds_is_pushed_and_answers() -> Result<()> {
    need!(Root, Registry, Bases, Judges, Runtime);
    let (registry, env) = world()?;
    let context = env.fixture("tutorial/node")?;
    let name = format!("{}/me/node-app:1.0", registry.host());
    let (first, digest) = env.build_digest(&context, &["-t", &name, "--push"])?;
    assert_eq!(first.executed().len(), 4, "WORKDIR, COPY, RUN, COPY\n{first}");

    let image = format!("docker://{name}");
    assert_eq!(judge::manifest(&image)?["Digest"], json!(digest), "skopeo sees another digest\n{first}");
    let config = judge::config(&image)?;
    assert_eq!(config["config"]["Cmd"], json!(["node", "index.js"]));
    assert_eq!(config["config"]["WorkingDir"], json!("/usr/src/app"));
    assert_eq!(config["config"]["ExposedPorts"], json!({"8080/tcp": {}}));
    assert_eq!(config["config"]["Entrypoint"], json!(["docker-entrypoint.sh"]), "of the base");

    let unpacked = judge::unpack(&image)?;
    unpacked.text("/usr/src/app/node_modules/left-pad/package.json")?;
    assert!(unpacked.text("/usr/src/app/Dockerfile").is_err(), ".dockerignore names it");
    let page = unpacked.start(&["PORT=8123"])?.get(8123, "/")?;
    assert_eq!(page, "Hello from the tutorial, visit 0001\n");
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn a_changed_source_file_does_not_install_again_in_the_friendly_order() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.fixture("tutorial/node")?;
    let (_, first) = env.build_digest(&context, &["-t", "me/app"])?;
    let (again, second) = env.build_digest(&context, &["-t", "me/app"])?;
    again.assert_all_cached();
    assert_eq!(first, second, "a cached build made another image\n{again}");

    fs::write(context.join("greeting.js"), "module.exports = 'Changed';\n")?;
    let (changed, third) = env.build_digest(&context, &["-t", "me/app"])?;
    assert_eq!(changed.executed(), ["[5/5] COPY ./ ./"], "{changed}");
    assert_ne!(second, third);

    fs::write(context.join("greeting.js"), "module.exports = 'Hello from the tutorial';\n")?;
    let (back, fourth) = env.build_digest(&context, &["-t", "me/app"])?;
    back.assert_all_cached();
    assert_eq!(first, fourth, "the old content gives the old image\n{back}");

    let package = fs::read_to_string(context.join("package.json"))?;
    fs::write(context.join("package.json"), package.replace("1.0.0", "1.0.1"))?;
    let (installed, _) = env.build_digest(&context, &["-t", "me/app"])?;
    assert_eq!(
        installed.executed(),
        ["[3/5] COPY package.json ./", "[4/5] RUN npm install", "[5/5] COPY ./ ./"],
        "{installed}"
    );
    Ok(())
}

#[test]
fn a_changed_source_file_installs_again_in_the_naive_order() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.fixture("tutorial/node-naive")?;
    env.build_digest(&context, &["-t", "me/naive"])?;
    env.build(&context, &["-t", "me/naive"])?.ok().assert_all_cached();
    fs::write(context.join("greeting.js"), "module.exports = 'Changed';\n")?;
    let changed = env.build(&context, &["-t", "me/naive"])?.ok();
    assert_eq!(changed.executed(), ["[3/4] COPY ./ ./", "[4/4] RUN npm install"], "{changed}");
    Ok(())
}

#[test]
fn apache_serves_its_page() -> Result<()> {
    need!(Root, Registry, Bases, Judges, Runtime);
    let (registry, env) = world()?;
    let context = env.fixture("tutorial/apache")?;
    let name = format!("{}/me/apache", registry.host());
    let (_, first) = env.build_id(&context, &["-t", &name, "--push"])?;
    let (again, second) = env.build_id(&context, &["-t", &name])?;
    again.assert_all_cached();
    assert_eq!(first, second);

    let image = format!("docker://{name}");
    let config = judge::config(&image)?;
    assert_eq!(config["config"]["Entrypoint"], json!(["apache2ctl", "-D", "FOREGROUND"]));
    assert_eq!(config["config"]["Labels"]["maintainer"], json!("someone@example.com"));
    let unpacked = judge::unpack(&image)?;
    let mut apache = unpacked.start(&[])?;
    assert!(apache.get(80, "/index.html")?.contains("It is built"));
    assert!(apache.get(80, "/css/style.css")?.contains("sans-serif"));
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn the_site_is_built_in_one_image_and_served_from_another() -> Result<()> {
    need!(Root, Registry, Bases, Judges, Runtime);
    let (registry, env) = world()?;
    let context = env.fixture("tutorial/react")?;
    let name = format!("{}/me/site:latest", registry.host());
    let (_, first) = env.build_id(&context, &["-t", &name, "--push"])?;

    let image = format!("docker://{name}");
    let config = judge::config(&image)?;
    assert_eq!(config["config"]["Cmd"], json!(["nginx", "-g", "daemon off;"]), "of the nginx base");
    let unpacked = judge::unpack(&image)?;
    assert!(!unpacked.root().join("app").exists(), "the builder stage is no part of the image");
    let mut nginx = unpacked.start(&[])?;
    assert!(nginx.get(80, "/")?.contains("<script src=\"/static/main.js\">"));
    assert!(nginx.get(80, "/static/main.js")?.contains("built in one image"));

    // Another source, but the same site: what comes after the build step stays.
    fs::write(context.join("notes.txt"), "not part of the site\n")?;
    let (noted, second) = env.build_id(&context, &["-t", &name])?;
    assert_eq!(
        noted.executed(),
        ["[builder 5/6] COPY . .", "[builder 6/6] RUN npm run build"],
        "equal files stop a rebuild\n{noted}"
    );
    assert_eq!(first, second, "{noted}");
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn a_development_dockerfile_is_used_through_f() -> Result<()> {
    need!(Root, Registry, Bases, Judges, Runtime);
    let (registry, env) = world()?;
    let context = env.fixture("tutorial/react")?;
    let name = format!("{}/me/site-dev", registry.host());
    // As people type it: in the context's directory, without `build`.
    let mut command =
        env.command(["-t", &name, "-f", "Dockerfile.dev", "--push", "--progress", "plain", "."]);
    command.current_dir(&context);
    let run = env.start(command)?.finish()?.ok();
    assert_eq!(run.steps().len(), 5, "{run}");
    let image = format!("docker://{name}");
    assert_eq!(judge::config(&image)?["config"]["Cmd"], json!(["npm", "run", "start"]));
    let unpacked = judge::unpack(&image)?;
    assert!(unpacked.start(&["PORT=8124"])?.get(8124, "/App.js")?.contains("built in one image"));
    Ok(())
}
