/* What the parts of the probe share. Every finding is one line on standard output: `probe USER ROW NAME OUTCOME`. */
#ifndef PROBE_H
#define PROBE_H
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What the test that runs the probe knows and the step must not reach. */
struct host {
    int port;           /* a listener on the host's loopback */
    int key;            /* of System V and POSIX objects, and part of an abstract socket's name */
    int pid;            /* a process of the host */
    const char *marker; /* a file of the host */
};

/* A word of the environment of whoever builds; it must be nowhere in a step. */
#define CANARY "canary-b7d1"

/* Whose findings these are. */
extern const char *label;

/* Prints a finding. The outcome is one word. */
void say(const char *row, const char *name, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* The outcome of a call, from its result and errno: `ok` or the error's name. */
void outcome(const char *row, const char *name, long result);
/* `ok` or the name of errno. */
const char *word(long result);

/* Many calls that are to fail alike: one finding, which names those that do not. */
struct group { char text[1024]; const char *expected; };
void group_add(struct group *group, const char *name, long result);
void group_say(const char *row, const char *name, struct group *group);

/* Makes a call and prints its outcome under its own name. */
#define CALL(row, name, ...) \
    do { errno = 0; long result_ = syscall(SYS_##name, ##__VA_ARGS__); outcome(row, #name, result_); } while (0)
/* Makes a call of a group. The call first, errno after it: the order of arguments is nobody's promise. */
#define MEMBER(group, name, call) \
    do { errno = 0; long result_ = (call); group_add(&(group), name, result_); } while (0)

void probe_files(const struct host *host);
void probe_calls(const struct host *host);
void probe_identity(void);
void probe_facts(void);
void probe_network(const struct host *host, const char *kind);

#endif
