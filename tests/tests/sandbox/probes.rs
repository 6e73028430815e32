//! Suite S: a compiled probe runs inside RUN on every rung, as root and as `USER 1000`, and finds what the table says.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use rbuild_tests::binary::repository;
use rbuild_tests::generated::is_current;
use rbuild_tests::{TestEnv, need};
use tempfile::TempDir;

use crate::rungs::Place;
use crate::table::{Findings, Table, USERS};

/// A word in the environment of the builder, as in `probe/probe.h`.
const CANARY: &str = "canary-b7d1";

/// The table's file. What it says is decided by people: nothing writes it.
const EXPECTED: &str = include_str!("probes.txt");
const DOCUMENT: &str = "builder/sandbox/PROBES.md";
const DOCUMENT_HEAD: &str = "<!-- Made from tests/tests/sandbox/probes.txt: RBUILD_UPDATE=1 cargo test -p rbuild-tests --test sandbox table -->\n\n\
# What a step can do\n\n\
A program (`tests/tests/sandbox/probe/`) tries it in a RUN step, on every rung of the isolation ladder, as root and as\n\
`USER 1000`; the test fails when one outcome is another than below. `A / B`: A for root, B for the user. `ok` means\n\
that it can be done; otherwise the error's name. `chroot` is root of the host with `--isolation chroot`, `contained` the\n\
same in a container of docker's default profile. On rung `norun` there are no steps.\n";

/// The probe, compiled for this run.
pub(crate) struct Probe(TempDir);

impl Probe {
    pub(crate) fn compile() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let sources = repository().join("tests/tests/sandbox/probe");
        let mut cc = Command::new("cc");
        cc.args(["-static", "-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(dir.path().join("probe"));
        for entry in fs::read_dir(&sources)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "c") {
                cc.arg(path);
            }
        }
        let output = cc.output().context("run cc")?;
        ensure!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
        Ok(Self(dir))
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("probe")
    }
}

/// What a step could reach on the host, were it not kept from it; there until dropped.
pub(crate) struct HostSide {
    child: Child,
    pub(crate) key: u32,
    pub(crate) port: String,
    pub(crate) pid: String,
}

impl HostSide {
    pub(crate) fn start(probe: &Probe) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Two tests of one process have their own.
        let key = 0x5000_0000 | std::process::id() << 3 | NEXT.fetch_add(1, Ordering::Relaxed) & 7;
        let mut child = Command::new(probe.path())
            .args(["serve", &key.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("standard output")?).read_line(&mut line)?;
        let (port, pid) = line.trim().split_once(' ').context("the host's side did not start")?;
        Ok(Self { port: port.to_owned(), pid: pid.to_owned(), key, child })
    }
}

impl Drop for HostSide {
    fn drop(&mut self) {
        // It takes everything away and ends when its input does.
        drop(self.child.stdin.take());
        self.child.wait().ok();
    }
}

/// What the steps of this place are built from.
pub(crate) fn context(env: &TestEnv, probe: &Probe, host: &HostSide, place: Place) -> Result<PathBuf> {
    let marker = env.write("work/marker", "of the host\n")?;
    let (port, key, pid) = (&host.port, host.key, &host.pid);
    let steps = |user: &str| {
        let mut text = format!(
            "RUN [\"/probe\", \"all\", \"{user}\", \"{port}\", \"{key}\", \"{pid}\", \"{}\"]\n\
             RUN [\"/probe\", \"network\", \"{user}\", \"default\", \"{port}\", \"{key}\"]\n",
            marker.display()
        );
        if !place.is_chroot() {
            text += &format!(
                "RUN --network=none [\"/probe\", \"network\", \"{user}\", \"none\", \"{port}\", \"{key}\"]\n"
            );
        }
        text
    };
    let text = format!(
        "FROM scratch AS probed\n\
         COPY root/ /\n\
         COPY --chmod=755 probe /probe\n\
         COPY --chmod=4755 probe /suid\n\
         ENV IMAGE=own\n\
         ARG DECLARED=argument\n\
         ARG UNDECLARED\n\
         FROM probed AS as-root\n\
         ARG SCOPE=here\n{root}\
         FROM probed AS as-user\n\
         USER 1000\n{user}\
         FROM probed\n\
         COPY --from=as-root /tmp /of-root\n\
         COPY --from=as-user /tmp /of-user\n\
         RUN [\"/probe\", \"lower\", \"0\"]\n\
         USER 1000\n\
         RUN [\"/probe\", \"lower\", \"1000\"]\n",
        root = steps("0"),
        user = steps("1000"),
    );
    let files = ["write", "truncate", "rename", "link", "map"]
        .map(|name| (format!("root/data/{name}"), format!("{name}\n")));
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let dir = env.context("probe", &text, &files)?;
    for (path, mode) in [("tmp", 0o1777), ("other", 0o777), ("data", 0o777)] {
        let path = dir.join("root").join(path);
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    for (path, _) in &files {
        fs::set_permissions(dir.join(path), fs::Permissions::from_mode(0o666))?;
    }
    fs::copy(probe.path(), dir.join("probe"))?;
    Ok(dir)
}

/// Reads lines with `probe USER ROW NAME OUTCOME`.
pub(crate) fn collect(output: &str, place: Place, findings: &mut Findings) -> Result<()> {
    for line in output.lines() {
        let Some((_, finding)) = line.split_once("probe ") else { continue };
        let fields: Vec<&str> = finding.split(' ').collect();
        let [user, row, name, outcome] = fields[..] else { continue };
        let user = USERS.into_iter().find(|known| *known == user).context("a known user")?;
        let finding = (row.to_owned(), name.to_owned());
        let twice = findings.insert((finding, (place, user)), outcome.to_owned());
        ensure!(twice.is_none(), "two findings: {line}");
    }
    Ok(())
}

/// Where a network cannot be cut off the step is refused, and that is the finding.
fn refused_without_network(env: &TestEnv, place: Place, findings: &mut Findings) -> Result<()> {
    let context = env.context("none", "FROM scratch\nRUN --network=none [\"/probe\"]\n", &[])?;
    let context = context.to_str().context("UTF-8")?;
    place.run(env, &["build", "--progress", "plain", context])?.exits(1).says(&["RUN without network"]);
    let names: Vec<_> = findings
        .keys()
        .filter_map(|((row, name), _)| Some((row.clone(), name.strip_prefix("default/")?.to_owned())))
        .collect();
    for (row, name) in names {
        for user in USERS {
            let finding = (row.clone(), format!("none/{name}"));
            findings.insert((finding, (place, user)), "refused".to_owned());
        }
    }
    Ok(())
}

fn probe_at(place: Place, probe: &Probe, host: &HostSide, findings: &mut Findings) -> Result<()> {
    let env = place
        .env()?
        .with_variable("AWS_SECRET_ACCESS_KEY", CANARY)
        .with_variable("SSH_AUTH_SOCK", "/run/agent")
        .with_variable("UNRELATED", CANARY);
    let secret = env.write("work/secret.txt", CANARY)?;
    let context = context(&env, probe, host, place)?;
    let binary = env.dir().join("bin/rbuild");
    let before = fs::read(&binary)?;
    let secret = format!("id=other,src={}", secret.display());
    let run = place.run(
        &env,
        &[
            "build",
            "--progress",
            "plain",
            "--secret",
            &secret,
            "--build-arg",
            "UNDECLARED",
            context.to_str().context("UTF-8")?,
        ],
    )?;
    let run = run.ok().says(&[&format!("isolation: {}", place.rung())]);
    collect(&run.stderr, place, findings)?;
    if place.is_chroot() {
        refused_without_network(&env, place, findings)?;
    }
    ensure!(fs::read(&binary)? == before, "S9: the builder's program was changed");
    // S23: the store's own files are as they were written.
    env.run(["cache", "fsck"])?.ok();
    env.assert_nothing_left();
    Ok(())
}

/// S1, S2, S3, S4, S5, S6, S7, S8, S9, S10, S11, S12: see `builder/sandbox/PROBES.md`.
/// S13, S14, S15, S16, S17, S18, S19, S20, S21, S22, S23, S24, S25: likewise.
#[test]
fn the_probe_finds_what_the_table_says_on_every_rung() -> Result<()> {
    need!(Root, Subuid, Runtime, Network, Compiler);
    let probe = Probe::compile()?;
    let host = HostSide::start(&probe)?;
    let mut findings = Findings::new();
    for place in Place::ALL {
        probe_at(place, &probe, &host, &mut findings).with_context(|| place.name())?;
    }
    let differences = Table::parse(EXPECTED)?.differences(&findings);
    ensure!(
        differences.is_empty(),
        "{} of {} findings:\n{}",
        differences.len(),
        findings.len(),
        differences.join("\n")
    );
    Ok(())
}

/// S1: on the last rung there is no step to probe.
#[test]
fn no_probe_runs_where_steps_are_refused() -> Result<()> {
    need!(Root, Subuid);
    let env = TestEnv::without_sub_ids()?.with_variable("RBUILD_ISOLATION", "norun");
    let context = env.context("norun", "FROM scratch\nRUN [\"/probe\"]\n", &[])?;
    env.build(&context, &[])?.exits(1).says(&["isolation is `norun`", ">>> RUN"]);
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn the_table_covers_the_suite_and_is_in_the_documentation() -> Result<()> {
    let table = Table::parse(EXPECTED)?;
    for row in 1..=25 {
        ensure!(table.covered().any(|known| known == format!("S{row}")), "S{row} has no probe");
    }
    is_current(DOCUMENT, &table.to_markdown(DOCUMENT_HEAD)?)
}
