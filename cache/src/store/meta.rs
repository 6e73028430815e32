//! `store.json`, and the checks at the door.

use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::db::TREES;
use super::error::{IoContext, StoreError};
use super::layout::{DIRS, Layout};
use super::{lock, reserve};

/// Version of the directory layout. A change that an older rbuild must not touch raises it.
const FORMAT: u32 = 1;
/// Features this version knows of the kind that an unknowing rbuild must refuse.
const INCOMPATIBLE_KNOWN: [&str; 0] = [];
/// `store.json` is a few hundred bytes.
const META_BYTES_MAX: u64 = 64 * 1024;

/// Content of `store.json`.
#[derive(Debug, Serialize, Deserialize)]
struct StoreMeta {
    format: u32,
    /// Features that any rbuild may ignore.
    #[serde(default)]
    compatible: Vec<String>,
    /// Features that a rbuild which does not know them may read but not write.
    #[serde(default)]
    ro_compatible: Vec<String>,
    /// Features that a rbuild which does not know them must not touch.
    #[serde(default)]
    incompatible: Vec<String>,
    id_map: String,
}

/// File systems (statfs magic) whose locks, shared memory or renames do not hold across machines, or that cannot
/// carry an overlay's upper directory.
const NETWORK_FILESYSTEMS: [(u64, &str); 12] = [
    (0x6969, "NFS"),
    (0x517B, "SMB"),
    (0xFE53_4D42, "SMB"),
    (0xFF53_4D42, "CIFS"),
    (0x00C3_6400, "Ceph"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "FUSE"),
    (0x5346_414F, "AFS"),
    (0x6B41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    (0x0BD0_0BD0, "Lustre"),
    (0x7461_636F, "OCFS2"),
];

/// The id map a store was made with; `None` when there is no store at `root`, or none that can be read. Creates
/// nothing.
pub(super) fn recorded_id_map(root: &Path) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(root, flags, Mode::empty()).ok()?;
    let layout = Layout::new(root.to_owned(), fd);
    read(&layout).ok().flatten().map(|found| found.meta.id_map)
}

/// Opens the root directory, creating it with its parents, after checking that it is ours alone and local.
pub(super) fn open_root(root: &Path) -> Result<Layout, StoreError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = match rustix::fs::open(root, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(
                |source| match source.kind() {
                    std::io::ErrorKind::ReadOnlyFilesystem => StoreError::ReadOnly { root: root.to_owned() },
                    _ => StoreError::Io { doing: "create", path: root.to_owned(), source },
                },
            )?;
            rustix::fs::open(root, flags, Mode::empty())
        }
        other => other,
    };
    let fd = opened.map_err(|error| closed_to_us(root, error))?;
    let mode = check_root(root, &fd)?;
    if mode & 0o077 != 0 {
        // Readable by others: secrets of private images are not theirs to read.
        match rustix::fs::fchmod(&fd, Mode::RWXU) {
            Err(Errno::ROFS) => return Err(StoreError::ReadOnly { root: root.to_owned() }),
            other => other.doing("change the mode of", root)?,
        }
    }
    let absolute = std::path::absolute(root).unwrap_or_else(|_| PathBuf::from(root));
    Ok(Layout::new(absolute, fd))
}

/// Why what is at `root` cannot be used, if something is there; an id map is not asked for. Changes nothing.
pub(super) fn refusal(root: &Path) -> Option<StoreError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = match rustix::fs::open(root, flags, Mode::empty()) {
        Err(Errno::NOENT) => return None,
        Err(error) => return Some(closed_to_us(root, error)),
        Ok(fd) => fd,
    };
    if let Err(error) = check_root(root, &fd) {
        return Some(error);
    }
    let layout = Layout::new(root.to_owned(), fd);
    match read(&layout) {
        Ok(found) => found.and_then(|found| check(&layout, &found.meta, &found.meta.id_map).err()),
        Err(error) => Some(error),
    }
}

/// A root that cannot be opened: mostly another user's, which is told as such where it can be known.
fn closed_to_us(root: &Path, error: Errno) -> StoreError {
    let us = rustix::process::geteuid().as_raw();
    match error {
        Errno::NOTDIR => StoreError::NotADirectory { root: root.to_owned() },
        error => match rustix::fs::stat(root) {
            Ok(stat) if error == Errno::ACCESS && stat.st_uid != us => {
                StoreError::ForeignOwner { root: root.to_owned(), owner: stat.st_uid, us }
            }
            _ => StoreError::io("open", root, error.into()),
        },
    }
}

/// Checks that a directory is ours alone and local; gives its mode.
fn check_root(root: &Path, fd: &OwnedFd) -> Result<u32, StoreError> {
    let stat = rustix::fs::fstat(fd).doing("stat", root)?;
    let us = rustix::process::geteuid().as_raw();
    if stat.st_uid != us {
        return Err(StoreError::ForeignOwner { root: root.to_owned(), owner: stat.st_uid, us });
    }
    if stat.st_mode & 0o022 != 0 {
        return Err(StoreError::OpenToOthers { root: root.to_owned(), mode: stat.st_mode & 0o7777 });
    }
    let statfs = rustix::fs::fstatfs(fd).doing("stat the file system of", root)?;
    // The field's width and sign differ between architectures; the magic is its low 32 bits.
    if let Some(kind) = network_filesystem(u64::from(statfs.f_type as u32)) {
        return Err(StoreError::NetworkFilesystem { root: root.to_owned(), kind });
    }
    Ok(stat.st_mode)
}

/// Names the file system when a store cannot be on it.
fn network_filesystem(magic: u64) -> Option<&'static str> {
    NETWORK_FILESYSTEMS.iter().find(|(known, _)| *known == magic).map(|(_, kind)| *kind)
}

/// Reads and checks `store.json`; a store without one is created around it, `store.json` last, so that its
/// presence means that all directories are there.
pub(super) fn check_or_create(layout: &Layout, id_map: &str) -> Result<(), StoreError> {
    match read(layout)? {
        Some(found) if !found.is_copy => return check(layout, &found.meta, id_map),
        _ => {}
    }
    for dir in DIRS {
        layout.make_dir(dir)?;
    }
    let _creation = lock::creation(layout)?;
    if let Some(found) = read(layout)? {
        check(layout, &found.meta, id_map)?;
        return if found.is_copy { write(layout, META, &sealed(&found.meta)) } else { Ok(()) };
    }
    let meta = StoreMeta {
        format: FORMAT,
        compatible: Vec::new(),
        ro_compatible: Vec::new(),
        incompatible: Vec::new(),
        id_map: id_map.to_owned(),
    };
    let text = sealed(&meta);
    // From now on a file of nodes that is not there is one that was lost; see `lost_trees`.
    if !layout.exists(TREES.file) {
        layout.write_new(TREES.file, &[])?;
    }
    reserve::make(layout);
    write(layout, COPY, &text)?;
    write(layout, META, &text)
}

/// The creation lock makes the name ours; a leftover of a killed creator is replaced.
fn write(layout: &Layout, name: &str, text: &str) -> Result<(), StoreError> {
    let temp = "work/store.json.new";
    let _ = rustix::fs::unlinkat(layout.fd(), temp, rustix::fs::AtFlags::empty());
    layout.write_new(temp, text.as_bytes())?;
    layout.replace(temp, name)
}

const META: &str = "store.json";
/// The same, for when that is gone or damaged.
const COPY: &str = "store.json.bak";

/// Before the last field of `store.json`, which is a digest of all before this. Damage is told by it from a store of a
/// newer version or another id map; a file without it was made by an earlier version.
const SEAL_FIELD: &str = ",\n  \"seal\": \"";

fn sealed(meta: &StoreMeta) -> String {
    let json = serde_json::to_string_pretty(meta).expect("a struct of strings and numbers serialises");
    let fields = json.trim_end_matches("\n}");
    format!("{fields}{SEAL_FIELD}{}\"\n}}", seal_of(fields.as_bytes()))
}

fn seal_of(fields: &[u8]) -> String {
    hex::encode(&blake3::hash(fields).as_bytes()[..8])
}

/// True unless its seal says that something else was written.
fn is_as_written(json: &[u8]) -> bool {
    let field = SEAL_FIELD.as_bytes();
    let Some(at) = json.windows(field.len()).rposition(|part| part == field) else { return true };
    json[at + field.len()..].starts_with(seal_of(&json[..at]).as_bytes())
}

/// What a store says of itself.
struct Found {
    meta: StoreMeta,
    /// It is from the copy: the file itself is gone or damaged.
    is_copy: bool,
}

/// A store that forgot its id map would be taken for another's, with files that have other owners then.
fn read(layout: &Layout) -> Result<Option<Found>, StoreError> {
    let found = |meta: Option<StoreMeta>, is_copy| meta.map(|meta| Found { meta, is_copy });
    match read_file(layout, META) {
        read @ (Ok(None) | Err(StoreError::Damaged { .. })) => match read_file(layout, COPY) {
            Ok(Some(meta)) => Ok(found(Some(meta), true)),
            _ => Ok(found(read?, false)),
        },
        read => Ok(found(read?, false)),
    }
}

fn read_file(layout: &Layout, name: &str) -> Result<Option<StoreMeta>, StoreError> {
    let Some(bytes) = layout.read(name, META_BYTES_MAX)? else { return Ok(None) };
    let path = layout.path(name);
    // Which version made the store has to be said by somebody: nothing else is lost with the file.
    let damaged = |why| StoreError::Damaged { path: path.clone(), why };
    if !is_as_written(&bytes) {
        return Err(damaged(
            "it is not what was written; if no newer rbuild made the store, remove the file and it is written anew",
        ));
    }
    // The version decides before the rest is understood: a newer file may have another shape.
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|_| {
        damaged("it is not JSON; if no newer rbuild made the store, remove the file and it is written anew")
    })?;
    match value.get("format").and_then(serde_json::Value::as_u64) {
        None | Some(0) => {
            return Err(damaged(
                "it has no format number; if no newer rbuild made the store, remove the file and it is written anew",
            ));
        }
        Some(found) if found > u64::from(FORMAT) => {
            let found = format!("format {found}, this one knows up to {FORMAT}");
            return Err(StoreError::NewerFormat { path, found });
        }
        Some(_) => {}
    }
    let meta = serde_json::from_value(value);
    meta.map(Some).map_err(|_| damaged("fields are missing: remove the file and it is written anew"))
}

fn check(layout: &Layout, meta: &StoreMeta, id_map: &str) -> Result<(), StoreError> {
    let strange = meta.incompatible.iter().chain(&meta.ro_compatible);
    if let Some(feature) = strange.into_iter().find(|f| !INCOMPATIBLE_KNOWN.contains(&f.as_str())) {
        let found = format!("it uses the feature `{feature}`");
        return Err(StoreError::NewerFormat { path: layout.path("store.json"), found });
    }
    if meta.id_map != id_map {
        return Err(StoreError::IdMap {
            root: layout.root().to_owned(),
            recorded: meta.id_map.clone(),
            wanted: id_map.to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_filesystems_are_named_and_local_ones_are_not() {
        assert_eq!(network_filesystem(0x6969), Some("NFS"));
        assert_eq!(network_filesystem(0xFE53_4D42), Some("SMB"));
        assert_eq!(network_filesystem(0xEF53), None);
    }
}
