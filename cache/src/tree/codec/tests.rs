use proptest::prelude::*;

use super::*;
use crate::tree::testing::{dir, file, link, meta, path, tree_linked};
use crate::tree::{EMPTY_NODE, MemoryNodeStore, NodeStore};

fn sample() -> DirNode {
    let mut with_xattr = meta(0o4755);
    with_xattr.xattrs.insert(b"user.k".to_vec(), b"v".to_vec());
    let entry = |meta, kind| Entry { meta, kind };
    let owned = Meta { mode: 0o640, uid: 1000, gid: 70_000, ..Meta::default() };
    let content = ContentDigest([7; 32]);
    DirNode::from(DirEntries::from_iter([
        (b"b".to_vec(), entry(meta(0o600), Kind::BlockDevice { major: 8, minor: 1 })),
        (b"c".to_vec(), entry(meta(0o620), Kind::CharDevice { major: 1, minor: 3 })),
        (b"d".to_vec(), entry(meta(0o1777), Kind::Dir(NodeDigest([9; 32])))),
        (b"f".to_vec(), entry(owned, Kind::File { size: 5, content })),
        (b"l".to_vec(), entry(meta(0o777), Kind::Symlink(b"../x".to_vec()))),
        (b"p".to_vec(), entry(meta(0o644), Kind::Fifo)),
        (b"\xffx".to_vec(), entry(with_xattr, Kind::File { size: 0, content })),
    ]))
}

fn in_parts(names: &[&[u8]]) -> DirNode {
    let part = |first: &&[u8]| Part { first: (*first).into(), node: NodeDigest([7; 32]) };
    DirNode::Parts(names.iter().map(part).collect())
}

/// Changing any of these is a new format version: every stored digest and key changes with them.
#[test]
fn golden_bytes_do_not_move() {
    let one = DirNode::from(DirEntries::from_iter([(
        b"f".to_vec(),
        Entry {
            meta: Meta { mode: 0o644, uid: 1, gid: 2, ..Meta::default() },
            kind: Kind::File { size: 3, content: ContentDigest([0xcc; 32]) },
        },
    )]));
    let expected = [
        "52424401",
        "01000000",
        "01000000",
        "66",
        "02",
        "a4010000",
        "01000000",
        "02000000",
        "00000000",
        "0300000000000000",
    ]
    .concat()
        + &"cc".repeat(32);
    assert_eq!(hex::encode(one.encode()), expected);
    assert_eq!(hex::encode(DirNode::default().encode()), "5242440100000000");
    let tree = Tree {
        root: meta(0o755),
        node: NodeDigest([0xdd; 32]),
        links: Links::of_nodes(vec![NodeDigest([0xaa; 32]), NodeDigest([0xbb; 32])]),
    };
    let part = |first: &[u8]| Part { first: first.into(), node: NodeDigest([0xee; 32]) };
    let parts = DirNode::Parts([part(b"a"), part(b"bc")].into());
    let expected = ["52425001", "02000000", "01000000", "61"].concat()
        + &"ee".repeat(32)
        + "020000006263"
        + &"ee".repeat(32);
    assert_eq!(hex::encode(parts.encode()), expected);
    let root = ["ed010000", "00000000", "00000000", "00000000"].concat() + &"dd".repeat(32);
    let expected = format!("52425402{root}02000000{}{}", "aa".repeat(32), "bb".repeat(32));
    assert_eq!(hex::encode(tree.encode()), expected);
    let unlinked = Tree { links: Links::default(), ..tree };
    assert_eq!(hex::encode(unlinked.encode()), format!("52425401{root}00000000"));
    let nodes = MemoryNodeStore::default();
    let links = Links::new([vec![path("a"), path("b/c"), path("b/d")]], &nodes).unwrap();
    let [node] = links.nodes() else { panic!("they are few") };
    let pairs = ["0003", "622f63", "0001", "61", "0201", "64", "0100"].concat();
    assert_eq!(hex::encode(nodes.node(node).unwrap().encode()), format!("52424c01{pairs}"));
}

#[test]
fn golden_digests_do_not_move() {
    assert_eq!(EMPTY_NODE.to_string(), "4482489f34622d5aab7333fcaf25ef0b9d60ca2abdd122ad28b6ee0bff1b6497");
    assert_eq!(
        sample().digest().to_string(),
        "f0d72be8fd44955f1f7a03233a79a0ac367f6d454d83bd600b07472f4b6dc263"
    );
    assert_eq!(
        Tree::empty().digest().to_string(),
        "ba1add9025f02a985b6efc82484acb9c5fb9f7544e55e553a3630e137cc9b7bb"
    );
}

#[test]
fn every_kind_survives_a_round_trip() {
    assert_eq!(DirNode::decode(&sample().encode()).unwrap(), sample());
    assert_eq!(
        DirNode::decode(&in_parts(&[b"a", b"b", b"\xff"]).encode()).unwrap(),
        in_parts(&[b"a", b"b", b"\xff"])
    );
    let nodes = MemoryNodeStore::default();
    let tree =
        tree_linked(&nodes, &[("a", file("A")), ("d", dir(0o700)), ("d/s", link("x"))], &[("d/b", "a")]);
    assert_eq!(Tree::decode(&tree.encode()).unwrap(), tree);
    assert!(nodes.node(&tree.node).is_ok());
}

#[test]
fn every_cut_is_refused() {
    for bytes in [sample().encode(), in_parts(&[b"a", b"b"]).encode()] {
        for len in 0..bytes.len() {
            assert!(DirNode::decode(&bytes[..len]).is_err(), "{len}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(DirNode::decode(&longer), Err(CodecError::Trailing(1)));
    }
}

#[test]
fn what_no_tree_may_hold_is_refused() {
    let node = |name: &[u8], entry: Entry| DirNode::from(DirEntries::from_iter([(name.to_vec(), entry)]));
    let fifo = Entry { meta: meta(0o644), kind: Kind::Fifo };
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
        assert!(matches!(DirNode::decode(&node(name, fifo.clone()).encode()), Err(CodecError::Name(_))));
    }
    let mode = Entry { meta: meta(0o10_644), kind: Kind::Fifo };
    assert_eq!(DirNode::decode(&node(b"a", mode).encode()), Err(CodecError::Mode(0o10_644)));
    for target in [Vec::new(), b"a\0".to_vec(), vec![b'x'; 4096]] {
        let link = Entry { meta: meta(0o777), kind: Kind::Symlink(target) };
        assert!(matches!(DirNode::decode(&node(b"a", link).encode()), Err(CodecError::Target(_))));
    }
}

#[test]
fn parts_are_two_at_least_and_in_order() {
    for (names, wanted) in [(&[][..], 0), (&[&b"a"[..]][..], 1)] {
        assert_eq!(DirNode::decode(&in_parts(names).encode()), Err(CodecError::Parts(wanted)));
    }
    for names in [&[&b"b"[..], b"a"], &[b"a", b"a"], &[b"", b"a"], &[b".", b"a"]] {
        assert!(matches!(DirNode::decode(&in_parts(names).encode()), Err(CodecError::Name(_))), "{names:?}");
    }
}

#[test]
fn a_huge_count_costs_nothing() {
    for magic in [DIR_MAGIC, PARTS_MAGIC] {
        let mut bytes = magic.to_vec();
        bytes.extend_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(DirNode::decode(&bytes), Err(CodecError::Truncated));
    }
}

#[test]
fn unsorted_names_and_groups_are_refused() {
    let mut bytes = sample().encode();
    let at = bytes.iter().position(|b| *b == b'b').unwrap();
    bytes[at] = b'z';
    assert!(matches!(DirNode::decode(&bytes), Err(CodecError::Name(_))));
}

#[test]
fn a_tree_says_in_one_way_whether_it_has_links() {
    let unlinked = Tree::empty().encode();
    let linked = Tree { links: Links::of_nodes(vec![NodeDigest([1; 32])]), ..Tree::empty() }.encode();
    let with_magic = |bytes: &[u8], magic: &[u8]| [magic, &bytes[magic.len()..]].concat();
    assert_eq!(Tree::decode(&with_magic(&unlinked, LINKED_TREE_MAGIC)), Err(CodecError::Links));
    assert_eq!(Tree::decode(&with_magic(&linked, TREE_MAGIC)), Err(CodecError::Links));
    assert_eq!(Tree::decode(&linked[..linked.len() - 1]), Err(CodecError::Truncated));
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic_and_decode_to_one_encoding(
        cut in 0_usize..400, at in 0_usize..400, byte: u8, tail in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut bytes = sample().encode();
        bytes.truncate(bytes.len().saturating_sub(cut));
        if let Some(old) = bytes.get_mut(at) {
            *old = byte;
        }
        bytes.extend(tail);
        if let Ok(node) = DirNode::decode(&bytes) {
            prop_assert_eq!(node.encode(), bytes.clone());
        }
        for magic in [TREE_MAGIC, LINKED_TREE_MAGIC] {
            bytes.iter_mut().zip(magic).for_each(|(b, m)| *b = *m);
            if let Ok(tree) = Tree::decode(&bytes) {
                prop_assert_eq!(tree.encode(), bytes.clone());
            }
        }
    }
}
