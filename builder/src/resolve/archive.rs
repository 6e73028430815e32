//! Reads images from one tar: an OCI image layout, a Docker archive, or both at once (`load`).
//!
//! The archive is hostile. Its members become blobs of the store under the digests of their own bytes, whatever they
//! are called; names in the archive are looked up among its members and nowhere else. Documents must then have the
//! digests and sizes their descriptors say; layers are verified where they are unpacked, as those of a pull are.

mod error;

use std::collections::BTreeMap;
use std::io::{self, Read};

use rbuild_cache::layer::{ArchiveMember, LayerReader, Limits, read_members};
use rbuild_cache::store::{Lease, Store};
use rbuild_oci::{
    Descriptor, Digest, Document, ImageConfig, Index, Manifest, Platform, Reference, ReferenceError,
    media_type,
};
use serde::Deserialize;

use crate::cancel::Cancel;
use crate::resolve::namesakes::{self, Choice, IMAGE_NAME, REF_NAME, annotation, is_about_another};
use crate::resolve::{BaseImage, BaseLayer, BlobRef, Origin, ResolveError, base_layers};

pub use error::ArchiveError;

/// Members of an archive: five per layer of an old Docker archive, for a thousand images.
const MEMBERS_MAX: usize = 100_000;
/// Bytes of a member's name or link target.
const NAME_BYTES_MAX: usize = 1024;
/// Links followed to a layer.
const LINKS_MAX: usize = 8;
/// Nesting of indexes that is followed.
const INDEX_DEPTH_MAX: usize = 3;
/// Images in one archive.
const IMAGES_MAX: usize = 1000;
/// Largest archive read, uncompressed: several of the largest images.
const ARCHIVE_BYTES_MAX: u64 = 1 << 40;
/// Bytes copied between two looks at the switch.
const COPY_BYTES: usize = 256 << 10;

/// An image of an archive, its documents verified, its layers in the store as blobs.
#[derive(Debug)]
pub struct ArchivedImage {
    /// The image.
    pub image: BaseImage,
    /// Digest of its manifest; a Docker archive has none.
    pub manifest: Option<Digest>,
    /// Digest of its config.
    pub config: Digest,
    /// Names with tags; may be empty.
    pub names: Vec<Reference>,
    /// The index that names it, when all images of that are here; its blob is in the store.
    pub index: Option<Digest>,
    /// The other images of the index that are here.
    pub others: Vec<ArchivedImage>,
}

/// A member by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Member {
    Blob { digest: Digest, size: u64 },
    Link(String),
}

/// Takes the archive in, compressed or not, and finds its images: of an index the one for `wanted`, or all, with the one
/// that `host` runs as the first.
pub fn read(
    store: &Store,
    lease: &Lease,
    input: impl Read,
    wanted: Option<&Platform>,
    host: &Platform,
    cancel: &Cancel,
) -> Result<Vec<ArchivedImage>, ArchiveError> {
    let members = ingest(store, lease, input, cancel)?;
    let archive = Archive { store, members, is_one: wanted.is_some(), platform: wanted.unwrap_or(host) };
    let has = |name: &str| archive.members.contains_key(name);
    let docker = if has("manifest.json") { archive.docker_images()? } else { Vec::new() };
    let mut images = if has("index.json") { archive.layout_images()? } else { Vec::new() };
    if images.is_empty() {
        if docker.is_empty() {
            let list = ["index.json", "manifest.json"].into_iter().find(|name| has(name));
            return Err(list.map_or(ArchiveError::NoImages, ArchiveError::Empty));
        }
        return Ok(docker);
    }
    // Layouts may leave names out that manifest.json has.
    for other in docker {
        if let Some(image) = images.iter_mut().find(|image| image.config == other.config) {
            image.names.extend(other.names);
            image.names.sort();
            image.names.dedup();
        }
    }
    Ok(images)
}

fn ingest(
    store: &Store,
    lease: &Lease,
    input: impl Read,
    cancel: &Cancel,
) -> Result<BTreeMap<String, Member>, ArchiveError> {
    let limits = Limits { uncompressed_bytes_max: ARCHIVE_BYTES_MAX, ..Limits::default() };
    let mut members: BTreeMap<String, Member> = BTreeMap::new();
    let mut buffer = vec![0; COPY_BYTES];
    let tar = LayerReader::sniff(input, &limits)?;
    read_members(tar, &limits, |raw, member| {
        let name = member_name(raw)?;
        let member = match member {
            ArchiveMember::Other => return Ok(()),
            ArchiveMember::Symlink(target) => {
                let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
                Member::Link(joined(dir, &member_name(&target)?))
            }
            ArchiveMember::Hardlink(target) => Member::Link(member_name(&target)?),
            ArchiveMember::File { body, .. } => {
                let failed = |source| ArchiveError::Read { name: name.clone(), source };
                let mut writer = store.ingest(lease)?;
                loop {
                    if cancel.reason().is_some() {
                        return Err(failed(io::Error::other("canceled")));
                    }
                    let count = body.read(&mut buffer).map_err(failed)?;
                    if count == 0 {
                        break;
                    }
                    io::Write::write_all(&mut writer, &buffer[..count]).map_err(failed)?;
                }
                let size = writer.size();
                Member::Blob { digest: writer.commit(None)?, size }
            }
        };
        if members.len() >= MEMBERS_MAX {
            return Err(ArchiveError::TooManyMembers);
        }
        match members.get(&name) {
            Some(known) if *known != member => Err(ArchiveError::Twice(name)),
            _ => {
                members.insert(name, member);
                Ok(())
            }
        }
    })?;
    Ok(members)
}

/// A name as the archive's documents would write it.
fn member_name(raw: &[u8]) -> Result<String, ArchiveError> {
    if raw.len() > NAME_BYTES_MAX {
        return Err(ArchiveError::NameTooLong);
    }
    let name = String::from_utf8_lossy(raw);
    Ok(name.strip_prefix("./").unwrap_or(&name).to_owned())
}

/// `target` seen from `dir`, by text alone: the result is a key of a map, never a path.
fn joined(dir: &str, target: &str) -> String {
    let mut parts: Vec<&str> = if target.starts_with('/') { Vec::new() } else { dir.split('/').collect() };
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.retain(|part| !part.is_empty());
    parts.join("/")
}

struct Archive<'a> {
    store: &'a Store,
    members: BTreeMap<String, Member>,
    /// The images for other platforms are not wanted.
    is_one: bool,
    platform: &'a Platform,
}

/// One image in `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl Archive<'_> {
    /// Digest and size of a member, behind its links.
    fn member(&self, name: &str) -> Result<(Digest, u64), ArchiveError> {
        let mut at = name.strip_prefix("./").unwrap_or(name);
        for _ in 0..=LINKS_MAX {
            match self.members.get(at) {
                Some(Member::Blob { digest, size }) => return Ok((*digest, *size)),
                Some(Member::Link(target)) => at = target,
                None => break,
            }
        }
        Err(ArchiveError::Missing(name.chars().take(200).collect()))
    }

    fn document(&self, digest: Digest, size: u64, bytes_max: u64) -> Result<Vec<u8>, ArchiveError> {
        let bytes = self.store.blob_bytes(&digest, bytes_max)?;
        bytes.filter(|bytes| bytes.len() as u64 == size).ok_or(ArchiveError::Blob(digest))
    }

    fn config(&self, digest: Digest, size: u64) -> Result<(Vec<u8>, ImageConfig), ArchiveError> {
        let bytes = self.document(digest, size, ImageConfig::BYTES_MAX)?;
        let config = ImageConfig::parse(&bytes).map_err(|source| ArchiveError::Config { digest, source })?;
        Ok((bytes, config))
    }

    fn docker_images(&self) -> Result<Vec<ArchivedImage>, ArchiveError> {
        let (digest, size) = self.member("manifest.json")?;
        let bytes = self.document(digest, size, Document::BYTES_MAX as u64)?;
        let entries: Vec<DockerImage> =
            serde_json::from_slice(&bytes).map_err(ArchiveError::DockerManifest)?;
        if entries.len() > IMAGES_MAX {
            return Err(ArchiveError::TooManyImages);
        }
        entries.into_iter().map(|entry| self.docker_image(entry)).collect()
    }

    fn docker_image(&self, entry: DockerImage) -> Result<ArchivedImage, ArchiveError> {
        let (config_digest, size) = self.member(&entry.config)?;
        let (config_bytes, config) = self.config(config_digest, size)?;
        let mut names: Vec<Reference> = Vec::new();
        for name in entry.repo_tags.unwrap_or_default() {
            names.push(parse_name(&name)?.with_default_tag());
        }
        let paths = entry.layers.unwrap_or_default();
        let diff_ids = &config.rootfs.diff_ids;
        let reference = names.first().map_or_else(|| config_digest.to_string(), ToString::to_string);
        if paths.len() != diff_ids.len() {
            let (layers, diff_ids) = (paths.len(), diff_ids.len());
            return Err(ResolveError::LayerCount { reference, layers, diff_ids }.into());
        }
        let mut layers = Vec::with_capacity(paths.len());
        for (path, diff_id) in paths.iter().zip(diff_ids) {
            let (digest, size) = self.member(path)?;
            // What compression it really has is seen when it is unpacked.
            let blob = BlobRef { digest, size, media_type: media_type::DOCKER_LAYER.to_owned() };
            layers.push(BaseLayer { diff_id: *diff_id, blob: Some(blob) });
        }
        let image = BaseImage {
            reference,
            identity: config_digest,
            config_bytes,
            config,
            layers,
            origin: Origin::Local,
        };
        let (manifest, config, index) = (None, config_digest, None);
        Ok(ArchivedImage { image, manifest, config, names, index, others: Vec::new() })
    }

    fn layout_images(&self) -> Result<Vec<ArchivedImage>, ArchiveError> {
        let (digest, size) = self.member("index.json")?;
        let bytes = self.document(digest, size, Document::BYTES_MAX as u64)?;
        let index = match parse_document("index.json", &bytes)? {
            Document::Index(index) => index,
            Document::Manifest(_) => return Err(ArchiveError::Nesting("index.json".to_owned())),
        };
        if index.manifests().len() > IMAGES_MAX {
            return Err(ArchiveError::TooManyImages);
        }
        let mut entries = Vec::new();
        for entry in index.manifests().iter().filter(|entry| !is_about_another(entry)) {
            entries.push((name_of(entry)?, entry));
        }
        let mut images: Vec<ArchivedImage> = Vec::new();
        for (place, (name, entry)) in entries.iter().enumerate() {
            if name.is_some() && entries[..place].iter().any(|(other, _)| other == name) {
                continue;
            }
            let same = entries.iter().filter(|(other, _)| other == name).map(|(_, entry)| *entry);
            let descriptor = match name {
                Some(name) => self.namesake(name, same.collect())?,
                None => entry,
            };
            let mut image = self.layout_image(descriptor.clone())?;
            let name = name.clone();
            image.image.reference = name.as_ref().map_or(image.image.reference, ToString::to_string);
            let is_it =
                |known: &&mut ArchivedImage| known.manifest == image.manifest && known.index == image.index;
            match images.iter_mut().find(is_it) {
                Some(known) => known.names.extend(name.filter(|name| !known.names.contains(name))),
                None => {
                    image.names.extend(name);
                    images.push(image);
                }
            }
        }
        Ok(images)
    }

    /// The entry of that name for the platform.
    fn namesake<'d>(
        &self,
        name: &Reference,
        same: Vec<&'d Descriptor>,
    ) -> Result<&'d Descriptor, ArchiveError> {
        let look = |entry: &Descriptor| match self.layout_image(entry.clone()) {
            Ok(found) => Ok(Some((found.image.config.platform, found.image.identity.to_string()))),
            Err(ArchiveError::NoPlatform(_)) => Ok(None),
            Err(error) => Err(error),
        };
        match namesakes::choose(same, self.platform, look)? {
            Choice::One(entry) => Ok(entry),
            Choice::None => Err(ArchiveError::NoPlatform(self.platform.clone())),
            Choice::Several(all) => Err(ArchiveError::Several {
                name: name.familiar(),
                platform: self.platform.clone(),
                digests: all.iter().map(|entry| entry.digest().to_string()).collect(),
            }),
        }
    }

    /// What a descriptor leads to: an image, or those of an index.
    fn layout_image(&self, mut descriptor: Descriptor) -> Result<ArchivedImage, ArchiveError> {
        for _ in 0..=INDEX_DEPTH_MAX {
            let digest = digest_of(&descriptor)?;
            let bytes = self.document(digest, descriptor.size(), Document::BYTES_MAX as u64)?;
            let index = match parse_document(&digest.to_string(), &bytes)? {
                Document::Manifest(manifest) => return self.image(digest, &manifest),
                Document::Index(index) => index,
            };
            if !self.is_one && index.manifests().iter().all(|entry| !Document::is_index(entry)) {
                return self.index_images(digest, &index);
            }
            let chosen = Document::choose(&index, self.platform).cloned();
            descriptor = chosen.ok_or_else(|| ArchiveError::NoPlatform(self.platform.clone()))?;
        }
        Err(ArchiveError::Nesting(descriptor.digest().to_string().chars().take(80).collect()))
    }

    /// The images of an index that are here. Docker writes indexes whose images it has in part.
    fn index_images(&self, digest: Digest, index: &Index) -> Result<ArchivedImage, ArchiveError> {
        if index.manifests().len() > IMAGES_MAX {
            return Err(ArchiveError::TooManyImages);
        }
        let (mut images, mut missing) = (Vec::new(), None);
        for entry in index.manifests().iter().filter(|entry| !is_about_another(entry)) {
            let manifest_digest = digest_of(entry)?;
            let found = self
                .document(manifest_digest, entry.size(), Document::BYTES_MAX as u64)
                .and_then(|bytes| parse_document(&manifest_digest.to_string(), &bytes))
                .and_then(|document| match document {
                    Document::Manifest(manifest) => self.image(manifest_digest, &manifest),
                    Document::Index(_) => Err(ArchiveError::Nesting(manifest_digest.to_string())),
                });
            match found {
                Ok(image) => images.push(image),
                Err(error @ ArchiveError::Blob(_)) => drop(missing.get_or_insert(error)),
                Err(error) => return Err(error),
            }
        }
        let chosen = Document::choose(index, self.platform).and_then(|chosen| digest_of(chosen).ok());
        let own = images.iter().position(|image| image.manifest == chosen).unwrap_or(0);
        if images.is_empty() {
            return Err(missing.unwrap_or_else(|| ArchiveError::NoPlatform(self.platform.clone())));
        }
        let mut image = images.remove(own);
        image.index = missing.is_none().then_some(digest);
        image.others = images;
        Ok(image)
    }

    fn image(&self, digest: Digest, manifest: &Manifest) -> Result<ArchivedImage, ArchiveError> {
        let config_digest = digest_of(manifest.config())?;
        let (config_bytes, config) = self.config(config_digest, manifest.config().size())?;
        let reference = digest.to_string();
        let layers = base_layers(&reference, manifest, &config)?;
        for blob in layers.iter().filter_map(|layer| layer.blob.as_ref()) {
            if self.store.blob(&blob.digest)?.is_none_or(|found| found.size != blob.size) {
                return Err(ArchiveError::Blob(blob.digest));
            }
        }
        let origin = Origin::Local;
        let image = BaseImage { reference, identity: digest, config_bytes, config, layers, origin };
        let (names, others) = (Vec::new(), Vec::new());
        Ok(ArchivedImage { image, manifest: Some(digest), config: config_digest, names, index: None, others })
    }
}

fn parse_document(name: &str, bytes: &[u8]) -> Result<Document, ArchiveError> {
    Document::parse(bytes, None).map_err(|source| ArchiveError::Document { name: name.to_owned(), source })
}

fn digest_of(descriptor: &Descriptor) -> Result<Digest, ArchiveError> {
    let text = descriptor.digest().to_string();
    text.parse().map_err(|_| ArchiveError::Digest(text.chars().take(80).collect()))
}

/// The whole name; a tag alone names nothing.
fn name_of(descriptor: &Descriptor) -> Result<Option<Reference>, ArchiveError> {
    if let Some(name) = annotation(descriptor, IMAGE_NAME) {
        return parse_name(name).map(|name| Some(name.with_default_tag()));
    }
    let whole = annotation(descriptor, REF_NAME).filter(|name| name.contains(['/', ':']));
    // Other tools write what they like here; what is no name is none.
    Ok(whole.and_then(|name| parse_name(name).ok()).map(Reference::with_default_tag))
}

fn parse_name(name: &str) -> Result<Reference, ArchiveError> {
    let wrong = |source| ArchiveError::Name { name: name.chars().take(120).collect(), source };
    let reference: Reference = name.parse().map_err(wrong)?;
    match reference.digest() {
        // An archive must not decide what a digest in a name means.
        Some(_) => Err(wrong(ReferenceError::Syntax(name.chars().take(120).collect()))),
        None => Ok(reference),
    }
}

#[cfg(test)]
mod tests;
