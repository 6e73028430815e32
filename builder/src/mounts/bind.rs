//! Trees to mount: a stack of layers merged, or part of a context copied once a build.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_cache::copy::{self, CopyItem, CopyOptions, FileSource, Sources, StackSource};
use rbuild_cache::path::RelPath;
use rbuild_cache::store::ScratchDir;
use rbuild_cache::tree::{Kind, Meta, NodeStore, Tree};
use rbuild_sandbox::MountSource;
use rustix::fs::{Mode, OFlags};

use super::{MountInput, Mounted};
use crate::context::ScannedContext;
use crate::error::StepFailure;
use crate::ops::copy::Origin;
use crate::ops::{DirToMount, ExecEnv};

/// Parts of contexts that were copied for mounting, by what is in them. Steps that mount the same share one copy.
#[derive(Debug, Default)]
pub struct Materialised(Mutex<HashMap<[u8; 32], Arc<OncePath>>>);

/// Empty until the copy is made; held while it is being made.
type OncePath = Mutex<Option<PathBuf>>;

/// A tree to mount. What the step writes goes to an upper directory that nobody looks at again, and the mount is writable
/// only if there is one.
pub(super) fn tree(
    env: &ExecEnv,
    input: &MountInput,
    from_context: bool,
    with_upper: bool,
    scratch: &mut Vec<ScratchDir>,
) -> Result<MountSource, StepFailure> {
    let mounted = &input.mounted;
    let (lowers, path) = match &input.origin {
        Origin::Context(context) => {
            let dir = env.materialised.get(env, context, mounted, from_context)?;
            (vec![DirToMount::Path(dir)], name_in_copy(mounted))
        }
        Origin::Stage(solved) => (env.layer_dirs(&solved.stack)?, mounted.selected.path.clone()),
        Origin::Inline | Origin::Added { .. } => unreachable!("mounts have no inline sources"),
    };
    let is_copy = matches!(input.origin, Origin::Context(_));
    let path = text(&path)?;
    if !with_upper && (is_copy || lowers.is_empty()) {
        let root = match lowers.first() {
            Some(DirToMount::Path(copy)) => open(copy)?,
            Some(DirToMount::Open(_)) => unreachable!("copies are named"),
            None => open(&empty_dir(env, scratch)?)?,
        };
        return Ok(MountSource::Tree { root: Arc::new(root), path });
    }
    // An overlay without an upper wants two lowers.
    let mut dirs = vec![DirToMount::Path(empty_dir(env, scratch)?)];
    dirs.extend(lowers);
    if dirs.len() == 1 {
        dirs.insert(0, DirToMount::Path(empty_dir(env, scratch)?));
    }
    let dirs: Vec<_> = dirs.iter().map(DirToMount::as_layer).collect();
    let upper = match with_upper {
        true => Some((empty_dir(env, scratch)?, empty_dir(env, scratch)?)),
        false => None,
    };
    if let (Some((upper, _)), Origin::Stage(solved)) = (&upper, &input.origin) {
        crate::ops::run::like_root(&open(upper)?, &solved.tree.root, env.overlay.owners())?;
    }
    let upper = upper.as_ref().map(|(upper, work)| (upper.into(), work.into()));
    let root = env.mount(&dirs, upper)?;
    Ok(MountSource::Tree { root: Arc::new(root), path })
}

fn empty_dir(env: &ExecEnv, scratch: &mut Vec<ScratchDir>) -> Result<PathBuf, StepFailure> {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = env.lease.scratch_dir()?;
    let path = dir.path().to_owned();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).map_err(io(&path))?;
    scratch.push(dir);
    Ok(path)
}

fn open(dir: &Path) -> Result<OwnedFd, StepFailure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(dir, flags, Mode::empty()).map_err(|errno| io(dir)(errno.into()))
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> StepFailure {
    let path = path.display().to_string();
    move |source| StepFailure::Io { what: "set up the mount of", path, source }
}

fn text(path: &RelPath) -> Result<String, StepFailure> {
    String::from_utf8(path.as_bytes().to_vec()).map_err(|_| StepFailure::Io {
        what: "mount",
        path: path.to_string(),
        source: std::io::Error::new(std::io::ErrorKind::InvalidInput, "its path is not UTF-8"),
    })
}

/// Where in its copy the mounted thing is: a directory is the copy's root.
fn name_in_copy(mounted: &Mounted) -> RelPath {
    match mounted.selected.entry.kind {
        Kind::Dir(_) => RelPath::root(),
        _ => RelPath::root().join(mounted.selected.path.name()),
    }
}

impl Materialised {
    /// The copy, made by whoever needs it first.
    fn get(
        &self,
        env: &ExecEnv,
        context: &Arc<ScannedContext>,
        mounted: &Mounted,
        from_context: bool,
    ) -> Result<PathBuf, StepFailure> {
        // A file's name is not part of what it is.
        let name = name_in_copy(mounted);
        let key =
            *blake3::Hasher::new().update(&mounted.digest).update(name.as_bytes()).finalize().as_bytes();
        let cell = Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default());
        let mut place = cell.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(dir) = &*place {
            return Ok(dir.clone());
        }
        let files = context.files()?;
        let dir = env.lease.new_dir()?;
        let mut root = Meta { mode: 0o755, ..Meta::default() };
        if let Kind::Dir(_) = mounted.selected.entry.kind {
            root = mounted.selected.entry.meta.clone();
            if from_context {
                (root.uid, root.gid) = (0, 0);
            }
        }
        copy_out(env, context.nodes.as_ref(), &files, mounted, root, from_context, &dir)?;
        Ok(place.insert(dir).clone())
    }
}

/// Copies what is mounted into `dir`, an empty directory; a directory's contents, with `root` for its own metadata.
pub(super) fn copy_out(
    env: &ExecEnv,
    nodes: &dyn NodeStore,
    files: &dyn FileSource,
    mounted: &Mounted,
    root: Meta,
    from_context: bool,
    dir: &Path,
) -> Result<(), StepFailure> {
    let mut below = Tree::empty();
    below.root = root;
    let options =
        CopyOptions { dest: "/".to_owned(), owner: None, chmod: None, from_context, now: env.now() };
    let items = [Ok::<_, StepFailure>(CopyItem::Selected(mounted.selected.clone()))];
    let no_parents = StackSource::new(Vec::new());
    let plan = copy::plan(nodes, &below, &no_parents, Some(files), items, &options, &env.store.scratch())?;
    let sources = Sources { main: Some(files), ..Sources::default() };
    copy::materialise(&plan, open(dir)?.as_fd(), &sources, env.overlay.owners(), env.overlay)?;
    Ok(())
}
