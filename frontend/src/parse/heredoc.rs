//! Which here-documents a logical line announces.

use super::grammar::{self, Piece};

/// A marker such as `<<-EOF`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Marker {
    /// The word without quotes: name of the file and terminator of the body.
    pub(super) name: String,
    pub(super) expand: bool,
    pub(super) chomp: bool,
    /// Byte range in the logical line.
    pub(super) start: usize,
    pub(super) end: usize,
}

/// The markers of a line, in order. Only RUN, COPY and ADD (also behind ONBUILD) and never the JSON form have any.
pub(super) fn markers(line: &str, escape: char) -> Vec<Marker> {
    if !line.contains("<<") || !takes_heredocs(line, escape) {
        return Vec::new();
    }
    let words = grammar::shell_words(Piece { text: line, at: 0 });
    words
        .into_iter()
        .filter_map(|word| {
            let marker = marker(word.text)?;
            Some(Marker { start: word.at, end: word.end(), ..marker })
        })
        .collect()
}

/// Reads one word as a marker; positions are those within the word.
pub(super) fn marker(word: &str) -> Option<Marker> {
    if !word.contains("<<") {
        return None;
    }
    let (chomp, quoted) = grammar::heredoc_marker(word)?;
    let name = unquote(quoted);
    (!name.is_empty()).then(|| Marker { expand: name == quoted, name, chomp, start: 0, end: word.len() })
}

fn takes_heredocs(line: &str, escape: char) -> bool {
    let mut rest = Piece { text: line, at: 0 };
    // The instruction, and once more behind ONBUILD.
    for _ in 0..2 {
        let Some((keyword, after)) = grammar::head(rest.text) else { return false };
        let Some((_, arguments)) = grammar::flags(after, escape) else { return false };
        match keyword.text.to_ascii_uppercase().as_str() {
            "RUN" | "COPY" | "ADD" => return grammar::json_strings(arguments).is_none(),
            "ONBUILD" => rest = arguments,
            _ => return false,
        }
    }
    false
}

/// The word as the shell would see it: quotes and backslashes removed.
fn unquote(word: &str) -> String {
    let mut out = String::with_capacity(word.len());
    let mut quote = None;
    let mut chars = word.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), _) if c == open => quote = None,
            (None, '\\') => out.extend(chars.next()),
            _ => out.push(c),
        }
    }
    out
}
