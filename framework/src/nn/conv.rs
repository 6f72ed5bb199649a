//! Layers for images `[B, C, H, W]`: convolution, group normalisation, resizing.

use super::composed;
use super::parameters::parameter;
use crate::kernels::{self, Convolve, GroupNormConfig, GroupNormalize, handle};
use crate::nn::precision::rounding;
use crate::random::tensor;
use burn::module::{Module, Param};
use burn::tensor::module::interpolate;
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};
use burn::tensor::{Device, Tensor};

/// A 2-D convolution.
#[derive(Module, Debug)]
pub struct Conv2d {
    /// `[out, in, k, k]`.
    pub weight: Param<Tensor<4>>,
    /// `[out]`.
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    stride: usize,
    #[module(skip)]
    padding: (usize, usize),
}

impl Conv2d {
    /// Creates a convolution with stride 1 and a padding of half the kernel size; for an odd kernel size,
    /// height and width stay the same. The parameters are not allocated yet.
    pub fn new(inputs: usize, outputs: usize, kernel: usize, device: &Device) -> Self {
        Self {
            weight: parameter([outputs, inputs, kernel, kernel], device),
            bias: parameter([outputs], device),
            stride: 1,
            padding: (kernel / 2, kernel / 2),
        }
    }

    /// Sets the stride and the number of zeros before and after each axis.
    pub fn with_stride(mut self, stride: usize, padding: (usize, usize)) -> Self {
        (self.stride, self.padding) = (stride, padding);
        self
    }

    /// Convolves images. Shapes: `[B, in, H, W]` to `[B, out, h, w]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let (weight, bias) = (self.weight.val(), self.bias.val());
        let kernel = Convolve { stride: self.stride, padding: self.padding, rounding: rounding(&x) };
        kernels::convolve(kernel, [handle(&x), handle(&weight), handle(&bias)])
            .map(Tensor::from_dispatch)
            .unwrap_or_else(|| composed::conv(x, weight, bias, self.stride, self.padding))
    }
}

/// Group normalisation: `weight (x - mean) / sqrt(variance + epsilon) + bias`. Mean and variance are taken over
/// the positions and channels of each group.
///
/// Source: arXiv:1803.08494. Statistics are computed in f32 or f64 for every data type.
#[derive(Module, Debug)]
pub struct GroupNorm {
    /// `[C]`.
    pub weight: Param<Tensor<1>>,
    /// `[C]`.
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    groups: usize,
    #[module(skip)]
    epsilon: f64,
}

impl GroupNorm {
    /// Creates the layer. Its parameters are not allocated yet.
    pub fn new(channels: usize, GroupNormConfig { groups, epsilon }: GroupNormConfig, device: &Device) -> Self {
        Self { weight: parameter([channels], device), bias: parameter([channels], device), groups, epsilon }
    }

    /// Normalises images. Shapes: `[B, C, H, W]` to the same.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.normalize(x, false)
    }

    /// Normalises images and applies [`super::silu`].
    pub fn forward_silu(&self, x: Tensor<4>) -> Tensor<4> {
        self.normalize(x, true)
    }

    fn normalize(&self, x: Tensor<4>, silu: bool) -> Tensor<4> {
        let (weight, bias) = (self.weight.val(), self.bias.val());
        let config = GroupNormConfig { groups: self.groups, epsilon: self.epsilon };
        kernels::group_normalize(GroupNormalize { config, silu }, [handle(&x), handle(&weight), handle(&bias)])
            .map(Tensor::from_dispatch)
            .unwrap_or_else(|| composed::group_norm(x, weight, bias, config, silu))
    }
}

/// Doubles height and width by repeating pixels.
pub fn upsample_nearest(x: Tensor<4>) -> Tensor<4> {
    interpolate(x, InterpolateOptions::new(InterpolateMode::Nearest).with_scale_factor([2.0, 2.0]))
}

/// A method of resizing images. Each axis is resized separately, as a product with a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resampling {
    /// The mean of the input pixels that overlap the output pixel.
    Area,
    /// Cubic convolution with a = -0.75. Pixels are areas (corners are not aligned), and pixels at the edges
    /// repeat.
    Bicubic,
}

impl Resampling {
    /// Returns the weights of one axis, `[to, from]` row-major; each row sums to one.
    pub fn weights(self, from: usize, to: usize) -> Vec<f64> {
        let mut weights = vec![0.0; to * from];
        for (i, row) in weights.chunks_exact_mut(from).enumerate() {
            match self {
                Self::Area => {
                    let touched = i * from / to..((i + 1) * from).div_ceil(to);
                    let share = 1.0 / touched.len() as f64;
                    row[touched].fill(share);
                }
                Self::Bicubic => {
                    let centre = (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
                    for tap in -1..=2 {
                        let place = centre.floor() + f64::from(tap);
                        row[place.clamp(0.0, (from - 1) as f64) as usize] += cubic(centre - place);
                    }
                }
            }
        }
        weights
    }
}

/// Evaluates the kernel of Keys with a = -0.75.
fn cubic(distance: f64) -> f64 {
    const A: f64 = -0.75;
    let d = distance.abs();
    match d {
        _ if d <= 1.0 => ((A + 2.0) * d - (A + 3.0)) * d * d + 1.0,
        _ if d < 2.0 => A * (((d - 5.0) * d + 8.0) * d - 4.0),
        _ => 0.0,
    }
}

/// Resizes images to the height and width `to`.
pub fn resize(x: Tensor<4>, to: [usize; 2], resampling: Resampling) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    if [height, width] == to {
        return x;
    }
    // Resizes the last axis and swaps it with the previous one.
    let axis = |x: Tensor<4>, other: usize, from: usize, to: usize| {
        let weights = tensor::<2>(&resampling.weights(from, to), [to, from], x.dtype(), &x.device().inner());
        let resized = x.reshape([batch * channels * other, from]).matmul(weights.transpose());
        resized.reshape([batch, channels, other, to]).swap_dims(2, 3)
    };
    axis(axis(x, height, width, to[1]), to[1], height, to[0])
}

/// Flattens the positions in raster order. Shapes: `[B, C, H, W]` to `[B, H W, C]`.
pub fn to_positions(x: Tensor<4>) -> Tensor<3> {
    let [batch, channels, height, width] = x.dims();
    x.reshape([batch, channels, height * width]).swap_dims(1, 2)
}

/// Inverts [`to_positions`]. Shapes: `[B, H W, C]` to `[B, C, H, W]`.
pub fn from_positions(x: Tensor<3>, [height, width]: [usize; 2]) -> Tensor<4> {
    let [batch, _, channels] = x.dims();
    x.swap_dims(1, 2).reshape([batch, channels, height, width])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::parameters::{Init, initialize};
    use crate::random::Random;
    use burn::tensor::DType;
    use proptest::prelude::*;

    fn ramp(shape: [usize; 4]) -> Tensor<4> {
        let values: Vec<f64> = (0..shape.iter().product()).map(|v: usize| (v as f64 * 0.7).sin()).collect();
        tensor(&values, shape, DType::F32, &Device::flex())
    }

    fn numbers<const D: usize>(x: Tensor<D>) -> Vec<f64> {
        x.into_data().convert::<f64>().try_into_vec().unwrap()
    }

    #[test]
    fn halving_convolution_pads_behind_only() {
        // A kernel of ones counts the pixels that it covers. The last row and column extend beyond the edge.
        let ones = |module| {
            initialize(module, &Random::new(0), &|path, _| match path {
                "weight" => Init::Ones,
                _ => Init::Zeros,
            })
        };
        let conv = ones(Conv2d::new(1, 1, 3, &Device::flex()).with_stride(2, (0, 1)));
        let x = Tensor::ones([1, 1, 4, 4], &Device::flex());
        assert_eq!(numbers(conv.forward(x)), [9.0, 6.0, 6.0, 4.0]);
    }

    #[test]
    fn groups_have_mean_zero_and_variance_one_before_weight_and_bias() {
        let device = Device::flex();
        let norm = GroupNorm::new(4, GroupNormConfig { groups: 2, epsilon: 0.0 }, &device);
        let init = |path: &str, _: &[usize]| match path {
            "weight" => Init::Constant(vec![1.0, 1.0, 2.0, 3.0]),
            _ => Init::Constant(vec![0.0, 0.0, 5.0, 0.0]),
        };
        let y = numbers(initialize(norm, &Random::new(0), &init).forward(ramp([2, 4, 3, 3])));
        let undone = |sample: usize| {
            let channel = move |c: usize| y[(sample * 4 + c) * 9..][..9].to_vec();
            let second: Vec<f64> = channel(2).iter().map(|v| (v - 5.0) / 2.0).collect();
            [[channel(0), channel(1)].concat(), [second, channel(3).iter().map(|v| v / 3.0).collect()].concat()]
        };
        for group in undone(1) {
            assert!(group.iter().sum::<f64>().abs() < 1e-5);
            assert!((group.iter().map(|v| v * v).sum::<f64>() / 18.0 - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn upsampling_doubles_every_pixel() {
        let x = tensor::<4>(&[1.0, 2.0, 3.0, 4.0], [1, 1, 2, 2], DType::F32, &Device::flex());
        let rows = [[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0], [3.0, 3.0, 4.0, 4.0], [3.0, 3.0, 4.0, 4.0]];
        assert_eq!(numbers(upsample_nearest(x)), rows.concat());
    }

    #[test]
    fn area_and_cubic_weights_of_small_sizes() {
        // Three pixels from four: each output pixel overlaps two input pixels.
        assert_eq!(
            Resampling::Area.weights(4, 3),
            [[0.5, 0.5, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.5, 0.5]].concat()
        );
        // The kernel half-way between two pixels: -3/32, 19/32, 19/32, -3/32.
        let middle = &Resampling::Bicubic.weights(4, 8)[3 * 4..4 * 4];
        let quarter = |d: f64| cubic(d);
        let expected = [quarter(1.25), quarter(0.25), quarter(0.75), quarter(1.75)];
        assert!(middle.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-15), "{middle:?}");
        assert_eq!([cubic(0.5), cubic(1.5)], [19.0 / 32.0, -3.0 / 32.0]);
    }

    proptest! {
        #[test]
        fn a_constant_image_stays_constant(from in 1_usize..20, to in 1_usize..20) {
            for resampling in [Resampling::Area, Resampling::Bicubic] {
                for row in resampling.weights(from, to).chunks(from) {
                    prop_assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12);
                }
            }
        }

        #[test]
        fn the_same_size_is_the_same_image(size in 1_usize..20) {
            for resampling in [Resampling::Area, Resampling::Bicubic] {
                let weights = resampling.weights(size, size);
                let identity = |i: usize| if i / size == i % size { 1.0 } else { 0.0 };
                prop_assert!(weights.iter().enumerate().all(|(i, w)| (w - identity(i)).abs() < 1e-12));
            }
        }
    }

    #[test]
    fn resizing_treats_height_and_width_apart() {
        // The rows are 1, 2, 3 and 4, 5, 6.
        let x = tensor::<4>(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1, 1, 2, 3], DType::F64, &Device::flex());
        assert_eq!(resize(x.clone(), [2, 1], Resampling::Area).dims(), [1, 1, 2, 1]);
        assert_eq!(numbers(resize(x.clone(), [1, 3], Resampling::Area)), [2.5, 3.5, 4.5]);
        let column = numbers(resize(x, [2, 1], Resampling::Area));
        assert!(column.iter().zip([2.0, 5.0]).all(|(a, b)| (a - b).abs() < 1e-12), "{column:?}");
    }

    #[test]
    fn positions_round_trip() {
        let x = ramp([2, 3, 4, 5]);
        let positions = to_positions(x.clone());
        assert_eq!(positions.dims(), [2, 20, 3]);
        assert_eq!(numbers(from_positions(positions, [4, 5])), numbers(x));
    }
}
