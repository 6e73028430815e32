//! A scripted registry: hand-written HTTP/1.1 on a loopback port.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: String,
    /// Path and query.
    pub(super) path: String,
    /// Lower-case names.
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Its length was not known when it began.
    pub(super) fn is_chunked(&self) -> bool {
        self.header("transfer-encoding") == "chunked"
    }

    pub(super) fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// An answer to give.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    cut: Option<usize>,
    /// Stay silent instead of closing after [`Self::cut`].
    stall: bool,
    /// Answer without reading more than this much of the request body, then close.
    body_read_max: Option<usize>,
}

pub(super) fn reply(status: u16) -> Reply {
    Reply { status, headers: Vec::new(), body: Vec::new(), cut: None, stall: false, body_read_max: None }
}

impl Reply {
    pub(super) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(super) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Promises the whole body and closes the connection after so many bytes.
    pub(super) fn cut(mut self, after: usize) -> Self {
        self.cut = Some(after);
        self
    }

    /// Promises the whole body and falls silent after so many bytes.
    pub(super) fn stall(self, after: usize) -> Self {
        Self { stall: true, ..self.cut(after) }
    }

    /// Reads the request and never answers, not even with a head.
    pub(super) fn silent() -> Self {
        Self { stall: true, ..reply(0) }
    }

    /// Closes the connection without an answer after so many bytes of the request's body.
    pub(super) fn hang_up_after(bytes: usize) -> Self {
        Self { body_read_max: Some(bytes), ..reply(0) }
    }
}

type Script = dyn Fn(&Request) -> Reply + Send + Sync;

/// A running server; stops when dropped.
pub(super) struct Fake {
    pub(super) host: String,
    log: Arc<Mutex<Vec<Request>>>,
    task: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    /// Serves by a script that sees the request's head, and its body unless the script hangs up earlier.
    pub(super) async fn start(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (script, seen): (Arc<Script>, _) = (Arc::new(script), log.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, script.clone(), seen.clone()));
            }
        });
        Self { host, log, task }
    }

    pub(super) fn seen(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// Request lines, the scheme probe left out.
    pub(super) fn lines(&self) -> Vec<String> {
        self.seen().iter().map(Request::line).filter(|line| line != "GET /v2/").collect()
    }
}

async fn serve(mut stream: TcpStream, script: Arc<Script>, seen: Arc<Mutex<Vec<Request>>>) {
    let mut buffer = Vec::new();
    while let Some(mut request) = read_head(&mut stream, &mut buffer).await {
        let has_body = request.is_chunked() || !["", "0"].contains(&request.header("content-length"));
        let mut answer = script(&request);
        let limit = answer.body_read_max.unwrap_or(usize::MAX);
        request.body = match request.is_chunked() {
            true => read_chunked(&mut stream, &mut buffer, limit).await,
            false => {
                let length: usize = request.header("content-length").parse().unwrap_or(0);
                read_up_to(&mut stream, &mut buffer, length.min(limit)).await
            }
        };
        seen.lock().unwrap().push(request.clone());
        if answer.body_read_max.is_some() {
            return;
        }
        // Scripts that want the body are asked again with it.
        if has_body {
            answer = script(&request);
        }
        let is_silent = answer.stall && answer.cut.is_none();
        if is_silent {
            // Ends with the server.
            std::future::pending::<()>().await;
        }
        let mut head = format!("HTTP/1.1 {} X\r\n", answer.status);
        for (name, value) in &answer.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if answer.status != 204 && !answer.headers.iter().any(|(name, _)| name == "Content-Length") {
            head.push_str(&format!("Content-Length: {}\r\n", answer.body.len()));
        }
        head.push_str("\r\n");
        let body = if request.method == "HEAD" { &[][..] } else { &answer.body };
        let sent = answer.cut.unwrap_or(body.len()).min(body.len());
        if stream.write_all(head.as_bytes()).await.is_err() || stream.write_all(&body[..sent]).await.is_err()
        {
            return;
        }
        if answer.stall {
            // Ends with the server.
            std::future::pending::<()>().await;
        }
        if answer.cut.is_some() {
            return;
        }
    }
}

/// So many bytes, or fewer when the connection ends.
async fn read_up_to(stream: &mut TcpStream, buffer: &mut Vec<u8>, wanted: usize) -> Vec<u8> {
    while buffer.len() < wanted {
        if stream.read_buf(buffer).await.unwrap_or(0) == 0 {
            break;
        }
    }
    buffer.drain(..wanted.min(buffer.len())).collect()
}

/// A body in chunks of HTTP, up to `limit` bytes.
async fn read_chunked(stream: &mut TcpStream, buffer: &mut Vec<u8>, limit: usize) -> Vec<u8> {
    let mut body = Vec::new();
    while body.len() < limit {
        let Some(end) = buffer.windows(2).position(|window| window == b"\r\n") else {
            if stream.read_buf(buffer).await.unwrap_or(0) == 0 {
                break;
            }
            continue;
        };
        let line: Vec<u8> = buffer.drain(..end + 2).collect();
        let size = usize::from_str_radix(std::str::from_utf8(&line[..end]).unwrap(), 16).unwrap();
        let mut chunk = read_up_to(stream, buffer, size + 2).await;
        chunk.truncate(size);
        body.extend_from_slice(&chunk[..size.min(chunk.len()).min(limit - body.len())]);
        if size == 0 {
            break;
        }
    }
    body
}

async fn read_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Request> {
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(buffer).await.unwrap_or(0) == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer.drain(..end + 4).collect()).ok()?;
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Some(Request { method, path, headers, body: Vec::new() })
}
