//! Improved precision and recall: the share of samples that look real, and the share of real images that samples reach.
//!
//!   precision = share of samples in a ball around a real image
//!   recall    = share of real images in a ball around a sample
//!
//! The radius of a ball is the distance to the k-th nearest neighbour of its centre in the same set. A ball contains its
//! surface.
//! Source: arXiv:1904.06991, eq. 1 and 2.

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

/// Share of samples among real images (precision), and share of real images among samples (recall), in [0, 1]; higher is
/// better. The time grows with the product of the numbers of images.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PrecisionRecall {
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

impl Default for PrecisionRecall {
    fn default() -> Self {
        Self { features: in_space::pixels(), neighbours: 3, resamples: 200, space: Loaded::default() }
    }
}

framework::register!(metric "precision_recall" => PrecisionRecall, "arXiv:1904.06991");

impl Metric for PrecisionRecall {
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
        self.neighbours + 1
    }

    fn load(&mut self, spaces: &mut Spaces) -> Result<()> {
        self.space.load(&*self.features, spaces)
    }

    fn statistics(&self) -> Option<String> {
        Some(in_space::kept_statistics(&*self.features))
    }

    fn reference(&self) -> Box<dyn Reference> {
        Box::new(KeptReference::new("precision_recall", &*self.features, &self.space))
    }

    fn start(&self, reference: Arc<Statistics>) -> Result<Box<dyn Accumulator>> {
        reference.expect(&in_space::kept_statistics(&*self.features))?;
        Ok(Box::new(Samples { metric: self.clone(), reference, kept: Kept::default() }))
    }
}

/// The samples so far.
struct Samples {
    metric: PrecisionRecall,
    reference: Arc<Statistics>,
    kept: Kept,
}

impl Accumulator for Samples {
    fn update(&mut self, images: &Images) -> Result<()> {
        let features = self.metric.space.of("precision_recall", "sample", images, self.kept.len())?;
        self.kept.push(features.vectors);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Vec<Measurement>> {
        let (samples, real) = (self.kept.rows(), in_space::kept_rows(&self.reference)?);
        in_space::same_width("precision_recall", &samples, &real)?;
        let k = self.metric.neighbours;
        for (name, count) in [("sample", samples.len()), ("real image", real.len())] {
            if count <= k {
                return Err(too_few("precision_recall", name, k + 1, count));
            }
        }
        let (of_samples, of_real) = (squared_radii(&samples, k), squared_radii(&real, k));
        let found = coverage((&samples, &of_samples), (&real, &of_real), true);
        let space = self.metric.features.space();
        let share = |name: &str, inside: Vec<bool>, what: &str| {
            let values: Vec<f64> = inside.into_iter().map(|inside| f64::from(u8::from(inside))).collect();
            let meaning = format!("share of {what}, higher is better");
            mean_with_interval(&format!("{name}_{space}"), &values, &meaning, self.metric.resamples)
        };
        let precise = found.balls.iter().map(|balls| *balls > 0).collect();
        let mut all = share("precision", precise, "samples among real images");
        all.extend(share("recall", found.recalled, "real images among samples"));
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(values: Vec<f32>) -> Images {
        Images { values, ..Images::none([1, 1, 1]) }
    }

    fn metric(neighbours: usize) -> PrecisionRecall {
        let mut metric = PrecisionRecall { neighbours, resamples: 0, ..PrecisionRecall::default() };
        metric.load(&mut Spaces::new(&Device::flex())).unwrap();
        metric
    }

    #[test]
    fn shares_by_hand() {
        // Real 0, 1, 5 have radii 1, 1, 4; samples 0.5, 20, 20.25 have radii 19.5, 0.25, 0.25.
        let measured = metric(1).measure(&images(vec![0.5, 20.0, 20.25]), &images(vec![0.0, 1.0, 5.0])).unwrap();
        let values: Vec<_> = measured.iter().map(|m| (m.name.as_str(), m.value)).collect();
        assert_eq!(values, [("precision_pixels", 1.0 / 3.0), ("recall_pixels", 1.0)]);
    }

    #[test]
    fn intervals_surround_the_shares() {
        let metric = PrecisionRecall { resamples: 100, ..metric(1) };
        let measured = metric.measure(&images(vec![0.5, 0.7, 20.0, 20.25]), &images(vec![0.0, 1.0, 5.0])).unwrap();
        assert_eq!(measured.len(), 6);
        assert!(measured[1].value < measured[0].value && measured[0].value < measured[2].value, "{measured:?}");
    }

    #[test]
    fn errors_say_what_is_needed() {
        let message = metric(3).measure(&images(vec![0.0; 3]), &images(vec![0.0; 9])).unwrap_err().to_string();
        assert_eq!(message, "metric \"precision_recall\" needs at least 4 sample(s) and got 3");
        assert_eq!(metric(0).check().len(), 1);
    }
}
