/* What a step has been given: mounts, limits, identity. To be compared with what another runtime gives. */
#include "probe.h"
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>

static void mounts(void) {
    static const struct { unsigned long flag; const char *name; } FLAGS[] = {
        {ST_RDONLY, "ro"}, {ST_NOSUID, "nosuid"}, {ST_NODEV, "nodev"}, {ST_NOEXEC, "noexec"},
    };
    char line[8192], place[4096], type[256];
    FILE *file = fopen("/proc/self/mounts", "r");
    while (file && fgets(line, sizeof line, file)) {
        if (sscanf(line, "%*s %4095s %255s", place, type) != 2) continue;
        struct statvfs found;
        if (statvfs(place, &found) < 0) continue;
        char name[4200], flags[256] = "";
        for (size_t n = 0; n < sizeof FLAGS / sizeof *FLAGS; n++)
            if (found.f_flag & FLAGS[n].flag) strcat(strcat(flags, ","), FLAGS[n].name);
        snprintf(name, sizeof name, "mount:%s", place);
        struct stat stat_of;
        /* What the root is on is the store's affair, and where a device comes from the host's. */
        if (stat(place, &stat_of) == 0 && S_ISCHR(stat_of.st_mode)) say("F1", name, "device");
        else say("F1", name, "%s%s", strcmp(place, "/") ? type : "any", flags);
    }
    if (file) fclose(file);
}

static void limits(void) {
    static const struct { int resource; const char *name; } LIMITS[] = {
        {RLIMIT_AS, "as"}, {RLIMIT_CORE, "core"}, {RLIMIT_CPU, "cpu"}, {RLIMIT_DATA, "data"}, {RLIMIT_FSIZE, "fsize"},
        {RLIMIT_LOCKS, "locks"}, {RLIMIT_MEMLOCK, "memlock"}, {RLIMIT_MSGQUEUE, "msgqueue"}, {RLIMIT_NICE, "nice"},
        {RLIMIT_NOFILE, "nofile"}, {RLIMIT_NPROC, "nproc"}, {RLIMIT_RSS, "rss"}, {RLIMIT_RTPRIO, "rtprio"},
        {RLIMIT_SIGPENDING, "sigpending"}, {RLIMIT_STACK, "stack"},
    };
    for (size_t n = 0; n < sizeof LIMITS / sizeof *LIMITS; n++) {
        struct rlimit limit;
        char name[64];
        snprintf(name, sizeof name, "limit:%s", LIMITS[n].name);
        if (getrlimit(LIMITS[n].resource, &limit) == 0)
            say("F2", name, "%lld:%lld", (long long)limit.rlim_cur, (long long)limit.rlim_max);
    }
}

/* Files of /proc that are masked or read-only: type and size tell what covers them. */
static void covers(void) {
    static const char *PATHS[] = {"/proc/acpi", "/proc/asound", "/proc/bus", "/proc/fs", "/proc/interrupts", "/proc/irq",
        "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/sys",
        "/proc/sysrq-trigger", "/proc/timer_list", "/proc/timer_stats", "/sys/firmware", "/sys/devices/virtual/powercap"};
    for (size_t n = 0; n < sizeof PATHS / sizeof *PATHS; n++) {
        struct stat stat;
        const char *kind = "absent";
        if (lstat(PATHS[n], &stat) == 0)
            kind = S_ISDIR(stat.st_mode) ? "directory" : S_ISCHR(stat.st_mode) ? "device" : "file";
        say("F3", PATHS[n], "%s", kind);
    }
}

static void others(void) {
    struct utsname names;
    uname(&names);
    mode_t mask = umask(0);
    umask(mask);
    gid_t groups[64];
    int count = getgroups(64, groups);
    say("F4", "umask", "%04o", (unsigned)mask);
    say("F4", "gid", "%d", (int)getgid());
    say("F4", "groups", "%d", count);
    say("F4", "dumpable", "%d", prctl(PR_GET_DUMPABLE));
    say("F4", "priority", "%d", getpriority(PRIO_PROCESS, 0));
    char text[64] = "unreadable";
    FILE *file = fopen("/proc/self/oom_score_adj", "r");
    if (file && fscanf(file, "%63s", text) != 1) strcpy(text, "empty");
    if (file) fclose(file);
    say("F4", "oom_score_adj", "%s", text);
    static const char *DEVICES[] = {"console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm",
        "stderr", "stdin", "stdout", "tty", "urandom", "zero"};
    for (size_t n = 0; n < sizeof DEVICES / sizeof *DEVICES; n++) {
        char path[64], name[64];
        struct stat stat;
        snprintf(path, sizeof path, "/dev/%s", DEVICES[n]);
        snprintf(name, sizeof name, "dev:%s", DEVICES[n]);
        if (lstat(path, &stat) < 0) say("F5", name, "absent");
        else say("F5", name, "%o,%d:%d", (unsigned)stat.st_mode, (int)stat.st_uid, (int)stat.st_gid);
    }
}

void probe_facts(void) {
    mounts();
    limits();
    covers();
    others();
}
