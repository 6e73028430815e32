//! Instructions that only shape the image config.

use std::collections::BTreeSet;

use rbuild_oci::Healthcheck;
use serde_json::Value;

use crate::ast::{Command, HealthcheckInstruction, Instruction, InstructionKind, Spanned};
use crate::expand;
use crate::parse::Issue;

use super::history::{self, plain_list, quoted_list};
use super::pass::{Pass, failed};
use super::stages::Work;
use super::{ports, signal};

impl Pass<'_> {
    pub(super) fn metadata(
        &mut self,
        work: &mut Work,
        instruction: &Instruction,
        kind: &InstructionKind,
    ) -> Result<(), Issue> {
        use InstructionKind as Kind;
        match kind {
            Kind::Expose(words) => self.expose(work, words),
            Kind::User(text) => {
                let user = self.expand(work, text)?;
                work.state.log(format!("USER {user}"), true);
                work.state.config.config.user = user;
                Ok(())
            }
            Kind::Volume(paths) => self.volume(work, paths),
            Kind::Cmd(command) => {
                self.once(work, instruction, "CMD");
                let argv = self.command(work, instruction, "CMD", command);
                work.state.log(format!("CMD {}", quoted_list(&argv)), true);
                work.state.config.config.cmd = Some(argv).filter(|argv| !argv.is_empty());
                work.state.config.config.args_escaped = true;
                work.state.cmd_set = true;
                Ok(())
            }
            Kind::Entrypoint(command) => {
                self.once(work, instruction, "ENTRYPOINT");
                let argv = self.command(work, instruction, "ENTRYPOINT", command);
                work.state.log(format!("ENTRYPOINT {}", quoted_list(&argv)), true);
                work.state.config.config.entrypoint = Some(argv).filter(|argv| !argv.is_empty());
                // A CMD from below was made for another entry point.
                if !work.state.cmd_set {
                    work.state.config.config.cmd = None;
                }
                Ok(())
            }
            Kind::Shell(words) => {
                let shell: Vec<String> = words.iter().map(|word| word.value.clone()).collect();
                work.state.log(format!("SHELL {}", plain_list(&shell)), true);
                work.state.config.config.shell = Some(shell);
                Ok(())
            }
            Kind::Stopsignal(text) => {
                let value = self.expand(work, text)?;
                if !signal::is_valid(&value) {
                    return Err(Issue::new(format!("invalid signal: {value}"), text.span));
                }
                work.state.log(format!("STOPSIGNAL {value}"), true);
                work.state.config.config.stop_signal = value;
                Ok(())
            }
            Kind::Healthcheck(check) => {
                self.once(work, instruction, "HEALTHCHECK");
                let check = healthcheck(check);
                work.state.log(history::healthcheck(&check), true);
                work.state.config.config.healthcheck = Some(check);
                Ok(())
            }
            Kind::Onbuild(onbuild) => {
                let trigger = &onbuild.trigger;
                self.charge(trigger.value.len(), trigger.span)?;
                work.state.weight += trigger.value.len() + 32;
                work.state.config.config.on_build.push(trigger.value.clone());
                Ok(())
            }
            Kind::Maintainer(text) => {
                work.state.log(format!("MAINTAINER {}", text.value), true);
                work.state.config.author = Some(text.value.clone());
                Ok(())
            }
            // The others have lowerings of their own.
            _ => Ok(()),
        }
    }

    fn expose(&mut self, work: &mut Work, words: &[Spanned<String>]) -> Result<(), Issue> {
        let mut keys = BTreeSet::new();
        for word in words {
            let expanded = expand::words(&word.value, self.ast.escape, &work.state);
            let (specs, unset) = expanded.map_err(|error| failed(word, &error))?;
            self.undefined(work, &unset, word.span);
            for spec in specs.iter().filter(|spec| !spec.is_empty()) {
                let found = ports::parse(spec).map_err(|message| Issue::new(message, word.span))?;
                if found.protocol_casing {
                    let message =
                        format!("Defined protocol '{spec}' in EXPOSE instruction should be lowercase");
                    self.warn(work, "ExposeProtoCasing", message, word.span);
                }
                if found.host_part {
                    let message = format!(
                        "EXPOSE instruction should not define an IP address or host-port mapping, found '{spec}'"
                    );
                    self.warn(work, "ExposeInvalidFormat", message, word.span);
                }
                self.charge(usize::from(found.last - found.first) * 32, word.span)?;
                keys.extend((found.first..=found.last).map(|port| format!("{port}/{}", found.protocol)));
            }
        }
        let shown: Vec<String> = keys.iter().cloned().collect();
        work.state.log(format!("EXPOSE {}", plain_list(&shown)), true);
        work.state.weight += shown.len() * 32;
        work.state.config.config.exposed_ports.extend(keys.into_iter().map(|key| (key, empty_object())));
        Ok(())
    }

    fn volume(&mut self, work: &mut Work, paths: &[Spanned<String>]) -> Result<(), Issue> {
        let mut expanded = Vec::with_capacity(paths.len());
        for path in paths {
            let text = self.expand(work, path)?;
            if text.is_empty() {
                return Err(Issue::new("VOLUME specified can not be an empty string", path.span));
            }
            expanded.push(text);
        }
        work.state.log(format!("VOLUME {}", plain_list(&expanded)), true);
        let volumes = &mut work.state.config.config.volumes;
        volumes.extend(expanded.into_iter().map(|path| (path, empty_object())));
        Ok(())
    }

    /// The argv to store: exec form as it is, shell form behind the shell.
    fn command(
        &mut self,
        work: &Work,
        instruction: &Instruction,
        keyword: &str,
        command: &Command,
    ) -> Vec<String> {
        match command {
            Command::Exec(argv) => argv.iter().map(|word| word.value.clone()).collect(),
            Command::Shell(text) => {
                if work.state.config.config.shell.is_none() {
                    let message = format!(
                        "JSON arguments recommended for {keyword} to prevent unintended behavior related to OS signals"
                    );
                    self.warn(work, "JSONArgsRecommended", message, instruction.span);
                }
                let mut argv = work.state.shell();
                argv.push(text.value.clone());
                argv
            }
        }
    }

    /// Only the last of these counts in a stage; the rule points at the ones that do not.
    fn once(&mut self, work: &mut Work, instruction: &Instruction, keyword: &'static str) {
        let place = work.place(instruction.span);
        if let Some(earlier) = work.seen.insert(keyword, place) {
            let message = format!(
                "Multiple {keyword} instructions should not be used in the same stage because only the last one will be used"
            );
            self.warn_earlier("MultipleInstructionsDisallowed", message, earlier);
        }
    }
}

fn healthcheck(check: &HealthcheckInstruction) -> Healthcheck {
    let test = match &check.test {
        None => vec!["NONE".to_owned()],
        Some(Command::Shell(text)) => vec!["CMD-SHELL".to_owned(), text.value.clone()],
        Some(Command::Exec(argv)) => {
            std::iter::once("CMD".to_owned()).chain(argv.iter().map(|word| word.value.clone())).collect()
        }
    };
    Healthcheck {
        test,
        interval: check.interval,
        timeout: check.timeout,
        start_period: check.start_period,
        start_interval: check.start_interval,
        retries: check.retries,
    }
}

fn empty_object() -> Value {
    Value::Object(serde_json::Map::new())
}
