//! Which name of a file with several is the first of them in the layer.
//!
//! An item says of each name which one is first there. It seldom is not in the layer too: when something else took its place,
//! or when an archive's directory is elsewhere, behind a symlink of the image, so that its name comes after others. Only
//! then anything is kept of the names of a file.

use std::cmp::Ordering;
use std::io;
use std::num::NonZeroU32;

use super::CopyError;
use super::by_path::{ByPath, InOrder};
use super::rules::Rule;
use super::view::{FirstName, Planned};
use crate::layer::ListingError;
use crate::path::{RelPath, compare};
use crate::scratch::Scratch;
use crate::sorter::Sorter;
use crate::tree::{Entry, Kind};

type Order = fn(&[u8], &[u8]) -> Ordering;

/// Something that was planned: in one item a rule and a place are one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) item: NonZeroU32,
    pub(super) rule: Rule,
    pub(super) path: RelPath,
}

impl Name {
    fn of(head: &[u8], path: &[u8]) -> Option<Self> {
        let (item, rule) = head.split_first_chunk()?;
        Some(Self {
            item: NonZeroU32::new(u32::from_be_bytes(*item))?,
            rule: Rule::of_number(u32::from_be_bytes(rule.try_into().ok()?).into())?,
            path: RelPath::of_clean(path.to_vec()),
        })
    }
}

/// Bytes of item and rule.
const HEAD_BYTES: usize = 8;

/// What says with the path which one it is.
fn head(item: NonZeroU32, rule: Rule) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..4].copy_from_slice(&item.get().to_be_bytes());
    head[4..].copy_from_slice(&rule.number().to_be_bytes());
    head
}

/// All planned names of files that are not the first in their item, whatever is there now.
///
/// ```text
/// record = head of the first name  head of the name  path of the first name 0 path
/// ```
pub(super) struct OtherNames {
    names: Sorter<Order>,
    scratch: Scratch,
}

impl OtherNames {
    /// None so far; many go to files of `scratch`.
    pub(super) fn new(scratch: &Scratch) -> Self {
        let order: Order = |a, b| match (Record::split(a), Record::split(b)) {
            (Some(a), Some(b)) => a.order(&b),
            (a, b) => a.is_some().cmp(&b.is_some()),
        };
        Self { names: Sorter::new(scratch.clone(), order), scratch: scratch.clone() }
    }

    /// Notes what is planned at a path, if it is one.
    pub(super) fn note(&mut self, path: &RelPath, planned: &Planned) -> Result<(), ListingError> {
        let Planned { entry: Entry { kind, .. }, origin, item, first, .. } = planned;
        let (Kind::File { .. }, Some(rule), Some(item), Some(first)) = (kind, origin, item, first) else {
            return Ok(());
        };
        let FirstName { path: first, rule: first_rule } = &**first;
        let (first_head, head) = (head(*item, *first_rule), head(*item, *rule));
        self.names
            .push(&[&first_head, &head, first.as_bytes(), b"\0", path.as_bytes()])
            .map_err(|source| ListingError { doing: "write", source })
    }

    /// Finds the first name in the layer of each file whose first name in its item it is not. `is_left` says whether what was
    /// planned will be there.
    pub(super) fn regroup(
        self,
        is_left: impl Fn(&Name) -> Result<bool, CopyError>,
    ) -> Result<FirstNames, CopyError> {
        let mut moved = ByPath::new(&self.scratch);
        let mut names = self.names.sorted().map_err(unread)?;
        let mut file: Option<File> = None;
        while let Some(record) = names.next().map_err(unread)? {
            let record = Record::split(record).ok_or_else(damaged)?;
            let name = Name::of(record.head, record.path).ok_or_else(damaged)?;
            let file = match &mut file {
                Some(file) if record.is_of(&file.first) => file,
                other => {
                    let first = Name::of(record.first_head, record.first).ok_or_else(damaged)?;
                    other.insert(File { has_first: is_left(&first)?, first, least: None })
                }
            };
            match &file.least {
                Some(least) => say(&mut moved, &name, least)?,
                // The same goes for all that come after it.
                None if file.has_first && file.first.path < name.path => {}
                None if is_left(&name)? => {
                    say(&mut moved, &name, &name.path)?;
                    if file.has_first {
                        say(&mut moved, &file.first, &name.path)?;
                    }
                    file.least = Some(name.path);
                }
                None => {}
            }
        }
        Ok(FirstNames(moved.in_order()?))
    }
}

/// One of the files, while its names come in order.
struct File {
    first: Name,
    /// What its item calls its first name is one.
    has_first: bool,
    /// The first one in the layer, when it is another and was found.
    least: Option<RelPath>,
}

fn say(moved: &mut ByPath, name: &Name, least: &RelPath) -> Result<(), ListingError> {
    moved.say(&name.path, [&head(name.item, name.rule), least.as_bytes()])
}

/// A record of [`OtherNames`].
struct Record<'a> {
    first_head: &'a [u8],
    head: &'a [u8],
    first: &'a [u8],
    path: &'a [u8],
}

impl<'a> Record<'a> {
    fn split(record: &'a [u8]) -> Option<Self> {
        let (first_head, rest) = record.split_at_checked(HEAD_BYTES)?;
        let (head, paths) = rest.split_at_checked(HEAD_BYTES)?;
        // No path has a zero byte.
        let end = paths.iter().position(|byte| *byte == 0)?;
        Some(Self { first_head, head, first: &paths[..end], path: &paths[end + 1..] })
    }

    fn is_of(&self, first: &Name) -> bool {
        self.first_head == head(first.item, first.rule) && self.first == first.path.as_bytes()
    }

    /// By file, then by path.
    fn order(&self, other: &Self) -> Ordering {
        let by_first = self.first_head.cmp(other.first_head).then_with(|| compare(self.first, other.first));
        by_first.then_with(|| compare(self.path, other.path))
    }
}

/// The first names in the layer of files that have several, for who asks in the order of paths.
pub(super) struct FirstNames(InOrder);

impl FirstNames {
    /// The first name of the file that is planned at a path, unless it is this one.
    pub(super) fn first_of(
        &mut self,
        path: &RelPath,
        planned: &Planned,
    ) -> Result<Option<RelPath>, ListingError> {
        let Planned { item: Some(item), origin: Some(rule), first, .. } = planned else { return Ok(None) };
        let head = head(*item, *rule);
        let Some(moved) = self.0.find(path, |said| said.starts_with(&head))? else {
            return Ok(first.as_ref().map(|first| first.path.clone()));
        };
        let least = RelPath::of_clean(moved[HEAD_BYTES..].to_vec());
        Ok((least != *path).then_some(least))
    }
}

fn unread(source: io::Error) -> ListingError {
    ListingError { doing: "read", source }
}

/// What was read is not what was written.
fn damaged() -> ListingError {
    unread(io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::tree::testing::{meta, path};
    use crate::tree::{ContentDigest, EMPTY_NODE};

    /// The item of a file, and its names in this, the first one first, though not always in the order of paths.
    type Linked = (u32, Vec<(RelPath, Rule)>);

    fn linked() -> impl Strategy<Value = Linked> {
        let name = ("[a-f]{1,2}(/[a-f]{1,2})?", 1..3_u64)
            .prop_map(|(at, rule)| (path(&at), Rule::of_number(rule).unwrap()));
        let names = prop::collection::vec(name, 1..6);
        (1..4_u32, names, any::<bool>()).prop_map(|(item, mut names, is_in_order)| {
            if is_in_order {
                names.sort_by(|a, b| a.0.cmp(&b.0));
            }
            (item, names)
        })
    }

    fn planned(item: u32, rule: Rule, first: Option<&(RelPath, Rule)>) -> Planned {
        let kind = Kind::File { size: 0, content: ContentDigest::of(b"") };
        let first = first.map(|(path, rule)| FirstName { path: path.clone(), rule: *rule });
        Planned {
            origin: Some(rule),
            item: NonZeroU32::new(item),
            first: first.map(Box::new),
            ..Planned::of(Entry { meta: meta(0o644), kind }, None)
        }
    }

    proptest! {
        #[test]
        fn a_file_has_the_first_of_the_names_that_are_left(
            files in prop::collection::vec(linked(), 0..150),
            dirs in prop::collection::vec("[a-f]{1,2}", 0..9),
        ) {
            let mut names = OtherNames::new(&Scratch::for_test());
            // What is planned at last, and of which file it is.
            let mut left: BTreeMap<RelPath, (Option<usize>, Planned)> = BTreeMap::new();
            let mut known = BTreeSet::new();
            for (file, (item, all)) in files.into_iter().enumerate() {
                // In one item a rule and a place are one file.
                let new = all.into_iter().filter(|(path, rule)| known.insert((item, rule.number(), path.clone())));
                let all: Vec<_> = new.collect();
                for (at, (path, rule)) in all.iter().enumerate() {
                    let planned = planned(item, *rule, all.first().filter(|_| at > 0));
                    names.note(path, &planned).unwrap();
                    left.insert(path.clone(), (Some(file), planned));
                }
            }
            for at in dirs {
                let entry = Entry { meta: meta(0o755), kind: Kind::Dir(*EMPTY_NODE) };
                left.insert(path(&at), (None, Planned::of(entry, None)));
            }
            let is_left = |name: &Name| Ok(left.get(&name.path).is_some_and(|(_, planned)| {
                (planned.item, planned.origin) == (Some(name.item), Some(name.rule))
            }));
            let mut firsts = names.regroup(is_left).unwrap();
            let mut expected: BTreeMap<usize, &RelPath> = BTreeMap::new();
            for (path, (file, planned)) in &left {
                let first = file.map(|file| *expected.entry(file).or_insert(path)).filter(|first| *first != path);
                prop_assert_eq!(firsts.first_of(path, planned).unwrap(), first.cloned(), "{}", path);
            }
        }
    }
}
