//! The two user-mode network stacks there are, and how each is told what we want.

use std::path::{Path, PathBuf};

/// Where the stack answers DNS queries with the host's name servers: slirp4netns's built-in address, given to pasta too.
pub(super) const NAMESERVER: &str = "10.0.2.3";

/// One installed program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UserStack {
    kind: Kind,
    path: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pasta,
    Slirp,
}

impl Kind {
    /// In the order they are tried: pasta keeps the host's addresses, speaks IPv6 and moves more.
    const ALL: [Kind; 2] = [Kind::Pasta, Kind::Slirp];

    fn name(self) -> &'static str {
        match self {
            Kind::Pasta => "pasta",
            Kind::Slirp => "slirp4netns",
        }
    }
}

impl UserStack {
    /// What is on this process's `PATH`.
    pub(super) fn installed() -> Vec<UserStack> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs: Vec<PathBuf> = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).collect();
        let find = |kind: Kind| {
            let file = dirs.iter().map(|dir| dir.join(kind.name())).find(|file| is_program(file))?;
            Some(UserStack { kind, path: file })
        };
        Kind::ALL.into_iter().filter_map(find).collect()
    }

    pub(super) fn name(&self) -> &'static str {
        self.kind.name()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it may run as the host's root: slirp4netns shuts itself in, pasta insists on becoming «nobody».
    pub(super) fn runs_as_root(&self) -> bool {
        self.kind == Kind::Slirp
    }

    /// For the holder's command line; [`from_args`](UserStack::from_args) reads it.
    pub(super) fn to_args(&self, loopback_dns: bool) -> [std::ffi::OsString; 3] {
        let dns = if loopback_dns { "dns" } else { "no-dns" };
        [self.name().into(), self.path.clone().into_os_string(), dns.into()]
    }

    pub(super) fn from_args(
        args: &mut impl Iterator<Item = std::ffi::OsString>,
    ) -> Option<(UserStack, bool)> {
        let name = args.next()?;
        let kind = Kind::ALL.into_iter().find(|kind| name == kind.name())?;
        let path = args.next()?.into();
        Some((UserStack { kind, path }, args.next()? == "dns"))
    }

    /// Arguments that make it serve the namespace behind the descriptor `namespace` in the foreground, with nothing of the
    /// host forwarded to it and the host's loopback closed.
    pub(super) fn argv(&self, namespace: i32, loopback_dns: bool) -> Vec<String> {
        let namespace = format!("/proc/self/fd/{namespace}");
        let words: Vec<&str> = match self.kind {
            Kind::Pasta => {
                let mut words = vec![
                    "pasta",
                    "--foreground",
                    "--quiet",
                    "--config-net",
                    "--no-map-gw",
                    "--tcp-ports",
                    "none",
                    "--udp-ports",
                    "none",
                    "--tcp-ns",
                    "none",
                    "--udp-ns",
                    "none",
                ];
                if loopback_dns {
                    words.extend(["--dns-forward", NAMESERVER]);
                }
                words.extend(["--netns-only", "--netns", &namespace]);
                words
            }
            Kind::Slirp => vec![
                "slirp4netns",
                "--configure",
                "--mtu=65520",
                "--disable-host-loopback",
                "--netns-type=path",
                &namespace,
                "tap0",
            ],
        };
        words.into_iter().map(str::to_owned).collect()
    }
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_survives_the_command_line() {
        let stack = UserStack { kind: Kind::Slirp, path: "/usr/bin/slirp4netns".into() };
        let mut args = stack.to_args(true).into_iter();
        assert_eq!(UserStack::from_args(&mut args), Some((stack, true)));
        assert_eq!(UserStack::from_args(&mut ["other".into(), "/x".into(), "dns".into()].into_iter()), None);
    }

    #[test]
    fn no_stack_maps_the_host_loopback_or_its_ports() {
        for kind in Kind::ALL {
            let argv = UserStack { kind, path: "/x".into() }.argv(7, true);
            assert!(argv.iter().any(|a| a == "--no-map-gw" || a == "--disable-host-loopback"), "{argv:?}");
            assert!(argv.iter().any(|a| a == "/proc/self/fd/7"), "{argv:?}");
        }
        let pasta = UserStack { kind: Kind::Pasta, path: "/x".into() };
        assert_eq!(pasta.argv(7, false).iter().filter(|a| *a == "none").count(), 4);
        assert!(!pasta.argv(7, false).iter().any(|a| a == "--dns-forward"));
    }
}
