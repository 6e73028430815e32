//! Packing a planned layer: its contents into packs and its archive out of them, in one pass over the sources.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::fstat;

use super::origins::{Finder, Found};
use super::{CopyPlan, FileSource, MaterialiseError, Origin, Origins, SourceError, Sources, materialise};
use crate::layer::{
    Bodies, Change, DiffEntry, Each, EmitError, LayerDiff, ListingError, Marks, Mtime, OverlayForm, Pack,
    PackBodies, PackWriter, PassError, Start, TarPlace, checked, emit_from, read_all,
};
use crate::path::RelPath;
use crate::scratch::Scratch;
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
/// them. What the others have is written again, so neither dead bytes nor small packs pile up. An error when a pack cannot
/// say what it has.
pub fn worth_sharing(diff: &LayerDiff, packs: &[Pack]) -> Result<Vec<bool>, EmitError> {
    let mut used = vec![0_u64; packs.len()];
    let bodies = PackBodies::new(packs);
    for entry in diff {
        let entry = entry?;
        if let Change::File { content, .. } = &entry.change
            && let Some((pack, place)) = bodies.find(&entry.path, content)?
        {
            used[pack] = used[pack].saturating_add(place.length);
        }
    }
    let is_worth = |at: &usize| used[*at].saturating_mul(2) >= packs[*at].bytes();
    let mut order: Vec<usize> = (0..packs.len()).filter(is_worth).collect();
    order.sort_by_key(|at| std::cmp::Reverse(used[*at]));
    order.truncate(SHARED_MAX);
    Ok((0..packs.len()).map(|at| order.contains(&at)).collect())
}

/// Gives directories that are being made `now` the time that they have in `earlier`, the layer that the same step made
/// last: layers that differ in little then begin alike.
pub fn keep_times(
    diff: LayerDiff,
    now: Mtime,
    earlier: &LayerDiff,
    scratch: &Scratch,
) -> Result<LayerDiff, ListingError> {
    let known = |entry: &DiffEntry| {
        if entry.mtime != now || !matches!(entry.change, Change::Dir { .. }) {
            return Ok(None);
        }
        // What cannot be read of it gives no time.
        let before = earlier.get(&entry.path).ok().flatten();
        Ok(before.filter(|before| before.change == entry.change))
    };
    let mut is_any_known = false;
    for entry in &diff {
        if known(&entry?)?.is_some() {
            is_any_known = true;
            break;
        }
    }
    if !is_any_known {
        return Ok(diff);
    }
    let mut kept = LayerDiff::new(scratch);
    for entry in &diff {
        let entry = entry?;
        kept.push(&known(&entry)?.unwrap_or(entry))?;
    }
    Ok(kept)
}

/// Which marks of the archive of `earlier` hold for that of `diff`: it begins with the same entries, and nothing of them is
/// to be packed, as `shared` have their contents. An error when a pack cannot say what it has.
pub fn marks_that_hold(
    mut marks: Marks,
    earlier: &LayerDiff,
    diff: &LayerDiff,
    shared: &[Pack],
) -> Result<Marks, EmitError> {
    let bodies = PackBodies::new(shared);
    let is_there = |entry: &DiffEntry| match &entry.change {
        Change::File { size, content, .. } if *size > 0 => {
            let found = bodies.find(&entry.path, content)?;
            Ok::<_, EmitError>(found.is_some_and(|(_, place)| place.length == *size))
        }
        _ => Ok(true),
    };
    let mut same = 0;
    for (entry, before) in diff.iter().zip(earlier).take(marks.entries()) {
        let entry = entry?;
        if entry != before? || !is_there(&entry)? {
            break;
        }
        same += 1;
    }
    marks.truncate(same);
    Ok(marks)
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
        origins: plan.origins.finder(),
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
    origins: Finder<'a>,
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
        if size > 0 && self.shared.try_body(path, size, content, each)? {
            return Ok(());
        }
        let found = self.sources.find(&mut self.origins, path);
        let is_new = size > 0 && !self.pack.has(content);
        let (pack, mut is_packed) = (&mut *self.pack, true);
        let mut take = |bytes: &[u8]| {
            if is_new {
                pack.write(bytes).inspect_err(|_| is_packed = false)?;
            }
            each(bytes)
        };
        let failure = match stream(found, path, size, content, &mut self.buffer, &mut take) {
            Ok(()) if is_new => match self.pack.end(*content, size) {
                Ok(()) => return Ok(()),
                Err(error) => PackLayerError::Pack(error),
            },
            Ok(()) => return Ok(()),
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
    found: Result<Option<Found<'_>>, ListingError>,
    path: &RelPath,
    size: u64,
    content: &ContentDigest,
    buffer: &mut Vec<u8>,
    take: Each<'_>,
) -> Result<(), Unread> {
    let (source, from) = match found.map_err(MaterialiseError::from)? {
        Some(Found::Bytes(bytes)) => return take(&bytes).map_err(Unread::Take),
        Some(Found::File(source, from)) => (source, from),
        Some(Found::Packed) | None => {
            return Err(MaterialiseError::NoSource { path: path.clone() }.into());
        }
    };
    let Some(opened) = open_planned(source, path, &from, size)? else { return Ok(()) };
    match checked(content, take, |take| read_all(&opened, size, buffer, take)) {
        Ok(true) => Ok(()),
        Ok(false) => Err(MaterialiseError::not_as_planned(source, path, from).into()),
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
        return Err(MaterialiseError::not_as_planned(source, path, from.clone()));
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
    let sources = Sources { packs, ..Sources::default() };
    let plan = CopyPlan { diff, origins: Origins::all(&Origin::Packed) };
    materialise(&plan, dir.as_fd(), &sources, form.owners(), form)
}
