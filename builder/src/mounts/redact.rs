//! Takes known secrets out of a step's output.
//!
//! A second line of defence only: a step that encodes a secret prints what nobody recognises.

use memchr::memmem::Finder;

use crate::cli::SecretBytes;

/// What stands in for a secret.
const MASK: &[u8] = b"***";
/// Shorter values would mask ordinary text.
const VALUE_BYTES_MIN: usize = 4;
/// Lines of a longer secret are looked for on their own from this length on.
const LINE_BYTES_MIN: usize = 12;

/// Masks in one stream of chunks, wherever they are cut. What might become a secret with the next chunk is held back.
pub struct Redactor {
    /// Longest first: a secret may contain another.
    finders: Vec<Finder<'static>>,
    held: Vec<u8>,
}

impl Redactor {
    /// For these secrets.
    pub fn new(secrets: &[SecretBytes]) -> Self {
        let mut values: Vec<&[u8]> = Vec::new();
        for secret in secrets {
            let whole = secret.expose().trim_ascii();
            values.extend(Some(whole).filter(|value| value.len() >= VALUE_BYTES_MIN));
            let lines = whole.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
            values.extend(lines.filter(|line| line.len() >= LINE_BYTES_MIN));
        }
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        values.dedup();
        let finders = values.into_iter().map(|value| Finder::new(value).into_owned()).collect();
        Self { finders, held: Vec::new() }
    }

    /// Passes on what is sure.
    pub fn push(&mut self, bytes: &[u8], emit: &mut dyn FnMut(&[u8])) {
        if self.finders.is_empty() {
            emit(bytes);
            return;
        }
        self.held.extend_from_slice(bytes);
        self.mask();
        let keep = self.undecided();
        let rest = self.held.split_off(self.held.len() - keep);
        if !self.held.is_empty() {
            emit(&self.held);
        }
        self.held = rest;
    }

    /// Passes on what was held back.
    pub fn finish(&mut self, emit: &mut dyn FnMut(&[u8])) {
        let rest = std::mem::take(&mut self.held);
        if !rest.is_empty() {
            emit(&rest);
        }
    }

    fn mask(&mut self) {
        for finder in &self.finders {
            let Some(mut at) = finder.find(&self.held) else { continue };
            let mut masked = Vec::with_capacity(self.held.len());
            let mut from = 0;
            loop {
                masked.extend_from_slice(&self.held[from..at]);
                masked.extend_from_slice(MASK);
                from = at + finder.needle().len();
                match finder.find(&self.held[from..]) {
                    Some(next) => at = from + next,
                    None => break,
                }
            }
            masked.extend_from_slice(&self.held[from..]);
            self.held = masked;
        }
    }

    /// Length of the longest end of the text that some secret starts with.
    fn undecided(&self) -> usize {
        let longest = |finder: &Finder<'_>| {
            let needle = finder.needle();
            let max = self.held.len().min(needle.len() - 1);
            // Only ends that begin with the secret's first byte can do.
            let start = self.held.len() - max;
            memchr::memchr_iter(needle[0], &self.held[start..])
                .map(|at| max - at)
                .find(|length| self.held.ends_with(&needle[..*length]))
                .unwrap_or(0)
        };
        self.finders.iter().map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redacted(secrets: &[&str], chunks: &[&str]) -> String {
        let secrets: Vec<SecretBytes> =
            secrets.iter().map(|text| SecretBytes::new(text.as_bytes().to_vec())).collect();
        let mut redactor = Redactor::new(&secrets);
        let mut out = Vec::new();
        for chunk in chunks {
            redactor.push(chunk.as_bytes(), &mut |bytes| out.extend_from_slice(bytes));
        }
        redactor.finish(&mut |bytes| out.extend_from_slice(bytes));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn secrets_are_masked_wherever_the_chunks_are_cut() {
        let text = "a hunter2 and hunter2\nhunt";
        let wanted = "a *** and ***\nhunt";
        for cut in 0..=text.len() {
            let (a, b) = text.split_at(cut);
            assert_eq!(redacted(&["hunter2\n"], &[a, b]), wanted, "{cut}");
        }
        let bytes: Vec<String> = text.chars().map(String::from).collect();
        let bytes: Vec<&str> = bytes.iter().map(String::as_str).collect();
        assert_eq!(redacted(&["hunter2"], &bytes), wanted);
    }

    #[test]
    fn long_lines_are_masked_alone_and_short_values_not_at_all() {
        let key = "-----BEGIN KEY-----\nabcdefghijklmnop\nxy\n";
        assert_eq!(redacted(&[key], &["> abcdefghijklmnop\n> xy"]), "> ***\n> xy");
        assert_eq!(redacted(&[key], &[key]), "***\n");
        assert_eq!(redacted(&["abc"], &["abcabc"]), "abcabc");
        assert_eq!(redacted(&["abcd", "abcdef"], &["abcdef abcd"]), "*** ***");
    }
}
