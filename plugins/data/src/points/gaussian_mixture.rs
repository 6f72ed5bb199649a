//! A mixture of normal distributions on a circle, whose modes take turns among the classes.
//!
//!   mode j of class c: centre at the angle 2 pi (j C + c) / (C M), radius `radius`, for C classes of M modes

use super::plane::{PlaneConfig, Points, info};
use framework::data::dataset::{Dataset, DatasetConfig, DatasetInfo};
use framework::error::Result;
use framework::prelude::*;
use std::f64::consts::TAU;

/// Points of a mixture of normal distributions in the plane, with exact density and score. Each point is a latent of one
/// position and two channels: a backbone has `input_size` 1, `patch_size` 1 and 2 `in_channels`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GaussianMixture {
    /// Number of classes, 1 to 100.
    #[schemars(range(min = 1, max = 100))]
    pub num_classes: usize,
    /// Number of modes per class, 1 to 100.
    #[schemars(range(min = 1, max = 100))]
    pub modes: usize,
    /// Radius of the circle on which the centres are, 0.01 to 10.
    #[schemars(range(min = 0.01, max = 10.0))]
    pub radius: f64,
    /// Standard deviation of a mode, 0.001 to 10.
    #[schemars(range(min = 1e-3, max = 10.0))]
    pub std: f64,
    /// Number of points.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub count: usize,
    /// Seed of the points.
    pub seed: u64,
}

impl Default for GaussianMixture {
    fn default() -> Self {
        Self { num_classes: 4, modes: 2, radius: 1.0, std: 0.12, count: 10_000, seed: 0 }
    }
}

framework::register!(data "gaussian_mixture" => GaussianMixture);

impl DatasetConfig for GaussianMixture {
    fn info(&self) -> Option<DatasetInfo> {
        Some(info(self))
    }

    fn open(&self) -> Result<Box<dyn Dataset>> {
        Ok(Box::new(Points(self.clone())))
    }
}

impl PlaneConfig for GaussianMixture {
    fn num_classes(&self) -> usize {
        self.num_classes
    }

    fn count(&self) -> usize {
        self.count
    }

    fn std(&self) -> f64 {
        self.std
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn centre(&self, class: usize, u: f64) -> [f64; 2] {
        let mode = (u * self.modes as f64) as usize;
        let angle = TAU * (mode * self.num_classes + class) as f64 / (self.num_classes * self.modes) as f64;
        [self.radius * angle.cos(), self.radius * angle.sin()]
    }

    fn nodes(&self) -> usize {
        self.modes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn centres_by_hand() {
        let mixture = GaussianMixture { num_classes: 2, modes: 2, radius: 2.0, ..GaussianMixture::default() };
        for (class, u, expected) in [(0, 0.1, [2.0, 0.0]), (1, 0.1, [0.0, 2.0]), (0, 0.9, [-2.0, 0.0])] {
            let centre = mixture.centre(class, u);
            assert!((centre[0] - expected[0]).hypot(centre[1] - expected[1]) < 1e-12, "{class} {u}: {centre:?}");
        }
        // One mode alone is a normal distribution, whose density at its centre is 1 / (2 pi std^2).
        let one = GaussianMixture { num_classes: 1, modes: 1, radius: 1.0, std: 0.5, ..mixture };
        let density = one.density().density(None, [1.0, 0.0], [1.0, 0.0]);
        assert!((density - 1.0 / (TAU * 0.25)).abs() < 1e-12);
    }
}
