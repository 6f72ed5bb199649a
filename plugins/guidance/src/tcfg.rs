//! Tangential damping (TCFG).
//!
//!   v          = top right singular vector of the matrix with rows f_cond, f_null
//!   n          = <f_null, v> v
//!   prediction = n + scale (f_cond - n)
//!
//! With the products a = |f_cond|^2, b = |f_null|^2, g = <f_cond, f_null> per sample, no decomposition is needed: the
//! top eigenvector (p, q) of [[a, g], [g, b]] gives v = (p f_cond + q f_null) / sqrt(eigenvalue), and therefore
//!
//!   n = p q f_cond + q^2 f_null,   p q = g / r,   q^2 = (1 - (a - b) / r) / 2,   r = sqrt((a - b)^2 + 4 g^2)
//!
//! Source: arXiv:2503.18137. The paper decomposes scores, which are parallel to `eps`.

use crate::per_sample::{branches, combined, dot, no_effect_at_scale_one, no_logits, ratio, two_predictions};
use framework::prelude::*;
use framework::sampling::guidance::{Branch, Guidance, GuidanceNeeds, Guided, Moment, Trajectory};

/// Guidance away from the part of the null prediction that agrees with the conditional one. Two passes per step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tcfg {
    /// Guidance scale, 0 to 1000; 1 = no guidance.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub scale: f64,
    /// Prediction space of the rule; null = the network's own, as in diffusers. The paper uses `score`.
    #[serde(default)]
    pub space: Option<Prediction>,
}

framework::register!(guidance "tcfg" => Tcfg, "arXiv:2503.18137");

impl Guidance for Tcfg {
    fn check(&self) -> Vec<Problem> {
        let mut problems = no_logits("space", self.space);
        problems.extend(no_effect_at_scale_one(self.scale, &[("space", self.space.is_some())]));
        problems
    }

    fn needs(&self) -> GuidanceNeeds {
        two_predictions(self.scale != 1.0, self.space)
    }

    fn start(&self) -> Box<dyn Trajectory> {
        Box::new(self.clone())
    }
}

/// Computes the projection of `null` on the top right singular vector of the rows `cond`, `null`, per sample.
fn damped(cond: &Tensor<3>, null: &Tensor<3>) -> Tensor<3> {
    let (a, b, g) = (dot(cond, cond), dot(null, null), dot(cond, null));
    let difference = a - b;
    let r = (difference.clone() * difference.clone() + g.clone() * g.clone() * 4.0).sqrt();
    // If r is 0, every direction is a top singular vector. Keep the null prediction then.
    let (pq, cosine) = (ratio(g, r.clone(), 0.0), ratio(difference, r, -1.0));
    cond.clone() * pq + null.clone() * ((cosine.neg() + 1.0) * 0.5)
}

impl Trajectory for Tcfg {
    fn branches(&mut self, _: &Moment) -> Vec<Branch> {
        branches(self.scale != 1.0)
    }

    fn combine(&mut self, moment: &Moment, predictions: Vec<Tensor<3>>) -> Guided {
        combined(predictions, moment.channels, |[cond, null]| {
            let null = damped(&cond, &null);
            null.clone() + (cond - null) * self.scale
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trials::{
        assert_close, assert_equal_predictions_stay, assert_further_channels_are_conditional, assert_is_conditional,
        assert_samples_are_independent, at, cfg, combined, one, prediction, run_on, values,
    };
    use proptest::prelude::*;

    fn tcfg(scale: f64) -> Tcfg {
        Tcfg { scale, space: None }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn a_parallel_null_prediction_gives_cfg(scale in 0.0..9.0f64, factor in -3.0..3.0f64) {
            let predict = |branch: &'static str, i: usize| {
                let cond = prediction("given", 0, 2, i);
                if branch == "null" { cond * factor } else { cond }
            };
            for (got, expected) in run_on(&tcfg(scale), 2, &predict).iter().zip(run_on(&cfg(scale), 2, &predict)) {
                assert_close(got, &expected, 1e-8);
            }
        }

        #[test]
        fn the_damped_prediction_is_the_projection_found_by_iteration(x in proptest::array::uniform4(-2.0..2.0f64)) {
            let (cond, null) = ([x[0], x[1], 0.5], [x[2], 0.3, x[3]]);
            // Power iteration on the sum of the rows' outer products.
            let mut v = [1.0, 0.7, -0.2];
            for _ in 0..100_000 {
                let along = |row: [f64; 3]| row.iter().zip(v).map(|(row, v)| row * v).sum::<f64>();
                let (c, u) = (along(cond), along(null));
                let next = [0, 1, 2].map(|i| c * cond[i] + u * null[i]);
                let length = next.iter().map(|x| x * x).sum::<f64>().sqrt();
                v = next.map(|x| x / length);
            }
            let along: f64 = null.iter().zip(v).map(|(null, v)| null * v).sum();
            // Skip singular values that nearly agree, for which the iteration converges slowly.
            let product = |a: [f64; 3], b: [f64; 3]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let (a, b, g) = (product(cond, cond), product(null, null), product(cond, null));
            prop_assume!(((a - b).powi(2) + 4.0 * g * g).sqrt() > 0.05 * (a + b));
            let got = values(damped(&one([cond]), &one([null])));
            assert_close(&got, &v.map(|v| v * along), 1e-7);
        }
    }

    #[test]
    fn scale_one_is_the_conditional_and_one_branch() {
        assert_is_conditional(&tcfg(1.0));
        assert_eq!(tcfg(1.0).start().branches(&at(0)).len(), 1);
    }

    #[test]
    fn batches_and_equal_and_further_predictions() {
        assert_samples_are_independent(&tcfg(4.0));
        assert_equal_predictions_stay(&tcfg(4.0));
        assert_further_channels_are_conditional(&tcfg(4.0));
    }

    #[test]
    fn the_damped_prediction_is_never_longer() {
        // Scale 0 returns the damped prediction itself.
        for (i, got) in
            run_on(&tcfg(0.0), 1, &|branch: &'static str, i: usize| prediction(branch, 0, 1, i)).iter().enumerate()
        {
            let length = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>();
            assert!(length(got) <= length(&values(prediction("null", 0, 1, i))) + 1e-9);
        }
    }

    #[test]
    fn worked_by_hand() {
        // Orthogonal predictions: the longer one is the singular vector. Plain guidance would give (6, -2).
        assert_close(&combined(&tcfg(3.0), &one([[2.0, 0.0]]), &one([[0.0, 1.0]])), &[6.0, 0.0], 1e-12);
        assert_close(&combined(&tcfg(3.0), &one([[1.0, 0.0]]), &one([[0.0, 2.0]])), &[3.0, -4.0], 1e-12);
        // a = 4, b = 2, g = 2, r = sqrt(20): n = 2 / r (2, 0) + (1 - 2 / r) / 2 (1, 1).
        let r = 20.0_f64.sqrt();
        let expected = [4.0 / r + (1.0 - 2.0 / r) / 2.0, (1.0 - 2.0 / r) / 2.0];
        assert_close(&values(damped(&one([[2.0, 0.0]]), &one([[1.0, 1.0]]))), &expected, 1e-12);
    }

    #[test]
    fn undetermined_directions_keep_the_null_prediction() {
        assert_close(&values(damped(&one([[1.0, 0.0]]), &one([[0.0, 1.0]]))), &[0.0, 1.0], 1e-12);
        assert_close(&values(damped(&one([[0.0, 0.0]]), &one([[0.0, 0.0]]))), &[0.0, 0.0], 0.0);
    }
}
