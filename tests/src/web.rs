//! A web server whose answers a test scripts: HTTP/1.1 on a free loopback port, one request per connection.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// A client that says nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bodies of requests that are read: git's are small.
const BODY_BYTES_MAX: usize = 16 << 20;

/// A request as it came.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// `GET`, `POST`.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
    /// Its body.
    pub body: Vec<u8>,
}

impl Request {
    /// A header's value, empty when there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// An answer to give.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Headers besides the length.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// Length to promise, when it is not the body's.
    pub promised: Option<u64>,
}

impl Reply {
    /// `200` with a body.
    #[must_use]
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, headers: Vec::new(), body: body.into(), promised: None }
    }

    /// A status without a body.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::ok("") }
    }

    /// With a header.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Promises so many bytes, whatever the body has; the connection ends after the body.
    #[must_use]
    pub fn promising(mut self, bytes: u64) -> Self {
        self.promised = Some(bytes);
        self
    }
}

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

fn answer(stream: TcpStream, log: &Mutex<Vec<Request>>, script: &Script) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let mut request = Request {
        method: words.next().unwrap_or_default().to_owned(),
        target: words.next().unwrap_or_default().to_owned(),
        ..Request::default()
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        request.headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    if request.header("expect") == "100-continue" {
        reader.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    request.body = body(&mut reader, &request)?;
    log.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
    let reply = script(&request);
    let length = reply.promised.unwrap_or(reply.body.len() as u64);
    let mut head = format!("HTTP/1.1 {} scripted\r\nConnection: close\r\n", reply.status);
    if reply.status != 304 {
        head.push_str(&format!("Content-Length: {length}\r\n"));
    }
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let stream = reader.get_mut();
    stream.write_all(head.as_bytes())?;
    stream.write_all(&reply.body)?;
    Ok(())
}

/// The request's body, plain or in chunks.
fn body(reader: &mut BufReader<TcpStream>, request: &Request) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    if request.header("transfer-encoding") != "chunked" {
        let length: usize = request.header("content-length").parse().unwrap_or(0);
        body.resize(length.min(BODY_BYTES_MAX), 0);
        reader.read_exact(&mut body)?;
        return Ok(body);
    }
    while body.len() < BODY_BYTES_MAX {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim(), 16)?.min(BODY_BYTES_MAX);
        let start = body.len();
        body.resize(start + size, 0);
        reader.read_exact(&mut body[start..])?;
        reader.read_line(&mut String::new())?;
        if size == 0 {
            break;
        }
    }
    Ok(body)
}
