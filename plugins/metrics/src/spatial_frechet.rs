//! Frechet distance of features that keep positions: sFID.
//!
//!   d = |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)),   of the spatial features
//!
//! Source: arXiv:2103.03841 sec. 4; arXiv:2105.05233, whose code defines the features.

use crate::frechet::{COVARIANCE, Comparison, MEAN};
use crate::in_space::{self, Loaded};
use framework::data::tokenizer::ImageShape;
use framework::error::{Problems, Result};
use framework::evaluation::metric::{Accumulator, Metric, Reference};
use framework::evaluation::space::Spaces;
use framework::evaluation::statistics::Statistics;
use framework::plugin::FeaturesPlugin;
use framework::prelude::*;
use std::sync::Arc;

/// Frechet distance in features that keep positions (sFID), 0 or more; lower is better. It notices a wrong arrangement
/// of parts that the FID, whose features are means over positions, does not.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["features"]))]
pub struct SpatialFrechet {
    /// Feature space with spatial features, e.g. `inception_v3`. There must be more samples, and more real images, than
    /// spatial values: 2,023 of `inception_v3`.
    pub features: Box<dyn FeaturesPlugin>,
    #[serde(skip)]
    space: Loaded,
}

impl Default for SpatialFrechet {
    fn default() -> Self {
        Self { features: in_space::pixels(), space: Loaded::default() }
    }
}

framework::register!(metric "spatial_frechet" => SpatialFrechet, "arXiv:2103.03841", "arXiv:2105.05233");

impl SpatialFrechet {
    fn name(&self) -> String {
        format!("spatial_frechet_{}", self.features.space())
    }

    fn comparison(&self) -> Comparison {
        let part = |batch: &framework::evaluation::space::FeatureBatch| batch.spatial.clone();
        let (name, space) = (self.name(), self.space.clone());
        Comparison { metric: "spatial_frechet", name, space, part, components: None }
    }
}

impl Metric for SpatialFrechet {
    fn check(&self) -> Problems {
        in_space::check(&*self.features)
    }

    fn check_image(&self, image: ImageShape) -> Problems {
        let mut problems = in_space::check_image(&*self.features, image);
        if self.features.widths(image).spatial.is_none() {
            problems.push(in_space::lacks("spatial_frechet", &*self.features, "spatial features"));
        }
        problems
    }

    fn least_samples(&self, image: ImageShape) -> usize {
        self.features.widths(image).spatial.map_or(1, |values| values + 1)
    }

    fn load(&mut self, spaces: &mut Spaces) -> Result<()> {
        self.space.load(&*self.features, spaces)
    }

    fn statistics(&self) -> Option<String> {
        Some(self.name())
    }

    fn published(&self) -> &'static [(&'static str, &'static str)] {
        &[(MEAN, "mu_s"), (COVARIANCE, "sigma_s")]
    }

    fn reference(&self) -> Box<dyn Reference> {
        self.comparison().reference()
    }

    fn start(&self, reference: Arc<Statistics>) -> Result<Box<dyn Accumulator>> {
        self.comparison().start(&reference)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_without_positions_are_refused() {
        let problems = SpatialFrechet::default().check_image([1, 8, 8]);
        assert_eq!(
            (problems[0].what.as_str(), problems.len()),
            ("metric \"spatial_frechet\" needs spatial features; features \"pixels\" have none", 1)
        );
    }
}
