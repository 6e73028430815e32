//! HTTP/1.1 as servers of tests speak it: right, or broken in a way that a test wants.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET` and so on.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
    /// What came of the body.
    pub body: Vec<u8>,
}

impl Request {
    /// A header's value, empty when it is not there.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// True for a blob that is asked for.
    #[must_use]
    pub fn is_blob(&self) -> bool {
        self.method == "GET" && self.path.contains("/blobs/sha256:")
    }

    /// True for a manifest that is asked for.
    #[must_use]
    pub fn is_manifest(&self) -> bool {
        self.method == "GET" && self.path.contains("/manifests/")
    }
}

/// How an answer ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// As it should.
    Whole,
    /// The connection closes after so many bytes of the body.
    Cut(usize),
    /// The connection stays open and silent after so many bytes of the body.
    Stall(usize),
    /// One byte at a time, with this pause between.
    Trickle(Duration),
    /// No length is given; the end of the connection is the end of the body, after so many bytes.
    Unframed(usize),
    /// No answer: the connection closes after so many bytes of the request's body.
    HangUp(usize),
    /// The head never ends: so many bytes of headers.
    HeaderFlood(usize),
    /// As it should, and then the connection closes without saying so.
    CloseAfter,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Headers besides the length.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
    /// How it ends.
    pub end: End,
    /// A length other than the body's.
    pub stated_length: Option<usize>,
}

impl Reply {
    /// An empty answer.
    #[must_use]
    pub fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), end: End::Whole, stated_length: None }
    }

    /// The connection closes after so many bytes of the request's body.
    #[must_use]
    pub fn hang_up(after: usize) -> Self {
        Self::new(0).end(End::HangUp(after))
    }

    /// With a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// With a body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Ending so.
    #[must_use]
    pub fn end(mut self, end: End) -> Self {
        self.end = end;
        self
    }

    /// Claiming another length.
    #[must_use]
    pub fn length(mut self, bytes: usize) -> Self {
        self.stated_length = Some(bytes);
        self
    }
}

/// Reads the head of the next request; `None` at the end of the connection.
pub(crate) fn read_head(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    // As an HTTP proxy is asked: whichever host is meant, the answers are this server's.
    let path = match path.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or_else(|| "/".to_owned(), |at| rest[at..].to_owned()),
        None => path,
    };
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.trim_end().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    Ok(Some(Request { method, path, headers, body: Vec::new() }))
}

/// Reads at most `limit` bytes of the body that a head promised.
pub(crate) fn read_body(
    reader: &mut BufReader<TcpStream>,
    request: &Request,
    limit: usize,
) -> io::Result<Vec<u8>> {
    if request.header("expect") == "100-continue" {
        reader.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let mut body = Vec::new();
    if request.header("transfer-encoding").contains("chunked") {
        let mut line = String::new();
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16).unwrap_or(0);
            let mut piece = vec![0; size + 2];
            reader.read_exact(&mut piece)?;
            if size == 0 || body.len() >= limit {
                return Ok(body);
            }
            body.extend_from_slice(&piece[..size]);
        }
    }
    let length: usize = request.header("content-length").parse().unwrap_or(0);
    reader.take(length.min(limit) as u64).read_to_end(&mut body)?;
    Ok(body)
}

/// Writes an answer; true when the connection can go on.
pub(crate) fn write(stream: &mut TcpStream, request: &Request, reply: &Reply) -> io::Result<bool> {
    let body: &[u8] = if request.method == "HEAD" { &[] } else { &reply.body };
    let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if let End::HeaderFlood(bytes) = reply.end {
        stream.write_all(head.as_bytes())?;
        let line = format!("X-Flood: {}\r\n", "f".repeat(1000));
        for _ in 0..bytes / line.len() {
            stream.write_all(line.as_bytes())?;
        }
        return Ok(false);
    }
    if !matches!(reply.end, End::Unframed(_)) && ![204, 304].contains(&reply.status) {
        let length = reply.stated_length.unwrap_or(reply.body.len());
        head.push_str(&format!("Content-Length: {length}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    match reply.end {
        End::Whole => stream.write_all(body)?,
        End::CloseAfter => {
            stream.write_all(body)?;
            return Ok(false);
        }
        End::Cut(bytes) | End::Unframed(bytes) => {
            stream.write_all(&body[..bytes.min(body.len())])?;
            return Ok(false);
        }
        End::Stall(bytes) => {
            stream.write_all(&body[..bytes.min(body.len())])?;
            stream.flush()?;
            // Until the other side has had enough.
            let mut rest = [0; 64];
            while matches!(stream.read(&mut rest), Ok(1..)) {}
            return Ok(false);
        }
        End::Trickle(pause) => {
            for byte in body {
                stream.write_all(std::slice::from_ref(byte))?;
                stream.flush()?;
                thread::sleep(pause);
            }
        }
        End::HangUp(_) | End::HeaderFlood(_) => return Ok(false),
    }
    stream.flush()?;
    // A length that lies leaves the connection out of step.
    Ok(reply.stated_length.is_none_or(|length| length == body.len() || request.method == "HEAD"))
}
