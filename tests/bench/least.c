/* What the kernel alone takes for a step: runs `busybox true` in ROOT a number of times, each time on an overlay and in
   namespaces of its own, with the mounts, masks and filter that steps have. It checks nothing, passes nothing on, drops no
   rights, reads no output: whatever is added to this costs more.

   usage: least ROOT COUNT [LOWERS]

   LOWERS empty layers are above ROOT. Needs root and Linux 6.8. What the steps wrote stays in ROOT.scratch. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define INERT (MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)
#define FILTER_LENGTH 218 /* of the filter of steps on x86-64 */

static long ok(long result, const char *what) {
    if (result < 0) {
        fprintf(stderr, "least: %s: %s\n", what, strerror(errno));
        _exit(1);
    }
    return result;
}

struct option { const char *name, *value; };

static int new_fs(const char *kind, const struct option *options, int attributes) {
    int context = ok(fsopen(kind, FSOPEN_CLOEXEC), kind);
    for (; options && options->name; options++) {
        int how = options->value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG;
        ok(fsconfig(context, how, options->name, options->value, 0), options->name);
    }
    ok(fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0), kind);
    int mount = ok(fsmount(context, FSMOUNT_CLOEXEC, attributes), kind);
    close(context);
    return mount;
}

/* Attaches a mount to `name` in a directory. */
static void attach(int mount, int dir, const char *name) {
    int place = ok(openat(dir, name, O_PATH | O_CLOEXEC), name);
    ok(move_mount(mount, "", place, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH), name);
    close(place);
}

static int bind_of(int fd) {
    return ok(open_tree(fd, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH), "bind");
}

/* Mounts what `fd` is open on over `name`, with these attributes. */
static void cover(int dir, const char *name, int fd, int attributes) {
    int mount = bind_of(fd);
    struct mount_attr added = {.attr_set = attributes};
    if (attributes)
        ok(mount_setattr(mount, "", AT_EMPTY_PATH, &added, sizeof added), "mount_setattr");
    attach(mount, dir, name);
    close(mount);
}

static int overlay(const char *root, int step, int lowers) {
    char path[4096];
    int context = ok(fsopen("overlay", FSOPEN_CLOEXEC), "overlay");
    for (int n = lowers; n-- > 0;) {
        snprintf(path, sizeof path, "%s.scratch/layer-%d", root, n);
        ok(fsconfig(context, FSCONFIG_SET_STRING, "lowerdir+", path, 0), path);
    }
    ok(fsconfig(context, FSCONFIG_SET_STRING, "lowerdir+", root, 0), root);
    for (int is_work = 0; is_work < 2; is_work++) {
        snprintf(path, sizeof path, "%s.scratch/%d-%s", root, step, is_work ? "work" : "upper");
        ok(mkdir(path, 0755), path);
        ok(fsconfig(context, FSCONFIG_SET_STRING, is_work ? "workdir" : "upperdir", path, 0), path);
    }
    ok(fsconfig(context, FSCONFIG_SET_FLAG, "volatile", NULL, 0), "volatile");
    ok(fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0), "overlay");
    int mount = ok(fsmount(context, FSMOUNT_CLOEXEC, 0), "overlay");
    close(context);
    return mount;
}

/* The kernel's file systems, over what is in `root`. */
static void furnish(int root) {
    static const char *const devices[] = {"null", "zero", "full", "random", "urandom", "tty"};
    static const char *const hidden[] = {"interrupts", "keys", "timer_list"};
    static const char *const read_only[] = {"bus", "fs", "irq", "sys"};
    static const char *const shown[] = {"etc/hosts", "etc/resolv.conf"};
    const struct option dev_options[] = {{"mode", "0755"}, {"size", "64m"}, {}}, shm_options[] = {{"mode", "1777"}, {}},
                        pts_options[] = {{"newinstance", NULL}, {"ptmxmode", "0666"}, {"mode", "0620"}, {}},
                        sys_options[] = {{"ro", NULL}, {}};
    int host[6], place;
    int proc = new_fs("proc", NULL, INERT), sys = new_fs("sysfs", sys_options, INERT | MOUNT_ATTR_RDONLY);
    for (int n = 0; n < 6; n++) {
        char path[32];
        snprintf(path, sizeof path, "/dev/%s", devices[n]);
        place = ok(open(path, O_PATH | O_CLOEXEC), path);
        host[n] = bind_of(place);
        close(place);
    }
    int dev = new_fs("tmpfs", dev_options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
    attach(proc, root, "proc");
    attach(sys, root, "sys");
    attach(dev, root, "dev");
    for (int n = 0; n < 6; n++) {
        close(ok(openat(dev, devices[n], O_CREAT | O_WRONLY | O_CLOEXEC, 0666), devices[n]));
        attach(host[n], dev, devices[n]);
        close(host[n]);
    }
    struct { const char *name; int mount; } more[] = {{"pts", new_fs("devpts", pts_options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC)},
                                                      {"shm", new_fs("tmpfs", shm_options, INERT)},
                                                      {"mqueue", new_fs("mqueue", NULL, INERT)}};
    for (int n = 0; n < 3; n++) {
        ok(mkdirat(dev, more[n].name, 0755), more[n].name);
        attach(more[n].mount, dev, more[n].name);
        close(more[n].mount);
    }
    int null = ok(openat(dev, "null", O_PATH | O_CLOEXEC), "null"), shm = ok(openat(dev, "shm", O_PATH | O_CLOEXEC), "shm");
    for (int n = 0; n < 3; n++)
        cover(proc, hidden[n], null, 0);
    for (int n = 0; n < 4; n++) {
        place = ok(openat(proc, read_only[n], O_PATH | O_CLOEXEC), read_only[n]);
        cover(proc, read_only[n], place, INERT | MOUNT_ATTR_RDONLY);
        close(place);
    }
    cover(sys, "firmware", shm, 0);
    cover(sys, "fs/cgroup", shm, 0);
    for (int n = 0; n < 2; n++) {
        char name[] = {'f', '0' + n, 0};
        place = ok(openat(dev, name, O_CREAT | O_RDWR | O_CLOEXEC, 0644), name);
        ok(write(place, "127.0.0.1 localhost\n", 20), name);
        cover(root, shown[n], place, INERT | MOUNT_ATTR_RDONLY);
        close(place);
    }
}

/* The command, started early as steps have it: it loads its filter beside the mounts. */
static pid_t command(int *go) {
    static struct sock_filter filter[FILTER_LENGTH];
    struct sock_fprog program = {FILTER_LENGTH, filter};
    int ends[2];
    ok(pipe2(ends, O_CLOEXEC), "pipe");
    *go = ends[1];
    pid_t child = ok(fork(), "fork");
    if (child)
        return close(ends[0]), child;
    for (int n = 0; n < FILTER_LENGTH - 1; n++)
        filter[n] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0);
    filter[FILTER_LENGTH - 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    ok(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
    ok(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program), "seccomp");
    char byte, *argv[] = {"busybox", "true", NULL}, *env[] = {NULL};
    close(ends[1]);
    ok(read(ends[0], &byte, 1), "pipe");
    ok(chdir("/"), "chdir");
    execve("/bin/busybox", argv, env);
    ok(-1, "exec");
    return 0;
}

static void init(int root) {
    int go, status;
    ok(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private mounts");
    pid_t child = command(&go);
    attach(root, AT_FDCWD, "/dev/shm");
    furnish(root);
    ok(fchdir(root), "root");
    ok(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    ok(umount2(".", MNT_DETACH), "umount");
    close(go);
    ok(waitpid(child, &status, 0), "wait");
    _exit(status != 0);
}

int main(int argc, char **argv) {
    if (argc < 3)
        return fprintf(stderr, "usage: least ROOT COUNT [LOWERS]\n"), 2;
    const char *root = argv[1];
    int count = atoi(argv[2]), lowers = argc > 3 ? atoi(argv[3]) : 0, status;
    char path[4096];
    snprintf(path, sizeof path, "%s.scratch", root);
    ok(mkdir(path, 0755), path);
    for (int n = 0; n < lowers; n++) {
        snprintf(path, sizeof path, "%s.scratch/layer-%d", root, n);
        ok(mkdir(path, 0755), path);
    }
    for (int step = 0; step < count; step++) {
        int merged = overlay(root, step, lowers);
        long flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | SIGCHLD;
        pid_t child = ok(syscall(SYS_clone, flags, NULL, NULL, NULL, 0L), "clone");
        if (!child)
            init(merged);
        close(merged);
        ok(waitpid(child, &status, 0), "wait");
        if (status)
            return 1;
        /* What the kernel made for a volatile mount. */
        snprintf(path, sizeof path, "%s.scratch/%d-work", root, step);
        int dir = ok(open(path, O_PATH | O_DIRECTORY | O_CLOEXEC), path);
        ok(unlinkat(dir, "work/incompat/volatile/dirty", 0), "dirty");
        ok(unlinkat(dir, "work/incompat/volatile", AT_REMOVEDIR), "volatile");
        ok(unlinkat(dir, "work/incompat", AT_REMOVEDIR), "incompat");
        ok(unlinkat(dir, "work", AT_REMOVEDIR), "work");
        close(dir);
        ok(rmdir(path), path);
    }
    return 0;
}
