//! What a run left behind: mounts, processes, unfinished files.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Variable that marks the binary and what it starts (RUN steps excepted: their environment is the image's).
pub const MARK: &str = "RBUILD_TEST_DIR";

/// The kernel ends the processes of a dead pid namespace in its own time.
const GRACE: Duration = Duration::from_secs(3);

/// One line for every mount, process and unfinished file that belongs to the world in `dir` with the store `root`.
///
/// Looks again for a moment before it reports: a killed process is not gone at once.
#[must_use]
pub fn left_behind(dir: &Path, root: &Path) -> Vec<String> {
    let deadline = Instant::now() + GRACE;
    loop {
        let left = look(dir, root);
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn look(dir: &Path, root: &Path) -> Vec<String> {
    let mut left = mounts(dir, root);
    left.extend(processes(dir));
    left.extend(files(&dir.join("tmp")));
    left.extend(files(&root.join("work")));
    left
}

/// Mounts in the test's own mount namespace: on or from the world's directory. The store's own mount point (a test's
/// small disk) is the test's.
fn mounts(dir: &Path, root: &Path) -> Vec<String> {
    let (dir, root) = (dir.to_string_lossy(), root.to_string_lossy());
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap_or_default()
        .lines()
        .filter(|line| line.contains(&*dir) && line.split(' ').nth(4) != Some(&*root))
        .map(|line| format!("mount: {line}"))
        .collect()
}

/// Processes that run the world's binary, carry its mark, or stand in its directory.
fn processes(dir: &Path) -> Vec<String> {
    let mark = format!("{MARK}={}", dir.display());
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()))
        .filter_map(|entry| {
            let process = entry.path();
            let stands_in =
                |link: &str| fs::read_link(process.join(link)).is_ok_and(|path| path.starts_with(dir));
            let environment = fs::read(process.join("environ")).unwrap_or_default();
            let is_marked = environment.split(|byte| *byte == 0).any(|field| field == mark.as_bytes());
            let mounts = fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
            // A step's process sees an overlay of this store as its root.
            let is_step = mounts
                .lines()
                .any(|line| line.split(' ').nth(4) == Some("/") && line.contains(&*dir.to_string_lossy()));
            let belongs = is_marked || is_step || ["exe", "cwd", "root"].into_iter().any(stands_in);
            let command = fs::read(process.join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let is_zombie = fs::read_to_string(process.join("stat")).is_ok_and(|stat| stat.contains(") Z "));
            (belongs && !is_zombie)
                .then(|| format!("process {}: {command}", entry.file_name().to_string_lossy()))
        })
        .collect()
}

/// Files below a directory of unfinished work, at most one level listed.
fn files(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().map(|entry| format!("file: {}", entry.path().display())).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_running_marked_process_and_a_temporary_file_are_found() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join("tmp"))?;
        fs::create_dir_all(dir.path().join("store").join("work/lease-1"))?;
        assert_eq!(look(dir.path(), &dir.path().join("none")), Vec::<String>::new());
        let mut child = Command::new("sleep").arg("60").env(MARK, dir.path()).spawn()?;
        let left = look(dir.path(), &dir.path().join("store"));
        child.kill()?;
        child.wait()?;
        assert!(left.iter().any(|line| line.contains("sleep 60")), "{left:?}");
        assert!(left.iter().any(|line| line.contains("lease-1")), "{left:?}");
        assert_eq!(left.len(), 2, "{left:?}");
        Ok(())
    }
}
