use std::collections::BTreeMap;

use rbuild_oci::{ContainerConfig, Digest, History, ImageConfig, Platform};

use super::*;
use crate::graph::{CopySource, Network, Op, RemoteForm, RunOp};
use crate::parse::parse;

mod mounts;
mod rules;
mod scans;

fn platform() -> Platform {
    Platform::new("linux", "amd64", None)
}

/// Busybox as the golden cases mean it.
fn busybox() -> ImageConfig {
    let mut config = ImageConfig::empty(platform());
    config.created = Some("2020-01-01T00:00:00Z".to_owned());
    config.config.cmd = Some(vec!["sh".to_owned()]);
    config.rootfs.diff_ids = vec![rbuild_oci::DiffId(Digest::of(b"layer"))];
    config.history = vec![History { created_by: Some("base".to_owned()), ..History::default() }];
    config
}

struct Built {
    graph: BuildGraph,
    lowering: Lowering,
    asked: Vec<String>,
}

impl Built {
    fn config(&self) -> &ContainerConfig {
        &self.graph.targets[0].config.config
    }

    fn history(&self) -> Vec<&str> {
        self.graph.targets[0].history.iter().map(|step| step.created_by.as_str()).collect()
    }

    fn names(&self) -> Vec<&str> {
        self.graph.dag.node_weights().map(|node| node.step.name.as_str()).collect()
    }

    fn run(&self) -> &RunOp {
        let runs = self.graph.dag.node_weights().filter_map(|node| match &node.op {
            Op::Run(run) => Some(run),
            _ => None,
        });
        runs.last().expect("a RUN")
    }

    fn run_env(&self, name: &str) -> Option<&str> {
        self.run().env.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    fn rules(&self) -> Vec<&'static str> {
        self.lowering.diagnostics().iter().filter_map(|d| d.rule).collect()
    }

    fn label(&self, name: &str) -> &str {
        self.config().labels.get(name).map_or("(none)", String::as_str)
    }
}

/// What a context or stage was made at.
const EPOCH_OF_OTHERS: i64 = 1_234_567_890;

fn options(edit: impl FnOnce(&mut LowerOptions)) -> LowerOptions {
    let mut options = LowerOptions::new(platform());
    edit(&mut options);
    options
}

fn build_args(list: &[(&str, &str)]) -> LowerOptions {
    options(|o| o.build_args = list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
}

fn drive(
    text: &str,
    options: LowerOptions,
    images: &BTreeMap<&str, ImageConfig>,
) -> Result<Built, Vec<String>> {
    let parsed = parse(text.as_bytes());
    let mut lowering = Lowering::new(&parsed, options);
    let mut asked = Vec::new();
    for _ in 0..5 {
        match lowering.step() {
            Progress::Done(graph) => return Ok(Built { graph: *graph, lowering, asked }),
            Progress::Failed => {
                let errors = lowering.diagnostics().iter().filter(|d| d.severity == Severity::Error);
                return Err(errors.map(|d| d.message.clone()).collect());
            }
            Progress::NeedEpoch(_) => lowering.provide_epoch(EPOCH_OF_OTHERS),
            Progress::Need(requests) => {
                assert!(!requests.is_empty());
                for request in requests {
                    let config = images.get(request.reference.as_str()).cloned().unwrap_or_else(busybox);
                    let manifest = Digest::of(request.reference.as_bytes());
                    asked.push(request.reference.clone());
                    let reference = format!("docker.io/library/{}:latest", request.reference);
                    lowering.provide(&request, ResolvedImage { reference, manifest, config });
                }
            }
        }
    }
    panic!("lowering keeps asking for images");
}

#[track_caller]
fn build_with(text: &str, options: LowerOptions) -> Built {
    match drive(text, options, &BTreeMap::new()) {
        Ok(built) => built,
        Err(errors) => panic!("{text:?}: {errors:?}"),
    }
}

#[track_caller]
fn build(text: &str) -> Built {
    build_with(text, options(|_| {}))
}

/// On scratch.
#[track_caller]
fn scratch(body: &str) -> Built {
    build(&format!("FROM scratch\n{body}"))
}

/// On busybox.
#[track_caller]
fn bb(body: &str) -> Built {
    build(&format!("FROM busybox\n{body}"))
}

#[track_caller]
fn fails_with(text: &str, options: LowerOptions, wanted: &str) {
    match drive(text, options, &BTreeMap::new()) {
        Ok(_) => panic!("{text:?} builds"),
        Err(errors) => assert!(errors.iter().any(|e| e.contains(wanted)), "{text:?}: {errors:?}"),
    }
}

#[track_caller]
fn fails(text: &str, wanted: &str) {
    fails_with(text, options(|_| {}), wanted);
}

fn strings(list: &[&str]) -> Option<Vec<String>> {
    Some(list.iter().map(|s| (*s).to_owned()).collect())
}

#[test]
fn golden_11_blank_base() {
    fails("FROM \"\"", "base name (\"\") should not be blank");
    fails("FROM $X", "base name ($X) should not be blank");
}

#[test]
fn golden_25_to_27_check_options() {
    fails(
        "# check=error=true\nFROM scratch\nMAINTAINER x",
        "lint violation found for rules: MaintainerDeprecated",
    );
    build("# check=error=true\nFROM scratch\n# check=skip=MaintainerDeprecated\nMAINTAINER x");
    build("# check=error=true;skip=MaintainerDeprecated\nFROM scratch\nMAINTAINER x");
    build_with(
        "# check=error=true\nFROM scratch\nMAINTAINER x",
        build_args(&[("BUILDKIT_DOCKERFILE_CHECK", "skip=all")]),
    );
}

#[test]
fn golden_34_copy_splits_before_quotes() {
    fails("FROM scratch\nCOPY \"a b\" /x", "looking for matching double-quote");
    let built = scratch("ARG F=\"a b\"\nCOPY $F /x");
    assert!(built.graph.dump().contains("path \"a b\""));
}

#[test]
fn golden_53_to_56_run_heredocs() {
    let built = bb("RUN <<EOF\necho a >/o\nfalse\nEOF");
    assert_eq!(built.run().argv, ["/bin/sh", "-c", "echo a >/o\nfalse\n"]);
    let built = bb("RUN <<EOF\n#!/bin/awk -f\nBEGIN{}\nEOF");
    assert_eq!(built.run().argv, ["/dev/pipes/EOF"]);
    assert_eq!(built.run().script.as_deref(), Some("#!/bin/awk -f\nBEGIN{}\n"));
    let built = bb("RUN cat <<\"E\" >/o\n$HOME\nE");
    assert_eq!(built.run().argv, ["/bin/sh", "-c", "cat <<\"E\" >/o\n$HOME\nE"]);
    let built = bb("RUN <<-E\n\techo a\n\tE");
    assert_eq!(built.run().argv, ["/bin/sh", "-c", "echo a\n"]);
    fails("FROM busybox\nRUN <<'../x'\n#!/bin/sh\n../x", "cannot name a script file");
}

#[test]
fn golden_57_add_heredoc() {
    let built = scratch("ADD --chmod=755 <<EOF /f\nx $PATH \\$y\nEOF");
    let dump = built.graph.dump();
    assert!(dump.contains("inline \"EOF\" \"x /usr/local/sbin:"), "{dump}");
    assert!(dump.contains("chmod 755"), "{dump}");
    assert_eq!(built.history(), ["ADD --chmod=755 <<EOF /f # buildkit"]);
}

#[test]
fn golden_58_labels() {
    let built = scratch("ENV A=1\nLABEL a=$ b=$$ c=$A$A e=$1 f=\"$A.\" i=${A:-}");
    let found: Vec<&str> = ["a", "b", "c", "e", "f", "i"].iter().map(|name| built.label(name)).collect();
    assert_eq!(found, ["$", "", "11", "", "1.", "1"]);
}

#[test]
fn golden_65_env_line_sees_the_environment_before_it() {
    let built = scratch("ENV abc=hello\nENV abc=bye def=$abc\nENV ghi=$abc");
    assert_eq!(built.config().env[1..], ["abc=bye", "def=hello", "ghi=bye"]);
}

#[test]
fn golden_66_arg_line_sees_itself() {
    assert_eq!(scratch("ARG a=1 b=$a\nLABEL y=$b").label("y"), "1");
}

#[test]
fn golden_67_unset_is_not_empty() {
    assert_eq!(bb("ARG V\nRUN x").run_env("V"), None);
    assert_eq!(bb("ARG V=\nRUN x").run_env("V"), Some(""));
}

#[test]
fn golden_68_and_69_global_args() {
    let run = |line: &str, given: &[(&str, &str)]| {
        let built =
            build_with(&format!("ARG V=1\nFROM busybox\n{line}\nRUN x\nLABEL v=[$V]"), build_args(given));
        (built.run_env("V").map(str::to_owned), built.label("v").to_owned())
    };
    let is = |value: Option<&str>, label: &str| (value.map(str::to_owned), label.to_owned());
    assert_eq!(run("", &[]), is(None, "[]"));
    assert_eq!(run("ARG V", &[]), is(Some("1"), "[1]"));
    assert_eq!(run("ARG V=2", &[]), is(Some("2"), "[2]"));
    assert_eq!(run("ARG V=2", &[("V", "9")]), is(Some("9"), "[9]"));
    assert_eq!(run("ARG V=2", &[("V", "")]), is(Some(""), "[]"));
}

#[test]
fn golden_70_and_71_arg_against_env() {
    let built = bb("ENV V=env\nARG V=arg\nRUN echo $V");
    assert_eq!(built.run_env("V"), Some("arg"));
    assert!(built.config().env.contains(&"V=env".to_owned()));
    let built = build_with("FROM busybox\nARG V=arg\nENV V=env\nRUN x", build_args(&[("V", "b")]));
    assert_eq!(built.run_env("V"), Some("env"));
}

#[test]
fn golden_72_undeclared_build_arg() {
    let built = build_with("FROM scratch\nLABEL y=[$b]", build_args(&[("b", "x")]));
    assert_eq!(built.label("y"), "[]");
    assert_eq!(built.rules(), ["UndefinedVar"]);
    assert_eq!(built.lowering.unused_build_args(), ["b"]);
}

#[test]
fn golden_73_proxies_stay_out() {
    let built = build_with("FROM busybox\nRUN x\nLABEL y=$HTTP_PROXY", build_args(&[("HTTP_PROXY", "p")]));
    let proxies: Vec<&str> = built.run().proxy_env.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(proxies, ["HTTP_PROXY", "http_proxy"]);
    assert_eq!(built.run_env("HTTP_PROXY"), None);
    assert_eq!(built.label("y"), "");
    assert_eq!(built.history()[0], "RUN /bin/sh -c x # buildkit");
    let built = build_with("FROM busybox\nARG HTTP_PROXY\nRUN x", build_args(&[("HTTP_PROXY", "p")]));
    assert_eq!(built.run_env("HTTP_PROXY"), Some("p"));
    assert_eq!(built.history()[1], "RUN |1 HTTP_PROXY=p /bin/sh -c x # buildkit");
}

#[test]
fn golden_74_from_expands_globals() {
    assert_eq!(build("ARG A=box\nARG B=busy${A}\nFROM $B").asked, ["busybox"]);
}

#[test]
fn golden_75_and_76_built_in_args() {
    let built = bb("ARG TARGETPLATFORM\nARG TARGETVARIANT\nRUN x");
    assert_eq!(built.run_env("TARGETPLATFORM"), Some("linux/amd64"));
    assert_eq!(built.run_env("TARGETVARIANT"), Some(""));
    assert_eq!(bb("RUN x").run_env("TARGETPLATFORM"), None);
    assert_eq!(bb("ARG TARGETSTAGE\nRUN x").run_env("TARGETSTAGE"), Some("default"));
    let built = build_with(
        "FROM busybox AS foo\nARG TARGETSTAGE\nRUN x\nFROM scratch",
        options(|o| o.target = Some("foo".into())),
    );
    assert_eq!(built.run_env("TARGETSTAGE"), Some("foo"));
    let cross = options(|o| o.target_platforms = vec![Platform::new("linux", "arm64", None)]);
    let built = build_with("FROM --platform=$BUILDPLATFORM busybox\nARG TARGETARCH\nRUN x", cross);
    assert_eq!(built.run_env("TARGETARCH"), Some("arm64"));
    assert_eq!(built.run().platform, platform());
}

#[test]
fn golden_77_to_80() {
    let ports = |body: &str| scratch(body).config().exposed_ports.keys().cloned().collect::<Vec<_>>();
    assert_eq!(ports("ARG P=\"3000 4000/udp\"\nEXPOSE $P"), ["3000/tcp", "4000/udp"]);
    assert_eq!(scratch("ENV K=foo\nENV $K=bar").config().env[1..], ["K=foo", "foo=bar"]);
    fails("FROM scratch\nVOLUME $UNSET", "VOLUME specified can not be an empty string");
    assert!(ports("EXPOSE $UNSET").is_empty());
    assert_eq!(scratch("USER $UNSET").config().user, "");
    assert_eq!(scratch("CMD echo $P").config().cmd, strings(&["/bin/sh", "-c", "echo $P"]));
}

#[test]
fn golden_105_modes() {
    for text in ["888", "10000"] {
        fails(
            &format!("FROM scratch\nCOPY --chmod={text} a /b"),
            "it should be octal string and between 0 and 07777",
        );
    }
    fails("FROM scratch\nCOPY --chmod=zzz a /b", "invalid syntax");
}

#[test]
fn golden_114_to_116_copy_from() {
    for from in ["0", "base", "BASE"] {
        let built = build(&format!("FROM busybox AS Base\nRUN x\nFROM scratch\nCOPY --from={from} /a /b"));
        assert_eq!(built.names()[1], "[Base 2/2] RUN x");
    }
    fails("FROM scratch\nCOPY --from=5 a b", "invalid stage index 5");
    fails("FROM scratch\nCOPY --from=$X a b", "variable expansion is not supported for --from");
    assert_eq!(build("FROM scratch\nCOPY --from=alpine /a /b").asked, ["alpine"]);
}

#[test]
fn golden_128_to_130_unused_stages() {
    let built = build("FROM nosuch\nRUN false\nFROM scratch\nLABEL a=b");
    assert!(built.asked.is_empty());
    build("FROM scratch\nENV a=${X:?}\nFROM scratch");
    fails("FROM scratch\nFOO\nFROM scratch", "unknown instruction: FOO");
    fails("FROM scratch\nCOPY --from=9 a b\nFROM scratch", "invalid stage index 9");
}

#[test]
fn golden_131_target() {
    let target = |name: &str| options(|o| o.target = Some(name.to_owned()));
    let text = "FROM scratch AS one\nLABEL a=1\nFROM scratch AS two";
    assert_eq!(build_with(text, target("ONE")).label("a"), "1");
    assert_eq!(build_with(text, target("0")).label("a"), "1");
    fails_with(text, target("on"), "target stage \"on\" could not be found (did you mean one?)");
}

#[test]
fn golden_132_and_133_order_of_stages() {
    let circular = "circular dependency detected on stage: ";
    fails("FROM scratch AS a\nCOPY --from=a x y", &format!("{circular}a"));
    fails("FROM scratch\nCOPY --from=0 x y", &format!("{circular}stage-0"));
    fails_with(
        "FROM scratch AS a\nCOPY --from=b x y\nFROM a AS b",
        options(|o| o.target = Some("a".to_owned())),
        circular,
    );
    fails_with(
        "FROM scratch AS a\nCOPY --from=b x y\nFROM scratch AS b",
        options(|o| o.target = Some("a".to_owned())),
        "cannot copy from stage \"b\", it needs to be defined before current stage \"a\"",
    );
}

#[test]
fn golden_134_and_135_names() {
    let text = "FROM scratch AS a\nLABEL x=1\nFROM scratch AS a\nLABEL x=2\nFROM A";
    assert_eq!(build(text).label("x"), "2");
    assert_eq!(build("FROM scratch AS scratch\nLABEL x=1\nFROM scratch").label("x"), "1");
}

#[test]
fn golden_136_named_context_replaces_a_stage() {
    let contexts = |context: NamedContext| {
        options(|o| {
            o.named_contexts.insert("base".to_owned(), context);
        })
    };
    let text = "FROM nosuch AS base\nRUN false\nFROM scratch\nCOPY --from=base /a /b";
    let built = build_with(text, contexts(NamedContext::Image("alpine:3".to_owned())));
    assert_eq!(built.asked, ["base"]);
    assert!(!built.graph.dump().contains("false\""));
    let built = build_with(text, contexts(NamedContext::Local));
    assert!(built.asked.is_empty());
    let built = build_with("FROM scratch\nCOPY --from=base:latest a /b", contexts(NamedContext::Local));
    assert!(built.graph.dump().contains("name Some(\"base\")"));
    assert!(built.graph.dump().contains("from_context true"));
    build_with("FROM base", contexts(NamedContext::Image("scratch".to_owned())));
    let per_platform = options(|o| {
        o.named_contexts.insert("base".to_owned(), NamedContext::Local);
        o.named_contexts.insert("base::linux/amd64".to_owned(), NamedContext::OciLayout);
    });
    assert_eq!(build_with("FROM base", per_platform).asked, ["base::linux/amd64"]);
}

#[test]
fn golden_137_entrypoint_clears_inherited_cmd() {
    assert_eq!(bb("ENTRYPOINT [\"a\"]").config().cmd, None);
    assert_eq!(bb("CMD [\"c\"]\nENTRYPOINT [\"a\"]").config().cmd, strings(&["c"]));
    let built = build("FROM busybox AS a\nCMD [\"c\"]\nFROM a\nENTRYPOINT [\"e\"]");
    assert_eq!((built.config().cmd.clone(), built.config().entrypoint.clone()), (None, strings(&["e"])));
}

#[test]
fn golden_138_and_139_commands() {
    assert_eq!(bb("CMD []").config().cmd, None);
    let built = bb("CMD");
    assert_eq!(built.config().cmd, strings(&["/bin/sh", "-c", ""]));
    assert!(built.config().args_escaped);
    let built = bb("SHELL [\"/bin/ash\"]\nENTRYPOINT z\nRUN y");
    assert_eq!(built.config().entrypoint, strings(&["/bin/ash", "z"]));
    assert_eq!(built.run().argv, ["/bin/ash", "y"]);
    assert!(built.rules().is_empty());
}

#[test]
fn golden_141_to_143() {
    assert_eq!(bb("HEALTHCHECK none").config().healthcheck.clone().map(|h| h.test), strings(&["NONE"]));
    let built = bb("HEALTHCHECK --interval=90s --timeout=1.5s --retries=2 CMD [\"a\"]");
    assert_eq!(
        built.history(),
        ["HEALTHCHECK {Test:[CMD a] Interval:1m30s Timeout:1.5s StartPeriod:0s StartInterval:0s Retries:2}"]
    );
    for signal in ["SIGFOO", "0"] {
        fails(&format!("FROM scratch\nSTOPSIGNAL {signal}"), &format!("invalid signal: {signal}"));
    }
    for signal in ["kill", "SIGTERM", "9", "RTMIN+3"] {
        assert_eq!(scratch(&format!("STOPSIGNAL {signal}")).config().stop_signal, signal);
    }
    let built = scratch("EXPOSE 90-92 80/TCP 8000:81");
    let ports: Vec<&String> = built.config().exposed_ports.keys().collect();
    assert_eq!(ports, ["80/tcp", "81/tcp", "90/tcp", "91/tcp", "92/tcp"]);
    assert_eq!(built.rules(), ["ExposeProtoCasing", "ExposeInvalidFormat"]);
    fails("FROM scratch\nEXPOSE 92-90", "invalid containerPort: 92-90");
    fails("FROM scratch\nEXPOSE 80/foo", "invalid port: \"80/foo\": invalid proto: foo");
}

#[test]
fn golden_144_workdir() {
    let built = bb("WORKDIR a\nWORKDIR ../b//c/\nWORKDIR \"/q r\"");
    assert_eq!(built.history(), ["WORKDIR /a", "WORKDIR /b/c", "WORKDIR /q r"]);
    assert_eq!(built.rules(), ["WorkdirRelativePath"]);
}

#[test]
fn a_stage_has_as_many_layers_as_can_be_mounted() {
    let steps = |count: usize| "COPY a /\n".repeat(count);
    assert_eq!(scratch(&steps(LAYERS_MAX)).graph.targets[0].layers.len(), LAYERS_MAX);
    fails(&format!("FROM scratch\n{}", steps(LAYERS_MAX + 1)), "the stage has more than 500 layers");
    let two = format!("FROM scratch AS a\n{}FROM a\nENV b=c\nRUN true\n", steps(LAYERS_MAX));
    fails(&two, "the stage has more than 500 layers");
}

#[test]
fn golden_147_layers_and_history() {
    let built = bb("RUN true\nWORKDIR /tmp\nWORKDIR /");
    let target = &built.graph.targets[0];
    assert_eq!((target.layers.len(), target.history.len()), (2, 3));
    assert_eq!(target.history.iter().filter(|step| !step.empty_layer).count(), target.layers.len());
    assert_eq!(target.config.history.len(), 1);
    assert_eq!(target.config.created, None);
    assert!(target.base.is_some());
}

#[test]
fn golden_153_labels_do_not_change_nodes_and_env_does() {
    let node = |body: &str| format!("{:?}", bb(body).run());
    assert_eq!(node("RUN x"), node("LABEL a=b\n# c\nRUN x"));
    assert_ne!(node("RUN x"), node("ENV a=b\nRUN x"));
}

#[test]
fn golden_154_onbuild() {
    let mut base = busybox();
    base.config.on_build =
        vec!["RUN one".to_owned(), "COPY --from=tool /t /t".to_owned(), "ARG late=1".to_owned()];
    let images = BTreeMap::from([("onbuild", base.clone())]);
    let text = "FROM busybox AS tool\nRUN tool\nFROM onbuild AS child\nRUN two\nFROM child";
    let built = drive(text, build_args(&[("late", "2")]), &images).map_err(|e| e.join("\n")).expect("builds");
    assert!(built.config().on_build.is_empty());
    assert_eq!(
        built.history(),
        [
            "RUN /bin/sh -c one # buildkit",
            "COPY /t /t # buildkit",
            "ARG late=2",
            "RUN |1 late=2 /bin/sh -c two # buildkit"
        ]
    );
    assert!(built.names().contains(&"[child 2/4] ONBUILD RUN one"), "{:?}", built.names());
    assert!(built.names().contains(&"[tool 2/2] RUN tool"), "{:?}", built.names());
    assert!(built.lowering.unused_build_args().is_empty());
    assert_eq!(scratch("ONBUILD RUN  X y").config().on_build, ["RUN  X y"]);
    // What a trigger asks for is asked for by the FROM line.
    base.config.on_build = vec!["COPY --from=tool:1 a b".to_owned()];
    let mut lowering = Lowering::new(&parse(b"FROM onbuild"), options(|_| {}));
    let Progress::Need(first) = lowering.step() else { panic!("needs the base") };
    let manifest = Digest::of(b"base");
    lowering.provide(&first[0], ResolvedImage { reference: String::new(), manifest, config: base.clone() });
    let Progress::Need(second) = lowering.step() else { panic!("needs the trigger's image") };
    assert_eq!((second[0].reference.as_str(), second[0].span), ("tool:1", Span { start: 0, end: 12 }));
    base.config.on_build = vec!["FOO".to_owned()];
    let errors = drive("FROM onbuild", options(|_| {}), &BTreeMap::from([("onbuild", base)])).err();
    assert!(
        errors.is_some_and(|e| e[0].contains("ONBUILD FOO") && e[0].contains("unknown instruction: FOO"))
    );
}

#[test]
fn golden_155_cli_labels_win() {
    let labels = options(|o| o.labels = vec![("a".to_owned(), "cli".to_owned())]);
    let built = build_with("FROM scratch\nLABEL a=file b=1", labels);
    assert_eq!((built.label("a"), built.label("b")), ("cli", "1"));
    assert_eq!(built.history().len(), 1);
}

#[test]
fn golden_156_history() {
    let built = bb(concat!(
        "ARG A=1 B\nENV x=\"y z\"\nLABEL k=v k2=v2\nWORKDIR w\nUSER u\nEXPOSE 80 443\nVOLUME /a [b\n",
        "STOPSIGNAL 9\nSHELL [\"/bin/sh\", \"-c\"]\nCMD [\"a\", \"b\\n\"]\nENTRYPOINT x\nMAINTAINER me\n",
        "COPY --chown=u:g --chmod=644 s1 <<E s2 /d/\n1\nE\nADD a.tar .\nRUN [\"a\", \"b c\"]\nHEALTHCHECK CMD true"
    ));
    insta::assert_snapshot!(built.history().join("\n"), @r###"
    ARG A=1 B
    ENV x=y z
    LABEL k=v k2=v2
    WORKDIR /w
    USER u
    EXPOSE [443/tcp 80/tcp]
    VOLUME [/a [b]
    STOPSIGNAL 9
    SHELL [/bin/sh -c]
    CMD ["a" "b\n"]
    ENTRYPOINT ["/bin/sh" "-c" "x"]
    MAINTAINER me
    COPY --chown=u:g --chmod=644 s1 s2 <<E /d/ # buildkit
    ADD a.tar . # buildkit
    RUN |2 A=1 B= a b c # buildkit
    HEALTHCHECK {Test:[CMD-SHELL true] Interval:0s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}
    "###);
    assert_eq!(built.graph.targets[0].config.author.as_deref(), Some("me"));
}

#[test]
fn destinations_and_sources_are_cleaned() {
    let copy = |line: &str| {
        let built = bb(&format!("WORKDIR /w\n{line}"));
        let ops = built.graph.dag.node_weights().filter_map(|node| match &node.op {
            Op::Copy(copy) => Some(copy.clone()),
            _ => None,
        });
        ops.last().expect("a copy")
    };
    for (dest, wanted) in [
        ("x", "/w/x"),
        (".", "/w/"),
        ("./", "/w/"),
        ("x/", "/w/x/"),
        ("/a/../b/.", "/b/"),
        ("/", "/"),
        ("../../..", "/"),
    ] {
        assert_eq!(copy(&format!("COPY a {dest}")).dest, wanted, "{dest}");
    }
    for (source, wanted) in
        [("/a/", "a"), ("../f", "f"), (".", ""), ("$UNSET", ""), ("a/./b/..", "a"), ("d*", "d*")]
    {
        assert_eq!(
            copy(&format!("COPY {source} /b")).sources,
            [CopySource::Path(wanted.to_owned())],
            "{source}"
        );
    }
    let below = |line: &str| match copy(line).sources.remove(0) {
        CopySource::Below { pivot, pattern } => [pivot, pattern],
        other => panic!("{other:?}"),
    };
    for (source, pivot, pattern) in [
        ("x/a.txt", "", "x/a.txt"),
        ("./x/./y/*.txt", "x", "y/*.txt"),
        ("x/./y/./z", "x", "y/z"),
        (".", "", ""),
        ("x/./.", "x", ""),
        ("x/./../y", "x", "y"),
        ("/x/.", "", "x"),
    ] {
        assert_eq!(below(&format!("COPY --parents {source} /b")), [pivot, pattern], "{source}");
    }
    assert_eq!(copy("COPY --parents a /b").dest, "/b/");
    assert_eq!(copy("COPY --exclude=*.md --exclude=!$a a /b").exclude, ["*.md", "!$a"]);
    assert!(copy("COPY --link a /b").link && !copy("COPY --link=false a /b").link);
    assert!(copy("ADD a /b").unpack && !copy("ADD --unpack=false a /b").unpack);
    assert!(copy("COPY a /b").from_context && !copy("COPY a /b").unpack);
}

#[test]
fn what_add_fetches_are_inputs_of_their_own() {
    let with_ssh = options(|o| o.entitlements.ssh = true);
    let text = "FROM scratch\nADD a https://h/d/f?x git@h:r.git#v1:d /to/\nADD https://h/d/f?x /again";
    let built = build_with(text, with_ssh);
    let copies: Vec<_> =
        built.graph.dag.node_indices().filter(|n| matches!(built.graph.dag[*n].op, Op::Copy(_))).collect();
    let inputs = |node| -> Vec<(u16, &Op)> {
        let inputs = built.graph.inputs(node).into_iter();
        inputs.skip(1).map(|(input, from)| (input.slot, &built.graph.dag[from].op)).collect()
    };
    let first = inputs(copies[0]);
    let [(1, Op::Context(_)), (2, Op::Http(http)), (3, Op::Git(git))] = first.as_slice() else {
        panic!("{first:?}")
    };
    assert_eq!((http.url.as_str(), http.name.as_str()), ("https://h/d/f?x", "f"));
    assert_eq!((git.source.reference.as_str(), git.source.subdir.as_str()), ("v1", "d"));
    let Op::Copy(copy) = &built.graph.dag[copies[0]].op else { panic!("a copy") };
    let remote = |slot, form| CopySource::Remote { slot, form };
    assert_eq!(copy.sources[1..], [remote(2, RemoteForm::File), remote(3, RemoteForm::Tree)]);
    // The same address is one node, alone it is the first input.
    assert!(matches!(inputs(copies[1]).as_slice(), [(1, Op::Http(again))] if *again == *http));
}

#[test]
fn what_is_not_supported_yet_says_so() {
    for (line, wanted) in [
        ("COPY --exclude=! a /b", "illegal exclusion pattern: \"!\""),
        ("COPY --exclude=a[ a /b", "syntax error in pattern `a[`"),
        ("COPY --parents a[ /b", "syntax error in pattern `a[`"),
        ("COPY https://x/y /b", "source can't be a URL for COPY"),
        ("COPY git@github.com:a/b.git /b", "source can't be a git ref for COPY"),
        ("ADD git@github.com:a/b.git /b", "ssh is not allowed: ADD would fetch with your keys"),
        ("ADD ssh://git@h/b.git /b", "ssh is not allowed: ADD would fetch with your keys"),
        ("ADD https://x/y.git#-m /b", "invalid git reference \"-m\""),
        ("ADD --checksum=sha256:0 a /b", "checksum requires HTTP(S) or Git sources"),
        ("ADD --checksum=sha256:0 https://x/y /b", "invalid checksum digest format"),
        ("ADD --checksum=sha512:0 https://x/y /b", "unsupported digest algorithm \"sha512\": use sha256"),
        ("ADD --keep-git-dir a /b", "keep-git-dir requires a Git source"),
    ] {
        fails(&format!("FROM busybox\n{line}"), wanted);
    }
    build("FROM busybox\nRUN --security=sandbox --network=none x\nCOPY --link=false a /b");
}

#[test]
fn run_carries_user_directory_and_network() {
    let built = bb("USER u:g\nWORKDIR /w\nRUN --network=none [\"a\"]");
    let run = built.run();
    assert_eq!((run.user.as_str(), run.cwd.as_str(), run.network), ("u:g", "/w", Network::None));
}

#[test]
fn equal_stages_share_nodes() {
    let built = build(
        "FROM busybox AS a\nRUN x\nFROM busybox AS b\nRUN x\nFROM scratch\nCOPY --from=a x y\nCOPY --from=b x y",
    );
    assert_eq!(built.names().iter().filter(|name| name.contains("RUN x")).count(), 1);
    assert_eq!(built.asked, ["busybox"]);
}

#[test]
fn step_names_count_what_takes_time() {
    let one = bb("ENV a=b\nRUN x\nCOPY a /b");
    assert_eq!(
        one.names(),
        [
            "[1/3] FROM docker.io/library/busybox:latest",
            "[2/3] RUN x",
            "[internal] load build context",
            "[3/3] COPY a /b"
        ]
    );
    let many = scratch(&"RUN x\n".repeat(10));
    assert_eq!(many.names()[1], "[ 1/10] RUN x");
}

#[test]
fn lints_about_stages() {
    assert_eq!(bb("CMD a").rules(), ["JSONArgsRecommended"]);
    assert_eq!(bb("CMD [\"a\"]\nCMD [\"b\"]").rules(), ["MultipleInstructionsDisallowed"]);
    assert_eq!(bb("ARG DB_PASSWORD\nENV PUBLIC_KEY=1 API_TOKEN=2").rules(), ["SecretsUsedInArgOrEnv"; 2]);
    assert_eq!(bb("ARG x\nLABEL a=$x b=$y").rules(), ["UndefinedVar"]);
    let hint = bb("LABEL a=$PAHT");
    assert!(hint.lowering.diagnostics()[0].message.contains("(did you mean $PATH?)"));
}

#[test]
fn a_base_of_another_platform_is_a_warning() {
    let cross = options(|o| o.target_platforms = vec![Platform::new("linux", "arm64", None)]);
    let built = build_with("FROM busybox", cross);
    assert_eq!(built.rules(), ["InvalidBaseImagePlatform"]);
    assert_eq!(built.graph.targets[0].config.platform.architecture, "arm64");
}

#[test]
fn doubling_env_lines_hit_the_limit() {
    let text = format!("FROM scratch\nENV a=xxxxxxxxxxxxxxxx\n{}", "ENV a=$a$a$a$a\n".repeat(60));
    fails(&text, "larger than");
    let runs = format!("FROM busybox\nENV a={}\n{}", "x".repeat(60_000), "RUN x\n".repeat(8_000));
    fails(&runs, "expands to more than");
}

#[test]
fn errors_of_several_stages_come_together() {
    let text = "FROM scratch AS a\nSTOPSIGNAL x\nUSER ${}\nFROM a\nEXPOSE z";
    let errors = drive(text, options(|_| {}), &BTreeMap::new()).err().expect("errors");
    assert_eq!(errors.len(), 3, "{errors:?}");
}

#[test]
fn a_thousand_warnings_and_errors_are_told() {
    let warned = format!("FROM scratch\n{}LABEL a=$x\n", "MAINTAINER m\n".repeat(1_500));
    assert_eq!(build(&warned).rules(), ["MaintainerDeprecated"; 1_000]);
    // Those that are switched off take no one's place.
    assert_eq!(build(&format!("# check=skip=MaintainerDeprecated\n{warned}")).rules(), ["UndefinedVar"]);
    let wrong = drive(&"FOO\n".repeat(1_500), options(|_| {}), &BTreeMap::new()).err().expect("errors");
    assert_eq!(wrong.len(), 1_000);
}

#[test]
fn a_drawn_graph_marks_what_the_target_needs() {
    let text =
        "FROM busybox AS a\nRUN echo \"x\"\nFROM scratch AS b\nCOPY f /\nFROM scratch\nCOPY --from=a x /\n";
    let graph = build_with(text, options(|o| o.all_stages = true)).graph;
    insta::assert_snapshot!(graph.to_text(), @r#"
    * 0  [a 1/2] FROM docker.io/library/busybox:latest
    * 1  [a 2/2] RUN echo "x"  <- root 0
    * 2  scratch
      3  [internal] load build context
      4  [b 1/1] COPY f /  <- root 2, source 3
    * 5  [stage-2 1/1] COPY --from=a x /  <- root 2, source 1
    target stage-2 is node 5; 4 of 6 nodes are needed (*)
    "#);
    let dot = graph.to_dot();
    assert!(dot.contains(r#"label="[a 2/2] RUN echo \"x\"""#), "{dot}");
    assert_eq!(dot.matches("style=dashed").count(), 2);
    assert_eq!(dot.matches("peripheries=2").count(), 1);
    let json = graph.to_json();
    let count = |reached: bool| {
        json["nodes"].as_array().unwrap().iter().filter(|node| node["reached"] == reached).count()
    };
    assert_eq!((count(true), count(false)), (4, 2));
    assert_eq!(json["edges"].as_array().unwrap().len(), 5);
}
