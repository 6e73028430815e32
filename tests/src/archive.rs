//! Reads a docker archive (`docker save`, `type=docker`): the image's configuration and its merged files.
//!
//! Only what a comparison needs: layers are tars, plain or gzip, and a long file's content is known by a checksum.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Seek as _, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::read::MultiGzDecoder;
use serde_json::Value;
use tar::{Archive, EntryType};

/// Texts up to this many bytes are shown.
const SHORT_TEXT: usize = 160;

/// An image as its archive has it.
#[derive(Debug)]
pub struct Image {
    /// The configuration document.
    pub config: Value,
    /// The files of the image by path, without a leading slash.
    pub files: BTreeMap<String, Entry>,
}

/// One file of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    kind: char,
    mode: u32,
    uid: u64,
    gid: u64,
    /// Content, link target, or device numbers.
    what: String,
    /// Names with values of extended attributes.
    xattrs: BTreeMap<String, Vec<u8>>,
    /// Seconds since the epoch.
    pub mtime: u64,
    /// The file that paths with this number share.
    inode: usize,
}

impl Entry {
    /// True of a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.kind == 'd'
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:o} {}:{} {}", self.kind, self.mode, self.uid, self.gid, self.what)?;
        for (name, value) in &self.xattrs {
            write!(f, " {name}={}", String::from_utf8_lossy(value).escape_default())?;
        }
        Ok(())
    }
}

impl Image {
    /// Reads the only image of an archive.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is no such archive.
    pub fn read(path: &Path) -> Result<Self> {
        let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let mut places = BTreeMap::new();
        for entry in Archive::new(&file).entries_with_seek()? {
            let entry = entry?;
            let name = entry.path()?.display().to_string();
            let target = entry.link_name()?.map(|link| link.display().to_string());
            places.insert(name, (entry.raw_file_position(), entry.size(), target));
        }
        let mut document =
            |name: &str| -> Result<Value> { Ok(serde_json::from_reader(part(&mut file, &places, name)?)?) };
        let manifest = document("manifest.json")?;
        let image = manifest.get(0).context("an image in the archive")?.clone();
        let config = document(image["Config"].as_str().context("name of the configuration")?)?;
        let mut files = BTreeMap::new();
        let layers = image["Layers"].as_array().context("list of layers")?;
        for layer in layers {
            let name = layer.as_str().context("name of a layer")?;
            let mut layer = BufReader::new(part(&mut file, &places, name)?);
            let is_gzip = layer.fill_buf()?.starts_with(&[0x1f, 0x8b]);
            let applied = if is_gzip {
                apply(MultiGzDecoder::new(layer), &mut files)
            } else {
                apply(layer, &mut files)
            };
            applied.with_context(|| format!("layer {name}"))?;
        }
        Ok(Self { config, files })
    }

    /// Other paths of the same file, for paths that have some.
    #[must_use]
    pub fn linked(&self) -> BTreeMap<&str, Vec<&str>> {
        let mut groups: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
        for (path, entry) in &self.files {
            groups.entry(entry.inode).or_default().push(path);
        }
        let groups = groups.into_values().filter(|group| group.len() > 1);
        groups.flat_map(|group| group.clone().into_iter().map(move |path| (path, group.clone()))).collect()
    }
}

/// A member of the archive. Docker writes a layer that is there twice as a link to the first.
fn part<'a>(
    file: &'a mut File,
    places: &BTreeMap<String, (u64, u64, Option<String>)>,
    name: &str,
) -> Result<io::Take<&'a mut File>> {
    let (mut at, mut size, link) = places.get(name).with_context(|| format!("no {name}"))?.clone();
    if let Some(link) = link {
        let beside = Path::new(name).parent().unwrap_or(Path::new("")).join(&link);
        let found = [link, normal(&beside)].into_iter().find_map(|target| places.get(&target));
        (at, size, _) = found.with_context(|| format!("{name} links to nothing"))?.clone();
    }
    file.seek(SeekFrom::Start(at))?;
    Ok(file.take(size))
}

fn normal(path: &Path) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.to_str().unwrap_or_default().split('/') {
        match part {
            ".." => drop(parts.pop()),
            "" | "." => {}
            name => parts.push(name),
        }
    }
    parts.join("/")
}

/// Puts a layer on what is there.
fn apply(layer: impl Read, files: &mut BTreeMap<String, Entry>) -> Result<()> {
    let mut made: Vec<(String, Entry)> = Vec::new();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut removed: BTreeSet<String> = BTreeSet::new();
    for entry in Archive::new(layer).entries()? {
        let mut entry = entry?;
        let path = normal(&entry.path()?);
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", &path));
        if name == ".wh..wh..opq" {
            removed.extend(below(files, dir));
        } else if let Some(hidden) = name.strip_prefix(".wh.") {
            let hidden = if dir.is_empty() { hidden.to_owned() } else { format!("{dir}/{hidden}") };
            removed.extend(below(files, &hidden));
            removed.insert(hidden);
        } else if entry.header().entry_type() == EntryType::Link {
            let target = normal(&entry.link_name()?.context("a link without target")?);
            let found =
                seen.get(&target).map(|at| made[*at].1.clone()).or_else(|| files.get(&target).cloned());
            let found = found.with_context(|| format!("{path} links to {target}, which is not there"))?;
            seen.insert(path.clone(), made.len());
            made.push((path, found));
        } else {
            let inode = next_inode();
            let found = describe(&mut entry, inode)?;
            seen.insert(path.clone(), made.len());
            made.push((path, found));
        }
    }
    files.retain(|path, _| !removed.contains(path));
    for (path, entry) in made {
        if entry.kind != 'd' {
            for hidden in below(files, &path) {
                files.remove(&hidden);
            }
        }
        files.insert(path, entry);
    }
    Ok(())
}

fn next_inode() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn below(files: &BTreeMap<String, Entry>, dir: &str) -> Vec<String> {
    let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
    files
        .range(prefix.clone()..)
        .map(|(path, _)| path)
        .take_while(|p| p.starts_with(&prefix))
        .cloned()
        .collect()
}

fn describe<R: Read>(entry: &mut tar::Entry<'_, R>, inode: usize) -> Result<Entry> {
    const XATTR: &str = "SCHILY.xattr.";
    let mut xattrs = BTreeMap::new();
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            if let Some(name) = extension.key()?.strip_prefix(XATTR) {
                xattrs.insert(name.to_owned(), extension.value_bytes().to_vec());
            }
        }
    }
    let header = entry.header().clone();
    let (kind, what) = match header.entry_type() {
        EntryType::Regular | EntryType::Continuous => ('f', content(entry)?),
        EntryType::Directory => ('d', String::new()),
        EntryType::Symlink => {
            ('l', format!("-> {}", entry.link_name()?.context("a symlink without target")?.display()))
        }
        EntryType::Fifo => ('p', String::new()),
        EntryType::Char | EntryType::Block => {
            let kind = if header.entry_type() == EntryType::Char { 'c' } else { 'b' };
            let number = |number: Option<u32>| number.unwrap_or_default();
            let (major, minor) = (number(header.device_major()?), number(header.device_minor()?));
            (kind, format!("{major},{minor}"))
        }
        other => {
            ensure!(false, "{}: an entry of type {other:?}", entry.path()?.display());
            unreachable!("the line above returns")
        }
    };
    let mode = header.mode()? & 0o7777;
    Ok(Entry {
        kind,
        mode,
        uid: header.uid()?,
        gid: header.gid()?,
        what,
        xattrs,
        mtime: header.mtime()?,
        inode,
    })
}

/// A short text as it is; of others size and checksum, which is enough to tell them apart.
fn content(mut from: impl Read) -> Result<String> {
    let (mut size, mut sum) = (0, crc32fast::Hasher::new());
    let mut buffer = vec![0; 1 << 16];
    let mut short = Vec::new();
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        if size + count <= SHORT_TEXT {
            short.extend_from_slice(&buffer[..count]);
        }
        size += count;
        sum.update(&buffer[..count]);
    }
    match String::from_utf8(short) {
        Ok(text) if size == text.len() => Ok(format!("{text:?}")),
        _ => Ok(format!("{size} bytes, sum {:08x}", sum.finalize())),
    }
}
