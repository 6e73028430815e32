//! `rbuild du --by`: what the store holds, added up by kind, image or stage.

use std::collections::BTreeMap;
use std::time::SystemTime;

use rbuild_cache::gc::{UsageEntry, UsageKind};
use serde_json::json;

use super::space::{age, aligned, moment, printable};
use crate::cli::ShareBy;
use crate::report::human;

/// Name of what belongs to no group.
const NOBODY: &str = "<none>";

/// Objects of one group.
#[derive(Debug, Default, PartialEq, Eq)]
struct Share {
    objects: u64,
    size_bytes: u64,
    /// Bytes that no other group has.
    own_bytes: u64,
    reclaimable_bytes: u64,
    used_unix_ns: i64,
}

/// The groups of `entries`, largest first. Only images share objects: what several hold counts for each of them.
fn shares(entries: &[UsageEntry], by: ShareBy) -> Vec<(String, Share)> {
    let mut groups: BTreeMap<&str, Share> = BTreeMap::new();
    for entry in entries {
        let names = match by {
            ShareBy::Kind => vec![kind(entry.kind)],
            ShareBy::Stage => vec![stage(entry)],
            ShareBy::Image if entry.images.is_empty() => vec![NOBODY],
            ShareBy::Image => entry.images.iter().map(String::as_str).collect(),
        };
        for name in &names {
            let share = groups.entry(name).or_default();
            share.objects += 1;
            share.size_bytes += entry.size_bytes;
            share.own_bytes += if names.len() == 1 { entry.size_bytes } else { 0 };
            share.reclaimable_bytes += if entry.is_reclaimable { entry.size_bytes } else { 0 };
            share.used_unix_ns = share.used_unix_ns.max(entry.used_unix_ns);
        }
    }
    let mut shares: Vec<_> = groups.into_iter().map(|(name, share)| (name.to_owned(), share)).collect();
    shares
        .sort_by(|(a_name, a), (b_name, b)| b.size_bytes.cmp(&a.size_bytes).then_with(|| a_name.cmp(b_name)));
    shares
}

/// As a table.
pub(super) fn table(entries: &[UsageEntry], by: ShareBy, now: SystemTime) -> String {
    let head = match by {
        ShareBy::Kind => "KIND",
        ShareBy::Image => "IMAGE",
        ShareBy::Stage => "STAGE",
    };
    let mut rows = vec![[head, "OBJECTS", "SIZE", "RECLAIMABLE"].map(str::to_owned).to_vec()];
    match by {
        ShareBy::Image => rows[0].push("UNIQUE".to_owned()),
        ShareBy::Kind | ShareBy::Stage => {}
    }
    rows[0].push("LAST ACCESSED".to_owned());
    for (name, share) in shares(entries, by) {
        let mut row = vec![
            printable(&name),
            share.objects.to_string(),
            human::size_precise(share.size_bytes),
            human::size_precise(share.reclaimable_bytes),
        ];
        if by == ShareBy::Image {
            row.push(human::size_precise(share.own_bytes));
        }
        row.push(age(share.used_unix_ns, now));
        rows.push(row);
    }
    aligned(&rows)
}

/// As one JSON object a line.
pub(super) fn json_lines(entries: &[UsageEntry], by: ShareBy) -> String {
    let lines = shares(entries, by).into_iter().map(|(name, share)| {
        let document = json!({
            "Name": name,
            "Objects": share.objects,
            "Size": share.size_bytes,
            "Reclaimable": share.reclaimable_bytes,
            "UniqueSize": share.own_bytes,
            "LastUsedAt": moment(share.used_unix_ns),
        });
        format!("{document}\n")
    });
    lines.collect()
}

/// Names of kinds, as `docker buildx du` has them.
pub(super) fn kind(kind: UsageKind) -> &'static str {
    match kind {
        UsageKind::Layer => "regular",
        UsageKind::Pulled => "pulled",
        UsageKind::Blob => "blob",
        UsageKind::Mount => "exec.cachemount",
    }
}

/// The stage of the step that made an object: what stands before the step's number in `[linux/arm64 build 2/4] RUN …`.
/// A Dockerfile of one stage does not name it: it is the first.
fn stage(entry: &UsageEntry) -> &str {
    let inside = entry.description.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    match inside.map(|(inside, _)| inside.rsplit_once(' ').map_or("stage-0", |(stage, _)| stage)) {
        Some(stage) if entry.kind == UsageKind::Layer => stage,
        _ => NOBODY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: UsageKind, size_bytes: u64, description: &str, images: &[&str]) -> UsageEntry {
        UsageEntry {
            id: format!("{kind:?}{size_bytes}"),
            kind,
            size_bytes,
            is_reclaimable: images.is_empty(),
            is_shared: images.len() > 1,
            usage_count: 1,
            created_unix_ns: 0,
            used_unix_ns: 5,
            description: description.to_owned(),
            images: images.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    fn store() -> Vec<UsageEntry> {
        vec![
            entry(UsageKind::Pulled, 1000, "app:1, web:1", &["app:1", "web:1"]),
            entry(UsageKind::Layer, 300, "[build 2/4] RUN make", &[]),
            entry(UsageKind::Layer, 40, "[linux/arm64 stage-1 1/1] COPY [a] /b", &["app:1"]),
            entry(UsageKind::Layer, 7, "[build 1/4] COPY . .", &[]),
            entry(UsageKind::Layer, 2, "[3/3] RUN date", &[]),
            entry(UsageKind::Mount, 500, "cache mount npm of [build 2/4] RUN make", &[]),
        ]
    }

    fn sums(by: ShareBy) -> Vec<(String, u64, u64, u64)> {
        let of = |share: Share| (share.size_bytes, share.own_bytes, share.reclaimable_bytes);
        let sums = shares(&store(), by).into_iter().map(|(name, share)| (name, of(share)));
        sums.map(|(name, (size, own, reclaimable))| (name, size, own, reclaimable)).collect()
    }

    #[test]
    fn an_object_counts_for_each_image_that_holds_it() {
        let named = |name: &str, size, own, reclaimable| (name.to_owned(), size, own, reclaimable);
        assert_eq!(
            sums(ShareBy::Image),
            [named("app:1", 1040, 40, 0), named("web:1", 1000, 0, 0), named("<none>", 809, 809, 809)]
        );
    }

    #[test]
    fn layers_belong_to_the_stage_of_their_step() {
        let named = |name: &str, size, own, reclaimable| (name.to_owned(), size, own, reclaimable);
        assert_eq!(
            sums(ShareBy::Stage),
            [
                named("<none>", 1500, 1500, 500),
                named("build", 307, 307, 307),
                named("linux/arm64 stage-1", 40, 40, 0),
                named("stage-0", 2, 2, 2),
            ]
        );
    }

    #[test]
    fn kinds_add_up_to_everything() {
        let total: u64 = sums(ShareBy::Kind).iter().map(|(_, size, ..)| size).sum();
        assert_eq!(total, 1849);
        let table = table(&store(), ShareBy::Kind, SystemTime::UNIX_EPOCH);
        assert!(
            table.starts_with("KIND              OBJECTS   SIZE   RECLAIMABLE   LAST ACCESSED\npulled"),
            "{table}"
        );
    }
}
