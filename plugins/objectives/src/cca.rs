//! Condition contrastive alignment (CCA): a pretrained model learns to tell its own condition from others.
//!
//!   loss = [-w log sig(b g(x, c)) - w' log sig(-b g(x, c'))] / max(lambda, 1),   g = log p(x | c) - log p_ref(x | c)
//!
//! with c' the condition of another sample, w = 1, w' = lambda; a dropped pair counts as positive twice.
//! Source: arXiv:2410.09347, eq. 13, and its released code.  Optimum: g = log(p(x | c) / p(x)) / b up to a factor of c, for
//! a model that is free in its normaliser: the reference at scale 1 + 1 / b. On a process with only a likelihood bound
//! (diffusion) it is our extension: the descent starts along guidance, and where it ends has no closed form.

use framework::burn::tensor::activation::log_sigmoid;
use framework::prelude::*;
use framework::random::tensor;

/// The loss on the two gaps `g+` (own condition) and `g-` (another's).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Variant {
    /// `-log sig(b g+) - lambda log sig(-b g-)`.
    Contrast {
        /// Inverse strength b, above 0: the optimum is the reference at scale 1 + 1 / b.
        #[serde(default = "fiftieth")]
        #[schemars(range(min = 1e-6, max = 1e6))]
        beta: f64,
        /// How samples with another's condition count.
        #[serde(default)]
        negatives: Negatives,
    },
    /// `-log sig(b (g+ - g-))`: direct preference optimisation.
    Dpo {
        /// Inverse strength b, above 0.
        #[serde(default = "fiftieth")]
        #[schemars(range(min = 1e-6, max = 1e6))]
        beta: f64,
    },
    /// `-g+ + lambda g-`: likelihood up and down without bound.
    Unlearning {
        /// How samples with another's condition count.
        #[serde(default)]
        negatives: Negatives,
    },
}

/// How samples with another's condition count.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Negatives {
    /// Weight of negatives, at least 0. Published: 50 to 1000.
    #[serde(default = "fifty")]
    #[schemars(range(min = 0.0, max = 1e9))]
    pub lambda: f64,
    /// How another sample's condition counts that happens to be the same.
    #[serde(default)]
    pub same_condition: SameCondition,
    /// Divide by max(lambda, 1), as published wherever samples are dropped.
    #[serde(default = "yes")]
    pub divide: bool,
}

impl Default for Negatives {
    fn default() -> Self {
        Self { lambda: fifty(), same_condition: SameCondition::default(), divide: yes() }
    }
}

impl Default for Variant {
    fn default() -> Self {
        Self::Contrast { beta: fiftieth(), negatives: Negatives::default() }
    }
}

impl Variant {
    fn negatives(&self) -> Option<&Negatives> {
        match self {
            Self::Contrast { negatives, .. } | Self::Unlearning { negatives } => Some(negatives),
            Self::Dpo { .. } => None,
        }
    }
}

/// How another sample's condition counts that happens to be the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SameCondition {
    /// As a second positive, as the released code: the contrast is then with all *other* conditions.
    #[default]
    Positive,
    /// As a negative, as eq. 13: the contrast is with the unconditional distribution.
    Negative,
}

/// Fine-tune a pretrained model to sample guided in one pass, without any guidance input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(
    example = framework::serde_json::json!({
        "variant": { "type": "contrast", "beta": 1.0, "negatives": { "same_condition": "negative", "lambda": 2.0 } }
    }),
    example = framework::serde_json::json!({ "variant": { "type": "dpo" } }),
    example = framework::serde_json::json!({ "variant": { "type": "unlearning" } })
)]
pub struct Cca {
    /// Probability of training a sample without its condition, in [0, 1].
    #[serde(default = "tenth")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub drop_probability: f64,
    /// The loss.
    #[serde(default)]
    pub variant: Variant,
}

fn fiftieth() -> f64 {
    0.02
}
fn fifty() -> f64 {
    50.0
}
fn tenth() -> f64 {
    0.1
}
fn yes() -> bool {
    true
}

framework::register!(objective "cca" => Cca, "arXiv:2410.09347");

impl Cca {
    /// The loss of each sample from its two gaps, `[B]`. `positive[i]`: the second pair counts as positive.
    pub fn of_gaps(&self, own: Tensor<1>, other: Tensor<1>, positive: &[bool]) -> Tensor<1> {
        let (dtype, device) = (own.dtype(), own.device().inner());
        let like = |values: Vec<f64>| tensor(&values, [positive.len()], dtype, &device);
        let sign = like(positive.iter().map(|positive| if *positive { 1.0 } else { -1.0 }).collect());
        let weigh = |n: &Negatives| like(positive.iter().map(|p| if *p { 1.0 } else { n.lambda }).collect());
        let (loss, negatives) = match &self.variant {
            Variant::Dpo { beta } => return -log_sigmoid((own - other) * *beta),
            Variant::Unlearning { negatives } => (-own - weigh(negatives) * sign * other, negatives),
            Variant::Contrast { beta, negatives } => {
                let negative = weigh(negatives) * log_sigmoid(other * sign * *beta);
                (-log_sigmoid(own * *beta) - negative, negatives)
            }
        };
        if negatives.divide { loss / negatives.lambda.max(1.0) } else { loss }
    }
}

impl Objective for Cca {
    fn needs(&self) -> Needs {
        Needs {
            null_condition: self.drop_probability > 0.0,
            reference: true,
            negatives: true,
            likelihood: true,
            ..Needs::default()
        }
    }

    fn loss(&self, context: &Context<'_>) -> Tensor<1> {
        let (own, dropped) = context.drop_condition(self.drop_probability);
        let negative = context.negative("negative");
        let other = negative.dropped(&dropped);
        let counts = self.variant.negatives().is_some_and(|n| n.same_condition == SameCondition::Positive);
        let same = context.condition.same(&negative);
        let positive: Vec<bool> =
            dropped.iter().zip(same).map(|(dropped, same)| *dropped || (counts && same)).collect();
        let gap = |condition: &Condition| {
            let reference = context.log_likelihood(context.model(Role::Reference, condition, None));
            context.log_likelihood(context.online(condition, None)) - reference
        };
        self.of_gaps(gap(&own), gap(&other), &positive)
    }

    fn extension(&self, family: Family) -> Option<&'static str> {
        let why = "the paper's likelihoods are exact; a bound stands in for them";
        (!family.has_logits()).then_some(why)
    }

    fn optimum(&self, family: Family) -> Optimum {
        let tokens = family.has_logits();
        match self.variant {
            Variant::Unlearning { .. } if tokens => Optimum::Unbounded("the likelihood of negatives falls for ever"),
            Variant::Unlearning { .. } => Optimum::Unstated(
                "a squared error falls for ever where negatives weigh more than the condition's samples",
            ),
            _ if !tokens => Optimum::Towards,
            Variant::Dpo { .. } => {
                Optimum::Unstated("it fixes the differences between conditions only: any factor of x is free")
            }
            Variant::Contrast { beta, negatives } => {
                let scale = 1.0 + 1.0 / beta;
                let against = match negatives.same_condition {
                    SameCondition::Positive => Against::Others,
                    SameCondition::Negative => Against::Null,
                };
                let tilt = Tilt::data("1 + 1 / beta", move |_, _| scale);
                Optimum::Tilted(Tilt { from: Of::Reference, against, free_normaliser: true, ..tilt })
            }
        }
    }

    fn extra_passes(&self) -> usize {
        // Two of the reference, and a second one with gradient.
        3
    }
}
