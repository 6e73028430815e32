//! ENV, ARG, LABEL and the arguments that are built in.

use std::collections::{BTreeMap, HashMap};

use rbuild_oci::Platform;

use crate::ast::{ArgDeclaration, KeyValue};
use crate::lint;
use crate::parse::Issue;

use super::pass::Pass;
use super::stages::Work;
use super::state::State;

/// Proxy arguments: known to RUN without ARG, in either case, never part of a key.
const PROXY_ARGS: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

/// Whether the context is searched for packages, too: true, false, or the names of the stages that say so.
pub(super) const SCAN_CONTEXT: &str = "BUILDKIT_SBOM_SCAN_CONTEXT";
/// The same of the stage itself.
pub(super) const SCAN_STAGE: &str = "BUILDKIT_SBOM_SCAN_STAGE";
/// Arguments that steer the search for packages and are no environment even when declared.
const STEERING_ARGS: [&str; 2] = [SCAN_CONTEXT, SCAN_STAGE];

/// What a stage has searched for packages besides the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Searches {
    pub(super) context: bool,
    pub(super) stage: bool,
}

impl Searches {
    /// Takes a steering argument in; other names change nothing.
    pub(super) fn set(&mut self, name: &str, value: Option<&str>, stage: &str) {
        let is_on = match value.unwrap_or_default() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
            list => list.split(',').any(|name| name.trim().eq_ignore_ascii_case(stage)),
        };
        match name {
            SCAN_CONTEXT => self.context = is_on,
            SCAN_STAGE => self.stage = is_on,
            _ => {}
        }
    }
}

pub(super) fn is_proxy(name: &str) -> bool {
    PROXY_ARGS.contains(&name) || PROXY_ARGS.iter().any(|proxy| proxy.to_ascii_lowercase() == name)
}

pub(super) fn is_platform_arg(name: &str) -> bool {
    let part = name.strip_prefix("TARGET").or_else(|| name.strip_prefix("BUILD"));
    matches!(part, Some("PLATFORM" | "OS" | "ARCH" | "VARIANT" | "OSVERSION")) || name == "TARGETSTAGE"
}

/// TARGETPLATFORM and its like; what has no value is set and empty.
pub(super) fn platform_args(build: &Platform, target: &Platform) -> HashMap<String, String> {
    let mut args = HashMap::new();
    for (prefix, platform) in [("BUILD", build), ("TARGET", target)] {
        let mut set = |suffix: &str, value: String| args.insert(format!("{prefix}{suffix}"), value);
        set("PLATFORM", platform.to_string());
        set("OS", platform.os.clone());
        set("ARCH", platform.architecture.clone());
        set("VARIANT", platform.variant.clone().unwrap_or_default());
        set("OSVERSION", String::new());
    }
    args
}

/// Proxy variables for a RUN: those given and not declared, in both cases, sorted.
pub(super) fn proxy_env(build_args: &BTreeMap<String, String>, state: &State) -> Vec<(String, String)> {
    let mut env = BTreeMap::new();
    for (name, value) in build_args.iter().filter(|(name, _)| is_proxy(name)) {
        env.entry(name.to_ascii_lowercase()).or_insert_with(|| value.clone());
        env.entry(name.to_ascii_uppercase()).or_insert_with(|| value.clone());
    }
    // What is given in exactly this case beats the copy of the other case.
    for (name, value) in build_args.iter().filter(|(name, _)| is_proxy(name)) {
        env.insert(name.clone(), value.clone());
    }
    env.into_iter().filter(|(name, _)| !state.args.contains(name) && !state.env.contains(name)).collect()
}

impl Pass<'_> {
    /// Every value on the line sees the environment from before the line.
    pub(super) fn env(&mut self, work: &mut Work, pairs: &[KeyValue]) -> Result<(), Issue> {
        let pairs = self.pairs(work, "ENV", pairs)?;
        for (name, value) in &pairs {
            work.state.set_env(name, value);
        }
        work.state.log(format!("ENV {}", joined(&pairs)), true);
        Ok(())
    }

    pub(super) fn label(&mut self, work: &mut Work, pairs: &[KeyValue]) -> Result<(), Issue> {
        let pairs = self.pairs(work, "LABEL", pairs)?;
        work.state.log(format!("LABEL {}", joined(&pairs)), true);
        work.state.weight += pairs.iter().map(|(name, value)| name.len() + value.len() + 64).sum::<usize>();
        work.state.config.config.labels.extend(pairs);
        Ok(())
    }

    fn pairs(
        &mut self,
        work: &Work,
        keyword: &str,
        pairs: &[KeyValue],
    ) -> Result<Vec<(String, String)>, Issue> {
        let mut expanded = Vec::with_capacity(pairs.len());
        for pair in pairs {
            let name = self.expand(work, &pair.key)?;
            if name.is_empty() {
                return Err(Issue::new(format!("{keyword} names can not be blank"), pair.key.span));
            }
            if keyword == "ENV" {
                self.check_secret(work, keyword, &name, pair.key.span);
            }
            expanded.push((name, self.expand(work, &pair.value)?));
        }
        Ok(expanded)
    }

    /// Later names of a line see the earlier ones. A name without any value stays unset.
    pub(super) fn arg(&mut self, work: &mut Work, declarations: &[ArgDeclaration]) -> Result<(), Issue> {
        let mut shown = Vec::with_capacity(declarations.len());
        for arg in declarations {
            let name = self.expand(work, &arg.name)?;
            self.check_secret(work, "ARG", &name, arg.name.span);
            let default = match &arg.default {
                Some(default) => Some(self.expand(work, default)?),
                None => None,
            };
            let given = self.options.build_args.get(&name).cloned();
            let value = given.or(default).or_else(|| self.global.get(&name).cloned());
            self.charge(value.as_ref().map_or(0, String::len), arg.name.span)?;
            // The value in force, as BuildKit logs it: a build-arg or global value shows, too.
            shown.push(match &value {
                Some(value) => format!("{name}={value}"),
                None => name.clone(),
            });
            work.searches.set(&name, value.as_deref(), &work.label);
            let value = value.filter(|_| !STEERING_ARGS.contains(&name.as_str()));
            work.state.set_arg(&name, value);
        }
        work.state.log(format!("ARG {}", shown.join(" ")), true);
        Ok(())
    }

    fn check_secret(&mut self, work: &Work, keyword: &str, name: &str, span: crate::span::Span) {
        if lint::looks_secret(name) {
            let message =
                format!("Do not use ARG or ENV instructions for sensitive data ({keyword} \"{name}\")");
            self.warn(work, "SecretsUsedInArgOrEnv", message, span);
        }
    }
}

fn joined(pairs: &[(String, String)]) -> String {
    let texts: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    texts.join(" ")
}
