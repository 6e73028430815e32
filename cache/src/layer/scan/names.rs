//! The names in a directory.

use rustix::fs::FileType;

/// Names of one directory, taken out in byte order. All in one piece of memory: a directory may have very many.
#[derive(Default)]
pub(super) struct Names {
    bytes: Vec<u8>,
    /// Once sorted: last one first.
    left: Vec<Name>,
}

struct Name {
    start: u32,
    len: u16,
    /// What the directory says that it is.
    listed: FileType,
}

impl Name {
    fn of<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let start = self.start as usize;
        &bytes[start..start + usize::from(self.len)]
    }
}

impl Names {
    /// Adds a name. False when there is no room for it: all before take 4 GiB, or it is no name that a kernel gives.
    #[must_use]
    pub(super) fn add(&mut self, name: &[u8], listed: FileType) -> bool {
        let (Ok(start), Ok(len)) = (u32::try_from(self.bytes.len()), u16::try_from(name.len())) else {
            return false;
        };
        self.bytes.extend_from_slice(name);
        self.left.push(Name { start, len, listed });
        true
    }

    /// Once all are added.
    pub(super) fn sort(&mut self) {
        let Self { bytes, left } = self;
        left.sort_unstable_by(|a, b| b.of(bytes).cmp(a.of(bytes)));
    }

    /// The next name, and of what type the directory says that it is.
    pub(super) fn pop(&mut self) -> Option<(&[u8], FileType)> {
        let name = self.left.pop()?;
        Some((name.of(&self.bytes), name.listed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_in_byte_order_and_take_eight_bytes_beside_their_own() {
        let mut names = Names::default();
        for name in ["b", "a.b", "", "a", "\u{ff}", "a-b"] {
            assert!(names.add(name.as_bytes(), FileType::RegularFile));
        }
        names.sort();
        let taken: Vec<_> =
            std::iter::from_fn(|| names.pop().map(|(name, _)| String::from_utf8_lossy(name).into_owned()))
                .collect();
        assert_eq!(taken, ["", "a", "a-b", "a.b", "b", "\u{ff}"]);
        assert_eq!(size_of::<Name>(), 8);
    }
}
