//! From typed errors to what people read: message, place, causes, the fix.

mod damage;

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use rbuild_cache::store::StoreError;
use rbuild_frontend::span::Lines;
use rbuild_registry::RegistryError;
use rbuild_sandbox::{MountError, StepError};

use crate::build::Source;
use crate::cli::{Env, UsageError, no_command};
use crate::commands::ImageError;
use crate::context::scan::ScanError;
use crate::debug::choose::ChoiceError;
use crate::error::{BuildError, StepFailure, causes_below, one_line};
use crate::export::files::FilesError;
use crate::report::{Kind, Report, SourceFile, Style};
use crate::resolve::ResolveError;
use crate::resolve::layout::LayoutError;

/// For programs that can only be emulated when the whole machine does.
const REGISTER_EMULATOR: &str =
    "register an emulator with the kernel: apt-get install qemu-user-static binfmt-support";

/// Status of a command that a signal ended, as a shell gives it.
pub const fn exit_status(signal: u8) -> u8 {
    128 + signal
}

/// Prints a report to standard error and gives the exit status.
pub fn print(error: &BuildError, source: Option<&Source>, env: &Env) -> ExitCode {
    let report = report(error, source);
    show(&report, env);
    status_of(error, &report)
}

/// The exit status of an error that was shown already.
pub fn status(error: &BuildError, source: Option<&Source>) -> ExitCode {
    status_of(error, &report(error, source))
}

fn status_of(error: &BuildError, report: &Report) -> ExitCode {
    match error {
        BuildError::Signal(number) => ExitCode::from(exit_status(*number)),
        _ => ExitCode::from(report.exit_code()),
    }
}

/// Prints what is wrong with a command line.
pub fn usage(error: &UsageError, env: &Env) -> ExitCode {
    let report = Report::from(error);
    show(&report, env);
    ExitCode::from(report.exit_code())
}

fn show(report: &Report, env: &Env) {
    // Nobody left to tell when standard error is closed; the status still says it.
    let _ = std::io::stderr().lock().write_all(report.render(Style::stderr(env)).as_bytes());
}

/// The report of an error. `source` is the Dockerfile, when one was read.
pub fn report(error: &BuildError, source: Option<&Source>) -> Report {
    let file = source.and_then(source_file);
    if let (BuildError::Dockerfile(diagnostics), Some(file)) = (error, &file) {
        return Report::dockerfile(file.clone(), diagnostics.clone());
    }
    let mut report = Report::new(kind(error), message(error));
    report.causes = causes(error);
    report.hints = hints(error);
    if let (Some(lines), Some(file)) = (lines(error), file) {
        report = report.excerpt(file, lines);
    }
    if let BuildError::Step(step) = error
        && !step.failure.log().is_empty()
    {
        report = report.step_log(&step.name, step.failure.log().to_vec());
    }
    report
}

/// The Dockerfile as reports show it.
pub fn source_file(source: &Source) -> Option<SourceFile> {
    let found = source.dockerfile.as_ref()?;
    Some(SourceFile { name: found.display.clone(), bytes: Arc::clone(&found.bytes) })
}

fn message(error: &BuildError) -> String {
    match error {
        BuildError::Step(step) => step.failure.to_string(),
        BuildError::Base { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}

fn lines(error: &BuildError) -> Option<Lines> {
    match error {
        BuildError::Step(step) => step.lines,
        BuildError::Base { lines, .. } => *lines,
        _ => None,
    }
}

fn causes(error: &BuildError) -> Vec<String> {
    let next: Option<&dyn Error> = match error {
        BuildError::Step(step) => step.failure.source(),
        BuildError::Base { source, .. } => source.source(),
        other => other.source(),
    };
    causes_below(message(error), next)
}

fn kind(error: &BuildError) -> Kind {
    if is_disk_full(error) {
        return Kind::Exhausted;
    }
    match error {
        BuildError::Dockerfile(_) | BuildError::Stage(_) | BuildError::ConfigTooLarge => Kind::Dockerfile,
        BuildError::Stdin(_) | BuildError::NotAnArchive(_) | BuildError::Epoch { .. } => Kind::Build,
        BuildError::NoDockerfile { .. } | BuildError::Read { .. } => Kind::Build,
        BuildError::NoContext(_) | BuildError::ContextNotDirectory(_) => Kind::Build,
        BuildError::Ignore { .. } | BuildError::Scan(_) | BuildError::Step(_) | BuildError::Work(_) => {
            Kind::Build
        }
        BuildError::Base { .. } | BuildError::Resolve(_) | BuildError::Push { .. } => Kind::Registry,
        BuildError::Preflight { .. } | BuildError::RegistryConfig(_) => Kind::Registry,
        BuildError::Store(_) | BuildError::LayerVanished(_) | BuildError::NoSuchImage(_) => Kind::Store,
        BuildError::NoCacheMount(_) | BuildError::CacheMountInUse(_) => Kind::Store,
        BuildError::Image(source) => source.kind(),
        BuildError::Export { .. } | BuildError::Files(_) | BuildError::NoIndex { .. } => Kind::Build,
        BuildError::Engine(_) | BuildError::GitTime { .. } => Kind::Host,
        BuildError::NotReproduced { .. } | BuildError::NothingToExplain(_) => Kind::Build,
        BuildError::NoStepToEnter(_) | BuildError::LastBuild(_) => Kind::Build,
        BuildError::Bootstrap(_) | BuildError::Setup(_) => Kind::Host,
        BuildError::Canceled | BuildError::Signal(_) => Kind::Interrupted,
    }
}

fn hints(error: &BuildError) -> Vec<String> {
    if is_disk_full(error) {
        return vec![make_room(error)];
    }
    if damage::is_of_store(error) {
        return vec![
            "set aside what is damaged, and what was made from it, with rbuild cache fsck --repair: it is made \
             or fetched again then"
                .to_owned(),
        ];
    }
    match error {
        BuildError::NoDockerfile { similar, .. } => match similar.as_slice() {
            [] => vec![
                "name the Dockerfile with -f PATH, or run rbuild in the directory that has it".to_owned(),
            ],
            [name] => vec![format!("did you mean -f {name}?")],
            names => vec![format!("there are {}: name one with -f", names.join(", "))],
        },
        BuildError::NoContext(path) => {
            let place = || "the last argument is the directory to build from, often `.`".to_owned();
            vec![no_command(&path.to_string_lossy()).unwrap_or_else(place)]
        }
        BuildError::ContextNotDirectory(path) => {
            vec![format!(
                "to build with this Dockerfile, name it with -f and give a directory: -f {} .",
                path.display()
            )]
        }
        BuildError::Scan(ScanError::Changed(_)) => {
            vec!["run the build again when nothing writes to the context".to_owned()]
        }
        BuildError::Base { reference, stages, source, .. } if !stages.is_empty() => {
            let names = stages.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            let mut hints = vec![format!(
                "no earlier stage has that name, so it is the image {reference}; stages: {names}"
            )];
            hints.extend(resolve_hints(source));
            hints
        }
        BuildError::Base { source, .. } | BuildError::Resolve(source) => resolve_hints(source),
        BuildError::Push { source, .. } => source.hint().into_iter().collect(),
        BuildError::Preflight { source, others, .. } => {
            let told = |(name, why): &(String, RegistryError)| {
                std::iter::once(format!("nor to {name}: {}", one_line(why))).chain(why.hint())
            };
            let others = others.iter().flat_map(told);
            source.hint().into_iter().chain(others).collect()
        }
        BuildError::NoSuchImage(name) => {
            vec![format!("build it with -t {name}, or list what is here: rbuild images")]
        }
        BuildError::NoCacheMount(_) => vec!["rbuild cache mounts ls lists them".to_owned()],
        BuildError::Image(source) => source.hints(),
        BuildError::Step(step) => {
            let climbs = |word: &str| word.split('/').any(|name| name == "..");
            match &step.failure {
                StepFailure::Absent { hint: None, .. } if step.name.split_whitespace().any(climbs) => {
                    vec!["`..` does not lead out of the source: build from the directory above it, and name the Dockerfile with -f".to_owned()]
                }
                failure => step_hints(failure),
            }
        }
        BuildError::Work(failure) => step_hints(failure),
        BuildError::Bootstrap(source) => {
            vec![source.remedy(), "rbuild doctor says what else this host lacks".to_owned()]
        }
        BuildError::Engine(source) => source.hint().into_iter().collect(),
        BuildError::Files(FilesError::Delete { .. }) => {
            vec!["with mode=delete everything else in the directory is removed: name one below the working directory, or use mode=copy".to_owned()]
        }
        BuildError::Files(FilesError::Terminal) => {
            vec!["redirect standard output, or name a file with dest=".to_owned()]
        }
        BuildError::NoIndex { .. } => {
            vec!["build for several platforms, or annotate the manifest".to_owned()]
        }
        BuildError::GitTime { .. } => {
            vec!["give the time itself: --source-date-epoch SECONDS".to_owned()]
        }
        BuildError::ConfigTooLarge => {
            vec!["keep what is long in a file of the image, not in ENV, LABEL or ONBUILD".to_owned()]
        }
        BuildError::LayerVanished(_) => vec!["build the image again".to_owned()],
        BuildError::NothingToExplain(_) => {
            vec!["rbuild explain tells of the last build; a step is named by number (2/4) or text".to_owned()]
        }
        BuildError::NoStepToEnter(ChoiceError::NothingFailed) => {
            vec!["name a step to see it before it runs: --step STEP".to_owned()]
        }
        BuildError::NoStepToEnter(
            ChoiceError::NoSuchStep { steps, .. } | ChoiceError::Ambiguous { steps, .. },
        ) => {
            let steps: Vec<String> = steps.iter().map(|name| format!("\n  {name}")).collect();
            vec![format!("a shell opens in RUN steps; those of this build:{}", steps.concat())]
        }
        BuildError::LastBuild(_) => {
            vec!["give the build's own arguments: rbuild debug [--step STEP] [OPTIONS] CONTEXT".to_owned()]
        }
        BuildError::NotReproduced { .. } => {
            vec![
                "a step that reads the clock, the network or random numbers gives something else each time: \
                  pin what it reads, or take it out of what you verify"
                    .to_owned(),
            ]
        }
        _ => Vec::new(),
    }
}

fn resolve_hints(error: &ResolveError) -> Vec<String> {
    match error {
        ResolveError::Registry { source, .. } => source.hint().into_iter().collect(),
        ResolveError::Never { reference } => {
            vec![format!("rbuild pull {reference}, or build with --pull=missing")]
        }
        ResolveError::Layout(LayoutError::Several { path, .. }) => {
            vec![format!("name one by its digest: oci-layout://{}@sha256:…", path.display())]
        }
        _ => Vec::new(),
    }
}

fn step_hints(failure: &StepFailure) -> Vec<String> {
    match failure {
        StepFailure::Exit { code: 127, command, .. } if command.starts_with("/bin/sh") => {
            vec!["127 means that the shell found no such command: install it in an earlier step, or check its name".to_owned()]
        }
        StepFailure::Exit { code: 126, .. } => {
            vec![
                "126 means that the file is there but cannot be executed: check its mode and its first line"
                    .to_owned(),
            ]
        }
        StepFailure::Exit { code: 137, .. } | StepFailure::Signal { signal: 9, .. } => {
            vec!["the process was killed; on a machine short of memory that is the kernel's doing".to_owned()]
        }
        StepFailure::Foreign { why, .. } => vec![
            why.as_ref().map_or(REGISTER_EMULATOR, |why| why.remedy()).to_owned(),
            "or run the step on this machine and have it make files for the other: FROM --platform=$BUILDPLATFORM"
                .to_owned(),
        ],
        StepFailure::MountsInChroot
        | StepFailure::InsecureInChroot
        | StepFailure::ShellInChroot
        | StepFailure::DevicesInChroot
        | StepFailure::Sandbox { source: StepError::NotInChroot { .. }, .. } => {
            vec!["other isolations have it: rbuild doctor says what each needs here".to_owned()]
        }
        StepFailure::Sandbox { source, .. } => not_executed(source).into_iter().collect(),
        StepFailure::Mount(MountError::Option { option: "upperdir", .. }) => vec![
            "the store is on a file system that cannot be the upper layer of an overlay, such as the overlay of a container: \
             keep it elsewhere, on a volume, a local disk or a tmpfs: --root DIR"
                .to_owned(),
        ],
        StepFailure::Absent { hint: Some(hint), .. } => vec![hint.clone()],
        StepFailure::Absent { hint: None, .. } | StepFailure::Select(_) => {
            vec!["paths are relative to the root of the source".to_owned()]
        }
        StepFailure::User(_) => {
            vec!["create it in an earlier RUN, or use numeric ids".to_owned()]
        }
        StepFailure::NoSecret { id } => {
            vec![format!("give it with --secret id={id},src=FILE or --secret id={id},env=VARIABLE")]
        }
        StepFailure::NoAgent { id } => {
            vec![format!("give your agent with --ssh {id}, after ssh-add has given it a key, or a key with --ssh {id}=FILE")]
        }
        StepFailure::SecretFileInChroot { id } => vec![format!(
            "give it as a variable: RUN --mount=type=secret,id={id},env=NAME (`printf %s \"$NAME\" | program` where a program reads \
             its standard input)"
        )],
        StepFailure::Agent(source) => source.hint().into_iter().collect(),
        StepFailure::Device(source) => source.hints(),
        StepFailure::OutOfMemory { .. } => vec!["allow more with --resource memory=BYTES".to_owned()],
        StepFailure::Fetch(source) => source.hint().into_iter().collect(),
        StepFailure::Git(source) => source.hint().into_iter().collect(),
        StepFailure::Checksum { .. } => {
            vec!["the server has another file than the one the checksum was made of".to_owned()]
        }
        StepFailure::Registry(source) => source.hint().into_iter().collect(),
        StepFailure::LayerElsewhere { from, source, .. } => {
            let again = format!("or, when it can be reached again: rbuild pull {from}");
            source.hint().into_iter().chain([again]).collect()
        }
        StepFailure::RunRefused { remedies } => remedies.clone(),
        _ => Vec::new(),
    }
}

/// What to do about a command that could not be started.
fn not_executed(error: &StepError) -> Option<String> {
    use std::io::ErrorKind::{NotFound, PermissionDenied};
    let hint = match error {
        StepError::CommandNotFound { program } => {
            format!("install {program} in an earlier step, or name it with its path")
        }
        StepError::CommandNotExecutable { program, source } if source.kind() == NotFound => {
            let shell = "the image has no shell, which RUN without brackets takes: write RUN [\"/program\", \"argument\"], or \
                         copy a static one in with COPY --from=busybox /bin/busybox /bin/sh";
            match program.as_str() {
                "/bin/sh" => shell.to_owned(),
                _ => "the file is not there, or the loader or interpreter that it names is not".to_owned(),
            }
        }
        StepError::CommandNotExecutable { source, .. } if source.kind() == PermissionDenied => {
            "make it executable: COPY --chmod=755, or chmod +x in an earlier step".to_owned()
        }
        StepError::CommandNotExecutable { source, .. }
            if source.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) =>
        {
            "it is no program of this machine; if it is a script, its first line must name what reads it, as #!/bin/sh \
             does"
                .to_owned()
        }
        _ => return None,
    };
    Some(hint)
}

/// What to do about a full disk: the one that a result was written to, or the store's.
fn make_room(error: &BuildError) -> String {
    let to = match error {
        BuildError::Export { path, .. } | BuildError::Image(ImageError::Save { path, .. }) => Some(path),
        BuildError::Files(
            FilesError::Archive { to, .. }
            | FilesError::Directory { to, .. }
            | FilesError::Destination { to, .. },
        ) => Some(to),
        _ => None,
    };
    // What is read from the store may need room there, too.
    match to.filter(|_| !any_cause(error, &|cause| cause.is::<StoreError>())) {
        Some(to) if matches!(to.to_str(), Some("-" | "standard output")) => {
            "free space on the disk that standard output goes to".to_owned()
        }
        Some(to) => {
            format!("free space on the disk that holds `{}`, or write it somewhere else", to.display())
        }
        None => {
            let lacked = match error {
                BuildError::Step(step) => match step.failure {
                    StepFailure::Exit { lacked, .. } => lacked,
                    _ => None,
                },
                _ => None,
            };
            let found = lacked.map(|what| format!("the disk that holds the store has no {what} left: "));
            let what = lacked.unwrap_or("space");
            format!(
                "{}free {what} on the disk that holds the store, or keep the store elsewhere: --root DIR",
                found.unwrap_or_default()
            )
        }
    }
}

/// ENOSPC or EDQUOT anywhere in the chain, or a step that failed where nothing is left.
fn is_disk_full(error: &BuildError) -> bool {
    if let BuildError::Step(step) = error
        && matches!(step.failure, StepFailure::Exit { lacked: Some(_), .. })
    {
        return true;
    }
    any_cause(error, &|cause| {
        let kind = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        let errno = cause.downcast_ref::<rustix::io::Errno>();
        matches!(kind, Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded))
            || matches!(errno, Some(&rustix::io::Errno::NOSPC | &rustix::io::Errno::DQUOT))
            || cause.to_string().contains("database or disk is full")
    })
}

/// True when something in the chain is so.
fn any_cause(error: &(dyn Error + 'static), is_so: &dyn Fn(&(dyn Error + 'static)) -> bool) -> bool {
    let mut next = Some(error);
    while let Some(cause) = next {
        if is_so(cause) {
            return true;
        }
        // An I/O error that carries another passes that over: its source is the other's.
        let carried = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match carried {
            Some(carried) => Some(carried),
            None => cause.source(),
        };
    }
    false
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use super::*;

    fn told(error: &BuildError) -> (u8, String) {
        let report = report(error, None);
        (report.exit_code(), report.hints.join("; "))
    }

    #[test]
    fn a_full_disk_is_told_as_the_one_that_is_full() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let of_store = || StoreError::io("write", &PathBuf::from("/s/x"), full());
        let store = "free space on the disk that holds the store, or keep the store elsewhere: --root DIR";
        assert_eq!(told(&of_store().into()), (102, store.to_owned()));
        let save = |path: &str, source| BuildError::from(ImageError::Save { path: path.into(), source });
        let other = "free space on the disk that holds `/other/app.tar`, or write it somewhere else";
        assert_eq!(told(&save("/other/app.tar", full())), (102, other.to_owned()));
        let carried = io::Error::other(full());
        assert_eq!(told(&save("/other/app.tar", carried)), (102, other.to_owned()));
        assert_eq!(told(&save("/other/app.tar", io::Error::other(of_store()))), (102, store.to_owned()));
        let out = "free space on the disk that standard output goes to";
        assert_eq!(told(&save("-", full())), (102, out.to_owned()));
        let files = FilesError::Destination { to: "/other/out".into(), source: full() };
        assert!(told(&files.into()).1.contains("holds `/other/out`"));
    }
}
