//! Unpacked archives merged into the image, as `tar -x` over existing content does (dockerfile reference 3.10).

use super::places::{Place, Places};
use super::plan::{Archive, Planner};
use super::rules::Rule;
use super::view::{FirstName, NewDirs, Planned};
use super::{CopyError, Moved, Origin};
use crate::layer::{Change, DiffEntry, Mtime};
use crate::path::RelPath;
use crate::tree::{EMPTY_NODE, Entry, Kind, Meta, Resolved, below};

impl Planner<'_> {
    /// Merges one archive under the destination, which is a directory whatever its spelling.
    ///
    /// Entries keep mode, owner (unless `--chown`) and time; `--chmod` does not apply. A directory over a directory
    /// gives it new metadata; any other clash replaces what is there, with all below it. Directories that the archive
    /// only implies go through an existing directory, also behind a symlink, and change nothing; missing ones are made
    /// 0755 and, whatever `--chown` says, for root; anything else in their place is an error.
    pub(super) fn archive(&mut self, archive: &Archive) -> Result<(), CopyError> {
        let mut top_dirs = self.new_dirs();
        top_dirs.mode = 0o755;
        let found = self.view.resolve(&RelPath::clamp(self.options.dest.as_bytes()))?;
        if !matches!(found.entry.kind, Kind::Dir(_)) {
            return Err(CopyError::NotDirectory { path: found.path });
        }
        let top = self.view.make_dirs(&found, found.missing.len(), top_dirs)?;
        let rule = self.unpacked(archive.dir.clone(), top.clone())?;
        let mut places = Places::of_top(Place { path: top, rule }, self.scratch)?;
        let item = self.view.new_item();
        for listed in archive.implied.among(&archive.diff) {
            let (DiffEntry { path, change, mtime }, is_implied) = listed?;
            let Some(Place { path: dest, rule }) = places.next(&path)? else { continue };
            let mut first = None;
            let mut entry = match change {
                Change::Whiteout => return Err(CopyError::Whiteout { path }),
                Change::Dir { .. } if is_implied => {
                    let real = self.implied_dir(&dest)?;
                    if real == dest {
                        places.enter(path, Place { path: real, rule });
                    } else {
                        let rule = self.unpacked(below(&archive.dir, &path), real.clone())?;
                        places.enter_elsewhere(path, Place { path: real, rule })?;
                    }
                    continue;
                }
                Change::Dir { meta, opaque } => {
                    self.archive_dir(dest.clone(), meta, opaque, mtime)?;
                    places.enter(path, Place { path: dest, rule });
                    continue;
                }
                Change::File { meta, size, content } => Entry { meta, kind: Kind::File { size, content } },
                Change::Hardlink { target } => {
                    let earlier = if target < path { archive.diff.get(&target)? } else { None };
                    let Some(Change::File { meta, size, content }) = earlier.map(|file| file.change) else {
                        return Err(CopyError::LinkTarget { path, target });
                    };
                    let Place { path, rule } = places.of(&target)?;
                    first = Some(Box::new(FirstName { path, rule }));
                    // Should the first name be overwritten, this one has the bytes: it was unpacked too.
                    Entry { meta, kind: Kind::File { size, content } }
                }
                Change::Symlink { meta, target } => Entry { meta, kind: Kind::Symlink(target) },
                Change::CharDevice { meta, major, minor } => {
                    Entry { meta, kind: Kind::CharDevice { major, minor } }
                }
                Change::BlockDevice { meta, major, minor } => {
                    Entry { meta, kind: Kind::BlockDevice { major, minor } }
                }
                Change::Fifo { meta } => Entry { meta, kind: Kind::Fifo },
            };
            self.chown(&mut entry.meta);
            let planned = Planned { entry, mtime: Some(mtime), origin: Some(rule), item, first };
            self.view.replace(dest, planned)?;
        }
        Ok(())
    }

    /// The rule for what is in a directory of an archive.
    fn unpacked(&mut self, from: RelPath, to: RelPath) -> Result<Rule, CopyError> {
        Ok(self.view.rules.number_of(Origin::Archive(Moved::new(from, to)))?)
    }

    /// Finds or makes a directory that the archive does not list, and gives its real path.
    fn implied_dir(&mut self, dest: &RelPath) -> Result<RelPath, CopyError> {
        let found = match self.view.entry_at(dest)? {
            // Where the parent is is known: to follow the whole path for each of a deep one's directories would take its square.
            Some(Entry { kind: Kind::Dir(_), .. }) => return Ok(dest.clone()),
            None => self.missing_dir(dest)?,
            Some(_) => self.view.resolve(dest)?,
        };
        if !matches!(found.entry.kind, Kind::Dir(_)) {
            return Err(CopyError::NotDirectory { path: found.path });
        }
        let new = NewDirs { mode: 0o755, owner: (0, 0), now: self.options.now };
        self.view.make_dirs(&found, found.missing.len(), new)
    }

    /// A directory that is not there yet, while its parent should be.
    fn missing_dir(&self, dest: &RelPath) -> Result<Resolved, CopyError> {
        let parent = dest.parent().unwrap_or_default();
        match self.view.entry_at(&parent)? {
            Some(entry @ Entry { kind: Kind::Dir(_), .. }) => {
                Ok(Resolved { path: parent, entry, missing: vec![dest.name().to_vec()] })
            }
            // Something of the archive came in the place of it, by another way.
            _ => self.view.resolve(dest),
        }
    }

    /// Plans a directory of an archive. An opaque one comes after something else of its name in the
    /// same archive, so nothing of the image is left in it.
    fn archive_dir(
        &mut self,
        dest: RelPath,
        meta: Meta,
        is_opaque: bool,
        mtime: Mtime,
    ) -> Result<(), CopyError> {
        let node = match self.view.entry_at(&dest)? {
            Some(Entry { kind: Kind::Dir(node), .. }) if !is_opaque => node,
            _ => *EMPTY_NODE,
        };
        let mut entry = Entry { meta, kind: Kind::Dir(node) };
        self.chown(&mut entry.meta);
        let planned = Planned::of(entry, Some(mtime));
        if is_opaque { self.view.replace(dest, planned) } else { self.view.put(dest, planned) }
    }

    fn chown(&self, meta: &mut Meta) {
        if let Some(owner) = self.options.owner {
            (meta.uid, meta.gid) = owner;
        }
    }
}
