//! Frequency-decoupled guidance (FDG), on a Laplacian pyramid of any number of levels.
//!
//!   d          = f_cond - f_null
//!   low_0      = d,   low_(k+1) = half(low_k),   high_k = low_k - double(low_(k+1))
//!   u_K        = scales[K] low_K,   u_k = double(u_(k+1)) + scales[k] high_k,   K = number of scales - 1
//!   prediction = f_null + u_0
//!
//! The pyramid is linear, so scaling the levels of d equals guiding the levels of f_cond and f_null. Its reconstruction
//! is exact for any filters, so equal scales are plain guidance. `half` averages 2 x 2 positions (an odd side repeats
//! its last row or column), `double` repeats every position. The paper uses Gaussian filters.
//!
//! Source: arXiv:2506.19713; two levels are the frequency-aware guidance of FreCaS (arXiv:2410.18410).

use crate::per_sample::{branches, combined, two_predictions};
use framework::prelude::*;
use framework::sampling::guidance::{Branch, Guidance, GuidanceNeeds, Guided, Moment, Setting, Trajectory};

/// Guidance with one scale per frequency band. Two passes per step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fdg {
    /// Guidance scale of each frequency level, from the highest frequencies to the lowest, 2 to 8 levels, each 0 to
    /// 1000; 1 = no guidance of that level. N levels need a latent of at least 2^(N-1) positions per side. Published: a
    /// high scale for high frequencies (10 to 12), a low scale for low frequencies (3 to 5).
    #[schemars(length(min = 2, max = 8), inner(range(min = 0.0, max = 1000.0)))]
    pub scales: Vec<f64>,
}

framework::register!(guidance "fdg" => Fdg, "arXiv:2506.19713", "arXiv:2410.18410");

impl Fdg {
    fn is_conditional(&self) -> bool {
        self.scales.iter().all(|scale| *scale == 1.0)
    }
}

impl Guidance for Fdg {
    fn check(&self) -> Vec<Problem> {
        if (2..=8).contains(&self.scales.len()) {
            return Vec::new();
        }
        let problem = Problem::new("/scales", format!("`scales` has {} entries", self.scales.len()));
        vec![problem.accepts("2 to 8 scales; guidance \"cfg\" has one scale for all frequencies")]
    }

    fn needs(&self) -> GuidanceNeeds {
        let levels = self.scales.len().clamp(1, 8);
        GuidanceNeeds { grid_side: 1 << (levels - 1), ..two_predictions(!self.is_conditional(), None) }
    }

    fn start(&self) -> Box<dyn Trajectory> {
        Box::new(FdgTrajectory { rule: self.clone(), grid: [0, 0] })
    }
}

/// The rule with the grid of its latents.
struct FdgTrajectory {
    rule: Fdg,
    /// Height and width of the position grid.
    grid: [usize; 2],
}

impl Trajectory for FdgTrajectory {
    fn begin(&mut self, setting: &Setting<'_>) {
        self.grid = setting.shape.grid;
    }

    fn branches(&mut self, _: &Moment) -> Vec<Branch> {
        branches(!self.rule.is_conditional())
    }

    fn combine(&mut self, moment: &Moment, predictions: Vec<Tensor<3>>) -> Guided {
        let [height, width] = self.grid;
        combined(predictions, moment.channels, |[cond, null]| {
            let [samples, positions, channels] = null.dims();
            let difference = (cond - null.clone()).reshape([samples, height, width, channels]);
            null + scaled(difference, &self.rule.scales).reshape([samples, positions, channels])
        })
    }
}

/// Scales the frequency levels of `x`, `[B, H, W, C]`, from high to low frequencies.
fn scaled(x: Tensor<4>, scales: &[f64]) -> Tensor<4> {
    let [scale, lower @ ..] = scales else { unreachable!("the check phase requires scales") };
    if lower.is_empty() {
        return x * *scale;
    }
    let [_, height, width, _] = x.dims();
    let low = half(x.clone());
    let high = x - double(low.clone(), height, width);
    double(scaled(low, lower), height, width) + high * *scale
}

/// Averages 2 x 2 positions. An odd side is extended by its last row or column.
fn half(mut x: Tensor<4>) -> Tensor<4> {
    for side in [1, 2] {
        let length = x.dims()[side];
        if length % 2 == 1 {
            x = Tensor::cat(vec![x.clone(), x.narrow(side, length - 1, 1)], side);
        }
    }
    let [samples, height, width, channels] = x.dims();
    let (height, width) = (height / 2, width / 2);
    let blocks: Tensor<6> = x.reshape([samples, height, 2, width, 2, channels]);
    blocks.mean_dim(4).mean_dim(2).reshape([samples, height, width, channels])
}

/// Repeats every position twice per side, and cuts the result to `height` x `width`.
fn double(x: Tensor<4>, height: usize, width: usize) -> Tensor<4> {
    let [samples, rows, columns, channels] = x.dims();
    let blocks: Tensor<6> = x.reshape([samples, rows, 1, columns, 1, channels]);
    let doubled: Tensor<4> =
        blocks.repeat_dim(2, 2).repeat_dim(4, 2).reshape([samples, 2 * rows, 2 * columns, channels]);
    doubled.narrow(1, 0, height).narrow(2, 0, width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trials::{
        assert_close, assert_equal_predictions_stay, assert_further_channels_are_conditional, assert_is_cfg,
        assert_is_conditional, assert_samples_are_independent, at, cfg, combined, one, prediction, values,
    };
    use framework::burn::tensor::DType;
    use framework::random::tensor;
    use proptest::prelude::*;

    fn fdg(scales: &[f64]) -> Fdg {
        Fdg { scales: scales.to_vec() }
    }

    fn grid<const H: usize, const W: usize>(rows: [[f64; W]; H]) -> Tensor<4> {
        tensor(&rows.concat(), [1, H, W, 1], DType::F64, &Device::flex())
    }

    fn flat(x: Tensor<4>) -> Vec<f64> {
        x.into_data().try_into_vec::<f64>().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn equal_scales_are_cfg(scale in 0.0..9.0f64, levels in 2usize..5) {
            assert_is_cfg(&fdg(&vec![scale; levels]), scale);
        }

        #[test]
        fn odd_sides_are_rebuilt_exactly(x in proptest::array::uniform15(-2.0..2.0f64), levels in 2usize..4) {
            let x = tensor::<4>(&x, [1, 3, 5, 1], DType::F64, &Device::flex());
            assert_close(&flat(scaled(x.clone(), &vec![1.0; levels])), &flat(x), 1e-12);
        }

        #[test]
        fn the_lowest_level_is_the_mean_of_a_power_of_two(low in 0.0..9.0f64, high in 0.0..9.0f64) {
            let x = grid([[1.0, 2.0, 5.0, -1.0], [0.5, 3.0, 2.0, 2.0], [4.0, 1.0, -3.0, 0.0], [2.0, 2.0, 1.0, 6.0]]);
            let mean = |x: Tensor<4>| flat(x).iter().sum::<f64>() / 16.0;
            let got = mean(scaled(x.clone(), &[high, high, low]));
            prop_assert!((got - low * mean(x)).abs() < 1e-9);
        }
    }

    #[test]
    fn scales_of_one_are_the_conditional_and_one_branch() {
        assert_is_conditional(&fdg(&[1.0, 1.0, 1.0]));
        assert_eq!(fdg(&[1.0, 1.0]).start().branches(&at(0)).len(), 1);
        assert_eq!(fdg(&[1.0, 2.0]).start().branches(&at(0)).len(), 2);
    }

    #[test]
    fn batches_and_equal_and_further_predictions() {
        assert_samples_are_independent(&fdg(&[5.0, 3.0, 2.0]));
        assert_equal_predictions_stay(&fdg(&[5.0, 3.0, 2.0]));
        assert_further_channels_are_conditional(&fdg(&[5.0, 3.0, 2.0]));
    }

    #[test]
    fn a_level_at_scale_one_is_that_of_the_conditional() {
        // The low frequencies of the result equal the low frequencies of the conditional prediction. The high
        // frequencies do not matter.
        let low = |x: Vec<f64>| flat(half(tensor(&x, [1, 4, 6, 3], DType::F64, &Device::flex())));
        let got = crate::trials::run(&fdg(&[7.0, 1.0]), 0, 1);
        for (i, got) in got.into_iter().enumerate() {
            assert_close(&low(got), &low(values(prediction("given", 0, 1, i))), 1e-9);
        }
    }

    #[test]
    fn worked_by_hand() {
        // The mean is 3. Swapped scales would give [4, 5, 6, 9].
        let x = grid([[1.0, 2.0], [3.0, 6.0]]);
        assert_close(&flat(scaled(x, &[2.0, 1.0])), &[-1.0, 1.0, 3.0, 9.0], 1e-12);
        // A row of three: means 2 and 5 (the last column is repeated), high parts -1, 1 and 0.
        let x = grid([[1.0, 3.0, 5.0]]);
        assert_close(&flat(half(x.clone())), &[2.0, 5.0], 1e-12);
        assert_close(&flat(scaled(x, &[2.0, 1.0])), &[0.0, 4.0, 5.0], 1e-12);
    }

    #[test]
    fn positions_are_rows_of_the_grid() {
        // Two positions in one column, one below the other: the mean is 2, the high parts are -1 and 1.
        let rule = fdg(&[3.0, 1.0]);
        assert_close(&combined(&rule, &one([[1.0], [3.0]]), &one([[0.0], [0.0]])), &[-1.0, 5.0], 1e-12);
        assert_eq!(cfg(2.0).needs().grid_side, 0);
        assert_eq!(fdg(&[3.0, 2.0, 1.0]).needs().grid_side, 4);
        assert_eq!(fdg(&[3.0]).check().len(), 1);
    }
}
