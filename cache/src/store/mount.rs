//! Cache mounts: directories that outlive builds and are part of none.
//!
//! ```text
//! mounts/<id>/data       what steps write
//! mounts/<id>/info.json  what it is: written once, with the directory
//! mounts/<id>/size       bytes in it and the use they were counted after; a hint
//! locks/mount-<id>       flocked by who uses it: shared, or alone; its time is the last use's
//! ```
//!
//! An id is a hash of what the step says of its cache (name, namespace, mode, owner, initial content) and a number: a
//! `private` user of one that is in use gets the next. What is in a cache is written by steps and trusted by nobody: it is
//! reached through descriptors only, and nothing in it is followed. It is removed only by who holds the lock alone.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::str::FromStr;

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::db::now_unix_ns;
use super::error::{IoContext, StoreError};
use super::layout::{self, Layout};
use super::lock::{self, LockHolder};
use super::{Lease, Store};

/// Private copies of one cache.
const COPIES_MAX: u32 = 4096;
const INFO_BYTES_MAX: u64 = 64 << 10;
/// Directories below this depth are not counted: no descriptor is spent on them.
const DEPTH_MAX: usize = 256;
const ID_BYTES: usize = 16;

/// Which cache a step wants: equal values name one cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMountSpec {
    /// Keeps caches of one id apart.
    pub namespace: String,
    /// Its name.
    pub id: String,
    /// Permission bits of the directory when it is made.
    pub mode: u32,
    /// Its owner then.
    pub uid: u32,
    /// Its group then.
    pub gid: u32,
    /// Identity of what it starts with.
    pub initial: Option<[u8; 32]>,
}

/// Who may use a cache at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountSharing {
    /// All that say so.
    Shared,
    /// Nobody else: whoever comes gets another one.
    Private,
    /// Nobody else: whoever comes waits.
    Locked,
}

/// Identity of a cache directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheMountId {
    hash: [u8; ID_BYTES],
    copy: u32,
}

impl fmt::Display for CacheMountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", hex::encode(self.hash), self.copy)
    }
}

impl FromStr for CacheMountId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (hash, copy) = text.split_once('.').ok_or(())?;
        let hash: [u8; ID_BYTES] = hex::decode(hash).map_err(drop)?.try_into().map_err(drop)?;
        let id = Self { hash, copy: copy.parse().map_err(drop)? };
        // One spelling: names are compared as text elsewhere.
        if id.to_string() == text { Ok(id) } else { Err(()) }
    }
}

impl CacheMountSpec {
    /// Its first copy.
    pub fn mount_id(&self) -> CacheMountId {
        let mut hasher = blake3::Hasher::new();
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        field(b"rbuild cache mount 1");
        field(self.namespace.as_bytes());
        field(self.id.as_bytes());
        [self.mode, self.uid, self.gid].iter().for_each(|number| field(&number.to_le_bytes()));
        field(self.initial.as_ref().map_or(&[], |digest| &digest[..]));
        let mut hash = [0; ID_BYTES];
        hash.copy_from_slice(&hasher.finalize().as_bytes()[..ID_BYTES]);
        CacheMountId { hash, copy: 0 }
    }
}

/// What a cache is.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Info {
    version: u32,
    namespace: String,
    id: String,
    mode: u32,
    uid: u32,
    gid: u32,
    created_unix_ns: i64,
    description: String,
}

/// A cache in use, until dropped.
#[derive(Debug)]
pub struct CacheMount {
    lock: File,
    data: OwnedFd,
    is_alone: bool,
}

impl CacheMount {
    /// Its directory.
    pub fn data(&self) -> &OwnedFd {
        &self.data
    }

    /// Another handle on the lock: while it is open, the cache counts as in use, even when this process is gone.
    pub fn lock(&self) -> std::io::Result<OwnedFd> {
        Ok(self.lock.try_clone()?.into())
    }
}

impl Drop for CacheMount {
    fn drop(&mut self) {
        if self.is_alone {
            // Only tidies the message for who waits; the time of the last use stays right.
            let _ = self.lock.set_len(0);
        }
    }
}

/// A cache, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMountInfo {
    /// Its identity in the store.
    pub mount: CacheMountId,
    /// Namespace and id as a Dockerfile has it.
    pub namespace: String,
    /// The id that steps name.
    pub id: String,
    /// Bytes of the files in it.
    pub size_bytes: u64,
    /// When it was made, nanoseconds since the epoch.
    pub created_unix_ns: i64,
    /// When it was last used.
    pub used_unix_ns: i64,
    /// True while a step uses it.
    pub is_in_use: bool,
    /// The step that made it.
    pub description: String,
}

impl Store {
    /// Takes a cache, making it when there is none; blocks while somebody has it who does not share. `waiting` is called once
    /// before that. `fill` gets a new cache's empty directory, which has its mode and owner already. `description` is the
    /// step, for messages.
    pub fn cache_mount<E: From<StoreError>>(
        &self,
        spec: &CacheMountSpec,
        sharing: MountSharing,
        lease: &Lease,
        description: &str,
        waiting: impl FnOnce(LockHolder),
        fill: &dyn Fn(&Path) -> Result<(), E>,
    ) -> Result<CacheMount, E> {
        let mut id = spec.mount_id();
        let mut waiting = Some(waiting);
        let (now, later) = match sharing {
            MountSharing::Shared => (FlockOperation::NonBlockingLockShared, FlockOperation::LockShared),
            MountSharing::Private | MountSharing::Locked => {
                (FlockOperation::NonBlockingLockExclusive, FlockOperation::LockExclusive)
            }
        };
        let layout = &self.inner.layout;
        let lock = loop {
            let name = lock_name(id);
            let mut file = lock::open_lock(layout, &name)?;
            match lock::flock(&file, now) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) if sharing == MountSharing::Private && id.copy < COPIES_MAX => {
                    id.copy += 1;
                    continue;
                }
                Err(Errno::WOULDBLOCK) => {
                    if let Some(waiting) = waiting.take() {
                        waiting(lock::read_holder(&mut file));
                    }
                    lock::flock(&file, later).doing("lock", &layout.path(&name))?;
                }
                Err(error) => return Ok(Err(error).doing("lock", &layout.path(&name))?),
            }
            // Removed while it was waited for: that lock protects nothing any more.
            if lock::is_same(layout, &name, &file) {
                lock::write_holder(&mut file, description);
                break file;
            }
        };
        layout.make_dir("mounts")?;
        let place = place(id);
        if !layout.exists(&place) {
            self.make_cache(spec, &place, lease, description, fill)?;
        }
        let data = layout.open(&format!("{place}/data"), OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(CacheMount { lock, data, is_alone: sharing != MountSharing::Shared })
    }

    fn make_cache<E: From<StoreError>>(
        &self,
        spec: &CacheMountSpec,
        place: &str,
        lease: &Lease,
        description: &str,
        fill: &dyn Fn(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        use rustix::fs::{Gid, Uid};
        let layout = &self.inner.layout;
        let new = lease.next_path();
        layout.make_dir(&new)?;
        let data = format!("{new}/data");
        layout.make_dir(&data)?;
        let path = layout.path(&data);
        let fd = layout.open(&data, OFlags::RDONLY | OFlags::DIRECTORY)?;
        if (spec.uid, spec.gid) != (0, 0) {
            rustix::fs::fchown(&fd, Some(Uid::from_raw(spec.uid)), Some(Gid::from_raw(spec.gid)))
                .doing("set the owner of", &path)?;
        }
        // After the owner, which takes special bits away.
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(spec.mode)).doing("set the mode of", &path)?;
        fill(&path)?;
        let info = Info {
            version: 1,
            namespace: spec.namespace.clone(),
            id: spec.id.clone(),
            mode: spec.mode,
            uid: spec.uid,
            gid: spec.gid,
            created_unix_ns: now_unix_ns(),
            description: description.to_owned(),
        };
        let bytes = serde_json::to_vec(&info).unwrap_or_default();
        layout.write_new(&format!("{new}/info.json"), &bytes)?;
        if !layout.publish(&new, place)? {
            // Another that shares it was faster.
            layout.remove_tree(&new)?;
        }
        Ok(())
    }

    /// All caches, by identity.
    pub fn cache_mounts(&self) -> Result<Vec<CacheMountInfo>, StoreError> {
        let layout = &self.inner.layout;
        let dir = match layout.try_open("mounts", OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(error) => return Err(error).doing("open", &layout.path("mounts")),
        };
        let names = layout::names(&dir).doing("list", &layout.path("mounts"))?;
        let ids = names.iter().filter_map(|name| std::str::from_utf8(name).ok()?.parse().ok());
        let mut found: Vec<CacheMountInfo> =
            ids.map(|id| self.cache_info(id)).filter_map(Result::transpose).collect::<Result<_, _>>()?;
        found.sort_by_key(|info| info.mount);
        Ok(found)
    }

    /// `None` when it is gone.
    fn cache_info(&self, id: CacheMountId) -> Result<Option<CacheMountInfo>, StoreError> {
        let layout = &self.inner.layout;
        let place = place(id);
        let Ok(data) = layout.try_open(&format!("{place}/data"), OFlags::RDONLY | OFlags::DIRECTORY) else {
            return Ok(None);
        };
        let bytes = layout.read(&format!("{place}/info.json"), INFO_BYTES_MAX)?.unwrap_or_default();
        let info: Option<Info> = serde_json::from_slice(&bytes).ok();
        let created = info.as_ref().map_or(0, |info| info.created_unix_ns);
        let lock = layout.try_open(&lock_name(id), OFlags::RDWR);
        let (mut used, mut is_in_use) = (created, false);
        if let Ok(lock) = &lock {
            let stat = rustix::fs::fstat(lock).doing("stat", &layout.path(&lock_name(id)))?;
            used = stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec as i64);
            is_in_use = lock::flock(lock, FlockOperation::NonBlockingLockExclusive).is_err();
        }
        Ok(Some(CacheMountInfo {
            mount: id,
            size_bytes: counted_size(layout, &place, &data, used, is_in_use),
            namespace: info.as_ref().map(|info| info.namespace.clone()).unwrap_or_default(),
            id: info.as_ref().map(|info| info.id.clone()).unwrap_or_default(),
            created_unix_ns: created,
            used_unix_ns: used,
            is_in_use,
            description: info.map(|info| info.description).unwrap_or_default(),
        }))
    }

    /// Removes a cache and returns its bytes; `None` while a step uses it, or when there is none.
    pub fn remove_cache_mount(&self, id: CacheMountId, lease: &Lease) -> Result<Option<u64>, StoreError> {
        let layout = &self.inner.layout;
        let (name, place) = (lock_name(id), place(id));
        if !layout.exists(&place) {
            return Ok(None);
        }
        let lock = lock::open_lock(layout, &name)?;
        match lock::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if lock::is_same(layout, &name, &lock) => {}
            Ok(()) | Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error).doing("lock", &layout.path(&name)),
        }
        let Some(info) = self.cache_info_of_held(id)? else { return Ok(None) };
        let trash = lease.next_path();
        if !layout.publish(&place, &trash)? {
            return Ok(None);
        }
        // Whoever waits for this file finds the name gone and takes a new one.
        rustix::fs::unlinkat(layout.fd(), &name, AtFlags::empty()).doing("remove", &layout.path(&name))?;
        layout.remove_tree(&trash)?;
        Ok(Some(info))
    }

    fn cache_info_of_held(&self, id: CacheMountId) -> Result<Option<u64>, StoreError> {
        let layout = &self.inner.layout;
        match layout.try_open(&format!("{}/data", place(id)), OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(data) => Ok(Some(size_of(&data))),
            Err(Errno::NOENT) => Ok(None),
            // Damaged is no reason to keep it.
            Err(_) => Ok(Some(0)),
        }
    }
}

fn place(id: CacheMountId) -> String {
    format!("mounts/{id}")
}

fn lock_name(id: CacheMountId) -> String {
    format!("locks/mount-{id}")
}

/// The size as it was counted after the last use, or counted now.
fn counted_size(layout: &Layout, place: &str, data: &OwnedFd, used: i64, is_in_use: bool) -> u64 {
    let file = format!("{place}/size");
    let known = layout.read(&file, 64).ok().flatten().and_then(|bytes| {
        let text = String::from_utf8(bytes).ok()?;
        let (size, after) = text.split_once(' ')?;
        (after.parse::<i64>().ok()? == used).then(|| size.parse::<u64>().ok())?
    });
    if let Some(size) = known.filter(|_| !is_in_use) {
        return size;
    }
    let size = size_of(data);
    if !is_in_use {
        // A hint: without it the next one counts again.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        if let Ok(fd) = layout.try_open(&file, flags) {
            let _ = File::from(fd).write_all(format!("{size} {used}").as_bytes());
        }
    }
    size
}

/// Bytes of the regular files below a directory, each once. What cannot be read counts nothing.
fn size_of(top: &OwnedFd) -> u64 {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut linked = HashSet::new();
    let mut total: u64 = 0;
    let Ok(first) = rustix::io::fcntl_dupfd_cloexec(top, 3) else { return 0 };
    // By parent and name: only the directories above what is still to be seen are open.
    let first = Rc::new(first);
    let mut todo: Vec<(Rc<OwnedFd>, Vec<u8>, usize)> = vec![(first, b".".to_vec(), 0)];
    while let Some((parent, name, depth)) = todo.pop() {
        let Ok(dir) = rustix::fs::openat(&*parent, &name[..], flags, Mode::empty()) else { continue };
        let dir = Rc::new(dir);
        let Ok(names) = layout::read_names(&*dir) else { continue };
        // What cannot be listed to its end counts as far as it was.
        for name in names.map_while(Result::ok) {
            let Ok(stat) = rustix::fs::statat(&*dir, &*name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile if stat.st_nlink == 1 || linked.insert((stat.st_dev, stat.st_ino)) => {
                    total = total.saturating_add(u64::try_from(stat.st_size).unwrap_or(0));
                }
                FileType::Directory if depth < DEPTH_MAX => {
                    todo.push((Rc::clone(&dir), name.into_bytes(), depth + 1));
                }
                _ => {}
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreOptions;

    fn store(root: &Path) -> Store {
        Store::open(root, StoreOptions { id_map: "test".into(), durable: false }).unwrap()
    }

    fn spec(id: &str) -> CacheMountSpec {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        CacheMountSpec { namespace: String::new(), id: id.into(), mode: 0o700, uid, gid, initial: None }
    }

    fn take(store: &Store, spec: &CacheMountSpec, sharing: MountSharing) -> CacheMount {
        let lease = store.lease().unwrap();
        let waiting = |_: LockHolder| panic!("nobody should have to wait");
        store.cache_mount(spec, sharing, &lease, "RUN x", waiting, &|_| Ok::<(), StoreError>(())).unwrap()
    }

    fn inode(mount: &CacheMount) -> u64 {
        rustix::fs::fstat(mount.data()).unwrap().st_ino
    }

    #[test]
    fn a_cache_is_one_by_all_that_is_said_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let first = inode(&take(&store, &spec("a"), MountSharing::Shared));
        assert_eq!(first, inode(&take(&store, &spec("a"), MountSharing::Locked)));
        for other in [
            spec("b"),
            CacheMountSpec { mode: 0o755, ..spec("a") },
            CacheMountSpec { namespace: "n".into(), ..spec("a") },
            CacheMountSpec { initial: Some([1; 32]), ..spec("a") },
        ] {
            assert_ne!(first, inode(&take(&store, &other, MountSharing::Shared)), "{other:?}");
        }
        assert_eq!(store.cache_mounts().unwrap().len(), 5);
    }

    #[test]
    fn private_users_get_copies_and_use_them_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let one = take(&store, &spec("a"), MountSharing::Private);
        let two = take(&store, &spec("a"), MountSharing::Private);
        let second = inode(&two);
        assert_ne!(inode(&one), second);
        drop(two);
        assert_eq!(inode(&take(&store, &spec("a"), MountSharing::Private)), second);
    }

    #[test]
    fn who_waits_for_a_locked_cache_hears_of_its_user_and_then_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let held = take(&store, &spec("a"), MountSharing::Locked);
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let other = &store;
            let waiter = scope.spawn(move || {
                let lease = other.lease().unwrap();
                let waiting = |holder| tell.send(holder).unwrap();
                let mount =
                    other.cache_mount(&spec("a"), MountSharing::Shared, &lease, "RUN y", waiting, &|_| {
                        Ok::<(), StoreError>(())
                    });
                inode(&mount.unwrap())
            });
            let holder = told.recv().unwrap();
            assert_eq!((holder.pid, holder.description.as_str()), (std::process::id(), "RUN x"));
            let same = inode(&held);
            drop(held);
            assert_eq!(waiter.join().unwrap(), same);
        });
    }

    #[test]
    fn caches_in_use_are_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let mount = take(&store, &spec("a"), MountSharing::Shared);
        let file =
            rustix::fs::openat(mount.data(), "f", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
        File::from(file).write_all(&[0; 1000]).unwrap();
        let lease = store.lease().unwrap();
        let id = spec("a").mount_id();
        assert_eq!(store.remove_cache_mount(id, &lease).unwrap(), None);
        let info = &store.cache_mounts().unwrap()[0];
        assert_eq!((info.id.as_str(), info.is_in_use, info.size_bytes), ("a", true, 1000));
        // A handle on the lock is use, whoever has it.
        let handle = mount.lock().unwrap();
        drop(mount);
        assert_eq!(store.remove_cache_mount(id, &lease).unwrap(), None);
        drop(handle);
        assert_eq!(store.cache_mounts().unwrap()[0].size_bytes, 1000);
        assert_eq!(store.remove_cache_mount(id, &lease).unwrap(), Some(1000));
        assert!(store.cache_mounts().unwrap().is_empty());
        take(&store, &spec("a"), MountSharing::Locked);
    }

    #[test]
    fn a_new_cache_starts_with_what_it_is_given_or_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let lease = store.lease().unwrap();
        let fails = |path: &Path| Err::<(), _>(StoreError::NotADirectory { root: path.to_owned() });
        let failed = store.cache_mount(&spec("a"), MountSharing::Shared, &lease, "x", |_| (), &fails);
        assert!(failed.is_err() && store.cache_mounts().unwrap().is_empty());
        let fill = |path: &Path| {
            std::fs::write(path.join("f"), "1").unwrap();
            Ok::<(), StoreError>(())
        };
        for _ in 0..2 {
            let mount =
                store.cache_mount(&spec("a"), MountSharing::Shared, &lease, "x", |_| (), &fill).unwrap();
            let stat = rustix::fs::statat(mount.data(), "f", AtFlags::empty()).unwrap();
            assert_eq!(stat.st_size, 1);
            assert_eq!(rustix::fs::fstat(mount.data()).unwrap().st_mode & 0o777, 0o700);
        }
    }

    #[test]
    fn ids_have_one_spelling() {
        let id = spec("a").mount_id();
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in ["", "a.0", "../../x.0", &format!("{id}0"), &id.to_string().to_uppercase()] {
            let is_other = text.parse::<CacheMountId>().is_ok_and(|other| other == id);
            assert!(!is_other, "{text}");
        }
    }
}
