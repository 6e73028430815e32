//! Ignore files, with the semantics of Go's `patternmatcher` as Docker uses it: not those of gitignore.
//!
//! Patterns are anchored at the context root, a pattern that matches a directory covers all below it, and the last
//! line that matches decides. Matching walks all positions of a pattern at once (`pattern`); it is linear in pattern
//! times path and nothing backtracks. Of many patterns only those are tried that a path's names allow (`index`).

mod index;
mod pattern;

use index::Index;
use pattern::Pattern;

/// Why an ignore file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IgnoreError {
    /// A line that is only `!`.
    #[error("line {line}: illegal exclusion pattern: \"!\"")]
    LoneNegation {
        /// 1-based line.
        line: usize,
    },
    /// Unclosed bracket and the like.
    #[error("line {line}: syntax error in pattern `{pattern}`")]
    Syntax {
        /// 1-based line.
        line: usize,
        /// The pattern as cleaned.
        pattern: String,
    },
    /// More than [`Ignore::PATTERNS_MAX`] patterns.
    #[error("more than {} patterns", Ignore::PATTERNS_MAX)]
    TooMany,
}

/// A parsed ignore file.
#[derive(Debug, Clone, Default)]
pub struct Ignore {
    patterns: Vec<Pattern>,
    index: Index,
}

/// What the patterns say about one path: the last of them that covers it, if any does.
///
/// A pattern that matches a directory covers all below it, so a walk carries the verdict of a directory down to what
/// is in it ([`Ignore::below`]) and never matches a path's beginning again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Verdict(Option<usize>);

/// A pattern as it stands in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule<'a> {
    /// 1-based line; the number of the pattern where there is no file.
    pub line: usize,
    /// As written, without blanks around it.
    pub text: &'a str,
    /// True when it brings back instead of excluding.
    pub negated: bool,
}

impl Ignore {
    /// Most patterns a file may have.
    pub const PATTERNS_MAX: usize = 10_000;

    /// Parses a file. Invalid UTF-8 is replaced.
    pub fn parse(bytes: &[u8]) -> Result<Self, IgnoreError> {
        let text = String::from_utf8_lossy(bytes);
        let text = text.strip_prefix('\u{FEFF}').unwrap_or(&text);
        let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#'));
        Self::from_lines(lines)
    }

    /// The patterns of `--exclude`: as in a file, but `#` is nothing special. An error's line is the pattern's number.
    pub fn excluding<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, IgnoreError> {
        Self::from_lines(patterns.into_iter().enumerate())
    }

    /// Excludes all but what `pattern` covers, and so matches like `COPY --parents`: the directories on the way to a
    /// match are excluded but [not to be skipped](Ignore::may_skip_dir). An empty pattern covers everything.
    pub fn all_but(pattern: &str) -> Result<Self, IgnoreError> {
        if pattern.is_empty() {
            return Ok(Self::default());
        }
        Ok(Self::of(vec![Pattern::new("**", false, 1)?, Pattern::new(pattern, true, 1)?]))
    }

    fn from_lines<'a>(lines: impl Iterator<Item = (usize, &'a str)>) -> Result<Self, IgnoreError> {
        let mut patterns = Vec::new();
        for (index, line) in lines {
            let number = index + 1;
            let line = line.trim();
            let (negated, body) = match line.strip_prefix('!') {
                Some(rest) => (true, rest.trim()),
                None => (false, line),
            };
            if body.is_empty() {
                if negated {
                    return Err(IgnoreError::LoneNegation { line: number });
                }
                continue;
            }
            if patterns.len() >= Self::PATTERNS_MAX {
                return Err(IgnoreError::TooMany);
            }
            patterns.push(Pattern::new(body, negated, number)?);
        }
        Ok(Self::of(patterns))
    }

    fn of(patterns: Vec<Pattern>) -> Self {
        Self { index: Index::new(&patterns), patterns }
    }

    /// True when a pattern brings something back, so that no path says for all below it.
    pub fn has_negation(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.negated)
    }

    /// True when no pattern is there.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// True when the entry at `rel_path` (slash-separated, relative to the context root, no leading slash) is
    /// excluded. Also true for what lies below an excluded directory, unless a later negation brings it back.
    ///
    /// An excluded directory may hold entries that are not excluded; it then exists for their sake, with its own
    /// metadata and nothing else in it.
    pub fn matches(&self, rel_path: &str) -> bool {
        self.excludes(self.verdict(rel_path))
    }

    /// The verdict on a path by itself.
    pub fn verdict(&self, rel_path: &str) -> Verdict {
        let ends = rel_path.match_indices('/').map(|(at, _)| at).chain([rel_path.len()]);
        ends.fold(Verdict::default(), |verdict, end| self.below(verdict, &rel_path[..end]))
    }

    /// The verdict on the entry at `path`, whose directory has the verdict `dir`; the root has the default one.
    pub fn below(&self, dir: Verdict, path: &str) -> Verdict {
        let mut last = dir.0;
        if self.patterns.is_empty() {
            return dir;
        }
        self.index.candidates(path, |numbers| {
            for number in numbers.iter().rev().take_while(|number| Some(**number) > last) {
                if self.patterns[*number].matches(path) {
                    last = Some(*number);
                    break;
                }
            }
        });
        Verdict(last)
    }

    /// True when a path with this verdict is excluded.
    pub fn excludes(&self, verdict: Verdict) -> bool {
        verdict.0.is_some_and(|last| !self.patterns[last].negated)
    }

    /// The pattern behind a verdict.
    pub fn rule(&self, verdict: Verdict) -> Option<Rule<'_>> {
        Some(self.patterns[verdict.0?].rule())
    }

    /// All patterns, in their order: two ignore files with the same ones decide alike.
    pub fn rules(&self) -> impl Iterator<Item = Rule<'_>> {
        self.patterns.iter().map(Pattern::rule)
    }

    /// True when `dir` is excluded and no negation can bring back anything below it, so that a walk need not enter.
    pub fn may_skip_dir(&self, dir: &str) -> bool {
        self.may_skip(self.verdict(dir), dir)
    }

    /// The same for a directory whose verdict is known.
    pub fn may_skip(&self, verdict: Verdict, dir: &str) -> bool {
        // A pattern that covers the directory covers everything below, so only later negations count.
        let Some(last) = verdict.0.filter(|_| self.excludes(verdict)) else { return false };
        let mut later = self.patterns[last + 1..].iter();
        !later.any(|pattern| pattern.negated && pattern.reaches_below(dir))
    }
}

/// Go's `path.Clean`: the shortest equal path; a relative path keeps leading `..`.
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(last) if *last != ".." => {
                    parts.pop();
                }
                _ if rooted => {}
                _ => parts.push(".."),
            },
            other => parts.push(other),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

#[cfg(test)]
mod tests;
