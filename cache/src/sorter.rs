//! Sorting more than memory should hold.

use std::cmp::Ordering;
use std::fs::File;
use std::io;
use std::mem::take;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::held::Held;
use crate::scratch::Scratch;

/// What is held of a sorter's records at most, and what is read ahead of its runs, in bytes; less when much is at work.
#[cfg(not(test))]
const HELD_BYTES: usize = 4 << 20;
#[cfg(test)]
const HELD_BYTES: usize = 4 << 10;

/// Read ahead of one run at least and at most: the more there are, the less.
const AHEAD_BYTES_MIN: usize = 4 << 10;
const AHEAD_BYTES_MAX: usize = 256 << 10;

/// Length of a record, before it in a run.
const HEAD_BYTES: usize = 4;

/// Takes byte strings and gives them back in the order that `F` says, equal ones as they came. A few MiB are in memory, the
/// rest in sorted runs in a scratch file, which are merged.
pub struct Sorter<F> {
    compare: F,
    scratch: Scratch,
    held: Held,
    bytes: Vec<u8>,
    records: Vec<Place>,
    runs: Runs,
}

/// A record among the bytes held.
#[derive(Clone, Copy)]
struct Place {
    start: u32,
    len: u32,
}

impl Place {
    fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start as usize..][..self.len as usize]
    }
}

#[derive(Default)]
struct Runs {
    file: Option<File>,
    /// Where each ends; the next begins there.
    ends: Vec<u64>,
}

impl<F: Fn(&[u8], &[u8]) -> Ordering> Sorter<F> {
    /// None so far.
    pub fn new(scratch: Scratch, compare: F) -> Self {
        let held = Held::new(HELD_BYTES);
        Self { compare, scratch, held, bytes: Vec::new(), records: Vec::new(), runs: Runs::default() }
    }

    /// Takes a record, given in parts that follow each other.
    pub fn push(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let held = self.bytes.len() + (self.records.len() + 1) * size_of::<Place>();
        if !self.records.is_empty() && !self.held.grow(held + len) {
            self.write_run()?;
        }
        let Ok(len) = u32::try_from(len) else { return Err(io::ErrorKind::FileTooLarge.into()) };
        // No more are held than fit into one record's length.
        let start = self.bytes.len() as u32;
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
        self.records.push(Place { start, len });
        Ok(())
    }

    /// All of them.
    pub fn sorted(mut self) -> io::Result<Sorted<F>> {
        if self.runs.ends.is_empty() {
            self.sort();
        } else {
            if !self.records.is_empty() {
                self.write_run()?;
            }
            // Their room is for what is read ahead now.
            (self.bytes, self.records) = (Vec::new(), Vec::new());
            self.held.give_back();
        }
        let Self { compare, held, bytes, records, runs: Runs { file, ends }, .. } = self;
        let mut sorted =
            Sorted { compare, held, bytes, records, from: 0, file, ends, runs: Vec::new(), given: None };
        sorted.rewind()?;
        Ok(sorted)
    }

    fn sort(&mut self) {
        let Self { compare, bytes, records, .. } = self;
        records.sort_by(|a, b| compare(a.of(bytes), b.of(bytes)));
    }

    fn write_run(&mut self) -> io::Result<()> {
        self.sort();
        let Self { scratch, bytes, records, runs: Runs { file, ends }, .. } = self;
        let file = match file {
            Some(file) => file,
            None => file.insert(scratch.file()?),
        };
        let mut run = RunWriter::new(file, ends.last().copied().unwrap_or(0));
        records.drain(..).try_for_each(|record| run.record(record.of(bytes)))?;
        ends.push(run.finish()?);
        bytes.clear();
        Ok(())
    }
}

/// Writes a sorted run.
pub struct RunWriter<'a> {
    file: &'a File,
    /// Where what was not written yet belongs.
    at: u64,
    out: Vec<u8>,
}

impl<'a> RunWriter<'a> {
    /// From a place of a file on.
    pub fn new(file: &'a File, at: u64) -> Self {
        Self { file, at, out: Vec::new() }
    }

    /// Where the next record will be.
    pub fn at(&self) -> u64 {
        self.at + self.out.len() as u64
    }

    /// Adds the next record.
    pub fn record(&mut self, record: &[u8]) -> io::Result<()> {
        if !self.out.is_empty() && self.out.len() + HEAD_BYTES + record.len() > AHEAD_BYTES_MAX {
            self.write()?;
        }
        // What a sorter took is no longer than that.
        self.out.extend_from_slice(&(record.len() as u32).to_le_bytes());
        self.out.extend_from_slice(record);
        Ok(())
    }

    /// Where it ends.
    pub fn finish(mut self) -> io::Result<u64> {
        self.write()?;
        Ok(self.at)
    }

    fn write(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.out, self.at)?;
        self.at += self.out.len() as u64;
        self.out.clear();
        Ok(())
    }
}

/// What a [`Sorter`] gives back.
pub struct Sorted<F> {
    compare: F,
    held: Held,
    /// When there is but what was held, and which of it comes next.
    bytes: Vec<u8>,
    records: Vec<Place>,
    from: usize,
    file: Option<File>,
    /// Where each run ends.
    ends: Vec<u64>,
    /// By their records, the least one last.
    runs: Vec<Run>,
    /// Whose record was given last.
    given: Option<Run>,
}

impl<F: Fn(&[u8], &[u8]) -> Ordering> Sorted<F> {
    /// Begins with the first record again.
    pub fn rewind(&mut self) -> io::Result<()> {
        self.from = 0;
        self.given = None;
        self.runs.clear();
        let mut at = 0;
        let ahead = match self.ends.len() {
            0 => 0,
            runs => self.held.grow_towards(runs * AHEAD_BYTES_MAX) / runs,
        };
        let ahead = ahead.clamp(AHEAD_BYTES_MIN, AHEAD_BYTES_MAX);
        for order in 0..self.ends.len() {
            let end = self.ends[order];
            self.go_on(Run { order, at, end, ahead, ..Run::default() })?;
            at = end;
        }
        Ok(())
    }

    /// The next record.
    #[expect(clippy::should_implement_trait, reason = "the record is lent")]
    pub fn next(&mut self) -> io::Result<Option<&[u8]>> {
        if self.file.is_none() {
            let place = self.records.get(self.from);
            self.from += usize::from(place.is_some());
            return Ok(place.map(|place| place.of(&self.bytes)));
        }
        if let Some(run) = self.given.take() {
            self.go_on(run)?;
        }
        self.given = self.runs.pop();
        Ok(self.given.as_ref().map(Run::record))
    }

    /// Writes what is left to a file, from `at` on: to go on later in little memory.
    pub fn write_rest(&mut self, file: &File, at: u64) -> io::Result<Run> {
        let mut run = RunWriter::new(file, at);
        while let Some(record) = self.next()? {
            run.record(record)?;
        }
        Ok(Run::new(at, run.finish()?, AHEAD_BYTES_MIN))
    }

    /// Puts a run where its next record belongs, away when it has none.
    fn go_on(&mut self, mut run: Run) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        if !run.advance(file)? {
            return Ok(());
        }
        let comes_later = |other: &Run| {
            (self.compare)(other.record(), run.record()).then(other.order.cmp(&run.order)).is_gt()
        };
        // Most of what is pushed is nearly in order: then a run goes on as the least.
        let at = match self.runs.last() {
            Some(last) if !comes_later(last) => self.runs.partition_point(comes_later),
            _ => self.runs.len(),
        };
        self.runs.insert(at, run);
        Ok(())
    }
}

/// A sorted run in a file that is being read.
#[derive(Default)]
pub struct Run {
    /// Its place among all: of equal records, that of an earlier run came earlier.
    order: usize,
    /// What was read ahead, where it goes on there, and the record at hand.
    buffer: Vec<u8>,
    from: usize,
    record: Range<usize>,
    /// What is left in the file.
    at: u64,
    end: u64,
    /// Bytes to read at once.
    ahead: usize,
}

impl Run {
    /// The records between two places of a file, to be read `ahead` bytes at once.
    pub fn new(at: u64, end: u64, ahead: usize) -> Self {
        Self { at, end, ahead, ..Self::default() }
    }

    /// The record that was last moved on to.
    pub fn record(&self) -> &[u8] {
        &self.buffer[self.record.clone()]
    }

    /// Where in the file it ends.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Moves on to the next record; false when there is none.
    pub fn advance(&mut self, file: &File) -> io::Result<bool> {
        if self.from == self.buffer.len() && self.at == self.end {
            return Ok(false);
        }
        self.fill(file, HEAD_BYTES)?;
        let head = self.buffer[self.from..][..HEAD_BYTES].try_into().expect("four bytes");
        let len = u32::from_le_bytes(head) as usize;
        self.fill(file, HEAD_BYTES + len)?;
        let start = self.from + HEAD_BYTES;
        self.record = start..start + len;
        self.from = self.record.end;
        Ok(true)
    }

    /// Reads until `len` bytes follow.
    fn fill(&mut self, file: &File, len: usize) -> io::Result<()> {
        let known = self.buffer.len() - self.from;
        if known >= len {
            return Ok(());
        }
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let more = left.min((len - known).max(self.ahead));
        if known + more < len {
            // Not what was written.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.buffer.drain(..take(&mut self.from));
        self.buffer.resize(known + more, 0);
        file.read_exact_at(&mut self.buffer[known..], self.at)?;
        self.at += more as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::held::{Budget, LEAST_BYTES};

    fn all<F: Fn(&[u8], &[u8]) -> Ordering>(sorter: Sorter<F>) -> Vec<Vec<u8>> {
        let mut sorted = sorter.sorted().unwrap();
        let mut all = Vec::new();
        while let Some(record) = sorted.next().unwrap() {
            all.push(record.to_vec());
        }
        assert_eq!(sorted.next().unwrap(), None);
        sorted.rewind().unwrap();
        for record in &all[..all.len() / 2] {
            assert_eq!(sorted.next().unwrap(), Some(&record[..]));
        }
        sorted.rewind().unwrap();
        for record in &all {
            assert_eq!(sorted.next().unwrap(), Some(&record[..]));
        }
        assert_eq!(sorted.next().unwrap(), None);
        all
    }

    proptest! {
        #[test]
        fn it_sorts_as_a_stable_sort_does(
            records in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..40),
                    prop::collection::vec(0..3_u8, 0..3),
                    prop::collection::vec(any::<u8>(), 0..6000),
                ],
                0..400,
            ),
        ) {
            // Equal where the first byte is.
            let compare = |a: &[u8], b: &[u8]| a.first().cmp(&b.first());
            let mut sorter = Sorter::new(Scratch::for_test(), compare);
            for record in &records {
                let (head, rest) = record.split_at(record.len() / 2);
                sorter.push(&[head, rest]).unwrap();
                prop_assert!(sorter.bytes.len() <= HELD_BYTES.max(record.len()));
            }
            let mut expected = records;
            expected.sort_by(|a, b| compare(a, b));
            prop_assert!(all(sorter) == expected);
        }
    }

    #[test]
    fn where_nothing_is_free_it_holds_the_least_and_sorts_the_same() {
        static NOTHING: Budget = Budget::new(0);
        let mut sorter = Sorter::new(Scratch::for_test(), |a: &[u8], b: &[u8]| a.cmp(b));
        sorter.held = Held::of(&NOTHING, HELD_BYTES);
        let mut records: Vec<[u8; 4]> =
            (0..2000_u32).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
        for record in &records {
            sorter.push(&[record]).unwrap();
            assert!(sorter.bytes.len() + sorter.records.len() * size_of::<Place>() <= LEAST_BYTES);
        }
        records.sort_unstable();
        assert_eq!(all(sorter), records);
    }

    #[test]
    fn few_records_need_no_file() {
        let mut sorter = Sorter::new(Scratch::for_test(), |a: &[u8], b: &[u8]| a.cmp(b));
        for record in [b"b".as_slice(), b"", b"a"] {
            sorter.push(&[record]).unwrap();
        }
        assert!(sorter.runs.file.is_none());
        assert_eq!(all(sorter), [b"".as_slice(), b"a", b"b"]);
    }
}
