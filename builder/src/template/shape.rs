//! What Go's types know of a value and JSON does not.

/// The kind of a value, for fields that are absent and for maps that look like structs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Nothing is known: fields may be missing, an absent value prints `<no value>`.
    Any,
    /// A text; absent it is empty.
    Text,
    /// A number; absent it is 0.
    Number,
    /// Nanoseconds that print as `1m30s`; absent it is `0s`.
    Duration,
    /// A truth value; absent it is false.
    Bool,
    /// A list of equal shapes; absent it is empty.
    List(&'static Self),
    /// Free keys with values of one shape; absent it is empty.
    Map(&'static Self),
    /// These fields and no others. Absent it is Go's nil pointer.
    Struct(&'static [(&'static str, Self)]),
}

impl Shape {
    /// The shape of a struct's field.
    pub(super) fn field(&self, name: &str) -> Option<&'static Self> {
        match self {
            Self::Struct(fields) => fields.iter().find(|(known, _)| *known == name).map(|(_, shape)| shape),
            _ => None,
        }
    }

    /// The shape of a list's or map's elements.
    pub(super) fn element(&self) -> &'static Self {
        match self {
            Self::List(shape) | Self::Map(shape) => shape,
            _ => &Self::Any,
        }
    }
}
