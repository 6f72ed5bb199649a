//! Guidance-free training (GFT).
//!
//!   m    = beta f(x_t, c~, beta) + (1 - beta) sg[f(x_t, null, 1)],   beta ~ U(beta_min, beta_max)
//!   loss = L(m, y)
//!
//! Source: arXiv:2501.15420, algorithm 1.  Optimum: one pass at `beta` samples guidance at scale 1 / beta.

use framework::prelude::*;
use framework::random::per_sample;

/// What a sample whose condition was dropped is trained on. Its guidance number is 1 either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DroppedSample {
    /// The mixture at its drawn `beta`, as the released code: the unconditional gradient is scaled by `beta`.
    #[default]
    Mixed,
    /// The plain unconditional loss, as if its `beta` were 1.
    Plain,
}

/// Train one network that samples at any guidance scale in one pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gft {
    /// Smallest `beta` drawn, in [0, 1]. Unitless; `beta = 1 / scale`.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub beta_min: f64,
    /// Largest `beta` drawn, in [0, 1].
    #[serde(default = "one")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub beta_max: f64,
    /// Probability of training a sample without its condition, in [0, 1].
    #[serde(default = "tenth")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub drop_probability: f64,
    /// What a dropped sample is trained on.
    #[serde(default)]
    pub dropped_sample: DroppedSample,
}

fn one() -> f64 {
    1.0
}
fn tenth() -> f64 {
    0.1
}

framework::register!(objective "gft" => Gft, "arXiv:2501.15420");

impl Objective for Gft {
    fn check(&self) -> Vec<Problem> {
        if self.beta_min <= self.beta_max {
            return Vec::new();
        }
        let what = format!("`beta_min` = {} is larger than `beta_max` = {}", self.beta_min, self.beta_max);
        vec![Problem::new("/beta_min", what).and_at("/beta_max").accepts("beta_min <= beta_max")]
    }

    fn needs(&self) -> Needs {
        Needs { null_condition: true, guidance_input: true, ..Needs::default() }
    }

    fn loss(&self, context: &Context<'_>) -> Tensor<1> {
        let (condition, dropped) = context.drop_condition(self.drop_probability);
        let drawn = context.uniform("beta", self.beta_min, self.beta_max);
        let one_if_dropped = |beta: &[f64]| -> Vec<f64> {
            beta.iter().zip(&dropped).map(|(beta, dropped)| if *dropped { 1.0 } else { *beta }).collect()
        };
        let input = one_if_dropped(&drawn);
        let mixing = match self.dropped_sample {
            DroppedSample::Mixed => drawn,
            DroppedSample::Plain => one_if_dropped(&drawn),
        };
        let conditional = context.online(&condition, Some(&input));
        let unconditional = context.stopped(&context.condition.null(), Some(&vec![1.0; context.batch()]));
        let beta = per_sample(&mixing, &conditional);
        let rest = per_sample(&mixing.iter().map(|beta| 1.0 - beta).collect::<Vec<_>>(), &conditional);
        context.loss(conditional * beta + unconditional * rest)
    }

    fn optimum(&self) -> Optimum {
        Optimum::TiltedByGuidance
    }

    fn guidance_of_scale(&self, scale: f64) -> Option<f64> {
        Some(1.0 / scale)
    }

    fn scale_of_guidance(&self, guidance: f64) -> Option<f64> {
        Some(1.0 / guidance)
    }

    fn extra_passes(&self) -> usize {
        1
    }
}
