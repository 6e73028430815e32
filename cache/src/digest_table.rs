//! What is known of digests, in memory while they are few, else in a file.
//!
//! ```text
//! slot: taken, digest, value │ slot │ slot │ …      a digest is in the slot that its hash says, or in one of the next
//! ```
//!
//! A hash table of fixed slots of which at most three quarters are taken; it grows into one twice as large. What is in memory
//! does not depend on how many digests there are. Slots are chosen by a hash with a secret of its own: whoever makes trees
//! can make digests that begin alike.

use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::encoded::Encoded;
use crate::scratch::Scratch;

const DIGEST_BYTES: usize = 32;
/// In a slot that is taken.
const TAKEN: u8 = 1;
/// Slots of the first table: a power of two, as all are.
const SLOTS_MIN: usize = 16;
/// Bytes read at once by who looks for a digest: in the fullest table most are among so many slots.
const AHEAD_BYTES: usize = 512;
/// Slots that go at once into a larger table.
const MOVED_SLOTS: usize = if cfg!(test) { 16 } else { 4096 };

/// Values of `VALUE` bytes by digest. Nothing is ever taken out.
pub struct DigestTable<const VALUE: usize> {
    scratch: Scratch,
    held_bytes: usize,
    hasher: RandomState,
    slots: Slots,
    taken: usize,
}

/// Bytes of a power of two of slots, or of none.
enum Slots {
    Memory(Vec<u8>),
    File { file: File, count: usize },
}

/// Where a digest is or would be, and what it has there.
struct Place<const VALUE: usize> {
    number: usize,
    value: Option<[u8; VALUE]>,
}

impl<const VALUE: usize> DigestTable<VALUE> {
    const SLOT_BYTES: usize = 1 + DIGEST_BYTES + VALUE;

    /// Without digests and without memory. A table of more than `held_bytes` is in a file of `scratch`; one that
    /// grows is there twice, for a moment.
    pub fn new(scratch: &Scratch, held_bytes: usize) -> Self {
        const { assert!(Self::SLOT_BYTES <= AHEAD_BYTES) };
        let slots = Slots::Memory(Vec::new());
        Self { scratch: scratch.clone(), held_bytes, hasher: RandomState::new(), slots, taken: 0 }
    }

    /// What was put last for a digest.
    pub fn get(&self, digest: &[u8; DIGEST_BYTES]) -> io::Result<Option<[u8; VALUE]>> {
        if self.taken == 0 { Ok(None) } else { Ok(self.find(digest)?.value) }
    }

    /// Puts a value in place of the one that the digest has.
    pub fn put(&mut self, digest: &[u8; DIGEST_BYTES], value: [u8; VALUE]) -> io::Result<()> {
        self.change(digest, |_| Some(value)).map(drop)
    }

    /// Puts what `change` makes of the value that the digest has, if it makes something. Says if it did. What was in the
    /// table is in it after an error, too.
    pub fn change(
        &mut self,
        digest: &[u8; DIGEST_BYTES],
        change: impl FnOnce(Option<[u8; VALUE]>) -> Option<[u8; VALUE]>,
    ) -> io::Result<bool> {
        // Also for one that it has: the next may be new.
        if self.taken >= self.count() / 4 * 3 {
            self.grow()?;
        }
        let Place { number, value: before } = self.find(digest)?;
        let Some(value) = change(before) else { return Ok(false) };
        let mut slot = Vec::with_capacity(Self::SLOT_BYTES);
        slot.push(TAKEN);
        slot.extend_from_slice(digest);
        slot.extend_from_slice(&value);
        self.slots.write(number * Self::SLOT_BYTES, &slot)?;
        self.taken += usize::from(before.is_none());
        Ok(true)
    }

    /// How many slots there are.
    fn count(&self) -> usize {
        match &self.slots {
            Slots::Memory(bytes) => bytes.len() / Self::SLOT_BYTES,
            Slots::File { count, .. } => *count,
        }
    }

    /// Where a digest is looked for first among `count` slots. In a table twice as large that is at twice the number or
    /// beside it: so a table moves from its front to its end.
    fn home(&self, digest: &[u8], count: usize) -> usize {
        let hash = self.hasher.hash_one(digest);
        (hash >> (u64::BITS - count.ilog2())) as usize
    }

    /// In a table that has slots.
    fn find(&self, digest: &[u8; DIGEST_BYTES]) -> io::Result<Place<VALUE>> {
        let count = self.count();
        let home = self.home(digest, count);
        // From its home to the end, then from the start.
        for (first, end) in [(home, count), (0, home)] {
            let mut number = first;
            while number < end {
                let mut ahead = [0; AHEAD_BYTES];
                let some = (AHEAD_BYTES / Self::SLOT_BYTES).min(end - number);
                let slots =
                    self.slots.read(number * Self::SLOT_BYTES, some * Self::SLOT_BYTES, &mut ahead)?;
                for slot in slots.chunks_exact(Self::SLOT_BYTES) {
                    if slot[0] != TAKEN {
                        return Ok(Place { number, value: None });
                    }
                    if let Some(value) = slot[1..].strip_prefix(digest) {
                        let mut found = [0; VALUE];
                        found.copy_from_slice(value);
                        return Ok(Place { number, value: Some(found) });
                    }
                    number += 1;
                }
            }
        }
        Err(io::Error::other("no slot is free"))
    }

    /// Makes room for twice as many. After an error it is as it was.
    fn grow(&mut self) -> io::Result<()> {
        let (before, count) = (self.count(), (self.count() * 2).max(SLOTS_MIN));
        let bytes = count * Self::SLOT_BYTES;
        let mut larger = if bytes <= self.held_bytes {
            Slots::Memory(vec![0; bytes])
        } else {
            let file = self.scratch.file()?;
            file.set_len(bytes as u64)?;
            Slots::File { file, count }
        };
        // Those whose places are not among the slots that are written with them.
        let mut strays = Encoded::new(self.scratch.clone());
        let moved = MOVED_SLOTS.min(before);
        let mut ahead = vec![0; moved * Self::SLOT_BYTES];
        let mut written = vec![0; ahead.len() * 2];
        for first in (0..before).step_by(moved.max(1)) {
            let slots = self.slots.read(first * Self::SLOT_BYTES, ahead.len(), &mut ahead)?;
            written.fill(0);
            for slot in slots.chunks_exact(Self::SLOT_BYTES).filter(|slot| slot[0] == TAKEN) {
                let home = self.home(&slot[1..=DIGEST_BYTES], count).checked_sub(first * 2);
                let from = home.map_or(usize::MAX, |home| home * Self::SLOT_BYTES);
                let mut after =
                    written.get_mut(from..).unwrap_or_default().chunks_exact_mut(Self::SLOT_BYTES);
                match after.find(|free| free[0] != TAKEN) {
                    Some(free) => free.copy_from_slice(slot),
                    None => strays.append(|bytes| bytes.extend_from_slice(slot))?,
                }
            }
            larger.write(first * 2 * Self::SLOT_BYTES, &written)?;
        }
        let smaller = std::mem::replace(&mut self.slots, larger);
        self.settle(&strays).inspect_err(|_| self.slots = smaller)
    }

    /// Puts slots where they are found.
    fn settle(&mut self, strays: &Encoded) -> io::Result<()> {
        for at in (0..strays.end()).step_by(Self::SLOT_BYTES) {
            let slot = strays.bytes_at(at, Self::SLOT_BYTES)?;
            let mut digest = [0; DIGEST_BYTES];
            digest.copy_from_slice(&slot[1..=DIGEST_BYTES]);
            let number = self.find(&digest)?.number;
            self.slots.write(number * Self::SLOT_BYTES, &slot)?;
        }
        Ok(())
    }
}

impl Slots {
    /// So many bytes at a place; `ahead` has room for them.
    fn read<'a>(&'a self, at: usize, len: usize, ahead: &'a mut [u8]) -> io::Result<&'a [u8]> {
        match self {
            Self::Memory(bytes) => Ok(&bytes[at..at + len]),
            Self::File { file, .. } => {
                file.read_exact_at(&mut ahead[..len], at as u64)?;
                Ok(&ahead[..len])
            }
        }
    }

    fn write(&mut self, at: usize, slots: &[u8]) -> io::Result<()> {
        match self {
            Self::Memory(bytes) => {
                bytes[at..at + slots.len()].copy_from_slice(slots);
                Ok(())
            }
            Self::File { file, .. } => file.write_all_at(slots, at as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// Few, or digests that differ in the first or last byte only.
    fn digest() -> impl Strategy<Value = [u8; 32]> {
        prop_oneof![
            any::<[u8; 32]>(),
            any::<u8>().prop_map(|last| std::array::from_fn(|at| if at == 31 { last } else { 0 })),
            any::<u8>().prop_map(|first| std::array::from_fn(|at| if at == 0 { first } else { 0xff })),
        ]
    }

    fn slots_in_file(table: &DigestTable<2>) -> Option<usize> {
        matches!(table.slots, Slots::File { .. }).then(|| table.count())
    }

    proptest! {
        #[test]
        fn a_table_is_a_map(
            puts in prop::collection::vec((digest(), any::<[u8; 2]>()), 0..600),
            others in prop::collection::vec(digest(), 50),
            held_bytes in prop_oneof![Just(0), Just(4000), Just(usize::MAX)],
        ) {
            let mut table = DigestTable::new(&Scratch::for_test(), held_bytes);
            let mut model = HashMap::new();
            for (digest, value) in &puts {
                let mut before = None;
                let is_changed = table.change(digest, |found| {
                    before = found;
                    (found < Some(*value)).then_some(*value)
                });
                prop_assert_eq!(before, model.get(digest).copied());
                prop_assert_eq!(is_changed.unwrap(), before < Some(*value));
                if before < Some(*value) {
                    model.insert(*digest, *value);
                }
            }
            prop_assert_eq!(table.taken, model.len());
            prop_assert!(table.taken <= table.count() / 4 * 3);
            prop_assert!(slots_in_file(&table).is_none_or(|slots| slots * 35 > held_bytes));
            for digest in puts.iter().map(|(digest, _)| digest).chain(&others) {
                prop_assert_eq!(table.get(digest).unwrap(), model.get(digest).copied());
            }
        }
    }

    #[test]
    fn many_go_to_a_file_and_are_found_there() {
        let mut table = DigestTable::<2>::new(&Scratch::for_test(), 4 << 10);
        let digest = |number: u32| *blake3::hash(&number.to_le_bytes()).as_bytes();
        for number in 0..20_000_u32 {
            table.put(&digest(number), [0, 0]).unwrap();
            table.put(&digest(number), [number as u8, (number >> 8) as u8]).unwrap();
            assert_eq!(slots_in_file(&table).is_some(), number >= 47, "{number}");
        }
        assert_eq!(slots_in_file(&table), Some(1 << 15));
        for number in 0..40_000_u32 {
            let value = [number as u8, (number >> 8) as u8];
            assert_eq!(table.get(&digest(number)).unwrap(), (number < 20_000).then_some(value));
        }
    }
}
