//! Directories an archive left out, and giving them the metadata they have in the merged view.

use std::fmt;
use std::iter::from_fn;
use std::mem::replace;
use std::os::fd::BorrowedFd;

use super::super::codec::put_number;
use super::super::diff::{Change, DiffEntry, LayerDiff, ListingError, Mtime};
use super::super::dirs::is_below;
use super::super::overlay::OverlayForm;
use super::create::Creator;
use super::finish::DirsLeft;
use super::{UnpackError, Unpacked};
use crate::encoded::{ALL_AHEAD, Encoded};
use crate::path::RelPath;
use crate::scratch::Scratch;
use crate::tree::Meta;

/// Which entries of a listing are directories that the archive does not list though others are below them.
///
/// There may be as many as files, so they are known by their places in the listing: for each, how many entries are
/// between the one before and it. That is a byte or two, and where it is much, in a file.
#[derive(Default)]
pub struct ImpliedDirs {
    gaps: Encoded,
    /// Index of the entry after the last one.
    next: usize,
}

impl ImpliedDirs {
    /// None so far.
    pub(super) fn new(scratch: &Scratch) -> Self {
        Self { gaps: Encoded::new(scratch.clone()), next: 0 }
    }

    /// Adds the entry with this index, which comes after all others.
    pub(super) fn push(&mut self, index: usize) -> Result<(), ListingError> {
        let gap = index - self.next;
        self.next = index + 1;
        self.gaps
            .append(|bytes| put_number(bytes, gap as u64))
            .map_err(|source| ListingError { doing: "write", source })
    }

    /// True when the archive lists every directory.
    pub fn is_empty(&self) -> bool {
        self.next == 0
    }

    /// The entries of their listing, and whether each is one of them.
    pub fn among(&self, diff: &LayerDiff) -> impl Iterator<Item = Result<(DiffEntry, bool), ListingError>> {
        let mut implied = self.indexes().peekable();
        diff.iter().enumerate().map(move |(at, entry)| {
            let entry = entry?;
            let next = implied.next_if(|index| index.as_ref().map_or(true, |index| *index == at));
            Ok((entry, next.transpose()?.is_some()))
        })
    }

    fn indexes(&self) -> impl Iterator<Item = Result<usize, ListingError>> {
        let (mut input, mut next) = (self.gaps.read_from(0, ALL_AHEAD), 0);
        from_fn(move || {
            if next == self.next {
                return None;
            }
            let gap = input.read(|reader| reader.number());
            Some(match gap {
                Ok(gap) => {
                    let index = next.saturating_add(usize::try_from(gap).unwrap_or(usize::MAX));
                    next = index.saturating_add(1);
                    Ok(index)
                }
                Err(error) => {
                    next = self.next;
                    Err(ListingError { doing: "read", source: error.into() })
                }
            })
        })
    }
}

impl fmt::Debug for ImpliedDirs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.indexes()).finish()
    }
}

/// Brings the implied directories of a layer in line with the layers below it.
///
/// An archive may list `usr/bin/tool` without `usr/bin`. In the layer directory `usr/bin` must exist, and overlayfs
/// shows the upper directory's owner and mode, so it must repeat those of the layers below. `lookup` gives the
/// metadata of the *directory* at a path in the layers below, `None` if there is no directory; it is asked for
/// directories that a lower one shows through, in order. Changes the directory and `unpacked.diff`, and empties
/// `unpacked.implied_dirs`. Call it as soon as the layers below are known, in any order of layers.
pub fn fix_implied(
    dir: BorrowedFd<'_>,
    form: OverlayForm,
    unpacked: &mut Unpacked,
    scratch: &Scratch,
    mut lookup: impl FnMut(&RelPath) -> Result<Option<(Meta, Mtime)>, Box<dyn std::error::Error + Send + Sync>>,
) -> Result<(), UnpackError> {
    let implied = replace(&mut unpacked.implied_dirs, ImpliedDirs::new(scratch));
    if implied.is_empty() {
        return Ok(());
    }
    let (mut diff, mut dirs) = (LayerDiff::new(scratch), DirsLeft::new(scratch));
    // The uppermost opaque directory on the way to the entry at hand, which may be that directory.
    let mut opaque: Option<RelPath> = None;
    for listed in implied.among(&unpacked.diff) {
        let (mut entry, is_implied) = listed?;
        opaque.take_if(|dir| !dir.is_root() && !is_below(entry.path.as_bytes(), dir.as_bytes()));
        if opaque.is_none() && matches!(entry.change, Change::Dir { opaque: true, .. }) {
            opaque = Some(entry.path.clone());
        }
        if is_implied && opaque.is_none() {
            let found = lookup(&entry.path)
                .map_err(|source| UnpackError::Lookup { path: entry.path.clone(), source })?;
            if let Some((meta, mtime)) = found {
                (entry.change, entry.mtime) = (Change::Dir { meta, opaque: false }, mtime);
                dirs.push(&entry)?;
            }
        }
        diff.push(&entry)?;
    }
    dirs.finish(&mut Creator::new(dir, form)?)?;
    unpacked.diff = diff;
    Ok(())
}

#[cfg(test)]
mod testing {
    use super::*;

    impl ImpliedDirs {
        /// Those of a listing for which this holds.
        pub(crate) fn of(diff: &LayerDiff, is_implied: impl Fn(&RelPath) -> bool) -> Self {
            let mut implied = Self::new(&Scratch::for_test());
            for (at, entry) in diff.entries().into_iter().enumerate() {
                if is_implied(&entry.path) {
                    implied.push(at).unwrap();
                }
            }
            implied
        }

        /// Their paths in the listing.
        pub(crate) fn paths(&self, diff: &LayerDiff) -> Vec<RelPath> {
            let marked = self.among(diff).map(Result::unwrap);
            marked.filter_map(|(entry, is_implied)| is_implied.then_some(entry.path)).collect()
        }
    }

    impl Clone for ImpliedDirs {
        fn clone(&self) -> Self {
            let mut cloned = Self::new(&Scratch::for_test());
            self.indexes().for_each(|index| cloned.push(index.unwrap()).unwrap());
            cloned
        }
    }

    impl PartialEq for ImpliedDirs {
        fn eq(&self, other: &Self) -> bool {
            self.indexes().map(Result::unwrap).eq(other.indexes().map(Result::unwrap))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn they_are_told_from_all_others(
            apart in prop::collection::vec(prop_oneof![4 => 0..3_usize, 1 => 0..300_usize], 0..40),
            again in 0..200_usize,
            rest in 0..10_usize,
        ) {
            let marks: Vec<bool> = std::iter::repeat_n(apart, again + 1)
                .flatten()
                .flat_map(|others| std::iter::repeat_n(false, others).chain([true]))
                .take(3000)
                .chain(std::iter::repeat_n(false, rest))
                .collect();
            let dir = |at: usize| DiffEntry {
                path: RelPath::new(format!("{at:04}")).unwrap(),
                change: Change::Dir { meta: Meta::default(), opaque: false },
                mtime: Mtime::default(),
            };
            let diff: LayerDiff = (0..marks.len()).map(dir).collect();
            let mut implied = ImpliedDirs::new(&Scratch::for_test());
            for (at, _) in marks.iter().enumerate().filter(|(_, is_implied)| **is_implied) {
                implied.push(at).unwrap();
            }
            prop_assert_eq!(implied.is_empty(), !marks.contains(&true));
            let among: Vec<(DiffEntry, bool)> = implied.among(&diff).map(Result::unwrap).collect();
            prop_assert!(among.into_iter().eq(marks.into_iter().enumerate().map(|(at, mark)| (dir(at), mark))));
        }
    }
}
