//! The packages of an image in a scratch file: there may be a hundred thousand.

use std::cmp::Ordering;
use std::fs::File;
use std::io;

use rbuild_cache::scratch::Scratch;
use rbuild_cache::sorter::{Run, RunWriter, Sorter};

use super::{Ecosystem, Package};

/// Bytes read ahead of the file.
const READ_BYTES: usize = 64 << 10;

type Compare = fn(&[u8], &[u8]) -> Ordering;

/// Brings packages into order.
pub(super) struct Collected {
    sorter: Sorter<Compare>,
    scratch: Scratch,
    /// How many there are.
    pub(super) count: usize,
}

/// Packages, sorted, each once.
#[derive(Debug)]
pub(super) struct Packages {
    file: File,
    end: u64,
}

impl Collected {
    /// None so far.
    pub(super) fn new(scratch: &Scratch) -> Self {
        Self { sorter: Sorter::new(scratch.clone(), Ord::cmp), scratch: scratch.clone(), count: 0 }
    }

    /// Takes a package.
    pub(super) fn add(&mut self, package: &Package) -> io::Result<()> {
        self.count += 1;
        // The fields have no zeros, so the order of the bytes is that of the packages.
        let fields = package.fields().map(str::as_bytes);
        let ecosystem = [package.ecosystem as u8];
        let parts: Vec<&[u8]> = std::iter::once(&ecosystem[..])
            .chain(fields.into_iter().flat_map(|field| [b"\0", field]))
            .collect();
        self.sorter.push(&parts)
    }

    /// All of them.
    pub(super) fn sorted(self) -> io::Result<Packages> {
        let mut sorted = self.sorter.sorted()?;
        let file = self.scratch.file()?;
        let mut run = RunWriter::new(&file, 0);
        let mut last = Vec::new();
        while let Some(record) = sorted.next()? {
            if last != record {
                run.record(record)?;
                last.clear();
                last.extend_from_slice(record);
            }
        }
        let end = run.finish()?;
        Ok(Packages { file, end })
    }
}

impl Packages {
    /// One after the other.
    pub(super) fn iter(&self) -> impl Iterator<Item = io::Result<Package>> {
        let mut run = Run::new(0, self.end, READ_BYTES);
        std::iter::from_fn(move || match run.advance(&self.file) {
            Ok(true) => Some(decoded(run.record())),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        })
    }
}

fn decoded(record: &[u8]) -> io::Result<Package> {
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let text = std::str::from_utf8(record).map_err(|_| malformed())?;
    let mut fields = text.split('\0');
    let number = fields.next().and_then(|field| field.bytes().next()).ok_or_else(malformed)?;
    let ecosystem = Ecosystem::ALL.into_iter().find(|known| *known as u8 == number).ok_or_else(malformed)?;
    let mut package = Package::new(ecosystem);
    for field in package.fields_mut() {
        fields.next().ok_or_else(malformed)?.clone_into(field);
    }
    Ok(package)
}
