//! Model guidance (MG).
//!
//!   plain:        loss = L(f(c~) - w sg[f_ema(c) - f_ema(null)], y),   w = scale - 1
//!   scale input:  loss = L(f(c, scale) - w sg[f_ema(c, 1) - f_ema(null, 0)], y),   scale ~ U(min, max)
//!
//! where w = 0 if t >= t_high, before start_step, and for samples that are not guided. For a squared error this equals
//! the published loss, whose target is `y + w sg[..]`. On logits it is our extension.
//! Source: arXiv:2502.12154, eq. 16-20, and its released code.
//! Optimum: plain, scale 1 / (2 - scale), which diverges at scale 2 (w = 1). With the scale as input, exactly `scale`.

use framework::objective::context::Memory;
use framework::prelude::*;
use std::collections::BTreeMap;

/// Substitute for the unconditional prediction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Unconditional {
    /// The prediction for the null condition.
    #[default]
    Null,
    /// The prediction for a random wrong class ("contrastive"). Needs no null condition.
    WrongClass(WrongClass),
    /// The mean prediction over random classes: the law of total probability with equal weights.
    Classes {
        /// Number of random classes per sample, 1 to 1000. Each costs one gradient-free pass.
        #[schemars(range(min = 1, max = 1000))]
        count: usize,
    },
}

/// Settings of a wrong class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WrongClass {
    /// Scale at which the teacher reads the wrong class, if the network reads a scale: 0 to 1000. 0 = as in the released
    /// code, although training reaches no class at scale 0; 1 = the trained conditional prediction.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub teacher_scale: f64,
}

/// Scale that guided samples read before `start_step`, if the network reads a scale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BeforeStart {
    /// Scale 1, as in the released code: the target has no guidance yet.
    #[default]
    One,
    /// The sample's own random scale.
    Random,
}

/// Guidance scale that the network learns; 1 = no guidance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Scale {
    /// One fixed scale. Training has a rest point only below 2. Published runs: 1.25 to 2, best 1.45.
    Fixed(FixedScale),
    /// A scale per sample, uniform between two bounds, that the network reads as input.
    Input(InputScale),
    /// A scale that follows the quality of samples. It starts at 1, rises when quality falls, and falls otherwise.
    ///
    /// Source: arXiv:2502.12154, sec. 3.3, which describes it only in words. The constants are our choice.
    Automatic(AutomaticScale),
}

impl Default for Scale {
    fn default() -> Self {
        Self::Fixed(FixedScale::default())
    }
}

/// Settings of a fixed scale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FixedScale {
    /// The scale, at least 1. From 2 on, predictions grow without bound where t < t_high; `t_high` must be below 1.
    #[schemars(range(min = 1.0, max = 1000.0))]
    pub scale: f64,
}

impl Default for FixedScale {
    fn default() -> Self {
        Self { scale: 1.45 }
    }
}

/// Settings of a scale that the network reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct InputScale {
    /// Smallest scale, 1 to 1000.
    #[schemars(range(min = 1.0, max = 1000.0))]
    pub min: f64,
    /// Largest scale, 1 to 1000.
    #[schemars(range(min = 1.0, max = 1000.0))]
    pub max: f64,
}

impl Default for InputScale {
    fn default() -> Self {
        Self { min: 1.0, max: 5.0 }
    }
}

/// Settings of a scale that follows the quality of samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["measurement"]))]
pub struct AutomaticScale {
    /// Name of the measurement to follow, e.g. `frechet_pixels`.
    pub measurement: String,
    /// Whether smaller is better.
    pub lower_is_better: bool,
    /// Largest scale, 1 to 1.999.
    #[schemars(range(min = 1.0, max = 1.999))]
    pub max: f64,
    /// Change of the scale after each measurement, above 0 and at most 10.
    #[schemars(range(min = 1e-6, max = 10.0))]
    pub rate: f64,
    /// Weight of past values in the moving averages of the measurement and the scale, in [0, 1).
    #[schemars(range(min = 0.0, max = 0.999))]
    pub smoothing: f64,
}

impl Default for AutomaticScale {
    fn default() -> Self {
        Self { measurement: String::new(), lower_is_better: true, max: 1.9, rate: 0.1, smoothing: 0.5 }
    }
}

/// Training of the guided prediction itself. The exponential moving average of the weights is the teacher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(
    example = framework::serde_json::json!({ "scale": { "type": "input" } }),
    example = framework::serde_json::json!({ "unconditional": { "type": "classes", "count": 2 } }),
    example = framework::serde_json::json!({ "unconditional": { "type": "wrong_class", "teacher_scale": 1.0 }, "scale": { "type": "input" } })
)]
pub struct Mg {
    /// Guidance scale that the network learns.
    pub scale: Scale,
    /// Guidance applies where t < t_high, in [0, 1]; 0 = data, 1 = noise. For tokens, t = 1 - progress. For masked
    /// tokens, this is the hidden share, which is rarely below 0.75 in training.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub t_high: f64,
    /// Number of optimizer steps without guidance at the start. Published: 100,000.
    #[schemars(range(max = 1_000_000_000))]
    pub start_step: usize,
    /// Scale that guided samples read before `start_step`.
    pub before_start: BeforeStart,
    /// Share of guided samples, in [0, 1]. null = the published share: all samples that are not dropped, or 0.2 if the
    /// network reads the scale. The other samples are trained without guidance.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub guided_share: Option<f64>,
    /// Probability per sample of dropping the condition, in [0, 1].
    #[schemars(range(min = 0.0, max = 1.0))]
    pub drop_probability: f64,
    /// Substitute for the unconditional prediction.
    pub unconditional: Unconditional,
}

impl Default for Mg {
    fn default() -> Self {
        Self {
            scale: Scale::default(),
            t_high: 0.75,
            start_step: 0,
            before_start: BeforeStart::default(),
            guided_share: None,
            drop_probability: 0.1,
            unconditional: Unconditional::default(),
        }
    }
}

framework::register!(objective "mg" => Mg, "arXiv:2502.12154");

impl Mg {
    /// Returns the share of guided samples.
    fn guided(&self) -> f64 {
        self.guided_share.unwrap_or(if self.reads_scale() { 0.2 } else { 1.0 - self.drop_probability })
    }

    /// Returns whether the network reads the scale.
    fn reads_scale(&self) -> bool {
        matches!(self.scale, Scale::Input(_))
    }

    /// Evaluates the substitute for the unconditional prediction.
    fn contrast(&self, context: &Context<'_>) -> Tensor<3> {
        let number = |scale: f64| self.reads_scale().then(|| vec![scale; context.batch()]);
        match self.unconditional {
            Unconditional::Null => context.model(Role::Ema, &context.condition.null(), number(0.0).as_deref()),
            Unconditional::WrongClass(WrongClass { teacher_scale }) => {
                context.model(Role::Ema, &context.other_class("contrast"), number(teacher_scale).as_deref())
            }
            Unconditional::Classes { count } => {
                let one = |i: usize| {
                    context.model(Role::Ema, &context.any_class(&format!("contrast {i}")), number(1.0).as_deref())
                };
                (1..count).fold(one(0), |sum, i| sum + one(i)) / count as f64
            }
        }
    }
}

impl Objective for Mg {
    fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        match self.scale {
            Scale::Input(InputScale { min, max }) if min > max => {
                let what = format!("`min` = {min} is larger than `max` = {max}");
                problems.push(Problem::new("/scale/min", what).and_at("/scale/max").accepts("min <= max"));
            }
            Scale::Fixed(FixedScale { scale }) if scale >= 2.0 && self.t_high >= 1.0 => {
                let what = format!("training diverges at the fixed scale {scale}: the optimum is 1 / (2 - scale)");
                let problem = Problem::new("/scale/scale", what).accepts("a scale below 2, or `t_high` below 1");
                problems.push(problem.fix(
                    "set /objective/scale to {\"type\": \"input\"}: a network that reads the scale can learn any",
                ));
            }
            _ => {}
        }
        if self.before_start != BeforeStart::default() && (self.start_step == 0 || !self.reads_scale()) {
            let problem = Problem::new("/before_start", "`before_start` has no effect");
            problems.push(problem.accepts("a `start_step` above 0 and a network that reads the scale, or no entry"));
        }
        if let Unconditional::WrongClass(WrongClass { teacher_scale }) = self.unconditional
            && teacher_scale != 0.0
            && !self.reads_scale()
        {
            let problem = Problem::new("/unconditional/teacher_scale", "`teacher_scale` has no effect");
            problems.push(problem.accepts("a network that reads the scale, or no entry"));
        }
        if self.guided() + self.drop_probability > 1.0 + 1e-12 {
            let what = format!(
                "`guided_share` = {} and `drop_probability` = {} sum to more than 1",
                self.guided(),
                self.drop_probability
            );
            problems
                .push(Problem::new("/guided_share", what).and_at("/drop_probability").accepts("a sum of at most 1"));
        }
        problems
    }

    fn needs(&self) -> Needs {
        Needs {
            null_condition: self.drop_probability > 0.0 || self.unconditional == Unconditional::Null,
            guidance_input: self.reads_scale(),
            ema: true,
            classes: self.unconditional != Unconditional::Null,
            measurements: matches!(self.scale, Scale::Automatic(_)),
            ..Needs::default()
        }
    }

    fn loss(&self, context: &Context<'_>) -> Tensor<1> {
        let shares = [self.drop_probability, self.guided(), 1.0 - self.drop_probability - self.guided()];
        let branch = context.choice("branch", &shares.map(|share| share.max(0.0)));
        let (dropped, guided) = (|i: usize| branch[i] == 0, |i: usize| branch[i] == 1);
        let scale = match self.scale {
            Scale::Fixed(FixedScale { scale }) => vec![scale; context.batch()],
            Scale::Input(InputScale { min, max }) => context.uniform("scale", min, max),
            Scale::Automatic(_) => vec![context.remembered("scale").unwrap_or(1.0); context.batch()],
        };
        let waiting = context.step < self.start_step;
        let number = |i: usize| match branch[i] {
            0 => 0.0,
            1 if waiting && self.before_start == BeforeStart::One => 1.0,
            1 => scale[i],
            _ => 1.0,
        };
        let input: Option<Vec<f64>> = self.reads_scale().then(|| (0..context.batch()).map(number).collect());
        let condition = context.condition.dropped(&(0..context.batch()).map(dropped).collect::<Vec<_>>());
        let prediction = context.online(&condition, input.as_deref());
        if waiting {
            return context.loss(prediction);
        }
        let one = self.reads_scale().then(|| vec![1.0; context.batch()]);
        let toward = context.model(Role::Ema, context.condition, one.as_deref()) - self.contrast(context);
        let weight =
            context.weights(
                &prediction,
                |i, progress| {
                    if guided(i) && 1.0 - progress < self.t_high { scale[i] - 1.0 } else { 0.0 }
                },
            );
        context.loss(context.combine(prediction, toward * weight, |prediction, shift| prediction - shift))
    }

    fn measured(&self, memory: &mut Memory, measurements: &BTreeMap<String, f64>) -> Result<(), String> {
        let Scale::Automatic(settings) = &self.scale else {
            return Ok(());
        };
        let AutomaticScale { measurement, lower_is_better, max, rate, smoothing } = settings;
        let Some(now) = measurements.get(measurement) else {
            let known: Vec<&str> = measurements.keys().map(String::as_str).collect();
            return Err(format!("objective \"mg\" follows `{measurement}`; the metrics measure {}", known.join(", ")));
        };
        let smooth = |past: f64, new: f64| smoothing * past + (1.0 - smoothing) * new;
        let usual = memory.get("quality").copied().unwrap_or(*now);
        let worse = if *lower_is_better { *now > usual } else { *now < usual };
        let scale = memory.get("scale").copied().unwrap_or(1.0);
        let aim = (scale + if worse { *rate } else { -rate }).clamp(1.0, *max);
        memory.insert("quality".into(), smooth(usual, *now));
        memory.insert("scale".into(), smooth(scale, aim));
        Ok(())
    }

    fn warnings(&self) -> Vec<String> {
        match self.scale {
            Scale::Fixed(FixedScale { scale }) if scale >= 2.0 => vec![format!(
                "mg has no rest point at the fixed scale {scale}: its optimum is 1 / (2 - scale), and predictions at \
                 t < {} grow as long as training goes on. The paper reports FID 9.66 at scale 2, its worst; set \
                 /objective/scale to {{\"type\": \"input\"}} for a network that learns any scale",
                self.t_high
            )],
            _ => Vec::new(),
        }
    }

    fn extension(&self, family: Family) -> Option<&'static str> {
        let why = "the paper shifts the target of a squared error; with logits, the prediction is shifted back instead";
        family.has_logits().then_some(why)
    }

    fn null(&self) -> NullPrediction {
        if self.drop_probability > 0.0 {
            NullPrediction::TrainedAt(self.reads_scale().then_some(0.0))
        } else {
            NullPrediction::Untrained("`drop_probability` is 0")
        }
    }

    fn optimum(&self, family: Family) -> Optimum {
        if self.unconditional == Unconditional::Null && self.drop_probability == 0.0 {
            return Optimum::Unstated("the null prediction is never trained and keeps its initial value");
        }
        if let Unconditional::WrongClass(WrongClass { teacher_scale }) = self.unconditional
            && self.reads_scale()
            && teacher_scale != 1.0
        {
            return Optimum::Unstated("the teacher reads the wrong class at a scale that is not trained with a class");
        }
        if self.unconditional != Unconditional::Null && family.has_logits() {
            return Optimum::Unstated("cross-entropy does not commute with the mean over random classes");
        }
        if !self.reads_scale() && (self.guided() + self.drop_probability - 1.0).abs() > 1e-12 {
            return Optimum::Unstated("unguided and guided samples train the same prediction");
        }
        let fixed = match self.scale {
            Scale::Automatic(_) => return Optimum::Unstated("the scale moves with the quality of samples"),
            Scale::Fixed(FixedScale { scale }) if scale >= 2.0 => {
                return Optimum::Unbounded("the fixed point 1 / (2 - s) repels for s >= 2");
            }
            Scale::Fixed(FixedScale { scale }) => scale,
            Scale::Input(_) => 1.0,
        };
        let t_high = self.t_high;
        let within = move |progress: f64| 1.0 - progress < t_high;
        let against = match self.unconditional {
            Unconditional::Null => Against::Null,
            Unconditional::WrongClass(_) => Against::MeanOfOtherClasses,
            Unconditional::Classes { .. } => Against::MeanOfClasses,
        };
        let tilt = if self.reads_scale() {
            Tilt::data("s", move |scale, progress| match scale {
                Some(scale) if within(progress) => scale,
                _ => 1.0,
            })
        } else {
            Tilt::data("1 / (2 - s)", move |_, progress| if within(progress) { 1.0 / (2.0 - fixed) } else { 1.0 })
        };
        if matches!(against, Against::MeanOfOtherClasses) && !self.reads_scale() {
            return Optimum::Unstated(
                "the scale depends on the number of classes n: 1 / (1 - w n / (n - 1)) against the mean of all classes",
            );
        }
        Optimum::Tilted(Tilt { against, ..tilt })
    }

    fn settles_at(&self) -> usize {
        self.start_step
    }

    fn guidance_of_scale(&self, scale: f64) -> Option<f64> {
        self.reads_scale().then_some(scale)
    }

    fn scale_of_guidance(&self, guidance: f64) -> Option<f64> {
        self.reads_scale().then_some(guidance)
    }

    fn trained_scales(&self) -> Option<[f64; 2]> {
        match self.scale {
            Scale::Input(InputScale { min, max }) => Some([min, max]),
            _ => None,
        }
    }

    fn extra_passes(&self) -> usize {
        match self.unconditional {
            Unconditional::Classes { count } => 1 + count,
            _ => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn automatic_scale_rises_when_quality_falls() {
        let mg: Mg = framework::serde_json::from_str(
            r#"{"scale": {"type": "automatic", "measurement": "fid", "rate": 0.2, "smoothing": 0.5}}"#,
        )
        .unwrap();
        assert!(mg.check().is_empty());
        let mut memory = Memory::new();
        let mut tell = |fid: f64| {
            mg.measured(&mut memory, &BTreeMap::from([("fid".to_string(), fid)])).unwrap();
            memory["scale"]
        };
        // The first measurement equals its own average, so the scale stays at 1. Then 8 > 6 aims at 1.2 and moves half
        // the way. Then 5 < 7 aims at 0.9, which is clamped to 1.
        assert_eq!(tell(6.0), 1.0);
        assert!((tell(8.0) - 1.1).abs() < 1e-12);
        assert!((tell(5.0) - 1.05).abs() < 1e-12);
        assert!(mg.measured(&mut Memory::new(), &BTreeMap::new()).unwrap_err().contains("fid"));
    }

    #[test]
    fn a_fixed_scale_without_rest_point_warns_or_is_refused() {
        let fixed = |scale: f64, t_high: f64| Mg { scale: Scale::Fixed(FixedScale { scale }), t_high, ..Mg::default() };
        assert!(fixed(1.9, 1.0).warnings().is_empty() && fixed(1.9, 1.0).check().is_empty());
        assert!(fixed(2.0, 0.75).check().is_empty());
        assert!(fixed(2.0, 0.75).warnings()[0].contains("1 / (2 - scale)"));
        assert_eq!(fixed(2.0, 1.0).check()[0].at, ["/scale/scale"]);
        for family in Family::ALL {
            assert!(matches!(fixed(2.0, 0.75).optimum(family), Optimum::Unbounded(_)));
        }
    }
}
