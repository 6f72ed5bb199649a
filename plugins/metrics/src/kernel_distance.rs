//! Kernel distance: the unbiased squared maximum mean discrepancy with a cubic kernel. In Inception features: KID.
//!
//!   k(x, y) = (x . y / D + 1)^3
//!   d = sum_{i != j} k(x_i, x_j) / (m (m - 1)) + sum_{i != j} k(y_i, y_j) / (m (m - 1)) - 2 sum_ij k(x_i, y_j) / m^2
//!
//! It is the mean over random subsets of m samples x and m real images y.
//! Source: arXiv:1801.01401 sec. 4. The estimate is unbiased, so it can be compared between different numbers of
//! samples, and it can be slightly negative.

use crate::in_space::{self, Kept, KeptReference, Loaded};
use crate::neighbours::too_few;
use crate::resample::subset;
use faer::Mat;
use framework::data::tokenizer::ImageShape;
use framework::error::{Problems, Result};
use framework::evaluation::images::Images;
use framework::evaluation::metric::{Accumulator, Measurement, Metric, Reference};
use framework::evaluation::space::Spaces;
use framework::evaluation::statistics::Statistics;
use framework::plugin::FeaturesPlugin;
use framework::prelude::*;
use framework::random::Random;
use std::sync::Arc;

/// Kernel distance between samples and real images (KID), about 0 or more; lower is better. It needs few samples.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KernelDistance {
    /// Feature space in which images are compared.
    pub features: Box<dyn FeaturesPlugin>,
    /// Number of samples, and of real images, in a subset, at least 2. A subset holds all of them if there are fewer.
    #[schemars(range(min = 2))]
    pub subset_size: usize,
    /// Number of random subsets, at least 1.
    #[schemars(range(min = 1))]
    pub subsets: usize,
    /// Seed of the subsets: the same seed chooses the same images.
    pub seed: u64,
    #[serde(skip)]
    space: Loaded,
}

impl Default for KernelDistance {
    fn default() -> Self {
        Self { features: in_space::pixels(), subset_size: 1000, subsets: 100, seed: 0, space: Loaded::default() }
    }
}

framework::register!(metric "kernel_distance" => KernelDistance, "arXiv:1801.01401");

impl Metric for KernelDistance {
    fn check(&self) -> Problems {
        let mut problems = in_space::check(&*self.features);
        for (name, value, least) in [("subset_size", self.subset_size, 2), ("subsets", self.subsets, 1)] {
            if value < least {
                let problem = Problem::new(format!("/{name}"), format!("`{name}` is {value}"));
                problems.push(problem.accepts(format!("{least} or more")));
            }
        }
        problems
    }

    fn check_image(&self, image: ImageShape) -> Problems {
        in_space::check_image(&*self.features, image)
    }

    fn least_samples(&self, _: ImageShape) -> usize {
        2
    }

    fn load(&mut self, spaces: &mut Spaces) -> Result<()> {
        self.space.load(&*self.features, spaces)
    }

    fn statistics(&self) -> Option<String> {
        Some(in_space::kept_statistics(&*self.features))
    }

    fn reference(&self) -> Box<dyn Reference> {
        Box::new(KeptReference::new("kernel_distance", &*self.features, &self.space))
    }

    fn start(&self, reference: Arc<Statistics>) -> Result<Box<dyn Accumulator>> {
        reference.expect(&in_space::kept_statistics(&*self.features))?;
        Ok(Box::new(Samples { metric: self.clone(), reference, kept: Kept::default() }))
    }
}

/// The samples so far.
struct Samples {
    metric: KernelDistance,
    reference: Arc<Statistics>,
    kept: Kept,
}

impl Accumulator for Samples {
    fn update(&mut self, images: &Images) -> Result<()> {
        let features = self.metric.space.of("kernel_distance", "sample", images, self.kept.len())?;
        self.kept.push(features.vectors);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Vec<Measurement>> {
        let Self { metric, reference, kept } = *self;
        let (samples, real) = (kept.rows(), in_space::kept_rows(&reference)?);
        in_space::same_width("kernel_distance", &samples, &real)?;
        for (name, count) in [("sample", samples.len()), ("real image", real.len())] {
            if count < 2 {
                return Err(too_few("kernel_distance", name, 2, count));
            }
        }
        let random = Random::new(metric.seed);
        let size = metric.subset_size.min(samples.len()).min(real.len());
        // Two subsets per index, so that samples and real images are chosen independently.
        let chosen = |rows: &[&[f32]], index: usize| {
            let places = subset(&random, index, rows.len(), size);
            Mat::from_fn(rows[0].len(), size, |i, j| f64::from(rows[places[j]][i]))
        };
        let distance = |index: usize| discrepancy(&chosen(&samples, 2 * index), &chosen(&real, 2 * index + 1));
        let distances: Vec<f64> = (0..metric.subsets).map(distance).collect();
        let mean = distances.iter().sum::<f64>() / distances.len() as f64;
        let variance = distances.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / distances.len() as f64;
        let name = format!("kernel_distance_{}", metric.features.space());
        Ok(vec![
            Measurement {
                name: name.clone(),
                value: mean,
                meaning: format!("kernel distance, mean of {} subsets of {size}, lower is better", metric.subsets),
            },
            Measurement {
                name: format!("{name}_deviation"),
                value: variance.sqrt(),
                meaning: "standard deviation of the kernel distance between subsets".into(),
            },
        ])
    }
}

/// Computes the unbiased squared discrepancy between the columns of two matrices of one size.
fn discrepancy(x: &Mat<f64>, y: &Mat<f64>) -> f64 {
    let (width, size) = (x.nrows() as f64, x.ncols());
    let kernel = |products: &Mat<f64>, keep: fn(usize, usize) -> bool| -> f64 {
        (0..size)
            .map(|j| -> f64 {
                (0..size).filter(|i| keep(*i, j)).map(|i| (products[(i, j)] / width + 1.0).powi(3)).sum()
            })
            .sum()
    };
    let pairs = (size * (size - 1)) as f64;
    let within = |x: &Mat<f64>| kernel(&(x.transpose() * x), |i, j| i != j) / pairs;
    within(x) + within(y) - 2.0 * kernel(&(x.transpose() * y), |_, _| true) / (size * size) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(values: Vec<f32>, width: usize) -> Images {
        Images { values, ..Images::none([1, 1, width]) }
    }

    fn measured(samples: &Images, real: &Images, change: fn(&mut KernelDistance)) -> Vec<f64> {
        let mut metric = KernelDistance::default();
        change(&mut metric);
        metric.load(&mut Spaces::new(&Device::flex())).unwrap();
        metric.measure(samples, real).unwrap().into_iter().map(|m| m.value).collect()
    }

    #[test]
    fn distance_by_hand() {
        // k(0, 1) = 1, k(1, 2) = 27, k(0, 2) = 1, k(1, 1) = 8: 1 + 27 - 2 (1 + 1 + 8 + 27) / 4.
        let got = measured(&images(vec![0.0, 1.0], 1), &images(vec![1.0, 2.0], 1), |_| {});
        assert!((got[0] - (1.0 + 27.0 - 18.5)).abs() < 1e-12, "{got:?}");
        // All subsets hold all images.
        assert!(got[1] < 1e-12, "{got:?}");
    }

    #[test]
    fn subsets_depend_on_the_seed_alone() {
        let normal = |seed, count: usize| images(Random::new(seed).normal("image", 0, 0, count * 8), 8);
        let (samples, real) = (normal(1, 60), normal(2, 50));
        let first = measured(&samples, &real, |metric| metric.subset_size = 20);
        assert_eq!(first, measured(&samples, &real, |metric| metric.subset_size = 20));
        assert_ne!(first, measured(&samples, &real, |metric| (metric.subset_size, metric.seed) = (20, 1)));
        // Both sets have one distribution, so the mean is within its error of 0.
        assert!(first[0].abs() < 3.0 * first[1] && first[1] > 0.0, "{first:?}");
    }

    #[test]
    fn errors_say_what_is_needed() {
        let mut metric = KernelDistance { subset_size: 1, subsets: 0, ..KernelDistance::default() };
        assert_eq!(metric.check().len(), 2);
        metric.load(&mut Spaces::new(&Device::flex())).unwrap();
        let (one, two) = (images(vec![0.0], 1), images(vec![0.0, 1.0], 1));
        let message = metric.measure(&one, &two).unwrap_err().to_string();
        assert_eq!(message, "metric \"kernel_distance\" needs at least 2 sample(s) and got 1");
    }
}
