//! The table of rows and tests, made from the tests' own comments.

use anyhow::Result;
use rbuild_tests::generated::{Rows, is_current};

/// Suites of the security reference that must be complete, and their last rows.
const COMPLETE: [(&str, usize); 5] = [("G", 8), ("N", 9), ("Q", 7), ("S", 25), ("X", 7)];

/// Where such tests are.
const FOLDERS: [&str; 5] = [
    "builder/sandbox/tests",
    "frontend/src/lower/tests",
    "tests/tests/e2e",
    "tests/tests/faults",
    "tests/tests/sandbox",
];

#[test]
fn every_row_has_a_test_and_the_table_says_which() -> Result<()> {
    let rows = Rows::of(&FOLDERS)?;
    rows.require(&COMPLETE)?;
    let command = "RBUILD_UPDATE=1 cargo test -p rbuild-tests --test sandbox rows";
    is_current("tests/tests/sandbox/ROWS.md", &rows.to_markdown(command, &COMPLETE)?)
}
