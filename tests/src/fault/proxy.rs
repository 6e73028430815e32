//! Two proxies: one breaks TCP connections at a chosen place, one tunnels names to ports of this machine.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::Result;

/// Where a connection breaks: counted from the head of an upload's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// After so many bytes of the upload.
    Upload(usize),
    /// When everything was sent and the answer begins.
    Answer,
}

/// Forwards to a server, and breaks the first connections that upload something.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    closing: Arc<AtomicBool>,
    left: Arc<AtomicUsize>,
}

impl FaultProxy {
    /// Breaks `times` uploads there.
    ///
    /// # Errors
    ///
    /// When no port can be had.
    pub fn new(server: SocketAddr, cut: Cut, times: usize) -> Result<Self> {
        let left = Arc::new(AtomicUsize::new(times));
        let counter = Arc::clone(&left);
        let (address, closing) = listen(move |client| forward(client, server, cut, &counter).unwrap_or(()))?;
        Ok(Self { address, closing, left })
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Breaks that did not happen yet.
    #[must_use]
    pub fn left(&self) -> usize {
        self.left.load(Ordering::Relaxed)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        close(self.address, &self.closing);
    }
}

fn listen(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Result<(SocketAddr, Arc<AtomicBool>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let closing = Arc::new(AtomicBool::new(false));
    let (stop, serve) = (Arc::clone(&closing), Arc::new(serve));
    thread::spawn(move || {
        for stream in listener.incoming() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let (Ok(stream), serve) = (stream, Arc::clone(&serve)) else { continue };
            thread::spawn(move || serve(stream));
        }
    });
    Ok((address, closing))
}

fn close(address: SocketAddr, closing: &AtomicBool) {
    closing.store(true, Ordering::Relaxed);
    TcpStream::connect(address).ok();
}

/// Copies both ways. An upload is a request that begins with `PUT` or `PATCH` and an uploads path.
fn forward(client: TcpStream, server: SocketAddr, cut: Cut, left: &Arc<AtomicUsize>) -> io::Result<()> {
    let server = TcpStream::connect(server)?;
    let uploading = Arc::new(AtomicBool::new(false));
    let (from_server, to_client) = (server.try_clone()?, client.try_clone()?);
    let (watch, counter) = (Arc::clone(&uploading), Arc::clone(left));
    let back = thread::spawn(move || answers(from_server, to_client, cut, &watch, &counter).unwrap_or(()));
    requests(&client, &server, cut, &uploading, left).unwrap_or(());
    server.shutdown(Shutdown::Both).ok();
    client.shutdown(Shutdown::Both).ok();
    back.join().ok();
    Ok(())
}

fn take(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

fn requests(
    mut client: &TcpStream,
    mut server: &TcpStream,
    cut: Cut,
    uploading: &AtomicBool,
    left: &AtomicUsize,
) -> io::Result<()> {
    let (mut buffer, mut sent) = ([0; 16 << 10], 0);
    loop {
        let count = client.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        let piece = &buffer[..count];
        // The client sends a head in one piece, and waits for answers in between.
        let is_head = piece.starts_with(b"PUT ") || piece.starts_with(b"PATCH ");
        if is_head && String::from_utf8_lossy(piece).lines().next().unwrap_or_default().contains("/uploads/")
        {
            uploading.store(true, Ordering::Relaxed);
            let head = piece.windows(4).position(|window| window == b"\r\n\r\n").map_or(count, |at| at + 4);
            sent = 0usize.wrapping_sub(head);
        }
        if let Cut::Upload(limit) = cut
            && uploading.load(Ordering::Relaxed)
        {
            let after = sent.wrapping_add(count);
            if after as isize >= limit as isize && take(left) {
                let room = limit.wrapping_sub(sent).min(count);
                server.write_all(&piece[..room])?;
                return Ok(());
            }
            sent = after;
        }
        server.write_all(piece)?;
    }
}

fn answers(
    mut server: TcpStream,
    mut client: TcpStream,
    cut: Cut,
    uploading: &AtomicBool,
    left: &AtomicUsize,
) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    loop {
        let count = server.read(&mut buffer)?;
        if count == 0 || cut == Cut::Answer && uploading.load(Ordering::Relaxed) && take(left) {
            client.shutdown(Shutdown::Both).ok();
            server.shutdown(Shutdown::Both).ok();
            return Ok(());
        }
        client.write_all(&buffer[..count])?;
    }
}

/// An HTTP proxy that tunnels (`CONNECT`) names to ports of this machine and knows no other names.
#[derive(Debug)]
pub struct TunnelProxy {
    address: SocketAddr,
    closing: Arc<AtomicBool>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl TunnelProxy {
    /// For names such as `registry.test:443`.
    ///
    /// # Errors
    ///
    /// When no port can be had.
    pub fn new(names: &[(&str, SocketAddr)]) -> Result<Self> {
        Self::cutting(names, 0, usize::MAX)
    }

    /// The same, whose first `times` connections that bring more than `limit` bytes are cut there.
    ///
    /// # Errors
    ///
    /// When no port can be had.
    pub fn cutting(names: &[(&str, SocketAddr)], times: usize, limit: usize) -> Result<Self> {
        let left = Arc::new(AtomicUsize::new(times));
        let names: BTreeMap<String, SocketAddr> =
            names.iter().map(|(name, address)| ((*name).to_owned(), *address)).collect();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&heads);
        let (address, closing) =
            listen(move |client| tunnel(client, &names, &log, &left, limit).unwrap_or(()))?;
        Ok(Self { address, closing, heads })
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The heads of all requests to the proxy itself.
    #[must_use]
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for TunnelProxy {
    fn drop(&mut self) {
        close(self.address, &self.closing);
    }
}

fn tunnel(
    client: TcpStream,
    names: &BTreeMap<String, SocketAddr>,
    log: &Mutex<Vec<String>>,
    left: &Arc<AtomicUsize>,
    limit: usize,
) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    log.lock().unwrap_or_else(PoisonError::into_inner).push(head.clone());
    let mut client = client;
    let name = head.split_whitespace().nth(1).unwrap_or_default();
    let Some(server) = names.get(name).filter(|_| head.starts_with("CONNECT ")) else {
        return client.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
    };
    let mut server = TcpStream::connect(server)?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (mut from_server, mut to_client, left) = (server.try_clone()?, client.try_clone()?, Arc::clone(left));
    let back = thread::spawn(move || {
        let count = io::copy(&mut (&mut from_server).take(limit as u64), &mut to_client).unwrap_or(0);
        if count < limit as u64 || !take(&left) {
            io::copy(&mut from_server, &mut to_client).ok();
        }
        from_server.shutdown(Shutdown::Both).ok();
        to_client.shutdown(Shutdown::Both).ok();
    });
    io::copy(&mut reader, &mut server).ok();
    server.shutdown(Shutdown::Both).ok();
    back.join().ok();
    Ok(())
}
