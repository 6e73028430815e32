/* Makes the calls a step must not be allowed, natively and through the 32-bit and x32 ABIs, and prints those that do
   not fail with EPERM. Arguments are chosen to fail harmlessly should a call get through. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static void expect(const char *name, long result, int error, int expected) {
    if (result >= 0 || error != expected) printf("%s: %ld, errno %d\n", name, result, error);
}

/* The call first, errno after it: the order of arguments is nobody's promise. */
#define EXPECT(name, call, expected) do { errno = 0; long r = (call); expect(name, r, errno, expected); } while (0)
#define DENIED(name, ...) EXPECT(#name, syscall(SYS_##name, ##__VA_ARGS__), EPERM)

#ifdef __x86_64__
static long i386(long number, long a, long b, long c) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c)
                     : "memory", "r8", "r9", "r10", "r11");
    return result;
}
static void denied_i386(const char *name, long number, long a) {
    long r = i386(number, a, 0, 0);
    expect(name, r, -r, EPERM);
}
#endif

int main(void) {
    DENIED(keyctl, 0, 0, 0); DENIED(add_key, "user", "x", "y", 1, 0); DENIED(request_key, "user", "x", 0, 0);
    DENIED(bpf, 0, 0, 0); DENIED(perf_event_open, 0, 0, 0, 0, 0); DENIED(userfaultfd, 0);
    DENIED(io_uring_setup, 1, 0); DENIED(kexec_load, 0, 0, 0, 0); DENIED(init_module, 0, 0, "");
    DENIED(open_by_handle_at, -1, 0, 0); DENIED(quotactl, 0, 0, 0, 0); DENIED(swapon, "/x", 0);
    DENIED(reboot, 0, 0, 0, 0); DENIED(acct, "/x"); DENIED(settimeofday, 0, 0); DENIED(clock_settime, 0, 0);
    DENIED(syslog, 3, 0, 0); DENIED(personality, 0x40000); DENIED(mount, 0, "/x", 0, 0, 0);
    DENIED(umount2, "/proc/keys", 2); DENIED(pivot_root, "/", "/"); DENIED(fsopen, "tmpfs", 0);
    DENIED(open_tree, -1, "", 0); DENIED(move_mount, -1, "", -1, "", 0); DENIED(mount_setattr, -1, "", 0, 0, 0);
    DENIED(unshare, 0x10000000); DENIED(unshare, 0x80); DENIED(setns, -1, 0);
    DENIED(clone, 0x10000000 | 17, 0, 0, 0, 0);
    EXPECT("clone3", syscall(SYS_clone3, 0, 0), ENOSYS);
    EXPECT("AF_ALG", socket(38, SOCK_SEQPACKET, 0), EPERM);
    EXPECT("AF_VSOCK", socket(40, SOCK_STREAM, 0), EPERM);
#ifdef __x86_64__
    if (i386(20, 0, 0, 0) != getpid()) printf("i386 getpid\n");
    denied_i386("i386 mount", 21, 0); denied_i386("i386 umount2", 52, 0); denied_i386("i386 unshare", 310, 0x20000);
    denied_i386("i386 bpf", 357, 0); denied_i386("i386 keyctl", 288, 0); denied_i386("i386 socketcall", 102, 1);
    denied_i386("i386 AF_ALG", 359, 38); denied_i386("i386 io_uring_setup", 425, 1);
    denied_i386("i386 clone", 120, 0x10000000 | 17); denied_i386("i386 personality", 136, 0x40000);
    EXPECT("x32 getpid", syscall(0x40000000 | 39), EPERM);
    EXPECT("x32 mount", syscall(0x40000000 | 165, 0, 0, 0, 0, 0), EPERM);
#endif
    puts("done");
    return 0;
}
