//! Lines of a Dockerfile in BuildKit's layout (`solver/errdefs`, `Source.Print`).

use std::borrow::Cow;

use super::Excerpt;
use crate::progress::lines::{clean, clean_text};

/// Characters of one source line shown.
const LINE_CHARS: usize = 2000;
/// Marked lines shown before the middle is left out.
const MARKED_LINES: usize = 60;

/// Draws the excerpt; empty when the lines are not in the file.
///
/// Unlike BuildKit, a range of more than 60 lines loses its middle and overlong lines are cut.
pub(super) fn render(excerpt: &Excerpt) -> String {
    let lines: Vec<&[u8]> = excerpt.file.bytes.split(|byte| *byte == b'\n').collect();
    let first = usize::try_from(excerpt.lines.first).unwrap_or(usize::MAX);
    if first < 1 || first > lines.len() {
        return String::new();
    }
    let last = usize::try_from(excerpt.lines.last).unwrap_or(usize::MAX).clamp(first, lines.len());
    let (start, end) = with_context(first, last, lines.len());
    let mut text = format!("{}:{first}\n--------------------\n", clean_text(&excerpt.file.name));
    let hidden =
        if last - first >= MARKED_LINES { first + MARKED_LINES / 2..last - MARKED_LINES / 4 } else { 0..0 };
    for number in start..=end {
        if hidden.contains(&number) {
            if number == hidden.start {
                text.push_str(&format!("     | >>> ... {} lines ...\n", hidden.len()));
            }
            continue;
        }
        let marker = if (first..=last).contains(&number) { ">>>" } else { "   " };
        text.push_str(&format!(" {number:3} | {marker} {}\n", shown(lines[number - 1])));
    }
    text.push_str("--------------------\n");
    text
}

/// BuildKit's spread: each round takes one line on both sides while they last, one-line ranges get two rounds.
fn with_context(first: usize, last: usize, count: usize) -> (usize, usize) {
    let pad = if first == last { 4 } else { 2 };
    let (mut start, mut end, mut taken) = (first, last, 0);
    while taken < pad {
        if start > 1 {
            start -= 1;
            taken += 1;
        }
        if end < count {
            end += 1;
            taken += 1;
        }
        taken += 1;
    }
    (start, end)
}

fn shown(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let cut = line.len() > LINE_CHARS;
    let line =
        if cut { Cow::Owned([&line[..LINE_CHARS], " ...".as_bytes()].concat()) } else { Cow::Borrowed(line) };
    clean(&line)
}
