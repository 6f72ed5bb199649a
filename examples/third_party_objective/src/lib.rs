//! Guidance-free training for CFG-Zero*: GFT's mixture with an optimized scale of its null prediction.
//!
//!   m    = beta f(x_t, c~, beta) + (1 - beta) s sg[f(x_t, null, 1)],   beta ~ U(0, 1], and 1 where c was dropped
//!   s    = sg[<f(x_t, c~, beta), f(x_t, null, 1)> / |f(x_t, null, 1)|^2]
//!   loss = L(m, y)
//!
//! Source: arXiv:2501.15420 (mixture), arXiv:2503.18886 eq. 7 (scale). The combination is new.
//!
//! Optimum: let `y_c` and `y_0` be the optimal conditional and null predictions, `a y_0` the projection of `y_c` on
//! `y_0`, and `r = y_c - a y_0`. The loss is minimal at `m = y_c`. Along `y_0`, the mixture is
//! `beta s y_0 + (1 - beta) s y_0 = s y_0`, so `s = a` for every `beta`. Orthogonal to `y_0`, `beta f = r`. Therefore
//! `f(c, beta) = a y_0 + (y_c - a y_0) / beta`. CFG-Zero* samples this prediction at scale `1 / beta`; here it takes
//! one pass.
//!
//! The component along `y_0` is not amplified. Plain guidance amplifies it, which over-saturates images at large
//! scales.
//!
//! The optimum is stated for continuous latents only. For tokens, a projection couples the tokens of a sample, and
//! logits are defined only up to a constant.

use framework::prelude::*;

/// Objective that trains one network to sample CFG-Zero* at any scale in one pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "framework::serde", default, deny_unknown_fields)]
#[schemars(crate = "framework::schemars")]
pub struct GftZero {
    /// Lower limit of the random `beta`, in [0, 1]. Unitless; `beta = 1 / scale`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub beta_min: f64,
    /// Probability of training a sample without its condition, in [0, 1].
    #[schemars(range(min = 0.0, max = 1.0))]
    pub drop_probability: f64,
}

impl Default for GftZero {
    fn default() -> Self {
        Self { beta_min: 0.0, drop_probability: 0.1 }
    }
}

framework::register!(objective "gft_zero" => GftZero, "arXiv:2501.15420", "arXiv:2503.18886");

/// Returns `<a, b> / |b|^2` per sample, `[B, 1, 1]`. The result is 0 where `b` is 0.
fn projection(a: Tensor<3>, b: Tensor<3>) -> Tensor<3> {
    let along = (a * b.clone()).sum_dim(2).sum_dim(1);
    let length = (b.clone() * b).sum_dim(2).sum_dim(1);
    along / length.clamp_min(1e-30)
}

impl Objective for GftZero {
    fn needs(&self) -> Needs {
        Needs { null_condition: true, guidance_input: true, ..Needs::default() }
    }

    fn loss(&self, context: &Context<'_>) -> Tensor<1> {
        let (condition, dropped) = context.drop_condition(self.drop_probability);
        let drawn = context.uniform("beta", self.beta_min, 1.0);
        let beta: Vec<f64> =
            drawn.iter().zip(&dropped).map(|(beta, dropped)| if *dropped { 1.0 } else { *beta }).collect();
        let conditional = context.online(&condition, Some(&beta));
        let null = context.stopped(&context.condition.null(), Some(&vec![1.0; context.batch()]));
        let scale = projection(conditional.clone().inner(), null.clone());
        let beta = context.weights(&conditional, |i, _| beta[i]);
        context.loss(conditional * beta.clone() + Tensor::from_inner(null * scale) * (beta.neg() + 1.0))
    }

    fn null(&self) -> NullPrediction {
        if self.drop_probability > 0.0 {
            NullPrediction::TrainedAt(Some(1.0))
        } else {
            NullPrediction::Untrained("`drop_probability` is 0")
        }
    }

    fn optimum(&self, family: Family) -> Optimum {
        match family {
            Family::Continuous => {}
            Family::Masked => return Optimum::Unstated("the projection of a sample couples its tokens"),
            _ => return Optimum::Unstated("the projection of logits depends on their arbitrary constant"),
        }
        if self.drop_probability == 0.0 {
            return Optimum::Unstated("the null prediction is never trained and keeps its initial value");
        }
        let against = Against::Made { text: "its projection on the unconditional", from: projected };
        let tilt = Tilt::data("1 / beta", |beta, _| 1.0 / beta.expect("gft_zero feeds a beta"));
        Optimum::Tilted(Tilt { against, ..tilt })
    }

    fn guidance_of_scale(&self, scale: f64) -> Option<f64> {
        Some(1.0 / scale)
    }

    fn trained_scales(&self) -> Option<[f64; 2]> {
        Some([1.0, 1.0 / self.beta_min])
    }

    fn scale_of_guidance(&self, guidance: f64) -> Option<f64> {
        Some(1.0 / guidance)
    }

    fn extra_passes(&self) -> usize {
        1
    }
}

/// Returns the projection of a conditional prediction on the unconditional one.
fn projected(conditional: &[f64], null: &[f64]) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let scale = dot(conditional, null) / dot(null, null).max(1e-30);
    null.iter().map(|value| scale * value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proofs::laws;

    /// `unguided verify gft_zero` checks the same law on more worlds.
    #[test]
    fn optimum_is_cfg_zero_at_one_over_beta() {
        let objective = GftZero { beta_min: 0.0, drop_probability: 0.1 };
        let verdict = laws::verify(&objective, Family::Continuous, 50, 0);
        assert_eq!((verdict.worlds, verdict.counterexample), (50, None));
    }

    /// The law tells the two objectives apart: GFT's optimum is wrong for this objective.
    #[test]
    fn optimum_is_not_that_of_gft() {
        #[derive(Debug)]
        struct AsGft(GftZero);
        impl Objective for AsGft {
            fn needs(&self) -> Needs {
                self.0.needs()
            }
            fn loss(&self, context: &Context<'_>) -> Tensor<1> {
                self.0.loss(context)
            }
            fn null(&self) -> NullPrediction {
                self.0.null()
            }
            fn optimum(&self, _: Family) -> Optimum {
                Optimum::Tilted(Tilt::data("1 / beta", |beta, _| 1.0 / beta.expect("it feeds a beta")))
            }
            fn extra_passes(&self) -> usize {
                1
            }
        }
        let objective = AsGft(GftZero { beta_min: 0.0, drop_probability: 0.1 });
        assert!(laws::verify(&objective, Family::Continuous, 5, 0).counterexample.is_some());
    }
}
