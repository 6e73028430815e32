//! The commands: from a checked command line to an exit status.

mod build;
mod cache_mounts;
mod call;
mod context;
mod debug;
mod doctor;
mod error;
mod explain;
mod fsck;
mod graph;
mod history;
mod image;
mod image_tree;
mod images;
mod imagetools;
mod inspect;
mod load;
mod login;
mod packed;
mod password;
mod prune_images;
mod pull;
mod push;
mod read;
mod rmi;
mod save;
mod shares;
mod space;
mod stored;
mod system;
mod tag;
mod version;

use std::future::Future;
use std::process::ExitCode;

use crate::cancel::{Cancel, Reason};
use crate::cli::{self, Command, Env};
use crate::error::BuildError;
use crate::failure;
use crate::progress::{self, Display, Events, Mode};
use crate::settings::Settings;

pub use error::ImageError;

/// Parses the command line, runs the command and reports what went wrong.
pub fn main() -> ExitCode {
    let env = Env::process();
    // Before privileges change: HOME and the user's files mean the user's.
    let settings = match Settings::new(&env, rustix::process::getuid().is_root()) {
        Ok(settings) => settings,
        Err(usage) => return failure::usage(&usage, &env),
    };
    let arguments: Vec<_> = std::env::args_os().collect();
    let typed = arguments.get(1..).unwrap_or_default();
    let invocation = match cli::parse(arguments.iter().cloned(), &env) {
        Ok(invocation) => invocation,
        Err(usage) => return failure::usage(&usage, &env),
    };
    let settings = Settings { isolation: invocation.isolation, ..settings };
    let root = invocation.root;
    let result = match invocation.command {
        Command::Build(request) => return build::run(&request, typed, settings, root.as_deref(), &env),
        Command::Debug(request) => return debug::run(&request, settings, root.as_deref(), &env),
        Command::Graph(request) => return graph::run(&request, settings, root.as_deref(), &env),
        Command::Context(request) => context::run(&request),
        Command::Images(request) => images::run(&request, settings, root.as_deref()),
        Command::Pull(request) => pull::run(&request, settings, root.as_deref(), &env),
        Command::Push(request) => push::run(&request, settings, root.as_deref(), &env),
        Command::Explain(request) => explain::run(&request, settings, root.as_deref()),
        Command::Du(request) => space::du(&request, settings, root.as_deref()),
        Command::Prune(request) => space::prune(&request, settings, root.as_deref()),
        Command::Cache(cli::CacheRequest::Fsck { repair, rebuild }) => {
            return fsck::run(repair, rebuild, settings, root.as_deref(), &env);
        }
        Command::Cache(cli::CacheRequest::ListMounts { json }) => {
            cache_mounts::list(json, settings, root.as_deref())
        }
        Command::Cache(cli::CacheRequest::RemoveMounts { ids }) => {
            cache_mounts::remove(&ids, settings, root.as_deref())
        }
        Command::Image(command) => return image::run(&command, settings, root.as_deref(), &env),
        Command::Imagetools(request) => imagetools::run(&request, &settings),
        Command::System(cli::SystemRequest::Df(request)) => system::df(&request, settings, root.as_deref()),
        Command::System(cli::SystemRequest::Prune(request)) => {
            system::prune(&request, settings, root.as_deref())
        }
        Command::Doctor { json } => doctor::run(&settings, root.as_deref(), json),
        Command::Version => version::run(),
        Command::Help(text) => print(&text),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::print(&error, None, &env),
    }
}

/// Writes to standard output. A reader that went away has seen enough; any other failure means that a result did not
/// arrive.
fn print(text: &str) -> Result<(), BuildError> {
    write_out(|out| out.write_all(text.as_bytes()))
}

/// To standard output, until nobody reads on.
fn write_out(write: impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()>) -> Result<(), BuildError> {
    use std::io::{BufWriter, ErrorKind, Write};
    let mut out = BufWriter::new(std::io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(source) if source.kind() != ErrorKind::BrokenPipe => {
            Err(BuildError::Export { path: "standard output".into(), source })
        }
        _ => Ok(()),
    }
}

/// Says which tag is meant when none was typed.
fn announce_default_tag(is_default: bool, quiet: bool) -> Result<(), BuildError> {
    if is_default && !quiet { print("Using default tag: latest\n") } else { Ok(()) }
}

/// Runs work with its progress shown unless `quiet`, and prints the lines it ends with.
fn with_progress(
    quiet: bool,
    env: &Env,
    work: impl AsyncFnOnce(&Events, &Cancel) -> Result<String, BuildError>,
) -> Result<(), BuildError> {
    let mode = if quiet { Mode::Quiet } else { Mode::Auto };
    let (events, consumer) = progress::start(mode, Display::stderr(env));
    let result = with_signals(async |cancel| work(&events, &cancel).await);
    drop(events);
    consumer.finish();
    print(&result?)
}

/// Runs a future on a small runtime with signals wired to `cancel`: the first SIGINT or SIGTERM stops the work in
/// order, a second one ends the process at once (leases and sandboxes die with it).
fn with_signals<T>(work: impl AsyncFnOnce(Cancel) -> Result<T, BuildError>) -> Result<T, BuildError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(BuildError::Setup)?;
    let cancel = Cancel::new().map_err(BuildError::Setup)?;
    let result = runtime.block_on(async {
        let signals = tokio::spawn(watch_signals(cancel.clone()));
        let reason = cancel.clone();
        let result = work(cancel).await;
        signals.abort();
        // Whatever broke because of a signal, the signal is what ended the command.
        match (result, reason.reason()) {
            (Err(_), Some(Reason::Signal(number))) => Err(BuildError::Signal(number)),
            (result, _) => result,
        }
    });
    runtime.shutdown_background();
    result
}

async fn watch_signals(cancel: Cancel) {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let mut signals = Vec::new();
    for kind in kinds {
        match signal(kind) {
            Ok(listener) => signals.push((kind, listener)),
            Err(_) => return,
        }
    }
    let mut next = async || {
        let received = signals.iter_mut().map(|(kind, listener)| {
            let number = u8::try_from(kind.as_raw_value()).unwrap_or(0);
            Box::pin(async move {
                listener.recv().await;
                number
            })
        });
        futures_util::future::select_all(received).await.0
    };
    let first = next().await;
    cancel.cancel(Reason::Signal(first));
    next().await;
    std::process::exit(i32::from(failure::exit_status(first)));
}

/// Awaits work that may be stopped.
async fn unless_canceled<T>(
    cancel: &Cancel,
    work: impl Future<Output = Result<T, BuildError>>,
) -> Result<T, BuildError> {
    tokio::select! {
        result = work => result,
        () = cancel.cancelled() => Err(BuildError::Canceled),
    }
}
