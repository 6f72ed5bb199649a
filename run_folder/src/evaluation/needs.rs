//! Needs of metrics, compared with the samples and the real images that they get, before anything is sampled.

use crate::evaluation::measuring::Named;
use framework::data::dataset::DatasetInfo;
use framework::data::tokenizer::ImageShape;
use framework::error::{Problem, Problems};

/// The samples and the real images of a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// Shape of the samples.
    pub image: ImageShape,
    /// Number of samples, with the option or the JSON pointer that sets it.
    pub samples: (usize, &'a str),
    /// Whether the samples have classes, and whether they have captions.
    pub labels: (bool, bool),
    /// Number of real images; `None` if saved statistics replace them.
    pub real: Option<usize>,
}

impl<'a> Given<'a> {
    /// Describes a measurement whose samples have the labels of a dataset.
    pub fn with_labels_of(info: &DatasetInfo, image: ImageShape, samples: (usize, &'a str), real: usize) -> Self {
        Self { image, samples, labels: (info.num_classes.is_some(), info.captions), real: Some(real) }
    }
}

/// Returns the needs of metrics that are not met. `at` starts the pointers: metric 0 is at `at/0`.
pub fn unmet(metrics: &[Named<'_>], given: &Given<'_>, at: &str) -> Problems {
    let mut problems = Problems::new();
    for (i, Named { name, metric }) in metrics.iter().enumerate() {
        let at = format!("{at}/{i}");
        let has = |needed: bool, has: bool, what: &str| {
            (needed && !has).then(|| {
                Problem::new(&at, format!("{name} needs {what}; the samples have none"))
                    .accepts(format!("samples with {what}, or a metric that needs none"))
            })
        };
        problems.extend(has(metric.needs_classes(), given.labels.0, "classes"));
        problems.extend(has(metric.needs_captions(), given.labels.1, "captions"));
        problems.extend(metric.check_image(given.image).into_iter().map(|problem| problem.under(&at)));
        let least = metric.least_samples(given.image);
        let (samples, option) = given.samples;
        if samples < least {
            let problem = Problem::new(&at, format!("{name} needs at least {least} samples; there are {samples}"));
            problems.push(problem.and_at(option).accepts(format!("at least {least} samples")));
        }
        // Metrics need as many real images as samples: both are fitted in the same space.
        if let Some(real) = given.real.filter(|real| *real < least) {
            let problem = Problem::new(&at, format!("{name} needs at least {least} real images; there are {real}"));
            problems.push(problem.accepts(format!("at least {least} real images, or a metric that needs fewer")));
        }
    }
    problems
}
