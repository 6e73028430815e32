//! Entries of an `index.json` that have one name: which of them is meant.
//!
//! Several platforms under one name are one image, as an index of their own would be. Two different images for one
//! platform are refused. Tools that write layouts take the name from the older one (containers/image, BuildKit), and those
//! that read such a layout nevertheless do not agree: the image-spec says the first, as do containers/image and BuildKit;
//! containerd, and `docker load` with it, the last; umoci none.

use rbuild_oci::{Descriptor, Document, Platform};

use crate::assemble::attestation::REFERENCE_TYPE;

/// Annotation that carries the tag, or what the tool took for one.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation that carries the full image name.
pub(super) const IMAGE_NAME: &str = "io.containerd.image.name";

/// What a name means.
#[derive(Debug)]
pub(super) enum Choice<'a> {
    One(&'a Descriptor),
    /// None is for the platform.
    None,
    /// Different images for the platform.
    Several(Vec<&'a Descriptor>),
}

/// Chooses among the entries of one name; of a single one, whatever its platform is. `look` says for which platform an
/// entry leads to which manifest, where the entry itself does not state it (containers/image never does).
pub(super) fn choose<'a, E>(
    mut same: Vec<&'a Descriptor>,
    wanted: &Platform,
    mut look: impl FnMut(&'a Descriptor) -> Result<Option<(Platform, String)>, E>,
) -> Result<Choice<'a>, E> {
    keep_different(&mut same, |entry| entry.digest().to_string());
    if let [only] = same[..] {
        return Ok(Choice::One(only));
    }
    let mut found = Vec::new();
    for entry in same {
        let leaf = match Document::platform(entry) {
            Some(platform) => Some((platform, entry.digest().to_string())),
            None => look(entry)?,
        };
        found.extend(leaf.map(|(platform, digest)| (platform, (digest, entry))));
    }
    let Some((platform, _)) = Platform::choose(found.iter().cloned(), wanted) else {
        return Ok(Choice::None);
    };
    found.retain(|(other, _)| *other == platform);
    keep_different(&mut found, |(_, (digest, _))| digest.clone());
    let mut fitting: Vec<&Descriptor> = found.into_iter().map(|(_, (_, entry))| entry).collect();
    Ok(match fitting.len() {
        1 => Choice::One(fitting.remove(0)),
        _ => Choice::Several(fitting),
    })
}

/// Leaves out what is the same as something before it.
fn keep_different<T>(all: &mut Vec<T>, digest: impl Fn(&T) -> String) {
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|one| seen.insert(digest(one)));
}

pub(super) fn annotation<'a>(descriptor: &'a Descriptor, key: &str) -> Option<&'a str> {
    descriptor.annotations().as_ref()?.get(key).map(String::as_str)
}

/// Attestations and signatures are no images.
pub(super) fn is_about_another(descriptor: &Descriptor) -> bool {
    annotation(descriptor, REFERENCE_TYPE).is_some()
        || descriptor.platform().as_ref().is_some_and(|platform| platform.os().to_string() == "unknown")
}
