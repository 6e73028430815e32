//! What ADD fetches: files from web servers, git repositories.

use rbuild_oci::Digest;

use crate::ast::{AddInstruction, Spanned};
use crate::graph::{CopySource, GitOp, HttpOp, Op, RemoteForm};
use crate::parse::Issue;
use crate::remote::{Remote, is_commit_prefix, without_user};
use crate::span::Span;

/// The fetched sources of one ADD, in order.
pub(super) struct Remotes {
    /// Each with the name it has in progress.
    pub(super) ops: Vec<(Op, String)>,
    checksum: Option<Spanned<String>>,
    allows_ssh: bool,
    has_git: bool,
}

impl Remotes {
    pub(super) fn new(checksum: Option<Spanned<String>>, allows_ssh: bool) -> Self {
        Self { ops: Vec::new(), checksum, allows_ssh, has_git: false }
    }

    /// Notes a source. The slot it gets counts from the first of these.
    pub(super) fn add(
        &mut self,
        remote: Remote,
        add: &AddInstruction,
        span: Span,
    ) -> Result<CopySource, Issue> {
        let slot = u16::try_from(self.ops.len()).ok().filter(|slot| *slot < SOURCES_MAX);
        let slot = slot.ok_or_else(|| Issue::new(format!("more than {SOURCES_MAX} remote sources"), span))?;
        let (op, form) = match remote {
            Remote::Http(source) => {
                let checksum = self.checksum.as_ref().map(content_digest).transpose()?;
                let name = without_user(&source.url);
                let op = HttpOp { url: source.url, name: source.name, checksum, content: None };
                // Unlike a local archive, it is unpacked only when that is asked for.
                let unpack = add.unpack.as_ref().is_some_and(|flag| flag.value);
                ((Op::Http(op), name), if unpack { RemoteForm::Archive } else { RemoteForm::File })
            }
            Remote::Git(mut source) => {
                self.has_git = true;
                if source.is_ssh() && !self.allows_ssh {
                    let issue = Issue::new("ssh is not allowed: ADD would fetch with your keys", span);
                    return Err(issue.with_help("allow it with --ssh default"));
                }
                if let Some(checksum) = &self.checksum {
                    let value = checksum.value.to_ascii_lowercase();
                    if !is_commit_prefix(&value) {
                        return Err(Issue::new("invalid checksum: expected a git commit", checksum.span));
                    }
                    if !source.checksum.is_empty() && source.checksum != value {
                        return Err(Issue::new("conflicting values for checksum", checksum.span));
                    }
                    source.checksum = value;
                }
                let by_flag = add.keep_git_dir.as_ref().is_some_and(|flag| flag.value);
                let keep_git_dir = source.keep_git_dir.unwrap_or(by_flag);
                let name = source.to_string();
                ((Op::Git(GitOp { source, keep_git_dir, commit: None }), name), RemoteForm::Tree)
            }
        };
        self.ops.push(op);
        Ok(CopySource::Remote { slot, form })
    }

    /// Refuses flags that have nothing to apply to.
    pub(super) fn check(&self, is_alone: bool, add: Option<&AddInstruction>) -> Result<(), Issue> {
        if let Some(checksum) = &self.checksum {
            if !is_alone {
                return Err(Issue::new("checksum can't be specified for multiple sources", checksum.span));
            }
            if self.ops.is_empty() {
                return Err(Issue::new("checksum requires HTTP(S) or Git sources", checksum.span));
            }
        }
        match add.and_then(|add| add.keep_git_dir.as_ref()) {
            Some(flag) if flag.value && !self.has_git => {
                Err(Issue::new("keep-git-dir requires a Git source", flag.span))
            }
            _ => Ok(()),
        }
    }
}

/// More than any Dockerfile has, fewer than slots can count.
const SOURCES_MAX: u16 = 1000;

/// Why a fetched source is none for COPY.
pub(super) fn not_for_copy(remote: &Remote, span: Span) -> Issue {
    match remote {
        Remote::Http(_) => Issue::new("source can't be a URL for COPY", span),
        Remote::Git(_) => Issue::new("source can't be a git ref for COPY", span),
    }
}

fn content_digest(checksum: &Spanned<String>) -> Result<Digest, Issue> {
    let issue = |message: &str| Issue::new(message, checksum.span);
    let text = &checksum.value;
    let Some((algorithm, _)) = text.split_once(':') else {
        return Err(issue("invalid checksum digest format"));
    };
    match algorithm {
        "sha256" => text.parse().map_err(|_| issue("invalid checksum digest format")),
        _ => Err(issue(&format!("unsupported digest algorithm \"{algorithm}\": use sha256"))),
    }
}
