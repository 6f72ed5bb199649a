//! Adaptive guidance: plain guidance until both predictions agree, and the conditional prediction from then on.
//!
//!   g          = <f_cond, f_null> / (|f_cond| |f_null|),   per sample
//!   prediction = f_null + scale (f_cond - f_null)   up to and including the first evaluation with g >= threshold
//!   prediction = f_cond                             after it
//!
//! Each sample has its own gate. Once all gates of the batch are closed, the null pass is skipped.
//!
//! Source: arXiv:2312.12487 (AG). The paper's linear estimate of the null prediction (LinearAG) is not part of this
//! rule.

use crate::per_sample::{branches, combined, dot, no_effect_at_scale_one, no_logits, norm, ratio, two_predictions};
use framework::prelude::*;
use framework::random::per_sample;
use framework::sampling::guidance::{Branch, Guidance, GuidanceNeeds, Guided, Moment, Trajectory};

/// Guidance that stops once the conditional and the null prediction agree. Two passes per step, then one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["scale"]))]
pub struct Adaptive {
    /// Guidance scale until the gate closes, 0 to 1000; 1 = no guidance.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub scale: f64,
    /// Cosine similarity of both predictions at which guidance ends, -1 to 1. Published: 0.991 to 0.996.
    #[schemars(range(min = -1.0, max = 1.0))]
    pub threshold: f64,
    /// Prediction space of the cosine; null = the network's own. The paper uses `eps`.
    pub space: Option<Prediction>,
}

impl Default for Adaptive {
    fn default() -> Self {
        Self { scale: 0.0, threshold: 0.991, space: None }
    }
}

framework::register!(guidance "adaptive" => Adaptive, "arXiv:2312.12487");

impl Guidance for Adaptive {
    fn check(&self) -> Vec<Problem> {
        let mut problems = no_logits("space", self.space);
        let changed = [("threshold", self.threshold != Self::default().threshold), ("space", self.space.is_some())];
        problems.extend(no_effect_at_scale_one(self.scale, &changed));
        problems
    }

    fn needs(&self) -> GuidanceNeeds {
        two_predictions(self.scale != 1.0, self.space)
    }

    fn start(&self) -> Box<dyn Trajectory> {
        Box::new(AdaptiveTrajectory { rule: self.clone(), closed: Vec::new() })
    }
}

/// The rule with the gates of one batch of trajectories.
struct AdaptiveTrajectory {
    rule: Adaptive,
    /// Whether the gate of each sample is closed; empty before the first evaluation.
    closed: Vec<bool>,
}

impl AdaptiveTrajectory {
    fn is_conditional(&self) -> bool {
        self.rule.scale == 1.0 || (!self.closed.is_empty() && self.closed.iter().all(|closed| *closed))
    }

    /// Closes the gates of the samples whose predictions agree.
    fn close(&mut self, cond: &Tensor<3>, null: &Tensor<3>) {
        // A prediction of 0 has no direction. It counts as agreement.
        let cosine = ratio(dot(cond, null), norm(cond) * norm(null), 1.0);
        let cosine = cosine.into_data().convert::<f64>().try_into_vec::<f64>().expect("converted to f64");
        for (closed, cosine) in self.closed.iter_mut().zip(cosine) {
            *closed |= cosine >= self.rule.threshold;
        }
    }
}

impl Trajectory for AdaptiveTrajectory {
    fn branches(&mut self, _: &Moment) -> Vec<Branch> {
        branches(!self.is_conditional())
    }

    fn combine(&mut self, moment: &Moment, predictions: Vec<Tensor<3>>) -> Guided {
        combined(predictions, moment.channels, |[cond, null]| {
            self.closed.resize(cond.dims()[0], false);
            let weight = |closed: &bool| if *closed { 0.0 } else { self.rule.scale - 1.0 };
            let weights: Vec<f64> = self.closed.iter().map(weight).collect();
            self.close(&cond, &null);
            // In this form, a weight of 0 returns the conditional prediction bit for bit.
            let difference = cond.clone() - null;
            cond + difference.clone() * per_sample(&weights, &difference)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trials::{
        EVALUATIONS, assert_close, assert_equal_predictions_stay, assert_further_channels_are_conditional,
        assert_is_cfg, assert_is_conditional, assert_samples_are_independent, at, cfg, one, prediction, run, run_on,
        values,
    };
    use proptest::prelude::*;

    fn adaptive(scale: f64, threshold: f64) -> Adaptive {
        Adaptive { scale, threshold, space: None }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn a_gate_that_never_closes_is_cfg(scale in 0.0..9.0f64) {
            assert_is_cfg(&adaptive(scale, 1.1), scale);
        }

        #[test]
        fn a_gate_that_closes_at_once_guides_the_first_evaluation_only(scale in 0.0..9.0f64) {
            let got = run(&adaptive(scale, -1.0), 0, 2);
            assert_close(&got[0], &run(&cfg(scale), 0, 2)[0], 1e-9);
            for (i, got) in got.iter().enumerate().skip(1) {
                assert_close(got, &values(prediction("given", 0, 2, i)), 0.0);
            }
        }
    }

    #[test]
    fn scale_one_is_the_conditional_and_one_branch() {
        assert_is_conditional(&adaptive(1.0, 0.5));
        assert_eq!(adaptive(1.0, 0.5).start().branches(&at(0)).len(), 1);
    }

    #[test]
    fn batches_and_equal_and_further_predictions() {
        // Random predictions are almost orthogonal: about half of the gates close at each evaluation.
        assert_samples_are_independent(&adaptive(4.0, 0.0));
        assert_equal_predictions_stay(&adaptive(4.0, 0.0));
        assert_further_channels_are_conditional(&adaptive(4.0, 0.0));
    }

    /// Returns the first channel per evaluation, with predictions that agree at evaluation 1 only.
    fn agreeing_once(threshold: f64) -> Vec<f64> {
        let predict = |branch: &'static str, i: usize| match (branch, i) {
            ("given", _) => one([[1.0, 0.0]]),
            (_, 1) => one([[2.0, 2.0]]),
            _ => one([[0.0, 1.0]]),
        };
        run_on(&adaptive(3.0, threshold), 1, &predict).into_iter().map(|values| values[0]).collect()
    }

    #[test]
    fn a_closed_gate_stays_closed() {
        // The cosines are 0, 1 / sqrt(2) = 0.7071, 0, 0, 0. Evaluation 1 is still guided: 2 + 3 (1 - 2) = -1.
        assert_close(&agreeing_once(0.707), &[3.0, -1.0, 1.0, 1.0, 1.0], 1e-12);
        assert_close(&agreeing_once(0.708), &[3.0, -1.0, 3.0, 3.0, 3.0], 1e-12);
    }

    #[test]
    fn closed_gates_save_the_second_pass() {
        let mut trajectory = adaptive(3.0, -1.0).start();
        let lengths: Vec<usize> = (0..EVALUATIONS)
            .map(|i| {
                let branches = trajectory.branches(&at(i));
                let predictions = branches.iter().map(|branch| prediction(branch.name, 0, 2, i)).collect();
                trajectory.combine(&at(i), predictions);
                branches.len()
            })
            .collect();
        assert_eq!(lengths, [2, 1, 1, 1, 1]);
    }
}
