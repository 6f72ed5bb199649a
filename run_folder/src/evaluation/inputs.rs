//! What a command names: a run, a folder of images, encoded latents, a document, statistics, and metrics.

use crate::document;
use crate::evaluation::measuring::{self, Named};
use crate::folder::RunFolder;
use framework::burn::tensor::Device;
use framework::checkpoint;
use framework::data::checked::Checked;
use framework::data::dataset::{Dataset, facts};
use framework::data::tokenizer::ImageShape;
use framework::error::{Error, Problem, Problems, Result};
use framework::evaluation::metric::Metric;
use framework::evaluation::space::Spaces;
use framework::evaluation::statistics::Statistics;
use framework::pipeline::Pipeline;
use framework::plugin::{DatasetPlugin, Kind, MetricPlugin};
use registry::Registry;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Images that a command measures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A run folder or a checkpoint: its network samples the images.
    Network(PathBuf),
    /// A folder of images.
    Images(PathBuf),
    /// A file or a folder of encoded latents.
    Latents(PathBuf),
}

impl Subject {
    /// Recognizes a path.
    ///
    /// # Errors
    /// If it does not exist, or is neither of these.
    pub fn of(path: &Path) -> Result<Self> {
        let accepts = "a run folder, a checkpoint, a folder of images, or a file or folder of encoded latents";
        let refuse = |what: &str| Error::from(Problem::new("", format!("{} {what}", path.display())).accepts(accepts));
        if !path.exists() {
            return Err(refuse("does not exist"));
        }
        if path.is_dir() {
            if is_run(path) {
                return Ok(Self::Network(path.to_path_buf()));
            }
            return match tensor_files(path)?.is_empty() {
                true => Ok(Self::Images(path.to_path_buf())),
                false => Ok(Self::Latents(path.to_path_buf())),
            };
        }
        if checkpoint::metadata(path)?.is_some() {
            return Ok(Self::Network(path.to_path_buf()));
        }
        match ends_with(path, "safetensors") {
            true => Ok(Self::Latents(path.to_path_buf())),
            false => Err(refuse("is no checkpoint")),
        }
    }
}

/// Real images that a command compares with.
pub enum Against {
    /// The dataset of a document or of a run.
    Document(Box<Pipeline>),
    /// A folder of images.
    Images(PathBuf),
    /// Saved statistics, with the files that hold them.
    Statistics(Vec<(PathBuf, Arc<Statistics>)>),
}

impl Against {
    /// Recognizes and opens a path. The dataset of a document is not opened yet.
    ///
    /// # Errors
    /// If it does not exist, or is neither a document, a run, a folder nor statistics.
    pub fn of(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Err(Problem::new("--against", format!("{} does not exist", path.display()))
                .accepts("a document, a run folder, a folder of images, or saved statistics")
                .into());
        }
        if ends_with(path, "json") {
            return Ok(Self::Document(Box::new(document::read(path, &[])?)));
        }
        if path.is_dir() && is_run(path) {
            return Ok(Self::Document(Box::new(document::read(&path.join("document.json"), &[])?)));
        }
        let files = match path.is_dir() {
            true => tensor_files(path)?,
            false => vec![path.to_path_buf()],
        };
        if files.is_empty() {
            return Ok(Self::Images(path.to_path_buf()));
        }
        let load = |file: PathBuf| Ok((file.clone(), Arc::new(Statistics::load(&file)?)));
        Ok(Self::Statistics(files.into_iter().map(load).collect::<Result<_>>()?))
    }
}

fn is_run(folder: &Path) -> bool {
    RunFolder { path: folder.to_path_buf() }.checkpoints().is_dir()
}

fn ends_with(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(ending))
}

/// Returns the safetensors files in a folder, sorted by name.
fn tensor_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()).map_err(|e| Error::io(folder, e)));
    let mut found: Vec<PathBuf> = paths.collect::<Result<_>>()?;
    found.retain(|path| ends_with(path, "safetensors"));
    found.sort();
    Ok(found)
}

/// Opens a dataset from its document entry. Messages call it `option`.
///
/// # Errors
/// If the entry is invalid, or the dataset cannot be opened.
pub fn dataset(entry: Value, option: &str) -> Result<Checked> {
    let refuse = |problems: Problems| {
        Error::Input(problems.into_iter().map(|problem| Problem { at: vec![option.to_string()], ..problem }).collect())
    };
    let dataset: Box<dyn DatasetPlugin> = Registry::linked().part(Kind::Data, entry).map_err(refuse)?;
    let problems = dataset.check();
    if !problems.is_empty() {
        return Err(refuse(problems));
    }
    let opened = dataset.open().map_err(|error| match error {
        Error::Io { .. } | Error::File { .. } => Problem::new(option, error.to_string()).into(),
        other => other,
    })?;
    Checked::new(&format!("data \"{}\"", dataset.typetag_name()), opened)
}

/// Opens a folder of images. `shape` is the shape that they must have, if it is known; otherwise the images are read in
/// colour at the size of the first one.
///
/// # Errors
/// If the folder has no image, or the size is not square.
pub fn image_folder(folder: &Path, shape: Option<ImageShape>, option: &str) -> Result<Checked> {
    let refuse = |what: String, accepts: &str| Error::from(Problem::new(option, what).accepts(accepts));
    let [channels, height, width] = match shape {
        Some(shape) => shape,
        None => {
            let (width, height) = first_size(folder)?.ok_or_else(|| {
                refuse(format!("{} contains no image", folder.display()), "a folder of PNG, JPEG or other images")
            })?;
            [3, height, width]
        }
    };
    if height != width {
        let what = format!("the images have {height} x {width} pixels");
        return Err(refuse(what, "square images, or a size with --image-size"));
    }
    dataset(json!({ "type": "image_folder", "path": folder, "image_size": height, "channels": channels }), option)
}

/// Returns width and height of the first image in a folder that can be read.
fn first_size(folder: &Path) -> Result<Option<(usize, usize)>> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            if let Some(found) = first_size(&path)? {
                return Ok(Some(found));
            }
        } else if path.is_file()
            && let Ok((width, height)) = image::image_dimensions(&path)
        {
            return Ok(Some((width as usize, height as usize)));
        }
    }
    Ok(None)
}

/// Returns what identifies the content of a dataset.
pub fn identity(dataset: &dyn Dataset) -> Value {
    let facts = facts(dataset);
    json!({ "items": facts.items, "listing": facts.listing, "fingerprint": facts.fingerprint })
}

/// Metrics, with their names in messages and their document entries.
#[derive(Debug)]
pub struct Metrics {
    metrics: Vec<Box<dyn Metric>>,
    names: Vec<String>,
    /// Document entries.
    pub entries: Vec<Value>,
}

impl Metrics {
    /// Takes the metrics of a pipeline.
    pub fn take(pipeline: &mut Pipeline) -> Self {
        let document: Value = serde_json::from_str(&pipeline.document).unwrap_or_default();
        let entries = document["metrics"].as_array().cloned().unwrap_or_default();
        let names = measuring::names(pipeline);
        Self { metrics: std::mem::take(&mut pipeline.metrics), names, entries }
    }

    /// Parses and checks metrics that are given by their entries.
    ///
    /// # Errors
    /// All problems of their names, fields and ranges.
    pub fn parse(entries: &[Value]) -> Result<Self> {
        let (registry, mut problems) = (Registry::linked(), Problems::new());
        let mut found = Self { metrics: Vec::new(), names: Vec::new(), entries: Vec::new() };
        for (i, entry) in entries.iter().enumerate() {
            let at = format!("--metric {i}");
            let parsed = registry.part::<Box<dyn MetricPlugin>>(Kind::Metric, entry.clone()).and_then(|metric| {
                let problems = metric.check();
                if problems.is_empty() { Ok(metric) } else { Err(problems) }
            });
            match parsed {
                Ok(metric) => {
                    found.names.push(measuring::name(metric.typetag_name()));
                    // The entry with its defaults, so that two spellings of one metric are one request.
                    found.entries.push(serde_json::to_value(&metric).unwrap_or_else(|_| entry.clone()));
                    found.metrics.push(metric);
                }
                Err(more) => problems.extend(more.into_iter().map(|problem| problem.under(&at))),
            }
        }
        if problems.is_empty() { Ok(found) } else { Err(Error::Input(problems)) }
    }

    /// Loads the weights of the metrics' features.
    ///
    /// # Errors
    /// If a file is missing or does not fit.
    pub fn load(&mut self, device: &Device) -> Result<()> {
        let mut spaces = Spaces::new(device);
        self.metrics.iter_mut().try_for_each(|metric| metric.load(&mut spaces))
    }

    /// Pairs the metrics with their names.
    pub fn named(&self) -> Vec<Named<'_>> {
        self.names.iter().zip(&self.metrics).map(|(name, metric)| Named { name, metric: &**metric }).collect()
    }

    /// Returns whether there are no metrics.
    pub fn is_empty(&self) -> bool {
        self.metrics.is_empty()
    }
}

/// Returns the document entry of a metric that an option gives as JSON or by name.
///
/// # Errors
/// If the text starts like JSON and is not.
pub fn metric_entry(text: &str) -> Result<Value> {
    if !text.trim_start().starts_with('{') {
        return Ok(json!({ "type": text }));
    }
    serde_json::from_str(text).map_err(|error| {
        Problem::new("--metric", format!("{text} is not JSON: {error}"))
            .accepts("a name, such as frechet, or an entry, such as {\"type\": \"frechet\"}")
            .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_a_name_or_an_entry() {
        assert_eq!(metric_entry("frechet").unwrap(), json!({ "type": "frechet" }));
        assert_eq!(metric_entry("{\"type\": \"a\", \"b\": 1}").unwrap(), json!({ "type": "a", "b": 1 }));
        assert_eq!(metric_entry("{\"type\": ").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn paths_are_recognized_by_their_content() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["run/checkpoints", "images", "latents"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        fs::write(at("latents/000000.safetensors"), "").unwrap();
        fs::write(at("file.txt"), "text").unwrap();
        assert_eq!(Subject::of(&at("run")).unwrap(), Subject::Network(at("run")));
        assert_eq!(Subject::of(&at("images")).unwrap(), Subject::Images(at("images")));
        assert_eq!(Subject::of(&at("latents")).unwrap(), Subject::Latents(at("latents")));
        for name in ["absent", "file.txt"] {
            assert_eq!(Subject::of(&at(name)).unwrap_err().exit_code(), 2, "{name}");
        }
    }
}
