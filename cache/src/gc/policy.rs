//! Which units to give up.

use std::collections::BTreeSet;
use std::time::Duration;

use super::filter::Filter;
use super::mark::{Class, Unit};
use super::usage::DiskUsage;

/// What may be given up, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// Keep what no image holds below this many bytes. Without this and `min_free_bytes`, everything goes that may.
    pub max_used_bytes: Option<u64>,
    /// Always leave this many bytes of what no image holds.
    pub reserved_bytes: u64,
    /// Give up until this many bytes are free on the file system.
    pub min_free_bytes: Option<u64>,
    /// Leave what was used within this time.
    pub keep: Duration,
    /// Only what meets all of these.
    pub filters: Vec<Filter>,
    /// Drop results of layers that images hold, too: those steps run again.
    pub all: bool,
    /// Leave build cache: give up only what no result names.
    pub unreferenced_only: bool,
}

/// Idle times that count as equal, in nanoseconds: within one, what is cheap to make again goes first.
const IDLE_CLASSES_NS: [i64; 4] =
    [3_600_000_000_000, 86_400_000_000_000, 7 * 86_400_000_000_000, 30 * 86_400_000_000_000];

impl Policy {
    /// The default budget after a build: what no image holds stays below `bytes`.
    pub fn budget(bytes: u64) -> Self {
        Self { max_used_bytes: Some(bytes), ..Self::default() }
    }

    /// True when the last use of something lies far enough back.
    pub(super) fn is_idle(&self, used: i64, now: i64) -> bool {
        self.keep.is_zero() || u128::try_from(now.saturating_sub(used)).unwrap_or(0) >= self.keep.as_nanos()
    }

    /// Chooses from `units` in the order of sacrifice until enough is given up: class, then how long unused, then the
    /// cost of making each byte again. Of those in `meant`, if that is said; `free` are the bytes free on the file system.
    pub(super) fn choose<'a>(
        &self,
        units: &'a [Unit],
        meant: Option<&BTreeSet<String>>,
        free: u64,
        now: i64,
    ) -> Vec<&'a Unit> {
        let total: u64 = units.iter().map(|unit| unit.bytes).sum();
        let over = self.max_used_bytes.map(|max| total.saturating_sub(max));
        let short = self.min_free_bytes.map(|min| min.saturating_sub(free));
        let wanted = match (over, short) {
            (None, None) => u64::MAX,
            (over, short) => over.max(short).unwrap_or(0),
        };
        // Reserved bytes stay whatever else is asked.
        let may_go =
            if self.reserved_bytes == 0 { u64::MAX } else { total.saturating_sub(self.reserved_bytes) };
        let is_meant = |unit: &&Unit| meant.is_none_or(|meant| meant.contains(&unit.object.to_string()));
        let mut candidates: Vec<&Unit> =
            units.iter().filter(|unit| self.is_idle(unit.used, now)).filter(is_meant).collect();
        if self.unreferenced_only {
            candidates.retain(|unit| unit.class != Class::Cached);
        }
        candidates.sort_by_key(|unit| {
            let idle = now.saturating_sub(unit.used);
            let idle_class = IDLE_CLASSES_NS.iter().filter(|limit| idle >= **limit).count();
            let cost_per_kib = unit.cost_ns / (unit.bytes / 1024 + 1);
            (unit.class, std::cmp::Reverse(idle_class), cost_per_kib, unit.used, unit.object)
        });
        let mut given_up: u64 = 0;
        let mut chosen = Vec::new();
        for unit in candidates {
            if given_up >= wanted {
                break;
            }
            if given_up.saturating_add(unit.bytes) > may_go {
                continue;
            }
            given_up = given_up.saturating_add(unit.bytes);
            chosen.push(unit);
        }
        chosen
    }

    /// Ids that meet all filters.
    pub(super) fn meant(&self, usage: &DiskUsage) -> BTreeSet<String> {
        let entries = usage.entries.iter().filter(|entry| self.filters.iter().all(|f| f.matches(entry)));
        entries.map(|entry| entry.id.clone()).collect()
    }
}
