//! `RUN --mount`, `--network`, `--security`.

use petgraph::visit::IntoNodeReferences as _;

use super::*;
use crate::graph::{Mount, Role, Sharing};

#[track_caller]
fn mount(options: &str) -> Mount {
    bb(&format!("WORKDIR /w\nENV D=/d\nRUN --mount={options} x")).run().mounts[0].clone()
}

#[track_caller]
fn refused(options: &str, wanted: &str) {
    fails(&format!("FROM busybox\nRUN --mount={options} x"), wanted);
}

#[test]
fn defaults_are_docker_s() {
    let Mount::Bind(bind) = mount("target=sub") else { panic!("bind is the default") };
    assert_eq!((bind.target.as_str(), bind.source.as_str(), bind.writable), ("/w/sub", "", false));
    let Mount::Cache(cache) = mount("type=cache,target=$D/./c/") else { panic!("a cache") };
    assert_eq!((cache.target.as_str(), cache.id.as_str(), cache.mode), ("/d/c", "/d/c", 0o755));
    assert_eq!((cache.sharing, cache.read_only), (Sharing::Shared, false));
    let Mount::Secret(secret) = mount("type=secret,id=a/b") else { panic!("a secret") };
    assert_eq!(
        (secret.target.as_deref(), secret.mode, secret.required),
        (Some("/run/secrets/b"), 0o400, false)
    );
    let Mount::Secret(secret) = mount("type=secret,target=/x/token,required") else { panic!("a secret") };
    assert_eq!(
        (secret.id.as_str(), secret.target.as_deref(), secret.required),
        ("token", Some("/x/token"), true)
    );
    let Mount::Secret(secret) = mount("type=secret,id=a,env=A") else { panic!("a secret") };
    assert_eq!((secret.env.as_deref(), secret.target), (Some("A"), None));
    let built = bb("RUN --mount=type=ssh --mount=type=ssh,id=b,target=/s x");
    let targets: Vec<_> = built.run().mounts.iter().map(|mount| mount.target().unwrap_or_default()).collect();
    assert_eq!(targets, ["/run/buildkit/ssh_agent.0", "/s"]);
    assert_eq!(built.run_env("SSH_AUTH_SOCK"), Some("/run/buildkit/ssh_agent.0"));
    let built = bb("ENV SSH_AUTH_SOCK=/own\nRUN --mount=type=ssh x");
    assert_eq!(built.run_env("SSH_AUTH_SOCK"), Some("/own"));
}

#[test]
fn every_option_is_read() {
    let options =
        "type=cache,id=i,target=/c,sharing=LOCKED,from=busybox,source=/etc/../lib,mode=0700,uid=1,gid=2,ro";
    let Mount::Cache(cache) = mount(options) else { panic!("a cache") };
    assert_eq!((cache.id.as_str(), cache.sharing, cache.source.as_str()), ("i", Sharing::Locked, "lib"));
    assert_eq!((cache.mode, cache.uid, cache.gid, cache.read_only), (0o700, 1, 2, true));
    let Mount::Tmpfs(tmpfs) = mount("type=tmpfs,target=/t,size=64m") else { panic!("a tmpfs") };
    assert_eq!(tmpfs.size_bytes, Some(64 << 20));
    for (options, writable) in [("rw", true), ("rw=false", false), ("ro=false", true), ("readwrite=1", true)]
    {
        let Mount::Bind(bind) = mount(&format!("target=/m,{options}")) else { panic!("a bind") };
        assert_eq!(bind.writable, writable, "{options}");
    }
}

/// N4, N5: an allow-list of options, targets and sizes.
#[test]
fn golden_149_and_other_wrong_options() {
    for (options, wanted) in [
        ("type=tmpfs,target=/t,mode=700", "mode not allowed for \"tmpfs\" type mounts"),
        ("target=/t,uid=1", "uid not allowed for \"bind\" type mounts"),
        ("size=1m,type=tmpfs,target=/t", "unexpected key 'size' for mount type 'bind'"),
        ("type=tmpfs,target=/t,size=-1", "invalid value for size: -1"),
        ("type=tmpfs,target=/t,size=99999999999999g", "invalid value for size: 99999999999999g"),
        // Quotes of a flag are the Dockerfile's and gone when its value is read.
        ("\"target=/m,x\",rw", "invalid field 'x' must be a key=value pair"),
        ("type=tmpfs,target=/t,size=1m,exec", "invalid field 'exec' must be a key=value pair"),
        ("required,type=secret,id=a", "unexpected key 'required' for mount type 'bind'"),
        ("type=$T,target=/t", "unsupported mount type \"\""),
        ("type=secret", "invalid secret mount. one of source, target required"),
        ("type=secret,id=a,src=b", "both source and id can't be set"),
        ("type=secret,id=a,env=", "env must be the name of a variable"),
        ("type=secret,id=a,from=b", "secret mount should not have a from"),
        ("type=cache,target=/c,sharing=lock", "unsupported sharing value \"lock\" (did you mean locked?)"),
        ("target=/c,sharing=locked", "invalid cache sharing set for bind mount"),
        ("type=cache,target=/c,mode=9", "invalid value 9 for mode"),
        ("type=cache,target=/c,uid=x", "invalid value x for uid"),
        ("target=/m,rw=maybe", "invalid value for rw: maybe"),
        ("target=/m,bind-propagation=shared", "unexpected key 'bind-propagation'"),
        ("target=/", "invalid mount target \"/\""),
        ("target=/a/..", "invalid mount target \"/\""),
        ("target=/proc", "invalid mount target \"/proc\""),
        ("target=/proc/sys", "invalid mount target \"/proc/sys\""),
        ("target=/sys", "invalid mount target \"/sys\""),
        ("target=/dev", "invalid mount target \"/dev\""),
        ("target=/m --mount=type=tmpfs,target=/m/.", "duplicate mount target \"/m\""),
    ] {
        refused(options, wanted);
    }
}

#[test]
fn sources_are_stages_contexts_and_images() {
    let built = build(
        "FROM busybox AS a\nRUN one\nFROM busybox AS b\nRUN --mount=from=a,target=/a --mount=from=0,target=/n \
         --mount=from=alpine,source=/etc,target=/e --mount=target=/c two",
    );
    let (node, _) = built
        .graph
        .dag
        .node_references()
        .find(|(_, node)| matches!(&node.op, Op::Run(run) if run.mounts.len() == 4))
        .expect("the RUN with mounts");
    let inputs: Vec<_> = built
        .graph
        .inputs(node)
        .into_iter()
        .map(|(input, from)| (input.slot, input.role, built.graph.dag[from].op.kind()))
        .collect();
    let mounts = [(1, "run"), (2, "run"), (3, "image"), (4, "context")];
    let mut wanted = vec![(0, Role::Root, "image")];
    wanted.extend(mounts.map(|(slot, kind)| (slot, Role::Mount(slot - 1), kind)));
    assert_eq!(inputs, wanted);
    assert_eq!(built.asked, ["alpine", "busybox"]);
}

#[test]
fn a_later_stage_cannot_be_mounted() {
    fails(
        "FROM busybox AS a\nRUN --mount=from=b,target=/m x\nFROM busybox AS b\nCOPY --from=a x y",
        "circular dependency detected on stage: a",
    );
    fails(
        "FROM busybox AS a\nRUN --mount=from=b,target=/m x\nFROM busybox AS b\nRUN y\nFROM a",
        "cannot mount from stage \"b\" to \"/m\", stage needs to be defined before current command",
    );
    refused("from=9,target=/m", "invalid stage index 9");
}

#[test]
fn triggers_may_mount() {
    let mut trigger = busybox();
    trigger.config.on_build = vec!["RUN --mount=from=tools,target=/t x".to_owned()];
    let images = BTreeMap::from([("base", trigger)]);
    let text = "FROM busybox AS tools\nRUN make\nFROM base";
    let built = drive(text, options(|_| {}), &images).expect("builds");
    assert_eq!(built.run().mounts[0].target(), Some("/t"));
    assert!(built.names().iter().any(|name| name.contains("RUN make")), "the trigger reaches the stage");
}

#[test]
fn entitlements_come_from_the_command_line() {
    for (flag, what) in [("--network=host", "network.host"), ("--security=insecure", "security.insecure")] {
        fails(&format!("FROM busybox\nRUN {flag} x"), &format!("{what} is not allowed"));
    }
    let all = |o: &mut LowerOptions| {
        o.entitlements = Entitlements { host_network: true, insecure: true, ssh: true };
        o.network = Network::None;
    };
    let text = "FROM busybox\nRUN --network=host --security=insecure x";
    let built = build_with(text, options(all));
    assert_eq!((built.run().network, built.run().insecure), (Network::Host, true));
    let built = build_with("FROM busybox\nRUN x", options(all));
    assert_eq!((built.run().network, built.run().insecure), (Network::None, false));
    build("FROM busybox\nRUN --security=sandbox --network=default x");
}

#[test]
fn what_a_cache_or_secret_holds_is_not_in_the_identity_but_the_declaration_is() {
    let key = |options: &str| {
        let built = bb(&format!("RUN --mount={options} x"));
        let mut out = rbuild_oci::CanonicalWriter::new("test");
        out.value(&Op::Run(built.run().clone()));
        out.finish()
    };
    assert_eq!(key("type=cache,target=/c,id=a"), key("type=cache,target=/c,id=b,sharing=locked"));
    for (a, b) in [
        ("type=cache,target=/c", "type=cache,target=/d"),
        ("type=cache,target=/c", "type=cache,target=/c,ro"),
        ("type=cache,target=/c", "type=cache,target=/c,uid=1"),
        ("type=cache,target=/c", "type=tmpfs,target=/c"),
        ("type=tmpfs,target=/c", "type=tmpfs,target=/c,size=1m"),
        ("type=secret,id=a,target=/s", "type=secret,id=b,target=/s"),
        ("type=secret,id=a", "type=secret,id=a,env=A"),
        ("target=/m,source=a", "target=/m,source=b"),
        ("target=/m", "target=/m,rw"),
        ("type=ssh", "type=ssh,id=b"),
    ] {
        assert_ne!(key(a), key(b), "{a} {b}");
    }
}
