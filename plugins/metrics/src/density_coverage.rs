//! Density and coverage: precision and recall that single outliers change little.
//!
//!   density  = mean over samples of the number of balls around real images that contain it, over k
//!   coverage = share of real images whose ball contains a sample
//!
//! The radius of a ball is the distance from a real image to its k-th nearest other real image. A ball does not contain
//! its surface.
//! Source: arXiv:2002.09797, eq. 3 and 4.

use crate::in_space::{self, Kept, KeptReference, Loaded};
use crate::manifold::{coverage, squared_radii};
use crate::neighbours::too_few;
use crate::resample::mean_with_interval;
use framework::data::tokenizer::ImageShape;
use framework::error::{Problems, Result};
use framework::evaluation::images::Images;
use framework::evaluation::metric::{Accumulator, Measurement, Metric, Reference};
use framework::evaluation::space::Spaces;
use framework::evaluation::statistics::Statistics;
use framework::plugin::FeaturesPlugin;
use framework::prelude::*;
use std::sync::Arc;

/// Density, 0 or more, near 1 for samples like real images; and coverage, in [0, 1], higher is better. The time grows with
/// the product of the numbers of images.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DensityCoverage {
    /// Feature space in which images are compared.
    pub features: Box<dyn FeaturesPlugin>,
    /// The radius of a ball is the distance to the nearest neighbour of this rank, at least 1 and less than the number
    /// of images.
    #[schemars(range(min = 1))]
    pub neighbours: usize,
    /// Number of resampled means from which the 95 % bootstrap intervals are computed; 0 = no intervals. The intervals
    /// cover the choice of the counted images, not that of the images around which the balls are.
    pub resamples: usize,
    #[serde(skip)]
    space: Loaded,
}

impl Default for DensityCoverage {
    fn default() -> Self {
        Self { features: in_space::pixels(), neighbours: 5, resamples: 200, space: Loaded::default() }
    }
}

framework::register!(metric "density_coverage" => DensityCoverage, "arXiv:2002.09797");

impl Metric for DensityCoverage {
    fn check(&self) -> Problems {
        let mut problems = in_space::check(&*self.features);
        if self.neighbours == 0 {
            problems.push(Problem::new("/neighbours", "`neighbours` is 0").accepts("1 or more"));
        }
        problems
    }

    fn check_image(&self, image: ImageShape) -> Problems {
        in_space::check_image(&*self.features, image)
    }

    fn least_samples(&self, _: ImageShape) -> usize {
        1
    }

    fn load(&mut self, spaces: &mut Spaces) -> Result<()> {
        self.space.load(&*self.features, spaces)
    }

    fn statistics(&self) -> Option<String> {
        Some(in_space::kept_statistics(&*self.features))
    }

    fn reference(&self) -> Box<dyn Reference> {
        Box::new(KeptReference::new("density_coverage", &*self.features, &self.space))
    }

    fn start(&self, reference: Arc<Statistics>) -> Result<Box<dyn Accumulator>> {
        reference.expect(&in_space::kept_statistics(&*self.features))?;
        Ok(Box::new(Samples { metric: self.clone(), reference, kept: Kept::default() }))
    }
}

/// The samples so far.
struct Samples {
    metric: DensityCoverage,
    reference: Arc<Statistics>,
    kept: Kept,
}

impl Accumulator for Samples {
    fn update(&mut self, images: &Images) -> Result<()> {
        let features = self.metric.space.of("density_coverage", "sample", images, self.kept.len())?;
        self.kept.push(features.vectors);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Vec<Measurement>> {
        let (samples, real) = (self.kept.rows(), in_space::kept_rows(&self.reference)?);
        in_space::same_width("density_coverage", &samples, &real)?;
        let k = self.metric.neighbours;
        for (name, count, least) in [("sample", samples.len(), 1), ("real image", real.len(), k + 1)] {
            if count < least {
                return Err(too_few("density_coverage", name, least, count));
            }
        }
        let found = coverage((&samples, &[]), (&real, &squared_radii(&real, k)), false);
        let (space, resamples) = (self.metric.features.space(), self.metric.resamples);
        let density: Vec<f64> = found.balls.iter().map(|balls| *balls as f64 / k as f64).collect();
        let covered: Vec<f64> = found.covered.into_iter().map(|covered| f64::from(u8::from(covered))).collect();
        let meaning = format!("mean number of real images around a sample, relative to {k}, near 1 is best");
        let mut all = mean_with_interval(&format!("density_{space}"), &density, &meaning, resamples);
        let meaning = "share of real images with a sample nearby, higher is better";
        all.extend(mean_with_interval(&format!("coverage_{space}"), &covered, meaning, resamples));
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(values: Vec<f32>) -> Images {
        Images { values, ..Images::none([1, 1, 1]) }
    }

    fn metric(neighbours: usize) -> DensityCoverage {
        let mut metric = DensityCoverage { neighbours, resamples: 0, ..DensityCoverage::default() };
        metric.load(&mut Spaces::new(&Device::flex())).unwrap();
        metric
    }

    #[test]
    fn shares_by_hand() {
        // Real 0, 1, 5 with k = 1 have radii 1, 1, 4. The sample 0.5 is in two balls, 20 in none.
        let measured = metric(1).measure(&images(vec![0.5, 20.0]), &images(vec![0.0, 1.0, 5.0])).unwrap();
        let values: Vec<_> = measured.iter().map(|m| (m.name.as_str(), m.value)).collect();
        assert_eq!(values, [("density_pixels", 1.0), ("coverage_pixels", 2.0 / 3.0)]);
    }

    #[test]
    fn errors_say_what_is_needed() {
        let message = metric(5).measure(&images(vec![0.0]), &images(vec![0.0; 5])).unwrap_err().to_string();
        assert_eq!(message, "metric \"density_coverage\" needs at least 6 real image(s) and got 5");
        assert_eq!(metric(0).check().len(), 1);
    }
}
