//! Why a step cannot have a device.

use std::io;
use std::path::PathBuf;

/// Why a step cannot have a device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Not a name that a device can have.
    #[error("invalid device \"{name}\"")]
    Name {
        /// As written.
        name: String,
    },
    /// No document describes it.
    #[error("required device \"{name}\" is not registered")]
    Unknown {
        /// As written.
        name: String,
        /// Devices there are.
        known: Vec<String>,
        /// Files that could not be read, and why.
        broken: Vec<(PathBuf, String)>,
        /// Where documents were looked for.
        dirs: Vec<PathBuf>,
    },
    /// Nobody allowed it.
    #[error("device {name} is requested by the build but not allowed")]
    NotAllowed {
        /// Its qualified name.
        name: String,
    },
    /// Described twice.
    #[error("device {name} is described by several files: {}", names(files))]
    Ambiguous {
        /// Its qualified name.
        name: String,
        /// The files.
        files: Vec<PathBuf>,
    },
    /// Its description asks for what no step gets.
    #[error("device {name} cannot be had: {} has {what}, and rbuild does nothing of that kind on the host", file.display())]
    Refused {
        /// Its qualified name.
        name: String,
        /// The file.
        file: PathBuf,
        /// What it asks for.
        what: &'static str,
    },
    /// Two things at one place of the step.
    #[error("device {name} and a mount of the step are both at {path}")]
    Taken {
        /// Its qualified name.
        name: String,
        /// In the step.
        path: String,
    },
    /// Something of the host that it consists of.
    #[error("device {name}: cannot use {}", path.display())]
    Host {
        /// Its qualified name.
        name: String,
        /// On the host.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A path of the host is not the device that the description says.
    #[error("device {name}: {} is not the device that {} describes", path.display(), file.display())]
    OtherDevice {
        /// Its qualified name.
        name: String,
        /// On the host.
        path: PathBuf,
        /// The file.
        file: PathBuf,
    },
}

fn names(files: &[PathBuf]) -> String {
    files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}

impl DeviceError {
    /// What to do.
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Name { .. } => {
                let alias = "a name of your own is given with --allow device=vendor.com/class=name,alias=NAME";
                vec![format!("name a device as vendor.com/class=name; {alias}")]
            }
            Self::Unknown { known, broken, dirs, .. } => {
                let known = match known.as_slice() {
                    [] => format!(
                        "no file in {} describes a device; name another directory with --cdi-spec-dir",
                        names(dirs)
                    ),
                    known => format!("devices here: {}", known.join(", ")),
                };
                let broken = broken.iter().map(|(file, why)| format!("{} is broken: {why}", file.display()));
                std::iter::once(known).chain(broken).collect()
            }
            Self::NotAllowed { name } => vec![format!("allow it with --allow device={name}")],
            Self::Ambiguous { .. } => vec!["remove all but one of them".to_owned()],
            Self::Refused { what: "hooks", .. } => vec![
                "hooks are programs run on the host: write the description without them and do in the step what they do \
                 (nvidia-ctk cdi generate --disable-hook=all leaves its own out; `ldconfig` in the step replaces them)"
                    .to_owned(),
            ],
            Self::Refused { .. } => vec!["write the description without them".to_owned()],
            Self::Taken { .. } => vec!["mount something else elsewhere".to_owned()],
            Self::Host { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => vec![
                "join the group that may open it, or have a rule give it to your user: the step opens it as you"
                    .to_owned(),
            ],
            Self::Host { .. } => {
                vec!["the description is of another machine or driver version: generate it anew".to_owned()]
            }
            Self::OtherDevice { .. } => vec!["generate the description anew".to_owned()],
        }
    }
}
