//! The table of rows and tests, made from the tests' own comments.

use anyhow::Result;
use rbuild_tests::generated::{Rows, is_current};

/// Suites of the security reference that must be complete here, and their last rows.
const COMPLETE: [(&str, usize); 3] = [("L", 16), ("M", 10), ("R", 24)];

/// Where such tests are.
const FOLDERS: [&str; 5] = [
    "cache/src/layer",
    "tests/tests/faults",
    "registry-client/src/tests",
    "registry-client/src/transport",
    "registry-client/src/blobs",
];

#[test]
fn every_row_has_a_test_and_the_table_says_which() -> Result<()> {
    let rows = Rows::of(&FOLDERS)?;
    rows.require(&COMPLETE)?;
    let command = "RBUILD_UPDATE=1 cargo test -p rbuild-tests --test faults rows";
    is_current("tests/tests/faults/ROWS.md", &rows.to_markdown(command, &[])?)
}
