//! Why a step was executed, as a value and as a sentence.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::record::short_reference;
use crate::report::counted;
use crate::timestamp;

/// Changed files named in a sentence.
const FILES_NAMED: usize = 3;
/// Longest value shown in a sentence, in characters.
const SHOWN_CHARS: usize = 60;

/// One reason why no cached result could be taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "snake_case")]
pub enum Cause {
    /// `--no-cache`.
    NoCache,
    /// `--no-cache-filter` names the step's stage.
    NoCacheFilter {
        /// The stage.
        stage: String,
    },
    /// Nothing like it is remembered.
    First,
    /// Nothing of its stage is remembered, and what was before is forgotten: the index was made anew.
    FirstSinceRebuild {
        /// When, nanoseconds since the epoch.
        at_unix_ns: i64,
    },
    /// The same step with the same inputs failed before.
    FailedBefore,
    /// The result was there and was given up.
    Evicted {
        /// When, nanoseconds since the epoch.
        at_unix_ns: i64,
    },
    /// The result was there and was found damaged.
    Damaged {
        /// When, nanoseconds since the epoch.
        at_unix_ns: i64,
    },
    /// The result was there and is not any more.
    Lost,
    /// The base image is another.
    Base {
        /// Name before.
        old_reference: String,
        /// Manifest before.
        old: String,
        /// Name now.
        reference: String,
        /// Manifest now.
        new: String,
    },
    /// What is executed is another command.
    Command {
        /// Before, when it was short enough to be kept.
        old: Option<String>,
        /// Now.
        new: Option<String>,
    },
    /// A value that the step sees is another.
    Value {
        /// `ARG VERSION`.
        what: String,
        /// Before.
        old: Shown,
        /// Now.
        new: Shown,
    },
    /// Files that it reads changed.
    Files {
        /// Where they are, when not in the build context: a stage or an image.
        from: Option<String>,
        /// Which, sorted; not all when there are very many.
        files: Vec<FileChange>,
        /// How many in all; 0 when it cannot be told which.
        count: usize,
    },
    /// What is at an address is another file or commit.
    Fetched {
        /// The address.
        address: String,
        /// Digest or commit before.
        old: String,
        /// Now.
        new: String,
    },
    /// A step above is to blame.
    Above {
        /// Its name.
        step: String,
        /// What about it.
        how: Above,
    },
    /// The variables are the same and stand in another order.
    Order,
    /// Nothing that is recorded in words.
    Other,
}

/// A value as far as it may be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", content = "value", rename_all = "snake_case")]
pub enum Shown {
    /// It is not set.
    Absent,
    /// It is secret or long.
    Hidden,
    /// It is this.
    Text(String),
}

/// What about a step above.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum Above {
    /// It changed.
    Changed,
    /// It is new.
    New,
    /// It ran with nothing changed and gave something else, or what it gave before is used again.
    OtherResult,
    /// It stands there in place of another.
    InPlaceOf {
        /// Name of that.
        old: String,
    },
    /// Something else stands above it.
    Follows {
        /// Name of what stood there.
        old: String,
        /// Name of what stands there now.
        new: String,
    },
}

/// A changed file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChange {
    /// Path in its source.
    pub path: String,
    /// `content`, `mode 0664 -> 0644`, `new`, `removed`, …
    pub how: String,
}

/// The sentence for people: the first cause, and how many more there are.
pub fn sentence(causes: &[Cause]) -> String {
    let Some(first) = causes.first() else { return Cause::Other.to_string() };
    let follows = |cause: &&Cause| match cause {
        Cause::Above { .. } => true,
        // A base brings its environment along.
        Cause::Value { what, .. } => matches!(first, Cause::Base { .. }) && what.starts_with("ENV "),
        _ => false,
    };
    match causes.iter().skip(1).filter(|cause| !follows(cause)).count() {
        0 => first.to_string(),
        more => format!("{first} (and {more} more)"),
    }
}

/// Everything, a line each.
pub fn details(causes: &[Cause]) -> Vec<String> {
    let mut lines = Vec::new();
    for cause in causes {
        match cause {
            Cause::Command { old: Some(old), new: Some(new) } => {
                lines.push(format!("command was: {old}"));
                lines.push(format!("command is:  {new}"));
            }
            Cause::Value { what, old: Shown::Text(old), new: Shown::Text(new) }
                if old != new && [old, new].into_iter().any(|text| shorten(text) != *text) =>
            {
                lines.push(format!("{what} was: {}", one_line(old)));
                lines.push(format!("{what} is:  {}", one_line(new)));
            }
            Cause::Files { files, count, from } if *count > 0 => {
                lines.push(files_changed(*count, from.as_deref()));
                lines.extend(files.iter().map(|file| format!("  {} ({})", file.path, file.how)));
                if *count > files.len() {
                    lines.push(format!("  and {} more", count - files.len()));
                }
            }
            other => lines.push(other.to_string()),
        }
    }
    lines
}

impl Cause {
    /// How many files it names.
    pub fn files(&self) -> usize {
        if let Self::Files { files, .. } = self { files.len() } else { 0 }
    }

    /// Keeps how many files changed, but no more names than a sentence has.
    pub fn forget_files(&mut self) {
        if let Self::Files { files, .. } = self {
            files.truncate(FILES_NAMED);
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCache => f.write_str("--no-cache"),
            Self::NoCacheFilter { stage } => write!(f, "--no-cache-filter={stage}"),
            Self::First => f.write_str("first build of this step"),
            Self::FirstSinceRebuild { at_unix_ns } => {
                let when = moment(*at_unix_ns);
                write!(f, "first build of this step since the store's index was made anew on {when}")
            }
            Self::FailedBefore => f.write_str("it failed last time"),
            Self::Evicted { at_unix_ns } => write!(f, "evicted on {}", moment(*at_unix_ns)),
            Self::Damaged { at_unix_ns } => {
                write!(f, "its result was found damaged on {}", moment(*at_unix_ns))
            }
            Self::Lost => f.write_str("its result is no longer in the store"),
            Self::Base { old_reference, old, reference, new } if old_reference == reference => {
                let (old, new) = (short_digest(old), short_digest(new));
                write!(f, "base {} moved {old}.. -> {new}..", short_reference(reference))
            }
            Self::Base { old_reference, reference, .. } => {
                let (old, new) = (short_reference(old_reference), short_reference(reference));
                write!(f, "base {old} -> {new}")
            }
            Self::Command { .. } => f.write_str("command changed"),
            Self::Value { what, old, new } => match (old, new) {
                // Lists of words can read the same.
                (Shown::Text(old), Shown::Text(new)) if old == new => write!(f, "{what} changed"),
                (Shown::Text(old), Shown::Text(new)) => {
                    let (old, new) = told_apart(old, new);
                    write!(f, "{what} \"{old}\" -> \"{new}\"")
                }
                (Shown::Absent, Shown::Text(new)) => write!(f, "{what} \"{}\" is new", shorten(new)),
                (Shown::Absent, _) => write!(f, "{what} is new"),
                (_, Shown::Absent) => write!(f, "{what} is gone"),
                _ => write!(f, "{what} changed"),
            },
            Self::Files { from, count: 0, .. } => match from {
                Some(from) => write!(f, "files in {} changed", shorten(from)),
                None => f.write_str("files changed"),
            },
            Self::Files { from, files, count } => {
                f.write_str(&files_changed(*count, from.as_deref()))?;
                f.write_str(": ")?;
                for (at, file) in files.iter().take(FILES_NAMED).enumerate() {
                    let comma = if at == 0 { "" } else { ", " };
                    write!(f, "{comma}{} ({})", file.path, file.how)?;
                }
                match count.saturating_sub(FILES_NAMED) {
                    0 => Ok(()),
                    more => write!(f, " and {more} more"),
                }
            }
            Self::Fetched { address, old, new } => {
                let (old, new) = (short_digest(old), short_digest(new));
                write!(f, "{} changed {old}.. -> {new}..", shorten(address))
            }
            Self::Above { step, how } => match how {
                Above::Changed => write!(f, "`{}` above changed", shorten(step)),
                Above::New => write!(f, "`{}` above is new", shorten(step)),
                Above::OtherResult => write!(f, "`{}` above gave another result", shorten(step)),
                Above::InPlaceOf { old } => {
                    write!(f, "follows `{}` in place of `{}`", shorten(step), shorten(old))
                }
                Above::Follows { old, new } => {
                    let (step, old, new) = (shorten(step), shorten(old), shorten(new));
                    write!(f, "`{step}` above follows `{new}` in place of `{old}`")
                }
            },
            Self::Order => f.write_str("ENV and ARG are in another order"),
            Self::Other => f.write_str("the instruction means something else than before"),
        }
    }
}

fn files_changed(count: usize, from: Option<&str>) -> String {
    let files = counted(count, "file changed", "files changed");
    match from {
        Some(from) => format!("{files} in {}", shorten(from)),
        None => files,
    }
}

/// `sha256:` and twelve digits.
fn short_digest(digest: &str) -> &str {
    digest.get(..19).unwrap_or(digest)
}

fn moment(unix_ns: i64) -> String {
    let text = timestamp::rfc3339(unix_ns / 1_000_000_000, 0);
    text.replace('T', " ").trim_end_matches('Z').to_owned() + " UTC"
}

/// Two texts that differ, cut so that it can be seen where.
fn told_apart(old: &str, new: &str) -> (String, String) {
    let (short_old, short_new) = (shorten(old), shorten(new));
    if short_old != short_new {
        return (short_old, short_new);
    }
    let (old, new) = (one_line(old), one_line(new));
    let same = old.chars().zip(new.chars()).take_while(|(old, new)| old == new).count();
    // A few characters before it tell where that is.
    let from = same.saturating_sub(SHOWN_CHARS / 4);
    let part = |text: &str| {
        let shown: String = text.chars().skip(from).take(SHOWN_CHARS).collect();
        let (start, end) =
            (if from > 0 { "…" } else { "" }, text.chars().nth(from + SHOWN_CHARS).map_or("", |_| "…"));
        format!("{start}{shown}{end}")
    };
    (part(&old), part(&new))
}

/// All of it, in one line.
fn one_line(text: &str) -> String {
    text.replace('\n', "\\n")
}

/// One line, cut in the middle of a word if need be.
fn shorten(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let is_cut = line.chars().count() > SHOWN_CHARS || text.lines().nth(1).is_some();
    let start: String = line.chars().take(SHOWN_CHARS).collect();
    if is_cut { format!("{start}…") } else { start }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, how: &str) -> FileChange {
        FileChange { path: path.into(), how: how.into() }
    }

    #[test]
    fn sentences() {
        let text = |text: &str| Shown::Text(text.to_owned());
        let value = |old, new| Cause::Value { what: "ARG VERSION".into(), old, new };
        let files = vec![file("src/a.rs", "content"), file("run.sh", "mode 0664 -> 0644")];
        let base = |old: &str, new: &str| Cause::Base {
            old_reference: old.into(),
            old: format!("sha256:{}", "a".repeat(64)),
            reference: new.into(),
            new: format!("sha256:{}", "b".repeat(64)),
        };
        let node = "docker.io/library/node:10";
        let above = Cause::Above { step: "[2/4] COPY . .".into(), how: Above::Changed };
        for (causes, expected) in [
            (vec![Cause::First], "first build of this step"),
            (vec![value(text("1"), text("2"))], "ARG VERSION \"1\" -> \"2\""),
            (vec![value(Shown::Hidden, Shown::Hidden)], "ARG VERSION changed"),
            (vec![value(Shown::Absent, Shown::Hidden)], "ARG VERSION is new"),
            (vec![value(text("1"), Shown::Absent)], "ARG VERSION is gone"),
            (
                vec![Cause::Files { from: None, files, count: 2 }],
                "2 files changed: src/a.rs (content), run.sh (mode 0664 -> 0644)",
            ),
            (vec![base(node, node)], "base node:10 moved sha256:aaaaaaaaaaaa.. -> sha256:bbbbbbbbbbbb.."),
            (vec![base(node, "docker.io/library/node:12")], "base node:10 -> node:12"),
            (vec![Cause::Evicted { at_unix_ns: 0 }], "evicted on 1970-01-01 00:00:00 UTC"),
            (vec![value(text("l1\nl2"), text("l1\nl3"))], "ARG VERSION \"l1\\nl2\" -> \"l1\\nl3\""),
            (
                vec![value(text(&format!("{}1", "y".repeat(80))), text(&format!("{}2", "y".repeat(80))))],
                "ARG VERSION \"…yyyyyyyyyyyyyyy1\" -> \"…yyyyyyyyyyyyyyy2\"",
            ),
            (vec![Cause::Command { old: None, new: None }, above.clone()], "command changed"),
            (vec![above, Cause::Other], "`[2/4] COPY . .` above changed (and 1 more)"),
        ] {
            assert_eq!(sentence(&causes), expected);
        }
        let files: Vec<_> = (0..5).map(|n| file(&format!("f{n}"), "new")).collect();
        let cause = Cause::Files { from: Some("stage build".into()), files, count: 5 };
        assert_eq!(
            cause.to_string(),
            "5 files changed in stage build: f0 (new), f1 (new), f2 (new) and 2 more"
        );
        assert_eq!(details(&[cause]).len(), 6);
    }
}
