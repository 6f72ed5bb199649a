//! Descriptions of process families and latent shapes, for messages.

use framework::plugin::{self, Kind};
use framework::process::{Family, LatentShape};
use serde_json::Value;

/// The value to propose first, where a field accepts it.
const USUAL: &str = "mlp";

/// Returns a word that the field at the pointer `field` of a plugin's entry accepts; `None` if it accepts none.
pub(super) fn accepted(kind: Kind, name: &str, field: &str) -> Option<String> {
    let entry = plugin::entries().into_iter().find(|entry| (entry.kind, entry.name) == (kind, name))?;
    let schema = Value::from((entry.schema)());
    let mut found = Vec::new();
    constants(&schema, schema.get("properties")?.get(field.strip_prefix('/')?)?, &mut found);
    let usual = found.iter().position(|word| word == USUAL).unwrap_or(0);
    found.into_iter().nth(usual)
}

/// Collects the strings that a part of `schema` allows.
fn constants(schema: &Value, part: &Value, found: &mut Vec<String>) {
    match part {
        Value::Object(members) => {
            for (key, value) in members {
                match (key.as_str(), value) {
                    ("$ref", Value::String(at)) => {
                        at.strip_prefix('#').and_then(|at| schema.pointer(at)).iter().for_each(|part| {
                            constants(schema, part, found);
                        });
                    }
                    ("const", Value::String(word)) => found.push(word.clone()),
                    ("enum", Value::Array(words)) => {
                        found.extend(words.iter().filter_map(Value::as_str).map(String::from));
                    }
                    _ => constants(schema, value, found),
                }
            }
        }
        Value::Array(parts) => parts.iter().for_each(|part| constants(schema, part, found)),
        _ => {}
    }
}

pub(super) fn describe(family: Family) -> &'static str {
    match family {
        Family::Continuous => "a continuous process (diffusion or flow)",
        Family::NextToken => "a next-token process",
        Family::NextLevel => "a next-level process",
        Family::Masked => "a masked process",
    }
}

pub(super) fn words(shape: &LatentShape) -> String {
    let [height, width] = shape.grid;
    match shape.vocabulary {
        Some(vocabulary) if !shape.levels.is_empty() => {
            let (levels, channels) = (&shape.levels, shape.channels);
            format!("level sides {levels:?}, a vocabulary of {vocabulary} and {channels} feature channels")
        }
        Some(vocabulary) => format!("{height}x{width} tokens and a vocabulary of {vocabulary}"),
        None => format!("{height}x{width} positions and {} channels", shape.channels),
    }
}
