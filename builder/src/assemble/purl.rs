//! Package URLs: how attestations name images and packages (package-url specification).

use std::fmt::Write as _;

use rbuild_oci::{Platform, Reference};

/// The parts of a package URL.
#[derive(Debug, Clone, Default)]
pub struct Purl<'a> {
    /// `docker`, `deb`, …
    pub kind: &'a str,
    /// Segments before the name, separated by `/`; may be empty.
    pub namespace: &'a str,
    /// Name.
    pub name: &'a str,
    /// Version; may be empty.
    pub version: &'a str,
    /// Qualifiers in the order of their keys; those without a value are left out.
    pub qualifiers: &'a [(&'a str, &'a str)],
}

impl std::fmt::Display for Purl<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pkg:{}", self.kind)?;
        for segment in self.namespace.split('/').filter(|segment| !segment.is_empty()) {
            write!(f, "/{}", escaped(segment, ""))?;
        }
        write!(f, "/{}", escaped(self.name, ""))?;
        if !self.version.is_empty() {
            write!(f, "@{}", escaped(self.version, ""))?;
        }
        let given = self.qualifiers.iter().filter(|(_, value)| !value.is_empty());
        for (at, (key, value)) in given.enumerate() {
            let mark = if at == 0 { '?' } else { '&' };
            write!(f, "{mark}{key}={}", escaped(value, ":"))?;
        }
        Ok(())
    }
}

/// An image, as BuildKit names it: the short form of its name, `latest` when it has neither tag nor digest.
pub fn image(reference: &Reference, platform: Option<&Platform>) -> String {
    let familiar = reference.familiar_name();
    let (namespace, name) = familiar.rsplit_once('/').unwrap_or(("", &familiar));
    let digest = reference.digest().map(|digest| digest.to_string()).unwrap_or_default();
    let version = match (reference.tag(), digest.is_empty()) {
        (Some(tag), _) => tag,
        (None, true) => "latest",
        (None, false) => "",
    };
    let platform = platform.map(ToString::to_string).unwrap_or_default();
    let qualifiers = [("digest", digest.as_str()), ("platform", platform.as_str())];
    Purl { kind: "docker", namespace, name, version, qualifiers: &qualifiers }.to_string()
}

/// Percent-encodes all but the unreserved characters and `more`.
fn escaped(text: &str, more: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "-._~".contains(c) || more.contains(c) {
            out.push(c);
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(reference: &str, platform: Option<&str>, expected: &str) {
        let platform = platform.map(|text| text.parse::<Platform>().unwrap());
        assert_eq!(image(&reference.parse().unwrap(), platform.as_ref()), expected);
    }

    #[test]
    fn images_are_named_as_buildkit_names_them() {
        check("alpine", None, "pkg:docker/alpine@latest");
        check("docker.io/library/alpine:3.15", None, "pkg:docker/alpine@3.15");
        check("user/test:v2", Some("linux/arm64"), "pkg:docker/user/test@v2?platform=linux%2Farm64");
        check("ghcr.io/foo/bar", None, "pkg:docker/ghcr.io/foo/bar@latest");
        check("localhost:5000/foo/bar:1", None, "pkg:docker/localhost%3A5000/foo/bar@1");
        let digest = format!("sha256:{}", "ab".repeat(32));
        check(
            &format!("busybox@{digest}"),
            Some("linux/arm/v7"),
            &format!("pkg:docker/busybox?digest={digest}&platform=linux%2Farm%2Fv7"),
        );
        check(&format!("busybox:1@{digest}"), None, &format!("pkg:docker/busybox@1?digest={digest}"));
    }

    #[test]
    fn what_would_end_a_part_is_escaped() {
        let purl = Purl {
            kind: "npm",
            namespace: "@scope",
            name: "a/b?c",
            version: "1:2.0+x#y",
            qualifiers: &[("arch", ""), ("distro", "debian-12"), ("note", "ä&b")],
        };
        assert_eq!(
            purl.to_string(),
            "pkg:npm/%40scope/a%2Fb%3Fc@1%3A2.0%2Bx%23y?distro=debian-12&note=%C3%A4%26b"
        );
    }
}
