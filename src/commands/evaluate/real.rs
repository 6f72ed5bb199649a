//! The real images of an evaluation: a dataset, or saved statistics.

use crate::console::Console;
use crate::outputs;
use framework::burn::tensor::Device;
use framework::data::checked::Checked;
use framework::data::dataset::{Dataset, ItemKind};
use framework::data::loader::spread;
use framework::data::tokenizer::ImageShape;
use framework::error::{Error, Problem, Result};
use framework::evaluation::statistics::Statistics;
use framework::pipeline::Pipeline;
use run_folder::evaluation::evaluate::{REFERENCE, RealStatistics};
use run_folder::evaluation::inputs::{self, Against};
use run_folder::evaluation::measuring::Named;
use run_folder::evaluation::source::{ImageSource, Items};
use run_folder::evaluation::store::sha256;
use run_folder::watcher::Stage;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Real images.
pub enum Real {
    /// A dataset, with the pipeline that decodes its latents.
    Dataset(Checked, Option<Box<Pipeline>>),
    /// Saved statistics with their files.
    Statistics(Vec<(PathBuf, Arc<Statistics>)>),
}

impl Real {
    /// Opens the real images that `against` names. `shape` is the shape of the samples.
    ///
    /// # Errors
    /// If the dataset cannot be opened, or its images have another shape.
    pub fn open(against: Against, shape: ImageShape, device: &Device) -> Result<Self> {
        let real = match against {
            Against::Document(mut pipeline) => {
                let dataset = pipeline.open()?;
                match dataset.info().items {
                    ItemKind::Images(_) => Self::Dataset(dataset, None),
                    ItemKind::Latents { .. } | ItemKind::Tokens(_) => {
                        pipeline.load(device)?;
                        Self::Dataset(dataset, Some(pipeline))
                    }
                }
            }
            Against::Images(folder) => Self::Dataset(inputs::image_folder(&folder, Some(shape), "--against")?, None),
            Against::Statistics(files) => Self::Statistics(files),
        };
        if let Self::Dataset(dataset, decoder) = &real {
            let indices = Vec::new();
            let found = Items::new(dataset, indices, decoder.as_deref(), device, Stage::Reference)?.shape();
            if found != shape {
                let text = |[channels, height, width]: ImageShape| format!("{channels} x {height} x {width}");
                let what = format!("the real images have shape {}, the samples {}", text(found), text(shape));
                return Err(Problem::new("--against", what).accepts("images of one shape on both sides").into());
            }
        }
        Ok(real)
    }

    /// Returns the number of real images, if they are not replaced by statistics.
    pub fn count(&self) -> Option<usize> {
        match self {
            Self::Dataset(dataset, _) => Some(dataset.len()),
            Self::Statistics(_) => None,
        }
    }

    /// Returns what identifies the content.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn identity(&self) -> Result<Value> {
        match self {
            Self::Dataset(dataset, decoder) => {
                let mut identity = inputs::identity(dataset);
                if let Some(pipeline) = decoder {
                    identity["tokenizer"] = tokenizer(pipeline);
                }
                Ok(identity)
            }
            Self::Statistics(files) => {
                let hash = |(path, _): &(PathBuf, Arc<Statistics>)| {
                    fs::read(path).map(|bytes| sha256(&bytes)).map_err(|e| Error::io(path, e))
                };
                Ok(json!(files.iter().map(hash).collect::<Result<Vec<_>>>()?))
            }
        }
    }

    /// Returns the statistics for each metric. Those of a dataset are stored in the folder of the evaluation, so that a
    /// resumed evaluation does not compute them again.
    ///
    /// # Errors
    /// If the images cannot be read, or no saved statistics belong to a metric.
    pub fn statistics(
        &self,
        metrics: &[Named<'_>],
        folder: &Path,
        device: &Device,
        console: &mut Console,
    ) -> Result<RealStatistics> {
        match self {
            Self::Dataset(dataset, decoder) => {
                let all = spread(dataset.len(), dataset.len());
                let mut items = Items::new(dataset, all, decoder.as_deref(), device, Stage::Reference)?;
                RealStatistics::of(metrics, &mut items, &folder.join(REFERENCE), console)
            }
            Self::Statistics(files) => self.saved(metrics, files),
        }
    }

    /// Checks that saved statistics serve every metric.
    ///
    /// # Errors
    /// If no file belongs to a metric.
    pub fn check(&self, metrics: &[Named<'_>]) -> Result<()> {
        match self {
            Self::Dataset(..) => Ok(()),
            Self::Statistics(files) => self.saved(metrics, files).map(drop),
        }
    }

    fn saved(&self, metrics: &[Named<'_>], files: &[(PathBuf, Arc<Statistics>)]) -> Result<RealStatistics> {
        let all: Vec<Arc<Statistics>> = files.iter().map(|(_, statistics)| statistics.clone()).collect();
        RealStatistics::among(metrics, &all).map_err(|missing| {
            let found: Vec<&str> = all.iter().map(|statistics| statistics.metric.as_str()).collect();
            let what = format!("there are no statistics for {}", missing.join(", "));
            Problem::new("--against", what)
                .accepts(format!("metrics with the settings of the saved statistics: {}", found.join(", ")))
                .fix("save them with --save-statistics from an evaluation with the same metrics")
                .into()
        })
    }
}

/// Returns the entry of a pipeline's tokenizer.
pub fn tokenizer(pipeline: &Pipeline) -> Value {
    let document: Value = serde_json::from_str(&pipeline.document).unwrap_or_default();
    document["tokenizer"].clone()
}

/// Saves statistics in the folder that `--save-statistics` names.
///
/// # Errors
/// If the folder contains files, or cannot be written.
pub fn save(statistics: &RealStatistics, folder: Option<&PathBuf>) -> Result<()> {
    let Some(folder) = folder else { return Ok(()) };
    outputs::empty_folder("--save-statistics", folder)?;
    statistics.save(folder)
}

/// Refuses an option that has no effect on what is evaluated.
pub fn no_effect(option: &str, why: &str) -> Error {
    Problem::new(option, format!("{option} has no effect: {why}")).fix(format!("omit {option}")).into()
}
