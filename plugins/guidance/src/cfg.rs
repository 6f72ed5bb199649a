//! Classifier-free guidance.
//!
//!   g          = f_null + s (f_cond - f_null),   s = 1 + (scale - 1) schedule(progress)
//!   prediction = rescale g std(f_cond) / std(g) + (1 - rescale) g
//!
//! Source: arXiv:2207.12598 eq. 6 (scale = 1 + w); arXiv:2305.08891 eq. 15 (rescale, in the network's own
//! prediction space); arXiv:2404.07724 (interval); arXiv:2303.14389 (power cosine).

use framework::prelude::*;
use framework::sampling::guidance::{Branch, Guidance, GuidanceNeeds, Guided, Moment, Trajectory, mix};
use framework::schedule::Schedule;

/// Classifier-free guidance. Two passes per step, or one where the scale is 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cfg {
    /// Guidance scale, 0 to 1000; 1 = no guidance, 0 = unconditional.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub scale: f64,
    /// Schedule of the scale over the progress.
    #[serde(default)]
    pub schedule: Schedule,
    /// Weight of the prediction that is rescaled to the standard deviation of the conditional one, in [0, 1].
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub rescale: f64,
    /// Number of leading channels to guide; null = all. The published DiT and SiT samplers guide 3 of 4.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub guided_channels: Option<usize>,
}

framework::register!(guidance "cfg" => Cfg, "arXiv:2207.12598", "arXiv:2305.08891", "arXiv:2404.07724");

impl Cfg {
    fn scale_at(&self, moment: &Moment) -> f64 {
        1.0 + (self.scale - 1.0) * self.schedule.at(moment.progress)
    }

    /// Returns the branch that alone equals the mixture on every channel, or `None` if both branches are needed.
    fn one_branch(&self, scale: f64, moment: &Moment) -> Option<Branch> {
        let all = self.guided_channels.is_none_or(|n| n >= moment.channels);
        match scale {
            1.0 => Some(Branch::given()),
            0.0 if all && self.rescale == 0.0 => Some(Branch::null()),
            _ => None,
        }
    }
}

impl Guidance for Cfg {
    fn check(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> =
            self.schedule.check().into_iter().map(|problem| problem.under("/schedule")).collect();
        if self.scale == 1.0 {
            for (name, set) in [("schedule", self.schedule != Schedule::Constant), ("rescale", self.rescale > 0.0)] {
                if set {
                    problems.push(
                        Problem::new(format!("/{name}"), format!("`{name}` has no effect at scale 1")).and_at("/scale"),
                    );
                }
            }
        }
        problems
    }

    fn needs(&self) -> GuidanceNeeds {
        let guides = self.scale != 1.0;
        GuidanceNeeds { null: guides, ..GuidanceNeeds::branches(if guides { 2 } else { 1 }) }
    }

    fn start(&self) -> Box<dyn Trajectory> {
        Box::new(self.clone())
    }
}

impl Trajectory for Cfg {
    fn branches(&mut self, moment: &Moment) -> Vec<Branch> {
        match self.one_branch(self.scale_at(moment), moment) {
            Some(branch) => vec![branch],
            None => vec![Branch::given(), Branch::null()],
        }
    }

    fn combine(&mut self, moment: &Moment, predictions: Vec<Tensor<3>>) -> Guided {
        let scale = self.scale_at(moment);
        let [cond, null] = match <[Tensor<3>; 2]>::try_from(predictions) {
            Ok(both) => both,
            Err(mut one) => return one.remove(0).into(),
        };
        let channels = self.guided_channels.unwrap_or(moment.channels).min(moment.channels);
        let guided = mix(cond.clone(), null, scale, channels);
        if self.rescale == 0.0 {
            return guided.into();
        }
        // The ratio std(cond) / std(guided) is computed per sample over the latent's channels. Channels of a learned
        // variance are not rescaled.
        let total = cond.dims()[2];
        let latent = guided.clone().narrow(2, 0, moment.channels);
        let ratio = deviation(cond.narrow(2, 0, moment.channels)) / deviation(latent.clone());
        let rescaled = latent * (ratio * self.rescale + (1.0 - self.rescale));
        if total == moment.channels {
            return rescaled.into();
        }
        Tensor::cat(vec![rescaled, guided.narrow(2, moment.channels, total - moment.channels)], 2).into()
    }
}

/// Returns the standard deviation per sample, `[B, 1, 1]`.
fn deviation(x: Tensor<3>) -> Tensor<3> {
    let centred = x.clone() - x.mean_dim(1).mean_dim(2);
    (centred.clone() * centred).mean_dim(1).mean_dim(2).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use framework::burn::tensor::DType;
    use framework::random::tensor;
    use proptest::prelude::*;

    fn at(progress: f64) -> Moment {
        Moment { progress, t: 1.0 - progress, evaluation: 0, channels: 4 }
    }

    fn values(x: Tensor<3>) -> Vec<f64> {
        x.into_data().try_into_vec::<f64>().unwrap()
    }

    fn pair() -> impl Strategy<Value = (Tensor<3>, Tensor<3>)> {
        let numbers = || proptest::collection::vec(-2.0..2.0f64, 2 * 3 * 4);
        let grid = |v: Vec<f64>| tensor::<3>(&v, [2, 3, 4], DType::F64, &Device::flex());
        (numbers(), numbers()).prop_map(move |(a, b)| (grid(a), grid(b)))
    }

    fn cfg(scale: f64) -> Cfg {
        Cfg { scale, schedule: Schedule::Constant, rescale: 0.0, guided_channels: None }
    }

    fn combined(rule: &Cfg, cond: &Tensor<3>, null: &Tensor<3>, progress: f64) -> Vec<f64> {
        let mut trajectory = rule.start();
        let moment = at(progress);
        let branches = trajectory.branches(&moment).len();
        let predictions = [cond.clone(), null.clone()];
        values(trajectory.combine(&moment, predictions[..branches].to_vec()).prediction)
    }

    proptest! {
        #[test]
        fn scale_one_is_the_conditional_and_one_branch((cond, null) in pair(), p in 0.0..1.0f64) {
            prop_assert_eq!(cfg(1.0).start().branches(&at(p)).len(), 1);
            prop_assert_eq!(combined(&cfg(1.0), &cond, &null, p), values(cond));
        }

        #[test]
        fn equal_branches_are_left_alone((cond, _) in pair(), scale in 0.1..8.0f64) {
            let out = combined(&cfg(scale), &cond, &cond, 0.5);
            for (a, b) in out.iter().zip(values(cond)) { prop_assert!((a - b).abs() < 1e-12); }
        }

        #[test]
        fn full_rescale_has_the_conditional_deviation((cond, null) in pair(), scale in 1.5..8.0f64) {
            let rule = Cfg { rescale: 1.0, ..cfg(scale) };
            let out = tensor::<3>(&combined(&rule, &cond, &null, 0.5), [2, 3, 4], DType::F64, &Device::flex());
            for (a, b) in values(deviation(out)).iter().zip(values(deviation(cond))) { prop_assert!((a - b).abs() < 1e-9); }
        }

        #[test]
        fn only_guided_channels_change((cond, null) in pair(), scale in 1.5..8.0f64) {
            let rule = Cfg { guided_channels: Some(3), ..cfg(scale) };
            let (some, all) = (combined(&rule, &cond, &null, 0.5), combined(&cfg(scale), &cond, &null, 0.5));
            for (i, (some, cond)) in some.iter().zip(values(cond)).enumerate() {
                if i % 4 == 3 { prop_assert_eq!(*some, cond) } else { prop_assert_eq!(*some, all[i]) }
            }
        }

        #[test]
        fn schedules_stay_in_the_unit_interval(p in 0.0..1.0f64, power in 0.1..8.0f64) {
            for schedule in [Schedule::Constant, Schedule::Linear, Schedule::Cosine, Schedule::PowerCosine { power }] {
                prop_assert!((0.0..=1.0).contains(&schedule.at(p)));
                prop_assert!((schedule.at(1.0) - 1.0).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn interval_saves_the_second_pass() {
        let rule = Cfg { schedule: Schedule::Interval { from: 0.3, to: 0.6 }, ..cfg(3.0) };
        let branches: Vec<usize> = (0..10).map(|i| rule.start().branches(&at(f64::from(i) / 10.0)).len()).collect();
        assert_eq!(branches, [1, 1, 1, 2, 2, 2, 2, 1, 1, 1]);
    }

    #[test]
    fn worked_by_hand() {
        let one = |v: f64| tensor::<3>(&[v; 4], [1, 1, 4], DType::F64, &Device::flex());
        assert_eq!(combined(&cfg(3.0), &one(2.0), &one(1.0), 0.5), [4.0; 4]);
        assert_eq!(combined(&cfg(0.0), &one(1.0), &one(1.0), 0.5), [1.0; 4]);
    }
}
