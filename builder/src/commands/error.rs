//! What can be wrong in a command on images.

use std::path::PathBuf;

use rbuild_oci::ReferenceError;
use rbuild_registry::{KeychainError, RegistryError, ServerError};

use crate::report::Kind;
use crate::resolve::archive::ArchiveError;
use crate::template::TemplateError;

/// A command on images that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No image has that name or id.
    #[error("No such image: {name}")]
    NoSuchImage {
        /// As people write it.
        name: String,
        /// Names in the same repository.
        similar: Vec<String>,
    },
    /// Neither a name nor an id.
    #[error("{cause}")]
    Reference {
        /// As typed.
        value: String,
        /// Why.
        cause: ReferenceError,
    },
    /// Several images have an id that begins so.
    #[error("the image id `{prefix}` is ambiguous: {count} images begin with it")]
    Ambiguous {
        /// As typed.
        prefix: String,
        /// How many.
        count: usize,
    },
    /// Removing by id what several repositories name.
    #[error(
        "conflict: unable to delete {id} (must be forced) - image is referenced in multiple repositories: {names}"
    )]
    SeveralRepositories {
        /// Short id.
        id: String,
        /// Its names.
        names: String,
    },
    /// The stored config of an image is gone or damaged.
    #[error("the config of image {0} is not in the store any more, or is damaged")]
    Config(String),
    /// An archive that cannot be written.
    #[error("failed to save image to `{}`", .path.display())]
    Save {
        /// Where; `-` is standard output.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// An archive for a terminal.
    #[error("cowardly refusing to save to a terminal. Use the -o flag or redirect")]
    SaveToTerminal,
    /// An archive from a terminal.
    #[error("requested load from stdin, but stdin is a terminal. Use the -i flag or redirect")]
    LoadFromTerminal,
    /// An archive that cannot be opened.
    #[error("cannot open `{}`", .path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// An archive that does not give its images.
    #[error("cannot load the archive")]
    Archive(#[from] ArchiveError),
    /// The registry does not take the credentials, or cannot be asked.
    #[error("login to {server} failed")]
    Login {
        /// As credentials are stored.
        server: String,
        /// Why.
        #[source]
        source: Box<RegistryError>,
    },
    /// Not a registry.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// Credentials cannot be kept or forgotten.
    #[error(transparent)]
    Credentials(#[from] KeychainError),
    /// No terminal to ask at.
    #[error("Cannot perform an interactive login from a non TTY device")]
    NotATerminal,
    /// An empty name or password, or one that no file can hold.
    #[error("the {what} {problem}")]
    Unusable {
        /// `user name` or `password`.
        what: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The terminal or standard input cannot be read.
    #[error("cannot read the {what}")]
    Ask {
        /// `user name` or `password`.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A registry does not give or take what `imagetools` wants.
    #[error("{reference}")]
    Remote {
        /// Name.
        reference: String,
        /// Why.
        #[source]
        source: Box<RegistryError>,
    },
    /// A digest without a repository.
    #[error("a digest alone names no image")]
    NoRepository,
    /// An index without entries.
    #[error("nothing is left to join: no source has a wanted platform")]
    NothingToJoin,
    /// The repository is here with other tags.
    #[error("tag does not exist: {name}")]
    NoSuchTag {
        /// As people write it.
        name: String,
        /// Those that are here.
        similar: Vec<String>,
    },
    /// All tags of a repository, and none is here.
    #[error("An image does not exist locally with the tag: {0}")]
    NoTags(String),
    /// The image is for another platform.
    #[error("image {name} is for {found}, not for {wanted}")]
    OtherPlatform {
        /// Name.
        name: String,
        /// What it is for.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// The template of `--format` cannot be used.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

impl ImageError {
    /// What decides the exit status.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Template(error) if error.is_syntax() => Kind::Template,
            Self::Login { .. } | Self::Credentials(_) | Self::Remote { .. } => Kind::Registry,
            _ => Kind::Store,
        }
    }

    /// What the user can do about it.
    pub(crate) fn hints(&self) -> Vec<String> {
        match self {
            Self::NoSuchImage { similar, .. } if similar.is_empty() => {
                vec!["rbuild images lists what is here; rbuild pull gets an image".to_owned()]
            }
            Self::NoSuchImage { similar, .. } | Self::NoSuchTag { similar, .. } => vec![format!("there is {}", similar.join(", "))],
            Self::Ambiguous { .. } => vec!["type more of it, or use the image's name".to_owned()],
            Self::SeveralRepositories { .. } => {
                vec!["remove it by name, or everywhere at once with -f".to_owned()]
            }
            Self::Archive(ArchiveError::Several { .. }) => {
                vec!["tools do not agree which of them is meant: leave one in the archive's index.json, or rename the others there".to_owned()]
            }
            Self::Config(_) => vec!["pull or build the image again".to_owned()],
            Self::Reference { value, cause } => cause.hint(value).into_iter().collect(),
            Self::NotATerminal => {
                vec!["give the name with -u and the password on standard input: --password-stdin".to_owned()]
            }
            Self::Login { source, .. } => match &**source {
                RegistryError::Unauthorized { .. } => vec![
                    "check the name and the password; where two factors are asked for, an access token takes the password's place"
                        .to_owned(),
                ],
                other => other.hint().into_iter().collect(),
            },
            Self::Remote { source, .. } => source.hint().into_iter().collect(),
            Self::NoRepository => vec!["give the repository too: NAME@sha256:…, or a name for the result with -t".to_owned()],
            Self::Credentials(source) => source.hint().into_iter().collect(),
            _ => Vec::new(),
        }
    }
}
