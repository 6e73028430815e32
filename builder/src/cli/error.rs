//! What can be wrong with a command line.

use rbuild_oci::{DigestError, PlatformError, ReferenceError};

use super::csv::CsvError;

/// A command line that does not say something rbuild can do. Exit status 125.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
pub struct UsageError {
    /// The command as typed by name, e.g. `rbuild build`, for `See '… --help'`.
    pub command: String,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong with the arguments.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The argument parser refused; its own text, one line or more.
    #[error("{0}")]
    Syntax(String),
    /// A word of other programs, or a misspelt one, in the place of a command.
    #[error("`{0}` is not a command of rbuild: {why}", why = super::no_command(.0).unwrap_or_default())]
    NoCommand(String),
    /// A documented flag this version does not have.
    #[error("{flag} is not supported yet")]
    FlagNotYet {
        /// With its dashes.
        flag: String,
    },
    /// A documented value of a supported flag this version does not have.
    #[error("{flag}: {what} is not supported yet")]
    ValueNotYet {
        /// With its dashes, or `build context`.
        flag: &'static str,
        /// The kind of value, e.g. `output type \`tar\``.
        what: String,
    },
    /// Not one CSV record.
    #[error("invalid argument `{value}` for {flag}")]
    Csv {
        /// With its dashes.
        flag: &'static str,
        /// As typed.
        value: String,
        /// Why.
        #[source]
        cause: CsvError,
    },
    /// A value that is not of the accepted form or set.
    #[error("invalid argument `{value}` for {flag}: {expected}")]
    Value {
        /// With its dashes.
        flag: &'static str,
        /// As typed.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// A tag that is not an image name.
    #[error("invalid tag `{value}`: {cause}")]
    Tag {
        /// As typed.
        value: String,
        /// Why.
        cause: ReferenceError,
    },
    /// A tag with a digest: a name to give cannot fix the content.
    #[error("invalid tag `{value}`: refusing to create a tag with a digest reference")]
    TagWithDigest {
        /// As typed.
        value: String,
    },
    /// An image argument that is not a reference.
    #[error("{cause}")]
    Image {
        /// As typed.
        value: String,
        /// Why.
        cause: ReferenceError,
    },
    /// Not a platform.
    #[error("{cause}")]
    Platform {
        /// Why.
        cause: PlatformError,
    },
    /// A named context without a value.
    #[error("invalid context value: {0}, expected key=value")]
    ContextForm(String),
    /// A named context whose name is not an image name.
    #[error("invalid context name {name}: {cause}")]
    ContextName {
        /// As typed.
        name: String,
        /// Why.
        cause: ReferenceError,
    },
    /// A digest that is none, in `oci-layout://dir@digest`.
    #[error("invalid argument `{value}` for --build-context: {cause}")]
    ContextDigest {
        /// As typed.
        value: String,
        /// Why.
        cause: DigestError,
    },
    /// `-o` with `key=value` fields but no type.
    #[error("type is required for output")]
    OutputType,
    /// An attribute the output type does not have.
    #[error("unknown attribute `{key}` for output type `{kind}`")]
    OutputAttribute {
        /// The key.
        key: String,
        /// The type.
        kind: String,
    },
    /// An output that needs a destination.
    #[error("dest is required for output type `{kind}`{why}")]
    OutputDest {
        /// The type.
        kind: &'static str,
        /// Further condition, starting with a space, or empty.
        why: &'static str,
    },
    /// A name that is pushed by digest and has a tag.
    #[error("can't push tagged ref {value} by digest")]
    PushByDigestTag {
        /// As typed.
        value: String,
    },
    /// Several platforms for what holds one image.
    #[error(
        "docker exporter does not support exporting several platforms: an engine's archive holds one image"
    )]
    SeveralPlatforms,
    /// Not a point in time.
    #[error(
        "invalid SOURCE_DATE_EPOCH: {value} ({flag}): expected a Unix time in whole seconds, or the name of a context or stage"
    )]
    Epoch {
        /// Where it was given.
        flag: &'static str,
        /// As typed.
        value: String,
    },
    /// Nothing to push to.
    #[error("tag is needed when pushing to registry")]
    PushWithoutTag,
    /// Two products for one standard output.
    #[error("only one output can go to standard output: {0}")]
    StdoutTwice(&'static str),
    /// Flags that exclude each other.
    #[error("{0} and {1} cannot be used together")]
    Conflict(&'static str, String),
}

impl Problem {
    /// What the user can do about it, when that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::PushWithoutTag => Some("name the image with -t registry/repository:tag".to_owned()),
            Self::OutputType => Some("for example: -o type=oci,dest=image.tar".to_owned()),
            Self::Tag { cause, value }
            | Self::Image { cause, value }
            | Self::ContextName { cause, name: value } => cause.hint(value),
            Self::SeveralPlatforms => {
                Some("choose one with --platform, or write them all with -o type=oci,dest=FILE".to_owned())
            }
            Self::PushByDigestTag { .. } => Some(
                "give the repository alone: -o type=image,name=REPOSITORY,push-by-digest=true,push=true"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}
