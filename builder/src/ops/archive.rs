//! What ADD does with a local file that is an archive: unpacks it to where COPY takes files from.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

use rbuild_cache::copy::{Archive, CopyItem, DirSource, FileSource, MaterialiseError};
use rbuild_cache::layer::{self, Limits, Unpacked};
use rbuild_cache::path::RelPath;
use rbuild_cache::store::ScratchDir;
use rbuild_cache::tree::Kind;
use rbuild_cache::tree::select::Selected;

use crate::cancel::Cancel;
use crate::error::StepFailure;
use crate::ops::ExecEnv;

/// The archives of one instruction, unpacked one after the other, each into a directory of its own below one of the build's work
/// area. Nothing is held for each: a pattern may match as many as there are files. Dropping it removes the directory.
pub struct Archives<'a> {
    env: &'a ExecEnv,
    /// Where they are taken from.
    source: Option<&'a dyn FileSource>,
    unpacked: Option<AllUnpacked>,
    total: u64,
}

struct AllUnpacked {
    files: DirSource,
    /// Goes early, as an archive may be large.
    dir: ScratchDir,
}

impl<'a> Archives<'a> {
    /// None so far; there is none without a source.
    pub fn new(env: &'a ExecEnv, source: Option<&'a dyn FileSource>) -> Self {
        Self { env, source, unpacked: None, total: 0 }
    }

    /// Where the files of all of them are.
    pub fn files(&self) -> Option<&dyn FileSource> {
        self.unpacked.as_ref().map(|unpacked| &unpacked.files as &dyn FileSource)
    }

    /// A selected entry as what is in it, when it is a regular file and its bytes are an archive; else it is to be copied like
    /// any other.
    pub fn item(&mut self, selected: Selected) -> Result<CopyItem, StepFailure> {
        Ok(match self.unpack(&selected)? {
            Some(archive) => CopyItem::Archive(archive),
            None => CopyItem::Selected(selected),
        })
    }

    fn unpack(&mut self, selected: &Selected) -> Result<Option<Archive>, StepFailure> {
        let (Kind::File { size, content }, Some(source)) = (&selected.entry.kind, self.source) else {
            return Ok(None);
        };
        if *size == 0 {
            return Ok(None);
        }
        let (env, path, limits) = (self.env, &selected.path, Limits::default());
        match layer::is_archive(File::from(source.open(path)?), &limits) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(source) => return Err(StepFailure::AddRead { path: path.to_string(), source }),
        }
        let (name, dir) = self.new_dir()?;
        let mut file = Watched {
            // One byte more than was scanned is enough to see that the file grew.
            inner: File::from(source.open(path)?).take(size.saturating_add(1)),
            hash: blake3::Hasher::new(),
            cancel: &env.cancel,
        };
        let unpacked = layer::unpack_archive(&mut file, dir.as_fd(), &limits, &env.store.scratch());
        if env.cancel.reason().is_some() {
            return Err(StepFailure::Canceled);
        }
        let (Unpacked { diff, implied_dirs: implied, .. }, _) =
            unpacked.map_err(|source| StepFailure::AddUnpack { path: path.to_string(), source })?;
        // The key of this step was computed from the bytes that the scan saw.
        if file.hash.finalize().as_bytes() != &content.0 {
            return Err(MaterialiseError::Changed { source_path: path.clone() }.into());
        }
        Ok(Some(Archive { dir: name, diff, implied }))
    }

    /// An empty directory for the next one, and its name.
    fn new_dir(&mut self) -> Result<(RelPath, File), StepFailure> {
        let all = match &mut self.unpacked {
            Some(all) => all,
            none => {
                let dir = self.env.lease.scratch_dir()?;
                let files = DirSource::disposable(open_dir(dir.path())?.into());
                none.insert(AllUnpacked { files, dir })
            }
        };
        let name = self.total.to_string();
        self.total += 1;
        let path = all.dir.path().join(&name);
        std::fs::create_dir(&path).map_err(|source| dir_error("make", &path, source))?;
        Ok((RelPath::root().join(name.as_bytes()), open_dir(&path)?))
    }
}

fn open_dir(path: &Path) -> Result<File, StepFailure> {
    File::open(path).map_err(|source| dir_error("open", path, source))
}

fn dir_error(what: &'static str, path: &Path, source: io::Error) -> StepFailure {
    StepFailure::Io { what, path: path.display().to_string(), source }
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
