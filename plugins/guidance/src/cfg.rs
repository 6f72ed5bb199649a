//! Classifier-free guidance.
//!
//!   g          = f_null + s (f_cond - f_null)
//!   s          = 1 + (scale - 1) schedule(progress), or scale schedule(progress)
//!   s          = 1 outside sigma_interval
//!   f_null     = f(x_t, negative) if a negative class is set
//!   prediction = rescale g std(f_cond) / std(g) + (1 - rescale) g,   in the space `rescale_space`
//!
//! Source: arXiv:2207.12598 eq. 6 (scale = 1 + w); arXiv:2305.08891 eq. 15 (rescale); arXiv:2404.07724 (interval in
//! sigma); arXiv:2303.14389 (power cosine); arXiv:2404.13040 (schedules, form `scale schedule`).

use crate::per_sample::no_logits;
use framework::prelude::*;
use framework::sampling::guidance::{Asked, Branch, Guidance, GuidanceNeeds, Guided, Moment, Setting, Trajectory, mix};
use framework::schedule::{Schedule, ScheduleForm};

/// The noise levels at which guidance applies: `low < sigma_t / alpha_t <= high`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SigmaInterval {
    /// Noise level `sigma_t / alpha_t` above which guidance applies, 0 to 1e6; 0 = down to the data.
    #[schemars(range(min = 0.0, max = 1e6))]
    pub low: f64,
    /// Largest noise level `sigma_t / alpha_t` at which guidance applies, 0 to 1e6.
    #[schemars(range(min = 0.0, max = 1e6))]
    pub high: f64,
}

impl SigmaInterval {
    /// Returns the interval in time, `low < t <= high`.
    fn times(self, path: &dyn NoisePath) -> [f64; 2] {
        let low = if self.low == 0.0 { f64::NEG_INFINITY } else { path.t_of_lambda(-self.low.ln()) };
        // If `high` is at or above the largest noise level of the path, rounding in the inversion could exclude the end
        // of the path. Use no upper bound then.
        let all_noise = path.lambda(path.interval()[1]) >= -self.high.ln();
        [low, if all_noise { f64::INFINITY } else { path.t_of_lambda(-self.high.ln()) }]
    }
}

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
    /// How the schedule's share f changes the scale.
    #[serde(default)]
    pub schedule_form: ScheduleForm,
    /// Noise levels at which guidance applies; null = all. Outside the interval, the scale is 1 and there is no second
    /// pass. For masked networks, this is the noise level of the head.
    #[serde(default)]
    pub sigma_interval: Option<SigmaInterval>,
    /// Weight of the prediction that is rescaled to the standard deviation of the conditional one, in [0, 1].
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub rescale: f64,
    /// Prediction space in which `rescale` acts; null = the network's own. The result depends on the space.
    #[serde(default)]
    pub rescale_space: Option<Prediction>,
    /// Class, from 0, that replaces the null condition; null = none. Guidance then leads away from this class.
    #[serde(default)]
    pub negative: Option<usize>,
    /// Number of leading channels to guide; null = all. The published DiT and SiT samplers guide 3 of 4.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub guided_channels: Option<usize>,
}

framework::register!(
    guidance "cfg" => Cfg, "arXiv:2207.12598", "arXiv:2305.08891", "arXiv:2404.07724", "arXiv:2404.13040"
);

impl Cfg {
    /// Returns whether the scale is 1 at every progress.
    fn is_conditional(&self) -> bool {
        self.scale == 1.0
            && (self.schedule == Schedule::Constant || self.schedule_form == ScheduleForm::FromConditional)
    }

    /// Returns the branch that guidance leads away from.
    fn contrast(&self, samples: usize) -> Branch {
        let Some(class) = self.negative else { return Branch::null() };
        let condition = Asked::Other(Condition::Class(vec![Some(class); samples]));
        Branch { name: "negative", condition, ..Branch::given() }
    }
}

impl Guidance for Cfg {
    fn check(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> =
            self.schedule.check().into_iter().map(|problem| problem.under("/schedule")).collect();
        if self.is_conditional() {
            for (name, set) in [
                ("schedule", self.schedule != Schedule::Constant),
                ("sigma_interval", self.sigma_interval.is_some()),
                ("rescale", self.rescale > 0.0),
                ("negative", self.negative.is_some()),
            ] {
                if set {
                    problems.push(
                        Problem::new(format!("/{name}"), format!("`{name}` has no effect at scale 1")).and_at("/scale"),
                    );
                }
            }
        }
        if self.schedule == Schedule::Constant && self.schedule_form != ScheduleForm::default() {
            let what = "`schedule_form` has no effect: the schedule is constant";
            problems.push(Problem::new("/schedule_form", what).and_at("/schedule").fix("set a schedule"));
        }
        if let Some(SigmaInterval { low, high }) = self.sigma_interval
            && low >= high
        {
            let what = format!("the interval of noise levels from {low} to {high} is empty");
            problems
                .push(Problem::new("/sigma_interval/low", what).and_at("/sigma_interval/high").accepts("low < high"));
        }
        problems.extend(no_logits("rescale_space", self.rescale_space));
        if self.rescale_space.is_some() && self.rescale == 0.0 {
            let what = "`rescale_space` has no effect: `rescale` is 0";
            problems
                .push(Problem::new("/rescale_space", what).and_at("/rescale").fix("set `rescale`, for example 0.7"));
        }
        problems
    }

    fn needs(&self) -> GuidanceNeeds {
        let guides = !self.is_conditional();
        let path = self.sigma_interval.is_some() || self.rescale_space.is_some();
        let (null, class) = (guides && self.negative.is_none(), self.negative);
        let most_branches = if guides { 2 } else { 1 };
        GuidanceNeeds { null, class, space: self.rescale_space, path, ..GuidanceNeeds::branches(most_branches) }
    }

    fn start(&self) -> Box<dyn Trajectory> {
        Box::new(CfgTrajectory { rule: self.clone(), times: None, samples: 0 })
    }
}

/// The rule with its noise levels converted to times.
struct CfgTrajectory {
    rule: Cfg,
    /// Guidance applies where `times[0] < t <= times[1]`; `None` = everywhere.
    times: Option<[f64; 2]>,
    /// Number of samples in the batch.
    samples: usize,
}

impl CfgTrajectory {
    fn scale_at(&self, moment: &Moment) -> f64 {
        if self.times.is_some_and(|[low, high]| moment.t <= low || moment.t > high) {
            return 1.0;
        }
        self.rule.schedule_form.scale(self.rule.scale, self.rule.schedule.at(moment.progress))
    }
}

impl Trajectory for CfgTrajectory {
    fn begin(&mut self, setting: &Setting<'_>) {
        self.times = self.rule.sigma_interval.zip(setting.path).map(|(interval, path)| interval.times(path));
        self.samples = setting.samples;
    }

    fn branches(&mut self, moment: &Moment) -> Vec<Branch> {
        // One branch is enough if it equals the mixture on every channel.
        let all = self.rule.guided_channels.is_none_or(|n| n >= moment.channels);
        match self.scale_at(moment) {
            1.0 => vec![Branch::given()],
            0.0 if all && self.rule.rescale == 0.0 => vec![self.rule.contrast(self.samples)],
            _ => vec![Branch::given(), self.rule.contrast(self.samples)],
        }
    }

    fn combine(&mut self, moment: &Moment, predictions: Vec<Tensor<3>>) -> Guided {
        let (scale, rescale) = (self.scale_at(moment), self.rule.rescale);
        let [cond, null] = match <[Tensor<3>; 2]>::try_from(predictions) {
            Ok(both) => both,
            Err(mut one) => return one.remove(0).into(),
        };
        let channels = self.rule.guided_channels.unwrap_or(moment.channels).min(moment.channels);
        let guided = mix(cond.clone(), null, scale, channels);
        if rescale == 0.0 {
            return guided.into();
        }
        // The ratio std(cond) / std(guided) is computed per sample over the latent's channels. Channels of a learned
        // variance are not rescaled.
        let total = cond.dims()[2];
        let latent = guided.clone().narrow(2, 0, moment.channels);
        let ratio = deviation(cond.narrow(2, 0, moment.channels)) / deviation(latent.clone());
        let rescaled = latent * (ratio * rescale + (1.0 - rescale));
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
    use crate::trials::{assert_close, assert_is_conditional, assert_samples_are_independent, cfg, run, values};
    use framework::burn::tensor::DType;
    use framework::process::path::Coefficients;
    use framework::random::tensor;
    use proptest::prelude::*;

    fn at(progress: f64) -> Moment {
        Moment { progress, t: 1.0 - progress, evaluation: 0, channels: 4 }
    }

    fn pair() -> impl Strategy<Value = (Tensor<3>, Tensor<3>)> {
        let numbers = || proptest::collection::vec(-2.0..2.0f64, 2 * 3 * 4);
        let grid = |v: Vec<f64>| tensor::<3>(&v, [2, 3, 4], DType::F64, &Device::flex());
        (numbers(), numbers()).prop_map(move |(a, b)| (grid(a), grid(b)))
    }

    fn combined(rule: &Cfg, cond: &Tensor<3>, null: &Tensor<3>, progress: f64) -> Vec<f64> {
        let mut trajectory = rule.start();
        let moment = at(progress);
        let of = |branch: &Branch| if branch.name == "null" { null.clone() } else { cond.clone() };
        let predictions = trajectory.branches(&moment).iter().map(of).collect();
        values(trajectory.combine(&moment, predictions).prediction)
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
    #[test]
    fn schedules_have_two_forms() {
        let at_progress = |form, progress| {
            let rule = Cfg { schedule: Schedule::Linear, schedule_form: form, ..cfg(3.0) };
            let one = |v: f64| tensor::<3>(&[v; 4], [1, 1, 4], DType::F64, &Device::flex());
            combined(&rule, &one(2.0), &one(1.0), progress)[0]
        };
        // At share 0.25: scale 1.5, and scale 0.75. At share 0: the conditional and the unconditional prediction.
        assert_close(&[at_progress(ScheduleForm::FromConditional, 0.25)], &[2.5], 1e-12);
        assert_close(&[at_progress(ScheduleForm::FromUnconditional, 0.25)], &[1.75], 1e-12);
        assert_close(&[at_progress(ScheduleForm::FromConditional, 0.0)], &[2.0], 0.0);
        assert_close(&[at_progress(ScheduleForm::FromUnconditional, 0.0)], &[1.0], 0.0);
    }

    #[test]
    fn scale_one_is_the_conditional_only_in_the_form_from_the_conditional() {
        assert_is_conditional(&Cfg { schedule: Schedule::Sine, ..cfg(1.0) });
        let rule = Cfg { schedule: Schedule::Sine, schedule_form: ScheduleForm::FromUnconditional, ..cfg(1.0) };
        assert!(rule.needs().null && rule.check().is_empty());
        // The share is 0 at progress 1, so the last evaluation is unconditional.
        let last = run(&rule, 0, 1).pop().unwrap();
        assert_close(&last, &values(crate::trials::prediction("null", 0, 1, crate::trials::EVALUATIONS - 1)), 1e-12);
    }

    #[test]
    fn a_batch_equals_its_samples() {
        assert_samples_are_independent(&Cfg { rescale: 0.7, schedule: Schedule::Cosine, ..cfg(3.0) });
    }

    #[test]
    fn a_negative_class_replaces_the_null_condition() {
        let rule = Cfg { negative: Some(3), ..cfg(2.0) };
        assert_eq!((rule.needs().null, rule.needs().class), (false, Some(3)));
        let mut trajectory = rule.start();
        let shape = LatentShape::values([1, 3], 4);
        trajectory.begin(&Setting { shape: &shape, path: None, samples: 2 });
        let branches = trajectory.branches(&at(0.5));
        let Asked::Other(Condition::Class(classes)) = &branches[1].condition else { panic!("a class") };
        assert_eq!((branches.len(), classes.as_slice()), (2, [Some(3), Some(3)].as_slice()));
        let one = |v: f64| tensor::<3>(&[v; 4], [1, 1, 4], DType::F64, &Device::flex());
        let guided = trajectory.combine(&at(0.5), vec![one(2.0), one(1.0)]).prediction;
        assert_close(&values(guided), &[3.0; 4], 1e-12);
        assert_samples_are_independent(&rule);
        assert_eq!(Cfg { negative: Some(3), ..cfg(1.0) }.check().len(), 1);
    }

    /// The path `x_t = (1 - t) x + t eps`, with noise level `t / (1 - t)`.
    #[derive(Debug)]
    struct Straight;

    impl NoisePath for Straight {
        fn at(&self, t: f64) -> Coefficients {
            Coefficients { alpha: 1.0 - t, sigma: t, d_alpha: -1.0, d_sigma: 1.0 }
        }
        fn prediction(&self) -> Prediction {
            Prediction::Velocity
        }
        fn table(&self) -> Option<usize> {
            None
        }
    }

    /// Returns the times, out of 0.1, 0.2, .., 1, with two branches.
    fn guided_times(low: f64, high: f64) -> Vec<usize> {
        let mut trajectory = Cfg { sigma_interval: Some(SigmaInterval { low, high }), ..cfg(3.0) }.start();
        let shape = LatentShape::values([1, 3], 4);
        trajectory.begin(&Setting { shape: &shape, path: Some(&Straight), samples: 2 });
        (1..=10).filter(|i| trajectory.branches(&at(1.0 - f64::from(*i as u32) / 10.0)).len() == 2).collect()
    }

    #[test]
    fn the_sigma_interval_is_open_below_and_saves_the_second_pass() {
        // Noise levels of 0.3 to 2.0 are times of 0.23 to 0.67.
        assert_eq!(guided_times(0.3, 2.0), [3, 4, 5, 6]);
        assert_eq!(guided_times(0.0, 2.0), [1, 2, 3, 4, 5, 6]);
        assert_eq!(guided_times(2.0, 1e6), [7, 8, 9], "pure noise has an infinite level");
        assert_eq!(guided_times(2.0, 2.1), [0; 0], "an interval without a step is conditional sampling");
    }

    #[test]
    fn settings_without_effect_are_refused() {
        let at =
            |rule: Cfg| -> Vec<String> { rule.check().into_iter().flat_map(|p| p.at.into_iter().take(1)).collect() };
        assert_eq!(at(Cfg { schedule_form: ScheduleForm::FromUnconditional, ..cfg(2.0) }), ["/schedule_form"]);
        assert_eq!(at(Cfg { rescale_space: Some(Prediction::V), ..cfg(2.0) }), ["/rescale_space"]);
        assert_eq!(at(Cfg { rescale: 0.5, rescale_space: Some(Prediction::Logits), ..cfg(2.0) }), ["/rescale_space"]);
        let empty = Some(SigmaInterval { low: 2.0, high: 2.0 });
        assert_eq!(at(Cfg { sigma_interval: empty, ..cfg(2.0) }), ["/sigma_interval/low"]);
        let some = Some(SigmaInterval { low: 1.0, high: 2.0 });
        assert_eq!(at(Cfg { sigma_interval: some, ..cfg(1.0) }), ["/sigma_interval"]);
        assert!(at(Cfg { rescale: 0.5, rescale_space: Some(Prediction::V), ..cfg(2.0) }).is_empty());
    }
}
