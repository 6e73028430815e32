//! Nodes that a walk has still to visit.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::scratch::Scratch;
use crate::tree::NodeDigest;

const DIGEST_BYTES: usize = 32;
/// Half of what is held at most, and what a file takes and gives at once: 256 KiB.
const HALF: usize = if cfg!(test) { 4 } else { 8 << 10 };

/// The last one comes first. A few are in memory, and those below them in a file.
pub(in crate::store) struct Stack {
    scratch: Scratch,
    file: Option<File>,
    /// So many halves are in it.
    in_file: usize,
    held: Vec<[u8; DIGEST_BYTES]>,
}

impl Stack {
    /// Empty, and without a file until it is needed.
    pub(in crate::store) fn new(scratch: &Scratch) -> Self {
        Self { scratch: scratch.clone(), file: None, in_file: 0, held: Vec::new() }
    }

    pub(in crate::store) fn push(&mut self, node: NodeDigest) -> io::Result<()> {
        if self.held.len() == 2 * HALF {
            let file = match &self.file {
                Some(file) => file,
                None => self.file.insert(self.scratch.file()?),
            };
            file.write_all_at(self.held[..HALF].as_flattened(), offset(self.in_file))?;
            self.held.drain(..HALF);
            self.in_file += 1;
        }
        self.held.push(node.0);
        Ok(())
    }

    pub(in crate::store) fn pop(&mut self) -> io::Result<Option<NodeDigest>> {
        if let (true, Some(file), Some(last)) =
            (self.held.is_empty(), &self.file, self.in_file.checked_sub(1))
        {
            self.held.resize(HALF, [0; DIGEST_BYTES]);
            file.read_exact_at(self.held.as_flattened_mut(), offset(last))?;
            self.in_file = last;
        }
        Ok(self.held.pop().map(NodeDigest))
    }
}

fn offset(half: usize) -> u64 {
    (half * HALF * DIGEST_BYTES) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_came_last_goes_first(bursts in prop::collection::vec((0..40_usize, 0..40_usize), 1..20)) {
            let (mut stack, mut model) = (Stack::new(&Scratch::for_test()), Vec::new());
            for (number, (pushed, popped)) in (0..).zip(bursts) {
                for at in 0..pushed {
                    let node = NodeDigest([number, at as u8].repeat(16).try_into().unwrap());
                    stack.push(node).unwrap();
                    model.push(node);
                    prop_assert!(stack.held.len() <= 2 * HALF);
                }
                for _ in 0..popped {
                    prop_assert_eq!(stack.pop().unwrap(), model.pop());
                }
            }
        }
    }
}
