//! Adaptive projected guidance (APG).
//!
//!   d_i        = f_cond - f_null
//!   m_i        = d_i + momentum m_(i-1),   m_0 = d_0
//!   c          = m_i min(1, norm_threshold / |m_i|)
//!   parallel   = <c, f_cond> / |f_cond|^2 f_cond,   orthogonal = c - parallel
//!   prediction = f_cond + (scale - 1) (orthogonal + eta parallel)   anchor "conditional": the paper
//!   prediction = f_null + scale (orthogonal + eta parallel)         anchor "unconditional": diffusers and ComfyUI
//!
//! Norms and products are per sample, over the whole latent. Both anchors agree where orthogonal + eta parallel = d_i.
//!
//! Source: arXiv:2410.02416, algorithm 1, which acts on predictions of the clean latent.

use crate::per_sample::{branches, combined, dot, no_effect_at_scale_one, no_logits, norm, ratio, two_predictions};
use framework::prelude::*;
use framework::sampling::guidance::{Branch, Guidance, GuidanceNeeds, Guided, Moment, Trajectory};

/// The prediction to which the projected difference is added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Anchor {
    /// The conditional prediction, with weight `scale - 1`, as in the paper.
    #[default]
    Conditional,
    /// The unconditional prediction, with weight `scale`, as in diffusers and ComfyUI.
    Unconditional,
}

/// Guidance whose update has a limited norm and a reduced component along the conditional prediction. Two passes per
/// step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["scale"]))]
pub struct Apg {
    /// Guidance scale, 0 to 1000; 1 = no guidance with anchor `conditional`.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub scale: f64,
    /// Weight of the update's component parallel to the conditional prediction, 0 to 10; 1 = no projection.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub eta: f64,
    /// Weight of the previous update, -1 to 1; 0 = none. Published: -0.5 and -0.75.
    #[schemars(range(min = -1.0, max = 1.0))]
    pub momentum: f64,
    /// Largest Euclidean norm of the update per sample, 1e-6 to 1e6; null = no limit. The norm grows with the latent's
    /// size; published: 2.5 to 15.
    #[schemars(range(min = 1e-6, max = 1e6))]
    pub norm_threshold: Option<f64>,
    /// Prediction to which the update is added.
    pub anchor: Anchor,
    /// Prediction space of the rule; null = the network's own. The paper uses `x`.
    pub space: Option<Prediction>,
}

impl Default for Apg {
    fn default() -> Self {
        Self {
            scale: 0.0,
            eta: 0.0,
            momentum: 0.0,
            norm_threshold: None,
            anchor: Anchor::default(),
            space: Some(Prediction::X),
        }
    }
}

framework::register!(guidance "apg" => Apg, "arXiv:2410.02416");

impl Apg {
    fn is_conditional(&self) -> bool {
        self.scale == 1.0 && self.anchor == Anchor::Conditional
    }
}

impl Guidance for Apg {
    fn check(&self) -> Vec<Problem> {
        let mut problems = no_logits("space", self.space);
        if self.is_conditional() {
            let changed = [
                ("eta", self.eta != 0.0),
                ("momentum", self.momentum != 0.0),
                ("norm_threshold", self.norm_threshold.is_some()),
            ];
            problems.extend(no_effect_at_scale_one(self.scale, &changed));
        }
        problems
    }

    fn needs(&self) -> GuidanceNeeds {
        two_predictions(!self.is_conditional(), self.space)
    }

    fn start(&self) -> Box<dyn Trajectory> {
        Box::new(ApgTrajectory { rule: self.clone(), update: None })
    }
}

/// The rule with the updates of one batch of trajectories.
struct ApgTrajectory {
    rule: Apg,
    /// `m_(i-1)`, before the limit on its norm.
    update: Option<Tensor<3>>,
}

impl ApgTrajectory {
    /// Computes `orthogonal + eta parallel`.
    fn update(&mut self, cond: &Tensor<3>, null: &Tensor<3>) -> Tensor<3> {
        let mut update = cond.clone() - null.clone();
        if self.rule.momentum != 0.0 {
            if let Some(before) = self.update.take() {
                update = update + before * self.rule.momentum;
            }
            self.update = Some(update.clone());
        }
        if let Some(threshold) = self.rule.norm_threshold {
            let length = norm(&update);
            update = update * ratio(length.ones_like() * threshold, length, 1.0).clamp_max(1.0);
        }
        if self.rule.eta == 1.0 {
            return update;
        }
        let parallel = cond.clone() * ratio(dot(&update, cond), dot(cond, cond), 0.0);
        update - parallel * (1.0 - self.rule.eta)
    }
}

impl Trajectory for ApgTrajectory {
    fn branches(&mut self, _: &Moment) -> Vec<Branch> {
        branches(!self.rule.is_conditional())
    }

    fn combine(&mut self, moment: &Moment, predictions: Vec<Tensor<3>>) -> Guided {
        combined(predictions, moment.channels, |[cond, null]| {
            let update = self.update(&cond, &null);
            match self.rule.anchor {
                Anchor::Conditional => cond + update * (self.rule.scale - 1.0),
                Anchor::Unconditional => null + update * self.rule.scale,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trials::{
        assert_close, assert_equal_predictions_stay, assert_further_channels_are_conditional, assert_is_cfg,
        assert_is_conditional, assert_samples_are_independent, at, combined, differ, one, prediction, run, run_on,
        values,
    };
    use proptest::prelude::*;

    fn apg(scale: f64) -> Apg {
        let (anchor, space) = (Anchor::Conditional, Apg::default().space);
        Apg { scale, eta: 0.0, momentum: 0.0, norm_threshold: None, anchor, space }
    }

    fn full(scale: f64) -> Apg {
        Apg { eta: 0.3, momentum: -0.5, norm_threshold: Some(4.0), ..apg(scale) }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn without_projection_momentum_and_limit_it_is_cfg(scale in 0.0..9.0f64) {
            for anchor in [Anchor::Conditional, Anchor::Unconditional] {
                assert_is_cfg(&Apg { eta: 1.0, anchor, ..apg(scale) }, scale);
            }
        }

        #[test]
        fn anchors_differ_by_the_removed_parallel_part(scale in 0.0..9.0f64, eta in 0.0..1.0f64) {
            let paper = run(&Apg { eta, ..apg(scale) }, 0, 1);
            let diffusers = run(&Apg { eta, anchor: Anchor::Unconditional, ..apg(scale) }, 0, 1);
            for (i, (paper, diffusers)) in paper.iter().zip(diffusers).enumerate() {
                let (cond, null) = (prediction("given", 0, 1, i), prediction("null", 0, 1, i));
                let difference = cond.clone() - null;
                let parallel = cond.clone() * (dot(&difference, &cond) / dot(&cond, &cond));
                let got: Vec<f64> = paper.iter().zip(diffusers).map(|(a, b)| a - b).collect();
                assert_close(&got, &values(parallel * (1.0 - eta)), 1e-9);
            }
        }

        #[test]
        fn without_the_parallel_part_the_update_is_orthogonal(scale in 0.0..9.0f64, momentum in -0.9..0.9f64) {
            for (i, got) in run(&Apg { momentum, ..apg(scale) }, 0, 1).iter().enumerate() {
                let cond = values(prediction("given", 0, 1, i));
                let along: f64 = got.iter().zip(&cond).map(|(got, cond)| (got - cond) * cond).sum();
                prop_assert!(along.abs() < 1e-9, "{}", along);
            }
        }

        #[test]
        fn the_update_is_no_longer_than_its_limit(scale in 2.0..9.0f64, limit in 0.1..20.0f64) {
            for (i, got) in run(&Apg { eta: 1.0, norm_threshold: Some(limit), ..apg(scale) }, 0, 1).iter().enumerate() {
                let cond = values(prediction("given", 0, 1, i));
                let length = got.iter().zip(&cond).map(|(got, cond)| (got - cond).powi(2)).sum::<f64>().sqrt();
                prop_assert!(length <= (scale - 1.0) * limit * (1.0 + 1e-9), "{}", length);
            }
        }
    }

    #[test]
    fn scale_one_is_the_conditional_and_one_branch() {
        assert_is_conditional(&full(1.0));
        assert_eq!(full(1.0).start().branches(&at(0)).len(), 1);
        // The other anchor keeps only `eta` of the parallel part, so it needs both branches.
        let other = Apg { anchor: Anchor::Unconditional, ..full(1.0) };
        assert_eq!(other.start().branches(&at(0)).len(), 2);
        assert!(differ(&run(&other, 0, 1)[0], &values(prediction("given", 0, 1, 0))));
    }

    #[test]
    fn batches_and_equal_and_further_predictions() {
        assert_samples_are_independent(&full(4.0));
        assert_samples_are_independent(&Apg { anchor: Anchor::Unconditional, ..full(4.0) });
        assert_equal_predictions_stay(&full(4.0));
        assert_further_channels_are_conditional(&full(4.0));
    }

    #[test]
    fn projection_and_limit_worked_by_hand() {
        // The difference (1, 1) has the parallel part (1, 0) and the orthogonal part (0, 1).
        let (cond, null) = (one([[1.0, 0.0]]), one([[0.0, -1.0]]));
        let half = Apg { eta: 0.5, ..apg(3.0) };
        assert_close(&combined(&half, &cond, &null), &[2.0, 2.0], 1e-12);
        let other = Apg { anchor: Anchor::Unconditional, ..half.clone() };
        assert_close(&combined(&other, &cond, &null), &[1.5, 2.0], 1e-12);
        // The limit halves the difference, whose norm is sqrt(2).
        let limited = Apg { norm_threshold: Some(0.5_f64.sqrt()), ..half };
        assert_close(&combined(&limited, &cond, &null), &[1.5, 1.0], 1e-12);
        // An update parallel to the conditional prediction is removed.
        assert_close(&combined(&apg(3.0), &cond, &one([[0.5, 0.0]])), &[1.0, 0.0], 1e-12);
    }

    /// Returns the first three evaluations of predictions that never change, whose difference is (1, 1).
    fn constant(rule: &Apg) -> Vec<f64> {
        let predict =
            |branch: &'static str, _: usize| if branch == "null" { one([[0.0, -1.0]]) } else { one([[1.0, 0.0]]) };
        run_on(rule, 1, &predict).into_iter().take(3).flatten().collect()
    }

    #[test]
    fn momentum_worked_by_hand() {
        // Updates: 1, then 1 - 0.5 = 0.5, then 1 - 0.25 = 0.75, times (1, 1).
        let rule = Apg { eta: 1.0, momentum: -0.5, ..apg(3.0) };
        assert_close(&constant(&rule), &[3.0, 2.0, 2.0, 1.0, 2.5, 1.5], 1e-12);
    }

    #[test]
    fn momentum_keeps_the_update_before_its_limit() {
        // The limit cuts only the first update, to 0.75 (1, 1). Keeping the cut update would give 0.625 instead of 0.5.
        let rule = Apg { eta: 1.0, momentum: -0.5, norm_threshold: Some(0.75 * 2.0_f64.sqrt()), ..apg(3.0) };
        assert_close(&constant(&rule)[..4], &[2.5, 1.5, 2.0, 1.0], 1e-12);
    }

    #[test]
    fn zero_predictions_stay_finite() {
        let zero = one([[0.0, 0.0]]);
        assert_close(&combined(&full(3.0), &zero, &zero), &[0.0, 0.0], 0.0);
    }

    #[test]
    fn logits_are_refused() {
        assert_eq!(Apg { space: Some(Prediction::Logits), ..apg(2.0) }.check().len(), 1);
        assert_eq!(full(1.0).check().len(), 3, "three settings have no effect");
        assert!(full(2.0).check().is_empty());
    }
}
