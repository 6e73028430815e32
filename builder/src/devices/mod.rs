//! `RUN --device`: devices of this machine, described by CDI documents (container device interface), for steps that may
//! have them.
//!
//! | module | for |
//! |---|---|
//! | `document`, `yaml` | what a file of `/etc/cdi` says |
//! | `registry` | all devices that those files describe |
//! | `grant` | which of them a step gets: what it asks for, and what the command line allows |
//! | `lend` | from a device to what the sandbox mounts |
//!
//! Nothing is read unless a step asks. What a device is enters no key: a step that succeeded with one did what its
//! command line says.

mod document;
mod error;
mod grant;
mod lend;
mod registry;
mod yaml;

pub use error::DeviceError;
pub use grant::Devices;
pub use lend::Lent;
pub use registry::{Registry, SPEC_DIRS};
