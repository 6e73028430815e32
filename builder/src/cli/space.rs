//! `rbuild du`, `rbuild prune` and `rbuild cache`: what the store holds, giving space back, checking it.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use rbuild_cache::gc::Filter;

use super::Problem;
use rbuild_oci::parse_bytes;

/// Show what the store holds
#[derive(Debug, Args)]
pub(crate) struct DuArgs {
    /// Show everything known of each object
    #[arg(short = 'v', long)]
    pub(crate) verbose: bool,
    /// Only what matches, as in rbuild prune
    #[arg(long = "filter", value_name = "FILTER")]
    pub(crate) filters: Vec<String>,
    /// Show as: table, json (one object a line), or pretty (as --verbose does)
    #[arg(long, value_name = "FORMAT", default_value = "table", hide_default_value = true)]
    pub(crate) format: String,
    /// Add up by: kind, image (what several hold counts for each) or stage
    #[arg(long, value_name = "WHAT", conflicts_with = "verbose")]
    pub(crate) by: Option<ShareBy>,
}

/// What `rbuild du` adds up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ShareBy {
    /// Layers, pulled layers, blobs, cache mounts.
    Kind,
    /// The images that hold it.
    Image,
    /// The stage whose step made it.
    Stage,
}

/// Remove build cache
///
/// What images in the store need stays, and so does whatever a running build may use.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  rbuild prune -f --filter until=48h
  rbuild prune -f --max-used-space 10GB")]
pub(crate) struct PruneArgs {
    /// Forget results of the images in the store, too: their steps run again
    #[arg(short = 'a', long)]
    pub(crate) all: bool,
    /// Do not ask
    #[arg(short = 'f', long)]
    pub(crate) force: bool,
    /// Show everything known of each object that is removed
    #[arg(long)]
    pub(crate) verbose: bool,
    /// Only what matches: until=DURATION or unused-for=DURATION (not used for so long), or a key (id, parents,
    /// description, type, inuse, mutable, immutable, shared, private) with =, != or ~=
    #[arg(long = "filter", value_name = "FILTER")]
    pub(crate) filters: Vec<String>,
    /// Keep at most this much build cache
    #[arg(long, value_name = "BYTES", conflicts_with = "keep_storage")]
    pub(crate) max_used_space: Option<String>,
    /// As --max-used-space
    #[arg(long, value_name = "BYTES", hide = true)]
    pub(crate) keep_storage: Option<String>,
    /// Always keep this much build cache
    #[arg(long, value_name = "BYTES")]
    pub(crate) reserved_space: Option<String>,
    /// Remove until this much is free on the disk
    #[arg(long, value_name = "BYTES")]
    pub(crate) min_free_space: Option<String>,
}

/// Look after the store
#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    #[command(subcommand)]
    pub(crate) command: CacheCommandArgs,
}

/// The commands of `rbuild cache`.
#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommandArgs {
    /// Check every byte in the store
    Fsck(FsckArgs),
    /// List and remove what RUN --mount=type=cache keeps
    Mounts {
        #[command(subcommand)]
        command: MountsCommandArgs,
    },
}

/// The commands of `rbuild cache mounts`.
#[derive(Debug, Subcommand)]
pub(crate) enum MountsCommandArgs {
    /// List cache mounts
    Ls {
        /// Show as: table, or json (one object a line)
        #[arg(long, value_name = "FORMAT", default_value = "table", hide_default_value = true,
              value_parser = ["table", "json"])]
        format: String,
    },
    /// Remove cache mounts that no step uses
    Rm {
        /// Identity as `ls` shows it, or the id that Dockerfiles name
        #[arg(value_name = "ID", required_unless_present = "all")]
        ids: Vec<String>,
        /// Remove all of them
        #[arg(short = 'a', long)]
        all: bool,
    },
}

/// Check every byte in the store
///
/// Blobs by their digest, layers against their lists, records, trees, and what belongs to nothing. Exit status 1 when
/// something is damaged and was not repaired.
#[derive(Debug, Args)]
pub(crate) struct FsckArgs {
    /// Move what is damaged aside, and drop what relies on it
    #[arg(long, conflicts_with = "rebuild")]
    pub(crate) repair: bool,
    /// Make the index anew from the layers, blobs and names that lie beside it; cached results are lost
    #[arg(long)]
    pub(crate) rebuild: bool,
}

/// What `rbuild du` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DuRequest {
    /// Show everything known.
    pub verbose: bool,
    /// One JSON object a line instead of a table.
    pub json: bool,
    /// Add up instead of listing.
    pub by: Option<ShareBy>,
    /// Only what was not used within this time.
    pub until: Duration,
    /// Only what meets all of these.
    pub filters: Vec<Filter>,
}

/// What `rbuild prune` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PruneRequest {
    /// Results of images, too.
    pub all: bool,
    /// Do not ask.
    pub force: bool,
    /// Show everything known of what is removed.
    pub verbose: bool,
    /// Leave what was used within this time.
    pub until: Duration,
    /// Only what meets all of these.
    pub filters: Vec<Filter>,
    /// Keep at most this many bytes.
    pub max_used_bytes: Option<u64>,
    /// Always keep this many bytes.
    pub reserved_bytes: u64,
    /// Remove until this many bytes are free.
    pub min_free_bytes: Option<u64>,
}

/// What `rbuild cache` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheRequest {
    /// List cache mounts.
    ListMounts {
        /// As JSON lines.
        json: bool,
    },
    /// Remove cache mounts.
    RemoveMounts {
        /// Which; empty means all.
        ids: Vec<String>,
    },
    /// Check the store.
    Fsck {
        /// And repair it.
        repair: bool,
        /// Make its index anew first.
        rebuild: bool,
    },
}

impl CacheRequest {
    pub(super) fn from_args(args: CacheArgs) -> Self {
        match args.command {
            CacheCommandArgs::Fsck(args) => Self::Fsck { repair: args.repair, rebuild: args.rebuild },
            CacheCommandArgs::Mounts { command: MountsCommandArgs::Ls { format } } => {
                Self::ListMounts { json: format == "json" }
            }
            CacheCommandArgs::Mounts { command: MountsCommandArgs::Rm { ids, all } } => {
                Self::RemoveMounts { ids: if all { Vec::new() } else { ids } }
            }
        }
    }
}

impl DuRequest {
    pub(super) fn from_args(args: &DuArgs) -> Result<Self, Problem> {
        let json = match args.format.as_str() {
            "table" | "pretty" => false,
            "json" => true,
            other => return Err(wrong("--format", other, "expected table, json or pretty")),
        };
        let (until, filters) = filters(&args.filters)?;
        // buildx's other word for it.
        let verbose = args.verbose || args.format == "pretty";
        Ok(Self { verbose, json, by: args.by, until, filters })
    }
}

impl PruneRequest {
    pub(super) fn from_args(args: &PruneArgs) -> Result<Self, Problem> {
        let (until, filters) = filters(&args.filters)?;
        let bytes = |flag, text: &Option<String>| match text {
            None => Ok(None),
            Some(text) => parse_bytes(text)
                .map(Some)
                .ok_or_else(|| wrong(flag, text, "expected a size such as 512MB or 10GB")),
        };
        let max_used = bytes("--max-used-space", &args.max_used_space)?;
        Ok(Self {
            all: args.all,
            force: args.force,
            verbose: args.verbose,
            until,
            filters,
            max_used_bytes: max_used.or(bytes("--keep-storage", &args.keep_storage)?),
            reserved_bytes: bytes("--reserved-space", &args.reserved_space)?.unwrap_or(0),
            min_free_bytes: bytes("--min-free-space", &args.min_free_space)?,
        })
    }
}

/// `until=DURATION`, which buildx also calls `unused-for=`, and all other conditions. Of several the longest counts: what
/// meets that one meets all.
fn filters(texts: &[String]) -> Result<(Duration, Vec<Filter>), Problem> {
    let (mut until, mut filters) = (Duration::ZERO, Vec::new());
    for text in texts {
        match text.strip_prefix("until=").or_else(|| text.strip_prefix("unused-for=")) {
            Some(duration) => {
                let unused = parse_duration(duration).ok_or_else(|| {
                    wrong("--filter", text, "expected a duration such as until=24h or until=90m")
                })?;
                until = until.max(unused);
            }
            None => {
                let filter = Filter::parse(text);
                filters.push(filter.map_err(|error| wrong("--filter", text, &error.to_string()))?);
            }
        }
    }
    Ok((until, filters))
}

fn wrong(flag: &'static str, value: &str, expected: &str) -> Problem {
    Problem::Value { flag, value: value.to_owned(), expected: expected.to_owned() }
}

/// A duration as Go writes it (`1h30m`, `90s`, `0.5h`), with `d` for days.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let is_of_number = |c: char| c.is_ascii_digit() || c == '.';
        let (number, unit) = rest.split_at(rest.find(|c: char| !is_of_number(c))?);
        let (unit, next) = unit.split_at(unit.find(is_of_number).unwrap_or(unit.len()));
        rest = next;
        let unit_ns: u128 = match unit {
            "ns" => 1,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60 * 1_000_000_000,
            "h" => 3600 * 1_000_000_000,
            "d" => 86_400 * 1_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return None;
        }
        let digits = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<u64>().ok() };
        // Beyond nanoseconds of a day digits say nothing.
        let fraction = &fraction[..fraction.len().min(15)];
        let part_ns = u128::from(digits(fraction)?) * unit_ns / 10_u128.pow(fraction.len() as u32);
        let ns = u128::from(digits(whole)?) * unit_ns + part_ns;
        let part = Duration::new(u64::try_from(ns / 1_000_000_000).ok()?, (ns % 1_000_000_000) as u32);
        total = total.checked_add(part)?;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_go_s_with_days() {
        let secs = |secs| Some(Duration::from_secs(secs));
        let cases = [("24h", secs(86_400)), ("1h30m", secs(5400)), ("7d", secs(604_800)), ("90s", secs(90))];
        for (text, duration) in cases {
            assert_eq!(parse_duration(text), duration, "{text:?}");
        }
        let halves =
            [("0.5h", 1_800_000), (".5s", 500), ("1.5h0.25m", 5_415_000), ("2.s", 2000), ("1500us", 1)];
        for (text, ms) in halves {
            assert_eq!(parse_duration(text).map(|found| found.as_millis()), Some(ms), "{text:?}");
        }
        assert_eq!(parse_duration("1500ns"), Some(Duration::from_nanos(1500)));
        for text in [
            ".h",
            "1.2.3h",
            ".",
            "0.5",
            "",
            "24",
            "h",
            "1x",
            "1h30",
            "99999999999999999999h",
            "9999999999999999999h",
        ] {
            assert_eq!(parse_duration(text), None, "{text:?}");
        }
    }

    #[test]
    fn of_several_times_the_longest_counts() {
        let found = |texts: &[&str]| {
            filters(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).unwrap().0.as_secs()
        };
        assert_eq!(found(&["until=1h", "until=24h", "until=2h"]), 86_400);
        assert_eq!(found(&["unused-for=0.5h"]), 1800);
        assert_eq!(found(&["unused-for=2h", "until=1h"]), 7200);
    }
}
