//! A git server for tests: bare repositories on loopback, through git's own `http-backend`.

use std::fs;
use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::web::{Reply, Request, Web};

/// Repositories and who serves them.
pub struct GitServer {
    dir: TempDir,
    web: Web,
}

impl GitServer {
    /// Starts without repositories. With a token, requests without it get `401`.
    ///
    /// # Errors
    ///
    /// When there is no port or no room.
    pub fn start(token: Option<&str>) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("rbuild-git-").tempdir()?;
        let (root, wanted) = (dir.path().to_owned(), token.map(|token| format!("basic {}", base64(token))));
        let web = Web::serve(move |request| {
            if wanted.as_ref().is_some_and(|wanted| request.header("authorization") != wanted) {
                return Reply::new(401).header("WWW-Authenticate", "Basic realm=\"git\"");
            }
            backend(&root, request).unwrap_or_else(|error| Reply::new(500).body(error.to_string()))
        })?;
        Ok(Self { dir, web })
    }

    /// The server's own log.
    #[must_use]
    pub fn web(&self) -> &Web {
        &self.web
    }

    /// `http://127.0.0.1:PORT/NAME.git`.
    #[must_use]
    pub fn url(&self, name: &str) -> String {
        self.web.url(&format!("/{name}.git"))
    }

    /// Makes an empty repository and returns where its files are edited.
    ///
    /// # Errors
    ///
    /// When git says no.
    pub fn repository(&self, name: &str) -> Result<Repository> {
        let bare = self.dir.path().join(format!("{name}.git"));
        let work = self.dir.path().join(format!("{name}.work"));
        git(self.dir.path(), &["init", "--quiet", "--bare", "-b", "main", &bare.to_string_lossy()])?;
        git(&bare, &["config", "uploadpack.allowFilter", "true"])?;
        git(self.dir.path(), &["init", "--quiet", "-b", "main", &work.to_string_lossy()])?;
        git(&work, &["remote", "add", "origin", &bare.to_string_lossy()])?;
        Ok(Repository { work })
    }
}

/// One repository on the server.
pub struct Repository {
    work: PathBuf,
}

impl Repository {
    /// Where its files are edited.
    #[must_use]
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// Writes files, commits everything and pushes it. Gives the commit.
    ///
    /// # Errors
    ///
    /// When git says no.
    pub fn commit(&self, files: &[(&str, &str)]) -> Result<String> {
        for (name, text) in files {
            let path = self.work.join(name);
            fs::create_dir_all(path.parent().context("a name")?)?;
            fs::write(path, text)?;
        }
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--allow-empty", "-m", "change"])?;
        self.git(&["push", "--quiet", "origin", "HEAD:main"])?;
        self.git(&["rev-parse", "HEAD"])
    }

    /// Runs git where the files are edited.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub fn git(&self, args: &[&str]) -> Result<String> {
        git(&self.work, args)
    }

    /// Makes a tree of lines as `git ls-tree` writes them, whatever is in the work tree.
    ///
    /// # Errors
    ///
    /// When git says no.
    pub fn tree(&self, lines: &str) -> Result<String> {
        let mut listing = tempfile::tempfile()?;
        listing.write_all(lines.as_bytes())?;
        listing.rewind()?;
        run(&self.work, &["mktree", "--missing"], listing.into())
    }
}

/// Seconds at which every commit of a test is made.
pub const COMMIT_TIME: i64 = 1_600_000_000;

/// Runs git in a directory, with nothing of the user's, and gives what it prints.
///
/// # Errors
///
/// When it fails.
pub fn git(dir: &Path, args: &[&str]) -> Result<String> {
    run(dir, args, Stdio::null())
}

fn run(dir: &Path, args: &[&str], input: Stdio) -> Result<String> {
    let date = format!("@{COMMIT_TIME} +0000");
    let mut command = Command::new("git");
    command.current_dir(dir).args(args).stdin(input);
    for (name, value) in [
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
        ("GIT_AUTHOR_NAME", "test"),
        ("GIT_AUTHOR_EMAIL", "test@localhost"),
        ("GIT_AUTHOR_DATE", &date),
        ("GIT_COMMITTER_NAME", "test"),
        ("GIT_COMMITTER_EMAIL", "test@localhost"),
        ("GIT_COMMITTER_DATE", &date),
    ] {
        command.env(name, value);
    }
    let output = command.output().context("run git")?;
    ensure!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// One request through git's CGI program.
fn backend(root: &Path, request: &Request) -> Result<Reply> {
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("REQUEST_METHOD", &request.method)
        .env("CONTENT_TYPE", request.header("content-type"))
        .env("HTTP_CONTENT_ENCODING", request.header("content-encoding"))
        .env("GIT_PROTOCOL", request.header("git-protocol"))
        .env("CONTENT_LENGTH", request.body.len().to_string())
        .env("REMOTE_ADDR", "127.0.0.1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("run git http-backend")?;
    let (mut stdin, body) = (child.stdin.take().context("a pipe")?, request.body.clone());
    // Beside reading: a pipe holds little, and the program may answer before it has read all.
    let writing = std::thread::spawn(move || drop(stdin.write_all(&body)));
    let output = child.wait_with_output()?;
    drop(writing.join());
    let split = output.stdout.windows(4).position(|window| window == b"\r\n\r\n").context("CGI headers")?;
    let head = String::from_utf8_lossy(&output.stdout[..split]).into_owned();
    let mut reply = Reply::new(200).body(&output.stdout[split + 4..]);
    for line in head.lines() {
        let Some((name, value)) = line.split_once(':') else { continue };
        match name {
            "Status" => reply.status = value.trim().split(' ').next().unwrap_or("500").parse()?,
            _ => reply = reply.header(name, value.trim()),
        }
    }
    Ok(reply)
}

/// Base64 of `x-access-token:TOKEN`, as tokens are sent.
fn base64(token: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in format!("x-access-token:{token}").as_bytes().chunks(3) {
        let bytes = [chunk[0], *chunk.get(1).unwrap_or(&0), *chunk.get(2).unwrap_or(&0)];
        let bits = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
        for at in 0..4 {
            let digit = (bits >> (18 - 6 * at)) & 63;
            text.push(if at > chunk.len() { '=' } else { char::from(DIGITS[digit as usize]) });
        }
    }
    text
}
