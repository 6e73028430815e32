//! How a terminal shows what is wrong with the Dockerfiles of `fixtures/broken`: carets under the span, related places,
//! help. Only those whose text is wrong; the end-to-end suite runs them all.

use std::fs;
use std::path::Path;

use rbuild::report::{Report, SourceFile, Style};
use rbuild_frontend::lower::{LowerOptions, Lowering, Progress};
use rbuild_frontend::parse;
use rbuild_oci::Platform;

const TERMINAL: Style = Style { color: false, width: 100, snippets: true, github: false };

/// What lowering says of a file whose images are not looked at; `None` when it has no error.
fn drawn(bytes: &[u8]) -> Option<String> {
    let parsed = parse(bytes);
    let mut options = LowerOptions::new(Platform::new("linux", "amd64", None));
    options.all_stages = true;
    let mut lowering = Lowering::new(&parsed, options);
    loop {
        match lowering.step() {
            Progress::Need(requests) => requests.iter().for_each(|request| lowering.provide_opaque(request)),
            Progress::Done(_) => return None,
            Progress::NeedEpoch(_) => lowering.provide_epoch(0),
            Progress::Failed => break,
        }
    }
    let file = SourceFile { name: "Dockerfile".to_owned(), bytes: bytes.into() };
    Some(Report::dockerfile(file, lowering.diagnostics().to_vec()).render(TERMINAL))
}

#[test]
fn every_error_of_the_text_has_its_place() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/broken");
    let mut shown = 0;
    for case in fs::read_dir(fixtures).expect("fixtures") {
        let case = case.expect("entry").path();
        // What a script makes is too large to look at.
        if case.join("setup").exists() {
            continue;
        }
        let bytes = fs::read(case.join("context/Dockerfile")).expect("Dockerfile");
        let Some(text) = drawn(&bytes) else { continue };
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path(&case);
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!("terminal", text));
        shown += 1;
    }
    assert!(shown >= 60, "{shown} fixtures");
}
