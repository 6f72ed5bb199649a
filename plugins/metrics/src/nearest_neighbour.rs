//! Memorisation: compares the distance from samples to training images with the distance between training
//! images.
//!
//!   d(x)  = min_r |x - r| / sqrt(width)                        over the real images r
//!   D     = mean over real r of its distance to the nearest other real image
//!   ratio = mean over samples of d(x) / D                      near 1: new images; near 0: copies
//!   near copies = share of samples with d(x) / D < copy_threshold
//!
//! Source: arXiv:2004.05675, whose nearest-neighbour test of memorisation is reduced to means here.

use crate::neighbours::{Neighbour, comparable, nearest, nearest_others};
use framework::error::{Error, Problems, Result};
use framework::evaluation::collected::{CollectedReference, CollectedSamples};
use framework::evaluation::images::Images;
use framework::evaluation::metric::{Accumulator, Measurement, Metric, Reference};
use framework::evaluation::statistics::Statistics;
use framework::prelude::*;
use std::sync::Arc;

/// Distance of samples to the nearest training image, relative to the distance between training images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NearestNeighbour {
    /// A sample with a distance ratio below this value counts as a near copy; in [0, 1], unitless.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub copy_threshold: f64,
}

impl Default for NearestNeighbour {
    fn default() -> Self {
        Self { copy_threshold: 0.2 }
    }
}

framework::register!(metric "nearest_neighbour" => NearestNeighbour, "arXiv:2004.05675");

impl Metric for NearestNeighbour {
    fn check(&self) -> Problems {
        if (0.0..=1.0).contains(&self.copy_threshold) {
            return Problems::new();
        }
        let what = format!("`copy_threshold` is {}", self.copy_threshold);
        vec![Problem::new("/copy_threshold", what).accepts("a number in [0, 1]")]
    }

    fn reference(&self) -> Box<dyn Reference> {
        Box::new(CollectedReference::new("nearest_neighbour"))
    }

    fn start(&self, reference: Arc<Statistics>) -> Result<Box<dyn Accumulator>> {
        reference.expect("nearest_neighbour")?;
        let metric = self.clone();
        let compare = move |samples: &Images, real: &Images| metric.compare(samples, real);
        Ok(Box::new(CollectedSamples::new(reference.images()?, compare)))
    }
}

impl NearestNeighbour {
    fn compare(&self, samples: &Images, real: &Images) -> Result<Vec<Measurement>> {
        comparable("nearest_neighbour", samples, real, 1, 2)?;
        let distances = first(&nearest(samples, real, 1));
        let reference = mean(&first(&nearest_others(real, 1)));
        if reference == 0.0 {
            let what = "every real image has an exact duplicate, so there is no distance to compare with";
            return Err(Error::Run(format!("metric \"nearest_neighbour\": {what}")));
        }

        let copies = distances.iter().filter(|distance| **distance / reference < self.copy_threshold).count();
        let measurement = |name: &str, value, meaning: String| Measurement { name: name.into(), value, meaning };
        Ok(vec![
            measurement(
                "nearest_neighbour_ratio",
                mean(&distances) / reference,
                "distance to the nearest training image, relative to the distance between training images; near 1: new \
                 images, near 0: copies"
                    .into(),
            ),
            measurement(
                "nearest_neighbour_distance",
                mean(&distances),
                "root mean square distance per value to the nearest training image, in units of the data".into(),
            ),
            measurement(
                "near_copies",
                copies as f64 / distances.len() as f64,
                format!("share of samples with a ratio below {}, lower is better", self.copy_threshold),
            ),
        ])
    }
}

fn first(near: &[Vec<Neighbour>]) -> Vec<f64> {
    near.iter().map(|near| near[0].distance).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use framework::random::Random;

    fn images(values: Vec<f32>, width: usize) -> Images {
        Images { values, ..Images::none([1, 1, width]) }
    }

    fn values(copy_threshold: f64, samples: &Images, real: &Images) -> Vec<f64> {
        let measurements = NearestNeighbour { copy_threshold }.measure(samples, real).unwrap();
        measurements.iter().map(|m| m.value).collect()
    }

    #[test]
    fn ratio_by_hand() {
        // The nearest other images of 0, 1, 4 are 1, 1, 3 away, so D = 5/3. The samples are 0.1 and 1.5 away.
        let real = images(vec![0.0, 1.0, 4.0], 1);
        let samples = images(vec![-0.1, 2.5], 1);
        let got = values(0.2, &samples, &real);
        for (got, expected) in got.iter().zip([0.8 / (5.0 / 3.0), 0.8, 0.5]) {
            assert!((got - expected).abs() < 1e-7, "{got} {expected}");
        }
    }

    #[test]
    fn copies_have_ratio_zero_and_fresh_images_about_one() {
        let normal = |seed, n: usize| images(Random::new(seed).normal("image", 0, 0, n * 64), 64);
        let real = normal(1, 300);
        let copies = images(real.values[..64 * 20].to_vec(), 64);
        assert_eq!(values(0.2, &copies, &real), [0.0, 0.0, 1.0]);
        let fresh = values(0.2, &normal(2, 300), &real);
        assert!((fresh[0] - 1.0).abs() < 0.03, "{fresh:?}");
        assert_eq!(fresh[2], 0.0);
    }

    #[test]
    fn distance_does_not_grow_with_the_size_of_the_image() {
        let wide = |value: f32| vec![value; 50];
        let real = images([wide(0.0), wide(1.0)].concat(), 50);
        let got = values(0.2, &images(wide(0.25), 50), &real);
        assert!((got[1] - 0.25).abs() < 1e-6, "{got:?}");
    }

    #[test]
    fn errors_say_what_is_needed() {
        let message =
            |samples, real| NearestNeighbour { copy_threshold: 0.2 }.measure(&samples, &real).unwrap_err().to_string();
        let one = || images(vec![0.0], 1);
        assert_eq!(message(one(), one()), "metric \"nearest_neighbour\" needs at least 2 real image(s) and got 1");
        assert!(message(one(), images(vec![0.0, 0.0], 1)).contains("every real image has an exact duplicate"));
        assert_eq!(NearestNeighbour { copy_threshold: 1.5 }.check().len(), 1);
        assert!(serde_json::from_str::<NearestNeighbour>("{}").unwrap().check().is_empty());
    }
}
