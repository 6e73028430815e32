/* Who the step is, and who it can become. */
#include "probe.h"
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/wait.h>

static unsigned long long capabilities(unsigned int which) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    memset(data, 0, sizeof data);
    syscall(SYS_capget, &header, data);
    unsigned low = which == 0 ? data[0].effective : which == 1 ? data[0].permitted : data[0].inheritable;
    unsigned high = which == 0 ? data[1].effective : which == 1 ? data[1].permitted : data[1].inheritable;
    return (unsigned long long)high << 32 | low;
}

static unsigned long long set_of(int option, int suboption) {
    unsigned long long set = 0;
    for (int n = 0; n < 64; n++) {
        long has = suboption ? prctl(option, suboption, n, 0, 0) : prctl(option, n, 0, 0, 0);
        if (has == 1) set |= 1ull << n;
    }
    return set;
}

void whoami(void) {
    say("S18", "set-user-id-program", "uid=%d,caps=%llx", (int)geteuid(), capabilities(0));
}

static void id_map(void) {
    unsigned inside, outside, count;
    FILE *file = fopen("/proc/self/uid_map", "r");
    if (!file) { say("S18", "root-is-outside", "absent"); return; }
    int fields = fscanf(file, "%u %u %u", &inside, &outside, &count);
    fclose(file);
    say("S18", "root-is-outside", "%s", fields != 3 || inside != 0 ? "nobody" : outside == 0 ? "root" : "another");
}

void probe_identity(void) {
    say("S17", "uid", "%d", (int)getuid());
    say("S17", "effective", "%llx", capabilities(0));
    say("S17", "permitted", "%llx", capabilities(1));
    say("S17", "inheritable", "%llx", capabilities(2));
    say("S17", "bounding", "%llx", set_of(PR_CAPBSET_READ, 0));
    say("S17", "ambient", "%llx", set_of(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET));
    say("S17", "no_new_privs", "%d", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    say("S17", "securebits", "%d", prctl(PR_GET_SECUREBITS));
    say("S17", "seccomp", "%d", prctl(PR_GET_SECCOMP));
    say("S17", "session-leader", "%s", getsid(0) == getpid() ? "yes" : "no");
    id_map();
    pid_t pid = fork();
    if (pid == 0) {
        execl("/suid", "suid", "suid", label, NULL);
        say("S18", "set-user-id-program", "%s", word(-1));
        _exit(1);
    }
    waitpid(pid, NULL, 0);
}
