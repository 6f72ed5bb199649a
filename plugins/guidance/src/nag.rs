//! Normalized attention guidance (NAG).
//!
//!   z~         = z+ + strength (z+ - z-)
//!   z^         = z~ min(r, tau) / r,   r = |z~| / |z+|
//!   z          = alpha z^ + (1 - alpha) z+
//!   prediction = f_null + scale (f_nag - f_null)
//!
//! z+ and z- are the outputs of an attention layer whose queries read the requested and the null text, and |.| is a
//! norm per token over all heads. In the pass f_nag, each guided layer returns z. Published: strength 2 for U-Nets and
//! 4 for transformers, tau 2.5, alpha 0.25 to 0.5, the L1 norm. The authors' code for Flux uses the L2 norm, and its
//! scale is strength + 1.
//!
//! `null_text.rs` records the keys and values of the null text.
//! Source: arXiv:2505.21179.

use crate::null_text::{self, Blend};
use framework::nn::hooks::AttentionCall;
use framework::prelude::*;
use framework::sampling::guidance::{Guidance, GuidanceNeeds, Trajectory};

/// Guidance within the attention to the text. One pass per step, two with CFG, and one pass per trajectory that records
/// the null text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Nag {
    /// Scale of classifier-free guidance, 0 to 1000; 1 = none.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub scale: f64,
    /// Scale passed to the network's guidance input, 0.001 to 1000; 1 = the conditional distribution.
    #[schemars(range(min = 1e-3, max = 1000.0))]
    pub input_scale: f64,
    /// Weight of the difference between the outputs for both texts, above 0, at most 1000. Published: 2 or 4.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub strength: f64,
    /// Largest ratio of a token's norm to its norm without NAG, 1 to 1000. Published: 2.5.
    #[schemars(range(min = 1.0, max = 1000.0))]
    pub tau: f64,
    /// Weight of the guided output, above 0, at most 1; the requested text's own output has the remaining weight.
    /// Published: 0.25 to 0.5.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub alpha: f64,
    /// Norm that measures a token.
    pub norm: Norm,
    /// Indices of the guided blocks, from 0; null = all.
    pub blocks: Option<Vec<usize>>,
}

impl Default for Nag {
    fn default() -> Self {
        Self { scale: 1.0, input_scale: 1.0, strength: 2.0, tau: 2.5, alpha: 0.25, norm: Norm::default(), blocks: None }
    }
}

/// Norm of a token over all heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// Sum of absolute values, as in the paper.
    #[default]
    L1,
    /// Root of the sum of squares, as in the authors' code for Flux.
    L2,
}

framework::register!(guidance "nag" => Nag, "arXiv:2505.21179");

impl Guidance for Nag {
    fn check(&self) -> Vec<Problem> {
        let mut problems = null_text::check(self);
        for (name, value) in [("strength", self.strength), ("alpha", self.alpha)] {
            if value == 0.0 {
                let what = format!("the attention is not guided at {name} 0");
                let problem = Problem::new(format!("/{name}"), what);
                problems.push(problem.accepts("a number > 0, or guidance \"cfg\" or \"none\""));
            }
        }
        problems
    }

    fn needs(&self) -> GuidanceNeeds {
        null_text::needs(self)
    }

    fn input_scale(&self) -> Option<f64> {
        (self.input_scale != 1.0).then_some(self.input_scale)
    }

    fn start(&self) -> Box<dyn Trajectory> {
        null_text::start(self.clone())
    }
}

impl Blend for Nag {
    const NAME: &'static str = "nag";

    fn scale(&self) -> f64 {
        self.scale
    }

    fn input_scale(&self) -> f64 {
        self.input_scale
    }

    fn blocks(&self) -> Option<&[usize]> {
        self.blocks.as_deref()
    }

    fn blend(&self, given: &AttentionCall, null: &AttentionCall) -> Tensor<4> {
        self.guided(given.output(), null.output())
    }
}

impl Nag {
    /// Computes `z` from `z+` and `z-`, `[B, heads, L, d]`.
    fn guided(&self, positive: Tensor<4>, negative: Tensor<4>) -> Tensor<4> {
        let extrapolated = positive.clone() + (positive.clone() - negative) * self.strength;
        let growth = self.norm(extrapolated.clone()) / self.norm(positive.clone()).clamp_min(SHORTEST);
        // `min(r, tau) / r = min(1, tau / r)`. The second form avoids 0 / 0.
        let factor = (growth.recip() * self.tau).clamp_max(1.0);
        extrapolated * factor * self.alpha + positive * (1.0 - self.alpha)
    }

    /// Returns the norm per token, `[B, 1, L, 1]`.
    fn norm(&self, z: Tensor<4>) -> Tensor<4> {
        match self.norm {
            Norm::L1 => z.abs().sum_dim(1).sum_dim(3),
            Norm::L2 => (z.clone() * z).sum_dim(1).sum_dim(3).sqrt(),
        }
    }
}

/// Lower bound of the norm of `z+`. It avoids a division by 0.
const SHORTEST: f64 = 1e-12;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fake, close, differs, evaluated, predicted, sampled, sampled_alone, values};
    use framework::burn::tensor::DType;
    use framework::random::tensor;

    fn nag(strength: f64, alpha: f64) -> Nag {
        Nag { scale: 1.0, input_scale: 1.0, strength, tau: 2.5, alpha, norm: Norm::L1, blocks: None }
    }

    fn token(numbers: [f64; 2]) -> Tensor<4> {
        tensor(&numbers, [1, 2, 1, 1], DType::F64, &Device::flex())
    }

    #[test]
    fn worked_by_hand() {
        // z+ = (1, 2), z- = (0, 4), strength 2: z~ = (3, -2), norm 5 against 3, so r = 5/3 and tau 2.5 clips nothing.
        close(&values(nag(2.0, 1.0).guided(token([1.0, 2.0]), token([0.0, 4.0]))), &[3.0, -2.0]);
        close(&values(nag(2.0, 0.5).guided(token([1.0, 2.0]), token([0.0, 4.0]))), &[2.0, 0.0]);
        // tau 1 scales z~ to the norm 3: (1.8, -1.2).
        let tight = Nag { tau: 1.0, ..nag(2.0, 1.0) };
        close(&values(tight.guided(token([1.0, 2.0]), token([0.0, 4.0]))), &[1.8, -1.2]);
        // L2: |z~| = sqrt(13), |z+| = sqrt(5), so tau 1 scales by sqrt(5 / 13).
        let factor = (5.0_f64 / 13.0).sqrt();
        let second = Nag { norm: Norm::L2, ..tight };
        close(&values(second.guided(token([1.0, 2.0]), token([0.0, 4.0]))), &[3.0 * factor, -2.0 * factor]);
    }

    #[test]
    fn the_norm_grows_by_tau_at_most() {
        let rule = nag(50.0, 1.0);
        let guided = values(rule.guided(token([1.0, 2.0]), token([-3.0, 4.0])));
        let norm = guided.iter().map(|v| v.abs()).sum::<f64>();
        assert!((norm - 2.5 * 3.0).abs() < 1e-9, "{norm}");
    }

    #[test]
    fn tokens_of_norm_zero_stay_finite() {
        for (positive, negative) in [([0.0, 0.0], [0.0, 0.0]), ([0.0, 0.0], [1.0, 1.0]), ([1.0, 1.0], [1.5, 1.5])] {
            let guided = values(nag(2.0, 0.5).guided(token(positive), token(negative)));
            assert!(guided.iter().all(|v| v.is_finite()), "{guided:?}");
        }
    }

    #[test]
    fn strength_zero_alpha_zero_and_equal_texts_are_the_conditional() {
        let network = Fake::new(0);
        close(&evaluated(&nag(0.0, 0.5), &network, None), &predicted(&network));
        close(&evaluated(&nag(3.0, 0.0), &network, None), &predicted(&network));
        differs(&evaluated(&nag(3.0, 0.5), &network, None), &predicted(&network));
        let z = token([0.3, -0.2]);
        close(&values(nag(7.0, 0.7).guided(z.clone(), z.clone())), &values(z));
    }

    #[test]
    fn with_cfg_scale_zero_is_the_null_and_strength_zero_is_cfg() {
        let network = Fake::new(0);
        let cfg = |scale: f64| -> crate::cfg::Cfg {
            framework::serde_json::from_value(framework::serde_json::json!({ "scale": scale })).unwrap()
        };
        let at = |scale, strength| Nag { scale, ..nag(strength, 0.5) };
        close(&evaluated(&at(2.5, 0.0), &network, None), &evaluated(&cfg(2.5), &network, None));
        close(&evaluated(&at(0.0, 3.0), &network, None), &evaluated(&cfg(0.0), &network, None));
    }

    #[test]
    fn a_batch_equals_its_samples() {
        let network = Fake::new(0);
        for scale in [1.0, 2.0] {
            let rule = Nag { scale, ..nag(3.0, 0.5) };
            close(&sampled(&rule, &network, None), &sampled_alone(&rule, &network, None));
        }
    }

    #[test]
    fn needs_are_exact() {
        let needs = Nag { blocks: Some(vec![1]), ..nag(2.0, 0.5) }.needs();
        assert!(needs.null && needs.hooks.text_attention && !needs.hooks.attention);
        assert_eq!(needs.hooks.blocks_named, 2);
    }
}
