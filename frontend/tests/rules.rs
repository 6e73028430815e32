//! `RULES.md` says what the code does.

use std::path::Path;

use rbuild_frontend::lint::rules::markdown;

#[test]
fn the_page_of_rules_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("RULES.md");
    if std::env::var_os("UPDATE_RULES").is_some() {
        std::fs::write(&path, markdown()).expect("write RULES.md");
    }
    let page = std::fs::read_to_string(&path).expect("RULES.md");
    assert!(page == markdown(), "RULES.md is out of date: run this test with UPDATE_RULES=1");
}
