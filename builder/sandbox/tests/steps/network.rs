//! The network that steps share with each other and not with the host.

use super::setup::{Host, Ran, require_or_skip, shell};
use crate::Case;
use rbuild_sandbox::{Exit, Network, StepSpec, UserNetwork};
use std::fs;
use std::net::TcpListener;
use std::os::fd::AsFd as _;
use std::sync::Arc;

pub(crate) const CASES: &[Case] = &[
    ("a_network_of_their_own_has_a_way_out_but_none_to_the_host", way_out_but_none_to_the_host),
    ("steps_cannot_change_their_network", steps_cannot_change_their_network),
    ("the_network_ends_with_its_owner", the_network_ends_with_its_owner),
    ("a_killed_stack_cuts_the_network_off", a_killed_stack_cuts_the_network_off),
];

/// A working network, or a reason why this host has none.
fn network() -> Option<Arc<UserNetwork>> {
    match UserNetwork::start(false) {
        Ok(network) => Some(Arc::new(network)),
        Err(error) => {
            require_or_skip("network", &format!("{error}; {}", error.remedy()));
            None
        }
    }
}

fn on(network: &Network, script: &str) -> StepSpec {
    StepSpec { network: network.clone(), ..shell(script) }
}

fn run(host: &Host, network: &Network, script: &str) -> Ran {
    host.run(&on(network, script)).unwrap()
}

fn way_out_but_none_to_the_host(host: &Host) {
    let Some(network) = network() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // Hangs up at once, for as long as the process lives.
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let connect = format!("nc -w 2 127.0.0.1 {port} </dev/null");
    // The listener is there: a step on the host's network reaches it.
    assert_eq!(run(host, &Network::Host, &connect).exit, Exit::Code(0));
    let network = Network::User(network);
    assert_ne!(run(host, &network, &connect).exit, Exit::Code(0), "the host's loopback is open");
    let routes = run(host, &network, "ip route show default").stdout;
    let gateway = routes.split_whitespace().nth(2).unwrap_or_default().to_owned();
    assert!(routes.starts_with("default via "), "{routes:?}");
    let through_gateway = format!("nc -w 2 {gateway} {port} </dev/null");
    assert_ne!(
        run(host, &network, &through_gateway).exit,
        Exit::Code(0),
        "the gateway is the host's loopback"
    );
    let metadata = run(host, &network, "nc -w 5 169.254.169.254 80 </dev/null");
    assert_ne!(metadata.exit, Exit::Code(0));
    assert!(metadata.stderr.contains("No route to host"), "{metadata:?}");
    // Traffic leaves through the host's network: that is where the stack is.
    let here = fs::read_link("/proc/self/ns/net").unwrap();
    let stacks: Vec<_> = helpers().into_iter().filter(|(_, is_stack)| *is_stack).collect();
    assert_eq!(stacks.len(), 1, "{stacks:?}");
    assert_eq!(fs::read_link(format!("/proc/{}/ns/net", stacks[0].0)).unwrap(), here);
}

fn steps_cannot_change_their_network(host: &Host) {
    let Some(network) = network() else { return };
    let network = Network::User(network);
    for change in [
        "ip route del unreachable 169.254.0.0/16",
        "ip route add 10.9.9.0/24 dev lo",
        "ip addr add 10.9.9.9/32 dev lo",
        "ip link set lo down",
    ] {
        let ran = run(host, &network, change);
        assert_ne!(ran.exit, Exit::Code(0), "{change}: {ran:?}");
        assert!(ran.stderr.contains("not permitted"), "{change}: {ran:?}");
    }
}

fn the_network_ends_with_its_owner(_host: &Host) {
    let Some(network) = network() else { return };
    let children = helpers();
    assert!(!children.is_empty(), "no helper is running");
    drop(network);
    wait_until_gone(&children);
}

/// G5: a helper. The step fails by what it cannot reach, and does not wait for it.
fn a_killed_stack_cuts_the_network_off(host: &Host) {
    let Some(network) = network() else { return };
    let children = helpers();
    let (stack, _) = children.iter().find(|(_, is_stack)| *is_stack).unwrap();
    let stack = rustix::process::Pid::from_raw(stack.parse().unwrap()).unwrap();
    let network = Network::User(network);
    // Reads what comes once the stack is dead: nothing, and the route out is gone with it.
    let script = "echo ready; while ip route show default | grep -q default; do :; done; \
                  nc -w 5 192.0.2.1 9 </dev/null || exit 9";
    let merged = host.merged();
    let (cancel, _never) = rustix::pipe::pipe().unwrap();
    let spec = on(&network, script);
    let exit = rbuild_sandbox::run_step(&spec, merged.fd.as_fd(), cancel.as_fd(), &mut |_, _| {
        // Again for each piece of output; gone already is as good.
        let _gone = rustix::process::kill_process(stack, rustix::process::Signal::KILL);
    });
    assert_eq!(exit.unwrap(), Exit::Code(9));
    // Whoever started it has noticed, and is gone too.
    wait_until_gone(&children);
    assert_eq!(run(host, &network, "echo next").stdout, "next\n", "a step that needs no network runs");
}

fn wait_until_gone(children: &[(String, bool)]) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while helpers().iter().any(|helper| children.contains(helper)) {
        assert!(std::time::Instant::now() < deadline, "a helper outlives its network");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// Descendants of this process that hold a network, or (true) carry its traffic.
fn helpers() -> Vec<(String, bool)> {
    let mut found = Vec::new();
    let mut parents = vec![std::process::id().to_string()];
    while let Some(parent) = parents.pop() {
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let pid = entry.file_name().to_string_lossy().into_owned();
            let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
            // pid (name) state ppid …
            let Some((head, tail)) = stat.rsplit_once(") ") else { continue };
            let mut fields = tail.split(' ');
            let (state, is_child) = (fields.next(), fields.next() == Some(&parent));
            if !is_child || state == Some("Z") {
                continue;
            }
            let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            let is_stack = ["(pasta", "(slirp4netns", "(passt"].iter().any(|name| head.contains(name));
            if is_stack || command.starts_with("rbuild-sandbox-network") {
                found.push((pid.clone(), is_stack));
            }
            parents.push(pid);
        }
    }
    found
}
