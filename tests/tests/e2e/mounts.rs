//! `RUN --mount`, as root and as an ordinary user.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::Result;
use rbuild_tests::git::GitServer;
use rbuild_tests::web::{Reply, Web};
use rbuild_tests::{Registry, TestEnv, bases, judge, need};

use crate::world;

/// The same for root and for an ordinary user.
fn for_each_user(test: impl Fn(TestEnv) -> Result<()>) -> Result<()> {
    let registry = Registry::shared()?;
    test(TestEnv::new()?.using(&registry)?)?;
    test(TestEnv::rootless()?.using(&registry)?)
}

const BINDS: &str = "FROM busybox AS tools\n\
    RUN mkdir -p /opt/sub && echo tool > /opt/tool && ln -s / /opt/up && ln -s tool /opt/link\n\
    FROM busybox\n\
    WORKDIR /w\n\
    RUN --mount=target=/ctx --mount=source=one.txt,target=one --mount=from=tools,source=/opt,target=/t \\\n\
        --mount=from=0,source=opt/link,target=/linked --mount=from=busybox,source=/etc,target=/e <<EOF\n\
        set -e\n\
        [ \"$(ls -A /ctx)\" = \"$(printf 'Dockerfile\\ndir\\none.txt')\" ]\n\
        [ \"$(cat /ctx/dir/two.txt one)\" = \"$(printf '2\\n1')\" ]\n\
        [ \"$(stat -c %u:%g /ctx /ctx/dir/two.txt | sort -u)\" = 0:0 ]\n\
        [ \"$(cat /t/tool /linked)\" = \"$(printf 'tool\\ntool')\" ]\n\
        [ -f /e/passwd ]\n\
        ! touch /ctx/x 2> /dev/null\n\
        ! touch /t/x 2> /dev/null\n\
        ! mount | grep -E ' /(ctx|t|e|linked) ' | grep -vE 'ro,.*nosuid,.*nodev|nosuid,nodev'\n\
        echo seen > /out\n\
    EOF\n\
    RUN --mount=from=tools,source=/opt,target=/t,rw --mount=target=/ctx,rw \\\n\
        touch /t/x /ctx/x && rm /ctx/one.txt && echo changed > /t/tool\n\
    RUN --mount=from=tools,source=/opt,target=/t --mount=target=/ctx,rw \\\n\
        [ ! -e /t/x ] && [ -e /ctx/one.txt ] && [ \"$(cat /t/tool)\" = tool ]\n\
    RUN --mount=from=tools,source=/opt,target=/a --mount=type=tmpfs,target=/a/sub/deep,size=1m \\\n\
        --mount=type=tmpfs,target=/usr/new/place <<EOF\n\
        set -e\n\
        echo x > /a/sub/deep/f\n\
        touch /usr/new/place/f\n\
        ! dd if=/dev/zero of=/a/sub/deep/g bs=1k count=2000 2> /dev/null\n\
        ! touch /a/sub/f 2> /dev/null\n\
    EOF\n";

const FILES: &[(&str, &str)] =
    &[("one.txt", "1\n"), ("dir/two.txt", "2\n"), (".dockerignore", ".dockerignore\nno\n"), ("no", "")];

/// N3, N9: what is written to a mount is gone with it, and so is its mount point.
#[test]
fn trees_are_mounted_and_leave_no_trace() -> Result<()> {
    need!(Root, Registry, Bases, Judges, Subuid);
    for_each_user(|env| {
        let context = env.context("binds", BINDS, FILES)?;
        let archive = env.work().join("binds.tar");
        let output = format!("type=oci,dest={}", archive.display());
        env.build(&context, &["-t", "binds", "-o", &output])?.ok();
        let image = judge::unpack(&format!("oci-archive:{}", archive.display()))?;
        assert_eq!(image.text("/out")?, "seen\n");
        let listing = image.listing()?;
        for trace in ["ctx", "t", "e", "a", "linked", "w/one", "usr/new"] {
            let is_there = |line: &&String| line.split(' ').next() == Some(trace);
            assert!(!listing.iter().any(|line| is_there(&line)), "{trace} is in the image");
        }
        env.build(&context, &["-t", "binds"])?.ok().assert_all_cached();
        env.assert_nothing_left();
        Ok(())
    })
}

#[test]
fn the_key_has_the_mounted_part_only() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let text = "FROM busybox AS tools\nCOPY tool other /opt/\nFROM busybox\n\
        RUN --mount=source=dir,target=/m --mount=from=tools,source=/opt/tool,target=/tool cat /m/f /tool\n";
    let context = env.context("part", text, &[("dir/f", "1\n"), ("tool", "t\n"), ("other", "o\n")])?;
    let run = |name: &str, text: &str| -> Result<bool> {
        fs::write(context.join(name), text)?;
        let run = env.build(&context, &[])?.ok();
        Ok(run.executed().iter().any(|step| step.contains("cat /m/f")))
    };
    assert!(run("dir/f", "1\n")?, "the first time");
    assert!(!run("unrelated", "x")?, "another file of the context");
    assert!(!run("other", "changed\n")?, "another file of the stage");
    assert!(run("tool", "changed\n")?, "the mounted file of the stage");
    assert!(run("dir/f", "2\n")?, "the mounted file of the context");
    Ok(())
}

#[test]
fn fetched_contexts_are_mounted_like_any_other() -> Result<()> {
    need!(Root, Registry, Bases, Judges, Subuid);
    let server = GitServer::start(None)?;
    server.repository("app")?.commit(&[("sub/f", "of the repository"), ("sub/.dockerignore", "*\n")])?;
    let packed = TestEnv::new()?;
    let dir = packed.context("packed", "", &[("f", "of the archive")])?;
    let archive = dir.with_extension("tar");
    let status = std::process::Command::new("tar")
        .args(["--owner=7", "--group=8", "-cf"])
        .arg(&archive)
        .arg("-C")
        .arg(&dir)
        .arg("f")
        .status()?;
    assert!(status.success());
    let archive = fs::read(archive)?;
    let web = Web::serve(move |request| match request.path.as_str() {
        "/context.tar" => Reply::new(200).body(archive.clone()),
        _ => Reply::new(404),
    })?;
    let text = "FROM busybox\n\
        RUN --mount=from=repository,target=/r --mount=from=archive,source=f,target=/a \\\n\
            --mount=from=layout,source=/bin,target=/l --mount=from=image,source=/etc/passwd,target=/i <<EOF\n\
            set -e\n\
            [ \"$(cat /r/f)\" = \"of the repository\" ]\n\
            [ \"$(cat /a)\" = \"of the archive\" ]\n\
            [ \"$(stat -c %u:%g /a)\" = 7:8 ]\n\
            [ -x /l/busybox ]\n\
            grep -q ^root: /i\n\
            ! touch /r/x 2> /dev/null\n\
        EOF\n";
    for_each_user(|env| {
        let context = env.context("main", text, &[])?;
        let registry = Registry::shared()?;
        // Where an ordinary user can read it.
        let layout = env.work().join("layout");
        let from = bases::dir()?.join("busybox");
        assert!(std::process::Command::new("cp").arg("-RL").args([&from, &layout]).status()?.success());
        let named = [
            format!("repository={}#main:sub", server.url("app")),
            format!("archive={}", web.url("/context.tar")),
            format!("layout=oci-layout://{}:latest", layout.display()),
            format!("image=docker-image://{}/library/busybox:latest", registry.host()),
        ];
        let args: Vec<&str> = named.iter().flat_map(|named| ["--build-context", named]).collect();
        env.build(&context, &args)?.ok();
        env.build(&context, &args)?.ok().assert_all_cached();
        env.assert_nothing_left();
        Ok(())
    })
}

#[test]
fn a_missing_source_fails_before_anything_runs() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let text = "FROM busybox\nRUN echo ran\nRUN --mount=source=nothing,target=/m true\n";
    let context = env.context("missing", text, &[])?;
    let run = env.build(&context, &[])?.exits(1).says(&["\"/nothing\": not found", "Dockerfile:3"]);
    assert!(!run.stderr.contains("0.0 ran") && run.executed().is_empty(), "{run}");
    let text = "FROM busybox\nRUN --mount=from=busybox,source=/none,target=/m true\n";
    let context = env.context("missing-image", text, &[])?;
    env.build(&context, &[])?.exits(1).says(&["\"/none\": not found"]);
    env.assert_nothing_left();
    Ok(())
}

/// N1: links start at the root of what is mounted.
#[test]
fn links_in_sources_never_lead_to_the_host() -> Result<()> {
    need!(Root, Registry, Bases, Subuid);
    for_each_user(|env| {
        let text = "FROM busybox AS evil\nRUN ln -s / /root-link && ln -s /proc/1/root /magic && mkdir /in && ln -s ../../../.. /in/up\n\
            FROM busybox\n\
            RUN --mount=from=evil,source=root-link,target=/a --mount=from=evil,source=in/up,target=/b \\\n\
                --mount=source=link,target=/c [ -e /a/root-link ] && [ -e /b/root-link ] && [ \"$(ls /c)\" = inside ]\n";
        let context = env.context("links", text, &[("host/inside", "")])?;
        // Absolute links start at the context's root.
        symlink("/host", context.join("link"))?;
        env.build(&context, &[])?.ok();
        let text = "FROM busybox AS evil\nRUN ln -s /proc/1/root /magic\n\
            FROM busybox\nRUN --mount=from=evil,source=magic,target=/a ls /a\n";
        let context = env.context("magic", text, &[])?;
        env.build(&context, &[])?.exits(1).says(&["not found"]);
        env.assert_nothing_left();
        Ok(())
    })
}

const SECRETS: &str = "FROM busybox\n\
    RUN --mount=type=secret,id=file --mount=type=secret,id=var,env=TOKEN,target=/t/token,mode=0440,uid=7,gid=8 \\\n\
        --mount=type=secret,id=absent <<EOF\n\
        set -e\n\
        [ \"$(stat -c '%a %u:%g' /run/secrets/file)\" = '400 0:0' ]\n\
        [ \"$(stat -c '%a %u:%g' /t/token)\" = '440 7:8' ]\n\
        [ \"$(cat /t/token)\" = \"$TOKEN\" ]\n\
        [ ! -e /run/secrets/absent ]\n\
        ! echo x > /run/secrets/file 2> /dev/null\n\
        cat /run/secrets/file\n\
        echo \"the token is $TOKEN\" >&2\n\
        md5sum < /run/secrets/file > /sum\n\
    EOF\n\
    RUN --mount=type=secret,id=var,env=TOKEN [ ! -e /run/secrets ] && [ -n \"$TOKEN\" ]\n";

/// Every file below a directory that contains a text.
fn holders(dir: &std::path::Path, text: &str) -> Result<Vec<String>> {
    let output = std::process::Command::new("grep").args(["-rlaF", "--", text]).arg(dir).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

/// N8, X1, X3: files with their modes and owners, in no layer, key, log or file.
#[test]
fn secrets_reach_the_step_and_nothing_else() -> Result<()> {
    need!(Root, Registry, Bases, Subuid);
    let (file, token) = ("canary-file-5f0c1e2d9b", "canary-token-77aa31c04e");
    for_each_user(|env| {
        let env = env.with_variable("MY_TOKEN", token);
        let context = env.context("secrets", SECRETS, &[])?;
        let path = env.write("home/file.txt", &format!("{file}\n"))?;
        let archive = env.work().join("secrets.tar");
        let output = format!("type=oci,dest={}", archive.display());
        let secret = format!("id=file,src={}", path.display());
        let args = ["-t", "s", "-o", &output, "--secret", &secret, "--secret", "id=var,env=MY_TOKEN"];
        let run = env.build(&context, &args)?.ok().says(&["***", "the token is ***"]);
        assert!(!run.stderr.contains(file) && !run.stderr.contains(token), "{run}");
        // Another content changes no key, and neither does none.
        fs::write(&path, "something else\n")?;
        env.build(&context, &args)?.ok().assert_all_cached();
        env.build(&context, &[])?.ok().assert_all_cached();
        for text in [file, token] {
            for dir in [env.work(), env.dir().join("tmp")] {
                assert_eq!(holders(&dir, text)?, Vec::<String>::new(), "{text}");
            }
        }
        env.assert_nothing_left();
        Ok(())
    })
}

/// N8, X2: nor when a step fails; a required one that is missing fails before.
#[test]
fn secrets_of_failing_steps_stay_secret_too() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let token = "canary-fails-0a1b2c3d4e";
    let env = env.with_variable("T", token);
    let text = "FROM busybox\nRUN --mount=type=secret,id=T,env=T echo $T; echo $T >&2; kill -9 $$\n";
    let context = env.context("fails", text, &[])?;
    let run = env.build(&context, &["-D", "--secret", "id=T"])?.exits(1);
    assert!(!run.stderr.contains(token) && run.stderr.contains("***"), "{run}");
    for dir in [env.work(), env.dir().join("tmp")] {
        assert_eq!(holders(&dir, token)?, Vec::<String>::new());
    }
    let text = "FROM busybox\nRUN --mount=type=secret,id=none,required echo ran\n";
    let context = env.context("required", text, &[])?;
    let run = env.build(&context, &[])?.exits(1).says(&[
        "secret none: not found",
        "--secret id=none",
        "Dockerfile:2",
    ]);
    assert!(!run.stderr.lines().any(|line| line.ends_with(" ran") && !line.contains("RUN")), "{run}");
    env.build(&context, &["--secret", "id=none,src=/no/such"])?
        .exits(1)
        .says(&["failed to read secret none"]);
    let big = env.write("home/big", &"x".repeat((500 << 10) + 1))?;
    let secret = format!("id=none,src={}", big.display());
    env.build(&context, &["--secret", &secret])?.exits(1).says(&["secret none too big"]);
    env.assert_nothing_left();
    Ok(())
}

const CACHES: &str = "FROM busybox AS seed\n\
    RUN mkdir /seed && echo seeded > /seed/f\n\
    FROM busybox\n\
    ARG N\n\
    RUN --mount=type=cache,target=/c --mount=type=cache,id=two,target=/d,mode=0700,uid=5,gid=6 \\\n\
        --mount=type=cache,id=seeded,target=/s,from=seed,source=/seed,sharing=locked <<EOF\n\
        set -e\n\
        : $N\n\
        echo x >> /c/count\n\
        echo \"uses: $(wc -l < /c/count)\"\n\
        [ \"$(stat -c '%a %u:%g' /c)\" = '755 0:0' ]\n\
        [ \"$(stat -c '%a %u:%g' /d)\" = '700 5:6' ]\n\
        [ \"$(cat /s/f)\" = seeded ]\n\
    EOF\n\
    RUN --mount=type=cache,id=/c,target=/other,ro --mount=type=cache,target=/c/nested : $N; \\\n\
        [ -s /other/count ] && ! touch /other/x 2> /dev/null && touch /c/nested/y\n";

/// N7: a cache belongs to one store and namespace, and to no layer.
#[test]
fn caches_outlive_builds_and_are_in_no_layer() -> Result<()> {
    need!(Root, Registry, Bases, Judges, Subuid);
    for_each_user(|env| {
        let context = env.context("caches", CACHES, &[])?;
        let archive = env.work().join("caches.tar");
        let output = format!("type=oci,dest={}", archive.display());
        env.build(&context, &["--build-arg", "N=1", "-o", &output])?.ok().says(&["uses: 1"]);
        env.build(&context, &["--build-arg", "N=1"])?.ok().assert_all_cached();
        env.build(&context, &["--build-arg", "N=2"])?.ok().says(&["uses: 2"]);
        let apart = ["--build-arg", "N=3", "--build-arg", "BUILDKIT_CACHE_MOUNT_NS=apart"];
        env.build(&context, &apart)?.ok().says(&["uses: 1"]);
        let image = judge::unpack(&format!("oci-archive:{}", archive.display()))?;
        for trace in ["c", "d", "s", "other"] {
            assert!(!image.root().join(trace).exists(), "{trace} is in the image");
        }
        let list = env.run(["cache", "mounts", "ls", "--format", "json"])?.ok();
        assert_eq!(list.stdout.lines().count(), 8, "{list}");
        assert!(list.stdout.contains("\"Namespace\":\"apart\""), "{list}");
        let usage = env.run(["du", "-v"])?.ok();
        assert!(usage.stdout.contains("exec.cachemount"), "{usage}");
        env.run(["cache", "mounts", "rm", "two"])?.ok();
        assert!(!env.run(["cache", "mounts", "ls"])?.ok().stdout.contains(" two "));
        env.run(["cache", "mounts", "rm", "two-and-a-half"])?.exits(1).says(&["no such cache mount"]);
        env.run(["prune", "-f", "--filter", "type=exec.cachemount"])?.ok();
        assert_eq!(env.run(["cache", "mounts", "ls", "--format", "json"])?.ok().stdout, "");
        // Only caches went.
        env.build(&context, &["--build-arg", "N=1"])?.ok().assert_all_cached();
        env.assert_nothing_left();
        Ok(())
    })
}

/// N6: the kernel frees what a killed build held.
#[test]
fn a_locked_cache_has_one_user_and_a_killed_one_frees_it() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let text = |command: &str| {
        format!("FROM busybox\nRUN --mount=type=cache,id=l,target=/l,sharing=locked {command}\n")
    };
    // The pipe says when the first build has the cache.
    let holder = env.context("holder", &text("echo mine > /l/f && mkdir /l/held && sleep 600"), &[])?;
    let holder = holder.to_str().unwrap_or_default().to_owned();
    let first = env.start(env.command(["build", "--progress", "plain", &holder]))?;
    let held = || -> bool {
        let mounts = fs::read_dir(env.store().join("mounts")).into_iter().flatten().flatten();
        mounts.into_iter().any(|mount| mount.path().join("data/held").exists())
    };
    let begun = std::time::Instant::now();
    while !held() {
        anyhow::ensure!(
            begun.elapsed() < std::time::Duration::from_secs(120),
            "the first build never had it"
        );
        std::thread::yield_now();
    }
    let waiter = env.context("waiter", &text("cat /l/f"), &[])?;
    let waiter = waiter.to_str().unwrap_or_default().to_owned();
    let mut command = env.command(["build", "--progress", "plain", &waiter]);
    command.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
    let mut second = command.spawn()?;
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(second.stderr.take().unwrap()));
    let said = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("waiting for the cache `l`")));
    let said = said.transpose()?.unwrap_or_default();
    assert!(said.contains(&format!("pid {}", first.pid())), "{said}");
    // In use, and so not to be removed.
    env.run(["cache", "mounts", "rm", "--all"])?.exits(1).says(&["is in use"]);
    let pid = rustix::process::Pid::from_raw(first.pid().cast_signed()).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    let rest: Vec<String> = lines.collect::<std::io::Result<_>>()?;
    assert!(second.wait()?.success(), "{rest:?}");
    assert!(rest.iter().any(|line| line.ends_with(" mine")), "{rest:?}");
    assert_eq!(first.finish()?.code, None);
    Ok(())
}

#[test]
fn entitlements_hosts_and_limits_reach_the_step() -> Result<()> {
    need!(Root, Registry, Bases, Subuid);
    for_each_user(|env| {
        let text = "FROM busybox\nRUN <<EOF\n\
            set -e\n\
            grep -q '^192.0.2.7.registry.test$' /etc/hosts\n\
            [ \"$(ulimit -n)\" = 100 ]\n\
            df -k /dev/shm | grep -q ' 2048 '\n\
            grep -q CapEff:.00000000a80425fb /proc/self/status\n\
            EOF\n";
        let context = env.context("limits", text, &[])?;
        let flags =
            ["--add-host", "registry.test:192.0.2.7", "--ulimit", "nofile=100:200", "--shm-size", "2m"];
        env.build(&context, &flags)?.ok();
        // Addresses and limits are in no key, names are.
        env.build(&context, &["--add-host", "registry.test=192.0.2.8"])?.ok().assert_all_cached();
        env.build(&context, &[])?.exits(1);
        let text = "FROM busybox\nRUN --security=insecure grep -q 'Seccomp:.0' /proc/self/status && \\\n\
            ! grep -q CapEff:.00000000a80425fb /proc/self/status\n";
        let context = env.context("insecure", text, &[])?;
        env.build(&context, &[])?
            .exits(1)
            .says(&["security.insecure is not allowed", "--allow security.insecure"]);
        env.build(&context, &["--allow", "security.insecure"])?.ok();
        env.assert_nothing_left();
        Ok(())
    })
}

/// Q1, Q2: processes and memory.
#[test]
fn limits_of_a_step_hold_or_are_said_not_to() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let text = "FROM busybox\nRUN head -c 200m /dev/zero | tail\n";
    let context = env.context("memory", text, &[])?;
    let run = env.build(&context, &["--resource", "memory=32m,memory-swap=32m"])?;
    if run.stderr.contains("limits that are not enforced here") {
        assert_eq!(run.code, Some(0), "{run}");
    } else {
        run.exits(1).says(&["ran out of memory (limit: 33554432 bytes)"]);
    }
    let many = "FROM busybox\nRUN for i in $(seq 200); do sleep 300 & done\n";
    let context = env.context("many", many, &[])?;
    let run = env.build(&context, &["--resource", "pids=30"])?;
    if run.stderr.contains("limits that are not enforced here") {
        assert_eq!(run.code, Some(0), "{run}");
    } else {
        run.exits(1).says(&["can't fork"]);
    }
    env.build(&context, &["--resource", "memory=lots"])?.exits(125);
    env.assert_nothing_left();
    Ok(())
}
