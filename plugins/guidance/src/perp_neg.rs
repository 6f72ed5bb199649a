//! Perp-Neg: guidance away from a negative class, after the component along the requested class is removed.
//!
//!   d          = f_cond - f_null,   n = f_negative - f_null
//!   across     = n - <n, d> / |d|^2 d,   per sample
//!   prediction = f_null + scale (d - negative_scale across)
//!
//! The rule does not depend on the prediction space: another space multiplies d and n by the same factor.
//!
//! Source: arXiv:2304.04968, eq. 8, for one negative condition.

use crate::per_sample::{dot, on_latent, ratio};
use framework::prelude::*;
use framework::sampling::guidance::{Asked, Branch, Guidance, GuidanceNeeds, Guided, Moment, Setting, Trajectory};

/// Guidance away from a negative class, without weakening the requested one. Three passes per step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["scale", "negative"]))]
pub struct PerpNeg {
    /// Guidance scale, 0.001 to 1000; 1 = the conditional prediction minus the negative part.
    #[schemars(range(min = 1e-3, max = 1000.0))]
    pub scale: f64,
    /// Negative class, from 0.
    pub negative: usize,
    /// Weight of the negative class, 0.001 to 100.
    #[schemars(range(min = 1e-3, max = 100.0))]
    pub negative_scale: f64,
}

impl Default for PerpNeg {
    fn default() -> Self {
        Self { scale: 0.0, negative: 0, negative_scale: 1.0 }
    }
}

framework::register!(guidance "perp_neg" => PerpNeg, "arXiv:2304.04968");

impl Guidance for PerpNeg {
    fn needs(&self) -> GuidanceNeeds {
        GuidanceNeeds { null: true, path: true, class: Some(self.negative), ..GuidanceNeeds::branches(3) }
    }

    fn start(&self) -> Box<dyn Trajectory> {
        Box::new(PerpNegTrajectory { rule: self.clone(), samples: 0 })
    }
}

/// The rule with the size of its batch.
struct PerpNegTrajectory {
    rule: PerpNeg,
    samples: usize,
}

impl Trajectory for PerpNegTrajectory {
    fn begin(&mut self, setting: &Setting<'_>) {
        self.samples = setting.samples;
    }

    fn branches(&mut self, _: &Moment) -> Vec<Branch> {
        let condition = Asked::Other(Condition::Class(vec![Some(self.rule.negative); self.samples]));
        vec![Branch::given(), Branch::null(), Branch { name: "negative", condition, ..Branch::given() }]
    }

    fn combine(&mut self, moment: &Moment, predictions: Vec<Tensor<3>>) -> Guided {
        let predictions = <[Tensor<3>; 3]>::try_from(predictions).expect("one prediction per branch");
        on_latent(predictions, moment.channels, |[cond, null, negative]| {
            let (positive, negative) = (cond - null.clone(), negative - null.clone());
            let along = positive.clone() * ratio(dot(&negative, &positive), dot(&positive, &positive), 0.0);
            null + (positive - (negative - along) * self.rule.negative_scale) * self.rule.scale
        })
        .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trials::{
        assert_close, assert_equal_predictions_stay, assert_further_channels_are_conditional, assert_is_cfg,
        assert_samples_are_independent, cfg, one, prediction, run, run_on, values,
    };
    use proptest::prelude::*;

    fn perp_neg(scale: f64, negative_scale: f64) -> PerpNeg {
        PerpNeg { scale, negative: 3, negative_scale }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn without_a_negative_weight_it_is_cfg(scale in 0.1..9.0f64) {
            assert_is_cfg(&perp_neg(scale, 0.0), scale);
        }

        #[test]
        fn a_negative_prediction_along_the_positive_one_is_cfg(scale in 0.1..9.0f64, factor in -2.0..2.0f64) {
            let predict = |branch: &'static str, i: usize| {
                let (given, null) = (prediction("given", 0, 2, i), prediction("null", 0, 2, i));
                match branch {
                    "given" => given,
                    "null" => null,
                    _ => null.clone() + (given - null) * factor,
                }
            };
            for (got, expected) in run_on(&perp_neg(scale, 2.0), 2, &predict).iter().zip(run(&cfg(scale), 0, 2)) {
                assert_close(got, &expected, 1e-9);
            }
        }

        #[test]
        fn the_part_along_the_requested_class_does_not_change(scale in 0.1..9.0f64, weight in 0.1..3.0f64) {
            for (i, got) in run(&perp_neg(scale, weight), 0, 1).iter().enumerate() {
                let [given, null] = ["given", "null"].map(|branch| values(prediction(branch, 0, 1, i)));
                let along: f64 =
                    got.iter().zip(&given).zip(&null).map(|((got, given), null)| (got - null) * (given - null)).sum();
                let square: f64 = given.iter().zip(&null).map(|(given, null)| (given - null).powi(2)).sum();
                prop_assert!((along - scale * square).abs() < 1e-8 * (1.0 + scale * square));
            }
        }
    }

    #[test]
    fn batches_and_equal_and_further_predictions() {
        assert_samples_are_independent(&perp_neg(4.0, 0.7));
        assert_equal_predictions_stay(&perp_neg(4.0, 0.7));
        assert_further_channels_are_conditional(&perp_neg(4.0, 0.7));
    }

    #[test]
    fn the_negative_branch_asks_for_its_class_once_per_sample() {
        let mut trajectory = perp_neg(2.0, 1.0).start();
        let shape = LatentShape::values([1, 1], 1);
        trajectory.begin(&Setting { shape: &shape, path: None, samples: 2 });
        let branches = trajectory.branches(&crate::trials::at(0));
        let Asked::Other(Condition::Class(classes)) = &branches[2].condition else { panic!("a class") };
        assert_eq!(classes, &[Some(3), Some(3)]);
        assert_eq!(perp_neg(2.0, 1.0).needs().class, Some(3));
    }

    #[test]
    fn worked_by_hand() {
        // d = (1, 0) and n = (1, 1), whose component perpendicular to d is (0, 1). Without the projection the result is
        // (1, -1).
        let predict = |branch: &'static str, _: usize| match branch {
            "given" => one([[1.0, 0.0]]),
            "null" => one([[0.0, 0.0]]),
            _ => one([[1.0, 1.0]]),
        };
        assert_close(&run_on(&perp_neg(2.0, 0.5), 1, &predict)[0], &[2.0, -1.0], 1e-12);
    }
}
