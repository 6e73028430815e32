//! Deciding what is a change, and taking the rest out.

use std::os::fd::BorrowedFd;

use rustix::fs::AtFlags;

use super::super::diff::{Change, DiffEntry, LayerDiff, Mtime};
use super::super::dirs::Dirs;
use super::super::overlay;
use super::super::unpack::times;
use super::super::xattrs;
use super::walk::{Found, What, open_dir};
use super::{ScanError, io_error, kept_of};
use crate::path::RelPath;
use crate::scratch::Scratch;
use crate::tree::{Kind, Meta};

/// Xattrs of a directory that are held until it is known whether it is listed: they may be thousands deep.
const XATTR_BYTES_KEPT: usize = if cfg!(test) { 150 } else { 1 << 10 };

/// What becomes of one thing that was found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Keep,
    Remove,
    /// A socket that hides something of the parent.
    Hide,
}

/// Takes what was found in order: lists changes, takes the rest out of the directory.
///
/// A directory comes before what is in it, but may stay for its sake alone: it is listed when the first change in it is,
/// and if none was, it goes at its end.
pub(super) struct Settler<'a> {
    dirs: Dirs<'a>,
    /// The directory at hand, last, and those that it is in.
    open: Vec<OpenDir>,
    /// How many of them were listed or, the root, need not be. They are the outer ones: what is in a directory lists it.
    listed: usize,
    diff: LayerDiff,
}

struct OpenDir {
    path: RelPath,
    meta: Meta,
    mtime: Mtime,
    opaque: bool,
    /// They are read again when it is listed.
    lacks_xattrs: bool,
    /// Taking things out of a directory changes its time.
    was_touched: bool,
}

impl<'a> Settler<'a> {
    pub(super) fn new(dir: BorrowedFd<'a>, scratch: &Scratch) -> Self {
        Self { dirs: Dirs::new(dir), open: Vec::new(), listed: 0, diff: LayerDiff::new(scratch) }
    }

    /// Takes what comes next.
    pub(super) fn take(&mut self, one: Found) -> Result<(), ScanError> {
        self.close_to(one.depth)?;
        let verdict = judge(&one);
        if let What::Dir { opaque } = one.what {
            return self.open(one, opaque, verdict);
        }
        if verdict != Verdict::Keep {
            self.remove(&one.path, AtFlags::empty())?;
        }
        if verdict == Verdict::Hide {
            let holder = self.dirs.parent(&one.path).map_err(io_error("open the directory of", &one.path))?;
            overlay::create_whiteout(&holder, one.path.name())
                .map_err(io_error("create whiteout", &one.path))?;
        }
        if verdict != Verdict::Remove {
            self.list_open()?;
            self.diff.push(&entry(one))?;
        }
        Ok(())
    }

    /// The changes, once everything was taken.
    pub(super) fn finish(mut self) -> Result<LayerDiff, ScanError> {
        self.close_to(0)?;
        Ok(self.diff)
    }

    fn open(&mut self, one: Found, opaque: bool, verdict: Verdict) -> Result<(), ScanError> {
        let Found { path, mut meta, mtime, .. } = one;
        let is_root = path.is_root();
        let lacks_xattrs = verdict != Verdict::Keep && meta.held_xattr_bytes() > XATTR_BYTES_KEPT;
        if lacks_xattrs {
            meta.xattrs.clear();
        }
        self.open.push(OpenDir { path, meta, mtime, opaque, lacks_xattrs, was_touched: false });
        if verdict == Verdict::Keep {
            self.list_open()?;
        } else if is_root {
            // It always exists and leads to every change: it is listed for its own sake only.
            self.listed = 1;
        }
        Ok(())
    }

    /// Lists the directories at hand that are not yet.
    fn list_open(&mut self) -> Result<(), ScanError> {
        for dir in &mut self.open[self.listed..] {
            let (path, mut meta) = (&dir.path, std::mem::take(&mut dir.meta));
            if dir.lacks_xattrs {
                let holder = self.dirs.parent(path).map_err(io_error("open the directory of", path))?;
                let dir = open_dir(holder, path)?;
                let names = xattrs::Names::of(&dir).map_err(io_error("list xattrs of", path))?;
                meta.xattrs = kept_of(&dir, &names, path)?;
            }
            let change = Change::Dir { meta, opaque: dir.opaque };
            self.diff.push(&DiffEntry { path: dir.path.clone(), change, mtime: dir.mtime })?;
        }
        self.listed = self.open.len();
        Ok(())
    }

    /// Leaves directories until `depth` are at hand. Deepest first: they are empty when they go.
    fn close_to(&mut self, depth: usize) -> Result<(), ScanError> {
        while self.open.len() > depth {
            let Some(OpenDir { path, mtime, was_touched, .. }) = self.open.pop() else { break };
            if self.listed <= self.open.len() {
                self.dirs.forget(&path);
                self.remove(&path, AtFlags::REMOVEDIR)?;
                continue;
            }
            self.listed = self.open.len();
            if was_touched {
                self.set_time(&path, mtime)?;
            }
        }
        Ok(())
    }

    /// Takes something out of the directory at hand.
    fn remove(&mut self, path: &RelPath, flags: AtFlags) -> Result<(), ScanError> {
        let holder = self.dirs.parent(path).map_err(io_error("open the directory of", path))?;
        rustix::fs::unlinkat(&holder, path.name(), flags)
            .map_err(io_error("take out the unchanged", path))?;
        if let Some(dir) = self.open.last_mut() {
            dir.was_touched = true;
        }
        Ok(())
    }

    fn set_time(&mut self, path: &RelPath, mtime: Mtime) -> Result<(), ScanError> {
        let holder = self.dirs.parent(path).map_err(io_error("open the directory of", path))?;
        let name = if path.is_root() { b"." } else { path.name() };
        rustix::fs::utimensat(&holder, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(io_error("set the time of", path))
    }
}

/// Of a directory: whether it is a change itself.
fn judge(one: &Found) -> Verdict {
    let remove_if = |condition| if condition { Verdict::Remove } else { Verdict::Keep };
    match &one.what {
        What::Whiteout => remove_if(one.parent.is_none()),
        What::Socket if one.parent.is_some() => Verdict::Hide,
        What::Socket => Verdict::Remove,
        What::Dir { opaque } => {
            let equals = matches!(&one.parent, Some(parent)
                if matches!(parent.entry.kind, Kind::Dir(_)) && parent.entry.meta == one.meta);
            remove_if(equals && !opaque)
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

/// How something that stays is listed.
fn entry(one: Found) -> DiffEntry {
    let Found { path, meta, mtime, what, .. } = one;
    let change = match what {
        What::Whiteout | What::Socket => {
            return DiffEntry { path, change: Change::Whiteout, mtime: Mtime::default() };
        }
        What::Dir { opaque } => Change::Dir { meta, opaque },
        What::File { first: Some(target), .. } => Change::Hardlink { target },
        What::File { size, content, .. } => {
            let content = content.expect("every file was read, or the scan failed");
            Change::File { meta, size, content }
        }
        What::Symlink { target } => Change::Symlink { meta, target },
        What::Device { major, minor, is_block: false } => Change::CharDevice { meta, major, minor },
        What::Device { major, minor, is_block: true } => Change::BlockDevice { meta, major, minor },
        What::Fifo => Change::Fifo { meta },
    };
    DiffEntry { path, change, mtime }
}
