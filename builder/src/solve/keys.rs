//! The two keys of an op.
//!
//! ```text
//! DefKey(op)     = H("def/5", canonical(op), for each input: slot, DefKey(input) | selection digest of a context)
//! ContentKey(op) = H("content/5", canonical(op over contents), for each input: slot, digest of the selected part of its tree)
//! ```
//!
//! | input | enters the DefKey as | enters the ContentKey as |
//! |---|---|---|
//! | root of RUN, COPY, WORKDIR | its DefKey | its whole tree's digest |
//! | root of `COPY --link` | its DefKey | nothing: the layer is the same on any root |
//! | stage or image that COPY reads | its DefKey | digest of the selected entries |
//! | stage or image that RUN mounts (bind, new cache) | its DefKey | digest of the mounted part of its tree |
//! | file or repository that ADD fetches | its DefKey: its content or commit | digest of the selected entries |
//! | build context | digest of the selected entries | digest of the selected entries |
//! | build context that RUN mounts | digest of the mounted part | digest of the mounted part |
//! | what is in a cache, secret or agent | nothing | nothing |
//!
//! The selection has what each path gives: base names of files, nodes of directories, modes unless an octal `--chmod` gives
//! them. Paths themselves are in the definition key only: a source directory under another name hits by content.
//!
//! What `canonical(op)` writes is tabled in `rbuild_frontend::graph`. No clock, path, pid, host or uid enters.

use rbuild_cache::store::Key;
use rbuild_frontend::graph::{Op, OverContents};
use rbuild_oci::{Canonical, CanonicalWriter};

/// Digest of one input for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputDigest {
    /// Slot of the input.
    pub slot: u16,
    /// 32 bytes whose meaning the key's kind and the table above give.
    pub digest: [u8; 32],
}

/// Key known before anything runs.
pub fn def_key(op: &Op, inputs: &[InputDigest]) -> Key {
    Key::def(hash("def/5", op, inputs))
}

/// Key known once the inputs' trees are.
pub fn content_key(op: &Op, inputs: &[InputDigest]) -> Key {
    Key::content(hash("content/5", &OverContents(op), inputs))
}

/// Names the place of a step among builds, whatever it is fed: where the step's last layer may be found. `context`
/// identifies the directory that it reads.
pub fn recent_key(op: &Op, context: Option<[u8; 32]>) -> [u8; 32] {
    let slot = |digest| InputDigest { slot: 1, digest };
    hash("recent/1", op, context.map(slot).as_slice())
}

fn hash(domain: &str, op: &impl Canonical, inputs: &[InputDigest]) -> [u8; 32] {
    let mut out = CanonicalWriter::new(domain);
    out.value(op).u64(inputs.len() as u64);
    for input in inputs {
        out.u64(u64::from(input.slot)).bytes(&input.digest);
    }
    *blake3::hash(&out.finish()).as_bytes()
}

#[cfg(test)]
mod injectivity;

#[cfg(test)]
mod tests {
    use super::*;
    use rbuild_cache::layer::{Change, DiffEntry, LayerDiff, Mtime};
    use rbuild_cache::path::RelPath;
    use rbuild_cache::scratch::Scratch;
    use rbuild_cache::tree::{ContentDigest, FoundNames, MemoryNodeStore, Meta, Tree};
    use rbuild_frontend::graph::WorkdirOp;

    fn op(path: &str) -> Op {
        Op::Workdir(WorkdirOp { path: path.into(), user: String::new() })
    }

    #[test]
    fn key_bytes_are_pinned() {
        let input = InputDigest { slot: 0, digest: [7; 32] };
        let hex = |key: Key| hex::encode(key.digest);
        // A change here invalidates every store: bump the domain label on purpose, never by accident.
        insta::assert_snapshot!(hex(def_key(&op("/app"), &[input])));
        insta::assert_snapshot!(hex(content_key(&op("/app"), &[input])));
    }

    /// What a key is over moves with the rule by which large directories are in parts, and so must the labels.
    #[test]
    fn the_digest_of_a_large_directory_is_pinned() {
        let entries = (0..10_000).map(|at| {
            let content = ContentDigest::of(&[]);
            let change = Change::File { meta: Meta { mode: 0o644, ..Meta::default() }, size: 0, content };
            let path = RelPath::new(format!("file-{at:05}").as_bytes()).unwrap();
            DiffEntry { path, change, mtime: Mtime::default() }
        });
        let nodes = MemoryNodeStore::default();
        let scratch = Scratch::on(std::fs::File::open(std::env::temp_dir()).unwrap()).unwrap();
        let tree = Tree::empty().apply(&nodes, &entries.collect::<LayerDiff>(), &scratch).unwrap();
        insta::assert_snapshot!(format!("{} of {} nodes", tree.node, nodes.len()));
    }

    /// Likewise with the rule by which a list of links is in nodes: a tree's digest is over theirs.
    #[test]
    fn the_digest_of_many_links_is_pinned() {
        let nodes = MemoryNodeStore::default();
        let mut found =
            FoundNames::new(&Scratch::on(std::fs::File::open(std::env::temp_dir()).unwrap()).unwrap());
        for at in 0..20_000 {
            for dir in ["a", "b"] {
                let name = RelPath::new(format!("{dir}/file-{at:05}").as_bytes()).unwrap();
                found.add((1, at), &name).unwrap();
            }
        }
        let tree = Tree { links: found.links(&nodes).unwrap(), ..Tree::empty() };
        insta::assert_snapshot!(format!("{} of {} nodes", tree.digest(), nodes.len()));
    }

    #[test]
    fn op_slot_and_digest_each_change_the_key() {
        let base = InputDigest { slot: 0, digest: [7; 32] };
        let keys = [
            def_key(&op("/app"), &[base]),
            def_key(&op("/app2"), &[base]),
            def_key(&op("/app"), &[]),
            def_key(&op("/app"), &[InputDigest { slot: 1, ..base }]),
            def_key(&op("/app"), &[InputDigest { digest: [8; 32], ..base }]),
            content_key(&op("/app"), &[base]),
        ];
        for (at, key) in keys.iter().enumerate() {
            assert!(keys[at + 1..].iter().all(|other| other != key));
        }
    }
}
