//! Lines of databases of any length.

use std::io::{self, BufRead, Read as _};

/// What is looked at of a line: no field that is wanted is longer.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// Gives each line without its end to `take`, until that says it is enough. What is no UTF-8 is shown as such.
pub(super) fn for_each_line(
    mut input: impl BufRead,
    mut take: impl FnMut(&str) -> io::Result<bool>,
) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if line.pop_if(|byte| *byte == b'\n').is_none() {
            input.skip_until(b'\n')?;
        }
        if !take(&String::from_utf8_lossy(&line))? {
            return Ok(());
        }
    }
}
