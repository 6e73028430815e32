//! Identities of layers and layer stacks.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Digest, DigestError};

/// SHA-256 of the uncompressed tar of one layer (image-spec, config.md "Layer DiffID").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiffId(pub Digest);

/// Identity of a stack of layers (image-spec, config.md "Layer ChainID").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChainId(pub Digest);

impl ChainId {
    /// Folds a stack, base layer first. `None` for an empty stack.
    pub fn of(stack: &[DiffId]) -> Option<Self> {
        Self::each(stack).last()
    }

    /// Those of each layer of a stack with all below it, base layer first.
    pub fn each(stack: &[DiffId]) -> impl Iterator<Item = Self> {
        stack.iter().scan(None, |below, diff| {
            let chain = match below {
                Some(Self(below)) => Self(Digest::of(format!("{below} {diff}").as_bytes())),
                None => Self(diff.0),
            };
            *below = Some(chain);
            Some(chain)
        })
    }
}

macro_rules! digest_text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl FromStr for $name {
            type Err = DigestError;
            fn from_str(text: &str) -> Result<Self, DigestError> {
                text.parse().map(Self)
            }
        }
    };
}
digest_text!(DiffId);
digest_text!(ChainId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_of_two_hashes_the_printed_pair() {
        let (a, b) = (DiffId(Digest::of(b"a")), DiffId(Digest::of(b"b")));
        assert_eq!(ChainId::of(&[a]), Some(ChainId(a.0)));
        assert_eq!(ChainId::of(&[a, b]), Some(ChainId(Digest::of(format!("{a} {b}").as_bytes()))));
        assert_eq!(ChainId::of(&[]), None);
        let stack = [a, b, a, b];
        let prefixes = (1..=stack.len()).filter_map(|len| ChainId::of(&stack[..len]));
        assert!(ChainId::each(&stack).eq(prefixes));
    }
}
