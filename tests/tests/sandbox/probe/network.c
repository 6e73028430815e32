/* What can be reached: sockets, the host's services, System V and POSIX objects. The host's side of it is `serve`. */
#include "probe.h"
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <mqueue.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <stddef.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

static const char *kind_of_network;

/* A finding about one kind of network. */
static void found(const char *row, const char *name, long result) {
    char full[128];
    snprintf(full, sizeof full, "%s/%s", kind_of_network, name);
    outcome(row, full, result);
}

static long make(int family, int type, int protocol) {
    int fd = socket(family, type, protocol);
    if (fd >= 0) close(fd);
    return fd;
}

/* Connects within three seconds. */
static long reach(const char *address, int port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, address, &to.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) == 0) return 0;
    if (errno != EINPROGRESS) return -1;
    struct pollfd wait = {fd, POLLOUT, 0};
    if (poll(&wait, 1, 3000) != 1) { errno = ETIMEDOUT; return -1; }
    socklen_t size = sizeof errno;
    int error = 0;
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
    errno = error;
    return error ? -1 : 0;
}

static long bind_port(int port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    long result = bind(fd, (struct sockaddr *)&at, sizeof at);
    int error = errno;
    close(fd);
    errno = error;
    return result;
}

/* Asks the kernel to take the loopback device down. */
static long loopback_down(void) {
    struct { struct nlmsghdr header; struct ifinfomsg info; } request = {
        .header = {.nlmsg_len = sizeof request, .nlmsg_type = RTM_NEWLINK, .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK},
        .info = {.ifi_family = AF_UNSPEC, .ifi_index = 1, .ifi_change = IFF_UP},
    };
    struct { struct nlmsghdr header; struct nlmsgerr error; char rest[256]; } answer;
    int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    if (fd < 0 || send(fd, &request, sizeof request, 0) < 0 || recv(fd, &answer, sizeof answer, 0) < 0) return -1;
    errno = -answer.error.error;
    return answer.error.error ? -1 : 0;
}

static socklen_t abstract(struct sockaddr_un *address, int key) {
    address->sun_family = AF_UNIX;
    int length = snprintf(address->sun_path + 1, sizeof address->sun_path - 1, "rbuild-probe-%d", key);
    address->sun_path[0] = 0;
    return offsetof(struct sockaddr_un, sun_path) + 1 + length;
}

static void name_of(char *name, int key) { sprintf(name, "/rbuild-probe-%d", key); }

static void ipc(int key) {
    char name[64];
    name_of(name, key);
    outcome("S21", "shared-memory-of-the-host", shmget(key, 1, 0));
    outcome("S21", "semaphore-of-the-host", semget(key, 1, 0));
    outcome("S21", "message-queue-of-the-host", mq_open(name, O_RDONLY));
    outcome("S21", "/dev/shm-of-the-host", shm_open(name, O_RDONLY, 0));
    outcome("S21", "sethostname", sethostname("other", 5));
    outcome("S21", "setdomainname", setdomainname("other", 5));
}

void probe_network(const struct host *host, const char *kind) {
    kind_of_network = kind;
    struct sockaddr_un address;
    found("S13", "raw", make(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    found("S13", "packet", make(AF_PACKET, SOCK_RAW, 0));
    found("S13", "AF_ALG", make(AF_ALG, SOCK_SEQPACKET, 0));
    found("S13", "AF_VSOCK", make(AF_VSOCK, SOCK_STREAM, 0));
    found("S13", "loopback-down", loopback_down());
    found("S13", "bind-601", bind_port(601));
    found("S14", "loopback-of-the-host", reach("127.0.0.1", host->port));
    found("S14", "metadata-address", reach("169.254.169.254", 80));
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    socklen_t length = abstract(&address, host->key);
    found("S14", "abstract-socket-of-the-host", connect(fd, (struct sockaddr *)&address, length));
    if (!strcmp(kind, "default")) ipc(host->key);
}

/* Stands in for the host: makes what a step is to look for, says `PORT PID`, and takes it away when its input ends. */
int serve(int key) {
    char name[64], byte;
    struct sockaddr_un address;
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof any;
    umask(0);
    name_of(name, key);
    int tcp = socket(AF_INET, SOCK_STREAM, 0), local = socket(AF_UNIX, SOCK_STREAM, 0);
    int shared = shmget(key, 4096, IPC_CREAT | IPC_EXCL | 0666), semaphore = semget(key, 1, IPC_CREAT | IPC_EXCL | 0666);
    mqd_t queue = mq_open(name, O_CREAT | O_RDWR, 0666, NULL);
    int memory = shm_open(name, O_CREAT | O_RDWR, 0666);
    int ready = shared >= 0 && semaphore >= 0 && queue != (mqd_t)-1 && memory >= 0
        && bind(tcp, (struct sockaddr *)&any, sizeof any) == 0 && listen(tcp, 64) == 0
        && getsockname(tcp, (struct sockaddr *)&any, &size) == 0
        && bind(local, (struct sockaddr *)&address, abstract(&address, key)) == 0 && listen(local, 64) == 0;
    if (!ready) perror("probe serve");
    else {
        printf("%d %d\n", ntohs(any.sin_port), (int)getpid());
        fflush(stdout);
        while (read(0, &byte, 1) > 0) {}
    }
    if (shared >= 0) shmctl(shared, IPC_RMID, NULL);
    if (semaphore >= 0) semctl(semaphore, 0, IPC_RMID);
    mq_unlink(name);
    shm_unlink(name);
    return !ready;
}
