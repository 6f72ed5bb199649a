//! PLADIS: sparse attention to the text, extrapolated from dense attention.
//!
//!   A          = softmax(S) + strength (entmax(S) - softmax(S)),   S = q k^T / sqrt(d)
//!   entmax(S)  = max(S / 2 - tau, 0)^2, with tau such that the weights of a query sum to 1 (exponent 1.5)
//!   prediction = f_null + scale (f_cond - f_null), both passes with the map A in the named layers
//!
//! Published: strength 2, all layers. Weights may be negative. The weights of each query sum to 1.
//!
//! Source: arXiv:2503.07677; entmax: arXiv:1905.05702.

use crate::text;
use framework::burn::tensor::activation::softmax;
use framework::nn::hooks::{AttentionCall, AttentionSite, Hooked, Hooks};
use framework::prelude::*;
use framework::sampling::guidance::{Branch, Guidance, GuidanceNeeds, Guided, Moment, Trajectory, mix};
use std::sync::Arc;

/// Sparser attention to the text. One pass per step, two with CFG.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Pladis {
    /// Scale of classifier-free guidance, 0 to 1000; 1 = none.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub scale: f64,
    /// Scale passed to the network's guidance input, 0.001 to 1000; 1 = the conditional distribution.
    #[schemars(range(min = 1e-3, max = 1000.0))]
    pub input_scale: f64,
    /// Weight of the sparse map, above 0, at most 100; 1 = the sparse map alone. Published: 2.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub strength: f64,
    /// Indices of the blocks with the sparser map, from 0; null = all.
    pub blocks: Option<Vec<usize>>,
}

impl Default for Pladis {
    fn default() -> Self {
        Self { scale: 1.0, input_scale: 1.0, strength: 2.0, blocks: None }
    }
}

framework::register!(guidance "pladis" => Pladis, "arXiv:2503.07677", "arXiv:1905.05702");

impl Guidance for Pladis {
    fn check(&self) -> Vec<Problem> {
        let mut problems = text::check(self.blocks.as_deref());
        if self.strength == 0.0 {
            let problem = Problem::new("/strength", "the attention is unchanged at strength 0");
            problems.push(problem.accepts("a number > 0, or guidance \"cfg\" or \"none\""));
        }
        problems
    }

    fn needs(&self) -> GuidanceNeeds {
        let (hooks, guides) = (text::hooks(self.blocks.as_deref()), self.scale != 1.0);
        GuidanceNeeds { null: guides, hooks, ..GuidanceNeeds::branches(if guides { 2 } else { 1 }) }
    }

    fn input_scale(&self) -> Option<f64> {
        (self.input_scale != 1.0).then_some(self.input_scale)
    }

    fn start(&self) -> Box<dyn Trajectory> {
        Box::new(self.clone())
    }
}

impl Trajectory for Pladis {
    fn branches(&mut self, _: &Moment) -> Vec<Branch> {
        let hooks = Hooked(Some(Arc::new(self.clone())));
        let null = (self.scale != 1.0).then(|| Branch { hooks: hooks.clone(), ..Branch::null() });
        [Some(Branch { scale: Some(self.input_scale), hooks, ..Branch::given() }), null].into_iter().flatten().collect()
    }

    fn combine(&mut self, moment: &Moment, predictions: Vec<Tensor<3>>) -> Guided {
        match <[Tensor<3>; 2]>::try_from(predictions) {
            Ok([cond, null]) => mix(cond, null, self.scale, moment.channels).into(),
            Err(mut one) => one.remove(0).into(),
        }
    }
}

impl Hooks for Pladis {
    fn reads_attention(&self, site: AttentionSite) -> bool {
        text::is_guided(self.blocks.as_deref(), site)
    }

    fn attention(&self, _: AttentionSite, call: &AttentionCall) -> Tensor<4> {
        let logits = text::logits(call);
        let dense = softmax(logits.clone(), 3);
        let map = dense.clone() + (entmax(logits) - dense) * self.strength;
        map.matmul(call.values.clone())
    }
}

/// Number of bisection steps for `tau`. The first interval has length 1.
const HALVINGS: usize = 40;

/// Computes entmax with exponent 1.5 over the last dimension.
///
/// The sum of the weights decreases in `tau`. It is at least 1 at `max(S / 2) - 1` and 0 at `max(S / 2)`, so bisection
/// finds `tau`. Hidden keys have the logit -inf and get the weight 0.
fn entmax(logits: Tensor<4>) -> Tensor<4> {
    let half = logits * 0.5;
    let weights = |tau: &Tensor<4>| (half.clone() - tau.clone()).clamp_min(0.0).powi_scalar(2);
    let mut low = half.clone().max_dim(3) - 1.0;
    for step in 1..=HALVINGS {
        let middle = low.clone() + 0.5_f64.powi(step as i32);
        let above = weights(&middle).sum_dim(3).greater_equal_elem(1.0);
        low = low.mask_where(above, middle);
    }
    let found = weights(&low);
    let total = found.clone().sum_dim(3);
    found / total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fake, close, differs, evaluated, predicted, sampled, sampled_alone, values};
    use framework::burn::tensor::DType;
    use framework::nn::Span;
    use framework::random::tensor;
    use proptest::prelude::*;

    fn pladis(scale: f64, strength: f64) -> Pladis {
        Pladis { scale, input_scale: 1.0, strength, blocks: None }
    }

    fn row(logits: &[f64]) -> Tensor<4> {
        tensor(logits, [1, 1, 1, logits.len()], DType::F64, &Device::flex())
    }

    #[test]
    fn entmax_worked_by_hand() {
        // Half the logits are (0.2, 0). The roots of the weights differ by 0.2, and their squares sum to 1: 0.8 and
        // 0.6.
        close(&values(entmax(row(&[0.4, 0.0]))), &[0.64, 0.36]);
        // From a difference of 2 on, one key has all the weight.
        close(&values(entmax(row(&[2.5, 0.0, -1.0]))), &[1.0, 0.0, 0.0]);
        close(&values(entmax(row(&[1.0, f64::NEG_INFINITY]))), &[1.0, 0.0]);
        close(&values(entmax(row(&[0.3; 4]))), &[0.25; 4]);
    }

    proptest! {
        #[test]
        fn weights_sum_to_one_and_do_not_depend_on_a_constant(
            logits in proptest::collection::vec(-4.0..4.0f64, 5), shift in -10.0..10.0f64,
        ) {
            let weights = values(entmax(row(&logits)));
            prop_assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            prop_assert!(weights.iter().all(|weight| *weight >= 0.0));
            close(&values(entmax(row(&logits) + shift)), &weights);
        }
    }

    #[test]
    fn strength_zero_is_the_conditional_and_cfg() {
        let network = Fake::new(0);
        let cfg: crate::cfg::Cfg =
            framework::serde_json::from_value(framework::serde_json::json!({ "scale": 2.5 })).unwrap();
        close(&evaluated(&pladis(1.0, 0.0), &network, None), &predicted(&network));
        close(&evaluated(&pladis(2.5, 0.0), &network, None), &evaluated(&cfg, &network, None));
        differs(&evaluated(&pladis(1.0, 2.0), &network, None), &predicted(&network));
    }

    #[test]
    fn equal_logits_change_nothing() {
        let of = |numbers: [f64; 4]| tensor::<4>(&numbers, [1, 1, 2, 2], DType::F64, &Device::flex());
        let (queries, keys, values_of) =
            (of([1.0, 2.0, 3.0, 4.0]), of([0.5, 0.1, 0.5, 0.1]), of([1.0, -1.0, 2.0, 3.0]));
        let call = AttentionCall { queries, keys, values: values_of, scale: 1.0, span: Span::All, mask: None };
        close(&values(pladis(1.0, 2.0).attention(AttentionSite::text(0), &call)), &values(call.output()));
    }

    #[test]
    fn a_batch_equals_its_samples() {
        let (network, rule) = (Fake::new(0), pladis(2.0, 2.0));
        close(&sampled(&rule, &network, None), &sampled_alone(&rule, &network, None));
    }
}
