/* A program that a RUN step runs to find out what it can do: suite S of the security reference.
 *
 *     probe all USER PORT KEY PID MARKER   everything but the network; USER labels the findings
 *     probe network USER KIND PORT KEY     what can be reached; KIND goes into the findings' names
 *     probe facts USER                     what it has been given: mounts, limits
 *     probe lower USER                     whether the layers below are as they were
 *     probe write USER                     makes files and directories
 *     probe copy FROM TO                   copies a file
 *     probe sleep x                        says that it runs, and does so until it is killed with SIGKILL
 *     probe flood BYTES                    prints so many in one line, as many in short ones, and ends with 42
 *     probe agent USER                     what the SSH agent it is given does for it
 *     probe suid USER                      who a set-user-id program becomes
 *     probe serve KEY                      on the host: what is there to be reached, until standard input ends
 *
 * Calls are made with arguments that do no harm should they get through. */
#include "probe.h"
#include <signal.h>
#include <stdarg.h>
#include <sys/stat.h>

const char *label = "";

void say(const char *row, const char *name, const char *format, ...) {
    va_list args;
    printf("probe %s %s %s ", label, row, name);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
    /* Children print too, and end without flushing what is not theirs. */
    fflush(stdout);
}

const char *word(long result) {
    const char *name = result >= 0 ? "ok" : strerrorname_np(errno);
    return name ? name : "unknown";
}

void outcome(const char *row, const char *name, long result) { say(row, name, "%s", word(result)); }

void group_add(struct group *group, const char *name, long result) {
    const char *got = word(result);
    size_t length = strlen(group->text);
    if (strcmp(got, group->expected) != 0)
        snprintf(group->text + length, sizeof group->text - length, "%s%s:%s", length ? "," : "", name, got);
}

void group_say(const char *row, const char *name, struct group *group) {
    say(row, name, "%s", group->text[0] ? group->text : group->expected);
}

/* Files and directories whose modes would tell of a umask. */
static int write_files(void) {
    int fd = open("made", O_CREAT | O_WRONLY, 0666);
    return fd < 0 || write(fd, "made\n", 5) != 5 || mkdir("dir", 0777) < 0 || mkdir("dir/deep", 0777) < 0;
}

static int copy(const char *from, const char *to) {
    char buffer[65536];
    int in = open(from, O_RDONLY), out = open(to, O_CREAT | O_WRONLY | O_EXCL, 0600);
    ssize_t count = read(in, buffer, sizeof buffer);
    return count < 0 || write(out, buffer, count) != count;
}

static _Noreturn void sleep_for_ever(void) {
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    puts("probe running");
    fflush(stdout);
    for (;;) pause();
}

static int flood(long size) {
    static char line[1 << 16];
    memset(line, 'x', sizeof line);
    for (long left = size; left > 0; left -= sizeof line) fwrite(line, 1, sizeof line, stdout);
    for (size_t n = 0; n < sizeof line; n++) line[n] = n % 64 == 63 ? '\n' : (char)(n * 7);
    for (long left = size; left > 0; left -= sizeof line) fwrite(line, 1, sizeof line, stdout);
    return fflush(stdout) ? 1 : 42;
}

int probe_agent(void);
int serve(int key);
int lower_is_unchanged(void);
void whoami(void);

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    label = argc > 2 ? argv[2] : "";
    if (!strcmp(mode, "all") && argc == 7) {
        struct host host = {atoi(argv[3]), atoi(argv[4]), atoi(argv[5]), argv[6]};
        probe_identity();
        probe_calls(&host);
        probe_files(&host);
    } else if (!strcmp(mode, "network") && argc == 6) {
        struct host host = {atoi(argv[4]), atoi(argv[5]), 0, NULL};
        probe_network(&host, argv[3]);
    } else if (!strcmp(mode, "facts")) {
        probe_facts();
    } else if (!strcmp(mode, "lower")) {
        say("S23", "layers-below", "%s", lower_is_unchanged() ? "unchanged" : "changed");
    } else if (!strcmp(mode, "agent")) {
        return probe_agent();
    } else if (!strcmp(mode, "write")) {
        return write_files();
    } else if (!strcmp(mode, "copy") && argc == 4) {
        return copy(argv[2], argv[3]);
    } else if (!strcmp(mode, "sleep")) {
        sleep_for_ever();
    } else if (!strcmp(mode, "flood") && argc == 3) {
        return flood(atol(argv[2]));
    } else if (!strcmp(mode, "suid")) {
        whoami();
    } else if (!strcmp(mode, "serve") && argc == 3) {
        return serve(atoi(argv[2]));
    } else {
        fputs("probe: wrong arguments\n", stderr);
        return 2;
    }
    return 0;
}
