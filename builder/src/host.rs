//! What a command works with: privileges, store, settings.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rbuild_cache::layer::OverlayForm;
use rbuild_cache::store::{Store, StoreError, StoreOptions};
use rbuild_sandbox::Privilege;
use rbuild_sandbox::ladder::{self, Isolation, PassedOver, Rung};

use crate::error::BuildError;
use crate::settings::Settings;

/// An opened host.
#[derive(Clone)]
pub struct Host {
    /// Environment and files.
    pub settings: Settings,
    /// The store.
    pub store: Store,
    /// How overlay marks and owners are written in this store.
    pub overlay: OverlayForm,
    /// Privileges of the process.
    pub privilege: Privilege,
    /// Where the store is.
    pub root: PathBuf,
    /// Better ways to isolate steps that did not work, when they were tried just now.
    pub passed_over: Vec<PassedOver>,
}

impl Host {
    /// Takes the privileges that reading and writing layers needs, then opens the store. Must be called before the
    /// process has threads: a user namespace can only be entered alone.
    ///
    /// Without an isolation being named a store is used as it was made; where there is none yet, the best way that works
    /// is found by trying.
    pub fn open(settings: Settings, root: Option<&Path>) -> Result<Self, BuildError> {
        let root = place(&settings, root);
        // Before a namespace is entered: in one, other users have no numbers.
        let owner = std::fs::metadata(&root).ok().map(|found| found.uid());
        let us = rustix::process::geteuid().as_raw();
        let recorded = || (owner == Some(us)).then(|| recorded_rung(&root)).flatten();
        let mut passed_over = Vec::new();
        let isolation = match settings.isolation {
            Isolation::Auto => Isolation::Named(recorded().unwrap_or_else(|| {
                let choice = ladder::choose(&root);
                passed_over = choice.passed_over;
                choice.rung
            })),
            named => named,
        };
        let privilege = ladder::enter(isolation)?;
        let overlay = form(&privilege);
        // Layer directories hold ids as this map translates them: another map must not read them.
        let store = Store::open(&root, StoreOptions { id_map: privilege.describe(), durable: true });
        let store = store.map_err(|error| match (error, owner) {
            (StoreError::ForeignOwner { root, .. }, Some(owner)) if owner != us => {
                StoreError::ForeignOwner { root, owner, us }
            }
            (error, _) => error,
        })?;
        if store.has_forgotten_results() {
            let nodes = root.join("trees.sqlite");
            let text =
                format!("WARNING: `{}` was gone: cached results went with it, images stay", nodes.display());
            let _ = writeln!(std::io::stderr(), "{text}");
        }
        Ok(Self { settings, store, overlay, privilege, root, passed_over })
    }

    /// How steps are isolated.
    pub fn rung(&self) -> Rung {
        self.privilege.rung()
    }
}

/// How a store's directories are written under a privilege.
fn form(privilege: &Privilege) -> OverlayForm {
    match privilege {
        Privilege::Root => OverlayForm::Trusted,
        Privilege::Rootless { .. } | Privilege::Container { .. } => OverlayForm::User,
        Privilege::Single { .. } => OverlayForm::SingleId,
        Privilege::Ordinary { .. } => OverlayForm::Listed,
    }
}

/// Where the store is. An isolation that is named has a store of its own beside the default one, if that was made for
/// another: their files have different owners.
pub fn place(settings: &Settings, root: Option<&Path>) -> PathBuf {
    if let Some(root) = root {
        return root.to_owned();
    }
    let default = &settings.default_root;
    let rung = match settings.isolation {
        Isolation::Auto => return default.clone(),
        Isolation::Named(rung) => rung,
        Isolation::ForcedChroot => Rung::Chroot,
    };
    let is_its_own = Store::recorded_id_map(default).is_none_or(|map| {
        map.split(' ').next() == Some(rung.name()) || Rung::of_description(&map) == Some(rung)
    });
    if is_its_own {
        return default.clone();
    }
    let mut beside = default.clone().into_os_string();
    beside.push(format!("-{rung}"));
    beside.into()
}

/// The rung that the store at `root`, which is this user's, was made on.
fn recorded_rung(root: &Path) -> Option<Rung> {
    Rung::of_description(&Store::recorded_id_map(root)?)
}
