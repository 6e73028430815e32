//! What has the place of a small file of the store and is none.
//!
//! Whoever needs the file is told ([`StoreError::WrongKind`]); checking the store finds them all, before somebody does.

use rustix::fs::{AtFlags, FileType};

use super::error::StoreError;
use super::{Finding, Store, layout};

/// Directories of which everything is a file.
const DIRS_OF_FILES: [&str; 5] = ["locks", "leases", "readers", "images", "contexts"];

impl Store {
    /// Finds them; with `repair`, they move to `quarantine/`.
    pub(super) fn check_places(&self, repair: bool) -> Result<Vec<Finding>, StoreError> {
        let layout = &self.inner.layout;
        let mut findings = Vec::new();
        for dir in DIRS_OF_FILES {
            for name in layout::list(layout, dir)? {
                let place = format!("{dir}/{name}");
                let Ok(stat) = rustix::fs::statat(layout.fd(), &place, AtFlags::SYMLINK_NOFOLLOW) else {
                    continue;
                };
                if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
                    continue;
                }
                if repair {
                    layout.make_dir("quarantine")?;
                    let _ = layout.publish(&place, &format!("quarantine/{dir}-{name}"));
                }
                findings.push(Finding::NoFile(place));
            }
        }
        Ok(findings)
    }
}
