//! Model guidance (MG).
//!
//!   plain:        loss = L(f(c~) - w sg[f_ema(c) - f_ema(null)], y),   w = scale - 1
//!   scale input:  loss = L(f(c, scale) - w sg[f_ema(c, 1) - f_ema(null, 0)], y),   scale ~ U(scale_min, scale_max)
//!
//! with w = 0 where t >= t_high, before start_step, and for samples that are not guided. For a squared error this is the
//! published loss, with the target `y + w sg[..]`; on logits it is our extension.
//! Source: arXiv:2502.12154, eq. 16-20, and its released code.  Optimum: plain, scale 1 / (2 - scale), which diverges at
//! scale 2 (w = 1); with the scale as input, exactly `scale`.

use framework::prelude::*;

/// What stands for the unconditional prediction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Unconditional {
    /// The null condition.
    #[default]
    Null,
    /// One wrong class at random: no null condition is needed ("contrastive").
    WrongClass,
    /// The mean over so many classes at random: the law of total probability with equal weights.
    Classes {
        /// Classes drawn a sample; each costs a pass without gradient.
        #[schemars(range(min = 1, max = 1000))]
        count: usize,
    },
}

/// Train the guided prediction itself, taught by the average of the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(
    example = framework::serde_json::json!({ "scale_input": true, "scale_max": 5.0 }),
    example = framework::serde_json::json!({ "unconditional": { "type": "classes", "count": 2 } }),
    example = framework::serde_json::json!({ "unconditional": { "type": "wrong_class" }, "scale_input": true })
)]
#[serde(deny_unknown_fields)]
pub struct Mg {
    /// Smallest guidance scale drawn, 1 to 1000; 1 = none. Equal to `scale_max` for a network without scale input.
    #[serde(default = "published")]
    #[schemars(range(min = 1.0, max = 1000.0))]
    pub scale_min: f64,
    /// Largest guidance scale drawn. Published run: 1.45.
    #[serde(default = "published")]
    #[schemars(range(min = 1.0, max = 1000.0))]
    pub scale_max: f64,
    /// Whether the network reads the scale.
    #[serde(default)]
    pub scale_input: bool,
    /// Guidance is taught where t < t_high, in [0, 1]; 0 = data, 1 = noise.
    #[serde(default = "three_quarters")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub t_high: f64,
    /// Optimizer steps before guidance is taught; published 100,000.
    #[serde(default)]
    #[schemars(range(max = 1_000_000_000))]
    pub start_step: usize,
    /// Share of the samples that are guided, in [0, 1]; null = published: all that are not dropped, or 0.2 with
    /// `scale_input`. The rest is trained plainly.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub guided_share: Option<f64>,
    /// Probability of training a sample without its condition, in [0, 1].
    #[serde(default = "tenth")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub drop_probability: f64,
    /// What stands for the unconditional prediction.
    #[serde(default)]
    pub unconditional: Unconditional,
}

fn published() -> f64 {
    1.45
}
fn tenth() -> f64 {
    0.1
}
fn three_quarters() -> f64 {
    0.75
}

framework::register!(objective "mg" => Mg, "arXiv:2502.12154");

impl Mg {
    /// Share of the samples that are guided.
    fn guided(&self) -> f64 {
        self.guided_share.unwrap_or(if self.scale_input { 0.2 } else { 1.0 - self.drop_probability })
    }

    /// The prediction that stands for the unconditional one.
    fn contrast(&self, context: &Context<'_>) -> Tensor<3> {
        let number = |scale: f64| self.scale_input.then(|| vec![scale; context.batch()]);
        match self.unconditional {
            Unconditional::Null => context.model(Role::Ema, &context.condition.null(), number(0.0).as_deref()),
            Unconditional::WrongClass => {
                context.model(Role::Ema, &context.other_class("contrast"), number(1.0).as_deref())
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
        if self.scale_min > self.scale_max {
            let what = format!("`scale_min` = {} is larger than `scale_max` = {}", self.scale_min, self.scale_max);
            problems.push(Problem::new("/scale_min", what).and_at("/scale_max").accepts("scale_min <= scale_max"));
        }
        if !self.scale_input && self.scale_min < self.scale_max {
            let what = "a network that does not read the scale can learn one scale only";
            let problem = Problem::new("/scale_min", what).and_at("/scale_max").accepts("scale_min = scale_max");
            problems.push(problem.fix("switch /objective/scale_input on"));
        }
        if !self.scale_input && self.scale_max >= 2.0 {
            let what = format!(
                "without scale input, training at scale {} diverges: its optimum is 1 / (2 - scale)",
                self.scale_max
            );
            problems.push(Problem::new("/scale_max", what).accepts("a scale below 2, or `scale_input`"));
        }
        if self.guided() + self.drop_probability > 1.0 + 1e-12 {
            let what = format!(
                "`guided_share` = {} and `drop_probability` = {} are more than all",
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
            guidance_input: self.scale_input,
            ema: true,
            classes: self.unconditional != Unconditional::Null,
            ..Needs::default()
        }
    }

    fn loss(&self, context: &Context<'_>) -> Tensor<1> {
        let shares = [self.drop_probability, self.guided(), 1.0 - self.drop_probability - self.guided()];
        let branch = context.choice("branch", &shares.map(|share| share.max(0.0)));
        let (dropped, guided) = (|i: usize| branch[i] == 0, |i: usize| branch[i] == 1);
        let scale = context.uniform("scale", self.scale_min, self.scale_max);
        let number = |i: usize| match branch[i] {
            0 => 0.0,
            1 => scale[i],
            _ => 1.0,
        };
        let input: Option<Vec<f64>> = self.scale_input.then(|| (0..context.batch()).map(number).collect());
        let condition = context.condition.dropped(&(0..context.batch()).map(dropped).collect::<Vec<_>>());
        let prediction = context.online(&condition, input.as_deref());
        if context.step < self.start_step {
            return context.loss(prediction);
        }
        let one = self.scale_input.then(|| vec![1.0; context.batch()]);
        let toward = context.model(Role::Ema, context.condition, one.as_deref()) - self.contrast(context);
        let weight =
            context.weights(
                &prediction,
                |i, progress| {
                    if guided(i) && 1.0 - progress < self.t_high { scale[i] - 1.0 } else { 0.0 }
                },
            );
        context.loss(prediction - toward * weight)
    }

    fn optimum(&self, family: Family) -> Optimum {
        if self.unconditional == Unconditional::Null && self.drop_probability == 0.0 {
            return Optimum::Unstated("the null prediction is never trained: it stays what it was at the start");
        }
        if self.unconditional != Unconditional::Null && (family != Family::Continuous) {
            return Optimum::Unstated("the cross-entropy of a mixture over random classes is not that of its mean");
        }
        if !self.scale_input && (self.guided() + self.drop_probability - 1.0).abs() > 1e-12 {
            return Optimum::Unstated("plain and guided samples train the same prediction");
        }
        if !self.scale_input && self.scale_max >= 2.0 {
            return Optimum::Unbounded("the fixed point 1 / (2 - s) repels from s = 2 on");
        }
        let (t_high, fixed) = (self.t_high, self.scale_max);
        let within = move |progress: f64| 1.0 - progress < t_high;
        let against = match self.unconditional {
            Unconditional::Null => Against::Null,
            Unconditional::WrongClass => Against::MeanOfOtherClasses,
            Unconditional::Classes { .. } => Against::MeanOfClasses,
        };
        let tilt = if self.scale_input {
            Tilt::data("s", move |scale, progress| match scale {
                Some(scale) if within(progress) => scale,
                _ => 1.0,
            })
        } else {
            Tilt::data("1 / (2 - s)", move |_, progress| if within(progress) { 1.0 / (2.0 - fixed) } else { 1.0 })
        };
        if against == Against::MeanOfOtherClasses && !self.scale_input {
            return Optimum::Unstated(
                "it depends on the number of classes n: 1 / (1 - w n / (n - 1)) against their mean",
            );
        }
        Optimum::Tilted(Tilt { against, ..tilt })
    }

    fn guidance_of_scale(&self, scale: f64) -> Option<f64> {
        self.scale_input.then_some(scale)
    }

    fn scale_of_guidance(&self, guidance: f64) -> Option<f64> {
        self.scale_input.then_some(guidance)
    }

    fn extra_passes(&self) -> usize {
        match self.unconditional {
            Unconditional::Classes { count } => 1 + count,
            _ => 2,
        }
    }
}
