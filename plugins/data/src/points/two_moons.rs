//! Two interleaved half circles, one per class, centred at the origin.
//!
//!   class 0: (cos a - 1/2, sin a - 1/4),   class 1: (1/2 - cos a, 1/4 - sin a),   a ~ U(0, pi)

use super::plane::{PlaneConfig, Points, info};
use framework::data::dataset::{Dataset, DatasetConfig, DatasetInfo};
use framework::error::Result;
use framework::prelude::*;
use std::f64::consts::PI;

/// Points of two half circles in the plane, with exact density and score. Each point is a latent of one position and two
/// channels: a backbone has `input_size` 1, `patch_size` 1, 2 `in_channels` and 2 classes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TwoMoons {
    /// Standard deviation of the points around their half circle, 0.02 to 10.
    #[schemars(range(min = 0.02, max = 10.0))]
    pub std: f64,
    /// Number of points.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub count: usize,
    /// Seed of the points.
    pub seed: u64,
}

impl Default for TwoMoons {
    fn default() -> Self {
        Self { std: 0.1, count: 10_000, seed: 0 }
    }
}

framework::register!(data "two_moons" => TwoMoons);

impl DatasetConfig for TwoMoons {
    fn info(&self) -> Option<DatasetInfo> {
        Some(info(self))
    }

    fn open(&self) -> Result<Box<dyn Dataset>> {
        Ok(Box::new(Points(self.clone())))
    }
}

impl PlaneConfig for TwoMoons {
    fn num_classes(&self) -> usize {
        2
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
        let (sine, cosine) = (PI * u).sin_cos();
        let upper = [cosine - 0.5, sine - 0.25];
        if class == 0 { upper } else { upper.map(|value| -value) }
    }

    fn nodes(&self) -> usize {
        // At the smallest blur, nodes are closer than half a standard deviation.
        512
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_moons_are_mirror_images_that_interleave() {
        let moons = TwoMoons::default();
        assert_eq!(moons.centre(0, 0.0), [0.5, -0.25]);
        assert_eq!(moons.centre(1, 0.0), [-0.5, 0.25]);
        let top = moons.centre(0, 0.5);
        assert!((top[0] + 0.5).abs() < 1e-12 && (top[1] - 0.75).abs() < 1e-12);
        let density = moons.density();
        let mirrored = density.density(Some(1), [-0.3, 0.2], [1.0, 0.0]);
        assert!((density.density(Some(0), [0.3, -0.2], [1.0, 0.0]) - mirrored).abs() < 1e-12);
    }
}
