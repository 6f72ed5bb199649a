//! The JSON Schema of the whole document, assembled from the schemas of all registered plugins.
//!
//! Each slot is a list of `if type = X then the schema of X`, so that validation reports the errors within X. A `oneOf`
//! over the plugins would only report that none of them matches.

use framework::pipeline::train_config::TrainConfig;
use framework::pipeline::weak::WeakConfig;
use framework::plugin::{Entry, Kind};
use schemars::Schema;
use schemars::transform::{Transform, transform_subschemas};
use serde_json::{Map, Value, json};

/// A custom keyword that rejects `3.0` where an integer is expected. Only our own validator knows this keyword.
pub(crate) const STRICT_INTEGER: &str = "strictInteger";

/// The name of each slot in the schema of a plugin that contains another plugin.
const SLOTS: [(&str, Kind); 9] = [
    ("dataset", Kind::Data),
    ("tokenizer", Kind::Tokenizer),
    ("conditioner", Kind::Conditioner),
    ("backbone", Kind::Backbone),
    ("objective", Kind::Objective),
    ("sampler", Kind::Sampler),
    ("guidance", Kind::Guidance),
    ("metric", Kind::Metric),
    ("features", Kind::Features),
];

/// Builds the schema, draft 2020-12, of a document that may use `entries`.
pub(crate) fn document(entries: &[&Entry]) -> Value {
    let mut defs = Map::new();
    for kind in Kind::ALL {
        let slot: Vec<&Entry> = entries.iter().copied().filter(|entry| entry.kind == kind).collect();
        defs.insert(kind.name().to_string(), slot_of(kind, &slot));
        for entry in slot {
            let schema = hoist(&name_of(entry), (entry.schema)(), &mut defs);
            defs.insert(name_of(entry), plugin(entry, schema));
        }
    }
    let weak = schemars::SchemaGenerator::default().into_root_schema_for::<WeakConfig>();
    let weak = hoist("weak", weak, &mut defs);
    defs.insert("weak".to_string(), weak);
    let train = schemars::SchemaGenerator::default().into_root_schema_for::<TrainConfig>();
    let train = hoist("train", train, &mut defs);
    defs.insert("train".to_string(), train);

    let slot = |kind: Kind, what: &str| json!({ "description": what, "$ref": reference(kind.name()) });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Unguided pipeline",
        "description": "A generative model: its data, its parts, its training and its sampling.",
        "type": "object",
        "additionalProperties": false,
        "required": ["version", "data", "tokenizer", "backbone", "objective", "train", "sampler", "guidance"],
        "properties": {
            "$schema": { "type": "string", "description": "Path of the JSON Schema of this document, for editors." },
            "version": { "type": "integer", "const": 1, "description": "Version of the document format." },
            "about": { "type": "string", "description": "Description of this pipeline for readers." },
            "plugins": {
                "type": "array",
                "items": { "type": "string" },
                "description": "Paths of plugin libraries, relative to the document. Opening a library runs its code.",
            },
            "data": slot(Kind::Data, "The dataset."),
            "tokenizer": slot(Kind::Tokenizer, "The tokenizer, which converts images to latents and back."),
            "conditioner": {
                "description": "The conditioner, which converts captions to features for text-conditional backbones.",
                "anyOf": [{ "$ref": reference("conditioner") }, { "type": "null" }],
                "default": null,
            },
            "backbone": slot(Kind::Backbone, "The network."),
            "objective": slot(Kind::Objective, "The training objective."),
            "train": { "description": "The training loop.", "$ref": reference("train") },
            "sampler": slot(Kind::Sampler, "The sampler, which converts noise to latents."),
            "guidance": slot(Kind::Guidance, "The guidance rule of sampling."),
            "metrics": {
                "description": "The metrics on samples.",
                "type": "array",
                "items": { "$ref": reference("metric") },
                "default": [],
            },
        },
        "$defs": defs,
    })
}

/// Adds [`STRICT_INTEGER`] to every integer, because serde rejects `3.0` as an integer.
pub(crate) fn strict(schema: &Value) -> Value {
    let mut schema = Schema::try_from(schema.clone()).expect("the document's schema is an object");
    each(&mut schema, &mut |schema| {
        let integer = match schema.get("type") {
            Some(Value::String(name)) => name == "integer",
            Some(Value::Array(names)) => names.contains(&json!("integer")) && !names.contains(&json!("number")),
            _ => false,
        };
        if integer {
            schema.insert(STRICT_INTEGER.to_string(), true.into());
        }
    });
    schema.into()
}

fn reference(name: &str) -> String {
    format!("#/$defs/{name}")
}

fn name_of(entry: &Entry) -> String {
    format!("{}.{}", entry.kind.name(), entry.name)
}

/// Builds the definition of a slot: the accepted types, and the schema of each type.
fn slot_of(kind: Kind, entries: &[&Entry]) -> Value {
    let names: Vec<&str> = entries.iter().map(|entry| entry.name).collect();
    let mut slot = json!({
        "type": "object",
        "required": ["type"],
        "properties": { "type": { "description": format!("Name of the {} plugin.", kind.name()), "enum": names } },
    });
    let each: Vec<Value> = entries
        .iter()
        .map(|entry| {
            let this =
                json!({ "type": "object", "required": ["type"], "properties": { "type": { "const": entry.name } } });
            json!({ "if": this, "then": { "$ref": reference(&name_of(entry)) } })
        })
        .collect();
    if !each.is_empty() {
        slot["allOf"] = each.into();
    }
    slot
}

/// Builds the definition of one plugin: `type` and its fields, without additional ones, and the papers it implements.
fn plugin(entry: &Entry, schema: Value) -> Value {
    let mut schema = match schema {
        Value::Object(schema) if schema.get("type").is_some_and(|kind| kind == "object") => schema,
        _ => Map::from_iter([("type".to_string(), json!("object"))]),
    };
    let mut properties = Map::from_iter([("type".to_string(), json!({ "const": entry.name }))]);
    let mut required = vec![json!("type")];
    if let Some(Value::Object(fields)) = schema.remove("properties") {
        properties.extend(fields);
    }
    if entry.kind == Kind::Guidance {
        let weak = json!({
            "description": "The weak network of a rule that compares two networks; null = none.",
            "anyOf": [{ "$ref": reference("weak") }, { "type": "null" }],
            "default": null,
        });
        properties.insert("weak".to_string(), weak);
    }
    if let Some(Value::Array(fields)) = schema.remove("required") {
        required.extend(fields);
    }
    if !entry.papers.is_empty() {
        let about = schema.get("description").and_then(Value::as_str).unwrap_or_default();
        let about = format!("{about}\n\nSource: {}.", entry.papers.join(", "));
        schema.insert("description".to_string(), about.trim_start().into());
    }
    schema.insert("properties".to_string(), properties.into());
    schema.insert("required".to_string(), required.into());
    schema.insert("additionalProperties".to_string(), false.into());
    schema.into()
}

/// Moves the definitions of `schema` to `defs` under names that start with `name`, and updates the references.
/// Placeholders of slots become references to the slots.
fn hoist(name: &str, mut schema: Schema, defs: &mut Map<String, Value>) -> Value {
    schema.remove("$schema");
    let own = match schema.remove("$defs") {
        Some(Value::Object(own)) => own,
        _ => Map::new(),
    };
    let slot = |def: &str| {
        let placeholder = own.get(def).is_some_and(|schema| *schema == json!({ "type": "object" }));
        SLOTS.iter().find(|(slot, _)| placeholder && *slot == def).map(|(_, kind)| kind.name())
    };
    let moved = |schema: &mut Schema| {
        bound(schema);
        let target = match schema.get("$ref").and_then(Value::as_str) {
            Some("#") => reference(name),
            Some(target) => match target.strip_prefix("#/$defs/") {
                Some(def) => reference(&slot(def).map_or_else(|| format!("{name}.{def}"), str::to_string)),
                None => return,
            },
            None => return,
        };
        schema.insert("$ref".to_string(), target.into());
    };
    for (def, schema) in own.iter().filter(|(def, _)| slot(def).is_none()) {
        let mut schema = Schema::try_from(schema.clone()).expect("a definition is a schema");
        each(&mut schema, &mut |schema| moved(schema));
        defs.insert(format!("{name}.{def}"), schema.into());
    }
    each(&mut schema, &mut |schema| moved(schema));
    schema.into()
}

/// Adds the ranges that schemars expresses only through `format`.
fn bound(schema: &mut Schema) {
    let (low, high) = match schema.get("format").and_then(Value::as_str) {
        Some("uint32") => (json!(0), json!(u32::MAX)),
        Some("int32") => (json!(i32::MIN), json!(i32::MAX)),
        Some("float") => (json!(f32::MIN), json!(f32::MAX)),
        _ => return,
    };
    for (keyword, limit) in [("minimum", low), ("maximum", high)] {
        if schema.get(keyword).is_none() {
            schema.insert(keyword.to_string(), limit);
        }
    }
}

/// Applies `change` to the schema and to all subschemas.
fn each(schema: &mut Schema, change: &mut dyn FnMut(&mut Schema)) {
    struct Each<'a>(&'a mut dyn FnMut(&mut Schema));
    impl Transform for Each<'_> {
        fn transform(&mut self, schema: &mut Schema) {
            (self.0)(schema);
            transform_subschemas(self, schema);
        }
    }
    Each(change).transform(schema);
}
