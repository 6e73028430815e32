//! Provenance: how an image was made, as a SLSA predicate of BuildKit's build type.
//!
//! | | `min` | `max` too |
//! |---|---|---|
//! | request | frontend, target, platforms, named contexts, local contexts | build arguments, labels, ids of secrets and SSH agents |
//! | dependencies | images, commits and files with their digests, over all steps that the image comes from | |
//! | steps | | every operation, its lines, the Dockerfile, the layers |
//!
//! Values never go in that are secret: of secrets there is the id; addresses lose user, password and query; an argument
//! whose name looks like a secret's is there without its value, and its value nowhere (`redact`). With an epoch
//! nothing depends on when or how often it is built: times and the id of the build are left out.

mod definition;
mod document;
mod material;
mod redact;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use petgraph::graph::NodeIndex;
use rbuild_cache::scratch::Scratch;
use rbuild_frontend::graph::{BuildGraph, Mount, Network, Op, Target};
use rbuild_frontend::lint::looks_secret;
use rbuild_frontend::remote::without_user;
use rbuild_oci::Platform;
use serde_json::{Map, Value, json};

use crate::assemble::BuiltImage;
use crate::assemble::attestation::{Predicate, Said};
use crate::cli::{
    BuildRequest, ContextArg, Detail, DockerfileArg, NamedContextArg, ProvenanceArg, Pull, SlsaVersion,
};
use crate::context::files::{self, FoundDockerfile};
use crate::context::remote::Pinned;
use crate::git::local::Origin;
use crate::timestamp::rfc3339;

pub use document::Document;

use definition::{Definition, LOCATIONS, STEPS};
use document::LayerPlaces;
use material::Material;
use redact::Redaction;

/// Which structure a predicate of SLSA v1 has: BuildKit's.
const BUILD_TYPE_V1: &str =
    "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md";
/// The same for v0.2.
const BUILD_TYPE_V0_2: &str = "https://mobyproject.org/buildkit@v1";
/// What reads the Dockerfile.
const FRONTEND: &str = "dockerfile.v0";

/// What is known of a build once its images are assembled.
pub struct Facts<'a> {
    /// What was asked for.
    pub request: &'a BuildRequest,
    /// What was done.
    pub graph: &'a BuildGraph,
    /// The Dockerfile.
    pub dockerfile: &'a FoundDockerfile,
    /// What the main context is, when it was fetched.
    pub context: Option<&'a Pinned>,
    /// What named contexts that some step reads are, when they were fetched.
    pub named: &'a BTreeMap<String, Pinned>,
    /// Network of a RUN that does not say.
    pub network: Network,
    /// Which build this is, and when it began and ended, in nanoseconds since the epoch; `None` when it must not matter.
    pub invocation: Option<Invocation>,
}

/// One run of a build.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// Its id.
    pub id: String,
    /// When it began.
    pub started_ns: i64,
    /// When its images were there.
    pub finished_ns: i64,
}

impl Facts<'_> {
    /// What is said about the image of `target`; `image` says how its layers come about, where that is known.
    pub fn predicate(
        &self,
        target: &Target,
        image: Option<&BuiltImage>,
        arg: &ProvenanceArg,
        scratch: &Scratch,
    ) -> io::Result<Predicate> {
        Ok(Predicate {
            kind: arg.version.predicate_type(),
            said: Said::Provenance(self.document(target, image, arg, scratch)?),
            inline_only: arg.inline_only,
            file_name: arg.file_name.clone(),
        })
    }

    /// What it says.
    fn document(
        &self,
        target: &Target,
        image: Option<&BuiltImage>,
        arg: &ProvenanceArg,
        scratch: &Scratch,
    ) -> io::Result<Document> {
        let reachable = reachable(self.graph, target.node);
        let redaction = Redaction::of(&self.request.build_args);
        let is_full = arg.detail == Detail::Max;
        let definition = match is_full {
            true => Some(Definition::of(self.graph, &reachable, target.node, &redaction, scratch)?),
            false => None,
        };
        let mut parts = Parts {
            config_source: self.config_source(),
            request: self.parameters(&reachable, is_full),
            is_request_whole: is_full && !self.request.build_args.keys().any(|name| looks_secret(name)),
            materials: self.materials(&reachable).iter().map(Material::to_json).collect(),
            are_materials_whole: !self.reads_local(&reachable),
            is_hermetic: self.is_hermetic(&reachable),
            buildkit: Map::new(),
            definition: definition.as_ref().map(|_| json!({ STEPS: null })),
            arg,
        };
        if let Some(origin) = &self.request.origin {
            parts.buildkit.insert("vcs".to_owned(), self.repository(origin));
        }
        let mut layers = None;
        if let Some(definition) = &definition {
            parts.buildkit.insert("source".to_owned(), self.source(&redaction));
            parts.buildkit.insert("layers".to_owned(), json!({}));
            let keys = image.map(|image| definition.layer_keys(target, image)).unwrap_or_default();
            layers = Some(LayerPlaces { at: arg.version.layers_at(), keys });
        }
        let mut value = match arg.version {
            SlsaVersion::V1 => parts.v1(self.invocation.as_ref()),
            SlsaVersion::V0_2 => parts.v0_2(self.invocation.as_ref()),
        };
        redaction.apply(&mut value);
        Document::of(&value, definition, layers, scratch)
    }

    /// What the metadata file says: the predicate for each target's platform. Buildx's variables say how much of it.
    pub fn for_metadata(&self, scratch: &Scratch) -> io::Result<Vec<(Platform, Document)>> {
        let Some(detail) = self.request.results.metadata.provenance else { return Ok(Vec::new()) };
        let asked = self.request.results.attestations.provenance.clone().unwrap_or_default();
        let arg = ProvenanceArg { detail, ..asked };
        let targets = self.graph.targets.iter();
        let document = |target: &Target| self.document(target, None, &arg, scratch);
        targets.map(|target| Ok((target.config.platform.clone(), document(target)?))).collect()
    }

    /// Where the Dockerfile is from: the context when that was fetched, else only its name.
    fn config_source(&self) -> Vec<(&'static str, Value)> {
        let path = match (&self.dockerfile.path, &self.request.dockerfile) {
            (Some(path), _) => base_name(path),
            (None, Some(DockerfileArg::Path(path))) => path.display().to_string(),
            (None, _) => default_name(&self.dockerfile.display).to_owned(),
        };
        let pinned = self.dockerfile.pinned.as_ref().or(self.context);
        let mut fields = Vec::new();
        if let Some(material) = pinned.map(Material::of_pinned) {
            fields.push(("uri", json!(material.uri)));
            fields.push(("digest", material.digest_json()));
        }
        fields.push(("path", json!(path)));
        fields
    }

    /// Commit and remote of the context's repository, and where in it context and Dockerfile stand.
    fn repository(&self, origin: &Origin) -> Value {
        let context = match &self.request.context {
            ContextArg::Local(dir) => origin.place(dir),
            ContextArg::Stdin | ContextArg::Git(_) | ContextArg::Http(_) => None,
        };
        let dockerfile = self.dockerfile.path.as_deref().and_then(Path::parent);
        let of = |dir: &Path| origin.place(if dir.as_os_str().is_empty() { Path::new(".") } else { dir });
        let fields = [
            ("localdir:context", context),
            ("localdir:dockerfile", dockerfile.and_then(of)),
            ("revision", Some(origin.revision.clone())),
            ("source", origin.source.clone()),
        ];
        let told = fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), json!(value?))));
        Value::Object(told.collect())
    }

    fn parameters(&self, reachable: &[NodeIndex], is_full: bool) -> Value {
        let request = self.request;
        let mut args: BTreeMap<String, String> = BTreeMap::new();
        if let Some(target) = &request.target {
            args.insert("target".to_owned(), target.clone());
        }
        if !request.platforms.is_empty() {
            let list: Vec<String> = request.platforms.iter().map(ToString::to_string).collect();
            args.insert("platform".to_owned(), list.join(","));
        }
        if request.control.no_cache {
            args.insert("no-cache".to_owned(), String::new());
        }
        if request.control.pull == Pull::Always {
            args.insert("image-resolve-mode".to_owned(), "pull".to_owned());
        }
        match self.network {
            Network::Default => {}
            Network::None => drop(args.insert("force-network-mode".to_owned(), "none".to_owned())),
            Network::Host => drop(args.insert("force-network-mode".to_owned(), "host".to_owned())),
        }
        for (name, arg) in &request.named_contexts {
            args.insert(format!("context:{name}"), named_context(name, arg));
        }
        if is_full {
            for (name, value) in &request.build_args {
                args.insert(format!("build-arg:{name}"), redact::value_of(name, value));
            }
            for (name, value) in &request.labels {
                args.insert(format!("label:{name}"), value.clone());
            }
        }
        let mut parameters = json!({"frontend": FRONTEND, "args": args});
        if is_full {
            let (secrets, agents) = self.lent(reachable);
            for (key, ids) in [("secrets", secrets), ("ssh", agents)] {
                let list: Vec<Value> = ids
                    .into_iter()
                    .map(|(id, required)| match required {
                        true => json!({ "id": id }),
                        false => json!({"id": id, "optional": true}),
                    })
                    .collect();
                if !list.is_empty() {
                    parameters[key] = list.into();
                }
            }
        }
        let locals = self.locals();
        if !locals.is_empty() {
            let list: Vec<Value> = locals.into_iter().map(|name| json!({ "name": name })).collect();
            parameters["locals"] = list.into();
        }
        parameters
    }

    /// Ids of secrets and agents that steps are lent, and whether some step requires them.
    fn lent(&self, reachable: &[NodeIndex]) -> (BTreeMap<String, bool>, BTreeMap<String, bool>) {
        let (mut secrets, mut agents) = (BTreeMap::new(), BTreeMap::new());
        for node in reachable {
            let Op::Run(run) = &self.graph.dag[*node].op else { continue };
            for mount in &run.mounts {
                let (map, id, required) = match mount {
                    Mount::Secret(secret) => (&mut secrets, &secret.id, secret.required),
                    Mount::Ssh(ssh) => (&mut agents, &ssh.id, ssh.required),
                    Mount::Bind(_) | Mount::Cache(_) | Mount::Tmpfs(_) => continue,
                };
                *map.entry(id.clone()).or_insert(false) |= required;
            }
        }
        (secrets, agents)
    }

    /// What came from the machine that builds.
    fn locals(&self) -> Vec<String> {
        let mut locals = Vec::new();
        if matches!(self.request.context, ContextArg::Local(_) | ContextArg::Stdin) {
            locals.push("context".to_owned());
            if self.dockerfile.pinned.is_none() {
                locals.push("dockerfile".to_owned());
            }
        }
        let is_dir = |arg: &NamedContextArg| matches!(arg, NamedContextArg::Dir(_));
        let named = self.request.named_contexts.iter().filter(|(_, arg)| is_dir(arg));
        locals.extend(named.map(|(name, _)| name.clone()));
        locals
    }

    /// True when a step reads files whose origin nothing pins.
    fn reads_local(&self, reachable: &[NodeIndex]) -> bool {
        let is_unpinned = |node: &NodeIndex| match &self.graph.dag[*node].op {
            Op::Context(context) => match &context.name {
                None => self.context.is_none(),
                Some(name) => !self.named.contains_key(name),
            },
            _ => false,
        };
        self.dockerfile.pinned.is_none() && self.context.is_none() || reachable.iter().any(is_unpinned)
    }

    /// True when nothing but what is listed can have come in.
    fn is_hermetic(&self, reachable: &[NodeIndex]) -> bool {
        let may_ask = |node: &NodeIndex| match &self.graph.dag[*node].op {
            Op::Run(run) => match run.network {
                Network::Default => self.network != Network::None,
                network => network != Network::None,
            },
            _ => false,
        };
        !self.reads_local(reachable) && !reachable.iter().any(may_ask)
    }

    /// Everything that came from elsewhere, each once, in a fixed order.
    fn materials(&self, reachable: &[NodeIndex]) -> Vec<Material> {
        let mut materials: Vec<Material> = Vec::new();
        materials.extend(self.context.map(Material::of_pinned));
        materials.extend(self.dockerfile.pinned.as_ref().map(Material::of_pinned));
        for node in reachable {
            materials.extend(match &self.graph.dag[*node].op {
                Op::Image(image) => Some(Material::of_image(image)),
                Op::Http(http) => Material::of_http(http),
                Op::Git(git) => Material::of_git(git),
                Op::Context(context) => {
                    let name = context.name.as_ref();
                    name.and_then(|name| self.named.get(name)).map(Material::of_pinned)
                }
                Op::Scratch | Op::Copy(_) | Op::Workdir(_) | Op::Run(_) => None,
            });
        }
        materials.sort();
        materials.dedup();
        materials
    }

    /// The Dockerfile, and which of its lines each step is from.
    fn source(&self, redaction: &Redaction) -> Value {
        let text = String::from_utf8_lossy(&self.dockerfile.bytes);
        let data = redaction.text(&text);
        let filename = match &self.dockerfile.path {
            Some(path) => base_name(path),
            None => default_name(&self.dockerfile.display).to_owned(),
        };
        json!({
            LOCATIONS: null,
            "infos": [{"filename": filename, "language": "Dockerfile", "data": STANDARD.encode(data.as_bytes())}],
        })
    }
}

/// The parts that both versions put in their places.
struct Parts<'a> {
    config_source: Vec<(&'static str, Value)>,
    request: Value,
    is_request_whole: bool,
    materials: Vec<Value>,
    are_materials_whole: bool,
    is_hermetic: bool,
    buildkit: Map<String, Value>,
    definition: Option<Value>,
    arg: &'a ProvenanceArg,
}

impl Parts<'_> {
    fn v1(self, invocation: Option<&Invocation>) -> Value {
        let config_source: Map<String, Value> =
            self.config_source.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let mut internal = json!({"builderPlatform": Platform::host().to_string()});
        if let Some(definition) = self.definition {
            internal["buildConfig"] = definition;
        }
        let mut metadata = Map::new();
        if let Some(invocation) = invocation {
            metadata.insert("invocationId".to_owned(), json!(invocation.id));
            metadata.insert("startedOn".to_owned(), json!(moment(invocation.started_ns)));
            metadata.insert("finishedOn".to_owned(), json!(moment(invocation.finished_ns)));
        }
        metadata.insert("buildkit_metadata".to_owned(), self.buildkit.into());
        metadata.insert("buildkit_hermetic".to_owned(), json!(self.is_hermetic));
        metadata.insert(
            "buildkit_completeness".to_owned(),
            json!({"request": self.is_request_whole, "resolvedDependencies": self.are_materials_whole}),
        );
        metadata.insert("buildkit_reproducible".to_owned(), json!(self.arg.reproducible));
        json!({
            "buildDefinition": {
                "buildType": BUILD_TYPE_V1,
                "externalParameters": {"configSource": config_source, "request": self.request},
                "internalParameters": internal,
                "resolvedDependencies": self.materials,
            },
            "runDetails": {
                "builder": {"id": self.arg.builder_id, "version": {"rbuild": env!("CARGO_PKG_VERSION")}},
                "metadata": metadata,
            },
        })
    }

    fn v0_2(self, invocation: Option<&Invocation>) -> Value {
        let renamed = |key: &str| if key == "path" { "entryPoint" } else { key }.to_owned();
        let config_source: Map<String, Value> =
            self.config_source.into_iter().map(|(key, value)| (renamed(key), value)).collect();
        let mut metadata = Map::new();
        if let Some(invocation) = invocation {
            metadata.insert("buildInvocationID".to_owned(), json!(invocation.id));
            metadata.insert("buildStartedOn".to_owned(), json!(moment(invocation.started_ns)));
            metadata.insert("buildFinishedOn".to_owned(), json!(moment(invocation.finished_ns)));
        }
        metadata.insert(
            "completeness".to_owned(),
            json!({
                "parameters": self.is_request_whole,
                "environment": true,
                "materials": self.are_materials_whole,
            }),
        );
        metadata.insert("reproducible".to_owned(), json!(self.arg.reproducible));
        metadata.insert(format!("{BUILD_TYPE_V0_2}#hermetic"), json!(self.is_hermetic));
        metadata.insert(format!("{BUILD_TYPE_V0_2}#metadata"), self.buildkit.into());
        let mut predicate = json!({
            "builder": {"id": self.arg.builder_id},
            "buildType": BUILD_TYPE_V0_2,
            "materials": self.materials,
            "invocation": {
                "configSource": config_source,
                "parameters": self.request,
                "environment": {"platform": Platform::host().to_string()},
            },
            "metadata": metadata,
        });
        if let Some(definition) = self.definition {
            predicate["buildConfig"] = definition;
        }
        predicate
    }
}

impl SlsaVersion {
    fn predicate_type(self) -> &'static str {
        match self {
            Self::V1 => "https://slsa.dev/provenance/v1",
            Self::V0_2 => "https://slsa.dev/provenance/v0.2",
        }
    }

    fn layers_at(self) -> &'static str {
        match self {
            Self::V1 => "/runDetails/metadata/buildkit_metadata/layers",
            // `/` in a key is `~1` in a pointer.
            Self::V0_2 => "/metadata/https:~1~1mobyproject.org~1buildkit@v1#metadata/layers",
        }
    }
}

/// The nodes that a target comes from, inputs before consumers.
fn reachable(graph: &BuildGraph, target: NodeIndex) -> Vec<NodeIndex> {
    let mut seen = vec![false; graph.dag.node_count()];
    let mut work = vec![target];
    while let Some(node) = work.pop() {
        if !std::mem::replace(&mut seen[node.index()], true) {
            work.extend(graph.inputs(node).into_iter().map(|(_, producer)| producer));
        }
    }
    let order = petgraph::algo::toposort(&graph.dag, None).expect("the graph builder makes no cycles");
    order.into_iter().filter(|node| seen[node.index()]).collect()
}

/// As Buildx passes named contexts on: nothing of this machine's paths.
fn named_context(name: &str, arg: &NamedContextArg) -> String {
    match arg {
        NamedContextArg::Dir(_) => format!("local:{name}"),
        NamedContextArg::OciLayout { .. } => format!("oci-layout:{name}"),
        NamedContextArg::Image(None) => "docker-image://scratch".to_owned(),
        NamedContextArg::Image(Some(reference)) => format!("docker-image://{reference}"),
        NamedContextArg::Git(source) => source.to_string(),
        NamedContextArg::Http(source) => without_user(&source.url),
    }
}

fn base_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Of a Dockerfile that is no file here.
fn default_name(display: &str) -> &str {
    if files::DEFAULT_NAMES.contains(&display) { display } else { files::DEFAULT_NAMES[0] }
}

fn moment(unix_ns: i64) -> String {
    rfc3339(unix_ns.div_euclid(1_000_000_000), unix_ns.rem_euclid(1_000_000_000) as u32)
}

#[cfg(test)]
mod tests;
