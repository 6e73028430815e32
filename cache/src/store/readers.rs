//! Readers: who may still rely on an object that was condemned.
//!
//! Every open store is a *reader* of one *generation*: it holds `readers/current` flocked, shared, for its whole life
//! and knows the number in it. Collection never takes bytes away from a reader, and look-ups never write:
//!
//! ```text
//!  condemn   the row's `until` becomes the present generation t          (one durable transaction)
//!  retire    readers/current becomes readers/<t>, a new current has t+1   (one rename)
//!  free      once no reader of a generation <= t is left: row, then bytes (the kernel drops locks of the dead)
//! ```
//!
//! *Nothing in use is freed.* A look-up by a reader of generation g sees rows with `until >= g` only. So whoever found
//! an object with `until = t` is of a generation `<= t`, and the object is freed only when no such reader is left.
//! Numbers are compared, never times.
//!
//! *Nothing recorded is lost.* Whoever writes a record that names objects resets their `until` and moves their `used`
//! in the same transaction ([`touch_layers`], [`touch_blobs`]). Condemning asks that `used` is what the mark saw, and
//! freeing that `until` is still below the oldest live generation: a record written in between saves what it names,
//! and until its writer dies the bytes are there to be saved.
//!
//! Joining cannot miss a retirement: after locking, the name must still be the locked file, else join again.

use std::fs::File;
use std::io::Read;

use rbuild_oci::Digest;
use rusqlite::Transaction;
use rustix::fs::{AtFlags, FlockOperation, OFlags};
use rustix::io::Errno;

use super::db::{DbError, now_unix_ns};
use super::error::{IoContext, StoreError};
use super::layout::{self, Layout};
use super::{LayerId, PULLED, lock};

const CURRENT: &str = "readers/current";
/// A generation that sees only what nobody condemned: the collector's own.
pub(super) const NONE: i64 = i64::MAX;
/// Of rows that are not: written out, so that SQLite sees that the index of those rows is all it needs.
pub(super) const CONDEMNED: &str = "until < 9223372036854775807";

/// Membership in a generation, until dropped.
#[derive(Debug)]
pub(super) struct Reader {
    /// Its number.
    pub(super) generation: i64,
    _file: File,
}

/// Joins the present generation.
pub(super) fn join(layout: &Layout) -> Result<Reader, StoreError> {
    loop {
        let file = match layout.try_open(CURRENT, OFlags::RDONLY) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => {
                create(layout, 1)?;
                continue;
            }
            Err(error) => return Err(error).doing("open", &layout.path(CURRENT)),
        };
        match lock::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) if lock::is_same(layout, CURRENT, &file) => {}
            // Retired between opening and locking.
            Ok(()) | Err(Errno::WOULDBLOCK) => continue,
            Err(error) => return Err(error).doing("lock", &layout.path(CURRENT)),
        }
        match number(&file) {
            Some(generation) => return Ok(Reader { generation, _file: file }),
            // Within a boot the file is complete from its rename on: a power cut emptied it, and its readers are gone.
            None => create(layout, 1)?,
        }
    }
}

/// Number of the present generation.
pub(super) fn current(layout: &Layout) -> Result<i64, StoreError> {
    join(layout).map(|reader| reader.generation)
}

/// Ends the present generation, whose number must be `generation`: who joins from here on is of one that is at least
/// `next`. Only under the collection lock.
pub(super) fn retire(layout: &Layout, generation: i64, next: i64) -> Result<(), StoreError> {
    layout.replace(CURRENT, &format!("readers/{generation}"))?;
    create(layout, next)
}

/// The oldest generation that may still have readers; names of dead ones are removed. Only under the collection lock.
pub(super) fn oldest_live(layout: &Layout) -> Result<i64, StoreError> {
    let mut oldest = current(layout)?;
    for generation in retired(layout)? {
        let name = format!("readers/{generation}");
        let Ok(fd) = layout.try_open(&name, OFlags::RDWR) else { continue };
        if lock::flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = rustix::fs::unlinkat(layout.fd(), &name, AtFlags::empty());
        } else {
            oldest = oldest.min(generation);
        }
    }
    Ok(oldest)
}

fn retired(layout: &Layout) -> Result<Vec<i64>, StoreError> {
    let dir = layout.open("readers", OFlags::RDONLY | OFlags::DIRECTORY)?;
    let names = layout::names(&dir).doing("list", &layout.path("readers"))?;
    Ok(names.iter().filter_map(|name| std::str::from_utf8(name).ok()?.parse().ok()).collect())
}

/// Makes `readers/current` with a number above all others, unless a good one is there.
fn create(layout: &Layout, at_least: i64) -> Result<(), StoreError> {
    let _creation = lock::creation(layout)?;
    layout.make_dir("readers")?;
    if let Ok(fd) = layout.try_open(CURRENT, OFlags::RDONLY)
        && number(&File::from(fd)).is_some()
    {
        return Ok(());
    }
    let next = retired(layout)?.into_iter().max().unwrap_or(0) + 1;
    let next = next.max(at_least);
    // The creation lock makes the name ours; a leftover of a killed creator is replaced.
    let temp = "work/readers.new";
    let _ = rustix::fs::unlinkat(layout.fd(), temp, AtFlags::empty());
    layout.write_new(temp, format!("{next}\n").as_bytes())?;
    layout.replace(temp, CURRENT)
}

fn number(file: &File) -> Option<i64> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.strip_suffix('\n')?.parse().ok().filter(|number| *number > 0)
}

/// Part of writing a record that names layers: saves them, and the blobs of pulled ones, from being condemned or freed.
pub(super) fn touch_layers(transaction: &Transaction<'_>, layers: &[LayerId]) -> Result<(), DbError> {
    if layers.is_empty() {
        return Ok(());
    }
    // All at once: a record names a whole stack, and each step of a build writes one.
    let ids = layers.iter().map(|layer| layer.to_sql().to_string()).collect::<Vec<_>>().join(",");
    let (ids, now) = (format!("[{ids}]"), now_unix_ns());
    let sql = "UPDATE layers SET used = max(used + 1, ?2), until = ?3
        WHERE id IN (SELECT value FROM json_each(?1))";
    transaction.prepare_cached(sql)?.execute((&ids, now, NONE))?;
    // A pulled layer is no good without its blob.
    let sql = "UPDATE blobs SET used = max(used + 1, ?2), until = ?3 WHERE digest IN
        (SELECT blob FROM encodings JOIN layers ON encodings.diff_id = layers.diff_id
            WHERE layers.id IN (SELECT value FROM json_each(?1)) AND params = ?4)";
    transaction.prepare_cached(sql)?.execute((&ids, now, NONE, PULLED))?;
    Ok(())
}

/// Part of writing a record that names blobs: saves them from being condemned or freed.
pub(super) fn touch_blobs(transaction: &Transaction<'_>, blobs: &[Digest]) -> Result<(), DbError> {
    let sql = "UPDATE blobs SET used = max(used + 1, ?2), until = ?3 WHERE digest = ?1";
    let mut statement = transaction.prepare_cached(sql)?;
    for blob in blobs {
        statement.execute((blob.as_bytes(), now_unix_ns(), NONE))?;
    }
    Ok(())
}
