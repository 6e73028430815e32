//! What there may be too many of to name all.

/// So many are kept: a message names a few.
const KEPT_MAX: usize = 1000;

/// The first of some things, and how many there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counted {
    first: Vec<String>,
    count: u64,
}

impl Counted {
    /// Adds one, whose text is made if it is kept.
    pub(super) fn add(&mut self, text: impl FnOnce() -> String) {
        if self.first.len() < KEPT_MAX {
            self.first.push(text());
        }
        self.count += 1;
    }

    /// Adds those of another that come after all.
    pub(super) fn append(&mut self, other: Self) {
        let room = KEPT_MAX - self.first.len();
        self.first.extend(other.first.into_iter().take(room));
        self.count += other.count;
    }

    /// In the order of texts.
    pub(super) fn sorted(mut self) -> Self {
        self.first.sort();
        self
    }

    /// Those that are kept.
    pub fn first(&self) -> &[String] {
        &self.first
    }

    /// How many there are beside so many of the first.
    pub fn more_than(&self, named: usize) -> u64 {
        self.count.saturating_sub(named as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_are_kept_and_all_are_counted() {
        let of = |numbers: std::ops::Range<usize>| {
            let mut counted = Counted::default();
            numbers.for_each(|number| counted.add(|| format!("{number:05}")));
            counted
        };
        let mut all = of(0..700);
        all.append(of(700..3000));
        assert_eq!(all, of(0..3000));
        assert_eq!((all.first().len(), all.more_than(5), all.more_than(3000)), (1000, 2995, 0));
        assert_eq!(all.first()[999], "00999");
        let mut turned = Counted::default();
        ["b", "a"].iter().for_each(|text| turned.add(|| (*text).to_owned()));
        assert_eq!(turned.sorted().first(), ["a", "b"]);
    }
}
