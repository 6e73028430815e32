//! `RUN --mount=type=ssh` with a real `ssh-agent`.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use rbuild_tests::fault::wait_until;
use rbuild_tests::{TestEnv, need};

use crate::probes::Probe;
use crate::rungs::Place;

/// An agent with one key, until dropped.
struct Agent {
    child: Child,
    socket: PathBuf,
}

impl Agent {
    /// As the user under test: an agent answers nobody else.
    fn start(env: &TestEnv) -> Result<Self> {
        let (socket, key) = (env.work().join("agent.socket"), env.work().join("key"));
        // In the foreground, so that it is ours to end.
        let mut command = Command::new("ssh-agent");
        command.args(["-D", "-a"]).arg(&socket).stdout(Stdio::null());
        let child = env.as_user(&mut command).spawn().context("start ssh-agent")?;
        let agent = Self { child, socket };
        wait_until("the agent listens", || UnixStream::connect(&agent.socket).is_ok())?;
        let run = |command: &mut Command| -> Result<()> {
            let output = env.as_user(command).output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Ok(())
        };
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key))?;
        run(Command::new("ssh-add").arg(&key).env("SSH_AUTH_SOCK", &agent.socket))?;
        Ok(agent)
    }

    fn keys(&self) -> Result<usize> {
        let output = Command::new("ssh-add").arg("-l").env("SSH_AUTH_SOCK", &self.socket).output()?;
        Ok(if output.status.success() { String::from_utf8(output.stdout)?.lines().count() } else { 0 })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// N8: a step lists and uses the keys of the user's own agent, and changes nothing in it.
#[test]
fn a_step_signs_with_the_users_agent_and_cannot_change_it() -> Result<()> {
    need!(Root, Subuid, Compiler, Ssh);
    let probe = Probe::compile()?;
    for place in [Place::Root, Place::Rootless, Place::Single] {
        let env = place.env()?;
        let text = "FROM scratch\nCOPY --chmod=755 probe /probe\nRUN --mount=type=ssh [\"/probe\", \"agent\", \"0\"]\n\
                    USER 1000\nRUN --mount=type=ssh,uid=1000,target=/agent [\"/probe\", \"agent\", \"1000\"]\n";
        let context = env.context("agent", text, &[])?;
        fs::copy(probe.path(), context.join("probe"))?;
        let agent = Agent::start(&env)?;
        let socket = format!("default={}", agent.socket.display());
        env.build(&context, &["--ssh", &socket])?.ok().says(&[
            "probe 0 N8 agent-keys 1",
            "probe 0 N8 agent-signs yes",
            "probe 0 N8 agent-forgets no",
            "probe 1000 N8 agent-keys 1",
            "probe 1000 N8 agent-signs yes",
            "probe 1000 N8 agent-forgets no",
        ]);
        assert_eq!(agent.keys()?, 1, "a step changed the agent");
        env.assert_nothing_left();
    }
    Ok(())
}

/// N8: keys in files are an agent to the step, on every rung.
#[test]
fn a_step_signs_with_keys_of_files() -> Result<()> {
    need!(Root, Subuid, Compiler, Ssh);
    let probe = Probe::compile()?;
    for place in [Place::Root, Place::Rootless, Place::Single, Place::Chroot, Place::Contained] {
        let env = place.env()?;
        let generate = |name: &str, args: &[&str]| -> Result<String> {
            let path = env.work().join(name);
            let mut command = Command::new("ssh-keygen");
            let output = env.as_user(command.args(["-q", "-f"]).arg(&path).args(args)).output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Ok(path.display().to_string())
        };
        let text = "FROM scratch\nCOPY --chmod=755 probe /probe\nRUN --mount=type=ssh [\"/probe\", \"agent\", \"0\"]\n";
        let context = env.context("keys", text, &[])?;
        fs::copy(probe.path(), context.join("probe"))?;
        let keys =
            [generate("k1", &["-t", "ed25519", "-N", ""])?, generate("k2", &["-t", "ecdsa", "-N", ""])?];
        let build = |keys: &str| -> Result<rbuild_tests::Run> {
            let ssh = format!("default={keys}");
            let context = context.to_str().context("UTF-8")?;
            place.run(&env, &["build", "--progress", "plain", "--ssh", &ssh, context])
        };
        build(&keys.join(","))?.ok().says(&[
            "probe 0 N8 agent-keys 2",
            "probe 0 N8 agent-signs yes",
            "probe 0 N8 agent-forgets no",
        ]);
        let locked = generate("k3", &["-t", "ed25519", "-N", "passphrase"])?;
        build(&locked)?.exits(1).says(&["k3 for --ssh default: it is encrypted", "ssh-add"]);
        env.assert_nothing_left();
    }
    Ok(())
}
