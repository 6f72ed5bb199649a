//! The reference of every entry as Markdown, from the JSON Schema: `unguided schema --markdown`.

use crate::{Outcome, console};
use framework::plugin::Kind;
use registry::Registry;
use serde_json::{Map, Value};
use std::fmt::Write;

/// Prints the reference page of the book.
pub fn markdown() -> Outcome {
    let page = page(&Registry::linked());
    console::print(page.strip_suffix('\n').unwrap_or(&page))
}

fn page(registry: &Registry) -> String {
    let definitions = registry.schema()["$defs"].as_object().cloned().unwrap_or_default();
    let mut text = String::from(
        "# Reference\n\nEvery entry of a document, with its fields. This page is generated from the JSON Schema, which editors \
         read through `$schema`: `unguided schema > pipeline.schema.json`.\n",
    );
    for kind in Kind::ALL {
        let _ = write!(text, "\n## {}\n", slot(kind));
        for entry in registry.entries().iter().filter(|entry| entry.kind == kind) {
            let _ = write!(text, "\n### {} `{}`\n", kind.name(), entry.name);
            section(&mut text, &definitions, &format!("{}.{}", kind.name(), entry.name));
        }
    }
    for (title, name) in [("Training: `train`", "train"), ("Weak network: `guidance.weak`", "weak")] {
        let _ = write!(text, "\n## {title}\n");
        section(&mut text, &definitions, name);
    }
    text
}

fn slot(kind: Kind) -> &'static str {
    match kind {
        Kind::Data => "Datasets: `data`",
        Kind::Tokenizer => "Tokenizers: `tokenizer`",
        Kind::Conditioner => "Conditioners: `conditioner`",
        Kind::Backbone => "Backbones: `backbone`",
        Kind::Objective => "Objectives: `objective`",
        Kind::Sampler => "Samplers: `sampler`",
        Kind::Guidance => "Guidance rules: `guidance`",
        Kind::Metric => "Metrics: `metrics`",
        Kind::Features => "Feature spaces: `features` of a metric",
    }
}

/// Writes the description and the fields of one definition, and of the definitions that only it uses.
fn section(text: &mut String, definitions: &Map<String, Value>, name: &str) {
    let Some(definition) = definitions.get(name) else { return };
    paragraph(text, definition);
    fields(text, definition);
    let prefix = format!("{name}.");
    for (part, definition) in definitions.iter().filter(|(part, _)| part.starts_with(&prefix)) {
        let _ = write!(text, "\n**{}**", &part[prefix.len()..]);
        if let Some(about) = definition["description"].as_str() {
            let _ = write!(text, ": {}", inline(about));
        }
        text.push('\n');
        fields(text, definition);
    }
}

fn paragraph(text: &mut String, definition: &Value) {
    if let Some(about) = definition["description"].as_str() {
        let _ = write!(text, "\n{}\n", escaped(about));
    }
}

/// Writes a table of the fields of an object, or of the variants of a choice.
fn fields(text: &mut String, definition: &Value) {
    if let Some(properties) = definition["properties"].as_object() {
        let shown: Vec<_> = properties.iter().filter(|(name, _)| *name != "type" && *name != "weak").collect();
        if !shown.is_empty() {
            text.push_str("\n| field | value | default | meaning |\n|---|---|---|---|\n");
        }
        let required = definition["required"].as_array().cloned().unwrap_or_default();
        for (name, field) in shown {
            let default = match field.get("default") {
                _ if required.iter().any(|required| required == name) => "required".to_string(),
                Some(default) => format!("`{default}`"),
                None => String::new(),
            };
            let meaning = field["description"].as_str().unwrap_or_default();
            let _ = writeln!(text, "| `{name}` | {} | {default} | {} |", kind_of(field), inline(meaning));
        }
    }
    for variant in definition["oneOf"].as_array().into_iter().flatten() {
        let name = match (&variant["const"], &variant["properties"]["type"]["const"], &variant["enum"]) {
            (Value::String(name), ..) | (_, Value::String(name), _) => format!("`\"{name}\"`"),
            (_, _, Value::Array(all)) => all.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
            _ => continue,
        };
        let about = variant["description"].as_str().map(|about| format!(": {}", inline(about))).unwrap_or_default();
        let _ = write!(text, "\n- {name}{about}");
        let own = variant["properties"].as_object().into_iter().flatten().filter(|(field, _)| *field != "type");
        for (field, schema) in own {
            let default = schema.get("default").map(|default| format!(", default `{default}`")).unwrap_or_default();
            let about = schema["description"].as_str().unwrap_or_default();
            let _ = write!(text, "\n  - `{field}` ({}{default}): {}", kind_of(schema), inline(about));
        }
    }
    if definition["oneOf"].is_array() {
        text.push('\n');
    }
}

/// Describes the values of a field in a few words.
fn kind_of(field: &Value) -> String {
    if let Some(target) = field["$ref"].as_str() {
        let name = target.rsplit('/').next().unwrap_or_default();
        return name.rsplit('.').next().unwrap_or_default().to_string();
    }
    if let Some(all) = field["anyOf"].as_array().or_else(|| field["oneOf"].as_array()) {
        return all.iter().map(kind_of).collect::<Vec<_>>().join(" or ");
    }
    if let Some(all) = field["enum"].as_array() {
        return all.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ");
    }
    if let Some(constant) = field.get("const") {
        return format!("`{constant}`");
    }
    let name = match &field["type"] {
        Value::String(name) => name.clone(),
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "),
        _ => "any".to_string(),
    };
    let name = if name == "array" { format!("list of {}", kind_of(&field["items"])) } else { name };
    match (field["minimum"].as_f64(), field["maximum"].as_f64()) {
        (Some(low), Some(high)) if high < 1e12 => format!("{name}, {low} to {high}"),
        (Some(low), _) => format!("{name}, at least {low}"),
        (None, Some(high)) => format!("{name}, at most {high}"),
        (None, None) => name,
    }
}

/// Writes a description in one line of a table.
fn inline(about: &str) -> String {
    escaped(&about.split_whitespace().collect::<Vec<_>>().join(" ")).replace('|', "\\|")
}

/// Keeps brackets from becoming links, and angle brackets from becoming tags.
fn escaped(about: &str) -> String {
    about.replace('[', "\\[").replace(']', "\\]").replace('<', "&lt;")
}
