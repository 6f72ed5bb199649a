//! Single slots of a document: commands that use one part need no whole pipeline.

use crate::document;
use framework::error::{Error, Problem, Problems, Result};
use framework::plugin::{BackbonePlugin, ConditionerPlugin, Kind, TokenizerPlugin};
use registry::Registry;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::Path;

/// The slots of a document file. Only the slots that are asked for are parsed and checked.
pub struct Parts {
    registry: Registry,
    value: Value,
    name: String,
}

impl Parts {
    /// Reads a document. `overrides` are `/POINTER=VALUE`.
    ///
    /// # Errors
    /// If the file cannot be read or is not a JSON object, or an override is wrong.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Self> {
        let name = path.display().to_string();
        let text = document::text(path)?;
        let (registry, refused) = (Registry::linked(), |problems: Problems| Error::input(problems, &name));
        let (mut value, problems) = registry::read(&text).map_err(|problem| refused(vec![problem]))?;
        if !problems.is_empty() {
            return Err(refused(problems));
        }
        for change in overrides {
            let (pointer, new) = change.split_once('=').unwrap_or((change, ""));
            registry::set(&mut value, pointer, new).map_err(|problem| refused(vec![problem]))?;
        }
        Ok(Self { registry, value, name })
    }

    /// The name of the file, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns whether the document has an entry of this kind.
    pub fn has(&self, kind: Kind) -> bool {
        self.value.get(kind.name()).is_some_and(|entry| !entry.is_null())
    }

    /// Returns the backbone, checked.
    ///
    /// # Errors
    /// If the document has no backbone, or it has problems.
    pub fn backbone(&self) -> Result<Box<dyn BackbonePlugin>> {
        self.part(Kind::Backbone, |part: &(dyn BackbonePlugin + 'static)| part.check())
    }

    /// Returns the tokenizer, checked.
    ///
    /// # Errors
    /// If the document has no tokenizer, or it has problems.
    pub fn tokenizer(&self) -> Result<Box<dyn TokenizerPlugin>> {
        self.part(Kind::Tokenizer, |part: &(dyn TokenizerPlugin + 'static)| part.check())
    }

    /// Returns the conditioner, checked.
    ///
    /// # Errors
    /// If the document has no conditioner, or it has problems.
    pub fn conditioner(&self) -> Result<Box<dyn ConditionerPlugin>> {
        self.part(Kind::Conditioner, |part: &(dyn ConditionerPlugin + 'static)| part.check())
    }

    /// Returns the document as it is kept in a converted checkpoint: whole and with every default, or as it was given
    /// if it is not a whole pipeline.
    pub fn document(&self) -> String {
        let whole = self.registry.parse_value(self.value.clone());
        let value = whole.map(|document| self.registry.resolved(&document)).unwrap_or_else(|_| self.value.clone());
        serde_json::to_string_pretty(&value).expect("JSON can be written")
    }

    fn part<T: ?Sized>(&self, kind: Kind, check: fn(&T) -> Problems) -> Result<Box<T>>
    where
        Box<T>: DeserializeOwned,
    {
        let at = format!("/{}", kind.name());
        let located = |problems: Problems| {
            Error::input(problems.into_iter().map(|problem| problem.under(&at)).collect(), &self.name)
        };
        let Some(entry) = self.value.get(kind.name()).filter(|entry| !entry.is_null()) else {
            let problem = Problem::new("", format!("the document has no {}", kind.name())).in_file(&self.name);
            return Err(problem.accepts(format!("a document with {at}; other slots may be missing")).into());
        };
        let part: Box<T> = self.registry.part(kind, entry.clone()).map_err(located)?;
        let problems = check(&part);
        if problems.is_empty() { Ok(part) } else { Err(located(problems)) }
    }
}
