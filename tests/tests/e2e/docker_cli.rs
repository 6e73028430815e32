//! What Docker's command line prints and what ours does, side by side, for the same images.
//!
//! Both are asked the lines of `fixtures/cli/commands`. Compared are the exit status, standard output (JSON by its
//! values), and of a failure the sentence that Docker prints, which must be part of ours. What may differ stands with its
//! reason in `fixtures/cli/differences`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use rbuild_tests::binary::repository;
use rbuild_tests::docker::Docker;
use rbuild_tests::{Registry, TestEnv, differences, need};
use serde_json::Value;

const APP: &str = r#"FROM busybox
ENV GREETING=hello TWO="a b"
LABEL team="a b" tier=web
WORKDIR /srv
RUN echo made > /made && ln -s made /link
RUN dd if=/dev/zero of=/big bs=1000 count=1500 2>/dev/null
EXPOSE 80 443/udp
VOLUME /data
USER 1000:1000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=90s CMD true
ONBUILD RUN echo hi
ENTRYPOINT ["/bin/sh", "-c"]
CMD ["sh", "/made"]
"#;

const PLAIN: &str = "FROM busybox\nRUN echo other > /other && : a command line of more than 45 characters\n";

/// One program's answer.
struct Answer {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

/// Words of a line: blanks part them outside of single quotes.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for (at, part) in line.split('\'').enumerate() {
        if at % 2 == 1 {
            words.last_mut().expect("one at least").push_str(part);
            continue;
        }
        for (at, word) in part.split(' ').enumerate() {
            if at > 0 {
                words.push(String::new());
            }
            words.last_mut().expect("one at least").push_str(word);
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// `WHAT: theirs | ours`, for everything that differs.
fn compare(theirs: &Answer, ours: &Answer) -> Vec<String> {
    let mut found = Vec::new();
    let status = |answer: &Answer| answer.code.map_or_else(|| "a signal".to_owned(), |code| code.to_string());
    if theirs.code != ours.code {
        found.push(format!("status: {} | {}", status(theirs), status(ours)));
    }
    match (serde_json::from_str(&theirs.stdout), serde_json::from_str(&ours.stdout)) {
        (Ok(a @ (Value::Array(_) | Value::Object(_))), Ok(b)) => documents(&a, &b, &mut found),
        _ => lines(&theirs.stdout, &ours.stdout, &mut found),
    }
    let said = theirs.stderr.lines().find(|line| !line.is_empty() && !line.starts_with("WARNING"));
    if let Some(said) = said.filter(|_| theirs.code != Some(0)) {
        let core = said.strip_prefix("Error response from daemon: ").or(said.strip_prefix("Error: "));
        let core = core.unwrap_or(said);
        if !ours.stderr.contains(core) {
            found.push(format!("says: {core} | {}", ours.stderr.lines().next().unwrap_or_default()));
        }
    }
    found
}

/// Lines that only one of them prints, those at the same place side by side; or that their order differs.
fn lines(theirs: &str, ours: &str, found: &mut Vec<String>) {
    // One object a line: its values count, not how they are written.
    let line = |line: &str| match serde_json::from_str::<Value>(line) {
        Ok(value @ Value::Object(_)) => value.to_string(),
        _ => line.to_owned(),
    };
    let (a, b): (Vec<String>, Vec<String>) =
        (theirs.split('\n').map(line).collect(), ours.split('\n').map(line).collect());
    let only = |these: &[String], those: &[String]| -> Vec<String> {
        let mut rest = those.to_vec();
        let mut only = Vec::new();
        for line in these {
            match rest.iter().position(|other| other == line) {
                Some(at) => drop(rest.swap_remove(at)),
                None => only.push(line.clone()),
            }
        }
        only
    };
    let (their, our) = (only(&a, &b), only(&b, &a));
    if their.is_empty() && our.is_empty() && a != b {
        found.push("order: the same lines | in another order".to_owned());
    }
    for at in 0..their.len().max(our.len()) {
        let shown = |lines: &[String]| lines.get(at).map_or("(none)", |line| line).to_owned();
        found.push(format!("prints: {} | {}", shown(&their), shown(&our)));
    }
}

/// Values of two documents by their path, and the order of the fields that both have.
fn documents(theirs: &Value, ours: &Value, found: &mut Vec<String>) {
    let (mut their, mut our) = (BTreeMap::new(), BTreeMap::new());
    leaves("", theirs, &mut their);
    leaves("", ours, &mut our);
    for path in their.keys().chain(our.keys()).collect::<BTreeSet<_>>() {
        let shown = |leaves: &BTreeMap<String, String>| leaves.get(path).map_or("(none)", |v| v).to_owned();
        if their.get(path) != our.get(path) {
            found.push(format!("has {path}: {} | {}", shown(&their), shown(&our)));
        }
    }
    let fields = |value: &Value, other: &Value| -> Vec<String> {
        let (value, other) = (value.get(0).unwrap_or(value), other.get(0).unwrap_or(other));
        let keys = value.as_object().into_iter().flat_map(|map| map.keys());
        keys.filter(|key| other.get(key).is_some()).cloned().collect()
    };
    let (their, our) = (fields(theirs, ours), fields(ours, theirs));
    if their != our {
        found.push(format!("order: {} | {}", their.join(" "), our.join(" ")));
    }
}

fn leaves(path: &str, value: &Value, out: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            map.iter().for_each(|(name, value)| leaves(&format!("{path}/{name}"), value, out));
        }
        Value::Array(list) if !list.is_empty() => {
            list.iter().enumerate().for_each(|(at, value)| leaves(&format!("{path}/{at}"), value, out));
        }
        // Newer Docker leaves empty fields out.
        Value::Null | Value::Bool(false) => {}
        Value::String(text) if text.is_empty() => {}
        leaf => drop(out.insert(path.to_owned(), leaf.to_string())),
    }
}

#[test]
fn commands_print_what_docker_s_print() -> Result<()> {
    need!(Root, Registry, Bases, Docker, Password);
    let registry = Registry::with_bases()?;
    let locked = Registry::with_password("user", "secret")?;
    let env = TestEnv::new()?.using(&registry)?;
    let docker = Docker::start(&registry)?;
    let archive = env.work().join("images.tar").to_string_lossy().into_owned();
    for (name, dockerfile, tags, epoch) in [
        ("app", APP, &["-t", "me/app:1.0", "-t", "me/app:2.0"][..], "1600000000"),
        ("plain", PLAIN, &["-t", "me/plain"], "1500000000"),
    ] {
        let context = env.context(name, dockerfile, &[])?;
        env.build(&context, &[tags, &["--source-date-epoch", epoch]].concat())?.ok();
    }
    env.run(["save", "-o", &archive, "me/app", "me/plain"])?.ok();
    let id = env.run(["inspect", "-f", "{{.Id}}", "me/app:1.0"])?.ok().stdout.trim().to_owned();
    let loaded = docker.command(&["load", "-i", &archive]).output()?;
    ensure!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));

    let text = fs::read_to_string(repository().join("fixtures/cli/commands"))?;
    let mut all: Vec<(String, String)> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let none = env.work().join("none").to_string_lossy().into_owned();
        let places = [
            ("{id}", id.as_str()),
            ("{short}", id.get(7..19).context("an id")?),
            ("{host}", &registry.host()),
            ("{locked}", &locked.host()),
            ("{file}", &archive),
            ("{none}", &none),
        ];
        let fill =
            |text: &str| places.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value));
        let hide =
            |text: &str| places.iter().fold(text.to_owned(), |text, (name, value)| text.replace(value, name));
        let args: Vec<String> = words(line).iter().map(|word| fill(word)).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let theirs = docker.command(&args).output()?.into();
        let ours = env.command(&args).output()?.into();
        let mut found = compare(&theirs, &ours);
        // Docker's client goes through a map of repositories there, in another order each time.
        found.retain(|found| !(found.starts_with("order: ") && args.contains(&"--digests")));
        all.extend(found.iter().map(|found| (line.to_owned(), hide(found))));
    }
    differences::check("cli/differences", all.iter().map(|(line, found)| (line.as_str(), found.as_str())))?;
    env.assert_nothing_left();
    Ok(())
}
