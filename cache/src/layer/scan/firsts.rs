//! Files with several names, between the first of them and the last.

use std::io;

use super::super::diff::{DiffEntry, Placed};
use super::super::slots::Slots;
use crate::scratch::Scratch;

/// What files with several names were found to be under the first. There may be as many as there are files: neither that
/// nor where it is stays in memory when it is much.
pub(super) struct Firsts {
    entries: Placed,
    of: Table,
}

impl Firsts {
    pub(super) fn new(scratch: &Scratch) -> io::Result<Self> {
        Ok(Self { entries: Placed::new(scratch), of: Table::new(scratch)? })
    }

    /// True when names of this inode may still come.
    pub(super) fn await_names_of(&self, inode: u64) -> io::Result<bool> {
        Ok(self.of.find(inode)?.1.is_some_and(|first| first.left > 0))
    }

    /// Notes the first of so many names of an inode.
    pub(super) fn note(&mut self, inode: u64, links: u64, entry: &DiffEntry) -> io::Result<()> {
        let at = self.entries.put(entry)?;
        let left = u32::try_from(links.saturating_sub(1)).unwrap_or(u32::MAX);
        self.of.put(First { inode, at, left })
    }

    /// What was noted of an inode that has one more name now, if it was.
    pub(super) fn of_next_name(&mut self, inode: u64) -> io::Result<Option<DiffEntry>> {
        let (number, Some(first @ First { left: 1.., .. })) = self.of.find(inode)? else { return Ok(None) };
        self.of.set(number, First { left: first.left - 1, ..first })?;
        self.entries.get(first.at).map(Some)
    }
}

/// Where the first name of an inode is noted.
#[derive(Clone, Copy)]
struct First {
    inode: u64,
    at: u64,
    /// Names that may still come: none of what goes when the table is made anew.
    left: u32,
}

const RECORD_BYTES: usize = 24;

impl First {
    fn encode(self) -> [u8; RECORD_BYTES] {
        let mut record = [0; RECORD_BYTES];
        record[..8].copy_from_slice(&self.inode.to_le_bytes());
        record[8..16].copy_from_slice(&self.at.to_le_bytes());
        record[16..20].copy_from_slice(&self.left.to_le_bytes());
        // That there is one.
        record[20] = 1;
        record
    }

    fn decode(record: &[u8; RECORD_BYTES]) -> Option<Self> {
        let number =
            |from: usize| u64::from_le_bytes(record[from..from + 8].try_into().expect("eight bytes"));
        let left = u32::from_le_bytes(record[16..20].try_into().expect("four bytes"));
        (record[20] == 1).then(|| Self { inode: number(0), at: number(8), left })
    }
}

/// By inode: a hash table with open addressing, no more than half full. What is in it stays until it is made anew.
struct Table {
    scratch: Scratch,
    /// A power of two.
    slots: Slots<RECORD_BYTES>,
    /// How many are not empty.
    full: usize,
}

/// Slots of the smallest table.
const SLOTS_MIN: usize = 16;

impl Table {
    fn new(scratch: &Scratch) -> io::Result<Self> {
        Ok(Self { scratch: scratch.clone(), slots: Slots::new(scratch, SLOTS_MIN)?, full: 0 })
    }

    /// The slot of an inode and what is there; that where it belongs when it has none.
    fn find(&self, inode: u64) -> io::Result<(usize, Option<First>)> {
        let count = self.slots.len();
        // The upper bits of this product are the well mixed ones (Knuth, TAOCP 6.4).
        let hash = inode.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (u64::BITS - count.trailing_zeros());
        let mut number = hash as usize;
        loop {
            match First::decode(&self.slots.get(number)?) {
                Some(other) if other.inode != inode => number = (number + 1) % count,
                found => return Ok((number, found)),
            }
        }
    }

    fn set(&mut self, number: usize, first: First) -> io::Result<()> {
        self.slots.set(number, first.encode())
    }

    fn put(&mut self, first: First) -> io::Result<()> {
        let (number, found) = self.find(first.inode)?;
        self.set(number, first)?;
        self.full += usize::from(found.is_none());
        if self.full > self.slots.len() / 2 { self.make_anew() } else { Ok(()) }
    }

    fn make_anew(&mut self) -> io::Result<()> {
        let is_awaited = |record: &[u8; RECORD_BYTES]| First::decode(record).filter(|first| first.left > 0);
        let mut awaited = 0;
        self.slots.each(|record| {
            awaited += usize::from(is_awaited(&record).is_some());
            Ok(())
        })?;
        // Full at twice as many at least.
        let slots = Slots::new(&self.scratch, (awaited * 4).next_power_of_two().max(SLOTS_MIN))?;
        let mut new = Self { scratch: self.scratch.clone(), slots, full: 0 };
        self.slots.each(|record| is_awaited(&record).map_or(Ok(()), |first| new.put(first)))?;
        *self = new;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::layer::{Change, Mtime};
    use crate::path::RelPath;

    proptest! {
        #[test]
        fn the_first_name_is_known_as_long_as_others_may_come(
            steps in prop::collection::vec((prop_oneof![0..8_u64, 0..300_u64, any::<u64>()], 0..4_u64), 0..1000),
        ) {
            let mut firsts = Firsts::new(&Scratch::for_test()).unwrap();
            let mut model: HashMap<u64, (DiffEntry, u64)> = HashMap::new();
            for (step, (inode, links)) in steps.into_iter().enumerate() {
                prop_assert_eq!(firsts.await_names_of(inode).unwrap(), model.contains_key(&inode));
                match model.get_mut(&inode) {
                    Some((entry, left)) => {
                        prop_assert_eq!(firsts.of_next_name(inode).unwrap(), Some(entry.clone()));
                        *left -= 1;
                        model.retain(|_, (_, left)| *left > 0);
                    }
                    None => {
                        prop_assert_eq!(firsts.of_next_name(inode).unwrap(), None);
                        let path = RelPath::new(format!("f{step}")).unwrap();
                        let entry = DiffEntry { path, change: Change::Whiteout, mtime: Mtime::default() };
                        firsts.note(inode, links, &entry).unwrap();
                        if links > 1 {
                            model.insert(inode, (entry, links - 1));
                        }
                    }
                }
                prop_assert!(firsts.of.full <= firsts.of.slots.len() / 2);
            }
        }
    }
}
