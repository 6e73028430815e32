//! Unpacked archives merged into the image, as `tar -x` over existing content does (dockerfile reference 3.10).

use std::collections::HashMap;

use super::plan::{Archive, Planner};
use super::view::{NewDirs, Planned};
use super::{CopyError, FileOrigin};
use crate::layer::{Change, Mtime};
use crate::path::RelPath;
use crate::tree::{EMPTY_NODE, Entry, Kind, Meta};

impl Planner<'_> {
    /// Merges one archive under the destination, which is a directory whatever its spelling.
    ///
    /// Entries keep mode, owner (unless `--chown`) and time; `--chmod` does not apply. A directory over a directory
    /// gives it new metadata; any other clash replaces what is there, with all below it. Directories that the archive
    /// only implies go through an existing directory, also behind a symlink, and change nothing; missing ones are made
    /// 0755 and, whatever `--chown` says, for root; anything else in their place is an error.
    pub(super) fn archive(&mut self, index: usize, archive: &Archive<'_>) -> Result<(), CopyError> {
        let mut top_dirs = self.new_dirs();
        top_dirs.mode = 0o755;
        let found = self.view.resolve(&RelPath::clamp(self.options.dest.as_bytes()))?;
        if !matches!(found.entry.kind, Kind::Dir(_)) {
            return Err(CopyError::NotDirectory { path: found.path });
        }
        let top = self.view.make_dirs(&found, found.missing.len(), top_dirs)?;
        // Where each directory of the archive really is: elsewhere behind a symlink of the image.
        let mut dirs: HashMap<RelPath, RelPath> = HashMap::from([(RelPath::root(), top)]);
        // Numbers of the archive's hardlink groups, by their first path.
        let mut links: HashMap<RelPath, u64> = HashMap::new();
        for entry in archive.diff {
            if let Change::Hardlink { target } = entry.change
                && !links.contains_key(&target)
            {
                let link = self.view.new_link();
                links.insert(target, link);
            }
        }
        let mut linked: HashMap<RelPath, Entry> = HashMap::new();
        for item in archive.diff {
            let Some(parent) = item.path.parent() else { continue };
            let not_directory = || CopyError::NotDirectory { path: item.path.clone() };
            let dest = dirs.get(&parent).ok_or_else(not_directory)?.join(item.path.name());
            let (mut entry, origin) = match &item.change {
                Change::Whiteout => return Err(CopyError::Whiteout { path: item.path.clone() }),
                Change::Dir { meta, opaque } => {
                    let real = if archive.implied.binary_search(&item.path).is_ok() {
                        self.implied_dir(&dest)?
                    } else {
                        self.archive_dir(dest, meta, *opaque, item.mtime)?
                    };
                    dirs.insert(item.path.clone(), real);
                    continue;
                }
                Change::File { meta, size, content } => {
                    let kind = Kind::File { size: *size, content: *content };
                    let entry = Entry { meta: meta.clone(), kind };
                    linked.insert(item.path.clone(), entry.clone());
                    (entry, Some(item.path.clone()))
                }
                Change::Hardlink { target } => {
                    let entry = linked.get(target).cloned().ok_or_else(|| CopyError::LinkTarget {
                        path: item.path.clone(),
                        target: target.clone(),
                    })?;
                    // Should the first name be overwritten, this one still needs its bytes.
                    (entry, Some(target.clone()))
                }
                Change::Symlink { meta, target } => (entry(meta, Kind::Symlink(target.clone())), None),
                Change::CharDevice { meta, major, minor } => {
                    (entry(meta, Kind::CharDevice { major: *major, minor: *minor }), None)
                }
                Change::BlockDevice { meta, major, minor } => {
                    (entry(meta, Kind::BlockDevice { major: *major, minor: *minor }), None)
                }
                Change::Fifo { meta } => (entry(meta, Kind::Fifo), None),
            };
            self.chown(&mut entry.meta);
            let link = match &item.change {
                Change::Hardlink { target } => links.get(target).copied(),
                _ => links.get(&item.path).copied(),
            };
            let origin = origin.map(|path| FileOrigin::Archive { index, path });
            self.view.replace(dest, Planned { entry, mtime: Some(item.mtime), origin, link })?;
        }
        Ok(())
    }

    /// Finds or makes a directory that the archive does not list, and gives its real path.
    fn implied_dir(&mut self, dest: &RelPath) -> Result<RelPath, CopyError> {
        let found = self.view.resolve(dest)?;
        if !matches!(found.entry.kind, Kind::Dir(_)) {
            return Err(CopyError::NotDirectory { path: found.path });
        }
        let new = NewDirs { mode: 0o755, owner: (0, 0), now: self.options.now };
        self.view.make_dirs(&found, found.missing.len(), new)
    }

    /// Plans a directory of an archive and gives its path. An opaque one comes after something else of its name in the
    /// same archive, so nothing of the image is left in it.
    fn archive_dir(
        &mut self,
        dest: RelPath,
        meta: &Meta,
        is_opaque: bool,
        mtime: Mtime,
    ) -> Result<RelPath, CopyError> {
        let node = match self.view.entry_at(&dest)? {
            Some(Entry { kind: Kind::Dir(node), .. }) if !is_opaque => node,
            _ => *EMPTY_NODE,
        };
        let mut entry = entry(meta, Kind::Dir(node));
        self.chown(&mut entry.meta);
        let planned = Planned { entry, mtime: Some(mtime), origin: None, link: None };
        if is_opaque {
            self.view.replace(dest.clone(), planned)?;
        } else {
            self.view.put(dest.clone(), planned)?;
        }
        Ok(dest)
    }

    fn chown(&self, meta: &mut Meta) {
        if let Some(owner) = self.options.owner {
            (meta.uid, meta.gid) = owner;
        }
    }
}

fn entry(meta: &Meta, kind: Kind) -> Entry {
    Entry { meta: meta.clone(), kind }
}
