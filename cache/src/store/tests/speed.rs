//! Prints what a process pays for the store; the bounds are many times the measured values, so that only a change
//! of kind (a sync, a scan, a statement per row prepared anew) fails them.

use std::time::{Duration, Instant};

use super::*;
use crate::layer::Mtime;
use crate::tree::NodeStore;

#[test]
fn opening_and_fifty_look_ups_cost_about_a_millisecond() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let layers: Vec<_> = (0..20).map(|n| commit_layer(&store, &lease, &n.to_string())).collect();
    for n in 0..50 {
        store.put_result(&Key::def([n; 32]), &record(Some(layers[0]), Some(layers.clone()))).unwrap();
    }
    store.sync().unwrap();
    let root = store.root().to_owned();
    drop((lease, store));
    let mut times = Vec::new();
    let mut opens = Vec::new();
    for _ in 0..20 {
        let begun = Instant::now();
        let store = open(&root);
        opens.push(begun.elapsed());
        assert!(store.result(&Key::def([0; 32])).unwrap().is_some());
        let first = begun.elapsed();
        for n in 1..50 {
            assert!(store.result(&Key::def([n; 32])).unwrap().is_some());
        }
        times.push((begun.elapsed(), first));
    }
    times.sort();
    opens.sort();
    let (all, first) = times[times.len() / 2];
    println!("open {:?}, with one look-up {first:?}, with 50 (each checking 21 layers) {all:?}", opens[10]);
    assert!(all < Duration::from_millis(100), "{all:?}");
}

#[test]
fn three_thousand_nodes_are_stored_in_one_transaction() {
    let (_dir, store) = fresh();
    let nodes: Vec<_> = (0..3000).map(node).collect();
    let begun = Instant::now();
    store.put_nodes(&nodes).unwrap();
    let put = begun.elapsed();
    let root = store.root().to_owned();
    drop(store);
    let wal = std::fs::metadata(root.join("trees.sqlite-wal")).unwrap().len();
    let other = open(&root);
    let begun = Instant::now();
    other.node(&nodes[0].digest()).unwrap();
    println!("first node with {wal} bytes of WAL to read: {:?}", begun.elapsed());
    let begun = Instant::now();
    for node in &nodes {
        other.node(&node.digest()).unwrap();
    }
    let cold = begun.elapsed();
    println!("3,000 nodes: stored in {put:?}, loaded one by one in {cold:?}");
    assert!(put < Duration::from_secs(5) && cold < Duration::from_secs(5));
}

#[test]
fn a_step_s_rows_are_written_without_waiting_for_the_disk() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let begun = Instant::now();
    for n in 0..100 {
        let id = commit_layer(&store, &lease, "x");
        store.put_result(&Key::content([n; 32]), &record(Some(id), None)).unwrap();
        store.put_result(&Key::def([n; 32]), &record(Some(id), Some(vec![id]))).unwrap();
    }
    let all = begun.elapsed();
    let begun = Instant::now();
    store.sync().unwrap();
    println!("commit of a step with both keys: {:?}; sync {:?}", all / 100, begun.elapsed());
    assert!(all < Duration::from_secs(10));
}

#[test]
fn a_stat_index_of_twenty_thousand_files_is_read_at_once() {
    let (_dir, store) = fresh();
    let lease = store.lease().unwrap();
    let mtime = Mtime { secs: 10, nanos: 1 };
    let stat = FileStat { size: 3, mtime, ctime: mtime, ino: 4, dev: 5, mode: 0o644, uid: 6, gid: 7 };
    let dir = |path: &str, files| {
        let mut listed = ListedDir::new(path.as_bytes(), stat, ScanMoment::now());
        listed.may_be_trusted = true;
        for n in 0..files {
            let (name, kind) = (format!("file-{n:03}.js"), KnownKind::File(&[1; 32]));
            let (is_linked, is_suspect) = (false, false);
            listed.push(&SeenEntry { name: name.as_bytes(), stat, is_linked, is_suspect, kind }).unwrap();
        }
        listed.done(false)
    };
    let mut dirs = vec![dir("", 0)];
    dirs.extend((0..100).map(|n| dir(&format!("module-{n}"), 200)));
    let seen = SeenContext::new(Arc::default(), [0; 32], dirs, SeenXattrs::default()).unwrap();
    let begun = Instant::now();
    store.put_stat_index(&lease, &[0; 32], &seen).unwrap();
    let saved = begun.elapsed();
    let begun = Instant::now();
    let index = store.stat_index(&[0; 32]).unwrap();
    let loaded = begun.elapsed();
    let mut records = Records::new(&index);
    let mut count = 0;
    for at in 0..index.len() {
        let mut record = records.of(&index.dir(at).unwrap()).unwrap();
        while let Some(known) = record.peek().unwrap() {
            count += usize::from(*known.stat == stat.to_bytes());
            record.skip();
        }
    }
    assert_eq!(count, 20_000);
    println!("20,000 files: saved {saved:?}, loaded {loaded:?}, with all records {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(2));
}
