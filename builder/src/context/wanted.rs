//! Which part of a context the reachable instructions can select.
//!
//! The scan enters, lists and hashes nothing else: a file that no instruction names must neither cost anything nor be
//! able to fail a build.

use rbuild_cache::tree::select::Pattern;

/// The union of all sources of a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Each as it was given, and its components; `None` means everything.
    patterns: Option<Vec<(String, Vec<Component>)>>,
}

/// One component of a pattern; `None` for a malformed one, which is reported when it is used: here it must not hide
/// anything.
type Component = Option<Pattern>;

/// How a path stands to the wanted part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing wanted is at or below it.
    Outside,
    /// Something wanted may be below it.
    Above,
    /// A source names or matches it.
    Source,
    /// It is below a source.
    Inside,
}

impl Wanted {
    /// Everything in the context.
    pub fn everything() -> Self {
        Self { patterns: None }
    }

    /// What `patterns` select: cleaned source paths or wildcards, an empty one meaning the whole context.
    pub fn by<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Self {
        let mut all = Vec::new();
        for pattern in patterns {
            let parts: Vec<&str> =
                pattern.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
            if parts.is_empty() || parts.contains(&"..") {
                return Self::everything();
            }
            let components = parts.iter().map(|part| Pattern::new(part.as_bytes()).ok()).collect();
            all.push((parts.join("/"), components));
        }
        Self { patterns: Some(all) }
    }

    /// What it was made from; `None` means everything.
    pub(super) fn texts(&self) -> Option<impl Iterator<Item = &str>> {
        self.patterns.as_ref().map(|all| all.iter().map(|(text, _)| text.as_str()))
    }

    /// Places a path, given without leading `/`.
    pub fn standing(&self, path: &[u8]) -> Standing {
        let Some(patterns) = &self.patterns else { return Standing::Inside };
        let mut best = Standing::Outside;
        for (_, pattern) in patterns {
            let mut parts = pattern.iter();
            let mut names = path.split(|byte| *byte == b'/');
            let standing = loop {
                match (parts.next(), names.next()) {
                    (None, None) => break Standing::Source,
                    (None, Some(_)) => break Standing::Inside,
                    (Some(_), None) => break Standing::Above,
                    (Some(part), Some(name)) if part.as_ref().is_none_or(|part| part.matches(name)) => {}
                    (Some(_), Some(_)) => break Standing::Outside,
                }
            };
            best = match (best, standing) {
                (Standing::Inside, _) | (_, Standing::Inside) => Standing::Inside,
                (Standing::Source, _) | (_, Standing::Source) => Standing::Source,
                (Standing::Above, _) | (_, Standing::Above) => Standing::Above,
                _ => Standing::Outside,
            };
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_placed_by_component() {
        let wanted = Wanted::by(["package.json", "src/*.js", "lib/a"]);
        for (path, standing) in [
            ("package.json", Standing::Source),
            ("package.json.bak", Standing::Outside),
            ("src", Standing::Above),
            ("src/x.js", Standing::Source),
            ("src/x.js/y", Standing::Inside),
            ("src/x.ts", Standing::Outside),
            ("lib", Standing::Above),
            ("lib/a", Standing::Source),
            ("lib/a/b/c", Standing::Inside),
            ("lib/b", Standing::Outside),
            ("other", Standing::Outside),
        ] {
            assert_eq!(wanted.standing(path.as_bytes()), standing, "{path}");
        }
    }

    #[test]
    fn the_whole_context_is_wanted_when_one_source_names_it() {
        for patterns in [vec!["a", ""], vec!["."], vec!["../x"]] {
            assert_eq!(Wanted::by(patterns), Wanted::everything());
        }
    }
}
