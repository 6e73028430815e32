//! Reads images from an OCI image layout directory (image-spec, image-layout.md).
//!
//! The directory is untrusted: it is held by fd, blobs are opened beneath it without following symlinks, and every
//! document is checked against its digest and size before it is believed.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rbuild_oci::{Descriptor, Digest, Document, DocumentError, ImageConfig, Manifest, Platform};
use rustix::fs::{Mode, OFlags, ResolveFlags};

/// Largest config document read.
const CONFIG_BYTES_MAX: u64 = 8 << 20;
/// Nesting of indexes that is followed.
const INDEX_DEPTH_MAX: usize = 3;
/// Annotation that carries the tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation that carries the full image name.
const IMAGE_NAME: &str = "io.containerd.image.name";

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

    /// Finds the image for `tag` or `digest` (the only image when neither is given) and `platform`.
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
        let matching: Vec<&Descriptor> =
            index.manifests().iter().filter(|d| self.is_named(d, tag, digest)).collect();
        let wanted = digest.map(|d| d.to_string()).or_else(|| tag.map(str::to_owned));
        let Some(first) = matching.first() else {
            let have: Vec<&str> = index.manifests().iter().filter_map(ref_name).collect();
            return Err(LayoutError::NoSuchImage {
                path: self.path.clone(),
                wanted: wanted.unwrap_or_else(|| "latest".to_owned()),
                have: if have.is_empty() { "no tags".to_owned() } else { have.join(", ") },
            });
        };
        // Several entries under one name are one image per platform, as an index of their own would be.
        let descriptor = if matching.len() > 1 {
            let mut narrowed = (*index).clone();
            narrowed.set_manifests(matching.iter().map(|d| (*d).clone()).collect());
            Document::choose(&narrowed, platform).cloned().unwrap_or_else(|| (*first).clone())
        } else {
            (*first).clone()
        };
        self.follow(descriptor, platform)
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
                    let (config_digest, config_bytes) = self.verified(manifest.config(), CONFIG_BYTES_MAX)?;
                    let config = serde_json::from_slice(&config_bytes).map_err(|source| {
                        LayoutError::Config { path: self.blob_path(config_digest), source }
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

    fn is_named(&self, descriptor: &Descriptor, tag: Option<&str>, digest: Option<Digest>) -> bool {
        if let Some(digest) = digest {
            return descriptor.digest().to_string() == digest.to_string();
        }
        let Some(tag) = tag else { return true };
        let image_name = descriptor.annotations().as_ref().and_then(|a| a.get(IMAGE_NAME));
        ref_name(descriptor) == Some(tag) || image_name.is_some_and(|n| n.ends_with(&format!(":{tag}")))
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
            return Err(io(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")));
        }
        Ok(file)
    }
}

fn ref_name(descriptor: &Descriptor) -> Option<&str> {
    descriptor.annotations().as_ref()?.get(REF_NAME).map(String::as_str)
}
