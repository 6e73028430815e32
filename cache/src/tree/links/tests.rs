use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn groups_come_sorted_whatever_the_order(
        file_of in prop::collection::btree_map("(a/|b/|c/){0,3}[a-c.]{1,2}x", 0..8_u8, 0..40),
        turn in any::<bool>(),
    ) {
        let mut files: BTreeMap<u8, BTreeSet<RelPath>> = BTreeMap::new();
        for (path, file) in file_of {
            files.entry(file).or_default().insert(RelPath::clamp(path.as_bytes()));
        }
        let mut wanted: Vec<Vec<RelPath>> =
            files.into_values().map(|names| names.into_iter().collect()).collect();
        let mut given = wanted.clone();
        if turn {
            given.iter_mut().for_each(|group| group.reverse());
            given.reverse();
        }
        let groups = LinkGroups::new(given);
        wanted.retain(|group| group.len() > 1);
        wanted.sort();
        prop_assert_eq!(groups.len(), wanted.len());
        prop_assert_eq!(groups.groups().collect::<Vec<_>>(), wanted.clone());
        prop_assert_eq!(&groups, &LinkGroups::new(wanted.clone()));
        let names = LinkNames::of(&groups);
        prop_assert!(!names.have_equal());
        for group in wanted {
            for name in &group {
                prop_assert_eq!(names.file_of(name), Some(group[0].as_bytes()));
            }
        }
        prop_assert_eq!(names.file_of(&RelPath::clamp(b"none")), None);
    }
}
