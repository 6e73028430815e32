//! `rbuild graph`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use rbuild_frontend::lower::{ImageRequest, ResolvedImage};
use rbuild_registry::Client;

use super::read::{self, Place};
use crate::build::Source;
use crate::check;
use crate::cli::{Env, GraphFormat, GraphRequest, Pull};
use crate::error::BuildError;
use crate::failure;
use crate::host::Host;
use crate::progress::{self, Display, Events};
use crate::resolve::Resolver;
use crate::settings::Settings;

/// Prints the graph.
pub(super) fn run(request: &GraphRequest, settings: Settings, root: Option<&Path>, env: &Env) -> ExitCode {
    let mut source = Source::default();
    let (events, consumer) = progress::start(request.build.progress, Display::stderr(env));
    let drawn = graph(request, settings, root, &events, &mut source);
    drop(events);
    consumer.finish();
    match drawn.and_then(|text| super::print(&text)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::print(&error, Some(&source), env),
    }
}

fn graph(
    request: &GraphRequest,
    settings: Settings,
    root: Option<&Path>,
    events: &Events,
    source: &mut Source,
) -> Result<String, BuildError> {
    let place = Place { settings: settings.clone(), root, events };
    let (read, host) = read::read(&request.build, place, source)?;
    let resolver = host.or_else(|| existing(settings, root)).and_then(stored_images);
    let known = |image: &ImageRequest| {
        // A store that cannot be read knows no images: the graph is drawn all the same.
        let found = resolver.as_ref()?.stored(&image.reference, &image.platform).ok()??;
        Some(ResolvedImage { reference: found.reference, manifest: found.identity, config: found.config })
    };
    let graph = check::graph(&read, &known)?;
    Ok(match request.format {
        GraphFormat::Text => graph.to_text(),
        GraphFormat::Dot => graph.to_dot(),
        GraphFormat::Json => format!("{:#}\n", graph.to_json()),
    })
}

/// Opens the store when there is one: looking at a Dockerfile that is here makes none.
fn existing(settings: Settings, root: Option<&Path>) -> Option<Host> {
    root.unwrap_or(&settings.default_root).is_dir().then(|| Host::open(settings, root).ok())?
}

/// Looks images up in the store.
fn stored_images(host: Host) -> Option<Resolver> {
    let registry = Client::new(host.settings.registry.clone()).ok()?;
    Some(Resolver::new(host.store, registry, BTreeMap::new(), Pull::Never, Events::silent()))
}
