//! Where files come from: the build context, the Dockerfile, named contexts.

use std::path::PathBuf;

use rbuild_frontend::remote::{GitSource, HttpSource, Remote, RemoteError, without_user};
use rbuild_oci::{Digest, Platform, Reference};

use super::error::Problem;

/// The main build context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContextArg {
    /// A directory, relative to the working directory.
    Local(PathBuf),
    /// Standard input: a tar, or a Dockerfile for an empty context.
    Stdin,
    /// A git repository.
    Git(GitSource),
    /// An archive on a web server, or a Dockerfile with itself as context.
    Http(HttpSource),
}

/// Where the Dockerfile is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DockerfileArg {
    /// A file, relative to the working directory, or to a context from standard input.
    Path(PathBuf),
    /// Standard input.
    Stdin,
    /// On a web server.
    Http(HttpSource),
}

/// Refuses two readers of one standard input.
pub(crate) fn one_stdin(context: &ContextArg, dockerfile: Option<&DockerfileArg>) -> Result<(), Problem> {
    if matches!((context, dockerfile), (ContextArg::Stdin, Some(DockerfileArg::Stdin))) {
        return Err(Problem::Syntax(
            "invalid argument: can't use stdin for both build context and dockerfile".to_owned(),
        ));
    }
    Ok(())
}

/// What a named context stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedContextArg {
    /// A directory, relative to the working directory.
    Dir(PathBuf),
    /// An image in an OCI layout directory; without tag and digest, its only one.
    OciLayout {
        /// The layout's directory.
        dir: PathBuf,
        /// Which of its images, by tag.
        tag: Option<String>,
        /// Which of its images, by digest.
        digest: Option<Digest>,
    },
    /// An image from a registry; `None` is `scratch`.
    Image(Option<Reference>),
    /// A git repository.
    Git(GitSource),
    /// An archive on a web server.
    Http(HttpSource),
}

/// Parses the positional argument.
pub(crate) fn parse_context(text: &str) -> Result<ContextArg, Problem> {
    if text == "-" {
        return Ok(ContextArg::Stdin);
    }
    match remote("the build context", text)? {
        Some(Remote::Git(source)) => Ok(ContextArg::Git(source)),
        Some(Remote::Http(source)) => Ok(ContextArg::Http(source)),
        None if text.is_empty() => Err(Problem::Value {
            flag: "the build context",
            value: String::new(),
            expected: "expected a directory".to_owned(),
        }),
        None => Ok(ContextArg::Local(text.into())),
    }
}

/// Parses `-f`.
pub(crate) fn parse_dockerfile(text: &str) -> Result<DockerfileArg, Problem> {
    if text == "-" {
        return Ok(DockerfileArg::Stdin);
    }
    match Remote::parse(text).map_err(|cause| address("--file", text, &cause))? {
        Some(Remote::Http(source)) => Ok(DockerfileArg::Http(source)),
        Some(Remote::Git(_)) => Err(Problem::Value {
            flag: "--file",
            value: text.to_owned(),
            expected: "expected a path or the address of a file: a repository is a build context".to_owned(),
        }),
        None if text.is_empty() => Err(Problem::Value {
            flag: "--file",
            value: String::new(),
            expected: "expected a path".to_owned(),
        }),
        None => Ok(DockerfileArg::Path(text.into())),
    }
}

/// Parses one `--build-context`. The name is an image name in its familiar form, without a trailing `:latest`, and with
/// the platform it is for behind `::` when it has one.
pub(crate) fn parse_named_context(text: &str) -> Result<(String, NamedContextArg), Problem> {
    let Some((name, value)) = text.split_once('=') else {
        return Err(Problem::ContextForm(text.to_owned()));
    };
    let (name, platform) = match name.split_once("::") {
        Some((name, platform)) => {
            let platform: Platform = platform.parse().map_err(|cause| Problem::Platform { cause })?;
            (name, format!("::{platform}"))
        }
        None => (name, String::new()),
    };
    let reference: Reference =
        name.parse().map_err(|cause| Problem::ContextName { name: name.to_owned(), cause })?;
    let familiar = reference.familiar();
    let name = familiar.strip_suffix(":latest").unwrap_or(&familiar);
    Ok((format!("{name}{platform}"), parse_named_value(text, value)?))
}

fn parse_named_value(text: &str, value: &str) -> Result<NamedContextArg, Problem> {
    let not_yet = |what: String| {
        Err(Problem::ValueNotYet { flag: "--build-context", what: format!("{what} (`{text}`)") })
    };
    if let Some(image) = value.strip_prefix("docker-image://") {
        if image == "scratch" {
            return Ok(NamedContextArg::Image(None));
        }
        let reference = super::parse_image(image)?;
        return Ok(NamedContextArg::Image(Some(reference.with_default_tag())));
    }
    if let Some(layout) = value.strip_prefix("oci-layout://") {
        return parse_layout(text, layout);
    }
    if value.starts_with("target:") {
        return not_yet("a bake target".to_owned());
    }
    match remote("--build-context", value)? {
        Some(Remote::Git(source)) => return Ok(NamedContextArg::Git(source)),
        Some(Remote::Http(source)) => return Ok(NamedContextArg::Http(source)),
        None => {}
    }
    if value.is_empty() {
        return Err(Problem::ContextForm(text.to_owned()));
    }
    Ok(NamedContextArg::Dir(value.into()))
}

/// `dir`, `dir:tag`, `dir@digest` or `dir:tag@digest`.
fn parse_layout(text: &str, layout: &str) -> Result<NamedContextArg, Problem> {
    let (rest, digest) = match layout.split_once("@sha") {
        Some((rest, _)) => {
            let digest = &layout[rest.len() + 1..];
            let digest =
                digest.parse().map_err(|cause| Problem::ContextDigest { value: text.to_owned(), cause })?;
            (rest, Some(digest))
        }
        None => (layout, None),
    };
    // A colon before a slash belongs to the path.
    let (dir, tag) = match rest.rsplit_once(':') {
        Some((dir, tag)) if !tag.contains('/') && !tag.is_empty() => (dir, Some(tag.to_owned())),
        _ => (rest, None),
    };
    if dir.is_empty() {
        return Err(Problem::ContextForm(text.to_owned()));
    }
    Ok(NamedContextArg::OciLayout { dir: dir.into(), tag, digest })
}

/// What a context's text stands for, when it is no path.
fn remote(flag: &'static str, text: &str) -> Result<Option<Remote>, Problem> {
    let git = GitSource::context(text).map_err(|cause| address(flag, text, &cause))?;
    match git {
        Some(source) => Ok(Some(Remote::Git(source))),
        None => Remote::parse(text).map_err(|cause| address(flag, text, &cause)),
    }
}

fn address(flag: &'static str, text: &str, cause: &RemoteError) -> Problem {
    Problem::Value { flag, value: without_user(text), expected: cause.to_string() }
}
