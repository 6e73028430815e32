//! The entries of a directory.

use super::Entry;

/// Entries by name, in the order of the names' bytes: all of a directory, or those of a part of a large one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DirEntries(Vec<(Box<[u8]>, Entry)>);

impl DirEntries {
    /// Number of entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The entry of this name.
    pub fn get(&self, name: &[u8]) -> Option<&Entry> {
        self.place(name).ok().map(|at| &self.0[at].1)
    }

    /// Puts an entry in, in place of one of its name. Cheap only for a name that comes after all others.
    pub fn insert(&mut self, name: impl Into<Box<[u8]>>, entry: Entry) {
        let name = name.into();
        if self.0.last().is_none_or(|(last, _)| *last < name) {
            self.0.push((name, entry));
            return;
        }
        match self.place(&name) {
            Ok(at) => self.0[at].1 = entry,
            Err(at) => self.0.insert(at, (name, entry)),
        }
    }

    /// All in order, with their names.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&[u8], &Entry)> + ExactSizeIterator {
        self.0.iter().map(|(name, entry)| (&**name, entry))
    }

    /// Names in order.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.iter().map(|(name, _)| name)
    }

    /// Entries in the order of their names.
    pub fn values(&self) -> impl Iterator<Item = &Entry> {
        self.iter().map(|(_, entry)| entry)
    }

    /// The entry at a place, counted in order.
    pub fn at(&self, place: usize) -> Option<(&[u8], &Entry)> {
        self.0.get(place).map(|(name, entry)| (&**name, entry))
    }

    /// The place of a name, or that of the first one after it.
    fn place(&self, name: &[u8]) -> Result<usize, usize> {
        self.0.binary_search_by(|(at, _)| (**at).cmp(name))
    }
}

impl<N: Into<Box<[u8]>>> FromIterator<(N, Entry)> for DirEntries {
    fn from_iter<T: IntoIterator<Item = (N, Entry)>>(entries: T) -> Self {
        let mut all = Self::default();
        entries.into_iter().for_each(|(name, entry)| all.insert(name, entry));
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::tree::{Kind, Meta};

    fn entry(uid: u32) -> Entry {
        Entry { meta: Meta { uid, ..Meta::default() }, kind: Kind::Fifo }
    }

    proptest! {
        #[test]
        fn it_is_a_map_by_name(puts in prop::collection::vec(("[ab\u{ff}]{1,3}", 0..9_u32), 0..40)) {
            let named = || puts.iter().map(|(name, uid)| (name.as_bytes().to_vec(), entry(*uid)));
            let model: BTreeMap<Vec<u8>, Entry> = named().collect();
            let entries: DirEntries = named().collect();
            prop_assert!(entries.iter().eq(model.iter().map(|(name, entry)| (name.as_slice(), entry))));
            prop_assert_eq!(&entries, &model.clone().into_iter().collect());
            for (place, name) in model.keys().enumerate() {
                prop_assert_eq!(entries.place(name), Ok(place));
                prop_assert_eq!(entries.at(place), Some((name.as_slice(), &model[name])));
                prop_assert_eq!(entries.get(name), model.get(name));
            }
            prop_assert_eq!(entries.get(b"other"), None);
            prop_assert_eq!(entries.at(model.len()), None);
        }
    }
}
