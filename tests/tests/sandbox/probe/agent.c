/* Talks to the SSH agent that a step is given, as draft-ietf-sshm-ssh-agent has it. */
#include "probe.h"
#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { FAILURE = 5, REQUEST_IDENTITIES = 11, IDENTITIES_ANSWER = 12, SIGN_REQUEST = 13, SIGN_RESPONSE = 14,
       REMOVE_ALL_IDENTITIES = 19 };

static uint32_t number(const unsigned char *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static size_t put(unsigned char *at, uint32_t value) {
    for (int n = 0; n < 4; n++) at[n] = value >> (24 - 8 * n);
    return 4;
}

static int all(int fd, unsigned char *bytes, size_t size, int writes) {
    while (size > 0) {
        ssize_t count = writes ? write(fd, bytes, size) : read(fd, bytes, size);
        if (count <= 0) return 0;
        bytes += count;
        size -= count;
    }
    return 1;
}

/* Sends a message and reads the answer; its type, or -1. */
static int ask(int fd, unsigned char *body, size_t size, unsigned char *answer, size_t room) {
    unsigned char head[4];
    put(head, size);
    if (!all(fd, head, 4, 1) || !all(fd, body, size, 1) || !all(fd, head, 4, 0) || number(head) > room) return -1;
    return all(fd, answer, number(head), 0) ? answer[0] : -1;
}

int probe_agent(void) {
    static unsigned char answer[1 << 16], request[1 << 16];
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *path = getenv("SSH_AUTH_SOCK");
    if (!path) { say("N8", "agent", "no-variable"); return 1; }
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) { outcome("N8", "agent", -1); return 1; }
    request[0] = REQUEST_IDENTITIES;
    int type = ask(fd, request, 1, answer, sizeof answer);
    say("N8", "agent-keys", "%d", type == IDENTITIES_ANSWER ? (int)number(answer + 1) : -1);
    if (type != IDENTITIES_ANSWER || number(answer + 1) == 0) return 1;
    /* type, count, then for each key a blob and a comment. */
    uint32_t blob = number(answer + 5);
    size_t size = 0;
    request[size++] = SIGN_REQUEST;
    size += put(request + size, blob);
    memcpy(request + size, answer + 9, blob);
    size += blob;
    size += put(request + size, 4);
    memcpy(request + size, "data", 4);
    size += 4;
    size += put(request + size, 0);
    say("N8", "agent-signs", "%s", ask(fd, request, size, answer, sizeof answer) == SIGN_RESPONSE ? "yes" : "no");
    request[0] = REMOVE_ALL_IDENTITIES;
    type = ask(fd, request, 1, answer, sizeof answer);
    say("N8", "agent-forgets", "%s", type == FAILURE || type == -1 ? "no" : "yes");
    return 0;
}
