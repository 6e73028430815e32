//! `rbuild cache mounts`.

use std::fmt::Write as _;
use std::path::Path;
use std::time::SystemTime;

use rbuild_cache::store::CacheMountInfo;
use serde_json::json;

use super::space::{age, aligned, moment, printable};
use crate::error::BuildError;
use crate::host::Host;
use crate::report::human;
use crate::settings::Settings;

/// `rbuild cache mounts ls`.
pub(super) fn list(json: bool, settings: Settings, root: Option<&Path>) -> Result<(), BuildError> {
    let host = Host::open(settings, root)?;
    let mounts = host.store.cache_mounts()?;
    super::print(&if json { mounts.iter().map(json_line).collect() } else { table(&mounts) })
}

/// `rbuild cache mounts rm`: all that no step uses, or those named. Fails when one that was named is not removed.
pub(super) fn remove(ids: &[String], settings: Settings, root: Option<&Path>) -> Result<(), BuildError> {
    let host = Host::open(settings, root)?;
    let lease = host.store.lease()?;
    let mounts = host.store.cache_mounts()?;
    let is_named = |mount: &CacheMountInfo, id: &str| mount.id == id || mount.mount.to_string() == id;
    if let Some(id) = ids.iter().find(|id| !mounts.iter().any(|mount| is_named(mount, id))) {
        return Err(BuildError::NoCacheMount(id.clone()));
    }
    let (mut text, mut freed, mut kept) = (String::new(), 0, None);
    for mount in &mounts {
        if !ids.is_empty() && !ids.iter().any(|id| is_named(mount, id)) {
            continue;
        }
        match host.store.remove_cache_mount(mount.mount, &lease)? {
            Some(bytes) => {
                freed += bytes;
                let _ = writeln!(text, "{}", mount.mount);
            }
            None => kept = Some(mount.id.clone()),
        }
    }
    let _ = writeln!(text, "Total reclaimed space: {}", human::size_precise(freed));
    super::print(&text)?;
    match kept {
        Some(id) => Err(BuildError::CacheMountInUse(id)),
        None => Ok(()),
    }
}

fn table(mounts: &[CacheMountInfo]) -> String {
    let now = SystemTime::now();
    let head = ["MOUNT", "ID", "SIZE", "IN USE", "LAST USED"].map(str::to_owned);
    let mut rows = vec![head.to_vec()];
    rows.extend(mounts.iter().map(|mount| {
        vec![
            mount.mount.to_string(),
            printable(&name(mount)),
            human::size_precise(mount.size_bytes),
            mount.is_in_use.to_string(),
            age(mount.used_unix_ns, now),
        ]
    }));
    aligned(&rows)
}

fn name(mount: &CacheMountInfo) -> String {
    match mount.namespace.as_str() {
        "" => mount.id.clone(),
        namespace => format!("{namespace}/{}", mount.id),
    }
}

fn json_line(mount: &CacheMountInfo) -> String {
    let document = json!({
        "Mount": mount.mount.to_string(),
        "ID": mount.id,
        "Namespace": mount.namespace,
        "Size": mount.size_bytes,
        "InUse": mount.is_in_use,
        "CreatedAt": moment(mount.created_unix_ns),
        "LastUsedAt": moment(mount.used_unix_ns),
        "Description": mount.description,
    });
    format!("{document}\n")
}
