//! Steps on the host, end to end.

use rbuild_sandbox::{Exit, StepSpec, run_step};
use std::os::fd::AsFd as _;

fn main() {
    rbuild_sandbox::dispatch();
    if !rustix::process::geteuid().is_root() {
        println!("skipped: not root");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("bin")).unwrap();
    std::fs::copy("/bin/busybox", root.path().join("bin/busybox")).unwrap();
    let root = std::fs::File::open(root.path()).unwrap();
    let (cancel, _writer) = rustix::pipe::pipe().unwrap();
    let spec = StepSpec::new(["/bin/busybox", "sh", "-c", "exit 37"].map(String::from).to_vec());
    let exit = run_step(&spec, root.as_fd(), cancel.as_fd(), &mut |_, _| {}).unwrap();
    assert_eq!(exit, Exit::Code(37));
}
