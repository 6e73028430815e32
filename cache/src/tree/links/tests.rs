use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::scratch::Scratch;
use crate::tree::testing::{groups, path};
use crate::tree::{Batch, EncodedNode, MemoryNodeStore, TreeError};

/// Names by file.
fn files() -> impl Strategy<Value = Vec<Vec<RelPath>>> {
    let file_of = prop::collection::btree_map("(a/|b/|c/){0,3}[a-c.]{1,2}x", 0..8_u8, 0..40);
    file_of.prop_map(|file_of| {
        let mut files: BTreeMap<u8, BTreeSet<RelPath>> = BTreeMap::new();
        for (path, file) in file_of {
            files.entry(file).or_default().insert(RelPath::clamp(path.as_bytes()));
        }
        files.into_values().map(|names| names.into_iter().collect()).collect()
    })
}

/// Sorted, without names alone.
fn grouped(files: impl IntoIterator<Item = Vec<RelPath>>) -> Vec<Vec<RelPath>> {
    let mut groups: Vec<_> = files.into_iter().filter(|names| names.len() > 1).collect();
    groups.sort();
    groups
}

fn of(nodes: &dyn NodeStore, links: impl Iterator<Item = Result<Link, TreeError>>) -> Vec<Vec<RelPath>> {
    let (mut made, mut last) = (Batch::new(nodes), None);
    let mut out = LinksWriter::new(&mut made);
    for link in links {
        let link = link.unwrap();
        assert!(last.as_ref() < Some(&link.name) && link.first < link.name, "{last:?} {link:?}");
        out.push(&link).unwrap();
        last = Some(link.name);
    }
    let links = out.finish().unwrap();
    made.put().unwrap();
    groups(nodes, &links)
}

proptest! {
    #[test]
    fn a_list_is_the_same_whatever_the_order_and_reads_again(files in files(), turn in any::<bool>()) {
        let nodes = MemoryNodeStore::default();
        let links = Links::new(files.clone(), &nodes).unwrap();
        let wanted = grouped(files.clone());
        prop_assert_eq!(groups(&nodes, &links), wanted.clone());
        prop_assert_eq!(links.is_empty(), wanted.is_empty());
        let mut given = wanted.clone();
        if turn {
            given.iter_mut().for_each(|group| group.reverse());
            given.reverse();
        }
        prop_assert_eq!(&links, &Links::new(given, &nodes).unwrap());
        let mut firsts = FirstNames::new(links.iter(&nodes));
        let all: BTreeSet<&RelPath> = files.iter().flatten().collect();
        for name in all {
            let group = wanted.iter().find(|group| group.contains(name));
            let first = group.map(|group| &group[0]).filter(|first| *first != name);
            prop_assert_eq!(firsts.first_of(name).unwrap(), first.cloned());
            let from: Vec<_> = links.iter_from(&nodes, name).unwrap().map(|link| link.unwrap().name).collect();
            let wanted = links.iter(&nodes).map(|link| link.unwrap().name).filter(|at| at >= name);
            prop_assert_eq!(from, wanted.collect::<Vec<_>>());
        }
        for digest in links.nodes() {
            let node = nodes.node(digest).unwrap();
            prop_assert_eq!(EncodedNode::of(&node).digest(), *digest);
            prop_assert!(node.below().next().is_none());
        }
    }

    #[test]
    fn names_that_are_gone_make_the_next_one_the_first(
        files in files(), gone in prop::collection::vec(any::<bool>(), 40), dir in "(a|b|a/b|c/c)?",
    ) {
        let nodes = MemoryNodeStore::default();
        let links = Links::new(files.clone(), &nodes).unwrap();
        let all: BTreeSet<RelPath> = files.iter().flatten().cloned().collect();
        let gone: BTreeSet<RelPath> = all.into_iter().zip(gone).filter(|(_, gone)| *gone).map(|(at, _)| at).collect();
        let left = links.left(&nodes, &RelPath::root(), &Scratch::for_test(), |link| {
            Ok(Gone { name: gone.contains(&link.name), first: gone.contains(&link.first) })
        });
        let left = left.unwrap();
        let stay = |names: &Vec<RelPath>| names.iter().filter(|at| !gone.contains(*at)).cloned().collect();
        let wanted = grouped(files.iter().map(stay));
        prop_assert_eq!(left.has_lost(), grouped(files.clone()) != wanted);
        prop_assert_eq!(of(&nodes, left), wanted);
        // As seen from a directory, whole and without what is gone.
        let dir = RelPath::clamp(dir.as_bytes());
        let mut below = LinksBelow::new(links, dir.clone());
        let inside = |keep: &dyn Fn(&RelPath) -> bool| {
            let names = |names: &Vec<RelPath>| {
                names.iter().filter(|at| keep(at)).filter_map(|at| super::super::strip(at, &dir)).collect()
            };
            grouped(files.iter().map(names))
        };
        prop_assert_eq!(of(&nodes, below.iter(&nodes, &Scratch::for_test()).unwrap()), inside(&|_| true));
        let is_gone = |at: &RelPath| gone.contains(&super::super::below(&dir, at));
        below.remove(&nodes, &nodes, &Scratch::for_test(), is_gone, is_gone).unwrap();
        let wanted = inside(&|at| !gone.contains(at));
        prop_assert_eq!(of(&nodes, below.iter(&nodes, &Scratch::for_test()).unwrap()), wanted);
    }

    #[test]
    fn hostile_bytes_are_refused_or_the_one_encoding(
        files in files(), at in 0_usize..200, byte: u8, cut in 0_usize..60,
    ) {
        let nodes = MemoryNodeStore::default();
        let links = Links::new(files, &nodes).unwrap();
        let Some(digest) = links.nodes().first() else { return Ok(()) };
        let mut bytes = nodes.node(digest).unwrap().encode();
        bytes.truncate(bytes.len().saturating_sub(cut));
        if let Some(old) = bytes.get_mut(at) {
            *old = byte;
        }
        if let Ok(node) = DirNode::decode(&bytes) {
            prop_assert_eq!(node.encode(), bytes);
        }
    }
}

#[test]
fn a_node_has_one_form() {
    let node = |pairs: &[(&str, &str)]| {
        let mut bytes = b"RBL\x01".to_vec();
        let mut last = ("", "");
        for (name, first) in pairs {
            node::put_pair(
                &mut bytes,
                (last.0.as_bytes(), last.1.as_bytes()),
                (name.as_bytes(), first.as_bytes()),
            );
            last = (name, first);
        }
        LinkNode::decode(&bytes).map(|node| node.bytes().to_vec() == bytes)
    };
    assert_eq!(node(&[("b", "a"), ("b/c", "a"), ("c", "b/b")]), Ok(true));
    let bad: [&[(&str, &str)]; 7] = [
        &[],
        &[("a", "a")],
        &[("a", "b")],
        &[("", "")],
        &[("b", "")],
        &[("c", "a"), ("b", "a")],
        &[("b/", "a")],
    ];
    for pairs in bad {
        assert!(node(pairs).is_err(), "{pairs:?}");
    }
    assert!(LinkNode::decode(b"RBL\x01\x00\x01b\x00\x01a").is_ok());
    for longer in [
        // A number of two bytes for one, and a path that does not share what it could.
        b"RBL\x01\x80\x00\x01b\x00\x01a".as_slice(),
        b"RBL\x01\x00\x01b\x00\x01a\x00\x02bb\x01\x00",
    ] {
        assert!(LinkNode::decode(longer).is_err());
    }
}

#[test]
fn nodes_out_of_order_or_of_another_kind_are_damage() {
    let nodes = MemoryNodeStore::default();
    let names =
        |at: u8| vec![path(&format!("a/{at:02}-long-enough")), path(&format!("b/{at:02}-long-enough"))];
    let links = Links::new((0..40).map(names), &nodes).unwrap();
    let list = links.nodes().to_vec();
    assert!(list.len() > 3);
    let mut turned = list.clone();
    turned.reverse();
    let directory = EncodedNode::of(&DirNode::default());
    nodes.put_nodes(std::slice::from_ref(&directory)).unwrap();
    for wrong in [turned, vec![list[0], directory.digest()]] {
        let mut names = Links::of_nodes(wrong).iter(&nodes);
        let failed = names.by_ref().find(Result::is_err);
        assert!(matches!(failed, Some(Err(NodeStoreError::Damaged(_)))));
        assert!(names.next().is_none());
    }
}
