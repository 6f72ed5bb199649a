//! The checks that need the open data: what the metrics need of them. The other pairs are compared when the data are
//! opened.

use crate::evaluation::measuring;
use crate::evaluation::needs::{Given, unmet};
use framework::data::dataset::Dataset;
use framework::error::{Error, Result};
use framework::pipeline::{MOST_VALUES, Pipeline};

/// Checks the metrics of a pipeline against its open dataset.
///
/// # Errors
/// If a metric needs classes, captions, more samples or more real images.
pub fn check(pipeline: &Pipeline, dataset: &dyn Dataset) -> Result<()> {
    let (names, info) = (measuring::names(pipeline), dataset.info());
    let samples = pipeline.train.samples_to_measure(info.num_classes);
    let real = dataset.len().min(MOST_VALUES / pipeline.image_shape().iter().product::<usize>());
    let given = Given::with_labels_of(&info, pipeline.image_shape(), (samples, "/train/metric_samples"), real);
    let problems = unmet(&measuring::named(pipeline, &names), &given, "/metrics");
    if problems.is_empty() { Ok(()) } else { Err(Error::Input(problems)) }
}
