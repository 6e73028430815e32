//! Deciding what is a change, and taking the rest out.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;

use rustix::fs::AtFlags;

use super::super::diff::{Change, DiffEntry, LayerDiff, Mtime};
use super::super::dirs::Dirs;
use super::super::overlay;
use super::super::unpack::times;
use super::walk::{Found, What};
use super::{ScanError, io_error};
use crate::path::RelPath;
use crate::tree::Kind;

/// What becomes of one thing that was found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Keep,
    Remove,
    /// A socket that hides something of the parent.
    Hide,
}

/// Compares deepest first, so that a directory knows whether anything stayed below it.
pub(super) fn settle(dir: BorrowedFd<'_>, found: Vec<Found>) -> Result<LayerDiff, ScanError> {
    let mut dirs = Dirs::new(dir);
    let mut has_kept = vec![false; found.len()];
    // Taking things out of a directory changes its time.
    let mut was_touched = vec![false; found.len()];
    let mut verdicts = vec![Verdict::Keep; found.len()];
    for place in (0..found.len()).rev() {
        let one = &found[place];
        let verdict = judge(one, has_kept[place]);
        verdicts[place] = verdict;
        if place == 0 {
            if was_touched[0] {
                set_time(&mut dirs, &one.path, one.mtime)?;
            }
            continue;
        }
        match verdict {
            Verdict::Keep if was_touched[place] => set_time(&mut dirs, &one.path, one.mtime)?,
            Verdict::Keep => {}
            Verdict::Remove | Verdict::Hide => {
                remove(&mut dirs, one)?;
                was_touched[one.dir] = true;
            }
        }
        if verdict == Verdict::Hide {
            let holder = dirs.parent(&one.path).map_err(io_error("open the directory of", &one.path))?;
            overlay::create_whiteout(&holder, one.path.name())
                .map_err(io_error("create whiteout", &one.path))?;
        }
        has_kept[one.dir] |= verdict != Verdict::Remove;
    }
    Ok(list(found, &verdicts))
}

fn judge(one: &Found, has_kept_below: bool) -> Verdict {
    let remove_if = |condition| if condition { Verdict::Remove } else { Verdict::Keep };
    match &one.what {
        What::Whiteout => remove_if(one.parent.is_none()),
        What::Socket if one.parent.is_some() => Verdict::Hide,
        What::Socket => Verdict::Remove,
        What::Dir { opaque } => {
            let equals = matches!(&one.parent, Some(parent)
                if matches!(parent.entry.kind, Kind::Dir(_)) && parent.entry.meta == one.meta);
            // The root always exists and leads to every change: it is listed for its own sake only.
            remove_if(equals && !opaque && (one.path.is_root() || !has_kept_below))
        }
        _ => remove_if(equals_parent(one)),
    }
}

fn equals_parent(one: &Found) -> bool {
    let Some(parent) = &one.parent else { return false };
    if parent.mtime != one.mtime || parent.entry.meta != one.meta {
        return false;
    }
    match (&one.what, &parent.entry.kind) {
        (
            What::File { size, links: 1, content: Some(content), .. },
            Kind::File { size: old, content: known },
        ) => size == old && content == known,
        (What::Symlink { target }, Kind::Symlink(old)) => target == old,
        (What::Device { major, minor, is_block: false }, Kind::CharDevice { major: old, minor: lesser })
        | (What::Device { major, minor, is_block: true }, Kind::BlockDevice { major: old, minor: lesser }) => {
            major == old && minor == lesser
        }
        (What::Fifo, Kind::Fifo) => true,
        _ => false,
    }
}

fn remove(dirs: &mut Dirs<'_>, one: &Found) -> Result<(), ScanError> {
    let flags = match one.what {
        What::Dir { .. } => {
            dirs.forget(&one.path);
            AtFlags::REMOVEDIR
        }
        _ => AtFlags::empty(),
    };
    let holder = dirs.parent(&one.path).map_err(io_error("open the directory of", &one.path))?;
    rustix::fs::unlinkat(&holder, one.path.name(), flags)
        .map_err(io_error("take out the unchanged", &one.path))
}

fn set_time(dirs: &mut Dirs<'_>, path: &RelPath, mtime: Mtime) -> Result<(), ScanError> {
    let holder = dirs.parent(path).map_err(io_error("open the directory of", path))?;
    let name = if path.is_root() { b"." } else { path.name() };
    rustix::fs::utimensat(&holder, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(io_error("set the time of", path))
}

fn list(found: Vec<Found>, verdicts: &[Verdict]) -> LayerDiff {
    let mut first_of: HashMap<u64, RelPath> = HashMap::new();
    let mut diff = LayerDiff::default();
    for (one, verdict) in found.into_iter().zip(verdicts) {
        let Found { path, meta, mtime, what, .. } = one;
        let (change, mtime) = match (verdict, what) {
            (Verdict::Remove, _) => continue,
            (Verdict::Hide, _) | (_, What::Whiteout | What::Socket) => (Change::Whiteout, Mtime::default()),
            (_, What::Dir { opaque }) => (Change::Dir { meta, opaque }, mtime),
            (_, What::File { size, inode, links, content }) => {
                let first = (links > 1).then(|| first_of.get(&inode)).flatten();
                let change = match first {
                    Some(first) => Change::Hardlink { target: first.clone() },
                    None => {
                        if links > 1 {
                            first_of.insert(inode, path.clone());
                        }
                        let content = content.expect("every file was read, or the scan failed");
                        Change::File { meta, size, content }
                    }
                };
                (change, mtime)
            }
            (_, What::Symlink { target }) => (Change::Symlink { meta, target }, mtime),
            (_, What::Device { major, minor, is_block: false }) => {
                (Change::CharDevice { meta, major, minor }, mtime)
            }
            (_, What::Device { major, minor, is_block: true }) => {
                (Change::BlockDevice { meta, major, minor }, mtime)
            }
            (_, What::Fifo) => (Change::Fifo { meta }, mtime),
        };
        diff.push(DiffEntry { path, change, mtime });
    }
    diff
}
