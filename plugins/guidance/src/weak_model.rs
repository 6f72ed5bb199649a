//! Guidance by a weaker network.
//!
//!   strong     = f(x_t, null) + cfg_scale (f(x_t, c) - f(x_t, null))
//!   weak       = h(x_t, null) + weak_cfg_scale (h(x_t, b) - h(x_t, null)),   b = c or null
//!   prediction = weak + scale (strong - weak)
//!
//! f is the sampled network and h the weak network of `guidance.weak`. The rule covers, by the choice of h:
//! autoguidance (a smaller or less trained network, b = c), domain guidance and unconditional priors (the network
//! before fine-tuning, b = null), personalization guidance (weights interpolated between both, b = null), guidance
//! by a reference or a negative-preference network (b = c, both CFG scales equal), and the step from a weak to a
//! strong network of CoRe^2 (b = c).
//!
//! Source: arXiv:2406.02507 (autoguidance, scale = w); arXiv:2504.01521 (domain guidance);
//! arXiv:2503.20240 (unconditional priors).

use framework::prelude::*;
use framework::sampling::guidance::{Asked, Branch, Guidance, GuidanceNeeds, Guided, Model, Moment, Trajectory, mix};
use framework::schedule::Schedule;

/// Guidance away from the prediction of a weaker network, `guidance.weak`. Two passes per step, one more for each
/// CFG scale that is not 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["scale"]))]
pub struct WeakModel {
    /// Scale of the difference between the networks, 0 to 1000; 1 = the strong network, 0 = the weak network.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub scale: f64,
    /// Scale passed to the guidance input of each network that has one, 0.001 to 1000; 1 = the conditional
    /// distribution.
    #[schemars(range(min = 1e-3, max = 1000.0))]
    pub input_scale: f64,
    /// Schedule of the scale over the progress.
    pub schedule: Schedule,
    /// Condition that the weak network reads.
    pub weak_condition: WeakCondition,
    /// Scale of classifier-free guidance of the strong network, 0 to 1000; 1 = none.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub cfg_scale: f64,
    /// Scale of classifier-free guidance of the weak network, 0 to 1000; 1 = none.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub weak_cfg_scale: f64,
}

impl Default for WeakModel {
    fn default() -> Self {
        Self {
            scale: 0.0,
            input_scale: 1.0,
            schedule: Schedule::default(),
            weak_condition: WeakCondition::default(),
            cfg_scale: 1.0,
            weak_cfg_scale: 1.0,
        }
    }
}

/// Condition that the weak network reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WeakCondition {
    /// The requested condition.
    #[default]
    Given,
    /// The null condition.
    Null,
}

framework::register!(guidance "weak_model" => WeakModel, "arXiv:2406.02507", "arXiv:2504.01521", "arXiv:2503.20240");

impl WeakModel {
    fn scale_at(&self, moment: &Moment) -> f64 {
        1.0 + (self.scale - 1.0) * self.schedule.at(moment.progress)
    }

    fn scaled(&self, branch: Branch) -> Branch {
        Branch { scale: Some(self.input_scale), ..branch }
    }

    /// Returns the branches of the strong network.
    fn strong(&self) -> Vec<Branch> {
        let null = (self.cfg_scale != 1.0).then(Branch::null);
        [Some(self.scaled(Branch::given())), null].into_iter().flatten().collect()
    }

    /// Returns the branches of the weak network.
    fn weak(&self) -> Vec<Branch> {
        let null = Branch { name: "weak_null", model: Model::Weak, ..Branch::null() };
        match self.weak_condition {
            WeakCondition::Null => vec![null],
            WeakCondition::Given if self.weak_cfg_scale == 1.0 => vec![self.scaled(Branch::weak())],
            WeakCondition::Given => vec![self.scaled(Branch::weak()), null],
        }
    }
}

impl Guidance for WeakModel {
    fn check(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> =
            self.schedule.check().into_iter().map(|problem| problem.under("/schedule")).collect();
        if self.scale == 1.0 {
            let what = "the weak network has no effect at scale 1";
            problems.push(
                Problem::new("/scale", what)
                    .accepts("a scale other than 1, or guidance \"cfg\" or \"none\" without a weak network"),
            );
        }
        if self.weak_condition == WeakCondition::Null && self.weak_cfg_scale != 1.0 {
            let what = "`weak_cfg_scale` has no effect: the weak network reads only the null condition";
            problems.push(Problem::new("/weak_cfg_scale", what).and_at("/weak_condition").accepts("1"));
        }
        problems
    }

    fn needs(&self) -> GuidanceNeeds {
        let weak_null = self.weak().iter().any(|branch| matches!(branch.condition, Asked::Null));
        GuidanceNeeds {
            null: self.cfg_scale != 1.0,
            weak: true,
            weak_null,
            ..GuidanceNeeds::branches(self.strong().len() + self.weak().len())
        }
    }

    fn input_scale(&self) -> Option<f64> {
        (self.input_scale != 1.0).then_some(self.input_scale)
    }

    fn start(&self) -> Box<dyn Trajectory> {
        Box::new(self.clone())
    }
}

impl Trajectory for WeakModel {
    fn branches(&mut self, moment: &Moment) -> Vec<Branch> {
        let mut branches = self.strong();
        if self.scale_at(moment) != 1.0 {
            branches.extend(self.weak());
        }
        branches
    }

    fn combine(&mut self, moment: &Moment, predictions: Vec<Tensor<3>>) -> Guided {
        let mut predictions = predictions.into_iter();
        let mut network = |branches: usize, cfg_scale: f64| {
            let first = predictions.next()?;
            Some(match branches {
                1 => first,
                _ => mix(first, predictions.next()?, cfg_scale, moment.channels),
            })
        };
        let strong = network(self.strong().len(), self.cfg_scale).expect("the strong network predicts at every step");
        match network(self.weak().len(), self.weak_cfg_scale) {
            Some(weak) => mix(strong, weak, self.scale_at(moment), moment.channels).into(),
            None => strong.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cfg::Cfg;
    use crate::testing::{Fake, close, evaluated, predicted, sampled, sampled_alone};

    fn rule(scale: f64) -> WeakModel {
        let (schedule, weak_condition) = (Schedule::Constant, WeakCondition::Given);
        WeakModel { scale, input_scale: 1.0, schedule, weak_condition, cfg_scale: 1.0, weak_cfg_scale: 1.0 }
    }

    fn cfg(scale: f64) -> Cfg {
        framework::serde_json::from_value(framework::serde_json::json!({ "scale": scale })).unwrap()
    }

    #[test]
    fn scale_one_is_the_strong_network_in_one_pass() {
        let (strong, weak) = (Fake::new(0), Fake::new(1));
        assert_eq!(evaluated(&rule(1.0), &strong, Some(&weak)), predicted(&strong));
        assert_eq!(rule(1.0).start().branches(&crate::testing::moment(0.5)).len(), 1);
    }

    #[test]
    fn scale_zero_is_the_weak_network() {
        let (strong, weak) = (Fake::new(0), Fake::new(1));
        close(&evaluated(&rule(0.0), &strong, Some(&weak)), &predicted(&weak));
    }

    #[test]
    fn the_same_network_as_weak_network_changes_nothing() {
        let network = Fake::new(0);
        close(&evaluated(&rule(4.0), &network, Some(&network)), &predicted(&network));
    }

    #[test]
    fn the_same_network_with_the_null_condition_is_cfg() {
        let network = Fake::new(0);
        let of_null = WeakModel { weak_condition: WeakCondition::Null, ..rule(3.0) };
        close(&evaluated(&of_null, &network, Some(&network)), &evaluated(&cfg(3.0), &network, None));
    }

    #[test]
    fn at_scale_one_and_zero_each_network_is_guided_at_its_own_cfg_scale() {
        let (strong, weak) = (Fake::new(0), Fake::new(1));
        let both = |scale| WeakModel { cfg_scale: 2.0, weak_cfg_scale: 5.0, ..rule(scale) };
        close(&evaluated(&both(1.0), &strong, Some(&weak)), &evaluated(&cfg(2.0), &strong, None));
        close(&evaluated(&both(0.0), &strong, Some(&weak)), &evaluated(&cfg(5.0), &weak, None));
        // The same network at equal CFG scales has no difference to amplify.
        let equal = WeakModel { cfg_scale: 2.0, weak_cfg_scale: 2.0, ..rule(3.0) };
        close(&evaluated(&equal, &strong, Some(&strong)), &evaluated(&cfg(2.0), &strong, None));
    }

    #[test]
    fn needs_are_those_of_the_branches() {
        let of_null = WeakModel { weak_condition: WeakCondition::Null, ..rule(3.0) };
        let guided = WeakModel { cfg_scale: 2.0, weak_cfg_scale: 2.0, ..rule(3.0) };
        for (rule, null, weak_null, branches) in
            [(rule(3.0), false, false, 2), (of_null, false, true, 2), (guided, true, true, 4)]
        {
            let needs = rule.needs();
            assert_eq!((needs.null, needs.weak_null, needs.most_branches), (null, weak_null, branches));
            assert!(needs.weak);
            assert_eq!(rule.start().branches(&crate::testing::moment(0.5)).len(), branches);
        }
    }

    #[test]
    fn a_batch_equals_its_samples() {
        let (strong, weak) = (Fake::new(0), Fake::new(1));
        let rule = WeakModel { cfg_scale: 2.0, schedule: Schedule::Linear, ..rule(3.0) };
        close(&sampled(&rule, &strong, Some(&weak)), &sampled_alone(&rule, &strong, Some(&weak)));
    }

    #[test]
    fn settings_without_effect_are_refused() {
        assert_eq!(rule(1.0).check()[0].at, ["/scale"]);
        let idle = WeakModel { weak_condition: WeakCondition::Null, weak_cfg_scale: 2.0, ..rule(3.0) };
        assert_eq!(idle.check()[0].at[0], "/weak_cfg_scale");
        assert!(rule(2.0).check().is_empty());
    }
}
