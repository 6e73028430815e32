//! Files from web servers: asked for by what is known of them, fetched when they changed, kept as layers.

use std::fs::File as FsFile;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rbuild_cache::layer::{Change, DiffEntry, LayerDiff, Mtime};
use rbuild_cache::path::RelPath;
use rbuild_cache::store::{FetchRecord, Key};
use rbuild_cache::tree::{ContentDigest, Meta};
use rbuild_frontend::graph::HttpOp;
use rbuild_frontend::remote::without_user;
use rbuild_oci::{Digest, Sha256};
use rbuild_registry::{FetchRequest, FetchStream, Fetched};
use rustix::fs::{Mode, OFlags, Timespec, Timestamps};

use crate::error::StepFailure;
use crate::ops::download::CHUNKS_IN_FLIGHT;
use crate::ops::{ExecEnv, authorization, blocking, fetched};
use crate::progress::{Outcome, VertexId};
use crate::solve::Solved;
use crate::timestamp;

/// Largest file fetched. A RUN can fetch more; ADD need not fill the disk for whoever serves the address.
const BYTES_MAX: u64 = 8 << 30;
/// What Docker gives a fetched file.
const MODE: u32 = 0o600;

/// A fetched file.
pub struct File {
    /// SHA-256 of its bytes.
    pub content: Digest,
    /// A tree with the one file in it.
    pub solved: Arc<Solved>,
}

/// The file as its server has it now, or has had it when there is no way to the server.
///
/// With a checksum that the bytes fetched earlier have, the server is not asked. With `use_cache` false it is asked as
/// if nothing had ever been fetched.
pub async fn file(
    env: &Arc<ExecEnv>,
    op: &HttpOp,
    use_cache: bool,
    vertex: VertexId,
) -> Result<File, StepFailure> {
    env.events.started(vertex);
    let known = if use_cache { known(env, op)? } else { None };
    if let Some((record, solved)) = &known
        && op.checksum == Some(record.content)
    {
        env.events.finished(vertex, Outcome::Cached);
        return Ok(File { content: record.content, solved: Arc::clone(solved) });
    }
    let _turn = fetched::turn(env).await?;
    // In a box: who waits for a turn is small.
    Box::pin(asked(env, op, known, vertex)).await
}

/// The file by its server's word, whose turn it is.
async fn asked(
    env: &Arc<ExecEnv>,
    op: &HttpOp,
    known: Option<(FetchRecord, Arc<Solved>)>,
    vertex: VertexId,
) -> Result<File, StepFailure> {
    let shown = without_user(&op.url);
    let request = FetchRequest {
        url: op.url.clone(),
        etag: known.as_ref().and_then(|(record, _)| record.etag.clone()),
        modified: known.as_ref().and_then(|(record, _)| record.modified.clone()),
        authorization: authorization::for_file(&env.secrets, &op.url)?,
    };
    let answer = tokio::select! {
        answer = env.registry.fetch(&request) => answer,
        () = env.cancel.cancelled() => return Err(StepFailure::Canceled),
    };
    let (file, outcome) = match (answer, known) {
        (Ok(Fetched::Body(stream)), _) => (download(env, op, &shown, stream, vertex).await?, Outcome::Done),
        (Ok(Fetched::NotModified), Some((record, solved))) => {
            (File { content: record.content, solved }, Outcome::Cached)
        }
        (Err(error), Some((record, solved))) if error.is_offline() => {
            let date = timestamp::rfc3339(record.fetched_unix_ns.div_euclid(1_000_000_000), 0);
            env.events.remark(format!("{shown} cannot be reached: using what it gave on {date}"));
            (File { content: record.content, solved }, Outcome::Cached)
        }
        (Ok(Fetched::NotModified), None) => unreachable!("only asked with validators"),
        (Err(error), _) => return Err(error.into()),
    };
    if let Some(expected) = op.checksum.filter(|expected| *expected != file.content) {
        return Err(StepFailure::Checksum { url: shown, expected, found: file.content });
    }
    env.events.finished(vertex, outcome);
    Ok(file)
}

/// What the address gave last, if its bytes are still there.
fn known(env: &ExecEnv, op: &HttpOp) -> Result<Option<(FetchRecord, Arc<Solved>)>, StepFailure> {
    let Some(record) = env.store.fetched(&op.url)? else { return Ok(None) };
    let solved = fetched::stored(env, &file_key(&op.name, record.content, record.mtime))?;
    Ok(solved.map(|solved| (record, solved)))
}

fn file_key(name: &str, content: Digest, mtime: i64) -> Key {
    fetched::key("http file/1", |out| {
        out.str(name).value(&content).str(&mtime.to_string());
    })
}

async fn download(
    env: &Arc<ExecEnv>,
    op: &HttpOp,
    shown: &str,
    mut stream: Box<FetchStream>,
    vertex: VertexId,
) -> Result<File, StepFailure> {
    let too_large = || StepFailure::FetchTooLarge { url: shown.to_owned(), max_bytes: BYTES_MAX };
    if stream.length().is_some_and(|length| length > BYTES_MAX) {
        return Err(too_large());
    }
    let mtime = stream.modified_unix().unwrap_or(0);
    let transfer = env.events.transfer(vertex, shown.to_owned(), stream.length());
    let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(CHUNKS_IN_FLIGHT);
    let (writer_env, writer_op) = (Arc::clone(env), op.clone());
    let writing = tokio::spawn(blocking(move || Ok(write(&writer_env, &writer_op, mtime, receiver))));
    let mut received = 0_u64;
    let outcome = loop {
        let piece = tokio::select! {
            piece = stream.chunk() => piece,
            () = env.cancel.cancelled() => break Err(StepFailure::Canceled),
        };
        match piece {
            Ok(None) => break Ok(()),
            Ok(Some(bytes)) => {
                received += bytes.len() as u64;
                if received > BYTES_MAX {
                    break Err(too_large());
                }
                transfer.set(received);
                if sender.send(bytes).await.is_err() {
                    // The writer has failed and says why.
                    break Ok(());
                }
            }
            Err(error) => break Err(error.into()),
        }
    };
    drop(sender);
    let written = writing.await.unwrap_or_else(|join| std::panic::resume_unwind(join.into_panic()))?;
    outcome?;
    let written = written?;
    let file = written.keep(env, op, shown, mtime)?;
    let record = FetchRecord {
        content: file.content,
        etag: stream.etag().map(str::to_owned),
        modified: stream.modified().map(str::to_owned),
        mtime,
        fetched_unix_ns: timestamp::unix_ns(),
    };
    env.store.put_fetched(&op.url, &record)?;
    Ok(file)
}

/// A whole file in a draft that nobody has agreed to keep yet.
struct Written {
    draft: rbuild_cache::store::LayerDraft,
    diff: LayerDiff,
    content: Digest,
    started: Instant,
}

fn write(
    env: &ExecEnv,
    op: &HttpOp,
    mtime: i64,
    mut pieces: tokio::sync::mpsc::Receiver<Bytes>,
) -> Result<Written, StepFailure> {
    let started = Instant::now();
    let failed = |source: io::Error| StepFailure::Io { what: "write", path: op.name.clone(), source };
    let draft = env.store.draft(&env.lease)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(draft.diff_fd().as_fd(), op.name.as_str(), flags, Mode::from_raw_mode(MODE))
        .map_err(|errno| failed(errno.into()))?;
    let mut file = FsFile::from(fd);
    let (mut sha256, mut blake3, mut size) = (Sha256::new(), blake3::Hasher::new(), 0_u64);
    while let Some(bytes) = pieces.blocking_recv() {
        file.write_all(&bytes).map_err(failed)?;
        sha256.update(&bytes);
        blake3.update(&bytes);
        size += bytes.len() as u64;
    }
    // Whatever the umask is.
    rustix::fs::fchmod(&file, Mode::from_raw_mode(MODE)).map_err(|errno| failed(errno.into()))?;
    let time = Timespec { tv_sec: mtime, tv_nsec: 0 };
    rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time })
        .map_err(|errno| failed(errno.into()))?;
    let change = Change::File {
        meta: Meta { mode: MODE, ..Meta::default() },
        size,
        content: ContentDigest(*blake3.finalize().as_bytes()),
    };
    let path = RelPath::root().join(op.name.as_bytes());
    let entry = DiffEntry { path, change, mtime: Mtime { secs: mtime, nanos: 0 } };
    let diff = LayerDiff::from_iter([entry]);
    Ok(Written { draft, diff, content: sha256.finish(), started })
}

impl Written {
    fn keep(self, env: &ExecEnv, op: &HttpOp, shown: &str, mtime: i64) -> Result<File, StepFailure> {
        let key = file_key(&op.name, self.content, mtime);
        let solved = match fetched::stored(env, &key)? {
            // The same bytes were there, from another address or under another tag.
            Some(solved) => solved,
            None => fetched::store(env, &key, shown, self.draft, self.diff, self.started)?,
        };
        Ok(File { content: self.content, solved })
    }
}
