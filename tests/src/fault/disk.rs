//! A file system that is soon full.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// A tmpfs of its own; unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    /// Of this many bytes. Needs root.
    ///
    /// # Errors
    ///
    /// When it cannot be mounted.
    pub fn new(bytes: u64) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let options = format!("size={bytes},mode=0755");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()).status();
        ensure!(mount.context("run mount")?.success(), "no tmpfs can be mounted");
        Ok(Self { dir })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(self.dir.path()).status().ok();
    }
}
