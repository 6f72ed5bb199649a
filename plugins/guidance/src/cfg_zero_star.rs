//! CFG-Zero*: guidance with a null prediction that is scaled to fit the conditional one. The first evaluations return
//! 0.
//!
//!   a          = <f_cond, f_null> / |f_null|^2,   per sample
//!   prediction = a f_null + scale (f_cond - a f_null);   0 in the first `zero_evaluations` evaluations
//!
//! Source: arXiv:2503.18886, eq. 7 and algorithm 1, on the velocity of flows.

use crate::per_sample::{branches, dot, no_effect_at_scale_one, no_logits, on_latent, ratio, two_predictions};
use framework::prelude::*;
use framework::sampling::guidance::{Branch, Guidance, GuidanceNeeds, Guided, Moment, Trajectory};

/// Guidance away from the null prediction, which is first scaled to fit the conditional one (least squares). Two passes
/// per step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["scale"]))]
pub struct CfgZeroStar {
    /// Guidance scale, 0 to 1000; 1 = no guidance.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub scale: f64,
    /// Number of evaluations at the start whose prediction is 0, 0 to 1000. Samplers of higher order evaluate more than
    /// once per step.
    #[schemars(range(min = 0, max = 1000))]
    pub zero_evaluations: usize,
    /// Prediction space of the rule; null = the network's own. The paper uses `velocity`.
    pub space: Option<Prediction>,
}

impl Default for CfgZeroStar {
    fn default() -> Self {
        Self { scale: 0.0, zero_evaluations: 0, space: Some(Prediction::Velocity) }
    }
}

framework::register!(guidance "cfg_zero_star" => CfgZeroStar, "arXiv:2503.18886");

impl CfgZeroStar {
    fn needs_null_at(&self, moment: &Moment) -> bool {
        self.scale != 1.0 && moment.evaluation >= self.zero_evaluations
    }
}

impl Guidance for CfgZeroStar {
    fn check(&self) -> Vec<Problem> {
        let mut problems = no_logits("space", self.space);
        let changed = self.space != Self::default().space && self.zero_evaluations == 0;
        problems.extend(no_effect_at_scale_one(self.scale, &[("space", changed)]));
        problems
    }

    fn needs(&self) -> GuidanceNeeds {
        two_predictions(self.scale != 1.0, self.space)
    }

    fn start(&self) -> Box<dyn Trajectory> {
        Box::new(self.clone())
    }
}

impl Trajectory for CfgZeroStar {
    fn branches(&mut self, moment: &Moment) -> Vec<Branch> {
        branches(self.needs_null_at(moment))
    }

    fn combine(&mut self, moment: &Moment, predictions: Vec<Tensor<3>>) -> Guided {
        let predictions = match <[Tensor<3>; 2]>::try_from(predictions) {
            Ok(both) => both,
            Err(mut one) => {
                let given = one.remove(0);
                if moment.evaluation >= self.zero_evaluations {
                    return given.into();
                }
                return on_latent([given], moment.channels, |[given]| given.zeros_like()).into();
            }
        };
        on_latent(predictions, moment.channels, |[cond, null]| {
            let fitted = null.clone() * ratio(dot(&cond, &null), dot(&null, &null), 0.0);
            fitted.clone() + (cond - fitted) * self.scale
        })
        .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trials::{
        assert_close, assert_equal_predictions_stay, assert_further_channels_are_conditional, assert_is_conditional,
        assert_samples_are_independent, at, combined, one, prediction, run, run_on, values,
    };
    use proptest::prelude::*;

    fn rule(scale: f64) -> CfgZeroStar {
        CfgZeroStar { scale, zero_evaluations: 0, ..CfgZeroStar::default() }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn a_multiple_of_the_null_prediction_stays(scale in 0.0..9.0f64, factor in 0.1..3.0f64) {
            let predict = |branch: &'static str, i: usize| {
                let cond = prediction("given", 0, 2, i);
                if branch == "null" { cond * factor } else { cond }
            };
            for (i, got) in run_on(&rule(scale), 2, &predict).iter().enumerate() {
                assert_close(got, &values(prediction("given", 0, 2, i)), 1e-9);
            }
        }

        #[test]
        fn a_fit_of_one_is_cfg(scale in 0.0..9.0f64, a in -2.0..2.0f64, b in -2.0..2.0f64) {
            // <(1, a), (1, 0)> = |(1, 0)|^2, so the fitted null prediction is the null prediction itself.
            let (cond, null) = (one([[1.0, a, b]]), one([[1.0, 0.0, 0.0]]));
            let expected = combined(&crate::trials::cfg(scale), &cond, &null);
            assert_close(&combined(&rule(scale), &cond, &null), &expected, 1e-12);
        }

        #[test]
        fn the_length_of_the_null_prediction_does_not_matter(scale in 0.0..9.0f64, factor in 0.1..3.0f64) {
            let scaled = |branch: &'static str, i: usize| {
                let prediction = prediction(branch, 0, 1, i);
                if branch == "null" { prediction * factor } else { prediction }
            };
            for (got, expected) in run_on(&rule(scale), 1, &scaled).iter().zip(run(&rule(scale), 0, 1)) {
                assert_close(got, &expected, 1e-9);
            }
        }
    }

    #[test]
    fn scale_one_is_the_conditional_and_one_branch() {
        assert_is_conditional(&rule(1.0));
        assert_eq!(rule(1.0).start().branches(&at(0)).len(), 1);
    }

    #[test]
    fn batches_and_equal_and_further_predictions() {
        assert_samples_are_independent(&CfgZeroStar { zero_evaluations: 2, ..rule(4.0) });
        assert_equal_predictions_stay(&rule(4.0));
        assert_further_channels_are_conditional(&rule(4.0));
        assert_further_channels_are_conditional(&CfgZeroStar { zero_evaluations: 5, ..rule(4.0) });
    }

    #[test]
    fn the_first_evaluations_are_zero_and_need_one_branch() {
        let zero = CfgZeroStar { zero_evaluations: 2, ..rule(4.0) };
        let lengths: Vec<usize> = (0..4).map(|i| zero.start().branches(&at(i)).len()).collect();
        assert_eq!(lengths, [1, 1, 2, 2]);
        let (with, without) = (run(&zero, 0, 1), run(&rule(4.0), 0, 1));
        assert!(with[..2].iter().flatten().all(|value| *value == 0.0));
        assert_eq!(with[2..], without[2..]);
    }

    #[test]
    fn worked_by_hand() {
        // (2, 1) = 2 (1, 0) + (0, 1). A fit divided by |f_cond|^2 would give a = 0.4.
        assert_close(&combined(&rule(3.0), &one([[2.0, 1.0]]), &one([[1.0, 0.0]])), &[2.0, 3.0], 1e-12);
        // A null prediction of 0 fits nothing.
        assert_close(&combined(&rule(3.0), &one([[2.0, 1.0]]), &one([[0.0, 0.0]])), &[6.0, 3.0], 1e-12);
    }
}
