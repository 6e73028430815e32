//! Unpacked archives merged into the image, as `tar -x` over existing content does (dockerfile reference 3.10).

use std::collections::HashMap;

use super::origins::Rule;
use super::plan::{Archive, Planner};
use super::view::{Link, NewDirs, Planned};
use super::{CopyError, Moved, Origin};
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
        // Where each directory of the archive really is, elsewhere behind a symlink of the image, and the rule for what
        // is in it.
        let rule = self.unpacked(index, RelPath::root(), top.clone());
        let mut dirs: HashMap<RelPath, (RelPath, Rule)> = HashMap::from([(RelPath::root(), (top, rule))]);
        // Numbers of the archive's hardlink groups, by their first path.
        let mut links: HashMap<RelPath, Link> = HashMap::new();
        for entry in archive.diff {
            if let Change::Hardlink { target } = entry?.change
                && !links.contains_key(&target)
            {
                let link = self.view.new_links(1);
                links.insert(target, link);
            }
        }
        let mut linked: HashMap<RelPath, Entry> = HashMap::new();
        for item in archive.diff {
            let item = item?;
            let Some(parent) = item.path.parent() else { continue };
            let not_directory = || CopyError::NotDirectory { path: item.path.clone() };
            let (dir, rule) = dirs.get(&parent).ok_or_else(not_directory)?;
            let (dest, rule) = (dir.join(item.path.name()), *rule);
            let mut entry = match &item.change {
                Change::Whiteout => return Err(CopyError::Whiteout { path: item.path.clone() }),
                Change::Dir { meta, opaque } => {
                    let (real, rule) = if archive.implied.binary_search(&item.path).is_ok() {
                        let real = self.implied_dir(&dest)?;
                        let rule = match real == dest {
                            true => rule,
                            false => self.unpacked(index, item.path.clone(), real.clone()),
                        };
                        (real, rule)
                    } else {
                        (self.archive_dir(dest, meta, *opaque, item.mtime)?, rule)
                    };
                    dirs.insert(item.path.clone(), (real, rule));
                    continue;
                }
                Change::File { meta, size, content } => {
                    let kind = Kind::File { size: *size, content: *content };
                    let entry = Entry { meta: meta.clone(), kind };
                    linked.insert(item.path.clone(), entry.clone());
                    entry
                }
                Change::Hardlink { target } => {
                    // Should the first name be overwritten, this one has the bytes: it was unpacked too.
                    linked.get(target).cloned().ok_or_else(|| CopyError::LinkTarget {
                        path: item.path.clone(),
                        target: target.clone(),
                    })?
                }
                Change::Symlink { meta, target } => entry(meta, Kind::Symlink(target.clone())),
                Change::CharDevice { meta, major, minor } => {
                    entry(meta, Kind::CharDevice { major: *major, minor: *minor })
                }
                Change::BlockDevice { meta, major, minor } => {
                    entry(meta, Kind::BlockDevice { major: *major, minor: *minor })
                }
                Change::Fifo { meta } => entry(meta, Kind::Fifo),
            };
            self.chown(&mut entry.meta);
            let link = match &item.change {
                Change::Hardlink { target } => links.get(target).copied(),
                _ => links.get(&item.path).copied(),
            };
            let planned = Planned { entry, mtime: Some(item.mtime), origin: Some(rule), link };
            self.view.replace(dest, planned)?;
        }
        Ok(())
    }

    /// The rule for what is in a directory of an archive.
    fn unpacked(&mut self, index: usize, from: RelPath, to: RelPath) -> Rule {
        self.view.origins.rule(Origin::Archive { index, moved: Moved::new(from, to) })
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
