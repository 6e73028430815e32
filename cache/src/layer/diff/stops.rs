//! Where a list in the order of paths can be taken up.

/// From one stop to the next there are no more entries, so a look-up passes over half as many,
const ENTRIES: usize = 32;
/// nor bytes, but for the last entry: one with many xattrs is passed over once.
const BYTES: u64 = 4 << 10;
/// What all of them may take: beyond that there are half as many, twice as far apart.
#[cfg(not(test))]
const HELD_BYTES: usize = 1 << 20;
#[cfg(test)]
const HELD_BYTES: usize = 4 << 10;

/// An entry that can be read without those before it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stop<'a> {
    pub(crate) index: usize,
    /// Where in the bytes.
    pub(crate) at: u64,
    pub(crate) path: &'a [u8],
}

/// Some of the entries of a list, in order.
#[derive(Default)]
pub(crate) struct Stops {
    held: Vec<Held>,
    path_bytes: usize,
    /// They are so many times as far apart as at first, as a power of two.
    apart: u32,
}

struct Held {
    index: usize,
    at: u64,
    path: Box<[u8]>,
}

impl Held {
    fn as_stop(&self) -> Stop<'_> {
        Stop { index: self.index, at: self.at, path: &self.path }
    }
}

impl Stops {
    /// Takes down an entry if it is far enough from the one before, or from the first, which is at `start`. Says if it did.
    pub(crate) fn note(&mut self, stop: Stop<'_>, start: u64) -> bool {
        let (index, from) = self.held.last().map_or((0, start), |last| (last.index, last.at));
        let is_far =
            stop.index - index >= ENTRIES << self.apart || stop.at.saturating_sub(from) > BYTES << self.apart;
        if !is_far {
            return false;
        }
        self.held.push(Held { index: stop.index, at: stop.at, path: stop.path.into() });
        self.path_bytes += stop.path.len();
        if self.bytes() > HELD_BYTES && self.held.len() > 1 {
            let mut is_kept = false;
            self.held.retain(|_| {
                is_kept = !is_kept;
                !is_kept
            });
            self.path_bytes = self.held.iter().map(|held| held.path.len()).sum();
            self.apart += 1;
        }
        true
    }

    /// The last of those that come first for which `is_before` holds.
    pub(crate) fn before(&self, is_before: impl Fn(Stop<'_>) -> bool) -> Option<Stop<'_>> {
        let count = self.held.partition_point(|held| is_before(held.as_stop()));
        self.held[..count].last().map(Held::as_stop)
    }

    /// The first entry is gone, which is none of them.
    pub(crate) fn remove_first(&mut self) {
        self.held.iter_mut().for_each(|held| held.index -= 1);
    }

    /// Memory that they take.
    pub(crate) fn bytes(&self) -> usize {
        self.held.len() * size_of::<Held>() + self.path_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_up_passes_over_no_more_than_one_large_entry() {
        let mut stops = Stops::default();
        let paths: Vec<_> = (0..32).map(|at| format!("f{at:02}")).collect();
        for (index, path) in paths.iter().enumerate() {
            stops.note(Stop { index, at: index as u64 * (64 << 10), path: path.as_bytes() }, 0);
        }
        let last = stops.before(|_| true).unwrap();
        assert_eq!((last.index, stops.held.len()), (31, 31));
    }

    #[test]
    fn however_many_entries_there_are_stops_take_no_more() {
        let mut stops = Stops::default();
        for index in 0..200_000 {
            let path = format!("f{index:06}");
            stops.note(Stop { index, at: index as u64 * 70, path: path.as_bytes() }, 0);
            assert!(stops.bytes() <= HELD_BYTES);
        }
        assert!(stops.bytes() > HELD_BYTES / 4);
        let indexes: Vec<_> = stops.held.iter().map(|held| held.index).collect();
        let apart = ENTRIES << stops.apart;
        assert!(indexes.iter().zip(&indexes[1..]).all(|(a, b)| b - a <= apart), "{apart}: {indexes:?}");
    }
}
