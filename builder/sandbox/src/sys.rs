//! The system calls that have no safe wrapper in rustix: one function each, and all the `unsafe` of rbuild.
//!
//! Everything here is called from the re-exec'd, single-threaded child, except where a function says otherwise.

use rustix::io::Errno;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Which side of a [`fork`] the caller is on.
pub(crate) enum Fork {
    /// The new process.
    Child,
    /// The calling process, with the pid of the new one.
    Parent(rustix::process::Pid),
}

fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result < 0 {
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        Err(Errno::from_raw_os_error(errno))
    } else {
        Ok(result)
    }
}

/// Forks the calling process.
///
/// Must be called from a single-threaded process: the sandbox child right after its exec.
pub(crate) fn fork() -> Result<Fork, Errno> {
    // rustix keeps fork in its experimental runtime module.
    // SAFETY: the caller is the re-exec'd child, which never starts a thread, so no lock of libc or of the allocator can
    // be held by a thread that does not exist in the new process, and both sides may go on running ordinary code.
    let pid = unsafe { libc::fork() };
    let pid = check(pid.into())?;
    Ok(match rustix::process::Pid::from_raw(i32::try_from(pid).map_err(|_| Errno::OVERFLOW)?) {
        None => Fork::Child,
        Some(pid) => Fork::Parent(pid),
    })
}

/// Forks the calling process into new namespaces.
///
/// Must be called from a single-threaded process: the spawner, right before the new process becomes an init.
pub(crate) fn fork_into(namespaces: rustix::thread::UnshareFlags) -> Result<Fork, Errno> {
    let flags = libc::c_long::from(namespaces.bits()) | libc::c_long::from(libc::SIGCHLD);
    // libc's fork takes no flags. `unshare` plus fork works once per process for pid namespaces, and going back with `setns`
    // takes rights over the host's pid namespace, which an ordinary user does not have.
    // SAFETY: without CLONE_VM and with a null stack this is fork: the new process goes on in a copy of our memory. The
    // caller is single-threaded, so no lock is left held. What libc's own fork does besides is to run `atfork` handlers,
    // of which there are none, and to note the thread id, which libc uses to tell threads apart, and there is one; the
    // next fork, the one of the command, notes it.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    let pid = check(pid)?;
    Ok(match rustix::process::Pid::from_raw(i32::try_from(pid).map_err(|_| Errno::OVERFLOW)?) {
        None => Fork::Child,
        Some(pid) => Fork::Parent(pid),
    })
}

/// Moves the calling process into new namespaces.
pub(crate) fn unshare(flags: rustix::thread::UnshareFlags) -> Result<(), Errno> {
    // rustix marks this unsafe because of CLONE_FILES and CLONE_FS: unsharing the descriptor table of one thread lets it
    // close descriptors other threads own.
    // SAFETY: no caller passes FILES or FS except implied by NEWNS/NEWUSER (FS only), and all run single-threaded.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Replaces the process by the program at `path`; returns only on failure.
pub(crate) fn execve(path: &CStr, argv: &[&CStr], env: &[&CStr]) -> Errno {
    let argv: Vec<_> = argv.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect();
    let env: Vec<_> = env.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect();
    // std's `exec` would search PATH of *this* process and change signal state on its own terms.
    // SAFETY: `path` and every element are NUL-terminated strings that outlive the call, and both arrays end with a null
    // pointer.
    let result = unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    check(result.into()).err().unwrap_or(Errno::IO)
}

/// Ends the process at once.
///
/// For processes that were forked and never exec: what the libraries would do at the end was registered by another process,
/// and touches memory that this one only shares so far.
pub(crate) fn exit_now(status: i32) -> ! {
    // rustix keeps this in its experimental runtime module, std only has the exit that runs handlers.
    // SAFETY: the call takes an integer and does not return; nothing of ours is left to do, as output is never buffered here.
    unsafe { libc::_exit(status) }
}

/// Sets attributes of a mount (`mount_setattr(2)`), of the whole tree below it when `recursive`.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, set: u64, recursive: bool) -> Result<(), Errno> {
    #[repr(C)]
    struct MountAttr {
        attr_set: u64,
        attr_clr: u64,
        propagation: u64,
        userns_fd: u64,
    }
    let attr = MountAttr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // rustix has no wrapper for this call.
    // SAFETY: the descriptor is open for the borrow, the path is an empty NUL-terminated string, and `attr` is a live
    // struct of the layout and size passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    check(result).map(drop)
}

/// Loads a seccomp filter into every thread of the process.
///
/// `program` holds classic BPF instructions in the kernel's `struct sock_filter` layout, native byte order.
pub(crate) fn load_seccomp(program: &[u8]) -> Result<(), Errno> {
    // With TSYNC a positive result is the thread that could not follow.
    if seccomp(program, libc::SECCOMP_FILTER_FLAG_TSYNC)? == 0 { Ok(()) } else { Err(Errno::BUSY) }
}

/// [`load_seccomp`] with the descriptor that the calls it reports are answered over (close-on-exec).
pub(crate) fn load_seccomp_with_listener(program: &[u8]) -> Result<OwnedFd, Errno> {
    // A signal does not take back a call that is being answered; since 5.19.
    const WAIT_KILLABLE_RECV: libc::c_ulong = 1 << 5;
    let flags = libc::SECCOMP_FILTER_FLAG_TSYNC
        | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH
        | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    let fd = match seccomp(program, flags | WAIT_KILLABLE_RECV) {
        Err(Errno::INVAL) => seccomp(program, flags),
        other => other,
    }?;
    let fd = i32::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: with NEW_LISTENER a non-negative result is a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn seccomp(program: &[u8], flags: libc::c_ulong) -> Result<libc::c_long, Errno> {
    let count = program.len() / size_of::<libc::sock_filter>();
    let mut filter = Vec::with_capacity(count);
    for raw in program.chunks_exact(size_of::<libc::sock_filter>()) {
        filter.push(libc::sock_filter {
            code: u16::from_ne_bytes([raw[0], raw[1]]),
            jt: raw[2],
            jf: raw[3],
            k: u32::from_ne_bytes([raw[4], raw[5], raw[6], raw[7]]),
        });
    }
    let len = u16::try_from(filter.len()).map_err(|_| Errno::TOOBIG)?;
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    // rustix has no wrapper for this call.
    // SAFETY: `program` points to `len` initialised instructions that live until the call returns; the kernel copies and
    // verifies them.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    check(result)
}

/// Takes the next reported call from a filter's listener; waits for one.
pub(crate) fn receive_notification(listener: BorrowedFd<'_>) -> Result<libc::seccomp_notif, Errno> {
    // SAFETY: a struct of integers, for which zero is a value; the kernel asks for it to be zeroed.
    let mut notification: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // rustix has no wrapper for this call.
    // SAFETY: the request number carries the size of this struct, which the kernel fills and which outlives the call.
    let result = unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV as _, &raw mut notification)
    };
    check(result.into()).map(|_| notification)
}

/// Answers a reported call: it returns 0, or fails.
pub(crate) fn answer_notification(
    listener: BorrowedFd<'_>,
    id: u64,
    answer: Result<(), Errno>,
) -> Result<(), Errno> {
    let error = answer.err().map_or(0, |errno| -errno.raw_os_error());
    let mut response = libc::seccomp_notif_resp { id, val: 0, error, flags: 0 };
    // rustix has no wrapper for this call.
    // SAFETY: the request number carries the size of this struct, which is live and initialised.
    let result =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND as _, &raw mut response) };
    check(result.into()).map(drop)
}

/// Whether the process behind a reported call still waits for the answer: until then its pid is its own.
pub(crate) fn is_waiting(listener: BorrowedFd<'_>, id: u64) -> bool {
    // rustix has no wrapper for this call.
    // SAFETY: the request number carries the size of the id, which is live and initialised.
    let result =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID as _, &raw const id) };
    result == 0
}

/// The newest version of Landlock this kernel knows.
pub(crate) fn landlock_abi() -> Result<u32, Errno> {
    const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
    // rustix has no wrapper for this call.
    // SAFETY: with this flag the call takes no memory, and wants a null pointer of size zero.
    let result = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u64>(),
            0usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    check(result).and_then(|abi| u32::try_from(abi).map_err(|_| Errno::OVERFLOW))
}

/// A new Landlock ruleset that denies `file_rights` everywhere (close-on-exec) and keeps `scopes` inside.
pub(crate) fn landlock_ruleset(file_rights: u64, scopes: u64) -> Result<OwnedFd, Errno> {
    // `struct landlock_ruleset_attr` as of version 6; older kernels take a longer one whose rest is zero.
    let attr = [file_rights, 0, scopes];
    // rustix has no wrapper for this call.
    // SAFETY: `attr` is live and initialised, of the layout and size passed; the result is checked below.
    let result =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, attr.as_ptr(), size_of_val(&attr), 0u32) };
    let fd = i32::try_from(check(result)?).map_err(|_| Errno::BADF)?;
    // SAFETY: a non-negative result is a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives a ruleset rights over everything below a directory.
pub(crate) fn landlock_allow_below(
    ruleset: BorrowedFd<'_>,
    dir: BorrowedFd<'_>,
    rights: u64,
) -> Result<(), Errno> {
    #[repr(C, packed)]
    struct PathBeneath {
        allowed_access: u64,
        parent_fd: i32,
    }
    const LANDLOCK_RULE_PATH_BENEATH: u32 = 1;
    let rule = PathBeneath { allowed_access: rights, parent_fd: dir.as_raw_fd() };
    // rustix has no wrapper for this call.
    // SAFETY: both descriptors are open for their borrows, and `rule` is live, of the layout the kernel declares (packed).
    let result = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset.as_raw_fd(),
            LANDLOCK_RULE_PATH_BENEATH,
            &raw const rule,
            0u32,
        )
    };
    check(result).map(drop)
}

/// Puts the calling thread, the only one, under a ruleset; needs `no_new_privs`.
pub(crate) fn landlock_restrict(ruleset: BorrowedFd<'_>) -> Result<(), Errno> {
    // rustix has no wrapper for this call.
    // SAFETY: the descriptor is open for the borrow; no memory is passed.
    let result = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0u32) };
    check(result).map(drop)
}

/// Blocks SIGCHLD and returns a descriptor that is readable when one came (close-on-exec, never blocks).
pub(crate) fn child_signals() -> Result<OwnedFd, Errno> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // rustix has no signal sets.
    // SAFETY: `sigemptyset` initialises the set it is given, which is live and writable.
    check(unsafe { libc::sigemptyset(set.as_mut_ptr()) }.into())?;
    // SAFETY: the set was initialised above, and the signal's number is valid.
    check(unsafe { libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD) }.into())?;
    // SAFETY: the set was initialised above; the old mask is not asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) }.into())?;
    // SAFETY: -1 asks for a new descriptor; the set was initialised above.
    let fd = unsafe { libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    check(fd.into())?;
    // SAFETY: a non-negative result is a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives one signal its default action, also the two the C library keeps for itself and hides.
pub(crate) fn default_signal(signal: i32) -> Result<(), Errno> {
    // The kernel's `struct sigaction`: 32 bytes on x86_64, 24 on aarch64, and zero is SIG_DFL, no flags, an empty mask.
    const DEFAULT_ACTION: [u64; 4] = [0; 4];
    const MASK_SIZE_BYTES: usize = 8;
    // A step must not inherit what the builder ignores: Rust's SIGPIPE, nohup's SIGHUP. libc's own call refuses 32 and 33.
    // SAFETY: the kernel reads at most 32 bytes of the action and writes nothing; SIG_DFL installs no handler, so no code
    // of ours can run in signal context.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            DEFAULT_ACTION.as_ptr(),
            std::ptr::null_mut::<u64>(),
            MASK_SIZE_BYTES,
        )
    };
    check(result).map(drop)
}

/// Unblocks every signal.
pub(crate) fn unblock_signals() -> Result<(), Errno> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // The mask survives exec; std offers no way to change it.
    // SAFETY: `sigemptyset` initialises the set it is given, which is live and writable.
    let result = unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    check(result.into())?;
    // SAFETY: the set was initialised above; the old mask is not asked for.
    let result = unsafe { libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut()) };
    check(result.into()).map(drop)
}

/// Closes every descriptor from 3 up.
///
/// Only for the first lines of a re-exec'd child, when nothing in it owns a descriptor yet.
pub(crate) fn close_from_3() -> Result<(), Errno> {
    // What the builder inherited from its own parent without close-on-exec would stay open in init, which never execs.
    // SAFETY: the call takes three integers; by the rule above no owned or borrowed descriptor exists that it could close.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
    check(result).map(drop)
}

/// Marks every descriptor from 3 up close-on-exec, whoever opened it.
pub(crate) fn close_on_exec_from_3() -> Result<(), Errno> {
    // rustix has no wrapper for this call.
    // SAFETY: the call takes three integers and with CLOEXEC closes nothing now, so no owned descriptor is invalidated.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    check(result).map(drop)
}

/// Joins a new, anonymous session keyring, so that the builder's keys are out of reach.
pub(crate) fn new_session_keyring() -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // rustix has no wrapper for this call.
    // SAFETY: a null name asks for an anonymous keyring; no memory is passed.
    let result = unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>())
    };
    check(result).map(drop)
}

/// Brings the loopback device of the current network namespace up; `socket` is any internet socket.
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(c"lo".to_bytes_with_nul()) {
        *to = from.cast_signed();
    }
    let flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    let request =
        libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
    // rustix has no wrapper for interface flags.
    // SAFETY: the descriptor is open for the borrow and SIOCSIFFLAGS reads one `ifreq`, which is fully initialised as far
    // as the kernel reads it (name and flags).
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    check(result.into()).map(drop)
}

/// Makes the addresses `network`/`mask` unreachable in the current network namespace; `socket` is any IPv4 socket.
pub(crate) fn reject_route(socket: BorrowedFd<'_>, network: [u8; 4], mask: [u8; 4]) -> Result<(), Errno> {
    fn address(octets: [u8; 4]) -> libc::sockaddr {
        // The layout of `sockaddr_in`: two bytes of port, then the address in network order.
        let mut data = [0; 14];
        for (to, from) in data[2..].iter_mut().zip(octets) {
            *to = from.cast_signed();
        }
        libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
    }
    // SAFETY: `rtentry` is a C struct of integers, socket addresses and one pointer, for all of which zero is a value.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = address(network);
    route.rt_genmask = address(mask);
    route.rt_flags = libc::RTF_UP | libc::RTF_REJECT;
    // rustix has no wrapper for routes.
    // SAFETY: the descriptor is open for the borrow and SIOCADDRT reads one `rtentry`, fully initialised, whose device
    // name is null: a route without a device.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT as _, &raw const route) };
    check(result.into()).map(drop)
}

/// Makes all threads share two heaps of the C library, where it would give each a heap of its own that keeps what it once
/// took. With one, the two threads that walk a context would wait for each other. Blocks of a MiB and more go back to the
/// system when they are freed. Called by the builder, before it has threads.
#[cfg(target_env = "gnu")]
pub(crate) fn keep_memory_small() {
    // From the first large block that is freed on, the C library would take those of its size from the heaps, and leave
    // twice as much unused there.
    let numbers = [(libc::M_ARENA_MAX, 2), (libc::M_MMAP_THRESHOLD, 1 << 20)];
    for (number, value) in numbers {
        // SAFETY: `mallopt` sets a number of the allocator, under its own lock.
        unsafe { libc::mallopt(number, value) };
    }
}
