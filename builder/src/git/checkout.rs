//! Fetches one commit and gives its files as one tar.

use std::ffi::OsStr;
use std::path::PathBuf;

use rbuild_frontend::remote::GitSource;

use super::program::{Runner, Running};
use super::submodules;
use super::{GitError, GitSettings, Route};
use crate::cancel::Cancel;

/// Submodules followed, at all depths together.
const SUBMODULES_MAX: usize = 500;
/// Levels of submodules within submodules.
const DEPTH_MAX: usize = 10;
/// Attributes that would change what is in the tar; those of the repository's own files come after these.
const ATTRIBUTES: &str = "* -export-ignore -export-subst\n";
/// Latest time a commit may claim, about the year 9999; earliest is the epoch.
const TIME_MAX: i64 = 253_402_300_799;

/// The objects of one commit.
pub struct Checkout<'a> {
    runner: &'a Runner,
    source: &'a GitSource,
    commit: String,
    /// Tree with submodules in it.
    tree: String,
}

/// Who may use which credentials: a header for an address, when there is one.
pub(super) type Credentials<'a> = &'a (dyn Fn(&GitSource) -> Option<String> + Sync);

impl<'a> Checkout<'a> {
    /// Fetches `commit` of `source` into the runner's directory, with its submodules if it says so.
    pub async fn fetch(
        runner: &'a Runner,
        source: &'a GitSource,
        commit: &str,
        settings: &GitSettings,
        credentials: Credentials<'_>,
        cancel: &Cancel,
    ) -> Result<Self, GitError> {
        let format = if commit.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
        runner.text("init", &["init", "--quiet", "--bare", format]).await?;
        let attributes = runner.dir().join("repository/info");
        std::fs::create_dir_all(&attributes)
            .and_then(|()| std::fs::write(attributes.join("attributes"), ATTRIBUTES))
            .map_err(GitError::Run)?;
        fetch(runner, source, commit).await?;
        let root = format!("{commit}^{{tree}}");
        let tree = runner.text("rev-parse", &["rev-parse", "--verify", "--quiet", &root]).await?;
        let mut checkout = Self { runner, source, commit: commit.to_owned(), tree };
        if source.submodules {
            checkout.with_submodules(settings, credentials, cancel).await?;
        }
        Ok(checkout)
    }

    /// Seconds since the epoch at which the commit was made.
    pub async fn time(&self) -> Result<i64, GitError> {
        let shown = ["show", "--no-show-signature", "--no-patch", "--format=%ct", &self.commit];
        let text = self.runner.text("show", &shown).await?;
        Ok(text.trim().parse().unwrap_or(0).clamp(0, TIME_MAX))
    }

    /// Starts writing the files: owners root, modes 0755 and 0644, all times the commit's.
    pub async fn archive(&self) -> Result<Running, GitError> {
        let subdir = &self.source.subdir;
        let tree = format!("{}:{subdir}", self.tree);
        // Trees are looked up in trees: no link is followed, nothing leads out.
        let kind = self.runner.text("cat-file", &["cat-file", "-t", &tree]).await;
        if !matches!(kind.as_deref(), Ok("tree")) {
            return Err(GitError::Subdir {
                subdir: subdir.clone(),
                remote: self.runner.remote().to_owned(),
                commit: self.commit.clone(),
            });
        }
        let tree = self.runner.text("rev-parse", &["rev-parse", "--verify", &tree]).await?;
        // A tree by itself has no time, and git would take the clock's.
        let date = format!("@{} +0000", self.time().await?);
        let who = [
            ("GIT_AUTHOR_NAME", "rbuild"),
            ("GIT_AUTHOR_EMAIL", "rbuild"),
            ("GIT_AUTHOR_DATE", date.as_str()),
            ("GIT_COMMITTER_NAME", "rbuild"),
            ("GIT_COMMITTER_EMAIL", "rbuild"),
            ("GIT_COMMITTER_DATE", date.as_str()),
        ]
        .map(|(name, value)| (name, OsStr::new(value)));
        let made = self.runner.bytes("commit-tree", &["commit-tree", "-m", "files", &tree], &who).await?;
        let made = String::from_utf8_lossy(&made).trim().to_owned();
        self.runner.start("archive", &["archive", "--format=tar", &made])
    }

    /// Makes the fetched objects a `.git` directory to keep, and gives its path: detached at the commit, with its
    /// remote, an index, and nothing of how it was fetched.
    pub async fn git_dir(&self) -> Result<PathBuf, GitError> {
        let runner = self.runner;
        let remote = runner.remote();
        runner.text("update-ref", &["update-ref", "--no-deref", "HEAD", &self.commit]).await?;
        runner.text("read-tree", &["read-tree", &self.commit]).await?;
        for (key, value) in [
            ("core.bare", "false"),
            ("remote.origin.url", remote),
            ("remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*"),
        ] {
            runner.text("config", &["config", "--local", key, value]).await?;
        }
        let dir = runner.dir().join("repository");
        for leftover in ["FETCH_HEAD", "submodules.index", "info/attributes"] {
            let _ = std::fs::remove_file(dir.join(leftover));
        }
        let _ = std::fs::remove_dir_all(dir.join("hooks"));
        let _ = std::fs::remove_dir_all(dir.join("logs"));
        Ok(dir)
    }

    /// Puts the trees of submodules where the links to them are.
    async fn with_submodules(
        &mut self,
        settings: &GitSettings,
        credentials: Credentials<'_>,
        cancel: &Cancel,
    ) -> Result<(), GitError> {
        let route = self.runner.route().clone();
        let mut open = vec![(String::new(), self.source.clone(), self.commit.clone(), route, 0)];
        let mut count = 0;
        let mut grafts: Vec<(String, String)> = Vec::new();
        while let Some((prefix, source, commit, route, depth)) = open.pop() {
            for (path, address, linked) in self.links(&commit).await? {
                count += 1;
                if count > SUBMODULES_MAX || depth >= DEPTH_MAX {
                    let remote = self.runner.remote().to_owned();
                    return Err(GitError::Submodules { remote, max: SUBMODULES_MAX });
                }
                let below = submodules::source(&source, &path, &address)?;
                let way = Route::to(settings, &below, Some(&route)).await?;
                let dir = self.runner.dir().join(format!("submodule-{count}"));
                std::fs::create_dir(&dir).map_err(GitError::Run)?;
                let header = credentials(&below);
                let runner = Runner::new(settings, &dir, &below, header, way.clone(), cancel)?;
                // Its own configuration, for its own server; our objects.
                let runner = runner.into_repository_of(self.runner);
                fetch(&runner, &below, &linked).await?;
                let full = if prefix.is_empty() { path } else { format!("{prefix}/{path}") };
                grafts.push((full.clone(), linked.clone()));
                open.push((full, below, linked, way, depth + 1));
            }
        }
        if grafts.is_empty() {
            return Ok(());
        }
        let index = self.runner.dir().join("repository/submodules.index");
        // Taking an entry out wants a work tree, though it touches no file.
        let nowhere = self.runner.dir().join("nowhere");
        std::fs::create_dir(&nowhere).map_err(GitError::Run)?;
        let [index, nowhere] = [&index, &nowhere].map(|path| path.as_os_str().to_owned());
        let index = [("GIT_INDEX_FILE", index.as_os_str()), ("GIT_WORK_TREE", nowhere.as_os_str())];
        let runner = self.runner;
        runner.bytes("read-tree", &["read-tree", &self.tree], &index).await?;
        // Outer ones first: the inner links are in their trees.
        grafts.sort();
        for (path, commit) in grafts {
            let remove = ["update-index", "--force-remove", "--", &path];
            runner.bytes("update-index", &remove, &index).await?;
            let graft = ["read-tree", &format!("--prefix={path}/"), &commit];
            runner.bytes("read-tree", &graft, &index).await?;
        }
        let tree = runner.bytes("write-tree", &["write-tree"], &index).await?;
        self.tree = String::from_utf8_lossy(&tree).trim().to_owned();
        Ok(())
    }

    /// Path, address and commit of each submodule of a commit. A link that `.gitmodules` does not know stays an empty
    /// directory, as with git.
    async fn links(&self, commit: &str) -> Result<Vec<(String, String, String)>, GitError> {
        let blob = format!("{commit}:.gitmodules");
        let pattern = "^submodule\\..*\\.(path|url)$";
        let config = ["config", "--blob", &blob, "-z", "--get-regexp", pattern];
        let addresses = match self.runner.bytes("config", &config, &[]).await {
            Ok(config) => submodules::addresses(&config),
            // It is not there, which is usual, or not what git reads.
            Err(GitError::Failed { .. }) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        if addresses.is_empty() {
            return Ok(Vec::new());
        }
        let mut listing = self.runner.start("ls-tree", &["ls-tree", "-r", "-z", commit])?;
        let read = move || {
            let links =
                submodules::links(listing.stdout(), &addresses, SUBMODULES_MAX).map_err(GitError::Run)?;
            match links {
                Some(links) => listing.finish().map(|()| Some(links)),
                None => Ok(None),
            }
        };
        let links = tokio::task::spawn_blocking(read)
            .await
            .unwrap_or_else(|join| std::panic::resume_unwind(join.into_panic()))?;
        let remote = || self.runner.remote().to_owned();
        links.ok_or_else(|| GitError::Submodules { remote: remote(), max: SUBMODULES_MAX })
    }
}

/// Gets the objects of one commit. Servers that do not give a commit by itself are asked for the reference, then for
/// everything.
async fn fetch(runner: &Runner, source: &GitSource, commit: &str) -> Result<(), GitError> {
    let address = runner.address(source);
    let has = ["cat-file", "-e", commit];
    let want = |spec: Vec<&str>| {
        let mut args = vec!["fetch", "--quiet", "--no-tags", "--no-write-fetch-head"];
        args.extend(spec);
        args.into_iter().map(str::to_owned).collect::<Vec<String>>()
    };
    let reference = if source.reference.is_empty() { "HEAD" } else { &source.reference };
    let tries = [
        want(vec!["--depth=1", "--", &address, commit]),
        want(vec!["--depth=1", "--", &address, reference]),
        want(vec!["--", &address, "+refs/heads/*:refs/all/heads/*", "+refs/tags/*:refs/all/tags/*"]),
    ];
    let mut first = None;
    for args in tries {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        match runner.text("fetch", &args).await {
            Ok(_) if runner.text("cat-file", &has).await.is_ok() => return Ok(()),
            Ok(_) => {}
            Err(error @ (GitError::NoProgram | GitError::Run(_))) => return Err(error),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or_else(|| GitError::Reference {
        reference: commit.to_owned(),
        remote: runner.remote().to_owned(),
    }))
}
