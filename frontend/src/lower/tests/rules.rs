//! Rules that need to know what the stages mean.

use super::*;

/// Names of the rules that a check of `text` reports, with the context `facts`.
fn checked(text: &str, facts: ContextFacts) -> Vec<&'static str> {
    let parsed = parse(text.as_bytes());
    let mut lowering = Lowering::new(
        &parsed,
        options(|o| {
            o.context = Some(facts);
            o.all_stages = true;
            o.advice = true;
        }),
    );
    while let Progress::Need(requests) = lowering.step() {
        requests.iter().for_each(|request| lowering.provide_opaque(request));
    }
    assert!(!lowering.has_errors(), "{:?}", lowering.diagnostics());
    lowering.diagnostics().iter().filter_map(|d| d.rule).collect()
}

fn facts(ignore: &str, heavy: &[&str]) -> ContextFacts {
    ContextFacts {
        ignore: crate::dockerignore::Ignore::parse(ignore.as_bytes()).expect("valid"),
        has_ignore_file: !ignore.is_empty(),
        heavy: heavy.iter().map(|name| (*name).to_owned()).collect(),
    }
}

#[test]
fn rules_about_from_lines() {
    let check = |text: &str| checked(text, facts("", &[]));
    for platform in ["$TARGETPLATFORM", "${TARGETPLATFORM}"] {
        assert_eq!(check(&format!("FROM --platform={platform} a:1")), ["RedundantTargetPlatform"]);
    }
    assert!(check("FROM --platform=${TARGETPLATFORM:-x} a:1").is_empty());
    assert_eq!(check("FROM --platform=linux/arm64 a:1 AS x"), ["FromPlatformFlagConstDisallowed"]);
    assert!(check("FROM --platform=linux/arm64 a:1 AS for-arm64").is_empty());
    assert!(check("FROM --platform=$BUILDPLATFORM a:1").is_empty());
    assert!(check("ARG V=1\nFROM a:$V").is_empty());
    assert!(check("ARG V\nFROM a:${V:-1}").is_empty());
    assert_eq!(check("FROM a"), ["LatestBaseImage"]);
    assert_eq!(check("FROM a:latest AS b\nFROM b\nFROM scratch"), ["LatestBaseImage"]);
    let digest = "0".repeat(64);
    assert!(check(&format!("FROM a@sha256:{digest}")).is_empty());
}

#[test]
fn an_arg_with_a_value_still_needs_a_default() {
    let text = "ARG V\nFROM busybox:$V";
    let built = drive(text, build_args(&[("V", "1")]), &BTreeMap::new()).unwrap_or_else(|e| panic!("{e:?}"));
    assert_eq!(built.rules(), ["InvalidDefaultArgInFrom"]);
}

#[test]
fn descriptions_begin_with_the_name_when_the_rule_is_on() {
    let text = "# other words\nARG V=1\n# b the base\n\n# b the stage\nFROM a:$V AS b\n";
    assert!(checked(text, facts("", &[])).is_empty());
    let on = format!("# check=experimental=all\n{text}");
    assert_eq!(checked(&on, facts("", &[])), ["InvalidDefinitionDescription"]);
    let on = format!("# check=experimental=InvalidDefinitionDescription;skip=x\n{text}");
    assert_eq!(checked(&on, facts("", &[])), ["InvalidDefinitionDescription"]);
}

#[test]
fn sources_that_the_ignore_file_takes_are_reported() {
    let check = |line: &str, ignore: &str| checked(&format!("FROM a:1\n{line}"), facts(ignore, &[]));
    assert_eq!(check("COPY a.md /x", "*.md"), ["CopyIgnoredFile"]);
    assert_eq!(check("ADD d/e /x", "d"), ["CopyIgnoredFile"]);
    assert_eq!(check("COPY . /x", "**"), ["CopyIgnoredFile"]);
    assert!(check("COPY . /x", "*.md").is_empty());
    assert!(check("COPY a.md /x", "*\n!a.md").is_empty());
    assert!(checked("FROM a:1 AS b\nFROM a:1\nCOPY --from=b a.md /x", facts("*.md", &[])).is_empty());
}

#[test]
fn advice_is_given_in_checks_only() {
    let check = |body: &str| checked(&format!("FROM a:1\n{body}"), facts("", &[]));
    assert_eq!(check("RUN apt-get update"), ["AptUpdateAlone"]);
    assert_eq!(check("RUN <<E\napt-get -q update\nE\nRUN apt-get install -y x"), ["AptUpdateAlone"]);
    assert!(check("RUN apt-get update && apt-get install -y x").is_empty());
    assert_eq!(check("COPY . .\nRUN npm install"), ["CacheOrder"]);
    assert_eq!(check("COPY . .\nRUN cd /x && npm ci --omit=dev"), ["CacheOrder"]);
    assert!(check("COPY package*.json .\nRUN npm install\nCOPY . .").is_empty());
    assert!(check("COPY . .\nRUN npm install -g serve").is_empty());
    assert!(check("COPY --from=b:1 . .\nRUN npm install").is_empty());
    assert!(check("COPY . .\n# check=skip=AptUpdateAlone\nRUN apt-get update").is_empty());
    let heavy = facts("", &[".git", "node_modules"]);
    assert_eq!(checked("FROM a:1\nCOPY . /", heavy.clone()), ["MissingIgnoreFile"]);
    assert!(checked("FROM a:1\nCOPY src /", heavy).is_empty());
    assert!(bb("RUN apt-get update\nCOPY . .\nRUN npm ci").rules().is_empty());
}

#[test]
fn advice_is_no_violation() {
    let built = checked("# check=error=true\nFROM a\nRUN apt-get update", facts("", &[]));
    assert_eq!(built, ["LatestBaseImage", "AptUpdateAlone"]);
}

#[test]
fn variables_that_an_unknown_base_may_set_are_not_undefined() {
    assert!(checked("FROM a:1\nENV X=$NODE_VERSION", facts("", &[])).is_empty());
    assert_eq!(checked("FROM scratch\nENV X=$NODE_VERSION", facts("", &[])), ["UndefinedVar"]);
}

#[test]
fn a_frontend_that_is_not_docker_s_is_told_of_and_the_build_arg_beats_the_directive() {
    let told = |text: &str, args: &[(&str, &str)]| -> Vec<(String, u32)> {
        let built = build_with(text, build_args(args));
        built.lowering.diagnostics().iter().map(|d| (d.message.clone(), d.lines.first)).collect()
    };
    let docker = "# syntax=docker/dockerfile:1.7-labs\nFROM scratch\n";
    let foreign = "# escape=\\\n# syntax=example/frontend:1 x\nFROM scratch\n";
    assert_eq!(told(docker, &[]), []);
    let found = told(foreign, &[]);
    assert!(
        found.len() == 1 && found[0].0.contains("`example/frontend:1` is not used") && found[0].1 == 2,
        "{found:?}"
    );
    assert_eq!(told(foreign, &[("BUILDKIT_SYNTAX", "docker/dockerfile:1")]), []);
    let found = told(docker, &[("BUILDKIT_SYNTAX", "other/frontend")]);
    assert!(found.len() == 1 && found[0].0.contains("`other/frontend` is not used"), "{found:?}");
}
