//! What a command works with: privileges, store, settings.

use std::path::{Path, PathBuf};

use rbuild_cache::layer::OverlayForm;
use rbuild_cache::store::{Store, StoreOptions};
use rbuild_sandbox::Privilege;

use crate::error::BuildError;
use crate::settings::Settings;

/// An opened host.
#[derive(Clone)]
pub struct Host {
    /// Environment and files.
    pub settings: Settings,
    /// The store.
    pub store: Store,
    /// How overlay marks are written in this store.
    pub overlay: OverlayForm,
    /// Privileges of the process.
    pub privilege: Privilege,
}

impl Host {
    /// Takes the privileges that reading and writing layers needs, then opens the store. Must be called before the
    /// process has threads: a user namespace can only be entered alone.
    pub fn open(settings: Settings, root: Option<&Path>) -> Result<Self, BuildError> {
        let privilege = rbuild_sandbox::bootstrap()?;
        Self::with(settings, root, privilege)
    }

    fn with(settings: Settings, root: Option<&Path>, privilege: Privilege) -> Result<Self, BuildError> {
        let overlay = match &privilege {
            Privilege::Root => OverlayForm::Trusted,
            Privilege::Rootless { .. } => OverlayForm::User,
        };
        let root: PathBuf = root.map_or_else(|| settings.default_root.clone(), Path::to_owned);
        // Layer directories hold ids as this map translates them: another map must not read them.
        let store = Store::open(&root, StoreOptions { id_map: privilege.describe(), durable: true })?;
        Ok(Self { settings, store, overlay, privilege })
    }
}
