//! Files of names: what a name stands for, once more, in `images/`, for a store whose index was lost or lost its last
//! transactions with its log.
//!
//! ```text
//!  give    images/.<random>, locked  ->  row (durable)  ->  images/<hash of the name>
//!  remove  images/.<random>  ->  row gone (durable)  ->  file gone
//! ```
//!
//! So a file with the hash of a name is there only while the row is, or when the index lost it: nothing that ends a
//! process, nor a power cut, makes one without the other. Then nothing is collected before a rebuild has brought the name
//! back. A file that begins with a dot and that nobody has locked was left by the dead; the row says what becomes of it.
//! Files move inside transactions of the index, so that giving and removing cannot come between each other.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Transaction};
use rustix::fs::{AtFlags, FlockOperation, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::db::mark::BootId;
use super::db::{DbError, from_json, seal};
use super::error::{IoContext, StoreError};
use super::layout::{self, Layout};
use super::{ImageRecord, Store, lock};

/// A record of a name is a few kilobytes: layers' ids and digests.
const BYTES_MAX: u64 = 16 << 20;

/// What such a file holds.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    name: String,
    /// The record, serialised.
    record: String,
    /// Hex; of name and record.
    seal: String,
}

/// A file of a name that is being given; it goes unless it is placed.
#[derive(Debug)]
pub(super) struct NameFile {
    layout: Arc<Layout>,
    temp: String,
    name: String,
    record: String,
    /// Locked while its name is being given.
    file: File,
    /// Its name may have been given and it is not placed: who compares names does that.
    is_left: bool,
}

impl Drop for NameFile {
    fn drop(&mut self) {
        if self.is_left {
            return;
        }
        // Placed, mostly.
        let _ = rustix::fs::unlinkat(self.layout.fd(), &self.temp, AtFlags::empty());
    }
}

impl NameFile {
    pub(super) fn new(layout: &Arc<Layout>, name: &str, record: &ImageRecord) -> Result<Self, StoreError> {
        // Stores of earlier versions do not have it.
        layout.make_dir("images")?;
        let record = serde_json::to_string(record).expect("digests, ids and numbers serialise");
        let seal = hex::encode(seal("image", name.as_bytes(), record.as_bytes()));
        let content = Content { name: name.to_owned(), record, seal };
        let bytes = serde_json::to_vec(&content).expect("texts serialise");
        loop {
            let temp = format!("images/.{:016x}", layout::random_id()?);
            let file = layout.new_file(&temp)?;
            let path = layout.path(&temp);
            let Content { name, record, .. } = &content;
            let (name, record) = (name.clone(), record.clone());
            let mut new = Self { layout: layout.clone(), temp, name, record, file, is_left: false };
            lock::flock(&new.file, FlockOperation::LockExclusive).doing("lock", &path)?;
            // Before it was locked, it may have been taken for one of the dead.
            if lock::is_same(layout, &new.temp, &new.file) {
                new.file.write_all(&bytes).doing("write", &path)?;
                return Ok(new);
            }
        }
    }

    /// Brings its bytes to the disk.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_all().doing("sync", &self.layout.path(&self.temp))
    }
}

/// Leaves files to whoever compares names next: their rows say what becomes of them.
pub(super) fn leave(mut files: Vec<NameFile>) {
    files.iter_mut().for_each(|file| file.is_left = true);
}

/// What is not the same in the index and in `images/`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Differences {
    /// Names whose files say what the index does not.
    pub(super) lost: Vec<String>,
    /// Names in the index without a whole file.
    pub(super) without_file: Vec<String>,
    /// Files that cannot be read, of no name that the index has.
    pub(super) unreadable: Vec<String>,
    /// Some file is in no place yet, or no more.
    has_pending: bool,
}

impl Store {
    /// Gives the files of names that have their rows by now their places.
    pub(super) fn place_name_files(&self, files: Vec<NameFile>) {
        let placed = self.inner.index.write("place files of names", |transaction| {
            for file in &files {
                // Somebody may have given the name to another image since, or removed it.
                if row(transaction, &file.name)?.as_ref() == Some(&file.record) {
                    self.inner.layout.replace(&file.temp, &path_of(&file.name))?;
                }
            }
            Ok(())
        });
        if placed.is_err() {
            leave(files);
        }
    }

    /// Compares names in the index with their files, after what the dead left in `images/` was put right.
    pub(super) fn compare_names(&self) -> Result<Differences, StoreError> {
        let layout = &self.inner.layout;
        if !layout.exists("images") {
            return Ok(Differences::default());
        }
        let boot = self.boot()?;
        let looked =
            self.inner.index.read("compare names", |connection| compare(layout, connection, boot, &[]))?;
        if looked == Differences::default() {
            return Ok(looked);
        }
        // Names may have been given and removed meanwhile: once more, with nobody doing so.
        self.inner.index.write("compare names", |transaction| {
            let being_given = settle(layout, transaction)?;
            compare(layout, transaction, boot, &being_given)
        })
    }

    /// Fails when the index lost a name: what that stands for may look like nobody's.
    pub(crate) fn refuse_lost_names(&self) -> Result<(), StoreError> {
        match self.compare_names()?.lost.pop() {
            Some(name) => Err(StoreError::NameLost { path: self.inner.layout.path(&path_of(&name)), name }),
            None => Ok(()),
        }
    }

    /// Makes files and rows of names equal where one of them says it all.
    pub(super) fn repair_names(&self, differences: &Differences) -> Result<(), StoreError> {
        let layout = &self.inner.layout;
        for file in &differences.unreadable {
            let _ = layout.publish(&format!("images/{file}"), &format!("quarantine/name-{file}"));
        }
        let mut files = Vec::new();
        for name in &differences.without_file {
            if let Ok(Some(record)) = self.image(name) {
                let file = NameFile::new(layout, name, &record)?;
                file.sync()?;
                files.push(file);
            }
        }
        self.place_name_files(files);
        Ok(())
    }
}

/// Takes the file of a name out of its place, on the disk. Returns where it is now, if there was one.
pub(super) fn withdraw(layout: &Layout, name: &str) -> Result<Option<String>, StoreError> {
    let (from, to) = (path_of(name), format!("images/.{:016x}", layout::random_id()?));
    match rustix::fs::renameat(layout.fd(), &from, layout.fd(), &to) {
        Ok(()) => {
            let dir = layout.open("images", OFlags::RDONLY | OFlags::DIRECTORY)?;
            rustix::fs::fsync(dir).doing("sync", &layout.path("images"))?;
            Ok(Some(to))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error).doing("remove", &layout.path(&from)),
    }
}

/// Removes the files of names whose rows go because no sync covered them.
pub(super) fn remove_unsynced(
    layout: &Layout,
    transaction: &Transaction<'_>,
    condition: &str,
    value: impl rusqlite::ToSql,
) -> Result<(), DbError> {
    let mut statement = transaction.prepare(&format!("SELECT name FROM images WHERE {condition}"))?;
    let mut rows = statement.query([value])?;
    while let Some(row) = rows.next()? {
        let _ = rustix::fs::unlinkat(layout.fd(), path_of(&row.get::<_, String>(0)?), AtFlags::empty());
    }
    Ok(())
}

/// What all files say.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) images: Vec<(String, ImageRecord)>,
    /// Files that are damaged.
    pub(super) unreadable: Vec<String>,
}

/// Reads all files.
pub(super) fn read_all(layout: &Layout) -> Result<Names, StoreError> {
    let mut names = Names::default();
    if layout.exists("images") {
        for file in layout::list(layout, "images")?.into_iter().filter(|file| !file.starts_with('.')) {
            let content =
                read(layout, &file).filter(|content| path_of(&content.name) == format!("images/{file}"));
            match content.and_then(|content| Some((record(&content)?, content.name))) {
                Some((record, name)) => names.images.push((name, record)),
                None => names.unreadable.push(file),
            }
        }
    }
    names.images.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(names)
}

/// Removes what the dead left, when there is no index that could say what it was.
pub(super) fn remove_pending(layout: &Layout) -> Result<(), StoreError> {
    if layout.exists("images") {
        for file in layout::list(layout, "images")?.into_iter().filter(|file| file.starts_with('.')) {
            let _ = rustix::fs::unlinkat(layout.fd(), format!("images/{file}"), AtFlags::empty());
        }
    }
    Ok(())
}

pub(super) fn path_of(name: &str) -> String {
    format!("images/{}", blake3::hash(name.as_bytes()).to_hex())
}

/// What the file of a name is called in `quarantine/`.
pub(super) fn quarantined(name: &str) -> String {
    format!("name-{}", blake3::hash(name.as_bytes()).to_hex())
}

/// A file of `images/` that is whole.
fn read(layout: &Layout, file: &str) -> Option<Content> {
    let bytes = layout.read(&format!("images/{file}"), BYTES_MAX).ok()??;
    let content: Content = serde_json::from_slice(&bytes).ok()?;
    let sealed = seal("image", content.name.as_bytes(), content.record.as_bytes());
    (content.seal == hex::encode(sealed)).then_some(content)
}

fn record(content: &Content) -> Option<ImageRecord> {
    let sealed = seal("image", content.name.as_bytes(), content.record.as_bytes());
    from_json("image", &content.name, &content.record, sealed).ok()
}

/// The record of a name as the index has it.
fn row(connection: &Connection, name: &str) -> Result<Option<String>, DbError> {
    let mut statement = connection.prepare_cached("SELECT record FROM images WHERE name = ?1")?;
    Ok(statement.query_row([name], |row| row.get(0)).optional()?)
}

/// Ends what the dead began. Returns the names that the living are giving.
fn settle(layout: &Layout, transaction: &Transaction<'_>) -> Result<Vec<String>, DbError> {
    let mut being_given = Vec::new();
    for file in layout::list(layout, "images")?.into_iter().filter(|file| file.starts_with('.')) {
        let path = format!("images/{file}");
        let Ok(fd) = layout.try_open(&path, OFlags::RDONLY) else { continue };
        let content = read(layout, &file);
        if lock::flock(&fd, FlockOperation::NonBlockingLockExclusive).is_err() {
            being_given.extend(content.map(|content| content.name));
            continue;
        }
        match content {
            Some(content) if row(transaction, &content.name)?.as_ref() == Some(&content.record) => {
                layout.replace(&path, &path_of(&content.name))?;
            }
            _ => drop(rustix::fs::unlinkat(layout.fd(), &path, AtFlags::empty())),
        }
    }
    Ok(being_given)
}

fn compare(
    layout: &Layout,
    connection: &Connection,
    boot: BootId,
    being_given: &[String],
) -> Result<Differences, DbError> {
    let mut differences = Differences::default();
    let mut statement =
        connection.prepare_cached("SELECT name, record FROM images WHERE durable = 1 OR boot = ?1")?;
    let rows = statement.query_map([boot.0], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let rows = rows.collect::<Result<BTreeMap<String, String>, _>>()?;
    let mut without: BTreeMap<String, &String> = rows.keys().map(|name| (path_of(name), name)).collect();
    for file in layout::list(layout, "images")? {
        if file.starts_with('.') {
            differences.has_pending = true;
            continue;
        }
        let path = format!("images/{file}");
        match read(layout, &file).filter(|content| path_of(&content.name) == path) {
            Some(content) => {
                without.remove(&path);
                if rows.get(&content.name) != Some(&content.record) && !being_given.contains(&content.name) {
                    differences.lost.push(content.name);
                }
            }
            None if without.contains_key(&path) => {}
            None => differences.unreadable.push(file),
        }
    }
    differences.without_file =
        without.into_values().filter(|name| !being_given.contains(name)).cloned().collect();
    differences.lost.sort();
    differences.without_file.sort();
    Ok(differences)
}
