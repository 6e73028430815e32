//! `rbuild pull`.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use rbuild_frontend::graph::Network;
use rbuild_oci::{Digest, Platform, Reference};
use rbuild_registry::Client;
use tokio::sync::Semaphore;

use crate::assemble::emit::Emissions;
use crate::assemble::passing::Passing;
use crate::cancel::Cancel;
use crate::cli::{Env, PullRequest, StepOptions};
use crate::devices::Devices;
use crate::error::BuildError;
use crate::export;
use crate::host::Host;
use crate::mounts::Materialised;
use crate::mounts::secret::Secrets;
use crate::mounts::ssh::Agents;
use crate::ops::cgroup::Groups;
use crate::ops::leaving::Leaving;
use crate::ops::network::StepNetwork;
use crate::ops::{self, ExecEnv, image};
use crate::progress::{Events, Outcome};
use crate::resolve::{self, ResolveError};
use crate::settings::Settings;

/// Pulls an image into the store and names it there.
pub(super) fn run(
    request: &PullRequest,
    settings: Settings,
    root: Option<&Path>,
    env: &Env,
) -> Result<(), BuildError> {
    let host = Host::open(settings, root)?;
    super::announce_default_tag(request.default_tag, request.quiet)?;
    super::with_progress(request.quiet, env, async |events, cancel| {
        pull(request, &host, events, cancel).await
    })
}

async fn pull(
    request: &PullRequest,
    host: &Host,
    events: &Events,
    cancel: &Cancel,
) -> Result<String, BuildError> {
    let client = Client::new(host.settings.registry.clone())?;
    let platform = request.platform.clone().unwrap_or_else(Platform::host);
    let env = Arc::new(plain_env(host, events, cancel, client.clone())?);
    let mut text = String::new();
    let mut is_new = false;
    for name in names(request, &client, cancel).await? {
        let known = host.store.image(&name.to_string())?.and_then(|record| record.digest());
        let digest = pull_one(&name, &platform, host, &env, cancel).await?;
        is_new |= known != Some(digest);
        let path = name.repository();
        let tag = name.tag().map_or_else(|| name.to_string(), str::to_owned);
        text.push_str(&format!("{tag}: Pulling from {path}\nDigest: {digest}\n"));
    }
    resolve::remark_on_quotas(&client, events);
    let (familiar, whole) = match request.all_tags {
        true => (request.name.familiar_name(), request.name.name()),
        false => (request.name.familiar(), request.name.to_string()),
    };
    if request.quiet {
        return Ok(format!("{whole}\n"));
    }
    let status = if is_new { "Downloaded newer image" } else { "Image is up to date" };
    Ok(format!("{text}Status: {status} for {familiar}\n{whole}\n"))
}

/// The name, or every tag of the repository.
async fn names(
    request: &PullRequest,
    client: &Client,
    cancel: &Cancel,
) -> Result<Vec<Reference>, BuildError> {
    if !request.all_tags {
        return Ok(vec![request.name.clone()]);
    }
    let reference = request.name.to_string();
    let asked = async {
        let tags = client.tags(&request.name).await;
        Ok(tags.map_err(|source| ResolveError::Registry { reference: reference.clone(), source })?)
    };
    let tags = super::unless_canceled(cancel, asked).await?;
    // Fallback tags of referrers are no images.
    let tags = tags.iter().filter(|tag| !tag.starts_with("sha256-"));
    Ok(tags.filter_map(|tag| format!("{}:{tag}", request.name.name()).parse().ok()).collect())
}

async fn pull_one(
    name: &Reference,
    platform: &Platform,
    host: &Host,
    env: &Arc<ExecEnv>,
    cancel: &Cancel,
) -> Result<Digest, BuildError> {
    let vertex = env.events.vertex(format!("pulling {}", name.familiar()));
    env.events.started(vertex);
    let found = super::unless_canceled(cancel, async {
        Ok(resolve::fetch(&host.store, &env.registry, name, platform).await?)
    })
    .await?;
    let found = Arc::new(found);
    if !found.config.platform.satisfies(platform) {
        let own = &found.config.platform;
        env.events.remark(format!("{} is an image for {own} alone, not for {platform}", name.familiar()));
    }
    let solved = image::materialise(env, &found, vertex).await?;
    let record = export::store::record(&host.store, &env.lease, &found, &solved.stack)?;
    host.store.put_image(&name.to_string(), &record)?;
    env.events.finished(vertex, Outcome::Done);
    Ok(found.identity)
}

/// Environment for work without RUN steps.
pub(super) fn plain_env(
    host: &Host,
    events: &Events,
    cancel: &Cancel,
    client: Client,
) -> Result<ExecEnv, BuildError> {
    Ok(ExecEnv {
        store: host.store.clone(),
        lease: host.store.lease()?,
        registry: client,
        git: host.settings.git.clone(),
        events: events.clone(),
        cancel: cancel.clone(),
        overlay: host.overlay,
        rung: host.rung(),
        is_chroot_forced: false,
        run_slots: Arc::new(Semaphore::new(1)),
        disk_slots: ops::disk_slots(),
        unpack_slots: ops::unpack_slots(),
        fetch_slots: ops::fetch_slots(),
        steps: StepOptions::default(),
        secrets: Secrets::default(),
        agents: Agents::default(),
        devices: Devices::default(),
        groups: Groups::default(),
        materialised: Materialised::default(),
        emissions: Emissions::default(),
        passing: Passing::default(),
        emulators: Default::default(),
        network: Arc::new(StepNetwork::new(Network::None)),
        epoch: OnceLock::new(),
        wanted_compression: None,
        with_dir: Mutex::default(),
        mount_points: OnceLock::new(),
        leaving: Leaving::default(),
        failed_step: None,
    })
}
