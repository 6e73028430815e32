//! The steps of a build, in the shape of BuildKit's `llbDefinition`: numbered operations with their inputs.

use std::collections::HashMap;
use std::io::{self, BufReader};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use petgraph::graph::NodeIndex;
use rbuild_cache::scratch::Scratch;
use rbuild_frontend::graph::{
    BuildGraph, CopyOp, CopySource, DeviceRequest, GitOp, HttpOp, Mount, Network, Op, Role, RunOp, Sharing,
    Target,
};
use rbuild_frontend::remote::without_user;
use rbuild_frontend::span::Lines;
use serde::ser::{Error as _, SerializeSeq as _};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::redact::{self, Redaction};
use crate::assemble::BuiltImage;
use crate::assemble::attestation::Keys;
use crate::assemble::file_blob::FileBlob;

/// `pb.MountType` of BuildKit.
const MOUNT_BIND: u8 = 0;
const MOUNT_SECRET: u8 = 1;
const MOUNT_SSH: u8 = 2;
const MOUNT_CACHE: u8 = 3;
const MOUNT_TMPFS: u8 = 4;

/// The key of all steps.
pub(super) const STEPS: &str = "llbDefinition";
/// The key of their lines.
pub(super) const LOCATIONS: &str = "locations";

/// Numbered steps.
#[derive(Debug, Clone)]
pub(crate) struct Definition {
    /// One JSON object after the other.
    steps: FileBlob,
    lines: Vec<Option<Lines>>,
    numbers: HashMap<NodeIndex, usize>,
}

impl Definition {
    /// The steps of `nodes`, which come in topological order, and a last one that stands for the result.
    pub(super) fn of(
        graph: &BuildGraph,
        nodes: &[NodeIndex],
        target: NodeIndex,
        redaction: &Redaction,
        scratch: &Scratch,
    ) -> io::Result<Self> {
        let is_step = |node: &&NodeIndex| !matches!(graph.dag[**node].op, Op::Scratch);
        let numbers: HashMap<NodeIndex, usize> =
            nodes.iter().filter(is_step).enumerate().map(|(number, node)| (*node, number)).collect();
        let output = |node: &NodeIndex| numbers.get(node).map(|number| key(*number));
        let mut lines = Vec::with_capacity(numbers.len());
        let steps = FileBlob::write(scratch, |out| {
            let mut write = |mut step: Value| {
                redaction.apply(&mut step);
                serde_json::to_writer(&mut *out, &step)
            };
            for (number, node) in nodes.iter().filter(is_step).enumerate() {
                let inputs = graph.inputs(*node);
                let listed: Vec<(Role, Option<usize>)> = {
                    let mut next = 0;
                    let mut number = |producer: &NodeIndex| {
                        let has = numbers.contains_key(producer);
                        next += usize::from(has);
                        has.then(|| next - 1)
                    };
                    inputs.iter().map(|(input, producer)| (input.role, number(producer))).collect()
                };
                let op = operation(&graph.dag[*node].op, &listed, redaction);
                let inputs = inputs.iter().filter_map(|(_, producer)| output(producer)).collect();
                write(entry(number, Some(op), inputs))?;
                lines.push(graph.dag[*node].step.lines);
            }
            write(entry(numbers.len(), None, output(&target).into_iter().collect()))?;
            Ok(())
        })?;
        Ok(Self { steps, lines, numbers })
    }

    /// The steps as a list.
    pub(super) fn steps(&self, keys: Keys) -> impl Serialize {
        Steps { definition: self, keys }
    }

    /// Lines of the Dockerfile by step.
    pub(super) fn locations(&self, keys: Keys) -> impl Serialize {
        Locations { definition: self, keys }
    }

    /// For each layer of the image the step that it is from.
    pub(super) fn layer_keys(&self, target: &Target, image: &BuiltImage) -> Vec<String> {
        let base = target.base.and_then(|node| self.numbers.get(&node).map(|number| key(*number)));
        let base_count = image.layers.len().saturating_sub(target.layers.len());
        let own = target.layers.iter().map(|node| self.numbers.get(node).map(|number| key(*number)));
        let keys = std::iter::repeat_n(base, base_count).chain(own);
        keys.map(|key| key.unwrap_or_else(|| "unknown".to_owned())).collect()
    }
}

fn entry(number: usize, op: Option<Value>, inputs: Vec<String>) -> Value {
    let mut entry = Map::new();
    entry.insert("id".to_owned(), json!(format!("step{number}")));
    if let Some(op) = op {
        entry.insert("op".to_owned(), op);
    }
    if !inputs.is_empty() {
        entry.insert("inputs".to_owned(), json!(inputs));
    }
    entry.into()
}

/// Read one at a time.
struct Steps<'a> {
    definition: &'a Definition,
    keys: Keys,
}

impl Serialize for Steps<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let file = BufReader::new(self.definition.steps.reader());
        let mut list = serializer.serialize_seq(None)?;
        for step in serde_json::Deserializer::from_reader(file).into_iter::<Value>() {
            list.serialize_element(&self.keys.of(step.map_err(S::Error::custom)?))?;
        }
        list.end()
    }
}

struct Locations<'a> {
    definition: &'a Definition,
    keys: Keys,
}

impl Serialize for Locations<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let lines = self.definition.lines.iter().enumerate();
        let mut named: Vec<(String, Lines)> =
            lines.filter_map(|(number, lines)| Some((format!("step{number}"), (*lines)?))).collect();
        if self.keys == Keys::Sorted {
            // `step10` before `step2`.
            named.sort_by(|(one, _), (other, _)| one.cmp(other));
        }
        let location = |lines: Lines| {
            let range = json!({"start": {"line": lines.first}, "end": {"line": lines.last}});
            self.keys.of(json!({"locations": [{"ranges": [range]}]}))
        };
        serializer.collect_map(named.into_iter().map(|(name, lines)| (name, location(lines))))
    }
}

fn key(number: usize) -> String {
    format!("step{number}:0")
}

fn operation(op: &Op, inputs: &[(Role, Option<usize>)], redaction: &Redaction) -> Value {
    let source = |identifier: String, attrs: Map<String, Value>| {
        let mut source = json!({ "identifier": identifier });
        if !attrs.is_empty() {
            source["attrs"] = attrs.into();
        }
        json!({"Op": {"source": source}})
    };
    match op {
        Op::Scratch => json!({}),
        Op::Image(image) => {
            let scheme = if image.reference.starts_with("oci-layout://") { "" } else { "docker-image://" };
            let name = match image.reference.strip_prefix("oci-layout://") {
                Some(dir) => format!("oci-layout://{}", dir.rsplit('/').next().unwrap_or_default()),
                None => image.reference.split('@').next().unwrap_or_default().to_owned(),
            };
            let mut step = source(format!("{scheme}{name}@{}", image.manifest), Map::new());
            step["platform"] = json!(image.platform);
            step
        }
        Op::Context(context) => {
            let name = context.name.as_deref().unwrap_or("context");
            source(format!("local://{name}"), Map::new())
        }
        Op::Http(http) => source(without_user(&http.url), http_attributes(http)),
        Op::Git(git) => source(format!("git://{}", git_address(git)), git_attributes(git)),
        Op::Workdir(workdir) => {
            let mkdir = json!({"path": workdir.path, "mode": 0o755, "makeParents": true});
            file(&[json!({"Action": {"mkdir": mkdir}})], inputs)
        }
        Op::Copy(copy) => file(&copies(copy, redaction), inputs),
        Op::Run(run) => exec(run, inputs, redaction),
    }
}

fn http_attributes(http: &HttpOp) -> Map<String, Value> {
    let mut attrs = Map::new();
    attrs.insert("http.filename".to_owned(), json!(http.name));
    if let Some(checksum) = &http.checksum {
        attrs.insert("http.checksum".to_owned(), json!(checksum));
    }
    attrs
}

fn git_address(git: &GitOp) -> String {
    let address = without_user(&git.source.remote);
    let address = address.split_once("://").map_or(address.as_str(), |(_, rest)| rest);
    let subdir = &git.source.subdir;
    let part = git.commit.as_deref().unwrap_or(&git.source.reference);
    match subdir.as_str() {
        "" => format!("{address}#{part}"),
        subdir => format!("{address}#{part}:{subdir}"),
    }
}

fn git_attributes(git: &GitOp) -> Map<String, Value> {
    let mut attrs = Map::new();
    attrs.insert("git.fullurl".to_owned(), json!(without_user(&git.source.remote)));
    if git.keep_git_dir {
        attrs.insert("git.keepgitdir".to_owned(), json!("true"));
    }
    attrs
}

/// A step that changes files by itself: all actions on the root.
fn file(actions: &[Value], inputs: &[(Role, Option<usize>)]) -> Value {
    let slot = |role: fn(&Role) -> bool| {
        inputs.iter().find(|(found, _)| role(found)).and_then(|(_, at)| *at).map_or(-1, |at| at as i64)
    };
    let root = slot(|role| *role == Role::Root);
    let from = slot(|role| matches!(role, Role::Source | Role::Added));
    let last = actions.len().saturating_sub(1);
    let action = |(at, action): (usize, &Value)| {
        let mut action = action.clone();
        let is_copy = action.pointer("/Action/copy").is_some();
        // Each action works on the result of the one before it.
        action["input"] = json!(if at == 0 { root } else { (inputs.len() + at) as i64 - 1 });
        action["secondaryInput"] = json!(if is_copy { from } else { -1 });
        action["output"] = json!(if at == last { 0 } else { -1 });
        action
    };
    json!({"Op": {"file": {"actions": actions.iter().enumerate().map(action).collect::<Vec<_>>()}}})
}

fn copies(copy: &CopyOp, redaction: &Redaction) -> Vec<Value> {
    let action = |source: &CopySource| match source {
        CopySource::Inline { name, content } => {
            let path = match copy.dest.strip_suffix('/') {
                Some(dir) => format!("{dir}/{name}"),
                None => copy.dest.clone(),
            };
            let data = STANDARD.encode(redaction.text(content).as_bytes());
            json!({"Action": {"mkfile": {"path": path, "data": data}}})
        }
        CopySource::Path(path) => copied(copy, &format!("/{path}")),
        CopySource::Below { pivot, pattern } => copied(copy, &format!("/{pivot}/./{pattern}")),
        CopySource::Remote { .. } => copied(copy, "/"),
    };
    copy.sources.iter().map(action).collect()
}

fn copied(copy: &CopyOp, from: &str) -> Value {
    let mut parts = Map::new();
    parts.insert("src".to_owned(), json!(from));
    parts.insert("dest".to_owned(), json!(copy.dest));
    parts.insert("dirCopyContents".to_owned(), json!(true));
    parts.insert("createDestPath".to_owned(), json!(true));
    parts.insert("allowWildcard".to_owned(), json!(true));
    if copy.unpack {
        parts.insert("attemptUnpackDockerCompatibility".to_owned(), json!(true));
    }
    if let Some(chown) = &copy.chown {
        parts.insert("owner".to_owned(), json!(chown.text));
    }
    if let Some(mode) = &copy.chmod {
        parts.insert("modeStr".to_owned(), json!(mode.to_string()));
    }
    if !copy.exclude.is_empty() {
        parts.insert("excludePatterns".to_owned(), json!(copy.exclude));
    }
    json!({"Action": {"copy": parts}})
}

fn exec(run: &RunOp, inputs: &[(Role, Option<usize>)], redaction: &Redaction) -> Value {
    let env: Vec<String> = run
        .env
        .iter()
        .map(|(name, value)| format!("{name}={}", redaction.text(&redact::value_of(name, value))))
        .collect();
    let mut meta = json!({"args": run.argv, "env": env, "cwd": run.cwd});
    if !run.user.is_empty() {
        meta["user"] = json!(run.user);
    }
    if !run.host_names.is_empty() {
        let hosts: Vec<Value> = run.host_names.iter().map(|name| json!({ "host": name })).collect();
        meta["extraHosts"] = hosts.into();
    }
    let slot = |wanted: Role| inputs.iter().find(|(role, _)| *role == wanted).and_then(|(_, at)| *at);
    let mut mounts = vec![json!({"input": slot(Role::Root).map_or(-1, |at| at as i64), "dest": "/"})];
    for (index, mount) in run.mounts.iter().enumerate() {
        let input = u16::try_from(index).ok().and_then(|index| slot(Role::Mount(index)));
        let mut entry = mounted(mount);
        entry["input"] = json!(input.map_or(-1, |at| at as i64));
        // What is written there is no output.
        entry["output"] = json!(-1);
        mounts.push(entry);
    }
    if let Some(script) = &run.script {
        let data = STANDARD.encode(redaction.text(script).as_bytes());
        mounts.push(json!({"input": -1, "output": -1, "dest": run.argv.first(), "data": data}));
    }
    let mut exec = json!({"meta": meta, "mounts": mounts});
    match run.network {
        Network::Default => {}
        Network::Host => exec["network"] = json!(1),
        Network::None => exec["network"] = json!(2),
    }
    if run.insecure {
        exec["security"] = json!(1);
    }
    if !run.devices.is_empty() {
        let device = |device: &DeviceRequest| json!({"name": device.name, "optional": !device.required});
        exec["cdiDevices"] = run.devices.iter().map(device).collect();
    }
    json!({"Op": {"exec": exec}, "platform": run.platform})
}

fn mounted(mount: &Mount) -> Value {
    let lent = |id: &str, mode: u32, uid: u32, gid: u32, required: bool| json!({"ID": id, "mode": mode, "uid": uid, "gid": gid, "optional": !required});
    match mount {
        Mount::Bind(bind) => json!({
            "dest": bind.target,
            "selector": bind.source,
            "readonly": !bind.writable,
            "mountType": MOUNT_BIND,
        }),
        Mount::Cache(cache) => {
            let sharing = match cache.sharing {
                Sharing::Shared => 0,
                Sharing::Private => 1,
                Sharing::Locked => 2,
            };
            json!({
                "dest": cache.target,
                "selector": cache.source,
                "readonly": cache.read_only,
                "mountType": MOUNT_CACHE,
                "cacheOpt": {"ID": cache.id, "sharing": sharing},
            })
        }
        Mount::Tmpfs(tmpfs) => json!({
            "dest": tmpfs.target,
            "mountType": MOUNT_TMPFS,
            "TmpfsOpt": {"size": tmpfs.size_bytes.unwrap_or(0)},
        }),
        Mount::Secret(secret) => json!({
            "dest": secret.target,
            "mountType": MOUNT_SECRET,
            "secretOpt": lent(&secret.id, secret.mode, secret.uid, secret.gid, secret.required),
        }),
        Mount::Ssh(ssh) => json!({
            "dest": ssh.target,
            "mountType": MOUNT_SSH,
            "SSHOpt": lent(&ssh.id, ssh.mode, ssh.uid, ssh.gid, ssh.required),
        }),
    }
}
