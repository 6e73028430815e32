//! Unambiguous bytes for keys.
//!
//! Every field is written length-prefixed or fixed-width, every enum variant as a name, every list with its count, so
//! two different values can never give the same bytes. Keys hash these bytes; changing what a type writes changes
//! keys and is a deliberate version bump where the key is made.

use crate::{Digest, Platform};

/// Collects canonical bytes.
#[derive(Debug, Default)]
pub struct CanonicalWriter {
    bytes: Vec<u8>,
}

impl CanonicalWriter {
    /// Starts with a domain label such as `op/1`.
    pub fn new(domain: &str) -> Self {
        let mut writer = Self::default();
        writer.str(domain);
        writer
    }

    /// Writes a length-prefixed byte string.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Writes a length-prefixed text.
    pub fn str(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    /// Writes a fixed-width number.
    pub fn u64(&mut self, number: u64) -> &mut Self {
        self.bytes.extend_from_slice(&number.to_le_bytes());
        self
    }

    /// Writes a flag.
    pub fn bool(&mut self, flag: bool) -> &mut Self {
        self.bytes.push(u8::from(flag));
        self
    }

    /// Writes any canonical value.
    pub fn value<T: Canonical + ?Sized>(&mut self, value: &T) -> &mut Self {
        value.write(self);
        self
    }

    /// The collected bytes.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// A value with one unambiguous byte form.
pub trait Canonical {
    /// Appends the value's bytes.
    fn write(&self, out: &mut CanonicalWriter);
}

impl Canonical for str {
    fn write(&self, out: &mut CanonicalWriter) {
        out.str(self);
    }
}

impl Canonical for String {
    fn write(&self, out: &mut CanonicalWriter) {
        out.str(self);
    }
}

impl Canonical for bool {
    fn write(&self, out: &mut CanonicalWriter) {
        out.bool(*self);
    }
}

impl Canonical for u64 {
    fn write(&self, out: &mut CanonicalWriter) {
        out.u64(*self);
    }
}

impl<T: Canonical> Canonical for Option<T> {
    fn write(&self, out: &mut CanonicalWriter) {
        out.bool(self.is_some());
        if let Some(value) = self {
            value.write(out);
        }
    }
}

impl<T: Canonical> Canonical for [T] {
    fn write(&self, out: &mut CanonicalWriter) {
        out.u64(self.len() as u64);
        self.iter().for_each(|item| item.write(out));
    }
}

impl<T: Canonical> Canonical for Vec<T> {
    fn write(&self, out: &mut CanonicalWriter) {
        self.as_slice().write(out);
    }
}

impl<A: Canonical, B: Canonical> Canonical for (A, B) {
    fn write(&self, out: &mut CanonicalWriter) {
        self.0.write(out);
        self.1.write(out);
    }
}

impl Canonical for Digest {
    fn write(&self, out: &mut CanonicalWriter) {
        out.bytes(self.as_bytes());
    }
}

impl Canonical for Platform {
    fn write(&self, out: &mut CanonicalWriter) {
        out.str(&self.to_string());
    }
}
