//! Smoothed energy guidance (SEG).
//!
//!   g          = f_null + scale (f_cond - f_null)
//!   prediction = g + strength schedule(progress) (f_cond - f_perturbed)
//!
//! In the perturbed pass, the self-attention of the named blocks reads blurred queries. The queries of a head form an
//! image of side H, which a separable Gaussian of `kernel = min(ceil(6 sigma) + 1 - ceil(6 sigma) mod 2,
//! H + 1 - H mod 2)` taps blurs, with reflected borders. The limit of an infinite sigma is the mean over all
//! positions.
//! Source: arXiv:2408.00760 and its code. diffusers swaps the two cases. The variant `diffusers` reproduces this.

use crate::perturbed::{Weights, branch};
use framework::nn::hooks::{Attends, AttentionCall, AttentionSite, Hooked, Hooks};
use framework::prelude::*;
use framework::random::tensor;
use framework::sampling::guidance::{Guidance, GuidanceNeeds, HookNeeds, Trajectory};
use framework::schedule::Schedule;
use std::sync::Arc;

/// Guidance away from a pass whose self-attention reads blurred queries. Two passes per step, three with CFG.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["blocks"]))]
pub struct Seg {
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
    /// Blur of the queries.
    pub blur: Blur,
}

impl Default for Seg {
    fn default() -> Self {
        Self {
            scale: 1.0,
            input_scale: 1.0,
            strength: 3.0,
            schedule: Schedule::default(),
            blocks: Vec::new(),
            blur: Blur::default(),
        }
    }
}

/// Blur of the queries of a head over the positions of the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Blur {
    /// The mean over all positions: an infinite sigma, as published.
    #[default]
    Mean,
    /// Gaussian blur.
    Gaussian {
        /// Standard deviation in positions, 0.001 to 1000000. Up to 1/6, the kernel has one tap, so the rule has no
        /// effect.
        #[schemars(range(min = 0.001, max = 1e6))]
        sigma: f64,
    },
    /// The form of diffusers, which swaps the two cases: the mean for a sigma up to 9999.9, and a Gaussian blur for a
    /// larger sigma.
    Diffusers {
        /// Standard deviation in positions, 0.001 to 1000000.
        #[schemars(range(min = 0.001, max = 1e6))]
        sigma: f64,
    },
}

/// Largest sigma that diffusers treats as finite.
const DIFFUSERS_FINITE: f64 = 9999.9;

framework::register!(guidance "seg" => Seg, "arXiv:2408.00760");

impl Seg {
    fn weights(&self) -> Weights {
        Weights { scale: self.scale, input_scale: self.input_scale, strength: self.strength, schedule: self.schedule }
    }
}

impl Guidance for Seg {
    fn check(&self) -> Vec<Problem> {
        let mut problems = self.weights().check(&self.blocks);
        if let Blur::Gaussian { sigma } = self.blur
            && taps(sigma) == 1
        {
            let what =
                format!("a blur with sigma {sigma} has one tap, so the perturbed pass equals the conditional one");
            problems.push(Problem::new("/blur/sigma", what).accepts("a number > 1/6"));
        }
        problems
    }

    fn needs(&self) -> GuidanceNeeds {
        self.weights().needs(&self.blocks, HookNeeds { attention: true, grid: true, ..HookNeeds::default() })
    }

    fn input_scale(&self) -> Option<f64> {
        (self.input_scale != 1.0).then_some(self.input_scale)
    }

    fn start(&self) -> Box<dyn Trajectory> {
        let hooks = Hooked(Some(Arc::new(Blurred { blocks: self.blocks.clone(), blur: self.blur })));
        self.weights().start(move |_| branch("seg", hooks.clone()))
    }
}

/// Blurs the queries of the self-attention of the blocks.
#[derive(Debug)]
struct Blurred {
    blocks: Vec<usize>,
    blur: Blur,
}

impl Hooks for Blurred {
    fn reads_attention(&self, site: AttentionSite) -> bool {
        site.attends == Attends::Itself && self.blocks.contains(&site.block)
    }

    fn attention(&self, _: AttentionSite, call: &AttentionCall) -> Tensor<4> {
        let queries = match self.blur {
            Blur::Gaussian { sigma } => blurred(call.queries.clone(), sigma),
            Blur::Diffusers { sigma } if sigma > DIFFUSERS_FINITE => blurred(call.queries.clone(), sigma),
            Blur::Mean | Blur::Diffusers { .. } => call.queries.clone().mean_dim(2).expand(call.queries.dims()),
        };
        AttentionCall { queries, ..call.clone() }.output()
    }
}

/// Returns the number of taps of the kernel on an unlimited image: odd, at least 1.
fn taps(sigma: f64) -> usize {
    let taps = (6.0 * sigma).ceil() as usize;
    taps + 1 - taps % 2
}

/// Returns the matrix that blurs a line of `side` positions with reflected borders, row-major `[side, side]`.
fn kernel(sigma: f64, side: usize) -> Vec<f64> {
    let taps = taps(sigma).min(side + 1 - side % 2);
    let half = taps / 2;
    let weights: Vec<f64> = (0..taps).map(|i| (-0.5 * ((i as f64 - half as f64) / sigma).powi(2)).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut matrix = vec![0.0; side * side];
    for row in 0..side {
        for (i, weight) in weights.iter().enumerate() {
            let place = (row + i).abs_diff(half);
            let place = if place < side { place } else { 2 * (side - 1) - place };
            matrix[row * side + place] += weight / total;
        }
    }
    matrix
}

/// Blurs queries, `[B, heads, L, d]`, over the `L` positions of a square image.
///
/// # Panics
/// If `L` is not a square number. The check phase refuses such networks.
fn blurred(queries: Tensor<4>, sigma: f64) -> Tensor<4> {
    let [batch, heads, length, width] = queries.dims();
    let side = length.isqrt();
    assert_eq!(side * side, length, "the queries form no square grid");
    // The transposed kernel, because the positions are the columns of the left factor.
    let matrix: Tensor<2> = tensor(&kernel(sigma, side), [side; 2], queries.dtype(), &queries.device()).transpose();
    let along = |x: Tensor<4>, axis: usize| {
        let x = x.swap_dims(axis, 3);
        let dims = x.dims();
        let lines = x.reshape([dims.iter().product::<usize>() / side, side]);
        lines.matmul(matrix.clone()).reshape(dims).swap_dims(axis, 3)
    };
    let image = queries.reshape([batch * heads, side, side, width]);
    along(along(image, 1), 2).reshape([batch, heads, length, width])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fake, close, differs, evaluated, predicted, sampled, sampled_alone, values};
    use framework::burn::tensor::DType;
    use framework::nn::Span;

    fn seg(blur: Blur) -> Seg {
        Seg { scale: 1.0, input_scale: 1.0, strength: 3.0, schedule: Schedule::Constant, blocks: vec![0, 1], blur }
    }

    fn call() -> AttentionCall {
        let of = |shift: f64| {
            let numbers: Vec<f64> = (0..18).map(|i| (i as f64 * 0.7 + shift).sin()).collect();
            tensor(&numbers, [1, 1, 9, 2], DType::F32, &Device::flex())
        };
        AttentionCall { queries: of(0.0), keys: of(1.0), values: of(2.0), scale: 1.0, span: Span::All, mask: None }
    }

    #[test]
    fn kernel_worked_by_hand() {
        // ceil(6 * 0.5) = 3 taps with weights e^-2, 1, e^-2. The border reflects, so its neighbour counts twice.
        let (edge, total) = ((-2.0_f64).exp(), 1.0 + 2.0 * (-2.0_f64).exp());
        let rows = [[1.0, 2.0 * edge, 0.0], [edge, 1.0, edge], [0.0, 2.0 * edge, 1.0]];
        let expected: Vec<f64> = rows.iter().flatten().map(|weight| weight / total).collect();
        let made = kernel(0.5, 3);
        assert!(made.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-15), "{made:?}");
        assert_eq!([0.1, 1.0 / 6.0, 0.2, 0.5, 1.0, 10.0].map(taps), [1, 1, 3, 3, 7, 61]);
    }

    #[test]
    fn rows_of_every_kernel_sum_to_one() {
        for side in 1..9 {
            for sigma in [0.01, 0.3, 1.0, 10.0, 1e6] {
                for row in kernel(sigma, side).chunks(side) {
                    assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12, "side {side}, sigma {sigma}: {row:?}");
                }
            }
        }
    }

    #[test]
    fn a_small_sigma_changes_nothing() {
        let network = Fake::new(0);
        close(&evaluated(&seg(Blur::Gaussian { sigma: 0.1 }), &network, None), &predicted(&network));
        differs(&evaluated(&seg(Blur::Gaussian { sigma: 2.0 }), &network, None), &predicted(&network));
        differs(&evaluated(&seg(Blur::Mean), &network, None), &predicted(&network));
    }

    #[test]
    fn constant_queries_stay_as_they_are() {
        let constant = AttentionCall { queries: Tensor::ones_like(&call().queries) * 0.3, ..call() };
        for blur in [Blur::Mean, Blur::Gaussian { sigma: 1.0 }, Blur::Gaussian { sigma: 100.0 }] {
            let hooks = Blurred { blocks: vec![0], blur };
            close(&values(hooks.attention(AttentionSite::own(0), &constant)), &values(constant.output()));
        }
    }

    #[test]
    fn the_mean_gives_every_token_the_same_output() {
        let hooks = Blurred { blocks: vec![0], blur: Blur::Mean };
        let out = values(hooks.attention(AttentionSite::own(0), &call()));
        for token in out.chunks(2) {
            close(token, &out[..2]);
        }
    }

    #[test]
    fn blur_acts_on_rows_and_columns() {
        // One unit at the centre of a 3x3 image, kernel weights e and 1: the result is the product of two lines.
        let unit: Vec<f64> = (0..9).map(|i| f64::from(u8::from(i == 4))).collect();
        let unit = tensor(&unit, [1, 1, 9, 1], DType::F64, &Device::flex());
        let (edge, total) = ((-2.0_f64).exp(), 1.0 + 2.0 * (-2.0_f64).exp());
        // The weight of the centre at position (row, column) is the kernel entry of the row times the kernel entry of
        // the column.
        let line = [2.0 * edge / total, 1.0 / total, 2.0 * edge / total];
        let expected: Vec<f64> = line.iter().flat_map(|row| line.map(|column| row * column)).collect();
        close(&values(blurred(unit, 0.5)), &expected);
    }

    #[test]
    fn diffusers_exchanges_the_two_cases() {
        let network = Fake::new(0);
        let of = |blur| evaluated(&seg(blur), &network, None);
        assert_eq!(of(Blur::Diffusers { sigma: 10.0 }), of(Blur::Mean));
        assert_eq!(of(Blur::Diffusers { sigma: 1e5 }), of(Blur::Gaussian { sigma: 1e5 }));
    }

    #[test]
    fn a_batch_equals_its_samples() {
        let (network, rule) = (Fake::new(0), Seg { scale: 2.0, ..seg(Blur::Gaussian { sigma: 1.0 }) });
        close(&sampled(&rule, &network, None), &sampled_alone(&rule, &network, None));
    }

    #[test]
    fn a_blur_without_effect_is_refused() {
        assert_eq!(seg(Blur::Gaussian { sigma: 0.1 }).check()[0].at, ["/blur/sigma"]);
        assert!(seg(Blur::Gaussian { sigma: 1.0 }).check().is_empty());
        assert!(seg(Blur::Mean).needs().hooks.grid);
    }
}
