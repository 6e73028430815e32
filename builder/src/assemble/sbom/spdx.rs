//! The SPDX 2.3 document of what was found.

use std::io;
use std::sync::Arc;

use rbuild_oci::Digest;
use serde::ser::{Error as _, SerializeMap as _, SerializeSeq as _};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::{Ecosystem, Found, Package};
use crate::assemble::attestation::Keys;
use crate::assemble::file_blob::hashed;
use crate::assemble::purl::Purl;

/// What the predicate is.
pub const PREDICATE_TYPE: &str = "https://spdx.dev/Document";
const NONE: &str = "NOASSERTION";
const IMAGE_ID: &str = "SPDXRef-Image";

/// What was scanned.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Its name.
    pub name: &'a str,
    /// True for an image, false for a directory of files.
    pub is_image: bool,
    /// When it was made, RFC 3339.
    pub created: &'a str,
}

/// The document, which is never in memory as a whole. Depends on nothing but what was found and on its subject.
#[derive(Debug, Clone)]
pub struct Document {
    found: Arc<Found>,
    /// Says what is scanned.
    image: Value,
    created: String,
    namespace: String,
}

impl Document {
    /// Lists what was found.
    pub fn of(found: Found, subject: &Subject<'_>) -> io::Result<Self> {
        let image = json!({
            "SPDXID": IMAGE_ID,
            "name": subject.name,
            "downloadLocation": NONE,
            "filesAnalyzed": false,
            "licenseConcluded": NONE,
            "licenseDeclared": NONE,
            "copyrightText": NONE,
            "primaryPackagePurpose": if subject.is_image { "CONTAINER" } else { "SOURCE" },
        });
        let packages =
            List { found: &found, first: None, each: &|package| Keys::Sorted.of(entry(package, &found)) };
        let (contents, ..) =
            hashed(io::sink(), |out| Ok(serde_json::to_writer(out, &(subject.name, packages))?))?;
        let namespace = format!("https://spdx.org/spdxdocs/rbuild-{}", contents.hex());
        let created = whole_seconds(subject.created);
        Ok(Self { found: Arc::new(found), image, created, namespace })
    }

    /// Serializes with the keys of all objects in an order.
    pub fn with_keys<S: Serializer>(&self, keys: Keys, serializer: S) -> Result<S::Ok, S::Error> {
        let found = &*self.found;
        let first = |value: Value| Some(keys.of(value));
        let packages =
            List { found, first: first(self.image.clone()), each: &|package| keys.of(entry(package, found)) };
        let contains = |package: &Package| {
            keys.of(relationship(IMAGE_ID, "CONTAINS", &id(package, &purl(package, found))))
        };
        let relationships = List {
            found,
            first: first(relationship("SPDXRef-DOCUMENT", "DESCRIBES", IMAGE_ID)),
            each: &contains,
        };
        let creation = json!({
            "created": self.created,
            "creators": [concat!("Tool: rbuild-", env!("CARGO_PKG_VERSION"))],
        });
        let comment = comment(found);
        let mut fields: [(&str, Field<'_>); 9] = [
            ("spdxVersion", Field::Text("SPDX-2.3")),
            ("dataLicense", Field::Text("CC0-1.0")),
            ("SPDXID", Field::Text("SPDXRef-DOCUMENT")),
            ("name", Field::Value(self.image["name"].clone())),
            ("documentNamespace", Field::Text(&self.namespace)),
            ("comment", Field::Text(&comment)),
            ("creationInfo", Field::Value(keys.of(creation))),
            ("packages", Field::List(packages)),
            ("relationships", Field::List(relationships)),
        ];
        if keys == Keys::Sorted {
            fields.sort_by_key(|(name, _)| *name);
        }
        let mut document = serializer.serialize_map(Some(fields.len()))?;
        for (name, field) in &fields {
            document.serialize_entry(name, field)?;
        }
        document.end()
    }
}

/// A field of the document.
#[derive(Serialize)]
#[serde(untagged)]
enum Field<'a> {
    Text(&'a str),
    Value(Value),
    List(List<'a>),
}

/// What is said of each package, after what comes first.
struct List<'a> {
    found: &'a Found,
    first: Option<Value>,
    each: &'a dyn Fn(&Package) -> Value,
}

impl Serialize for List<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        if let Some(first) = &self.first {
            list.serialize_element(first)?;
        }
        for package in self.found.packages.iter() {
            list.serialize_element(&(self.each)(&package.map_err(S::Error::custom)?))?;
        }
        list.end()
    }
}

fn comment(found: &Found) -> String {
    let mut comment =
        "Lists packages of dpkg, apk, Node (node_modules) and Python (dist-info, egg-info). RPM \
                       databases and the modules that binaries are built from are not read."
            .to_owned();
    for remark in &found.remarks {
        comment.push_str(" Left out: ");
        comment.push_str(remark);
        comment.push('.');
    }
    comment
}

/// SPDX knows no fractions.
fn whole_seconds(moment: &str) -> String {
    match moment.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => moment.to_owned(),
    }
}

fn relationship(from: &str, kind: &str, to: &str) -> Value {
    json!({"spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to})
}

fn id(package: &Package, purl: &str) -> String {
    let identity = Digest::of(format!("{purl}\0{}", package.found_in).as_bytes());
    let safe: String =
        package.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(64).collect();
    format!("SPDXRef-Package-{safe}-{}", &identity.hex()[..16])
}

fn entry(package: &Package, found: &Found) -> Value {
    let purl = purl(package, found);
    let source = match package.ecosystem {
        Ecosystem::Deb => "dpkg database",
        Ecosystem::Apk => "apk database",
        Ecosystem::Npm => "installed node module",
        Ecosystem::PyPi => "installed Python package",
    };
    let or_none = |text: &str| if text.is_empty() { NONE.to_owned() } else { text.to_owned() };
    let mut entry = json!({
        "SPDXID": id(package, &purl),
        "name": package.name,
        "versionInfo": package.version,
        "supplier": supplier(&package.maintainer),
        "downloadLocation": NONE,
        "filesAnalyzed": false,
        "sourceInfo": format!("found in the {source} /{}", package.found_in),
        "licenseConcluded": NONE,
        "licenseDeclared": or_none(license(&package.license).unwrap_or_default()),
        "copyrightText": NONE,
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": purl,
        }],
    });
    if is_address(&package.homepage) {
        entry["homepage"] = json!(package.homepage);
    }
    if license(&package.license).is_none() && !package.license.is_empty() {
        entry["licenseComments"] = json!(format!("declared as: {}", package.license));
    }
    entry
}

fn purl(package: &Package, found: &Found) -> String {
    let distro = found.system.distro();
    let system = found.system.id.as_str();
    let upstream = if package.upstream == package.name { "" } else { package.upstream.as_str() };
    let of_system = [("arch", package.architecture.as_str()), ("distro", &distro), ("upstream", upstream)];
    let version = package.version.as_str();
    match package.ecosystem {
        Ecosystem::Deb | Ecosystem::Apk => {
            let (kind, usual) = match package.ecosystem {
                Ecosystem::Deb => ("deb", "debian"),
                _ => ("apk", "alpine"),
            };
            let namespace = if system.is_empty() { usual } else { system };
            Purl { kind, namespace, name: &package.name, version, qualifiers: &of_system }.to_string()
        }
        Ecosystem::Npm => {
            let (namespace, name) = package.name.split_once('/').unwrap_or(("", &package.name));
            Purl { kind: "npm", namespace, name, version, ..Purl::default() }.to_string()
        }
        Ecosystem::PyPi => {
            let name = package.name.to_ascii_lowercase().replace('_', "-");
            Purl { kind: "pypi", name: &name, version, ..Purl::default() }.to_string()
        }
    }
}

/// `Person: Name (mail)`.
fn supplier(maintainer: &str) -> String {
    let (name, mail) = maintainer.split_once('<').unwrap_or((maintainer, ""));
    let (name, mail) = (name.trim(), mail.split('>').next().unwrap_or_default().trim());
    match (name, mail) {
        ("", "") => NONE.to_owned(),
        (name, "") => format!("Person: {name}"),
        ("", mail) => format!("Person: {mail}"),
        (name, mail) => format!("Person: {name} ({mail})"),
    }
}

/// The text when it has the form of a license expression: ids, `AND`, `OR`, `WITH`, parentheses.
fn license(text: &str) -> Option<&str> {
    let is_id =
        |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "-.+".contains(c));
    let is_joint = |word: &str| matches!(word, "AND" | "OR" | "WITH");
    let mut wants_id = true;
    for word in text.split(' ').map(|word| word.trim_matches(['(', ')'])) {
        match wants_id {
            true if is_id(word) && !is_joint(word) => wants_id = false,
            false if is_joint(word) => wants_id = true,
            _ => return None,
        }
    }
    let is_balanced = text.matches('(').count() == text.matches(')').count();
    (!wants_id && is_balanced).then_some(text)
}

fn is_address(text: &str) -> bool {
    (text.starts_with("https://") || text.starts_with("http://"))
        && text.chars().all(|c| c.is_ascii_graphic() && !"\"<>\\^`{|}".contains(c))
}
