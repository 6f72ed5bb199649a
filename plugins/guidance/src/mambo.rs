//! Magnitude-aware guidance (MAMBO-G).
//!
//!   r          = |f_cond - f_null| / |f_null|,   per sample
//!   s          = 1 + (scale - 1) exp(-alpha r)
//!   prediction = f_null + s (f_cond - f_null)
//!
//! Source: arXiv:2508.03442. The ratio depends on the prediction space.

use crate::per_sample::{branches, combined, no_effect_at_scale_one, no_logits, norm, ratio, two_predictions};
use framework::prelude::*;
use framework::sampling::guidance::{Branch, Guidance, GuidanceNeeds, Guided, Moment, Trajectory};

/// Guidance that is damped where its update is large. Two passes per step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["scale"]))]
pub struct Mambo {
    /// Guidance scale without damping, 0 to 1000; 1 = no guidance.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub scale: f64,
    /// Strength of the damping, 0 to 1000; 0 = plain guidance.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub alpha: f64,
    /// Prediction space of the rule; null = the network's own.
    pub space: Option<Prediction>,
}

impl Default for Mambo {
    fn default() -> Self {
        Self { scale: 0.0, alpha: 8.0, space: None }
    }
}

framework::register!(guidance "mambo" => Mambo, "arXiv:2508.03442");

/// Ratio for a null prediction of 0. It is finite, because infinity times an `alpha` of 0 would be NaN.
const LARGE: f64 = 1e30;

impl Guidance for Mambo {
    fn check(&self) -> Vec<Problem> {
        let mut problems = no_logits("space", self.space);
        let changed = [("alpha", self.alpha != Self::default().alpha), ("space", self.space.is_some())];
        problems.extend(no_effect_at_scale_one(self.scale, &changed));
        problems
    }

    fn needs(&self) -> GuidanceNeeds {
        two_predictions(self.scale != 1.0, self.space)
    }

    fn start(&self) -> Box<dyn Trajectory> {
        Box::new(self.clone())
    }
}

impl Trajectory for Mambo {
    fn branches(&mut self, _: &Moment) -> Vec<Branch> {
        branches(self.scale != 1.0)
    }

    fn combine(&mut self, moment: &Moment, predictions: Vec<Tensor<3>>) -> Guided {
        combined(predictions, moment.channels, |[cond, null]| {
            let difference = cond - null.clone();
            let damping = (ratio(norm(&difference), norm(&null), LARGE) * -self.alpha).exp();
            null + difference * (damping * (self.scale - 1.0) + 1.0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trials::{
        assert_close, assert_equal_predictions_stay, assert_further_channels_are_conditional, assert_is_cfg,
        assert_is_conditional, assert_samples_are_independent, at, combined, one, prediction, run, values,
    };
    use proptest::prelude::*;

    fn mambo(scale: f64, alpha: f64) -> Mambo {
        Mambo { scale, alpha, space: None }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn without_damping_it_is_cfg(scale in 0.0..9.0f64) {
            assert_is_cfg(&mambo(scale, 0.0), scale);
        }

        #[test]
        fn the_scale_lies_between_one_and_its_setting(scale in 1.5..9.0f64, alpha in 0.01..3.0f64) {
            for (i, got) in run(&mambo(scale, alpha), 0, 1).iter().enumerate() {
                let [cond, null] = ["given", "null"].map(|branch| values(prediction(branch, 0, 1, i)));
                // Every value has the same share of the difference.
                let shares: Vec<f64> =
                    got.iter().zip(&null).zip(&cond).map(|((got, null), cond)| (got - null) / (cond - null)).collect();
                prop_assert!(shares.iter().all(|share| *share > 1.0 && *share < scale));
            }
        }
    }

    #[test]
    fn scale_one_is_the_conditional_and_one_branch() {
        assert_is_conditional(&mambo(1.0, 8.0));
        assert_eq!(mambo(1.0, 8.0).start().branches(&at(0)).len(), 1);
    }

    #[test]
    fn batches_and_equal_and_further_predictions() {
        assert_samples_are_independent(&mambo(4.0, 0.5));
        assert_equal_predictions_stay(&mambo(4.0, 0.5));
        assert_further_channels_are_conditional(&mambo(4.0, 0.5));
    }

    #[test]
    fn worked_by_hand() {
        // |(2, 0)| / |(4, 0)| = 1 / 2, and exp(-ln(4) / 2) = 1 / 2: the scale is 1 + 2 / 2 = 2. A ratio to the
        // conditional prediction would be 1 / 3.
        let rule = mambo(3.0, 4.0_f64.ln());
        assert_close(&combined(&rule, &one([[6.0, 0.0]]), &one([[4.0, 0.0]])), &[8.0, 0.0], 1e-12);
    }

    #[test]
    fn a_null_prediction_of_zero_gives_the_conditional() {
        let (cond, null) = (one([[6.0, 1.0]]), one([[0.0, 0.0]]));
        assert_close(&combined(&mambo(3.0, 8.0), &cond, &null), &[6.0, 1.0], 1e-12);
        assert_close(&combined(&mambo(3.0, 0.0), &cond, &null), &[18.0, 3.0], 1e-12);
    }
}
