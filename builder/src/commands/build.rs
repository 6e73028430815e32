//! `rbuild build`.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rbuild_frontend::diagnostic::Diagnostic;
use rbuild_frontend::lint;
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::{Value, json};

use crate::assemble::provenance::Document;
use crate::build::{self, BuildOutcome, Source};
use crate::cli::{BuildRequest, ContextArg, DockerfileArg, Env, EpochArg, ExplainFormat, RepositoryLabels};
use crate::commands::{explain, space, unless_canceled, with_signals};
use crate::context::files::{FoundDockerfile, default_dockerfile};
use crate::debug;
use crate::error::BuildError;
use crate::explain::Decision;
use crate::export::place;
use crate::failure;
use crate::git::local::{Origin, commit_time};
use crate::host::Host;
use crate::progress::{self, Display, Events, Mode, summary::Summary};
use crate::report::{Style, warnings};
use crate::settings::Settings;

/// Builds, then says what came out or what went wrong.
pub(super) fn run(
    request: &BuildRequest,
    typed: &[OsString],
    settings: Settings,
    root: Option<&Path>,
    env: &Env,
) -> ExitCode {
    if let Some(call) = request.call {
        return super::call::run(request, call, settings, root, env);
    }
    let mut source = Source::default();
    let (events, consumer) = progress::start(request.progress, Display::stderr(env));
    let built = build(request, typed, settings, root, &events, &mut source);
    if let Err(error) = &built {
        events.failed(failure::report(error, Some(&source)));
    }
    drop(events);
    consumer.finish();
    if request.control.explain == Some(ExplainFormat::Json)
        && let Err(error) = super::write_out(|out| decisions(&source, out))
    {
        return failure::print(&error, None, env);
    }
    let error = match built {
        Ok((host, outcome)) => {
            if let Err(error) = report(request, &outcome, &source, env) {
                return failure::print(&error, Some(&source), env);
            }
            make_room(host, &outcome);
            return ExitCode::SUCCESS;
        }
        Err(error) => error,
    };
    let status = match request.progress {
        // Its last line has said it.
        Mode::RawJson => failure::status(&error, Some(&source)),
        _ => failure::print(&error, Some(&source), env),
    };
    if let Some(step) = source.failed_step.take() {
        debug::enter(step);
    }
    status
}

fn build(
    request: &BuildRequest,
    typed: &[OsString],
    settings: Settings,
    root: Option<&Path>,
    events: &Events,
    source: &mut Source,
) -> Result<(Host, BuildOutcome), BuildError> {
    // A failed build must not leave the id of an earlier one.
    let results = &request.results;
    for path in [&results.iidfile, &results.digest_file, &results.name_with_digest_file].into_iter().flatten()
    {
        place::remove(path).map_err(|source| BuildError::Export { path: path.clone(), source })?;
    }
    let dated = with_commit_time(request)?;
    let placed = with_origin(dated.as_ref().unwrap_or(request));
    let request = placed.as_ref().or(dated.as_ref()).unwrap_or(request);
    let host = Host::open(settings, root)?;
    for flag in &request.flags_without_effect {
        // As in BuildKit, which left docker's limits for steps behind; rbuild has them under one name.
        let resource =
            flag.strip_prefix("--").filter(|name| name.starts_with("memory") || name.starts_with("cpu"));
        let instead = resource.map(|name| format!(": --resource {name}=VALUE limits what a step uses"));
        events.remark(format!("{flag} has no effect in rbuild{}", instead.unwrap_or_default()));
    }
    let result = with_signals(async |cancel| build::build(request, &host, events, &cancel, source).await);
    if result.as_ref().map_or(true, |outcome| outcome.cached < outcome.steps) {
        debug::last::remember(&host.root, typed, request);
    }
    let outcome = result?;
    write_results(request, &outcome, source)?;
    Ok((host, outcome))
}

/// Keeps the store within its budget. A build that made nothing has nothing to make room for.
fn make_room(host: Host, outcome: &BuildOutcome) {
    if outcome.cached < outcome.steps
        && let Some(budget) = space::budget_to_enforce(&host)
    {
        let place = space::Place::of(&host);
        drop(host);
        space::enforce(place, budget);
    }
}

/// The request with the time of the last commit in it, when that is what it asks for.
fn with_commit_time(request: &BuildRequest) -> Result<Option<BuildRequest>, BuildError> {
    if request.source_date_epoch != Some(EpochArg::Git) {
        return Ok(None);
    }
    let dir = match &request.context {
        ContextArg::Local(dir) => dir.as_path(),
        ContextArg::Stdin | ContextArg::Http(_) => Path::new("."),
        ContextArg::Git(_) => {
            let why = "a remote repository is not asked for it".to_owned();
            return Err(BuildError::GitTime { dir: Path::new("the git context").to_owned(), why });
        }
    };
    let seconds = commit_time(dir)?;
    let mut dated = request.clone();
    dated.source_date_epoch = Some(EpochArg::At(seconds));
    dated.build_args.insert(EpochArg::NAME.to_owned(), seconds.to_string());
    Ok(Some(dated))
}

/// The request with the repository of its context in it, and in its labels, when something is to tell of it.
fn with_origin(request: &BuildRequest) -> Option<BuildRequest> {
    let ContextArg::Local(dir) = &request.context else { return None };
    let (wanted, results) = (request.repository, &request.results);
    let has_provenance = results.attestations.provenance.is_some()
        || results.metadata_file.is_some() && results.metadata.provenance.is_some();
    if wanted.labels == RepositoryLabels::No && !(wanted.in_provenance && has_provenance) {
        return None;
    }
    let origin = Origin::of(dir)?;
    let mut labels = Vec::new();
    if wanted.labels != RepositoryLabels::No {
        labels.push(("org.opencontainers.image.revision", Some(origin.revision.clone())));
        let dockerfile = match &request.dockerfile {
            None => default_dockerfile(dir),
            Some(DockerfileArg::Path(path)) => Some(path.clone()),
            Some(DockerfileArg::Stdin | DockerfileArg::Http(_)) => None,
        };
        let place = dockerfile.and_then(|path| origin.place(&path));
        labels.push(("com.docker.image.source.entrypoint", place));
    }
    if wanted.labels == RepositoryLabels::Full {
        labels.push(("org.opencontainers.image.source", origin.source.clone()));
    }
    let mut placed = request.clone();
    for (name, value) in labels {
        if let Some(value) = value {
            placed.labels.entry(name.to_owned()).or_insert(value);
        }
    }
    placed.origin = Some(origin).filter(|_| wanted.in_provenance);
    Some(placed)
}

/// Writes the document of `--explain=json`, one step after the other.
fn decisions(source: &Source, out: &mut dyn Write) -> io::Result<()> {
    let step = |(name, decision): &(String, Decision)| match decision {
        Decision::Executed(record) => explain::step(record, "executed"),
        Decision::Cached => json!({ "step": name, "decision": "cached" }),
        Decision::NotReached => json!({ "step": name, "decision": "not reached" }),
    };
    let mut serializer = serde_json::Serializer::pretty(&mut *out);
    let mut document = serializer.serialize_map(Some(2))?;
    document.serialize_entry("version", &1)?;
    document.serialize_entry("steps", &Steps(&source.decisions, step))?;
    document.end()?;
    out.write_all(b"\n")
}

/// What is made of each when it is written.
struct Steps<'a, T, F>(&'a [T], F);

impl<T, F: Fn(&T) -> Value> Serialize for Steps<'_, T, F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(&self.1))
    }
}

/// Writes the files that scripts read. `source` has the Dockerfile.
fn write_results(request: &BuildRequest, outcome: &BuildOutcome, source: &Source) -> Result<(), BuildError> {
    let results = &request.results;
    let mut files: Vec<(PathBuf, String)> = Vec::new();
    let mut add = |path: &Option<PathBuf>, text: &dyn Fn() -> String| {
        files.extend(path.iter().map(|path| (path.clone(), text())));
    };
    add(&results.iidfile, &|| id(outcome));
    if let Some(path) = &results.metadata_file {
        let warnings = results.metadata.warnings.then_some(source.dockerfile.as_ref()).flatten();
        let failed = |source: io::Error| BuildError::Export { path: path.clone(), source };
        let document = metadata(outcome, warnings);
        if place::is_pipe(path) {
            let text = serde_json::to_string_pretty(&document).map_err(|error| failed(error.into()))?;
            add(&results.metadata_file, &|| text.clone());
        } else {
            place::write(path, 0o666, failed, |file| {
                let mut out = io::BufWriter::new(file);
                serde_json::to_writer_pretty(&mut out, &document).map_err(|error| failed(error.into()))?;
                out.flush().map_err(failed)
            })?;
        }
    }
    add(&results.digest_file, &|| digest(outcome));
    add(&results.name_with_digest_file, &|| {
        let digest = digest(outcome);
        outcome.names.iter().map(|name| format!("{}@{digest}\n", name.name())).collect()
    });
    let waits = files.iter().any(|(path, _)| place::is_pipe(path));
    let write = move || files.iter().try_for_each(|(path, text)| place::write_bytes(path, text.as_bytes()));
    if !waits {
        return write();
    }
    // Waiting for somebody to read can be stopped.
    with_signals(async |cancel| {
        unless_canceled(&cancel, async {
            match tokio::task::spawn_blocking(write).await {
                Ok(written) => written,
                Err(join) => std::panic::resume_unwind(join.into_panic()),
            }
        })
        .await
    })
}

/// Says what came out.
fn report(
    request: &BuildRequest,
    outcome: &BuildOutcome,
    source: &Source,
    env: &Env,
) -> Result<(), BuildError> {
    if matches!(request.progress, Mode::RawJson | Mode::None) {
        return Ok(());
    }
    if request.quiet || request.progress == Mode::Quiet {
        super::print(&format!("{}\n", id(outcome)))?;
    } else {
        let file = failure::source_file(source);
        let found = file.map(|file| warnings(&outcome.warnings, &file, false, Style::stderr(env)));
        let mut text = summary(outcome).render() + &found.unwrap_or_default();
        if let verified @ 1.. = outcome.verified {
            text += &format!("Verified {verified} cached results: executed again, they are the same\n");
        }
        // Standard error may be closed; the build has succeeded all the same.
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }
    Ok(())
}

/// What identifies the result, for scripts; empty when a build for several platforms made no index.
fn id(outcome: &BuildOutcome) -> String {
    outcome.id().map(|id| id.to_string()).unwrap_or_default()
}

/// The digest of the manifest or index, else the image's id.
fn digest(outcome: &BuildOutcome) -> String {
    let digest = outcome.document.as_ref().map(|document| document.digest).or(outcome.id());
    digest.map(|digest| digest.to_string()).unwrap_or_default()
}

fn summary(outcome: &BuildOutcome) -> Summary {
    Summary {
        names: outcome.names.clone(),
        images: outcome.images.clone(),
        digest: outcome.document.as_ref().map(|document| document.digest),
        pushed: outcome.pushed.clone(),
        written: outcome.written.clone(),
        size_bytes: (!outcome.images.is_empty()).then_some(outcome.size),
        steps: outcome.steps,
        cached: outcome.cached,
        elapsed: outcome.elapsed,
    }
}

/// The metadata document of buildx. An image that no exporter wrote has no manifest yet: its id stands for the
/// digest, as with Docker's own store. With `warned`, the Dockerfile, come its warnings.
fn metadata<'a>(outcome: &'a BuildOutcome, warned: Option<&'a FoundDockerfile>) -> Metadata<'a> {
    let names: Vec<String> = outcome.names.iter().map(ToString::to_string).collect();
    let mut document = Metadata::default();
    document.insert("rbuild.isolation", json!(outcome.isolation.name()));
    document.insert("buildx.build.ref", json!(format!("rbuild/local/{}", outcome.invocation)));
    match outcome.provenance.as_slice() {
        [(_, provenance)] => document.insert("buildx.build.provenance", Told::Provenance(provenance)),
        several => {
            for (platform, provenance) in several {
                let key = format!("buildx.build.provenance/{platform}");
                document.insert(key, Told::Provenance(provenance));
            }
        }
    }
    if let Some(dockerfile) = warned {
        document.insert("buildx.build.warnings", Told::Warnings(&outcome.warnings, dockerfile));
    }
    if let [(_, id)] = outcome.images.as_slice() {
        document.insert("containerimage.config.digest", json!(id));
    }
    if let Some(described) = &outcome.document {
        let mut descriptor = json!({
            "mediaType": described.media_type,
            "digest": described.digest,
            "size": described.size,
        });
        if !described.annotations.is_empty() {
            descriptor["annotations"] = json!(described.annotations);
        }
        if let Some(platform) = &described.platform {
            descriptor["platform"] = json!(platform);
        }
        document.insert("containerimage.descriptor", descriptor);
    }
    let digest = digest(outcome);
    if !digest.is_empty() {
        document.insert("containerimage.digest", json!(digest));
    }
    if !names.is_empty() {
        document.insert("image.name", json!(names.join(",")));
    }
    document
}

/// The fields of the metadata document, in their order. What is long of them is made as it is written out.
#[derive(Default)]
struct Metadata<'a>(Vec<(String, Told<'a>)>);

/// One field.
enum Told<'a> {
    Value(Value),
    Provenance(&'a Document),
    /// Each has the whole Dockerfile.
    Warnings(&'a [Diagnostic], &'a FoundDockerfile),
}

impl From<Value> for Told<'_> {
    fn from(value: Value) -> Self {
        Self::Value(value)
    }
}

impl<'a> Metadata<'a> {
    fn insert(&mut self, key: impl Into<String>, told: impl Into<Told<'a>>) {
        self.0.push((key.into(), told.into()));
    }
}

impl Serialize for Metadata<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, told)| (key, told)))
    }
}

impl Serialize for Told<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Value(value) => value.serialize(serializer),
            Self::Provenance(document) => document.serialize(serializer),
            Self::Warnings(warnings, dockerfile) => {
                serializer.collect_seq(warnings.iter().map(|warning| vertex_warning(warning, dockerfile)))
            }
        }
    }
}

/// A warning as BuildKit's clients have it: bytes in base64.
fn vertex_warning(warning: &Diagnostic, dockerfile: &FoundDockerfile) -> Value {
    let rule = warning.rule.and_then(lint::rules::find);
    let (name, description) = match rule {
        Some(rule) => (rule.name, rule.why),
        None => (warning.rule.unwrap_or_default(), ""),
    };
    let short = format!("{name}: {} (line {})", warning.message, warning.lines.first);
    json!({
        "level": 1,
        "short": STANDARD.encode(short),
        "detail": [STANDARD.encode(description)],
        "sourceInfo": {
            "filename": dockerfile.display,
            "language": "Dockerfile",
            "data": STANDARD.encode(&dockerfile.bytes),
        },
        "range": [{"start": {"line": warning.lines.first}, "end": {"line": warning.lines.last}}],
    })
}
