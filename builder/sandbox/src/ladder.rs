//! The isolation ladder: five ways to run a step, from the most a host can give to nothing at all.
//!
//! | rung | needs | ids a step has | what is lost |
//! |---|---|---|---|
//! | `root` | root of the host, with CAP_SYS_ADMIN | all | nothing |
//! | `rootless` | a user namespace and a range of subordinate ids | 0 is the user, 1 and up the range | device nodes, `trusted.*` |
//! | `single` | a user namespace | 0 alone; changes of owner are recorded, not made | as above, and other ids |
//! | `chroot` | uid 0 of a container that gives no namespaces | all | pid, network, ipc and mount isolation |
//! | `norun` | nothing | | RUN |
//!
//! `auto` takes the first of the first three that works, found by trying the real steps in a child, else `norun`; `chroot`
//! shares processes and network with the builder and is taken only when it is named.

use crate::bootstrap::{self, BootstrapError, Privilege};
use crate::probe::{self, ProbeResult};
use std::fmt;
use std::path::Path;

/// One way to run steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rung {
    /// Root of the host.
    Root,
    /// Root of a user namespace with a whole range of ids.
    Rootless,
    /// Root of a user namespace with one id.
    Single,
    /// Root of a container, without any namespace.
    Chroot,
    /// Steps are not run.
    NoRun,
}

impl Rung {
    /// All of them, best first.
    pub const ALL: [Rung; 5] = [Rung::Root, Rung::Rootless, Rung::Single, Rung::Chroot, Rung::NoRun];
    /// Those that are taken without being named.
    pub const AUTO: [Rung; 3] = [Rung::Root, Rung::Rootless, Rung::Single];

    /// As it is typed and printed.
    pub fn name(self) -> &'static str {
        match self {
            Rung::Root => "root",
            Rung::Rootless => "rootless",
            Rung::Single => "single",
            Rung::Chroot => "chroot",
            Rung::NoRun => "norun",
        }
    }

    /// The rung of this name.
    pub fn by_name(name: &str) -> Option<Rung> {
        Rung::ALL.into_iter().find(|rung| rung.name() == name)
    }

    /// The rung that `auto` takes for files written under a privilege with this description
    /// ([`Privilege::describe`]), so that a store is used again as it was made.
    pub fn of_description(description: &str) -> Option<Rung> {
        match Rung::by_name(description.split(' ').next()?)? {
            // Never taken without being named; the files serve a build without steps as well.
            Rung::Chroot => Some(Rung::NoRun),
            rung => Some(rung),
        }
    }

    /// What a step loses here against the rung above; empty when nothing worth saying.
    pub fn losses(self) -> &'static str {
        match self {
            Rung::Root | Rung::Rootless => "",
            Rung::Single => {
                "one id is mapped: changes of owner are recorded rather than made, and every step runs as root"
            }
            Rung::Chroot => {
                "steps share processes, network and kernel file systems with the builder, and have no /proc"
            }
            Rung::NoRun => "RUN is refused",
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// The best that works.
    #[default]
    Auto,
    /// This one or an error.
    Named(Rung),
    /// `chroot` also where the kernel cannot keep its steps from the rest of the container.
    ForcedChroot,
}

impl Isolation {
    /// What is typed: a rung's name, `auto`, or `chroot,force`.
    pub fn parse(text: &str) -> Option<Isolation> {
        match text {
            "" | "auto" | "default" => Some(Isolation::Auto),
            "chroot,force" => Some(Isolation::ForcedChroot),
            name => Rung::by_name(name).map(Isolation::Named),
        }
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Isolation::Auto => f.write_str("auto"),
            Isolation::Named(rung) => rung.fmt(f),
            Isolation::ForcedChroot => f.write_str("chroot,force"),
        }
    }
}

/// A rung that `auto` did not take, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOver {
    /// Which.
    pub rung: Rung,
    /// What failed there first.
    pub why: String,
    /// What would help.
    pub remedy: Option<String>,
}

/// The rung that `auto` takes, and those it could not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The best that works.
    pub rung: Rung,
    /// Better ones, best first.
    pub passed_over: Vec<PassedOver>,
}

/// Tries the rungs of `auto`, best first, each in a process of its own with scratch directories below `work_dir`.
///
/// Blocks for some ten milliseconds a rung. May be called with threads running; changes nothing of this process.
pub fn choose(work_dir: &Path) -> Choice {
    let mut passed_over = Vec::new();
    for rung in Rung::AUTO {
        let results = probe::probe_rung(Isolation::Named(rung), work_dir, false);
        match first_obstacle(&results) {
            None => return Choice { rung, passed_over },
            Some(obstacle) => {
                let ProbeResult { name, detail, remedy, .. } = obstacle;
                passed_over.push(PassedOver { rung, why: format!("{name}: {detail}"), remedy });
            }
        }
    }
    Choice { rung: Rung::NoRun, passed_over }
}

/// What keeps steps from being run, if anything does. Doing without a network of its own is no obstacle.
pub fn first_obstacle(results: &[ProbeResult]) -> Option<ProbeResult> {
    let runs = results.iter().any(|result| result.is_step && result.ok);
    if runs { None } else { results.iter().find(|result| !result.ok).cloned() }
}

/// Takes the privileges of a rung, for good: the process is root of a user namespace afterwards where the rung says so.
///
/// Must be called before any thread exists and after [`dispatch`](crate::dispatch). On an error after `unshare` the
/// process is in a namespace without rights and should only report and exit.
pub fn enter(isolation: Isolation) -> Result<Privilege, BootstrapError> {
    match isolation {
        Isolation::Auto => bootstrap::bootstrap(),
        Isolation::Named(Rung::Root) => bootstrap::root(),
        Isolation::Named(Rung::Rootless) => bootstrap::rootless(),
        Isolation::Named(Rung::Single) => bootstrap::single(),
        Isolation::Named(Rung::Chroot) => crate::chroot::enter(false),
        Isolation::ForcedChroot => crate::chroot::enter(true),
        Isolation::Named(Rung::NoRun) => Ok(bootstrap::norun()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn isolation_is_a_rung_or_auto() {
        for rung in Rung::ALL {
            assert_eq!(Isolation::parse(rung.name()), Some(Isolation::Named(rung)));
        }
        assert_eq!(Isolation::parse(""), Some(Isolation::Auto));
        assert_eq!(Isolation::parse("chroot,force"), Some(Isolation::ForcedChroot));
        assert_eq!(Isolation::parse("hyperv"), None);
    }

    #[test]
    fn a_store_is_used_again_as_it_was_made() {
        let of = |text| Rung::of_description(text);
        assert_eq!(of("root"), Some(Rung::Root));
        assert_eq!(of("rootless uids=0=1000:1 gids=0=1000:1"), Some(Rung::Rootless));
        assert_eq!(of("single uid=1000 gid=1000"), Some(Rung::Single));
        assert_eq!(of("chroot"), Some(Rung::NoRun), "chroot is for who names it");
        assert_eq!(of("norun uid=1000 gid=1000"), Some(Rung::NoRun));
        assert_eq!(of("hyperv"), None);
    }
}
