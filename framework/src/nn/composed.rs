//! The functions that have a kernel (see [`crate::kernels`]), composed from tensor operations. Every other
//! backend and data type runs them, and the tests of the kernels compare with them.

use crate::kernels::{Activation, GroupNormConfig, SHORTEST};
use burn::tensor::module::{attention, conv2d};
use burn::tensor::ops::{AttentionModuleOptions, ConvOptions};
use burn::tensor::{Bool, DType, Int, Tensor, TensorData, activation};

/// The keys that a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// All keys.
    All,
    /// The keys up to the position of the query. The last query is at the position of the last key.
    Causal,
}

/// Converts f16 and bf16 to f32; returns other types unchanged.
pub fn widen<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.cast(DType::F32),
        _ => x,
    }
}

/// See [`super::activate`].
pub fn activate<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    match activation {
        Activation::Silu => x.clone() * activation::sigmoid(x),
        Activation::Gelu => activation::gelu(x),
        // x/2 (1 + tanh(u/2)) = x sigmoid(u): the second form takes fewer passes over memory.
        Activation::GeluTanh => {
            const LINEAR: f64 = 1.595_769_121_605_730_7; // 2 sqrt(2 / pi)
            let u = (x.clone() * x.clone() * (LINEAR * 0.044_715) + LINEAR) * x.clone();
            x * activation::sigmoid(u)
        }
        Activation::GeluQuick => x.clone() * activation::sigmoid(x * 1.702),
    }
}

/// See [`super::gate`].
pub fn gate<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    let [a, b] = x.chunk(2, D - 1).try_into().expect("`chunk` returned two halves");
    a * activate(b, activation)
}

/// Computes `(x - mean) / sqrt(variance + epsilon)` over the last dimension; the mean is not subtracted unless
/// `centred`.
pub fn normalize<const D: usize>(x: Tensor<D>, epsilon: f64, centred: bool) -> Tensor<D> {
    let dtype = x.dtype();
    let x = widen(x);
    let centred = if centred { x.clone() - x.mean_dim(D - 1) } else { x };
    let variance = (centred.clone() * centred.clone()).mean_dim(D - 1);
    (centred / (variance + epsilon).sqrt()).cast(dtype)
}

/// See [`super::adaptive_layer_norm`].
pub fn adaptive_layer_norm<const D: usize>(
    x: Tensor<D>,
    epsilon: f64,
    shift: Tensor<2>,
    scale: Tensor<2>,
) -> Tensor<D> {
    let ([groups, width], shape) = (scale.dims(), x.dims());
    let rows = shape.iter().product::<usize>() / groups / width;
    let normal = normalize(x.reshape([groups, rows, width]), epsilon, true);
    (normal * (scale.unsqueeze_dim::<3>(1) + 1.0) + shift.unsqueeze_dim(1)).reshape(shape)
}

/// See [`super::gated_add`].
pub fn gated_add<const D: usize>(x: Tensor<D>, y: Tensor<D>, gate: Tensor<2>) -> Tensor<D> {
    let ([groups, width], shape) = (gate.dims(), x.dims());
    let grouped = |x: Tensor<D>| x.reshape([groups, shape.iter().product::<usize>() / groups / width, width]);
    (grouped(x) + grouped(y) * gate.unsqueeze_dim::<3>(1)).reshape(shape)
}

/// See [`super::LayerNorm`].
pub fn layer_norm<const D: usize>(x: Tensor<D>, epsilon: f64, weight: Tensor<2>, bias: Tensor<2>) -> Tensor<D> {
    normalize(x, epsilon, true) * weight.unsqueeze() + bias.unsqueeze()
}

/// See [`super::RmsNorm`].
pub fn rms_norm<const D: usize>(x: Tensor<D>, epsilon: f64, weight: Tensor<2>) -> Tensor<D> {
    normalize(x, epsilon, false) * weight.unsqueeze()
}

/// See [`super::Rotary::turn`].
pub fn turn(qkv: Tensor<3>, cos: &Tensor<2>, sin: &Tensor<2>) -> Tensor<3> {
    let ([batch, length, width], d) = (qkv.dims(), cos.dims()[1]);
    let (turned, grid) = (width / 3 * 2, |x: &Tensor<2>| x.clone().reshape([1, length, 1, d]));
    let x = qkv.clone().narrow(2, 0, turned).reshape([batch, length, turned / d, d]);
    let swapped = x.clone().reshape([batch * length, turned / d, d / 2, 2]).flip([3]).reshape(x.dims());
    let x = x * grid(cos) + swapped * grid(sin);
    Tensor::cat(vec![x.reshape([batch, length, turned]), qkv.narrow(2, turned, width - turned)], 2)
}

/// See [`super::unit_heads`].
pub fn unit_heads(qkv: Tensor<3>, factors: Tensor<1>) -> Tensor<3> {
    let ([batch, length, width], [heads]) = (qkv.dims(), factors.dims());
    let (dtype, unit) = (qkv.dtype(), width / 3 * 2);
    let x = widen(qkv.clone().narrow(2, 0, unit).reshape([batch, length, 2 * heads, unit / 2 / heads]));
    let lengths = (x.clone() * x.clone()).sum_dim(3).sqrt().clamp_min(SHORTEST);
    let factors = widen(Tensor::cat(vec![factors.clone(), factors.ones_like()], 0));
    let x = x / lengths * factors.reshape([1, 1, 2 * heads, 1]);
    Tensor::cat(vec![x.reshape([batch, length, unit]).cast(dtype), qkv.narrow(2, unit, width - unit)], 2)
}

/// See [`crate::process::log_probabilities`].
pub fn log_probabilities(logits: Tensor<3>, ids: Tensor<2, Int>) -> Tensor<3> {
    activation::log_softmax(logits, 2).gather(2, ids.unsqueeze_dim(2))
}

/// See [`super::GroupNorm`]; followed by silu if `silu`.
pub fn group_norm(
    x: Tensor<4>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    GroupNormConfig { groups, epsilon }: GroupNormConfig,
    silu: bool,
) -> Tensor<4> {
    let ([batch, channels, height, width], dtype) = (x.dims(), x.dtype());
    let (area, members) = (height * width, channels / groups);
    let x = widen(x).reshape([batch, groups, members * area]);
    let centred = x.clone() - x.mean_dim(2);
    let variance = (centred.clone() * centred.clone()).mean_dim(2);
    // Combine the deviation and the weight into one factor per channel, for a single pass over memory.
    let factor =
        (widen(weight).reshape([1, groups, members]) / (variance + epsilon).sqrt()).reshape([batch, channels, 1]);
    let normal = centred.reshape([batch, channels, area]) * factor + widen(bias).reshape([1, channels, 1]);
    let normal = normal.reshape([batch, channels, height, width]).cast(dtype);
    if silu { activate(normal, Activation::Silu) } else { normal }
}

/// See [`super::Conv2d`].
pub fn conv(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>, stride: usize, padding: (usize, usize)) -> Tensor<4> {
    conv2d(x, weight, Some(bias), ConvOptions::new_with_padding([stride; 2], [padding; 2], [1, 1], 1))
}

/// See [`super::attend`].
pub fn attend([q, k, v]: [Tensor<4>; 3], span: Span, mask: Option<Tensor<4, Bool>>, scale: f64) -> Tensor<4> {
    let options = AttentionModuleOptions { scale: Some(scale), is_causal: span == Span::Causal, ..Default::default() };
    attention(q, k, v, mask, None, options)
}

/// Computes the attention map `softmax(q k^T scale)`, `[B, heads, L, K]`, which the fused kernels never hold.
pub fn attention_map([q, k]: [Tensor<4>; 2], span: Span, mask: Option<Tensor<4, Bool>>, scale: f64) -> Tensor<4> {
    let [batch, heads, queries, _] = q.dims();
    let keys = k.dims()[2];
    let mut scores = q.matmul(k.swap_dims(2, 3)) * scale;
    if span == Span::Causal {
        // The last query is at the position of the last key.
        let hidden: Vec<bool> = (0..queries * keys).map(|i| i % keys > i / keys + keys - queries).collect();
        let hidden = Tensor::<4, Bool>::from_data(TensorData::new(hidden, [1, 1, queries, keys]), &scores.device());
        scores = scores.mask_fill(hidden.expand([batch, heads, queries, keys]), f64::NEG_INFINITY);
    }
    if let Some(mask) = mask {
        scores = scores.mask_fill(mask, f64::NEG_INFINITY);
    }
    activation::softmax(scores, 3)
}
