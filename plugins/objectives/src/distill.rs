//! Guidance distillation: a student learns the guided prediction of a frozen teacher.
//!
//!   loss = D(f(x_t, c, scale), r(x_t, null) + scale (r(x_t, c) - r(x_t, null))),   scale ~ U(scale_min, scale_max)
//!
//! where r is the reference (the teacher). D is the squared error, or KL(teacher | student) on logits.
//! Source: arXiv:2210.03142, sec. 3.1.  Optimum: one pass at `scale` samples like the teacher guided at that scale.

use framework::prelude::*;

/// Distance between the predictions of the student and of the guided teacher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Distance {
    /// Mean squared error in prediction space.
    #[default]
    SquaredError,
    /// KL(teacher | student) of the token distributions. Requires a backbone that predicts logits.
    KullbackLeibler,
}

/// Training of a one-pass student of a guided teacher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(
    example = framework::serde_json::json!({ "distance": "kullback_leibler" }),
    example = framework::serde_json::json!({ "scale_min": 2.0, "scale_max": 2.0 })
)]
#[serde(default, deny_unknown_fields)]
pub struct Distill {
    /// Smallest guidance scale in training, 0 to 1000; 1 = no guidance.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub scale_min: f64,
    /// Largest guidance scale in training, 0 to 1000. If equal to `scale_min`, the student learns only that scale and
    /// has no guidance input.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub scale_max: f64,
    /// Distance between the predictions of the student and of the guided teacher.
    pub distance: Distance,
}

impl Default for Distill {
    fn default() -> Self {
        Self { scale_min: 1.0, scale_max: 5.0, distance: Distance::default() }
    }
}

framework::register!(objective "distill" => Distill, "arXiv:2210.03142");

impl Distill {
    fn reads_scale(&self) -> bool {
        self.scale_min < self.scale_max
    }
}

impl Objective for Distill {
    fn check(&self) -> Vec<Problem> {
        if self.scale_min <= self.scale_max {
            return Vec::new();
        }
        let what = format!("`scale_min` = {} is larger than `scale_max` = {}", self.scale_min, self.scale_max);
        vec![Problem::new("/scale_min", what).and_at("/scale_max").accepts("scale_min <= scale_max")]
    }

    fn check_process(&self, process: &dyn Process) -> Vec<Problem> {
        if self.distance == Distance::SquaredError || process.prediction() == Prediction::Logits {
            return Vec::new();
        }
        let what = "\"kullback_leibler\" compares distributions over a vocabulary, but the backbone is continuous";
        vec![Problem::new("/distance", what).accepts("squared_error")]
    }

    fn needs(&self) -> Needs {
        Needs {
            null_condition: true,
            guidance_input: self.reads_scale(),
            reference: true,
            reference_null: true,
            ..Needs::default()
        }
    }

    fn loss(&self, context: &Context<'_>) -> Tensor<1> {
        let scale = context.uniform("scale", self.scale_min, self.scale_max);
        let conditional = context.model(Role::Reference, context.condition, None);
        let unconditional = context.model(Role::Reference, &context.condition.null(), None);
        let weight = context.weights(&conditional, |i, _| scale[i]);
        let teacher = unconditional.clone() + (conditional - unconditional) * weight;
        let student = context.online(context.condition, self.reads_scale().then_some(&scale[..]));
        match self.distance {
            Distance::SquaredError => context.squared_error(student, teacher),
            Distance::KullbackLeibler => context.divergence(student, teacher),
        }
    }

    fn null(&self) -> NullPrediction {
        NullPrediction::Untrained("the student learns guided predictions alone")
    }

    fn optimum(&self, _: Family) -> Optimum {
        let fixed = self.scale_max;
        let text = if self.reads_scale() { "s".to_string() } else { fixed.to_string() };
        let tilt = Tilt::data(text, move |scale, _| scale.unwrap_or(fixed));
        Optimum::Tilted(Tilt { from: Of::Reference, of: Of::Reference, ..tilt })
    }

    fn guidance_of_scale(&self, scale: f64) -> Option<f64> {
        self.reads_scale().then_some(scale)
    }

    fn scale_of_guidance(&self, guidance: f64) -> Option<f64> {
        self.reads_scale().then_some(guidance)
    }

    fn trained_scales(&self) -> Option<[f64; 2]> {
        self.reads_scale().then_some([self.scale_min, self.scale_max])
    }

    fn extra_passes(&self) -> usize {
        2
    }
}
