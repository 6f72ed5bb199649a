//! Metrics that compare image by image: they keep all images.

use crate::error::Result;
use crate::evaluation::images::Images;
use crate::evaluation::metric::{Accumulator, Measurement, Reference};
use crate::evaluation::statistics::Statistics;

/// Real images, all of them kept.
pub struct CollectedReference {
    metric: &'static str,
    images: Option<Images>,
}

impl CollectedReference {
    /// Starts empty, for the metric of that name.
    pub fn new(metric: &'static str) -> Self {
        Self { metric, images: None }
    }
}

impl Reference for CollectedReference {
    fn update(&mut self, images: &Images) -> Result<()> {
        append(&mut self.images, images);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Statistics> {
        let images = self.images.unwrap_or_else(|| Images::none([1, 1, 1]));
        Ok(Statistics::of_images(self.metric, &images))
    }
}

/// The computation on all samples and all real images.
type Compare = Box<dyn FnOnce(&Images, &Images) -> Result<Vec<Measurement>> + Send>;

/// Samples, all of them kept until they are compared.
pub struct CollectedSamples {
    real: Images,
    samples: Option<Images>,
    compare: Compare,
}

impl CollectedSamples {
    /// Starts empty. `compare` receives all samples and all real images.
    pub fn new(
        real: Images,
        compare: impl FnOnce(&Images, &Images) -> Result<Vec<Measurement>> + Send + 'static,
    ) -> Self {
        Self { real, samples: None, compare: Box::new(compare) }
    }
}

impl Accumulator for CollectedSamples {
    fn update(&mut self, images: &Images) -> Result<()> {
        append(&mut self.samples, images);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Vec<Measurement>> {
        let samples = self.samples.unwrap_or_else(|| Images::none(self.real.shape));
        (self.compare)(&samples, &self.real)
    }
}

fn append(all: &mut Option<Images>, images: &Images) {
    let all = all.get_or_insert_with(|| Images::none(images.shape));
    all.values.extend(&images.values);
    all.classes.extend(&images.classes);
    all.captions.extend(images.captions.iter().cloned());
}
