//! Mount sources and targets that somebody else keeps changing while a step is set up.
//!
//! 200 attempts, or as many as `RBUILD_TEST_ATTEMPTS` says.

use super::setup::{Host, run_on, shell};
use crate::Case;
use rbuild_sandbox::{Exit, MountSource, StepError, StepMount};
use rustix::fs::RenameFlags;
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(crate) const CASES: &[Case] = &[
    ("races_of_sources_never_lead_out", races_of_sources_never_lead_out),
    ("races_of_targets_never_lead_out", races_of_targets_never_lead_out),
];

fn attempts() -> usize {
    std::env::var("RBUILD_TEST_ATTEMPTS").map_or(200, |text| text.parse().unwrap())
}

/// A cache in which `sub` is now a directory, now an absolute link to a directory of the host.
struct Cache {
    dir: PathBuf,
    fd: Arc<OwnedFd>,
    /// The host's directory. The path exists in the cache too: that is where the link leads inside of it.
    outside: PathBuf,
}

impl Cache {
    fn new(host: &Host) -> Cache {
        let (dir, outside) = host.new_upper();
        let in_cache = dir.join(outside.strip_prefix("/").unwrap());
        for (dir, file) in [(&dir.join("sub"), "directory"), (&in_cache, "link"), (&outside, "outside")] {
            fs::create_dir_all(dir).unwrap();
            fs::write(dir.join(file), "").unwrap();
        }
        symlink(&outside, dir.join("other")).unwrap();
        let fd = Arc::new(fs::File::open(&dir).unwrap().into());
        Cache { dir, fd, outside }
    }

    fn tree(&self, path: &str, target: &str) -> StepMount {
        let source = MountSource::Tree { root: Arc::clone(&self.fd), path: path.to_owned() };
        StepMount { target: target.to_owned(), source, read_only: false }
    }

    /// Runs `attempt` over and over while the two change places.
    fn race(&self, mut attempt: impl FnMut()) {
        let (is_over, swaps) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    rustix::fs::renameat_with(&self.fd, "sub", &self.fd, "other", RenameFlags::EXCHANGE)
                        .unwrap();
                    swaps.fetch_add(1, Ordering::Relaxed);
                }
            });
            // Ends also when an attempt panics.
            let _over = OnDrop(&is_over);
            for _ in 0..attempts() {
                attempt();
            }
        });
        assert!(swaps.load(Ordering::Relaxed) > 100, "nothing raced");
        let left: Vec<_> =
            fs::read_dir(&self.outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["outside"], "something was made outside");
    }
}

struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What is mounted where the host's side of a race is: anywhere else others mount meanwhile.
fn host_mounts(cache: &Cache) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let places = [&cache.dir, &cache.outside].map(|place| place.to_string_lossy().into_owned());
    let is_near = |line: &&str| places.iter().any(|place| line.contains(place));
    table.lines().filter(is_near).map(str::to_owned).collect()
}

/// N1, N2: whatever the source is at the moment, what is mounted is inside the cache.
fn races_of_sources_never_lead_out(host: &Host) {
    let cache = Cache::new(host);
    let mut seen = BTreeMap::new();
    cache.race(|| {
        let mut spec = shell("ls /m");
        spec.mounts = vec![cache.tree("sub", "/m")];
        let ran = host.run(&spec).unwrap();
        *seen.entry(ran.stdout).or_insert(0) += 1;
    });
    let known = ["directory\n", "link\n"];
    assert!(seen.keys().all(|shown| known.contains(&shown.as_str())), "{seen:?}");
    assert_eq!(seen.len(), 2, "only one of the two was ever mounted: {seen:?}");
    assert!(host_mounts(&cache).is_empty(), "mounted on the host: {:?}", host_mounts(&cache));
}

/// N2: whatever is on the way to the target, what is mounted there is mounted inside the step.
fn races_of_targets_never_lead_out(host: &Host) {
    let cache = Cache::new(host);
    let in_step = cache.outside.strip_prefix("/").unwrap().join("deep");
    // Where the link leads in the step, there is a directory to mount on.
    let (layer, _) = host.new_upper();
    fs::create_dir_all(layer.join(&in_step)).unwrap();
    let (mut in_cache, mut in_root) = (0, 0);
    cache.race(|| {
        let merged = host.merged_over(&[&host.lower, &layer]);
        let mut spec = shell(
            "while read -r _ place _; do case $place in */deep) echo $place;; esac; done < /proc/mounts",
        );
        let memory = StepMount {
            target: "/c/sub/deep".to_owned(),
            source: MountSource::Tmpfs { size_bytes: Some(4096) },
            read_only: false,
        };
        spec.mounts = vec![cache.tree("", "/c"), memory];
        match run_on(&merged, &spec) {
            Ok(ran) => {
                assert_eq!(ran.exit, Exit::Code(0), "{ran:?}");
                match Path::new(ran.stdout.trim()) {
                    place if place == Path::new("/").join(&in_step) => in_root += 1,
                    place if place.starts_with("/c") => in_cache += 1,
                    place => panic!("mounted at {}", place.display()),
                }
            }
            // Changed between two looks at it: refused, and nothing is mounted.
            Err(StepError::Setup { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    });
    assert!(in_cache > 0 && in_root > 0, "in the cache: {in_cache}, in the root: {in_root}");
    assert!(host_mounts(&cache).is_empty(), "mounted on the host: {:?}", host_mounts(&cache));
    drop(cache.dir);
}
