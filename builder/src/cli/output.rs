//! `-o/--output`: where results go.

use std::path::PathBuf;

use rbuild_oci::Reference;

use super::args::go_bool;
use super::csv::parse_record;
use super::error::Problem;
use super::request::parse_tag;

const FLAG: &str = "--output";

/// One product of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputArg {
    /// An image in the store under its names, and in the registries they say when `push`.
    Image {
        /// Names; those of `-t` when the output gives none of its own. May be empty unless `push`.
        names: Vec<Reference>,
        /// Push it too (`type=registry`, `push=true`, `--push`).
        push: bool,
        /// How pushed layers are compressed.
        compression: Compression,
    },
    /// An OCI image layout.
    Oci {
        /// Where to.
        dest: Destination,
        /// One tar archive, or a directory (`tar=false`, always with a path).
        archive: bool,
        /// Names recorded in it.
        names: Vec<Reference>,
        /// How its layers are compressed.
        compression: Compression,
    },
    /// Nothing but a warm cache.
    CacheOnly,
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
    names: Vec<Reference>,
    push: Option<bool>,
    compression: Option<String>,
    level: Option<String>,
}

/// Parses one `-o`. `tags` are the names of `-t`.
pub(crate) fn parse_output(text: &str, tags: &[Reference]) -> Result<OutputArg, Problem> {
    let fields =
        parse_record(text).map_err(|cause| Problem::Csv { flag: FLAG, value: text.to_owned(), cause })?;
    if text == "-" {
        return Err(not_yet("tar"));
    }
    if let [only] = fields.as_slice()
        && only == text
        && !only.starts_with("type=")
    {
        return Err(not_yet("local"));
    }
    let mut kind = None;
    let mut pairs = Vec::new();
    for field in &fields {
        let Some((key, value)) = field.split_once('=') else {
            return Err(invalid(text, format!("invalid value {field}, expected key=value")));
        };
        match key.trim().to_ascii_lowercase().as_str() {
            "type" => kind = Some(value.to_owned()),
            key => pairs.push((key.to_owned(), value)),
        }
    }
    let kind = kind.filter(|kind| !kind.is_empty()).ok_or(Problem::OutputType)?;
    match kind.as_str() {
        "oci" | "image" | "registry" | "cacheonly" => {}
        "tar" | "local" | "docker" => return Err(not_yet(&kind)),
        other => return Err(invalid(text, format!("unknown output type `{other}`"))),
    }
    let attributes = attributes(text, &kind, &pairs)?;
    let compression = compression(text, &attributes)?;
    let names = if attributes.names.is_empty() { tags.to_vec() } else { attributes.names };
    match kind.as_str() {
        "oci" => {
            let archive = attributes.tar.unwrap_or(true);
            let why = if archive { "" } else { " with tar=false" };
            let dest = match attributes.dest.as_deref() {
                Some("-") if archive => Destination::Stdout,
                None | Some("" | "-") => return Err(Problem::OutputDest { kind: "oci", why }),
                Some(path) => Destination::Path(path.into()),
            };
            Ok(OutputArg::Oci { dest, archive, names, compression })
        }
        "cacheonly" => Ok(OutputArg::CacheOnly),
        kind => {
            let push = attributes.push.unwrap_or(kind == "registry");
            Ok(OutputArg::Image { names, push, compression })
        }
    }
}

fn attributes(text: &str, kind: &str, pairs: &[(String, &str)]) -> Result<Attributes, Problem> {
    let mut found = Attributes::default();
    let boolean = |key: &str, value: &str| {
        go_bool(value).map_err(|expected| invalid(text, format!("{key}: {expected}")))
    };
    let image = matches!(kind, "image" | "registry");
    for (key, value) in pairs {
        match key.as_str() {
            "dest" if kind == "oci" => found.dest = Some((*value).to_owned()),
            "tar" if kind == "oci" => found.tar = Some(boolean(key, value)?),
            "push" if image => found.push = Some(boolean(key, value)?),
            "name" if kind != "cacheonly" => {
                for name in value.split(',').map(str::trim).filter(|name| !name.is_empty()) {
                    found.names.push(parse_tag(name)?);
                }
            }
            "compression" if kind != "cacheonly" => found.compression = Some((*value).to_owned()),
            "compression-level" if kind != "cacheonly" => found.level = Some((*value).to_owned()),
            // What these ask for is what rbuild does anyhow.
            "oci-mediatypes" | "unpack" | "store" if image && go_bool(value) == Ok(true) => {}
            "oci-mediatypes" if kind == "oci" && go_bool(value) == Ok(true) => {}
            "push-by-digest"
            | "name-canonical"
            | "dangling-name-prefix"
            | "store"
            | "unpack"
            | "registry.insecure"
            | "oci-mediatypes"
            | "oci-artifact"
            | "force-compression"
            | "rewrite-timestamp"
                if kind != "cacheonly" =>
            {
                return Err(Problem::ValueNotYet { flag: FLAG, what: format!("attribute `{key}={value}`") });
            }
            key if key.starts_with("annotation") && kind != "cacheonly" => {
                return Err(Problem::ValueNotYet { flag: FLAG, what: format!("attribute `{key}`") });
            }
            key => {
                return Err(Problem::OutputAttribute { key: key.to_owned(), kind: kind.to_owned() });
            }
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

fn not_yet(kind: &str) -> Problem {
    Problem::ValueNotYet { flag: FLAG, what: format!("output type `{kind}`") }
}

fn invalid(value: &str, expected: String) -> Problem {
    Problem::Value { flag: FLAG, value: value.to_owned(), expected }
}
