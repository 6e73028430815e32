//! Functions: Go's built-in ones and the docker CLI's.
//!
//! ```text
//! and or not            eq ne lt le gt ge          index slice len
//! print printf println  json split join title lower upper pad truncate
//! ```

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Value;

use super::eval::{Mode, Val};
use super::limits::{OUTPUT_BYTES_MAX, WIDTH_MAX};
use super::print::sprint;
use super::printf::sprintf;
use super::{DataProblem, Shape};

macro_rules! functions {
    ($($variant:ident = $name:literal),* $(,)?) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Function { $($variant),* }

        impl Function {
            pub(super) fn named(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }

            fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

functions! {
    And = "and", Or = "or", Not = "not",
    Eq = "eq", Ne = "ne", Lt = "lt", Le = "le", Gt = "gt", Ge = "ge",
    Index = "index", Slice = "slice", Len = "len",
    Print = "print", Printf = "printf", Println = "println",
    Json = "json", Split = "split", Join = "join", Title = "title", Lower = "lower", Upper = "upper",
    Pad = "pad", Truncate = "truncate",
}

type Arguments<'a> = Vec<Val<'a>>;

/// Calls a function. `and` and `or` are the evaluator's, which knows which arguments to evaluate.
pub(super) fn call<'a>(
    function: Function,
    arguments: Arguments<'a>,
    mode: Mode,
) -> Result<Val<'a>, DataProblem> {
    use Function as F;
    let shapes_text = matches!(
        function,
        F::Json | F::Split | F::Join | F::Title | F::Lower | F::Upper | F::Pad | F::Truncate
    );
    if mode == Mode::Header && shapes_text {
        let found = arguments.into_iter().find(|value| value.data.is_string());
        return Ok(found.unwrap_or_else(|| Val::text("")));
    }
    let result = match function {
        F::And | F::Or => return Err(count(function, "at least 1", 0)),
        F::Not => Val::bool(!one(function, arguments)?.is_true()),
        F::Eq | F::Ne | F::Lt | F::Le | F::Gt | F::Ge => Val::bool(compare(function, &arguments)?),
        F::Index => return index(arguments),
        F::Slice => return slice(&arguments),
        F::Len => len(&one(function, arguments)?)?,
        F::Print => Val::text(sprint_all(&arguments)),
        F::Println => {
            let words: Vec<String> = arguments.iter().map(sprint).collect();
            Val::text(format!("{}\n", words.join(" ")))
        }
        F::Printf => {
            let (format, rest) = arguments.split_first().ok_or(count(function, "at least 1", 0))?;
            Val::text(sprintf(text(function, format)?, rest)?)
        }
        F::Json => Val::text(one(function, arguments)?.data.to_string()),
        F::Split => {
            let [whole, separator] = exactly(function, "2", &arguments)?;
            let parts: Vec<Value> = split(text(function, whole)?, text(function, separator)?);
            Val { data: Cow::Owned(Value::Array(parts)), shape: &Shape::List(&Shape::Text) }
        }
        F::Join => {
            let [list, separator] = exactly(function, "2", &arguments)?;
            let separator = text(function, separator)?;
            let parts: Vec<String> = match (&*list.data, list.shape) {
                (Value::Array(items), _) => items
                    .iter()
                    .map(|item| sprint(&Val { data: Cow::Borrowed(item), shape: list.shape.element() }))
                    .collect(),
                (Value::Null, Shape::List(_) | Shape::Any) => Vec::new(),
                _ => return Err(argument(function, "a list", list)),
            };
            Val::text(parts.join(separator))
        }
        F::Title => Val::text(title(text(function, &one(function, arguments)?)?)),
        F::Lower => Val::text(text(function, &one(function, arguments)?)?.to_lowercase()),
        F::Upper => Val::text(text(function, &one(function, arguments)?)?.to_uppercase()),
        F::Pad => {
            let [whole, before, after] = exactly(function, "3", &arguments)?;
            let (before, after) = (width(function, before)?, width(function, after)?);
            match text(function, whole)? {
                "" => Val::text(""),
                whole => Val::text(format!("{}{whole}{}", " ".repeat(before), " ".repeat(after))),
            }
        }
        F::Truncate => {
            let [whole, max] = exactly(function, "2", &arguments)?;
            let max = usize::try_from(integer(function, max)?).unwrap_or(0);
            // Characters where Docker counts bytes: half of one is nobody's wish.
            Val::text(text(function, whole)?.chars().take(max).collect::<String>())
        }
    };
    match &*result.data {
        Value::String(text) if text.len() > OUTPUT_BYTES_MAX => Err(DataProblem::TooLong),
        _ => Ok(result),
    }
}

fn count(function: Function, want: &'static str, got: usize) -> DataProblem {
    DataProblem::ArgumentCount { function: function.name(), want, got }
}

fn argument(function: Function, want: &'static str, got: &Val<'_>) -> DataProblem {
    DataProblem::Argument { function: function.name(), want, got: got.kind() }
}

fn exactly<'v, 'a, const N: usize>(
    function: Function,
    want: &'static str,
    arguments: &'v [Val<'a>],
) -> Result<&'v [Val<'a>; N], DataProblem> {
    arguments.try_into().map_err(|_| count(function, want, arguments.len()))
}

fn one<'a>(function: Function, arguments: Arguments<'a>) -> Result<Val<'a>, DataProblem> {
    let got = arguments.len();
    let mut arguments = arguments.into_iter();
    match (arguments.next(), got) {
        (Some(value), 1) => Ok(value),
        _ => Err(count(function, "1", got)),
    }
}

fn text<'v>(function: Function, value: &'v Val<'_>) -> Result<&'v str, DataProblem> {
    match (&*value.data, value.shape) {
        (Value::String(text), _) => Ok(text),
        (Value::Null, Shape::Text) => Ok(""),
        _ => Err(argument(function, "a string", value)),
    }
}

fn integer(function: Function, value: &Val<'_>) -> Result<i64, DataProblem> {
    match (&*value.data, value.shape) {
        (Value::Null, Shape::Number | Shape::Duration) => Ok(0),
        (data, _) => data.as_i64().ok_or_else(|| argument(function, "a whole number", value)),
    }
}

fn width(function: Function, value: &Val<'_>) -> Result<usize, DataProblem> {
    let width = usize::try_from(integer(function, value)?.max(0)).unwrap_or(usize::MAX);
    if width > WIDTH_MAX { Err(DataProblem::TooWide) } else { Ok(width) }
}

/// `fmt.Sprint`: a blank between operands when neither is a string.
fn sprint_all(arguments: &[Val<'_>]) -> String {
    let mut out = String::new();
    let mut after_text = true;
    for value in arguments {
        let is_text = value.data.is_string() || (value.data.is_null() && *value.shape == Shape::Text);
        if !is_text && !after_text {
            out.push(' ');
        }
        out.push_str(&sprint(value));
        after_text = is_text;
    }
    out
}

/// `strings.Split`: an empty separator gives characters.
fn split(text: &str, separator: &str) -> Vec<Value> {
    if separator.is_empty() {
        return text.chars().map(|c| Value::String(c.into())).collect();
    }
    text.split(separator).map(Value::from).collect()
}

/// `strings.Title`: each word's first letter.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        if in_word {
            out.push(c);
        } else {
            out.extend(c.to_uppercase());
        }
        in_word = c.is_alphanumeric() || c == '_' || c == '\'';
    }
    out
}

fn len<'a>(value: &Val<'a>) -> Result<Val<'a>, DataProblem> {
    let count = match (&*value.data, value.shape) {
        (Value::String(text), _) => text.len(),
        (Value::Array(items), _) => items.len(),
        (Value::Object(map), Shape::Any | Shape::Map(_)) => map.len(),
        (Value::Null, Shape::Text | Shape::List(_) | Shape::Map(_)) => 0,
        _ => return Err(argument(Function::Len, "a string, list or map", value)),
    };
    Ok(Val::integer(i64::try_from(count).unwrap_or(i64::MAX)))
}

fn index<'a>(arguments: Arguments<'a>) -> Result<Val<'a>, DataProblem> {
    let mut arguments = arguments.into_iter();
    let mut value = arguments.next().ok_or(count(Function::Index, "at least 1", 0))?;
    for key in arguments {
        let shape = value.shape.element();
        let absent = || Val { data: Cow::Owned(Value::Null), shape };
        let at = |items: usize| -> Result<usize, DataProblem> {
            let index = integer(Function::Index, &key)?;
            let found = usize::try_from(index).ok().filter(|at| *at < items);
            found.ok_or(DataProblem::OutOfRange { index, count: items })
        };
        value = match (value.data, value.shape) {
            (Cow::Borrowed(Value::Array(items)), _) => {
                Val { data: Cow::Borrowed(&items[at(items.len())?]), shape }
            }
            (Cow::Owned(Value::Array(mut items)), _) => {
                Val { data: Cow::Owned(items.swap_remove(at(items.len())?)), shape }
            }
            (Cow::Borrowed(Value::Object(map)), Shape::Any | Shape::Map(_)) => {
                let found = map.get(text(Function::Index, &key)?);
                found.map_or_else(absent, |data| Val { data: Cow::Borrowed(data), shape })
            }
            (Cow::Owned(Value::Object(mut map)), Shape::Any | Shape::Map(_)) => {
                let found = map.remove(text(Function::Index, &key)?);
                found.map_or_else(absent, |data| Val { data: Cow::Owned(data), shape })
            }
            (Cow::Borrowed(Value::Null) | Cow::Owned(Value::Null), Shape::Map(_)) => absent(),
            (Cow::Borrowed(Value::Null) | Cow::Owned(Value::Null), Shape::List(_)) => {
                at(0)?;
                absent()
            }
            (data, shape) => {
                return Err(argument(Function::Index, "a list or map", &Val { data, shape }));
            }
        };
    }
    Ok(value)
}

fn slice<'a>(arguments: &[Val<'a>]) -> Result<Val<'a>, DataProblem> {
    let (value, bounds) = arguments.split_first().ok_or(count(Function::Slice, "1 to 3", 0))?;
    if bounds.len() > 2 {
        return Err(count(Function::Slice, "1 to 3", arguments.len()));
    }
    let items = match &*value.data {
        Value::String(text) => text.len(),
        Value::Array(items) => items.len(),
        _ => return Err(argument(Function::Slice, "a string or list", value)),
    };
    let bound = |at: usize, default: usize| match bounds.get(at) {
        None => Ok(default),
        Some(value) => {
            let index = integer(Function::Slice, value)?;
            let found = usize::try_from(index).ok().filter(|index| *index <= items);
            found.ok_or(DataProblem::OutOfRange { index, count: items })
        }
    };
    let (from, to) = (bound(0, 0)?, bound(1, items)?);
    if from > to {
        return Err(DataProblem::OutOfRange { index: from as i64, count: to });
    }
    Ok(match &*value.data {
        Value::Array(items) => {
            Val { data: Cow::Owned(Value::Array(items[from..to].to_vec())), shape: value.shape }
        }
        data => {
            let bytes = &data.as_str().unwrap_or_default().as_bytes()[from..to];
            Val::text(String::from_utf8_lossy(bytes))
        }
    })
}

/// `eq` takes any number of candidates.
fn compare(function: Function, arguments: &[Val<'_>]) -> Result<bool, DataProblem> {
    use Function as F;
    if function == F::Eq {
        let (first, rest) = arguments.split_first().ok_or(count(function, "at least 2", 0))?;
        if rest.is_empty() {
            return Err(count(function, "at least 2", 1));
        }
        for other in rest {
            if equal(first, other)? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    let [a, b] = exactly(function, "2", arguments)?;
    if function == F::Ne {
        return Ok(!equal(a, b)?);
    }
    let order = order(a, b)?;
    Ok(match function {
        F::Lt => order == Ordering::Less,
        F::Le => order != Ordering::Greater,
        F::Gt => order == Ordering::Greater,
        _ => order != Ordering::Less,
    })
}

fn equal(a: &Val<'_>, b: &Val<'_>) -> Result<bool, DataProblem> {
    match (&*a.data, &*b.data) {
        (Value::Bool(a), Value::Bool(b)) => Ok(a == b),
        (Value::Null, Value::Null) => Ok(true),
        // A nil compares with anything; with a typed zero it is that zero.
        (Value::Null, _) if *a.shape == Shape::Any => Ok(false),
        (_, Value::Null) if *b.shape == Shape::Any => Ok(false),
        (Value::Null, Value::Bool(value)) | (Value::Bool(value), Value::Null) => Ok(!value),
        (Value::Array(_) | Value::Object(_), _) | (_, Value::Array(_) | Value::Object(_)) => {
            Err(DataProblem::Comparison(a.kind(), b.kind()))
        }
        _ => order(a, b).map(Ordering::is_eq),
    }
}

fn order(a: &Val<'_>, b: &Val<'_>) -> Result<Ordering, DataProblem> {
    let wrong = || DataProblem::Comparison(a.kind(), b.kind());
    let as_text = |value: &Val<'_>| match (&*value.data, value.shape) {
        (Value::String(text), _) => Some(text.clone()),
        (Value::Null, Shape::Text) => Some(String::new()),
        _ => None,
    };
    let as_number = |value: &Val<'_>| match (&*value.data, value.shape) {
        (Value::Null, Shape::Number | Shape::Duration) => Some(0.into()),
        (Value::Number(number), _) => Some(number.clone()),
        _ => None,
    };
    if let (Some(a), Some(b)) = (as_text(a), as_text(b)) {
        return Ok(a.cmp(&b));
    }
    let (Some(a), Some(b)) = (as_number(a), as_number(b)) else { return Err(wrong()) };
    let whole = |n: &serde_json::Number| n.as_i64().map(i128::from).or_else(|| n.as_u64().map(i128::from));
    match (whole(&a), whole(&b)) {
        (Some(a), Some(b)) => Ok(a.cmp(&b)),
        (None, None) => a.as_f64().partial_cmp(&b.as_f64()).ok_or_else(wrong),
        _ => Err(DataProblem::Comparison("a whole number", "a fraction")),
    }
}
