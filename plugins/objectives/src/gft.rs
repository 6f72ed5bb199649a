//! Guidance-free training (GFT).
//!
//!   m    = beta_p f(x_t, c~, beta) + (1 - beta_p) sg[f(x_t, null, 1)],   beta ~ U(beta_min, beta_max)
//!   loss = L(m, y),   1 / beta_p = 1 + (1 / beta - 1) profile(p) at progress p
//!
//! Source: arXiv:2501.15420, algorithm 1.  Optimum: one pass at `beta` samples guidance at scale 1 / beta_p.

use framework::prelude::*;
use std::f64::consts::PI;

/// How the guidance that a `beta` stands for is spread over progress `p` (0 = noise or the first token, 1 = data).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Profile {
    /// The same everywhere.
    #[default]
    Flat,
    /// `p^exponent`: VAR's ramp over levels is exponent 1, its published GFT run 1.5.
    Pyramid {
        /// Exponent, 0 to 100; 0 is flat.
        #[serde(default = "one")]
        #[schemars(range(min = 0.0, max = 100.0))]
        exponent: f64,
    },
    /// `(1 - cos(pi p^power)) / 2`: MAR's power-cosine.
    PowerCosine {
        /// Power, above 0 and at most 100.
        #[serde(default = "one")]
        #[schemars(range(min = 1e-6, max = 100.0))]
        power: f64,
    },
}

impl Profile {
    /// `beta_p`.
    fn beta(self, beta: f64, progress: f64) -> f64 {
        let share = match self {
            Self::Flat => return beta,
            Self::Pyramid { exponent } => progress.powf(exponent),
            Self::PowerCosine { power } => (1.0 - (PI * progress.powf(power)).cos()) / 2.0,
        };
        // 1 / (1 + (1 / beta - 1) share), defined at beta = 0 as well.
        if beta == 0.0 && share == 0.0 { 1.0 } else { beta / (beta + (1.0 - beta) * share) }
    }
}

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
#[schemars(
    example = framework::serde_json::json!({ "dropped_sample": "plain" }),
    example = framework::serde_json::json!({ "profile": { "type": "pyramid", "exponent": 1.5 } }),
    example = framework::serde_json::json!({ "profile": { "type": "power_cosine" } })
)]
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
    /// How guidance is spread over progress.
    #[serde(default)]
    pub profile: Profile,
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
        // A dropped sample's own pass is its unconditional one; at `beta` 1 the mixture has no unconditional part.
        let wanted: Vec<bool> = mixing.iter().zip(&dropped).map(|(beta, dropped)| !dropped && *beta < 1.0).collect();
        let (null, ones) = (context.condition.null(), vec![1.0; context.batch()]);
        let unconditional = context.stopped_where(&wanted, &null, Some(&ones));
        let conditional = context.online(&condition, Some(&input));
        let unconditional = unconditional.or(&conditional);
        let beta = context.weights(&conditional, |i, progress| self.profile.beta(mixing[i], progress));
        context.loss(conditional * beta.clone() + unconditional * (beta.neg() + 1.0))
    }

    fn optimum(&self, _: Family) -> Optimum {
        if self.drop_probability == 0.0 {
            return Optimum::Unstated("the null prediction is never trained: it stays what it was at the start");
        }
        let profile = self.profile;
        let text = if profile == Profile::Flat { "1 / beta" } else { "1 / beta_p" };
        Optimum::Tilted(Tilt::data(text, move |beta, progress| {
            1.0 / profile.beta(beta.expect("gft feeds a beta"), progress)
        }))
    }

    fn guidance_of_scale(&self, scale: f64) -> Option<f64> {
        Some(1.0 / scale)
    }

    fn scale_of_guidance(&self, guidance: f64) -> Option<f64> {
        Some(1.0 / guidance)
    }

    fn trained_scales(&self) -> Option<[f64; 2]> {
        Some([1.0 / self.beta_max, 1.0 / self.beta_min])
    }

    fn extra_passes(&self) -> usize {
        1
    }
}
