//! Several processes on one store. The others are this test binary again, told by the environment which part to
//! play.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::super::fsck::SoundPacks;
use super::*;
use crate::layer::{LayerDiff, OverlayForm, ParentEntry, ParentView, ParentViewError, scan_upper};
use crate::path::RelPath;
use crate::tree::NodeStore;

const ROLE: &str = "RBUILD_STORE_TEST_ROLE";
const ROOT: &str = "RBUILD_STORE_TEST_ROOT";
const COMMITS: u32 = 40;

/// Not a test of its own: what the other process of the tests below does. Without a role there is nothing to do.
#[test]
fn other_process() {
    let (Ok(role), Ok(root)) = (std::env::var(ROLE), std::env::var(ROOT)) else { return };
    let root = Path::new(&root);
    match role.as_str() {
        "commit" => commit(root),
        "commit until killed" => {
            for round in 0.. {
                commit_round(root, round);
            }
        }
        "count" => count(root),
        "hold key" => {
            let store = open(root);
            let _lock = store.key_lock(&Key::def([1; 32]), "RUN make\nsecond line", |_| {}).unwrap();
            say_ready_and_wait();
        }
        "hold lease" => {
            let store = open(root);
            let lease = store.lease().unwrap();
            let draft = store.draft(&lease).unwrap();
            std::fs::write(draft.diff_path().join("half"), "x").unwrap();
            let mut writer = store.ingest(&lease).unwrap();
            writer.write_all(b"half").unwrap();
            writer.flush().unwrap();
            say_ready_and_wait();
        }
        "read-only" => {
            let error = Store::open(root, options()).unwrap_err();
            assert!(matches!(error, StoreError::ReadOnly { .. }), "{error:?}");
            let text = error.to_string();
            assert!(
                text.contains("is read-only; even commands that only look") && text.contains("--root"),
                "{text}"
            );
        }
        "full" => fill(root),
        _ => panic!("unknown role {role}"),
    }
}

fn command(role: &str, root: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "store::tests::processes::other_process", "--nocapture", "--test-threads=1"]);
    command.env(ROLE, role).env(ROOT, root);
    command
}

fn start(role: &str, root: &Path) -> Child {
    command(role, root).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

fn say_ready_and_wait() {
    println!("\nready");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

fn await_ready(child: &mut Child) {
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "ready"), "the other process got ready");
}

/// Stores things that every process stores, and finds all of them at once.
fn commit(root: &Path) {
    let store = open(root);
    let lease = store.lease().unwrap();
    for n in 0..COMMITS {
        let digest = commit_blob(&store, &lease, format!("blob {n}").as_bytes());
        assert!(store.blob(&digest).unwrap().is_some());
        let byte = u8::try_from(n).unwrap();
        let layer = commit_step(&store, &lease, &n.to_string(), transition(byte, 0));
        let key = Key::content([byte; 32]);
        store.put_result(&key, &record(Some(layer), None)).unwrap();
        assert_eq!(store.result(&key).unwrap().unwrap().own_layer, Some(layer));
        store.put_nodes(&[node(n)]).unwrap();
        if n % 10 == 0 {
            store.sync().unwrap();
        }
    }
}

#[test]
fn processes_that_create_a_store_and_commit_the_same_things_all_succeed() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let children: Vec<_> = (0..4).map(|_| start("commit", &root)).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    let store = open(&root);
    let usage = store.usage().unwrap();
    assert_eq!((usage.blobs, usage.results), (u64::from(COMMITS), u64::from(COMMITS)));
    for n in 0..COMMITS {
        let byte = u8::try_from(n).unwrap();
        let layer = store.layer_that_does(&transition(byte, 0)).unwrap();
        let result = store.result(&Key::content([byte; 32])).unwrap().unwrap();
        assert_eq!(result.own_layer, layer, "one layer won for all processes");
        store.node(&node(n).digest()).unwrap();
    }
    assert_eq!(std::fs::read_dir(root.join("work")).unwrap().count(), 0);
}

/// Commits one more of everything, and says so before each step: that is when it is killed.
fn commit_round(root: &Path, round: u32) {
    let step = || println!("\nstep");
    let store = open(root);
    step();
    let lease = store.lease().unwrap();
    let content = format!("{} {round}", std::process::id());
    step();
    let blob = commit_blob(&store, &lease, content.as_bytes());
    step();
    let layer = commit_layer(&store, &lease, &content);
    step();
    let digest = *blake3::hash(content.as_bytes()).as_bytes();
    store.put_result(&Key::def(digest), &record(Some(layer), Some(vec![layer]))).unwrap();
    step();
    let image = ImageRecord {
        config: blob,
        layers: vec![layer],
        diff_ids: vec![],
        manifest: None,
        index: None,
        others: Vec::new(),
        absent: None,
        platform: "linux/amd64".to_owned(),
        size_bytes: 1,
        created_unix_ns: 0,
    };
    store.put_image("app", &image).unwrap();
    println!("\ntagged {round}");
    drop(lease);
}

#[test]
fn a_process_killed_anywhere_loses_no_tag_and_leaves_nothing_behind() {
    let (_dir, store) = fresh();
    let mut acknowledged = 0;
    for kill in 0..25 {
        let mut child = start("commit until killed", store.root());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        // Coprime to the five steps of a round: every step is hit, in early and late rounds.
        let mut steps_left = 3 + kill * 2;
        let round = |line: &str| line.strip_prefix("tagged ").map(|round| round.parse::<u32>().unwrap());
        let mut tagged = None;
        for line in lines.by_ref() {
            tagged = round(&line).or(tagged);
            steps_left -= u32::from(line == "step");
            if steps_left == 0 {
                child.kill().unwrap();
                break;
            }
        }
        // What it still said before it died counts as well.
        let tagged = lines.filter_map(|line| round(&line)).last().or(tagged);
        child.wait().unwrap();
        let Some(tagged) = tagged else { continue };
        acknowledged += 1;
        let image = store.image("app").unwrap().unwrap();
        let content = String::from_utf8(store.blob_bytes(&image.config, 100).unwrap().unwrap()).unwrap();
        // The kill may have fallen between writing a later tag and saying so.
        let (pid, round) = content.split_once(' ').unwrap();
        assert_eq!(pid, child.id().to_string(), "kill {kill}");
        assert!(round.parse::<u32>().unwrap() >= tagged, "kill {kill}: {round} after {tagged}");
        assert!(store.has_layers(&image.layers).unwrap(), "kill {kill}");
        assert_eq!(store.layer_diff(image.layers[0]).unwrap(), LayerDiff::saying(&content), "kill {kill}");
    }
    assert!(acknowledged > 15, "{acknowledged}");
    drop(store.lease().unwrap());
    let count = |name: &str| std::fs::read_dir(store.root().join(name)).unwrap().count();
    assert_eq!((count("work"), count("leases")), (0, 0));
    let connection = rusqlite::Connection::open(store.root().join("index.sqlite")).unwrap();
    let verdict: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
}

/// Adds to a number in a file, which only the key lock protects.
fn count(root: &Path) {
    let store = open(root);
    let file = root.join("counter");
    for _ in 0..50 {
        let _lock = store.key_lock(&Key::def([2; 32]), "count", |_| {}).unwrap();
        let number: u32 = std::fs::read_to_string(&file).map_or(0, |text| text.parse().unwrap());
        std::fs::write(&file, (number + 1).to_string()).unwrap();
    }
}

#[test]
fn a_key_lock_excludes_other_processes_even_while_lock_files_are_swept() {
    let (_dir, store) = fresh();
    let mut children: Vec<_> = (0..3).map(|_| start("count", store.root())).collect();
    let mut swept = 0;
    while children.iter_mut().any(|child| child.try_wait().unwrap().is_none()) {
        swept += store.sweep_key_locks().unwrap();
        std::thread::yield_now();
    }
    for child in children {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    store.sweep_key_locks().unwrap();
    println!("swept {swept} times while counting");
    assert_eq!(std::fs::read_to_string(store.root().join("counter")).unwrap(), "150");
    assert!(!store.root().join("locks").join(Key::def([2; 32]).to_string()).exists());
}

#[test]
fn who_waits_for_a_key_learns_who_holds_it_and_gets_it_when_the_holder_dies() {
    let (_dir, store) = fresh();
    let key = Key::def([1; 32]);
    let mut child = start("hold key", store.root());
    await_ready(&mut child);
    assert!(store.try_key_lock(&key, "mine").unwrap().is_none());
    assert!(store.try_key_lock(&Key::content([1; 32]), "mine").unwrap().is_some());
    assert_eq!(store.sweep_key_locks().unwrap(), 1, "only the one nobody holds");
    let mut seen = None;
    let lock = store.key_lock(&key, "mine", |holder| {
        seen = Some(holder);
        child.kill().unwrap();
    });
    lock.unwrap();
    child.wait().unwrap();
    let holder = seen.unwrap();
    assert_eq!((holder.pid, holder.description.as_str()), (child.id(), "RUN make"));
    assert!(holder.held.is_some_and(|held| held < Duration::from_secs(600)), "{holder:?}");
}

#[test]
fn the_work_of_a_killed_process_is_removed_by_the_next_lease_and_not_before() {
    let (_dir, store) = fresh();
    let mut child = start("hold lease", store.root());
    await_ready(&mut child);
    let count = |name: &str| std::fs::read_dir(store.root().join(name)).unwrap().count();
    drop(store.lease().unwrap());
    assert_eq!((count("work"), count("leases")), (1, 1), "a living lease is left alone");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((count("work"), count("leases")), (1, 1));
    let lease = store.lease().unwrap();
    assert_eq!((count("work"), count("leases")), (1, 1));
    assert!(lease.work_dir().exists());
    drop(lease);
    assert_eq!((count("work"), count("leases")), (0, 0));
    let usage = store.usage().unwrap();
    assert_eq!((usage.layers, usage.blobs), (0, 0));
}

#[test]
fn a_work_directory_without_a_lease_is_garbage_and_strange_names_are_left_alone() {
    let (_dir, store) = fresh();
    let work = store.root().join("work");
    std::fs::create_dir_all(work.join("0123456789abcdef/1/layer/diff")).unwrap();
    std::fs::create_dir(work.join("strange")).unwrap();
    let _lease = store.lease().unwrap();
    assert!(!work.join("0123456789abcdef").exists());
    assert!(work.join("strange").exists());
}

/// Runs a role with a small tmpfs at the root, in its own mount namespace; false when this host does not allow it.
fn run_on_tmpfs(role: &str, root: &Path, prepare: &str) -> bool {
    let script =
        format!("mount -t tmpfs -o size=2m,mode=0700 none \"{ROOT_VARIABLE}\" && {prepare} exec \"$@\"");
    let inner = command(role, root);
    let mut outer = Command::new("unshare");
    outer.args(["--mount", "sh", "-c", &script, "sh"]).arg(inner.get_program()).args(inner.get_args());
    outer.env(ROLE, role).env(ROOT, root);
    let probe = Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "none"]).arg(root).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: cannot mount a tmpfs in a mount namespace here");
        return false;
    }
    let output = outer.output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    true
}

const ROOT_VARIABLE: &str = "$RBUILD_STORE_TEST_ROOT";

#[test]
fn a_read_only_file_system_is_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    run_on_tmpfs("read-only", dir.path(), &format!("mount -o remount,ro \"{ROOT_VARIABLE}\" &&"));
}

#[test]
fn a_full_disk_is_said_so_and_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    run_on_tmpfs("full", dir.path(), "");
}

/// A layer with more names in a directory than tests hold in memory.
fn wide_layer(store: &Store, lease: &Lease) -> LayerId {
    let draft = store.draft(lease).unwrap();
    for name in 0..100 {
        std::fs::write(draft.diff_path().join(format!("{name}{}", "x".repeat(100))), "").unwrap();
    }
    let (form, scratch) = (OverlayForm::User, store.scratch());
    let diff = scan_upper(draft.diff_fd().as_fd(), form, &Nothing, &scratch).unwrap();
    store.commit_layer(draft, &diff, 0).unwrap()
}

struct Nothing;

impl ParentView for Nothing {
    fn entry(&self, _: &RelPath) -> Result<Option<ParentEntry>, ParentViewError> {
        Ok(None)
    }
}

/// Every kind of write on a full file system of two megabytes gives `NoSpace`; afterwards all works again.
fn fill(root: &Path) {
    let store = open(root);
    let lease = store.lease().unwrap();
    let layer = commit_layer(&store, &lease, "before");
    let wide = wide_layer(&store, &lease);
    let verified = || store.check_layer(wide, OverlayForm::User, &mut SoundPacks::default());
    assert!(verified().unwrap().is_none());
    store.put_nodes(&[node(0)]).unwrap();
    store.sync().unwrap();
    let draft = store.draft(&lease).unwrap();
    let ballast = root.join("ballast");
    let mut file = File::create(&ballast).unwrap();
    for size in [64 * 1024, 4096, 1] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }

    let is_full = |error: &StoreError| matches!(error, StoreError::NoSpace { .. });
    let entries = vec![7; 100_000];
    let error = store.commit_layer(draft, &LayerDiff::saying(&"x".repeat(100_000)), 0).unwrap_err();
    assert!(is_full(&error), "{error:?}");
    assert!(error.to_string().contains("no space left"), "{error}");
    let mut writer = store.ingest(&lease).unwrap();
    let written = writer.write_all(&entries);
    let error = written.map_or_else(|_| None, |()| writer.commit(None).err());
    assert!(error.as_ref().is_none_or(is_full), "{error:?}");
    let mut big = record(Some(layer), None);
    big.description = "x".repeat(entries.len());
    let error = store.put_result(&Key::def([1; 32]), &big).unwrap_err();
    assert!(is_full(&error), "{error:?}");
    assert!(store.result(&Key::def([1; 32])).unwrap().is_none());
    assert!(store.layer(layer).unwrap().is_some());
    // To find nothing out is not to find it damaged.
    let error = verified().unwrap_err();
    assert!(is_full(&error), "{error:?}");

    drop(file);
    std::fs::remove_file(&ballast).unwrap();
    assert!(verified().unwrap().is_none());
    store.put_result(&Key::def([1; 32]), &big).unwrap();
    assert!(store.result(&Key::def([1; 32])).unwrap().is_some());
    let digest = commit_blob(&store, &lease, &entries);
    assert!(store.blob(&digest).unwrap().is_some());
    store.sync().unwrap();
}
