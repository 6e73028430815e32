//! The Dockerfile and the ignore file of a context.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rbuild_frontend::dockerignore::Ignore;
use rbuild_frontend::lint::ContextFacts;

use crate::cli::DockerfileArg;
use crate::context::remote::Pinned;
use crate::error::BuildError;

/// Largest Dockerfile or ignore file read: several times that is held of one while it is looked at.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Names tried in a context when `-f` is not given.
pub(crate) const DEFAULT_NAMES: [&str; 3] = ["Dockerfile", "dockerfile", "Containerfile"];

/// A Dockerfile as found.
#[derive(Debug)]
pub struct FoundDockerfile {
    /// Path it was read from; `None` for standard input and what came through it.
    pub path: Option<PathBuf>,
    /// Name for messages: as the user wrote it, or relative to the context.
    pub display: String,
    /// Its bytes.
    pub bytes: Arc<[u8]>,
    /// Which state of what it is, when it was fetched by itself.
    pub pinned: Option<Pinned>,
}

/// Reads the Dockerfile: `explicit` is relative to the working directory and not an address, otherwise the context's
/// default names are tried in order.
pub fn dockerfile(
    context: &Path,
    explicit: Option<&DockerfileArg>,
    stdin: &mut dyn Read,
) -> Result<FoundDockerfile, BuildError> {
    require_dir(context)?;
    match explicit {
        Some(DockerfileArg::Stdin) => return from_stdin(stdin),
        Some(DockerfileArg::Path(path)) => return at(path),
        Some(DockerfileArg::Http(_)) => unreachable!("fetched by the caller"),
        None => {}
    }
    for name in DEFAULT_NAMES {
        let path = context.join(name);
        match read(&path) {
            Ok(bytes) => {
                let display = name.to_owned();
                return Ok(FoundDockerfile { path: Some(path), display, bytes: bytes.into(), pinned: None });
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(BuildError::Read { path, source }),
        }
    }
    Err(missing(&context.join(DEFAULT_NAMES[0])))
}

/// The Dockerfile that `-f` names.
fn at(path: &Path) -> Result<FoundDockerfile, BuildError> {
    match read(path) {
        Ok(bytes) => Ok(FoundDockerfile {
            display: path.display().to_string(),
            path: Some(path.to_owned()),
            bytes: bytes.into(),
            pinned: None,
        }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(missing(path)),
        Err(source) => Err(BuildError::Read { path: path.to_owned(), source }),
    }
}

/// Refuses a context that is no directory.
pub fn require_dir(context: &Path) -> Result<(), BuildError> {
    let path = || context.to_owned();
    match (context.is_dir(), context.exists()) {
        (true, _) => Ok(()),
        (false, true) => Err(BuildError::ContextNotDirectory(path())),
        (false, false) => Err(BuildError::NoContext(path())),
    }
}

/// What lint rules want to know about a directory as main context.
pub fn facts(context: &Path, dockerfile: Option<&Path>) -> Result<ContextFacts, BuildError> {
    let ignore = find_ignore(context, dockerfile)?.map(|found| found.ignore);
    let has_ignore_file = ignore.is_some();
    let ignore = ignore.unwrap_or_default();
    let is_heavy = |name: &&str| {
        !ignore.matches(name) && context.join(name).symlink_metadata().is_ok_and(|m| m.is_dir())
    };
    let heavy = [".git", "node_modules"].into_iter().filter(is_heavy).map(str::to_owned).collect();
    Ok(ContextFacts { ignore, has_ignore_file, heavy })
}

/// An ignore file as found.
#[derive(Debug)]
pub struct FoundIgnore {
    /// Where.
    pub path: PathBuf,
    /// What it says.
    pub ignore: Ignore,
}

/// The Dockerfile that a context has under one of the default names.
pub fn default_dockerfile(context: &Path) -> Option<PathBuf> {
    DEFAULT_NAMES.iter().map(|name| context.join(name)).find(|path| path.is_file())
}

/// The ignore file that counts, when there is one: `<Dockerfile>.dockerignore` if it exists, even empty, else the
/// context's `.dockerignore`. Named contexts pass no Dockerfile.
pub fn find_ignore(context: &Path, dockerfile: Option<&Path>) -> Result<Option<FoundIgnore>, BuildError> {
    let beside = dockerfile.map(|path| {
        let mut name = path.as_os_str().to_owned();
        name.push(".dockerignore");
        PathBuf::from(name)
    });
    for path in beside.into_iter().chain([context.join(".dockerignore")]) {
        match read(&path) {
            Ok(bytes) => {
                return match Ignore::parse(&bytes) {
                    Ok(ignore) => Ok(Some(FoundIgnore { path, ignore })),
                    Err(source) => Err(BuildError::Ignore { path, source }),
                };
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(BuildError::Read { path, source }),
        }
    }
    Ok(None)
}

/// A Dockerfile that is all of standard input.
pub fn from_stdin(input: &mut dyn Read) -> Result<FoundDockerfile, BuildError> {
    Ok(FoundDockerfile { path: None, display: "stdin".to_owned(), bytes: all(input)?.into(), pinned: None })
}

/// All of a Dockerfile from standard input.
fn all(input: &mut dyn Read) -> Result<Vec<u8>, BuildError> {
    bounded(input).map_err(|source| BuildError::Read { path: "standard input".into(), source })
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    bounded(&mut fs::File::open(path)?)
}

/// All that a Dockerfile or an ignore file may be.
pub(super) fn bounded(input: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let text = format!("larger than {} MiB", FILE_BYTES_MAX >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}

fn missing(path: &Path) -> BuildError {
    let looks_like_one = |name: &str| {
        let name = name.to_ascii_lowercase();
        (name.contains("docker") || name.contains("containerfile"))
            && !name.contains("ignore")
            && !name.contains("compose")
    };
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut similar: Vec<String> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| looks_like_one(name))
        .take(5)
        .collect();
    similar.sort();
    BuildError::NoDockerfile { path: path.to_owned(), similar }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_dockerfile_names_what_is_there() {
        let dir = tempfile::tempdir().expect("temp dir");
        fs::write(dir.path().join("Dockerfile.dev"), "FROM scratch").expect("write");
        let Err(BuildError::NoDockerfile { similar, .. }) = dockerfile(dir.path(), None, &mut io::empty())
        else {
            panic!("found one")
        };
        assert_eq!(similar, ["Dockerfile.dev"]);
    }

    #[test]
    fn too_large_a_dockerfile_is_refused_whole() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("Dockerfile");
        fs::write(&path, "FROM scratch").expect("write");
        let file = fs::OpenOptions::new().write(true).open(&path).expect("open");
        for (size, is_read) in [(FILE_BYTES_MAX, true), (FILE_BYTES_MAX + 1, false)] {
            file.set_len(size).expect("grow");
            assert_eq!(read(&path).is_ok_and(|bytes| bytes.len() as u64 == size), is_read, "{size}");
        }
        let error = read(&path).expect_err("too large");
        assert_eq!(error.to_string(), "larger than 4 MiB");
    }

    #[test]
    fn an_empty_ignore_file_beside_the_dockerfile_wins() {
        let dir = tempfile::tempdir().expect("temp dir");
        fs::write(dir.path().join(".dockerignore"), "*.md").expect("write");
        let dockerfile = dir.path().join("Dockerfile");
        let excludes = |path| {
            let found = find_ignore(dir.path(), Some(&dockerfile)).expect("readable").expect("there");
            found.ignore.matches(path)
        };
        assert!(excludes("a.md"));
        fs::write(dir.path().join("Dockerfile.dockerignore"), "").expect("write");
        assert!(!excludes("a.md"));
    }
}
