//! COPY and ADD.

use std::cell::Cell;

use rbuild_oci::FileMode;

use super::contents::{Contents, sourced};
use super::view::{NewDirs, Planned, View};
use super::{CopyError, CopyPlan, FileSource, Moved, Origin};
use crate::layer::{ImpliedDirs, LayerDiff, Mtime};
use crate::path::RelPath;
use crate::scratch::Scratch;
use crate::tree::select::Selected;
use crate::tree::{ContentDigest, Entry, FirstNames, Kind, Meta, NodeStore, Tree, Walk};

/// How one COPY or ADD copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyOptions {
    /// Absolute destination. One that ends in `/` or `/.` must be, or becomes, a directory.
    pub dest: String,
    /// `--chown`, for everything copied and every directory made.
    pub owner: Option<(u32, u32)>,
    /// `--chmod`, for files and directories; directories made on the way take an octal one's permission bits.
    pub chmod: Option<FileMode>,
    /// True when sources come from a build context, whose owners mean nothing: they become 0:0.
    pub from_context: bool,
    /// Modification time of directories made on the way and of heredocs.
    pub now: Mtime,
}

/// One thing to copy. Later items overwrite earlier ones.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub enum CopyItem {
    /// From the source tree.
    Selected(Selected),
    /// A heredoc.
    Inline {
        /// Name in a destination directory.
        name: Vec<u8>,
        /// Bytes.
        content: Vec<u8>,
    },
    /// An archive to unpack (ADD).
    Archive(Archive),
}

/// An archive that was unpacked into a directory of its own. Once it is planned, only its files are wanted.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct Archive {
    /// Where its files are in the source of all archives.
    pub dir: RelPath,
    /// All it holds, sorted.
    pub diff: LayerDiff,
    /// Which of it are directories that the archive only implies by what is in them. They do not change existing ones.
    pub implied: ImpliedDirs,
}

/// Plans one instruction. Each of `items` is asked for when those before it are planned, and let go of before the next.
///
/// `parent` is the state copied into, `parent_times` its modification times. `source` has the
/// files that [`CopyItem::Selected`] items were selected from. With no items, or none that hold anything, the layer has nothing
/// but the root. Rules: dockerfile reference 3.4 to 3.6; where a rule depends on an earlier item of the same
/// instruction (a link it made, a file it put there), that item counts as already copied.
pub fn plan<E: From<CopyError>>(
    nodes: &dyn NodeStore,
    parent: &Tree,
    parent_times: &dyn FileSource,
    source: Option<&dyn FileSource>,
    items: impl IntoIterator<Item = Result<CopyItem, E>>,
    options: &CopyOptions,
    scratch: &Scratch,
) -> Result<CopyPlan, E> {
    let mut planner = Planner { nodes, view: View::new(nodes, parent, scratch), source, scratch, options };
    let mut contents = None;
    for item in items {
        // What comes last need not be held: nothing comes later that might meet it.
        if let Some(contents) = contents.take() {
            planner.view.put_all(contents)?;
        }
        match item? {
            CopyItem::Selected(selected) => contents = planner.selected(&selected)?,
            CopyItem::Inline { name, content } => planner.inline(&name, &content)?,
            CopyItem::Archive(archive) => planner.archive(&archive)?,
        }
    }
    Ok(planner.view.finish(contents, parent_times, options.now, LayerDiff::new(scratch))?)
}

pub(super) struct Planner<'a> {
    nodes: &'a dyn NodeStore,
    pub(super) view: View<'a>,
    source: Option<&'a dyn FileSource>,
    pub(super) scratch: &'a Scratch,
    pub(super) options: &'a CopyOptions,
}

impl<'a> Planner<'a> {
    /// Plans a file, or gives what is in a directory.
    fn selected(&mut self, item: &Selected) -> Result<Option<Contents<'a>>, CopyError> {
        let no_source = || CopyError::NoSource { path: item.path.clone() };
        let files = self.source.ok_or_else(no_source)?;
        if matches!(item.entry.kind, Kind::Dir(_)) {
            return self.contents(item, files).map(Some);
        }
        let planned = sourced(item.entry.clone(), &item.path, files, self.options)?;
        self.file(&item.name, planned, |dest| Origin::Source(Moved::new(item.path.clone(), dest)))?;
        Ok(None)
    }

    fn inline(&mut self, name: &[u8], content: &[u8]) -> Result<(), CopyError> {
        let kind = Kind::File { size: content.len() as u64, content: ContentDigest::of(content) };
        let (uid, gid) = self.options.owner.unwrap_or((0, 0));
        let mode = self.mode(0o644, false);
        let entry = Entry { meta: Meta { mode, uid, gid, ..Meta::default() }, kind };
        let planned = Planned::of(entry, Some(self.options.now));
        self.file(name, planned, |_| Origin::Inline(content.to_vec()))
    }

    /// Puts something that is not a directory to the destination, or into it.
    fn file(
        &mut self,
        name: &[u8],
        mut planned: Planned,
        origin: impl FnOnce(RelPath) -> Origin,
    ) -> Result<(), CopyError> {
        let dest = if self.dest_is_dir() {
            self.dest_dir(|path| CopyError::NotDirectory { path })?.join(name)
        } else {
            let found = self.view.resolve(&self.dest())?;
            match &found.entry.kind {
                Kind::Dir(_) if found.exists() => found.path.join(name),
                _ if found.exists() => found.path,
                _ => {
                    self.view.make_dirs(&found, found.missing.len() - 1, self.new_dirs())?;
                    found.full_path()
                }
            }
        };
        if let Some(Entry { kind: Kind::Dir(_), .. }) = self.view.entry_at(&dest)? {
            return Err(CopyError::ReplaceDirectory { path: dest });
        }
        planned.origin = Some(self.view.rules.number_of(origin(dest.clone()))?);
        self.view.put(dest, planned)
    }

    /// What is in a directory, for the destination. The destination itself keeps its metadata; directories
    /// below it take the source's, whether they exist or not.
    fn contents(&mut self, item: &Selected, files: &'a dyn FileSource) -> Result<Contents<'a>, CopyError> {
        let must_be_dir = self.dest_is_dir();
        let top = self.dest_dir(|path| match must_be_dir {
            true => CopyError::NotDirectory { path },
            false => CopyError::ToNonDirectory { path },
        })?;
        let links = FirstNames::new(item.links.iter(self.nodes, self.scratch)?);
        Ok(Contents {
            walk: Walk::of(self.nodes, item.entry.clone()),
            files,
            options: self.options,
            rule: self.view.rules.number_of(Origin::Source(Moved::new(item.path.clone(), top.clone())))?,
            item: self.view.new_item(),
            links,
            source: item.entry.clone(),
            bare: if self.view.is_bare(&top)? { Some(top.clone()) } else { None },
            trail: Cell::default(),
            from: item.path.clone(),
            top,
        })
    }

    fn mode(&self, mode: u32, is_dir: bool) -> u32 {
        self.options.chmod.as_ref().map_or(mode, |chmod| chmod.apply(mode, is_dir))
    }

    /// The destination as a directory, made when it is missing; `in_the_way` says what to report when it is something
    /// else.
    pub(super) fn dest_dir(
        &mut self,
        in_the_way: impl Fn(RelPath) -> CopyError,
    ) -> Result<RelPath, CopyError> {
        let found = self.view.resolve(&self.dest())?;
        if !matches!(found.entry.kind, Kind::Dir(_)) {
            return Err(in_the_way(found.path));
        }
        self.view.make_dirs(&found, found.missing.len(), self.new_dirs())
    }

    fn dest(&self) -> RelPath {
        RelPath::clamp(self.options.dest.as_bytes())
    }

    fn dest_is_dir(&self) -> bool {
        self.options.dest.ends_with('/') || self.options.dest.ends_with("/.")
    }

    pub(super) fn new_dirs(&self) -> NewDirs {
        NewDirs {
            mode: self.options.chmod.as_ref().and_then(FileMode::octal).map_or(0o755, |mode| mode & 0o777),
            owner: self.options.owner.unwrap_or((0, 0)),
            now: self.options.now,
        }
    }
}
