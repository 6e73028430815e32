//! What about a scanned context is worth a warning.

use std::collections::BTreeMap;

use rbuild_cache::tree::{Kind, NodeDigest, NodeStore, NodeStoreError, load_node};

use super::ScannedContext;
use crate::report::human;

/// Larger contexts get a word: most of them are so by mistake.
const LARGE_BYTES: u64 = 100 << 20;
/// Things named in one warning.
const NAMED_MAX: usize = 5;

/// Warnings about what of the context is copied. `ignore_file` is where lines can be added.
pub fn remarks(scanned: &ScannedContext, ignore_file: &str) -> Vec<String> {
    let mut remarks = Vec::new();
    if let [first, ..] = scanned.suspects.as_slice() {
        let more = match scanned.suspects.len().saturating_sub(NAMED_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let named: Vec<String> =
            scanned.suspects.iter().take(NAMED_MAX).map(|path| format!("`{path}`")).collect();
        remarks.push(format!(
            "[Warning] what looks like a secret is copied from the build context: {}{more}; a line in {ignore_file} \
             such as `{first}` leaves it out",
            named.join(", ")
        ));
    }
    if scanned.size_bytes > LARGE_BYTES
        && let Ok(mut largest) = by_first_name(scanned)
    {
        largest.sort_by_key(|(name, bytes)| (std::cmp::Reverse(*bytes), name.clone()));
        largest.truncate(NAMED_MAX);
        let named: Vec<String> =
            largest.iter().map(|(name, bytes)| format!("`{name}` {}", human::size(*bytes))).collect();
        let first = largest.first().map_or("", |(name, _)| name.as_str());
        remarks.push(format!(
            "[Warning] {} are copied from the build context, most of it {}; a line in {ignore_file} such as \
             `{first}` leaves it out (rbuild context du shows more)",
            human::size(scanned.size_bytes),
            named.join(", ")
        ));
    }
    remarks
}

/// Bytes of each entry at the top.
fn by_first_name(scanned: &ScannedContext) -> Result<Vec<(String, u64)>, NodeStoreError> {
    let nodes = scanned.nodes.as_ref();
    let root = load_node(nodes, &scanned.tree.node)?;
    let mut known = BTreeMap::new();
    let sizes = root.entries.iter().map(|(name, entry)| {
        let bytes = match &entry.kind {
            Kind::File { size, .. } => *size,
            Kind::Dir(node) => below(nodes, node, &mut known)?,
            _ => 0,
        };
        Ok((String::from_utf8_lossy(name).into_owned(), bytes))
    });
    sizes.collect()
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
        for entry in load_node(nodes, &digest)?.entries.values() {
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
