//! Reads images from an OCI image layout directory (image-spec, image-layout.md).
//!
//! The directory is untrusted: it is held by fd, blobs are opened beneath it without following symlinks, and every
//! document is checked against its digest and size before it is believed.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rbuild_oci::{Descriptor, Digest, Document, DocumentError, ImageConfig, Index, Manifest, Platform};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::resolve::namesakes::{self, Choice, IMAGE_NAME, REF_NAME, annotation, is_about_another};

/// Nesting of indexes that is followed.
const INDEX_DEPTH_MAX: usize = 3;
/// Nested indexes that are read to find a digest, and that are considered in one of them.
const INDEXES_MAX: usize = 100;
/// The tag that is meant when none is given and there are several images, as with buildx.
const TAG_DEFAULT: &str = "latest";

/// An open layout directory.
#[derive(Debug)]
pub struct Layout {
    path: PathBuf,
    dir: OwnedFd,
}

/// An image found in a layout.
#[derive(Debug)]
pub struct LayoutImage {
    /// Digest of its manifest.
    pub manifest_digest: Digest,
    /// Its manifest.
    pub manifest: Manifest,
    /// Digest of its config.
    pub config_digest: Digest,
    /// Its config, as stored.
    pub config_bytes: Vec<u8>,
    /// Its config.
    pub config: ImageConfig,
}

/// Why a layout does not give the image.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The directory, its index or a blob cannot be opened or read.
    #[error("cannot read `{path}`")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Bytes do not have the digest or size that names them.
    #[error("`{path}` does not match its digest {digest}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What it should hash to.
        digest: Digest,
    },
    /// A document is larger than allowed.
    #[error("`{0}` is larger than an image document may be")]
    TooLarge(PathBuf),
    /// A manifest or index is not acceptable.
    #[error("`{path}` is not an image layout document")]
    Document {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: DocumentError,
    },
    /// A config is not valid JSON of its type, or a digest in a document is malformed.
    #[error("`{path}` is not a valid image config")]
    Config {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A descriptor's digest is not one rbuild can verify.
    #[error("`{path}` names the digest `{digest}`, which is not sha256")]
    Digest {
        /// Which document.
        path: PathBuf,
        /// The text.
        digest: String,
    },
    /// No entry of that name.
    #[error("`{path}` has no image `{wanted}` (it has: {have})")]
    NoSuchImage {
        /// The layout.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
        /// Tags that exist.
        have: String,
    },
    /// Different images that the name could mean.
    #[error("`{path}` has {} images{} for {platform}: {}", have.len(), quoted(wanted), have.join(", "))]
    Several {
        /// The layout.
        path: PathBuf,
        /// What was asked for; nothing when no tag was given.
        wanted: String,
        /// For which platform.
        platform: Platform,
        /// Their digests, with their tags when no tag was given.
        have: Vec<String>,
    },
    /// More nested indexes than are read.
    #[error(
        "`{0}` has more than {INDEXES_MAX} nested indexes: give the digest of an image in its index.json"
    )]
    TooManyIndexes(PathBuf),
    /// No entry for the platform.
    #[error("`{path}` has no image for {platform}")]
    NoPlatform {
        /// The layout.
        path: PathBuf,
        /// What was asked for.
        platform: Platform,
    },
}

impl Layout {
    /// Opens a layout directory.
    pub fn open(path: &Path) -> Result<Self, LayoutError> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| LayoutError::Io { path: path.to_owned(), source: e.into() })?;
        Ok(Self { path: path.to_owned(), dir })
    }

    /// Directory it was opened at.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a blob for reading. The caller verifies what it reads.
    pub fn blob(&self, digest: Digest) -> Result<File, LayoutError> {
        self.file(&format!("blobs/sha256/{}", digest.hex()))
    }

    /// Finds the image for `tag` or `digest` (the only image, or `latest`, when neither is given) and `platform`. Tags are
    /// those of `index.json`; a digest may be that of any manifest or index that leads to.
    pub fn image(
        &self,
        tag: Option<&str>,
        digest: Option<Digest>,
        platform: &Platform,
    ) -> Result<LayoutImage, LayoutError> {
        let index_path = self.path.join("index.json");
        let bytes = self.read_all("index.json", Document::BYTES_MAX as u64)?;
        let Document::Index(index) = self.document(&index_path, &bytes)? else {
            return Err(self.no_image("an index"));
        };
        let named = |tag: Option<&str>| -> Vec<&Descriptor> {
            let is_it = |d: &&Descriptor| match digest {
                Some(digest) => d.digest().to_string() == digest.to_string(),
                None => !is_about_another(d) && tag.is_none_or(|tag| is_named(d, tag)),
            };
            index.manifests().iter().filter(is_it).collect()
        };
        let mut same = named(tag);
        if tag.is_none() && same.len() > 1 {
            let latest = named(Some(TAG_DEFAULT));
            same = if latest.is_empty() { same } else { latest };
        }
        let nested = match digest {
            Some(digest) if same.is_empty() => self.nested(&index, digest)?,
            _ => None,
        };
        same.extend(&nested);
        if same.is_empty() {
            let wanted = digest.map(|d| d.to_string()).or_else(|| tag.map(str::to_owned));
            let have: Vec<&str> =
                index.manifests().iter().filter_map(|entry| annotation(entry, REF_NAME)).collect();
            return Err(LayoutError::NoSuchImage {
                path: self.path.clone(),
                wanted: wanted.unwrap_or_else(|| TAG_DEFAULT.to_owned()),
                have: if have.is_empty() { "no tags".to_owned() } else { have.join(", ") },
            });
        }
        let look = |entry: &Descriptor| match self.follow(entry.clone(), platform) {
            Ok(image) => Ok(Some((image.config.platform, image.manifest_digest.to_string()))),
            // An index for other platforms, and what is no image.
            Err(LayoutError::NoPlatform { .. } | LayoutError::Config { .. }) => Ok(None),
            Err(error) => Err(error),
        };
        match namesakes::choose(same, platform, look)? {
            Choice::One(entry) => self.follow(entry.clone(), platform),
            Choice::None => {
                Err(LayoutError::NoPlatform { path: self.path.clone(), platform: platform.clone() })
            }
            Choice::Several(all) => {
                let shown = |entry: &&Descriptor| match annotation(entry, REF_NAME) {
                    Some(name) if tag.is_none() => format!("{name} ({})", entry.digest()),
                    _ => entry.digest().to_string(),
                };
                Err(LayoutError::Several {
                    path: self.path.clone(),
                    wanted: tag.unwrap_or_default().to_owned(),
                    platform: platform.clone(),
                    have: all.iter().map(shown).collect(),
                })
            }
        }
    }

    /// The entry with that digest in the indexes below `top`.
    fn nested(&self, top: &Index, wanted: Digest) -> Result<Option<Descriptor>, LayoutError> {
        let below = |index: &Index, depth: usize| -> Vec<(Descriptor, usize)> {
            let entries = index.manifests().iter().filter(|entry| Document::is_index(entry));
            entries.take(INDEXES_MAX).map(|entry| (entry.clone(), depth)).collect()
        };
        let (mut ahead, mut seen) = (VecDeque::from(below(top, 1)), BTreeSet::new());
        while let Some((entry, depth)) = ahead.pop_front() {
            if !seen.insert(entry.digest().to_string()) {
                continue;
            }
            if seen.len() > INDEXES_MAX {
                return Err(LayoutError::TooManyIndexes(self.path.clone()));
            }
            let (digest, bytes) = match self.verified(&entry, Document::BYTES_MAX as u64) {
                // Layouts may hold a part of an index's images.
                Err(LayoutError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => continue,
                found => found?,
            };
            let Document::Index(index) = self.document(&self.blob_path(digest), &bytes)? else { continue };
            let is_it = |entry: &&Descriptor| entry.digest().to_string() == wanted.to_string();
            if let Some(found) = index.manifests().iter().find(is_it) {
                return Ok(Some(found.clone()));
            }
            if depth < INDEX_DEPTH_MAX {
                ahead.extend(below(&index, depth + 1));
            }
        }
        Ok(None)
    }

    fn follow(&self, mut descriptor: Descriptor, platform: &Platform) -> Result<LayoutImage, LayoutError> {
        for _ in 0..=INDEX_DEPTH_MAX {
            let (digest, bytes) = self.verified(&descriptor, Document::BYTES_MAX as u64)?;
            let path = self.blob_path(digest);
            match self.document(&path, &bytes)? {
                Document::Index(index) => {
                    descriptor = Document::choose(&index, platform).cloned().ok_or_else(|| {
                        LayoutError::NoPlatform { path: self.path.clone(), platform: platform.clone() }
                    })?;
                }
                Document::Manifest(manifest) => {
                    let (config_digest, config_bytes) =
                        self.verified(manifest.config(), ImageConfig::BYTES_MAX)?;
                    let config = ImageConfig::parse(&config_bytes).map_err(|source| LayoutError::Config {
                        path: self.blob_path(config_digest),
                        source,
                    })?;
                    return Ok(LayoutImage {
                        manifest_digest: digest,
                        manifest: *manifest,
                        config_digest,
                        config_bytes,
                        config,
                    });
                }
            }
        }
        Err(self.no_image("an image within three levels of indexes"))
    }

    fn no_image(&self, wanted: &str) -> LayoutError {
        LayoutError::NoSuchImage {
            path: self.path.clone(),
            wanted: wanted.to_owned(),
            have: "nothing usable".to_owned(),
        }
    }

    fn verified(&self, descriptor: &Descriptor, bytes_max: u64) -> Result<(Digest, Vec<u8>), LayoutError> {
        let text = descriptor.digest().to_string();
        let digest: Digest = text.parse().map_err(|_| LayoutError::Digest {
            path: self.path.clone(),
            digest: text.chars().take(80).collect(),
        })?;
        let bytes = self.read_all(&format!("blobs/sha256/{}", digest.hex()), bytes_max)?;
        if Digest::of(&bytes) != digest || bytes.len() as u64 != descriptor.size() {
            return Err(LayoutError::Damaged { path: self.blob_path(digest), digest });
        }
        Ok((digest, bytes))
    }

    fn document(&self, path: &Path, bytes: &[u8]) -> Result<Document, LayoutError> {
        Document::parse(bytes, None).map_err(|source| LayoutError::Document { path: path.to_owned(), source })
    }

    fn blob_path(&self, digest: Digest) -> PathBuf {
        self.path.join("blobs/sha256").join(digest.hex())
    }

    fn read_all(&self, name: &str, bytes_max: u64) -> Result<Vec<u8>, LayoutError> {
        let mut bytes = Vec::new();
        self.file(name)?
            .take(bytes_max + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| LayoutError::Io { path: self.path.join(name), source })?;
        if bytes.len() as u64 > bytes_max {
            return Err(LayoutError::TooLarge(self.path.join(name)));
        }
        Ok(bytes)
    }

    fn file(&self, name: &str) -> Result<File, LayoutError> {
        let io = |source: std::io::Error| LayoutError::Io { path: self.path.join(name), source };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let fd =
            rustix::fs::openat2(&self.dir, name, flags, Mode::empty(), resolve).map_err(|e| io(e.into()))?;
        let file = File::from(fd);
        if !file.metadata().map_err(io)?.is_file() {
            return Err(io(std::io::Error::new(ErrorKind::InvalidInput, "not a regular file")));
        }
        Ok(file)
    }
}

fn is_named(entry: &Descriptor, tag: &str) -> bool {
    annotation(entry, REF_NAME) == Some(tag)
        || annotation(entry, IMAGE_NAME).is_some_and(|name| name.ends_with(&format!(":{tag}")))
}

fn quoted(wanted: &str) -> String {
    if wanted.is_empty() { String::new() } else { format!(" `{wanted}`") }
}

#[cfg(test)]
mod tests;
