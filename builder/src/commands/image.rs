//! Runs the commands on images and credentials.

use std::path::Path;
use std::process::ExitCode;

use super::{history, inspect, load, login, prune_images, rmi, save, tag};
use crate::cli::{Env, ImageCommand};
use crate::error::BuildError;
use crate::failure;
use crate::host::Host;
use crate::settings::Settings;

/// Runs the command and reports what went wrong.
pub(super) fn run(command: &ImageCommand, settings: Settings, root: Option<&Path>, env: &Env) -> ExitCode {
    let result = match command {
        ImageCommand::Tag(request) => Host::open(settings, root).and_then(|host| tag::run(request, &host)),
        ImageCommand::Prune(request) => prune_images::run(request, settings, root),
        ImageCommand::History(request) => history::run(request, settings, root),
        ImageCommand::Save(request) => save::run(request, settings, root, env),
        ImageCommand::Load(request) => load::run(request, settings, root, env),
        ImageCommand::Login(request) => login::run(request, &settings),
        ImageCommand::Logout(server) => login::out(server.as_deref(), &settings),
        // These go on after a failure, and report each one.
        ImageCommand::Inspect(request) => return inspect::run(request, settings, root, env),
        ImageCommand::Rmi(request) => return rmi::run(request, settings, root, env),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::print(&error, None, env),
    }
}

/// Reports every failure; the first decides the status.
pub(super) fn report(errors: &[BuildError], env: &Env) -> ExitCode {
    let statuses: Vec<ExitCode> = errors.iter().map(|error| failure::print(error, None, env)).collect();
    statuses.into_iter().next().unwrap_or(ExitCode::SUCCESS)
}
