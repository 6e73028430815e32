/* What can be read, written and reached through the file system: /proc, /sys, /dev, descriptors, layers below. */
#include "probe.h"
#include <dirent.h>
#include <ftw.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>

static int exists(const char *path) { struct stat stat; return lstat(path, &stat) == 0; }

/* Opens for writing, and closes. */
static long writable(const char *path) {
    int fd = open(path, O_WRONLY | O_NONBLOCK);
    if (fd < 0) return -1;
    close(fd);
    return 0;
}

static int opened, files_seen;
static int try_to_write(const char *path, const struct stat *stat, int type, struct FTW *ftw) {
    (void)ftw;
    if (type != FTW_F || !S_ISREG(stat->st_mode)) return 0;
    files_seen++;
    if (writable(path) == 0) opened++;
    return 0;
}

/* How many files of a tree can be opened for writing: `none`, `some`, or `absent`. */
static void written_tree(const char *row, const char *path) {
    opened = files_seen = 0;
    if (!exists(path)) { say(row, path, "absent"); return; }
    nftw(path, try_to_write, 16, FTW_PHYS);
    say(row, path, "%s", opened ? "some" : "none");
}

/* `hidden`: not there, empty, or nothing but zeros for addresses. */
static void hidden_file(const char *path) {
    char buffer[65536];
    FILE *file = fopen(path, "r");
    if (!file) { say("S3", path, "%s", errno == ENOENT ? "hidden" : word(-1)); return; }
    size_t count = fread(buffer, 1, sizeof buffer - 1, file);
    fclose(file);
    buffer[count] = 0;
    int shows = count > 0;
    if (strstr(path, "kallsyms")) {
        shows = 0;
        for (char *line = buffer; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
            if (strtoull(line, NULL, 16)) shows = 1;
    }
    say("S3", path, "%s", shows ? "shown" : "hidden");
}

static void hidden_directory(const char *row, const char *path) {
    DIR *dir = opendir(path);
    if (!dir) { say(row, path, "%s", errno == ENOENT ? "hidden" : word(-1)); return; }
    int entries = 0;
    for (struct dirent *entry; (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..")) entries++;
    closedir(dir);
    say(row, path, "%s", entries ? "shown" : "hidden");
}

static void kernel_files(void) {
    outcome("S1", "/proc/sys/kernel/core_pattern", writable("/proc/sys/kernel/core_pattern"));
    written_tree("S1", "/proc/sys/kernel");
    written_tree("S1", "/proc/sys/vm");
    written_tree("S1", "/proc/sys/fs");
    written_tree("S1", "/proc/sys/net");
    outcome("S2", "/proc/sysrq-trigger", writable("/proc/sysrq-trigger"));
    written_tree("S2", "/proc/irq");
    written_tree("S2", "/proc/bus");
    written_tree("S2", "/proc/fs");
    static const char *FILES[] = {"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts", "/proc/kallsyms",
        "/proc/sched_debug", "/proc/latency_stats", "/proc/timer_stats"};
    for (size_t n = 0; n < sizeof FILES / sizeof *FILES; n++) hidden_file(FILES[n]);
    static const char *DIRECTORIES[] = {"/proc/acpi", "/proc/asound", "/proc/scsi", "/sys/firmware",
        "/sys/devices/virtual/powercap", "/sys/devices/system/cpu/cpu0/thermal_throttle"};
    for (size_t n = 0; n < sizeof DIRECTORIES / sizeof *DIRECTORIES; n++) hidden_directory("S3", DIRECTORIES[n]);
    struct statvfs sys;
    if (!exists("/sys/kernel")) say("S2", "/sys", "absent");
    else if (statvfs("/sys", &sys) < 0) outcome("S2", "/sys", -1);
    else say("S2", "/sys", "%s", sys.f_flag & ST_RDONLY ? "read-only" : "writable");
    hidden_directory("S20", "/sys/fs/cgroup");
    outcome("S20", "/sys/fs/cgroup/cgroup.procs", writable("/sys/fs/cgroup/cgroup.procs"));
    outcome("S20", "/sys/fs/cgroup/memory/release_agent", writable("/sys/fs/cgroup/memory/release_agent"));
}

/* Descriptors that the step was started with. */
static void descriptors(void) {
    char list[256] = "";
    struct group up = {.expected = "ENOTDIR"};
    for (int fd = 0; fd < 65536; fd++) {
        if (fcntl(fd, F_GETFD) < 0) continue;
        size_t length = strlen(list);
        snprintf(list + length, sizeof list - length, "%s%d", length ? "," : "", fd);
        MEMBER(up, "descriptor", openat(fd, "..", O_PATH));
    }
    say("S6", "open-descriptors", "%s", list);
    group_say("S6", "..-of-descriptors", &up);
    int entered = 0;
    for (int n = 0; n < 1024; n++) {
        char path[64];
        snprintf(path, sizeof path, "/proc/self/fd/%d", n);
        if (chdir(path) == 0) entered++;
    }
    say("S8", "descriptors-entered", "%s", entered ? "some" : "none");
    chdir("/");
    char cwd[4096];
    say("S8", "getcwd", "%s", getcwd(cwd, sizeof cwd) ? cwd : word(-1));
}

/* Processes as /proc shows them. */
static void processes(void) {
    DIR *proc = exists("/proc/self") ? opendir("/proc") : NULL;
    if (!proc) { say("S7", "processes", "absent"); say("S7", "environments", "absent"); }
    int others = 0, canaries = 0;
    for (struct dirent *entry; proc && (entry = readdir(proc));) {
        int pid = atoi(entry->d_name);
        if (pid <= 0) continue;
        if (pid != 1 && pid != getpid()) others++;
        char path[64], buffer[65536];
        snprintf(path, sizeof path, "/proc/%d/environ", pid);
        FILE *file = fopen(path, "r");
        if (!file) continue;
        size_t count = fread(buffer, 1, sizeof buffer - 1, file);
        fclose(file);
        if (memmem(buffer, count, CANARY, strlen(CANARY))) canaries++;
    }
    if (proc) {
        say("S7", "processes", "%s", others ? "others" : "init,self");
        say("S7", "environments", "%s", canaries ? "the-builder's" : "own");
        closedir(proc);
    }
    char target[4096];
    outcome("S7", "/proc/1/root", readlink("/proc/1/root", target, sizeof target));
    outcome("S7", "/proc/1/cwd", readlink("/proc/1/cwd", target, sizeof target));
    outcome("S7", "/proc/1/environ", open("/proc/1/environ", O_RDONLY));
    outcome("S7", "/proc/1/fd", open("/proc/1/fd/0", O_RDONLY));
    outcome("S9", "/proc/1/exe-read", readlink("/proc/1/exe", target, sizeof target));
    outcome("S9", "/proc/1/exe-written", open("/proc/1/exe", O_RDWR));
    outcome("S9", "/proc/1/mem", open("/proc/1/mem", O_RDWR));
}

static char nodes[1024];
static int note_device(const char *path, const struct stat *stat, int type, struct FTW *ftw) {
    static const struct { const char *path; unsigned major, minor; } KNOWN[] = {
        {"/dev/full", 1, 7}, {"/dev/null", 1, 3}, {"/dev/pts/ptmx", 5, 2}, {"/dev/random", 1, 8}, {"/dev/tty", 5, 0},
        {"/dev/urandom", 1, 9}, {"/dev/zero", 1, 5},
    };
    (void)type; (void)ftw;
    if (!S_ISCHR(stat->st_mode) && !S_ISBLK(stat->st_mode)) return 0;
    for (size_t n = 0; n < sizeof KNOWN / sizeof *KNOWN; n++)
        if (!strcmp(path, KNOWN[n].path) && stat->st_rdev == makedev(KNOWN[n].major, KNOWN[n].minor)) return 0;
    size_t length = strlen(nodes);
    snprintf(nodes + length, sizeof nodes - length, "%s%s", length ? "," : "", path);
    return 0;
}

static void devices(void) {
    nftw("/dev", note_device, 16, FTW_PHYS);
    say("S12", "unexpected-devices", "%s", nodes[0] ? nodes : "none");
    struct group usable = {.expected = "ok"};
    MEMBER(usable, "null", writable("/dev/null"));
    MEMBER(usable, "zero", open("/dev/zero", O_RDONLY));
    MEMBER(usable, "full", open("/dev/full", O_RDONLY));
    MEMBER(usable, "random", open("/dev/random", O_RDONLY));
    MEMBER(usable, "urandom", open("/dev/urandom", O_RDONLY));
    group_say("S12", "usual-devices", &usable);
    outcome("S12", "/dev/shm", open("/dev/shm/probe", O_CREAT | O_RDWR, 0600));
    unlink("/dev/shm/probe");
    outcome("S12", "/dev/ptmx", open("/dev/ptmx", O_RDWR | O_NOCTTY));
}

static int is_same(const struct stat *one, const char *path) {
    struct stat other;
    return stat(path, &other) == 0 && one->st_dev == other.st_dev && one->st_ino == other.st_ino;
}

/* The classic ways out of a chroot. Last, as it may change the root. */
static void break_out(const struct host *host) {
    struct stat root;
    stat("/", &root);
    int fd = open("/", O_RDONLY | O_DIRECTORY);
    say("S19", "..-of-the-root", "%s", is_same(&root, "/../../..") ? "inside" : "outside");
    int up = openat(fd, "../../..", O_PATH);
    struct stat above;
    say("S19", "..-of-a-descriptor", "%s",
        up >= 0 && fstat(up, &above) == 0 && above.st_ino == root.st_ino && above.st_dev == root.st_dev ? "inside"
        : up < 0 ? word(-1) : "outside");
    say("S19", "a-file-of-the-host", "%s", exists(host->marker) ? "seen" : "absent");
    if (chroot("/tmp") < 0) {
        outcome("S19", "chroot-twice", -1);
        return;
    }
    fchdir(fd);
    for (int n = 0; n < 64; n++) chdir("..");
    chroot(".");
    say("S19", "chroot-twice", "%s", is_same(&root, "/") && !exists(host->marker) ? "inside" : "outside");
}

static int holds(const char *path, const char *text) {
    char buffer[64] = "";
    int fd = open(path, O_RDONLY);
    if (fd < 0) return 0;
    ssize_t count = read(fd, buffer, sizeof buffer - 1);
    close(fd);
    return count == (ssize_t)strlen(text) && !memcmp(buffer, text, count);
}

int lower_is_unchanged(void) {
    return holds("/data/write", "write\n") && holds("/data/truncate", "truncate\n") && holds("/data/rename", "rename\n")
        && holds("/data/link", "link\n") && holds("/data/map", "map\n") && !exists("/other/renamed");
}

/* Writes to files of the layers below in every way that makes overlayfs copy them. */
static void copy_up(void) {
    struct group written = {.expected = "ok"};
    int fd = open("/data/write", O_RDWR);
    MEMBER(written, "write", write(fd, "other", 5));
    MEMBER(written, "truncate", open("/data/truncate", O_RDWR | O_TRUNC));
    MEMBER(written, "rename", rename("/data/rename", "/other/renamed"));
    MEMBER(written, "link", link("/data/link", "/other/linked"));
    fd = open("/other/linked", O_WRONLY);
    MEMBER(written, "write-linked", write(fd, "other", 5));
    fd = open("/data/map", O_RDWR);
    char *map = mmap(NULL, 4, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    MEMBER(written, "map", map == MAP_FAILED ? -1 : 0);
    if (map != MAP_FAILED) {
        memcpy(map, "oth", 3);
        MEMBER(written, "msync", msync(map, 4, MS_SYNC));
    }
    group_say("S23", "copied-up", &written);
}

extern char **environ;

static void secrets(void) {
    struct group secrets = {.expected = "ENOENT"};
    MEMBER(secrets, "/run/secrets", open("/run/secrets", O_PATH));
    MEMBER(secrets, "docker", open("/root/.docker/config.json", O_PATH));
    MEMBER(secrets, "aws", open("/root/.aws", O_PATH));
    MEMBER(secrets, "netrc", open("/root/.netrc", O_PATH));
    MEMBER(secrets, "docker-socket", open("/var/run/docker.sock", O_PATH));
    group_say("S24", "credentials", &secrets);
    int canaries = 0;
    for (char **variable = environ; *variable; variable++) canaries += strstr(*variable, CANARY) != NULL;
    say("S24", "builder's-variables", "%s", canaries ? "some" : "none");
    say("S24", "SSH_AUTH_SOCK", "%s", getenv("SSH_AUTH_SOCK") ? "set" : "unset");
}

static int by_text(const void *one, const void *other) { return strcmp(*(char **)one, *(char **)other); }

static void environment(void) {
    char text[2048] = "", *sorted[64];
    size_t count = 0;
    for (char **variable = environ; *variable && count < 64; variable++) sorted[count++] = *variable;
    qsort(sorted, count, sizeof *sorted, by_text);
    for (size_t n = 0; n < count; n++) {
        size_t length = strlen(text);
        /* The default path is the frontend's affair and has tests there. */
        const char *shown = strncmp(sorted[n], "PATH=", 5) ? sorted[n] : "PATH";
        snprintf(text + length, sizeof text - length, "%s%s", n ? "," : "", shown);
    }
    say("S25", "environment", "%s", text);
}

void probe_files(const struct host *host) {
    descriptors();
    kernel_files();
    processes();
    devices();
    copy_up();
    secrets();
    environment();
    break_out(host);
}
