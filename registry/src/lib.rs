//! From the text of a pipeline document to a checked [`Document`], in two phases.
//!
//! *Parse* checks that the document is well formed: syntax, names, types, ranges. *Check* checks that its parts are
//! compatible. Neither phase opens a file or a device, and both report all problems that they find.
//! This crate names no plugin: it finds plugins through the [`framework::register!`] lines linked into the program.

#[cfg(test)]
use framework_dylib as _;

mod check;
mod comments;
mod document;
mod json;
pub mod library;
mod library_file;
mod names;
mod schema;
mod translate;

pub use document::Document;
pub use json::{MOST_BYTES, read, set, too_large};
pub use names::nearest;

use framework::error::{Problem, Problems};
use framework::plugin::{Entry, Kind, ObjectivePlugin};
use jsonschema::{Keyword, ValidationError, Validator};
use library::Library;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::Segment;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether a document was parsed. typetag collects the registered names at the first parse and ignores later ones.
static PARSED: AtomicBool = AtomicBool::new(false);

/// All registered plugins. Only a registry parses documents, because plugins can be loaded only before the first parse.
pub struct Registry {
    entries: Vec<&'static Entry>,
    schema: Value,
    validator: Validator,
}

impl Registry {
    /// Loads plugin libraries, which runs their code. Returns the registry of all loaded and linked plugins.
    ///
    /// # Errors
    /// If a library is rejected; one problem per library. In this case no library is opened.
    pub fn load(libraries: &[PathBuf]) -> Result<Self, Problems> {
        let (libraries, refused) = library::read_all(libraries);
        Self::open(libraries, refused)
    }

    /// Opens libraries that were already read, which runs their code. Returns the registry of all loaded and linked
    /// plugins. `refused` contains the problems with libraries that could not be read.
    ///
    /// # Errors
    /// If a library is rejected or `refused` is not empty; one problem per library. In this case no library is opened.
    pub fn open(libraries: Vec<Library>, refused: Problems) -> Result<Self, Problems> {
        library::open_all(libraries, refused, PARSED.load(Ordering::SeqCst))?;
        Ok(Self::linked())
    }

    /// Returns the registry of all plugins that are linked into the program or already loaded.
    ///
    /// # Panics
    /// If two plugins of the same kind share a name, or the schema of a plugin is not a valid JSON Schema. Both are
    /// bugs in a plugin.
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

    /// Returns all registered plugins, sorted by kind and name.
    pub fn entries(&self) -> &[&'static Entry] {
        &self.entries
    }

    /// Returns the plugin of this kind and name, if it is registered.
    pub fn entry(&self, kind: Kind, name: &str) -> Option<&'static Entry> {
        self.entries.iter().copied().find(|entry| entry.kind == kind && entry.name == name)
    }

    /// Returns the JSON Schema of documents, draft 2020-12.
    pub fn schema(&self) -> &Value {
        &self.schema
    }

    /// Parses the text of a document.
    ///
    /// # Errors
    /// All problems of syntax, names, types and ranges, sorted by pointer.
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

    /// Parses a document from the JSON value that [`read`] returned and [`set`] may have changed.
    ///
    /// # Errors
    /// All problems of names, types and ranges, sorted by pointer.
    pub fn parse_value(&self, value: Value) -> Result<Document, Problems> {
        self.parse_as(&self.validator, value)
    }

    /// Parses and checks the entry of one objective, including its `type`.
    ///
    /// # Errors
    /// All problems of its name, fields and ranges. Pointers are relative to the entry.
    pub fn objective(&self, value: Value) -> Result<Box<dyn ObjectivePlugin>, Problems> {
        let objective: Box<dyn ObjectivePlugin> = self.part(Kind::Objective, value)?;
        let problems = objective.check();
        if problems.is_empty() { Ok(objective) } else { Err(sorted(problems)) }
    }

    /// Parses the entry of one slot, with its `type`.
    ///
    /// # Errors
    /// Every problem of its name, fields and ranges; pointers are relative to the entry.
    pub fn part<T: DeserializeOwned>(&self, kind: Kind, value: Value) -> Result<T, Problems> {
        let mut schema = self.schema.clone();
        let members = schema.as_object_mut().expect("the schema is an object");
        members.retain(|key, _| key == "$schema" || key == "$defs");
        members.insert("$ref".into(), format!("#/$defs/{}", kind.name()).into());
        self.parse_as(&validator(&schema), value)
    }

    /// Returns the documented variants of a plugin, as document entries: the plugin with all defaults, which is invalid
    /// if a field is required, and the examples of its schema.
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

    fn parse_as<T: DeserializeOwned>(&self, validator: &Validator, mut value: Value) -> Result<T, Problems> {
        let problems: Problems =
            validator.iter_errors(&value).flat_map(|error| translate::translate(&self.schema, &error)).collect();
        if !problems.is_empty() {
            return Err(sorted(problems));
        }
        type_first(&mut value);
        lift(&mut value);
        PARSED.store(true, Ordering::SeqCst);
        serde_path_to_error::deserialize(value).map_err(|error: serde_path_to_error::Error<serde_json::Error>| {
            let at: String = error
                .path()
                .iter()
                .map(|segment| match segment {
                    Segment::Seq { index } => format!("/{index}"),
                    Segment::Map { key } if key == LIFTED => "/guidance/weak".to_string(),
                    Segment::Map { key } | Segment::Enum { variant: key } => names::join("", key),
                    Segment::Unknown => String::new(),
                })
                .collect();
            vec![Problem::new(at, error.inner().to_string())]
        })
    }

    /// Checks that the parts of a document are compatible.
    pub fn check(&self, document: &Document) -> Problems {
        sorted(check::check(document))
    }

    /// Parses and checks a document.
    ///
    /// # Errors
    /// All problems of the first phase that finds any, sorted by pointer.
    pub fn parse_and_check(&self, text: &str) -> Result<Document, Problems> {
        let document = self.parse(text)?;
        let problems = self.check(&document);
        if problems.is_empty() { Ok(document) } else { Err(problems) }
    }

    /// Returns the document with every default written out.
    ///
    /// # Panics
    /// If a plugin cannot be serialized, which is a bug in the plugin.
    pub fn resolved(&self, document: &Document) -> Value {
        let mut value = serde_json::to_value(document).expect("a document can be serialized");
        lower(&mut value);
        value
    }
}

fn validator(schema: &Value) -> Validator {
    jsonschema::options()
        .with_draft(jsonschema::Draft::Draft202012)
        .with_keyword(schema::STRICT_INTEGER, |_, _, _| Ok(Box::new(StrictInteger)))
        .build(&schema::strict(schema))
        .unwrap_or_else(|error| panic!("the document's JSON Schema is invalid: {error}"))
}

fn sorted(mut problems: Problems) -> Problems {
    problems.sort_by(|a, b| (&a.at, &a.what).cmp(&(&b.at, &b.what)));
    problems.dedup();
    problems
}

/// The top-level key for the guidance rule's weak network during deserialization. In the document, `weak` is a member
/// of `guidance`, but the rule's plugin rejects fields that are not its own.
const LIFTED: &str = "guidance.weak";

/// Moves `weak` from `guidance` to [`LIFTED`].
fn lift(document: &mut Value) {
    let weak = document.get_mut("guidance").and_then(Value::as_object_mut).and_then(|rule| rule.shift_remove("weak"));
    if let (Some(weak), Some(document)) = (weak, document.as_object_mut()) {
        document.insert(LIFTED.to_string(), weak);
    }
}

/// Moves `weak` from [`LIFTED`] back to `guidance`.
fn lower(document: &mut Value) {
    let weak = document.as_object_mut().and_then(|document| document.shift_remove(LIFTED));
    if let (Some(weak), Some(rule)) = (weak, document.get_mut("guidance").and_then(Value::as_object_mut)) {
        rule.insert("weak".to_string(), weak);
    }
}

/// Moves `type` to the front of every object. Otherwise serde buffers the fields before it, and errors lose their
/// location.
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

/// Rejects integers that are written with a decimal point or exponent. JSON Schema accepts them; serde does not.
struct StrictInteger;

impl<'i> Keyword<'i> for StrictInteger {
    fn validate(&self, instance: &'i Value) -> Result<(), ValidationError<'i>> {
        if self.is_valid(instance) { Ok(()) } else { Err(ValidationError::custom("not a plain integer")) }
    }

    fn is_valid(&self, instance: &'i Value) -> bool {
        // The `type` keyword rejects all other decimal numbers.
        !instance.as_f64().is_some_and(|number| instance.is_f64() && number.fract() == 0.0)
    }
}
