//! Spiral arms around the origin, one per class.
//!
//!   class c at u ~ U(0, 1): radius r = 0.1 + 0.9 u, angle 2 pi (turns u + c / C), for C classes

use super::plane::{PlaneConfig, Points, info};
use framework::data::dataset::{Dataset, DatasetConfig, DatasetInfo};
use framework::error::Result;
use framework::prelude::*;
use std::f64::consts::TAU;

/// Points of spiral arms in the plane, with exact density and score. Each point is a latent of one position and two
/// channels: a backbone has `input_size` 1, `patch_size` 1 and 2 `in_channels`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Spirals {
    /// Number of arms, which are the classes, 1 to 20.
    #[schemars(range(min = 1, max = 20))]
    pub num_classes: usize,
    /// Number of turns of an arm, 0 to 4.
    #[schemars(range(min = 0.0, max = 4.0))]
    pub turns: f64,
    /// Standard deviation of the points around their arm, 0.02 to 10.
    #[schemars(range(min = 0.02, max = 10.0))]
    pub std: f64,
    /// Number of points.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub count: usize,
    /// Seed of the points.
    pub seed: u64,
}

impl Default for Spirals {
    fn default() -> Self {
        Self { num_classes: 3, turns: 1.0, std: 0.05, count: 10_000, seed: 0 }
    }
}

framework::register!(data "spirals" => Spirals);

impl DatasetConfig for Spirals {
    fn info(&self) -> Option<DatasetInfo> {
        Some(info(self))
    }

    fn open(&self) -> Result<Box<dyn Dataset>> {
        Ok(Box::new(Points(self.clone())))
    }
}

impl PlaneConfig for Spirals {
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
        let (radius, angle) = (0.1 + 0.9 * u, TAU * (self.turns * u + class as f64 / self.num_classes as f64));
        [radius * angle.cos(), radius * angle.sin()]
    }

    fn nodes(&self) -> usize {
        // Four turns have a length of about 14: nodes are closer than a standard deviation of 0.02.
        2048
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arm_starts_near_the_origin_and_ends_on_the_unit_circle() {
        let spirals = Spirals { num_classes: 2, turns: 0.5, ..Spirals::default() };
        assert_eq!(spirals.centre(0, 0.0), [0.1, 0.0]);
        let end = spirals.centre(0, 1.0);
        assert!((end[0] + 1.0).abs() < 1e-12 && end[1].abs() < 1e-12, "{end:?}");
        let other = spirals.centre(1, 0.0);
        assert!((other[0] + 0.1).abs() < 1e-12 && other[1].abs() < 1e-12, "{other:?}");
    }
}
