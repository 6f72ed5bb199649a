//! Token perturbation guidance (TPG).
//!
//!   g          = f_null + scale (f_cond - f_null)
//!   prediction = g + strength schedule(progress) (f_cond - f_perturbed)
//!
//! In the perturbed pass, a random permutation reorders the tokens that enter each named block. It is not undone
//! after the block. Published: strength 3.
//!
//! The permutation depends on `seed`, the evaluation and the block, not on the sample. So no sample depends on its
//! batch.
//!
//! Source: arXiv:2506.10036.

use crate::perturbed::{Weights, branch};
use framework::nn::hooks::{BlockInput, Hooked, Hooks};
use framework::prelude::*;
use framework::random::{Random, order_of};
use framework::sampling::guidance::{Guidance, GuidanceNeeds, HookNeeds, Trajectory};
use framework::schedule::Schedule;
use std::sync::Arc;

/// Guidance away from a pass whose tokens are permuted. Two passes per step, three with CFG.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["blocks"]))]
pub struct Tpg {
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
    /// Seed of the permutations.
    pub seed: u64,
}

impl Default for Tpg {
    fn default() -> Self {
        Self { scale: 1.0, input_scale: 1.0, strength: 3.0, schedule: Schedule::default(), blocks: Vec::new(), seed: 0 }
    }
}

framework::register!(guidance "tpg" => Tpg, "arXiv:2506.10036");

impl Tpg {
    fn weights(&self) -> Weights {
        Weights { scale: self.scale, input_scale: self.input_scale, strength: self.strength, schedule: self.schedule }
    }
}

impl Guidance for Tpg {
    fn check(&self) -> Vec<Problem> {
        self.weights().check(&self.blocks)
    }

    fn needs(&self) -> GuidanceNeeds {
        self.weights().needs(&self.blocks, HookNeeds { blocks: true, grid: true, ..HookNeeds::default() })
    }

    fn input_scale(&self) -> Option<f64> {
        (self.input_scale != 1.0).then_some(self.input_scale)
    }

    fn start(&self) -> Box<dyn Trajectory> {
        let (random, blocks) = (Random::new(self.seed), self.blocks.clone());
        self.weights().start(move |moment| {
            let hooks = Permuted { random, blocks: blocks.clone(), evaluation: moment.evaluation as u64 };
            branch("tpg", Hooked(Some(Arc::new(hooks))))
        })
    }
}

/// Permutes the tokens that enter the blocks.
#[derive(Debug)]
struct Permuted {
    random: Random,
    blocks: Vec<usize>,
    evaluation: u64,
}

impl Hooks for Permuted {
    fn block_input(&self, block: usize, tokens: Tensor<3>) -> BlockInput {
        if !self.blocks.contains(&block) {
            return BlockInput::Run(tokens);
        }
        let keys = self.random.uniform("token order", self.evaluation, block as u64, tokens.dims()[1]);
        let order: Vec<i64> = order_of(&keys).into_iter().map(|place| place as i64).collect();
        let order = Tensor::<1, Int>::from_data(order.as_slice(), &tokens.device());
        BlockInput::Run(tokens.select(1, order))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fake, close, differs, evaluated, noise, predicted, sampled, sampled_alone, values};

    fn tpg(blocks: &[usize]) -> Tpg {
        Tpg {
            scale: 1.0,
            input_scale: 1.0,
            strength: 3.0,
            schedule: Schedule::Constant,
            blocks: blocks.to_vec(),
            seed: 0,
        }
    }

    fn permuted(tokens: Tensor<3>, evaluation: u64) -> Vec<f64> {
        let hooks = Permuted { random: Random::new(0), blocks: vec![1], evaluation };
        match hooks.block_input(1, tokens) {
            BlockInput::Run(tokens) => values(tokens),
            BlockInput::Skip(_) => panic!("the block runs"),
        }
    }

    #[test]
    fn strength_zero_and_an_empty_list_are_the_conditional() {
        let network = Fake::new(0);
        assert_eq!(evaluated(&Tpg { strength: 0.0, ..tpg(&[1]) }, &network, None), predicted(&network));
        close(&evaluated(&tpg(&[]), &network, None), &predicted(&network));
        differs(&evaluated(&tpg(&[1]), &network, None), &predicted(&network));
    }

    #[test]
    fn the_tokens_of_a_sample_are_reordered() {
        let tokens = noise();
        let [batch, length, width] = tokens.dims();
        let (before, after) = (values(tokens.clone()), permuted(tokens, 0));
        for (before, after) in before.chunks(length * width).zip(after.chunks(length * width)) {
            let sorted = |all: &[f64]| {
                let mut tokens: Vec<Vec<f64>> = all.chunks(width).map(<[f64]>::to_vec).collect();
                tokens.sort_by(|a, b| a[0].total_cmp(&b[0]));
                tokens
            };
            assert!(before != after && sorted(before) == sorted(after));
        }
        assert_eq!(after.len(), batch * length * width);
    }

    #[test]
    fn one_token_has_one_order_and_every_evaluation_another() {
        let one = noise().narrow(1, 0, 1);
        assert_eq!(permuted(one.clone(), 0), values(one));
        assert_ne!(permuted(noise(), 0), permuted(noise(), 1));
        assert_eq!(permuted(noise(), 1), permuted(noise(), 1));
    }

    #[test]
    fn a_batch_equals_its_samples() {
        let (network, rule) = (Fake::new(0), Tpg { scale: 2.0, ..tpg(&[0, 2]) });
        close(&sampled(&rule, &network, None), &sampled_alone(&rule, &network, None));
    }
}
