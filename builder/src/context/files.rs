//! The Dockerfile and the ignore file of a context.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rbuild_frontend::dockerignore::Ignore;

use crate::error::BuildError;

/// Largest Dockerfile or ignore file read.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Names tried in a context when `-f` is not given.
const DEFAULT_NAMES: [&str; 3] = ["Dockerfile", "dockerfile", "Containerfile"];

/// A Dockerfile as found.
#[derive(Debug)]
pub struct FoundDockerfile {
    /// Path it was read from.
    pub path: PathBuf,
    /// Name for messages: as the user wrote it, or relative to the context.
    pub display: String,
    /// Its bytes.
    pub bytes: Arc<[u8]>,
}

/// Reads the Dockerfile: `explicit` is relative to the working directory, otherwise the context's default names are
/// tried in order.
pub fn dockerfile(context: &Path, explicit: Option<&Path>) -> Result<FoundDockerfile, BuildError> {
    if !context.is_dir() {
        let path = context.to_owned();
        return Err(if context.exists() {
            BuildError::ContextNotDirectory(path)
        } else {
            BuildError::NoContext(path)
        });
    }
    if let Some(path) = explicit {
        return match read(path) {
            Ok(bytes) => Ok(FoundDockerfile {
                display: path.display().to_string(),
                path: path.to_owned(),
                bytes: bytes.into(),
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(missing(path)),
            Err(source) => Err(BuildError::Read { path: path.to_owned(), source }),
        };
    }
    for name in DEFAULT_NAMES {
        let path = context.join(name);
        match read(&path) {
            Ok(bytes) => return Ok(FoundDockerfile { path, display: name.to_owned(), bytes: bytes.into() }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(BuildError::Read { path, source }),
        }
    }
    Err(missing(&context.join(DEFAULT_NAMES[0])))
}

/// Reads the ignore file: `<Dockerfile>.dockerignore` when it exists, even empty, else the context's `.dockerignore`.
/// Named contexts pass no Dockerfile.
pub fn ignore(context: &Path, dockerfile: Option<&Path>) -> Result<Ignore, BuildError> {
    let beside = dockerfile.map(|path| {
        let mut name = path.as_os_str().to_owned();
        name.push(".dockerignore");
        PathBuf::from(name)
    });
    for path in beside.into_iter().chain([context.join(".dockerignore")]) {
        match read(&path) {
            Ok(bytes) => return Ignore::parse(&bytes).map_err(|source| BuildError::Ignore { path, source }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(BuildError::Read { path, source }),
        }
    }
    Ok(Ignore::default())
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 64 MiB"));
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
        let Err(BuildError::NoDockerfile { similar, .. }) = dockerfile(dir.path(), None) else {
            panic!("found one")
        };
        assert_eq!(similar, ["Dockerfile.dev"]);
    }

    #[test]
    fn an_empty_ignore_file_beside_the_dockerfile_wins() {
        let dir = tempfile::tempdir().expect("temp dir");
        fs::write(dir.path().join(".dockerignore"), "*.md").expect("write");
        let dockerfile = dir.path().join("Dockerfile");
        assert!(ignore(dir.path(), Some(&dockerfile)).expect("ignore").matches("a.md"));
        fs::write(dir.path().join("Dockerfile.dockerignore"), "").expect("write");
        assert!(!ignore(dir.path(), Some(&dockerfile)).expect("ignore").matches("a.md"));
    }
}
