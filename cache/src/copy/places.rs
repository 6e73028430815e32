//! Where in the layer the entries of an archive are.

use super::CopyError;
use super::rules::Rule;
use super::view::leads_to;
use crate::encoded::{Encoded, ONE_AHEAD, ReadError};
use crate::layer::{ListingError, Stop, Stops, put_number, put_path};
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
/// have as many symlinks as it has files, which lead to paths that are long and alike: where one directory is elsewhere and what
/// comes after it is not, as is mostly so, a place shares with the last but one what it begins with.
///
/// ```text
/// start = shared-prefix suffix  length-of-directory  shared-prefix suffix-of-place  rule
/// ```
struct Starts {
    encoded: Encoded,
    stops: Stops,
    len: usize,
    last: Vec<u8>,
    /// The last place but one, and the last: empty at a stop, where reading may begin.
    places: [Vec<u8>; 2],
}

impl Starts {
    fn new(scratch: &Scratch) -> Self {
        let encoded = Encoded::new(scratch.clone());
        Self { encoded, stops: Stops::default(), len: 0, last: Vec::new(), places: Default::default() }
    }

    /// From this path on, which comes after all others, what is below `dir` is below its place. It leads to the path.
    fn push(&mut self, path: &RelPath, dir: &Above) -> Result<(), ListingError> {
        let Self { encoded, stops, len, last, places } = self;
        let (at, path) = (encoded.end(), path.as_bytes());
        if stops.note(Stop { index: *len, at, path }, 0) {
            places.iter_mut().for_each(Vec::clear);
        }
        let place = dir.place.path.as_bytes();
        let put = |bytes: &mut Vec<u8>| {
            put_path(bytes, last, path);
            put_number(bytes, dir.path.as_bytes().len() as u64);
            put_path(bytes, &places[0], place);
            put_number(bytes, dir.place.rule.number().into());
        };
        encoded.append(put).map_err(|source| ListingError { doing: "write", source })?;
        last.clear();
        last.extend_from_slice(path);
        places.swap(0, 1);
        places[1].clear();
        places[1].extend_from_slice(place);
        *len += 1;
        Ok(())
    }

    fn place_of(&self, path: &RelPath) -> Result<Place, ReadError> {
        let stop = self.stops.before(|stop| compare(stop.path, path.as_bytes()).is_le());
        let Stop { at, path: first, .. } = stop.unwrap_or(Stop { index: 0, at: 0, path: b"" });
        // What its path shares with the one before, it shares with itself.
        let (mut input, mut start) = (self.encoded.read_from(at, ONE_AHEAD), first.to_vec());
        let (mut dir_len, mut places, mut rule) = (0, [Vec::new(), Vec::new()], 0);
        while input.at() < self.encoded.end() {
            input.read(|reader| reader.path(&mut start).map(drop))?;
            if compare(&start, path.as_bytes()).is_gt() {
                break;
            }
            dir_len = input.read(|reader| reader.number())?;
            places.swap(0, 1);
            input.read(|reader| reader.path(&mut places[1]).map(drop))?;
            rule = input.read(|reader| reader.number())?;
        }
        let [_, last] = places;
        let place = || {
            let dir = path.as_bytes().get(..usize::try_from(dir_len).ok()?)?;
            let below_dir = strip(path, &RelPath::new(dir).ok()?)?;
            Some(Place { path: below(&RelPath::new(last).ok()?, &below_dir), rule: Rule::of_number(rule)? })
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
    fn long_places_that_are_alike_take_little() {
        let top = Place { path: RelPath::new("top").unwrap(), rule: rule(1) };
        let mut places = Places::of_top(top.clone(), &Scratch::for_test()).unwrap();
        let real = |at: u32| Place {
            path: RelPath::new(format!("{}/d{at:05}", "l".repeat(2000))).unwrap(),
            rule: rule(2),
        };
        for at in 0..5000 {
            let (link, file) =
                (RelPath::new(format!("l{at:05}")).unwrap(), RelPath::new(format!("l{at:05}/f")).unwrap());
            places.next(&link).unwrap();
            places.enter_elsewhere(link, real(at)).unwrap();
            places.next(&file).unwrap();
            places.next(&RelPath::new(format!("l{at:05}f")).unwrap()).unwrap();
        }
        assert!(places.starts.encoded.len() < 1 << 20, "{}", places.starts.encoded.len());
        for at in (0..5000).step_by(77) {
            let file = RelPath::new(format!("l{at:05}/f")).unwrap();
            assert_eq!(places.of(&file).unwrap(), Place { path: real(at).path.join(b"f"), rule: rule(2) });
            let file = RelPath::new(format!("l{at:05}f")).unwrap();
            assert_eq!(
                places.of(&file).unwrap(),
                Place { path: top.path.join(file.as_bytes()), rule: rule(1) }
            );
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
