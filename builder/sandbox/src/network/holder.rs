//! The process that owns the namespace: makes it, starts the stack in it, and ends both with the builder.

use super::stack::UserStack;
use crate::channel;
use crate::sys::{self, Fork};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::process::{DumpableBehavior, Pid, PidfdFlags, Signal, WaitOptions};
use rustix::thread::UnshareFlags;
use std::ffi::CString;
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

/// How long the stack may take to configure the namespace. It can hang where it may not open its device.
pub(super) const READY_SECONDS_MAX: i64 = 5;
/// Between two looks at the routes: there is no event for «configured» that both programs give.
const LOOK_INTERVAL_NS: i64 = 2_000_000;
/// Of what the stack says when it fails.
const COMPLAINT_SIZE_BYTES_MAX: u64 = 1 << 10;
/// The stack's descriptor of the namespace: above any the holder has.
const NAMESPACE_FD: i32 = 100;
/// Owner of the user namespace when the builder is the host's root; no process of a build has this uid by default.
const NOBODY: u32 = 65_534;

/// Why there is no network, in words for the user.
struct Failure(String);

fn failed<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> Failure {
    move |error| Failure(format!("{what}: {error}"))
}

/// The body of the holder; the control socket is standard input.
pub(crate) fn holder_main() -> i32 {
    let Ok(control) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) else { return 1 };
    match hold(control.as_fd()) {
        Ok(()) => 0,
        Err(Failure(why)) => {
            // A builder that is gone needs no reason.
            let _gone = channel::send_all(control.as_fd(), why.as_bytes());
            1
        }
    }
}

fn hold(control: BorrowedFd<'_>) -> Result<(), Failure> {
    let mut args = std::env::args_os().skip(1);
    let builder = args.next().and_then(|pid| pid.to_str()?.parse().ok()).unwrap_or(0);
    let (stack, loopback_dns) =
        UserStack::from_args(&mut args).ok_or_else(|| Failure("malformed command line".to_owned()))?;
    become_owner(&stack)?;
    // After the last change of identity, which clears it.
    die_with_parent(builder).map_err(failed("ask to die with the builder"))?;
    // Before the network is left that the traffic goes out through.
    let helper = Helper::start(&stack, loopback_dns)?;
    sys::unshare(UnshareFlags::NEWNET).map_err(failed("create a network namespace"))?;
    let namespace = rustix::fs::open("/proc/self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed("open the network namespace"))?;
    close_link_local().map_err(failed("configure the network namespace"))?;
    helper.serve(namespace.as_fd())?;
    helper.wait_until_ready(control)?;
    channel::send_with_fds(control, b"ready", &[namespace.as_fd()]).map_err(failed("answer the builder"))?;
    drop(namespace);
    // Until the builder closes its end, or the stack is gone.
    let mut events =
        [PollFd::from_borrowed_fd(control, PollFlags::IN), PollFd::new(&helper.pidfd, PollFlags::IN)];
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut events, None)).map_err(failed("wait"))?;
    Ok(())
}

/// Becomes somebody whose network namespaces no step has rights over.
fn become_owner(stack: &UserStack) -> Result<(), Failure> {
    if crate::in_user_namespace() || stack.runs_as_root() {
        // The user namespace that steps are in, without CAP_NET_ADMIN.
        return Ok(());
    }
    let (gid, uid) = (Gid::from_raw(NOBODY), Uid::from_raw(NOBODY));
    rustix::thread::set_thread_groups(&[]).map_err(failed("drop groups"))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed("become nobody"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed("become nobody"))?;
    // A change of identity makes /proc/self root's; the maps are written through it.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable).map_err(failed("become nobody"))?;
    // The stack would wait for ever for a device it may not open.
    let tun = rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    tun.map_err(failed("open /dev/net/tun as nobody"))?;
    sys::unshare(UnshareFlags::NEWUSER).map_err(failed("create a user namespace"))?;
    for (path, content) in [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("0 {NOBODY} 1")),
        ("/proc/self/gid_map", format!("0 {NOBODY} 1")),
    ] {
        std::fs::write(path, content).map_err(failed("map ids"))?;
    }
    Ok(())
}

fn die_with_parent(builder: i32) -> Result<(), Errno> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    if parent == builder { Ok(()) } else { Err(Errno::SRCH) }
}

/// Loopback up; 169.254.0.0/16 unreachable, whatever the stack would do with it.
fn close_link_local() -> Result<(), Errno> {
    let any = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    sys::loopback_up(any.as_fd())?;
    sys::reject_route(any.as_fd(), [169, 254, 0, 0], [255, 255, 0, 0])
}

/// The stack's process; killed and reaped when dropped.
struct Helper {
    pid: Pid,
    pidfd: OwnedFd,
    /// Where it waits for the namespace it is to serve.
    orders: OwnedFd,
    complaints: OwnedFd,
}

impl Helper {
    /// Forks the process, which stays in the present network namespace and waits for [`serve`](Helper::serve).
    fn start(stack: &UserStack, loopback_dns: bool) -> Result<Helper, Failure> {
        let start = failed("start");
        let c_string = |text: &[u8]| CString::new(text).map_err(|_| Failure("NUL in its path".to_owned()));
        let program = c_string(stack.path().as_os_str().as_bytes())?;
        let argv = stack.argv(NAMESPACE_FD, loopback_dns);
        let argv: Vec<CString> = argv.iter().map(|arg| c_string(arg.as_bytes())).collect::<Result<_, _>>()?;
        let (complaints, their_complaints) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(&start)?;
        let (orders, their_orders) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(&start)?;
        let holder = rustix::process::getpid().as_raw_nonzero().get();
        match sys::fork().map_err(&start)? {
            Fork::Child => {
                drop(orders);
                let errno = become_stack(&program, &argv, their_orders, &their_complaints, holder);
                let _unheard = rustix::io::write(&their_complaints, format!("execute: {errno}").as_bytes());
                std::process::exit(1)
            }
            Fork::Parent(pid) => {
                let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(start)?;
                Ok(Helper { pid, pidfd, orders, complaints })
            }
        }
    }

    /// Gives it the namespace.
    fn serve(&self, namespace: BorrowedFd<'_>) -> Result<(), Failure> {
        channel::send_with_fds(self.orders.as_fd(), b"n", &[namespace]).map_err(failed("start"))
    }

    /// Waits for the first default route.
    fn wait_until_ready(&self, control: BorrowedFd<'_>) -> Result<(), Failure> {
        let looks_max = READY_SECONDS_MAX * 1_000_000_000 / LOOK_INTERVAL_NS;
        let interval = Timespec { tv_sec: 0, tv_nsec: LOOK_INTERVAL_NS };
        for _ in 0..looks_max {
            let routes =
                std::fs::read_to_string("/proc/self/net/route").map_err(failed("read the routes"))?;
            if has_default_route(&routes) {
                return Ok(());
            }
            let mut events =
                [PollFd::from_borrowed_fd(control, PollFlags::IN), PollFd::new(&self.pidfd, PollFlags::IN)];
            rustix::io::retry_on_intr(|| rustix::event::poll(&mut events, Some(&interval)))
                .map_err(failed("wait"))?;
            if !events[0].revents().is_empty() {
                return Err(Failure("the builder is gone".to_owned()));
            }
            if !events[1].revents().is_empty() {
                return Err(self.complaint());
            }
        }
        Err(Failure(format!("no route to the outside after {READY_SECONDS_MAX} s")))
    }

    /// What it said, on one line.
    fn complaint(&self) -> Failure {
        let mut text = Vec::new();
        let read = rustix::io::dup(&self.complaints)
            .map(|pipe| std::fs::File::from(pipe).take(COMPLAINT_SIZE_BYTES_MAX).read_to_end(&mut text));
        let text = String::from_utf8_lossy(&text);
        // pasta talks to syslog first, and says when there is none.
        let lines = text.lines().filter(|line| !line.contains("to syslog") && !line.trim().is_empty());
        let line = lines.collect::<Vec<_>>().join(", ");
        Failure(if line.is_empty() || read.is_err() { "ended at once".to_owned() } else { line })
    }
}

/// Waits for the namespace and executes the stack; returns only on failure.
fn become_stack(
    program: &CString,
    argv: &[CString],
    orders: OwnedFd,
    complaints: &OwnedFd,
    holder: i32,
) -> Errno {
    // Rust ignores SIGPIPE, and pasta takes an ignored one for a failure.
    for signal in 1..=64 {
        let _unchangeable = sys::default_signal(signal);
    }
    let prepared = (|| {
        die_with_parent(holder)?;
        let (_, fds) = channel::receive(orders.as_fd(), &mut [0])?;
        let namespace = fds.into_iter().next().ok_or(Errno::PIPE)?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(complaints)?;
        // Not close-on-exec: the program opens it through /proc.
        drop(orders);
        rustix::io::fcntl_dupfd_cloexec(&namespace, NAMESPACE_FD).and_then(|inherited| {
            rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty()).map(|()| inherited)
        })
    })();
    let argv: Vec<_> = argv.iter().map(CString::as_c_str).collect();
    match prepared {
        Err(errno) => errno,
        Ok(inherited) if inherited.as_raw_fd() != NAMESPACE_FD => Errno::MFILE,
        Ok(_open) => sys::execve(program, &argv, &[]),
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _gone = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _reaped =
            rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(self.pid), WaitOptions::empty()));
    }
}

/// `proc(5)`: columns interface, destination, …; a default route has destination 0, and flag «reject» (0x200) is ours.
fn has_default_route(table: &str) -> bool {
    table.lines().skip(1).any(|line| {
        let mut columns = line.split_whitespace();
        let destination = columns.nth(1);
        let flags = columns.nth(1).and_then(|flags| u32::from_str_radix(flags, 16).ok());
        destination == Some("00000000") && flags.is_some_and(|flags| flags & 0x200 == 0)
    })
}

#[cfg(test)]
mod tests {
    use super::has_default_route;

    #[test]
    fn only_a_usable_default_route_counts() {
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n";
        let reject = "*\t0000FEA9\t00000000\t0201\t0\t0\t0\t0000FFFF\n";
        assert!(!has_default_route(""));
        assert!(!has_default_route(&format!("{head}{reject}")));
        assert!(!has_default_route(&format!("{head}*\t00000000\t00000000\t0201\t0\t0\t0\t00000000\n")));
        assert!(has_default_route(&format!(
            "{head}{reject}tap0\t00000000\t0202000A\t0003\t0\t0\t0\t00000000\n"
        )));
    }
}
