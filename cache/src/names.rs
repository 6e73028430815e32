//! The names in a directory.

use std::cmp::Ordering;
use std::fs::File;
use std::io;

use rustix::fs::FileType;

use crate::scratch::Scratch;
use crate::sorter::{Run, Sorted, Sorter};

/// More than this of a directory's names is put aside while what is in another below it is walked: the way there may be long.
const WAITING_BYTES_MAX: usize = 8 << 10;

/// Where the bits that say the type begin in a mode.
const TYPE_SHIFT: u32 = 12;

type Compare = fn(&[u8], &[u8]) -> Ordering;

/// Names of one directory as the kernel lists them.
pub struct Listed {
    /// Each record is a name and, last, the type.
    sorter: Sorter<Compare>,
    bytes: usize,
}

impl Listed {
    /// None so far. What is too much for memory goes to scratch files.
    pub fn new(scratch: &Scratch) -> Self {
        let compare: Compare = |a, b| name_and_type(a).0.cmp(name_and_type(b).0);
        Self { sorter: Sorter::new(scratch.clone(), compare), bytes: 0 }
    }

    /// Adds a name, and of what type the directory says that it is.
    pub fn add(&mut self, name: &[u8], listed: FileType) -> io::Result<()> {
        // With its place and type.
        self.bytes += name.len() + 9;
        self.sorter.push(&[name, &[(listed.as_raw_mode() >> TYPE_SHIFT) as u8]])
    }

    /// Once all are added.
    pub fn sorted(self) -> io::Result<Names> {
        Ok(Names(Left::Sorted { sorted: self.sorter.sorted()?, bytes: self.bytes }))
    }
}

/// The names that are left of one directory, taken out in byte order.
pub struct Names(Left);

enum Left {
    /// In a few MiB and what goes beyond them in a file of its own.
    Sorted { sorted: Sorted<Compare>, bytes: usize },
    /// In [`Aside`], from `start` on.
    Aside { run: Run, start: u64 },
}

impl Names {
    /// The next name, and of what type the directory says that it is. `aside` is where they are, if they were put aside.
    pub fn next(&mut self, aside: &Aside) -> io::Result<Option<(&[u8], FileType)>> {
        let record = match &mut self.0 {
            Left::Sorted { sorted, .. } => sorted.next()?,
            Left::Aside { run, .. } => match &aside.file {
                Some(file) if run.advance(file)? => Some(run.record()),
                _ => None,
            },
        };
        Ok(record.map(name_and_type))
    }
}

/// What waits of the directories on the way to the one at hand, so that one alone has many names in memory.
pub struct Aside {
    scratch: Scratch,
    /// Made when it is needed: of most trees nothing ever is put here.
    file: Option<File>,
    /// Where what comes next goes: those of an inner directory lie behind those of the ones that it is in.
    end: u64,
}

impl Aside {
    /// With nothing in it.
    pub fn new(scratch: Scratch) -> Self {
        Self { scratch, file: None, end: 0 }
    }

    /// Puts aside what is left of a directory, unless that is little. Of those that it is in, this was done before.
    pub fn put(&mut self, names: &mut Names) -> io::Result<()> {
        let Left::Sorted { sorted, bytes: WAITING_BYTES_MAX.. } = &mut names.0 else { return Ok(()) };
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(self.scratch.file()?),
        };
        let start = self.end;
        let run = sorted.write_rest(file, start)?;
        self.end = run.end();
        names.0 = Left::Aside { run, start };
        Ok(())
    }

    /// Takes the room back that the names of the innermost directory had, if any.
    pub fn free(&mut self, names: Names) {
        if let Left::Aside { start, .. } = names.0 {
            self.end = start;
        }
    }
}

fn name_and_type(record: &[u8]) -> (&[u8], FileType) {
    let (listed, name) = record.split_last().unwrap_or((&0, &[]));
    (name, FileType::from_raw_mode(u32::from(*listed) << TYPE_SHIFT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(names: &[&str]) -> Names {
        let mut listed = Listed::new(&Scratch::for_test());
        for name in names {
            listed.add(name.as_bytes(), FileType::RegularFile).unwrap();
        }
        listed.sorted().unwrap()
    }

    fn rest(names: &mut Names, aside: &Aside) -> Vec<String> {
        let mut rest = Vec::new();
        while let Some((name, listed)) = names.next(aside).unwrap() {
            assert_eq!(listed, FileType::RegularFile);
            rest.push(String::from_utf8_lossy(name).into_owned());
        }
        rest
    }

    #[test]
    fn names_come_in_byte_order() {
        let mut names = sorted(&["b", "a.b", "", "a", "\u{ff}", "a-b"]);
        assert_eq!(
            rest(&mut names, &Aside::new(Scratch::for_test())),
            ["", "a", "a-b", "a.b", "b", "\u{ff}"]
        );
    }

    #[test]
    fn the_type_goes_with_the_name_and_does_not_order() {
        let types = [FileType::Directory, FileType::Symlink, FileType::Unknown, FileType::CharacterDevice];
        let mut listed = Listed::new(&Scratch::for_test());
        for (at, listed_type) in types.into_iter().enumerate() {
            listed.add(&[b'd' - at as u8], listed_type).unwrap();
        }
        let (mut names, aside) = (listed.sorted().unwrap(), Aside::new(Scratch::for_test()));
        for listed_type in types.into_iter().rev() {
            assert_eq!(names.next(&aside).unwrap().unwrap().1, listed_type);
        }
    }

    #[test]
    fn many_names_wait_in_a_file_and_few_in_memory() {
        let mut aside = Aside::new(Scratch::for_test());
        let mut few = sorted(&["a", "b"]);
        aside.put(&mut few).unwrap();
        assert!(matches!(few.0, Left::Sorted { .. }) && aside.file.is_none());

        let many: Vec<String> = (0..2000).map(|at| format!("{at:05}")).collect();
        let mut dirs = [(); 3].map(|()| sorted(&many.iter().map(String::as_str).collect::<Vec<_>>()));
        let mut ends = Vec::new();
        for (skipped, names) in dirs.iter_mut().enumerate() {
            for _ in 0..skipped {
                names.next(&aside).unwrap();
            }
            aside.put(names).unwrap();
            assert!(matches!(names.0, Left::Aside { .. }));
            // The first of them is needed meanwhile, and the second time there is nothing to put.
            aside.put(names).unwrap();
            ends.push(aside.end);
        }
        for (skipped, mut names) in dirs.into_iter().enumerate().rev() {
            assert_eq!(aside.end, ends[skipped]);
            assert_eq!(rest(&mut names, &aside), many[skipped..]);
            aside.free(names);
        }
        assert_eq!(aside.end, 0);
    }
}
