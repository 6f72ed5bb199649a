//! The checks that need the open data: what a metric needs of them. The other pairs are compared when the data are
//! opened.

use framework::data::dataset::DatasetInfo;
use framework::error::{Error, Problem, Problems, Result};
use framework::pipeline::Pipeline;

/// Checks the metrics of a pipeline against its open dataset.
///
/// # Errors
/// If a metric needs classes, captions or more samples.
pub fn check(pipeline: &Pipeline, info: &DatasetInfo) -> Result<()> {
    let count = pipeline.train.samples_to_measure(info.num_classes);
    let values = pipeline.image_shape().iter().product();
    let mut problems = Problems::new();
    for (i, metric) in pipeline.metrics.iter().enumerate() {
        let at = || format!("/metrics/{i}");
        if metric.needs_classes() && info.num_classes.is_none() {
            let problem = Problem::new(at(), "the metric needs classes; the opened data have none").and_at("/data");
            problems.push(problem.accepts("data with classes, or a metric that needs none"));
        }
        if metric.needs_captions() && !info.captions {
            let problem = Problem::new(at(), "the metric needs captions; the opened data have none").and_at("/data");
            problems.push(problem.accepts("data with captions, or a metric that needs none"));
        }
        let least = metric.least_samples(values);
        if count < least {
            let what = format!("the metric needs at least {least} samples; the run generates {count}");
            problems.push(Problem::new(at(), what).fix(format!("set /train/metric_samples to {least}")));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::Input(problems)) }
}
