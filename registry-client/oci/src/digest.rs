//! Digests of blobs, and hashing that ends in one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;
use sha2::digest::common::hazmat::SerializableState as _;

/// SHA-256 digest of a blob exactly as it is stored or transferred.
///
/// Printed as `sha256:<64 lower-case hex>` (image-spec, descriptor.md "Digests"). Other registered algorithms are
/// refused at parse time: nothing rbuild reads or writes uses them, and an unverifiable digest must not enter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The text has no `algorithm:` prefix or uses one that is not supported.
    #[error("`{0}` is not a digest: expected sha256:<64 hex digits>")]
    Algorithm(String),
    /// The encoded part is not exactly 64 lower-case hex digits.
    #[error("`{0}` is not a sha256 digest: expected 64 lower-case hex digits after the colon")]
    Encoding(String),
}

impl Digest {
    /// Wraps the 32 raw bytes of a SHA-256 sum.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Hashes bytes held in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The 32 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hex digits without the algorithm.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The first 12 hex digits, as Docker prints ids.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..6])
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let Some(encoded) = text.strip_prefix("sha256:") else {
            return Err(DigestError::Algorithm(text.chars().take(80).collect()));
        };
        let mut bytes = [0; 32];
        let lower_hex = encoded.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !lower_hex || hex::decode_to_slice(encoded, &mut bytes).is_err() {
            return Err(DigestError::Encoding(text.chars().take(80).collect()));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.short())
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Incremental SHA-256.
#[derive(Clone, Default)]
pub struct Sha256(sha2::Sha256);

impl Sha256 {
    /// Starts an empty hash.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Where the hash stands, to go on from another time: some hundred bytes, of this library's own making.
    pub fn state(&self) -> Vec<u8> {
        self.0.serialize().to_vec()
    }

    /// The hash that [`Self::state`] was asked of; `None` for bytes that are no such thing. What else they are is believed:
    /// keep them where nobody changes them unnoticed.
    pub fn resume(state: &[u8]) -> Option<Self> {
        let state = state.try_into().ok()?;
        sha2::Sha256::deserialize(state).ok().map(Self)
    }

    /// Ends the hash.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sha256")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_digest_of_nothing_is_the_known_one() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(Digest::of(b"").short(), "e3b0c44298fc");
        assert_eq!(EMPTY.parse(), Ok(Digest::of(b"")));
    }

    proptest! {
        #[test]
        fn a_hash_goes_on_from_where_it_stood(bytes: Vec<u8>, at: proptest::sample::Index) {
            let (first, second) = bytes.split_at(at.index(bytes.len() + 1));
            let mut hash = Sha256::new();
            hash.update(first);
            let mut resumed = Sha256::resume(&hash.state()).unwrap();
            resumed.update(second);
            prop_assert_eq!(resumed.finish(), Digest::of(&bytes));
        }
    }

    #[test]
    fn what_is_no_state_is_refused() {
        let state = Sha256::new().state();
        assert!(Sha256::resume(&state[1..]).is_none() && Sha256::resume(b"").is_none());
        // The place in the block that is being filled: there are 64.
        let none = (0..state.len()).filter(|at| {
            let mut bytes = state.clone();
            bytes[*at] = 255;
            Sha256::resume(&bytes).is_none()
        });
        assert!(none.count() >= 1);
    }

    #[test]
    fn anything_but_64_lower_case_hex_digits_is_refused() {
        let hex = &EMPTY["sha256:".len()..];
        for text in ["", "sha256", hex, &format!("sha512:{hex}"), &format!("SHA256:{hex}"), "md5:abc"] {
            assert!(matches!(text.parse::<Digest>(), Err(DigestError::Algorithm(_))), "{text}");
        }
        for text in [
            "sha256:",
            &EMPTY[..EMPTY.len() - 1],
            &format!("{EMPTY}0"),
            &EMPTY.to_uppercase().replace("SHA", "sha"),
            &format!("sha256:../{}", &hex[3..]),
            &format!(" {EMPTY}").trim_start().replace('e', "g"),
            &format!("{EMPTY}\n"),
        ] {
            assert!(matches!(text.parse::<Digest>(), Err(DigestError::Encoding(_))), "{text}");
        }
    }

    proptest! {
        #[test]
        fn printing_and_parsing_are_inverse(bytes: [u8; 32]) {
            let digest = Digest::from_bytes(bytes);
            prop_assert_eq!(digest.to_string().parse(), Ok(digest));
            let json = serde_json::to_string(&digest).unwrap();
            prop_assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
        }

        #[test]
        fn hashing_in_pieces_is_hashing_at_once(bytes: Vec<u8>, cut: prop::sample::Index) {
            let cut = cut.index(bytes.len() + 1);
            let mut hash = Sha256::new();
            hash.update(&bytes[..cut]);
            hash.update(&bytes[cut..]);
            prop_assert_eq!(hash.finish(), Digest::of(&bytes));
        }

        #[test]
        fn only_what_prints_the_same_parses(text in ".*") {
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert_eq!(digest.to_string(), text);
            }
        }
    }
}
