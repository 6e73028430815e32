//! An ordinary user, with a sub-id range or without, made for one test.

use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail, ensure};

use crate::need::find_program;

/// User and group databases have one writer at a time; the account has one name, so that a killed run leaves at most one.
static ACCOUNTS: Mutex<()> = Mutex::new(());
/// The same between processes: several checkouts may be tested on one machine at a time. Never removed.
const LOCK: &str = "/run/lock/rbuild-test-account";
const NAME: &str = "rbuild-test";

/// The user, until dropped: then its account and its sub-id range are removed.
#[derive(Debug)]
pub struct User {
    uid: u32,
    gid: u32,
    // Declared, and so released, after the account is gone.
    _alone_on_machine: File,
    _alone: MutexGuard<'static, ()>,
}

impl User {
    /// Makes the account and its range of 65,536 subordinate ids. Waits while another test on this machine has it.
    ///
    /// # Errors
    ///
    /// When the account or its range cannot be made.
    pub fn create() -> Result<Self> {
        let user = Self::account()?;
        for (file, option) in [("/etc/subuid", "--add-subuids"), ("/etc/subgid", "--add-subgids")] {
            if entry(file)?.is_none() {
                account("usermod", &[option, "2200000-2265535", NAME])?;
            }
        }
        Ok(user)
    }

    /// Makes the account without any subordinate id. Waits as [`User::create`].
    ///
    /// # Errors
    ///
    /// When the account cannot be made, or keeps its range.
    pub fn create_without_range() -> Result<Self> {
        let user = Self::account()?;
        for (file, option) in [("/etc/subuid", "--del-subuids"), ("/etc/subgid", "--del-subgids")] {
            // `useradd` gives a range by itself on most systems.
            while let Some(line) = entry(file)? {
                let mut fields = line.split(':').skip(1).map(str::parse::<u64>);
                let (start, count) = match (fields.next(), fields.next()) {
                    (Some(Ok(start)), Some(Ok(count))) => (start, count),
                    _ => bail!("{file} has `{line}`"),
                };
                account("usermod", &[option, &format!("{start}-{}", start + count.saturating_sub(1)), NAME])?;
            }
        }
        Ok(user)
    }

    fn account() -> Result<Self> {
        let alone = ACCOUNTS.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = File::create(LOCK).with_context(|| format!("create {LOCK}"))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
        if entry("/etc/passwd")?.is_none() {
            // Without a home directory: every TestEnv brings its own.
            account("useradd", &["--no-create-home", "--user-group", "--shell", "/bin/sh", NAME])?;
        }
        let passwd = entry("/etc/passwd")?.context("useradd made no user")?;
        let mut fields = passwd.split(':').skip(2);
        let mut id = || fields.next().and_then(|text| text.parse().ok()).context("numbers in /etc/passwd");
        let (uid, gid) = (id()?, id()?);
        Ok(Self { uid, gid, _alone_on_machine: lock, _alone: alone })
    }

    /// Its user id.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Its group id.
    #[must_use]
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// Gives it a tree of files. Links are not followed.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or given.
    pub fn give(&self, path: &Path) -> Result<()> {
        if path.is_symlink() {
            std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid))?;
            return Ok(());
        }
        chown(path, Some(self.uid), Some(self.gid)).with_context(|| format!("give {}", path.display()))?;
        if path.is_dir() {
            for entry in fs::read_dir(path)? {
                self.give(&entry?.path())?;
            }
        }
        Ok(())
    }
}

impl Drop for User {
    fn drop(&mut self) {
        account("userdel", &[NAME]).ok();
    }
}

fn entry(file: &str) -> Result<Option<String>> {
    let text = fs::read_to_string(file).unwrap_or_default();
    Ok(text.lines().find(|line| line.starts_with(&format!("{NAME}:"))).map(str::to_owned))
}

fn account(program: &str, args: &[&str]) -> Result<()> {
    let path = find_program(program).with_context(|| format!("`{program}` is not installed"))?;
    let output = Command::new(path).args(args).output()?;
    ensure!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
