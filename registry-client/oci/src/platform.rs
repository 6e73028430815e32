//! Platforms: operating system, architecture, variant.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A normalised platform such as `linux/amd64` or `linux/arm/v7`.
///
/// Aliases are folded as containerd does (`x86_64` -> `amd64`, `aarch64` and `arm64/v8` -> `arm64`, `arm` and `armhf`
/// -> `arm/v7`, `armel` -> `arm/v6`), so equal platforms compare equal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// Operating system, lower case (`linux`).
    pub os: String,
    /// Architecture as Go names it (`amd64`, `arm64`).
    pub architecture: String,
    /// CPU variant (`v7`), when the architecture needs one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub variant: Option<String>,
}

/// Why a text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlatformError {
    /// Not `os`, `arch`, `os/arch` or `os/arch/variant` of letters, digits, `.`, `_`, `-`.
    #[error("failed to parse platform `{0}`: expected os/arch or os/arch/variant, for example linux/amd64")]
    Syntax(String),
}

impl Platform {
    /// Builds a platform and folds aliases.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let variant = variant.filter(|v| !v.is_empty()).map(str::to_ascii_lowercase);
        let architecture = architecture.to_ascii_lowercase();
        let (architecture, variant) = match (architecture.as_str(), variant.as_deref()) {
            ("x86_64" | "x86-64" | "amd64", v) => ("amd64", v.filter(|v| *v != "v1")),
            ("i386" | "i486" | "i586" | "i686" | "386", _) => ("386", None),
            ("aarch64" | "arm64", v) => ("arm64", v.filter(|v| *v != "8" && *v != "v8")),
            ("armhf", _) => ("arm", Some("v7")),
            ("armel", _) => ("arm", Some("v6")),
            ("arm", None | Some("7")) => ("arm", Some("v7")),
            ("arm", Some("5" | "v5")) => ("arm", Some("v5")),
            ("arm", Some("6")) => ("arm", Some("v6")),
            ("arm", Some("8")) => ("arm", Some("v8")),
            (other, v) => (other, v),
        };
        Self { os, architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }

    /// The platform this binary was compiled for.
    pub fn host() -> Self {
        Self::new("linux", std::env::consts::ARCH, None)
    }

    /// True when an image for `self` can serve a request for `wanted`: same os and architecture, and the same
    /// variant unless one side names none.
    pub fn satisfies(&self, wanted: &Self) -> bool {
        self.os == wanted.os
            && self.architecture == wanted.architecture
            && (self.variant == wanted.variant || self.variant.is_none() || wanted.variant.is_none())
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let bad = || PlatformError::Syntax(text.chars().take(80).collect());
        let parts: Vec<&str> = text.split('/').collect();
        let valid = |p: &&str| {
            !p.is_empty() && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        if !parts.iter().all(valid) {
            return Err(bad());
        }
        match parts.as_slice() {
            [one] => match one.to_ascii_lowercase().as_str() {
                "local" => Ok(Self::host()),
                os @ ("linux" | "windows" | "darwin" | "freebsd") => {
                    Ok(Self::new(os, std::env::consts::ARCH, None))
                }
                arch @ ("x86_64" | "amd64" | "aarch64" | "arm64" | "arm" | "armhf" | "armel" | "386"
                | "i386" | "ppc64le" | "s390x" | "riscv64" | "mips64le" | "loong64") => {
                    Ok(Self::new("linux", arch, None))
                }
                _ => Err(bad()),
            },
            [os, arch] => Ok(Self::new(os, arch, None)),
            [os, arch, variant] => Ok(Self::new(os, arch, Some(variant))),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if let Some(variant) = &self.variant {
            write!(f, "/{variant}")?;
        }
        Ok(())
    }
}
