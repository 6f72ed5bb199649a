//! From the text of a pipeline document to a checked [`Document`], in two phases.
//!
//! *Parse* asks whether the document is well formed: syntax, names, types, ranges. *Check* asks whether its parts
//! fit together. Neither touches a file or a device, and both report every problem they find.
//! This crate names no plugin: it knows what [`framework::register!`] lines were linked into the program.

#[cfg(test)]
use framework_dylib as _;

mod check;
mod document;
mod json;
pub mod library;
mod names;
mod schema;
mod translate;

pub use document::Document;
pub use json::{read, set};
pub use names::nearest;

use framework::error::{Problem, Problems};
use framework::plugin::{Entry, Kind, ObjectivePlugin};
use jsonschema::{Keyword, ValidationError, Validator};
use serde_json::Value;
use serde_path_to_error::Segment;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether a document was parsed: from then on typetag knows no new names.
static PARSED: AtomicBool = AtomicBool::new(false);

/// Everything registered. Only a registry parses documents: once parsing has begun, it is too late to load plugins.
pub struct Registry {
    entries: Vec<&'static Entry>,
    schema: Value,
    validator: Validator,
}

impl Registry {
    /// Loads plugin libraries, which runs their code, and gives the registry of them and of everything linked.
    ///
    /// # Errors
    /// Why libraries are refused. Unless all fit, none is opened.
    pub fn load(libraries: &[PathBuf]) -> Result<Self, Vec<library::Refused>> {
        library::load(libraries, PARSED.load(Ordering::SeqCst))?;
        Ok(Self::linked())
    }

    /// The registry of everything linked into the program, or loaded before.
    ///
    /// # Panics
    /// If two plugins of one kind share a name, or a plugin's schema is not a JSON Schema: bugs in a plugin.
    pub fn linked() -> Self {
        let entries = framework::plugin::entries();
        for pair in entries.windows(2) {
            assert!(
                (pair[0].kind, pair[0].name) != (pair[1].kind, pair[1].name),
                "{} \"{}\" is registered by both {} and {}",
                pair[0].kind.name(),
                pair[0].name,
                pair[0].origin,
                pair[1].origin
            );
        }
        let schema = schema::document(&entries);
        let validator = validator(&schema);
        Self { entries, schema, validator }
    }

    /// Everything registered, sorted by kind and name.
    pub fn entries(&self) -> &[&'static Entry] {
        &self.entries
    }

    /// The entry of that kind and name.
    pub fn entry(&self, kind: Kind, name: &str) -> Option<&'static Entry> {
        self.entries.iter().copied().find(|entry| entry.kind == kind && entry.name == name)
    }

    /// The JSON Schema of the document, draft 2020-12.
    pub fn schema(&self) -> &Value {
        &self.schema
    }

    /// Parses the text of a document.
    ///
    /// # Errors
    /// Every problem of its syntax, names, types and ranges, sorted by pointer.
    pub fn parse(&self, text: &str) -> Result<Document, Problems> {
        let (value, mut problems) = read(text).map_err(|problem| vec![problem])?;
        match self.parse_value(value) {
            Ok(document) if problems.is_empty() => Ok(document),
            Ok(_) => Err(sorted(problems)),
            Err(more) => {
                problems.extend(more);
                Err(sorted(problems))
            }
        }
    }

    /// Parses a document that was [`read`], and perhaps [`set`], before.
    ///
    /// # Errors
    /// Every problem of its names, types and ranges, sorted by pointer.
    pub fn parse_value(&self, value: Value) -> Result<Document, Problems> {
        self.parse_as(&self.validator, value)
    }

    /// Parses and checks the entry of one objective, with its `type`.
    ///
    /// # Errors
    /// Every problem of its name, fields and ranges; pointers are relative to the entry.
    pub fn objective(&self, value: Value) -> Result<Box<dyn ObjectivePlugin>, Problems> {
        let mut schema = self.schema.clone();
        let members = schema.as_object_mut().expect("the schema is an object");
        members.retain(|key, _| key == "$schema" || key == "$defs");
        members.insert("$ref".into(), format!("#/$defs/{}", Kind::Objective.name()).into());
        let objective: Box<dyn ObjectivePlugin> = self.parse_as(&validator(&schema), value)?;
        let problems = objective.check();
        if problems.is_empty() { Ok(objective) } else { Err(sorted(problems)) }
    }

    /// The documented variants of a plugin: itself with every default, where that is valid, and the examples of its
    /// schema, as entries with their `type`.
    pub fn variants(&self, entry: &Entry) -> Vec<Value> {
        let schema = Value::from((entry.schema)());
        let mut variants = vec![serde_json::json!({ "type": entry.name })];
        for example in schema["examples"].as_array().into_iter().flatten() {
            let mut variant = variants[0].clone();
            if let (Some(variant), Some(fields)) = (variant.as_object_mut(), example.as_object()) {
                variant.extend(fields.clone());
            }
            variants.push(variant);
        }
        variants
    }

    fn parse_as<T: serde::de::DeserializeOwned>(&self, validator: &Validator, mut value: Value) -> Result<T, Problems> {
        let problems: Problems =
            validator.iter_errors(&value).flat_map(|error| translate::translate(&self.schema, &error)).collect();
        if !problems.is_empty() {
            return Err(sorted(problems));
        }
        type_first(&mut value);
        PARSED.store(true, Ordering::SeqCst);
        serde_path_to_error::deserialize(value).map_err(|error: serde_path_to_error::Error<serde_json::Error>| {
            let at: String = error
                .path()
                .iter()
                .map(|segment| match segment {
                    Segment::Seq { index } => format!("/{index}"),
                    Segment::Map { key } | Segment::Enum { variant: key } => names::join("", key),
                    Segment::Unknown => String::new(),
                })
                .collect();
            vec![Problem::new(at, error.inner().to_string())]
        })
    }

    /// Checks that the parts of a document fit together.
    pub fn check(&self, document: &Document) -> Problems {
        sorted(check::check(document))
    }

    /// Parses and checks.
    ///
    /// # Errors
    /// Every problem of the first phase that finds one, sorted by pointer.
    pub fn parse_and_check(&self, text: &str) -> Result<Document, Problems> {
        let document = self.parse(text)?;
        let problems = self.check(&document);
        if problems.is_empty() { Ok(document) } else { Err(problems) }
    }

    /// The document with every default written out.
    ///
    /// # Panics
    /// If a plugin cannot be serialized: a bug in the plugin.
    pub fn resolved(&self, document: &Document) -> Value {
        serde_json::to_value(document).expect("a document can be serialized")
    }
}

fn validator(schema: &Value) -> Validator {
    jsonschema::options()
        .with_draft(jsonschema::Draft::Draft202012)
        .with_keyword(schema::STRICT_INTEGER, |_, _, _| Ok(Box::new(StrictInteger)))
        .build(&schema::strict(schema))
        .unwrap_or_else(|error| panic!("the schema of the document is not a schema: {error}"))
}

fn sorted(mut problems: Problems) -> Problems {
    problems.sort_by(|a, b| (&a.at, &a.what).cmp(&(&b.at, &b.what)));
    problems.dedup();
    problems
}

/// Moves `type` to the front of every object: otherwise what follows is buffered, and errors lose their place.
fn type_first(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if let Some(name) = members.shift_remove("type") {
                members.shift_insert(0, "type".to_string(), name);
            }
            members.values_mut().for_each(type_first);
        }
        Value::Array(items) => items.iter_mut().for_each(type_first),
        _ => {}
    }
}

/// Refuses numbers with a decimal point, which JSON Schema takes for integers and serde does not.
struct StrictInteger;

impl<'i> Keyword<'i> for StrictInteger {
    fn validate(&self, instance: &'i Value) -> Result<(), ValidationError<'i>> {
        if self.is_valid(instance) { Ok(()) } else { Err(ValidationError::custom("not a plain integer")) }
    }

    fn is_valid(&self, instance: &'i Value) -> bool {
        // Other decimal numbers are refused by their type already.
        !instance.as_f64().is_some_and(|number| instance.is_f64() && number.fract() == 0.0)
    }
}
