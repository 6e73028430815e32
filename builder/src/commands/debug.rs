//! `rbuild debug`: a build that stops in a step.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use crate::build::{self, Source};
use crate::cli::{
    self, BuildRequest, CacheControl, Command, DebugRequest, Env, OutputArg, Problem, ShellAt, UsageError,
};
use crate::commands::with_signals;
use crate::debug::choose::ChoiceError;
use crate::debug::{self, last};
use crate::error::BuildError;
use crate::failure;
use crate::host::{self, Host};
use crate::progress::{self, Display};
use crate::settings::Settings;
use rbuild_sandbox::Isolation;

/// Builds as far as the step, and opens a shell in it.
pub(super) fn run(request: &DebugRequest, settings: Settings, root: Option<&Path>, env: &Env) -> ExitCode {
    let mut typed = request.build.clone();
    if typed.is_empty() {
        let last =
            last::recall(&host::place(&settings, root)).and_then(|last| last.enter_dir().map(|()| last));
        let last = match last {
            Ok(last) => last,
            Err(error) => return failure::print(&BuildError::from(error), None, env),
        };
        for name in last.withheld.iter().filter(|name| env.var(name).is_none()) {
            debug::say(&format!(
                "the value of --build-arg {name} was not kept: set {name} in the environment"
            ));
        }
        typed = last.args.into_iter().map(OsString::from).collect();
    }
    let invocation = match cli::parse(std::iter::once("rbuild".into()).chain(typed), env) {
        Ok(invocation) => invocation,
        Err(usage) => return failure::usage(&usage, env),
    };
    let Command::Build(build) = invocation.command else {
        let problem = Problem::Syntax("after --step come the arguments of a build".to_owned());
        return failure::usage(&UsageError { command: "rbuild debug".to_owned(), problem }, env);
    };
    let isolation =
        if settings.isolation == Isolation::Auto { invocation.isolation } else { settings.isolation };
    let settings = Settings { isolation, ..settings };
    let root = root.map(Path::to_owned).or(invocation.root);
    let mut source = Source::default();
    let built = stop(as_far_as(*build, request.step.clone()), settings, root.as_deref(), env, &mut source);
    match (built, source.failed_step.take()) {
        (_, Some(step)) => {
            debug::enter(step);
            ExitCode::SUCCESS
        }
        (Ok(()), None) => failure::print(&BuildError::from(ChoiceError::NothingFailed), Some(&source), env),
        (Err(error), None) => failure::print(&error, Some(&source), env),
    }
}

/// The build without its results: the cache gives what it can, and nothing is named, written or sent.
fn as_far_as(mut build: BuildRequest, step: Option<String>) -> BuildRequest {
    build.shell = Some(step.map_or(ShellAt::FirstFailure, ShellAt::Before));
    build.control = CacheControl { pull: build.control.pull, ..CacheControl::default() };
    build.tags.clear();
    build.call = None;
    build.results.outputs = vec![OutputArg::CacheOnly];
    build
}

fn stop(
    request: BuildRequest,
    settings: Settings,
    root: Option<&Path>,
    env: &Env,
    source: &mut Source,
) -> Result<(), BuildError> {
    let host = Host::open(settings, root)?;
    let (events, consumer) = progress::start(request.progress, Display::stderr(env));
    let result = with_signals(async |cancel| build::build(&request, &host, &events, &cancel, source).await);
    drop(events);
    consumer.finish();
    result.map(drop)
}
