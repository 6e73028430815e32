//! Records of one size, by number.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::scratch::Scratch;

/// Where they take more, they are in a file.
const HELD_BYTES: usize = if cfg!(test) { 1 << 10 } else { 1 << 20 };

/// Bytes read at once by who goes through all of a file's.
const AHEAD_BYTES: usize = 64 << 10;

/// So many records of `SIZE` bytes each, zeros at first. Few are in memory, many in a scratch file.
pub(super) struct Slots<const SIZE: usize>(Place<SIZE>);

enum Place<const SIZE: usize> {
    Memory(Vec<[u8; SIZE]>),
    File { file: File, count: usize },
}

impl<const SIZE: usize> Slots<SIZE> {
    pub(super) fn new(scratch: &Scratch, count: usize) -> io::Result<Self> {
        if count <= HELD_BYTES / SIZE {
            return Ok(Self(Place::Memory(vec![[0; SIZE]; count])));
        }
        let file = scratch.file()?;
        file.set_len(offset::<SIZE>(count))?;
        Ok(Self(Place::File { file, count }))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        match &self.0 {
            Place::Memory(records) => records.len(),
            Place::File { count, .. } => *count,
        }
    }

    /// The record of a number below [`Self::len`]; of another it is an error.
    pub(super) fn get(&self, number: usize) -> io::Result<[u8; SIZE]> {
        match &self.0 {
            Place::Memory(records) => records.get(number).copied().ok_or(io::ErrorKind::UnexpectedEof.into()),
            Place::File { file, .. } => {
                let mut record = [0; SIZE];
                file.read_exact_at(&mut record, offset::<SIZE>(number))?;
                Ok(record)
            }
        }
    }

    /// Puts a record in the place of the one that has its number, which is below [`Self::len`].
    pub(super) fn set(&mut self, number: usize, record: [u8; SIZE]) -> io::Result<()> {
        match &mut self.0 {
            Place::Memory(records) => {
                *records.get_mut(number).ok_or(io::ErrorKind::UnexpectedEof)? = record;
                Ok(())
            }
            Place::File { file, .. } => file.write_all_at(&record, offset::<SIZE>(number)),
        }
    }

    /// Shows `take` all in order.
    pub(super) fn each(&self, mut take: impl FnMut([u8; SIZE]) -> io::Result<()>) -> io::Result<()> {
        let (file, count) = match &self.0 {
            Place::Memory(records) => return records.iter().try_for_each(|record| take(*record)),
            Place::File { file, count } => (file, *count),
        };
        let mut ahead = vec![[0; SIZE]; AHEAD_BYTES / SIZE];
        let mut number = 0;
        while number < count {
            let some = (count - number).min(ahead.len());
            file.read_exact_at(ahead[..some].as_flattened_mut(), offset::<SIZE>(number))?;
            ahead[..some].iter().try_for_each(|record| take(*record))?;
            number += some;
        }
        Ok(())
    }
}

fn offset<const SIZE: usize>(number: usize) -> u64 {
    number as u64 * SIZE as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_many_are_the_same() {
        for (count, is_in_file) in [(0, false), (128, false), (129, true), (20_000, true)] {
            let mut slots = Slots::<8>::new(&Scratch::for_test(), count).unwrap();
            assert_eq!((slots.len(), matches!(slots.0, Place::File { .. })), (count, is_in_file));
            let mut model = vec![[0; 8]; count];
            for number in (0..count).step_by(3) {
                model[number] = (number as u64 + 1).to_le_bytes();
                slots.set(number, model[number]).unwrap();
            }
            assert!((0..count).all(|number| slots.get(number).unwrap() == model[number]));
            let mut all = Vec::new();
            slots
                .each(|record| {
                    all.push(record);
                    Ok(())
                })
                .unwrap();
            assert_eq!(all, model);
            assert!(slots.get(count).is_err());
        }
    }
}
