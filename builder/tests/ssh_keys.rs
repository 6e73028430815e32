//! Keys in files, behind the socket that a step gets, against OpenSSH's own tools: they list the keys, sign with them
//! and verify what was signed.

use std::path::{Path, PathBuf};
use std::process::Command;

use rbuild::cli::AgentArg;
use rbuild::mounts::ssh::{Agents, Proxy};

fn keygen(args: &[&str], dir: &Path, socket: Option<&Path>) -> Result<String, String> {
    let mut command = Command::new("ssh-keygen");
    command.args(args).current_dir(dir).env_remove("SSH_AUTH_SOCK");
    if let Some(socket) = socket {
        command.env("SSH_AUTH_SOCK", socket);
    }
    let output = command.output().expect("OpenSSH's ssh-keygen is installed");
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[test]
fn what_keys_of_every_kind_sign_openssh_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let kinds: [(&str, &[&str]); 7] = [
        ("ed25519", &["-t", "ed25519"]),
        ("p256", &["-t", "ecdsa", "-b", "256"]),
        ("p384", &["-t", "ecdsa", "-b", "384"]),
        ("rsa", &["-t", "rsa", "-b", "2048"]),
        ("rsa-3072", &["-t", "rsa", "-b", "3072"]),
        ("pkcs1", &["-t", "rsa", "-b", "2048", "-m", "PEM"]),
        ("pkcs8", &["-t", "ecdsa", "-b", "256", "-m", "PKCS8"]),
    ];
    let mut paths: Vec<PathBuf> = Vec::new();
    for (name, args) in kinds {
        keygen(&[&["-q", "-N", "", "-f", name][..], args].concat(), dir.path(), None).unwrap();
        paths.push(dir.path().join(name));
    }
    let agents = Agents::new(&[AgentArg { id: "default".to_owned(), paths }]).unwrap();
    let own = dir.path().join("own");
    std::fs::create_dir(&own).unwrap();
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let proxy = Proxy::start(agents.get("default").unwrap(), &own, 0o600, uid, gid).unwrap();
    let socket = own.join("agent");
    std::fs::write(dir.path().join("data"), "signed\n").unwrap();
    for (name, _) in kinds {
        // Only the agent has it now.
        std::fs::remove_file(dir.path().join(name)).unwrap();
        let public = format!("{name}.pub");
        let sign = ["-Y", "sign", "-n", "file", "-f", &public, "data"];
        keygen(&sign, dir.path(), Some(&socket)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let verify = Command::new("ssh-keygen")
            .args(["-Y", "check-novalidate", "-n", "file", "-s", "data.sig"])
            .current_dir(dir.path())
            .stdin(std::fs::File::open(dir.path().join("data")).unwrap())
            .output()
            .unwrap();
        assert!(verify.status.success(), "{name}: {}", String::from_utf8_lossy(&verify.stderr));
        std::fs::remove_file(dir.path().join("data.sig")).unwrap();
    }
    drop(proxy);
}

#[test]
fn keys_that_are_not_read_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    for (name, args, says) in [
        ("locked", &["-t", "ed25519", "-N", "passphrase"][..], "it is encrypted"),
        ("locked-pem", &["-t", "rsa", "-b", "2048", "-m", "PEM", "-N", "passphrase"], "it is encrypted"),
        (
            "p521",
            &["-t", "ecdsa", "-b", "521", "-N", ""],
            "a key of kind `ecdsa-sha2-nistp521` is not supported",
        ),
        ("small", &["-t", "rsa", "-b", "1024", "-N", ""], "an RSA key of 1024 bits is not supported"),
    ] {
        keygen(&[&["-q", "-f", name][..], args].concat(), dir.path(), None).unwrap();
        let paths = vec![dir.path().join(name)];
        let error = Agents::new(&[AgentArg { id: "default".to_owned(), paths }]).unwrap_err();
        assert!(error.to_string().contains(says), "{name}: {error}");
        assert!(error.hint().unwrap().contains("ssh-add"), "{name}");
    }
}
