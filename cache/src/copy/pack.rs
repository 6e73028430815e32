//! Packing a planned layer: its contents into packs and its archive out of them, in one pass over the sources.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::fstat;

use super::{CopyPlan, FileOrigin, FileSource, MaterialiseError, SourceError, Sources, materialise};
use crate::layer::{
    Bodies, Change, DiffEntry, Each, EmitError, LayerDiff, Marks, Mtime, OverlayForm, Pack, PackBodies,
    PackReader, PackWriter, PassError, Start, TarPlace, checked, emit_from, read_all,
};
use crate::path::RelPath;
use crate::tree::ContentDigest;

/// Packs of earlier layers that a layer may share. Each is a file to open and an index to search.
const SHARED_MAX: usize = 8;

/// Why a layer was not packed. What was written is to be thrown away.
#[derive(Debug, thiserror::Error)]
pub enum PackLayerError {
    /// A source.
    #[error(transparent)]
    Source(MaterialiseError),
    /// The pack cannot be written.
    #[error("write the pack of a layer")]
    Pack(#[source] io::Error),
    /// The archive.
    #[error(transparent)]
    Emit(EmitError),
}

/// Which packs of an earlier layer are worth sharing: those of which at least half would be used, and not too many of
/// them. What the others have is written again, so neither dead bytes nor small packs pile up.
pub fn worth_sharing(diff: &LayerDiff, packs: &[Pack]) -> Vec<bool> {
    let mut used = vec![0_u64; packs.len()];
    let reader = PackReader::new(packs);
    for entry in diff {
        if let Change::File { content, .. } = entry.change
            && let Some((pack, place)) = reader.find(&content)
        {
            used[pack] += place.length;
        }
    }
    let mut order: Vec<usize> = (0..packs.len()).filter(|at| used[*at] * 2 >= packs[*at].bytes()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(used[*at]));
    order.truncate(SHARED_MAX);
    (0..packs.len()).map(|at| order.contains(&at)).collect()
}

/// Gives directories that are being made `now` the time that they have in `earlier`, the layer that the same step made
/// last: layers that differ in little then begin alike.
pub fn keep_times(diff: LayerDiff, now: Mtime, earlier: &LayerDiff) -> LayerDiff {
    let is_made = |entry: &DiffEntry| entry.mtime == now && matches!(entry.change, Change::Dir { .. });
    let mut known = HashMap::new();
    for entry in diff.iter().filter(is_made) {
        if let Some(before) = earlier.get(&entry.path).filter(|before| before.change == entry.change) {
            known.insert(entry.path, before.mtime);
        }
    }
    if known.is_empty() {
        return diff;
    }
    let timed = |mut entry: DiffEntry| {
        if is_made(&entry)
            && let Some(mtime) = known.get(&entry.path)
        {
            entry.mtime = *mtime;
        }
        entry
    };
    diff.iter().map(timed).collect()
}

/// Which marks of the archive of `earlier` hold for that of `diff`: it begins with the same entries, and nothing of them is
/// to be packed, as `shared` have their contents.
pub fn marks_that_hold(mut marks: Marks, earlier: &LayerDiff, diff: &LayerDiff, shared: &[Pack]) -> Marks {
    let reader = PackReader::new(shared);
    let is_there = |entry: &DiffEntry| match &entry.change {
        Change::File { size, content, .. } => {
            *size == 0 || reader.find(content).is_some_and(|(_, place)| place.length == *size)
        }
        _ => true,
    };
    let both = diff.iter().zip(earlier).take(marks.entries());
    marks.truncate(both.take_while(|(entry, before)| entry == before && is_there(entry)).count());
    marks
}

/// Writes what follows `start` of a planned layer's archive to `out`, and into `pack` every content there that none of
/// `shared` has. Each source is read once; bytes that are not what was planned are an error. Gives what [`emit_from`] does.
pub fn pack(
    plan: &CopyPlan,
    sources: &Sources<'_>,
    shared: &[Pack],
    pack: &mut PackWriter,
    start: &Start,
    out: &mut dyn Write,
) -> Result<Vec<TarPlace>, PackLayerError> {
    let mut packing = Packing {
        sources,
        files: &plan.files,
        shared: PackBodies::new(shared),
        pack,
        buffer: Vec::new(),
        failure: None,
    };
    let emitted = emit_from(&mut packing, &plan.diff, None, start, out);
    match (packing.failure, emitted) {
        (Some(failure), _) => Err(failure),
        (None, emitted) => emitted.map_err(PackLayerError::Emit),
    }
}

struct Packing<'a> {
    sources: &'a Sources<'a>,
    /// Origins of the files that are still to come, in the listing's order.
    files: &'a [(RelPath, FileOrigin)],
    shared: PackBodies<'a>,
    pack: &'a mut PackWriter,
    buffer: Vec<u8>,
    /// What an error of the archive really was.
    failure: Option<PackLayerError>,
}

impl Bodies for Packing<'_> {
    fn body(
        &mut self,
        path: &RelPath,
        size: u64,
        content: &ContentDigest,
        each: Each<'_>,
    ) -> Result<(), EmitError> {
        while self.files.first().is_some_and(|(at, _)| at < path) {
            self.files = &self.files[1..];
        }
        if size > 0 && self.shared.try_body(path, size, content, each)? {
            return Ok(());
        }
        let origin = self.files.first().filter(|(at, _)| at == path).map(|(_, origin)| origin);
        let is_new = size > 0 && !self.pack.has(content);
        let (pack, mut is_packed) = (&mut *self.pack, true);
        let mut take = |bytes: &[u8]| {
            if is_new {
                pack.write(bytes).inspect_err(|_| is_packed = false)?;
            }
            each(bytes)
        };
        let failure = match stream(self.sources, path, origin, size, content, &mut self.buffer, &mut take) {
            Ok(()) => {
                if is_new {
                    self.pack.end(*content, size);
                }
                return Ok(());
            }
            Err(Unread::Take(error)) if is_packed => return Err(EmitError::Write(error)),
            Err(Unread::Take(error)) => PackLayerError::Pack(error),
            Err(Unread::Source(error)) => PackLayerError::Source(error),
        };
        self.failure = Some(failure);
        Err(EmitError::Changed { path: path.clone(), what: "its source cannot be packed" })
    }
}

/// Hands the bytes of a planned file to `take` and checks that they are the planned ones.
fn stream(
    sources: &Sources<'_>,
    path: &RelPath,
    origin: Option<&FileOrigin>,
    size: u64,
    content: &ContentDigest,
    buffer: &mut Vec<u8>,
    take: Each<'_>,
) -> Result<(), Unread> {
    let no_source = || MaterialiseError::NoSource { path: path.clone() };
    let (source, from): (&dyn FileSource, _) = match origin.ok_or_else(no_source)? {
        FileOrigin::Inline(bytes) => return take(bytes).map_err(Unread::Take),
        FileOrigin::Source(from) => (sources.main.ok_or_else(no_source)?, from),
        FileOrigin::Archive { index, path: from } => {
            (*sources.archives.get(*index).ok_or_else(no_source)?, from)
        }
        FileOrigin::Packed { .. } => return Err(no_source().into()),
    };
    let Some(opened) = open_planned(source, path, from, size)? else { return Ok(()) };
    match checked(content, take, |take| read_all(&opened, size, buffer, take)) {
        Ok(true) => Ok(()),
        Ok(false) => Err(MaterialiseError::Changed { source_path: from.clone() }.into()),
        Err(PassError::Take(error)) => Err(Unread::Take(error)),
        Err(PassError::Read(source)) => {
            Err(MaterialiseError::Io { action: "read", path: path.clone(), source }.into())
        }
    }
}

/// Why the bytes of a file were not handed on.
enum Unread {
    Source(MaterialiseError),
    Take(io::Error),
}

impl From<MaterialiseError> for Unread {
    fn from(error: MaterialiseError) -> Self {
        Self::Source(error)
    }
}

/// Opens a source file that must have the planned size; one that may change may have grown since it was hashed (the log
/// of this build, say) and is taken as it was. `None` when there is nothing to read.
pub(super) fn open_planned(
    source: &dyn FileSource,
    path: &RelPath,
    from: &RelPath,
    size: u64,
) -> Result<Option<OwnedFd>, MaterialiseError> {
    let opened = source.open(from);
    if size == 0 && matches!(opened, Err(SourceError::NotRegular { .. })) {
        // A socket, which counts as an empty file. Whatever it is, none of its bytes were planned.
        return Ok(None);
    }
    let opened = opened.map_err(|source| MaterialiseError::Source { path: path.clone(), source })?;
    let found = fstat(&opened).map_err(|errno| MaterialiseError::Io {
        action: "look at the source of",
        path: path.clone(),
        source: errno.into(),
    })?;
    let found = u64::try_from(found.st_size).unwrap_or(0);
    if found < size || (found > size && source.is_immutable()) {
        return Err(MaterialiseError::Changed { source_path: from.clone() });
    }
    Ok((size > 0).then_some(opened))
}

/// Writes a packed layer into `dir`, an empty directory, as `materialise` does. Every content is hashed on the way.
pub fn materialise_packed(
    diff: LayerDiff,
    packs: &[Pack],
    dir: BorrowedFd<'_>,
    form: OverlayForm,
) -> Result<(), MaterialiseError> {
    let reader = PackReader::new(packs);
    let mut files = Vec::new();
    for entry in &diff {
        let Change::File { size, content, .. } = &entry.change else { continue };
        let found = reader.find(content).filter(|(_, place)| place.length == *size);
        let origin = match found {
            Some((index, place)) => FileOrigin::Packed { index, at: place.offset },
            None if *size == 0 => FileOrigin::Inline(Vec::new()),
            None => return Err(MaterialiseError::NoSource { path: entry.path.clone() }),
        };
        files.push((entry.path.clone(), origin));
    }
    let files_of_packs: Vec<&File> = packs.iter().map(Pack::file).collect();
    let sources = Sources { packs: &files_of_packs, ..Sources::default() };
    materialise(&CopyPlan { diff, files }, dir.as_fd(), &sources, form.owners(), form)
}
