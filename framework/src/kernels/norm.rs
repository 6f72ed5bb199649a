//! Normalisation fused with the operation that follows it. Rows: layer norm and RMS norm, with affine
//! parameters or with one modulation per sample. Groups of channels: group norm, optionally with silu.

use super::math::{Number, chunks, room, sum, total, vectorized};
use super::pointwise::Activation;
use super::pointwise::evaluate;
use super::{Fused, dense, numbers, tensor};
use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use rayon::prelude::*;

/// Settings of a group normalisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNormConfig {
    /// Number of groups; divides the channels.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f64,
}

/// Rows per partial sum of the parameter gradients. The constant fixes the order of summation.
const ROWS: usize = 32;

/// Computes `(x - mean) / sqrt(variance + epsilon) (offset + scale) + shift` over the last dimension; the mean
/// is not subtracted unless `centred`. Inputs: `x` `[.., D]`, then optionally `scale` and `shift` `[G, D]`. Of
/// `R` rows of `x`, row `r` uses row `r G / R` of `scale` and `shift`.
#[derive(Clone, Debug)]
pub(crate) struct Normalize {
    pub epsilon: f64,
    /// Whether the mean is subtracted: true for layer norm, false for RMS norm.
    pub centred: bool,
    /// Added to `scale`: 1 for a modulation, 0 for a weight.
    pub offset: f64,
}

impl<const N: usize> Fused<N> for Normalize {
    /// Mean and inverse standard deviation of every row.
    type Saved = FlexTensor;

    fn forward<T: Number>(&self, inputs: [FlexTensor; N]) -> (FlexTensor, FlexTensor) {
        let inputs = inputs.map(dense::<T>);
        let shape = inputs[0].shape();
        let width = shape[shape.num_dims() - 1];
        let x = numbers::<T>(&inputs[0]);
        let rows = x.len() / width;
        let [scale, shift] = [1, 2].map(|i| inputs.get(i).map(numbers::<T>));
        let of_group = rows_of_group(rows, scale, width);
        let (epsilon, offset, centred) = (T::of(self.epsilon), T::of(self.offset), self.centred);
        let mut y = room::<T>(x.len());
        let statistics = chunks(&mut y, ROWS * width, |i, y| {
            vectorized(
                #[inline(always)]
                || {
                    let mut statistics = Vec::with_capacity(2 * ROWS);
                    for (j, y) in y.chunks_exact_mut(width).enumerate() {
                        let row = i * ROWS + j;
                        let x = &x[row * width..][..width];
                        let [mean, inverse] = moments(x, epsilon, centred);
                        statistics.extend([mean, inverse]);
                        let group = row / of_group * width;
                        match (scale, shift) {
                            (Some(scale), Some(shift)) => {
                                let (scale, shift) = (&scale[group..][..width], &shift[group..][..width]);
                                for k in 0..width {
                                    y[k] = (x[k] - mean) * inverse * (offset + scale[k]) + shift[k];
                                }
                            }
                            (Some(scale), None) => {
                                let scale = &scale[group..][..width];
                                for k in 0..width {
                                    y[k] = (x[k] - mean) * inverse * (offset + scale[k]);
                                }
                            }
                            _ => {
                                for k in 0..width {
                                    y[k] = (x[k] - mean) * inverse;
                                }
                            }
                        }
                    }
                    statistics
                },
            )
        });
        let statistics = tensor(statistics.concat(), Shape::new([rows, 2]));
        (tensor(y, shape), statistics)
    }

    fn backward<T: Number>(
        &self,
        inputs: [FlexTensor; N],
        statistics: FlexTensor,
        grad: FlexTensor,
        wanted: [bool; N],
    ) -> [Option<FlexTensor>; N] {
        let (inputs, grad) = (inputs.map(dense::<T>), dense::<T>(grad));
        let shape = inputs[0].shape();
        let width = shape[shape.num_dims() - 1];
        let (x, grad, statistics) = (numbers::<T>(&inputs[0]), numbers::<T>(&grad), numbers::<T>(&statistics));
        let scale = inputs.get(1).map(numbers::<T>);
        let of_group = rows_of_group(x.len() / width, scale, width);
        let (offset, centred) = (T::of(self.offset), self.centred);
        let parameters = wanted[1..].contains(&true);
        let zero = T::of(0.0);
        let block = |first: usize, of_x: &mut [T]| {
            vectorized(
                #[inline(always)]
                || {
                    // Gradient of the scale, then of the shift.
                    let mut parts = vec![zero; if parameters { 2 * width } else { 0 }];
                    let mut inner = vec![zero; width];
                    for (j, of_x) in of_x.chunks_exact_mut(width).enumerate() {
                        let row = first + j;
                        let (x, grad) = (&x[row * width..][..width], &grad[row * width..][..width]);
                        let [mean, inverse] = [statistics[2 * row], statistics[2 * row + 1]];
                        if parameters {
                            let (of_scale, of_shift) = parts.split_at_mut(width);
                            for k in 0..width {
                                of_scale[k] += grad[k] * (x[k] - mean) * inverse;
                                of_shift[k] += grad[k];
                            }
                        }
                        match scale {
                            Some(scale) => {
                                let scale = &scale[row / of_group * width..][..width];
                                for k in 0..width {
                                    inner[k] = grad[k] * (offset + scale[k]);
                                }
                            }
                            None => inner.copy_from_slice(grad),
                        }
                        let inner = &inner[..];
                        let count = T::of(width as f64);
                        let along = sum(width, |k| inner[k] * (x[k] - mean)) * inverse / count;
                        let level = if centred { sum(width, |k| inner[k]) / count } else { zero };
                        for k in 0..width {
                            of_x[k] = inverse * (inner[k] - level - (x[k] - mean) * inverse * along);
                        }
                    }
                    parts
                },
            )
        };
        let mut of_x = room::<T>(x.len());
        // Process each group separately, so that all rows of a block share the same parameters.
        let group = |(g, of_x): (usize, &mut [T])| {
            total(chunks(of_x, ROWS * width, |i, of_x| block(g * of_group + i * ROWS, of_x)))
        };
        let parts: Vec<Vec<T>> = of_x.par_chunks_mut(of_group * width).enumerate().map(group).collect();
        let mut grads = [const { None }; N];
        for (i, grad) in grads.iter_mut().enumerate().skip(1) {
            if wanted[i] {
                let values = parts.iter().flat_map(|part| part[(i - 1) * width..][..width].iter().copied()).collect();
                *grad = Some(tensor::<T>(values, inputs[i].shape()));
            }
        }
        grads[0] = wanted[0].then(|| tensor(of_x, shape));
        grads
    }
}

fn rows_of_group<T>(rows: usize, scale: Option<&[T]>, width: usize) -> usize {
    let groups = scale.map_or(1, |scale| scale.len() / width);
    debug_assert!(rows.is_multiple_of(groups), "{rows} rows do not divide into {groups} groups");
    (rows / groups).max(1)
}

/// Returns `[mean, 1 / sqrt(variance + epsilon)]`; the mean is 0 unless `centred`.
#[inline(always)]
fn moments<T: Number>(x: &[T], epsilon: T, centred: bool) -> [T; 2] {
    let count = T::of(x.len() as f64);
    let mean = if centred { sum(x.len(), |k| x[k]) / count } else { T::of(0.0) };
    let variance = sum(x.len(), |k| (x[k] - mean) * (x[k] - mean)) / count;
    [mean, T::of(1.0) / (variance + epsilon).sqrt()]
}

/// Normalises groups of channels, applies a weight and a bias per channel, and then silu if `silu` is set.
/// Inputs: `x` `[B, C, H, W]`, `weight` and `bias` `[C]`.
#[derive(Clone, Debug)]
pub(crate) struct GroupNormalize {
    pub config: GroupNormConfig,
    pub silu: bool,
}

impl Fused<3> for GroupNormalize {
    /// Mean and inverse standard deviation of every group.
    type Saved = FlexTensor;

    fn forward<T: Number>(&self, inputs: [FlexTensor; 3]) -> (FlexTensor, FlexTensor) {
        let inputs = inputs.map(dense::<T>);
        let shape = inputs[0].shape();
        let (channels, area) = (shape[1], shape[2] * shape[3]);
        let [x, weight, bias] = inputs.each_ref().map(numbers::<T>);
        let members = channels / self.config.groups;
        let (epsilon, silu) = (T::of(self.config.epsilon), self.silu);
        let mut y = room::<T>(x.len());
        let statistics = chunks(&mut y, members * area, |i, y| {
            let x = &x[i * members * area..][..members * area];
            let first = i % self.config.groups * members;
            vectorized(
                #[inline(always)]
                || {
                    let [mean, inverse] = moments(x, epsilon, true);
                    for m in 0..members {
                        let factor = inverse * weight[first + m];
                        let shift = bias[first + m] - mean * factor;
                        let (x, y) = (&x[m * area..][..area], &mut y[m * area..][..area]);
                        if silu {
                            for k in 0..area {
                                y[k] = evaluate(Activation::Silu, x[k] * factor + shift).0;
                            }
                        } else {
                            for k in 0..area {
                                y[k] = x[k] * factor + shift;
                            }
                        }
                    }
                    [mean, inverse]
                },
            )
        });
        let statistics = tensor(statistics.concat(), Shape::new([shape[0] * self.config.groups, 2]));
        (tensor(y, shape), statistics)
    }

    fn backward<T: Number>(
        &self,
        inputs: [FlexTensor; 3],
        statistics: FlexTensor,
        grad: FlexTensor,
        wanted: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let (inputs, grad) = (inputs.map(dense::<T>), dense::<T>(grad));
        let shape = inputs[0].shape();
        let (channels, area) = (shape[1], shape[2] * shape[3]);
        let [x, weight, bias] = inputs.each_ref().map(numbers::<T>);
        let (grad, statistics) = (numbers::<T>(&grad), numbers::<T>(&statistics));
        let members = channels / self.config.groups;
        let silu = self.silu;
        let mut of_x = room::<T>(x.len());
        // Per sample and channel: the gradients of the weight and of the bias.
        let parts = chunks(&mut of_x, members * area, |i, of_x| {
            let place = i * members * area;
            let (x, grad) = (&x[place..][..members * area], &grad[place..][..members * area]);
            let first = i % self.config.groups * members;
            let [mean, inverse] = [statistics[2 * i], statistics[2 * i + 1]];
            vectorized(
                #[inline(always)]
                || {
                    let mut parts = Vec::with_capacity(2 * members);
                    let (mut level, mut along) = (T::of(0.0), T::of(0.0));
                    for m in 0..members {
                        let (weight, bias) = (weight[first + m], bias[first + m]);
                        let (x, grad) = (&x[m * area..][..area], &grad[m * area..][..area]);
                        let of_x = &mut of_x[m * area..][..area];
                        if silu {
                            let factor = inverse * weight;
                            let shift = bias - mean * factor;
                            for k in 0..area {
                                of_x[k] = grad[k] * evaluate(Activation::Silu, x[k] * factor + shift).1;
                            }
                        } else {
                            of_x.copy_from_slice(grad);
                        }
                        let inner = &of_x[..];
                        let of_weight = sum(area, |k| inner[k] * (x[k] - mean)) * inverse;
                        let of_bias = sum(area, |k| inner[k]);
                        along += weight * of_weight;
                        level += weight * of_bias;
                        parts.extend([of_weight, of_bias]);
                    }
                    let count = T::of((members * area) as f64);
                    (level, along) = (level / count, along / count);
                    for m in 0..members {
                        let weight = weight[first + m];
                        let (x, of_x) = (&x[m * area..][..area], &mut of_x[m * area..][..area]);
                        for k in 0..area {
                            of_x[k] = inverse * (of_x[k] * weight - level - (x[k] - mean) * inverse * along);
                        }
                    }
                    parts
                },
            )
        });
        let samples = parts.chunks(self.config.groups).map(|groups| groups.concat());
        let parts = total(samples);
        let every_second =
            |start: usize| tensor::<T>(parts[start..].iter().step_by(2).copied().collect(), Shape::new([channels]));
        [wanted[0].then(|| tensor(of_x, shape)), wanted[1].then(|| every_second(0)), wanted[2].then(|| every_second(1))]
    }
}

/// Computes `x + gate y` with one gate vector per sample. Inputs: `x` and `y` `[G, .., D]`, `gate` `[G, D]`.
#[derive(Clone, Debug)]
pub(crate) struct GatedAdd;

impl Fused<3> for GatedAdd {
    type Saved = ();
    const NEEDED: [bool; 3] = [false, true, true];

    fn forward<T: Number>(&self, inputs: [FlexTensor; 3]) -> (FlexTensor, ()) {
        let [x, y, gate] = inputs.map(dense::<T>);
        let (shape, width) = (x.shape(), gate.shape()[1]);
        let mut out = room::<T>(shape.num_elements());
        {
            let [x, y, gate] = [&x, &y, &gate].map(numbers::<T>);
            let of_group = rows_of_group(x.len() / width, Some(gate), width);
            chunks(&mut out, ROWS * width, |i, out| {
                vectorized(
                    #[inline(always)]
                    || {
                        for (j, out) in out.chunks_exact_mut(width).enumerate() {
                            let row = i * ROWS + j;
                            let (x, y) = (&x[row * width..][..width], &y[row * width..][..width]);
                            let gate = &gate[row / of_group * width..][..width];
                            for k in 0..width {
                                out[k] = x[k] + gate[k] * y[k];
                            }
                        }
                    },
                )
            });
        }
        (tensor(out, shape), ())
    }

    fn backward<T: Number>(
        &self,
        [_, y, gate]: [FlexTensor; 3],
        (): (),
        grad: FlexTensor,
        wanted: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let [y, gate, grad] = [y, gate, grad].map(dense::<T>);
        let (shape, of_gates) = (y.shape(), gate.shape());
        let width = of_gates[1];
        let mut of_y = room::<T>(shape.num_elements());
        let parts: Vec<Vec<T>> = {
            let [y, gate, grad] = [&y, &gate, &grad].map(numbers::<T>);
            let of_group = rows_of_group(y.len() / width, Some(gate), width);
            let block = |first: usize, of_y: &mut [T]| {
                vectorized(
                    #[inline(always)]
                    || {
                        let mut of_gate = vec![T::of(0.0); width];
                        for (j, of_y) in of_y.chunks_exact_mut(width).enumerate() {
                            let row = first + j;
                            let (y, grad) = (&y[row * width..][..width], &grad[row * width..][..width]);
                            let gate = &gate[row / of_group * width..][..width];
                            for k in 0..width {
                                of_y[k] = grad[k] * gate[k];
                                of_gate[k] += grad[k] * y[k];
                            }
                        }
                        of_gate
                    },
                )
            };
            let group = |(g, of_y): (usize, &mut [T])| {
                total(chunks(of_y, ROWS * width, |i, of_y| block(g * of_group + i * ROWS, of_y)))
            };
            of_y.par_chunks_mut(of_group * width).enumerate().map(group).collect()
        };
        [
            wanted[0].then_some(grad),
            wanted[1].then(|| tensor(of_y, shape)),
            wanted[2].then(|| tensor(parts.concat(), of_gates)),
        ]
    }
}
