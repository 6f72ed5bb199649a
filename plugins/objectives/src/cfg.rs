//! Condition dropping: training for sampling with classifier-free guidance.
//!
//!   loss = L(f(x_t, c~), y),   c~ = c, replaced by null with probability drop_probability
//!
//! Source: arXiv:2207.12598, algorithm 1.  Optimum: the conditional and the unconditional distribution.

use framework::prelude::*;

/// Training of the conditional and the unconditional model in one network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Cfg {
    /// Probability per sample of dropping the condition, in [0, 1].
    #[schemars(range(min = 0.0, max = 1.0))]
    pub drop_probability: f64,
}

impl Default for Cfg {
    fn default() -> Self {
        Self { drop_probability: 0.1 }
    }
}

framework::register!(objective "cfg" => Cfg, "arXiv:2207.12598");

impl Objective for Cfg {
    fn needs(&self) -> Needs {
        Needs { null_condition: self.drop_probability > 0.0, ..Needs::default() }
    }

    fn loss(&self, context: &Context<'_>) -> Tensor<1> {
        let (condition, _) = context.drop_condition(self.drop_probability);
        context.loss(context.online(&condition, None))
    }

    fn null(&self) -> NullPrediction {
        if self.drop_probability > 0.0 {
            NullPrediction::TrainedAt(None)
        } else {
            NullPrediction::Untrained("`drop_probability` is 0")
        }
    }

    fn optimum(&self, _: Family) -> Optimum {
        Optimum::Conditional
    }

    fn extra_passes(&self) -> usize {
        0
    }
}
