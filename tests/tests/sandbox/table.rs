//! The table of expected outcomes: one data file, from which the documentation's table is made.
//!
//! ```text
//! # S1 Kernel settings cannot be changed
//! S1 /proc/sys/vm = none; chroot, contained = absent
//! S17 effective = a80425fb; */1000 = 0
//! ```
//!
//! A finding has an outcome everywhere, and others where selectors (`PLACE`, `PLACE/USER`, `*/USER`) match; the last that
//! matches counts. `A|B` allows both, which is for kernels that differ; `*` allows anything: nothing is promised there.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result, bail, ensure};

use crate::rungs::Place;

/// `USER`s that the probe runs as.
pub(crate) const USERS: [&str; 2] = ["0", "1000"];

/// One probe of one row: `S1` and `/proc/sys/vm`.
pub(crate) type Finding = (String, String);
/// Where, and as which user.
pub(crate) type Column = (Place, &'static str);
/// What the probe found, everywhere.
pub(crate) type Findings = BTreeMap<(Finding, Column), String>;

struct Expectation {
    finding: Finding,
    everywhere: String,
    exceptions: Vec<(String, String)>,
}

impl Expectation {
    fn parse(line: &str) -> Result<Self> {
        let (finding, outcomes) = line.split_once(" = ").context("no ` = `")?;
        let (row, name) = finding.split_once(' ').context("no name")?;
        let mut outcomes = outcomes.split("; ");
        let everywhere = outcomes.next().context("no outcome")?.to_owned();
        let mut exceptions = Vec::new();
        for part in outcomes {
            let (selectors, outcome) = part.split_once(" = ").context("an exception without ` = `")?;
            for selector in selectors.split(", ") {
                let (place, user) = selector.split_once('/').unwrap_or((selector, "0"));
                let is_place = place == "*" || Place::ALL.iter().any(|known| known.name() == place);
                ensure!(is_place && USERS.contains(&user), "unknown selector `{selector}`");
                exceptions.push((selector.to_owned(), outcome.to_owned()));
            }
        }
        Ok(Self { finding: (row.to_owned(), name.to_owned()), everywhere, exceptions })
    }

    fn at(&self, (place, user): Column) -> &str {
        let matches = |selector: &str| {
            let (of_place, of_user) = selector.split_once('/').unwrap_or((selector, user));
            (of_place == "*" || of_place == place.name()) && of_user == user
        };
        let exception = self.exceptions.iter().rev().find(|(selector, _)| matches(selector));
        exception.map_or(&self.everywhere, |(_, outcome)| outcome)
    }
}

/// What is expected, in the file's order.
pub(crate) struct Table {
    /// Headings, each with the findings below it.
    rows: Vec<(String, Vec<Expectation>)>,
}

impl Table {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut rows: Vec<(String, Vec<Expectation>)> = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(heading) = line.strip_prefix("# ") {
                rows.push((heading.to_owned(), Vec::new()));
                continue;
            }
            let Some((heading, below)) = rows.last_mut() else { bail!("`{line}` comes before any heading") };
            let expectation = Expectation::parse(line).with_context(|| format!("`{line}`"))?;
            ensure!(
                heading.starts_with(&format!("{} ", expectation.finding.0)),
                "`{line}` is below {heading}"
            );
            below.push(expectation);
        }
        Ok(Self { rows })
    }

    /// A line for everything that was found and not expected, or expected and not found.
    pub(crate) fn differences(&self, found: &Findings) -> Vec<String> {
        let mut left = found.clone();
        let mut differences = Vec::new();
        for expectation in self.rows.iter().flat_map(|(_, below)| below) {
            let (row, name) = &expectation.finding;
            for place in Place::ALL {
                for user in USERS {
                    let wanted = expectation.at((place, user));
                    let got = left.remove(&(expectation.finding.clone(), (place, user)));
                    let got = got.as_deref().unwrap_or("(nothing)");
                    if wanted != "*" && !wanted.split('|').any(|one| one == got) {
                        let place = place.name();
                        differences.push(format!("{row} {name} at {place}/{user}: {got}, not {wanted}"));
                    }
                }
            }
        }
        let unexpected = left.iter().map(|(((row, name), (place, user)), outcome)| {
            format!("{row} {name} at {}/{user}: {outcome}, of which the table says nothing", place.name())
        });
        differences.extend(unexpected);
        differences
    }

    /// Rows that have findings, such as `S1`.
    pub(crate) fn covered(&self) -> impl Iterator<Item = &str> {
        self.rows.iter().flat_map(|(_, below)| below).map(|expectation| expectation.finding.0.as_str())
    }

    /// The documentation.
    pub(crate) fn to_markdown(&self, head: &str) -> Result<String> {
        let mut text = head.to_owned();
        for (heading, below) in &self.rows {
            write!(text, "\n### {heading}\n\n| probe |")?;
            Place::ALL.iter().try_for_each(|place| write!(text, " {} |", place.name()))?;
            text.push_str("\n|---|");
            Place::ALL.iter().for_each(|_| text.push_str("---|"));
            text.push('\n');
            for expectation in below {
                write!(text, "| {} |", expectation.finding.1)?;
                for place in Place::ALL {
                    let [root, user] = USERS.map(|user| shown(expectation.at((place, user))));
                    let both = if root == user { root } else { format!("{root} / {user}") };
                    write!(text, " {both} |")?;
                }
                text.push('\n');
            }
        }
        Ok(text)
    }
}

fn shown(outcome: &str) -> String {
    if outcome == "*" { "not promised".to_owned() } else { outcome.replace('|', " or ") }
}

#[test]
fn the_last_selector_that_matches_counts() -> Result<()> {
    let table = Table::parse("# S1 words\nS1 x = a; chroot = b; */1000 = c; chroot/1000 = d|e\n")?;
    let mut found = Findings::new();
    for place in Place::ALL {
        for user in USERS {
            let outcome = match (place, user) {
                (Place::Chroot, "0") => "b",
                (Place::Chroot, _) => "e",
                (_, "0") => "a",
                _ => "c",
            };
            found.insert((("S1".to_owned(), "x".to_owned()), (place, user)), outcome.to_owned());
        }
    }
    assert_eq!(table.differences(&found), Vec::<String>::new());
    let key = (("S1".to_owned(), "x".to_owned()), (Place::Root, "0"));
    found.insert(key.clone(), "b".to_owned());
    assert_eq!(table.differences(&found), ["S1 x at root/0: b, not a"]);
    found.remove(&key);
    found.insert((("S2".to_owned(), "y".to_owned()), (Place::Root, "0")), "z".to_owned());
    assert_eq!(table.differences(&found).len(), 2);
    assert!(table.to_markdown("")?.contains("| x | a / c | a / c | a / c | b / d or e | a / c |"));
    assert!(Table::parse("# S1 words\nS1 x = a; chrot = b\n").is_err());
    Ok(())
}
