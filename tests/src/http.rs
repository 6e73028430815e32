//! The smallest HTTP client that can see whether a server serves.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

/// Answers of test servers are small; more than this is a fault.
const BODY_LIMIT_BYTES: u64 = 1 << 20;

/// A server's answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body, as text.
    pub body: String,
}

/// Gets a path over HTTP/1.0, so that the body ends where the connection ends.
///
/// # Errors
///
/// When nothing listens, or what answers is not HTTP.
pub fn get(address: SocketAddr, path: &str) -> Result<Answer> {
    exchange(address, &format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n"))
}

/// Posts a text, as [`get`] gets one.
///
/// # Errors
///
/// As [`get`].
pub fn post(address: SocketAddr, path: &str, headers: &[(&str, &str)], body: &str) -> Result<Answer> {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    exchange(
        address,
        &format!(
            "POST {path} HTTP/1.0\r\nHost: {address}\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        ),
    )
}

fn exchange(address: SocketAddr, request: &str) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(request.as_bytes())?;
    let mut text = Vec::new();
    stream.take(BODY_LIMIT_BYTES).read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let (head, body) = text.split_once("\r\n\r\n").context("no end of the headers")?;
    let status =
        head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status in the answer")?;
    Ok(Answer { status, body: body.to_owned() })
}
