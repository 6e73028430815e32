//! `-o/--output`: where results go.

use std::path::PathBuf;

use rbuild_oci::Reference;

use super::annotation::{Annotation, parse_attribute};
use super::args::go_bool;
use super::csv::parse_record;
use super::error::Problem;
use super::request::parse_tag;

const FLAG: &str = "--output";

/// One product of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputArg {
    /// An image in the store under its names, and in the registries they say.
    Image(ImageOutput),
    /// An OCI image layout.
    Oci {
        /// Where to.
        dest: Destination,
        /// One tar archive, or a directory (`tar=false`, always with a path).
        archive: bool,
        /// Names recorded in it.
        names: Vec<Reference>,
        /// How the image is written.
        packing: PackingArg,
    },
    /// An archive that `docker load` reads.
    Docker {
        /// Where to; `None` is the local engine.
        dest: Option<Destination>,
        /// Names recorded in it.
        names: Vec<Reference>,
        /// How the image is written.
        packing: PackingArg,
    },
    /// The files of the image in a directory.
    Local {
        /// The directory.
        dest: PathBuf,
        /// Whether it keeps what is in it already.
        mode: LocalMode,
        /// A directory for each platform; `None` when there are several.
        platform_split: Option<bool>,
        /// Begins the names of the files that attestations go to.
        attestation_prefix: String,
    },
    /// The files of the image in a tar archive.
    Tar {
        /// Where to.
        dest: Destination,
        /// A directory for each platform; `None` when there are several.
        platform_split: Option<bool>,
        /// Begins the names of the files that attestations go to.
        attestation_prefix: String,
    },
    /// Nothing but a warm cache.
    CacheOnly,
}

impl OutputArg {
    /// True when it goes to standard output.
    pub fn is_stdout(&self) -> bool {
        match self {
            Self::Oci { dest, .. } | Self::Tar { dest, .. } => *dest == Destination::Stdout,
            Self::Docker { dest, .. } => *dest == Some(Destination::Stdout),
            Self::Image(_) | Self::Local { .. } | Self::CacheOnly => false,
        }
    }
}

/// `type=image` and `type=registry`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageOutput {
    /// Names; those of `-t` when the output gives none of its own. May be empty unless `push`.
    pub names: Vec<Reference>,
    /// Push it too (`type=registry`, `push=true`, `--push`).
    pub push: bool,
    /// Push without giving a tag (`push-by-digest`).
    pub by_digest: bool,
    /// Give the name with the digest in the store too (`name-canonical`).
    pub canonical: bool,
    /// Name `PREFIX@DIGEST` in the store for an image without a name (`dangling-name-prefix`).
    pub dangling: Option<Reference>,
    /// Leave no name in the store (`store=false`).
    pub not_stored: bool,
    /// How the image is written.
    pub packing: PackingArg,
}

/// How an image is written outside of the store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PackingArg {
    /// How layers are compressed.
    pub compression: Compression,
    /// Compress base layers in the same way, too (`force-compression`).
    pub force: bool,
    /// Docker's media types in place of OCI's (`oci-mediatypes=false`).
    pub docker_types: bool,
    /// Set newer times in new layers back to `SOURCE_DATE_EPOCH` (`rewrite-timestamp`).
    pub rewrite_timestamp: Option<bool>,
    /// Annotations of this output alone.
    pub annotations: Vec<Annotation>,
    /// Attestations in the form that they had before OCI artifacts (`oci-artifact=false`).
    pub image_attestations: bool,
}

/// What happens to other files in a directory that is exported to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LocalMode {
    /// They stay.
    #[default]
    Copy,
    /// They go.
    Delete,
}

/// Where an archive goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Standard output. The caller refuses a terminal.
    Stdout,
    /// A file or directory, relative to the working directory.
    Path(PathBuf),
}

/// How layers are stored outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// What the builder prefers: layers that exist compressed stay as they are.
    #[default]
    Unchanged,
    /// Plain tar.
    Uncompressed,
    /// gzip, with a level 0–9 when given.
    Gzip(Option<u8>),
    /// zstd, with a level 0–22 when given.
    Zstd(Option<u8>),
}

/// Attributes collected from the record.
#[derive(Default)]
struct Attributes {
    dest: Option<String>,
    tar: Option<bool>,
    mode: LocalMode,
    platform_split: Option<bool>,
    attestation_prefix: String,
    /// As typed: whether a tag may be there depends on other attributes.
    names: Vec<String>,
    image: ImageOutput,
    push: Option<bool>,
    compression: Option<String>,
    level: Option<String>,
}

/// Parses one `-o`. `tags` are the names of `-t`.
pub(crate) fn parse_output(text: &str, tags: &[Reference]) -> Result<OutputArg, Problem> {
    let fields =
        parse_record(text).map_err(|cause| Problem::Csv { flag: FLAG, value: text.to_owned(), cause })?;
    if text == "-" {
        let attestation_prefix = String::new();
        return Ok(OutputArg::Tar { dest: Destination::Stdout, platform_split: None, attestation_prefix });
    }
    if let [only] = fields.as_slice()
        && only == text
        && !only.starts_with("type=")
    {
        return Ok(OutputArg::Local {
            dest: text.into(),
            mode: LocalMode::Copy,
            platform_split: None,
            attestation_prefix: String::new(),
        });
    }
    let mut kind = None;
    let mut pairs = Vec::new();
    for field in &fields {
        let Some((key, value)) = field.split_once('=') else {
            return Err(invalid(text, format!("invalid value {field}, expected key=value")));
        };
        match key.trim().to_ascii_lowercase().as_str() {
            "type" => kind = Some(value.to_owned()),
            _ => pairs.push((key.trim().to_owned(), value)),
        }
    }
    let kind = kind.filter(|kind| !kind.is_empty()).ok_or(Problem::OutputType)?;
    let known = ["oci", "image", "registry", "docker", "local", "tar", "cacheonly"];
    if !known.contains(&kind.as_str()) {
        return Err(invalid(text, format!("unknown output type `{kind}`, expected {}", known.join(", "))));
    }
    let attributes = attributes(text, &kind, &pairs)?;
    let compression = compression(text, &attributes)?;
    let Attributes { dest, tar, mode, platform_split, attestation_prefix, names, mut image, push, .. } =
        attributes;
    image.packing.compression = compression;
    image.push = push.unwrap_or(kind == "registry");
    let typed = names.iter().map(|name| match image.by_digest {
        true => parse_untagged(name),
        false => parse_tag(name),
    });
    let typed = typed.collect::<Result<Vec<_>, _>>()?;
    image.names = match (typed.is_empty(), image.by_digest) {
        (false, _) => typed,
        (true, false) => tags.to_vec(),
        (true, true) if tags.is_empty() => Vec::new(),
        (true, true) => return Err(Problem::PushByDigestTag { value: tags[0].familiar() }),
    };
    let dest = dest.filter(|dest| !dest.is_empty());
    let required = |kind, why| Problem::OutputDest { kind, why };
    let file = |dest: &str| if dest == "-" { Destination::Stdout } else { Destination::Path(dest.into()) };
    Ok(match kind.as_str() {
        "oci" => {
            let archive = tar.unwrap_or(true);
            let why = if archive { "" } else { " with tar=false" };
            let dest = dest.filter(|dest| archive || dest != "-").ok_or_else(|| required("oci", why))?;
            OutputArg::Oci { dest: file(&dest), archive, names: image.names, packing: image.packing }
        }
        "docker" => {
            OutputArg::Docker { dest: dest.as_deref().map(file), names: image.names, packing: image.packing }
        }
        "local" => {
            let dest = dest.filter(|dest| dest != "-").ok_or_else(|| required("local", ""))?;
            OutputArg::Local { dest: dest.into(), mode, platform_split, attestation_prefix }
        }
        "tar" => {
            let dest = dest.ok_or_else(|| required("tar", ""))?;
            OutputArg::Tar { dest: file(&dest), platform_split, attestation_prefix }
        }
        "cacheonly" => OutputArg::CacheOnly,
        _ => OutputArg::Image(image),
    })
}

/// A name that is pushed by digest: no tag may be there.
fn parse_untagged(text: &str) -> Result<Reference, Problem> {
    let name: Reference = text.parse().map_err(|cause| Problem::Tag { value: text.to_owned(), cause })?;
    match (name.tag(), name.digest()) {
        (None, None) => Ok(name),
        _ => Err(Problem::PushByDigestTag { value: text.to_owned() }),
    }
}

fn attributes(text: &str, kind: &str, pairs: &[(String, &str)]) -> Result<Attributes, Problem> {
    let mut found = Attributes::default();
    let boolean = |key: &str, value: &str| {
        go_bool(value).map_err(|expected| invalid(text, format!("{key}: {expected}")))
    };
    let image = matches!(kind, "image" | "registry");
    let files = matches!(kind, "local" | "tar");
    let packed = image || matches!(kind, "oci" | "docker");
    for (typed, value) in pairs {
        let key = typed.to_ascii_lowercase();
        // The key of an annotation keeps its case.
        if packed && let Some(annotation) = parse_attribute(typed, value) {
            found.image.packing.annotations.push(annotation);
            continue;
        }
        match key.as_str() {
            "dest" if files || matches!(kind, "oci" | "docker") => found.dest = Some((*value).to_owned()),
            "tar" if kind == "oci" => found.tar = Some(boolean(&key, value)?),
            "tar" if kind == "docker" => {
                if !boolean(&key, value)? {
                    return Err(invalid(text, "tar=false needs type=oci".to_owned()));
                }
            }
            "mode" if kind == "local" => {
                found.mode = match *value {
                    "copy" => LocalMode::Copy,
                    "delete" => LocalMode::Delete,
                    _ => return Err(invalid(text, "mode: expected copy or delete".to_owned())),
                }
            }
            "platform-split" if files => found.platform_split = Some(boolean(&key, value)?),
            "push" if image => found.push = Some(boolean(&key, value)?),
            "push-by-digest" if image => found.image.by_digest = boolean(&key, value)?,
            "name-canonical" if image => found.image.canonical = boolean(&key, value)?,
            "dangling-name-prefix" if image => {
                let prefix =
                    value.parse().map_err(|cause| Problem::Tag { value: (*value).to_owned(), cause })?;
                found.image.dangling = Some(prefix);
            }
            "store" if image => found.image.not_stored = !boolean(&key, value)?,
            // An image in the store is unpacked anyhow.
            "unpack" if image => drop(boolean(&key, value)?),
            "name" if packed => {
                let names = value.split(',').map(str::trim).filter(|name| !name.is_empty());
                found.names.extend(names.map(str::to_owned));
            }
            "compression" if packed => found.compression = Some((*value).to_owned()),
            "compression-level" if packed => found.level = Some((*value).to_owned()),
            "force-compression" if packed => found.image.packing.force = boolean(&key, value)?,
            "oci-mediatypes" if packed => found.image.packing.docker_types = !boolean(&key, value)?,
            "rewrite-timestamp" if packed => {
                found.image.packing.rewrite_timestamp = Some(boolean(&key, value)?);
            }
            "oci-artifact" if packed => found.image.packing.image_attestations = !boolean(&key, value)?,
            "attestation-prefix" if files => {
                if value.contains(['/', '\0']) {
                    return Err(invalid(
                        text,
                        "attestation-prefix: expected a name without directories".into(),
                    ));
                }
                found.attestation_prefix = (*value).to_owned();
            }
            "registry.insecure" | "context" if packed => {
                return Err(Problem::ValueNotYet { flag: FLAG, what: format!("attribute `{key}={value}`") });
            }
            _ => return Err(Problem::OutputAttribute { key, kind: kind.to_owned() }),
        }
    }
    Ok(found)
}

fn compression(text: &str, attributes: &Attributes) -> Result<Compression, Problem> {
    let level = |highest: u8| match &attributes.level {
        None => Ok(None),
        Some(typed) => match typed.parse::<u8>() {
            Ok(level) if level <= highest => Ok(Some(level)),
            _ => Err(invalid(text, format!("compression-level: expected 0 to {highest}"))),
        },
    };
    match attributes.compression.as_deref() {
        None if attributes.level.is_some() => {
            Err(invalid(text, "compression-level needs compression=gzip or compression=zstd".to_owned()))
        }
        None => Ok(Compression::Unchanged),
        Some("uncompressed") => Ok(Compression::Uncompressed),
        Some("gzip") => Ok(Compression::Gzip(level(9)?)),
        Some("zstd") => Ok(Compression::Zstd(level(22)?)),
        Some("estargz") => {
            Err(Problem::ValueNotYet { flag: FLAG, what: "attribute `compression=estargz`".to_owned() })
        }
        Some(other) => {
            let text = format!("unknown compression `{other}`, expected uncompressed, gzip or zstd");
            Err(invalid(other, text))
        }
    }
}

fn invalid(value: &str, expected: String) -> Problem {
    Problem::Value { flag: FLAG, value: value.to_owned(), expected }
}
