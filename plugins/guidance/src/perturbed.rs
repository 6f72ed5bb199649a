//! Shared code of the rules that compare the network with a perturbed pass of itself.
//!
//!   g          = f_null + scale (f_cond - f_null)
//!   prediction = g + strength schedule(progress) (f_cond - f_perturbed)
//!
//! Source: arXiv:2403.17377 (with and without classifier-free guidance).

use crate::per_sample::on_latent;
use framework::error::Problems;
use framework::nn::hooks::Hooked;
use framework::prelude::*;
use framework::sampling::guidance::{Branch, GuidanceNeeds, Guided, HookNeeds, Moment, Trajectory, mix};
use framework::schedule::Schedule;

/// The weights of the branches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// Scale of classifier-free guidance; 1 = none.
    pub scale: f64,
    /// Scale for the network's guidance input; 1 = none.
    pub input_scale: f64,
    /// Weight of the conditional minus the perturbed prediction.
    pub strength: f64,
    /// Schedule of `strength` over the progress.
    pub schedule: Schedule,
}

impl Weights {
    /// Returns the problems of a rule with these weights that perturbs `blocks`.
    pub fn check(&self, blocks: &[usize]) -> Problems {
        let mut problems: Problems =
            self.schedule.check().into_iter().map(|problem| problem.under("/schedule")).collect();
        if self.strength == 0.0 {
            let what = "the perturbed pass has no effect at strength 0";
            problems.push(Problem::new("/strength", what).accepts("a number > 0, or guidance \"cfg\" or \"none\""));
        }
        problems.extend(check_blocks(blocks));
        problems
    }

    /// Returns the needs of a rule with these weights, whose perturbed pass uses `hooks` on `blocks`.
    pub fn needs(&self, blocks: &[usize], hooks: HookNeeds) -> GuidanceNeeds {
        let (guides, hooks) = (self.scale != 1.0, HookNeeds { blocks_named: named(blocks), ..hooks });
        GuidanceNeeds { null: guides, hooks, ..GuidanceNeeds::branches(if guides { 3 } else { 2 }) }
    }

    /// Creates the state of a rule whose perturbed pass is the branch that `perturb` returns.
    pub fn start(self, perturb: impl Fn(&Moment) -> Branch + Send + 'static) -> Box<dyn Trajectory> {
        Box::new(Perturbed { weights: self, perturb: Box::new(perturb) })
    }

    fn strength_at(&self, moment: &Moment) -> f64 {
        self.strength * self.schedule.at(moment.progress)
    }
}

/// Returns the problems of a list of block indices.
pub fn check_blocks(blocks: &[usize]) -> Problems {
    let mut problems = Problems::new();
    if blocks.is_empty() {
        let what = "the rule names no block, so it changes nothing";
        problems.push(Problem::new("/blocks", what).accepts("at least one block index"));
    }
    let repeated = (0..blocks.len()).find(|i| blocks[..*i].contains(&blocks[*i]));
    if let Some(i) = repeated {
        let what = format!("block {} is named twice", blocks[i]);
        problems.push(Problem::new(format!("/blocks/{i}"), what).accepts("each block at most once"));
    }
    problems
}

/// Returns the exclusive upper bound of the block indices.
pub fn named(blocks: &[usize]) -> usize {
    blocks.iter().max().map_or(0, |last| last.saturating_add(1))
}

/// Returns the conditional branch of the main network with hooks.
pub fn branch(name: &'static str, hooks: Hooked) -> Branch {
    Branch { name, hooks, ..Branch::given() }
}

struct Perturbed {
    weights: Weights,
    perturb: Box<dyn Fn(&Moment) -> Branch + Send>,
}

impl Trajectory for Perturbed {
    fn branches(&mut self, moment: &Moment) -> Vec<Branch> {
        let null = (self.weights.scale != 1.0).then(Branch::null);
        let perturbed = (self.weights.strength_at(moment) != 0.0).then(|| (self.perturb)(moment));
        let scaled = |branch| Branch { scale: Some(self.weights.input_scale), ..branch };
        [Some(scaled(Branch::given())), null, perturbed.map(scaled)].into_iter().flatten().collect()
    }

    fn combine(&mut self, moment: &Moment, predictions: Vec<Tensor<3>>) -> Guided {
        let (scale, strength) = (self.weights.scale, self.weights.strength_at(moment));
        let mut predictions = predictions.into_iter();
        let mut next = || predictions.next().expect("one prediction per branch");
        let cond = next();
        let guided = if scale == 1.0 { cond.clone() } else { mix(cond.clone(), next(), scale, moment.channels) };
        if strength == 0.0 {
            return guided.into();
        }
        let all = [guided, cond, next()];
        on_latent(all, moment.channels, |[guided, cond, perturbed]| guided + (cond - perturbed) * strength).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::moment;
    use framework::burn::tensor::DType;
    use framework::random::tensor;

    fn at(values: [f64; 2]) -> Tensor<3> {
        tensor(&values, [1, 1, 2], DType::F64, &Device::flex())
    }

    fn combined(weights: Weights, channels: usize, predictions: Vec<Tensor<3>>) -> Vec<f64> {
        let mut state = weights.start(|_| branch("perturbed", Hooked::default()));
        let moment = Moment { channels, ..moment(0.5) };
        assert_eq!(state.branches(&moment).len(), predictions.len());
        crate::testing::values(state.combine(&moment, predictions).prediction)
    }

    fn weights(scale: f64, strength: f64) -> Weights {
        Weights { scale, input_scale: 1.0, strength, schedule: Schedule::Constant }
    }

    #[test]
    fn worked_by_hand() {
        // 1 + 3 (1 - 0.5), and 2 + 3 (2 - 4).
        assert_eq!(combined(weights(1.0, 3.0), 2, vec![at([1.0, 2.0]), at([0.5, 4.0])]), [2.5, -4.0]);
        // CFG at scale 2: 2 * 1 - 0 = 2, and 2 * 2 - 1 = 3. Then the same differences are added.
        let three = vec![at([1.0, 2.0]), at([0.0, 1.0]), at([0.5, 4.0])];
        assert_eq!(combined(weights(2.0, 3.0), 2, three.clone()), [3.5, -3.0]);
        // The second channel is a variance, so it stays conditional.
        assert_eq!(combined(weights(2.0, 3.0), 1, three), [3.5, 2.0]);
    }

    #[test]
    fn outside_its_interval_the_rule_is_cfg_without_a_perturbed_pass() {
        let schedule = Schedule::Interval { from: 0.0, to: 0.2 };
        let late = |scale| Weights { schedule, ..weights(scale, 3.0) };
        assert_eq!(combined(late(1.0), 2, vec![at([1.0, 2.0])]), [1.0, 2.0]);
        assert_eq!(combined(late(2.0), 2, vec![at([1.0, 2.0]), at([0.0, 1.0])]), [2.0, 3.0]);
    }

    #[test]
    fn both_conditional_passes_read_the_input_scale() {
        let weights = Weights { input_scale: 2.5, ..weights(2.0, 3.0) };
        let branches = weights.start(|_| branch("perturbed", Hooked::default())).branches(&moment(0.5));
        let scales: Vec<Option<f64>> = branches.iter().map(|branch| branch.scale).collect();
        assert_eq!(scales, [Some(2.5), None, Some(2.5)]);
    }

    #[test]
    fn blocks_are_named_once_and_at_least_one() {
        assert_eq!(check_blocks(&[])[0].at, ["/blocks"]);
        assert_eq!(check_blocks(&[1, 0, 1])[0].at, ["/blocks/2"]);
        assert!(check_blocks(&[2, 0]).is_empty());
        assert_eq!((named(&[2, 0]), named(&[]), named(&[usize::MAX])), (3, 0, usize::MAX));
    }
}
