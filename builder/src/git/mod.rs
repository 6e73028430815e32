//! Git repositories, through the program `git`: which commit a reference means, and its files as a tar.
//!
//! ```text
//! resolve ── git ls-remote ──▶ commit
//! Checkout::fetch ── git fetch ──▶ objects ── read-tree, write-tree ──▶ one tree with its submodules ── git archive ──▶ tar
//! ```
//!
//! Repositories and Dockerfiles are hostile. Git runs with an environment and a configuration of ours alone
//! (`program`), nothing is ever checked out (so no filter, no hook and no `.git` of a repository's making can act), a
//! submodule is fetched like a repository of its own instead of by `git submodule`, and the files go through the tar
//! reader that layers go through.

mod checkout;
pub mod local;
mod program;
mod route;
mod submodules;

pub use checkout::Checkout;
pub(crate) use program::basic;
pub use program::{GitSettings, Runner};
pub use route::Route;

use rbuild_frontend::remote::{GitSource, is_commit, without_user};

/// Why a repository cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// The program is not there.
    #[error("git repositories need the program `git`, which is not in PATH")]
    NoProgram,
    /// It cannot be started, or its pipes break.
    #[error("cannot run git")]
    Run(#[source] std::io::Error),
    /// It failed.
    #[error("git {what} failed for {remote}: {message}")]
    Failed {
        /// Its sub-command.
        what: &'static str,
        /// Repository, without what may be secret.
        remote: String,
        /// The last of what it said.
        message: String,
    },
    /// It says more than any repository needs.
    #[error("{remote} has too much to say to git {what}")]
    TooMuch {
        /// Its sub-command.
        what: &'static str,
        /// Repository, without what may be secret.
        remote: String,
    },
    /// No such branch, tag or commit.
    #[error("git reference `{reference}` was not found in {remote}")]
    Reference {
        /// As asked for.
        reference: String,
        /// Repository, without what may be secret.
        remote: String,
    },
    /// The reference leads elsewhere than the Dockerfile says.
    #[error("expected checksum to match {expected}, got {found}")]
    Checksum {
        /// As asked for.
        expected: String,
        /// The commit found.
        found: String,
    },
    /// The directory asked for is not there, or is none.
    #[error("`{subdir}` is not a directory of {remote} at {commit}")]
    Subdir {
        /// As asked for, cleaned.
        subdir: String,
        /// Repository, without what may be secret.
        remote: String,
        /// Commit.
        commit: String,
    },
    /// A submodule that is not fetched.
    #[error("submodule `{path}` of {remote} has the address `{address}`: {why}")]
    Submodule {
        /// Where it belongs.
        path: String,
        /// Repository, without what may be secret.
        remote: String,
        /// As its `.gitmodules` says.
        address: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// More submodules than are followed.
    #[error("{remote} has more than {max} submodules")]
    Submodules {
        /// Repository, without what may be secret.
        remote: String,
        /// The limit.
        max: usize,
    },
    /// A server that nobody should be led to.
    #[error("refusing to connect to {remote}")]
    Address {
        /// Repository, without what may be secret.
        remote: String,
        /// Why.
        #[source]
        source: rbuild_registry::ReachError,
    },
    /// Credentials that would break out of their line.
    #[error("the credentials for {0} have a line break or another control character")]
    Credentials(String),
}

impl GitError {
    /// The fix, when we know one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoProgram => Some("install the package `git`".to_owned()),
            Self::Failed { message, .. } if message.contains("requested URL returned error: 30") => {
                Some("the server sends git elsewhere: use the address that it redirects to".to_owned())
            }
            Self::Failed { message, .. }
                if message.contains("could not read Username")
                    || message.contains("Authentication failed") =>
            {
                Some("give a token with --secret id=GIT_AUTH_TOKEN,…".to_owned())
            }
            Self::Failed { message, .. } if message.contains("Host key verification failed") => {
                Some("add the host's key to ~/.ssh/known_hosts first".to_owned())
            }
            _ => None,
        }
    }
}

/// The commit that a source means. A source that names one is not asked about.
pub async fn resolve(runner: &Runner, source: &GitSource) -> Result<String, GitError> {
    let wanted = match (source.reference.as_str(), source.checksum.as_str()) {
        ("", checksum) if is_commit(checksum) => checksum,
        (reference, _) => reference,
    };
    if is_commit(wanted) {
        return verified(wanted.to_owned(), source);
    }
    let remote = without_user(&source.remote);
    let name = if wanted.is_empty() { "HEAD" } else { wanted };
    // `^{}` is the commit that an annotated tag stands for.
    let peeled = format!("{name}^{{}}");
    let address = runner.address(source);
    let listed = runner.text("ls-remote", &["ls-remote", "--quiet", "--", &address, name, &peeled]).await?;
    let commit = pick(&listed, name).ok_or(GitError::Reference { reference: name.to_owned(), remote })?;
    verified(commit, source)
}

fn verified(commit: String, source: &GitSource) -> Result<String, GitError> {
    if !commit.starts_with(&source.checksum) {
        return Err(GitError::Checksum { expected: source.checksum.clone(), found: commit });
    }
    Ok(commit)
}

/// What a name means among the listed references: itself, else a tag, else a branch, as git has it.
fn pick(listed: &str, name: &str) -> Option<String> {
    let find = |wanted: &str| {
        let mut lines = listed.lines().filter_map(|line| line.split_once('\t'));
        lines.find(|(_, found)| *found == wanted).map(|(commit, _)| commit.to_owned())
    };
    [name.to_owned(), format!("refs/{name}"), format!("refs/tags/{name}"), format!("refs/heads/{name}")]
        .iter()
        .find_map(|full| find(&format!("{full}^{{}}")).or_else(|| find(full)))
        .filter(|commit| is_commit(commit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_tags_before_branches_and_annotated_tags_their_commits() {
        let (branch, tag, peeled) = ("1".repeat(40), "2".repeat(40), "3".repeat(40));
        let listed = format!(
            "{branch}\trefs/heads/v1\n{tag}\trefs/tags/v1\n{peeled}\trefs/tags/v1^{{}}\n{branch}\trefs/heads/x/v2\n"
        );
        assert_eq!(pick(&listed, "v1"), Some(peeled.clone()));
        assert_eq!(pick(&listed, "refs/heads/v1"), Some(branch.clone()));
        assert_eq!(pick(&listed, "refs/tags/v1"), Some(peeled));
        assert_eq!(pick(&listed, "v2"), None);
        assert_eq!(pick("rubbish\trefs/heads/a\n", "a"), None);
    }
}
