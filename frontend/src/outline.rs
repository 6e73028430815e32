//! What a Dockerfile offers: its targets, and what one of them takes. From the text alone, no image is needed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::ast::{Dockerfile, Instruction, InstructionKind};
use crate::expand;
use crate::parse::mount::option;
use crate::span::Lines;
use crate::stage::{StageError, Stages, sources_of};

/// A stage that can be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetInfo {
    /// Name in lower case; empty for a stage without one.
    pub name: String,
    /// What the comment above says.
    pub description: String,
    /// Image or stage as written.
    pub base: String,
    /// True for the stage that is built when none is named.
    pub is_default: bool,
    /// Its FROM line.
    pub lines: Lines,
}

/// What a target takes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outline {
    /// The target's name; empty for a stage without one.
    pub name: String,
    /// What the comment above says.
    pub description: String,
    /// Arguments in the order of the file, each once.
    pub args: Vec<ArgInfo>,
    /// Secrets by id, and whether they are required.
    pub secrets: Vec<(String, bool)>,
    /// SSH agents by id, and whether they are required.
    pub ssh: Vec<(String, bool)>,
}

/// An argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgInfo {
    /// Name.
    pub name: String,
    /// What it has without the command line saying anything else, and with it when it does.
    pub value: Option<String>,
    /// What the comment above says.
    pub description: String,
    /// Its line.
    pub lines: Lines,
}

/// The targets of a file, in order.
pub fn targets(ast: &Dockerfile) -> Vec<TargetInfo> {
    let stages = Stages::of(ast);
    let last = stages.all.len().saturating_sub(1);
    let info = |stage: &crate::stage::Stage<'_>| {
        let name = stage.from.name.as_ref().map(|name| name.value.as_str()).unwrap_or_default();
        TargetInfo {
            name: name.to_lowercase(),
            description: stage.instruction.description(name).unwrap_or_default().to_owned(),
            base: stage.from.image.value.clone(),
            is_default: stage.index == last,
            lines: stage.instruction.lines,
        }
    };
    stages.all.iter().map(info).collect()
}

/// What `target`, or the last stage, takes, with all stages that it needs.
pub fn outline(
    ast: &Dockerfile,
    target: Option<&str>,
    build_args: &BTreeMap<String, String>,
) -> Result<Outline, StageError> {
    let stages = Stages::of(ast);
    let target = stages.target(target)?;
    let mut values: HashMap<String, String> = HashMap::new();
    let mut global: Vec<(ArgInfo, bool)> = Vec::new();
    for instruction in stages.global {
        declare(instruction, ast.escape, build_args, &mut values, &mut |arg| global.push((arg, false)));
    }
    let by_name: HashMap<String, usize> =
        global.iter().enumerate().map(|(at, (arg, _))| (arg.name.clone(), at)).collect();
    let mut reached = BTreeSet::new();
    let mut open = vec![target];
    while let Some(index) = open.pop() {
        if !reached.insert(index) {
            continue;
        }
        let stage = &stages.all[index];
        let mut texts = vec![&stage.from.image.value];
        texts.extend(stage.from.platform.as_ref().map(|platform| &platform.value));
        for name in texts.into_iter().flat_map(|text| variables(text)) {
            if let Some(at) = by_name.get(name) {
                global[*at].1 = true;
            }
        }
        let base = expand::word(&stage.from.image.value, ast.escape, &values);
        open.extend(base.ok().and_then(|base| stages.earlier(&base.text, index)));
        let sources = stage.body.iter().flat_map(sources_of);
        open.extend(sources.filter_map(|source| stages.copy_source(&source.name, index).ok().flatten()));
    }
    let stage = &stages.all[target];
    let name = stage.from.name.as_ref().map(|name| name.value.as_str()).unwrap_or_default();
    let mut found = Outline {
        name: name.to_lowercase(),
        description: stage.instruction.description(name).unwrap_or_default().to_owned(),
        ..Outline::default()
    };
    let mut own: Vec<ArgInfo> = Vec::new();
    let (mut secrets, mut ssh) = (BTreeMap::new(), BTreeMap::new());
    for index in reached {
        let mut scope = HashMap::new();
        for instruction in stages.all[index].body {
            let mut taken = |arg: ArgInfo| {
                match by_name.get(&arg.name).map(|at| &mut global[*at]) {
                    // `ARG NAME` alone takes the global one's value, and its description when it has none.
                    Some((known, is_used)) if arg.value.is_none() || arg.value == known.value => {
                        *is_used = true;
                        if known.description.is_empty() {
                            known.description = arg.description;
                        }
                    }
                    _ => own.push(arg),
                }
            };
            declare(instruction, ast.escape, build_args, &mut scope, &mut taken);
            mounts(instruction, &mut secrets, &mut ssh);
        }
    }
    let used = global.into_iter().filter(|(_, is_used)| *is_used).map(|(arg, _)| arg);
    let mut seen = BTreeSet::new();
    found.args.extend(used.chain(own).filter(|arg| seen.insert(arg.name.clone())));
    found.secrets = secrets.into_iter().collect();
    found.ssh = ssh.into_iter().collect();
    Ok(found)
}

fn declare(
    instruction: &Instruction,
    escape: char,
    build_args: &BTreeMap<String, String>,
    scope: &mut HashMap<String, String>,
    found: &mut dyn FnMut(ArgInfo),
) {
    let InstructionKind::Arg(args) = &instruction.kind else { return };
    for arg in args {
        let name = &arg.name.value;
        let default = || {
            let expansion = expand::word(&arg.default.as_ref()?.value, escape, &*scope);
            expansion.ok().map(|expansion| expansion.text)
        };
        let value = build_args.get(name).cloned().or_else(default);
        scope.extend(value.clone().map(|value| (name.clone(), value)));
        found(ArgInfo {
            name: name.clone(),
            value,
            description: instruction.description(name).unwrap_or_default().to_owned(),
            lines: instruction.lines,
        });
    }
}

/// Names of the variables that a text expands.
fn variables(text: &str) -> impl Iterator<Item = &str> {
    text.split('$').skip(1).map(|rest| {
        let rest = rest.strip_prefix('{').unwrap_or(rest);
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        &rest[..end]
    })
}

fn mounts(instruction: &Instruction, secrets: &mut BTreeMap<String, bool>, ssh: &mut BTreeMap<String, bool>) {
    let InstructionKind::Run(run) = &instruction.kind else { return };
    for mount in &run.mounts {
        let text = &mount.value;
        let kind = option(text, &["type"]);
        let target = option(text, &["target", "dst", "destination"]);
        let named = option(text, &["id"]);
        let is_required = option(text, &["required"]).is_some_and(|value| value != "false");
        let place = match kind.as_deref() {
            Some("secret") => {
                let base = |path: &String| path.rsplit('/').next().unwrap_or_default().to_owned();
                let id = named.or_else(|| option(text, &["source", "src"])).or(target.as_ref().map(base));
                id.map(|id| secrets.entry(id).or_default())
            }
            Some("ssh") => Some(ssh.entry(named.unwrap_or_else(|| "default".to_owned())).or_default()),
            _ => None,
        };
        if let Some(place) = place {
            *place |= is_required;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::parse;

    const FILE: &str = "# VERSION what to install\nARG VERSION=1\nARG UNUSED=x\n\
        # base all of it\nFROM alpine:$VERSION AS base\nRUN --mount=type=secret,id=npm,required x\n\
        FROM scratch AS other\nARG OTHER\n\
        FROM base\n# MODE of the build\nARG MODE=\"de bug\"\nARG VERSION\nRUN --mount=type=ssh y\n";

    #[test]
    fn targets_are_listed_with_what_their_comments_say() {
        let found = targets(&parse(FILE.as_bytes()).ast);
        let shown: Vec<_> =
            found.iter().map(|t| (&*t.name, &*t.description, &*t.base, t.is_default)).collect();
        assert_eq!(
            shown,
            [
                ("base", "all of it", "alpine:$VERSION", false),
                ("other", "", "scratch", false),
                ("", "", "base", true),
            ]
        );
    }

    #[test]
    fn an_outline_has_what_the_target_and_its_stages_take() {
        let ast = parse(FILE.as_bytes()).ast;
        let args = BTreeMap::from([("MODE".to_owned(), "release".to_owned())]);
        let found = outline(&ast, None, &args).unwrap();
        let shown: Vec<_> =
            found.args.iter().map(|a| (&*a.name, a.value.as_deref(), &*a.description)).collect();
        assert_eq!(
            shown,
            [("VERSION", Some("1"), "what to install"), ("MODE", Some("release"), "of the build")]
        );
        assert_eq!(found.secrets, [("npm".to_owned(), true)]);
        assert_eq!(found.ssh, [("default".to_owned(), false)]);
        let other = outline(&ast, Some("OTHER"), &BTreeMap::new()).unwrap();
        assert_eq!((other.name.as_str(), other.args.len(), other.secrets.len()), ("other", 1, 0));
        assert!(outline(&ast, Some("nosuch"), &args).is_err());
    }

    #[test]
    fn a_file_of_many_arguments_is_no_burden() {
        let args: String = (0..2_000).map(|n| format!("ARG a{n}=1\n")).collect();
        let froms: String =
            (0..7).map(|n| format!("FROM x:$a{n} AS s{n}\nCOPY --from=s0 / /\n{args}")).collect();
        let text = format!("{args}{froms}");
        let found = outline(&parse(text.as_bytes()).ast, None, &BTreeMap::new()).unwrap();
        assert!(found.args.len() > 1000, "{}", found.args.len());
    }
}
