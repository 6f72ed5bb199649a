//! Guidance by a beta density, with a normalised update (beta-CFG).
//!
//!   d          = f_cond - f_null
//!   prediction = f_null + scale B(progress; a, b) d / |d|^gamma,   B = density of the beta distribution
//!
//! The norm is per sample over the whole latent. At gamma 1, the norm of the update is `scale B`, whatever the norm of
//! d is. A suitable scale then grows with the latent's size. At gamma 0, the rule is `cfg` with the schedule
//! `beta_density` in the form from the unconditional prediction. With a > 1 and b > 1 the density is 0 at both ends,
//! where the prediction is **unconditional**.
//!
//! Source: arXiv:2502.10574. The paper applies the rule to noise predictions, and uses the step index instead of the
//! progress.

use crate::per_sample::{combined, no_logits, norm, ratio, two_predictions};
use framework::prelude::*;
use framework::sampling::guidance::{Branch, Guidance, GuidanceNeeds, Guided, Moment, Trajectory};
use framework::schedule::Schedule;

/// Guidance by a beta density over the progress, with a normalised update. Two passes per step, or one where the
/// density is 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BetaCfg {
    /// Factor of the update, 0 to 1e6. It is a guidance scale only at `gamma` 0. At `gamma` 1, it is a norm.
    #[schemars(range(min = 0.0, max = 1e6))]
    pub scale: f64,
    /// First parameter of the density, 1 to 100. A larger value moves guidance toward the data.
    #[schemars(range(min = 1.0, max = 100.0))]
    pub a: f64,
    /// Second parameter of the density, 1 to 100. A larger value moves guidance toward the noise.
    #[schemars(range(min = 1.0, max = 100.0))]
    pub b: f64,
    /// Exponent of the norm by which the update is divided, in [0, 1].
    #[schemars(range(min = 0.0, max = 1.0))]
    pub gamma: f64,
    /// Prediction space of the rule; null = the network's own. The paper uses `eps`.
    #[serde(default)]
    pub space: Option<Prediction>,
}

framework::register!(guidance "beta_cfg" => BetaCfg, "arXiv:2502.10574");

impl BetaCfg {
    fn factor(&self, moment: &Moment) -> f64 {
        self.scale * Schedule::BetaDensity { a: self.a, b: self.b }.at(moment.progress)
    }
}

impl Guidance for BetaCfg {
    fn check(&self) -> Vec<Problem> {
        let mut problems = no_logits("space", self.space);
        if self.space.is_some() && self.gamma == 0.0 {
            let what = "`space` has no effect: the update is not normalised at `gamma` 0";
            problems.push(Problem::new("/space", what).and_at("/gamma"));
        }
        problems
    }

    fn needs(&self) -> GuidanceNeeds {
        two_predictions(true, self.space)
    }

    fn start(&self) -> Box<dyn Trajectory> {
        Box::new(self.clone())
    }
}

impl Trajectory for BetaCfg {
    fn branches(&mut self, moment: &Moment) -> Vec<Branch> {
        match self.factor(moment) {
            0.0 => vec![Branch::null()],
            _ => vec![Branch::given(), Branch::null()],
        }
    }

    fn combine(&mut self, moment: &Moment, predictions: Vec<Tensor<3>>) -> Guided {
        let factor = self.factor(moment);
        combined(predictions, moment.channels, |[cond, null]| {
            let difference = cond - null.clone();
            if self.gamma == 0.0 {
                return null + difference * factor;
            }
            let length = norm(&difference).powf_scalar(self.gamma);
            null + difference * ratio(length.ones_like() * factor, length, 0.0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cfg;
    use crate::trials::{
        EVALUATIONS, assert_close, assert_equal_predictions_stay, assert_further_channels_are_conditional,
        assert_is_cfg, assert_is_conditional, assert_samples_are_independent, at, cfg, combined, one, prediction, run,
        run_on, values,
    };
    use framework::schedule::ScheduleForm;
    use proptest::prelude::*;

    fn beta(scale: f64, gamma: f64) -> BetaCfg {
        BetaCfg { scale, a: 1.0, b: 1.0, gamma, space: None }
    }

    fn peaked(scale: f64, gamma: f64) -> BetaCfg {
        BetaCfg { a: 2.0, b: 2.0, ..beta(scale, gamma) }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn a_uniform_density_without_norm_is_cfg(scale in 0.0..9.0f64) {
            assert_is_cfg(&beta(scale, 0.0), scale);
        }

        #[test]
        fn without_norm_it_is_a_schedule_of_cfg(scale in 0.1..9.0f64) {
            let schedule = Schedule::BetaDensity { a: 2.0, b: 2.0 };
            let cfg = Cfg { schedule, schedule_form: ScheduleForm::FromUnconditional, ..cfg(scale) };
            for (got, expected) in run(&peaked(scale, 0.0), 0, 2).iter().zip(run(&cfg, 0, 2)) {
                assert_close(got, &expected, 1e-9);
            }
        }

        #[test]
        fn a_normalised_update_has_a_fixed_length(scale in 0.1..9.0f64, factor in 0.1..9.0f64) {
            // The length of the difference has no effect.
            let scaled = |branch: &'static str, i: usize| {
                let null = prediction("null", 0, 1, i);
                if branch == "null" { null } else { null.clone() + (prediction("given", 0, 1, i) - null) * factor }
            };
            let got = run_on(&peaked(scale, 1.0), 1, &scaled);
            for (i, (got, expected)) in got.iter().zip(run(&peaked(scale, 1.0), 0, 1)).enumerate() {
                assert_close(got, &expected, 1e-9);
                let null = values(prediction("null", 0, 1, i));
                let length = got.iter().zip(null).map(|(got, null)| (got - null).powi(2)).sum::<f64>().sqrt();
                let progress = at(i).progress;
                prop_assert!((length - scale * 6.0 * progress * (1.0 - progress)).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn scale_one_is_the_conditional_for_a_uniform_density_without_norm() {
        assert_is_conditional(&beta(1.0, 0.0));
    }

    #[test]
    fn both_ends_are_unconditional_and_need_one_branch() {
        let lengths: Vec<usize> = (0..EVALUATIONS).map(|i| peaked(3.0, 0.5).start().branches(&at(i)).len()).collect();
        assert_eq!(lengths, [1, 2, 2, 2, 1]);
        assert_close(&run(&peaked(3.0, 0.5), 0, 1)[0], &values(prediction("null", 0, 1, 0)), 0.0);
    }

    #[test]
    fn batches_and_equal_and_further_predictions() {
        assert_samples_are_independent(&peaked(4.0, 0.7));
        assert_equal_predictions_stay(&peaked(4.0, 0.7));
        assert_further_channels_are_conditional(&peaked(4.0, 0.7));
    }

    #[test]
    fn worked_by_hand() {
        // The difference (9, 12) has length 15: 5 d / 15.
        assert_close(&combined(&beta(5.0, 1.0), &one([[10.0, 12.0]]), &one([[1.0, 0.0]])), &[4.0, 4.0], 1e-12);
        // Length 16: at gamma 0.5 the update is divided by 4.
        assert_close(&combined(&beta(2.0, 0.5), &one([[16.0, 0.0]]), &one([[0.0, 0.0]])), &[8.0, 0.0], 1e-12);
    }
}
