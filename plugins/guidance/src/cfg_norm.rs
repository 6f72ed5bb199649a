//! Guidance with a limit on the norm of its result (CFGNorm, renormalised CFG).
//!
//!   g          = f_null + scale (f_cond - f_null)
//!   prediction = g min(1, limit |f_cond| / |g|)
//!
//! The norm is taken per position over its channels (CFGNorm of ComfyUI, at limit 1), or per sample over the whole
//! latent (Lumina-Image 2.0).
//!
//! Source: arXiv:2503.21758 (per sample). The norm per position has no paper.

use crate::per_sample::{branches, combined, no_effect_at_scale_one, no_logits, norm, ratio, two_predictions};
use framework::prelude::*;
use framework::sampling::guidance::{Branch, Guidance, GuidanceNeeds, Guided, Moment, Trajectory, mix};

/// The values over which a norm is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NormOver {
    /// The channels of one position.
    #[default]
    Position,
    /// All values of a sample.
    Sample,
}

/// Guidance whose result has at most `limit` times the norm of the conditional prediction. Two passes per step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["scale"]))]
pub struct CfgNorm {
    /// Guidance scale, 0 to 1000; 1 = no guidance.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub scale: f64,
    /// Largest norm of the result, as a multiple of the conditional prediction's norm, 1 to 1000.
    #[schemars(range(min = 1.0, max = 1000.0))]
    pub limit: f64,
    /// Values over which the norm is taken.
    pub over: NormOver,
    /// Prediction space of the rule; null = the network's own. ComfyUI uses `x`.
    pub space: Option<Prediction>,
}

impl Default for CfgNorm {
    fn default() -> Self {
        Self { scale: 0.0, limit: 1.0, over: NormOver::default(), space: None }
    }
}

framework::register!(guidance "cfg_norm" => CfgNorm, "arXiv:2503.21758");

impl CfgNorm {
    fn norm(&self, x: &Tensor<3>) -> Tensor<3> {
        match self.over {
            NormOver::Position => (x.clone() * x.clone()).sum_dim(2).sqrt(),
            NormOver::Sample => norm(x),
        }
    }
}

impl Guidance for CfgNorm {
    fn check(&self) -> Vec<Problem> {
        let mut problems = no_logits("space", self.space);
        let changed = [
            ("limit", self.limit != Self::default().limit),
            ("over", self.over != NormOver::default()),
            ("space", self.space.is_some()),
        ];
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

impl Trajectory for CfgNorm {
    fn branches(&mut self, _: &Moment) -> Vec<Branch> {
        branches(self.scale != 1.0)
    }

    fn combine(&mut self, moment: &Moment, predictions: Vec<Tensor<3>>) -> Guided {
        combined(predictions, moment.channels, |[cond, null]| {
            let longest = self.norm(&cond) * self.limit;
            let guided = mix(cond, null, self.scale, moment.channels);
            let length = self.norm(&guided);
            guided * ratio(longest, length, 1.0).clamp_max(1.0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trials::{
        CHANNELS, assert_close, assert_equal_predictions_stay, assert_further_channels_are_conditional, assert_is_cfg,
        assert_is_conditional, assert_samples_are_independent, at, combined, one, prediction, run, values,
    };
    use proptest::prelude::*;

    fn cfg_norm(scale: f64) -> CfgNorm {
        CfgNorm { scale, limit: 1.0, over: NormOver::Position, space: None }
    }

    fn length(values: &[f64]) -> f64 {
        values.iter().map(|x| x * x).sum::<f64>().sqrt()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn without_a_limit_it_is_cfg(scale in 0.0..9.0f64) {
            for over in [NormOver::Position, NormOver::Sample] {
                assert_is_cfg(&CfgNorm { limit: 1e9, over, ..cfg_norm(scale) }, scale);
            }
        }

        #[test]
        fn no_result_is_longer_than_its_limit(scale in 0.0..9.0f64, limit in 1.0..2.0f64) {
            for (over, chunk) in [(NormOver::Position, CHANNELS), (NormOver::Sample, usize::MAX)] {
                for (i, got) in run(&CfgNorm { limit, over, ..cfg_norm(scale) }, 0, 1).iter().enumerate() {
                    let cond = values(prediction("given", 0, 1, i));
                    let chunk = chunk.min(cond.len());
                    for (got, cond) in got.chunks(chunk).zip(cond.chunks(chunk)) {
                        prop_assert!(length(got) <= limit * length(cond) * (1.0 + 1e-9));
                    }
                }
            }
        }
    }

    #[test]
    fn scale_one_is_the_conditional_and_one_branch() {
        assert_is_conditional(&cfg_norm(1.0));
        assert_eq!(cfg_norm(1.0).start().branches(&at(0)).len(), 1);
    }

    #[test]
    fn batches_and_equal_and_further_predictions() {
        for over in [NormOver::Position, NormOver::Sample] {
            let rule = CfgNorm { over, ..cfg_norm(4.0) };
            assert_samples_are_independent(&rule);
            assert_equal_predictions_stay(&rule);
            assert_further_channels_are_conditional(&rule);
        }
    }

    #[test]
    fn worked_by_hand() {
        // (6, 8) is twice as long as (3, 4).
        assert_close(&combined(&cfg_norm(2.0), &one([[3.0, 4.0]]), &one([[0.0, 0.0]])), &[3.0, 4.0], 1e-12);
        // A shorter result is not lengthened: (6, 8) - 1.5 (3, 4) = (1.5, 2).
        assert_close(&combined(&cfg_norm(1.5), &one([[3.0, 4.0]]), &one([[6.0, 8.0]])), &[1.5, 2.0], 1e-12);
        // Two positions: the first result is twice too long, the second is 0. Together they are as long as allowed.
        let (cond, null) = (one([[3.0, 4.0], [5.0, 12.0]]), one([[0.0, 0.0], [10.0, 24.0]]));
        assert_close(&combined(&cfg_norm(2.0), &cond, &null), &[3.0, 4.0, 0.0, 0.0], 1e-12);
        let sample = CfgNorm { over: NormOver::Sample, ..cfg_norm(2.0) };
        assert_close(&combined(&sample, &cond, &null), &[6.0, 8.0, 0.0, 0.0], 1e-12);
    }
}
