//! Stochastic self-guidance (S^2-Guidance): stochastic block dropping.
//!
//!   g          = f_null + scale (f_cond - f_null)
//!   prediction = g + strength schedule(progress) (f_cond - f_dropped)
//!
//! Each dropped pass skips `count` of the named blocks, chosen at random at every evaluation. This is the form of the
//! paper's later versions. The first version subtracts `strength f_dropped` alone, which scales the prediction by
//! 1 - strength. Published: strength 0.25 and a tenth of the blocks without the first one, over the progress 0.1 to
//! 0.9.
//!
//! The choice depends on `seed` and the evaluation, not on the sample. A hook acts on the whole batch, so all samples
//! skip the same blocks, and no sample depends on its batch.
//!
//! Source: arXiv:2508.12880.

use crate::perturbed::{Weights, branch};
use crate::slg::Skip;
use framework::nn::hooks::Hooked;
use framework::prelude::*;
use framework::random::{Random, order_of};
use framework::sampling::guidance::{Branch, Guidance, GuidanceNeeds, HookNeeds, Moment, Trajectory};
use framework::schedule::Schedule;
use std::sync::Arc;

/// Guidance away from passes that skip random blocks. Two passes per step, three with CFG, one less where `schedule`
/// is 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["blocks"]))]
pub struct S2 {
    /// Scale of classifier-free guidance, 0 to 1000; 1 = none.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub scale: f64,
    /// Scale passed to the network's guidance input, 0.001 to 1000; 1 = the conditional distribution.
    #[schemars(range(min = 1e-3, max = 1000.0))]
    pub input_scale: f64,
    /// Weight of the conditional minus the dropped prediction, above 0, at most 1000. Published: 0.25.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub strength: f64,
    /// Schedule of `strength` over the progress. Published: the interval from 0.1 to 0.9.
    pub schedule: Schedule,
    /// Indices of the blocks that may be skipped, from 0. Published: all except block 0.
    pub blocks: Vec<usize>,
    /// Number of blocks skipped per evaluation, 1 to the number of `blocks`. Published: a tenth of the blocks.
    #[schemars(range(min = 1))]
    pub count: usize,
    /// Seed of the random choices.
    pub seed: u64,
}

impl Default for S2 {
    fn default() -> Self {
        Self {
            scale: 1.0,
            input_scale: 1.0,
            strength: 0.25,
            schedule: Schedule::Interval { from: 0.1, to: 0.9 },
            blocks: Vec::new(),
            count: 1,
            seed: 0,
        }
    }
}

framework::register!(guidance "s2" => S2, "arXiv:2508.12880");

impl S2 {
    fn weights(&self) -> Weights {
        Weights { scale: self.scale, input_scale: self.input_scale, strength: self.strength, schedule: self.schedule }
    }

    /// Returns the blocks that an evaluation skips.
    fn dropped(&self, moment: &Moment) -> Vec<usize> {
        // Masked decoding restarts the count of evaluations in each iteration. The progress differs between iterations,
        // so it is part of the seed.
        let (evaluation, progress) = (moment.evaluation as u64, moment.progress.to_bits());
        let keys = Random::new(self.seed).uniform("dropped blocks", evaluation, progress, self.blocks.len());
        order_of(&keys).into_iter().take(self.count).map(|i| self.blocks[i]).collect()
    }
}

impl Guidance for S2 {
    fn check(&self) -> Vec<Problem> {
        let mut problems = self.weights().check(&self.blocks);
        if self.count == 0 || self.count > self.blocks.len() {
            let what = format!("{} of {} blocks are to be skipped", self.count, self.blocks.len());
            let accepts = format!("1 to {}, the number of blocks in `blocks`", self.blocks.len().max(1));
            problems.push(Problem::new("/count", what).and_at("/blocks").accepts(accepts));
        }
        if self.count == self.blocks.len() && self.seed != 0 {
            let what = "`seed` has no effect: every evaluation skips all named blocks";
            problems.push(Problem::new("/seed", what).and_at("/count").accepts("0, or a smaller `count`"));
        }
        problems
    }

    fn needs(&self) -> GuidanceNeeds {
        self.weights().needs(&self.blocks, HookNeeds { blocks: true, ..HookNeeds::default() })
    }

    fn input_scale(&self) -> Option<f64> {
        (self.input_scale != 1.0).then_some(self.input_scale)
    }

    fn start(&self) -> Box<dyn Trajectory> {
        let rule = self.clone();
        self.weights().start(move |moment| {
            let hooks = Hooked(Some(Arc::new(Skip { blocks: rule.dropped(moment) })));
            // A cache would hold keys that were computed with other blocks skipped.
            Branch { reads_all: true, ..branch("s2", hooks) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slg::Slg;
    use crate::testing::{Fake, close, evaluated, moment, predicted, sampled, sampled_alone};

    fn s2(blocks: &[usize], count: usize) -> S2 {
        S2 {
            scale: 1.0,
            input_scale: 1.0,
            strength: 2.0,
            schedule: Schedule::Constant,
            blocks: blocks.to_vec(),
            count,
            seed: 0,
        }
    }

    fn at(evaluation: usize) -> Moment {
        Moment { evaluation, ..moment(0.5) }
    }

    #[test]
    fn strength_zero_and_an_empty_drop_set_are_the_conditional() {
        let network = Fake::new(0);
        assert_eq!(evaluated(&S2 { strength: 0.0, ..s2(&[1], 1) }, &network, None), predicted(&network));
        close(&evaluated(&s2(&[1, 2], 0), &network, None), &predicted(&network));
    }

    #[test]
    fn all_blocks_dropped_is_skip_layer_guidance() {
        let (network, blocks) = (Fake::new(0), vec![1, 2]);
        let slg = Slg { scale: 1.0, input_scale: 1.0, strength: 2.0, schedule: Schedule::Constant, blocks };
        close(&evaluated(&s2(&[1, 2], 2), &network, None), &evaluated(&slg, &network, None));
    }

    #[test]
    fn every_evaluation_draws_anew_and_a_draw_can_be_repeated() {
        let rule = s2(&[1, 2, 3, 4], 2);
        let draws: Vec<Vec<usize>> = (0..50).map(|i| rule.dropped(&at(i))).collect();
        assert_eq!(draws, (0..50).map(|i| rule.dropped(&at(i))).collect::<Vec<_>>());
        for draw in &draws {
            assert!(draw.len() == 2 && draw[0] != draw[1] && draw.iter().all(|block| rule.blocks.contains(block)));
        }
        for block in &rule.blocks {
            assert!(draws.iter().any(|draw| draw.contains(block)), "block {block} is never dropped");
        }
        let other = S2 { seed: 1, ..rule.clone() };
        assert_ne!(draws, (0..50).map(|i| other.dropped(&at(i))).collect::<Vec<_>>());
    }

    #[test]
    fn the_dropped_pass_reads_all_positions() {
        let branches = s2(&[1, 2], 1).start().branches(&at(0));
        assert!(branches[1].reads_all && !branches[0].reads_all);
    }

    #[test]
    fn a_batch_equals_its_samples() {
        let (network, rule) = (Fake::new(0), S2 { scale: 2.0, ..s2(&[0, 1, 2], 1) });
        close(&sampled(&rule, &network, None), &sampled_alone(&rule, &network, None));
    }

    #[test]
    fn counts_beyond_the_named_blocks_are_refused() {
        assert_eq!(s2(&[1, 2], 3).check()[0].at[0], "/count");
        assert_eq!(S2 { seed: 3, ..s2(&[1, 2], 2) }.check()[0].at[0], "/seed");
        assert!(s2(&[1, 2], 1).check().is_empty());
    }
}
