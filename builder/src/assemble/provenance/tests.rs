use std::ffi::OsString;
use std::sync::Arc;

use rbuild_frontend::lower::{Lowering, Progress, ResolvedImage};
use rbuild_frontend::parse::parse;
use rbuild_oci::{Digest, ImageConfig, Reference, in_canonical_order};

use super::*;
use crate::assemble::attestation::Keys;
use crate::cli::{self, Command, Env};

const CANARY: &str = "canary-7f3a";

const DOCKERFILE: &str = "\
FROM busybox:1.36 AS tools
ARG NPM_TOKEN
ENV API_KEY=canary-7f3a
RUN --mount=type=secret,id=npm,required --mount=type=cache,target=/c --mount=type=ssh true
ADD https://me:canary-7f3a@web.example/x.tgz?sig=canary-7f3a /x.tgz
ADD https://me:canary-7f3a@git.example/r.git#v1 /r
FROM registry.example:5000/team/base@sha256:1111111111111111111111111111111111111111111111111111111111111111
WORKDIR /srv
COPY --from=tools --chown=1:2 /x.tgz /srv/
COPY <<x /srv/x
canary-7f3a
x
RUN --network=none echo hi
FROM unused AS not-reached
";

/// The predicate of the Dockerfile built with these arguments.
fn predicate_of(
    dockerfile: &str,
    line: &[&str],
    context: Option<&Pinned>,
    invocation: Option<Invocation>,
) -> Value {
    let line = std::iter::once("rbuild").chain(line.iter().copied()).chain(["."]).map(OsString::from);
    let Command::Build(request) = cli::parse(line, &Env::fixed([])).unwrap().command else { panic!() };
    let parsed = parse(dockerfile.as_bytes());
    let mut lowering = Lowering::new(&parsed, crate::build::lower_options(&request));
    let mut graph = loop {
        match lowering.step() {
            Progress::Done(graph) => break *graph,
            Progress::NeedEpoch(_) => lowering.provide_epoch(0),
            Progress::Failed => panic!("{:?}", lowering.diagnostics()),
            Progress::Need(requests) => {
                for request in requests {
                    let reference: Reference = request.reference.parse().unwrap();
                    let manifest = Digest::of(request.reference.as_bytes());
                    let reference = reference.with_default_tag().to_string();
                    let config = ImageConfig::empty(request.platform.clone());
                    lowering.provide(&request, ResolvedImage { reference, manifest, config });
                }
            }
        }
    };
    for node in graph.dag.node_weights_mut() {
        match &mut node.op {
            Op::Http(http) => http.content = Some(Digest::of(b"x.tgz")),
            Op::Git(git) => git.commit = Some("4b220de5058abfd01ff619c9d2ff6b09a049bea0".to_owned()),
            _ => {}
        }
    }
    let dockerfile = FoundDockerfile {
        path: Some("/home/me/secret-project/Dockerfile".into()),
        display: "Dockerfile".to_owned(),
        bytes: Arc::from(dockerfile.as_bytes()),
        pinned: None,
    };
    let facts = Facts {
        request: &request,
        graph: &graph,
        dockerfile: &dockerfile,
        context,
        named: &BTreeMap::new(),
        network: Network::Default,
        invocation,
    };
    let arg = request.results.attestations.provenance.clone().unwrap();
    let temp = tempfile::tempdir().unwrap();
    let scratch = Scratch::on(std::fs::File::open(temp.path()).unwrap()).unwrap();
    let document = facts.document(&graph.targets[0], None, &arg, &scratch).unwrap();
    let said = serde_json::to_value(&document).unwrap();
    let mut sorted = Vec::new();
    document.with_keys(Keys::Sorted, &[], &mut serde_json::Serializer::new(&mut sorted)).unwrap();
    assert_eq!(String::from_utf8(sorted).unwrap(), in_canonical_order(said.clone()).to_string());
    said
}

fn predicate(dockerfile: &str, line: &[&str]) -> Value {
    predicate_of(dockerfile, line, None, None)
}

const ARGS: [&str; 10] = [
    "--build-arg",
    "NPM_TOKEN=canary-7f3a",
    "--build-arg",
    "VERSION=1.2",
    "--build-arg",
    "MIRROR=https://me:canary-7f3a@mirror.example/",
    "--label",
    "team=web",
    "--target",
    "1",
];

/// All texts, those in base64 decoded too.
fn texts(value: &Value, out: &mut String) {
    match value {
        Value::String(text) => {
            out.push_str(text);
            if let Ok(decoded) = STANDARD.decode(text) {
                out.push_str(&String::from_utf8_lossy(&decoded));
            }
        }
        Value::Array(items) => items.iter().for_each(|item| texts(item, out)),
        Value::Object(map) => map.iter().for_each(|(key, item)| {
            out.push_str(key);
            texts(item, out);
        }),
        _ => {}
    }
}

#[test]
fn nothing_secret_is_told_in_any_form() {
    for form in ["mode=min", "mode=max", "mode=min,version=v0.2", "mode=max,version=v0.2"] {
        let value = predicate(DOCKERFILE, &[&ARGS[..], &["--provenance", form]].concat());
        let mut told = String::new();
        texts(&value, &mut told);
        assert!(!told.contains(CANARY), "{form}: {value:#}");
        assert!(!told.contains("secret-project"), "no paths of this machine: {value:#}");
        assert!(told.contains("pkg:docker/busybox@1.36"), "{value:#}");
    }
}

#[test]
fn min_has_the_dependencies_and_no_arguments() {
    let value = predicate(DOCKERFILE, &[&ARGS[..], &["--provenance", "mode=min"]].concat());
    insta::assert_snapshot!(serde_json::to_string_pretty(&value).unwrap());
}

#[test]
fn max_has_the_steps_too() {
    let value = predicate(DOCKERFILE, &[&ARGS[..], &["--provenance=true"]].concat());
    insta::assert_snapshot!(serde_json::to_string_pretty(&value).unwrap());
}

#[test]
fn v0_2_has_the_same_in_its_own_places() {
    let invocation =
        Invocation { id: "00ab".to_owned(), started_ns: 1_500_000_000, finished_ns: 2_000_000_000 };
    let form = "mode=min,version=v0.2,builder-id=https://ci.example/7,reproducible=true";
    let value = predicate_of("FROM busybox\nRUN true\n", &["--provenance", form], None, Some(invocation));
    insta::assert_snapshot!(serde_json::to_string_pretty(&value).unwrap());
}

#[test]
fn a_build_is_hermetic_when_all_of_it_is_pinned_and_no_step_can_ask() {
    let commit = "4b220de5058abfd01ff619c9d2ff6b09a049bea0".to_owned();
    let git = Pinned::Git { address: "https://git.example/r.git#v1".to_owned(), commit };
    let of = |dockerfile: &str, context: Option<&Pinned>| {
        let value = predicate_of(dockerfile, &["--provenance=mode=max"], context, None);
        let metadata = &value["runDetails"]["metadata"];
        let flag = |pointer: &str| metadata.pointer(pointer).and_then(Value::as_bool);
        let source = value["buildDefinition"]["externalParameters"]["configSource"]["uri"].clone();
        (flag("/buildkit_hermetic"), flag("/buildkit_completeness/resolvedDependencies"), source)
    };
    let uri = json!("https://git.example/r.git#v1");
    let offline = "FROM busybox\nCOPY . /\nRUN --network=none true\n";
    assert_eq!(of(offline, Some(&git)), (Some(true), Some(true), uri.clone()));
    assert_eq!(of("FROM busybox\nRUN true\n", Some(&git)), (Some(false), Some(true), uri));
    // A Dockerfile of this machine: nothing pins it.
    assert_eq!(of(offline, None), (Some(false), Some(false), Value::Null));
}

#[test]
fn steps_are_numbered_and_in_the_order_of_their_names_where_keys_are_sorted() {
    let runs: String = (0..12).map(|number| format!("RUN echo {number}\n")).collect();
    let args = ["--provenance=mode=max", "--build-arg", "locations=x", "--label", "llbDefinition=y"];
    // Both orders are compared there.
    let value = predicate(&format!("FROM busybox\n{runs}"), &args);
    let steps = value["buildDefinition"]["internalParameters"]["buildConfig"][STEPS].as_array().unwrap();
    assert_eq!(steps.len(), 14);
    for (number, step) in steps.iter().enumerate() {
        assert_eq!(step["id"], format!("step{number}"));
    }
    let locations = &value["runDetails"]["metadata"]["buildkit_metadata"]["source"][LOCATIONS];
    let names: Vec<_> = locations.as_object().unwrap().keys().cloned().collect();
    assert_eq!(names, (0..13).map(|number| format!("step{number}")).collect::<Vec<_>>());
    assert_eq!(locations["step12"]["locations"][0]["ranges"][0]["start"]["line"], 13);
}
