//! Secrets of a build, by id.
//!
//! Files are read when somebody asks: a secret that no step mounts is never in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use crate::cli::{SecretArg, SecretBytes, SecretSource};

/// The largest secret, as with BuildKit: 500 KiB.
pub const SIZE_BYTES_MAX: u64 = 500 << 10;

/// Why a secret cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Larger than [`SIZE_BYTES_MAX`].
    #[error("secret {id} too big. max size {} bytes", SIZE_BYTES_MAX)]
    TooBig {
        /// Which.
        id: String,
    },
    /// It is to be sent as a header, and is no single line of text.
    #[error("secret {id} is not one line of text, as a header must be")]
    NotAHeader {
        /// Which.
        id: String,
    },
    /// Its file cannot be read.
    #[error("failed to read secret {id} from {}", path.display())]
    Read {
        /// Which.
        id: String,
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What `--secret` gave.
#[derive(Debug, Clone, Default)]
pub struct Secrets(BTreeMap<String, SecretSource>);

impl Secrets {
    /// Checks that files are there and not too large, before anything is built.
    pub fn new(args: &[SecretArg]) -> Result<Self, SecretError> {
        for SecretArg { id, source } in args {
            let SecretSource::File(path) = source else { continue };
            let meta = std::fs::metadata(path).map_err(|source| SecretError::Read {
                id: id.clone(),
                path: path.clone(),
                source,
            })?;
            if meta.is_file() && meta.len() > SIZE_BYTES_MAX {
                return Err(SecretError::TooBig { id: id.clone() });
            }
        }
        Ok(Self(args.iter().map(|arg| (arg.id.clone(), arg.source.clone())).collect()))
    }

    /// The bytes of a secret; `None` when there is none of that id, or its variable is not set.
    pub fn get(&self, id: &str) -> Result<Option<SecretBytes>, SecretError> {
        let too_big = || SecretError::TooBig { id: id.to_owned() };
        match self.0.get(id) {
            None | Some(SecretSource::Env(None)) => Ok(None),
            Some(SecretSource::Env(Some(value))) if value.expose().len() as u64 > SIZE_BYTES_MAX => {
                Err(too_big())
            }
            Some(SecretSource::Env(Some(value))) => Ok(Some(value.clone())),
            Some(SecretSource::File(path)) => {
                let mut bytes = Vec::new();
                // One byte more, to know. The file may be a pipe, as `<(command)` gives.
                let read =
                    File::open(path).and_then(|file| file.take(SIZE_BYTES_MAX + 1).read_to_end(&mut bytes));
                let size = read.map_err(|source| SecretError::Read {
                    id: id.to_owned(),
                    path: path.clone(),
                    source,
                })?;
                match size as u64 > SIZE_BYTES_MAX {
                    true => Err(too_big()),
                    false => Ok(Some(SecretBytes::new(bytes))),
                }
            }
        }
    }
}
