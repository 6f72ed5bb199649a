//! Differences between documents, and between a document and the defaults, as values at JSON pointers.

use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Entries of a document that change neither the training nor the sampling.
const WITHOUT_EFFECT: [&str; 3] = ["$schema", "about", "version"];

/// A value that differs from its default.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// JSON pointer.
    pub pointer: String,
    /// Value in the document, as JSON.
    pub value: String,
    /// Default, as JSON; `None` for a value that every document must give.
    pub default: Option<String>,
}

/// A value that differs between runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// JSON pointer.
    pub pointer: String,
    /// Value in the document of each run, as JSON; `None` where the document has no such value.
    pub values: Vec<Option<String>>,
}

fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// Lists the values of a document that differ from their defaults in `schema`, in the order of the document. A part is
/// listed with its type.
pub fn from_defaults(document: &Value, schema: &Value) -> Vec<Change> {
    let mut found = Vec::new();
    let entries = document.as_object().into_iter().flatten();
    for (slot, entry) in entries.filter(|(slot, _)| !WITHOUT_EFFECT.contains(&slot.as_str())) {
        match entry {
            Value::Array(all) if slot == "metrics" => {
                for (i, entry) in all.iter().enumerate() {
                    part(&format!("/{slot}/{i}"), "metric", entry, schema, &mut found);
                }
            }
            Value::Object(_) => part(&format!("/{}", escaped(slot)), slot, entry, schema, &mut found),
            Value::Null => {}
            value => {
                found.push(Change { pointer: format!("/{}", escaped(slot)), value: value.to_string(), default: None })
            }
        }
    }
    found
}

fn part(pointer: &str, kind: &str, entry: &Value, schema: &Value, found: &mut Vec<Change>) {
    let name = entry["type"].as_str();
    let key = name.map_or(kind.to_string(), |name| format!("{kind}.{name}"));
    let none = Map::new();
    let properties = schema["$defs"][&key]["properties"].as_object().unwrap_or(&none);
    for (field, value) in entry.as_object().into_iter().flatten() {
        let default = properties.get(field).and_then(|property| property.get("default"));
        changes(&format!("{pointer}/{}", escaped(field)), value, default, found);
    }
}

fn changes(pointer: &str, value: &Value, default: Option<&Value>, found: &mut Vec<Change>) {
    if default.is_some_and(|default| is_same(value, default)) {
        return;
    }
    match (value, default) {
        (Value::Object(fields), Some(Value::Object(defaults)))
            if value["type"] == defaults.get("type").cloned().unwrap_or_default() =>
        {
            for (field, value) in fields {
                changes(&format!("{pointer}/{}", escaped(field)), value, defaults.get(field), found);
            }
        }
        _ => found.push(Change {
            pointer: pointer.to_string(),
            value: value.to_string(),
            default: default.map(Value::to_string),
        }),
    }
}

/// Compares values; numbers by value, so that 4 equals 4.0.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| is_same(value, other)))
        }
        _ => a == b,
    }
}

/// Lists the values that differ between documents. Objects are compared field by field, and the entries of `metrics`
/// one by one; other arrays as a whole.
pub fn between(documents: &[&Value]) -> Vec<Difference> {
    let flat: Vec<Vec<(String, String)>> = documents
        .iter()
        .map(|document| {
            let mut found = Vec::new();
            for (key, value) in document.as_object().into_iter().flatten() {
                if !WITHOUT_EFFECT.contains(&key.as_str()) {
                    flatten(&format!("/{}", escaped(key)), value, &mut found);
                }
            }
            found
        })
        .collect();
    let (mut seen, mut differences) = (BTreeSet::new(), Vec::new());
    for (pointer, _) in flat.iter().flatten().filter(|(pointer, _)| seen.insert(pointer.clone())) {
        let of = |document: &Vec<(String, String)>| {
            document.iter().find(|(other, _)| other == pointer).map(|(_, value)| value.clone())
        };
        let values: Vec<Option<String>> = flat.iter().map(of).collect();
        if values.iter().any(|value| *value != values[0]) {
            differences.push(Difference { pointer: pointer.clone(), values });
        }
    }
    differences.sort_by(|a, b| slot(&a.pointer).cmp(slot(&b.pointer)));
    differences
}

/// Returns the slot of a pointer. Sorting by slot keeps the fields of a part together.
fn slot(pointer: &str) -> &str {
    pointer.split('/').nth(1).unwrap_or_default()
}

fn flatten(pointer: &str, value: &Value, found: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                flatten(&format!("{pointer}/{}", escaped(key)), value, found);
            }
        }
        Value::Array(all) if all.iter().any(Value::is_object) => {
            for (i, value) in all.iter().enumerate() {
                flatten(&format!("{pointer}/{i}"), value, found);
            }
        }
        value => found.push((pointer.to_string(), value.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_differs_from_the_defaults_comes_with_the_defaults() {
        let schema = json!({ "$defs": {
            "objective.gft": { "properties": {
                "type": { "const": "gft" }, "beta_min": { "default": 0.0 }, "drop": { "default": 0.1 } } },
            "train": { "properties": {
                "steps": {}, "optimizer": { "default": { "type": "adamw", "betas": [0.9, 0.999], "decay": 0 } } } },
        } });
        let document = json!({ "version": 1, "about": "x",
            "objective": { "type": "gft", "beta_min": 0, "drop": 0.2 },
            "train": { "steps": 5, "optimizer": { "type": "adamw", "betas": [0.9, 0.95], "decay": 0.0 } } });
        let found = from_defaults(&document, &schema);
        let change = |pointer: &str, value: &str, default: Option<&str>| Change {
            pointer: pointer.into(),
            value: value.into(),
            default: default.map(String::from),
        };
        assert_eq!(
            found,
            [
                change("/objective/type", "\"gft\"", None),
                change("/objective/drop", "0.2", Some("0.1")),
                change("/train/steps", "5", None),
                change("/train/optimizer/betas", "[0.9,0.95]", Some("[0.9,0.999]")),
            ]
        );
    }

    #[test]
    fn documents_differ_value_by_value() {
        let a = json!({ "about": "a", "objective": { "type": "gft", "beta": 1 }, "metrics": [{ "type": "fid" }] });
        let b = json!({ "about": "b", "objective": { "type": "cfg" }, "metrics": [{ "type": "fid" }] });
        let found = between(&[&a, &b, &a]);
        let texts = |values: [Option<&str>; 3]| values.map(|value| value.map(String::from)).to_vec();
        assert_eq!(
            found,
            [
                Difference {
                    pointer: "/objective/type".into(),
                    values: texts([Some("\"gft\""), Some("\"cfg\""), Some("\"gft\"")])
                },
                Difference { pointer: "/objective/beta".into(), values: texts([Some("1"), None, Some("1")]) },
            ]
        );
        assert!(between(&[&a, &a]).is_empty());
    }
}
