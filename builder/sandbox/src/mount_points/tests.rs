use super::*;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;

fn root_at(path: &Path) -> std::fs::File {
    std::fs::File::open(path).unwrap()
}

/// Every path below `root` with its type, size and times, sorted.
fn listing(root: &Path) -> Vec<String> {
    fn visit(dir: &Path, out: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            out.push(format!(
                "{} {:o} {} {}.{}",
                path.display(),
                meta.mode(),
                if meta.is_dir() { 0 } else { meta.size() },
                meta.mtime(),
                meta.mtime_nsec()
            ));
            if meta.is_dir() {
                visit(&path, out);
            }
        }
    }
    let mut out = Vec::new();
    visit(root, &mut out);
    out.sort();
    out
}

const FILES: [(&str, Kind); 3] =
    [("/etc/hosts", Kind::File), ("/etc/resolv.conf", Kind::File), ("/deep/er/script", Kind::File)];

/// A root with the kernel directories, so that only traces make a difference.
fn prepared() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["proc", "sys", "dev", "etc"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    std::fs::write(dir.path().join("etc/hosts"), "image's own").unwrap();
    dir
}

#[test]
fn nothing_is_left_but_what_was_there_with_its_times() {
    let dir = prepared();
    let before = listing(dir.path());
    let points = MountPoints::create(root_at(dir.path()).as_fd(), "/", &FILES).unwrap();
    assert!(dir.path().join("deep/er/script").is_file());
    assert!(dir.path().join("etc/resolv.conf").is_file());
    points.remove();
    assert_eq!(listing(dir.path()), before);
}

#[test]
fn kernel_directories_and_the_working_directory_stay() {
    let dir = tempfile::tempdir().unwrap();
    MountPoints::create(root_at(dir.path()).as_fd(), "/srv/app", &FILES).unwrap().remove();
    let left: Vec<_> = listing(dir.path())
        .iter()
        .map(|line| {
            line.split(' ').next().unwrap().strip_prefix(dir.path().to_str().unwrap()).unwrap().to_owned()
        })
        .collect();
    assert_eq!(left, ["/dev", "/proc", "/srv", "/srv/app", "/sys"]);
}

#[test]
fn what_the_step_changed_is_the_steps() {
    let dir = prepared();
    let points = MountPoints::create(root_at(dir.path()).as_fd(), "/", &FILES).unwrap();
    // Replaced by another inode; a made directory filled.
    std::fs::remove_file(dir.path().join("etc/resolv.conf")).unwrap();
    std::fs::write(dir.path().join("etc/resolv.conf"), "").unwrap();
    std::fs::write(dir.path().join("deep/result"), "").unwrap();
    points.remove();
    assert!(dir.path().join("etc/resolv.conf").exists());
    assert!(dir.path().join("deep/result").exists());
    assert!(!dir.path().join("deep/er").exists());
}

#[test]
fn made_names_are_removed_where_the_step_moved_their_directory() {
    let dir = prepared();
    let points = MountPoints::create(root_at(dir.path()).as_fd(), "/", &FILES).unwrap();
    std::fs::rename(dir.path().join("etc"), dir.path().join("moved")).unwrap();
    points.remove();
    assert!(!dir.path().join("moved/resolv.conf").exists());
    assert!(dir.path().join("moved/hosts").exists());
}

#[test]
fn symlinks_lead_to_where_the_step_would_see_them_and_never_outside() {
    let outside = tempfile::tempdir().unwrap();
    let dir = prepared();
    let up = format!("../../../../../..{}/x", outside.path().display());
    symlink(up, dir.path().join("etc/resolv.conf")).unwrap();
    let before = listing(dir.path());
    let points = MountPoints::create(root_at(dir.path()).as_fd(), "/", &FILES).unwrap();
    assert!(std::fs::read_dir(outside.path()).unwrap().next().is_none());
    let inside = dir.path().join(outside.path().strip_prefix("/").unwrap()).join("x");
    assert!(inside.is_file());
    points.remove();
    assert_eq!(listing(dir.path()), before);
}

#[test]
fn symlink_loops_end() {
    let dir = prepared();
    symlink("resolv.conf", dir.path().join("etc/resolv.conf")).unwrap();
    let error = MountPoints::create(root_at(dir.path()).as_fd(), "/", &FILES).err();
    assert!(matches!(error, Some(StepError::MountPoint { path, .. }) if path == "/etc/resolv.conf"));
}

#[test]
fn a_failed_creation_leaves_nothing() {
    let dir = prepared();
    std::fs::create_dir(dir.path().join("etc/resolv.conf")).unwrap();
    let before = listing(dir.path());
    assert!(
        MountPoints::create(
            root_at(dir.path()).as_fd(),
            "/",
            &[("/a/b", Kind::File), ("/etc/resolv.conf", Kind::File)]
        )
        .is_err()
    );
    assert_eq!(listing(dir.path()), before);
}

#[test]
fn kernel_directories_that_are_symlinks_are_refused() {
    for name in ["proc", "sys", "dev"] {
        let dir = tempfile::tempdir().unwrap();
        symlink("/tmp", dir.path().join(name)).unwrap();
        let error = MountPoints::create(root_at(dir.path()).as_fd(), "/", &[]).err();
        assert!(matches!(error, Some(StepError::NotADirectory { path }) if path == name));
    }
}

#[test]
fn a_working_directory_below_a_kernel_file_system_is_not_made() {
    let dir = prepared();
    let before = listing(dir.path());
    for cwd in ["/proc/self/fd/7", "//dev/x", "/./sys/y"] {
        MountPoints::create(root_at(dir.path()).as_fd(), cwd, &[]).unwrap().remove();
        assert_eq!(listing(dir.path()), before, "{cwd}");
    }
}
