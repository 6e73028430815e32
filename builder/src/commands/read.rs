//! Reading a Dockerfile to look at it.
//!
//! One that is here is read as it is: no store is opened, nothing is written. One in a repository, an archive or on a
//! web server has to be fetched, which is done as for a build, through the store.

use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use rbuild_frontend::lint::ContextFacts;
use rbuild_frontend::lower::LowerOptions;
use rbuild_frontend::parse::parse;
use rbuild_registry::Client;

use super::with_signals;
use crate::build::{Source, exec_env, lower_options, main_context, path_of};
use crate::check::Read;
use crate::cli::{BuildRequest, ContextArg, DockerfileArg};
use crate::context::files::{self, FoundDockerfile};
use crate::context::stdin::{self, Watched};
use crate::debug::Slot;
use crate::error::BuildError;
use crate::host::Host;
use crate::progress::Events;
use crate::settings::Settings;

/// Where fetching goes and what it tells.
pub(super) struct Place<'a> {
    pub(super) settings: Settings,
    pub(super) root: Option<&'a Path>,
    pub(super) events: &'a Events,
}

/// Reads and parses the Dockerfile of a request. `source` is filled as soon as it is read. The host is the one that was
/// opened to fetch it: a process can open only one.
pub(super) fn read(
    request: &BuildRequest,
    place: Place<'_>,
    source: &mut Source,
) -> Result<(Read, Option<Host>), BuildError> {
    let Found { dockerfile, facts, host } = find(request, place)?;
    let parsed = parse(&dockerfile.bytes);
    source.dockerfile = Some(dockerfile);
    if parsed.has_errors() {
        return Err(BuildError::Dockerfile(parsed.diagnostics));
    }
    Ok((Read { parsed, options: LowerOptions { context: facts, ..lower_options(request) } }, host))
}

struct Found {
    dockerfile: FoundDockerfile,
    facts: Option<ContextFacts>,
    host: Option<Host>,
}

fn find(request: &BuildRequest, place: Place<'_>) -> Result<Found, BuildError> {
    let dockerfile = request.dockerfile.as_ref();
    match (&request.context, dockerfile) {
        (ContextArg::Local(dir), None | Some(DockerfileArg::Path(_) | DockerfileArg::Stdin)) => {
            let found = files::dockerfile(dir, dockerfile, &mut io::stdin())?;
            let facts = files::facts(dir, found.path.as_deref())?;
            Ok(Found { dockerfile: found, facts: Some(facts), host: None })
        }
        (ContextArg::Stdin, None | Some(DockerfileArg::Path(_) | DockerfileArg::Stdin)) => {
            let head = stdin::head(&mut io::stdin())?;
            if stdin::is_archive(&head)? {
                return from_archive(request, place, head);
            }
            let dockerfile = stdin::only_dockerfile(&head, &mut io::stdin(), path_of(dockerfile))?;
            Ok(Found { dockerfile, facts: None, host: None })
        }
        (ContextArg::Git(_) | ContextArg::Http(_), _) | (_, Some(DockerfileArg::Http(_))) => {
            fetch(request, place)
        }
    }
}

/// Fetches it, and the context that it is in.
fn fetch(request: &BuildRequest, place: Place<'_>) -> Result<Found, BuildError> {
    let host = Host::open(place.settings, place.root)?;
    let registry = Client::new(host.settings.registry.clone())?;
    let (dockerfile, facts) = with_signals(async |cancel| {
        let env = exec_env(request, &host, place.events, &cancel, registry, &Slot::default())?;
        let (found, main) = main_context(request, &Arc::new(env)).await?;
        Ok((found, main.facts()?))
    })?;
    Ok(Found { dockerfile, facts, host: Some(host) })
}

/// Finds it in a tar on standard input that begins with `head`.
fn from_archive(request: &BuildRequest, place: Place<'_>, head: Vec<u8>) -> Result<Found, BuildError> {
    let host = Host::open(place.settings, place.root)?;
    let lease = host.store.lease()?;
    let path = path_of(request.dockerfile.as_ref()).map(Path::to_owned);
    let overlay = host.overlay;
    let dockerfile = with_signals(async |cancel| {
        let receive = move || {
            let input = io::Cursor::new(head).chain(Watched(&cancel));
            stdin::receive(input, &lease, overlay, path.as_deref()).map(|received| received.dockerfile)
        };
        match tokio::task::spawn_blocking(receive).await {
            Ok(received) => Ok(received?),
            Err(join) => std::panic::resume_unwind(join.into_panic()),
        }
    })?;
    Ok(Found { dockerfile, facts: None, host: Some(host) })
}
