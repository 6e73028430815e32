//! Private keys in files, and what they sign.
//!
//! What ssh-keygen writes (`openssh-key-v1`) is read here, and PKCS#1 and PKCS#8 by the library that signs (ring, which TLS
//! brings anyway). Encrypted keys are not: who has a passphrase has an agent to type it into.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::rsa;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RsaEncoding, RsaKeyPair,
};

/// The largest file, as with BuildKit.
const FILE_BYTES_MAX: u64 = 100 << 10;
/// What a request to sign wants of an RSA key. Without either it wants SHA-1, which is not signed any more.
const RSA_SHA256: u32 = 2;
const RSA_SHA512: u32 = 4;

/// Why a file's key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It cannot be read.
    #[error("it cannot be read")]
    Read(#[source] std::io::Error),
    /// It has no private key.
    #[error("it is neither an agent's socket nor a private key")]
    NoKey,
    /// It is protected by a passphrase.
    #[error("it is encrypted")]
    Encrypted,
    /// It is of a kind that is not read or signed with.
    #[error("{0} is not supported")]
    Kind(String),
    /// Its parts do not make a key.
    #[error("it is damaged")]
    Damaged,
}

/// A private key.
pub(super) struct Key {
    /// The public key, as agents tell it.
    pub(super) public: Vec<u8>,
    pair: Pair,
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    Ecdsa { pair: EcdsaKeyPair, name: &'static str },
    Rsa(RsaKeyPair),
}

struct Curve {
    name: &'static str,
    short: &'static str,
    algorithm: &'static EcdsaSigningAlgorithm,
    scalar_bytes: usize,
}

const CURVES: [Curve; 2] = [
    Curve {
        name: "ecdsa-sha2-nistp256",
        short: "nistp256",
        algorithm: &ECDSA_P256_SHA256_FIXED_SIGNING,
        scalar_bytes: 32,
    },
    Curve {
        name: "ecdsa-sha2-nistp384",
        short: "nistp384",
        algorithm: &ECDSA_P384_SHA384_FIXED_SIGNING,
        scalar_bytes: 48,
    },
];

impl Key {
    pub(super) fn read(path: &Path) -> Result<Self, KeyError> {
        use std::io::Read;
        let mut text = String::new();
        let read =
            std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
        match read {
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => Err(KeyError::NoKey),
            Err(error) => Err(KeyError::Read(error)),
            Ok(_) => Self::parse(&text),
        }
    }

    fn parse(text: &str) -> Result<Self, KeyError> {
        let (kind, body) = armoured(text).ok_or(KeyError::NoKey)?;
        if kind.contains("ENCRYPTED") || body.contains("Proc-Type") {
            return Err(KeyError::Encrypted);
        }
        let body: String = body.split_ascii_whitespace().collect();
        let bytes = STANDARD.decode(body).map_err(|_| KeyError::Damaged)?;
        match kind {
            "OPENSSH PRIVATE KEY" => openssh(&bytes),
            "RSA PRIVATE KEY" => RsaKeyPair::from_der(&bytes).map_err(|_| KeyError::Damaged).map(rsa),
            "PRIVATE KEY" => pkcs8(&bytes),
            other => Err(KeyError::Kind(format!("a file with `{other}`"))),
        }
    }

    /// The signature, with the name of its kind; `None` for what is not signed.
    pub(super) fn sign(&self, data: &[u8], flags: u32) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        let (name, signature) = match &self.pair {
            Pair::Ed25519(pair) => ("ssh-ed25519", pair.sign(data).as_ref().to_vec()),
            Pair::Ecdsa { pair, name } => {
                let signature = pair.sign(&random, data).ok()?;
                let (r, s) = signature.as_ref().split_at(signature.as_ref().len() / 2);
                (*name, [mpint(r), mpint(s)].concat())
            }
            Pair::Rsa(pair) => {
                let (name, encoding): (_, &'static dyn RsaEncoding) = match flags {
                    flags if flags & RSA_SHA512 != 0 => ("rsa-sha2-512", &RSA_PKCS1_SHA512),
                    flags if flags & RSA_SHA256 != 0 => ("rsa-sha2-256", &RSA_PKCS1_SHA256),
                    _ => return None,
                };
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(encoding, &random, data, &mut signature).ok()?;
                (name, signature)
            }
        };
        Some([string(name.as_bytes()), string(&signature)].concat())
    }
}

/// What stands between the first pair of armour lines, and its kind.
fn armoured(text: &str) -> Option<(&str, &str)> {
    let (_, rest) = text.split_once("-----BEGIN ")?;
    let (kind, rest) = rest.split_once("-----")?;
    let (body, _) = rest.split_once("-----END ")?;
    kind.ends_with("PRIVATE KEY").then_some((kind, body))
}

fn pkcs8(der: &[u8]) -> Result<Key, KeyError> {
    if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
        return Ok(ed25519(pair));
    }
    for curve in &CURVES {
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(curve.algorithm, der, &SystemRandom::new()) {
            return Ok(ecdsa(pair, curve));
        }
    }
    RsaKeyPair::from_pkcs8(der).map(rsa).map_err(|_| KeyError::Kind("this kind of key".to_owned()))
}

/// `openssh-key-v1`: names of cipher and key derivation, one public key, and the private part, which an unencrypted file
/// has in clear.
fn openssh(bytes: &[u8]) -> Result<Key, KeyError> {
    let mut file = Reader(bytes.strip_prefix(b"openssh-key-v1\0").ok_or(KeyError::Damaged)?);
    if file.string()? != b"none" {
        return Err(KeyError::Encrypted);
    }
    let (_derivation, _options, count) = (file.string()?, file.string()?, file.u32()?);
    if count != 1 {
        return Err(KeyError::Kind(format!("a file of {count} keys")));
    }
    let _public = file.string()?;
    let mut key = Reader(file.string()?);
    // Two equal numbers, to see whether it was decrypted rightly.
    if key.u32()? != key.u32()? {
        return Err(KeyError::Damaged);
    }
    let kind = key.string()?;
    if kind == b"ssh-ed25519" {
        let (public, private) = (key.string()?, key.string()?);
        let seed = private.get(..32).ok_or(KeyError::Damaged)?;
        let pair = Ed25519KeyPair::from_seed_and_public_key(seed, public);
        return pair.map(ed25519).map_err(|_| KeyError::Damaged);
    }
    if let Some(curve) = CURVES.iter().find(|curve| curve.name.as_bytes() == kind) {
        let (_curve, public, scalar) = (key.string()?, key.string()?, key.string()?);
        let scalar = sized(scalar, curve.scalar_bytes).ok_or(KeyError::Damaged)?;
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_private_key_and_public_key(curve.algorithm, &scalar, public, &random);
        return pair.map(|pair| ecdsa(pair, curve)).map_err(|_| KeyError::Damaged);
    }
    if kind == b"ssh-rsa" {
        let (n, e, d) = (key.number()?, key.number()?, key.number()?);
        let (inverse, p, q) = (key.number()?, key.number()?, key.number()?);
        if !(256..=512).contains(&n.len()) {
            return Err(KeyError::Kind(format!("an RSA key of {} bits", n.len() * 8)));
        }
        let components = rsa::KeyPairComponents {
            public_key: rsa::PublicKeyComponents { n, e },
            d,
            p,
            q,
            dP: &remainder_of_predecessor(d, p)[..],
            dQ: &remainder_of_predecessor(d, q)[..],
            qInv: inverse,
        };
        return RsaKeyPair::from_components(&components).map(rsa).map_err(|_| KeyError::Damaged);
    }
    Err(KeyError::Kind(format!("a key of kind `{}`", String::from_utf8_lossy(kind).escape_debug())))
}

fn ed25519(pair: Ed25519KeyPair) -> Key {
    let public = [string(b"ssh-ed25519"), string(pair.public_key().as_ref())].concat();
    Key { public, pair: Pair::Ed25519(pair) }
}

fn ecdsa(pair: EcdsaKeyPair, curve: &Curve) -> Key {
    let parts = [curve.name.as_bytes(), curve.short.as_bytes(), pair.public_key().as_ref()];
    Key { public: parts.map(string).concat(), pair: Pair::Ecdsa { pair, name: curve.name } }
}

fn rsa(pair: RsaKeyPair) -> Key {
    let parts = rsa::PublicKeyComponents::<Vec<u8>>::from(pair.public());
    Key { public: [string(b"ssh-rsa"), mpint(&parts.e), mpint(&parts.n)].concat(), pair: Pair::Rsa(pair) }
}

/// `value mod (prime - 1)`, bit by bit; both big-endian. `prime` is odd, so its predecessor differs in the last bit only.
fn remainder_of_predecessor(value: &[u8], prime: &[u8]) -> Vec<u8> {
    let mut modulus = prime.to_vec();
    if let Some(last) = modulus.last_mut() {
        *last &= !1;
    }
    // One byte more than the modulus, for the carry of doubling.
    let mut rest = vec![0; modulus.len() + 1];
    modulus.insert(0, 0);
    for bit in value.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)) {
        let mut carry = bit;
        for byte in rest.iter_mut().rev() {
            (*byte, carry) = (*byte << 1 | carry, *byte >> 7);
        }
        if rest >= modulus {
            let mut borrow = false;
            for (byte, minus) in rest.iter_mut().zip(&modulus).rev() {
                let (first, a) = byte.overflowing_sub(*minus);
                let (second, b) = first.overflowing_sub(borrow.into());
                (*byte, borrow) = (second, a || b);
            }
        }
    }
    let start = rest.iter().position(|byte| *byte != 0).unwrap_or(rest.len());
    rest.split_off(start)
}

/// A number in exactly `count` bytes.
fn sized(number: &[u8], count: usize) -> Option<Vec<u8>> {
    let start = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    let missing = count.checked_sub(number.len() - start)?;
    Some([vec![0; missing], number[start..].to_vec()].concat())
}

/// Bytes with their length in front.
pub(super) fn string(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), bytes].concat()
}

/// A positive number: without leading zeros, but for one where the first bit would make it negative.
fn mpint(number: &[u8]) -> Vec<u8> {
    let start = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    let number = &number[start..];
    match number.first() {
        Some(first) if *first >= 0x80 => string(&[&[0], number].concat()),
        _ => string(number),
    }
}

/// Reads what `string` and `mpint` write.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], KeyError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(KeyError::Damaged)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn u32(&mut self) -> Result<u32, KeyError> {
        let bytes = self.take(4)?.try_into().map_err(|_| KeyError::Damaged)?;
        Ok(u32::from_be_bytes(bytes))
    }

    pub(super) fn string(&mut self) -> Result<&'a [u8], KeyError> {
        let count = self.u32()?;
        self.take(count as usize)
    }

    fn number(&mut self) -> Result<&'a [u8], KeyError> {
        let bytes = self.string()?;
        let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
        Ok(&bytes[start..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remainders_are_those_of_division() {
        let bytes =
            |number: u64| number.to_be_bytes().into_iter().skip_while(|b| *b == 0).collect::<Vec<_>>();
        for (value, prime) in
            [(0, 3), (5, 3), (1_000_003, 101), (u64::MAX, 65_537), (17, 0xffff_fffb), (100, 101)]
        {
            let rest = remainder_of_predecessor(&bytes(value), &bytes(prime));
            assert_eq!(rest, bytes(value % (prime - 1)), "{value} {prime}");
        }
    }

    #[test]
    fn numbers_have_a_sign_bit_and_no_zeros_in_front() {
        assert_eq!(mpint(&[0, 0, 0x7f]), [0, 0, 0, 1, 0x7f]);
        assert_eq!(mpint(&[0x80]), [0, 0, 0, 2, 0, 0x80]);
        assert_eq!(sized(&[0, 1, 2], 4), Some(vec![0, 0, 1, 2]));
        assert_eq!(sized(&[1, 2, 3], 2), None);
    }

    #[test]
    fn damaged_files_are_errors_and_no_panic() {
        let says = |text: &str| Key::parse(text).map(drop).unwrap_err().to_string();
        assert_eq!(says("ssh-ed25519 AAAA me"), "it is neither an agent's socket nor a private key");
        let armour =
            |kind: &str, body: &str| format!("-----BEGIN {kind}-----\n{body}\n-----END {kind}-----\n");
        assert_eq!(says(&armour("CERTIFICATE", "")), "it is neither an agent's socket nor a private key");
        assert_eq!(says(&armour("ENCRYPTED PRIVATE KEY", "")), "it is encrypted");
        let old = armour("RSA PRIVATE KEY", "Proc-Type: 4,ENCRYPTED\nDEK-Info: x\n\nAAAA");
        assert_eq!(says(&old), "it is encrypted");
        assert_eq!(says(&armour("EC PRIVATE KEY", "AAAA")), "a file with `EC PRIVATE KEY` is not supported");
        let mut bytes = b"openssh-key-v1\0".to_vec();
        for part in [&b"none"[..], b"none", b""] {
            bytes.extend(string(part));
        }
        for tail in [&b""[..], b"\0\0\0\x01", b"\0\0\0\x01\xff\xff\xff\xff", b"\0\0\0\x02"] {
            let text = armour("OPENSSH PRIVATE KEY", &STANDARD.encode([&bytes, tail].concat()));
            assert!(matches!(Key::parse(&text), Err(KeyError::Damaged | KeyError::Kind(_))), "{tail:?}");
        }
    }
}
