//! Id maps: which ids of the host a user may use (`/etc/subuid`, `/etc/subgid`) and the map made of them.

use crate::passwd;

/// A run of ids: `count` ids from `inside` on in the namespace are those from `outside` on outside of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// First id as seen in the namespace.
    pub inside: u32,
    /// First id as seen outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// Ids an image needs besides root: up to 65 535, where distributions put `nobody`.
pub(crate) const SUB_IDS_MIN: u32 = 65_535;
/// Extents one map takes; a kernel limit.
const EXTENTS_MAX: usize = 340;

/// The ranges (start, count) granted to a user, in file order. Lines of other users and broken ones are skipped.
pub(crate) fn parse_sub_ids(text: &str, uid: u32, name: Option<&str>) -> Vec<(u32, u32)> {
    let parse_line = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let is_ours = Some(owner) == name || passwd::parse_id(owner) == Some(uid);
        let start = passwd::parse_id(fields.next()?)?;
        let count = passwd::parse_id(fields.next()?)?;
        let is_whole = fields.next().is_none() && count > 0 && start.checked_add(count).is_some();
        (is_ours && is_whole).then_some((start, count))
    };
    text.lines().filter_map(parse_line).collect()
}

/// Maps 0 to `own` and 1… to the ranges; `None` when they are fewer ids than an image needs.
pub(crate) fn build_map(own: u32, ranges: &[(u32, u32)]) -> Option<Vec<IdRange>> {
    let mut map = vec![IdRange { inside: 0, outside: own, count: 1 }];
    let mut next = 1u32;
    for (outside, count) in ranges.iter().take(EXTENTS_MAX - 1) {
        let count = (*count).min(u32::MAX - next);
        if count == 0 {
            break;
        }
        map.push(IdRange { inside: next, outside: *outside, count });
        next += count;
    }
    (next > SUB_IDS_MIN).then_some(map)
}

/// Parses `/proc/<pid>/uid_map`.
pub(crate) fn parse_proc_map(text: &str) -> Vec<IdRange> {
    let parse_line = |line: &str| {
        let mut fields = line.split_whitespace().map(|field| field.parse::<u32>().ok());
        Some(IdRange { inside: fields.next()??, outside: fields.next()??, count: fields.next()?? })
    };
    text.lines().filter_map(parse_line).collect()
}

/// Whether this process lives in a user namespace with one user.
pub(crate) fn is_single_id() -> bool {
    // Unreadable means no /proc, and then nothing else works either.
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    matches!(parse_proc_map(&map)[..], [IdRange { count: 1, .. }])
}

/// A map as one word: `0=1000:1,1=100000:65536`.
pub(crate) fn describe(map: &[IdRange]) -> String {
    let ranges: Vec<String> =
        map.iter().map(|range| format!("{}={}:{}", range.inside, range.outside, range.count)).collect();
    ranges.join(",")
}

#[cfg(test)]
mod tests;
