//! RUN.

use crate::ast::{Command, Instruction, RunInstruction};
use crate::graph::{Mount, Network, Op, Role, RunOp};
use crate::parse::{Issue, device, is_lone_marker};

use super::environment::proxy_env;
use super::pass::Pass;
use super::stages::Work;
use super::state::State;

/// Where the script of `RUN <<EOF` with `#!` appears in the step.
const SCRIPT_DIR: &str = "/dev/pipes";

impl Pass<'_> {
    pub(super) fn run(
        &mut self,
        work: &mut Work,
        instruction: &Instruction,
        run: &RunInstruction,
    ) -> Result<(), Issue> {
        let step = work.next_step(instruction);
        let (argv, script) = argv(&work.state, run)?;
        let (network, insecure) = self.permitted(run)?;
        let mounts = self.mounts(work, run)?;
        if mounts.is_partial {
            return Ok(());
        }
        let mut env = work.state.run_env();
        let agent = mounts.mounts.iter().find_map(|mount| match mount {
            Mount::Ssh(ssh) => Some(ssh.target.clone()),
            _ => None,
        });
        if let Some(agent) = agent
            && !env.iter().any(|(name, _)| name == "SSH_AUTH_SOCK")
        {
            env.push(("SSH_AUTH_SOCK".to_owned(), agent));
        }
        let bytes = env.iter().map(|(name, value)| name.len() + value.len() + 48);
        self.charge(bytes.chain(argv.iter().map(String::len)).sum(), instruction.span)?;
        let created_by = created_by(&work.state, &argv);
        let op = RunOp {
            argv,
            env,
            arg_names: work.state.run_args(),
            proxy_env: proxy_env(&self.options.build_args, &work.state),
            cwd: work.state.workdir().to_owned(),
            user: work.state.config.config.user.clone(),
            network,
            insecure,
            mounts: mounts.mounts,
            devices: run.devices.iter().map(device::parse).collect::<Result<_, _>>()?,
            host_names: self.options.host_names.clone(),
            hostname: self
                .options
                .build_args
                .get("BUILDKIT_SANDBOX_HOSTNAME")
                .filter(|name| !name.is_empty())
                .cloned(),
            platform: work.state.platform.clone(),
            script,
        };
        let mut inputs = vec![(Role::Root, work.state.node)];
        inputs.extend(mounts.inputs);
        work.state.node = self.out.nodes.add(Op::Run(op), &inputs, step);
        work.state.layers.push(work.state.node);
        work.state.log(created_by, false);
        Ok(())
    }
}

impl Pass<'_> {
    /// Network and security mode, when the command line allows them.
    fn permitted(&self, run: &RunInstruction) -> Result<(Network, bool), Issue> {
        let refused = |what: &str, span| {
            let issue = Issue::new(format!("{what} is not allowed"), span);
            Err(issue.with_help(format!("allow it with --allow {what}")))
        };
        let network = match &run.network {
            Some(mode) if mode.value == "host" && !self.options.entitlements.host_network => {
                return refused("network.host", mode.span);
            }
            Some(mode) if mode.value == "host" => Network::Host,
            Some(mode) if mode.value == "none" => Network::None,
            _ => self.options.network,
        };
        match run.security.as_ref().filter(|mode| mode.value == "insecure") {
            Some(mode) if !self.options.entitlements.insecure => refused("security.insecure", mode.span),
            mode => Ok((network, mode.is_some())),
        }
    }
}

/// The argv, and the script that it names.
fn argv(state: &State, run: &RunInstruction) -> Result<(Vec<String>, Option<String>), Issue> {
    let text = match &run.command {
        Command::Exec(argv) => return Ok((argv.iter().map(|word| word.value.clone()).collect(), None)),
        Command::Shell(text) => text,
    };
    let mut argv = state.shell();
    let Some(first) = run.heredocs.first() else {
        argv.push(text.value.clone());
        return Ok((argv, None));
    };
    if is_lone_marker(&text.value) {
        let body = first.text();
        if !body.starts_with("#!") {
            argv.push(body);
            return Ok((argv, None));
        }
        let name = &first.name.value;
        if name.contains(['/', '\0']) || matches!(name.as_str(), "." | "..") {
            let message = format!("heredoc name `{name}` cannot name a script file");
            return Err(Issue::new(message, first.name.span));
        }
        return Ok((vec![format!("{SCRIPT_DIR}/{name}")], Some(body)));
    }
    // The shell does the redirections itself, so it gets the text as it was.
    let mut full = text.value.clone();
    for heredoc in &run.heredocs {
        full.push('\n');
        full.push_str(&heredoc.body.value);
        full.push_str(&heredoc.name.value);
    }
    argv.push(full);
    Ok((argv, None))
}

/// `RUN |2 A=1 B= /bin/sh -c cmd # buildkit`.
fn created_by(state: &State, argv: &[String]) -> String {
    let args: Vec<String> = state
        .args
        .iter()
        .map(|(name, _)| format!("{name}={}", state.effective.get(name).map_or("", String::as_str)))
        .collect();
    let prefix = if args.is_empty() { String::new() } else { format!("|{} {} ", args.len(), args.join(" ")) };
    format!("RUN {prefix}{} # buildkit", argv.join(" "))
}
