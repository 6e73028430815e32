//! `WWW-Authenticate`: what the registry wants (RFC 9110, section 11.6.1).

use crate::limits::{CHALLENGE_BYTES_MAX, CHALLENGES_MAX};

/// A challenge we can answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token from `realm`.
    Bearer {
        /// Address of the token server.
        realm: String,
        /// Name the token server knows the registry by.
        service: Option<String>,
        /// Scope the registry suggests.
        scope: Option<String>,
    },
}

/// One parsed challenge: scheme, then parameters with lower-case names.
type Raw = (String, Vec<(String, String)>);

/// Chooses from all `WWW-Authenticate` values: Bearer before Basic; nothing when neither is offered.
pub(crate) fn choose<'a>(values: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let raw: Vec<Raw> = values.flat_map(parse).take(CHALLENGES_MAX).collect();
    let bearer = raw.iter().find_map(|(scheme, params)| {
        let get = |name: &str| params.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let realm =
            get("realm").filter(|realm| scheme.eq_ignore_ascii_case("bearer") && !realm.is_empty())?;
        Some(Challenge::Bearer { realm, service: get("service"), scope: get("scope") })
    });
    bearer.or_else(|| {
        raw.iter().any(|(scheme, _)| scheme.eq_ignore_ascii_case("basic")).then_some(Challenge::Basic)
    })
}

/// Parses a comma-separated list in which both challenges and parameters are separated by commas. What does not
/// parse ends the list: the challenges before it still count.
fn parse(value: &str) -> Vec<Raw> {
    let mut rest = value.get(..CHALLENGE_BYTES_MAX).unwrap_or(value).trim_start();
    if rest.len() > CHALLENGE_BYTES_MAX {
        return Vec::new();
    }
    let mut challenges: Vec<Raw> = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (word, after) = token(rest);
        if word.is_empty() || challenges.len() == CHALLENGES_MAX {
            return challenges;
        }
        match after.trim_start_matches([' ', '\t']).strip_prefix('=') {
            Some(after) if !challenges.is_empty() => {
                let Some((value, after)) = parameter_value(after.trim_start_matches([' ', '\t'])) else {
                    return challenges;
                };
                if let Some((_, params)) = challenges.last_mut() {
                    params.push((word.to_ascii_lowercase(), value));
                }
                rest = after;
            }
            Some(_) => return challenges,
            None => {
                challenges.push((word.to_owned(), Vec::new()));
                rest = after;
            }
        }
    }
}

/// The longest prefix of token characters.
fn token(text: &str) -> (&str, &str) {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/:".contains(c);
    text.split_at(text.find(|c| !is_token(c)).unwrap_or(text.len()))
}

/// A token or a quoted string with backslash escapes.
fn parameter_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (word, rest) = token(text);
        return Some((word.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((index, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[index + 1..])),
            '\\' => value.push(chars.next()?.1),
            c if c.is_control() => return None,
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(value: &str) -> Option<Challenge> {
        choose([value].into_iter())
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Some(Challenge::Bearer { realm: realm.into(), service: own(service), scope: own(scope) })
    }

    #[test]
    fn bearer_with_commas_inside_quotes_is_read_whole() {
        assert_eq!(
            one(
                r#"Bearer realm="https://auth.test/token",service="r.test",scope="repository:a/b:pull,push""#
            ),
            bearer("https://auth.test/token", Some("r.test"), Some("repository:a/b:pull,push"))
        );
        assert_eq!(
            one(r#"bearer REALM = "https://x/\"q\"" , service=plain"#),
            bearer("https://x/\"q\"", Some("plain"), None)
        );
        assert_eq!(one("Bearer realm=https://x/t"), bearer("https://x/t", None, None));
    }

    #[test]
    fn bearer_is_preferred_wherever_it_stands() {
        let both = r#"Basic realm="a, b", Bearer realm="https://x/""#;
        assert_eq!(one(both), bearer("https://x/", None, None));
        let separate = [r#"Basic realm="x""#, r#"Bearer realm="https://x/""#];
        assert_eq!(choose(separate.into_iter()), bearer("https://x/", None, None));
        assert_eq!(one(r#"Negotiate, Basic realm="x""#), Some(Challenge::Basic));
        assert_eq!(one("Basic"), Some(Challenge::Basic));
    }

    #[test]
    fn garbage_gives_no_challenge_and_no_panic() {
        for value in
            ["", ",,,", "=", "Bearer", "Bearer realm", "Bearer realm=\"", "Digest realm=\"x\"", "\u{7f}\u{1}"]
        {
            assert_eq!(one(value), None, "{value:?}");
        }
        assert_eq!(one(&"Basic ".repeat(5000)), Some(Challenge::Basic));
        assert_eq!(one(&format!("Bearer realm=\"{}", "é".repeat(8000))), None);
    }
}
