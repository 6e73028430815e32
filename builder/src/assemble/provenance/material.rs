//! What a build took from elsewhere, pinned.

use std::path::Path;

use rbuild_frontend::graph::{GitOp, HttpOp, ImageOp};
use rbuild_frontend::remote::without_user;
use rbuild_oci::{Digest, Platform, Reference};
use serde_json::{Value, json};

use crate::assemble::purl::{self, Purl};
use crate::context::remote::Pinned;

/// Something that was used, and which state of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Material {
    /// What: a package URL or an address without anything secret.
    pub(super) uri: String,
    algorithm: &'static str,
    hex: String,
}

impl Material {
    fn sha256(uri: String, digest: Digest) -> Self {
        Self { uri, algorithm: "sha256", hex: digest.hex() }
    }

    fn commit(uri: String, commit: &str) -> Self {
        let algorithm = if commit.len() == 64 { "sha256" } else { "sha1" };
        Self { uri, algorithm, hex: commit.to_owned() }
    }

    /// A base image: the manifest of its platform, or the config of one that was built here.
    pub(super) fn of_image(image: &ImageOp) -> Self {
        let uri = match (image.reference.strip_prefix("oci-layout://"), image.reference.parse::<Reference>())
        {
            (Some(dir), _) => layout(dir, image.manifest, &image.platform),
            (None, Ok(reference)) => purl::image(&reference, Some(&image.platform)),
            (None, Err(_)) => image.reference.clone(),
        };
        Self::sha256(uri, image.manifest)
    }

    /// A file of ADD; one with `--checksum` is what that says.
    pub(super) fn of_http(http: &HttpOp) -> Option<Self> {
        Some(Self::sha256(without_user(&http.url), http.content.or(http.checksum)?))
    }

    /// A repository of ADD.
    pub(super) fn of_git(git: &GitOp) -> Option<Self> {
        Some(Self::commit(git.source.to_string(), git.commit.as_deref()?))
    }

    /// A context or Dockerfile.
    pub(super) fn of_pinned(pinned: &Pinned) -> Self {
        match pinned {
            Pinned::Git { address, commit } => Self::commit(address.clone(), commit),
            Pinned::Http { address, content } => Self::sha256(address.clone(), *content),
        }
    }

    pub(super) fn digest_json(&self) -> Value {
        json!({ self.algorithm: self.hex })
    }

    pub(super) fn to_json(&self) -> Value {
        json!({"uri": self.uri, "digest": self.digest_json()})
    }
}

/// An image of a layout directory, of whose path only the last part is told.
fn layout(dir: &str, manifest: Digest, platform: &Platform) -> String {
    let name = Path::new(dir).file_name().map_or_else(|| "layout".into(), |name| name.to_string_lossy());
    let (version, platform) = (manifest.to_string(), platform.to_string());
    let qualifiers = [("platform", platform.as_str())];
    Purl { kind: "oci", name: &name, version: &version, qualifiers: &qualifiers, ..Purl::default() }
        .to_string()
}
