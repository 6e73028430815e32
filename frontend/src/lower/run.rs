//! RUN.

use crate::ast::{Command, Instruction, RunInstruction};
use crate::graph::{Network, Op, Role, RunOp};
use crate::parse::{Issue, is_lone_marker};

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
        let env = work.state.run_env();
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
            network: match run.network.as_ref().map(|mode| mode.value.as_str()) {
                Some("none") => Network::None,
                Some("host") => Network::Host,
                _ => Network::Default,
            },
            platform: work.state.platform.clone(),
            script,
        };
        work.state.node = self.out.nodes.add(Op::Run(op), &[(Role::Root, work.state.node)], step);
        work.state.layers.push(work.state.node);
        work.state.log(created_by, false);
        Ok(())
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
