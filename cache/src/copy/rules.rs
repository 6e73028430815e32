//! The rules of a plan in the making.
//!
//! There may be one for each directory that a pattern matches, so they are bytes, and in a file when they are many. A path
//! that is planned has but the number of its rule.

use std::io;
use std::num::NonZeroU32;

use super::origins::{Origin, put_origin, read_origin};
use crate::encoded::{Encoded, ONE_AHEAD, ReadError};
use crate::layer::{FieldReader, ListingError, Stop, Stops, put_bytes};
use crate::scratch::Scratch;

/// Number of a rule, from one on. Four bytes even where there may be none: a plan in the making has one for each path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule(NonZeroU32);

impl Rule {
    /// The rule of this number.
    pub(super) fn of_number(number: u64) -> Option<Self> {
        u32::try_from(number).ok().and_then(NonZeroU32::new).map(Self)
    }

    /// From one on.
    pub(super) fn number(self) -> u32 {
        self.0.get()
    }
}

/// Where bytes are, by number.
///
/// ```text
/// rule = length origin
/// ```
pub(super) struct Rules {
    encoded: Encoded,
    stops: Stops,
    last: Option<(Origin, Rule)>,
}

impl Rules {
    /// None so far; many go to a file of `scratch`.
    pub(super) fn new(scratch: &Scratch) -> Self {
        Self { encoded: Encoded::new(scratch.clone()), stops: Stops::default(), last: None }
    }

    /// The number of a rule, which is a new one unless it was the last one too.
    pub(super) fn number_of(&mut self, origin: Origin) -> Result<Rule, ListingError> {
        let len = match &self.last {
            Some((last, rule)) if *last == origin => return Ok(*rule),
            last => last.as_ref().map_or(0, |(_, rule)| rule.number()),
        };
        let failed = |source| ListingError { doing: "write", source };
        let rule = Rule::of_number(u64::from(len) + 1);
        let rule = rule.ok_or_else(|| failed(io::ErrorKind::FileTooLarge.into()))?;
        let at = self.encoded.end();
        let mut bytes = Vec::new();
        put_origin(&mut bytes, b"", &origin);
        self.encoded.append(|out| put_bytes(out, &bytes)).map_err(failed)?;
        self.stops.note(Stop { index: len as usize, at, path: b"" }, self.encoded.start);
        self.last = Some((origin, rule));
        Ok(rule)
    }

    /// The rule of a number.
    pub(super) fn get(&self, rule: Rule) -> Result<Origin, ListingError> {
        self.read(rule).map_err(|error| ListingError { doing: "read", source: error.into() })
    }

    fn read(&self, rule: Rule) -> Result<Origin, ReadError> {
        let index = rule.number() as usize - 1;
        let stop = self.stops.before(|stop| stop.index <= index);
        let (first, at) = stop.map_or((0, self.encoded.start), |stop| (stop.index, stop.at));
        let mut input = self.encoded.read_from(at, ONE_AHEAD);
        for _ in first..index {
            input.read(|reader| reader.string().map(drop))?;
        }
        input.read(|reader| read_origin(&mut FieldReader::new(reader.string()?, 0), b""))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::origins::tests::some_origin;
    use super::*;

    proptest! {
        #[test]
        fn a_rule_is_found_by_its_number(origins in prop::collection::vec(some_origin(), 0..300)) {
            let mut rules = Rules::new(&Scratch::for_test());
            let mut numbers: Vec<Rule> = Vec::new();
            for (at, origin) in origins.iter().enumerate() {
                let number = rules.number_of(origin.clone()).unwrap();
                let is_last = at > 0 && origins[at - 1] == *origin;
                prop_assert_eq!(number.number(), numbers.last().map_or(0, |last| last.number()) + u32::from(!is_last));
                numbers.push(number);
            }
            for (number, origin) in numbers.iter().zip(&origins).rev() {
                prop_assert_eq!(&rules.get(*number).unwrap(), origin);
            }
            let last = numbers.last().map_or(0, |last| last.number());
            prop_assert!(rules.get(Rule::of_number(u64::from(last) + 1).unwrap()).is_err());
        }
    }

    #[test]
    fn many_rules_are_held_in_little() {
        let mut rules = Rules::new(&Scratch::for_test());
        for at in 0..5000 {
            let rule = rules.number_of(Origin::Inline(format!("content {at}").into_bytes())).unwrap();
            assert_eq!(rule.number(), at + 1);
            assert!(rules.encoded.held_bytes() + rules.stops.bytes() < 16 << 10);
        }
        let content = Origin::Inline(b"content 2500".to_vec());
        assert_eq!(rules.get(Rule::of_number(2501).unwrap()).unwrap(), content);
    }
}
