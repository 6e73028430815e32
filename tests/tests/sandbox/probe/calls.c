/* System calls that a step must not be allowed: natively, and through the 32-bit and x32 numbers. */
#include "probe.h"
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

#ifndef SYS_lsm_set_self_attr
#define SYS_lsm_set_self_attr 460
#endif
#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif
#ifndef TIOCLINUX
#define TIOCLINUX 0x541C
#endif

static void mounts(void) {
    struct group mounts = {.expected = "EPERM"};
    MEMBER(mounts, "tmpfs", mount("none", "/tmp", "tmpfs", 0, NULL));
    MEMBER(mounts, "proc", mount("none", "/tmp", "proc", 0, NULL));
    MEMBER(mounts, "sysfs", mount("none", "/tmp", "sysfs", 0, NULL));
    MEMBER(mounts, "cgroup", mount("none", "/tmp", "cgroup", 0, "memory"));
    MEMBER(mounts, "cgroup2", mount("none", "/tmp", "cgroup2", 0, NULL));
    MEMBER(mounts, "overlay", mount("none", "/tmp", "overlay", 0, "lowerdir=/data:/other"));
    MEMBER(mounts, "bind", mount("/data", "/tmp", NULL, MS_BIND, NULL));
    MEMBER(mounts, "move", mount("/proc", "/tmp", NULL, MS_MOVE, NULL));
    MEMBER(mounts, "remount", mount(NULL, "/proc/sys", NULL, MS_REMOUNT | MS_BIND, NULL));
    MEMBER(mounts, "propagation", mount(NULL, "/", NULL, MS_SHARED | MS_REC, NULL));
    group_say("S4", "mount", &mounts);
    struct group api = {.expected = "EPERM"};
    MEMBER(api, "fsopen", syscall(SYS_fsopen, "tmpfs", 0));
    MEMBER(api, "fspick", syscall(SYS_fspick, AT_FDCWD, "/", 0));
    MEMBER(api, "fsconfig", syscall(SYS_fsconfig, -1, 0, NULL, NULL, 0));
    MEMBER(api, "fsmount", syscall(SYS_fsmount, -1, 0, 0));
    MEMBER(api, "open_tree", syscall(SYS_open_tree, AT_FDCWD, "/", 1));
    MEMBER(api, "move_mount", syscall(SYS_move_mount, -1, "", -1, "", 0));
    MEMBER(api, "mount_setattr", syscall(SYS_mount_setattr, AT_FDCWD, "/", 0, NULL, 0));
    group_say("S4", "mount-by-descriptor", &api);
    CALL("S4", pivot_root, "/", "/");
    struct group masks = {.expected = "EPERM"};
    MEMBER(masks, "keys", umount2("/proc/keys", MNT_DETACH));
    MEMBER(masks, "sys", umount2("/proc/sys", MNT_DETACH));
    MEMBER(masks, "firmware", umount2("/sys/firmware", MNT_DETACH));
    MEMBER(masks, "hosts", umount2("/etc/hosts", MNT_DETACH));
    MEMBER(masks, "dev", umount2("/dev", MNT_DETACH));
    group_say("S4", "umount2", &masks);
}

static const struct { const char *name; unsigned long flag; } NAMESPACES[] = {
    {"mnt", CLONE_NEWNS}, {"cgroup", CLONE_NEWCGROUP}, {"uts", CLONE_NEWUTS}, {"ipc", CLONE_NEWIPC},
    {"user", CLONE_NEWUSER}, {"pid", CLONE_NEWPID}, {"net", CLONE_NEWNET}, {"time", CLONE_NEWTIME},
};

static long clone_with(unsigned long flags) {
    long pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) _exit(0);
    if (pid > 0) waitpid(pid, NULL, 0);
    return pid;
}

static void namespaces(void) {
    struct group unshared = {.expected = "EPERM"}, cloned = {.expected = "EPERM"}, joined = {.expected = "EPERM"};
    for (size_t n = 0; n < sizeof NAMESPACES / sizeof *NAMESPACES; n++) {
        unsigned long flag = NAMESPACES[n].flag;
        MEMBER(unshared, NAMESPACES[n].name, unshare(flag));
        /* CLONE_NEWTIME overlaps the exit signal of clone: it exists in clone3 and unshare only. */
        if (flag != CLONE_NEWTIME) MEMBER(cloned, NAMESPACES[n].name, clone_with(flag));
        char path[64];
        snprintf(path, sizeof path, "/proc/self/ns/%s", NAMESPACES[n].name);
        int fd = open(path, O_RDONLY);
        MEMBER(joined, NAMESPACES[n].name, setns(fd, 0));
        if (fd >= 0) close(fd);
    }
    group_say("S5", "unshare", &unshared);
    group_say("S5", "clone", &cloned);
    group_say("S5", "setns", &joined);
    CALL("S5", clone3, NULL, 0);
    outcome("S5", "open-/proc/1/ns/mnt", open("/proc/1/ns/mnt", O_RDONLY));
}

/* Every process that can be seen: in a namespace of its own that is init and the probe. */
static void processes(const struct host *host) {
    int others = 0, reached = 0, max = 32768;
    FILE *file = fopen("/proc/sys/kernel/pid_max", "r");
    if (file && fscanf(file, "%d", &max) == 1 && max > 65536) max = 65536;
    if (file) fclose(file);
    for (int pid = 2; pid <= max; pid++) {
        if (pid == getpid()) continue;
        if (kill(pid, 0) == 0) reached++, others++;
        else if (errno != ESRCH) others++;
    }
    say("S10", "other-processes", "%s", others ? "seen" : "none");
    say("S10", "other-processes-signalled", "%s", reached ? "some" : "none");
    outcome("S10", "kill-of-the-host's", kill(host->pid, 0));
    CALL("S10", pidfd_getfd, 0, 0, 0);
    outcome("S10", "ptrace-of-1", ptrace(PTRACE_ATTACH, 1, 0, 0));
    char byte;
    struct iovec ours = {&byte, 1}, theirs = {(void *)say, 1};
    outcome("S10", "process_vm_readv-of-1", process_vm_readv(1, &ours, 1, &theirs, 1, 0));
}

/* Makes a device node and opens it: `mknod:ERROR`, `open:ERROR`, or `opened`. */
static void device(const char *name, mode_t type, unsigned major, unsigned minor) {
    char path[64];
    snprintf(path, sizeof path, "/tmp/device-%d", (int)getpid());
    if (mknod(path, type | 0666, makedev(major, minor)) < 0) {
        say("S11", name, "mknod:%s", word(-1));
        return;
    }
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    if (fd < 0) say("S11", name, "open:%s", word(-1));
    else say("S11", name, "opened");
    if (fd >= 0) close(fd);
    unlink(path);
}

static void kernel(void) {
    struct group keys = {.expected = "EPERM"};
    MEMBER(keys, "keyctl", syscall(SYS_keyctl, 0, 0, 0));
    MEMBER(keys, "add_key", syscall(SYS_add_key, "user", "x", "y", 1, 0));
    MEMBER(keys, "request_key", syscall(SYS_request_key, "user", "x", 0, 0));
    group_say("S15", "keys", &keys);
    CALL("S15", bpf, 0, 0, 0);
    CALL("S15", perf_event_open, 0, 0, 0, 0, 0);
    CALL("S15", userfaultfd, 0);
    CALL("S15", io_uring_setup, 1, 0);
    CALL("S15", open_by_handle_at, -1, 0, 0);
    struct group host = {.expected = "EPERM"};
    MEMBER(host, "kexec_load", syscall(SYS_kexec_load, 0, 0, 0, 0));
    MEMBER(host, "init_module", syscall(SYS_init_module, 0, 0, ""));
    MEMBER(host, "finit_module", syscall(SYS_finit_module, -1, "", 0));
    MEMBER(host, "delete_module", syscall(SYS_delete_module, "", 0));
    MEMBER(host, "quotactl", syscall(SYS_quotactl, 0, 0, 0, 0));
    MEMBER(host, "swapon", syscall(SYS_swapon, "/x", 0));
    MEMBER(host, "swapoff", syscall(SYS_swapoff, "/x"));
    MEMBER(host, "reboot", syscall(SYS_reboot, 0, 0, 0, 0));
    MEMBER(host, "acct", syscall(SYS_acct, "/x"));
    MEMBER(host, "syslog", syscall(SYS_syslog, 3, 0, 0));
    MEMBER(host, "vhangup", syscall(SYS_vhangup));
#ifdef __x86_64__
    MEMBER(host, "iopl", syscall(SYS_iopl, 0));
    MEMBER(host, "ioperm", syscall(SYS_ioperm, 0, 0, 0));
#endif
    group_say("S15", "host-administration", &host);
    CALL("S15", personality, 0x40000);
    CALL("S15", lsm_set_self_attr, 0, 0, 0, 0);
    outcome("S15", "controlling-terminal", open("/dev/tty", O_RDWR));
    struct group terminal = {.expected = "ENOTTY"};
    char key = 'x';
    MEMBER(terminal, "TIOCSTI", ioctl(0, TIOCSTI, &key));
    MEMBER(terminal, "TIOCLINUX", ioctl(0, TIOCLINUX, &key));
    group_say("S15", "terminal-injection", &terminal);
}

static void clocks(void) {
    struct group clocks = {.expected = "EPERM"};
    struct timespec now;
    struct timex change = {.modes = ADJ_TICK, .tick = 10000};
    clock_gettime(CLOCK_REALTIME, &now);
    MEMBER(clocks, "clock_settime", syscall(SYS_clock_settime, CLOCK_REALTIME, &now));
    MEMBER(clocks, "settimeofday", syscall(SYS_settimeofday, NULL, NULL));
    MEMBER(clocks, "adjtimex", syscall(SYS_adjtimex, &change));
    MEMBER(clocks, "clock_adjtime", syscall(SYS_clock_adjtime, CLOCK_REALTIME, &change));
    group_say("S22", "clocks", &clocks);
}

#ifdef __x86_64__
static long i386(long number, long a) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(0), "d"(0)
                     : "memory", "r8", "r9", "r10", "r11");
    if (result >= 0) return result;
    errno = -result;
    return -1;
}

static const struct { const char *name; long number, argument; } I386[] = {
    {"mount", 21, 0}, {"umount2", 52, 0}, {"acct", 51, 1}, {"settimeofday", 79, 0}, {"swapon", 87, 0}, {"reboot", 88, 0},
    {"socketcall", 102, 1}, {"iopl", 110, 0}, {"clone", 120, CLONE_NEWUSER | SIGCHLD}, {"init_module", 128, 0},
    {"quotactl", 131, 0}, {"personality", 136, 0x40000}, {"pivot_root", 217, 0}, {"kexec_load", 283, 0},
    {"add_key", 286, 0}, {"request_key", 287, 0}, {"keyctl", 288, 0}, {"unshare", 310, CLONE_NEWNS},
    {"perf_event_open", 336, 0}, {"open_by_handle_at", 342, -1}, {"setns", 346, -1}, {"bpf", 357, 0},
    {"socket-AF_ALG", 359, 38}, {"userfaultfd", 374, 0}, {"io_uring_setup", 425, 1}, {"open_tree", 428, -1},
    {"fsopen", 430, 0},
};

static long i386_call(long number, long argument) {
    long result = i386(number, argument);
    if (number == 120 && result == 0) _exit(0);
    return result;
}

static void other_abis(void) {
    struct group x32 = {.expected = "EPERM"}, calls = {.expected = "EPERM"};
    MEMBER(x32, "getpid", syscall(0x40000000 | 39));
    /* All of the first table's, until one answers otherwise; then some of x32's own. */
    for (long number = 0; number < 360 && !x32.text[0]; number++)
        MEMBER(x32, "of-the-table", syscall(0x40000000 | number, 0, 0, 0, 0, 0, 0));
    MEMBER(x32, "io_uring_setup", syscall(0x40000000 | 425, 1, 0));
    MEMBER(x32, "ptrace", syscall(0x40000000 | 521, 0, 0, 0, 0));
    group_say("S16", "x32-calls", &x32);
    /* A kernel without the 32-bit entry kills the caller. */
    pid_t pid = fork();
    if (pid == 0) {
        say("S16", "i386-getpid", "%s", i386(20, 0) == getpid() ? "ok" : "denied");
        for (size_t n = 0; n < sizeof I386 / sizeof *I386; n++)
            MEMBER(calls, I386[n].name, i386_call(I386[n].number, I386[n].argument));
        group_say("S16", "i386-calls", &calls);
        _exit(0);
    }
    int status;
    waitpid(pid, &status, 0);
    if (WIFSIGNALED(status)) {
        say("S16", "i386-getpid", "absent");
        say("S16", "i386-calls", "absent");
    }
}
#else
static void other_abis(void) {}
#endif

/* In a process of its own: what gets through changes nothing for the probes after it. */
static void apart(void (*probe)(void)) {
    pid_t pid = fork();
    if (pid == 0) {
        probe();
        _exit(0);
    }
    waitpid(pid, NULL, 0);
}

void probe_calls(const struct host *host) {
    apart(mounts);
    apart(namespaces);
    processes(host);
    device("disk", S_IFBLK, 8, 0);
    device("loop", S_IFBLK, 7, 0);
    device("mem", S_IFCHR, 1, 1);
    device("kmsg", S_IFCHR, 1, 11);
    device("null", S_IFCHR, 1, 3);
    kernel();
    other_abis();
    clocks();
}
