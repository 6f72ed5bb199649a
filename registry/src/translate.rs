//! Translation of schema validation errors to [`Problem`]s.

use crate::names::{join, list, nearest};
use crate::schema::STRICT_INTEGER;
use framework::error::{MOST_SHOWN, Problem, Problems};
use framework::plugin::Kind;
use jsonschema::error::{ValidationError, ValidationErrorKind as Error};
use serde_json::Value;

/// Translates one validation error against the schema `root`.
pub(crate) fn translate(root: &Value, error: &ValidationError<'_>) -> Problems {
    let at = error.instance_path().as_str();
    let value = error.instance().as_ref();
    let place = Place::of(root, error);
    let accepts = || describe(root, place.schema);
    let one = |what: String| vec![Problem::new(at, what).accepts(accepts())];
    match error.kind() {
        Error::Required { property } if property == "type" && place.is_slot(&["required"]) => {
            let names = &place.schema["properties"]["type"]["enum"];
            vec![
                Problem::new(at, format!("the {} has no \"type\"", place.definition))
                    .accepts(list(strings(names)))
                    .fix("add \"type\""),
            ]
        }
        Error::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            let field = &place.schema["properties"][name];
            vec![
                Problem::new(at, format!("missing field \"{name}\""))
                    .accepts(describe(root, field))
                    .fix(format!("add \"{name}\"")),
            ]
        }
        Error::AdditionalProperties { unexpected } => {
            let fields: Vec<&str> = fields(place.schema).collect();
            let mut unexpected: Vec<&String> = unexpected.iter().collect();
            unexpected.sort();
            let unknown = |name: &str| Problem::new(join(at, name), format!("unknown field \"{name}\""));
            let helped = |name: &str| {
                let near = nearest(name, fields.iter().copied());
                unknown(name).accepts(list(fields.iter().copied())).nearest(near)
            };
            // Only the first problems are shown, so only they need help.
            let (shown, counted) = unexpected.split_at(unexpected.len().min(MOST_SHOWN));
            shown.iter().map(|name| helped(name)).chain(counted.iter().map(|name| unknown(name))).collect()
        }
        Error::Enum { options } => {
            let kind = if place.is_slot(&["properties", "type", "enum"]) { place.definition } else { "value" };
            vec![
                Problem::new(at, format!("unknown {kind} {}", show(value)))
                    .accepts(list(strings(options)))
                    .nearest(nearest_of(value, strings(options))),
            ]
        }
        Error::Type { .. } => one(format!("{} is not {}", show(value), types(place.schema))),
        Error::Minimum { .. }
        | Error::Maximum { .. }
        | Error::ExclusiveMinimum { .. }
        | Error::ExclusiveMaximum { .. } => one(format!("{} is out of range", show(value))),
        Error::Constant { .. } => one(format!("{} is not accepted here", show(value))),
        Error::Custom { keyword, .. } if keyword == STRICT_INTEGER => one(format!("{value} is not a plain integer")),
        Error::AnyOf { context } | Error::OneOfNotValid { context } => match meant(at, context) {
            Some(branch) => branch.iter().flat_map(|error| translate(root, error)).collect(),
            None => {
                let names = names_in(root, place.schema);
                vec![
                    Problem::new(at, format!("{} is not accepted here", show(value)))
                        .accepts(accepts())
                        .nearest(nearest_of(value, names.iter().copied())),
                ]
            }
        },
        _ => one(error.masked_with(show(value)).to_string()),
    }
}

/// Returns the errors of the alternative that the user meant. This is the only alternative whose errors are inside the
/// value rather than at the value itself; `None` if there is no such alternative or more than one.
fn meant<'a, 'e>(at: &str, context: &'a [Vec<ValidationError<'e>>]) -> Option<&'a [ValidationError<'e>]> {
    let here = |error: &ValidationError<'_>| error.instance_path().as_str() == at;
    let below = |error: &ValidationError<'_>| {
        error.instance_path().as_str().rsplit_once('/').is_some_and(|(parent, _)| parent == at)
    };
    let other_kind = |branch: &&Vec<ValidationError<'_>>| {
        branch.iter().any(|error| match error.kind() {
            Error::Type { .. } | Error::Enum { .. } => here(error),
            Error::Constant { .. } => here(error) || below(error),
            _ => false,
        })
    };
    let other_key = |branch: &&Vec<ValidationError<'_>>| {
        let any = |test: fn(&Error) -> bool| branch.iter().any(|error| here(error) && test(error.kind()));
        any(|kind| matches!(kind, Error::Required { .. }))
            && any(|kind| matches!(kind, Error::AdditionalProperties { .. }))
    };
    let mut branches: Vec<&Vec<ValidationError<'_>>> = context.iter().filter(|branch| !other_kind(branch)).collect();
    if branches.len() > 1 {
        branches.retain(|branch| !other_key(branch));
    }
    match branches[..] {
        [branch] => Some(branch),
        _ => None,
    }
}

/// The place in the schema from which an error comes.
struct Place<'a> {
    /// Schema that contains the violated keyword.
    schema: &'a Value,
    /// Name of the definition in `$defs` that contains this schema.
    definition: &'a str,
    /// Path from the definition to the keyword.
    steps: Vec<String>,
}

impl<'a> Place<'a> {
    fn of(root: &'a Value, error: &ValidationError<'_>) -> Self {
        let mut place = Self { schema: root, definition: "", steps: Vec::new() };
        let mut node = root;
        let keyword = match error.kind() {
            Error::Custom { .. } => STRICT_INTEGER,
            kind => kind.keyword(),
        };
        let path = error.evaluation_path().as_str();
        for step in path.split('/').skip(1).map(|step| step.replace("~1", "/").replace("~0", "~")) {
            if step == keyword {
                place.schema = node;
            }
            let next = match node {
                Value::Object(_) if step == "$ref" => {
                    place.definition =
                        node["$ref"].as_str().and_then(|to| to.strip_prefix("#/$defs/")).unwrap_or_default();
                    place.steps.clear();
                    node = resolve(root, node);
                    continue;
                }
                Value::Array(items) => step.parse::<usize>().ok().and_then(|i| items.get(i)),
                node => node.get(&step),
            };
            place.steps.push(step);
            let Some(next) = next else { break };
            node = next;
        }
        place
    }

    /// Returns whether this is the keyword at path `steps` in the definition of a slot.
    fn is_slot(&self, steps: &[&str]) -> bool {
        self.steps == steps && Kind::ALL.iter().any(|kind| kind.name() == self.definition)
    }
}

/// Follows the references of `schema`.
fn resolve<'a>(root: &'a Value, mut schema: &'a Value) -> &'a Value {
    while let Some(target) = schema.get("$ref").and_then(Value::as_str) {
        match root.pointer(target.trim_start_matches('#')) {
            Some(next) => schema = next,
            None => break,
        }
    }
    schema
}

fn strings(values: &Value) -> impl Iterator<Item = &str> {
    values.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Returns the fields that an object may have, without the `type` of a plugin.
fn fields(schema: &Value) -> impl Iterator<Item = &str> {
    let properties = schema.get("properties").and_then(Value::as_object);
    properties
        .into_iter()
        .flatten()
        .filter(|(name, field)| *name != "type" || field.get("const").is_none())
        .map(|(name, _)| name.as_str())
}

fn alternatives(schema: &Value) -> Option<&Vec<Value>> {
    ["oneOf", "anyOf"].iter().find_map(|keyword| schema.get(keyword)?.as_array())
}

/// Returns all names that a schema accepts: its constants and the keys of its objects.
fn names_in<'a>(root: &'a Value, schema: &'a Value) -> Vec<&'a str> {
    let schema = resolve(root, schema);
    let mut names: Vec<&str> = schema.get("const").and_then(Value::as_str).into_iter().collect();
    names.extend(schema.get("enum").into_iter().flat_map(strings));
    names.extend(fields(schema));
    names.extend(alternatives(schema).into_iter().flatten().flat_map(|schema| names_in(root, schema)));
    names
}

fn nearest_of<'a>(value: &Value, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let key = match value {
        Value::Object(members) if members.len() == 1 => members.keys().next().map(String::as_str),
        value => value.as_str(),
    };
    nearest(key?, names)
}

/// Formats a value for a message.
fn show(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("a list of length {}", items.len()),
        Value::Object(_) => "an object".to_string(),
        value => {
            let text = value.to_string();
            match text.char_indices().nth(60) {
                Some((end, _)) => format!("{}..\"", &text[..end]),
                None => text,
            }
        }
    }
}

fn types(schema: &Value) -> String {
    let word = |name: &str| match name {
        "integer" => "an integer",
        "number" => "a number",
        "string" => "a string",
        "boolean" => "true or false",
        "array" => "a list",
        "object" => "an object",
        _ => "null",
    };
    match schema.get("type") {
        Some(Value::String(name)) => word(name).to_string(),
        Some(names) => strings(names).map(word).collect::<Vec<_>>().join(" or "),
        None => "accepted here".to_string(),
    }
}

/// Describes in words the values that a schema accepts.
fn describe(root: &Value, schema: &Value) -> String {
    let schema = resolve(root, schema);
    if let Some(constant) = schema.get("const") {
        return constant.as_str().map_or_else(|| constant.to_string(), str::to_string);
    }
    if let Some(options) = schema.get("enum") {
        return list(strings(options));
    }
    if let Some(schemas) = alternatives(schema) {
        return list(
            schemas.iter().map(|schema| describe(root, schema)).collect::<Vec<_>>().iter().map(String::as_str),
        );
    }
    let types = types(schema);
    if let Some(slot) = schema.pointer("/properties/type/enum") {
        return format!("an object (type: {})", list(strings(slot)));
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("object") if fields(schema).next().is_some() => format!("an object (fields: {})", list(fields(schema))),
        Some("array") => {
            let count = |keyword: &str| schema.get(keyword).and_then(Value::as_u64);
            match (count("minItems"), count("maxItems")) {
                (Some(least), Some(most)) if least == most => format!("a list of length {least}"),
                (Some(least), _) => format!("a list of length {least} or more"),
                _ => types,
            }
        }
        _ => match types.strip_suffix(" or null") {
            Some(types) => format!("{types}{}, or null", range(schema)),
            None => format!("{types}{}", range(schema)),
        },
    }
}

/// Describes the range of a number: ` from 0 to 1`, ` > 0, <= 1`.
fn range(schema: &Value) -> String {
    let limit = |keyword: &str| {
        let limit = schema.get(keyword)?;
        Some(limit.as_f64().filter(|_| limit.is_f64()).map_or_else(|| limit.to_string(), |limit| limit.to_string()))
    };
    if let (Some(low), Some(high)) = (limit("minimum"), limit("maximum")) {
        return format!(" from {low} to {high}");
    }
    let words = [("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<")];
    let bounds: Vec<String> =
        words.iter().filter_map(|(keyword, word)| Some(format!("{word} {}", limit(keyword)?))).collect();
    if bounds.is_empty() { String::new() } else { format!(" {}", bounds.join(", ")) }
}
