//! Contents that are packed before it is known which layer they are for: a context's files are then read once, for their
//! digests and for the layer of the step that takes them.

use std::fs::File;

use rustix::fs::OFlags;

use super::error::{IoContext, StoreError};
use super::lease::Lease;
use super::packed::LayerPacks;
use super::writeback::Growing;
use super::{Store, layout};
use crate::layer::{Pack, PackError, PackWriter};

/// A directory of packs that belong to no layer yet. What no layer took goes with the lease.
#[derive(Debug)]
pub struct Spool {
    store: Store,
    dir: String,
    /// Keeps the directory.
    _lease: Lease,
}

impl Store {
    /// Starts an empty one.
    pub fn spool(&self, lease: &Lease) -> Result<Spool, StoreError> {
        let dir = lease.next_path();
        self.inner.layout.make_dir(&dir)?;
        Ok(Spool { store: self.clone(), dir, _lease: lease.clone() })
    }
}

impl Spool {
    /// Starts its pack number `at`. Two that write at the same time need two numbers.
    pub fn pack(&self, at: usize) -> Result<PackWriter, StoreError> {
        let layout = &self.store.inner.layout;
        let name = format!("{}/{at}", self.dir);
        let file = layout.open(&name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
        PackWriter::new(Growing::new(file.into(), self.store.clone())).doing("write", &layout.path(&name))
    }

    /// Opens the packs of these numbers, which were finished; bytes of theirs are not looked at again.
    pub fn open(&self, finished: impl IntoIterator<Item = usize>) -> Result<LayerPacks, StoreError> {
        let layout: &layout::Layout = &self.store.inner.layout;
        let mut packs = LayerPacks::default();
        for at in finished {
            let name = format!("{}/{at}", self.dir);
            let path = layout.path(&name);
            let pack =
                Pack::open(File::from(layout.open(&name, OFlags::RDONLY)?)).map_err(|error| match error {
                    PackError::Io(source) => StoreError::Io { doing: "read", path, source },
                    PackError::Damaged(why) => StoreError::Damaged { path, why },
                })?;
            packs.add(pack.just_written(), name);
        }
        Ok(packs)
    }
}
