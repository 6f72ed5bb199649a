//! Condition contrastive alignment (CCA): a pretrained model learns to distinguish the true condition from others.
//!
//!   loss = [-w log sig(b g(x, c)) - w' log sig(-b g(x, c'))] / max(lambda, 1),   g = log p(x | c) - log p_ref(x | c)
//!
//! where c' is the condition of another sample, w = 1 and w' = lambda. For a dropped sample, both pairs are positive.
//! Source: arXiv:2410.09347, eq. 13, and its released code.
//! Optimum: g = log(p(x | c) / p(x)) / b up to a factor that depends on c only: the reference at scale 1 + 1 / b. This
//! is exact for a model with a free normaliser. On a process with only a likelihood bound (diffusion), the loss is our
//! extension: training starts along the guidance direction, and its end point has no closed form.

use framework::burn::tensor::activation::log_sigmoid;
use framework::prelude::*;
use framework::random::tensor;

/// Loss of the two gaps `g+` (true condition) and `g-` (condition of another sample).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Variant {
    /// `-log sig(b g+) - lambda log sig(-b g-)`.
    Contrast(Contrast),
    /// `-log sig(b (g+ - g-))`, direct preference optimization.
    Dpo(Dpo),
    /// `-g+ + lambda g-`, an unbounded loss that raises and lowers likelihoods.
    Unlearning(Unlearning),
}

impl Default for Variant {
    fn default() -> Self {
        Self::Contrast(Contrast::default())
    }
}

/// Settings of the variant `contrast`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Contrast {
    /// Inverse strength b, above 0. The optimum is the reference at scale 1 + 1 / b.
    #[schemars(range(min = 1e-6, max = 1e6))]
    pub beta: f64,
    /// Treatment of samples paired with another sample's condition.
    pub negatives: Negatives,
}

impl Default for Contrast {
    fn default() -> Self {
        Self { beta: 0.02, negatives: Negatives::default() }
    }
}

/// Settings of the variant `dpo`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dpo {
    /// Inverse strength b, above 0.
    #[schemars(range(min = 1e-6, max = 1e6))]
    pub beta: f64,
}

impl Default for Dpo {
    fn default() -> Self {
        Self { beta: 0.02 }
    }
}

/// Settings of the variant `unlearning`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Unlearning {
    /// Treatment of samples paired with another sample's condition.
    pub negatives: Negatives,
}

/// Treatment of samples paired with another sample's condition.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Negatives {
    /// Weight of negatives, at least 0. Published: 50 to 1000.
    #[schemars(range(min = 0.0, max = 1e9))]
    pub lambda: f64,
    /// Treatment of a pair in which the other sample has the same condition.
    pub same_condition: SameCondition,
    /// Whether to divide the loss by max(lambda, 1), as in the released code when conditions are dropped.
    pub divide: bool,
}

impl Default for Negatives {
    fn default() -> Self {
        Self { lambda: 50.0, same_condition: SameCondition::default(), divide: true }
    }
}

impl Variant {
    fn negatives(&self) -> Option<&Negatives> {
        match self {
            Self::Contrast(Contrast { negatives, .. }) | Self::Unlearning(Unlearning { negatives }) => Some(negatives),
            Self::Dpo(_) => None,
        }
    }
}

/// Treatment of a pair in which the other sample has the same condition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SameCondition {
    /// A second positive, as in the released code. The contrast is then with all *other* conditions.
    #[default]
    Positive,
    /// A negative, as in eq. 13. The contrast is then with the unconditional distribution.
    Negative,
}

/// Fine-tuning of a pretrained model to sample with guidance in one pass, without a guidance input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(
    example = framework::serde_json::json!({
        "variant": { "type": "contrast", "beta": 1.0, "negatives": { "same_condition": "negative", "lambda": 2.0 } }
    }),
    example = framework::serde_json::json!({ "variant": { "type": "dpo" } }),
    example = framework::serde_json::json!({ "variant": { "type": "unlearning" } })
)]
pub struct Cca {
    /// Probability per sample of dropping the condition, in [0, 1].
    #[schemars(range(min = 0.0, max = 1.0))]
    pub drop_probability: f64,
    /// Loss function.
    pub variant: Variant,
}

impl Default for Cca {
    fn default() -> Self {
        Self { drop_probability: 0.1, variant: Variant::default() }
    }
}

framework::register!(objective "cca" => Cca, "arXiv:2410.09347");

impl Cca {
    /// Computes the loss per sample, `[B]`, from its two gaps. If `positive[i]`, the second pair of sample `i` is
    /// positive.
    pub fn of_gaps(&self, own: Tensor<1>, other: Tensor<1>, positive: &[bool]) -> Tensor<1> {
        let (dtype, device) = (own.dtype(), own.device().inner());
        let like = |values: Vec<f64>| tensor(&values, [positive.len()], dtype, &device);
        let sign = like(positive.iter().map(|positive| if *positive { 1.0 } else { -1.0 }).collect());
        let weigh = |n: &Negatives| like(positive.iter().map(|p| if *p { 1.0 } else { n.lambda }).collect());
        let (loss, negatives) = match &self.variant {
            Variant::Dpo(Dpo { beta }) => return -log_sigmoid((own - other) * *beta),
            Variant::Unlearning(Unlearning { negatives }) => (-own - weigh(negatives) * sign * other, negatives),
            Variant::Contrast(Contrast { beta, negatives }) => {
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
            reference_null: self.drop_probability > 0.0,
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
        let why = "the paper uses exact likelihoods; here a bound replaces them";
        (!family.has_logits()).then_some(why)
    }

    fn null(&self) -> NullPrediction {
        if self.drop_probability > 0.0 {
            NullPrediction::TrainedAt(None)
        } else {
            NullPrediction::Untrained("`drop_probability` is 0")
        }
    }

    fn optimum(&self, family: Family) -> Optimum {
        let tokens = family.has_logits();
        match self.variant {
            Variant::Unlearning(_) if tokens => Optimum::Unbounded("the negatives' likelihood falls without bound"),
            Variant::Unlearning(_) => {
                Optimum::Unstated("the loss is unbounded where negatives outweigh the samples of the condition")
            }
            _ if !tokens => Optimum::Towards,
            Variant::Dpo(_) => {
                Optimum::Unstated("the loss determines only differences between conditions: any factor of x is free")
            }
            Variant::Contrast(Contrast { beta, negatives }) => {
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
        // Two passes of the reference, and a second tracked pass.
        3
    }
}
