//! Loads an image into a local Docker engine: `POST /images/load` with the archive that `docker load` reads.
//!
//! The archive is made while it is sent; nothing is kept of it. The engine is whatever `DOCKER_HOST` says, else its socket
//! at the usual places; Podman's service answers the same call.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rbuild_cache::store::Store;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;

use crate::cancel::Cancel;
use crate::export::archive::{self, SavedImage};

/// Bytes sent at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks that wait for the engine.
const CHUNKS_WAITING: usize = 8;
/// Most of an engine's answer that is read.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Where the engine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineAddress {
    /// A socket.
    Unix(PathBuf),
    /// `HOST:PORT`, without TLS.
    Tcp(String),
    /// Something else that `DOCKER_HOST` says.
    Unsupported(String),
}

impl EngineAddress {
    /// From `DOCKER_HOST`; without it the first of the usual sockets that is there, else the system's. `with_tls` says
    /// that `DOCKER_TLS_VERIFY` is set.
    pub fn new(docker_host: Option<&str>, with_tls: bool, runtime_dir: Option<&Path>) -> Self {
        match docker_host.map(|host| host.split_once("://").unwrap_or(("unix", host))) {
            Some(("unix", path)) => Self::Unix(path.into()),
            Some(("tcp" | "http", address)) if !with_tls => {
                Self::Tcp(address.trim_end_matches('/').to_owned())
            }
            Some((scheme, _)) if with_tls => Self::Unsupported(format!("{scheme} with TLS")),
            Some((scheme, _)) => Self::Unsupported(format!("{scheme}://")),
            None => {
                let own = runtime_dir.map(|dir| dir.join("docker.sock")).filter(|path| path.exists());
                Self::Unix(own.unwrap_or_else(|| PathBuf::from("/var/run/docker.sock")))
            }
        }
    }
}

impl std::fmt::Display for EngineAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Unsupported(what) => f.write_str(what),
        }
    }
}

/// Why the engine has no new image.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nothing answers there.
    #[error("cannot reach a Docker engine at {address}")]
    Connect {
        /// Where.
        address: EngineAddress,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An address that rbuild cannot use.
    #[error("cannot load an image through DOCKER_HOST with {0}")]
    Unsupported(String),
    /// The connection broke.
    #[error("the Docker engine at {address} did not take the image")]
    Http {
        /// Where.
        address: EngineAddress,
        /// Why.
        #[source]
        source: hyper::Error,
    },
    /// The archive cannot be made.
    #[error("cannot make the archive for the Docker engine")]
    Archive(#[source] io::Error),
    /// The engine said no.
    #[error("the Docker engine at {address} did not take the image: {message}")]
    Refused {
        /// Where.
        address: EngineAddress,
        /// What it said.
        message: String,
    },
    /// The build was stopped.
    #[error("canceled")]
    Canceled,
}

impl EngineError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => Some(
                "you may not use the engine's socket: join its group (often `docker`), or set DOCKER_HOST to your own engine"
                    .to_owned(),
            ),
            Self::Connect { .. } => Some(
                "start the engine, or set DOCKER_HOST=unix:///path/to/docker.sock; without an engine: -o type=docker,dest=image.tar"
                    .to_owned(),
            ),
            Self::Unsupported(_) => Some(
                "write an archive and load it there: rbuild -o type=docker,dest=- . | docker load".to_owned(),
            ),
            _ => None,
        }
    }
}

/// Sends the image.
pub async fn load(
    address: &EngineAddress,
    store: &Store,
    image: SavedImage,
    cancel: &Cancel,
) -> Result<(), EngineError> {
    let connect = |source| EngineError::Connect { address: address.clone(), source };
    match address {
        EngineAddress::Unix(path) => {
            send(address, UnixStream::connect(path).await.map_err(connect)?, store, image, cancel).await
        }
        EngineAddress::Tcp(to) => {
            send(address, TcpStream::connect(to).await.map_err(connect)?, store, image, cancel).await
        }
        EngineAddress::Unsupported(what) => Err(EngineError::Unsupported(what.clone())),
    }
}

async fn send<S>(
    address: &EngineAddress,
    stream: S,
    store: &Store,
    image: SavedImage,
    cancel: &Cancel,
) -> Result<(), EngineError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let http = |source| EngineError::Http { address: address.clone(), source };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    let connection = tokio::spawn(connection);
    let (chunks, waiting) = mpsc::channel::<io::Result<Bytes>>(CHUNKS_WAITING);
    let (store, switch) = (store.clone(), cancel.clone());
    let archive = tokio::task::spawn_blocking(move || {
        let mut out = io::BufWriter::with_capacity(CHUNK_BYTES, Chunks(chunks.clone()));
        let made = archive::write(&store, &[image], &mut out, &switch);
        if let Err(error) = &made {
            // Ends the request in the middle: the engine must not take what there is of it for whole.
            let _ = chunks.blocking_send(Err(io::Error::new(error.kind(), "the archive broke off")));
        }
        made
    });
    let body = StreamBody::new(stream::unfold(waiting, |mut waiting| async move {
        let next = waiting.recv().await?;
        Some((next.map(Frame::data), waiting))
    }));
    let request = Request::post("/images/load?quiet=1")
        .header("host", "docker")
        .header("content-type", "application/x-tar")
        .body(body)
        .expect("constant parts make a request");
    let answered = tokio::select! {
        answer = sender.send_request(request) => answer.map_err(http),
        () = cancel.cancelled() => Err(EngineError::Canceled),
    };
    let answer = match answered {
        Ok(answer) => read(answer).await.map_err(http),
        Err(error) => Err(error),
    };
    connection.abort();
    let made = match archive.await {
        Ok(made) => made,
        Err(join) => std::panic::resume_unwind(join.into_panic()),
    };
    match (answer, made) {
        (Err(EngineError::Canceled), _) => Err(EngineError::Canceled),
        (Ok((true, text)), _) => refusal(&text)
            .map_or(Ok(()), |message| Err(EngineError::Refused { address: address.clone(), message })),
        (Ok((false, text)), _) => {
            let message = refusal(&text).unwrap_or(text);
            Err(EngineError::Refused { address: address.clone(), message })
        }
        // A connection that breaks because the archive did is the archive's failure.
        (Err(_), Err(source)) if source.kind() != io::ErrorKind::BrokenPipe => {
            Err(EngineError::Archive(source))
        }
        (Err(error), _) => Err(error),
    }
}

/// Whether the engine says that all is well, and its whole answer up to a limit.
async fn read(answer: Response<hyper::body::Incoming>) -> Result<(bool, String), hyper::Error> {
    let is_good = answer.status().is_success();
    let mut body = answer.into_body();
    let mut text = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            text.extend_from_slice(&data[..data.len().min(ANSWER_BYTES_MAX - text.len())]);
        }
    }
    Ok((is_good, String::from_utf8_lossy(&text).trim().to_owned()))
}

/// The error in an answer: one JSON document a line, one of which may say it.
fn refusal(text: &str) -> Option<String> {
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.into_iter().find_map(|line| {
        let message = line.pointer("/errorDetail/message").or(line.get("error")).or(line.get("message"));
        message.and_then(|message| message.as_str()).map(str::to_owned)
    })
}

/// Sends what is written to it.
struct Chunks(mpsc::Sender<io::Result<Bytes>>);

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let chunk = Bytes::copy_from_slice(bytes);
        self.0.blocking_send(Ok(chunk)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_is_where_docker_looks_for_it() {
        let address = |host: Option<&str>, tls| EngineAddress::new(host, tls, None).to_string();
        assert_eq!(address(None, false), "unix:///var/run/docker.sock");
        assert_eq!(address(Some("unix:///x/y.sock"), true), "unix:///x/y.sock");
        assert_eq!(address(Some("/x/y.sock"), false), "unix:///x/y.sock");
        assert_eq!(address(Some("tcp://127.0.0.1:2375"), false), "tcp://127.0.0.1:2375");
        assert_eq!(address(Some("tcp://127.0.0.1:2376"), true), "tcp with TLS");
        assert_eq!(address(Some("ssh://me@there"), false), "ssh://");
        let temp = tempfile::tempdir().unwrap();
        assert_eq!(
            EngineAddress::new(None, false, Some(temp.path())).to_string(),
            "unix:///var/run/docker.sock"
        );
        std::fs::write(temp.path().join("docker.sock"), "").unwrap();
        let own = EngineAddress::new(None, false, Some(temp.path()));
        assert_eq!(own, EngineAddress::Unix(temp.path().join("docker.sock")));
    }

    #[test]
    fn an_answer_is_an_error_when_it_says_so() {
        assert_eq!(refusal("{\"stream\":\"Loaded image: a:1\\n\"}"), None);
        assert_eq!(
            refusal("{\"stream\":\"x\"}\n{\"errorDetail\":{\"message\":\"no space\"}}"),
            Some("no space".into())
        );
        assert_eq!(refusal("{\"message\":\"page not found\"}"), Some("page not found".into()));
        assert_eq!(refusal("<html>"), None);
    }
}
