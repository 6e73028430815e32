//! What a layer says and the trees around it do not: which entries it has, and when they were changed.

use std::ops::RangeInclusive;

use super::diff::{LayerDiff, ListingError, Mtime};

/// Identity of the entries of a layer and of their times, but for the times of the step itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimesDigest(pub [u8; 32]);

impl TimesDigest {
    /// Of the layer of a step that `ran` then. Two runs of a step give the same, as long as they set no times; times that one
    /// sets (`touch -d`, an archive's, those of a COPY's files) are what it was for.
    pub fn of(diff: &LayerDiff, ran: &RangeInclusive<Mtime>) -> Result<Self, ListingError> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"rbuild/times/1");
        let mut bytes = Vec::new();
        for entry in diff.iter() {
            let entry = entry?;
            let path = entry.path.as_bytes();
            bytes.clear();
            bytes.extend_from_slice(&(path.len() as u64).to_le_bytes());
            bytes.extend_from_slice(path);
            match ran.contains(&entry.mtime) {
                true => bytes.push(0),
                false => {
                    bytes.push(1);
                    bytes.extend_from_slice(&entry.mtime.secs.to_le_bytes());
                    bytes.extend_from_slice(&entry.mtime.nanos.to_le_bytes());
                }
            }
            hasher.update(&bytes);
        }
        Ok(Self(*hasher.finalize().as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{Change, DiffEntry};
    use crate::path::RelPath;
    use crate::scratch::Scratch;

    fn of(entries: &[(&str, i64)]) -> TimesDigest {
        let mut diff = LayerDiff::new(&Scratch::for_test());
        for (path, secs) in entries {
            let path = RelPath::new(path.as_bytes()).unwrap();
            diff.push(&DiffEntry { path, change: Change::Whiteout, mtime: time(*secs) }).unwrap();
        }
        TimesDigest::of(&diff, &(time(100)..=time(200))).unwrap()
    }

    fn time(secs: i64) -> Mtime {
        Mtime { secs, nanos: 0 }
    }

    #[test]
    fn times_of_the_run_are_all_one_and_others_are_not() {
        let one = of(&[("a", 100), ("b", 7)]);
        assert_eq!(of(&[("a", 200), ("b", 7)]), one);
        for other in [
            of(&[("a", 99), ("b", 7)]),
            of(&[("a", 201), ("b", 7)]),
            of(&[("a", 100), ("b", 8)]),
            of(&[("a", 100), ("c", 7)]),
            of(&[("a", 100)]),
            of(&[]),
        ] {
            assert_ne!(other, one);
        }
    }
}
