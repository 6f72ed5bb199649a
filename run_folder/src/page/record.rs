//! What the files of a run folder say about its run.

use crate::environment::Environment;
use crate::folder::RunFolder;
use crate::page::curves::{self, Curve};
use framework::checkpoint;
use framework::checkpoint::facts::DatasetFacts;
use framework::error::{Error, Problem, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Key of the facts in `report.json`. The other keys are measurements.
pub const FACTS: &str = "run";

/// Keys of `report.json` that are not results of metrics.
const COSTS: [&str; 3] = ["nfe", "samples", "images_per_second"];

/// Facts about a finished run that no other file of its folder contains. `report.json` stores them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// Build, machine and device.
    pub environment: Environment,
    /// Number of parameters of the network.
    pub parameters: Option<usize>,
    /// Largest resident memory, in bytes, of the process that finished the run: its training and its sampling.
    pub peak_memory: Option<u64>,
    /// Number of images in the dataset.
    pub items: Option<usize>,
    /// Remarks on the measurements, one sentence each.
    pub notes: Vec<String>,
    /// Label of each row of `samples.png`: the name of a class, or a caption. Empty without labels.
    pub rows: Vec<String>,
    /// Unit and meaning of each measurement, by name.
    pub meanings: Map<String, Value>,
}

/// One value that was measured on the final samples.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// Name in lower snake case.
    pub name: String,
    /// Measured value.
    pub value: f64,
    /// Unit and meaning; may be empty.
    pub meaning: String,
}

/// A picture with sample grids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Number of completed steps; `None` for the final samples.
    pub step: Option<usize>,
    /// Content of the PNG file.
    pub png: Vec<u8>,
}

/// A run, as its folder describes it.
#[derive(Clone, Debug)]
pub struct Record {
    /// Name that tells it from other runs.
    pub name: String,
    /// Path of the folder.
    pub path: PathBuf,
    /// Resolved document.
    pub document: Value,
    /// Last logged step.
    pub step: usize,
    /// Whether the run has a report: all its steps are done, and its samples are measured.
    pub is_finished: bool,
    /// Curves of the logged values.
    pub curves: Vec<Curve>,
    /// Training time in seconds up to the last logged step.
    pub seconds: f64,
    /// Median of the seconds per optimizer step over the logged intervals.
    pub seconds_per_step: Option<f64>,
    /// Number of items that could not be read.
    pub skipped: u64,
    /// Results of the metrics.
    pub measured: Vec<Measured>,
    /// Network evaluations per image.
    pub nfe: Option<f64>,
    /// Number of images that were measured.
    pub samples: Option<f64>,
    /// Sampling speed in images per second.
    pub images_per_second: Option<f64>,
    /// Facts from `report.json`.
    pub facts: Facts,
    /// Names of the classes, by index.
    pub class_names: Vec<String>,
}

/// Reads a JSON file; `None` if it does not exist.
pub(crate) fn json(path: &Path) -> Result<Option<Value>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path, error)),
    };
    serde_json::from_str(&text).map(Some).map_err(|e| Error::file(path, format!("damaged JSON: {e}")))
}

impl Record {
    /// Reads the run in `folder`. `name` tells it from other runs.
    ///
    /// # Errors
    /// If the folder contains no run, or a file cannot be read.
    pub fn read(folder: &Path, name: &str) -> Result<Self> {
        let problem = |what: String| {
            Problem::new("", what).accepts("the folder of a run (with `document.json`), or of a sweep (`sweep.json`)")
        };
        if !folder.is_dir() {
            let state = if folder.exists() { "is not a folder" } else { "does not exist" };
            return Err(problem(format!("{} {state}", folder.display())).into());
        }
        let run = RunFolder { path: folder.to_path_buf() };
        let document = json(&folder.join("document.json"))?.filter(Value::is_object).ok_or_else(|| {
            let what = format!("{} is not the folder of a run: it has no `document.json`", folder.display());
            Error::from(problem(what).fix("name a folder that `train` wrote, such as runs/NAME"))
        })?;
        let text = match fs::read_to_string(run.metrics()) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(Error::io(&run.metrics(), error)),
        };
        // The last line of a training that was killed or that is running may be incomplete.
        let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let logged = curves::read(&lines, samples_per_step(&document));
        let steps = document.pointer("/train/steps").and_then(Value::as_u64).unwrap_or_default();
        // A finished run that goes on with more steps keeps its old report until it ends again.
        let report = json(&folder.join("report.json"))?.filter(|_| logged.step as u64 >= steps);
        let mut facts = Facts::default();
        let (mut measured, mut number) = (Vec::new(), Map::new());
        if let Some(Value::Object(all)) = &report {
            if let Some(stored) = all.get(FACTS) {
                facts = serde_json::from_value(stored.clone())
                    .map_err(|e| Error::file(&folder.join("report.json"), format!("/{FACTS}: {e}")))?;
            }
            for (name, value) in all {
                match value.as_f64() {
                    Some(_) if COSTS.contains(&name.as_str()) => drop(number.insert(name.clone(), value.clone())),
                    Some(value) => {
                        let meaning = facts.meanings.get(name).and_then(Value::as_str).unwrap_or_default().to_string();
                        measured.push(Measured { name: name.clone(), value, meaning });
                    }
                    None => {}
                }
            }
        }
        let cost = |name: &str| number.get(name).and_then(Value::as_f64);
        Ok(Self {
            name: name.to_string(),
            path: folder.to_path_buf(),
            step: logged.step,
            is_finished: report.is_some(),
            seconds: logged.seconds,
            seconds_per_step: logged.seconds_per_step,
            skipped: logged.skipped,
            curves: logged.curves,
            measured,
            nfe: cost("nfe"),
            samples: cost("samples"),
            images_per_second: cost("images_per_second"),
            facts,
            class_names: class_names(&run)?,
            document,
        })
    }

    /// Returns the value at a pointer of the document, as text; a text without quotes.
    pub fn setting(&self, pointer: &str) -> Option<String> {
        match self.document.pointer(pointer)? {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            value => Some(value.to_string()),
        }
    }

    /// Returns the number of steps that the document asks for.
    pub fn steps(&self) -> usize {
        self.document.pointer("/train/steps").and_then(Value::as_u64).unwrap_or_default() as usize
    }

    /// Returns the number of samples per optimizer step.
    pub fn samples_per_step(&self) -> usize {
        samples_per_step(&self.document)
    }

    /// Reads the final sample grid, or the newest one of an unfinished run. Also reads at most `most` of the other grids
    /// that were written during training, evenly spread. Files that are missing are left out.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn grids(&self, most: usize) -> Result<Vec<Grid>> {
        let folder = RunFolder { path: self.path.clone() }.samples();
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.map_err(|e| Error::io(&folder, e))?.path();
            let name = path.file_stem().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("step-"));
            if let Some(step) =
                name.and_then(|step| step.parse().ok()).filter(|_| path.extension().is_some_and(|e| e == "png"))
            {
                found.push((Some(step), path));
            }
        }
        found.sort();
        let last = self.path.join("samples.png");
        // The newest grid of an unfinished run takes the place of the final one.
        let first = match last.exists() {
            true => Some((None, last)),
            false => found.pop(),
        };
        let chosen = framework::data::loader::spread(found.len(), most);
        let chosen: Vec<_> = chosen.into_iter().map(|index| found[index].clone()).collect();
        let mut grids = Vec::new();
        for (step, path) in first.into_iter().chain(chosen) {
            match fs::read(&path) {
                Ok(png) => grids.push(Grid { step, png }),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io(&path, error)),
            }
        }
        Ok(grids)
    }
}

fn samples_per_step(document: &Value) -> usize {
    let count = |pointer: &str| document.pointer(pointer).and_then(Value::as_u64).unwrap_or(1) as usize;
    count("/train/batch_size") * count("/train/accumulate")
}

/// Returns the names of the classes from the newest checkpoint. A damaged checkpoint or one without names gives none.
fn class_names(run: &RunFolder) -> Result<Vec<String>> {
    let all = checkpoint::list(&run.checkpoints())?;
    let metadata = all.last().and_then(|path| checkpoint::metadata(path).ok().flatten());
    let facts = metadata.and_then(|metadata| serde_json::from_str::<DatasetFacts>(metadata.get("dataset")?).ok());
    Ok(facts.and_then(|facts| facts.class_names).unwrap_or_default())
}

/// Returns the shortest names that tell folders apart: as many last components of their paths as needed.
///
/// # Errors
/// If a folder is named twice.
pub fn names(folders: &[PathBuf]) -> Result<Vec<String>> {
    let absolute = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
    let whole: Vec<PathBuf> = folders.iter().map(absolute).collect();
    for (i, path) in whole.iter().enumerate() {
        if whole[..i].contains(path) {
            let what = format!("{} is named twice", folders[i].display());
            return Err(Problem::new("", what).accepts("different folders").fix("name each folder once").into());
        }
    }
    let last = |path: &Path, count: usize| -> String {
        let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
        parts[parts.len().saturating_sub(count)..].join("/")
    };
    let longest = whole.iter().map(|path| path.iter().count()).max().unwrap_or(1);
    let is_distinct = |count: &usize| {
        let names: Vec<String> = whole.iter().map(|path| last(path, *count)).collect();
        (1..names.len()).all(|i| !names[..i].contains(&names[i]))
    };
    let count = (1..=longest).find(is_distinct).unwrap_or(longest);
    Ok(whole.iter().map(|path| last(path, count)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_long_as_needed_and_no_folder_comes_twice() {
        let all = |paths: &[&str]| names(&paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(all(&["/r/gft", "/r/cfg"]).unwrap(), ["gft", "cfg"]);
        assert_eq!(all(&["/a/gft", "/b/gft"]).unwrap(), ["a/gft", "b/gft"]);
        let error = all(&["/a/gft", "/b/gft", "/a/gft"]).unwrap_err().to_string();
        assert!(error.contains("/a/gft is named twice"), "{error}");
    }

    #[test]
    fn a_folder_that_is_not_a_run_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: &Path| Record::read(path, "x").unwrap_err();
        let error = refused(&folder.path().join("none"));
        assert!(error.exit_code() == 2 && error.to_string().contains("does not exist"), "{error}");
        let error = refused(folder.path()).to_string();
        assert!(error.contains("no `document.json`") && error.contains("fix"), "{error}");
        fs::write(folder.path().join("document.json"), "{").unwrap();
        assert!(refused(folder.path()).to_string().contains("damaged JSON"));
    }

    #[test]
    fn a_run_that_is_not_finished_is_read_up_to_its_last_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        let document = r#"{"train": {"steps": 100, "batch_size": 8, "accumulate": 2, "seed": 3}}"#;
        fs::write(folder.path().join("document.json"), document).unwrap();
        let lines = "{\"step\":10,\"loss\":2.0,\"images_per_second\":16.0}\n{\"step\":20,\"loss\":1.0,\"images_per_second\":32.0}\n{\"step\":3";
        fs::write(folder.path().join("metrics.jsonl"), lines).unwrap();
        let run = Record::read(folder.path(), "run").unwrap();
        assert!(!run.is_finished && run.measured.is_empty() && run.nfe.is_none());
        assert_eq!((run.step, run.steps(), run.samples_per_step()), (20, 100, 16));
        // 160 images at 16 per second, then 160 at 32 per second.
        assert_eq!((run.seconds, run.seconds_per_step), (15.0, Some(0.75)));
        assert_eq!(run.setting("/train/seed").as_deref(), Some("3"));
        assert!(run.grids(4).unwrap().is_empty());
        fs::create_dir(folder.path().join("samples")).unwrap();
        for step in [10, 20, 30] {
            fs::write(folder.path().join(format!("samples/step-{step:09}.png")), "").unwrap();
        }
        let steps = || run.grids(4).unwrap().iter().map(|grid| grid.step).collect::<Vec<_>>();
        assert_eq!(steps(), [Some(30), Some(10), Some(20)]);
        fs::write(folder.path().join("samples.png"), "").unwrap();
        assert_eq!(steps(), [None, Some(10), Some(20), Some(30)]);
    }
}
