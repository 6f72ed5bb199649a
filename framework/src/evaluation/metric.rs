//! Metrics on samples: their trait, their input and their results.

use crate::data::tokenizer::ImageShape;
use crate::error::{Problems, Result};
use crate::evaluation::images::Images;
use crate::evaluation::space::Spaces;
use crate::evaluation::statistics::Statistics;
use std::fmt::Debug;
use std::sync::Arc;

/// One value of a report.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// Name in lower snake case.
    pub name: String,
    /// Measured value.
    pub value: f64,
    /// Unit and meaning in one phrase, e.g. "share of samples, higher is better".
    pub meaning: String,
}

/// A metric. The document entry itself implements this trait.
pub trait Metric: Debug + Send + Sync {
    /// Returns the problems within this entry. Pointers are relative to the entry.
    fn check(&self) -> Problems {
        Problems::new()
    }

    /// Returns whether the metric needs the class of each sample.
    fn needs_classes(&self) -> bool {
        false
    }

    /// Returns whether the metric needs the caption of each sample.
    fn needs_captions(&self) -> bool {
        false
    }

    /// Returns the incompatibilities with samples of this shape. Pointers are relative to the entry.
    fn check_image(&self, image: ImageShape) -> Problems {
        let _ = image;
        Problems::new()
    }

    /// Returns the smallest number of samples of this shape that the metric can measure.
    fn least_samples(&self, image: ImageShape) -> usize {
        let _ = image;
        1
    }

    /// Loads the metric's features, once, before it measures. [`Spaces`] shares them with other metrics.
    ///
    /// # Errors
    /// If a file is missing or does not fit.
    fn load(&mut self, spaces: &mut Spaces) -> Result<()> {
        let _ = spaces;
        Ok(())
    }

    /// Returns the name of the statistics that [`Metric::reference`] computes. Metrics with the same name share one
    /// copy. `None` = not shared.
    fn statistics(&self) -> Option<String> {
        None
    }

    /// Returns which tensors of the statistics the published `.npz` files of statistics contain: our name, their name.
    fn published(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    /// Starts to accumulate the real images that samples are compared with.
    fn reference(&self) -> Box<dyn Reference>;

    /// Starts to accumulate samples, which are compared with the statistics of the real images.
    ///
    /// # Errors
    /// If the statistics are of another metric or another setting.
    fn start(&self, reference: Arc<Statistics>) -> Result<Box<dyn Accumulator>>;

    /// Measures one batch of samples against one batch of real images.
    ///
    /// # Errors
    /// If there are too few samples or classes, or a caption cannot be parsed.
    fn measure(&self, samples: &Images, real: &Images) -> Result<Vec<Measurement>> {
        let mut reference = self.reference();
        reference.update(real)?;
        let mut accumulator = self.start(Arc::new(reference.finish()?))?;
        accumulator.update(samples)?;
        accumulator.finish()
    }
}

/// Accumulates real images, batch by batch.
pub trait Reference: Send {
    /// Adds a batch.
    ///
    /// # Errors
    /// If an image does not fit the metric.
    fn update(&mut self, images: &Images) -> Result<()>;

    /// Returns the statistics of all batches.
    ///
    /// # Errors
    /// If there are too few images.
    fn finish(self: Box<Self>) -> Result<Statistics>;
}

/// Accumulates samples, batch by batch.
pub trait Accumulator: Send {
    /// Adds a batch.
    ///
    /// # Errors
    /// If a sample does not fit the metric.
    fn update(&mut self, images: &Images) -> Result<()>;

    /// Returns the measurements of all batches.
    ///
    /// # Errors
    /// If there are too few samples.
    fn finish(self: Box<Self>) -> Result<Vec<Measurement>>;
}
