//! What of the context's git repository goes into the result: Buildx's variables `BUILDX_GIT_INFO` and
//! `BUILDX_GIT_LABELS`.

use super::args::go_bool;
use super::env::Env;

/// What to tell of the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RepositoryArg {
    /// In provenance: commit, remote and the places of context and Dockerfile.
    pub in_provenance: bool,
    /// In labels of the image.
    pub labels: RepositoryLabels,
}

/// Which labels tell of the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepositoryLabels {
    /// None.
    No,
    /// The commit and the place of the Dockerfile.
    Place,
    /// The remote as well.
    Full,
}

impl RepositoryArg {
    /// Tells nothing.
    pub const NOTHING: Self = Self { in_provenance: false, labels: RepositoryLabels::No };

    /// As the variables say; what they say otherwise counts as it does in Buildx.
    pub(crate) fn from_env(env: &Env) -> Self {
        let is = |text: &str, wanted: bool| go_bool(text) == Ok(wanted);
        let labels = match env.non_empty("BUILDX_GIT_LABELS").as_deref() {
            Some("full") => RepositoryLabels::Full,
            Some(text) if is(text, true) => RepositoryLabels::Place,
            _ => RepositoryLabels::No,
        };
        let in_provenance = !env.non_empty("BUILDX_GIT_INFO").is_some_and(|text| is(&text, false));
        Self { in_provenance, labels }
    }
}
