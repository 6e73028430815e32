//! What ADD does with a local file that is an archive: unpacks it to where COPY takes files from.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::PathBuf;

use rbuild_cache::copy::{Archive, DirSource, FileSource, MaterialiseError};
use rbuild_cache::layer::{self, Limits, Unpacked};
use rbuild_cache::tree::Kind;
use rbuild_cache::tree::select::Selected;

use crate::cancel::Cancel;
use crate::error::StepFailure;
use crate::ops::ExecEnv;

/// An unpacked archive, in a directory of the build's work area. Dropping it removes the directory.
pub struct Unarchived {
    unpacked: Unpacked,
    files: DirSource,
    _scratch: Scratch,
}

impl Unarchived {
    /// What it holds, for the plan.
    pub fn archive(&self) -> Archive<'_> {
        Archive { diff: &self.unpacked.diff, implied: &self.unpacked.implied_dirs }
    }

    /// Where its files are.
    pub fn files(&self) -> &dyn FileSource {
        &self.files
    }
}

/// Unpacks a selected entry when it is a regular file and its bytes are an archive; `None` means that it is to be
/// copied like any other.
pub fn unpack(
    env: &ExecEnv,
    selected: &Selected,
    files: &dyn FileSource,
) -> Result<Option<Unarchived>, StepFailure> {
    let Kind::File { size, content } = &selected.entry.kind else { return Ok(None) };
    if *size == 0 {
        return Ok(None);
    }
    let (path, limits) = (&selected.path, Limits::default());
    match layer::is_archive(File::from(files.open(path)?), &limits) {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(source) => return Err(StepFailure::AddRead { path: path.to_string(), source }),
    }
    let scratch = Scratch(env.lease.new_dir()?);
    let dir = File::open(&scratch.0).map_err(|source| StepFailure::Io {
        what: "open",
        path: scratch.0.display().to_string(),
        source,
    })?;
    let mut file = Watched {
        // One byte more than was scanned is enough to see that the file grew.
        inner: File::from(files.open(path)?).take(size.saturating_add(1)),
        hash: blake3::Hasher::new(),
        cancel: &env.cancel,
    };
    let unpacked = layer::unpack_archive(&mut file, dir.as_fd(), &limits, &env.store.scratch());
    if env.cancel.reason().is_some() {
        return Err(StepFailure::Canceled);
    }
    let (unpacked, _) =
        unpacked.map_err(|source| StepFailure::AddUnpack { path: path.to_string(), source })?;
    // The key of this step was computed from the bytes that the scan saw.
    if file.hash.finalize().as_bytes() != &content.0 {
        return Err(MaterialiseError::Changed { source_path: path.clone() }.into());
    }
    Ok(Some(Unarchived { unpacked, files: DirSource::disposable(dir.into()), _scratch: scratch }))
}

/// A directory that goes when it is dropped.
pub(super) struct Scratch(pub(super) PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // Early, as an archive may be large. What stays, the end of the lease removes.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Hashes what is read, and stops when the build does.
struct Watched<'a> {
    inner: io::Take<File>,
    hash: blake3::Hasher,
    cancel: &'a Cancel,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.reason().is_some() {
            return Err(io::Error::other("the build was stopped"));
        }
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}
