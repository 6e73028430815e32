//! Comparing a committed layer directory with its listing. Changes nothing.

use std::os::fd::BorrowedFd;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::super::diff::{Change, DiffEntry, LayerDiff};
use super::super::dirs::Dirs;
use super::super::overlay::{OverlayForm, Owners};
use super::walk::{Found, What};
use super::{ParentEntry, ParentView, ParentViewError, ROOTS_OWN, ScanError, for_each, io_error, walk};
use crate::path::RelPath;
use crate::scratch::Scratch;
use crate::tree::{Entry, Kind, Meta, NodeDigest};

/// Says that there is a directory everywhere: the walk then takes opaque marks and whiteouts as they are.
struct Directories;

impl ParentView for Directories {
    fn entry(&self, _path: &RelPath) -> Result<Option<ParentEntry>, ParentViewError> {
        let entry = Entry { meta: Meta::default(), kind: Kind::Dir(NodeDigest([0; 32])) };
        Ok(Some(ParentEntry { entry, mtime: super::super::diff::Mtime::default() }))
    }
}

/// Paths, in order, at which a layer directory is not what its listing says: missing, unlisted, or another type, owner,
/// mode, content, link target, device, xattr (of files and directories) or hardlink group, as far as the form has them on
/// disk. Times are not compared.
pub fn verify_layer(
    dir: BorrowedFd<'_>,
    form: OverlayForm,
    listing: &LayerDiff,
    scratch: &Scratch,
) -> Result<Vec<RelPath>, ScanError> {
    let mut listed = listing.iter().peekable();
    let mut wrong = Vec::new();
    let mut dirs = Dirs::new(dir);
    for_each(dir, form, &Directories, &ROOTS_OWN, scratch, walk::AT_ONCE, |one| {
        // Both are in order.
        let is_before =
            |entry: &Result<DiffEntry, _>| entry.as_ref().is_ok_and(|entry| entry.path < one.path);
        while let Some(missing) = listed.next_if(is_before) {
            wrong.push(missing?.path);
        }
        let is_at =
            |entry: &Result<DiffEntry, _>| entry.as_ref().map_or(true, |entry| entry.path == one.path);
        let is_right = match listed.next_if(is_at).transpose()? {
            Some(entry) => is_as_listed(&one, &entry.change, &mut dirs, form)?,
            // The root is listed only when the layer changes it.
            None => one.path.is_root(),
        };
        if !is_right {
            wrong.push(one.path);
        }
        Ok(())
    })?;
    for entry in listed {
        wrong.push(entry?.path);
    }
    Ok(wrong)
}

fn is_as_listed(
    one: &Found,
    change: &Change,
    dirs: &mut Dirs<'_>,
    form: OverlayForm,
) -> Result<bool, ScanError> {
    // What the form has in the listing alone cannot differ.
    let same_meta = |meta: &Meta| !form.has_modes() || *meta == one.meta;
    let same_owner = |meta: &Meta| {
        form.owners() != Owners::Set
            || (meta.mode, meta.uid, meta.gid) == (one.meta.mode, one.meta.uid, one.meta.gid)
    };
    Ok(match (&one.what, change) {
        (What::Whiteout, Change::Whiteout) => true,
        (What::Dir { opaque }, Change::Dir { meta, opaque: listed }) => same_meta(meta) && opaque == listed,
        (What::File { size, content, .. }, Change::File { meta, size: listed, content: digest }) => {
            same_meta(meta) && size == listed && content.as_ref() == Some(digest)
        }
        (What::File { inode, .. }, Change::Hardlink { target }) => {
            return Ok(*target < one.path && inode_at(dirs, target)? == Some(*inode));
        }
        (What::Symlink { target }, Change::Symlink { meta, target: listed }) => {
            same_owner(meta) && target == listed
        }
        (
            What::Device { major, minor, is_block: false },
            Change::CharDevice { meta, major: listed, minor: lesser },
        )
        | (
            What::Device { major, minor, is_block: true },
            Change::BlockDevice { meta, major: listed, minor: lesser },
        ) => same_owner(meta) && major == listed && minor == lesser,
        (What::Fifo, Change::Fifo { meta }) => same_owner(meta),
        _ => false,
    })
}

/// `None` when nothing is there.
fn inode_at(dirs: &mut Dirs<'_>, path: &RelPath) -> Result<Option<u64>, ScanError> {
    let holder = dirs.parent(path);
    let stat = holder.and_then(|holder| rustix::fs::statat(holder, path.name(), AtFlags::SYMLINK_NOFOLLOW));
    match stat {
        Ok(stat) => Ok(Some(stat.st_ino)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(io_error("look at", path)(errno)),
    }
}
