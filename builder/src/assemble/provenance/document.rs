//! A predicate in files: every step repeats its environment, and each platform has steps of its own. It is read back as it
//! is written out: all but the steps as one value, and of those one at a time.

use std::io::{self, BufReader};

use rbuild_cache::scratch::Scratch;
use serde::ser::{Error as _, SerializeMap as _};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::definition::{Definition, LOCATIONS, STEPS};
use crate::assemble::attestation::{Keys, descriptor};
use crate::assemble::file_blob::FileBlob;
use crate::assemble::manifest::LayerBlob;

/// What a predicate says.
#[derive(Debug, Clone)]
pub struct Document {
    /// All but what the definition says, for which `null` stands.
    outline: FileBlob,
    definition: Option<Definition>,
    layers: Option<LayerPlaces>,
}

/// Where a predicate lists the layers of the image.
#[derive(Debug, Clone)]
pub(crate) struct LayerPlaces {
    /// JSON pointer of an object.
    pub at: &'static str,
    /// For each layer of the image, base first, the key that it belongs to.
    pub keys: Vec<String>,
}

impl Document {
    /// Keeps a predicate whose steps and layers are elsewhere.
    pub(crate) fn of(
        outline: &Value,
        definition: Option<Definition>,
        layers: Option<LayerPlaces>,
        scratch: &Scratch,
    ) -> io::Result<Self> {
        let outline = FileBlob::write(scratch, |out| Ok(serde_json::to_writer(out, outline)?))?;
        Ok(Self { outline, definition, layers })
    }

    /// Serializes with the layers of its image, and the keys of all objects in an order.
    pub fn with_keys<S: Serializer>(
        &self,
        keys: Keys,
        layers: &[LayerBlob],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let outline =
            serde_json::from_reader(BufReader::new(self.outline.reader())).map_err(S::Error::custom)?;
        let whole = keys.of(with_layers(outline, self.layers.as_ref(), layers));
        Filled { value: &whole, definition: self.definition.as_ref(), keys }.serialize(serializer)
    }
}

/// As people want to read it, without the layers.
impl Serialize for Document {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.with_keys(Keys::AsSaid, &[], serializer)
    }
}

/// A part of an outline with the steps where they belong. What users name has no `null`.
struct Filled<'a> {
    value: &'a Value,
    definition: Option<&'a Definition>,
    keys: Keys,
}

impl Serialize for Filled<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let filled = |value| Filled { value, ..*self };
        match self.value {
            Value::Object(map) => {
                let mut out = serializer.serialize_map(Some(map.len()))?;
                for (key, value) in map {
                    match (key.as_str(), value, self.definition) {
                        (STEPS, Value::Null, Some(definition)) => {
                            out.serialize_entry(key, &definition.steps(self.keys))?;
                        }
                        (LOCATIONS, Value::Null, Some(definition)) => {
                            out.serialize_entry(key, &definition.locations(self.keys))?;
                        }
                        _ => out.serialize_entry(key, &filled(value))?,
                    }
                }
                out.end()
            }
            Value::Array(items) => serializer.collect_seq(items.iter().map(filled)),
            other => other.serialize(serializer),
        }
    }
}

fn with_layers(mut value: Value, places: Option<&LayerPlaces>, layers: &[LayerBlob]) -> Value {
    let Some(places) = places else { return value };
    let Some(map) = value.pointer_mut(places.at).and_then(Value::as_object_mut) else { return value };
    for (key, layer) in places.keys.iter().zip(layers) {
        let entry = map.entry(key.clone()).or_insert_with(|| json!([[]]));
        if let Some(list) = entry.pointer_mut("/0").and_then(Value::as_array_mut) {
            list.push(descriptor(&layer.media_type, layer.digest, layer.size));
        }
    }
    value
}
