//! Metrics on samples.

use crate::error::{Problems, Result};
use std::fmt::Debug;

/// Images as rows of numbers: `[count, features]`, with a class each where there are classes.
#[derive(Clone, Debug)]
pub struct Images {
    /// Row-major numbers, `count x width`.
    pub values: Vec<f32>,
    /// Numbers of one image.
    pub width: usize,
    /// The class of each image; empty where there are none.
    pub classes: Vec<usize>,
}

impl Images {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.values.len() / self.width
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The numbers of image `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.width..(i + 1) * self.width]
    }
}

/// One number of a report.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// Name, lower snake case.
    pub name: String,
    /// Value.
    pub value: f64,
    /// Unit and meaning, one phrase: "share of samples, higher is better".
    pub meaning: String,
}

/// A metric. The document entry is the metric.
pub trait Metric: Debug + Send + Sync {
    /// Problems within this entry; pointers are relative to it.
    fn check(&self) -> Problems {
        Problems::new()
    }

    /// Whether it needs the class of each sample.
    fn needs_classes(&self) -> bool;

    /// Fewest samples of `width` numbers each that it can measure.
    fn least_samples(&self, width: usize) -> usize {
        let _ = width;
        1
    }

    /// Measures `samples` against `real`, the training images.
    ///
    /// # Errors
    /// If there are too few samples for it, or too few classes.
    fn measure(&self, samples: &Images, real: &Images) -> Result<Vec<Measurement>>;
}
