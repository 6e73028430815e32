//! One world for each way to run steps.

use anyhow::Result;
use rbuild_tests::{Run, TestEnv};

/// Where a build runs, and with which isolation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// Root of the host.
    Root,
    /// An ordinary user with a range of subordinate ids.
    Rootless,
    /// An ordinary user without.
    Single,
    /// Root of the host, in a chroot because it is named.
    Chroot,
    /// Root of a container with docker's default profile, in a chroot.
    Contained,
}

impl Place {
    pub(crate) const ALL: [Place; 5] =
        [Place::Root, Place::Rootless, Place::Single, Place::Chroot, Place::Contained];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Place::Root => "root",
            Place::Rootless => "rootless",
            Place::Single => "single",
            Place::Chroot => "chroot",
            Place::Contained => "contained",
        }
    }

    /// The rung, as it is named and announced.
    pub(crate) fn rung(self) -> &'static str {
        if self == Place::Contained { "chroot" } else { self.name() }
    }

    pub(crate) fn is_chroot(self) -> bool {
        self.rung() == "chroot"
    }

    /// A world of this place.
    pub(crate) fn env(self) -> Result<TestEnv> {
        let env = match self {
            Place::Rootless => TestEnv::rootless()?,
            Place::Single => TestEnv::without_sub_ids()?,
            Place::Root | Place::Chroot | Place::Contained => TestEnv::new()?,
        };
        Ok(env.with_variable("RBUILD_ISOLATION", self.rung()))
    }

    /// Runs rbuild in a world of this place. Users may open `/dev/net/tun` there, whatever they may on this machine.
    pub(crate) fn run(self, env: &TestEnv, args: &[&str]) -> Result<Run> {
        match self {
            Place::Contained => env.run_contained(args),
            Place::Rootless | Place::Single => env.run_with_tun(args),
            Place::Root | Place::Chroot => env.run(args),
        }
    }
}
