//! What is said to machines when a Dockerfile is wrong: events of `--progress=rawjson`, and annotations for GitHub.

use anyhow::{Context as _, Result, ensure};
use rbuild_tests::{Run, TestEnv, need};
use serde_json::{Value, json};

/// Every line of standard error as an event.
fn events(run: &Run) -> Result<Vec<Value>> {
    let lines = run.stderr.lines();
    let events =
        lines.map(|line| serde_json::from_str(line).with_context(|| format!("`{line}` is no event\n{run}")));
    let events: Vec<Value> = events.collect::<Result<_>>()?;
    ensure!(events.first().is_some_and(|first| first["event"] == "begin"), "{run}");
    Ok(events)
}

fn of<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == kind).collect()
}

#[test]
fn raw_json_has_errors_and_warnings_as_events_and_nothing_else() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?.with_hub_at("127.0.0.1:1")?;
    let raw = |text: &str, args: &[&str]| -> Result<Run> {
        let context = env.context("raw", text, &[])?;
        env.run([&["build", "--progress=rawjson"], args, &[context.to_str().context("UTF-8")?]].concat())
    };

    let run = raw("FROM scratch\nENTYPOINT a\nMAINTAINER x\nCOPY a\n", &[])?.exits(1);
    let found = events(&run)?;
    let (warnings, last) = (of(&found, "warning"), found.last().context("a last event")?);
    let is_error = |event: &&&Value| event["severity"] == "error";
    let errors: Vec<_> = warnings.iter().filter(is_error).collect();
    assert_eq!(errors.len(), 2, "{run}");
    assert_eq!((&errors[0]["first_line"], &errors[1]["first_line"]), (&json!(2), &json!(4)));
    assert_eq!((&errors[0]["start_byte"], &errors[0]["end_byte"]), (&json!(13), &json!(22)));
    assert!(
        errors[0]["message"].as_str().is_some_and(|text| text.contains("did you mean ENTRYPOINT?")),
        "{run}"
    );
    assert!(warnings.iter().any(|event| event["rule"] == "MaintainerDeprecated"), "{run}");
    assert_eq!(
        (&last["event"], &last["kind"], &last["file"]),
        (&json!("failed"), &json!("dockerfile"), &json!("Dockerfile"))
    );
    assert_eq!(run.stdout, "");

    // What lowering finds, what a step meets, what precedes the build.
    let run = raw("FROM scratch\nCOPY --from=5 a b\n", &[])?.exits(1);
    assert_eq!(of(&events(&run)?, "warning")[0]["message"], "invalid stage index 5", "{run}");
    let run = raw("FROM scratch\nCOPY nosuch /\n", &[])?.exits(1);
    let found = events(&run)?;
    let failed = of(&found, "failed");
    assert_eq!(
        (failed.len(), &failed[0]["kind"], &failed[0]["first_line"]),
        (1, &json!("build"), &json!(2)),
        "{run}"
    );
    assert!(failed[0].to_string().contains("not found"), "{run}");
    let run = raw("FROM scratch\n", &["--source-date-epoch=git"])?.exits(1);
    assert_eq!(events(&run)?.last().context("one")?["kind"], "host", "{run}");

    // A build that succeeds, and a check that builds nothing.
    let run = raw("FROM scratch\nMAINTAINER x\nWORKDIR /w\n", &[])?.ok();
    assert_eq!(of(&events(&run)?, "warning")[0]["rule"], "MaintainerDeprecated", "{run}");
    let run = raw("FROM scratch\nMAINTAINER x\nSTOPSIGNAL x\n", &["--check"])?.exits(1);
    let found = events(&run)?;
    assert_eq!(of(&found, "warning").len(), 2, "{run}");
    assert_eq!(of(&found, "failed").len(), 1, "{run}");
    assert_eq!(run.stdout, "");
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn github_gets_an_annotation_for_every_finding() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?.with_hub_at("127.0.0.1:1")?.with_variable("GITHUB_ACTIONS", "true");
    let annotations = |text: &str, args: &[&str]| -> Result<Vec<String>> {
        // Both separate properties in an annotation.
        let context = env.context("git:hub", "", &[("Docker,file", text)])?;
        let dockerfile = context.join("Docker,file").to_string_lossy().into_owned();
        let place = [&["build", "-f", &dockerfile], args, &[context.to_str().context("UTF-8")?]].concat();
        let run = env.run(place)?;
        let all = format!("{}{}", run.stdout, run.stderr);
        let lines = all.lines().filter(|line| line.starts_with("::"));
        let escaped = dockerfile.replace(':', "%3A").replace(',', "%2C");
        Ok(lines.map(|line| line.replace(&escaped, "FILE")).collect())
    };
    assert_eq!(
        annotations(
            "FROM scratch\nCOPY <<EOF /\n100%\nEOF\nENTYPOINT [\"%\"]\nENV \\\n  a=1 \\\n  b\n",
            &[]
        )?,
        [
            "::error file=FILE,line=5,endLine=5,title=Dockerfile error::dockerfile parse error on line 5: unknown \
             instruction: ENTYPOINT (did you mean ENTRYPOINT?)",
            "::error file=FILE,line=6,endLine=8,title=Dockerfile error::dockerfile parse error on line 6: Syntax \
             error - can't find = in \"b\". Must be of the form: name=value",
        ]
    );
    // A message with the characters that the format takes for itself.
    assert_eq!(
        annotations("FROM scratch\nHEALTHCHECK 50%:, x\n", &[])?,
        [
            "::error file=FILE,line=2,endLine=2,title=Dockerfile error::dockerfile parse error on line 2: Unknown \
             type \"50%25:,\" in HEALTHCHECK (try CMD)"
        ]
    );
    let warning = "::warning file=FILE,line=2,endLine=2,title=MaintainerDeprecated::Maintainer instruction is \
                   deprecated in favor of using label";
    assert_eq!(annotations("FROM scratch\nMAINTAINER x\n", &[])?, [warning], "when the build succeeds");
    assert_eq!(
        annotations("FROM scratch\nMAINTAINER x\n", &["--check"])?,
        [warning],
        "when nothing is built"
    );
    let failed = annotations("FROM scratch\nCOPY nosuch /\n", &[])?;
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(failed[0].starts_with("::error file=FILE,line=2,endLine=2,title=Build failed::"), "{failed:?}");
    assert!(failed[0].ends_with("\"/nosuch\": not found"), "{failed:?}");
    env.assert_nothing_left();
    Ok(())
}
