//! Builds and collectors in processes of their own: racing, and killed. The others are this test binary again.

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::*;

const ROLE: &str = "RBUILD_GC_TEST_ROLE";
const ROOT: &str = "RBUILD_GC_TEST_ROOT";

/// Not a test of its own: what the other processes of the tests below do.
#[test]
fn other_process() {
    let (Ok(role), Ok(root)) = (std::env::var(ROLE), std::env::var(ROOT)) else { return };
    let root = Path::new(&root);
    match role.as_str() {
        "build" => (0..40).for_each(|round| build(root, round)),
        "collect" => (0..60).for_each(|_| collect_if_free(root)),
        "collect for ever" => loop {
            collect_if_free(root);
        },
        "build for ever" => loop {
            (0..1000).for_each(|round| build(root, round));
        },
        _ => panic!("unknown role {role}"),
    }
}

fn collect_if_free(root: &Path) {
    if let Some(collector) = Collector::open(root, options()).unwrap() {
        collector.run(&Policy::budget(30)).unwrap();
    }
}

/// A build of four steps: what is found is relied on, what is not is made; at its end everything must be there.
fn build(root: &Path, round: u32) {
    let store = open(root);
    let lease = store.lease().unwrap();
    let (mut stack, mut trees) = (Vec::new(), Vec::new());
    for step in 0..4_u32 {
        let key = key(u8::try_from(step * 8 + round % (step + 2)).unwrap());
        let found = store.result(&key).unwrap().filter(|found| {
            let below = found.stack.as_ref().unwrap();
            below[..below.len() - 1] == stack[..]
        });
        match found {
            Some(found) => {
                stack = found.stack.unwrap();
                trees.push(found.tree);
            }
            None => {
                stack.push(commit_layer(&store, &lease, "0123456789"));
                let tree = tree(&store, step * 8 + round % 5);
                store.put_result(&key, &record(&tree, &stack, 1)).unwrap();
                trees.push(tree);
            }
        }
    }
    let config = store.put_blob(&lease, format!("config {}", round % 7).as_bytes()).unwrap();
    let name = format!("app{}", round % 2);
    store.put_image(&name, &image(config, &stack)).unwrap();
    for layer in &stack {
        assert_eq!(std::fs::read(store.layer_path(*layer).join("file")).unwrap(), b"0123456789");
    }
    let fresh = open(root);
    trees.iter().for_each(|tree| drop(nodes_of(&fresh, tree)));
    assert!(fresh.blob(&config).unwrap().is_some());
}

fn start(role: &str, root: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "gc::tests::processes::other_process", "--nocapture", "--test-threads=1"]);
    command.env(ROLE, role).env(ROOT, root).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Every name is whole, every result that is found is whole, and nothing is left over once all is collected.
fn judge(root: &Path) {
    let store = open(root);
    for (name, image) in store.images().unwrap() {
        assert!(store.has_layers(&image.layers).unwrap(), "{name}");
        assert!(store.blob(&image.config).unwrap().is_some(), "{name}");
    }
    for n in 0..32 {
        if let Some(found) = store.result(&key(n)).unwrap() {
            nodes_of(&store, &found.tree);
        }
    }
    drop(store);
    collect(root, &Policy { all: true, ..Policy::default() });
    let usage = usage(&open(root)).unwrap();
    assert_eq!((usage.reclaimable_bytes(), usage.pending_bytes), (0, 0));
    for dir in ["work", "leases"] {
        assert_eq!(std::fs::read_dir(root.join(dir)).unwrap().count(), 0, "{dir}");
    }
}

#[test]
fn builds_and_collections_with_a_tiny_budget_race_without_a_loss() {
    let (_dir, root) = fresh();
    let roles = ["build", "collect", "build", "collect"];
    let children: Vec<_> = roles.iter().map(|role| start(role, &root)).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    judge(&root);
}

#[test]
fn killed_collections_leave_a_store_that_builds_and_collects() {
    let (_dir, root) = fresh();
    build(&root, 0);
    let mut random = 7_u64;
    let begun = Instant::now();
    for _ in 0..25 {
        let mut builder = start("build for ever", &root);
        let mut collector = start("collect for ever", &root);
        // Any moment will do: the generator only makes runs alike.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(Duration::from_millis(20 + (random >> 40) % 120));
        collector.kill().unwrap();
        collector.wait().unwrap();
        builder.kill().unwrap();
        builder.wait().unwrap();
        build(&root, u32::try_from(random % 11).unwrap());
        if begun.elapsed() > Duration::from_secs(60) {
            break;
        }
    }
    judge(&root);
}
