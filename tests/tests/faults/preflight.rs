//! Whether a push is allowed, asked before anything is built.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use rbuild_tests::TestEnv;
use rbuild_tests::fault::{FaultRegistry, Reply, wait_until};

/// A registry that answers the wish to upload like this.
fn refusing(status: u16, body: &'static str) -> Result<FaultRegistry> {
    FaultRegistry::new(move |request, _| (request.method == "POST").then(|| Reply::new(status).body(body)))
}

/// Bad input: every destination that refuses is named in the registry's words, before a step has run.
#[test]
fn every_destination_is_asked_before_the_first_step() -> Result<()> {
    let good = FaultRegistry::good()?;
    let denied =
        refusing(403, r#"{"errors":[{"code":"DENIED","message":"you are no member of the team"}]}"#)?;
    let unknown = refusing(
        404,
        r#"{"errors":[{"code":"NAME_UNKNOWN","message":"The repository with name 'team/app' does not exist"}]}"#,
    )?;
    let env = TestEnv::new()?;
    let context = env.context("preflight", "FROM scratch\nCOPY file /\n", &[("file", "content\n")])?;
    let names = [&good, &denied, &unknown].map(|registry| format!("{}/team/app:1", registry.host()));
    let [first, second, third] = &names;
    let run = env.build(&context, &["-t", first, "-t", second, "-t", third, "--push"])?.exits(1).says(&[
        &denied.host(),
        "team/app",
        "DENIED",
        "you are no member of the team",
        &unknown.host(),
        "NAME_UNKNOWN",
        "does not exist",
    ]);
    assert!(run.executed().is_empty(), "{run}");
    assert!(!run.stderr.contains(&format!("{}/team/app: ", good.host())), "{run}");
    // Asked by an upload that is given up at once.
    let methods = |registry: &FaultRegistry| {
        registry.seen().iter().map(|request| request.method.clone()).collect::<Vec<_>>()
    };
    assert_eq!(methods(&good), ["GET", "POST", "DELETE"]);

    // With one name it is no different, and nothing came of the first build.
    let run = env.build(&context, &["-t", first, "--push"])?.ok();
    assert_eq!(run.executed().len(), 1, "{run}");
    assert!(good.manifest("team/app:1").is_some());
    Ok(())
}

/// Eight registries, none of which answers before all were asked: two requests each, at the same time.
#[test]
fn all_destinations_are_asked_at_once() -> Result<()> {
    const DESTINATIONS: usize = 8;
    let asked = Arc::new(AtomicUsize::new(0));
    let registries = (0..DESTINATIONS)
        .map(|_| {
            let asked = Arc::clone(&asked);
            FaultRegistry::new(move |request, before| {
                if request.method == "POST" && before == 0 {
                    asked.fetch_add(1, Ordering::SeqCst);
                    let all = wait_until("the others", || asked.load(Ordering::SeqCst) >= DESTINATIONS);
                    return all.is_err().then(|| Reply::new(403).body("one after the other"));
                }
                None
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let env = TestEnv::new()?;
    // Two tags of a repository are one question.
    let tags =
        registries.iter().flat_map(|registry| ["1", "2"].map(|tag| format!("{}/app:{tag}", registry.host())));
    let mut arguments: Vec<String> = tags.flat_map(|tag| ["-t".to_owned(), tag]).collect();
    arguments.push("--push".to_owned());
    let context = env.context("at-once", "FROM scratch\nCOPY Dockerfile /\n", &[])?;
    env.build(&context, &arguments.iter().map(String::as_str).collect::<Vec<_>>())?.ok();
    for registry in &registries {
        let seen = registry.seen();
        let methods: Vec<&str> = seen.iter().map(|request| request.method.as_str()).take(3).collect();
        // The first finds out whether loopback speaks TLS.
        assert_eq!(methods, ["GET", "POST", "DELETE"]);
    }
    Ok(())
}
