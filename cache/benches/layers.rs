//! What trees, listings, packs and layers cost beside the least that they can.
//!
//! `cargo bench -p rbuild-cache --profile bench-fast --features isal`. Prints the best of several runs in CPU time of all
//! threads, which others on the machine disturb little; nothing is asserted: a machine has its moods.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rbuild_cache::copy::{CopyError, CopyItem, CopyOptions, FileSource, SourceError, plan};
use rbuild_cache::layer::{
    Change, Compression, DEFAULT_GZIP, DiffEntry, LayerDiff, Mtime, OverlayForm, Pack, PackBodies,
    PackWriter, ParentEntry, ParentView, ParentViewError, decode_diff, emit_tar_from, encode_on, scan_upper,
    write_diff,
};
use rbuild_cache::path::RelPath;
use rbuild_cache::scratch::Scratch;
use rbuild_cache::store::{
    FileStat, KnownKind, ListedDir, Records, ScanMoment, SeenContext, SeenEntry, SeenXattrs, Store,
    StoreOptions,
};
use rbuild_cache::tree::select::{Selections, select, selection_digest};
use rbuild_cache::tree::{ContentDigest, MemoryNodeStore, Meta, Tree};
use rbuild_oci::Sha256;
use rustix::time::{ClockId, clock_gettime};

const FILES: usize = 20_000;
const FILES_PER_DIR: usize = 100;
const FILE_BYTES: usize = 4096;
const RUNS: usize = 7;

/// What this process has spent on processors.
fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// The best time of one call; what `prepare` does is not measured.
fn best<T>(mut prepare: impl FnMut() -> T, mut work: impl FnMut(T)) -> Duration {
    let measure = |_| {
        let prepared = prepare();
        Taken::by(|| work(prepared)).cpu
    };
    (0..RUNS).map(measure).min().unwrap_or_default()
}

/// What one call took.
#[derive(Clone, Copy)]
struct Taken {
    cpu: Duration,
    wall: Duration,
}

impl Taken {
    const MAX: Self = Self { cpu: Duration::MAX, wall: Duration::MAX };

    fn by(work: impl FnOnce()) -> Self {
        let (cpu, wall) = (cpu_time(), Instant::now());
        work();
        Self { cpu: cpu_time() - cpu, wall: wall.elapsed() }
    }

    /// The lesser of both.
    fn min(self, other: Self) -> Self {
        Self { cpu: self.cpu.min(other.cpu), wall: self.wall.min(other.wall) }
    }
}

fn row(what: &str, time: Duration, entries: usize) {
    println!("{what:<44} {time:>10.2?} {:>8} ns each", time.as_nanos() / entries.max(1) as u128);
}

fn rate(what: &str, time: Duration, bytes: usize) {
    println!("{what:<44} {time:>10.2?} {:>8.0} MB/s", bytes as f64 / 1e6 / time.as_secs_f64());
}

fn ratio(what: &str, ours: Duration, floor: Duration) {
    println!("{what:<44} {:>10.2} x", ours.as_secs_f64() / floor.as_secs_f64());
}

/// Bytes that look like source text: they compress, and no two files are equal.
fn content(at: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FILE_BYTES + 64);
    let mut number = at as u64 + 1;
    while bytes.len() < FILE_BYTES {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        writeln!(bytes, "  const value{} = call({}, 'text');", number >> 44, number >> 52)
            .expect("a Vec takes all");
    }
    bytes.truncate(FILE_BYTES);
    bytes
}

fn file_path(at: usize) -> String {
    format!("app/dir{:03}/file{at:05}.txt", at / FILES_PER_DIR)
}

/// A layer of many small files.
fn listing() -> LayerDiff {
    let dir = |path: &str| (path.to_owned(), Change::Dir { meta: meta(0o755), opaque: false });
    let mut entries = vec![dir("app")];
    for at in 0..FILES {
        if at % FILES_PER_DIR == 0 {
            entries.push(dir(&format!("app/dir{:03}", at / FILES_PER_DIR)));
        }
        let content = ContentDigest::of(&content(at));
        entries.push((file_path(at), Change::File { meta: meta(0o644), size: FILE_BYTES as u64, content }));
    }
    let entry = |(path, change): (String, Change)| DiffEntry {
        path: RelPath::clamp(path.as_bytes()),
        change,
        mtime: Mtime { secs: 1_700_000_000, nanos: 0 },
    };
    entries.into_iter().map(entry).collect()
}

fn encoded(diff: &LayerDiff) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_diff(diff, &mut bytes).expect("writes");
    bytes
}

fn scratch() -> Scratch {
    Scratch::on(File::open(std::env::temp_dir()).expect("opens")).expect("duplicates")
}

fn meta(mode: u32) -> Meta {
    Meta { mode, ..Meta::default() }
}

/// Times without files.
struct Times;

impl FileSource for Times {
    fn open(&self, path: &RelPath) -> Result<OwnedFd, SourceError> {
        Err(SourceError::Missing { path: path.clone() })
    }

    fn mtime(&self, _: &RelPath) -> Result<Mtime, SourceError> {
        Ok(Mtime { secs: 1_700_000_000, nanos: 0 })
    }
}

/// A state that has nothing.
struct Nothing;

impl ParentView for Nothing {
    fn entry(&self, _: &RelPath) -> Result<Option<ParentEntry>, ParentViewError> {
        Ok(None)
    }
}

fn trees(diff: &LayerDiff) {
    let apply = best(MemoryNodeStore::default, |nodes| {
        black_box(Tree::empty().apply(&nodes, diff, &scratch()).expect("it fits"));
    });
    row("tree of a layer, with all digests", apply, FILES);
    let entries: Vec<DiffEntry> = diff.iter().collect::<Result<_, _>>().expect("it is in memory");
    let encode = |entries: Vec<DiffEntry>| encoded(&LayerDiff::from_iter(entries));
    row("listing, encoded", best(|| entries.clone(), |entries| drop(black_box(encode(entries)))), FILES);
    let bytes = encoded(diff);
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(&bytes).expect("writes");
    let decode = |file| decode_diff(file, 0, bytes.len() as u64).expect("it is one");
    let decoding = best(|| file.try_clone().expect("duplicates"), |file| drop(black_box(decode(file))));
    row("listing, decoded", decoding, FILES);
    row(
        "listing, read",
        best(
            || (),
            |()| {
                black_box(diff.iter().count());
            },
        ),
        FILES,
    );

    let nodes = MemoryNodeStore::default();
    let context = Tree::empty().apply(&nodes, diff, &scratch()).expect("it fits");
    let select_app = || {
        let mut selected = Selections::new(&scratch());
        select(&context, &nodes, b"app", &mut selected).expect("it is there");
        selected
    };
    let selecting = best(
        || (),
        |()| {
            black_box(selection_digest(&select_app(), &nodes, &scratch()).expect("it is in memory"));
        },
    );
    row("COPY of a directory, selected and keyed", selecting, 1);
    let selected = select_app();
    let options = CopyOptions {
        dest: "/srv/".to_owned(),
        owner: None,
        chmod: None,
        from_context: true,
        now: Mtime::default(),
    };
    let planning = best(
        || selected.iter().map(|item| Ok::<_, CopyError>(CopyItem::Selected(item?))),
        |items| {
            let planned = plan(&nodes, &Tree::empty(), &Times, Some(&Times), items, &options, &scratch());
            drop(black_box(planned.expect("it can be copied")));
        },
    );
    row("COPY, planned", planning, FILES);
}

fn stat_index(dir: &Path) {
    let store = Store::open(dir, StoreOptions { id_map: "bench".into(), durable: false }).expect("opens");
    let lease = store.lease().expect("leases");
    let time = Mtime { secs: 1_700_000_000, nanos: 1 };
    let stat = |at: usize| FileStat {
        size: FILE_BYTES as u64,
        mtime: time,
        ctime: time,
        ino: at as u64,
        dev: 1,
        mode: 0o100_644,
        uid: 0,
        gid: 0,
    };
    let dir = |path: &str, files: Range<usize>| {
        let mut listed = ListedDir::new(path.as_bytes(), stat(0), ScanMoment::now());
        listed.may_be_trusted = true;
        for at in files {
            let (name, kind) = (format!("file{at:06}.txt"), KnownKind::File(&[7; 32]));
            let (stat, is_linked, is_suspect) = (stat(at), false, false);
            let entry = SeenEntry { name: name.as_bytes(), stat, is_linked, is_suspect, kind };
            listed.push(&entry).expect("a record has room");
        }
        listed.done(false)
    };
    const EACH: usize = 100;
    let mut dirs = vec![dir("", 0..0)];
    dirs.extend((0..FILES / EACH).map(|at| dir(&format!("d{at}"), at * EACH..(at + 1) * EACH)));
    let seen =
        SeenContext::new(Arc::default(), [0; 32], dirs, SeenXattrs::default()).expect("no node is missing");
    store.put_stat_index(&lease, &[1; 32], &seen).expect("writes");
    let loading = best(|| (), |()| drop(black_box(store.stat_index(&[1; 32]).expect("reads"))));
    row("stat index, its table loaded", loading, FILES);
    let index = store.stat_index(&[1; 32]).expect("reads");
    let hits = || {
        let (mut hits, mut records) = (0, Records::new(&index));
        for at in 0..index.len() {
            let mut record = records.of(&index.dir(at).expect("reads")).expect("reads");
            while let Some(known) = record.peek().expect("reads") {
                let ino = known.stat().ino as usize;
                hits += usize::from(*known.stat == stat(ino).to_bytes());
                record.skip();
            }
        }
        assert_eq!(black_box(hits), FILES);
    };
    let hits = best(|| (), |()| hits());
    row("stat index, a hit for every file", hits, FILES);
}

fn packs(diff: &LayerDiff, dir: &Path) {
    let contents: Vec<Vec<u8>> = (0..FILES).map(content).collect();
    let path = dir.join("pack");
    let scratch = Scratch::on(File::open(dir).expect("opens")).expect("is a directory");
    let write = |file: File| {
        let mut pack = PackWriter::new(file, scratch.clone()).expect("writes");
        for content in &contents {
            pack.write(content).expect("writes");
            pack.end(ContentDigest::of(content), content.len() as u64).expect("sorts");
        }
        pack.finish().expect("writes");
    };
    rate(
        "pack, hashed and written",
        best(|| File::create(&path).expect("creates"), write),
        FILES * FILE_BYTES,
    );
    let packs = [Pack::open(File::open(&path).expect("opens")).expect("is whole")];
    let emit = |compression: Compression, threads: usize| {
        best(
            || (),
            |()| {
                let mut bodies = PackBodies::new(&packs);
                let source = |out: &mut dyn Write| emit_tar_from(&mut bodies, diff, None, out);
                black_box(encode_on(threads, source, compression, &mut io::sink()).expect("encodes"));
            },
        )
    };
    rate("layer out of a pack: archive and DiffId", emit(Compression::None, 1), FILES * FILE_BYTES);
    rate("the same with gzip, one thread", emit(DEFAULT_GZIP, 1), FILES * FILE_BYTES);
    rate("the same with gzip, two threads", emit(DEFAULT_GZIP, 2), FILES * FILE_BYTES);
    let all = contents.concat();
    let sha = best(
        || (),
        |()| {
            let mut hash = Sha256::new();
            all.chunks(256 << 10).for_each(|piece| hash.update(piece));
            black_box(hash.finish());
        },
    );
    rate("SHA-256 alone", sha, all.len());
}

/// What a layer's contents have to do with the speed of gzip, hashes included.
fn contents() {
    const LEN: usize = 32 << 20;
    let mut state = 1_u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let noise: Vec<u8> = (0..LEN).map(|_| random()).collect();
    let digits = b"0123456789abcdef";
    let uneven = noise.iter().map(|byte| digits[usize::from(byte % 16)]).collect();
    let text = (0..LEN / FILE_BYTES).flat_map(content).collect();
    for (what, bytes) in [("text", text), ("hexadecimal digits", uneven), ("noise", noise)] {
        let mut size = 0;
        let time = best(
            || (),
            |()| {
                let source =
                    |out: &mut dyn Write| bytes.chunks(256 << 10).try_for_each(|piece| out.write_all(piece));
                size = encode_on(1, source, DEFAULT_GZIP, &mut io::sink()).expect("encodes").size;
            },
        );
        rate(&format!("gzip of {what}, {:.3} x smaller", LEN as f64 / size as f64), time, LEN);
    }
}

/// The commit of a RUN layer beside reading and hashing its bytes once.
fn commit(dir: &Path, what: &str, files: usize, file_bytes: usize) {
    let upper = dir.join(format!("upper-{files}"));
    fs::create_dir(&upper).expect("makes directories");
    let mut names = Vec::new();
    for at in 0..files {
        let sub = upper.join(format!("dir{:03}", at / FILES_PER_DIR));
        if at % FILES_PER_DIR == 0 {
            fs::create_dir(&sub).expect("makes directories");
        }
        let name = sub.join(format!("file{at:05}"));
        let bytes = content(at).repeat(file_bytes / FILE_BYTES);
        fs::write(&name, bytes).expect("makes files");
        names.push(name);
    }
    let mut buffer = vec![0; 256 << 10];
    let mut least = || {
        for name in &names {
            let (mut file, mut hash) = (File::open(name).expect("opens"), blake3::Hasher::new());
            loop {
                match file.read(&mut buffer).expect("reads") {
                    0 => break,
                    count => hash.update(&buffer[..count]),
                };
            }
            black_box(hash.finalize());
        }
    };
    let root = File::open(&upper).expect("opens");
    let scratch = Scratch::on(&root).expect("opens");
    let commit = || {
        let nodes = MemoryNodeStore::default();
        let diff = scan_upper(root.as_fd(), OverlayForm::User, &Nothing, &scratch).expect("lists");
        let tree = Tree::empty().apply(&nodes, &diff, &scratch).expect("it fits");
        black_box((tree, encoded(&diff)));
    };
    // In turns, so that the machine is in the same mood for both.
    let (mut floor, mut ours) = (Taken::MAX, Taken::MAX);
    for _ in 0..5 * RUNS {
        floor = floor.min(Taken::by(&mut least));
        ours = ours.min(Taken::by(commit));
    }
    row(&format!("{what}: read and hashed once"), floor.cpu, files);
    row(&format!("{what}: listed, tree, encoded"), ours.cpu, files);
    ratio(&format!("{what}: of the least (limit 1.5)"), ours.cpu, floor.cpu);
    ratio(&format!("{what}: the same, wall"), ours.wall, floor.wall);
}

fn main() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let diff = listing();
    trees(&diff);
    stat_index(&temp.path().join("store"));
    packs(&diff, temp.path());
    contents();
    commit(temp.path(), "RUN layer, 64 files of 1 MiB", 64, 1 << 20);
    commit(temp.path(), "RUN layer, 5,000 files of 8 KiB", 5_000, 8 << 10);
}
