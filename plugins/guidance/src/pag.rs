//! Perturbed-attention guidance (PAG).
//!
//!   g          = f_null + scale (f_cond - f_null)
//!   prediction = g + strength schedule(progress) (f_cond - f_perturbed)
//!
//! In the perturbed pass, the self-attention map of the named blocks is the identity matrix: each token reads only its
//! own value. Published: the middle block of SD 1.5, strength 3.
//!
//! Source: arXiv:2403.17377.

use crate::perturbed::{Weights, branch};
use framework::nn::hooks::{Attends, AttentionCall, AttentionSite, Hooked, Hooks};
use framework::prelude::*;
use framework::sampling::guidance::{Guidance, GuidanceNeeds, HookNeeds, Trajectory};
use framework::schedule::Schedule;
use std::sync::Arc;

/// Guidance away from a pass whose self-attention is the identity. Two passes per step, three with CFG.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["blocks"]))]
pub struct Pag {
    /// Scale of classifier-free guidance, 0 to 1000; 1 = none.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub scale: f64,
    /// Scale passed to the network's guidance input, 0.001 to 1000; 1 = the conditional distribution.
    #[schemars(range(min = 1e-3, max = 1000.0))]
    pub input_scale: f64,
    /// Weight of the conditional minus the perturbed prediction, above 0, at most 1000. Published: 3.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub strength: f64,
    /// Schedule of `strength` over the progress.
    pub schedule: Schedule,
    /// Indices of the perturbed blocks, from 0.
    pub blocks: Vec<usize>,
}

impl Default for Pag {
    fn default() -> Self {
        Self { scale: 1.0, input_scale: 1.0, strength: 3.0, schedule: Schedule::default(), blocks: Vec::new() }
    }
}

framework::register!(guidance "pag" => Pag, "arXiv:2403.17377");

impl Pag {
    fn weights(&self) -> Weights {
        Weights { scale: self.scale, input_scale: self.input_scale, strength: self.strength, schedule: self.schedule }
    }
}

impl Guidance for Pag {
    fn check(&self) -> Vec<Problem> {
        self.weights().check(&self.blocks)
    }

    fn needs(&self) -> GuidanceNeeds {
        self.weights().needs(&self.blocks, HookNeeds { attention: true, ..HookNeeds::default() })
    }

    fn input_scale(&self) -> Option<f64> {
        (self.input_scale != 1.0).then_some(self.input_scale)
    }

    fn start(&self) -> Box<dyn Trajectory> {
        let hooks = Hooked(Some(Arc::new(Identity { blocks: self.blocks.clone() })));
        self.weights().start(move |_| branch("pag", hooks.clone()))
    }
}

/// Replaces the self-attention map of the blocks by the identity.
#[derive(Debug)]
struct Identity {
    blocks: Vec<usize>,
}

impl Hooks for Identity {
    fn reads_attention(&self, site: AttentionSite) -> bool {
        site.attends == Attends::Itself && self.blocks.contains(&site.block)
    }

    fn attention(&self, _: AttentionSite, call: &AttentionCall) -> Tensor<4> {
        // During token decoding with a cache, the queries belong to the last positions of the keys.
        let (queries, keys) = (call.queries.dims()[2], call.values.dims()[2]);
        call.values.clone().narrow(2, keys - queries, queries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fake, close, differs, evaluated, predicted, sampled, sampled_alone, values};
    use framework::burn::tensor::DType;
    use framework::nn::Span;
    use framework::random::tensor;

    fn pag(blocks: &[usize]) -> Pag {
        Pag { scale: 1.0, input_scale: 1.0, strength: 3.0, schedule: Schedule::Constant, blocks: blocks.to_vec() }
    }

    fn call(queries: usize, keys: usize) -> AttentionCall {
        let numbers = |n: usize| (0..n).map(|i| (i as f64 * 0.7).sin()).collect::<Vec<_>>();
        let of = |length: usize| tensor(&numbers(2 * length), [1, 1, length, 2], DType::F32, &Device::flex());
        let (queries, keys, values) = (of(queries), of(keys), of(keys));
        AttentionCall { queries, keys, values, scale: 1.0, span: Span::Causal, mask: None }
    }

    #[test]
    fn strength_zero_is_the_conditional_and_cfg() {
        let network = Fake::new(0);
        let idle = |scale| Pag { scale, strength: 0.0, ..pag(&[0, 1]) };
        assert_eq!(evaluated(&idle(1.0), &network, None), predicted(&network));
        let cfg: crate::cfg::Cfg =
            framework::serde_json::from_value(framework::serde_json::json!({ "scale": 2.5 })).unwrap();
        close(&evaluated(&idle(2.5), &network, None), &evaluated(&cfg, &network, None));
    }

    #[test]
    fn no_perturbed_block_is_the_conditional() {
        let network = Fake::new(0);
        close(&evaluated(&pag(&[]), &network, None), &predicted(&network));
        differs(&evaluated(&pag(&[1]), &network, None), &predicted(&network));
    }

    #[test]
    fn a_single_token_is_not_perturbed() {
        let (one, hooks) = (call(1, 1), Identity { blocks: vec![0] });
        close(&values(hooks.attention(AttentionSite::own(0), &one)), &values(one.output()));
    }

    #[test]
    fn decoded_tokens_read_the_last_values() {
        let (step, hooks) = (call(2, 5), Identity { blocks: vec![0] });
        let read = values(hooks.attention(AttentionSite::own(0), &step));
        assert_eq!(read, values(step.values.narrow(2, 3, 2)));
    }

    #[test]
    fn only_the_named_self_attention_is_read() {
        let hooks = Identity { blocks: vec![1] };
        assert!(hooks.reads_attention(AttentionSite::own(1)));
        assert!(!hooks.reads_attention(AttentionSite::own(0)) && !hooks.reads_attention(AttentionSite::text(1)));
    }

    #[test]
    fn a_batch_equals_its_samples() {
        let (network, rule) = (Fake::new(0), Pag { scale: 2.0, schedule: Schedule::Linear, ..pag(&[0, 2]) });
        close(&sampled(&rule, &network, None), &sampled_alone(&rule, &network, None));
    }

    #[test]
    fn needs_are_exact() {
        let needs = pag(&[0, 2]).needs();
        assert_eq!((needs.null, needs.most_branches, needs.hooks.blocks_named), (false, 2, 3));
        assert!(needs.hooks.attention && !needs.hooks.text_attention && !needs.hooks.blocks);
        assert_eq!(Pag { scale: 2.0, ..pag(&[0]) }.needs().most_branches, 3);
    }
}
