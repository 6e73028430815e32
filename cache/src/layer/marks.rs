//! Where the hash of a layer's archive stood on its way.
//!
//! The archive of a layer that begins with the same entries as an earlier one begins with the same bytes. With the states of
//! that one's hash kept, only what comes after the last of them that is still true is read and hashed.
//!
//! ```text
//! "rbmarks1"  last 16 bytes of the layer's encoded listing  mark*  first 16 bytes of BLAKE3 of all before
//! mark = entry into  state
//! ```
//!
//! Numbers are 64 bits, little endian. The marks are those of every multiple of [`MARK_BYTES`] up to some place, in order.

use rbuild_oci::Sha256;

use super::diff::ListingCheck;

/// Bytes of the archive between two marks. Part of the format.
pub(crate) const MARK_BYTES: u64 = 1 << 20;

const MAGIC: &[u8; 8] = b"rbmarks1";
const CHECK_BYTES: usize = 16;

/// A place in an archive by its listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TarPlace {
    /// Index of the entry whose bytes are here.
    pub entry: usize,
    /// How many of them come before.
    pub into: u64,
}

/// The places of an archive, and the hash of all before each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Marks {
    marks: Vec<(TarPlace, Vec<u8>)>,
}

/// Where an archive is taken up.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// Bytes before.
    pub at: u64,
    /// The same by the listing.
    pub place: TarPlace,
    /// Hash of the bytes before.
    pub(super) hash: Sha256,
}

impl Marks {
    /// Marks at the multiples after those of `self`.
    pub(super) fn extend(&mut self, places: Vec<TarPlace>, states: Vec<Vec<u8>>) {
        self.marks.extend(places.into_iter().zip(states));
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    /// How many entries have bytes before the last mark.
    pub fn entries(&self) -> usize {
        self.marks.last().map_or(0, |(place, _)| place.entry + 1)
    }

    /// Drops the marks that have bytes of other than the first `entries` entries before them.
    pub fn truncate(&mut self, entries: usize) {
        let kept = self.marks.partition_point(|(place, _)| place.entry < entries);
        self.marks.truncate(kept);
    }

    /// The last mark, or the start of the archive.
    pub(super) fn start(&self) -> Start {
        let last = self.marks.last().and_then(|(place, state)| Some((*place, Sha256::resume(state)?)));
        let Some((place, hash)) = last else { return Start::default() };
        Start { at: self.marks.len() as u64 * MARK_BYTES, place, hash }
    }

    /// As bytes, for the layer with this listing.
    pub fn encode(&self, listing: ListingCheck) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&listing.0);
        for (place, state) in &self.marks {
            bytes.extend_from_slice(&(place.entry as u64).to_le_bytes());
            bytes.extend_from_slice(&place.into.to_le_bytes());
            bytes.extend_from_slice(state);
        }
        let check = blake3::hash(&bytes);
        bytes.extend_from_slice(&check.as_bytes()[..CHECK_BYTES]);
        bytes
    }

    /// What [`Self::encode`] wrote for the same listing; `None` for anything else. Nothing needs them, so nobody is told why.
    pub fn decode(bytes: &[u8], listing: ListingCheck) -> Option<Self> {
        let (body, check) = bytes.split_last_chunk::<CHECK_BYTES>()?;
        if blake3::hash(body).as_bytes()[..CHECK_BYTES] != check[..] {
            return None;
        }
        let body = body.strip_prefix(MAGIC)?.strip_prefix(&listing.0)?;
        let marks = body.chunks(16 + Sha256::new().state().len()).map(|mark| {
            let (entry, rest) = mark.split_first_chunk::<8>()?;
            let (into, state) = rest.split_first_chunk::<8>()?;
            let entry = usize::try_from(u64::from_le_bytes(*entry)).ok()?;
            Sha256::resume(state)?;
            Some((TarPlace { entry, into: u64::from_le_bytes(*into) }, state.to_vec()))
        });
        Some(Self { marks: marks.collect::<Option<_>>()? })
    }
}
