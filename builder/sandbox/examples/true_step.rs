//! Measures what a step costs: runs `/bin/true` of a root directory, given as argument, a number of times.
//!
//! Usage: `true_step ROOT [COUNT [ARG…]]`; ROOT holds a static `/bin/busybox`, ARG… replace `true`. An ordinary user runs them
//! on rung `rootless`; `true_step --enter PROGRAM [ARG…]` runs a program where steps are run from, without one. With the variable
//! `NETWORK=host` the steps share the host's network, with `NETWORK=user` they have one of their own that reaches the outside;
//! with `LOWERS=N` there are so many empty layers above ROOT; with `PLAIN=0` nothing is run without a step; with
//! `KEEP` what the steps wrote stays in `ROOT.scratch`. `tests/bench/steps` compares the result with other ways to run a command.

use rbuild_sandbox::{LayerDir, Network, StepSpec, Stream, UserNetwork, mount_overlay, run_step_to_exit};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Prints the spread; the fastest is what the work costs, the rest is what else the machine does.
fn summary(what: &str, times: &mut [std::time::Duration]) {
    times.sort();
    let at = |part: usize| times[(times.len() - 1) * part / 100];
    eprintln!("{what}, {} times: fastest {:?}, median {:?}, p90 {:?}", times.len(), at(0), at(50), at(90));
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    rbuild_sandbox::dispatch();
    rbuild_sandbox::bootstrap()?;
    let mut args = std::env::args().skip(1);
    let root = args.next().ok_or("usage: true_step ROOT [COUNT [ARG…]]")?;
    if root == "--enter" {
        let program = args.next().ok_or("usage: true_step --enter PROGRAM [ARG…]")?;
        return Err(std::process::Command::new(program).args(args).exec().into());
    }
    let count: u32 = args.next().map_or(Ok(100), |count| count.parse())?;
    let rest: Vec<String> = args.collect();
    let words = if rest.is_empty() { vec!["true".to_owned()] } else { rest };
    let mut argv = vec!["/bin/busybox".to_owned()];
    argv.extend(words);
    let network = match std::env::var("NETWORK").as_deref() {
        Ok("host") => Network::Host,
        Ok("user") => {
            let started = Instant::now();
            let network = UserNetwork::start(false)?;
            eprintln!("network through {}: {:?}", network.stack_name(), started.elapsed());
            Network::User(Arc::new(network))
        }
        _ => Network::None,
    };
    let scratch = Path::new(&root).with_extension("scratch");
    let more: usize = std::env::var("LOWERS").map_or(Ok(0), |count| count.parse())?;
    let mut lowers = vec![PathBuf::from(&root)];
    for n in 0..more {
        let layer = scratch.join(format!("layer-{n}"));
        std::fs::create_dir_all(&layer)?;
        lowers.push(layer);
    }
    let lowers: Vec<LayerDir<'_>> = lowers.iter().map(LayerDir::from).collect();
    let (cancel, _never) = rustix::pipe::pipe()?;
    let mut times = Vec::new();
    for n in 0..count {
        let upper = scratch.join(format!("{n}-upper"));
        let work = scratch.join(format!("{n}-work"));
        std::fs::create_dir_all(&upper)?;
        std::fs::create_dir_all(&work)?;
        let mut spec = StepSpec::new(argv.clone());
        spec.network = network.clone();
        let started = Instant::now();
        let merged = mount_overlay(
            &lowers,
            Some((LayerDir::from(&upper), LayerDir::from(&work))),
            rbuild_sandbox::in_user_namespace(),
        )?;
        let rbuild_sandbox::Ended { exit, teardown, .. } =
            run_step_to_exit(&spec, merged.as_fd(), cancel.as_fd(), &mut |stream, bytes| {
                let _closed = match stream {
                    Stream::Stdout => std::io::stdout().write_all(bytes),
                    Stream::Stderr => std::io::stderr().write_all(bytes),
                };
            })?;
        drop(merged);
        teardown.wait();
        times.push(started.elapsed());
        if n == 0 {
            eprintln!("first: {exit:?} {:?}", times[0]);
        }
    }
    summary("step", &mut times);
    if std::env::var_os("KEEP").is_none() {
        std::fs::remove_dir_all(&scratch)?;
    }
    if std::env::var_os("PLAIN").is_some_and(|value| value == "0") {
        return Ok(());
    }
    let mut plain = Vec::new();
    for _ in 0..count {
        let started = Instant::now();
        std::process::Command::new(Path::new(&root).join("bin/busybox")).args(&argv[1..]).output()?;
        plain.push(started.elapsed());
    }
    summary("plain spawn", &mut plain);
    Ok(())
}
