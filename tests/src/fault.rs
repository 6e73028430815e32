//! A registry that misbehaves on demand, and a proxy that breaks connections.
//!
//! [`FaultRegistry`] stores and serves like a registry; a test's rule may answer any request in its place, in every
//! way a hostile or broken server can. Every request is recorded with its headers, so that a test can say where
//! credentials went.

mod disk;
mod image;
mod proxy;
mod serve;
pub mod tar;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

pub use crate::wire::{End, Reply, Request};
pub use disk::SmallDisk;
pub use image::{Image, digest};
pub use proxy::{Cut, FaultProxy, TunnelProxy};

type Rule = dyn Fn(&Request, usize) -> Option<Reply> + Send + Sync;

/// What it stores, and what it saw.
#[derive(Default)]
struct State {
    /// By digest, whatever the repository.
    blobs: BTreeMap<String, Vec<u8>>,
    /// By `repository:tag` and `repository@digest`.
    manifests: BTreeMap<String, (String, Vec<u8>)>,
    sessions: BTreeMap<usize, Vec<u8>>,
    session: usize,
    seen: Vec<Request>,
}

struct Shared {
    state: Mutex<State>,
    rule: Box<Rule>,
    closing: AtomicBool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running server on a free loopback port. Dropping it ends it.
pub struct FaultRegistry {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl FaultRegistry {
    /// A registry whose answers `rule` may replace; it is told how many requests of the same method and path came
    /// before.
    ///
    /// # Errors
    ///
    /// When no port can be had.
    pub fn new(rule: impl Fn(&Request, usize) -> Option<Reply> + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            rule: Box::new(rule),
            closing: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.closing.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let shared = Arc::clone(&accepting);
                thread::spawn(move || serve::connection(stream, &shared));
            }
        });
        Ok(Self { address, shared })
    }

    /// One that does what a registry does.
    ///
    /// # Errors
    ///
    /// When no port can be had.
    pub fn good() -> Result<Self> {
        Self::new(|_, _| None)
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stores an image under a repository's tag.
    pub fn add(&self, repository: &str, tag: &str, image: &Image) {
        let mut state = self.shared.state();
        for blob in [&image.layer, &image.config] {
            state.blobs.insert(digest(blob), blob.clone());
        }
        self.put(&mut state, repository, Some(tag), &image.media_type, &image.manifest);
    }

    /// Stores any document, by its digest and under a tag.
    pub fn add_document(&self, repository: &str, tag: Option<&str>, media_type: &str, bytes: &[u8]) {
        self.put(&mut self.shared.state(), repository, tag, media_type, bytes);
    }

    fn put(&self, state: &mut State, repository: &str, tag: Option<&str>, media_type: &str, bytes: &[u8]) {
        let document = (media_type.to_owned(), bytes.to_vec());
        state.manifests.insert(format!("{repository}@{}", digest(bytes)), document.clone());
        if let Some(tag) = tag {
            state.manifests.insert(format!("{repository}:{tag}"), document);
        }
    }

    /// Every request so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Request> {
        self.shared.state().seen.clone()
    }

    /// How many requests had this method and a path that contains this text.
    #[must_use]
    pub fn count(&self, method: &str, path: &str) -> usize {
        let state = self.shared.state();
        state.seen.iter().filter(|request| request.method == method && request.path.contains(path)).count()
    }

    /// The bytes of a blob that was pushed.
    #[must_use]
    pub fn blob(&self, digest: &str) -> Option<Vec<u8>> {
        self.shared.state().blobs.get(digest).cloned()
    }

    /// The manifest that a `repository:tag` stands for.
    #[must_use]
    pub fn manifest(&self, name: &str) -> Option<Vec<u8>> {
        Some(self.shared.state().manifests.get(name)?.1.clone())
    }

    /// Fails when any request carried another `Authorization` than this.
    ///
    /// # Panics
    ///
    /// Then.
    pub fn assert_no_credentials_but(&self, allowed: &str) {
        for request in self.seen() {
            let carried = request.header("authorization");
            assert!(carried.is_empty() || carried == allowed, "credentials arrived: {request:?}");
        }
    }

    /// Fails when any request, whatever its outcome, carried credentials or this text anywhere.
    ///
    /// # Panics
    ///
    /// Then.
    pub fn assert_no_credentials(&self, secret: &str) {
        for request in self.seen() {
            let carried = request.headers.iter().any(|(name, value)| {
                matches!(name.as_str(), "authorization" | "cookie" | "proxy-authorization")
                    || value.contains(secret)
            });
            let body = String::from_utf8_lossy(&request.body);
            assert!(
                !carried && !request.path.contains(secret) && !body.contains(secret),
                "credentials arrived: {request:?}"
            );
        }
    }
}

impl Drop for FaultRegistry {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        // Wakes the accepting thread, which then ends.
        TcpStream::connect(self.address).ok();
    }
}

impl std::fmt::Debug for FaultRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FaultRegistry({})", self.address)
    }
}

/// Waits until something is so.
///
/// # Errors
///
/// When it is not within half a minute.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        ensure!(Instant::now() < deadline, "{what}: not in time");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
