//! Skip-layer guidance (SLG).
//!
//!   g          = f_null + scale (f_cond - f_null)
//!   prediction = g + strength schedule(progress) (f_cond - f_perturbed)
//!
//! The perturbed pass skips the named blocks: a skipped block returns its input. Published: strength 2.8 over the
//! progress 0.01 to 0.2.
//!
//! Source: arXiv:2411.18664 (spatiotemporal skip guidance), and the sampling code of Stable Diffusion 3.5.

use crate::perturbed::{Weights, branch};
use framework::nn::hooks::{BlockInput, Hooked, Hooks};
use framework::prelude::*;
use framework::sampling::guidance::{Guidance, GuidanceNeeds, HookNeeds, Trajectory};
use framework::schedule::Schedule;
use std::sync::Arc;

/// Guidance away from a pass that skips blocks. Two passes per step, three with CFG, one less where `schedule` is 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["blocks"]))]
pub struct Slg {
    /// Scale of classifier-free guidance, 0 to 1000; 1 = none.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub scale: f64,
    /// Scale passed to the network's guidance input, 0.001 to 1000; 1 = the conditional distribution.
    #[schemars(range(min = 1e-3, max = 1000.0))]
    pub input_scale: f64,
    /// Weight of the conditional minus the perturbed prediction, above 0, at most 1000. Published: 2.8.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub strength: f64,
    /// Schedule of `strength` over the progress. Published: the interval from 0.01 to 0.2.
    pub schedule: Schedule,
    /// Indices of the skipped blocks, from 0.
    pub blocks: Vec<usize>,
}

impl Default for Slg {
    fn default() -> Self {
        Self {
            scale: 1.0,
            input_scale: 1.0,
            strength: 2.8,
            schedule: Schedule::Interval { from: 0.01, to: 0.2 },
            blocks: Vec::new(),
        }
    }
}

framework::register!(guidance "slg" => Slg, "arXiv:2411.18664");

impl Slg {
    fn weights(&self) -> Weights {
        Weights { scale: self.scale, input_scale: self.input_scale, strength: self.strength, schedule: self.schedule }
    }
}

impl Guidance for Slg {
    fn check(&self) -> Vec<Problem> {
        self.weights().check(&self.blocks)
    }

    fn needs(&self) -> GuidanceNeeds {
        self.weights().needs(&self.blocks, HookNeeds { blocks: true, ..HookNeeds::default() })
    }

    fn input_scale(&self) -> Option<f64> {
        (self.input_scale != 1.0).then_some(self.input_scale)
    }

    fn start(&self) -> Box<dyn Trajectory> {
        let hooks = Hooked(Some(Arc::new(Skip { blocks: self.blocks.clone() })));
        self.weights().start(move |_| branch("slg", hooks.clone()))
    }
}

/// Skips the blocks.
#[derive(Debug)]
pub struct Skip {
    /// Indices of the skipped blocks.
    pub blocks: Vec<usize>,
}

impl Hooks for Skip {
    fn block_input(&self, block: usize, tokens: Tensor<3>) -> BlockInput {
        if self.blocks.contains(&block) { BlockInput::Skip(tokens) } else { BlockInput::Run(tokens) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fake, close, differs, evaluated, moment, noise_values, predicted, sampled, sampled_alone};

    fn slg(blocks: &[usize]) -> Slg {
        Slg { scale: 1.0, input_scale: 1.0, strength: 2.0, schedule: Schedule::Constant, blocks: blocks.to_vec() }
    }

    #[test]
    fn strength_zero_and_an_empty_list_are_the_conditional() {
        let network = Fake::new(0);
        assert_eq!(evaluated(&Slg { strength: 0.0, ..slg(&[1]) }, &network, None), predicted(&network));
        close(&evaluated(&slg(&[]), &network, None), &predicted(&network));
        differs(&evaluated(&slg(&[1]), &network, None), &predicted(&network));
    }

    #[test]
    fn a_pass_that_skips_every_block_returns_its_input() {
        let network = Fake::new(0);
        let (cond, x) = (predicted(&network), noise_values());
        let expected: Vec<f64> = cond.iter().zip(x).map(|(cond, x)| cond + 2.0 * (cond - x)).collect();
        close(&evaluated(&slg(&[0, 1, 2]), &network, None), &expected);
    }

    #[test]
    fn the_published_interval_saves_the_perturbed_pass() {
        let rule = Slg { schedule: Slg::default().schedule, ..slg(&[1]) };
        let branches = [0.0, 0.01, 0.1, 0.2, 0.5].map(|progress| rule.start().branches(&moment(progress)).len());
        assert_eq!(branches, [1, 2, 2, 2, 1]);
        let needs = rule.needs();
        assert!(needs.hooks.blocks && !needs.hooks.attention && !needs.null);
        assert_eq!((needs.hooks.blocks_named, needs.most_branches), (2, 2));
    }

    #[test]
    fn a_batch_equals_its_samples() {
        let (network, rule) = (Fake::new(0), Slg { scale: 2.0, ..slg(&[1]) });
        close(&sampled(&rule, &network, None), &sampled_alone(&rule, &network, None));
    }
}
