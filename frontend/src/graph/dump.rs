//! A graph as text, for snapshots and for `--debug`.

use std::fmt::Write as _;

use super::{BuildGraph, CopySource, Op, Role, Target};

impl BuildGraph {
    /// The graph as deterministic text: nodes in the order they were made, then targets with config and history.
    pub fn dump(&self) -> String {
        let mut out = String::new();
        for index in self.dag.node_indices() {
            let node = &self.dag[index];
            let inputs: Vec<String> = self
                .inputs(index)
                .into_iter()
                .map(|(input, from)| {
                    let role = match input.role {
                        Role::Root => "root".to_owned(),
                        Role::Source => "source".to_owned(),
                        Role::Added => "added".to_owned(),
                        Role::Mount(mount) => format!("mount{mount}"),
                    };
                    format!(" {role}=n{}", from.index())
                })
                .collect();
            line(&mut out, format_args!("n{} {}{}", index.index(), node.op.kind(), inputs.concat()));
            let lines =
                node.step.lines.map_or_else(String::new, |l| format!(" (lines {}-{})", l.first, l.last));
            line(&mut out, format_args!("    step {:?} stage {:?}{lines}", node.step.name, node.step.stage));
            describe(&mut out, &node.op);
        }
        for target in &self.targets {
            describe_target(&mut out, target);
        }
        out
    }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = out.write_fmt(text);
    out.push('\n');
}

fn describe(out: &mut String, op: &Op) {
    match op {
        Op::Scratch => {}
        Op::Image(op) => {
            line(out, format_args!("    {} {} {}", op.reference, op.manifest, op.platform));
        }
        Op::Context(op) => line(out, format_args!("    name {:?}", op.name)),
        Op::Http(op) => {
            line(out, format_args!("    url {:?} name {:?}", op.url, op.name));
            if let Some(checksum) = &op.checksum {
                line(out, format_args!("    checksum {checksum}"));
            }
        }
        Op::Git(op) => {
            let (remote, reference) = (&op.source.remote, &op.source.reference);
            line(out, format_args!("    remote {remote:?} reference {reference:?}"));
            let (subdir, checksum) = (&op.source.subdir, &op.source.checksum);
            line(out, format_args!("    subdir {subdir:?} checksum {checksum:?}"));
            let (submodules, keep) = (op.source.submodules, op.keep_git_dir);
            line(out, format_args!("    submodules {submodules} keep_git_dir {keep}"));
        }
        Op::Workdir(op) => line(out, format_args!("    path {:?} user {:?}", op.path, op.user)),
        Op::Copy(op) => {
            for source in &op.sources {
                match source {
                    CopySource::Path(path) => line(out, format_args!("    path {path:?}")),
                    CopySource::Below { pivot, pattern } => {
                        line(out, format_args!("    below {pivot:?} {pattern:?}"));
                    }
                    CopySource::Remote { slot, form } => {
                        line(out, format_args!("    remote {slot} {}", form.word()));
                    }
                    CopySource::Inline { name, content } => {
                        line(out, format_args!("    inline {name:?} {content:?}"));
                    }
                }
            }
            line(out, format_args!("    dest {:?}", op.dest));
            if let Some(chown) = &op.chown {
                line(out, format_args!("    chown {:?}", chown.text));
            }
            if let Some(chmod) = &op.chmod {
                line(out, format_args!("    chmod {chmod}"));
            }
            let link = if op.link { " link" } else { "" };
            line(out, format_args!("    from_context {} unpack {}{link}", op.from_context, op.unpack));
            for pattern in &op.exclude {
                line(out, format_args!("    exclude {pattern:?}"));
            }
        }
        Op::Run(op) => {
            line(out, format_args!("    argv {:?}", op.argv));
            for (name, value) in &op.env {
                line(out, format_args!("    env {name}={value:?}"));
            }
            for (name, value) in &op.proxy_env {
                line(out, format_args!("    proxy {name}={value:?}"));
            }
            line(out, format_args!("    cwd {:?} user {:?} network {:?}", op.cwd, op.user, op.network));
            if op.insecure {
                line(out, format_args!("    insecure"));
            }
            for mount in &op.mounts {
                line(out, format_args!("    mount {mount:?}"));
            }
            for device in &op.devices {
                let required = if device.required { " required" } else { "" };
                line(out, format_args!("    device {:?}{required}", device.name));
            }
            for name in &op.host_names {
                line(out, format_args!("    host {name:?}"));
            }
            if let Some(name) = &op.hostname {
                line(out, format_args!("    hostname {name:?}"));
            }
            line(out, format_args!("    platform {}", op.platform));
            if let Some(script) = &op.script {
                line(out, format_args!("    script {script:?}"));
            }
        }
    }
}

fn describe_target(out: &mut String, target: &Target) {
    let layers: Vec<String> = target.layers.iter().map(|node| format!(" n{}", node.index())).collect();
    let base = target.base.map_or_else(|| "none".to_owned(), |node| format!("n{}", node.index()));
    line(out, format_args!("target n{} stage {:?}", target.node.index(), target.stage));
    line(out, format_args!("    base {base} layers{}", layers.concat()));
    for step in &target.history {
        let kind = if step.empty_layer { "empty" } else { "layer" };
        line(out, format_args!("    {kind} {:?}", step.created_by));
    }
    line(out, format_args!("    config {}", String::from_utf8_lossy(&target.config.to_json())));
}
