//! `--filter KEY=VALUE` of commands that list images.

use super::error::Problem;

/// One condition on an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageFilter {
    /// Has no tag, or has one.
    Dangling(bool),
    /// Has the label, with this value when one is given.
    Label(String, Option<String>),
    /// Was made before this image.
    Before(String),
    /// Was made after this image.
    Since(String),
    /// Its name matches this pattern.
    Reference(String),
}

/// Parses one `--filter`.
pub(crate) fn parse_filter(text: &str) -> Result<ImageFilter, Problem> {
    let wrong = |expected: &str| Problem::Value {
        flag: "--filter",
        value: text.to_owned(),
        expected: expected.to_owned(),
    };
    let (key, value) =
        text.split_once('=').ok_or_else(|| wrong("bad format of filter (expected name=value)"))?;
    let value = value.trim();
    match key.trim().to_ascii_lowercase().as_str() {
        "dangling" => match super::args::go_bool(&value.to_ascii_lowercase()) {
            Ok(dangling) => Ok(ImageFilter::Dangling(dangling)),
            Err(expected) => Err(wrong(&expected)),
        },
        "label" => Ok(match value.split_once('=') {
            Some((key, value)) => ImageFilter::Label(key.to_owned(), Some(value.to_owned())),
            None => ImageFilter::Label(value.to_owned(), None),
        }),
        "before" => Ok(ImageFilter::Before(value.to_owned())),
        "since" => Ok(ImageFilter::Since(value.to_owned())),
        "reference" => Ok(ImageFilter::Reference(value.to_owned())),
        _ => Err(wrong("expected dangling, label, before, since or reference")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_keys_with_values() {
        let label = |value: Option<&str>| ImageFilter::Label("a.b".into(), value.map(str::to_owned));
        assert_eq!(parse_filter("label=a.b").unwrap(), label(None));
        assert_eq!(parse_filter("label=a.b=c=d").unwrap(), label(Some("c=d")));
        assert_eq!(parse_filter("dangling=True").unwrap(), ImageFilter::Dangling(true));
        assert_eq!(parse_filter("reference=me/*").unwrap(), ImageFilter::Reference("me/*".into()));
        for text in ["dangling", "dangling=perhaps", "size=1", ""] {
            assert!(parse_filter(text).is_err(), "{text}");
        }
    }
}
