//! No guidance: one branch and one pass per step.
//!
//!   prediction = f(x_t, c, guidance number of s),   s = 1 + (scale - 1) schedule(p) at progress p
//!
//! A guidance-free network reads the scale through its guidance input. Any other network predicts at scale 1.
//! Source: arXiv:2501.15420 app. D (MAR), which tunes a power-cosine schedule after training.

use framework::prelude::*;
use framework::sampling::guidance::{Branch, Guidance, GuidanceNeeds, Guided, Moment, Trajectory};
use framework::schedule::{Schedule, ScheduleForm};

/// One conditional pass per step, without guidance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(
    example = framework::serde_json::json!({ "scale": 2.0, "schedule": { "type": "power_cosine", "power": 1.5 } })
)]
#[serde(default, deny_unknown_fields)]
pub struct NoGuidance {
    /// Guidance scale passed to the network's guidance input, 0.001 to 1000; 1 = the conditional distribution.
    #[schemars(range(min = 1e-3, max = 1000.0))]
    pub scale: f64,
    /// Share f of the guidance over the progress of sampling: the network reads scale `1 + (scale - 1) f`. Needs no
    /// schedule in training. Networks that decode tokens then read all positions again at every step.
    pub schedule: Schedule,
}

impl Default for NoGuidance {
    fn default() -> Self {
        Self { scale: 1.0, schedule: Schedule::default() }
    }
}

framework::register!(guidance "none" => NoGuidance, "arXiv:2501.15420");

impl NoGuidance {
    /// Returns the scale that the network reads at progress `progress`.
    fn scale_at(&self, progress: f64) -> f64 {
        match self.schedule {
            Schedule::Constant => self.scale,
            schedule => ScheduleForm::FromConditional.scale(self.scale, schedule.at(progress)),
        }
    }
}

impl Guidance for NoGuidance {
    fn check(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> =
            self.schedule.check().into_iter().map(|problem| problem.under("/schedule")).collect();
        if self.schedule != Schedule::Constant && self.scale == 1.0 {
            let problem = Problem::new("/schedule", "`schedule` has no effect at scale 1").and_at("/scale");
            problems.push(problem.fix("set `scale`, for example 2.0"));
        }
        if let Schedule::BetaDensity { .. } = self.schedule {
            let what = "the share of `beta_density` has no upper bound, so the scale would leave the trained range";
            problems.push(Problem::new("/schedule/type", what).accepts("a schedule whose shares are from 0 to 1"));
        }
        problems
    }

    fn needs(&self) -> GuidanceNeeds {
        GuidanceNeeds::branches(1)
    }

    fn input_scale(&self) -> Option<f64> {
        (self.scale != 1.0).then_some(self.scale)
    }

    fn input_scales(&self) -> Option<[f64; 2]> {
        let scale = self.input_scale()?;
        let other = if self.schedule == Schedule::Constant { scale } else { 1.0 };
        Some([scale.min(other), scale.max(other)])
    }

    fn start(&self) -> Box<dyn Trajectory> {
        Box::new(self.clone())
    }
}

impl Trajectory for NoGuidance {
    fn branches(&mut self, moment: &Moment) -> Vec<Branch> {
        // A cache would keep positions that were read with the scale of an earlier step.
        let reads_all = self.schedule != Schedule::Constant;
        vec![Branch { scale: Some(self.scale_at(moment.progress)), reads_all, ..Branch::given() }]
    }

    fn combine(&mut self, _: &Moment, mut predictions: Vec<Tensor<3>>) -> Guided {
        predictions.remove(0).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(rule: &NoGuidance, progress: f64) -> Branch {
        let moment = Moment { progress, t: 1.0 - progress, evaluation: 0, channels: 1 };
        rule.clone().branches(&moment).remove(0)
    }

    #[test]
    fn beta_follows_the_power_cosine_of_the_paper() {
        let rule = NoGuidance { scale: 4.0, schedule: Schedule::PowerCosine { power: 2.0 } };
        assert!(rule.check().is_empty());
        for progress in [0.0, 0.3, 0.5, 1.0] {
            // 1 / beta_p = 1 + (1 / beta - 1) (1 - cos(pi p^a)) / 2 at beta = 1 / 4.
            let share = (1.0 - (std::f64::consts::PI * progress * progress).cos()) / 2.0;
            let branch = asked(&rule, progress);
            assert!((branch.scale.unwrap() - (1.0 + 3.0 * share)).abs() < 1e-12);
            assert!(branch.reads_all);
        }
        assert_eq!(rule.input_scales(), Some([1.0, 4.0]));
    }

    #[test]
    fn without_a_schedule_the_scale_is_constant_and_the_cache_stays() {
        let rule = NoGuidance { scale: 4.0, ..NoGuidance::default() };
        for progress in [0.0, 0.7] {
            let branch = asked(&rule, progress);
            assert_eq!((branch.scale, branch.reads_all), (Some(4.0), false));
        }
        assert_eq!(rule.input_scales(), Some([4.0, 4.0]));
        assert_eq!(NoGuidance::default().input_scales(), None);
    }

    #[test]
    fn schedules_without_effect_or_bound_are_refused() {
        let of = |scale, schedule| NoGuidance { scale, schedule }.check();
        assert!(of(1.0, Schedule::Linear)[0].what.contains("no effect"));
        assert_eq!(of(2.0, Schedule::BetaDensity { a: 2.0, b: 2.0 })[0].at, ["/schedule/type"]);
        assert_eq!(of(2.0, Schedule::Interval { from: 0.5, to: 0.2 })[0].at[0], "/schedule/from");
    }
}
