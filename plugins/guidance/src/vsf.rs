//! Value sign flip (VSF).
//!
//!   z          = softmax([q k+^T, q k-^T - bias]) [v+; -alpha v-]
//!   prediction = f_null + scale (f_vsf - f_null)
//!
//! In each named layer of the pass f_vsf, the queries attend to the requested text (+) and to the null text (-) at
//! once. The values of the null text have the opposite sign. `alpha` = 0 still changes the layer, because the null text
//! receives attention weight. Only an infinite `bias` leaves the layer unchanged. Published for an image model: alpha
//! 1.8, bias 0.1.
//!
//! Source: arXiv:2508.10931. `null_text.rs` records the keys and values of the null text.

use crate::null_text::{self, Blend};
use crate::text;
use framework::burn::tensor::activation::softmax;
use framework::nn::hooks::AttentionCall;
use framework::prelude::*;
use framework::sampling::guidance::{Guidance, GuidanceNeeds, Trajectory};

/// Attention to the requested text and, with flipped values, to the null text. One pass per step, two with CFG, and one
/// pass per trajectory that records the null text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Vsf {
    /// Scale of classifier-free guidance, 0 to 1000; 1 = none.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub scale: f64,
    /// Scale passed to the network's guidance input, 0.001 to 1000; 1 = the conditional distribution.
    #[schemars(range(min = 1e-3, max = 1000.0))]
    pub input_scale: f64,
    /// Factor of the flipped values, 0 to 1000. Published: 1.8.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub alpha: f64,
    /// Number subtracted from the logits of the null text, 0 to 1000. Published: 0.1.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub bias: f64,
    /// Indices of the guided blocks, from 0; null = all.
    pub blocks: Option<Vec<usize>>,
}

impl Default for Vsf {
    fn default() -> Self {
        Self { scale: 1.0, input_scale: 1.0, alpha: 1.8, bias: 0.1, blocks: None }
    }
}

framework::register!(guidance "vsf" => Vsf, "arXiv:2508.10931");

impl Guidance for Vsf {
    fn check(&self) -> Vec<Problem> {
        null_text::check(self)
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

impl Blend for Vsf {
    const NAME: &'static str = "vsf";

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
        let logits = Tensor::cat(vec![text::logits(given), text::logits(null) - self.bias], 3);
        let values = Tensor::cat(vec![given.values.clone(), null.values.clone() * -self.alpha], 2);
        softmax(logits, 3).matmul(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fake, close, differs, evaluated, predicted, sampled, sampled_alone, values};
    use framework::burn::tensor::DType;
    use framework::nn::Span;
    use framework::random::tensor;

    fn vsf(alpha: f64, bias: f64) -> Vsf {
        Vsf { scale: 1.0, input_scale: 1.0, alpha, bias, blocks: None }
    }

    /// A layer with one query of one channel, and these keys and values.
    fn call(keys: &[f64], values: &[f64]) -> AttentionCall {
        let of = |numbers: &[f64]| tensor::<4>(numbers, [1, 1, numbers.len(), 1], DType::F64, &Device::flex());
        AttentionCall {
            queries: of(&[1.0]),
            keys: of(keys),
            values: of(values),
            scale: 1.0,
            span: Span::All,
            mask: None,
        }
    }

    #[test]
    fn worked_by_hand() {
        // Equal logits and bias log 2: the weights are 2/3 and 1/3, so z = 2/3 * 3 - 1/3 * 2 * 6.
        let z = vsf(2.0, 2.0_f64.ln()).blend(&call(&[0.0], &[3.0]), &call(&[0.0], &[6.0]));
        close(&values(z), &[-2.0]);
    }

    #[test]
    fn a_large_bias_is_the_conditional_and_alpha_zero_is_not() {
        let network = Fake::new(0);
        close(&evaluated(&vsf(1.8, 1000.0), &network, None), &predicted(&network));
        differs(&evaluated(&vsf(0.0, 0.1), &network, None), &predicted(&network));
        // At alpha 0, the null text takes its share of the attention: half of it for equal logits.
        close(&values(vsf(0.0, 0.0).blend(&call(&[0.0], &[3.0]), &call(&[0.0], &[6.0]))), &[1.5]);
    }

    #[test]
    fn a_batch_equals_its_samples() {
        let network = Fake::new(0);
        for scale in [1.0, 2.0] {
            let rule = Vsf { scale, ..vsf(1.8, 0.1) };
            close(&sampled(&rule, &network, None), &sampled_alone(&rule, &network, None));
        }
    }
}
