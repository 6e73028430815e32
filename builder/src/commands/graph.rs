//! `rbuild graph`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use rbuild_frontend::lower::{ImageRequest, LowerOptions, ResolvedImage};
use rbuild_oci::Platform;
use rbuild_registry::Client;

use crate::build::Source;
use crate::check;
use crate::cli::{Env, GraphFormat, GraphRequest, Pull};
use crate::error::BuildError;
use crate::failure;
use crate::host::Host;
use crate::progress::Events;
use crate::resolve::Resolver;
use crate::settings::Settings;

/// Prints the graph.
pub(super) fn run(request: &GraphRequest, settings: Settings, root: Option<&Path>, env: &Env) -> ExitCode {
    let mut source = Source::default();
    match graph(request, settings, root, &mut source).and_then(|text| super::print(&text)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::print(&error, Some(&source), env),
    }
}

fn graph(
    request: &GraphRequest,
    settings: Settings,
    root: Option<&Path>,
    source: &mut Source,
) -> Result<String, BuildError> {
    let options = LowerOptions {
        target: request.target.clone(),
        build_args: request.build_args.clone(),
        ..LowerOptions::new(Platform::host())
    };
    let read = check::read_as(&request.context, request.dockerfile.as_ref(), options, source)?;
    let resolver = stored_images(settings, root);
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

/// Looks images up in the store, when there is one: looking at a Dockerfile makes none.
fn stored_images(settings: Settings, root: Option<&Path>) -> Option<Resolver> {
    if !root.unwrap_or(&settings.default_root).is_dir() {
        return None;
    }
    let host = Host::open(settings, root).ok()?;
    let registry = Client::new(host.settings.registry.clone()).ok()?;
    Some(Resolver::new(host.store, registry, BTreeMap::new(), Pull::Never, Events::silent()))
}
