//! A web server whose answers a test scripts, on a free loopback port.

use std::io::BufReader;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};

pub use crate::wire::{Reply, Request};
use crate::wire::{read_body, read_head, write};

/// A client that says nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bodies of requests that are read: git's are small.
const BODY_BYTES_MAX: usize = 16 << 20;

type Script = dyn Fn(&Request) -> Reply + Send + Sync;

/// A running server. Dropping it stops it.
pub struct Web {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Web {
    /// Serves what the script says.
    ///
    /// # Errors
    ///
    /// When no port can be had.
    pub fn serve(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("bind a loopback port")?;
        let address = listener.local_addr()?;
        let (seen, stopping) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (log, stop, script) =
            (Arc::clone(&seen), Arc::clone(&stopping), Arc::<Script>::from(Box::new(script) as Box<Script>));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let (log, script) = (Arc::clone(&log), Arc::clone(&script));
                // A client that goes away early is none of the server's business.
                std::thread::spawn(move || drop(answer(stream, &log, &*script)));
            }
        });
        Ok(Self { address, seen, stopping, thread: Some(thread) })
    }

    /// `http://127.0.0.1:PORT` and a path.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The requests so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Wakes the one who waits for connections.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Answers the requests of one connection.
fn answer(mut stream: TcpStream, log: &Mutex<Vec<Request>>, script: &Script) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(mut request) = read_head(&mut reader)? {
        request.body = read_body(&mut reader, &request, BODY_BYTES_MAX)?;
        log.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
        if !write(&mut stream, &request, &script(&request))? {
            break;
        }
    }
    Ok(())
}
