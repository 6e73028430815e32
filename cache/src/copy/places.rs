//! Where in the layer the entries of an archive are.

use super::CopyError;
use super::origins::Rule;
use super::view::leads_to;
use crate::encoded::{Encoded, ONE_AHEAD, ReadError};
use crate::layer::{ListingError, Stop, Stops, put_bytes, put_number, put_path};
use crate::path::{RelPath, compare};
use crate::scratch::Scratch;
use crate::tree::{below, strip};

/// Where in the layer something of an archive is, and the rule for where its bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) path: RelPath,
    pub(super) rule: Rule,
}

/// The places of what an archive has, path by path.
pub(super) struct Places {
    /// The directories that lead to the last path.
    above: Vec<Above>,
    starts: Starts,
}

struct Above {
    /// In the archive.
    path: RelPath,
    place: Place,
    /// Not where its parent's place would have it; nor is the top.
    is_elsewhere: bool,
}

impl Places {
    /// Of an archive that goes to `top`.
    pub(super) fn of_top(top: Place, scratch: &Scratch) -> Result<Self, ListingError> {
        let above = Above { path: RelPath::root(), place: top, is_elsewhere: true };
        let mut starts = Starts::new(scratch);
        starts.push(&above.path, &above)?;
        Ok(Self { above: vec![above], starts })
    }

    /// Where the next path of the archive goes, if nothing is in its place behind a symlink; `None` for the root.
    pub(super) fn next(&mut self, path: &RelPath) -> Result<Option<Place>, CopyError> {
        if path.is_root() {
            return Ok(None);
        }
        let mut has_come_back = false;
        while let Some(left) = self.above.pop_if(|above| !leads_to(&above.path, path)) {
            has_come_back |= left.is_elsewhere;
        }
        let Some(above) = self.above.last().filter(|above| path.is_in(&above.path)) else {
            return Err(CopyError::NotDirectory { path: path.clone() });
        };
        if has_come_back && let Some(nearest) = self.above.iter().rfind(|above| above.is_elsewhere) {
            self.starts.push(path, nearest)?;
        }
        Ok(Some(Place { path: above.place.path.join(path.name()), rule: above.place.rule }))
    }

    /// The last path is a directory.
    pub(super) fn enter(&mut self, path: RelPath, place: Place) {
        self.above.push(Above { path, place, is_elsewhere: false });
    }

    /// The last path is a directory that is not where its parent's place would have it, but elsewhere behind a symlink of
    /// the image.
    pub(super) fn enter_elsewhere(&mut self, path: RelPath, place: Place) -> Result<(), ListingError> {
        let above = Above { path, place, is_elsewhere: true };
        self.starts.push(&above.path, &above)?;
        self.above.push(above);
        Ok(())
    }

    /// Where an earlier path that is no directory went.
    pub(super) fn of(&self, path: &RelPath) -> Result<Place, ListingError> {
        self.starts.place_of(path).map_err(|error| ListingError { doing: "read", source: error.into() })
    }
}

/// From which path on what is below a directory of the archive is below which place, up to the next one here. The image may
/// have as many symlinks as it has files.
///
/// ```text
/// start = shared-prefix suffix  length-of-directory  place  rule
/// ```
struct Starts {
    encoded: Encoded,
    stops: Stops,
    len: usize,
    last: Vec<u8>,
}

impl Starts {
    fn new(scratch: &Scratch) -> Self {
        let encoded = Encoded::new(scratch.clone());
        Self { encoded, stops: Stops::default(), len: 0, last: Vec::new() }
    }

    /// From this path on, which comes after all others, what is below `dir` is below its place. It leads to the path.
    fn push(&mut self, path: &RelPath, dir: &Above) -> Result<(), ListingError> {
        let Self { encoded, stops, len, last } = self;
        let (at, path) = (encoded.end(), path.as_bytes());
        let put = |bytes: &mut Vec<u8>| {
            put_path(bytes, last, path);
            put_number(bytes, dir.path.as_bytes().len() as u64);
            put_bytes(bytes, dir.place.path.as_bytes());
            put_number(bytes, dir.place.rule.number());
        };
        encoded.append(put).map_err(|source| ListingError { doing: "write", source })?;
        stops.note(Stop { index: *len, at, path }, 0);
        last.clear();
        last.extend_from_slice(path);
        *len += 1;
        Ok(())
    }

    fn place_of(&self, path: &RelPath) -> Result<Place, ReadError> {
        let stop = self.stops.before(|stop| compare(stop.path, path.as_bytes()).is_le());
        let Stop { at, path: first, .. } = stop.unwrap_or(Stop { index: 0, at: 0, path: b"" });
        // What its path shares with the one before, it shares with itself.
        let (mut input, mut start) = (self.encoded.read_from(at, ONE_AHEAD), first.to_vec());
        let (mut dir_len, mut place, mut rule) = (0, Vec::new(), 0);
        while input.at() < self.encoded.end() {
            input.read(|reader| reader.path(&mut start).map(drop))?;
            if compare(&start, path.as_bytes()).is_gt() {
                break;
            }
            input.read(|reader| {
                dir_len = reader.number()?;
                place.clear();
                place.extend_from_slice(reader.string()?);
                rule = reader.number()?;
                Ok(())
            })?;
        }
        let place = || {
            let dir = path.as_bytes().get(..usize::try_from(dir_len).ok()?)?;
            let below_dir = strip(path, &RelPath::new(dir).ok()?)?;
            Some(Place { path: below(&RelPath::new(place).ok()?, &below_dir), rule: Rule::of_number(rule)? })
        };
        place().ok_or(ReadError::Malformed("a place is none"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::iter::successors;

    use proptest::prelude::*;

    use super::*;

    /// What is at a path of an archive.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum What {
        File,
        Dir,
        /// A directory behind a symlink that leads to the place of this number.
        Elsewhere(u32),
    }

    /// What everything of an archive is, with the directories that lead to it.
    fn archive() -> impl Strategy<Value = BTreeMap<RelPath, What>> {
        let what = prop_oneof![
            2 => Just(What::File), 1 => Just(What::Dir), 2 => (2..9_u32).prop_map(What::Elsewhere)
        ];
        let path = prop::collection::vec("[ab.]{1,2}c", 1..7);
        prop::collection::vec((path, what), 0..100).prop_map(|entries| {
            let mut archive = BTreeMap::new();
            for (parts, what) in entries {
                let path = RelPath::new(parts.join("/")).unwrap();
                for above in successors(path.parent(), RelPath::parent).filter(|above| !above.is_root()) {
                    let there = archive.entry(above).or_insert(What::Dir);
                    if *there == What::File {
                        *there = What::Dir;
                    }
                }
                archive.entry(path).or_insert(what);
            }
            archive
        })
    }

    fn rule(number: u32) -> Rule {
        Rule::of_number(number.into()).unwrap()
    }

    /// Where a path is: below the place of the nearest directory above that is elsewhere.
    fn place_of(elsewhere: &BTreeMap<RelPath, Place>, path: &RelPath) -> Place {
        let mut above = successors(path.parent(), RelPath::parent);
        let (dir, Place { path: real, rule }) = above.find_map(|dir| elsewhere.get_key_value(&dir)).unwrap();
        Place { path: below(real, &strip(path, dir).unwrap()), rule: *rule }
    }

    proptest! {
        #[test]
        fn places_are_as_if_all_directories_elsewhere_were_remembered(archive in archive()) {
            let top = Place { path: RelPath::new("top").unwrap(), rule: rule(1) };
            let mut elsewhere = BTreeMap::from([(RelPath::root(), top.clone())]);
            let mut places = Places::of_top(top, &Scratch::for_test()).unwrap();
            prop_assert_eq!(places.next(&RelPath::root()).unwrap(), None);
            for (path, what) in &archive {
                let place = places.next(path).unwrap().unwrap();
                prop_assert_eq!(&place, &place_of(&elsewhere, path));
                match what {
                    What::File => {}
                    What::Dir => places.enter(path.clone(), place),
                    What::Elsewhere(number) => {
                        let real = RelPath::new(format!("real/{number}")).unwrap();
                        let place = Place { path: real, rule: rule(*number) };
                        elsewhere.insert(path.clone(), place.clone());
                        places.enter_elsewhere(path.clone(), place).unwrap();
                    }
                }
                let files = archive.range(..=path).filter(|(_, what)| **what == What::File);
                for (earlier, _) in files.rev().step_by(9) {
                    prop_assert_eq!(places.of(earlier).unwrap(), place_of(&elsewhere, earlier));
                }
            }
        }
    }

    #[test]
    fn what_is_in_no_directory_of_the_archive_has_no_place() {
        let path = |at: &str| RelPath::new(at).unwrap();
        let top = Place { path: RelPath::root(), rule: rule(1) };
        let mut places = Places::of_top(top.clone(), &Scratch::for_test()).unwrap();
        places.next(&path("a")).unwrap();
        places.enter(path("a"), Place { path: path("a"), ..top });
        places.next(&path("a/f")).unwrap();
        for at in ["a/f/x", "a/g/x", "b/x"] {
            assert!(matches!(places.next(&path(at)), Err(CopyError::NotDirectory { .. })), "{at}");
        }
    }
}
