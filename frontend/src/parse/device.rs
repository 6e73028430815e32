//! `RUN --device`: the grammar of its fields.

use crate::ast::Spanned;
use crate::graph::DeviceRequest;
use crate::suggest;

use super::Issue;
use super::mount::{go_bool, split};

const KEYS: [&str; 2] = ["name", "required"];

/// Reads `NAME[,required]`, or the same as `name=NAME,required=BOOL`. A device's own name may have an equals sign.
pub(crate) fn parse(device: &Spanned<String>) -> Result<DeviceRequest, Issue> {
    let wrong = |message: String| Err(Issue::new(message, device.span));
    let (mut name, mut required) = (String::new(), false);
    for field in split(&device.value) {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(value)),
            None => (field.to_lowercase(), None),
        };
        match (key.as_str(), value) {
            ("required", None) => required = true,
            ("required", Some(value)) => match go_bool(value) {
                Some(value) => required = value,
                None => return wrong(format!("invalid value for required: {value}")),
            },
            ("name", Some(value)) if name.is_empty() => value.clone_into(&mut name),
            ("name", Some(_)) => return wrong(format!("device name already set to {name}")),
            _ if name.is_empty() => name = field,
            (_, None) => return wrong(format!("invalid field '{field}' must be a key=value pair")),
            (key, Some(_)) => {
                let hint = suggest::hint(key, KEYS);
                return wrong(format!("unexpected key '{key}' in '{field}'{hint}"));
            }
        }
    }
    if name.is_empty() {
        let issue = Issue::new("--device has no name", device.span);
        return Err(issue.with_help("name a device as vendor.com/class=name"));
    }
    Ok(DeviceRequest { name, required })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::span::Span;

    fn parsed(text: &str) -> Result<(String, bool), String> {
        let text = Spanned { value: text.to_owned(), span: Span::new(0..0) };
        parse(&text).map(|device| (device.name, device.required)).map_err(|issue| issue.message)
    }

    #[test]
    fn names_may_have_an_equals_sign_and_options_come_in_any_order() {
        for (text, name, required) in [
            ("vendor.com/gpu=0", "vendor.com/gpu=0", false),
            ("vendor.com/gpu", "vendor.com/gpu", false),
            ("vendor.com/gpu=*,required", "vendor.com/gpu=*", true),
            ("required,vendor.com/gpu=0", "vendor.com/gpu=0", true),
            ("NAME=vendor.com/gpu=0,Required=false", "vendor.com/gpu=0", false),
            ("gpu", "gpu", false),
            ("\"a,b\"", "a,b", false),
        ] {
            assert_eq!(parsed(text), Ok((name.to_owned(), required)), "{text}");
        }
        for (text, says) in [
            ("", "--device has no name"),
            ("required", "--device has no name"),
            ("a,b", "invalid field 'b' must be a key=value pair"),
            ("a,requird=1", "unexpected key 'requird' in 'requird=1' (did you mean required?)"),
            ("a,required=x", "invalid value for required: x"),
            ("name=a,name=b", "device name already set to a"),
        ] {
            assert_eq!(parsed(text), Err(says.to_owned()), "{text}");
        }
    }
}
