//! Judges of built images that this project did not write: skopeo, umoci, runc.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http;
use crate::need::{find_program, program_path};

/// A server in a container may take this long to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Capabilities a container gets from Docker; servers that change their user need some of them.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// What skopeo says of an image's configuration. `image` is in its notation: `oci-archive:F`, `oci:DIR:TAG`,
/// `docker://HOST/NAME`.
///
/// # Errors
///
/// When skopeo does not accept the image.
pub fn config(image: &str) -> Result<Value> {
    inspect(&["--config"], image)
}

/// What skopeo says of an image's manifest: digest, layers, labels.
///
/// # Errors
///
/// When skopeo does not accept the image.
pub fn manifest(image: &str) -> Result<Value> {
    inspect(&[], image)
}

/// The configuration of an index's image for one architecture.
///
/// # Errors
///
/// When skopeo does not accept it.
pub fn config_for(image: &str, architecture: &str) -> Result<Value> {
    inspect_for(&["--override-arch", architecture], &["--config"], image)
}

/// The manifest or index itself.
///
/// # Errors
///
/// When skopeo does not accept it.
pub fn raw(image: &str) -> Result<Value> {
    inspect(&["--raw"], image)
}

/// Digest of the manifest or index that a name stands for.
///
/// # Errors
///
/// When skopeo does not accept it.
pub fn digest(image: &str) -> Result<String> {
    let bytes = tool("skopeo", &["inspect", "--tls-verify=false", "--raw", image])?.stdout;
    let manifest = tempfile::NamedTempFile::new()?;
    fs::write(manifest.path(), bytes)?;
    let path = manifest.path().to_str().context("UTF-8")?;
    let digest = tool("skopeo", &["manifest-digest", path])?.stdout;
    Ok(String::from_utf8(digest)?.trim().to_owned())
}

fn inspect(options: &[&str], image: &str) -> Result<Value> {
    inspect_for(&[], options, image)
}

fn inspect_for(global: &[&str], options: &[&str], image: &str) -> Result<Value> {
    let args = [global, &["inspect", "--tls-verify=false"], options, &[image]].concat();
    Ok(serde_json::from_slice(&tool("skopeo", &args)?.stdout)?)
}

/// Copies an image with skopeo, which checks every digest on the way.
///
/// # Errors
///
/// When skopeo refuses it.
pub fn copy(from: &str, to: &str) -> Result<()> {
    copy_for(&[], from, to)
}

/// Runs skopeo with these arguments.
///
/// # Errors
///
/// When it fails.
pub fn skopeo(args: &[&str]) -> Result<()> {
    tool("skopeo", args).map(drop)
}

fn copy_for(global: &[&str], from: &str, to: &str) -> Result<()> {
    let command = ["copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false", from, to];
    tool("skopeo", &[global, &command].concat()).map(drop)
}

/// An image unpacked by umoci.
#[derive(Debug)]
pub struct Unpacked {
    dir: TempDir,
}

/// Copies an image out of wherever it is and unpacks it.
///
/// # Errors
///
/// When skopeo or umoci do not accept it.
pub fn unpack(image: &str) -> Result<Unpacked> {
    unpack_with(&[], image)
}

/// [`unpack`] of an index's image for one architecture.
///
/// # Errors
///
/// When skopeo or umoci do not accept it.
pub fn unpack_for(image: &str, architecture: &str) -> Result<Unpacked> {
    unpack_with(&["--override-arch", architecture], image)
}

fn unpack_with(global: &[&str], image: &str) -> Result<Unpacked> {
    let dir = tempfile::Builder::new().prefix("rbuild-test-image-").tempdir()?;
    let layout = format!("{}:image", dir.path().join("layout").display());
    copy_for(global, image, &format!("oci:{layout}"))?;
    let bundle = dir.path().join("bundle");
    tool("umoci", &["unpack", "--image", &layout, bundle.to_str().context("UTF-8")?])?;
    Ok(Unpacked { dir })
}

impl Unpacked {
    /// The image's root file system.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("bundle/rootfs")
    }

    /// Text of a file of the image.
    ///
    /// # Errors
    ///
    /// When there is no such file.
    pub fn text(&self, path: &str) -> Result<String> {
        let path = self.root().join(path.trim_start_matches('/'));
        fs::read_to_string(&path).with_context(|| format!("read {} of the image", path.display()))
    }

    /// The tree, one sorted line per entry: type, mode, owner, size or target, content.
    ///
    /// # Errors
    ///
    /// When a file cannot be read.
    pub fn listing(&self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        list(&self.root(), Path::new(""), &mut lines)?;
        lines.sort();
        Ok(lines)
    }

    /// Starts what the image starts, in runc, with these variables added and a loopback network of its own.
    ///
    /// # Errors
    ///
    /// When the container cannot be prepared.
    pub fn start(&self, variables: &[&str]) -> Result<Container> {
        let bundle = self.dir.path().join("bundle");
        let config = bundle.join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&config)?)?;
        adapt(&mut spec, variables);
        fs::write(&config, serde_json::to_vec(&spec)?)?;
        Container::start(&bundle, &self.dir.path().join("runc"))
    }
}

/// Fits umoci's runtime configuration to any host: arguments, environment, user and directory stay the image's.
fn adapt(spec: &mut Value, variables: &[&str]) {
    let process = &mut spec["process"];
    process["terminal"] = json!(false);
    process["noNewPrivileges"] = json!(false);
    for set in ["bounding", "effective", "permitted"] {
        process["capabilities"][set] = json!(CAPABILITIES);
    }
    for set in ["inheritable", "ambient"] {
        process["capabilities"][set] = json!([]);
    }
    if let Some(environment) = process["env"].as_array_mut() {
        environment.extend(variables.iter().map(|variable| json!(variable)));
    }
    // Raising limits takes CAP_SYS_RESOURCE, which root of a confined host lacks; cgroups may be read-only or hybrid.
    if let Some(process) = process.as_object_mut() {
        process.remove("rlimits");
    }
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts.retain(|mount| mount["type"] != "cgroup");
    }
    if let Some(linux) = spec["linux"].as_object_mut() {
        linux.remove("resources");
        linux.remove("seccomp");
        if let Some(namespaces) = linux.get_mut("namespaces").and_then(Value::as_array_mut) {
            // The network is the one runc is started in, see `Container::start`.
            namespaces.retain(|namespace| namespace["type"] != "network");
        }
    }
}

/// A container that runs until dropped.
#[derive(Debug)]
pub struct Container {
    runc: Child,
    /// Unique on the machine: cgroups are named after it.
    name: String,
    state: PathBuf,
    log: PathBuf,
}

impl Container {
    fn start(bundle: &Path, state: &Path) -> Result<Self> {
        let log = bundle.with_file_name("log");
        let name =
            bundle.parent().and_then(Path::file_name).context("the bundle lies in a directory of its own")?;
        let name = name.to_string_lossy().into_owned();
        let output = fs::File::create(&log)?;
        let runc = find_program("runc").context("`runc` is not installed")?;
        // A network namespace of its own with nothing but loopback: two tests may both serve port 80.
        let script = "busybox ip link set lo up && exec \"$@\"";
        let runc = Command::new("unshare")
            .args(["--net", "--", "sh", "-c", script, "sh"])
            .arg(runc)
            .arg("--root")
            .arg(state)
            .arg("--log")
            .arg(bundle.with_file_name("runc.log"))
            .args(["run", "--bundle"])
            .arg(bundle)
            .arg(&name)
            .env("PATH", program_path())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("start runc")?;
        Ok(Self { runc, name, state: state.to_owned(), log })
    }

    /// Body of `http://127.0.0.1:PORT/PATH` inside the container's network, once it answers with 200.
    ///
    /// # Errors
    ///
    /// When the container ends, or does not answer in time; with what it printed.
    pub fn get(&mut self, port: u16, path: &str) -> Result<String> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            if let Some(status) = self.runc.try_wait()? {
                bail!("the container ended with {status}: {}", self.output());
            }
            let why = match get_in_network_of(self.runc.id(), port, path) {
                Ok(answer) if answer.status == 200 => return Ok(answer.body),
                Ok(answer) => format!("status {}", answer.status),
                Err(error) => format!("{error:#}"),
            };
            ensure!(Instant::now() < deadline, "port {port}, {path}: {why}; it printed: {}", self.output());
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits for the container's own end and returns what it printed.
    ///
    /// # Errors
    ///
    /// When it fails or takes too long.
    pub fn finish(mut self) -> Result<String> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        let status = loop {
            if let Some(status) = self.runc.try_wait()? {
                break status;
            }
            ensure!(Instant::now() < deadline, "the container runs on: {}", self.output());
            thread::sleep(Duration::from_millis(20));
        };
        ensure!(status.success(), "the container ended with {status}: {}", self.output());
        Ok(self.output())
    }

    /// What it printed so far, or, when it printed nothing, what runc has to say.
    #[must_use]
    pub fn output(&self) -> String {
        let printed = fs::read_to_string(&self.log).unwrap_or_default();
        if printed.is_empty() {
            return fs::read_to_string(self.log.with_file_name("runc.log")).unwrap_or_default();
        }
        printed
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // runc ends the container's processes; then its own foreground process ends by itself.
        if let Some(runc) = find_program("runc") {
            let mut delete = Command::new(runc);
            delete.arg("--root").arg(&self.state).args(["delete", "--force", &self.name]);
            delete.stdin(Stdio::null()).output().ok();
        }
        self.runc.kill().ok();
        self.runc.wait().ok();
    }
}

/// Asks from a thread that joins the network namespace of a process: only that thread moves.
fn get_in_network_of(pid: u32, port: u16, path: &str) -> Result<http::Answer> {
    let namespace = format!("/proc/{pid}/ns/net");
    let is_own = fs::read_link(&namespace)? != fs::read_link("/proc/self/ns/net")?;
    ensure!(is_own, "the container has no network yet");
    let namespace = fs::File::open(namespace)?;
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            http::get(([127, 0, 0, 1], port).into(), path)
        });
        asking.join().unwrap_or_else(|_| bail!("the asking thread panicked"))
    })
}

fn tool(name: &str, args: &[&str]) -> Result<Output> {
    let output = Command::new(name)
        .args(args)
        .env("PATH", program_path())
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {name}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} {}: {said}", args.join(" "));
    Ok(output)
}

fn list(root: &Path, relative: &Path, lines: &mut Vec<String>) -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    for entry in fs::read_dir(root.join(relative))? {
        let entry = entry?;
        let path = relative.join(entry.file_name());
        let meta = entry.path().symlink_metadata()?;
        let owner = format!("{:06o} {}:{}", meta.mode(), meta.uid(), meta.gid());
        let rest = if meta.is_symlink() {
            format!("-> {}", fs::read_link(entry.path())?.display())
        } else if meta.is_file() {
            let bytes = fs::read(entry.path())?;
            format!("{} bytes, sum {:016x}", bytes.len(), sum(&bytes))
        } else {
            String::new()
        };
        lines.push(format!("{} {owner} {rest}", path.display()));
        if meta.is_dir() {
            list(root, &path, lines)?;
        }
    }
    Ok(())
}

/// FNV-1a: enough to tell contents apart in a message.
fn sum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bases;

    fn base(name: &str, tag: &str) -> Result<String> {
        Ok(format!("oci:{}:{tag}", bases::dir()?.join(name).display()))
    }

    #[test]
    fn the_nginx_base_serves_its_page_in_runc() -> Result<()> {
        crate::need!(Bases, Judges, Runtime);
        let image = base("nginx", "latest")?;
        assert_eq!(config(&image)?["config"]["Cmd"], json!(["nginx", "-g", "daemon off;"]));
        let unpacked = unpack(&image)?;
        assert!(unpacked.start(&[])?.get(80, "/")?.contains("Welcome to nginx!"));
        Ok(())
    }

    #[test]
    fn the_node_base_runs_node_and_npm() -> Result<()> {
        crate::need!(Bases, Judges, Runtime);
        let image = base("node", "10")?;
        assert_eq!(config(&image)?["config"]["Entrypoint"], json!(["docker-entrypoint.sh"]));
        let unpacked = unpack(&image)?;
        let config = unpacked.dir.path().join("bundle/config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&config)?)?;
        spec["process"]["args"] = json!(["docker-entrypoint.sh", "sh", "-c", "node -p 6*7; npm --version"]);
        fs::write(&config, spec.to_string())?;
        let printed = unpacked.start(&[])?.finish()?;
        assert!(printed.starts_with("42\n"), "{printed}");
        Ok(())
    }
}
