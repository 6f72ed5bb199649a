//! Document entries: round trips, and whether every field changes something.

use framework::error::Problems;
use framework::plugin::{self, Kind};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

pub(super) fn parse<T: DeserializeOwned>(entry: &Value) -> Option<T> {
    serde_json::from_value(entry.clone()).ok()
}

/// Checks that an entry, written with every default and read again, is unchanged.
pub(super) fn round_trip<T: Serialize + DeserializeOwned>(entry: &Value) -> Vec<String> {
    let plugin: T = match serde_json::from_value(entry.clone()) {
        Ok(plugin) => plugin,
        Err(error) => return vec![format!("the entry can be parsed: {error}")],
    };
    let written = serde_json::to_value(&plugin).expect("plugins serialize");
    match parse::<T>(&written).map(|again| serde_json::to_value(again).expect("plugins serialize")) {
        Some(again) if again == written => Vec::new(),
        _ => vec!["the entry is unchanged after it is written and read again".to_string()],
    }
}

/// Finds the fields of an entry that have no effect, whatever their value. `acts` describes the behaviour of a plugin,
/// or returns its problems. A problem that names the field counts as an effect.
pub(super) fn fields<T: Serialize + DeserializeOwned>(
    entry: &Value,
    kind: Kind,
    acts: &dyn Fn(&T) -> Result<String, Problems>,
) -> Vec<String> {
    let Some(plugin) = parse::<T>(entry) else { return Vec::new() };
    let (Ok(before), written) = (acts(&plugin), serde_json::to_value(&plugin).expect("plugins serialize")) else {
        return vec!["the entry passes its own check".to_string()];
    };
    let schema = plugin::entries()
        .into_iter()
        .find(|known| known.kind == kind && Some(known.name) == entry["type"].as_str())
        .map_or(Value::Null, |known| Value::from((known.schema)()));
    let validator = jsonschema::validator_for(&schema).unwrap_or_else(|error| panic!("invalid schema: {error}"));
    let in_range = |entry: &Value| {
        let mut fields = entry.clone();
        fields.as_object_mut().expect("an entry is an object").remove("type");
        validator.is_valid(&fields)
    };
    let mut places = Vec::new();
    leaves(&written, "", &mut places);
    let mut words = Vec::new();
    constants(&schema, &mut words);
    // An entry may contain entries of other plugins, whose schemas list their own values.
    let names: Vec<&str> = places.iter().filter_map(|place| named(&written, place)).collect();
    for known in plugin::entries().into_iter().filter(|known| names.contains(&known.name)) {
        constants(&Value::from((known.schema)()), &mut words);
    }
    places
        .iter()
        .filter(|place| named(&written, place).is_none())
        .filter(|place| {
            let differs = |value: Value| {
                let mut changed = written.clone();
                let heard = place.as_str();
                // A refused string or boolean counts as an effect, whatever pointer the problem names.
                let refusal_counts = !value.is_number();
                // Another type has other fields, so replace the whole entry and let all fields take their defaults.
                let (place, value) = match place.strip_suffix("/type") {
                    Some(parent) => (parent, serde_json::json!({ "type": value })),
                    None => (place.as_str(), value),
                };
                *changed.pointer_mut(place).expect("a pointer into the entry") = value;
                in_range(&changed)
                    && parse::<T>(&changed).is_some_and(|plugin| match acts(&plugin) {
                        Ok(after) => after != before,
                        Err(problems) => {
                            let named = |at: &String| !at.is_empty() && heard.starts_with(at.as_str());
                            refusal_counts || problems.iter().any(|problem| problem.at.first().is_some_and(named))
                        }
                    })
            };
            !others(written.pointer(place).expect("a pointer into the entry"), &words).into_iter().any(differs)
        })
        .map(|place| format!("field {place} has an effect"))
        .collect()
}

/// Returns the plugin name at `place`, if the place is the `type` of this entry or of a nested one.
pub(super) fn named<'a>(written: &'a Value, place: &str) -> Option<&'a str> {
    let name = written.pointer(place).and_then(Value::as_str).filter(|_| place.ends_with("/type"))?;
    plugin::entries().iter().any(|known| known.name == name).then_some(name)
}

/// Collects the JSON pointers of all values that are neither objects nor arrays.
pub(super) fn leaves(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => members.iter().for_each(|(key, value)| leaves(value, &format!("{at}/{key}"), found)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, value)| leaves(value, &format!("{at}/{i}"), found));
        }
        _ => found.push(at.to_string()),
    }
}

/// Collects the constants that a schema allows, and its examples that are objects.
pub(super) fn constants(schema: &Value, found: &mut Vec<Value>) {
    match schema {
        Value::Object(members) => members.iter().for_each(|(key, value)| match (key.as_str(), value) {
            ("const", Value::String(_)) => found.push(value.clone()),
            ("enum", Value::Array(names)) => found.extend(names.iter().cloned()),
            // An example of a setting with several fields, to try where the setting is null.
            ("examples", Value::Array(whole)) => found.extend(whole.iter().filter(|each| each.is_object()).cloned()),
            _ => constants(value, found),
        }),
        Value::Array(items) => items.iter().for_each(|item| constants(item, found)),
        _ => {}
    }
}

/// Returns values to try instead of `value`.
pub(super) fn others(value: &Value, words: &[Value]) -> Vec<Value> {
    let numbers = [0.5, 0.3, 0.0, 1.0, 1.5, 2.0, 3.0].map(Value::from);
    let whole = [0, 1, 2, 3, 4, 6, 8, 16, 20, 50, 64, 200].map(Value::from);
    let mut others: Vec<Value> = match value {
        Value::Bool(is) => vec![Value::Bool(!is)],
        Value::Number(_) => numbers.into_iter().chain(whole).collect(),
        Value::String(_) => {
            [Value::Null].into_iter().chain(words.iter().cloned()).chain([Value::from("another")]).collect()
        }
        _ => [Value::Bool(true)].into_iter().chain(numbers).chain(whole).chain(words.iter().cloned()).collect(),
    };
    others.retain(|other| other != value);
    others
}
