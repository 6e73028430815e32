//! Changing any keyed field changes the key, and nothing else does: over every op, with values so few and so alike
//! that fields which run into each other would be found.

use proptest::prelude::*;
use rbuild_frontend::graph::{
    BindMount, CacheMount, Chown, ContextOp, CopyOp, CopySource, DeviceRequest, GitOp, HttpOp, ImageOp,
    Mount, Network, Op, RemoteForm, RunOp, SecretMount, Sharing, SshMount, TmpfsMount, WorkdirOp,
};
use rbuild_frontend::remote::GitSource;
use rbuild_oci::{Digest, Platform};

use super::*;
use crate::explain::record::fields;

fn text() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["", "a", "aa", "b", "a b", "path"]).prop_map(str::to_owned)
}

fn texts() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(text(), 0..3)
}

/// Names are unique, as lowering makes them.
fn variables() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::btree_map(prop::sample::select(vec!["A", "B", "AB"]), text(), 0..3)
        .prop_map(|map| map.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

fn platform() -> impl Strategy<Value = Platform> {
    prop::sample::select(vec!["linux/amd64", "linux/arm64", "linux/arm/v7"])
        .prop_map(|text| text.parse().expect("a platform"))
}

fn source() -> impl Strategy<Value = CopySource> {
    prop_oneof![
        text().prop_map(CopySource::Path),
        (text(), text()).prop_map(|(pivot, pattern)| CopySource::Below { pivot, pattern }),
        (text(), text()).prop_map(|(name, content)| CopySource::Inline { name, content }),
        (0..3_u16, form()).prop_map(|(slot, form)| CopySource::Remote { slot, form }),
    ]
}

fn form() -> impl Strategy<Value = RemoteForm> {
    prop::sample::select(vec![RemoteForm::File, RemoteForm::Archive, RemoteForm::Tree])
}

fn digest() -> impl Strategy<Value = Digest> {
    any::<bool>().prop_map(|bit| Digest::of(&[u8::from(bit)]))
}

fn http() -> impl Strategy<Value = Op> {
    (text(), text(), prop::option::of(digest()), prop::option::of(digest()))
        .prop_map(|(url, name, checksum, content)| Op::Http(HttpOp { url, name, checksum, content }))
}

fn git() -> impl Strategy<Value = Op> {
    let source = (text(), text(), text(), text(), any::<bool>()).prop_map(
        |(remote, reference, subdir, checksum, submodules)| GitSource {
            remote,
            reference,
            subdir,
            checksum,
            keep_git_dir: None,
            submodules,
        },
    );
    (source, any::<bool>(), prop::option::of(text()))
        .prop_map(|(source, keep_git_dir, commit)| Op::Git(GitOp { source, keep_git_dir, commit }))
}

fn copy() -> impl Strategy<Value = Op> {
    let modes = prop::sample::select(vec![None, Some("0755"), Some("0644"), Some("u+x"), Some("a+x")]);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let sources = prop::collection::vec(source(), 0..3);
    (sources, text(), prop::option::of(text()), modes, flags, texts()).prop_map(
        |(sources, dest, chown, mode, (from_context, unpack, link), exclude)| {
            Op::Copy(CopyOp {
                sources,
                dest,
                chown: chown.map(|text| Chown { text }),
                chmod: mode.map(|mode| mode.parse().expect("a mode")),
                from_context,
                unpack,
                link,
                exclude,
            })
        },
    )
}

fn mount() -> impl Strategy<Value = Mount> {
    let path = || prop::sample::select(vec!["/a", "/b", "/a/b"]).prop_map(str::to_owned);
    let number = || 0..2_u32;
    let owner = (number(), number(), number());
    prop_oneof![
        (path(), path(), any::<bool>(), any::<bool>()).prop_map(
            |(target, source, writable, from_context)| {
                Mount::Bind(BindMount { target, source, writable, from_context })
            }
        ),
        (path(), path(), path(), (any::<bool>(), any::<bool>(), any::<bool>()), owner.clone()).prop_map(
            |(target, id, source, (read_only, from_context, is_locked), (mode, uid, gid))| {
                let sharing = if is_locked { Sharing::Locked } else { Sharing::Shared };
                Mount::Cache(CacheMount {
                    target,
                    id,
                    sharing,
                    source,
                    from_context,
                    read_only,
                    mode,
                    uid,
                    gid,
                })
            }
        ),
        (path(), prop::option::of(1..3_u64))
            .prop_map(|(target, size_bytes)| Mount::Tmpfs(TmpfsMount { target, size_bytes })),
        (path(), prop::option::of(path()), prop::option::of(path()), any::<bool>(), owner.clone()).prop_map(
            |(id, target, env, required, (mode, uid, gid))| {
                Mount::Secret(SecretMount { id, target, env, required, mode, uid, gid })
            }
        ),
        (path(), path(), any::<bool>(), owner).prop_map(|(id, target, required, (mode, uid, gid))| {
            Mount::Ssh(SshMount { id, target, required, mode, uid, gid })
        }),
    ]
}

fn run() -> impl Strategy<Value = Op> {
    let networks = prop::sample::select(vec![Network::Default, Network::None, Network::Host]);
    let environment = (variables(), texts(), variables());
    let names = prop::collection::vec(prop::sample::select(vec!["h", "i"]).prop_map(str::to_owned), 0..3);
    let device = (text(), any::<bool>()).prop_map(|(name, required)| DeviceRequest { name, required });
    let devices = prop::collection::vec(device, 0..3);
    let mounts = prop::collection::vec(mount(), 0..3);
    let isolation = (networks, any::<bool>(), mounts, devices, names, prop::option::of(text()));
    (texts(), environment, text(), text(), isolation, platform(), prop::option::of(text())).prop_map(
        |(argv, (env, arg_names, proxy_env), cwd, user, isolation, platform, script)| {
            let (network, insecure, mounts, devices, host_names, hostname) = isolation;
            Op::Run(RunOp {
                argv,
                env,
                arg_names,
                proxy_env,
                cwd,
                user,
                network,
                insecure,
                mounts,
                devices,
                host_names,
                hostname,
                platform,
                script,
            })
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => Just(Op::Scratch),
        2 => http(),
        2 => git(),
        1 => (text(), digest(), platform()).prop_map(|(reference, manifest, platform)| {
            Op::Image(ImageOp { reference, manifest, platform })
        }),
        1 => prop::option::of(text()).prop_map(|name| Op::Context(ContextOp { name })),
        6 => copy(),
        2 => (text(), text()).prop_map(|(path, user)| Op::Workdir(WorkdirOp { path, user })),
        6 => run(),
    ]
}

/// The op with what its definition key must not see taken out.
fn defined(op: &Op) -> Op {
    let mut op = op.clone();
    match &mut op {
        Op::Image(image) => {
            image.reference = String::new();
            image.platform = Platform::host();
        }
        Op::Run(run) => {
            run.arg_names.clear();
            run.proxy_env.clear();
            for mount in &mut run.mounts {
                if let Mount::Cache(cache) = mount {
                    cache.id.clear();
                    cache.sharing = Sharing::Shared;
                }
            }
        }
        // What it is counts more than how it was asked for.
        Op::Http(http) if http.content.is_some() => {
            http.url.clear();
            http.checksum = None;
        }
        Op::Git(git) => {
            git.source.checksum.clear();
            if git.commit.is_some() {
                git.source.reference.clear();
            }
        }
        Op::Http(_) | Op::Scratch | Op::Context(_) | Op::Copy(_) | Op::Workdir(_) => {}
    }
    op
}

/// And what its content key must not see.
fn over_contents(op: &Op) -> Op {
    let mut op = defined(op);
    if let Op::Copy(copy) = &mut op {
        for source in &mut copy.sources {
            match source {
                CopySource::Path(path) => path.clear(),
                CopySource::Below { pivot, pattern } => {
                    pivot.clear();
                    pattern.clear();
                }
                CopySource::Remote { .. } | CopySource::Inline { .. } => {}
            }
        }
    }
    op
}

fn inputs() -> impl Strategy<Value = Vec<InputDigest>> {
    let input = (0..3_u16, 0..3_u8).prop_map(|(slot, byte)| InputDigest { slot, digest: [byte; 32] });
    prop::collection::vec(input, 0..3)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn keys_are_equal_exactly_when_all_keyed_fields_are(
        (a, b) in (op(), op()),
        (left, right) in (inputs(), inputs()),
    ) {
        let is_same_input = left == right;
        prop_assert_eq!(def_key(&a, &left) == def_key(&b, &right), defined(&a) == defined(&b) && is_same_input);
        let is_same = over_contents(&a) == over_contents(&b) && is_same_input;
        prop_assert_eq!(content_key(&a, &left) == content_key(&b, &right), is_same);
    }

    /// Two ops of one kind that differ in one field only, so that each field is seen to count on its own.
    #[test]
    fn each_field_counts_on_its_own((a, b) in prop_oneof![(copy(), copy()), (run(), run())], at in 0..14_usize) {
        let mut mixed = a.clone();
        match (&mut mixed, &b) {
            (Op::Copy(mixed), Op::Copy(b)) => match at {
                0 => mixed.sources.clone_from(&b.sources),
                1 => mixed.dest.clone_from(&b.dest),
                2 => mixed.chown.clone_from(&b.chown),
                3 => mixed.chmod.clone_from(&b.chmod),
                4 => mixed.from_context = b.from_context,
                5 => mixed.unpack = b.unpack,
                6 => mixed.link = b.link,
                _ => mixed.exclude.clone_from(&b.exclude),
            },
            (Op::Run(mixed), Op::Run(b)) => match at {
                0 => mixed.argv.clone_from(&b.argv),
                1 => mixed.env.clone_from(&b.env),
                2 => mixed.cwd.clone_from(&b.cwd),
                3 => mixed.user.clone_from(&b.user),
                4 => mixed.network = b.network,
                5 => mixed.platform.clone_from(&b.platform),
                6 => mixed.script.clone_from(&b.script),
                7 => mixed.arg_names.clone_from(&b.arg_names),
                8 => mixed.insecure = b.insecure,
                9 => mixed.mounts.clone_from(&b.mounts),
                10 => mixed.host_names.clone_from(&b.host_names),
                11 => mixed.hostname.clone_from(&b.hostname),
                12 => mixed.devices.clone_from(&b.devices),
                _ => mixed.proxy_env.clone_from(&b.proxy_env),
            },
            _ => {}
        }
        let is_same = defined(&a) == defined(&mixed);
        prop_assert_eq!(def_key(&a, &[]) == def_key(&mixed, &[]), is_same);
        // An explanation has a word for every keyed field: two ops with other keys never read the same.
        prop_assert!(is_same || fields(&a) != fields(&mixed), "{:?}\n{:?}", a, mixed);
    }
}
