//! Steps that have ended, and whose mounts the kernel is still taking down: nobody waits for that before it matters.
//!
//! To unmount a step takes most of a millisecond, in which the kernel mostly waits. What the step wrote can be read, moved
//! to its place and recorded meanwhile; mounted as a layer below the next step it may only be afterwards. Then its
//! overlay's own directory goes too, on the same thread: removing the directories of fifty steps when the build is
//! done would take as long as ten steps.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rbuild_cache::store::WorkDir;
use rbuild_sandbox::{LayerDir, MountError, Teardown};
use rustix::io::Errno;

use crate::ops::ExecEnv;

/// How often a mount is tried again whose layer another build may still have mounted, and after which time.
const BUSY_TRIES: usize = 100;
const BUSY_INTERVAL: Duration = Duration::from_millis(5);

/// The steps of one build that are going away.
#[derive(Debug, Default)]
pub struct Leaving {
    mounted: Arc<Mounted>,
    helper: Mutex<Option<Helper>>,
}

/// How many of them are mounted.
#[derive(Debug, Default)]
struct Mounted {
    count: Mutex<usize>,
    is_none: Condvar,
}

#[derive(Debug)]
struct Helper {
    steps: Sender<(Teardown, WorkDir)>,
    thread: JoinHandle<()>,
}

impl Leaving {
    /// Takes care of a step that has ended. Its merged root is to be closed already, and nothing of the step but its root
    /// may matter to anybody: that nothing holds a cache any more, say, is known only when the teardown is over.
    pub fn add(&self, teardown: Teardown, work: WorkDir) {
        *self.mounted.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let mut helper = self.helper.lock().unwrap_or_else(PoisonError::into_inner);
        if helper.is_none() {
            *helper = Helper::start(&self.mounted);
        }
        let rejected = match helper.as_ref() {
            Some(helper) => helper.steps.send((teardown, work)).err().map(|unsent| unsent.0),
            None => Some((teardown, work)),
        };
        if let Some((teardown, work)) = rejected {
            self.mounted.see_off(teardown, work);
        }
    }

    /// Waits until none of them is mounted.
    pub fn wait(&self) {
        let mut count = self.mounted.count.lock().unwrap_or_else(PoisonError::into_inner);
        while *count > 0 {
            count = self.mounted.is_none.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl ExecEnv {
    /// Merges layers, lowest first, with an upper and its work directory or read-only.
    pub fn mount(
        &self,
        lowers: &[LayerDir<'_>],
        upper: Option<(LayerDir<'_>, LayerDir<'_>)>,
    ) -> Result<OwnedFd, MountError> {
        self.leaving.wait();
        when_free(|| rbuild_sandbox::mount_overlay(lowers, upper, self.overlay.is_userxattr()))
    }
}

/// Tries to mount until no layer is in use as an upper any more, for half a second at most.
///
/// Some kernels (overlayfs's `index`) refuse a layer that is still an upper. Another build may have recorded it a moment
/// before its step was gone.
fn when_free(mut mount: impl FnMut() -> Result<OwnedFd, MountError>) -> Result<OwnedFd, MountError> {
    let is_busy = |error: &MountError| {
        matches!(error, MountError::Create { source, .. }
            if source.raw_os_error() == Some(Errno::BUSY.raw_os_error()))
    };
    let mut tries = 0;
    loop {
        match mount() {
            Err(error) if is_busy(&error) && tries < BUSY_TRIES => {
                tries += 1;
                std::thread::sleep(BUSY_INTERVAL);
            }
            other => return other,
        }
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some(Helper { steps, thread }) =
            self.helper.get_mut().unwrap_or_else(PoisonError::into_inner).take()
        {
            drop(steps);
            let _panicked = thread.join();
        }
    }
}

impl Mounted {
    fn see_off(&self, teardown: Teardown, work: WorkDir) {
        teardown.wait();
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count -= 1;
        if *count == 0 {
            self.is_none.notify_all();
        }
        drop(count);
        work.remove();
    }
}

impl Helper {
    /// `None` where there cannot be another thread: then steps are waited for as they end.
    fn start(mounted: &Arc<Mounted>) -> Option<Helper> {
        let (steps, leaving) = channel();
        let mounted = Arc::clone(mounted);
        let body = move || leaving.into_iter().for_each(|(teardown, work)| mounted.see_off(teardown, work));
        let thread = std::thread::Builder::new().name("leaving".to_owned()).spawn(body).ok()?;
        Some(Helper { steps, thread })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    };
    use std::os::fd::AsFd as _;
    use std::path::PathBuf;

    /// An overlay with these options.
    fn overlay(options: &[(&str, &str)]) -> Result<OwnedFd, MountError> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|errno| MountError::Open { source: errno.into() })?;
        for (name, value) in options {
            fsconfig_set_string(context.as_fd(), *name, *value).unwrap();
        }
        fsconfig_create(context.as_fd())
            .map_err(|errno| MountError::Create { log: String::new(), source: errno.into() })?;
        Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap())
    }

    #[test]
    fn a_layer_that_is_an_upper_still_is_mounted_when_it_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| -> String {
            let path: PathBuf = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path.into_os_string().into_string().unwrap()
        };
        let [base, layer, work, next, next_work] = ["base", "layer", "work", "next", "next-work"].map(place);
        let step = [("lowerdir", base.as_str()), ("upperdir", &layer), ("workdir", &work)];
        let mut leaving = match overlay(&step) {
            Ok(mounted) => Some(mounted),
            Err(error) => {
                let is_required =
                    std::env::var("RBUILD_TEST_REQUIRE").is_ok_and(|all| all.contains("overlay"));
                assert!(!is_required, "overlay is required: {error:?}");
                println!("skipped: {error}");
                return;
            }
        };
        let lowers = format!("{layer}:{base}");
        let next =
            [("index", "on"), ("lowerdir", lowers.as_str()), ("upperdir", &next), ("workdir", &next_work)];
        let mut refused = 0;
        let mounted = when_free(|| {
            let mounted = overlay(&next);
            if mounted.is_err() {
                refused += 1;
                // The step is gone before the second try is over.
                if refused == 2 {
                    leaving = None;
                }
            }
            mounted
        });
        assert!(mounted.is_ok(), "{mounted:?}");
        assert_eq!((refused, leaving.is_none()), (2, true), "the kernel refuses a layer in use");
    }

    #[test]
    fn only_a_busy_layer_is_waited_for_and_not_for_ever() {
        let tries_until = |errno: Errno| {
            let mut tries = 0;
            let failed = when_free(|| {
                tries += 1;
                Err(MountError::Create { log: String::new(), source: errno.into() })
            });
            assert!(failed.is_err());
            tries
        };
        assert_eq!(tries_until(Errno::INVAL), 1);
        assert_eq!(tries_until(Errno::BUSY), BUSY_TRIES + 1);
    }
}
