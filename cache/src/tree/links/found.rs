//! Links by what a file system says of files.

use std::cmp::Ordering;
use std::io;

use super::super::{Batch, NodeStore, TreeError};
use super::left::{Pair, pairs_by_name, split};
use super::{Link, Links, LinksWriter};
use crate::path::{RelPath, compare};
use crate::scratch::Scratch;
use crate::sorter::Sorter;

/// Bytes of device and inode.
const FILE_BYTES: usize = 16;

/// Takes names of files in any order, and finds out which are of one file.
pub struct FoundNames {
    names: Sorter<Pair>,
    scratch: Scratch,
}

impl FoundNames {
    /// None so far. What is too much for memory goes to files of `scratch`.
    pub fn new(scratch: &Scratch) -> Self {
        Self { names: Sorter::new(scratch.clone(), by_file), scratch: scratch.clone() }
    }

    /// Adds a name of the file with this device and inode.
    pub fn add(&mut self, (device, inode): (u64, u64), name: &RelPath) -> Result<(), TreeError> {
        let file = [&device.to_be_bytes(), &inode.to_be_bytes(), name.as_bytes()];
        self.names.push(&file).map_err(TreeError::Sort)
    }

    /// The links of all that have several. `nodes` gets the nodes.
    pub fn links(self, nodes: &dyn NodeStore) -> Result<Links, TreeError> {
        let mut made = Batch::new(nodes);
        let mut out = LinksWriter::new(&mut made);
        let mut sorted = self.sorted().map_err(TreeError::Sort)?;
        while let Some(pair) = sorted.next().map_err(TreeError::Sort)? {
            let (name, first) = split(pair);
            let [name, first] = [name, first].map(|path| RelPath::of_clean(path.to_vec()));
            out.push(&Link { name, first })?;
        }
        let links = out.finish()?;
        made.put()?;
        Ok(links)
    }

    fn sorted(self) -> io::Result<crate::sorter::Sorted<Pair>> {
        let mut pairs = pairs_by_name(&self.scratch);
        let mut names = self.names.sorted()?;
        let (mut file, mut first) = (Vec::new(), Vec::new());
        while let Some(record) = names.next()? {
            let (of, name) = record.split_at(FILE_BYTES);
            if file == of {
                pairs.push(&[name, b"\0", &first])?;
            } else {
                (file, first) = (of.to_vec(), name.to_vec());
            }
        }
        pairs.sorted()
    }
}

fn by_file(a: &[u8], b: &[u8]) -> Ordering {
    let ((a, a_name), (b, b_name)) = (a.split_at(FILE_BYTES), b.split_at(FILE_BYTES));
    a.cmp(b).then_with(|| compare(a_name, b_name))
}
