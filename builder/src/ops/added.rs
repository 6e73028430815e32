//! What ADD takes from several places at once: files and repositories that were fetched, perhaps paths of the context.
//!
//! A copy is planned from one source. Here the places become one: each has a directory of its own in front of its
//! paths, which the plan carries along and [`AddedFiles`] takes off again.

use std::sync::Arc;

use rbuild_cache::copy::{FileSource, SourceError, StackSource};
use rbuild_cache::layer::Mtime;
use rbuild_cache::path::RelPath;
use rbuild_cache::store::Store;
use rbuild_cache::tree::select::{SelectError, Selected, Selections, prune, selection_digest};
use rbuild_cache::tree::{DirReader, LinksBelow, SpilledNodeStore};
use rbuild_frontend::dockerignore::Ignore;
use rbuild_frontend::graph::{CopyOp, CopySource, RemoteForm};

use crate::context::{ScannedContext, nodes_of};
use crate::error::StepFailure;
use crate::ops::ExecEnv;
use crate::ops::copy::Origin;
use crate::ops::select::{Selection, SelectionError, keep};
use crate::solve::Solved;

/// In front of paths of the context. No slot has this name.
const CONTEXT: &str = "context";

/// Selects all of each fetched source of `origin`, beside what `context` selects.
pub fn select(
    copy: &CopyOp,
    context: Option<&Selection>,
    origin: &Origin,
    pruned: &Arc<SpilledNodeStore>,
    store: &Store,
) -> Result<Selection, SelectionError> {
    let remotes = match origin {
        Origin::Added { remotes, .. } => remotes.as_slice(),
        Origin::Context(_) | Origin::Stage(_) | Origin::Inline => &[],
    };
    let exclude = Ignore::excluding(copy.exclude.iter().map(String::as_str))?;
    let scratch = store.scratch();
    let mut selected = Selections::new(&scratch);
    for (at, source) in copy.sources.iter().enumerate() {
        selected.begin_source();
        if let CopySource::Remote { slot, form } = source {
            let found = remotes.iter().find(|(found, _)| found == slot);
            let (_, solved) = found.expect("every fetched source is an input");
            let item = match form {
                RemoteForm::Tree => everything(solved),
                RemoteForm::File | RemoteForm::Archive => only_file(solved, store)?,
            };
            let mut item = behind(&slot.to_string(), item);
            if !exclude.is_empty() {
                prune(
                    &mut item,
                    store,
                    &**pruned,
                    &|path, is_dir| keep(&[&exclude], path, is_dir),
                    &scratch,
                )?;
            }
            selected.push(&item)?;
        } else if let Some(context) = context {
            for item in context.selected.of_source(at) {
                selected.push(&behind(CONTEXT, item?))?;
            }
        }
    }
    let digest = selection_digest(&selected, &nodes_of(store, origin, Some(pruned)), &scratch)?;
    Ok(Selection { selected, pruned: Arc::clone(pruned), digest })
}

fn everything(solved: &Solved) -> Selected {
    let (path, entry) = (RelPath::root(), solved.tree.root_entry());
    Selected {
        name: Vec::new(),
        links: LinksBelow::new(solved.tree.links.clone(), path.clone()),
        path,
        entry,
    }
}

/// The one file that the tree of a web file has.
fn only_file(solved: &Solved, store: &Store) -> Result<Selected, SelectionError> {
    let mut entries = DirReader::open(store, &solved.tree.node).map_err(SelectError::from)?;
    let (name, entry) = entries.next().map_err(SelectError::from)?.ok_or_else(|| {
        // Nothing else makes such trees: somebody else's hands were in the store.
        SelectError::NotFound { path: RelPath::root() }
    })?;
    let path = RelPath::root().join(name);
    Ok(Selected { name: name.to_vec(), path, entry: entry.clone(), links: LinksBelow::default() })
}

fn behind(place: &str, item: Selected) -> Selected {
    let path = [place.as_bytes(), b"/", item.path.as_bytes()].concat();
    Selected { path: RelPath::clamp(&path), ..item }
}

/// The files of all places.
pub struct AddedFiles {
    places: Vec<(Vec<u8>, Box<dyn FileSource>)>,
}

impl AddedFiles {
    /// Opens them.
    pub fn new(
        env: &ExecEnv,
        context: Option<&ScannedContext>,
        remotes: &[(u16, Arc<Solved>)],
    ) -> Result<Self, StepFailure> {
        let mut places: Vec<(Vec<u8>, Box<dyn FileSource>)> = Vec::new();
        if let Some(context) = context {
            places.push((CONTEXT.into(), Box::new(context.files()?)));
        }
        for (slot, solved) in remotes {
            let files: StackSource = env.stack_source(solved)?;
            places.push((slot.to_string().into_bytes(), Box::new(files)));
        }
        Ok(Self { places })
    }

    fn place(&self, path: &RelPath) -> Result<(&dyn FileSource, RelPath), SourceError> {
        let missing = || SourceError::Missing { path: path.clone() };
        let (first, below) = path.split_first().ok_or_else(missing)?;
        let (_, files) = self.places.iter().find(|(name, _)| name == first).ok_or_else(missing)?;
        Ok((files.as_ref(), below))
    }
}

impl FileSource for AddedFiles {
    fn open(&self, path: &RelPath) -> Result<std::os::fd::OwnedFd, SourceError> {
        let (files, path) = self.place(path)?;
        files.open(&path)
    }

    fn mtime(&self, path: &RelPath) -> Result<Mtime, SourceError> {
        let (files, path) = self.place(path)?;
        files.mtime(&path)
    }

    fn is_immutable(&self) -> bool {
        self.places.iter().all(|(_, files)| files.is_immutable())
    }
}
