//! The image's files themselves: `type=local` and `type=tar`. They are read from the solved state, without a mount and
//! without making layers.

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rbuild_cache::copy::FileSource;
use rbuild_cache::layer::{
    Change, Checkout, CheckoutError, DiffEntry, FilesArchive, FlattenError, LayerDiff, ListingError, listing,
};
use rbuild_cache::path::RelPath;
use rbuild_oci::Platform;

use super::place;
use super::statements::{FileStatement, about_files};
use crate::assemble::attestation::{Predicate, platform_suffix};
use crate::cli::{Destination, LocalMode};
use crate::error::StepFailure;
use crate::ops::ExecEnv;
use crate::solve::Solved;

/// The files of one platform's image.
pub struct Files {
    /// What they are for.
    pub platform: Platform,
    listing: LayerDiff,
    source: Box<dyn FileSource>,
    /// What is said about them.
    statements: Vec<FileStatement>,
}

/// How files are written.
#[derive(Debug, Clone)]
pub struct FilesForm {
    /// A directory for each platform.
    pub split: bool,
    /// None was asked for: names of attestations tell the platforms apart.
    pub is_merged: bool,
    /// Begins the names of attestations.
    pub attestation_prefix: String,
    /// No time is later than this.
    pub clamp: Option<i64>,
}

/// Why files cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// Their state cannot be listed, or the archive not written.
    #[error("failed to write the files of the image to `{}`", .to.display())]
    Archive {
        /// Where to.
        to: PathBuf,
        /// Why.
        #[source]
        source: FlattenError,
    },
    /// A file cannot be written.
    #[error("failed to write the files of the image to `{}`", .to.display())]
    Directory {
        /// Where to.
        to: PathBuf,
        /// Why.
        #[source]
        source: CheckoutError,
    },
    /// The destination itself cannot be made or written.
    #[error("failed to write `{}`", .to.display())]
    Destination {
        /// Where to.
        to: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Deleting there could take what is not rbuild's to take.
    #[error("refusing mode=delete for `{}`: {why}", .to.display())]
    Delete {
        /// Where.
        to: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The list of their files cannot be read.
    #[error(transparent)]
    Listing(#[from] ListingError),
    /// A tar is for no eyes.
    #[error("refusing to write a tar archive to the terminal")]
    Terminal,
    /// A file of an attestation would take the place of another.
    #[error(
        "the files of the image have `{name}` already, which is the attestation's name; give it another with attestation-prefix="
    )]
    Attestation {
        /// Its name.
        name: String,
    },
    /// Platforms that have different things at one path, without directories of their own.
    #[error(
        "/{path} is in the images of {first} and {second}, and platform-split=false puts both into one directory"
    )]
    Overlap {
        /// The path.
        path: RelPath,
        /// One of them.
        first: Platform,
        /// The other.
        second: Platform,
    },
}

impl Files {
    /// Lists the files of a state, and what `predicates` say about them.
    pub fn of(
        env: &ExecEnv,
        solved: &Solved,
        platform: Platform,
        predicates: &[Predicate],
    ) -> Result<Self, StepFailure> {
        let source = env.stack_source(solved)?;
        let listing = listing(&solved.tree, &env.store, &source, &env.store.scratch())?;
        let predicates = predicates.iter().filter(|predicate| !predicate.inline_only);
        let statements = about_files(predicates, &listing, &source, &env.store.scratch())?;
        Ok(Self { platform, listing, source: Box::new(source), statements })
    }

    /// Attestations under the names that they get in this form, which must not be those of files of `beside`.
    fn named_statements(
        &self,
        form: &FilesForm,
        beside: &[Self],
    ) -> Result<Vec<(String, &FileStatement)>, FilesError> {
        let mut named: Vec<(String, &FileStatement)> = Vec::new();
        for statement in &self.statements {
            let mut name = format!("{}{}", form.attestation_prefix, statement.name);
            if form.is_merged {
                let (base, extension) = name.rsplit_once('.').unwrap_or((&name, ""));
                let dot = if extension.is_empty() { "" } else { "." };
                name = format!("{base}.{}{dot}{extension}", platform_suffix(&self.platform));
            }
            let path = RelPath::clamp(name.as_bytes());
            let mut is_taken = named.iter().any(|(other, _)| *other == name);
            for image in beside {
                is_taken |= image.listing.get(&path)?.is_some();
            }
            if is_taken {
                return Err(FilesError::Attestation { name });
            }
            named.push((name, statement));
        }
        Ok(named)
    }
}

/// The attestations of each image under their names.
fn named_statements<'a>(
    images: &'a [Files],
    form: &FilesForm,
) -> Result<Vec<Vec<(String, &'a FileStatement)>>, FilesError> {
    let beside = |image: &'a Files| if form.split { std::slice::from_ref(image) } else { images };
    images.iter().map(|image| image.named_statements(form, beside(image))).collect()
}

/// The directories of the images: one each with `split`, none without.
fn directories(images: &[Files], split: bool) -> Result<Vec<String>, FilesError> {
    if split {
        return Ok(images.iter().map(|image| platform_suffix(&image.platform)).collect());
    }
    for (at, second) in images.iter().enumerate() {
        for first in &images[..at] {
            if let Some(path) = overlap(&first.listing, &second.listing)? {
                let (first, second) = (first.platform.clone(), second.platform.clone());
                return Err(FilesError::Overlap { path, first, second });
            }
        }
    }
    Ok(vec![String::new(); images.len()])
}

/// The first path that two listings have and that is no directory in both; equal files count as well, since their
/// owners' archives would hold them twice.
fn overlap(first: &LayerDiff, second: &LayerDiff) -> Result<Option<RelPath>, ListingError> {
    let is_dir = |entry: &DiffEntry| matches!(entry.change, Change::Dir { .. });
    for entry in second {
        let entry = entry?;
        if first.get(&entry.path)?.is_some_and(|other| !(is_dir(&other) && is_dir(&entry))) {
            return Ok(Some(entry.path));
        }
    }
    Ok(None)
}

/// Writes a tar archive: the file is there when it is whole. A pipe or device is written to as it is.
pub fn write_tar(images: &[Files], to: &Destination, form: &FilesForm) -> Result<(), FilesError> {
    let directories = directories(images, form.split)?;
    let statements = named_statements(images, form)?;
    let archive =
        |out: &mut dyn Write, to: &Path| archive(images, &directories, &statements, form.clamp, out, to);
    let path = match to {
        Destination::Stdout => {
            if io::stdout().is_terminal() {
                return Err(FilesError::Terminal);
            }
            return archive(&mut io::stdout().lock(), Path::new("-"));
        }
        Destination::Path(path) => path,
    };
    let failed = |source| FilesError::Destination { to: path.clone(), source };
    place::write(path, 0o666, failed, |file| archive(&mut BufWriter::new(file), path))
}

fn archive(
    images: &[Files],
    directories: &[String],
    statements: &[Vec<(String, &FileStatement)>],
    clamp: Option<i64>,
    out: &mut dyn Write,
    to: &Path,
) -> Result<(), FilesError> {
    let write = |out: &mut dyn Write| {
        let mut archive = FilesArchive::new(out);
        for ((image, directory), statements) in images.iter().zip(directories).zip(statements) {
            let mut prefix = String::new();
            if !directory.is_empty() {
                archive.add_dir(directory, clamp.unwrap_or(0))?;
                prefix = format!("{directory}/");
            }
            archive.add(&prefix, &image.listing, &*image.source, clamp)?;
            for (name, statement) in statements {
                let (name, blob) = (format!("{prefix}{name}"), &statement.blob);
                archive.add_file(&name, blob.size, &mut blob.reader(), clamp.unwrap_or(0))?;
            }
        }
        archive.finish()
    };
    write(out)
        .and_then(|()| out.flush().map_err(FlattenError::Write))
        .map_err(|source| FilesError::Archive { to: to.to_owned(), source })
}

/// Writes into a directory, which is made when it is not there. Returns how many devices were left out. Whether
/// `mode=delete` may be used there is asked before ([`may_delete`]).
pub fn write_directory(
    images: &[Files],
    to: &Path,
    mode: LocalMode,
    form: &FilesForm,
) -> Result<u64, FilesError> {
    let directories = directories(images, form.split)?;
    let statements = named_statements(images, form)?;
    let destination = |source| FilesError::Destination { to: to.to_owned(), source };
    fs::create_dir_all(to).map_err(destination)?;
    let root = File::open(to).map_err(destination)?;
    let write = || {
        let mut checkout = Checkout::new(root.as_fd(), form.clamp);
        for ((image, directory), statements) in images.iter().zip(&directories).zip(&statements) {
            let prefix = RelPath::clamp(directory.as_bytes());
            if !prefix.is_root() {
                checkout.add_dir(&prefix)?;
            }
            checkout.add(&prefix, &image.listing, &*image.source)?;
            for (name, statement) in statements {
                checkout.add_file(&prefix.join(name.as_bytes()), &mut statement.blob.reader())?;
            }
        }
        if mode == LocalMode::Delete {
            checkout.delete_others()?;
        }
        let devices = checkout.devices;
        checkout.finish()?;
        Ok(devices)
    };
    write().map_err(|source| FilesError::Directory { to: to.to_owned(), source })
}

/// Everything but the result goes from the directory, so it must be one that was meant: below the working directory,
/// and with neither the working directory nor the build context in it.
pub fn may_delete(to: &Path, context: Option<&Path>) -> Result<(), FilesError> {
    let refuse = |why| Err(FilesError::Delete { to: to.to_owned(), why });
    let failed = |source| FilesError::Destination { to: to.to_owned(), source };
    // What is not there yet has nothing to lose; where it will be is decided by what is there.
    let Ok(real) = to.canonicalize() else { return Ok(()) };
    let here = std::env::current_dir().and_then(|here| here.canonicalize()).map_err(failed)?;
    if here.starts_with(&real) {
        return refuse("the working directory is in it");
    }
    if context.and_then(|context| context.canonicalize().ok()).is_some_and(|it| it.starts_with(&real)) {
        return refuse("the build context is in it");
    }
    if !real.starts_with(&here) {
        return refuse("it is not below the working directory");
    }
    Ok(())
}
