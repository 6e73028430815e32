//! The hash of an archive that goes on from an earlier one is that of the whole archive, whatever was edited between them.

use std::io::Seek;

use proptest::prelude::*;
use rbuild_oci::Digest;

use super::packs::scratch;
use super::*;
use crate::layer::{DiffEntry, Hashed, LayerDiff, ListingCheck, Marks, Pack, PackWriter, Start, hash_from};
use crate::scratch::Scratch;
use crate::tree::{ContentDigest, Meta};

/// Name, size, what it is filled with, mode, time.
type File = (u8, usize, u8, u32, i64);

fn file() -> impl Strategy<Value = File> {
    // Around the distance of marks, which is a MiB, and around blocks of tar.
    let size = prop_oneof![
        Just(0),
        1..2000_usize,
        500_000..1_100_000_usize,
        Just(1 << 20),
        2_000_000..3_300_000_usize
    ];
    (0..20_u8, size, any::<u8>(), prop_oneof![Just(0o644), Just(0o755)], prop_oneof![Just(1), Just(-5)])
}

fn plan_of(files: &BTreeMap<u8, File>) -> CopyPlan {
    let mut plan = CopyPlan::default();
    for (name, size, fill, mode, secs) in files.values() {
        let bytes: Vec<u8> = (0..*size).map(|at| (at / 251) as u8 ^ fill).collect();
        let meta = Meta { mode: *mode, ..Meta::default() };
        let change = Change::File { meta, size: *size as u64, content: ContentDigest::of(&bytes) };
        let path = RelPath::new(format!("f{name:03}")).unwrap();
        plan.origins.push(&path, &Origin::Inline(bytes)).unwrap();
        plan.diff.push(&DiffEntry { path, change, mtime: Mtime { secs: *secs, nanos: 7 } }).unwrap();
    }
    plan
}

/// Packs a plan from where the marks end on; gives its pack, how many bytes were written, and the hash.
fn packed(plan: &CopyPlan, shared: &[Pack], marks: Marks, threads: usize) -> (Pack, u64, Hashed) {
    let mut file = tempfile::tempfile().unwrap();
    let mut writer = PackWriter::new(file.try_clone().unwrap(), scratch()).unwrap();
    let mut begun = 0;
    let emit = |start: &Start, out: &mut dyn std::io::Write| {
        begun = start.at;
        pack(plan, &Sources::default(), shared, &mut writer, start, out)
    };
    let hashed = hash_from(marks, emit, threads).unwrap();
    writer.finish().unwrap();
    file.rewind().unwrap();
    (Pack::open(file).unwrap(), hashed.size - begun, hashed)
}

fn whole_archive(plan: &CopyPlan) -> Vec<u8> {
    let mut tar = Vec::new();
    let mut writer = PackWriter::new(tempfile::tempfile().unwrap(), scratch()).unwrap();
    pack(plan, &Sources::default(), &[], &mut writer, &Start::default(), &mut tar).unwrap();
    tar
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn a_hash_that_goes_on_is_that_of_the_whole_archive(
        first in proptest::collection::vec(file(), 1..9),
        edits in proptest::collection::vec(file(), 0..3),
        removed in proptest::collection::vec(0..20_u8, 0..2),
        threads in 1..3_usize,
    ) {
        let mut files: BTreeMap<u8, File> = first.into_iter().map(|file| (file.0, file)).collect();
        let earlier = plan_of(&files);
        let (first_pack, _, hashed) = packed(&earlier, &[], Marks::default(), threads);
        prop_assert_eq!(hashed.diff_id.0, Digest::of(&whole_archive(&earlier)));
        let listing = ListingCheck([3; 16]);
        let marks = Marks::decode(&hashed.marks.encode(listing), listing).unwrap();
        prop_assert_eq!(&marks, &hashed.marks);

        files.extend(edits.into_iter().map(|file| (file.0, file)));
        files.retain(|name, _| !removed.contains(name));
        let plan = plan_of(&files);
        let shared: Vec<Pack> = match worth_sharing(&plan.diff, std::slice::from_ref(&first_pack)).unwrap()[0] {
            true => vec![first_pack],
            false => Vec::new(),
        };
        let same = plan.diff.entries().into_iter().zip(earlier.diff.entries()).take_while(|(entry, before)| entry == before).count();

        let tar = whole_archive(&plan);
        let held = marks_that_hold(marks, &earlier.diff, &plan.diff, &shared).unwrap();
        let (_, written, went_on) = packed(&plan, &shared, held, threads);
        prop_assert_eq!((went_on.diff_id.0, went_on.size), (Digest::of(&tar), tar.len() as u64));
        let (_, _, whole) = packed(&plan, &[], Marks::default(), threads);
        prop_assert_eq!(&went_on.marks, &whole.marks);
        // Nothing before the last mark of what is the same was made again.
        let is_shared = !shared.is_empty();
        let same_bytes = whole_archive(&plan_of(&files.into_iter().take(same).collect())).len() as u64 - 1024;
        let behind = if is_shared { same_bytes } else { 0 };
        prop_assert!(written <= tar.len() as u64 - (behind >> 20 << 20).saturating_sub(1 << 20), "{written} of {}", tar.len());
    }
}

#[test]
fn marks_count_for_their_listing_and_undamaged_only() {
    let files = (0..4).map(|name| (name, (name, 900_000, name, 0o644, 1))).collect();
    let plan = plan_of(&files);
    let (_, _, hashed) = packed(&plan, &[], Marks::default(), 1);
    let listing = ListingCheck([3; 16]);
    let bytes = hashed.marks.encode(listing);
    assert_eq!(hashed.marks.entries(), 4);
    assert_eq!(Marks::decode(&bytes, listing), Some(hashed.marks));
    assert_eq!(Marks::decode(&bytes, ListingCheck([4; 16])), None);
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        assert_eq!(Marks::decode(&damaged, listing), None, "byte {at}");
        assert_eq!(Marks::decode(&bytes[..at], listing), None, "cut at {at}");
    }
}

#[test]
fn made_directories_keep_the_time_of_the_last_layer_and_nothing_else_does() {
    let dir = |path: &str, mode: u32, secs: i64| DiffEntry {
        path: RelPath::new(path).unwrap(),
        change: Change::Dir { meta: Meta { mode, ..Meta::default() }, opaque: false },
        mtime: Mtime { secs, nanos: 5 },
    };
    let file = |path: &str, secs| {
        let content = ContentDigest::of(b"x");
        let change = Change::File { meta: Meta::default(), size: 1, content };
        DiffEntry { path: RelPath::new(path).unwrap(), change, mtime: Mtime { secs, nanos: 5 } }
    };
    let earlier =
        vec![dir("", 0o755, 1), dir("a", 0o755, 1), dir("a/b", 0o700, 1), file("a/f", 1), dir("c", 0o755, 1)];
    let entries = vec![
        dir("", 0o755, 9),
        dir("a", 0o755, 9),
        dir("a/b", 0o755, 9),
        dir("a/new", 0o755, 9),
        file("a/f", 9),
        dir("c", 0o755, 3),
        dir("d", 0o755, 9),
    ];
    let diff = keep_times(
        entries.into_iter().collect(),
        Mtime { secs: 9, nanos: 5 },
        &LayerDiff::from_iter(earlier),
        &Scratch::for_test(),
    )
    .unwrap();
    let times: Vec<i64> = diff.entries().into_iter().map(|entry| entry.mtime.secs).collect();
    assert_eq!(times, [1, 1, 9, 9, 9, 3, 9]);
}
