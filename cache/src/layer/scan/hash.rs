//! Reading the files: contents and xattrs.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::super::dirs::Dirs;
use super::super::overlay::OverlayForm;
use super::walk::{Found, What};
use super::{Attributes, ScanError, io_error, note_owner, read_xattrs};
use crate::path::RelPath;
use crate::tree::{ContentDigest, Meta};

const BUFFER_BYTES: usize = 256 << 10;

/// Below both, a second thread costs more than it saves.
const PARALLEL_BYTES_MIN: u64 = 4 << 20;
const PARALLEL_FILES_MIN: usize = 256;

/// Files taken by a thread at once: neighbours share their directory.
const BATCH_FILES: usize = 32;

struct Job<'a> {
    place: usize,
    path: &'a RelPath,
    meta: &'a Meta,
    size: u64,
}

/// Fills in content and xattrs of every file; each inode is read once.
pub(super) fn hash_files(
    dir: BorrowedFd<'_>,
    form: OverlayForm,
    found: &mut [Found],
) -> Result<(), ScanError> {
    let mut first_of: HashMap<u64, usize> = HashMap::new();
    let mut same: Vec<(usize, usize)> = Vec::new();
    let mut jobs = Vec::new();
    for (place, one) in found.iter().enumerate() {
        let What::File { size, inode, links, .. } = one.what else { continue };
        if links > 1
            && let Some(first) = first_of.get(&inode)
        {
            same.push((place, *first));
            continue;
        }
        if links > 1 {
            first_of.insert(inode, place);
        }
        jobs.push(Job { place, path: &one.path, meta: &one.meta, size });
    }
    let bytes: u64 = jobs.iter().map(|job| job.size).sum();
    let is_large = bytes >= PARALLEL_BYTES_MIN || jobs.len() >= PARALLEL_FILES_MIN;
    let next = AtomicUsize::new(0);
    let mut results = if is_large && jobs.len() > 1 {
        let batch = if jobs.len() >= PARALLEL_FILES_MIN { BATCH_FILES } else { 1 };
        let (mine, theirs) = std::thread::scope(|scope| {
            let other = scope.spawn(|| work(dir, form, &jobs, &next, batch));
            (work(dir, form, &jobs, &next, batch), other.join())
        });
        let mut results = mine?;
        results.extend(theirs.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        results
    } else {
        work(dir, form, &jobs, &next, BATCH_FILES)?
    };
    results.sort_unstable_by_key(|(place, ..)| *place);
    for (place, digest, attributes) in results {
        let meta = &mut found[place].meta;
        meta.xattrs = attributes.kept;
        (meta.uid, meta.gid) = attributes.owner.unwrap_or((meta.uid, meta.gid));
        if let What::File { content, .. } = &mut found[place].what {
            *content = Some(digest);
        }
    }
    for (place, first) in same {
        found[place].meta = found[first].meta.clone();
        let What::File { content: known, .. } = found[first].what else { continue };
        if let What::File { content, .. } = &mut found[place].what {
            *content = known;
        }
    }
    Ok(())
}

fn work(
    dir: BorrowedFd<'_>,
    form: OverlayForm,
    jobs: &[Job<'_>],
    next: &AtomicUsize,
    batch: usize,
) -> Result<Vec<(usize, ContentDigest, Attributes)>, ScanError> {
    let mut dirs = Dirs::new(dir);
    let largest = jobs.iter().map(|job| job.size).max().unwrap_or(0);
    let mut buffer = vec![0; usize::try_from(largest).unwrap_or(BUFFER_BYTES).clamp(1, BUFFER_BYTES)];
    let mut results = Vec::new();
    loop {
        let start = next.fetch_add(batch, Ordering::Relaxed).min(jobs.len());
        let taken = &jobs[start..(start + batch).min(jobs.len())];
        if taken.is_empty() {
            return Ok(results);
        }
        for job in taken {
            let (digest, attributes) = read_file(&mut dirs, form, job, &mut buffer)?;
            results.push((job.place, digest, attributes));
        }
    }
}

fn read_file(
    dirs: &mut Dirs<'_>,
    form: OverlayForm,
    job: &Job<'_>,
    buffer: &mut [u8],
) -> Result<(ContentDigest, Attributes), ScanError> {
    let path = job.path;
    let holder = dirs.parent(path).map_err(io_error("open the directory of", path))?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file =
        rustix::fs::openat(&holder, path.name(), flags, Mode::empty()).map_err(io_error("open", path))?;
    let attributes = read_xattrs(&file, path, form)?;
    if attributes.owner.is_none() {
        note_owner(&file, path, form, job.meta)?;
    }
    let mut hash = blake3::Hasher::new();
    let mut size = 0u64;
    loop {
        match rustix::io::read(&file, &mut *buffer) {
            Ok(0) => break,
            Ok(len) => {
                hash.update(&buffer[..len]);
                size += len as u64;
            }
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(io_error("read", path)(errno)),
        }
        if size > job.size {
            break;
        }
    }
    if size != job.size {
        return Err(ScanError::Changing { path: path.clone() });
    }
    Ok((ContentDigest(*hash.finalize().as_bytes()), attributes))
}
