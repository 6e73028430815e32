//! A real registry server for one test or one test binary.

use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::bases;
use crate::need::{find_program, program_path};

/// How long the server may take to listen.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A `docker-registry serve` on a free loopback port, with storage of its own. Dropping it ends the server.
#[derive(Debug)]
pub struct Registry {
    server: Child,
    address: SocketAddr,
    dir: TempDir,
}

impl Registry {
    /// An empty registry that lets anyone pull and push.
    ///
    /// # Errors
    ///
    /// When the server is not installed or does not start.
    pub fn empty() -> Result<Self> {
        Self::start(tempfile::tempdir()?, "")
    }

    /// A registry that serves the base images as `library/NAME`.
    ///
    /// # Errors
    ///
    /// When the bases cannot be made or the server does not start.
    pub fn with_bases() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        copy_storage(&bases::dir()?.join("registry"), &dir.path().join("storage"))?;
        Self::start(dir, "")
    }

    /// The registry with the bases that the tests of this process share; it ends with the last test that has it.
    ///
    /// Push to names of the test's own only.
    ///
    /// # Errors
    ///
    /// As [`Registry::with_bases`].
    pub fn shared() -> Result<Arc<Self>> {
        static SHARED: Mutex<Weak<Registry>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(registry) = shared.upgrade() {
            return Ok(registry);
        }
        let registry = Arc::new(Self::with_bases()?);
        *shared = Arc::downgrade(&registry);
        Ok(registry)
    }

    /// A registry with the bases that asks every client for this name and password (Basic authentication).
    ///
    /// # Errors
    ///
    /// As [`Registry::with_bases`], and when `htpasswd` is missing.
    pub fn with_password(name: &str, password: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        copy_storage(&bases::dir()?.join("registry"), &dir.path().join("storage"))?;
        let file = dir.path().join("htpasswd");
        fs::write(&file, htpasswd(name, password)?)?;
        let auth = format!("auth: {{htpasswd: {{realm: tests, path: {}}}}}\n", file.display());
        Self::start(dir, &auth)
    }

    /// A registry with the bases and this in its configuration.
    ///
    /// # Errors
    ///
    /// As [`Registry::with_bases`].
    pub fn with_bases_and(extra: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        copy_storage(&bases::dir()?.join("registry"), &dir.path().join("storage"))?;
        Self::start(dir, extra)
    }

    /// A registry with the bases that speaks TLS under this name, with a certificate of its own authority.
    ///
    /// # Errors
    ///
    /// As [`Registry::with_bases`], and when openssl makes no certificate.
    pub fn with_certificate(name: &str) -> Result<Self> {
        Self::with_tls(name, Tls::default())
    }

    /// As [`Registry::with_certificate`], in one of its variations.
    ///
    /// # Errors
    ///
    /// As [`Registry::with_certificate`].
    pub fn with_tls(name: &str, how: Tls<'_>) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        copy_storage(&bases::dir()?.join("registry"), &dir.path().join("storage"))?;
        let openssl = |args: &[&str]| -> Result<()> {
            let mut command = Command::new("openssl");
            let output = command.args(args).current_dir(dir.path()).output().context("run openssl")?;
            ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
            Ok(())
        };
        let path = |file: &str| dir.path().join(file).display().to_string();
        let mut extra =
            format!("  tls:\n    certificate: {}\n    key: {}\n", path("cert.pem"), path("key.pem"));
        if how.wants_clients {
            extra.push_str(&format!("    clientcas: [{}]\n", path("ca.pem")));
        }
        if let Some((user, password)) = how.password {
            fs::write(dir.path().join("htpasswd"), htpasswd(user, password)?)?;
            extra.push_str(&format!("auth: {{htpasswd: {{realm: tests, path: {}}}}}\n", path("htpasswd")));
        }
        let new = ["req", "-newkey", "rsa:2048", "-nodes"];
        let authority = ["-x509", "-days", "2", "-subj", "/CN=tests", "-keyout", "ca.key", "-out", "ca.pem"];
        openssl(&[new.as_slice(), &authority].concat())?;
        openssl(
            &[new.as_slice(), &["-subj", "/CN=server", "-keyout", "key.pem", "-out", "request.pem"]].concat(),
        )?;
        fs::write(dir.path().join("names"), format!("subjectAltName=DNS:{name}\n"))?;
        let sign = ["x509", "-req", "-in", "request.pem", "-days", "2", "-out", "cert.pem", "-extfile"];
        if how.is_own_authority {
            // What `openssl req -x509` gives: a certificate that may sign others, itself first of all.
            fs::write(
                dir.path().join("own"),
                format!("basicConstraints=CA:TRUE\nsubjectAltName=DNS:{name}\n"),
            )?;
            openssl(&[sign.as_slice(), &["own", "-signkey", "key.pem"]].concat())?;
            fs::copy(dir.path().join("cert.pem"), dir.path().join("ca.pem"))?;
        } else {
            let authority = ["names", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
            openssl(&[sign.as_slice(), &authority].concat())?;
        }
        if how.wants_clients {
            let client = ["-subj", "/CN=client", "-keyout", "client.key", "-out", "client.csr"];
            openssl(&[new.as_slice(), &client].concat())?;
            let made = ["x509", "-req", "-in", "client.csr", "-days", "2", "-out", "client.cert"];
            openssl(&[made.as_slice(), &["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]].concat())?;
        }
        Self::start(dir, &extra)
    }

    /// A registry that fetches from another what it has not.
    ///
    /// # Errors
    ///
    /// As [`Registry::empty`].
    pub fn mirror_of(upstream: &Self) -> Result<Self> {
        Self::start(tempfile::tempdir()?, &format!("proxy: {{remoteurl: \"http://{}\"}}\n", upstream.host()))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate of its authority, of a registry with one.
    ///
    /// # Errors
    ///
    /// When it has none.
    pub fn authority(&self) -> Result<String> {
        fs::read_to_string(self.dir.path().join("ca.pem")).context("no authority")
    }

    /// Certificate and key for a client, of a registry that wants them.
    ///
    /// # Errors
    ///
    /// When it wants none.
    pub fn client_pair(&self) -> Result<(String, String)> {
        let read = |name: &str| fs::read_to_string(self.dir.path().join(name)).context("no client pair");
        Ok((read("client.cert")?, read("client.key")?))
    }

    fn start(dir: TempDir, extra: &str) -> Result<Self> {
        let program = find_program("docker-registry").context("`docker-registry` is not installed")?;
        let config = dir.path().join("config.yml");
        let log = dir.path().join("log");
        // Another process can take the port between our look and the server's bind: then try the next one.
        for _ in 0..5 {
            let address = free_address()?;
            let storage = dir.path().join("storage");
            fs::create_dir_all(&storage)?;
            let text = format!(
                "version: 0.1\nlog: {{level: warn}}\n\
                 storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
                 http:\n  addr: \"{address}\"\n{extra}",
                storage.display(),
            );
            fs::File::create(&config)?.write_all(text.as_bytes())?;
            let output = fs::File::create(&log)?;
            let mut server = Command::new(&program)
                .arg("serve")
                .arg(&config)
                .env_clear()
                .env("PATH", program_path())
                .stdin(Stdio::null())
                .stdout(output.try_clone()?)
                .stderr(output)
                .spawn()
                .with_context(|| format!("start {}", program.display()))?;
            if listens(&mut server, address)? {
                return Ok(Self { server, address, dir });
            }
        }
        bail!("docker-registry does not start: {}", fs::read_to_string(&log).unwrap_or_default())
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Method and path of every request that was answered so far, in order.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        let request = |line: &str| {
            let (request, _) = line.split_once('"')?.1.split_once(" HTTP/1.")?;
            Some(request.to_owned())
        };
        self.log().lines().filter_map(request).collect()
    }

    /// What the server logged, for the message of a failing test.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Its own child: nothing else can have this pid before it is waited for.
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

/// How a registry that speaks TLS differs from a plain one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tls<'a> {
    /// Its certificate is its own authority (`CA:TRUE`).
    pub is_own_authority: bool,
    /// It wants a certificate of its authority from clients.
    pub wants_clients: bool,
    /// It asks for this name and password.
    pub password: Option<(&'a str, &'a str)>,
}

fn htpasswd(name: &str, password: &str) -> Result<Vec<u8>> {
    // The server takes bcrypt only.
    let output = Command::new("htpasswd").args(["-nbB", name, password]).output().context("run htpasswd")?;
    ensure!(output.status.success(), "htpasswd: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// An address on loopback that nothing listens on at this moment.
///
/// # Errors
///
/// When the kernel gives no port.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

pub(crate) fn listens(server: &mut Child, address: SocketAddr) -> Result<bool> {
    let deadline = Instant::now() + START_LIMIT;
    while Instant::now() < deadline {
        if server.try_wait()?.is_some() {
            return Ok(false);
        }
        if TcpStream::connect(address).is_ok() {
            return Ok(true);
        }
        thread::sleep(Duration::from_millis(10));
    }
    server.kill()?;
    server.wait()?;
    Ok(false)
}

/// Copies a registry's storage: blobs, which nobody ever changes in place, as hard links where possible.
fn copy_storage(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_storage(&source, &target)?;
        } else if entry.file_name() != "data" || fs::hard_link(&source, &target).is_err() {
            fs::copy(&source, &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http;

    #[test]
    fn a_registry_answers_while_it_lives_and_is_gone_after() -> Result<()> {
        crate::need!(Registry);
        let registry = Registry::empty()?;
        let address = registry.address;
        assert_eq!(http::get(address, "/v2/")?.body, "{}");
        drop(registry);
        assert!(TcpStream::connect(address).is_err());
        Ok(())
    }

    #[test]
    fn a_registry_with_bases_serves_the_hub_names() -> Result<()> {
        crate::need!(Registry, Bases);
        let registry = Registry::with_bases()?;
        for (name, tag) in [
            ("busybox", "latest"),
            ("debian", "latest"),
            ("ubuntu", "latest"),
            ("nginx", "latest"),
            ("node", "10"),
        ] {
            let answer = http::get(registry.address, &format!("/v2/library/{name}/tags/list"))?;
            assert!(answer.body.contains(tag), "{name}: {}", answer.body);
        }
        Ok(())
    }

    #[test]
    fn a_registry_with_a_password_refuses_strangers() -> Result<()> {
        crate::need!(Registry, Bases, Password);
        let registry = Registry::with_password("user", "secret")?;
        assert_eq!(http::get(registry.address, "/v2/")?.status, 401);
        Ok(())
    }
}
