use std::ffi::OsString;

use rbuild_oci::Digest;

use super::*;
use crate::progress::Mode;

mod attest;
mod outputs;

fn invocation(line: &[&str], env: &Env) -> Result<Invocation, UsageError> {
    parse(std::iter::once("rbuild").chain(line.iter().copied()).map(OsString::from), env)
}

#[track_caller]
fn build_in(line: &[&str], env: &Env) -> BuildRequest {
    match invocation(line, env).unwrap().command {
        Command::Build(request) => *request,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn build(line: &[&str]) -> BuildRequest {
    build_in(line, &Env::fixed([]))
}

/// The error of a build line, with its causes, as the user reads it.
#[track_caller]
fn refused_in(line: &[&str], env: &Env) -> String {
    let error = invocation(line, env).expect_err("must be refused");
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error.problem);
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

#[track_caller]
fn refused(line: &[&str]) -> String {
    refused_in(line, &Env::fixed([]))
}

#[test]
fn every_form_of_the_build_command_means_the_same() {
    let env = Env::fixed([]);
    let plain = invocation(&["-t", "x", "."], &env).unwrap();
    assert_eq!(invocation(&["build", "-t", "x", "."], &env).unwrap(), plain);
    assert_eq!(invocation(&["b", ".", "-t", "x"], &env).unwrap(), plain);
    assert_eq!(invocation(&[".", "--tag=x"], &env).unwrap(), plain);
    let rooted = Invocation { root: Some("/s".into()), debug: true, ..plain };
    for line in [
        &["--root", "/s", "-D", "build", "-t", "x", "."][..],
        &["--root=/s", "--debug", "-t", "x", "."],
        &["build", "-t", "x", "--root", "/s", "-D", "."],
        &["-t", "x", ".", "--root=/s", "-D"],
    ] {
        assert_eq!(invocation(line, &env).unwrap(), rooted, "{line:?}");
    }
}

#[test]
fn the_store_comes_from_the_flag_then_the_environment() {
    let env = Env::fixed([("RBUILD_ROOT", "/env")]);
    let root = |line: &[&str]| invocation(line, &env).unwrap().root;
    assert_eq!(root(&["images"]), Some("/env".into()));
    assert_eq!(root(&["--root", "/flag", "images"]), Some("/flag".into()));
    assert_eq!(invocation(&["images"], &Env::fixed([("RBUILD_ROOT", "")])).unwrap().root, None);
}

#[test]
fn a_bare_build_has_docker_s_defaults() {
    let request = build(&["."]);
    assert_eq!(request.context, ContextArg::Local(".".into()));
    assert_eq!((request.dockerfile, request.target, request.platforms), (None, None, vec![]));
    assert_eq!(request.control, CacheControl::default());
    assert!(!request.quiet);
    assert_eq!((request.network, request.progress), (Network::Default, Mode::Auto));
    assert_eq!(request.results.outputs, [OutputArg::Image(ImageOutput::default())]);
    assert!(request.build_args.is_empty() && request.source_date_epoch.is_none());
}

#[test]
fn exactly_one_context_is_wanted() {
    let wanted = "'rbuild build' requires 1 argument: the build context";
    assert_eq!(refused(&["build"]), wanted);
    assert_eq!(refused(&["build", "a", "b"]), wanted);
    assert_eq!(refused(&["-t", "x"]), wanted);
    assert_eq!(build(&["build", "--", "-odd"]).context, ContextArg::Local("-odd".into()));
}

#[test]
fn standard_input_is_a_context_or_a_dockerfile() {
    assert_eq!(build(&["-"]).context, ContextArg::Stdin);
    assert_eq!(build(&["-f", "-", "."]).dockerfile, Some(DockerfileArg::Stdin));
    assert_eq!(build(&["-f-", "."]).dockerfile, Some(DockerfileArg::Stdin));
    assert!(refused(&["-f", "-", "-"]).contains("can't use stdin for both build context and dockerfile"));
}

#[test]
fn contexts_and_dockerfiles_may_be_elsewhere() {
    for (text, remote, reference) in [
        ("git@host:path", "git@host:path", ""),
        ("https://h/r.git#main", "https://h/r.git", "main"),
        ("github.com/a/b", "https://github.com/a/b", ""),
        ("ssh://h/r", "ssh://h/r", ""),
    ] {
        let ContextArg::Git(source) = build(&[text]).context else { panic!("{text}") };
        assert_eq!((source.remote.as_str(), source.reference.as_str()), (remote, reference));
    }
    assert!(matches!(build(&["https://h/x.tar.gz"]).context, ContextArg::Http(_)));
    let dockerfile = build(&["-f", "http://h/D", "."]).dockerfile;
    assert!(matches!(dockerfile, Some(DockerfileArg::Http(source)) if source.url == "http://h/D"));
    assert!(refused(&["-f", "https://h/r.git", "."]).contains("a repository is a build context"));
    let secret = refused(&["https://u:canary@h/r.git#-x"]);
    assert!(secret.contains("invalid git reference") && !secret.contains("canary"), "{secret}");
    assert_eq!(
        build(&["-f", "d/Dockerfile.dev", "ctx"]).dockerfile,
        Some(DockerfileArg::Path("d/Dockerfile.dev".into()))
    );
}

#[test]
fn tags_are_checked_before_building() {
    let request = build(&["-t", "user/app", "-t", "h:5000/x:1", "-t", "user/app:latest", "."]);
    let names: Vec<String> = request.tags.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["docker.io/user/app:latest", "h:5000/x:1"]);
    assert_eq!(
        refused(&["-t", "User/App:1", "."]),
        "invalid tag `User/App:1`: invalid reference format: repository name (User/App) must be lowercase"
    );
    assert_eq!(refused(&["-t", "a b", "."]), "invalid tag `a b`: invalid reference format: `a b`");
    assert!(refused(&["-t", "", "."]).contains("invalid reference format"));
    let digest = format!("a@sha256:{}", "0".repeat(64));
    assert_eq!(
        refused(&["-t", &digest, "."]),
        format!("invalid tag `{digest}`: refusing to create a tag with a digest reference")
    );
}

#[test]
fn build_arguments_take_values_or_the_environment_or_vanish() {
    let env = Env::fixed([("FROM_ENV", "v"), ("EMPTY", "")]);
    let line = [
        "--build-arg",
        "A=1=2,3",
        "--build-arg",
        "FROM_ENV",
        "--build-arg",
        "EMPTY",
        "--build-arg",
        "UNSET",
        "--build-arg",
        "B=",
        "--build-arg",
        "A=last,\"q\"",
        ".",
    ];
    let found: Vec<(String, String)> = build_in(&line, &env).build_args.into_iter().collect();
    let expected = [("A", "last,\"q\""), ("B", ""), ("EMPTY", ""), ("FROM_ENV", "v")];
    assert_eq!(found, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    assert!(refused(&["--build-arg", "=v", "."]).starts_with("invalid argument `=v` for --build-arg"));
}

#[test]
fn labels_without_value_are_empty() {
    let request = build(&["--label", "a=b=c", "--label", "d", "."]);
    assert_eq!(
        request.labels.into_iter().collect::<Vec<_>>(),
        [("a".into(), "b=c".into()), ("d".into(), String::new())]
    );
    assert!(refused(&["--label", "", "."]).contains("--label"));
}

#[test]
fn named_contexts_have_normalised_names_and_typed_values() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let layout = format!("l=oci-layout://d/e@{digest}");
    let both = format!("m=oci-layout://d:1@{digest}");
    let request = build(&[
        "--build-context",
        "alpine:latest=../dir",
        "--build-context",
        "docker.io/library/node:10=docker-image://n:11",
        "--build-context",
        &layout,
        "--build-context",
        "k=oci-layout://a:b/c:v1",
        "--build-context",
        &both,
        "--build-context",
        "p=oci-layout:///abs",
        "--build-context",
        "s=docker-image://scratch",
        "--build-context",
        "q:latest::linux/aarch64=arm",
        ".",
    ]);
    let parsed: Digest = digest.parse().unwrap();
    let oci = |dir: &str, tag: Option<&str>, digest| NamedContextArg::OciLayout {
        dir: dir.into(),
        tag: tag.map(str::to_owned),
        digest,
    };
    let expected = [
        ("alpine", NamedContextArg::Dir("../dir".into())),
        ("node:10", NamedContextArg::Image(Some("n:11".parse().unwrap()))),
        ("l", oci("d/e", None, Some(parsed))),
        ("k", oci("a:b/c", Some("v1"), None)),
        ("m", oci("d", Some("1"), Some(parsed))),
        ("p", oci("/abs", None, None)),
        ("s", NamedContextArg::Image(None)),
        ("q::linux/arm64", NamedContextArg::Dir("arm".into())),
    ];
    assert_eq!(request.named_contexts, expected.map(|(name, value)| (name.to_owned(), value)));
}

#[test]
fn named_contexts_of_one_name_are_last_wins_and_bad_ones_are_refused() {
    let request = build(&["--build-context", "a=x", "--build-context", "a:latest=y", "."]);
    assert_eq!(request.named_contexts, [("a".to_owned(), NamedContextArg::Dir("y".into()))]);
    let refused = |text: &str| refused(&["--build-context", text, "."]);
    assert_eq!(refused("x"), "invalid context value: x, expected key=value");
    assert_eq!(refused("x="), "invalid context value: x=, expected key=value");
    assert!(refused("Up=d").starts_with("invalid context name Up: invalid reference format"));
    assert_eq!(
        refused("x=target:base"),
        "--build-context: a bake target (`x=target:base`) is not supported yet"
    );
    assert!(refused("x=oci-layout://d@sha256:12").contains("not a sha256 digest"));
    assert!(refused("x=docker-image://UP").contains("must be lowercase"));
}

#[test]
fn boolean_flags_take_go_s_spellings() {
    for yes in ["--pull", "--pull=true", "--pull=1", "--pull=t", "--pull=T"] {
        assert_eq!(build(&[yes, "."]).control.pull, Pull::Always, "{yes}");
    }
    for no in ["--pull=false", "--pull=0", "--pull=f"] {
        assert_eq!(build(&[no, "."]).control.pull, Pull::Missing, "{no}");
    }
    assert!(build(&["--no-cache", "."]).control.no_cache);
    assert!(refused(&["--pull=maybe", "."]).contains("maybe"));
}

#[test]
fn platforms_are_normalised_and_each_is_built_once() {
    let env = Env::fixed([("DOCKER_DEFAULT_PLATFORM", "linux/aarch64")]);
    let platforms =
        |line: &[&str]| build_in(line, &env).platforms.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(platforms(&["."]), ["linux/arm64"]);
    assert_eq!(platforms(&["--platform", "linux/x86_64", "."]), ["linux/amd64"]);
    assert_eq!(platforms(&["--platform=linux/arm64/v8,linux/arm64", "."]), ["linux/arm64"]);
    let several = ["linux/arm/v7", "linux/amd64"];
    assert_eq!(platforms(&["--platform", "linux/arm, linux/amd64", "."]), several);
    assert_eq!(platforms(&["--platform", "linux/arm/v7", "--platform", "linux/amd64", "."]), several);
    assert_eq!(platforms(&["--platform=local", "."]), [Platform::host().to_string()]);
    assert!(refused(&["--platform", "a/b/c/d", "."]).contains("failed to parse platform"));
    let two = refused(&["pull", "--platform", "linux/amd64,linux/arm64", "busybox"]);
    assert!(two.contains("expected one platform"), "{two}");
}

#[test]
fn progress_comes_from_the_flag_then_the_environment() {
    let env = Env::fixed([("BUILDKIT_PROGRESS", "plain")]);
    assert_eq!(build_in(&["."], &env).progress, Mode::Plain);
    assert_eq!(build_in(&["--progress", "rawjson", "."], &env).progress, Mode::RawJson);
    assert_eq!(build_in(&["-q", "."], &env).progress, Mode::Quiet);
    assert_eq!(build(&["--progress=tty", "."]).progress, Mode::Tty);
    assert_eq!(build(&["--progress=none", "."]).progress, Mode::None);
    assert!(
        refused(&["--progress=fancy", "."]).contains("expected auto, plain, tty, quiet, none or rawjson")
    );
    assert!(refused_in(&["."], &Env::fixed([("BUILDKIT_PROGRESS", "x")])).contains("BUILDKIT_PROGRESS"));
    assert_eq!(
        refused(&["-q", "--progress=plain", "."]),
        "--quiet and --progress=plain cannot be used together"
    );
}

#[test]
fn the_build_date_comes_from_flag_argument_then_environment() {
    let env = Env::fixed([("SOURCE_DATE_EPOCH", "3")]);
    let both = |request: BuildRequest| {
        let seconds = request.source_date_epoch.map(|epoch| match epoch {
            EpochArg::At(seconds) => seconds,
            EpochArg::Git => -1,
            EpochArg::Of => -2,
        });
        (seconds, request.build_args.get("SOURCE_DATE_EPOCH").cloned())
    };
    assert_eq!(both(build(&["--source-date-epoch=git", "."])), (Some(-1), None));
    assert_eq!(both(build(&["--timestamp", "7", "."])), (Some(7), Some("7".into())));
    assert!(refused(&["--timestamp=1", "--source-date-epoch=1", "."]).contains("cannot be used together"));
    assert_eq!(both(build_in(&["."], &env)), (Some(3), Some("3".into())));
    assert_eq!(
        both(build_in(&["--build-arg", "SOURCE_DATE_EPOCH=2", "."], &env)),
        (Some(2), Some("2".into()))
    );
    let line = ["--source-date-epoch", "1", "--build-arg", "SOURCE_DATE_EPOCH=2", "."];
    assert_eq!(both(build_in(&line, &env)), (Some(1), Some("1".into())));
    assert_eq!(both(build(&["--source-date-epoch=context", "."])), (Some(-2), Some("context".into())));
    assert!(refused(&["--source-date-epoch", "1d", "."]).starts_with("invalid SOURCE_DATE_EPOCH: 1d"));
    assert!(refused(&["--source-date-epoch=-1", "."]).contains("Unix time"));
    assert!(refused_in(&["."], &Env::fixed([("SOURCE_DATE_EPOCH", "-x")])).contains("environment variable"));
    assert_eq!(both(build_in(&["."], &Env::fixed([("SOURCE_DATE_EPOCH", "")]))), (None, None));
}

#[test]
fn small_values_are_checked() {
    assert_eq!(build(&["--network=host", "."]).network, Network::Host);
    assert_eq!(build(&["--network", "none", "."]).network, Network::None);
    assert!(refused(&["--network", "mynet", "."]).contains("expected default, none or host"));
    assert_eq!(build(&["--jobs", "4", "."]).jobs.map(std::num::NonZero::get), Some(4));
    assert!(refused(&["--jobs", "0", "."]).contains("from 1"));
    assert!(refused(&["--jobs", "many", "."]).contains("from 1"));
    let request = build(&["--iidfile", "i", "--metadata-file", "m", "--target", "Build", "."]);
    let results = request.results;
    assert_eq!((results.iidfile, results.metadata_file), (Some("i".into()), Some("m".into())));
    assert_eq!(request.target.as_deref(), Some("Build"));
}

#[test]
fn documented_flags_that_are_missing_are_named() {
    for line in [
        &["--policy", "x", "."][..],
        &["--cache-from", "type=registry,ref=x", "."],
        &["--cache-to=type=inline", "."],
        &["--tls-verify=false", "."],
    ] {
        let flag = line[0].split('=').next().unwrap();
        assert_eq!(refused(line), format!("{flag} is not supported yet"));
    }
}

#[test]
fn calls_are_read_as_buildx_reads_them() {
    use CallMethod::{Check, Outline, Targets};
    let call = |line: &[&str]| build(line).call.map(|call| (call.method, call.json, call.ignore_status));
    assert_eq!(call(&["--check", "."]), Some((Check, false, false)));
    assert_eq!(call(&["--call=lint", "."]), Some((Check, false, false)));
    assert_eq!(call(&["--call", "outline,format=json", "."]), Some((Outline, true, false)));
    assert_eq!(call(&["--call=targets,ignorestatus=true", "."]), Some((Targets, false, true)));
    assert_eq!(call(&["--call=check", "--check", "."]), Some((Check, false, false)));
    assert_eq!(call(&["--check=false", "."]), None);
    assert!(refused(&["--call=wat", "."]).contains("expected build, check, outline or targets"));
    assert!(refused(&["--call=check,format=xml", "."]).contains("format=json|text"));
    assert!(refused(&["--call=outline", "--check", "."]).contains("cannot be used together"));
}

#[test]
fn flags_that_ask_for_what_happens_anyway_pass() {
    build(&["--call=build", "--check=false", "--tls-verify", "."]);
}

#[test]
fn flags_without_effect_are_accepted_and_listed() {
    let request = build(&["--rm", "--force-rm=true", "--builder", "b", "-m", "2g", "--cpu-shares=3", "."]);
    assert_eq!(request.flags_without_effect, ["--builder", "--cpu-shares", "--force-rm", "--memory", "--rm"]);
    let warning = build(&["--rm", "-c", "1", "."]).ignored_flags_warning();
    assert_eq!(warning.as_deref(), Some("WARNING: no effect in rbuild, ignored: --cpu-shares, --rm"));
    assert_eq!(build(&["."]).ignored_flags_warning(), None);
}

#[test]
fn unknown_flags_are_refused_in_docker_s_words() {
    assert_eq!(refused(&["--bogus", "."]), "unknown flag: --bogus");
    assert_eq!(refused(&["--targt", "x", "."]), "unknown flag: --targt (did you mean --target?)");
    assert_eq!(refused(&["images", "-z"]), "unknown shorthand flag: -z");
    assert!(refused(&["-t"]).contains("a value is required"), "{}", refused(&["-t"]));
    let command = |line: &[&str]| invocation(line, &Env::fixed([])).unwrap_err().command;
    assert_eq!(command(&["b", "--bogus"]), "rbuild build");
    assert_eq!(command(&["--bogus"]), "rbuild build");
    assert_eq!(command(&["-D", "pull"]), "rbuild pull");
}

#[test]
fn the_other_commands_parse() {
    let command = |line: &[&str]| invocation(line, &Env::fixed([])).unwrap().command;
    assert_eq!(command(&["doctor"]), Command::Doctor { json: false });
    assert_eq!(command(&["doctor", "--format=json"]), Command::Doctor { json: true });
    assert_eq!(command(&["version"]), Command::Version);
    assert_eq!(command(&["--version"]), Command::Version);
    let alpine: Reference = "alpine:latest".parse().unwrap();
    let pull =
        PullRequest { name: alpine.clone(), default_tag: true, platform: None, quiet: true, all_tags: false };
    assert_eq!(command(&["pull", "-q", "alpine"]), Command::Pull(pull));
    let push =
        PushRequest { name: alpine, default_tag: false, platform: None, quiet: false, all_tags: false };
    assert_eq!(command(&["push", "alpine:latest"]), Command::Push(push));
    let images = ImagesRequest {
        name: Some("node".to_owned()),
        quiet: true,
        no_trunc: true,
        digests: false,
        filters: Vec::new(),
        format: String::new(),
        tree: false,
    };
    assert_eq!(command(&["images", "-q", "--no-trunc", "node"]), Command::Images(images));
    assert!(refused(&["pull", "UP"]).contains("must be lowercase"));
    assert!(refused(&["push", &format!("a@sha256:{}", "0".repeat(64))]).contains("digest"));
    assert!(refused(&["pull"]).contains("NAME"), "{}", refused(&["pull"]));
}

#[test]
fn arguments_that_are_not_utf8_do_not_panic() {
    use std::os::unix::ffi::OsStringExt as _;
    let odd = OsString::from_vec(vec![b'-', 0xff]);
    assert!(parse(["rbuild".into(), odd], &Env::fixed([])).is_err());
    assert!(parse([], &Env::fixed([])).is_ok());
}

#[track_caller]
fn help(line: &[&str]) -> String {
    match invocation(line, &Env::fixed([("COLUMNS", "100")])).unwrap().command {
        Command::Help(text) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn isolation_is_named_by_the_flag_or_else_by_the_environment() {
    use rbuild_sandbox::{Isolation, Rung};
    let isolation = |arguments: &[&str], variable: &str| {
        let arguments = std::iter::once("rbuild").chain(arguments.iter().copied()).map(Into::into);
        let parsed = parse(arguments, &Env::fixed([("RBUILD_ISOLATION", variable)]));
        parsed.map(|invocation| invocation.isolation).map_err(|error| error.to_string())
    };
    assert_eq!(isolation(&["."], ""), Ok(Isolation::Auto));
    assert_eq!(isolation(&["."], "norun"), Ok(Isolation::Named(Rung::NoRun)));
    assert_eq!(isolation(&["--isolation", "single", "."], "norun"), Ok(Isolation::Named(Rung::Single)));
    assert_eq!(isolation(&["images", "--isolation=root"], ""), Ok(Isolation::Named(Rung::Root)));
    assert_eq!(isolation(&[".", "--isolation", "chroot,force"], ""), Ok(Isolation::ForcedChroot));
    for unknown in [isolation(&[".", "--isolation", "hyperv"], ""), isolation(&["."], "none")] {
        assert!(unknown.unwrap_err().contains("rootless"));
    }
}

#[test]
fn help_texts() {
    insta::assert_snapshot!("help", help(&["--help"]));
    insta::assert_snapshot!("help_build", help(&["build", "--help"]));
    insta::assert_snapshot!("help_build_short", help(&["build", "-h"]));
    insta::assert_snapshot!("help_pull", help(&["pull", "--help"]));
    assert_eq!(help(&[]), help(&["--help"]));
    assert_eq!(help(&["help"]), help(&["--help"]));
}

#[test]
fn misspelt_commands_are_recognised() {
    for (typed, meant) in [
        ("imags", Some("images")),
        ("image", Some("images")),
        ("pul", Some("pull")),
        ("psuh", Some("push")),
        ("docter", Some("doctor")),
        ("bulid", Some("build")),
        (".", None),
        ("", None),
        ("src", None),
        ("images", None),
    ] {
        let meant = meant.map(|name| format!("did you mean the command `rbuild {name}`?"));
        assert_eq!(no_command(typed), meant, "{typed}");
    }
}

#[test]
fn a_word_that_was_to_be_a_command_is_named_when_the_line_makes_no_sense_as_a_build() {
    let said = |line: &[&str]| {
        let error = invocation(line, &Env::fixed([])).expect_err("must be refused");
        (error.command.clone(), error.to_string())
    };
    let (command, text) = said(&["biuld", "-t", "app", "."]);
    assert_eq!(
        (command.as_str(), text.contains("did you mean the command `rbuild build`?")),
        ("rbuild", true),
        "{text}"
    );
    let (_, text) = said(&["run", "-it", "app"]);
    assert!(
        text.starts_with("`run` is not a command of rbuild: rbuild builds images and runs no containers"),
        "{text}"
    );
    // By itself it is a directory.
    assert_eq!(build(&["run"]).context, ContextArg::Local("run".into()));
    assert_eq!(said(&["somewhere", "else"]).1, "'rbuild build' requires 1 argument: the build context");
}

#[test]
fn docker_s_groups_lead_to_the_commands() {
    for group in [["buildx", "build"], ["buildx", "b"], ["builder", "build"], ["image", "build"]] {
        assert_eq!(build(&[group[0], group[1], "-t", "app", "."]), build(&["-t", "app", "."]));
    }
    assert_eq!(meant(&["builder", "prune", "-f"]), meant(&["prune", "-f"]));
    assert_eq!(meant(&["buildx", "imagetools", "inspect", "app"]), meant(&["imagetools", "inspect", "app"]));
    let Command::System(SystemRequest::Prune(request)) = meant(&["system", "prune", "-af", "--volumes"])
    else {
        panic!("another command")
    };
    assert!(request.images.all && request.images.force);
}

fn meant(line: &[&str]) -> Command {
    invocation(line, &Env::fixed([])).unwrap().command
}

#[test]
fn prune_takes_docker_s_flags_and_refuses_what_it_does_not_know() {
    let prune = |line: &[&str]| match meant(&[&["prune"], line].concat()) {
        Command::Prune(request) => request,
        other => panic!("{other:?}"),
    };
    let plain = prune(&[]);
    assert!(!plain.all && !plain.force && plain.until.is_zero() && plain.max_used_bytes.is_none());
    let full = prune(&[
        "-af",
        "--filter",
        "until=24h",
        "--filter=id=abc",
        "--max-used-space=10GB",
        "--reserved-space",
        "1g",
        "--min-free-space=5g",
    ]);
    assert_eq!((full.all, full.force, full.until.as_secs()), (true, true, 86_400));
    assert_eq!(full.filters, [rbuild_cache::gc::Filter::parse("id=abc").unwrap()]);
    assert_eq!(full.max_used_bytes, Some(10 << 30));
    assert_eq!((full.reserved_bytes, full.min_free_bytes), (1 << 30, Some(5 << 30)));
    assert_eq!(prune(&["--keep-storage", "512MB"]).max_used_bytes, Some(512 << 20));
    for line in [
        &["prune", "--filter", "until=soon"][..],
        &["prune", "--filter", "unused"],
        &["prune", "--max-used-space", "much"],
        &["prune", "--max-used-space=1", "--keep-storage=1"],
        &["prune", "extra"],
        &["du", "--format", "xml"],
        &["cache"],
        &["cache", "wash"],
    ] {
        let parsed = invocation(line, &Env::fixed([]));
        let is_help = matches!(&parsed, Ok(Invocation { command: Command::Help(_), .. }));
        assert!(parsed.is_err() || is_help, "{line:?}");
    }
}

#[test]
fn the_store_s_commands_are_read() {
    let du = |verbose, json, by| DuRequest {
        verbose,
        json,
        by,
        until: std::time::Duration::ZERO,
        filters: Vec::new(),
    };
    assert_eq!(meant(&["du"]), Command::Du(du(false, false, None)));
    assert_eq!(meant(&["du", "-v", "--format=json"]), Command::Du(du(true, true, None)));
    assert_eq!(meant(&["du", "--by", "stage"]), Command::Du(du(false, false, Some(ShareBy::Stage))));
    assert_eq!(
        meant(&["cache", "fsck"]),
        Command::Cache(CacheRequest::Fsck { repair: false, rebuild: false })
    );
    assert_eq!(
        meant(&["cache", "fsck", "--repair"]),
        Command::Cache(CacheRequest::Fsck { repair: true, rebuild: false })
    );
}

#[track_caller]
fn image(line: &[&str]) -> ImageCommand {
    match invocation(line, &Env::fixed([])).unwrap().command {
        Command::Image(command) => command,
        other => panic!("{other:?}"),
    }
}

#[test]
fn image_commands_mean_the_same_in_their_group() {
    for (short, grouped) in [
        (&["tag", "a", "b"][..], &["image", "tag", "a", "b"][..]),
        (&["rmi", "-f", "a", "b"], &["image", "rm", "--force", "a", "b"]),
        (&["rmi", "a"], &["image", "remove", "a", "--no-prune"]),
        (&["inspect", "-f", "{{.Id}}", "a"], &["image", "inspect", "--format={{.Id}}", "a"]),
        (&["history", "-q", "a"], &["image", "history", "--quiet", "--human", "a"]),
        (&["save", "-o", "f", "a"], &["image", "save", "--output", "f", "a"]),
        (&["load", "-i", "f"], &["image", "load", "--input=f"]),
    ] {
        assert_eq!(image(short), image(grouped), "{short:?}");
    }
    let env = Env::fixed([]);
    for (short, grouped) in [
        (&["images", "-a", "x*", "-f", "label=a"][..], &["image", "ls", "x*", "--filter=label=a"][..]),
        (&["images"], &["image", "list"]),
        (&["pull", "x"], &["image", "pull", "x"]),
        (&["push", "x"], &["image", "push", "x"]),
        (&["build", "-t", "x", "."], &["image", "build", "-t", "x", "."]),
        (&["--root", "/s", "-t", "x", "."], &["--root", "/s", "image", "build", "-t", "x", "."]),
    ] {
        assert_eq!(invocation(short, &env).unwrap(), invocation(grouped, &env).unwrap(), "{short:?}");
    }
}

#[test]
fn login_says_where_the_password_comes_from() {
    let password = |line: &[&str]| match image(line) {
        ImageCommand::Login(request) => request.password,
        other => panic!("{other:?}"),
    };
    assert!(password(&["login"]) == PasswordSource::Terminal);
    assert!(password(&["login", "-u", "me", "r.io"]) == PasswordSource::Terminal);
    assert!(password(&["login", "-u", "me", "--password-stdin"]) == PasswordSource::Stdin);
    assert!(password(&["login", "-u", "me", "-p", "-"]) == PasswordSource::Stdin);
    assert!(password(&["login", "-u", "me", "-p", "-x"]) == PasswordSource::Argument("-x".into()));
    assert!(refused(&["login", "--password-stdin"]).contains("requires --username"));
    assert!(refused(&["login", "-u", "me", "-p", "x", "--password-stdin"]).contains("mutually exclusive"));
    assert!(refused(&["login", "-u", "me", "-p", ""]).contains("empty"));
    let shown = format!("{:?}", image(&["login", "-u", "me", "-p", "canary", "r.io"]));
    assert!(!shown.contains("canary"), "{shown}");
}

#[test]
fn image_commands_refuse_what_cannot_be() {
    assert!(refused(&["tag", "a", "B"]).contains("must be lowercase"));
    assert!(refused(&["tag", "a", &format!("b@{}", Digest::of(b""))]).contains("digest"));
    for line in
        [&["tag", "a", "r.io/Me/App:Up"][..], &["pull", "r.io/Me/App:Up"], &["push", "r.io/Me/App:Up"]]
    {
        let hint = invocation(line, &Env::fixed([])).unwrap_err().problem.hint();
        assert_eq!(hint.as_deref(), Some("write it in lower case: r.io/me/app:Up"), "{line:?}");
    }
    assert!(refused(&["inspect", "--type", "container", "a"]).contains("only images"));
    assert!(refused(&["images", "Upper"]).contains("must be lowercase"));
    assert!(refused(&["images", "-f", "size=1"]).contains("--filter"));
    for line in [&["rmi"][..], &["inspect"], &["history"], &["save"], &["tag", "a"], &["load", "x"]] {
        assert!(invocation(line, &Env::fixed([])).is_err(), "{line:?}");
    }
}
