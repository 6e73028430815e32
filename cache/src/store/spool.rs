//! A pack that is filled before it is known which layer it is for: a context's files are then read once, for their digests
//! and for the layer of the step that takes them.

use std::fs::File;

use rustix::fs::{AtFlags, OFlags};

use super::Store;
use super::error::{IoContext, StoreError};
use super::lease::Lease;
use super::packed::{LayerPacks, opened};
use super::writeback::Growing;
use crate::layer::PackWriter;

/// A pack that belongs to no layer yet. What no layer took goes with the lease.
pub struct Spool {
    /// Contents go here.
    pub writer: PackWriter,
    store: Store,
    name: String,
    _lease: Lease,
}

impl Store {
    /// Starts an empty one.
    pub fn spool(&self, lease: &Lease) -> Result<Spool, StoreError> {
        let (layout, name) = (&self.inner.layout, lease.next_path());
        let file = layout.open(&name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
        let file = Growing::new(file.into(), self.clone());
        let scratch = self.scratch();
        let writer = PackWriter::new(file, scratch).doing("write", &layout.path(&name))?;
        Ok(Spool { writer, store: self.clone(), name, _lease: lease.clone() })
    }
}

impl Spool {
    /// Gives its space back now.
    pub fn discard(self) {
        // Otherwise the lease does, later.
        let _ = rustix::fs::unlinkat(self.store.inner.layout.fd(), &self.name, AtFlags::empty());
    }

    /// Completes the pack, and opens it for a layer to share. Its contents are not looked at again.
    pub fn finish(self) -> Result<LayerPacks, StoreError> {
        let layout = &self.store.inner.layout;
        let path = layout.path(&self.name);
        self.writer.finish().doing("write", &path)?;
        let pack = opened(File::from(layout.open(&self.name, OFlags::RDONLY)?), path)?;
        let mut packs = LayerPacks::default();
        packs.add(pack.just_written(), self.name);
        Ok(packs)
    }
}
