//! What a registry does when nothing is wrong.

use std::io::{self, BufReader};
use std::net::TcpStream;

use super::{Shared, State, digest};
use crate::wire::{End, Reply, Request, read_body, read_head, write};

/// Serves one connection to its end.
pub(super) fn connection(stream: TcpStream, shared: &Shared) {
    // A client that goes away is part of the tests.
    let _ = serve(stream, shared);
}

fn serve(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(mut request) = read_head(&mut reader)? {
        let before = {
            let state = shared.state();
            let same = |other: &&Request| other.method == request.method && other.path == request.path;
            state.seen.iter().filter(same).count()
        };
        // The head decides whether the body is read at all; with the body, the rule is asked again.
        let mut reply = (shared.rule)(&request, before);
        let hang_up = match &reply {
            Some(Reply { end: End::HangUp(bytes), .. }) => Some(*bytes),
            _ => None,
        };
        request.body = read_body(&mut reader, &request, hang_up.unwrap_or(usize::MAX))?;
        if hang_up.is_none() && !request.body.is_empty() {
            reply = (shared.rule)(&request, before);
        }
        let mut state = shared.state();
        state.seen.push(request.clone());
        if hang_up.is_some() {
            // What came before the end of the connection was received.
            receive(&mut state, &request);
            return Ok(());
        }
        let reply = reply.unwrap_or_else(|| state.answer(&request));
        drop(state);
        if !write(&mut stream, &request, &reply)? {
            return Ok(());
        }
    }
    Ok(())
}

/// The number of the session in `/v2/…/blobs/uploads/7?_state=x`.
fn session_of(path: &str) -> Option<usize> {
    path.split("/blobs/uploads/").nth(1)?.split('?').next()?.parse().ok()
}

fn receive(state: &mut State, request: &Request) {
    if let Some(bytes) = session_of(&request.path).and_then(|id| state.sessions.get_mut(&id)) {
        bytes.extend_from_slice(&request.body);
    }
}

impl State {
    pub(super) fn answer(&mut self, request: &Request) -> Reply {
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        let Some(rest) = path.strip_prefix("/v2/") else { return Reply::new(404) };
        if rest.is_empty() {
            return Reply::new(200).body("{}");
        }
        if let Some((repository, named)) = rest.rsplit_once("/manifests/") {
            return self.manifest(request, repository, named);
        }
        if let Some((_, tail)) = rest.split_once("/blobs/uploads/") {
            return self.upload(request, tail, query);
        }
        if let Some((_, named)) = rest.rsplit_once("/blobs/") {
            return self.served(request, named);
        }
        if let Some(repository) = rest.strip_suffix("/tags/list") {
            let prefix = format!("{repository}:");
            let tags = self.manifests.keys().filter_map(|name| name.strip_prefix(&prefix));
            let tags = tags.map(|tag| format!("\"{tag}\"")).collect::<Vec<_>>().join(",");
            return Reply::new(200).body(format!("{{\"name\":\"{repository}\",\"tags\":[{tags}]}}"));
        }
        Reply::new(404)
    }

    fn manifest(&mut self, request: &Request, repository: &str, named: &str) -> Reply {
        let separator = if named.contains(':') { '@' } else { ':' };
        let name = format!("{repository}{separator}{named}");
        if request.method == "PUT" {
            let document = (request.header("content-type").to_owned(), request.body.clone());
            let id = digest(&request.body);
            self.manifests.insert(format!("{repository}@{id}"), document.clone());
            self.manifests.insert(name, document);
            return Reply::new(201).header("Docker-Content-Digest", id);
        }
        match self.manifests.get(&name) {
            Some((kind, bytes)) => Reply::new(200)
                .header("Content-Type", kind.clone())
                .header("Docker-Content-Digest", digest(bytes))
                .body(bytes.clone()),
            None => Reply::new(404)
                .body(r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#),
        }
    }

    /// A blob, whole or from where the client left off.
    fn served(&self, request: &Request, named: &str) -> Reply {
        let Some(bytes) = self.blobs.get(named) else {
            return Reply::new(404).body(r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}"#);
        };
        let range = request.header("range").strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
        match range.and_then(|start| start.parse::<usize>().ok()) {
            Some(start) if start < bytes.len() => {
                let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
                Reply::new(206).header("Content-Range", range).body(&bytes[start..])
            }
            _ => Reply::new(200).body(bytes.clone()),
        }
    }

    fn upload(&mut self, request: &Request, tail: &str, query: &str) -> Reply {
        let parameter = |name: &str| {
            let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
            Some(value.replace("%3A", ":"))
        };
        if request.method == "POST" {
            if parameter("mount").is_some_and(|digest| self.blobs.contains_key(&digest)) {
                return Reply::new(201);
            }
            self.session += 1;
            self.sessions.insert(self.session, Vec::new());
            return self.accepted(self.session, 202);
        }
        let Ok(id) = tail.parse::<usize>() else { return Reply::new(404) };
        let unknown = r#"{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"blob upload unknown"}]}"#;
        let Some(bytes) = self.sessions.get_mut(&id) else { return Reply::new(404).body(unknown) };
        match request.method.as_str() {
            "PATCH" => {
                let start = request.header("content-range").split('-').next().unwrap_or_default();
                if start.parse::<usize>().is_ok_and(|start| start != bytes.len()) {
                    return Reply { status: 416, ..self.accepted(id, 416) };
                }
                bytes.extend_from_slice(&request.body);
                self.accepted(id, 202)
            }
            "PUT" => {
                bytes.extend_from_slice(&request.body);
                let named = parameter("digest").unwrap_or_default();
                if digest(bytes) != named {
                    return Reply::new(400)
                        .body(r#"{"errors":[{"code":"DIGEST_INVALID","message":"digest invalid"}]}"#);
                }
                let bytes = self.sessions.remove(&id).unwrap_or_default();
                self.blobs.insert(named.clone(), bytes);
                Reply::new(201).header("Docker-Content-Digest", named)
            }
            "GET" => self.accepted(id, 204),
            "DELETE" => {
                self.sessions.remove(&id);
                Reply::new(204)
            }
            _ => Reply::new(405),
        }
    }

    /// Where a session goes on and how far it got; relative, with a query of its own.
    fn accepted(&self, id: usize, status: u16) -> Reply {
        let last = self.sessions.get(&id).map_or(0, Vec::len).saturating_sub(1);
        Reply::new(status)
            .header("Location", format!("/v2/app/blobs/uploads/{id}?_state=kept"))
            .header("Range", format!("0-{last}"))
    }
}
