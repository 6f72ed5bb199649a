//! One evaluation: reads the images of a source, measures them, and stores the results.

use crate::evaluation::measuring::{Accumulators, Failure, Named, References};
use crate::evaluation::source::{ImageSource, batches};
use crate::evaluation::store;
use crate::watcher::{Stage, Watcher};
use framework::error::{Error, Result};
use framework::evaluation::statistics::Statistics;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// One result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Name in lower snake case.
    pub name: String,
    /// Measured value; null if it is not a finite number.
    pub value: Option<f64>,
    /// Unit and meaning in one phrase.
    pub meaning: String,
}

/// The results of one evaluation, as `evaluation.json` stores them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Version of the file: 1.
    pub version: u32,
    /// What was measured, as the command named it.
    pub from: String,
    /// What it was compared with, as the command named it.
    pub against: String,
    /// Number of measured images.
    pub samples: usize,
    /// Number of real images.
    pub real_images: usize,
    /// Network evaluations per image; null for images that no network sampled.
    pub nfe: Option<usize>,
    /// Results.
    pub metrics: Vec<Measured>,
    /// Metrics that failed, with the reason.
    pub failed: Vec<Failed>,
    /// Everything that the results depend on.
    pub request: Value,
}

/// A metric that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Name in messages.
    pub name: String,
    /// Reason.
    pub what: String,
}

/// The time that the samples took. Two evaluations of the same samples differ in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// Duration of sampling per image, in seconds; null for images that no network sampled here.
    pub seconds_per_image: Option<f64>,
    /// Images sampled per second.
    pub images_per_second: Option<f64>,
}

impl Times {
    /// Divides a duration by a number of images.
    pub fn new(seconds: f64, images: usize) -> Self {
        let is_known = seconds > 0.0 && images > 0;
        Self {
            seconds_per_image: is_known.then(|| seconds / images as f64),
            images_per_second: is_known.then(|| images as f64 / seconds),
        }
    }
}

/// Statistics of the real images, one per metric.
#[derive(Clone, Debug)]
pub struct RealStatistics {
    /// Statistics in the order of the metrics.
    pub of_metrics: Vec<Arc<Statistics>>,
    /// Number of real images.
    pub count: usize,
}

impl RealStatistics {
    /// Computes the statistics of a source, or reads them if an interrupted evaluation stored them in `folder`.
    ///
    /// # Errors
    /// If the images cannot be read, or a metric cannot compute its statistics.
    pub fn of(
        metrics: &[Named<'_>],
        source: &mut dyn ImageSource,
        folder: &Path,
        watcher: &mut dyn Watcher,
    ) -> Result<Self> {
        let path = |i: usize| folder.join(format!("{i}.safetensors"));
        let kept: Option<Vec<Arc<Statistics>>> =
            (0..metrics.len()).map(|i| Statistics::load(&path(i)).ok().map(Arc::new)).collect();
        if let Some(of_metrics) = kept.filter(|kept| !kept.is_empty()) {
            return Ok(Self { count: of_metrics[0].count, of_metrics });
        }
        let mut references = References::new(metrics)?;
        let mut count = 0;
        for range in batches(source) {
            let images = source.read(range, watcher)?;
            count += images.len();
            references.update(&images)?;
        }
        watcher.finished(Stage::Reference);
        let of_metrics = references.finish()?.into_iter().map(|found| found.map_err(failure)).collect::<Result<_>>()?;
        let statistics = Self { of_metrics, count };
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        for (i, statistics) in statistics.of_metrics.iter().enumerate() {
            statistics.save(&path(i))?;
        }
        Ok(statistics)
    }

    /// Selects the statistics of each metric among those of saved files.
    ///
    /// # Errors
    /// If there are none for a metric.
    pub fn among(metrics: &[Named<'_>], saved: &[Arc<Statistics>]) -> Result<Self, Vec<String>> {
        let find = |m: &Named<'_>| {
            let found = saved.iter().find(|statistics| m.metric.start((*statistics).clone()).is_ok());
            found.cloned().ok_or_else(|| m.name.to_string())
        };
        let (mut of_metrics, mut missing) = (Vec::new(), Vec::new());
        for metric in metrics {
            match find(metric) {
                Ok(found) => of_metrics.push(found),
                Err(name) => missing.push(name),
            }
        }
        if !missing.is_empty() {
            return Err(missing);
        }
        Ok(Self { count: of_metrics.iter().map(|statistics| statistics.count).max().unwrap_or(0), of_metrics })
    }

    /// Saves the statistics in a folder, one file per metric with other statistics.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let mut saved: Vec<&Statistics> = Vec::new();
        for statistics in &self.of_metrics {
            if saved.contains(&&**statistics) {
                continue;
            }
            let same = saved.iter().filter(|other| other.metric == statistics.metric).count();
            let number = if same == 0 { String::new() } else { format!("-{}", same + 1) };
            statistics.save(&folder.join(format!("{}{number}.safetensors", statistics.metric)))?;
            saved.push(statistics);
        }
        Ok(())
    }
}

fn failure(failure: Failure) -> Error {
    let Failure { name, what } = failure;
    // Most metrics name themselves.
    let named = if what.contains(&name) { what } else { format!("{name}: {what}") };
    Error::Run(named)
}

/// Text that describes an evaluation in its results.
#[derive(Clone, Debug)]
pub struct Description {
    /// What is measured.
    pub from: String,
    /// What it is compared with.
    pub against: String,
    /// Everything that the results depend on.
    pub request: Value,
}

/// Measures the images of a source. The caller sets `nfe`.
///
/// # Errors
/// If the images cannot be read or sampled.
pub fn measure(
    description: &Description,
    metrics: &[Named<'_>],
    real: &RealStatistics,
    source: &mut dyn ImageSource,
    watcher: &mut dyn Watcher,
) -> Result<Evaluation> {
    let statistics = real.of_metrics.iter().cloned().map(Ok).collect();
    let mut accumulators = Accumulators::new(metrics, statistics)?;
    let mut count = 0;
    for range in batches(source) {
        let images = source.read(range, watcher)?;
        count += images.len();
        accumulators.update(&images)?;
    }
    watcher.finished(Stage::Sampling);
    watcher.finished(Stage::Measuring);
    let (measured, failed) = accumulators.finish()?;
    let Description { from, against, request } = description.clone();
    Ok(Evaluation {
        version: 1,
        from,
        against,
        samples: count,
        real_images: real.count,
        nfe: None,
        metrics: measured
            .into_iter()
            .map(|m| Measured { name: m.name, value: m.value.is_finite().then_some(m.value), meaning: m.meaning })
            .collect(),
        failed: failed.into_iter().map(|failure| Failed { name: failure.name, what: failure.what }).collect(),
        request,
    })
}

/// Returns the results that a folder already has, unless a metric failed.
///
/// # Errors
/// If a file cannot be read.
pub fn finished(folder: &Path) -> Result<Option<(Evaluation, Times)>> {
    let Some(evaluation) = store::load::<Evaluation>(&folder.join(EVALUATION))? else { return Ok(None) };
    let times = store::load(&folder.join(TIMES))?.unwrap_or_default();
    Ok(evaluation.failed.is_empty().then_some((evaluation, times)))
}

/// Stores the results. Removes the samples unless `keep` is set or a metric failed, so that the same command can measure
/// them again.
///
/// # Errors
/// If a file cannot be written or removed.
pub fn store(folder: &Path, evaluation: &Evaluation, times: &Times, keep: bool) -> Result<()> {
    store::save(&folder.join(TIMES), times)?;
    store::save(&folder.join(EVALUATION), evaluation)?;
    if evaluation.failed.is_empty() {
        store::remove(&folder.join(REFERENCE))?;
        if !keep {
            store::remove(&folder.join("samples"))?;
        }
    }
    Ok(())
}

/// Names of the files.
const EVALUATION: &str = "evaluation.json";
const TIMES: &str = "times.json";

/// Name of the folder with the statistics of the real images.
pub const REFERENCE: &str = "reference";

/// Returns the table that the command prints.
pub fn table(evaluation: &Evaluation, times: &Times) -> String {
    let mut text = format!("{} images against {} real images", evaluation.samples, evaluation.real_images);
    if let Some(nfe) = evaluation.nfe {
        let _ = write!(text, ", NFE {nfe}");
    }
    if let Some(speed) = times.images_per_second {
        let _ = write!(text, ", {speed:.1} images/s");
    }
    for Measured { name, value, meaning } in &evaluation.metrics {
        let value = value.map_or("not finite".to_string(), |value| format!("{value:.4}"));
        let _ = write!(text, "\n{name:<32} {value:>12}  {meaning}");
    }
    for Failed { name, what } in &evaluation.failed {
        let _ = write!(text, "\n{name} failed: {what}");
    }
    text
}
