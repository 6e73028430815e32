//! Images of the store, found by what people type: a name, `name@digest`, an id or the beginning of one.
//!
//! The store knows names. An image without any (loaded from an archive that gave none) is stored under its id:
//! `sha256:<hex>`, which no normalised name looks like.

use rbuild_cache::store::{ImageRecord, Store};
use rbuild_oci::{Digest, ImageConfig, Platform, Reference};

use super::ImageError;
use crate::error::BuildError;

/// A name and what it stands for.
#[derive(Debug, Clone)]
pub(super) struct Named {
    /// As the store has it.
    pub(super) raw: String,
    /// `None` for an image without a name.
    pub(super) reference: Option<Reference>,
    pub(super) record: ImageRecord,
}

impl Named {
    /// The name as people write it, or the id.
    pub(super) fn familiar(&self) -> String {
        self.reference.as_ref().map_or_else(|| self.raw.clone(), Reference::familiar)
    }
}

/// All images at one moment.
#[derive(Debug)]
pub(super) struct Images {
    pub(super) all: Vec<Named>,
}

/// What was found, and how it was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Found<'a> {
    /// By this very name.
    Name(&'a Named),
    /// By a manifest's digest in a repository.
    Digest(&'a Named),
    /// By id or its beginning.
    Id(&'a Named),
}

impl<'a> Found<'a> {
    pub(super) fn named(self) -> &'a Named {
        match self {
            Self::Name(named) | Self::Digest(named) | Self::Id(named) => named,
        }
    }
}

impl Images {
    pub(super) fn load(store: &Store) -> Result<Self, BuildError> {
        let named = |(raw, record): (String, ImageRecord)| {
            let reference = match raw.parse::<Digest>() {
                Ok(_) => None,
                // A name that does not parse was written by a newer rbuild: not ours to show or remove.
                Err(_) => Some(raw.parse().ok()?),
            };
            Some(Named { raw, reference, record })
        };
        let mut all: Vec<Named> = store.images()?.into_iter().filter_map(named).collect();
        // A stand-in counts as long as there is no name; builds and pulls that bring one do not know of it.
        let with_names: Vec<Digest> =
            all.iter().filter(|named| named.reference.is_some()).map(|named| named.record.config).collect();
        all.retain(|named| named.reference.is_some() || !with_names.contains(&named.record.config));
        Ok(Self { all })
    }

    /// The image that `text` stands for. Names win over ids.
    pub(super) fn find(&self, text: &str) -> Result<Found<'_>, ImageError> {
        if let Ok(id) = text.parse::<Digest>() {
            let found = self.all.iter().find(|named| named.record.config == id).map(Found::Id);
            return found
                .or_else(|| self.all.iter().find(|named| named.record.digest() == Some(id)).map(Found::Id))
                .ok_or_else(|| ImageError::NoSuchImage { name: text.to_owned(), similar: Vec::new() });
        }
        let reference = text.parse::<Reference>().map(Reference::with_default_tag);
        if let Ok(reference) = &reference {
            let raw = reference.to_string();
            if let Some(named) = self.all.iter().find(|named| named.raw == raw) {
                return Ok(Found::Name(named));
            }
            if let Some(digest) = reference.digest() {
                let found = self.all.iter().find(|named| is_at(named, reference, digest));
                if let Some(named) = found {
                    return Ok(Found::Digest(named));
                }
            }
        }
        if let Some(found) = self.by_prefix(text)? {
            return Ok(found);
        }
        let reference = reference.map_err(|cause| ImageError::Reference { value: text.to_owned(), cause })?;
        let same = |named: &&Named| named.reference.as_ref().is_some_and(|n| n.name() == reference.name());
        let similar = self.all.iter().filter(same).map(Named::familiar).collect();
        Err(ImageError::NoSuchImage { name: reference.familiar(), similar })
    }

    fn by_prefix(&self, text: &str) -> Result<Option<Found<'_>>, ImageError> {
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        let is_hex = prefix.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if prefix.is_empty() || prefix.len() > 64 || !is_hex {
            return Ok(None);
        }
        let mut found: Vec<&Named> = Vec::new();
        for named in &self.all {
            let is_new = found.iter().all(|other| other.record.config != named.record.config);
            if is_new && named.record.config.hex().starts_with(prefix) {
                found.push(named);
            }
        }
        match found.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(Found::Id(one))),
            several => Err(ImageError::Ambiguous { prefix: text.to_owned(), count: several.len() }),
        }
    }

    /// Every name of an image, in their order.
    pub(super) fn names_of(&self, id: Digest) -> impl Iterator<Item = &Named> {
        self.all.iter().filter(move |named| named.record.config == id)
    }

    /// The names in a repository whose manifest has this digest.
    pub(super) fn at_digest<'a>(&'a self, text: &'a str) -> impl Iterator<Item = &'a Named> {
        let reference = text.parse::<Reference>().ok();
        self.all.iter().filter(move |named| {
            reference.as_ref().is_some_and(|wanted| wanted.digest().is_some_and(|d| is_at(named, wanted, d)))
        })
    }
}

fn is_at(named: &Named, wanted: &Reference, digest: Digest) -> bool {
    named.record.digest() == Some(digest)
        && named.reference.as_ref().is_some_and(|reference| reference.name() == wanted.name())
}

/// The image for a platform of those a name stands for: the very one asked for, else one that runs there. Without a
/// platform, the image that the name itself shows.
pub(super) fn for_platform<'a>(
    named: &'a Named,
    wanted: Option<&Platform>,
) -> Result<&'a ImageRecord, ImageError> {
    let Some(wanted) = wanted else { return Ok(&named.record) };
    let platform = |image: &ImageRecord| image.platform.parse::<Platform>().ok();
    let exact = named.record.each().find(|image| platform(image).as_ref() == Some(wanted));
    let found = exact.or_else(|| {
        named.record.each().find(|image| platform(image).is_some_and(|platform| platform.satisfies(wanted)))
    });
    found.ok_or_else(|| ImageError::OtherPlatform {
        name: named.familiar(),
        found: named.record.each().map(|image| image.platform.as_str()).collect::<Vec<_>>().join(", "),
        wanted: wanted.to_string(),
    })
}

/// The config of an image: its bytes and what they say.
pub(super) fn config(store: &Store, record: &ImageRecord) -> Result<ImageConfig, BuildError> {
    let gone = || ImageError::Config(record.config.to_string());
    let bytes = store.blob_bytes(&record.config, ImageConfig::BYTES_MAX)?.ok_or_else(gone)?;
    Ok(ImageConfig::parse(&bytes).map_err(|_| gone())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(names: &[(&str, &str)]) -> Images {
        let named = |(name, content): &(&str, &str)| {
            let config = Digest::of(content.as_bytes());
            let raw = match *name {
                "" => config.to_string(),
                name => name.parse::<Reference>().unwrap().with_default_tag().to_string(),
            };
            let reference = (!name.is_empty()).then(|| raw.parse().unwrap());
            let record = ImageRecord {
                config,
                layers: Vec::new(),
                diff_ids: Vec::new(),
                manifest: Some(Digest::of(format!("manifest of {content}").as_bytes())),
                index: None,
                others: Vec::new(),
                absent: None,
                platform: "linux/amd64".into(),
                size_bytes: 0,
                created_unix_ns: 0,
            };
            Named { raw, reference, record }
        };
        Images { all: names.iter().map(named).collect() }
    }

    #[track_caller]
    fn found(images: &Images, text: &str) -> String {
        match images.find(text) {
            Ok(Found::Name(named)) => format!("name {}", named.familiar()),
            Ok(Found::Digest(named)) => format!("digest {}", named.familiar()),
            Ok(Found::Id(named)) => format!("id {}", named.familiar()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn names_ids_and_digests_find_images() {
        let images = images(&[("busybox", "a"), ("me/app:1", "a"), ("me/app:2", "b"), ("", "c")]);
        let id = |content: &str| Digest::of(content.as_bytes());
        assert_eq!(found(&images, "busybox"), "name busybox:latest");
        assert_eq!(found(&images, "docker.io/library/busybox:latest"), "name busybox:latest");
        assert_eq!(found(&images, "me/app:2"), "name me/app:2");
        assert_eq!(found(&images, &id("b").short()), "id me/app:2");
        assert_eq!(found(&images, &id("b").to_string()), "id me/app:2");
        assert_eq!(found(&images, &id("b").hex()), "id me/app:2");
        assert_eq!(found(&images, &id("c").hex()[..20]), format!("id {}", id("c")));
        let digest = Digest::of(b"manifest of b");
        assert_eq!(found(&images, &format!("me/app@{digest}")), "digest me/app:2");
        assert_eq!(found(&images, &format!("other@{digest}")), format!("No such image: other@{digest}"));
    }

    #[test]
    fn what_is_not_there_is_named_with_what_is() {
        let images = images(&[("me/app:1", "a"), ("me/app:2", "b")]);
        let Err(ImageError::NoSuchImage { name, similar }) = images.find("me/app") else { panic!() };
        assert_eq!((name.as_str(), similar), ("me/app:latest", vec!["me/app:1".into(), "me/app:2".into()]));
        assert_eq!(
            found(&images, "Me/App"),
            "invalid reference format: repository name (Me/App) must be lowercase"
        );
        assert!(matches!(images.find(&"0".repeat(64)), Err(ImageError::Reference { .. })));
    }

    #[test]
    fn an_ambiguous_beginning_is_refused_and_several_names_of_one_image_are_not() {
        let many: Vec<String> = (0..40).map(|n| n.to_string()).collect();
        let names: Vec<String> = many.iter().map(|n| format!("many:{n}")).collect();
        let pairs: Vec<(&str, &str)> =
            names.iter().zip(&many).map(|(a, b)| (a.as_str(), b.as_str())).collect();
        let images = images(&pairs);
        let first = Digest::of(b"0").hex();
        let count = many.iter().filter(|n| Digest::of(n.as_bytes()).hex().starts_with(&first[..1])).count();
        assert!(count > 1, "the test needs two ids that begin alike");
        assert!(
            matches!(images.find(&first[..1]), Err(ImageError::Ambiguous { count: found, .. }) if found == count)
        );
        let images = self::images(&[("a", "x"), ("b", "x")]);
        assert_eq!(found(&images, &Digest::of(b"x").short()), "id a:latest");
    }
}
