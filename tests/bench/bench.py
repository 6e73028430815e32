#!/usr/bin/env python3
"""Measure image builders side by side. See README.md.

usage: bench.py run    [-n RUNS] [-t TOOL,...] [-c CASE,...] [-o RESULTS.jsonl]
       bench.py report RESULTS.jsonl...
       bench.py ratio  RESULTS.jsonl...        rbuild against docker, and against what was promised
       bench.py list
"""
import argparse, json, os, resource, shutil, signal, statistics, subprocess, sys, time

ENV = os.environ
REG = ENV.get("BENCH_REGISTRY", "127.0.0.1:5000")
DATA = os.path.abspath(ENV.get("BENCH_WORKLOADS", "workloads"))     # what gen.py wrote
WORK = os.path.abspath(ENV.get("BENCH_STATE", "state"))             # the tools' own stores
PATH = ENV.get("PEERS_BIN", "") + ":" + ENV["PATH"]
RUNTIME = ENV.get("BENCH_RUNTIME", "runc")                           # the OCI runtime that the peers use
TICK = os.sysconf("SC_CLK_TCK")


# ---- tools ------------------------------------------------------------------------------------------------------
# A tool gives: start() / stop(), reset() (empty every cache), build(ctx, ref, out, comp) -> argv.
# out: cache (result stays in the tool's store), oci (archive or directory on disk), push (to REG as ref).

class Tool:
    daemon = None                    # pid of a daemon whose CPU and memory count too

    def __init__(self, name):
        self.name, self.dir = name, f"{WORK}/{name}"

    def start(self): os.makedirs(self.dir, exist_ok=True)
    def stop(self): pass
    def before(self): pass           # untimed, ahead of every build


class Rbuild(Tool):
    # what a workload is about
    FLAGS = {"w20": ["--isolation", "single"], "w23": ["--sbom", "true"]}

    def reset(self): shutil.rmtree(f"{self.dir}/root", ignore_errors=True)

    def build(self, ctx, ref, out, comp):
        a = ["rbuild", "--root", f"{self.dir}/root", "build", "-q"]
        a += self.FLAGS.get(os.path.basename(ctx), [])
        c = f",compression={comp}" if comp != "gzip" else ""
        a += {"cache": ["-t", ref], "push": ["--output", f"type=image,name={ref},push=true{c}"],
              "oci": ["--output", f"type=oci,dest={self.dir}/out.tar{c}"]}[out]
        return a + [ctx]


class BuildKit(Tool):
    def start(self):
        super().start()
        self.addr = f"unix://{self.dir}/sock"
        cfg = f"{self.dir}/buildkitd.toml"
        with open(cfg, "w") as f:
            f.write(f'root = "{self.dir}/root"\n[grpc]\naddress = ["{self.addr}"]\n[worker.containerd]\nenabled = false\n'
                    f'[worker.oci]\ngc = false\nbinary = "{RUNTIME}"\n'
                    f'[registry."{REG}"]\nhttp = true\n')
        self.log = open(f"{self.dir}/log", "w")
        self.proc = subprocess.Popen(["buildkitd", "--config", cfg], stdout=self.log, stderr=self.log, env={**ENV, "PATH": PATH})
        self.daemon = self.proc.pid
        for _ in range(100):
            if self.ctl("debug", "workers").returncode == 0:
                return
            time.sleep(0.1)
        sys.exit("buildkitd did not start")

    def ctl(self, *a):
        return subprocess.run(["buildctl", "--addr", self.addr, *a], capture_output=True, env={**ENV, "PATH": PATH})

    def stop(self):
        self.proc.terminate()
        self.proc.wait()

    def reset(self):
        self.ctl("prune", "--all")
        self.ctl("prune-histories")

    def build(self, ctx, ref, out, comp):
        a = ["buildctl", "--addr", self.addr, "build", "--progress", "plain", "--frontend", "dockerfile.v0",
             "--local", f"context={ctx}", "--local", f"dockerfile={ctx}"]
        c = f",compression={comp}" if comp != "gzip" else ""
        a += {"cache": [], "oci": ["--output", f"type=oci,dest={self.dir}/out.tar{c}"],
              "push": ["--output", f"type=image,name={ref},push=true{c}"]}[out]
        return a


class Buildah(Tool):
    binary, flags = "buildah", ["--network", "host"]

    def store(self): return ["--root", f"{self.dir}/root", "--runroot", f"{self.dir}/run", "--storage-driver", "overlay"]

    def start(self):
        super().start()
        with open(f"{self.dir}/policy.json", "w") as f:
            f.write('{"default":[{"type":"insecureAcceptAnything"}]}')

    def reset(self):
        with open("/proc/self/mounts") as f:                     # what a failed build left
            left = [m for m in (l.split()[1] for l in f) if m.startswith(self.dir + "/")]
        for m in reversed(left):
            subprocess.run(["umount", m])
        for d in ("root", "run"):
            shutil.rmtree(f"{self.dir}/{d}", ignore_errors=True)

    def build(self, ctx, ref, out, comp):
        b = [self.binary, *self.store()]
        common = ["--tls-verify=false", "--signature-policy", f"{self.dir}/policy.json"]
        limits = [f"--ulimit={n}={resource.getrlimit(k)[1]}:{resource.getrlimit(k)[1]}"
                  for n, k in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC))]
        build = b + ["build", "--layers", "-q", "--runtime", RUNTIME, *limits, *common, *self.flags, "-t", ref, ctx]
        push = b + ["push", "-q", *common] + (["--compression-format", comp] if comp != "gzip" else []) + [ref]
        if out == "cache":
            return build
        if out == "oci":
            push += [f"oci-archive:{self.dir}/out.tar"]
            return ["sh", "-c", 'rm -f "$0"; ' + f"{join(build)} && exec {join(push)}", f"{self.dir}/out.tar"]
        return ["sh", "-c", f"{join(build)} && exec {join(push)}"]


class BuildahChroot(Buildah):
    flags = ["--isolation", "chroot", "--network", "host"]


class BuildahJobs(Buildah):
    flags = ["--network", "host", "--jobs", "4"]


class Docker(Tool):
    """Docker engine (Debian's docker.io) building with its own BuildKit; RUN on the host's network."""

    def start(self):
        super().start()
        self.sock = f"unix://{self.dir}/sock"
        self.log = open(f"{self.dir}/log", "w")
        self.proc = subprocess.Popen(
            ["dockerd", "--data-root", f"{self.dir}/root", "--exec-root", f"{self.dir}/exec", "-H", self.sock,
             "--pidfile", f"{self.dir}/pid", "--iptables=false", "--bridge=none", "--insecure-registry", REG],
            stdout=self.log, stderr=self.log)
        self.daemon = self.proc.pid
        for _ in range(150):
            if self.ctl("version").returncode == 0:
                return
            time.sleep(0.1)
        sys.exit("dockerd did not start")

    def ctl(self, *a):
        return subprocess.run(["/usr/bin/docker", "-H", self.sock, *a], capture_output=True)

    def stop(self):
        self.proc.terminate()
        self.proc.wait()

    def reset(self):
        self.ctl("system", "prune", "-af")
        self.ctl("builder", "prune", "-af")

    def build(self, ctx, ref, out, comp):
        d = ["env", "DOCKER_BUILDKIT=1", "/usr/bin/docker", "-H", self.sock]
        b = d + ["build", "-q", "--network", "host", "-t", ref, ctx]
        if out == "cache":
            return b
        if out == "oci":
            return ["sh", "-c", f"{join(b)} && exec {join(d + ['save', '-o', self.dir + '/out.tar', ref])}"]
        return ["sh", "-c", f"{join(b)} && exec {join(d + ['push', '-q', ref])}"]


class Kaniko(Tool):
    """kaniko builds in its own root filesystem: give it a fresh one, in a mount and pid namespace, for each build."""
    cache = False

    def reset(self): self.gen = f"{time.time_ns()}"

    def before(self):
        r = f"{self.dir}/rootfs"
        subprocess.run(["rm", "-rf", "--one-file-system", r], check=True)
        for d in ("kaniko", "workspace", "proc", "dev", "etc", "sys", "tmp"):
            os.makedirs(f"{r}/{d}")
        os.link(self.exe(), f"{r}/kaniko/executor")
        with open(f"{r}/etc/nsswitch.conf", "w") as f:
            f.write("hosts: files dns\n")

    def exe(self):
        e = f"{self.dir}/executor"
        if not os.path.exists(e):
            shutil.copy(shutil.which("kaniko-executor", path=PATH), e)
        return e

    def build(self, ctx, ref, out, comp):
        a = ["/kaniko/executor", "--force", "--insecure", "--insecure-pull", "--context", "dir:///workspace", "--destination", ref,
             "--verbosity", "warn", "--compression", comp]
        if out == "cache":
            a += ["--no-push"]
        if out == "oci":
            a += ["--no-push", "--tar-path", "/out.tar"]
        if self.cache:
            a += ["--cache", "--cache-copy-layers", "--cache-run-layers", "--cache-repo", f"{REG}/kcache{self.gen}"]
        r = f"{self.dir}/rootfs"
        sh = (f'mount --bind "{ctx}" "{r}/workspace"; mount -t proc proc "{r}/proc"; mount --rbind /dev "{r}/dev"; '
              f'exec chroot "{r}" "$@"')
        return ["unshare", "-m", "-p", "-f", "sh", "-ec", sh, "sh", *a]


class KanikoCache(Kaniko):
    cache = True


TOOLS = {"rbuild": Rbuild, "buildkit": BuildKit, "buildah": Buildah, "buildah-chroot": BuildahChroot,
         "buildah-jobs4": BuildahJobs, "docker": Docker,
         "kaniko": Kaniko, "kaniko-cache": KanikoCache}

# ---- cases ------------------------------------------------------------------------------------------------------
# name: (workload, base kept warm or None, out, compression, steps); steps: cold, noop, change, in that order
CASES = {
    "w1": ("w1", "node", "cache", "gzip", ("cold", "noop", "change")),
    "w1-push": ("w1", "node", "push", "gzip", ("cold", "noop", "change")),
    "w1-oci": ("w1", "node", "oci", "gzip", ("cold", "noop", "change")),
    "w2": ("w2", "busybox", "cache", "gzip", ("cold", "noop", "change")),
    "w2-push": ("w2", "busybox", "push", "gzip", ("cold", "noop", "change")),
    "w2-oci": ("w2", "busybox", "oci", "gzip", ("cold", "noop", "change")),
    "w3copy": ("w3copy", "debian", "cache", "gzip", ("cold", "noop")),
    "w3copy-push": ("w3copy", "debian", "push", "gzip", ("cold", "noop")),
    "w3copy-push-zstd": ("w3copy", "debian", "push", "zstd", ("cold",)),
    "w3run": ("w3run", "debian", "cache", "gzip", ("cold",)),
    "w3run-push": ("w3run", "debian", "push", "gzip", ("cold",)),
    "w3run-push-zstd": ("w3run", "debian", "push", "zstd", ("cold",)),
    "w4": ("w4", "busybox", "cache", "gzip", ("cold", "noop")),
    "w4-push": ("w4", "busybox", "push", "gzip", ("cold", "noop")),
    "w5": ("w5", "busybox", "cache", "gzip", ("cold", "noop")),
    "w6": ("w6", None, "cache", "gzip", ("cold", "noop")),
    "w6-push": ("w6", None, "push", "gzip", ("cold",)),
    "w7": ("w7", "debian", "cache", "gzip", ("cold",)),
    "w8": ("w8", "debian", "cache", "gzip", ("cold",)),
    "w9-push": ("w9", "debian", "push", "gzip", ("cold",)),
    "w10-push": ("w10", "busybox", "push", "gzip", ("cold", "noop")),
    "w11-push": ("w11", "busybox", "push", "gzip", ("cold", "noop", "change")),
    "w12-push": ("w12", "debian", "push", "gzip", ("cold",)),
    "w13-push": ("w13", "debian", "push", "gzip", ("cold",)),
    "w14-push": ("w14", None, "push", "gzip", ("cold",)),
    "w15-push": ("w15", "debian", "push", "gzip", ("cold", "noop")),
    "w16-push": ("w16", "busybox", "push", "gzip", ("cold", "noop")),
    "w17-push": ("w17", "debian", "push", "gzip", ("cold", "noop")),
    "w18-push": ("w18", None, "push", "gzip", ("cold", "noop")),
    "w19-push": ("w19", "debian", "push", "gzip", ("cold", "noop")),
    "w20-push": ("w20", None, "push", "gzip", ("cold",)),
    "w21-push": ("w21", "busybox", "push", "gzip", ("cold", "noop")),
    "w22-push": ("w22", "busybox", "push", "gzip", ("cold", "noop")),
    "w23-push": ("w23", "debian", "push", "gzip", ("cold", "noop")),
    "w24-push": ("w24", "debian", "push", "gzip", ("cold", "noop")),
    "w25-push": ("w25", "debian", "push", "gzip", ("cold", "noop")),
}
LONG = ("w13-push", "w14-push", "w15-push")                      # minutes each: only when they are asked for
CHANGE = {"w1": "src/index.js", "w2": "pkg07/d3/file7355.txt", "w11": "data/file100000.txt"}


def join(argv): return " ".join("'" + a.replace("'", "'\\''") + "'" for a in argv)


def cpu(pid):
    """User and system seconds of a process and of the children it has reaped."""
    with open(f"/proc/{pid}/stat") as f:
        v = f.read().rsplit(")", 1)[1].split()
    return (int(v[11]) + int(v[13])) / TICK, (int(v[12]) + int(v[14])) / TICK


def status_kib(pid, key):
    with open(f"/proc/{pid}/status") as f:
        return next(int(l.split()[1]) for l in f if l.startswith(key + ":"))


def timed(tool, argv):
    tool.before()
    d0 = (0, 0)
    if tool.daemon:
        with open(f"/proc/{tool.daemon}/clear_refs", "w") as f:
            f.write("5")                                     # the peak starts over
        d0 = cpu(tool.daemon)
    with open(f"{tool.dir}/build.log", "ab") as log:
        t = time.monotonic()
        p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**ENV, "PATH": PATH})
        _, st, ru = os.wait4(p.pid, 0)
        wall = time.monotonic() - t
        p.returncode = os.waitstatus_to_exitcode(st)
    r = {"wall": wall, "user": ru.ru_utime, "sys": ru.ru_stime, "rss": ru.ru_maxrss / 1024, "rc": p.returncode}
    if tool.daemon:
        time.sleep(0.3)                                      # let it reap
        d1 = cpu(tool.daemon)
        r["user"] += d1[0] - d0[0]
        r["sys"] += d1[1] - d0[1]
        r["rss"] += status_kib(tool.daemon, "VmHWM") / 1024
    return r


def edit(wl, n):
    """Add one line to one file (after taking away what an earlier run added)."""
    path = f"{DATA}/{wl}/{CHANGE[wl]}"
    with open(path, "rb") as f:
        old = f.read().split(b"//bench ")[0]
    with open(path, "wb") as f:
        f.write(old + (b"//bench %d\n" % n if n else b""))


def one(tool, case, i, out):
    wl, base, mode, comp, steps = CASES[case]
    uniq = time.time_ns()
    ref = f"{REG}/out/{case}-{uniq}:latest"                      # a fresh repository: nothing to skip on push
    if wl in CHANGE:
        edit(wl, 0)
    tool.reset()
    if base:
        timed(tool, tool.build(f"{DATA}/warm-{base}", f"{REG}/out/warm:latest", "cache", "gzip"))
    for step in steps:
        if step == "change":
            edit(wl, uniq)
        subprocess.run(["sync"])
        argv = tool.build(f"{DATA}/{wl}", ref, mode, comp)
        r = {"tool": tool.name, "case": case, "step": step, "run": i, **timed(tool, argv)}
        if i == 0:
            r["cmd"] = join(argv)
        out.write(json.dumps(r) + "\n")
        out.flush()
        print(f"{tool.name:15} {case:18} {step:7} {i} wall {r['wall']:8.3f} cpu {r['user'] + r['sys']:8.3f} "
              f"rss {r['rss']:6.0f}M rc {r['rc']}", flush=True)
        if r["rc"]:
            print(f"failed, see {tool.dir}/build.log", flush=True)
            break
    if wl in CHANGE:
        edit(wl, 0)


def run(a):
    tools = [TOOLS[t](t) for t in a.t]
    started = []
    try:
        for tool in tools:
            tool.start()
            started.append(tool)
        with open(a.o, "a") as out:
            for case in a.c:
                for i in range(a.n):                             # in turn, so that a drift hits all alike
                    for tool in tools:
                        one(tool, case, i, out)
                for tool in tools:
                    tool.reset()
    finally:
        for tool in started:
            tool.stop()


def report(files):
    rows = {}
    for fn in files:
        with open(fn) as f:
            for line in f:
                r = json.loads(line)
                if r["rc"] == 0:
                    rows.setdefault((r["case"], r["step"]), {}).setdefault(r["tool"], []).append(r)
    med = lambda v, k: statistics.median(x[k] for x in v)
    print("| case | step | tool | runs | wall s (min-max) | user s | sys s | peak MiB |\n|---|---|---|---|---|---|---|---|")
    for case in CASES:
        for step in ("cold", "noop", "change"):
            for tool, v in rows.get((case, step), {}).items():
                w = [x["wall"] for x in v]
                print(f"| {case} | {step} | {tool} | {len(v)} | {statistics.median(w):.2f} ({min(w):.2f}-{max(w):.2f}) "
                      f"| {med(v, 'user'):.2f} | {med(v, 'sys'):.2f} | {med(v, 'rss'):.0f} |")


# What is promised against `docker build` in one run: times faster, or seconds at most.
PROMISED = {
    ("w1", "noop"): ("times", 10),
    ("w2", "cold"): ("times", 8), ("w2", "noop"): ("times", 20), ("w2", "change"): ("times", 20),
    ("w2-push", "change"): ("times", 15),
    ("w3copy-push", "cold"): ("times", 14), ("w3run-push", "cold"): ("times", 12),
    ("w4", "cold"): ("times", 15), ("w5", "cold"): ("seconds", 2.06), ("w6", "cold"): ("times", 4),
    ("w7", "cold"): ("times", 5), ("w8", "cold"): ("times", 5),
}
# The most memory that any build may take: so much, and so much for each file of its context.
PEAK_MIB, PEAK_BYTES_A_FILE = 64, 300
FILES = {"w2": 20_000, "w10": 200_000, "w11": 200_000, "w21": 200_000, "w22": 500}


def ratio(files):
    """Prints the tables; True when every promise that was measured is kept."""
    walls, peaks = {}, {}
    for fn in files:
        with open(fn) as f:
            for line in f:
                r = json.loads(line)
                if r["rc"] == 0:
                    walls.setdefault((r["case"], r["step"], r["tool"]), []).append(r["wall"])
                    if r["tool"] == "rbuild":
                        peaks[r["case"]] = max(peaks.get(r["case"], 0), r["rss"])
    median = {k: statistics.median(v) for k, v in walls.items()}
    kept = True
    print("| case | step | docker s | rbuild s | times faster | promised | kept |\n|---|---|--:|--:|--:|---|---|")
    for case in CASES:
        for step in ("cold", "noop", "change"):
            ours, theirs = median.get((case, step, "rbuild")), median.get((case, step, "docker"))
            if ours is None and theirs is None:
                continue
            kind, amount = PROMISED.get((case, step), (None, 0))
            promise = {None: "", "times": f">= {amount} x", "seconds": f"<= {amount} s"}[kind]
            verdict = ""
            if kind and ours is not None and (theirs is not None or kind == "seconds"):
                good = theirs / ours >= amount if kind == "times" else ours <= amount
                verdict, kept = ("yes" if good else "NO"), kept and good
            show = lambda v: "" if v is None else f"{v:.3f}"
            times = f"{theirs / ours:.1f}" if ours and theirs else ""
            print(f"| {case} | {step} | {show(theirs)} | {show(ours)} | {times} | {promise} | {verdict} |")
    print("\n| case | rbuild's peak, MiB | promised | kept |\n|---|--:|---|---|")
    for case, peak in peaks.items():
        most = PEAK_MIB + FILES.get(CASES[case][0], 0) * PEAK_BYTES_A_FILE / 2**20
        kept = kept and peak <= most
        print(f"| {case} | {peak:.0f} | <= {most:.1f} | {'yes' if peak <= most else 'NO'} |")
    return kept


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("op", choices=("run", "report", "ratio", "list"))
    p.add_argument("files", nargs="*")
    p.add_argument("-n", type=int, default=3)
    p.add_argument("-t", type=lambda s: s.split(","), default=["rbuild"])
    p.add_argument("-c", type=lambda s: s.split(","), default=[case for case in CASES if case not in LONG])
    p.add_argument("-o", default="results.jsonl")
    a = p.parse_args()
    if a.op == "list":
        print("tools:", *TOOLS, "\ncases:", *CASES)
    elif a.op == "report":
        report(a.files)
    elif a.op == "ratio":
        sys.exit(0 if ratio(a.files) else 1)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        run(a)


main()
