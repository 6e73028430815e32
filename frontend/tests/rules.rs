//! The rules: `RULES.md` says what the code does, and every rule is shown to fire and not to fire.

use std::collections::BTreeSet;
use std::path::Path;

use rbuild_frontend::dockerignore::Ignore;
use rbuild_frontend::lint::ContextFacts;
use rbuild_frontend::lint::rules::{RULES, markdown};
use rbuild_frontend::lower::{LowerOptions, Lowering, Progress, ResolvedImage};
use rbuild_frontend::parse;
use rbuild_oci::{DiffId, Digest, ImageConfig, Platform};

#[test]
fn the_page_of_rules_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("RULES.md");
    if std::env::var_os("UPDATE_RULES").is_some() {
        std::fs::write(&path, markdown()).expect("write RULES.md");
    }
    let page = std::fs::read_to_string(&path).expect("RULES.md");
    assert!(page == markdown(), "RULES.md is out of date: run this test with UPDATE_RULES=1");
}

/// A rule, a Dockerfile that breaks it, and one that is near it and keeps it.
const CASES: &[(&str, &str, &str)] = &[
    (
        "AptUpdateAlone",
        "FROM a:1\nRUN apt-get update\nRUN apt-get install -y curl",
        "FROM a:1\nRUN apt-get update && apt-get install -y curl",
    ),
    (
        "CacheOrder",
        "FROM a:1\nCOPY . .\nRUN npm ci",
        "FROM a:1\nCOPY package.json package-lock.json ./\nRUN npm ci\nCOPY src src",
    ),
    ("ConsistentInstructionCasing", "FROM a:1\nRun x", "from a:1\nrun x"),
    ("CopyIgnoredFile", "FROM a:1\nCOPY notes.md /", "FROM a:1\nCOPY notes.txt /"),
    ("DuplicateStageName", "FROM a:1 AS b\nFROM a:1 AS b", "FROM a:1 AS b\nFROM a:1 AS c"),
    ("ExposeInvalidFormat", "FROM a:1\nEXPOSE 127.0.0.1:80:80", "FROM a:1\nEXPOSE 80-90/udp"),
    ("ExposeProtoCasing", "FROM a:1\nEXPOSE 80/TCP", "FROM a:1\nEXPOSE 80/tcp"),
    ("FromAsCasing", "FROM a:1 as b", "from a:1 as b"),
    (
        "FromPlatformFlagConstDisallowed",
        "FROM --platform=linux/amd64 a:1 AS build",
        "FROM --platform=linux/amd64 a:1 AS build-amd64",
    ),
    (
        "InvalidBaseImagePlatform",
        "FROM --platform=linux/arm64 a:1 AS arm64",
        "FROM --platform=linux/amd64 a:1 AS amd64",
    ),
    ("InvalidDefaultArgInFrom", "ARG TAG\nFROM a:$TAG", "ARG TAG=1\nFROM a:$TAG"),
    (
        "InvalidDefinitionDescription",
        "# check=experimental=all\nFROM a:1\n# about this\nARG V=1",
        "# check=experimental=all\nFROM a:1\n# V is the version\nARG V=1",
    ),
    ("JSONArgsRecommended", "FROM a:1\nCMD serve", "FROM a:1\nSHELL [\"/bin/sh\", \"-c\"]\nCMD serve"),
    ("LatestBaseImage", "FROM a", "FROM a:1"),
    ("LegacyKeyValueFormat", "FROM a:1\nENV A b", "FROM a:1\nENV A=b"),
    ("MaintainerDeprecated", "FROM a:1\nMAINTAINER me", "FROM a:1\nLABEL maintainer=me"),
    ("MissingIgnoreFile", "FROM a:1\nCOPY . /", "FROM a:1\nCOPY src /"),
    (
        "MultipleInstructionsDisallowed",
        "FROM a:1\nCMD [\"a\"]\nCMD [\"b\"]",
        "FROM a:1 AS b\nCMD [\"a\"]\nFROM b\nCMD [\"b\"]",
    ),
    ("MultipleSourcesToFile", "FROM a:1\nCOPY a b /dest", "FROM a:1\nCOPY a b /dest/"),
    ("NoEmptyContinuation", "FROM a:1\nRUN a \\\n\n b", "FROM a:1\nRUN a \\\n# why\n b"),
    ("RedundantTargetPlatform", "FROM --platform=$TARGETPLATFORM a:1", "FROM --platform=$BUILDPLATFORM a:1"),
    ("ReservedStageName", "FROM a:1 AS context", "FROM a:1 AS contexts"),
    ("SecretsUsedInArgOrEnv", "FROM a:1\nARG NPM_TOKEN", "FROM a:1\nENV PUBLIC_KEY=1 TOKENIZER=x"),
    ("StageNameCasing", "FROM a:1 AS Build", "FROM a:1 AS build"),
    ("UndefinedArgInFrom", "ARG TAG=1\nFROM a:$TAAG", "ARG TAG=1\nFROM a:$TAG"),
    ("UndefinedVar", "FROM a:1\nLABEL a=$VERSION", "FROM a:1\nARG VERSION\nLABEL a=$VERSION"),
    ("WorkdirRelativePath", "FROM a:1\nWORKDIR app", "FROM a:1\nWORKDIR /srv\nWORKDIR app"),
];

/// Names of the rules that a check reports. The context ignores `*.md` where a COPY asks for one; otherwise it has
/// `node_modules` and no ignore file.
fn broken_rules(text: &str) -> BTreeSet<&'static str> {
    let ignores = text.contains("notes");
    let parsed = parse(text.as_bytes());
    let mut options = LowerOptions::new(Platform::new("linux", "amd64", None));
    options.all_stages = true;
    options.advice = true;
    options.context = Some(ContextFacts {
        ignore: Ignore::parse(if ignores { b"*.md" } else { b"" }).expect("valid"),
        has_ignore_file: ignores,
        heavy: vec!["node_modules".to_owned()],
    });
    let mut lowering = Lowering::new(&parsed, options);
    while let Progress::Need(requests) = lowering.step() {
        for request in requests {
            let mut config = ImageConfig::empty(Platform::new("linux", "amd64", None));
            config.rootfs.diff_ids = vec![DiffId(Digest::of(b"layer"))];
            let (reference, manifest) = (request.reference.clone(), Digest::of(b"image"));
            lowering.provide(&request, ResolvedImage { reference, manifest, config });
        }
    }
    lowering.diagnostics().iter().filter_map(|found| found.rule).collect()
}

#[test]
fn every_rule_fires_where_it_should_and_nowhere_else() {
    let tested: Vec<&str> = CASES.iter().map(|(rule, ..)| *rule).collect();
    let all: Vec<&str> = RULES.iter().map(|rule| rule.name).collect();
    assert_eq!(tested, all, "a rule without a case, or out of order");
    for (rule, breaks, keeps) in CASES {
        assert!(broken_rules(breaks).contains(rule), "{rule} does not fire:\n{breaks}");
        assert!(!broken_rules(keeps).contains(rule), "{rule} fires:\n{keeps}");
    }
}

#[test]
fn every_rule_can_be_skipped() {
    for (rule, breaks, _) in CASES {
        let directive = match breaks.strip_prefix("# check=experimental=all\n") {
            Some(rest) => format!("# check=experimental=all;skip={rule}\n{rest}"),
            None => format!("# check=skip={rule}\n{breaks}"),
        };
        assert!(!broken_rules(&directive).contains(rule), "{rule} is not skipped:\n{directive}");
    }
}
