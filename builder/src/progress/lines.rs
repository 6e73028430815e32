//! Hostile output bytes to printable lines.
//!
//! * Lines end at `\n`. A `\r` that is not part of `\r\n` begins the line again, so a progress bar shows its last
//!   state, not all of them.
//! * Escape sequences (CSI, OSC and the other string kinds) are dropped; other control characters are shown as `\x1b`
//!   style text; tabs stay. C1 controls and the bidirectional overrides are shown escaped too: neither may move the
//!   reader's cursor or reorder their line.
//! * Invalid UTF-8 becomes U+FFFD.
//! * A line longer than [`LINE_BYTES`] is cut into several.

use std::borrow::Cow;

/// Bytes of one line before it is cut. Bounds memory whatever a step prints.
pub(crate) const LINE_BYTES: usize = 16 << 10;

/// Cuts a byte stream into lines. Holds at most [`LINE_BYTES`] and a pending mark.
#[derive(Debug, Default)]
pub(crate) struct LineSplitter {
    line: Vec<u8>,
    /// A `\r` was the last byte: what comes next decides what it meant.
    pending_return: bool,
}

impl LineSplitter {
    /// Takes bytes and hands each complete line, cleaned, to `emit`.
    pub(crate) fn push(&mut self, bytes: &[u8], mut emit: impl FnMut(String)) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.pending_return {
                self.pending_return = false;
                if rest[0] == b'\r' {
                    self.pending_return = true;
                    rest = &rest[1..];
                    continue;
                }
                if rest[0] != b'\n' {
                    self.line.clear();
                }
            }
            let room = LINE_BYTES - self.line.len();
            let window = &rest[..rest.len().min(room)];
            match window.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
                Some(at) => {
                    self.line.extend_from_slice(&rest[..at]);
                    if rest[at] == b'\n' {
                        emit(clean(&self.line));
                        self.line.clear();
                    } else {
                        self.pending_return = true;
                    }
                    rest = &rest[at + 1..];
                }
                None => {
                    self.line.extend_from_slice(window);
                    rest = &rest[window.len()..];
                    if self.line.len() >= LINE_BYTES {
                        let keep = split_character(&self.line);
                        let tail = self.line.split_off(self.line.len() - keep);
                        emit(clean(&self.line));
                        self.line = tail;
                    }
                }
            }
        }
    }

    /// The line under way as it looks now, if any: a progress bar that never ends its line.
    pub(crate) fn partial(&self) -> Option<String> {
        (!self.line.is_empty()).then(|| clean(&self.line))
    }

    /// The line begun and not ended, if any; the splitter is empty afterwards.
    pub(crate) fn finish(&mut self) -> Option<String> {
        self.pending_return = false;
        (!self.line.is_empty()).then(|| clean(&std::mem::take(&mut self.line)))
    }
}

/// How many bytes at the end are the beginning of one UTF-8 character (0 to 3).
fn split_character(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let byte = bytes[bytes.len() - back];
        if byte & 0b1100_0000 != 0b1000_0000 {
            let length = match byte {
                0xc2..=0xdf => 2,
                0xe0..=0xef => 3,
                0xf0..=0xf4 => 4,
                _ => 1,
            };
            return if length > back { back } else { 0 };
        }
    }
    0
}

/// Makes bytes of one line safe to print.
pub(crate) fn clean(bytes: &[u8]) -> String {
    clean_text(&String::from_utf8_lossy(bytes)).into_owned()
}

/// A text of several lines, each made safe, all but the first set in.
pub(crate) fn clean_lines(text: &str) -> String {
    text.lines().map(clean_text).collect::<Vec<_>>().join("\n      ")
}

/// Makes a text safe to print on one line: see the module's head.
pub(crate) fn clean_text(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => match chars.peek() {
                Some('[') => {
                    chars.next();
                    skip_csi(&mut chars);
                }
                Some(']' | 'P' | 'X' | '^' | '_') => {
                    chars.next();
                    skip_string(&mut chars);
                }
                // Two- and three-byte sequences: charset selection, save and restore, keypad modes.
                Some('(' | ')' | '*' | '+' | '#' | '%' | ' ') => {
                    chars.next();
                    chars.next_if(|c| c.is_ascii_graphic());
                }
                Some('0'..='~') => {
                    chars.next();
                }
                _ => out.push_str("\\x1b"),
            },
            '\u{9b}' => skip_csi(&mut chars),
            '\u{90}' | '\u{98}' | '\u{9d}' | '\u{9e}' | '\u{9f}' => skip_string(&mut chars),
            c if is_unsafe(c) && (c as u32) < 0x100 => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if is_unsafe(c) => out.push_str(&format!("\\u{{{:x}}}", c as u32)),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

fn is_unsafe(c: char) -> bool {
    (c.is_control() && c != '\t')
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{61c}' | '\u{2028}' | '\u{2029}')
}

/// Parameters and intermediates up to the final byte (ECMA-48, 5.4).
fn skip_csi(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    while chars.next_if(|c| matches!(c, ' '..='?')).is_some() {}
    chars.next_if(|c| matches!(c, '@'..='~'));
}

/// Up to BEL or the string terminator; an unterminated one takes the rest of the line.
fn skip_string(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    while let Some(c) = chars.next() {
        match c {
            '\u{7}' | '\u{9c}' => return,
            '\u{1b}' if chars.peek() == Some(&'\\') => {
                chars.next();
                return;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(chunks: &[&[u8]], expected: &[&str]) {
        let mut splitter = LineSplitter::default();
        let mut lines = Vec::new();
        for chunk in chunks {
            splitter.push(chunk, |line| lines.push(line));
        }
        lines.extend(splitter.finish());
        assert_eq!(lines, expected);
    }

    #[test]
    fn lines_end_at_newlines_across_chunks_and_the_last_needs_none() {
        check(&[b"one\ntw", b"o\n", b"\nthree"], &["one", "two", "", "three"]);
        check(&[b"dos\r\n", b"split\r", b"\nend"], &["dos", "split", "end"]);
        check(&[], &[]);
    }

    #[test]
    fn a_carriage_return_shows_the_last_state_of_a_progress_bar() {
        check(&[b"10%\r50%\r100%\ndone\n"], &["100%", "done"]);
        check(&[b"10%\r", b"20%\r", b"\r", b"30%"], &["30%"]);
        check(&[b"100%\r"], &["100%"]);
    }

    #[test]
    fn escape_sequences_never_reach_the_terminal() {
        check(&[b"\x1b[31mred\x1b[0m\n\x1b]0;title\x07x\n\x1b]8;;u\x1b\\link"], &["red", "x", "link"]);
        check(&[b"\x1b[2J\x1b[H\x1b7\x1b(Bcleared"], &["cleared"]);
        check(&[b"a\x08b\x07\0\x7f\ttab"], &["a\\x08b\\x07\\x00\\x7f\ttab"]);
        check(&["c1 \u{9b}31m \u{85} \u{202e}rtl".as_bytes()], &["c1  \\x85 \\u{202e}rtl"]);
        check(&[b"ends in \x1b"], &["ends in \\x1b"]);
        check(&[b"\x1b[31"], &[""]);
    }

    #[test]
    fn invalid_utf8_is_replaced_and_characters_survive_chunk_borders() {
        check(&[b"\xff ok\n"], &["\u{fffd} ok"]);
        check(&[b"h\xc3", b"\xa9\n"], &["h\u{e9}"]);
    }

    #[test]
    fn endless_lines_are_cut_without_splitting_a_character() {
        let mut splitter = LineSplitter::default();
        let mut lengths = Vec::new();
        let mut text = "é".repeat(LINE_BYTES);
        text.insert(0, 'x');
        for chunk in text.as_bytes().chunks(1000) {
            splitter.push(chunk, |line| {
                assert!(!line.contains('\u{fffd}'));
                lengths.push(line.len());
            });
        }
        assert!(lengths.iter().all(|length| *length <= LINE_BYTES));
        let rest = splitter.finish().map_or(0, |line| line.len());
        assert_eq!(lengths.iter().sum::<usize>() + rest, text.len());
    }

    #[test]
    fn lines_do_not_depend_on_how_the_bytes_were_chunked() {
        let mut bytes = b"a\r\nb\rc\n\r\r\nd\xff\xc3\xa9\x1b[1mx\n\n".repeat(3);
        bytes.extend(std::iter::repeat_n("\u{20ac}".as_bytes(), LINE_BYTES).flatten());
        bytes.extend(b"\r\nend");
        let split = |size: usize| {
            let mut splitter = LineSplitter::default();
            let mut lines = Vec::new();
            for chunk in bytes.chunks(size) {
                splitter.push(chunk, |line| lines.push(line));
            }
            lines.extend(splitter.finish());
            lines
        };
        let whole = split(bytes.len());
        assert!(whole.len() > 15);
        for size in [1, 2, 3, 7, 1000, LINE_BYTES - 1, LINE_BYTES, LINE_BYTES + 1] {
            assert!(split(size) == whole, "chunks of {size}");
        }
    }
}
