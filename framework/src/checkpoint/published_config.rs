//! The configuration files of a `diffusers` folder: `config.json` of a network and `scheduler_config.json` of its
//! process. A document that contradicts them would read the weights as another network.

use crate::checkpoint::open::{text, within};
use crate::error::{Error, Problem, Problems, Result};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// One configuration file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConfigFile {
    /// Path of the file.
    pub path: PathBuf,
    /// Its entries.
    pub entries: Map<String, Value>,
}

/// The configuration files that belong to weights. A file that does not exist is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PublishedConfig {
    /// `config.json` of the network.
    pub network: Option<ConfigFile>,
    /// `scheduler_config.json` of the process.
    pub scheduler: Option<ConfigFile>,
}

impl PublishedConfig {
    /// Reads the files that belong to the weights at `path`: the folder of a pipeline, its sub-folder `folder`, or a
    /// file in that sub-folder.
    ///
    /// # Errors
    /// If a file exists but is not a JSON object.
    pub fn of(path: &Path, folder: &str) -> Result<Self> {
        if folder.is_empty() {
            return Ok(Self::default());
        }
        let network = match path.is_dir() {
            true => within(path, folder),
            // A single file may be located next to files of another model.
            false => match path.parent() {
                Some(parent) if parent.file_name().is_some_and(|name| name == folder) => parent.to_path_buf(),
                _ => return Ok(Self::default()),
            },
        };
        let scheduler = network.parent().unwrap_or(Path::new("")).join("scheduler").join("scheduler_config.json");
        Ok(Self { network: read(network.join("config.json"))?, scheduler: read(scheduler)? })
    }
}

/// Compares two JSON values. A number is equal with and without a decimal point: `1` and `1.0`.
fn equal(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

fn read(path: PathBuf) -> Result<Option<ConfigFile>> {
    if !path.is_file() {
        return Ok(None);
    }
    let entries = serde_json::from_str(&text(&path)?)
        .map_err(|e| Error::file(&path, format!("is not a JSON object of a configuration: {e}")))?;
    Ok(Some(ConfigFile { path, entries }))
}

impl ConfigFile {
    /// Returns an entry, unless it is missing or null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key).filter(|value| !value.is_null())
    }

    /// Returns the problem of a document whose field at `pointer` is `own`, if the entry `key` is another value.
    pub fn differs(&self, key: &str, pointer: &str, own: &Value) -> Option<Problem> {
        let theirs = self.get(key)?;
        (!equal(theirs, own)).then(|| self.contradicts(&format!("`{key}`: {theirs}"), pointer, own, Some(theirs)))
    }

    /// Returns the problem of a document whose field at `pointer` is `own`, where the file says `says`. `change` is the
    /// value that agrees with the file, if a document can state one.
    pub fn contradicts(&self, says: &str, pointer: &str, own: &Value, change: Option<&Value>) -> Problem {
        let what = format!("{} says {says}; the document says {own}", self.path.display());
        let problem = Problem::new(pointer, what);
        match change {
            Some(value) => problem.accepts(value.to_string()).fix(format!("set /backbone{pointer} to {value}")),
            None => problem.accepts("weights whose configuration the document can state"),
        }
    }

    /// Returns the problems of entries that must have one value, because the network is built for it.
    pub fn fixed(&self, pointer: &str, expected: &[(&str, Value)]) -> Problems {
        let other = |(key, expected): &(&str, Value)| {
            let theirs = self.get(key).filter(|theirs| !equal(theirs, expected))?;
            let what = format!("{} says `{key}`: {theirs}; the network computes {expected}", self.path.display());
            Some(Problem::new(pointer, what).accepts(format!("weights with `{key}`: {expected}")))
        };
        expected.iter().filter_map(other).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    #[test]
    fn the_files_of_a_folder_are_found_from_each_of_its_levels() {
        let folder = tempfile::tempdir().unwrap();
        for (name, entry) in [("unet/config.json", "a"), ("scheduler/scheduler_config.json", "b")] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, json!({ entry: 1 }).to_string()).unwrap();
        }
        fs::write(folder.path().join("unet/model.safetensors"), "").unwrap();
        fs::write(folder.path().join("model.safetensors"), "").unwrap();
        for path in ["", "unet", "unet/model.safetensors"] {
            let found = PublishedConfig::of(&folder.path().join(path), "unet").unwrap();
            assert!(found.network.unwrap().get("a").is_some() && found.scheduler.unwrap().get("b").is_some(), "{path}");
        }
        assert_eq!(
            PublishedConfig::of(&folder.path().join("model.safetensors"), "unet").unwrap(),
            PublishedConfig::default()
        );
        fs::write(folder.path().join("unet/config.json"), "[1]").unwrap();
        let said = PublishedConfig::of(folder.path(), "unet").unwrap_err().to_string();
        assert!(said.contains("config.json") && said.contains("not a JSON object"), "{said}");
    }

    #[test]
    fn another_value_names_the_line_to_change() {
        let Value::Object(entries) = json!({ "a": 8, "b": null }) else { unreachable!() };
        let file = ConfigFile { path: "config.json".into(), entries };
        assert_eq!(file.differs("a", "/num_heads", &json!(8.0)), None);
        assert_eq!(file.differs("b", "/num_heads", &json!(2)), None);
        let problem = file.differs("a", "/num_heads", &json!(2)).unwrap();
        assert_eq!(problem.what, "config.json says `a`: 8; the document says 2");
        assert_eq!(problem.fix.as_deref(), Some("set /backbone/num_heads to 8"));
    }
}
