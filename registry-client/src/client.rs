//! The façade: which places to ask, in which order. The work is done by the modules named after it.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex};

use rbuild_oci::{Descriptor, Digest, Platform, Reference};

use crate::BlobStream;
use crate::auth::{Scope, lock};
use crate::blobs::push::{Progress, PushOutcome};
use crate::blobs::source::BlobSource;
use crate::blobs::stream::{self, GrowingBlob};
use crate::blobs::{self, mount, pull, push};
use crate::config::{Candidates, ConfigError};
use crate::endpoint::Endpoint;
use crate::error::{ErrorKind, RegistryError, Target};
use crate::fetch::{self, FetchError, FetchRequest, Fetched};
use crate::limits::SMALL_BLOB_BYTES_MAX;
use crate::manifests::{self, ResolvedImage, StoredManifest};
use crate::referrers;
use crate::settings::Settings;
use crate::tags;
use crate::transport::Transport;
use crate::transport::host::{Presence, Quota};
use crate::transport::retry::Patience;

/// A client of all registries. Cheap to clone; clones share connections, tokens and limits.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    transport: Arc<Transport>,
    /// The endpoint that served a repository's manifest last: its blobs are there too.
    served: Mutex<HashMap<String, Endpoint>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Client {
    /// Makes a client. Nothing is read or connected before the first request; only settings that are wrong in
    /// themselves are refused here.
    pub fn new(settings: Settings) -> Result<Self, ConfigError> {
        let bad = |setting, value: &String| ConfigError::Setting { setting, value: value.clone() };
        if let Some(host) = settings.insecure.iter().find(|host| host.trim().is_empty() || host.contains(' '))
        {
            return Err(bad("insecure", host));
        }
        if !settings.user_agent.bytes().all(|b| (b' '..=b'~').contains(&b)) {
            return Err(bad("user agent", &settings.user_agent));
        }
        let transport = Arc::new(Transport::new(settings));
        Ok(Self { inner: Arc::new(Inner { transport, served: Mutex::new(HashMap::new()) }) })
    }

    pub(crate) fn settings(&self) -> &Settings {
        self.inner.transport.settings()
    }

    /// Finds the image for a platform: mirrors in order, then the registry itself. Layers are not fetched.
    pub async fn resolve(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<ResolvedImage, RegistryError> {
        let transport = &self.inner.transport;
        let action = || "pull manifest".to_owned();
        let endpoints = self.pull_endpoints(reference, &action).await?;
        let found = first(endpoints, |endpoint, patience| async move {
            let image = manifests::resolve(transport, &endpoint, reference, platform, patience).await?;
            Ok((image, endpoint))
        })
        .await;
        let (image, endpoint) = match found {
            Ok(found) => found,
            Err(error) => return Err(self.with_existing_tags(error, reference).await),
        };
        lock(&self.inner.served).insert(reference.name(), endpoint);
        Ok(image)
    }

    /// The index or manifest that a reference itself names, as it is: mirrors in order, then the registry.
    pub async fn manifest(&self, reference: &Reference) -> Result<StoredManifest, RegistryError> {
        let transport = &self.inner.transport;
        let endpoints = self.pull_endpoints(reference, &|| "pull manifest".to_owned()).await?;
        let found = first(endpoints, |endpoint, patience| async move {
            let found = manifests::get(transport, &endpoint, reference, patience).await?;
            Ok((found, endpoint))
        })
        .await;
        match found {
            Ok((found, endpoint)) => {
                lock(&self.inner.served).insert(reference.name(), endpoint);
                Ok(found)
            }
            Err(error) => Err(self.with_existing_tags(error, reference).await),
        }
    }

    /// The digest that a reference has at the registry itself, by its word; `None` when it is not there.
    pub async fn manifest_digest(&self, reference: &Reference) -> Result<Option<Digest>, RegistryError> {
        let endpoint = self.push_endpoint(reference, &|| "look for manifest".to_owned()).await?;
        let scope = Scope::pull(&endpoint.repository);
        manifests::head(&self.inner.transport, &endpoint, reference, scope, Patience::Full).await
    }

    /// Whether the registry itself has the manifest that a reference with a digest names, for whoever is about to push
    /// there: with the token that the push needs anyway, and without patience.
    pub async fn has_manifest(&self, reference: &Reference) -> Result<bool, RegistryError> {
        let endpoint = self.push_endpoint(reference, &|| "look for manifest".to_owned()).await?;
        let scope = Scope::push(&endpoint.repository);
        let found =
            manifests::head(&self.inner.transport, &endpoint, reference, scope, Patience::None).await?;
        Ok(found.is_some() && found == reference.digest())
    }

    /// Removes a manifest (a reference with a digest) or a tag from the registry.
    pub async fn delete_manifest(&self, reference: &Reference) -> Result<(), RegistryError> {
        let endpoint = self.push_endpoint(reference, &|| "delete manifest".to_owned()).await?;
        manifests::delete(&self.inner.transport, &endpoint, reference).await
    }

    /// All tags of a repository: of the first mirror that answers, else of the registry.
    pub async fn tags(&self, repository: &Reference) -> Result<Vec<String>, RegistryError> {
        let transport = &self.inner.transport;
        let endpoints = self.pull_endpoints(repository, &|| "list tags".to_owned()).await?;
        first(endpoints, |endpoint, patience| async move { tags::list(transport, &endpoint, patience).await })
            .await
    }

    /// What refers to a manifest at the registry: signatures, attestations; of one artifact type or of all.
    pub async fn referrers(
        &self,
        repository: &Reference,
        subject: Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let endpoint = self.push_endpoint(repository, &|| "list referrers".to_owned()).await?;
        referrers::list(&self.inner.transport, &endpoint, subject, artifact_type).await
    }

    /// Stores a manifest that has a `subject`, and sees to it that [`Self::referrers`] finds it.
    pub async fn push_referrer(
        &self,
        repository: &Reference,
        media_type: &str,
        bytes: Vec<u8>,
    ) -> Result<Digest, RegistryError> {
        let endpoint = self.push_endpoint(repository, &|| "push manifest".to_owned()).await?;
        referrers::push(&self.inner.transport, &endpoint, repository, media_type, bytes).await
    }

    /// Registries that let this account pull little more, by their last answers. Docker Hub tells; few others do.
    pub fn low_quotas(&self) -> Vec<(String, Quota)> {
        self.inner.transport.quotas().into_iter().filter(|(_, quota)| quota.is_low()).collect()
    }

    /// Adds to «no such tag» which tags there are, when that is to be had with one question.
    async fn with_existing_tags(&self, mut error: RegistryError, reference: &Reference) -> RegistryError {
        let Some(tag) = reference.tag().filter(|_| reference.digest().is_none()) else { return error };
        let not_found = match &mut error {
            RegistryError::AfterMirrors { upstream, .. } => upstream,
            error => error,
        };
        let RegistryError::NotFound { existing, reply, .. } = not_found else { return error };
        let endpoint = self.push_endpoint(reference, &String::new).await;
        if !reply.has_code("MANIFEST_UNKNOWN") {
            return error;
        }
        if let Ok(endpoint) = endpoint
            && let Ok(tags) = tags::list(&self.inner.transport, &endpoint, Patience::None).await
        {
            *existing = tags::nearest(tags, tag);
        }
        error
    }

    /// Opens a blob of the repository `source` names. The place that served its manifest is asked first.
    ///
    /// `progress` is told the bytes received so far. At most [`Settings::transfers_per_host`] streams of a host are
    /// open at a time; this waits for its turn.
    pub async fn blob(
        &self,
        source: &Reference,
        digest: Digest,
        size: u64,
        progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<BlobStream, RegistryError> {
        let progress: Progress = Arc::new(progress);
        let mut endpoints = self.pull_endpoints(source, &|| format!("pull blob {}", digest.short())).await?;
        if let Some(served) = lock(&self.inner.served).get(&source.name()) {
            // Stable: the rest keeps its order.
            endpoints.sort_by_key(|endpoint| endpoint != served);
        }
        let transport = &self.inner.transport;
        first(endpoints, |endpoint, patience| {
            let progress = progress.clone();
            async move { pull::open(transport, &endpoint, digest, size, progress, patience).await }
        })
        .await
    }

    /// A small blob, whole and verified: configs and statements.
    pub async fn small_blob(
        &self,
        source: &Reference,
        digest: Digest,
        size: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let action = || format!("pull blob {}", digest.short());
        let mut endpoints = self.pull_endpoints(source, &action).await?;
        if let Some(endpoint) = endpoints.first().filter(|_| size > SMALL_BLOB_BYTES_MAX) {
            let target = Target {
                host: endpoint.host.clone(),
                repository: endpoint.repository.clone(),
                action: action(),
            };
            return Err(RegistryError::TooLarge { target: Box::new(target), limit: SMALL_BLOB_BYTES_MAX });
        }
        if let Some(served) = lock(&self.inner.served).get(&source.name()) {
            endpoints.sort_by_key(|endpoint| endpoint != served);
        }
        let transport = &self.inner.transport;
        first(endpoints, |endpoint, patience| async move {
            pull::whole(transport, &endpoint, digest, size, patience).await
        })
        .await
    }

    /// Proves that the credentials allow pushing to the repository, by opening and cancelling an upload.
    pub async fn push_permission(&self, reference: &Reference) -> Result<(), RegistryError> {
        let endpoint = self.push_endpoint(reference, &|| "check push permission".to_owned()).await?;
        push::check_permission(&self.inner.transport, &endpoint).await
    }

    /// Whether the repository has the blob. Mirrors are not asked.
    pub async fn has_blob(&self, reference: &Reference, digest: Digest) -> Result<bool, RegistryError> {
        let endpoint = self.push_endpoint(reference, &|| format!("look for blob {}", digest.short())).await?;
        let host = self.inner.transport.host(&endpoint);
        if host.presence(&endpoint.repository, digest) == Some(Presence::There) {
            return Ok(true);
        }
        let scope = Scope::push(&endpoint.repository);
        blobs::exists(&self.inner.transport, &endpoint, digest, scope).await
    }

    /// Makes a blob of another repository of the same registry part of this one. False when it must be uploaded.
    pub async fn mount_blob(
        &self,
        to: &Reference,
        digest: Digest,
        from_repository: &str,
    ) -> Result<bool, RegistryError> {
        let endpoint = self.push_endpoint(to, &|| format!("mount blob {}", digest.short())).await?;
        mount::mount(&self.inner.transport, &endpoint, digest, from_repository).await
    }

    /// Uploads a blob unless it is there. The digest is checked against the bytes before the last of them is sent.
    pub async fn push_blob(
        &self,
        to: &Reference,
        digest: Digest,
        size: u64,
        body: &dyn BlobSource,
        progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<PushOutcome, RegistryError> {
        let endpoint = self.push_endpoint(to, &|| format!("push blob {}", digest.short())).await?;
        push::push(&self.inner.transport, &endpoint, digest, size, body, Arc::new(progress)).await
    }

    /// Uploads a blob while it is being made; its digest is checked before it gets that name.
    ///
    /// [`RegistryError::NotStreamed`] means that this registry wants it whole: [`Self::push_blob`] when it is. `progress`
    /// is told the bytes sent so far, and goes back after a break.
    pub async fn push_growing_blob(
        &self,
        to: &Reference,
        blob: &dyn GrowingBlob,
        progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<PushOutcome, RegistryError> {
        let endpoint = self.push_endpoint(to, &|| "push blob".to_owned()).await?;
        stream::push(&self.inner.transport, &endpoint, blob, Arc::new(progress)).await
    }

    /// Stores a manifest or index under the reference's tag, or its digest when it has no tag.
    pub async fn push_manifest(
        &self,
        to: &Reference,
        media_type: &str,
        bytes: Vec<u8>,
    ) -> Result<Digest, RegistryError> {
        let endpoint = self.push_endpoint(to, &|| "push manifest".to_owned()).await?;
        let pushed = manifests::push(&self.inner.transport, &endpoint, to, media_type, bytes).await?;
        Ok(pushed.digest)
    }

    /// Gets a file from a web server that is no registry: nothing of the registries' configuration applies but
    /// certificates, proxies and deadlines.
    pub async fn fetch(&self, request: &FetchRequest) -> Result<Fetched, FetchError> {
        fetch::fetch(&self.inner.transport, request).await
    }

    async fn pull_endpoints(
        &self,
        reference: &Reference,
        action: &(dyn Fn() -> String + Sync),
    ) -> Result<Vec<Endpoint>, RegistryError> {
        let config = self.inner.transport.config().await?;
        allowed(config.pull_candidates(reference), reference, action)
    }

    async fn push_endpoint(
        &self,
        reference: &Reference,
        action: &(dyn Fn() -> String + Sync),
    ) -> Result<Endpoint, RegistryError> {
        let config = self.inner.transport.config().await?;
        let mut endpoints = allowed(config.push_endpoint(reference), reference, action)?;
        Ok(endpoints.pop().expect("the registry itself is always a candidate"))
    }
}

fn allowed(
    candidates: Candidates,
    reference: &Reference,
    action: &(dyn Fn() -> String + Sync),
) -> Result<Vec<Endpoint>, RegistryError> {
    match candidates {
        Candidates::Endpoints(endpoints) => Ok(endpoints),
        Candidates::Blocked(prefix) => {
            let target = Target {
                host: reference.domain().to_owned(),
                repository: reference.repository().to_owned(),
                action: action(),
            };
            Err(RegistryError::Blocked { target: Box::new(target), prefix })
        }
    }
}

/// Tries the endpoints in order. All but the last get one chance: whoever stands behind them may be quicker than
/// waiting. Local mistakes (a broken credentials file) end the search at once.
async fn first<T, F>(
    endpoints: Vec<Endpoint>,
    mut attempt: impl FnMut(Endpoint, Patience) -> F,
) -> Result<T, RegistryError>
where
    F: Future<Output = Result<T, RegistryError>>,
{
    let mut failures = Vec::new();
    let last = endpoints.len().saturating_sub(1);
    for (index, endpoint) in endpoints.into_iter().enumerate() {
        let patience = if index == last { Patience::Full } else { Patience::None };
        match attempt(endpoint, patience).await {
            Ok(found) => return Ok(found),
            Err(error) if error.kind() == ErrorKind::Local => return Err(error),
            Err(error) => failures.push(error),
        }
    }
    let upstream = failures.pop().expect("candidates are never empty");
    if failures.is_empty() {
        return Err(upstream);
    }
    Err(RegistryError::AfterMirrors { mirrors: failures, upstream: Box::new(upstream) })
}
