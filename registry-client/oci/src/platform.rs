//! Platforms: operating system, architecture, variant.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A normalised platform such as `linux/amd64` or `linux/arm/v7`.
///
/// Aliases are folded as containerd does (`x86_64` -> `amd64`, `aarch64` and `arm64/v8` -> `arm64`, `arm` and `armhf`
/// -> `arm/v7`, `armel` -> `arm/v6`), so equal platforms compare equal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "AsWritten")]
pub struct Platform {
    /// Operating system, lower case (`linux`).
    pub os: String,
    /// Architecture as Go names it (`amd64`, `arm64`).
    pub architecture: String,
    /// CPU variant (`v7`), when the architecture needs one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub variant: Option<String>,
}

/// A platform in a document, where nothing is normalised yet.
#[derive(Deserialize)]
struct AsWritten {
    os: String,
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

impl From<AsWritten> for Platform {
    fn from(written: AsWritten) -> Self {
        Self::new(&written.os, &written.architecture, written.variant.as_deref())
    }
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

    /// True when an image for `self` runs where `wanted` is asked for: same os and architecture, and a variant the
    /// wanted one includes. Variants are levels (`arm/v7` runs `v6`, `amd64/v3` runs `v2`); an image that names none
    /// runs everywhere. `amd64` and `arm64` without a variant mean the first level, so images for a higher one do not
    /// fit; for other architectures a request without a variant takes any.
    pub fn satisfies(&self, wanted: &Self) -> bool {
        let variant_fits = match (&self.variant, &wanted.variant) {
            (None, _) => true,
            (Some(image), Some(wanted)) => match self.architecture.as_str() {
                "arm" | "amd64" | "arm64" => image <= wanted,
                _ => image == wanted,
            },
            (Some(_), None) => !matches!(self.architecture.as_str(), "amd64" | "arm64"),
        };
        self.os == wanted.os && self.architecture == wanted.architecture && variant_fits
    }

    /// Chooses what is for `wanted`: an exact match, else the highest variant that satisfies it; among equals the first,
    /// as the image-spec says.
    pub fn choose<T>(all: impl IntoIterator<Item = (Self, T)>, wanted: &Self) -> Option<(Self, T)> {
        let mut best: Option<(Self, T)> = None;
        for (found, it) in all.into_iter().filter(|(found, _)| found.satisfies(wanted)) {
            if found == *wanted {
                return Some((found, it));
            }
            if best.as_ref().is_none_or(|(best, _)| found.variant > best.variant) {
                best = Some((found, it));
            }
        }
        best
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(text.parse::<Platform>().map(|p| p.to_string()), Ok(expected.to_owned()), "{text}");
    }

    #[test]
    fn aliases_fold_as_in_containerd() {
        check("linux/x86_64", "linux/amd64");
        check("Linux/AMD64/v1", "linux/amd64");
        check("linux/amd64/v3", "linux/amd64/v3");
        check("linux/aarch64", "linux/arm64");
        check("linux/arm64/v8", "linux/arm64");
        check("linux/arm", "linux/arm/v7");
        check("linux/arm/6", "linux/arm/v6");
        check("linux/armel", "linux/arm/v6");
        check("linux/i686", "linux/386");
        check("macos/arm64", "darwin/arm64");
        check("arm64", "linux/arm64");
        check("s390x", "linux/s390x");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in
            ["", "/", "linux/", "/amd64", "a/b/c/d", "linux/amd 64", "solaris", "linux/\u{e9}", "linux//v7"]
        {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_image_serves_its_own_and_higher_variants() {
        let fits = |image: &str, wanted: &str| {
            image.parse::<Platform>().unwrap().satisfies(&wanted.parse().unwrap())
        };
        assert!(fits("linux/arm/v6", "linux/arm/v7"));
        assert!(!fits("linux/arm/v7", "linux/arm/v6"));
        assert!(fits("linux/amd64", "linux/amd64/v3"));
        assert!(fits("linux/amd64/v2", "linux/amd64/v3"));
        assert!(!fits("linux/amd64/v3", "linux/amd64"), "it may not run on this CPU");
        assert!(!fits("linux/arm64", "linux/amd64"));
        assert!(!fits("windows/amd64", "linux/amd64"));
        assert!(fits("linux/ppc64le/power9", "linux/ppc64le"));
    }

    #[test]
    fn platforms_in_documents_are_normalised() {
        let json = r#"{"os":"linux","architecture":"aarch64","variant":"v8"}"#;
        assert_eq!(serde_json::from_str::<Platform>(json).unwrap(), "linux/arm64".parse().unwrap());
    }

    proptest! {
        #[test]
        fn printed_platforms_parse_to_themselves(text in "[a-zA-Z0-9]{1,8}(/[a-zA-Z0-9_.-]{1,8}){1,2}") {
            let platform: Platform = text.parse().unwrap();
            prop_assert_eq!(platform.to_string().parse::<Platform>(), Ok(platform.clone()));
            prop_assert!(platform.satisfies(&platform));
        }

        #[test]
        fn any_text_parses_or_is_refused_without_panic(text in ".*") {
            let _ = text.parse::<Platform>();
        }
    }
}
