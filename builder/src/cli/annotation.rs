//! `--annotation` and the `annotation…` attributes of outputs: which document gets which pair.

use std::str::FromStr;

use rbuild_oci::Platform;

use super::error::Problem;

const FLAG: &str = "--annotation";

/// One annotation and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotation {
    /// The document or descriptor that carries it.
    pub place: AnnotationPlace,
    /// Only for the image of this platform.
    pub platform: Option<Platform>,
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
}

/// What carries an annotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnnotationPlace {
    /// The image's manifest.
    Manifest,
    /// The index.
    Index,
    /// The descriptor of the manifest: in the index, or in the layout.
    ManifestDescriptor,
    /// The descriptor of the index: in the layout.
    IndexDescriptor,
}

impl FromStr for AnnotationPlace {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "manifest" => Ok(Self::Manifest),
            "index" => Ok(Self::Index),
            "manifest-descriptor" => Ok(Self::ManifestDescriptor),
            "index-descriptor" => Ok(Self::IndexDescriptor),
            _ => Err(()),
        }
    }
}

/// `[type[,type…]:]KEY=VALUE`, each type with an optional `[os/arch]`.
pub(crate) fn parse_annotation(text: &str) -> Result<Vec<Annotation>, Problem> {
    let invalid = |expected: String| Problem::Value { flag: FLAG, value: text.to_owned(), expected };
    let Some((typed, value)) = text.split_once('=') else {
        return Err(invalid("expected KEY=VALUE".to_owned()));
    };
    let (types, key) = match typed.split_once(':') {
        Some((types, key)) => (types, key),
        None => ("manifest", typed),
    };
    if key.is_empty() {
        return Err(invalid("expected a key that is not empty".to_owned()));
    }
    let place = |text: &str| {
        let (place, platform) = typed_place(text).ok_or_else(|| {
            invalid(format!(
                "unknown annotation type `{text}`, expected manifest, index, manifest-descriptor or \
                 index-descriptor, each with [os/arch] if it is for one platform"
            ))
        })?;
        Ok(Annotation { place, platform, key: key.to_owned(), value: value.to_owned() })
    };
    types.split(',').map(place).collect()
}

/// The key of an output's attribute, `annotation[-TYPE][[PLATFORM]].KEY`; `None` when it is another attribute.
pub(crate) fn parse_attribute(name: &str, value: &str) -> Option<Annotation> {
    let rest = name.strip_prefix("annotation")?;
    // A platform has no dot, so the first dot after the bracket ends the type.
    let dot = rest.find(']').map_or(0, |at| at + 1);
    let dot = dot + rest.get(dot..)?.find('.')?;
    let (typed, key) = (&rest[..dot], &rest[dot + 1..]);
    let typed = match typed.strip_prefix('-') {
        Some(typed) => typed.to_owned(),
        None => format!("manifest{typed}"),
    };
    let (place, platform) = typed_place(&typed)?;
    (!key.is_empty()).then(|| Annotation { place, platform, key: key.to_owned(), value: value.to_owned() })
}

/// `type` or `type[os/arch]`.
fn typed_place(text: &str) -> Option<(AnnotationPlace, Option<Platform>)> {
    let Some((name, platform)) = text.split_once('[') else { return Some((text.parse().ok()?, None)) };
    Some((name.parse().ok()?, Some(platform.strip_suffix(']')?.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(list: &[Annotation]) -> Vec<String> {
        let platform = |one: &Annotation| one.platform.as_ref().map_or(String::new(), |p| format!(" {p}"));
        list.iter().map(|one| format!("{:?}{} {}={}", one.place, platform(one), one.key, one.value)).collect()
    }

    #[test]
    fn annotations_name_their_documents() {
        let check = |text: &str, expected: &[&str]| {
            assert_eq!(shown(&parse_annotation(text).unwrap()), expected, "{text}");
        };
        check("a=b=c", &["Manifest a=b=c"]);
        check("org.x/y=", &["Manifest org.x/y="]);
        check("index:a=b", &["Index a=b"]);
        check("a=index:b", &["Manifest a=index:b"]);
        check("index,manifest[linux/arm64]:a=b", &["Index a=b", "Manifest linux/arm64 a=b"]);
        check("manifest-descriptor:a=b", &["ManifestDescriptor a=b"]);
        check("index-descriptor:a=b", &["IndexDescriptor a=b"]);
        for text in ["a", "=b", "index:=b", "layer:a=b", "manifest[:a=b", "manifest[x/y/z/w]:a=b", ":a=b"] {
            assert!(parse_annotation(text).is_err(), "{text}");
        }
    }

    #[test]
    fn attributes_of_outputs_name_them_too() {
        let check = |name: &str, expected: &str| {
            let found: Vec<Annotation> = parse_attribute(name, "v").into_iter().collect();
            assert_eq!(shown(&found).join(""), expected, "{name}");
        };
        check("annotation.a.b", "Manifest a.b=v");
        check("annotation[linux/arm/v7].a", "Manifest linux/arm/v7 a=v");
        check("annotation-index.A", "Index A=v");
        check("annotation-manifest-descriptor[linux/amd64].a.b", "ManifestDescriptor linux/amd64 a.b=v");
        for name in ["annotation", "annotation.", "annotation-x.a", "name", "annotations.a"] {
            check(name, "");
        }
    }
}
