//! From an upper directory that a RUN left behind to a listing.
//!
//! ```text
//!  walk (sorted, files not looked at) ─▶ open, hash files (two threads when large) ─▶ compare with the parent
//! ```
//!
//! All in batches: of a large layer only the way to what is looked at is in memory.
//!
//! overlayfs copies a file up when it is opened for writing or its mode is set, changed or not. What equals the
//! parent is taken out of the directory again, so that a layer holds changes only and a step that changed nothing
//! gives an empty layer.

mod compare;
mod firsts;
mod hash;
mod verify;
mod walk;
mod whole;

pub use verify::verify_layer;
pub use whole::Untouched;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use self::compare::Settler;
use self::hash::Reader;
use self::walk::{Found, Walker};
use super::diff::{LayerDiff, ListingError, Mtime};
use super::limits::Limits;
use super::overlay::{self, OverlayForm, Owners};
use super::xattrs;
use crate::path::RelPath;
use crate::scratch::Scratch;
use crate::tree::{Entry, Meta};

/// An entry of the layers below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentEntry {
    /// Metadata, type, content. The digest inside a directory's kind is not looked at.
    pub entry: Entry,
    /// Modification time, as the layer directory that has it says.
    pub mtime: Mtime,
}

/// A look-up in the parent failed.
pub type ParentViewError = Box<dyn std::error::Error + Send + Sync>;

/// The merged state the RUN started from.
pub trait ParentView {
    /// The entry at a path (the root is the empty one), `None` if there is none. A path below something that is not a
    /// directory has none.
    fn entry(&self, path: &RelPath) -> Result<Option<ParentEntry>, ParentViewError>;
}

/// Why an upper directory could not be listed. It is left in place, possibly with no-op copies taken out.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The list of changes cannot be kept, or that of a layer not read.
    #[error(transparent)]
    Listing(#[from] ListingError),
    /// A system call failed.
    #[error("{step} `{path}` in the changes of the step")]
    Io {
        /// What was being done.
        step: &'static str,
        /// To what, below the root.
        path: RelPath,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Asking the parent failed.
    #[error("look up `{path}` in the layers below")]
    Parent {
        /// The entry.
        path: RelPath,
        /// Cause.
        #[source]
        source: ParentViewError,
    },
    /// More entries than any layer may have.
    #[error("the step changed more than {max} files")]
    TooManyEntries {
        /// Limit.
        max: u64,
    },
    /// A path that no layer archive of ours may have: its listing would not unpack again.
    #[error(
        "a path in the changes of the step has more than {max} bytes or too many levels: it starts with `{start}`"
    )]
    PathTooLong {
        /// Limit in bytes.
        max: usize,
        /// First bytes of the path.
        start: String,
    },
    /// All paths together are too long.
    #[error("the names of the files that the step changed take more than {max} bytes")]
    ListingTooLarge {
        /// Limit in bytes.
        max: u64,
    },
    /// More than an entry of a layer archive may have: its listing would not unpack again.
    #[error("the xattrs of `{path}`, which the step changed, take more than {max} bytes")]
    XattrsTooLong {
        /// The file or directory.
        path: RelPath,
        /// Limit in bytes of names and values.
        max: usize,
    },
    /// overlayfs stored a reference instead of the thing itself.
    #[error(
        "`{path}` was changed in place of its copy: the overlay must be mounted without metacopy and redirect_dir"
    )]
    RefersToLower {
        /// The file or directory.
        path: RelPath,
    },
    /// A file changed while it was read: something still runs in the container.
    #[error("`{path}` changed while it was read: a process of the step may still be running")]
    Changing {
        /// The file.
        path: RelPath,
    },
}

fn io_error<E: Into<io::Error>>(step: &'static str, path: &RelPath) -> impl FnOnce(E) -> ScanError {
    move |error| ScanError::Io { step, path: path.clone(), source: error.into() }
}

/// What the xattrs of a file or directory say.
struct Attributes {
    /// Those that layers carry.
    kept: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The owner, in the form that notes it there.
    owner: Option<(u32, u32)>,
}

/// Xattrs of something in the upper directory, which must be all there.
fn read_xattrs(fd: impl AsFd, path: &RelPath, form: OverlayForm) -> Result<Attributes, ScanError> {
    let names = xattrs::Names::of(&fd).map_err(io_error("list xattrs of", path))?;
    if names.refer_to_lower() {
        return Err(ScanError::RefersToLower { path: path.clone() });
    }
    let is_noted = form.owners() == Owners::Noted && names.contain(overlay::OWNER_NAME);
    let owner = if is_noted { overlay::noted_owner(&fd) } else { Ok(None) };
    let owner = owner.map_err(io_error("read the owner of", path))?;
    let kept = kept_of(fd, &names, path)?;
    Ok(Attributes { kept, owner })
}

/// Those of `names`, which are all that `fd` has, that layers carry.
fn kept_of(
    fd: impl AsFd,
    names: &xattrs::Names,
    path: &RelPath,
) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, ScanError> {
    let max = Limits::default().xattr_bytes_max;
    match xattrs::read_kept(fd, names, max) {
        Err(Errno::TOOBIG) => Err(ScanError::XattrsTooLong { path: path.clone(), max }),
        kept => kept.map_err(io_error("read xattrs of", path)),
    }
}

/// The owner that a step gave to what is at a path, if it did.
type SpecialOwner<'a> = dyn Fn(&RelPath) -> io::Result<Option<(u32, u32)>> + 'a;

/// Owners of what a step left behind, in the form that has them noted ([`OverlayForm::SingleId`]).
pub struct StepOwners<'a> {
    /// Whom what the step made belongs to: its user.
    pub user: (u32, u32),
    /// The owner that the step gave a symbolic link, pipe or device, if it did: those carry no note.
    pub special: &'a SpecialOwner<'a>,
}

impl StepOwners<'_> {
    /// The owner of something without a note, whose directory gives `group` to what is made in it. What the layers below
    /// have in its place, of the same type, was copied up from there, unless root made it anew: then theirs would have
    /// come with a note.
    fn without_note(
        &self,
        path: &RelPath,
        is_special: bool,
        below: Option<&ParentEntry>,
        group: Option<u32>,
    ) -> io::Result<(u32, u32)> {
        let recorded = if is_special { (self.special)(path)? } else { None };
        let below = below.map(|below| (below.entry.meta.uid, below.entry.meta.gid));
        Ok(recorded.unwrap_or(match below {
            Some(owner) if is_special || self.user != (0, 0) || owner == (0, 0) => owner,
            _ => (self.user.0, group.unwrap_or(self.user.1)),
        }))
    }
}

/// The group that a set-group-id directory gives to what is made in it.
fn inherited_group(dir: &Meta) -> Option<u32> {
    (dir.mode & 0o2000 != 0).then_some(dir.gid)
}

/// Notes an owner that was only known from whom the step ran as, so that the next copy-up takes it along.
fn note_owner(fd: impl AsFd, path: &RelPath, form: OverlayForm, meta: &Meta) -> Result<(), ScanError> {
    if form.owners() != Owners::Noted || (meta.uid, meta.gid) == (0, 0) {
        return Ok(());
    }
    Owners::Noted.give(fd, meta).map_err(io_error("note the owner of", path))
}

/// For a layer that is looked at later: what carries no note belongs to root.
const ROOTS_OWN: StepOwners<'static> = StepOwners { user: (0, 0), special: &|_| Ok(None) };

/// Lists what a RUN changed, and takes what it did not change out of the directory.
///
/// `dir` is the upper directory, unmounted or at least at rest. Taken out are: files, links and devices equal to the
/// parent's (times included; names of a file with several hard links are kept, for they may be new); directories with
/// the parent's metadata and nothing changed below, whatever their time (containerd compares neither); whiteouts of
/// nothing; opaque marks over nothing, which overlayfs sets on every new directory. Sockets are removed, as in every
/// image; one that hid something becomes a whiteout. The root is listed only when its owner, mode or xattrs differ.
/// Kept are the xattrs that layers carry, never overlayfs' own. Names beyond a few MiB of one directory are in `scratch`
/// meanwhile, and so is what the listing has beyond that.
pub fn scan_upper(
    dir: BorrowedFd<'_>,
    form: OverlayForm,
    parent: &dyn ParentView,
    scratch: &Scratch,
) -> Result<LayerDiff, ScanError> {
    scan_upper_of(dir, form, parent, &ROOTS_OWN, scratch)
}

/// [`scan_upper`] where owners are noted: those that are not come from `owners`.
pub fn scan_upper_of(
    dir: BorrowedFd<'_>,
    form: OverlayForm,
    parent: &dyn ParentView,
    owners: &StepOwners<'_>,
    scratch: &Scratch,
) -> Result<LayerDiff, ScanError> {
    settle_in_batches(dir, form, parent, owners, scratch, walk::AT_ONCE)
}

fn settle_in_batches(
    dir: BorrowedFd<'_>,
    form: OverlayForm,
    parent: &dyn ParentView,
    owners: &StepOwners<'_>,
    scratch: &Scratch,
    at_once: usize,
) -> Result<LayerDiff, ScanError> {
    let mut settler = Settler::new(dir, scratch);
    for_each(dir, form, parent, owners, scratch, at_once, |one| settler.take(one))?;
    settler.finish()
}

/// Shows `take` everything below `dir` in [`RelPath`]'s order, the root first, files read. No more than `at_once` are in
/// memory before it takes them, and of their xattrs no more than [`hash::XATTR_BYTES_AT_ONCE`]: beyond that, those of a file
/// are read when it is its turn.
fn for_each(
    dir: BorrowedFd<'_>,
    form: OverlayForm,
    parent: &dyn ParentView,
    owners: &StepOwners<'_>,
    scratch: &Scratch,
    at_once: usize,
    mut take: impl FnMut(Found) -> Result<(), ScanError>,
) -> Result<(), ScanError> {
    let mut walker = Walker::new(dir, form, parent, owners, scratch);
    let mut reader = Reader::new(dir, form, scratch)?;
    let mut batch = vec![walker.root()?];
    loop {
        walker.fill(&mut batch, at_once)?;
        if batch.is_empty() {
            return Ok(());
        }
        reader.read(&mut batch)?;
        batch.drain(..).try_for_each(|mut one| {
            reader.complete(&mut one)?;
            take(one)
        })?;
    }
}

#[cfg(test)]
mod tests;
