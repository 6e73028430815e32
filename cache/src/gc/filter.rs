//! Conditions on what `du` shows and `prune` removes, in buildx' grammar: `KEY`, `KEY=VALUE`, `KEY!=VALUE`, `KEY~=TEXT`.

use super::usage::{UsageEntry, UsageKind};

/// Kinds of build cache that buildx knows and this store has none of: they match nothing.
const KINDS_ELSEWHERE: [&str; 4] = ["internal", "frontend", "source.local", "source.git.checkout"];

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    key: Key,
    operator: Operator,
    value: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Id,
    Parents,
    Description,
    Type,
    InUse,
    Mutable,
    Immutable,
    Shared,
    Private,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Is,
    IsNot,
    Contains,
}

/// A text that is no condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// Not of the form.
    #[error("expected KEY=VALUE, KEY!=VALUE or KEY~=TEXT")]
    Form,
    /// Not a key.
    #[error(
        "there is no key `{0}`: expected id, parents, description, type, inuse, mutable, immutable, shared or private"
    )]
    Key(String),
    /// Not a truth value.
    #[error("expected true or false in place of `{0}`")]
    Bool(String),
    /// Not a type.
    #[error("there is no type `{0}`: expected regular, pulled, blob, exec.cachemount or a type of buildx")]
    Type(String),
    /// `~=` with more than text.
    #[error("~= looks for a text as it is, `{0}` would be a regular expression")]
    Expression(char),
}

impl Filter {
    /// Parses a condition. Truth values may be left out: `shared` is `shared=true`.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let (name, operator, value) = match text.split_once('=') {
            None => (text, Operator::Is, "true"),
            Some((name, value)) => match (name.strip_suffix('!'), name.strip_suffix('~')) {
                (Some(name), _) => (name, Operator::IsNot, value),
                (None, Some(name)) => (name, Operator::Contains, value),
                (None, None) => (name, Operator::Is, value),
            },
        };
        let key = match name {
            "id" => Key::Id,
            "parents" => Key::Parents,
            "description" => Key::Description,
            "type" => Key::Type,
            "inuse" => Key::InUse,
            "mutable" => Key::Mutable,
            "immutable" => Key::Immutable,
            "shared" => Key::Shared,
            "private" => Key::Private,
            "" => return Err(FilterError::Form),
            other => return Err(FilterError::Key(other.to_owned())),
        };
        let is_text = matches!(key, Key::Id | Key::Parents | Key::Description | Key::Type);
        if is_text && !text.contains('=') {
            return Err(FilterError::Form);
        }
        if !is_text && !matches!(value, "true" | "false") {
            return Err(FilterError::Bool(value.to_owned()));
        }
        let is_kind = matches!(value, "regular" | "pulled" | "blob" | "exec.cachemount")
            || KINDS_ELSEWHERE.contains(&value);
        if key == Key::Type && operator != Operator::Contains && !is_kind {
            return Err(FilterError::Type(value.to_owned()));
        }
        let strange = value.chars().find(|c| "\\^$*+?()[]{}|".contains(*c));
        if let (Operator::Contains, Some(strange)) = (operator, strange) {
            return Err(FilterError::Expression(strange));
        }
        Ok(Self { key, operator, value: value.to_owned() })
    }

    /// True for an entry that meets the condition. The id of a layer or blob may be cut short.
    pub fn matches(&self, entry: &UsageEntry) -> bool {
        let truth = |is: bool| if is { "true" } else { "false" };
        let value = match self.key {
            Key::Id => entry.id.as_str(),
            Key::Parents => "",
            Key::Description => entry.description.as_str(),
            Key::Type => match entry.kind {
                UsageKind::Layer => "regular",
                UsageKind::Pulled => "pulled",
                UsageKind::Blob => "blob",
                UsageKind::Mount => "exec.cachemount",
            },
            Key::InUse => truth(!entry.is_reclaimable),
            Key::Mutable => truth(entry.kind == UsageKind::Mount),
            Key::Immutable => truth(entry.kind != UsageKind::Mount),
            Key::Shared => truth(entry.is_shared),
            Key::Private => truth(!entry.is_shared),
        };
        let is = match self.key {
            Key::Id => !self.value.is_empty() && value.starts_with(&self.value),
            _ => value == self.value,
        };
        match self.operator {
            Operator::Is => is,
            Operator::IsNot => !is,
            Operator::Contains => value.contains(&self.value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> UsageEntry {
        UsageEntry {
            id: "0123abcd".into(),
            kind: UsageKind::Layer,
            size_bytes: 1,
            is_reclaimable: true,
            is_shared: false,
            usage_count: 1,
            created_unix_ns: 0,
            used_unix_ns: 0,
            description: "[2/3] RUN make".into(),
            images: Vec::new(),
        }
    }

    #[test]
    fn conditions_hold_or_do_not() {
        for (text, holds) in [
            ("id=0123", true),
            ("id!=0123", false),
            ("id=9", false),
            ("description~=RUN make", true),
            ("description=RUN make", false),
            ("type=regular", true),
            ("type!=regular", false),
            ("type=exec.cachemount", false),
            ("inuse", false),
            ("inuse=false", true),
            ("mutable", false),
            ("immutable=true", true),
            ("shared!=true", true),
            ("private", true),
            ("parents=x", false),
        ] {
            assert_eq!(Filter::parse(text).unwrap().matches(&entry()), holds, "{text}");
        }
    }

    #[test]
    fn what_is_no_condition_is_refused_with_the_reason() {
        for (text, error) in [
            ("", FilterError::Form),
            ("id", FilterError::Form),
            ("=x", FilterError::Form),
            ("colour=red", FilterError::Key("colour".into())),
            ("shared=maybe", FilterError::Bool("maybe".into())),
            ("type=nothing", FilterError::Type("nothing".into())),
            ("description~=^RUN", FilterError::Expression('^')),
        ] {
            assert_eq!(Filter::parse(text), Err(error), "{text}");
        }
    }
}
