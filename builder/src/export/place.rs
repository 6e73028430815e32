//! Files at paths that the user gave: exported archives, and the results that scripts read.
//!
//! A regular file, or none, is replaced in one step when the new one is whole. What is there and is something else is
//! written to as it is and never replaced: a device such as `/dev/null`, a pipe, and what one of the process's
//! descriptors leads to, by `/dev/stdout` or `/dev/fd/N`. Another symbolic link stays: the file that it leads to is the
//! one that is replaced, where the kernel would follow it. For root that is not everybody's link in `/tmp`
//! (`fs.protected_symlinks`).

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::error::BuildError;

/// This process's descriptors, as links.
const DESCRIPTORS: &str = "/proc/self/fd";

/// How many links are followed, as in the kernel.
const LINKS_MAX: usize = 40;

/// Where bytes for a path go.
#[derive(Debug)]
enum Place {
    /// Into this, as they come.
    Through(File),
    /// Into a new file that takes this name. `made` when it was made empty, for the link that leads to it.
    Whole { at: PathBuf, made: bool },
}

/// Writes what `fill` gives to the file at `path`; a new file has `mode`, less the umask.
///
/// On failure the file is what it was before, or is not there. What is no regular file has what was written till then.
pub(crate) fn write<E>(
    path: &Path,
    mode: u32,
    failed: impl Fn(io::Error) -> E,
    fill: impl FnOnce(File) -> Result<(), E>,
) -> Result<(), E> {
    match place(path).map_err(&failed)? {
        Place::Through(file) => fill(file),
        Place::Whole { at, made } => {
            let written = replace(&at, mode, failed, fill);
            if written.is_err() && made {
                let _ = fs::remove_file(&at);
            }
            written
        }
    }
}

/// True where [`write()`] waits until somebody reads.
pub(crate) fn is_pipe(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo())
}

/// [`write()`] for a few bytes: results that scripts read.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), BuildError> {
    let failed = |source| BuildError::Export { path: path.to_owned(), source };
    write(path, 0o666, failed, |mut file| file.write_all(bytes).map_err(failed))
}

/// Writes a file beside `path` and renames it to that, whatever is there. On failure nothing is left of it.
pub(super) fn replace<E>(
    path: &Path,
    mode: u32,
    failed: impl Fn(io::Error) -> E,
    fill: impl FnOnce(File) -> Result<(), E>,
) -> Result<(), E> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.partial", std::process::id()));
    // Of a process that had the same id and was killed: in containers most have.
    let _ = fs::remove_file(&temporary);
    let new = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary);
    let written =
        new.map_err(&failed).and_then(fill).and_then(|()| fs::rename(&temporary, path).map_err(&failed));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Removes the file that [`write()`] would replace. What it would write to as it is stays, as do links.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match found(path)? {
        Some(found) if !is_special(&found) && descriptor(path)?.is_none() => {
            fs::remove_file(behind_links(path, &found)?)
        }
        _ => Ok(()),
    }
}

fn place(path: &Path) -> io::Result<Place> {
    if let Some(number) = descriptor(path)? {
        return inherited(number).map(Place::Through);
    }
    let mut open = OpenOptions::new();
    open.write(true).custom_flags(OFlags::NOCTTY.bits().cast_signed());
    match found(path)? {
        Some(found) if is_special(&found) => open.open(path).map(Place::Through),
        Some(found) => Ok(Place::Whole { at: behind_links(path, &found)?, made: false }),
        None if is_link(path) => {
            let made = open.create(true).truncate(false).open(path)?.metadata()?;
            Ok(Place::Whole { at: behind_links(path, &made)?, made: true })
        }
        None => Ok(Place::Whole { at: path.to_owned(), made: false }),
    }
}

/// What is there, where links lead.
fn found(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink())
}

fn is_special(found: &Metadata) -> bool {
    !found.is_file() && !found.is_dir()
}

/// The path that links lead to, when it is that of `found`, which the kernel was willing to follow them to.
fn behind_links(path: &Path, found: &Metadata) -> io::Result<PathBuf> {
    if !is_link(path) {
        return Ok(path.to_owned());
    }
    let real = path.canonicalize()?;
    let there = fs::symlink_metadata(&real)?;
    if (there.dev(), there.ino()) != (found.dev(), found.ino()) {
        return Err(io::Error::other("the symbolic link was changed just now"));
    }
    Ok(real)
}

/// The number of the descriptor that a path means, by whatever links.
fn descriptor(path: &Path) -> io::Result<Option<u32>> {
    let mut link = path.to_owned();
    for _ in 0..LINKS_MAX {
        if !is_link(&link) {
            return Ok(None);
        }
        let dir = link.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if let Ok(descriptors) = fs::canonicalize(DESCRIPTORS)
            && dir.canonicalize()? == descriptors
        {
            return Ok(link.file_name().and_then(|name| name.to_str()?.parse().ok()));
        }
        link = dir.join(fs::read_link(&link)?);
    }
    Err(rustix::io::Errno::LOOP.into())
}

/// What is open under this number, to write on where it is.
fn inherited(number: u32) -> io::Result<File> {
    match number {
        1 => Ok(io::stdout().as_fd().try_clone_to_owned()?.into()),
        2 => Ok(io::stderr().as_fd().try_clone_to_owned()?.into()),
        number => {
            // The program's own are closed when another is executed; among them are those of the store's database.
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}"))?;
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
            let is_ours = |flags: u32| flags & OFlags::CLOEXEC.bits() != 0;
            let is_to_read = |flags: u32| flags & OFlags::ACCMODE.bits() == OFlags::RDONLY.bits();
            if flags.is_none_or(|flags| is_ours(flags) || is_to_read(flags)) {
                return Err(rustix::io::Errno::BADF.into());
            }
            OpenOptions::new().append(true).open(format!("{DESCRIPTORS}/{number}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    use rustix::io::FdFlags;

    use super::*;

    fn put(path: &Path, text: &str) -> io::Result<()> {
        write(path, 0o640, |error| error, |mut file| file.write_all(text.as_bytes()))
    }

    fn fail(path: &Path) {
        let fill = |mut file: File| {
            file.write_all(b"begun")?;
            Err(io::Error::other("no more"))
        };
        assert_eq!(write(path, 0o640, |error| error, fill).unwrap_err().to_string(), "no more");
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_when_the_new_one_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        fail(&path);
        assert!(names(dir.path()).is_empty());
        // What a killed process with the same id left.
        fs::write(dir.path().join(format!(".out.{}.partial", std::process::id())), "half").unwrap();
        put(&path, "one").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777 & !0o640, 0);
        let mut old = File::open(&path).unwrap();
        put(&path, "two").unwrap();
        fail(&path);
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        let mut text = String::new();
        old.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one", "another file took the name");
        assert_eq!(names(dir.path()), ["out"]);
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(names(dir.path()).is_empty());
        assert!(put(dir.path(), "").is_err());
    }

    #[test]
    fn a_pipe_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        mknodat(CWD, &path, FileType::Fifo, Mode::from_bits_retain(0o600), 0).unwrap();
        for _ in 0..2 {
            let reader = {
                let path = path.clone();
                std::thread::spawn(move || fs::read_to_string(path).unwrap())
            };
            put(&path, "through").unwrap();
            assert_eq!(reader.join().unwrap(), "through");
            remove(&path).unwrap();
            assert!(fs::metadata(&path).unwrap().file_type().is_fifo());
        }
        assert_eq!(names(dir.path()), ["pipe"]);
    }

    #[test]
    fn a_device_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("null"), dir.path().join("link"));
        let mode = Mode::from_bits_retain(0o600);
        if mknodat(CWD, &path, FileType::CharacterDevice, mode, makedev(1, 3)).is_err() {
            assert!(!rustix::process::geteuid().is_root(), "root makes devices");
            return;
        }
        symlink("null", &link).unwrap();
        for name in [&path, &link] {
            put(name, "gone").unwrap();
            remove(name).unwrap();
            assert!(fs::metadata(name).unwrap().file_type().is_char_device());
        }
        assert!(is_link(&link));
        assert_eq!(names(dir.path()), ["link", "null"]);
    }

    #[test]
    fn a_link_stays_and_the_file_behind_it_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("d/real"), dir.path().join("link"));
        fs::create_dir(dir.path().join("d")).unwrap();
        symlink("d/real", dir.path().join("d.link")).unwrap();
        symlink("d.link", &link).unwrap();
        // Nothing is there yet.
        fail(&link);
        assert!(names(&dir.path().join("d")).is_empty());
        put(&link, "one").unwrap();
        let first = fs::metadata(&real).unwrap().ino();
        put(&link, "two").unwrap();
        fail(&link);
        assert_eq!(fs::read_to_string(&real).unwrap(), "two");
        assert_ne!(fs::metadata(&real).unwrap().ino(), first);
        remove(&link).unwrap();
        remove(&link).unwrap();
        assert!(names(&dir.path().join("d")).is_empty());
        assert_eq!(names(dir.path()), ["d", "d.link", "link"]);
        symlink("round", dir.path().join("round")).unwrap();
        assert!(put(&dir.path().join("round"), "").is_err());
    }

    #[test]
    fn a_descriptor_is_written_on_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        let mut file = File::create(&real).unwrap();
        file.write_all(b"one, ").unwrap();
        let at = format!("{DESCRIPTORS}/{}", file.as_raw_fd());
        symlink(&at, &link).unwrap();
        assert!(put(&link, "not given to the process").is_err());
        rustix::io::fcntl_setfd(&file, FdFlags::empty()).unwrap();
        put(&link, "two, ").unwrap();
        put(Path::new(&at), "three").unwrap();
        remove(&link).unwrap();
        // One to read from is not written to.
        let read = File::open(&real).unwrap();
        rustix::io::fcntl_setfd(&read, FdFlags::empty()).unwrap();
        assert!(put(Path::new(&format!("{DESCRIPTORS}/{}", read.as_raw_fd())), "four").is_err());
        assert_eq!(fs::read_to_string(&real).unwrap(), "one, two, three");
        assert_eq!(names(dir.path()), ["link", "real"]);
    }
}
