//! What people get for a Dockerfile that is wrong: every folder of `fixtures/broken` fails, and its `expected.snap` is
//! the whole message in Docker's layout and the exit status. How a terminal shows it, with carets: `rbuild`'s own tests.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use rbuild_tests::{TestEnv, need};

use crate::cases::{self, Case};

/// A line of a message that is longer is cut in the snapshot.
const SHOWN: usize = 200;

fn cut(line: &str) -> String {
    match line.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}… ({} bytes)", &line[..at], line.len()),
        None => line.to_owned(),
    }
}

/// The message from the place on; what the build did before it is of no interest here.
fn message(stderr: &str) -> String {
    let lines = stderr.lines().skip_while(|line| line.is_empty() || line.starts_with('#'));
    lines.map(|line| cut(line.trim_end())).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_broken_dockerfile_is_explained() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?.with_hub_at("127.0.0.1:1")?;
    let check = |case: &Case| -> Result<(PathBuf, String)> {
        let run = cases::build(case, &env, &[])?;
        ensure!(!run.stderr.contains("panicked"), "{run}");
        let code = run.code.with_context(|| run.to_string())?;
        ensure!(code != 0, "it builds\n{run}");
        ensure!(run.wall.as_secs() < 60, "{run}");
        let said = run.stderr.replace(case.context.to_str().context("UTF-8")?, "CONTEXT");
        Ok((case.folder.clone(), format!("exit status {code}\n{}", message(&said))))
    };
    let found = cases::each("broken", &env, 3, check)?;
    ensure!(found.len() >= 60, "{} cases: some are missing", found.len());
    for (folder, text) in found.values() {
        cases::snapshot(folder, text);
    }
    env.assert_nothing_left();
    Ok(())
}
