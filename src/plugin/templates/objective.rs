//! One network pass that samples at one guidance scale.
//!
//!   m    = beta f(x_t, c~) + (1 - beta) sg[f(x_t, null)],   beta = 1 / scale
//!   loss = L(m, y),   c~ = c, replaced by null with probability drop_probability
//!
//! Optimum: one pass samples the data's distribution at scale `scale`.

use framework::prelude::*;

/// Training of a network that samples at a fixed guidance scale in one pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "framework::serde", default, deny_unknown_fields)]
#[schemars(crate = "framework::schemars")]
pub struct MyPlugin {
    /// Guidance scale that one pass samples, 1 to 100; 1 = no guidance.
    #[schemars(range(min = 1.0, max = 100.0))]
    pub scale: f64,
    /// Probability per sample of dropping the condition, in [0, 1].
    #[schemars(range(min = 0.0, max = 1.0))]
    pub drop_probability: f64,
}

impl Default for MyPlugin {
    fn default() -> Self {
        Self { scale: 2.0, drop_probability: 0.1 }
    }
}

framework::register!(objective "my_plugin" => MyPlugin);

impl Objective for MyPlugin {
    fn needs(&self) -> Needs {
        Needs { null_condition: true, ..Needs::default() }
    }

    fn loss(&self, context: &Context<'_>) -> Tensor<1> {
        let beta = 1.0 / self.scale;
        let (condition, _) = context.drop_condition(self.drop_probability);
        let conditional = context.online(&condition, None);
        let unconditional = context.stopped(&context.condition.null(), None);
        context.loss(conditional * beta + unconditional * (1.0 - beta))
    }

    fn null(&self) -> NullPrediction {
        if self.drop_probability > 0.0 {
            NullPrediction::TrainedAt(None)
        } else {
            NullPrediction::Untrained("`drop_probability` is 0")
        }
    }

    fn optimum(&self, _: Family) -> Optimum {
        if self.drop_probability == 0.0 {
            return Optimum::Unstated("the null prediction is never trained and keeps its initial value");
        }
        let scale = self.scale;
        Optimum::Tilted(Tilt::data("`scale`", move |_, _| scale))
    }

    fn extra_passes(&self) -> usize {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proofs::laws;

    /// The law: on random finite worlds, training converges to the stated optimum. `unguided verify my_plugin` checks
    /// the same law.
    #[test]
    fn optimum_is_the_data_at_the_scale() {
        let objective = MyPlugin { scale: 2.0, drop_probability: 0.1 };
        for family in [Family::Continuous, Family::NextToken] {
            let verdict = laws::verify(&objective, family, 10, 0);
            assert!(verdict.worlds > 0);
            assert_eq!(verdict.counterexample, None);
        }
    }
}
