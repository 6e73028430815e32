//! The one JSON writer for everything that is hashed.

use serde::Serialize;
use serde_json::Value;

/// Serialises with object keys sorted by byte order and no whitespace, so equal values give equal bytes.
///
/// Panics only when `value` cannot be represented as JSON (non-string map keys), which no type here can do.
pub fn canonical_json<T: Serialize>(value: &T) -> Vec<u8> {
    let tree = serde_json::to_value(value).expect("image documents have string keys");
    serde_json::to_vec(&in_canonical_order(tree)).expect("a JSON value serialises")
}

/// The value with object keys in the order that [`canonical_json`] writes them in: for a part of what is too large to be
/// one value.
pub fn in_canonical_order(mut value: Value) -> Value {
    sort(&mut value);
    value
}

fn sort(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(sort);
            map.sort_keys();
        }
        Value::Array(items) => items.iter_mut().for_each(sort),
        _ => {}
    }
}
