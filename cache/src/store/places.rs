//! What has the place of a small file of the store and is none.
//!
//! Whoever needs the file is told ([`StoreError::WrongKind`]); checking the store finds them all, before somebody does.

use rustix::fs::{AtFlags, FileType};

use super::error::StoreError;
use super::{Finding, Store, layout};

/// Files that may be there.
const FILES: [&str; 4] = ["store.json.bak", "uses", "rebuilt", "reserve"];
/// Directories of which everything is a file.
const DIRS_OF_FILES: [&str; 5] = ["locks", "leases", "readers", "images", "contexts"];

impl Store {
    /// Finds them; with `repair`, they move to `quarantine/`.
    pub(super) fn check_places(&self, repair: bool) -> Result<Vec<Finding>, StoreError> {
        let layout = &self.inner.layout;
        let mut places: Vec<String> = FILES.map(str::to_owned).into();
        for dir in DIRS_OF_FILES {
            places.extend(layout::list(layout, dir)?.into_iter().map(|name| format!("{dir}/{name}")));
        }
        let is_none = |place: &String| {
            rustix::fs::statat(layout.fd(), place, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile)
        };
        places.retain(is_none);
        for place in places.iter().filter(|_| repair) {
            layout.make_dir("quarantine")?;
            let _ = layout.publish(place, &format!("quarantine/{}", place.replace('/', "-")));
        }
        Ok(places.into_iter().map(Finding::NoFile).collect())
    }
}
