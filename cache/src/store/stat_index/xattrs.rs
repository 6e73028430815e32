//! The xattrs of what a scan saw. Few things have any, and they may be large, so records keep none of them.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::encoded::Encoded;
use crate::layer::{FieldReader, put_bytes};
use crate::scratch::Scratch;

/// Xattrs of a scan, as bytes in memory or in a scratch file.
#[derive(Default)]
pub struct SeenXattrs(Mutex<Encoded>);

/// Where the xattrs of one thing are.
#[derive(Debug, Clone, Copy)]
pub(super) struct XattrsPlace {
    at: u64,
    bytes: u32,
}

impl SeenXattrs {
    /// None so far. What is too much for memory goes to a file of `scratch`.
    pub fn new(scratch: &Scratch) -> Self {
        Self(Mutex::new(Encoded::new(scratch.clone())))
    }

    fn lock(&self) -> MutexGuard<'_, Encoded> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> io::Result<XattrsPlace> {
        let mut bytes = Vec::new();
        for (name, value) in xattrs {
            put_bytes(&mut bytes, name);
            put_bytes(&mut bytes, value);
        }
        let Ok(len) = u32::try_from(bytes.len()) else { return Err(io::ErrorKind::FileTooLarge.into()) };
        let mut all = self.lock();
        let at = all.end();
        all.append(|out| out.extend_from_slice(&bytes))?;
        Ok(XattrsPlace { at, bytes: len })
    }

    pub(super) fn get(&self, place: XattrsPlace) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let bytes = self.lock().bytes_at(place.at, place.bytes as usize)?;
        let (mut reader, mut xattrs) = (FieldReader::new(&bytes, 0), BTreeMap::new());
        while reader.at() < bytes.len() {
            let mut next = || Ok(reader.string()?.to_vec());
            let damaged = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
            xattrs.insert(next().map_err(damaged)?, next().map_err(damaged)?);
        }
        Ok(xattrs)
    }
}

impl fmt::Debug for SeenXattrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SeenXattrs").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xattrs_are_given_back_whether_in_memory_or_in_a_file() {
        let seen = SeenXattrs::new(&Scratch::for_test());
        let of = |at: u8| {
            let name = |name: &str| format!("user.{name}{at}").into_bytes();
            BTreeMap::from([(name("x"), vec![at; 40]), (name("y"), Vec::new())])
        };
        let places: Vec<_> = (0..200).map(|at| seen.add(&of(at)).unwrap()).collect();
        assert!(seen.lock().held_bytes() < 4 << 10);
        for (at, place) in (0..200).zip(places) {
            assert_eq!(seen.get(place).unwrap(), of(at));
        }
        assert_eq!(seen.get(seen.add(&BTreeMap::new()).unwrap()).unwrap(), BTreeMap::new());
    }
}
