//! What about a scanned context is worth a warning.

use std::collections::BTreeMap;

use rbuild_cache::copy::FileSource as _;
use rbuild_cache::path::RelPath;
use rbuild_cache::tree::{DirReader, Kind, NodeDigest, NodeStore, NodeStoreError};

use super::ScannedContext;
use super::counted::Counted;
use super::secrets::{self, Suspicion};
use super::wanted::{Standing, Wanted};
use crate::report::human;

/// Larger contexts get a word: most of them are so by mistake.
const LARGE_BYTES: u64 = 100 << 20;
/// Things named in one warning.
const NAMED_MAX: usize = 5;

/// What of a context is taken, as far as warnings go.
struct Taken<'a> {
    context: &'a ScannedContext,
    size_bytes: u64,
    suspects: &'a Counted,
}

/// Warnings about what is copied of a context that was scanned. `ignore_file` is where lines can be added.
pub fn remarks(scanned: &ScannedContext, ignore_file: &str) -> Vec<String> {
    let taken = Taken { context: scanned, size_bytes: scanned.size_bytes, suspects: &scanned.suspects };
    let remedy = |name: &str| format!("a line in {ignore_file} such as `{name}` leaves it out");
    taken.remarks(&remedy, " (rbuild context du shows more)")
}

/// The same for a context that came whole, where ignore files have no say: from standard input, a repository, a web
/// server. Walks all that is wanted of it.
pub fn of_received(context: &ScannedContext, wanted: &Wanted) -> Vec<String> {
    let (mut size_bytes, mut suspects) = (0_u64, Counted::default());
    let nodes = context.nodes.as_ref();
    let files = context.files().ok();
    let Ok(walk) = context.tree.walk(nodes, &RelPath::root()) else { return Vec::new() };
    // What cannot be walked is for the steps that copy it to tell.
    for (path, entry) in walk.flatten() {
        let Kind::File { size, .. } = entry.kind else { continue };
        if !matches!(wanted.standing(path.as_bytes()), Standing::Inside | Standing::Source) {
            continue;
        }
        size_bytes = size_bytes.saturating_add(size);
        let is_secret = match secrets::suspicion(path.as_bytes()) {
            None => false,
            Some(Suspicion::ByName) => true,
            Some(Suspicion::With(needle)) => {
                let opened = files.as_ref().and_then(|files| files.open(&path).ok());
                opened.is_some_and(|file| secrets::holds(&file, needle))
            }
        };
        if is_secret {
            suspects.add(|| String::from_utf8_lossy(path.as_bytes()).escape_debug().to_string());
        }
    }
    let taken = Taken { context, size_bytes, suspects: &suspects };
    taken.remarks(&|_| "ignore files have no say there: name in COPY what is needed".to_owned(), "")
}

impl Taken<'_> {
    fn remarks(&self, remedy: &dyn Fn(&str) -> String, more_at: &str) -> Vec<String> {
        let mut remarks = Vec::new();
        let suspects = self.suspects.first();
        if let [first, ..] = suspects {
            let more = match self.suspects.more_than(NAMED_MAX) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let named: Vec<String> =
                suspects.iter().take(NAMED_MAX).map(|path| format!("`{path}`")).collect();
            remarks.push(format!(
                "[Warning] what looks like a secret is copied from the build context: {}{more}; {}",
                named.join(", "),
                remedy(first)
            ));
        }
        if self.size_bytes > LARGE_BYTES
            && let Ok(mut largest) = by_first_name(self.context)
        {
            largest.sort_by_key(|(name, bytes)| (std::cmp::Reverse(*bytes), name.clone()));
            largest.truncate(NAMED_MAX);
            let named: Vec<String> =
                largest.iter().map(|(name, bytes)| format!("`{name}` {}", human::size(*bytes))).collect();
            let first = largest.first().map_or("", |(name, _)| name.as_str());
            remarks.push(format!(
                "[Warning] {} are copied from the build context, most of it {}; {}{more_at}",
                human::size(self.size_bytes),
                named.join(", "),
                remedy(first)
            ));
        }
        remarks
    }
}

/// Bytes of each entry at the top.
fn by_first_name(scanned: &ScannedContext) -> Result<Vec<(String, u64)>, NodeStoreError> {
    let nodes = scanned.nodes.as_ref();
    let mut entries = DirReader::open(nodes, &scanned.tree.node)?;
    let (mut known, mut sizes) = (BTreeMap::new(), Vec::new());
    while let Some((name, entry)) = entries.next()? {
        let bytes = match &entry.kind {
            Kind::File { size, .. } => *size,
            Kind::Dir(node) => below(nodes, node, &mut known)?,
            _ => 0,
        };
        sizes.push((String::from_utf8_lossy(name).into_owned(), bytes));
    }
    Ok(sizes)
}

/// Bytes of all files below a directory, each time it is there.
fn below(
    nodes: &dyn NodeStore,
    top: &NodeDigest,
    known: &mut BTreeMap<NodeDigest, u64>,
) -> Result<u64, NodeStoreError> {
    let mut open = vec![*top];
    let mut total = 0_u64;
    if let Some(bytes) = known.get(top) {
        return Ok(*bytes);
    }
    while let Some(digest) = open.pop() {
        let mut entries = DirReader::open(nodes, &digest)?;
        while let Some((_, entry)) = entries.next()? {
            match &entry.kind {
                Kind::File { size, .. } => total = total.saturating_add(*size),
                Kind::Dir(node) => open.push(*node),
                _ => {}
            }
        }
    }
    known.insert(*top, total);
    Ok(total)
}
