//! `--filter KEY=VALUE` of commands that list images.

use std::time::Duration;

use super::error::Problem;
use crate::timestamp;

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
    /// Was made before this moment.
    Until(Moment),
}

/// A moment as `until=` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// This long before now.
    Ago(Duration),
    /// Seconds since the epoch.
    At(i64),
}

impl Moment {
    /// Nanoseconds since the epoch, with `now` as such.
    pub fn unix_ns(self, now: i64) -> i64 {
        match self {
            Self::Ago(age) => now.saturating_sub(i64::try_from(age.as_nanos()).unwrap_or(i64::MAX)),
            Self::At(seconds) => seconds.saturating_mul(1_000_000_000),
        }
    }
}

/// `24h`, `1700000000`, `2026-01-31` or `2026-01-31T12:00:00[Z]`; a date without a zone is UTC's.
pub(super) fn parse_moment(text: &str) -> Option<Moment> {
    if let Some(age) = super::space::parse_duration(text) {
        return Some(Moment::Ago(age));
    }
    // Docker takes fractions of seconds, which no image's time is judged by.
    let whole = text.split_once('.').filter(|(_, rest)| rest.bytes().all(|b| b.is_ascii_digit()));
    if let Ok(seconds) = whole.map_or(text, |(seconds, _)| seconds).parse() {
        return Some(Moment::At(seconds));
    }
    let forms = [text.to_owned(), format!("{text}Z"), format!("{text}:00Z"), format!("{text}T00:00:00Z")];
    forms.iter().find_map(|form| timestamp::parse_rfc3339(form)).map(Moment::At)
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
        "until" => match parse_moment(value) {
            Some(moment) => Ok(ImageFilter::Until(moment)),
            None => {
                Err(wrong("expected a duration such as until=24h, or a time such as 2026-01-31T12:00:00Z"))
            }
        },
        _ => Err(wrong("expected dangling, label, before, since, until or reference")),
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
        for text in ["dangling", "dangling=perhaps", "size=1", "until=soon", "until=", ""] {
            assert!(parse_filter(text).is_err(), "{text}");
        }
    }

    #[test]
    fn moments_are_ages_unix_times_and_dates() {
        let at = |text: &str| {
            parse_moment(text).map(|moment| moment.unix_ns(10_000_000_000_000_000) / 1_000_000_000)
        };
        assert_eq!(at("1h30m"), Some(10_000_000 - 5400));
        assert_eq!(at("1700000000"), Some(1_700_000_000));
        assert_eq!(at("1700000000.5"), Some(1_700_000_000));
        assert_eq!(at("1970-01-02"), Some(86_400));
        assert_eq!(at("1970-01-01T01:00"), Some(3600));
        assert_eq!(at("1970-01-01T00:00:05"), Some(5));
        assert_eq!(at("1970-01-01T01:00:00+01:00"), Some(0));
        assert_eq!(at("99999999999h"), Some((10_000_000_000_000_000 - i64::MAX) / 1_000_000_000));
        assert_eq!(at("yesterday"), None);
    }
}
